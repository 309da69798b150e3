//! What the kernel's errors mean for a store: the one place that looks at them.

use std::io;

use rustix::io::Errno;

use crate::store::BlobErrorKind;
use crate::telemetry;

/// A step that failed, before anybody said for which blob it was done.
#[derive(Debug)]
pub(super) struct Failed {
    /// What went wrong.
    pub(super) kind: BlobErrorKind,
    /// The kernel's word, if it had one.
    pub(super) source: Option<io::Error>,
}

impl Failed {
    /// For files that are stagings: one that is not there is lost.
    pub(super) fn of_staging(self) -> Self {
        match self.kind {
            BlobErrorKind::NotFound => Self {
                kind: BlobErrorKind::StagingLost,
                ..self
            },
            _ => self,
        }
    }

    /// For the base folder: whatever stands at its path, it is not our container.
    pub(super) fn of_base(self) -> Self {
        match self.kind {
            BlobErrorKind::NotFound | BlobErrorKind::Invalid => Self {
                kind: BlobErrorKind::NoContainer,
                ..self
            },
            _ => self,
        }
    }

    /// For syncs, whatever the kernel says: it drops the pages that it could not write and counts them as clean,
    /// so that the next sync would succeed without them.
    pub(super) fn of_sync(source: io::Error) -> Self {
        telemetry::count_sync_error();
        Self {
            kind: BlobErrorKind::SyncFailed,
            source: Some(source),
        }
    }

    /// For looking at final names: below a file there is no blob, as there would be none on an object store.
    pub(super) fn of_lookup(source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::NotADirectory => Self {
                kind: BlobErrorKind::NotFound,
                source: Some(source),
            },
            _ => source.into(),
        }
    }
}

impl From<BlobErrorKind> for Failed {
    fn from(kind: BlobErrorKind) -> Self {
        Self { kind, source: None }
    }
}

impl From<io::Error> for Failed {
    fn from(source: io::Error) -> Self {
        Self {
            kind: kind_of(&source),
            source: Some(source),
        }
    }
}

impl From<Errno> for Failed {
    fn from(errno: Errno) -> Self {
        io::Error::from(errno).into()
    }
}

fn kind_of(error: &io::Error) -> BlobErrorKind {
    use BlobErrorKind as Kind;
    let Some(errno) = Errno::from_io_error(error) else {
        // Without a number it is from cap-std (a path led out of the base folder) or from std (the file ended).
        return match error.kind() {
            io::ErrorKind::PermissionDenied => Kind::Denied,
            io::ErrorKind::UnexpectedEof => Kind::ShortRead,
            _ => Kind::Io,
        };
    };
    match errno {
        Errno::NOENT => Kind::NotFound,
        Errno::NOSPC | Errno::DQUOT => Kind::NoSpace,
        Errno::ACCESS | Errno::PERM | Errno::ROFS => Kind::Denied,
        // The name, or the size, is one that this file system can never take; or it lacks RENAME_NOREPLACE.
        Errno::NAMETOOLONG
        | Errno::NOTDIR
        | Errno::ISDIR
        | Errno::EXIST
        | Errno::NOTEMPTY
        | Errno::LOOP
        | Errno::ILSEQ
        | Errno::FBIG
        | Errno::INVAL
        | Errno::NOSYS
        | Errno::NOTSUP => Kind::Invalid,
        // The mount is gone, or one begins below the base folder: an operator has to act.
        Errno::STALE | Errno::NOTCONN | Errno::XDEV => Kind::NoContainer,
        // This process or machine is short of something; the container is not to blame.
        Errno::AGAIN | Errno::INTR | Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::BUSY => Kind::Unavailable,
        _ => Kind::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_kernel_get_the_kinds_that_decide_about_retries() {
        for (errno, kind) in [
            (Errno::NOSPC, BlobErrorKind::NoSpace),
            (Errno::DQUOT, BlobErrorKind::NoSpace),
            (Errno::ROFS, BlobErrorKind::Denied),
            (Errno::NAMETOOLONG, BlobErrorKind::Invalid),
            (Errno::STALE, BlobErrorKind::NoContainer),
            (Errno::MFILE, BlobErrorKind::Unavailable),
            (Errno::IO, BlobErrorKind::Io),
        ] {
            assert_eq!(Failed::from(errno).kind, kind, "{errno}");
        }
    }
}
