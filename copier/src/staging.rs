//! Unfinished data in a target: found again or begun, claimed, synced, dropped. Spec: core.md §6, "Staging".

use std::time::{Duration, Instant};

use shared::checksum::Crc64;
use shared::failpoint::{self, Step};
use shared::failure::FailureClass;
use shared::store::{BlobErrorKind, PartTag, Staged, WriterGuard};
use shared::upload::CopyCheckpoint;

use crate::deadline::{CALL_LIMIT, PART_LIMIT, within};
use crate::failure::Failure;
use crate::target::{Copy, Stopped};

/// A killed worker loses no more than these bytes of a copy, ...
pub(crate) const CHECKPOINT_BYTES: u64 = 256 * 1024 * 1024;
/// ... or this part of it: what was read ahead comes on top, and a tenth is the most that may be read twice, ...
const CHECKPOINT_SHARE: u64 = 32;
/// ... but for what a target takes in this time: a sync must be worth it.
const CHECKPOINT_PAUSE: Duration = Duration::from_millis(250);
/// Time after which a slow copy has a checkpoint, whatever was written.
const CHECKPOINT_TIME: Duration = Duration::from_secs(5);

/// Unfinished data in the target.
#[derive(Debug)]
pub(crate) struct Staging {
    pub(crate) staged: Staged,
    /// What was written.
    pub(crate) copied: Crc64,
    /// What of it is in the record, because it was synced.
    recorded: Crc64,
    recorded_at: Instant,
    pub(crate) tags: Vec<PartTag>,
    _writer: WriterGuard,
}

impl Staging {
    fn new(staged: Staged, copied: Crc64, writer: WriterGuard) -> Self {
        Self {
            staged,
            copied,
            recorded: copied,
            recorded_at: Instant::now(),
            tags: Vec::new(),
            _writer: writer,
        }
    }

    pub(crate) fn checkpoint(&self) -> CopyCheckpoint {
        CopyCheckpoint {
            staged: self.staged.clone(),
            copied: self.recorded,
        }
    }
}

impl Copy {
    /// Finds or begins a staging and claims the delivery with it. Answers whether the staging was there before.
    pub(crate) async fn stage(&mut self) -> Result<bool, Stopped> {
        let (staging, resumed) = match self.old_staging().await? {
            Some(staging) => (staging, true),
            None => (self.begin().await?, false),
        };
        let claimed = self.engine.outcomes.claim(&mut self.lease, staging.checkpoint()).await;
        if let Err(unsettled) = claimed {
            // Somebody else was faster: what was begun here would have no owner.
            if !resumed {
                self.abort(&staging.staged).await;
            }
            return Err(unsettled.into());
        }
        self.staging = Some(staging);
        Ok(resumed)
    }

    /// The staging of the recorded checkpoint, if there is something in it and nobody else writes it.
    async fn old_staging(&self) -> Result<Option<Staging>, Stopped> {
        let Some(CopyCheckpoint { staged, copied }) = self.lease.seen.checkpoint.clone() else {
            return Ok(None);
        };
        if copied.covered() == 0 {
            // Beginning anew costs nothing, and keeps out a writer that only seemed to be dead.
            self.abort(&staged).await;
            return Ok(None);
        }
        match self.exclusive(&staged).await? {
            Some(writer) => Ok(Some(Staging::new(staged, copied, writer))),
            None => Ok(None),
        }
    }

    async fn begin(&self) -> Result<Staging, Stopped> {
        let begin = self
            .store
            .begin(&self.lease.seen.to.object, Some(self.lease.upload.size));
        let staged = self
            .unless_cut(within(CALL_LIMIT, "begin", begin, Failure::of_target))
            .await??;
        if let Err(injected) = failpoint::reached(Step::CopyBegun).await {
            self.abort(&staged).await; // no record knows of it
            return Err(Failure::from(injected).into());
        }
        match self.exclusive(&staged).await? {
            Some(writer) => Ok(Staging::new(staged, Crc64::default(), writer)),
            None => Err(Failure::new(FailureClass::Transient, "the copy just begun is gone").into()),
        }
    }

    /// The one writer's place of `staged`; `None` if it is gone, or written by a process that only seemed dead.
    async fn exclusive(&self, staged: &Staged) -> Result<Option<WriterGuard>, Stopped> {
        let exclusive = async {
            match self.store.exclusive(staged).await {
                Ok(writer) => Ok(Some(writer)),
                Err(error) if matches!(error.kind, BlobErrorKind::Locked | BlobErrorKind::StagingLost) => Ok(None),
                Err(error) => Err(error),
            }
        };
        Ok(self
            .unless_cut(within(CALL_LIMIT, "lock", exclusive, Failure::of_target))
            .await??)
    }

    /// Goes back to the recorded checkpoint, or begins anew where less than that survived.
    pub(crate) async fn resume(&mut self) -> Result<(), Stopped> {
        let Some(staging) = &mut self.staging else {
            return Ok(());
        };
        let (store, staged, size) = (self.store.clone(), staging.staged.clone(), staging.copied.covered());
        let survived = within(CALL_LIMIT, "list parts", store.parts(&staged), Failure::of_target).await;
        match survived {
            Ok(parts) if parts.contiguous >= size => {
                within(
                    CALL_LIMIT,
                    "truncate",
                    store.truncate(&staged, size),
                    Failure::of_target,
                )
                .await?;
                staging.tags = parts.tags;
                staging.tags.retain(|tag| tag.offset + tag.len <= size);
                Ok(())
            }
            Err(failure) if !failure.staging_spoiled => Err(failure.into()),
            _ => {
                tracing::warn!(
                    upload_id = %self.lease.upload.id, target = self.lease.seen.to.target, size,
                    "less survived than was recorded; copied from the beginning"
                );
                self.abort(&staged).await;
                let staging = self.begin().await?;
                let checkpoint = staging.checkpoint();
                self.staging = Some(staging);
                Ok(self.engine.outcomes.checkpoint(&self.lease, checkpoint).await?)
            }
        }
    }

    /// Records how far the copy got, if the last time was long ago.
    pub(crate) async fn checkpoint_if_due(&mut self) -> Result<(), Stopped> {
        let Some(staging) = &self.staging else { return Ok(()) };
        let unrecorded = staging.copied.covered() - staging.recorded.covered();
        if is_due(unrecorded, self.lease.upload.size, staging.recorded_at.elapsed()) {
            self.record_checkpoint().await?;
        }
        Ok(())
    }

    /// Syncs what was written and records it.
    pub(crate) async fn record_checkpoint(&mut self) -> Result<(), Stopped> {
        let checkpoint = self.synced().await?;
        Ok(self.engine.outcomes.checkpoint(&self.lease, checkpoint).await?)
    }

    /// Syncs what was written; the answer may be recorded.
    pub(crate) async fn synced(&mut self) -> Result<CopyCheckpoint, Failure> {
        let Some(staging) = &mut self.staging else {
            return Err(Failure::new(FailureClass::Transient, "nothing was begun"));
        };
        if staging.recorded != staging.copied {
            let sync = self.store.sync(&staging.staged);
            within(PART_LIMIT, "sync", sync, Failure::of_target).await?;
            staging.recorded = staging.copied;
        }
        staging.recorded_at = Instant::now();
        Ok(staging.checkpoint())
    }

    /// Removes a staging; what is left of one that cannot be removed is the sweeper's.
    pub(crate) async fn abort(&self, staged: &Staged) {
        let abort = within(CALL_LIMIT, "abort", self.store.abort(staged), Failure::of_target);
        if let Err(failure) = abort.await {
            let target = self.lease.seen.to.target.as_str();
            let (id, staged) = (self.lease.upload.id, staged.id.as_str());
            tracing::warn!(upload_id = %id, target, staged, error = failure.detail, "unfinished data is left");
        }
    }
}

/// Whether `unrecorded` bytes of a copy of `size` bytes are worth a checkpoint this long after the last one.
fn is_due(unrecorded: u64, size: u64, since: Duration) -> bool {
    unrecorded >= CHECKPOINT_BYTES
        || since >= CHECKPOINT_TIME
        || (since >= CHECKPOINT_PAUSE && unrecorded >= size / CHECKPOINT_SHARE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;
    const GIB: u64 = 1024 * MIB;

    /// Row 50: what a kill costs, at any speed of the target.
    #[test]
    fn less_than_a_tenth_of_a_long_copy_is_ever_without_a_checkpoint() {
        for size in [256 * MIB, GIB, 100 * GIB] {
            for mib_per_second in [1, 10, 40, 100] {
                let (mut since, mut unrecorded, mut most) = (Duration::ZERO, 0, 0);
                for _ in 0..2048 {
                    since += Duration::from_millis(1000 / mib_per_second);
                    unrecorded += MIB;
                    most = most.max(unrecorded);
                    if is_due(unrecorded, size, since) {
                        (since, unrecorded) = (Duration::ZERO, 0);
                    }
                }
                assert!(most * 10 <= size, "{most} of {size} bytes at {mib_per_second} MiB/s");
            }
        }
    }

    #[test]
    fn a_fast_copy_is_not_held_up_by_syncs() {
        let seconds = Duration::from_secs;
        assert!(!is_due(255 * MIB, GIB, Duration::from_millis(249)));
        assert!(is_due(256 * MIB, 100 * GIB, Duration::ZERO));
        assert!(!is_due(MIB, 100 * GIB, seconds(4)));
        assert!(is_due(MIB, 100 * GIB, seconds(5)));
    }
}
