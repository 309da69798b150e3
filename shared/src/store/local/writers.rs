//! The staged files that writers of this process hold open.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Folder;
use crate::store::StagedId;

/// Files with their locks, by the staging that they are.
#[derive(Debug, Default)]
pub(super) struct Writers(Mutex<HashMap<StagedId, Arc<File>>>);

impl Writers {
    /// Keeps `file`, which is locked.
    pub(super) fn enter(&self, id: &StagedId, file: File) {
        self.files().insert(id.clone(), Arc::new(file));
    }

    /// The file of the staging `id`, if a writer of this process holds it.
    pub(super) fn file(&self, id: &StagedId) -> Option<Arc<File>> {
        self.files().get(id).cloned()
    }

    /// Gives the lock back.
    pub(super) fn leave(&self, id: &StagedId) {
        let Some(file) = self.files().remove(id) else { return };
        // Said, and not left to the closing: somebody who only looks may still have the file.
        if let Err(error) = file.unlock() {
            tracing::warn!(staged = id.as_str(), %error, "the lock of a staged file is given back late");
        }
    }

    fn files(&self) -> MutexGuard<'_, HashMap<StagedId, Arc<File>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one writer's place; dropped, it lets another one in.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) folder: Arc<Folder>,
    pub(super) id: StagedId,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.folder.writers.leave(&self.id);
    }
}
