//! Room in the raw store, and the reserve that keeps records writable. Spec: core.md §3, "Space"; faults.md 11.
//!
//! ```text
//!   free space   ─────────────┬──── reserve ────┬──── half of it ────┬─ 0
//!                all goes on  │ no new uploads  │ no more bytes      │
//!                             │ running ones do │ the rest is for    │
//!                             │                 │ records            │
//! ```

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use shared::store::Space;

use super::{UploadError, Uploads};

/// How long a look at the free space is believed.
const BELIEVED: Duration = Duration::from_secs(1);
/// The reserve, unless it is set: the smaller of this and a twentieth of the file system.
const RESERVE: u64 = 256 * 1024 * 1024;

/// What is known of the room, shared by all uploads.
#[derive(Debug, Default)]
pub(super) struct Room(Mutex<Option<Look>>);

/// A look at the free space.
#[derive(Clone, Copy, Debug)]
struct Look {
    at: Instant,
    found: Option<Space>,
    /// Bytes that were let through since: they may be on their way to the disk.
    spent: u64,
}

impl Room {
    /// What the last look left, if that is still believed.
    fn last(&self) -> Option<Option<Space>> {
        let look = self.lock();
        let look = look.as_ref().filter(|look| look.at.elapsed() < BELIEVED)?;
        Some(look.found.map(|space| Space {
            free: space.free.saturating_sub(look.spent),
            ..space
        }))
    }

    fn spend(&self, bytes: u64) {
        if let Some(look) = self.lock().as_mut() {
            look.spent += bytes;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Look>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Uploads {
    /// Whether there is room for one more upload: only as long as the reserve is whole.
    ///
    /// # Errors
    /// `NoSpace`; `Store` if it cannot be seen.
    pub(super) async fn check_room_for_new(&self) -> Result<(), UploadError> {
        let reserve = |total| self.reserve(total);
        self.check(1, reserve).await // a disk without any room takes none, whatever the reserve
    }

    /// Whether `bytes` of a running upload may be written. It may go into the first half of the reserve, so that what
    /// has begun can end; the other half is for the records, which must be writable to the last.
    ///
    /// # Errors
    /// As [`Uploads::check_room_for_new`].
    pub(super) async fn check_room_for(&self, bytes: u64) -> Result<(), UploadError> {
        if self.config.raw_reserve == Some(0) {
            self.room.spend(bytes);
            return Ok(()); // nothing is kept back: the disk takes what it can
        }
        let reserve = |total| self.reserve(total) / 2;
        self.check(bytes, reserve).await
    }

    /// Looks how much room there is, for the metric too. `None`: the store has no end.
    ///
    /// # Errors
    /// It cannot be seen.
    pub(super) async fn look_at_room(&self) -> Result<Option<Space>, UploadError> {
        let found = self.raw.space().await?;
        *self.room.lock() = Some(Look {
            at: Instant::now(),
            found,
            spent: 0,
        });
        if let Some(space) = found {
            self.metrics
                .raw_free_bytes
                .set(i64::try_from(space.free).unwrap_or(i64::MAX));
        }
        Ok(found)
    }

    fn reserve(&self, total: u64) -> u64 {
        self.config.raw_reserve.unwrap_or(RESERVE.min(total / 20))
    }

    async fn check(&self, bytes: u64, reserve: impl Fn(u64) -> u64) -> Result<(), UploadError> {
        let fits =
            |space: Option<Space>| space.is_none_or(|space| space.free >= reserve(space.total).saturating_add(bytes));
        // A refusal is never made on an old look: room may have been made since.
        if self.room.last().is_some_and(fits) || fits(self.look_at_room().await?) {
            self.room.spend(bytes);
            Ok(())
        } else {
            Err(UploadError::NoSpace)
        }
    }
}
