//! The base folder: the one door to everything in it, and the proof that it is still the one that was opened.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use cap_std::ambient_authority;
use cap_std::fs::{Dir, DirBuilder, DirBuilderExt as _, OpenOptions, OpenOptionsExt as _};
use rustix::fs::{AtFlags, OFlags, StatVfs};

use super::failure::Failed;
use crate::folders;
use crate::store::BlobErrorKind;

/// Mode of new folders, less the umask. Spec: deliver.md §6.
const FOLDER_MODE: u32 = 0o755;
/// How many entries are remembered as durable; forgetting one costs a sync, nothing else.
const REMEMBERED: usize = 10_000;

/// The opened base folder. All paths below are relative to it, and the kernel refuses those that lead out of it.
#[derive(Debug)]
pub(super) struct Base {
    path: PathBuf,
    dir: Dir,
    /// Device and inode of `dir`.
    identity: (u64, u64),
    /// The mount that `dir` is in, if the system tells.
    mount: Option<Mount>,
    /// Whether folders of our own may be made: only if the opener wanted the base folder made as well, since a
    /// folder without `.ferry` may be the mount point of a volume that is not there.
    create: bool,
    pub(super) syncs: Syncs,
    /// Folders and staged files whose names have been synced into every folder above them by this process.
    durable: Mutex<HashSet<String>>,
}

/// A mount, as the kernel counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mount {
    number: u64,
    /// The folder that was asked about is where it is mounted.
    here: bool,
}

impl Mount {
    #[cfg(target_os = "linux")]
    fn of(dir: &Dir) -> Option<Self> {
        use rustix::fs::{StatxAttributes, StatxFlags, statx};

        let found = statx(dir, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
        StatxFlags::from_bits_retain(found.stx_mask)
            .contains(StatxFlags::MNT_ID)
            .then_some(Self {
                number: found.stx_mnt_id,
                here: found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
            })
    }

    #[cfg(not(target_os = "linux"))]
    fn of(_dir: &Dir) -> Option<Self> {
        None
    }
}

/// The calls that make things durable. Unit tests put failing ones in their place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Syncs {
    /// Bytes of a file.
    pub(super) data: fn(&File) -> io::Result<()>,
    /// Bytes and attributes of a file.
    pub(super) file: fn(&File) -> io::Result<()>,
    /// The names in a folder.
    pub(super) folder: fn(&File) -> io::Result<()>,
}

impl Syncs {
    /// Makes the bytes of `file` durable.
    pub(super) fn sync_data(&self, file: &File) -> Result<(), Failed> {
        (self.data)(file).map_err(|error| sync_failed(file, error))
    }

    /// Makes the bytes and attributes of `file` durable.
    pub(super) fn sync_file(&self, file: &File) -> Result<(), Failed> {
        (self.file)(file).map_err(|error| sync_failed(file, error))
    }

    /// Makes the names in `folder` durable.
    pub(super) fn sync_folder(&self, folder: &File) -> Result<(), Failed> {
        (self.folder)(folder).map_err(Failed::of_sync)
    }
}

/// What the kernel could not write it counts as clean, and goes on showing it to readers until it needs the memory:
/// it is dropped, so that from here on they see what is on the disk.
fn sync_failed(file: &File, error: io::Error) -> Failed {
    #[cfg(target_os = "linux")]
    if let Err(errno) = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed) {
        tracing::warn!(%errno, "memory of a file whose sync failed is not given up");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = file;
    Failed::of_sync(error)
}

impl Base {
    /// Opens the folder `path`, with `create` after making what is missing of it (synced, if `sync` says so).
    pub(super) fn open(path: &Path, create: bool, sync: bool) -> Result<Self, Failed> {
        if create {
            folders::make(path, sync).map_err(|error| Failed::from(error).of_base())?;
        }
        let dir = Dir::open_ambient_dir(path, ambient_authority()).map_err(|error| Failed::from(error).of_base())?;
        let found = dir.open(".")?.into_std().metadata()?;
        Ok(Self {
            path: path.to_owned(),
            mount: Mount::of(&dir),
            dir,
            identity: (found.dev(), found.ino()),
            create,
            syncs: Syncs {
                data: File::sync_data,
                file: File::sync_all,
                folder: File::sync_all,
            },
            durable: Mutex::default(),
        })
    }

    /// Whether the path still leads to the folder that was opened. A folder that was removed, replaced, made anew
    /// or lost with its mount is not, and nothing may be written into what stands there now. Spec: core.md §6.
    pub(super) fn present(&self) -> Result<(), Failed> {
        let found = fs::metadata(&self.path).map_err(|error| Failed::from(error).of_base())?;
        if (found.dev(), found.ino()) == self.identity {
            Ok(())
        } else {
            Err(BlobErrorKind::NoContainer.into())
        }
    }

    /// The folder that stands at the path now, if it may be used instead of this one. What was made within the same
    /// mount, or is where a volume is mounted, was meant to be there. Anything else may be what a lost mount has laid
    /// bare: it is used only if Ferry made it what it is. Spec: core.md §6; faults.md, rule 7.
    pub(super) fn successor(&self) -> Result<Self, Failed> {
        let mut found = Self::open(&self.path, false, false)?;
        let meant = |(before, now): (Mount, Mount)| now.here || now.number == before.number;
        found.create = self.create && self.mount.zip(found.mount).is_some_and(meant);
        found.own_folder(super::staging::STAGED)?;
        found.create = self.create;
        found.syncs = self.syncs;
        Ok(found)
    }

    /// The base folder's path, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The folder itself, for calls that want a descriptor (one that can also be synced).
    pub(super) fn descriptor(&self) -> Result<File, Failed> {
        Ok(self.dir.open(".")?.into_std())
    }

    /// Opens the regular file `path`. Anything else under that name is no blob.
    pub(super) fn file(&self, path: &str, options: &mut OpenOptions) -> Result<File, Failed> {
        // Not blocking: a FIFO would hold this thread for ever.
        let options = options.custom_flags(OFlags::NONBLOCK.bits().cast_signed());
        let file = self.dir.open_with(path, options).map_err(Failed::of_lookup)?.into_std();
        if file.metadata()?.is_file() {
            Ok(file)
        } else {
            Err(BlobErrorKind::NotFound.into())
        }
    }

    /// Whether `path`, of plain components, still names `file`. Opens nothing.
    pub(super) fn is_file(&self, path: &str, file: &File) -> Result<bool, Failed> {
        let named = rustix::fs::statat(&self.dir, path, AtFlags::SYMLINK_NOFOLLOW)?;
        let held = rustix::fs::fstat(file)?;
        Ok((named.st_dev, named.st_ino) == (held.st_dev, held.st_ino))
    }

    /// The file system that the folder is in. Opens nothing.
    pub(super) fn file_system(&self) -> Result<StatVfs, Failed> {
        Ok(rustix::fs::fstatvfs(&self.dir)?)
    }

    /// Removes the file `path`, if there is one.
    pub(super) fn remove(&self, path: &str) -> Result<(), Failed> {
        match self.dir.remove_file(path).map_err(Failed::of_lookup) {
            Err(failed) if failed.kind == BlobErrorKind::NotFound => self.present(),
            done => done,
        }
    }

    /// Opens the folder `path`; the empty one is the base folder.
    pub(super) fn folder(&self, path: &str) -> Result<Dir, Failed> {
        Ok(self.dir.open_dir(if path.is_empty() { "." } else { path })?)
    }

    /// Opens the folder `path` after making what is missing of it.
    pub(super) fn make_folder(&self, path: &str) -> Result<Dir, Failed> {
        match self.folder(path) {
            Err(failed) if failed.kind == BlobErrorKind::NotFound => {}
            done => return done,
        }
        self.present()?;
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for folder in ends.map(|end| &path[..end]) {
            match self.dir.create_dir_with(folder, DirBuilder::new().mode(FOLDER_MODE)) {
                // Its name is not durable yet, nor is any below it, whatever was there before.
                Ok(()) => self.remembered(HashSet::clear),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.folder(path)
    }

    /// Opens one of Ferry's own folders, `path` beginning with `.ferry/`.
    pub(super) fn own_folder(&self, path: &str) -> Result<Dir, Failed> {
        if self.create {
            self.make_folder(path)
        } else {
            self.folder(path).map_err(Failed::of_base)
        }
    }

    /// Syncs the names in the folder `path` and, unless this process did so before, in all folders above it: the
    /// process that made one of them may have died before it synced it.
    pub(super) fn sync_folder(&self, path: &str) -> Result<(), Failed> {
        self.sync_names(path)?;
        let mut known = true;
        self.remembered(|durable| known = durable.contains(path));
        if known {
            return Ok(());
        }
        let mut above = path;
        while !above.is_empty() {
            above = above.rsplit_once('/').map_or("", |(above, _)| above);
            self.sync_names(above)?;
        }
        self.remember(path);
        Ok(())
    }

    /// Syncs the name of `file`, a path, unless this process did so before.
    pub(super) fn sync_name(&self, file: &str) -> Result<(), Failed> {
        let mut known = true;
        self.remembered(|durable| known = durable.contains(file));
        if !known {
            self.sync_folder(file.rsplit_once('/').map_or("", |(folder, _)| folder))?;
            self.remember(file);
        }
        Ok(())
    }

    /// `file`, a path, is not there any more.
    pub(super) fn forget_name(&self, file: &str) {
        self.remembered(|durable| {
            durable.remove(file);
        });
    }

    fn sync_names(&self, folder: &str) -> Result<(), Failed> {
        let folder = self.dir.open(if folder.is_empty() { "." } else { folder })?.into_std();
        self.syncs.sync_folder(&folder)
    }

    fn remember(&self, path: &str) {
        self.remembered(|durable| {
            if durable.len() >= REMEMBERED {
                durable.clear();
            }
            durable.insert(path.to_owned());
        });
    }

    fn remembered(&self, work: impl FnOnce(&mut HashSet<String>)) {
        // A panic while it was held leaves a set that is merely too small.
        work(&mut self.durable.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
