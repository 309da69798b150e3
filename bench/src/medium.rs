//! Where servers write: memory, a folder on a disk, or a fresh file system on that disk.
//!
//! Small uploads on a disk get a fresh ext4 for each measurement. Where files were deleted before, ext4 scans deleted
//! inodes on each creation, and that is then what is measured.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;
use tempfile::TempDir;

use crate::failure::Failure;
use crate::plan::{KIB, MIB, Workload};

/// Room beside the uploads themselves: records, logs, what ingest keeps free.
const ROOM: u64 = 1024 * MIB;
/// Room for a small upload: its block, its record, its log lines.
const ROOM_EACH: u64 = 64 * KIB;

/// What the files lie on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Medium {
    /// Memory
    Tmpfs,
    /// A disk
    Disk,
}

/// The folders of this run.
#[derive(Debug)]
pub(crate) struct Media {
    tmpfs: PathBuf,
    disk: PathBuf,
    /// Whether fresh file systems can be mounted here; otherwise why not.
    fresh: Result<(), String>,
}

/// A folder for one measurement. It is gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Ground {
    // Unmounted before the folder below is removed.
    mount: Option<Mount>,
    folder: TempDir,
}

#[derive(Debug)]
struct Mount(PathBuf);

impl Media {
    /// Looks at what there is. `wanted` are the media that will be measured.
    ///
    /// # Errors
    /// A folder cannot be written, or is on no such file system.
    pub(crate) fn find(tmpfs: &Path, disk: &Path, wanted: &[Medium]) -> Result<Self, Failure> {
        let mut media = Self {
            tmpfs: tmpfs.to_owned(),
            disk: disk.to_owned(),
            fresh: Err("not tried".to_owned()),
        };
        for medium in wanted {
            let (folder, kind) = (media.folder(*medium), media.file_system(*medium)?);
            if (kind == "tmpfs") != (*medium == Medium::Tmpfs) {
                return Err(Failure::Options(format!(
                    "--{} {} is on {kind}",
                    if *medium == Medium::Tmpfs { "tmpfs" } else { "disk" },
                    folder.display()
                )));
            }
        }
        if wanted.contains(&Medium::Disk) {
            media.fresh = match Ground::fresh(&media.disk, 64 * MIB, 1024) {
                Ok(_unmounted_again) => Ok(()),
                Err(failure @ (Failure::Program { .. } | Failure::Io { .. })) => Err(failure.to_string()),
                Err(other) => return Err(other),
            };
            if let Err(reason) = &media.fresh {
                eprintln!("bench: small uploads on disk go to a plain folder: {reason}");
            }
        }
        Ok(media)
    }

    /// An empty folder to measure `workload` in.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn ground(&self, medium: Medium, workload: &Workload, is_small: bool) -> Result<Ground, Failure> {
        if medium == Medium::Disk {
            settle(&self.disk)?; // what earlier measurements left to be written is not this one's
        }
        if medium == Medium::Disk && is_small && self.fresh.is_ok() {
            let files = workload.uploads as u64;
            return Ground::fresh(&self.disk, ROOM + files * ROOM_EACH, 4096 + 2 * files);
        }
        Ground::plain(self.folder(medium))
    }

    /// What the table calls it.
    ///
    /// # Errors
    /// The system's mounts cannot be read.
    pub(crate) fn name(&self, medium: Medium, is_small: bool) -> Result<String, Failure> {
        let kind = self.file_system(medium)?;
        Ok(match medium {
            Medium::Tmpfs => kind,
            Medium::Disk if is_small && self.fresh.is_ok() => format!("disk, fresh ext4 on {kind}"),
            Medium::Disk if is_small => format!("disk, {kind}, plain folder"),
            Medium::Disk => format!("disk, {kind}"),
        })
    }

    /// The folder of a medium.
    pub(crate) fn folder(&self, medium: Medium) -> &Path {
        match medium {
            Medium::Tmpfs => &self.tmpfs,
            Medium::Disk => &self.disk,
        }
    }

    fn file_system(&self, medium: Medium) -> Result<String, Failure> {
        let folder = self.folder(medium);
        let folder = fs::canonicalize(folder).map_err(Failure::io("find", folder.display()))?;
        let mounts = "/proc/self/mountinfo";
        let mounts = fs::read_to_string(mounts).map_err(Failure::io("read", mounts))?;
        Ok(file_system(&mounts, &folder)
            .unwrap_or("an unknown file system")
            .to_owned())
    }
}

impl Ground {
    /// Where the server may write.
    pub(crate) fn path(&self) -> &Path {
        self.mount.as_ref().map_or(self.folder.path(), |mount| &mount.0)
    }

    fn plain(parent: &Path) -> Result<Self, Failure> {
        let folder = tempfile::Builder::new()
            .prefix("ferry-bench-")
            .tempdir_in(parent)
            .map_err(Failure::io("make a folder in", parent.display()))?;
        Ok(Self { mount: None, folder })
    }

    /// A file system of its own, in a file below `parent`, with room for `size_bytes` and `inodes` files.
    fn fresh(parent: &Path, size_bytes: u64, inodes: u64) -> Result<Self, Failure> {
        let mut ground = Self::plain(parent)?;
        let (image, folder) = (ground.folder.path().join("image"), ground.folder.path().join("mount"));
        File::create_new(&image)
            .and_then(|file| file.set_len(size_bytes))
            .map_err(Failure::io("make", image.display()))?;
        fs::create_dir(&folder).map_err(Failure::io("make", folder.display()))?;
        // Nothing is left for the kernel to initialize while it is measured.
        let options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
        let inodes = inodes.to_string();
        tool(
            "mkfs.ext4",
            [
                "-q".as_ref(),
                "-F".as_ref(),
                "-m".as_ref(),
                "0".as_ref(),
                "-N".as_ref(),
                inodes.as_ref(),
                "-E".as_ref(),
                OsStr::new(options),
                image.as_os_str(),
            ],
        )?;
        tool(
            "mount",
            ["-o".as_ref(), "loop".as_ref(), image.as_os_str(), folder.as_os_str()],
        )?;
        ground.mount = Some(Mount(folder));
        // The loop device holds it; the room comes back with the unmounting, whatever happens to this process.
        fs::remove_file(&image).map_err(Failure::io("remove", image.display()))?;
        settle(parent)?;
        Ok(ground)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(failure) = tool("umount", [self.0.as_os_str()]) {
            eprintln!("bench: {} stays mounted: {failure}", self.0.display());
        }
    }
}

/// Waits until the file system of `folder` has nothing left to write.
fn settle(folder: &Path) -> Result<(), Failure> {
    tool("sync", [OsStr::new("--file-system"), folder.as_os_str()])
}

/// Runs a program of the system.
fn tool<'a>(program: &str, args: impl IntoIterator<Item = &'a OsStr>) -> Result<(), Failure> {
    let output = Command::new(program)
        .args(args)
        .output()
        .map_err(Failure::io("run", program))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Failure::Program {
        program: program.to_owned(),
        reason: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// The type of the file system that holds `path`: of the mounts that do, the innermost and last. Spec: proc(5), mountinfo.
fn file_system<'a>(mounts: &'a str, path: &Path) -> Option<&'a str> {
    let mount = |line: &'a str| {
        let (left, right) = line.split_once(" - ")?;
        let point = left.split(' ').nth(4)?;
        Some((point, right.split(' ').next()?))
    };
    mounts
        .lines()
        .filter_map(mount)
        .filter(|(point, _)| path.starts_with(point))
        .max_by_key(|(point, _)| point.len())
        .map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_names_the_file_system() {
        let mounts = "21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                      25 21 0:22 / /dev/shm rw - tmpfs tmpfs rw\n\
                      26 21 0:23 / /var rw master:2 shared:3 - overlay over rw\n\
                      27 21 0:24 / /var rw - xfs /dev/vdb rw\n";
        let of = |path: &str| file_system(mounts, Path::new(path));
        assert_eq!(of("/dev/shm/x"), Some("tmpfs"));
        assert_eq!(
            of("/dev/shmem"),
            Some("ext4"),
            "a name that begins alike is another folder"
        );
        assert_eq!(of("/var/tmp"), Some("xfs"), "the later mount hides the earlier one");
        assert_eq!(of("relative"), None);
    }

    #[test]
    fn a_ground_is_gone_after_its_use() {
        let parent = tempfile::tempdir().unwrap();
        let ground = Ground::plain(parent.path()).unwrap();
        fs::write(ground.path().join("x"), "y").unwrap();
        drop(ground);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
