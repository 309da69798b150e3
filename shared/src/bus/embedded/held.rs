//! The jobs that this process has. What is marked as taken by it and is not among them was not settled for want of
//! the database, and comes again when that is back: nobody else can tell that it is not being worked on.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Tags of jobs that were handed out and not settled.
#[derive(Debug, Default)]
pub(super) struct Held(Mutex<HashSet<u64>>);

/// Somebody has the job until this is dropped, whatever comes of it.
#[derive(Debug)]
pub(super) struct Over<'a> {
    held: &'a Held,
    tag: u64,
}

impl Held {
    /// Of the writing thread only, before it commits: what is seen as taken is held by then.
    pub(super) fn begin(&self, tags: impl Iterator<Item = u64>) {
        self.lock().extend(tags);
    }

    /// Ends with the answer to an attempt at settling it, or when that is broken off.
    pub(super) fn over_after(&self, tag: u64) -> Over<'_> {
        Over { held: self, tag }
    }

    pub(super) fn end(&self, tag: u64) {
        self.lock().remove(&tag);
    }

    pub(super) fn has(&self, tag: u64) -> bool {
        self.lock().contains(&tag)
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.held.end(self.tag);
    }
}
