//! Which content a file is (its tag), and whose copy (its identity). Spec: core.md §6, "Identity".

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::time::SystemTime;

use cap_std::fs::OpenOptions;
use jiff::Timestamp;
use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::failure::Failed;
use super::{Folder, Syncing};
use crate::store::{BlobErrorKind, BlobName, BlobStat, Identity, Tag};

/// The extended attribute that holds the identity, as JSON.
const ATTRIBUTE: &str = "user.ferry";
/// Where file systems without extended attributes have the identities: each in a file named after the tag of the
/// content that it is about. One that was left behind can so never vouch for another content, and replacing or
/// refusing to replace a blob touches no other blob's identity.
const META: &str = ".ferry/meta";
/// Longest JSON of an identity; ours is about 130 bytes, anything longer is somebody else's.
const LONGEST: usize = 512;

#[cfg(target_os = "linux")]
const NO_ATTRIBUTE: Errno = Errno::NODATA;
#[cfg(not(target_os = "linux"))]
const NO_ATTRIBUTE: Errno = Errno::NOATTR;

/// Whether the file system of `file` has extended attributes for users.
pub(super) fn has_attributes(file: &File) -> Result<bool, Failed> {
    match rustix::fs::fgetxattr(file, ATTRIBUTE, &mut [0; 1][..]) {
        Ok(_) | Err(NO_ATTRIBUTE | Errno::RANGE) => Ok(true),
        Err(Errno::NOTSUP) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// What tells the content of `file` from every other that the same name had or will have.
///
/// The device is left out: its number changes when a volume is mounted again, the content does not.
pub(super) fn tag(file: &File) -> Result<Tag, Failed> {
    let found = file.metadata()?;
    let nanoseconds = i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
    Ok(Tag(format!("{:x}-{nanoseconds:x}-{:x}", found.ino(), found.len())))
}

impl Folder {
    /// Size, tag and identity of the blob that `file` is.
    pub(super) fn describe(&self, file: &File) -> Result<BlobStat, Failed> {
        let found = file.metadata()?;
        let tag = tag(file)?;
        let identity = self.identity(file, &tag)?;
        let modified = Timestamp::try_from(found.modified()?).unwrap_or(Timestamp::MIN);
        Ok(BlobStat {
            size: found.len(),
            modified,
            tag,
            identity,
        })
    }

    /// Tag of the blob `name`, if there is one.
    pub(super) fn tag_of(&self, name: &BlobName) -> Result<Option<Tag>, Failed> {
        match self.base.file(name.as_str(), OpenOptions::new().read(true)) {
            Ok(file) => Ok(Some(tag(&file)?)),
            Err(failed) if failed.kind == BlobErrorKind::NotFound => Ok(None),
            Err(failed) => Err(failed),
        }
    }

    /// Gives a finished, still invisible `file` its tag and identity, and makes all of it durable.
    pub(super) fn seal(&self, file: &File, identity: Option<&Identity>) -> Result<Tag, Failed> {
        // File systems stamp files with a clock of a few milliseconds' grain and use inodes again: two contents of
        // one length, written in one tick, could otherwise share a tag.
        file.set_modified(SystemTime::now())?;
        let tag = tag(file)?;
        let sync = self.syncing == Syncing::AtCommit;
        if let Some(identity) = identity {
            let json = serde_json::to_vec(identity).expect("an identity is plain data");
            if self.attributes {
                rustix::fs::fsetxattr(file, ATTRIBUTE, &json, XattrFlags::empty())?;
            } else {
                self.base.own_folder(META)?;
                let mut options = OpenOptions::new();
                let beside = self
                    .base
                    .file(&meta_path(&tag), options.write(true).create(true).truncate(true))?;
                beside.write_all_at(&json, 0)?;
                if sync {
                    self.base.syncs.sync_file(&beside)?;
                    self.base.sync_folder(META)?;
                }
            }
        }
        if sync {
            // Not fdatasync: it may leave the attribute behind.
            self.base.syncs.sync_file(file)?;
        }
        Ok(tag)
    }

    /// The content `tag` is gone: so is what was known about it.
    pub(super) fn forget_identity(&self, tag: &Tag) -> Result<(), Failed> {
        if self.attributes {
            Ok(())
        } else {
            self.base.remove(&meta_path(tag))
        }
    }

    /// The identity of `file`, if Ferry gave it one. Anything unreadable is somebody else's.
    fn identity(&self, file: &File, tag: &Tag) -> Result<Option<Identity>, Failed> {
        let json = if self.attributes {
            let mut json = vec![0; LONGEST];
            match rustix::fs::fgetxattr(file, ATTRIBUTE, &mut json[..]) {
                Ok(len) => json.truncate(len),
                Err(NO_ATTRIBUTE | Errno::RANGE | Errno::NOTSUP) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
            json
        } else {
            let mut json = Vec::new();
            match self.base.file(&meta_path(tag), OpenOptions::new().read(true)) {
                Ok(beside) => beside.take(LONGEST as u64).read_to_end(&mut json)?,
                Err(failed) if failed.kind == BlobErrorKind::NotFound => return Ok(None),
                Err(failed) => return Err(failed),
            };
            json
        };
        Ok(serde_json::from_slice(&json).ok())
    }
}

fn meta_path(tag: &Tag) -> String {
    format!("{META}/{}", tag.as_str())
}
