//! Deleting an upload at its sender's wish. Its URL is gone at once; what was announced is delivered first.
//! Spec: tus.md, row DELETE; core.md §2.

use std::sync::Arc;

use shared::records::Verdict;
use shared::upload::{DeliveryState, UploadId, UploadRecord, UploadState};

use tracing::Instrument as _;

use super::{UploadError, Uploads};

impl Uploads {
    /// Ends a running PATCH, and makes the upload's URL gone.
    ///
    /// # Errors
    /// `Locked` if another process is writing it; `StillFinishing`.
    pub(crate) async fn terminate(self: &Arc<Self>, record: UploadRecord) -> Result<(), UploadError> {
        let id = record.id;
        if record.state == UploadState::Receiving {
            let (writing, _) = self
                .live
                .enter(id, self.config.lock_wait)
                .await
                .map_err(|_| UploadError::Locked)?;
            // A crash may have come between the last byte and its record: then it is finished, like its sender may
            // believe, and its deliveries are completed.
            let stored = self.stored(&record).await;
            let whole = self.relies_on(&record)
                && stored.is_ok_and(|stored| Some(stored) == record.length)
                && record.length != Some(0);
            if !whole && self.begin_termination(id, UploadState::Receiving).await? {
                drop(writing);
                self.spawn_removal(id);
                return Ok(());
            }
        }
        if self.open(id).await?.state == UploadState::Receiving {
            self.begin_finishing(id).await?;
        }
        // A finishing that has begun is announced before anybody can stop it: it is let through.
        match self.finish_whatever_happens(id, None).await {
            // A loss of power has taken bytes, of which nobody was told that they were all there.
            Err(UploadError::Unfinished(_) | UploadError::Damaged { .. })
                if self.begin_termination(id, UploadState::Receiving).await? =>
            {
                self.spawn_removal(id);
                return Ok(());
            }
            finished => finished?,
        }
        let begun = self.begin_termination(id, UploadState::Committed).await?
            || self.begin_termination(id, UploadState::Published).await?;
        if !begun {
            return self.open(id).await.map(drop);
        }
        self.spawn_removal(id);
        Ok(())
    }

    /// From `state` to terminating. Answers whether the upload was in that state.
    async fn begin_termination(&self, id: UploadId, state: UploadState) -> Result<bool, UploadError> {
        let message = self.termination_event(id, "deleted by its sender");
        let edit = move |record: &mut UploadRecord| {
            if record.state != state {
                return Verdict::Leave;
            }
            record.state = UploadState::Terminating;
            record.outbox.push(message.clone());
            Verdict::Write
        };
        let edited = self.records.edit_upload(id, Box::new(edit)).await?;
        if edited.written {
            self.metrics.uploads_terminated.inc();
            tracing::info!(upload_id = %id, was = state.as_str(), "deleted by its sender");
        }
        Ok(edited.written)
    }

    fn spawn_removal(self: &Arc<Self>, id: UploadId) {
        let uploads = self.clone();
        self.tasks.spawn_on(
            async move {
                if let Err(error) = uploads.remove_terminated(id).await {
                    tracing::warn!(upload_id = %id, %error, "removing is left to the sweeper");
                }
            }
            .in_current_span(),
            &self.runtime,
        );
    }

    /// Removes the bytes of a terminating upload as soon as no delivery needs them, and leaves the tombstone.
    ///
    /// # Errors
    /// It is still terminating; the sweeper comes again.
    pub(super) async fn remove_terminated(self: &Arc<Self>, id: UploadId) -> Result<(), UploadError> {
        let record = self.records.upload(id).await?;
        if record.state != UploadState::Terminating || self.live.has_writer(id) {
            return Ok(());
        }
        if record.completed.is_some() {
            let deliveries = self.records.deliveries(id).await?;
            // One that was given up may be sent again: the raw object is all that is left of the file.
            if !deliveries
                .iter()
                .all(|delivery| delivery.state == DeliveryState::Succeeded)
            {
                return Ok(());
            }
            self.raw.delete(&id.blob_name()).await?;
        } else {
            self.raw.abort(&record.staged).await?;
        }
        let edit = |record: &mut UploadRecord| {
            if record.state != UploadState::Terminating {
                return Verdict::Leave;
            }
            record.state = UploadState::Terminated;
            Verdict::Write
        };
        let record = self.records.edit_upload(id, Box::new(edit)).await?.record;
        self.spawn_publish(record);
        Ok(())
    }
}
