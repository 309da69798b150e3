//! Failed syncs, counted where they happen: files, folders and the log of the records, of all services in the process.

use std::sync::atomic::{AtomicU64, Ordering};

static FAILED: AtomicU64 = AtomicU64::new(0);

/// A sync of a file or a folder failed. Spec: faults.md 12.
pub fn count_sync_error() {
    FAILED.fetch_add(1, Ordering::Relaxed);
}

/// Failed syncs so far: `ferry_fsync_errors_total`.
#[must_use]
pub fn sync_errors() -> u64 {
    FAILED.load(Ordering::Relaxed)
}
