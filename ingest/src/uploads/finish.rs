//! Finishing: from the last byte to the announcement, each step recorded, any step repeatable. Spec: core.md §4.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use shared::checksum::Crc64;
use shared::claims::{ClaimKey, Hold};
use shared::config::Durability;
use shared::failpoint::{self, Step};
use shared::records::{Edited, RecordError, Verdict};
use shared::store::{BlobErrorKind, BlobMeta, BlobOp, Commit, Condition, Identity};
use shared::telemetry::{Chain, Origin, SPANS, TraceContext, here_or};
use shared::upload::{Completed, UploadId, UploadRecord, UploadState};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{UploadError, Uploads};

/// How long a request waits for somebody else's finishing of the same upload.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(20);

impl Uploads {
    /// Records that all bytes are there. From here on nobody writes them.
    ///
    /// # Errors
    /// It could not be recorded.
    pub(super) async fn begin_finishing(&self, id: UploadId) -> Result<UploadRecord, UploadError> {
        let edit = |record: &mut UploadRecord| match record.state {
            UploadState::Receiving => {
                record.state = UploadState::Committing;
                Verdict::Write
            }
            _ => Verdict::Leave,
        };
        let Edited { record, written } = self.records.edit_upload(id, Box::new(edit)).await?;
        if written {
            failpoint::reached(Step::CommittingRecorded).await?;
        }
        Ok(record)
    }

    /// Finishes an upload that has all its bytes, in a task that goes on if whoever asked for it goes away.
    ///
    /// # Errors
    /// As [`Uploads::finish`].
    pub(crate) async fn finish_whatever_happens(
        self: &Arc<Self>,
        id: UploadId,
        crc: Option<Crc64>,
    ) -> Result<(), UploadError> {
        let uploads = self.clone();
        let finishing = self.tasks.spawn_on(
            async move { uploads.finish(id, crc).await }.in_current_span(),
            &self.runtime,
        );
        finishing.await.map_err(|_| UploadError::BrokenOff(id))?
    }

    /// The same without waiting.
    pub(super) fn spawn_finish(self: &Arc<Self>, id: UploadId) {
        let uploads = self.clone();
        self.tasks.spawn_on(
            async move {
                if let Err(error) = uploads.finish(id, None).await {
                    tracing::warn!(upload_id = %id, error = %Chain(&error), "finishing is left to the sweeper");
                }
            }
            .in_current_span(),
            &self.runtime,
        );
    }

    /// Finishes an upload that has all its bytes: makes the object whole and records it as committed, with its
    /// deliveries and messages. Any number of callers do it once. `crc` is the checksum of the bytes as received,
    /// if the caller has it; otherwise it is read from where the record's checkpoint ends.
    ///
    /// # Errors
    /// Nothing is taken back: the sweeper, a HEAD or a repeated PATCH tries again.
    pub(crate) async fn finish(self: &Arc<Self>, id: UploadId, crc: Option<Crc64>) -> Result<(), UploadError> {
        self.finish_within(PATIENCE, id, crc).await
    }

    /// The same for the sweeper, which waits for nobody: what somebody else is finishing, or what is not whole after
    /// all, it leaves.
    ///
    /// # Errors
    /// As [`Uploads::finish`].
    pub(super) async fn finish_if_left(self: &Arc<Self>, id: UploadId) -> Result<(), UploadError> {
        match self.finish_within(Duration::ZERO, id, None).await {
            Err(UploadError::StillFinishing(_) | UploadError::Unfinished(_)) => Ok(()),
            finished => finished,
        }
    }

    async fn finish_within(
        self: &Arc<Self>,
        patience: Duration,
        id: UploadId,
        crc: Option<Crc64>,
    ) -> Result<(), UploadError> {
        let deadline = Instant::now() + patience;
        loop {
            let record = self.open(id).await?;
            match record.state {
                UploadState::Receiving | UploadState::Committing => {}
                _ => return Ok(()),
            }
            let record = if self.relies_on(&record) {
                record
            } else {
                let record = self.relied_on(record).await?;
                if record.completed.is_none() && Some(self.stored(&record).await?) != record.length {
                    return Err(UploadError::Unfinished(id)); // nobody was told that it was whole
                }
                record
            };
            if let Some(hold) = self.claims.take(ClaimKey::Upload(id), record.claim.as_ref()).await {
                let hold = Arc::new(hold);
                if let Some(record) = self.claim(&hold, id).await? {
                    let span = tracing::info_span!(target: SPANS, "finish", ferry.upload_id = %id);
                    // The sweeper has no span: it goes on after the request that made the upload.
                    let span = here_or(span, || Origin::after(id, record.traceparent.as_deref()));
                    return self.finish_claimed(hold, record, crc).instrument(span).await;
                }
            }
            if Instant::now() >= deadline {
                return Err(UploadError::StillFinishing(id));
            }
            sleep(LOOK).await;
        }
    }

    /// Writes the claim into the record. `None`: somebody else was faster.
    async fn claim(&self, hold: &Arc<Hold>, id: UploadId) -> Result<Option<UploadRecord>, UploadError> {
        let hold = hold.clone();
        let edit = move |record: &mut UploadRecord| {
            let unfinished = matches!(record.state, UploadState::Receiving | UploadState::Committing);
            if !unfinished || !hold.may_replace(record.claim.as_ref()) {
                return Verdict::Leave;
            }
            record.state = UploadState::Committing;
            record.claim = Some(hold.claim());
            Verdict::Write
        };
        let Edited { record, written } = self.records.edit_upload(id, Box::new(edit)).await?;
        if !written {
            return Ok(None);
        }
        failpoint::reached(Step::FinishClaimed).await?;
        Ok(Some(record))
    }

    async fn finish_claimed(
        self: &Arc<Self>,
        hold: Arc<Hold>,
        record: UploadRecord,
        crc: Option<Crc64>,
    ) -> Result<(), UploadError> {
        let lost = CancellationToken::new();
        let _beating = hold.keep_beating(lost.clone());
        let crc = tokio::select! {
            () = lost.cancelled() => return Err(UploadError::StillFinishing(record.id)),
            crc = self.make_whole(&record, crc) => crc,
        };
        let crc = match crc {
            Ok(crc) => crc,
            Err(error) => {
                self.note_trouble(&record, &error).await;
                self.give_claim_back(&hold, record.id).await;
                return Err(error);
            }
        };
        let committed = self.record_committed(&hold, &record, crc).await?;
        drop(hold);
        let Some(committed) = committed else {
            return Err(UploadError::StillFinishing(record.id));
        };
        failpoint::reached(Step::CommittedRecorded).await?;
        self.count_finished(&record, crc.covered());
        tracing::info!(upload_id = %record.id, bytes = crc.covered(), crc64nvme = crc.to_base64(), "committed");
        if committed.state == UploadState::Published {
            // With the embedded bus that was the same write.
            failpoint::reached(Step::PublishedRecorded).await?;
        }
        self.spawn_publish(committed);
        Ok(())
    }

    fn count_finished(&self, record: &UploadRecord, bytes: u64) {
        self.metrics.uploads_finished.inc();
        let seconds = Timestamp::now().duration_since(record.created_at).as_secs_f64();
        #[allow(clippy::cast_precision_loss, reason = "a speed for a histogram")]
        self.metrics.upload_speed.observe(bytes as f64 / seconds.max(0.001));
        let label = |key| record.manifest.get(key).map_or("", String::as_str);
        self.metrics
            .count_manifest([label("data_stream_id"), label("data_stream_route"), label("sender_id")]);
    }

    /// The object under its name, whole; answers the checksum of the bytes as received.
    async fn make_whole(&self, record: &UploadRecord, crc: Option<Crc64>) -> Result<Crc64, UploadError> {
        let crc = self.commit(record, crc).await?;
        failpoint::reached(Step::ObjectWhole).await?;
        Ok(crc)
    }

    async fn commit(&self, record: &UploadRecord, crc: Option<Crc64>) -> Result<Crc64, UploadError> {
        let size = record.length.ok_or(UploadError::Unfinished(record.id))?;
        let crc = match crc.filter(|crc| crc.covered() == size) {
            Some(crc) => crc,
            None => {
                let known = if record.checkpoint.covered() <= size {
                    record.checkpoint
                } else {
                    Crc64::default()
                };
                known.then(self.read_checksum(record, known.covered(), size).await?)
            }
        };
        let identity = Identity {
            upload_id: record.id,
            crc64nvme: crc,
        };
        let parts = match self.raw.parts(&record.staged).await {
            Err(error) if error.kind == BlobErrorKind::StagingLost => return self.look_at(record, identity).await,
            parts => parts?,
        };
        let commit = Commit {
            parts: parts.tags,
            size,
            crc,
            meta: BlobMeta {
                identity: Some(identity.clone()),
                entries: record.manifest.clone(),
            },
            condition: Condition::None,
        };
        match self.raw.commit(&record.staged, commit).await {
            Err(error) if error.kind == BlobErrorKind::StagingLost => self.look_at(record, identity).await,
            Err(error) => Err(self.note_failure(record.id, error, Some(crc)).await),
            Ok(attested) if attested.crc64.is_some_and(|attested| attested != crc.value()) => {
                Err(UploadError::Corrupt(record.id))
            }
            Ok(_) => Ok(crc),
        }
    }

    /// An earlier commit may have succeeded without an answer: the object itself says so.
    async fn look_at(&self, record: &UploadRecord, expected: Identity) -> Result<Crc64, UploadError> {
        let (name, size) = (record.id.blob_name(), expected.crc64nvme.covered());
        let damaged = |stored| UploadError::Damaged {
            id: record.id,
            stored,
            recorded: size,
        };
        let stat = match self.raw.stat(&name).await {
            Err(error) if error.kind == BlobErrorKind::NotFound => return Err(damaged(0)),
            stat => stat?,
        };
        match stat.identity {
            _ if stat.size != size => Err(damaged(stat.size)),
            Some(identity) if identity != expected => Err(UploadError::Corrupt(record.id)),
            _ => {
                // Who gave it its name may have died before that was durable.
                self.raw.persist(&name).await?;
                Ok(expected.crc64nvme)
            }
        }
    }

    /// Remembers what cannot be put right by trying again, or has to be seen on `/info`.
    pub(super) async fn note_trouble(&self, record: &UploadRecord, error: &UploadError) {
        let lost = match error {
            UploadError::Damaged { .. } | UploadError::Corrupt(_) => true,
            UploadError::Store(error) => error.kind == BlobErrorKind::Mismatch,
            _ => false,
        };
        if lost {
            if let Err(error) = self.note_lost(record).await {
                tracing::error!(upload_id = %record.id, error = %Chain(&error), "that it is lost was not recorded");
            }
        } else if let UploadError::Store(store) = error
            && matches!(store.kind, BlobErrorKind::Io | BlobErrorKind::ShortRead)
            && matches!(store.operation, BlobOp::Read | BlobOp::ReadStaged)
        {
            self.note_unreadable(record, error).await;
        }
    }

    /// One write: committed, its deliveries, and everything that follows. `None`: the claim was lost.
    async fn record_committed(
        &self,
        hold: &Arc<Hold>,
        record: &UploadRecord,
        crc: Crc64,
    ) -> Result<Option<UploadRecord>, UploadError> {
        let targets = self
            .routes
            .resolve(record.id, &record.manifest)
            .map_err(|error| UploadError::Manifest(error.to_string()))?;
        let completed = Completed {
            crc64nvme: crc,
            at: Timestamp::now(),
        };
        let mut committed = record.clone();
        committed.outbox.clear();
        let unsure = self.statuses.end(record).await;
        self.announce_completion(&mut committed, &completed, &unsure);
        let messages = committed.outbox;
        let verdict = if self.config.durability == Durability::None {
            Verdict::Write
        } else {
            Verdict::WriteDurably
        };
        let (hold, boot) = (hold.clone(), self.boot.clone());
        let traceparent = TraceContext::current().map(|here| here.to_string());
        let edit = move |record: &mut UploadRecord| {
            // A sync that failed for somebody else meanwhile would not have failed for this commit again.
            let relied_on = record.on_disk.written_in.as_ref() == Some(&boot);
            if record.state != UploadState::Committing || !hold.is_ours(record.claim.as_ref()) || !relied_on {
                return Verdict::Leave;
            }
            record.state = UploadState::Committed;
            record.claim = None;
            record.checkpoint = crc;
            record.completed = Some(completed.clone());
            record.targets = targets.clone();
            record.traceparent.clone_from(&traceparent);
            record.outbox.extend(messages.iter().cloned());
            verdict
        };
        let Edited { record, written } = self.records.edit_upload(record.id, Box::new(edit)).await?;
        Ok(written.then_some(record))
    }

    async fn give_claim_back(&self, hold: &Arc<Hold>, id: UploadId) {
        let hold = hold.clone();
        let edit = move |record: &mut UploadRecord| {
            if !hold.is_ours(record.claim.as_ref()) {
                return Verdict::Leave;
            }
            record.claim = None;
            Verdict::Write
        };
        match self.records.edit_upload(id, Box::new(edit)).await {
            Ok(_) | Err(RecordError::NotFound(_)) => {}
            Err(error) => tracing::warn!(upload_id = %id, %error, "the finishing's claim was not given back"),
        }
    }
}
