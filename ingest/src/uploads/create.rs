//! Creating an upload: everything that could make it undeliverable is refused here, before a byte is taken.

use std::sync::Arc;

use jiff::Timestamp;
use shared::checksum::Crc64;
use shared::config::Durability;
use shared::failpoint::{self, Step};
use shared::manifest::{self, Manifest};
use shared::telemetry::TraceContext;
use shared::upload::{UploadId, UploadRecord, UploadState};
use tracing::Instrument as _;

use super::{UploadError, Uploads};

/// What a sender asks for.
#[derive(Debug)]
pub(crate) struct NewUpload {
    /// Never used before.
    pub(crate) id: UploadId,
    /// `Upload-Length`; `None`: deferred.
    pub(crate) length: Option<u64>,
    /// `Upload-Metadata` as it came.
    pub(crate) metadata: Option<String>,
    /// The same as text.
    pub(crate) manifest: Manifest,
}

impl Uploads {
    /// Makes the upload. Its record, with the reports and events of its creation, is there when this answers.
    ///
    /// # Errors
    /// `TooLarge`; `Manifest` if the file's name is bad or makes no valid name in a target; `NoSpace`.
    pub(crate) async fn create(self: &Arc<Self>, new: NewUpload) -> Result<UploadRecord, UploadError> {
        self.check_size(new.length)?;
        manifest::check_file_names(&new.manifest).map_err(|error| UploadError::Manifest(error.to_string()))?;
        let (id, now) = (new.id, Timestamp::now());
        let mut manifest = new.manifest;
        let transforms = manifest::add_keys(&mut manifest, id, now);
        // The names are resolved for good at the end; a file that cannot be named is refused before it is sent.
        self.routes
            .resolve(id, &manifest)
            .map_err(|error| UploadError::Manifest(error.to_string()))?;
        self.check_room_for_new().await?;

        let staged = self.raw.begin(&id.blob_name(), new.length).await?;
        let mut record = UploadRecord {
            id,
            seq: 0,
            state: UploadState::Receiving,
            length: new.length,
            metadata: new.metadata,
            manifest,
            created_at: now,
            changed_at: now,
            staged: staged.clone(),
            verified_offset: None,
            checkpoint: Crc64::default(),
            on_disk: self.fresh(),
            claim: None,
            completed: None,
            targets: Vec::new(),
            reconciled: 0,
            traceparent: TraceContext::current().map(|context| context.to_string()),
            outbox: Vec::new(),
        };
        self.announce_creation(&mut record, transforms);
        record.seq = 1;
        let created = match self.config.durability {
            // The record is durable; so must be what it names.
            Durability::Patch => match self.raw.sync(&staged).await {
                Ok(()) => self.records.create(record).await.map_err(UploadError::from),
                Err(error) => Err(error.into()),
            },
            Durability::None | Durability::Finish => self.records.create(record).await.map_err(UploadError::from),
        };
        match created {
            Ok(record) => {
                self.metrics.uploads_created.inc();
                tracing::info!(upload_id = %id, length = record.length, "created");
                self.spawn_publish(record.clone());
                Ok(record)
            }
            Err(error) => {
                if let Err(left) = self.raw.abort(&staged).await {
                    tracing::warn!(upload_id = %id, error = %left, "an unused staging is left");
                }
                Err(error)
            }
        }
    }

    /// Refuses a declared length that no upload may have.
    pub(super) fn check_size(&self, length: Option<u64>) -> Result<(), UploadError> {
        match (self.config.max_upload_size, length) {
            (Some(most), Some(length)) if length > most => Err(UploadError::TooLarge { most }),
            _ => Ok(()),
        }
    }

    /// Publishes what is left in the record's outbox, without anybody waiting; the sweeper does what fails.
    pub(super) fn spawn_publish(self: &Arc<Self>, record: UploadRecord) {
        if record.outbox.is_empty() {
            return;
        }
        let uploads = self.clone();
        self.tasks.spawn_on(
            async move {
                let id = record.id;
                match uploads.outbox.publish_upload(record).await {
                    Ok(record) if record.state == UploadState::Published => {
                        if let Err(injected) = failpoint::reached(Step::PublishedRecorded).await {
                            tracing::warn!(upload_id = %id, %injected, "nobody waits for it");
                        }
                    }
                    Ok(_) => {}
                    Err(error) => tracing::warn!(upload_id = %id, %error, "announcing is left to the sweeper"),
                }
            }
            .in_current_span(),
            &self.runtime,
        );
    }
}
