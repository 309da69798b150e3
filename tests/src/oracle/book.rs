//! The book: what the server acknowledged of each upload, and what happened on the way.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::file::File;
use crate::client::Upload;

/// An upload that the server knows, and what it acknowledged of it.
#[derive(Clone, Debug)]
pub struct Promise {
    /// The upload.
    pub upload: Upload,
    /// What it is to become.
    pub file: File,
    /// The highest offset that was told in any answer.
    pub acknowledged: u64,
    /// In a start after the one that completed it, HEAD told that it is whole: it need not be asked again.
    pub settled: bool,
}

impl Promise {
    /// The server said that all is there: it owes the delivery, whether or not the sender ever comes back.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.acknowledged == self.file.length()
    }
}

/// All promises, by the order in which they were made.
#[derive(Debug, Default)]
pub(super) struct Book {
    promises: Mutex<Vec<Promise>>,
}

impl Book {
    pub(super) fn add(&self, promise: Promise) -> usize {
        let mut promises = self.lock();
        promises.push(promise);
        promises.len() - 1
    }

    pub(super) fn all(&self) -> Vec<Promise> {
        self.lock().clone()
    }

    pub(super) fn get(&self, index: usize) -> Promise {
        self.lock()[index].clone()
    }

    /// Writes down that `offset` was told.
    ///
    /// # Panics
    /// It takes back what was told before, or lies beyond the end.
    pub(super) fn acknowledge(&self, index: usize, offset: u64) {
        let promise = &mut self.lock()[index];
        assert!(
            offset >= promise.acknowledged,
            "{} was acknowledged, and then {offset} was told: {promise:?}",
            promise.acknowledged
        );
        assert!(
            offset <= promise.file.length(),
            "{offset} is beyond the end: {promise:?}"
        );
        promise.acknowledged = offset;
    }

    pub(super) fn settle(&self, index: usize) {
        self.lock()[index].settled = true;
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Promise>> {
        self.promises.lock().unwrap_or_else(|poisoned| {
            // A promise was broken, which the run is about to say: what was written before holds.
            poisoned.into_inner()
        })
    }
}

/// Something counted by several tasks.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub(super) fn one_more(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    /// How often it happened.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// What happened, so that a run that showed nothing does not pass for one that did.
#[derive(Debug, Default)]
pub struct Counts {
    /// Requests that were cut by a kill.
    pub interrupted: Count,
    /// Requests that were answered with 5xx.
    pub refused: Count,
    /// Creations whose answer was lost, or told no URL: there may be an upload that nobody knows.
    pub unknown: Count,
    /// Uploads whose sender went away after HEAD told that all is there.
    pub finished_by_head: Count,
    /// Offsets that HEAD told and that were compared.
    pub compared: Count,
}
