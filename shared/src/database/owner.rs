//! The lock by which a process shows that it lives.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::upload::OwnerId;

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
        let unnamed = folder.join(format!("{}.new", owner.as_str()));
        let file = OpenOptions::new().write(true).create_new(true).open(&unnamed)?;
        file.lock()?;
        fs::rename(&unnamed, &path)?;
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
