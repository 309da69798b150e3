//! The lock by which a process shows that it lives.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::upload::OwnerId;

/// Ends the name of a lock that is being made.
const UNNAMED: &str = ".new";

/// Held for as long as the process, or the database in it, is there; the kernel frees it when the process dies.
#[derive(Debug)]
pub(super) struct OwnerLock {
    owner: OwnerId,
    path: PathBuf,
    _file: File,
}

impl OwnerLock {
    /// Takes a new owner's lock beside `database`.
    pub(super) fn take(database: &Path) -> io::Result<Self> {
        let folder = folder(database);
        fs::create_dir_all(&folder)?;
        let owner = OwnerId::random();
        let path = folder.join(owner.as_str());
        // Locked before it has its name: nobody ever sees it unlocked while its owner lives.
        let unnamed = folder.join(format!("{}{UNNAMED}", owner.as_str()));
        let file = match make(&unnamed, &path) {
            // A start on a full disk, after a kill on it: there is the file of the one that was killed.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                let _there_may_be_none = fs::remove_file(&unnamed);
                inherit(&folder, &path).ok_or(error)?
            }
            made => made?,
        };
        Ok(Self {
            owner,
            path,
            _file: file,
        })
    }

    pub(super) fn owner(&self) -> &OwnerId {
        &self.owner
    }
}

/// A new file of this boot under `path`, locked, which is `unnamed` before.
fn make(unnamed: &Path, path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).open(unnamed)?;
    file.lock()?;
    (&file).write_all(boot().unwrap_or_default().as_bytes())?;
    fs::rename(unnamed, path)?;
    Ok(file)
}

/// The same, made of the file of a dead owner: whose file has gone is dead, too.
fn inherit(folder: &Path, path: &Path) -> Option<File> {
    let boot = boot()?;
    fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
        if entry.file_name().to_str()?.ends_with(UNNAMED) {
            return None; // of a start that may go on
        }
        let file = OpenOptions::new().write(true).open(entry.path()).ok()?;
        // All are of one length, so this takes no room.
        let fits = file.metadata().is_ok_and(|found| found.len() == boot.len() as u64);
        if !fits || file.try_lock().is_err() {
            return None;
        }
        (&file).write_all(boot.as_bytes()).ok()?;
        fs::rename(entry.path(), path).ok()?;
        Some(file)
    })
}

impl Drop for OwnerLock {
    fn drop(&mut self) {
        let _left_for_others_to_remove = fs::remove_file(&self.path);
    }
}

/// Whether the process that took `owner`'s lock beside `database` has ended. Its file is removed then.
pub(super) fn is_gone(database: &Path, owner: &OwnerId) -> bool {
    let path = folder(database).join(owner.as_str());
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) => return error.kind() == io::ErrorKind::NotFound,
    };
    // Shared: of several who look at once each must see that nobody holds it.
    match file.try_lock_shared() {
        Ok(()) => {
            let _removed_by_another = fs::remove_file(&path);
            true
        }
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Error(error)) => {
            tracing::warn!(path = %path.display(), %error, "whether its owner lives cannot be seen");
            false
        }
    }
}

/// The processes that used a database before this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LastRun {
    /// One of them still does.
    GoesOn,
    /// One was killed, and the machine has run on since: every byte that it wrote is there.
    InThisBoot,
    /// Nobody was killed; or the machine stopped, too, and what was not synced may be gone, as is allowed.
    BeforeThisBoot,
}

/// What became of the processes that used `database`.
pub(super) fn last_run(database: &Path) -> LastRun {
    let boot = boot();
    let mut last = LastRun::BeforeThisBoot;
    for entry in fs::read_dir(folder(database)).into_iter().flatten().flatten() {
        let Ok(file) = File::open(entry.path()) else { continue };
        if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
            return LastRun::GoesOn;
        }
        if boot.is_some() && io::read_to_string(file).ok() == boot {
            last = LastRun::InThisBoot;
        }
    }
    last
}

/// Whether any process ever had `database` open.
pub(super) fn was_used(database: &Path) -> bool {
    folder(database).is_dir()
}

/// Which run of the machine this is, where the kernel says so.
fn boot() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()
}

fn folder(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(".owners");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_gone_when_its_lock_is_free_and_not_before() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("ferry.db");
        let lock = OwnerLock::take(&database).unwrap();
        let owner = lock.owner().clone();
        assert!(!is_gone(&database, &owner));
        drop(lock);
        assert!(is_gone(&database, &owner));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_file_of_a_dead_owner_becomes_a_living_ones() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("ferry.db");
        let living = OwnerLock::take(&database).unwrap();
        let of = |owner: &OwnerId| super::folder(&database).join(owner.as_str());
        let (dead, new) = (OwnerId::random(), OwnerId::random());
        assert!(
            inherit(&super::folder(&database), &of(&new)).is_none(),
            "the living keeps its own"
        );
        fs::write(of(&dead), boot().unwrap()).unwrap();
        let file = inherit(&super::folder(&database), &of(&new)).unwrap();
        assert!(is_gone(&database, &dead) && !is_gone(&database, &new) && !is_gone(&database, living.owner()));
        drop(file);
        assert!(is_gone(&database, &new));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_killed_process_of_this_boot_is_told_from_one_of_an_earlier_boot() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("ferry.db");
        assert!(!was_used(&database));
        assert_eq!(last_run(&database), LastRun::BeforeThisBoot, "a first start");
        let lock = OwnerLock::take(&database).unwrap();
        assert!(was_used(&database));
        assert_eq!(last_run(&database), LastRun::GoesOn);
        let left = super::folder(&database).join(OwnerId::random().as_str());
        fs::copy(&lock.path, &left).unwrap();
        drop(lock);
        assert_eq!(last_run(&database), LastRun::InThisBoot);
        fs::write(&left, "another").unwrap();
        assert_eq!(last_run(&database), LastRun::BeforeThisBoot);
    }

    #[test]
    fn all_who_look_at_once_see_that_an_owner_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("ferry.db");
        let lock = OwnerLock::take(&database).unwrap();
        let (owner, path) = (
            lock.owner().clone(),
            super::folder(&database).join(lock.owner().as_str()),
        );
        let looking = File::open(&path).unwrap();
        assert!(looking.try_lock_shared().is_err(), "its owner lives");
        lock._file.unlock().unwrap();
        looking.try_lock_shared().unwrap();
        assert!(is_gone(&database, &owner), "somebody else looks, too");
    }

    #[test]
    fn the_file_that_a_killed_process_leaves_behind_says_that_it_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("ferry.db");
        let owner = OwnerId::random();
        fs::create_dir_all(super::folder(&database)).unwrap();
        fs::write(super::folder(&database).join(owner.as_str()), "").unwrap();
        assert!(is_gone(&database, &owner));
        assert!(
            fs::read_dir(super::folder(&database)).unwrap().next().is_none(),
            "the file is left"
        );
    }
}
