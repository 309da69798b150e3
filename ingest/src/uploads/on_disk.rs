//! Whether staged bytes can be relied on, and what is done when they cannot. Spec: core.md §3; faults.md 12, 14, 16.
//!
//! ```text
//!   0 ───── synced ───── checkpoint ───── length of the file
//!     on the disk   checksum known    known to the kernel that took them only
//! ```
//!
//! In the start of the machine in which the bytes came, the file is what counts: a kill loses nothing. After another
//! start, or a failed sync, only what was synced or has its checksum counts; the rest is dropped, so that nobody is
//! ever told of bytes that a loss of power turned into zeros.

use std::sync::Arc;

use shared::checksum::Crc64;
use shared::config::Durability;
use shared::records::{RecordError, Verdict};
use shared::store::{BlobError, BlobErrorKind, BlobStat, Staged};
use shared::telemetry::Chain;
use shared::upload::{OnDisk, Trouble, UploadId, UploadRecord, UploadState};

use super::{UploadError, Uploads};

/// What was found where an upload's bytes should be.
enum Found {
    /// So many from the start, in its staging; `checkpoint` is their checksum as far as it is known.
    Staged { offset: u64, checkpoint: Crc64 },
    /// All, under their final name.
    Whole(Crc64),
    /// Nothing, and nothing was promised: the upload begins in a new staging.
    Nothing(Staged),
    /// Less than there should be, or something else.
    Lost { stored: u64 },
}

impl Uploads {
    /// What is known of bytes that come now.
    pub(super) fn fresh(&self) -> OnDisk {
        OnDisk {
            written_in: Some(self.boot.clone()),
            ..OnDisk::default()
        }
    }

    /// Whether the staging's length tells what is there.
    pub(super) fn relies_on(&self, record: &UploadRecord) -> bool {
        record.on_disk.written_in.as_ref() == Some(&self.boot)
    }

    /// The record of an upload whose stored bytes can be relied on, after they were looked at if they could not.
    ///
    /// # Errors
    /// `Damaged`, for good; `Locked` if somebody is at them; `Store` if they cannot be read now.
    pub(super) async fn relied_on(&self, record: UploadRecord) -> Result<UploadRecord, UploadError> {
        if record.on_disk.trouble == Some(Trouble::Lost) {
            return Err(damaged(&record, 0));
        }
        if self.relies_on(&record) || record.completed.is_some() {
            return Ok(record);
        }
        let turn = self.live.wait_for_turn(record.id, self.config.lock_wait).await;
        let _writing = turn.map_err(|_| UploadError::Locked)?;
        let _exclusive = match self.raw.exclusive(&record.staged).await {
            Err(error) if error.kind == BlobErrorKind::Locked => return Err(UploadError::Locked),
            Err(error) if error.kind == BlobErrorKind::StagingLost => None,
            exclusive => Some(exclusive?),
        };
        // Somebody else may have looked meanwhile.
        let record = self.open(record.id).await?;
        if self.relies_on(&record) || record.completed.is_some() {
            return Ok(record);
        }
        self.make_sure(record).await
    }

    /// The same for whoever has the writer's place.
    pub(super) async fn make_sure(&self, record: UploadRecord) -> Result<UploadRecord, UploadError> {
        if record.on_disk.trouble == Some(Trouble::Lost) {
            return Err(damaged(&record, 0));
        }
        let found = match self.look(&record).await {
            Err(error) => {
                self.note_trouble(&record, &error).await;
                return Err(error);
            }
            Ok(found) => found,
        };
        let durable = self.config.durability != Durability::None;
        let (mut on_disk, mut checkpoint, mut staged) = (self.fresh(), record.checkpoint, record.staged.clone());
        let offset = match found {
            Found::Lost { stored } => {
                self.note_lost(&record).await?;
                return Err(damaged(&record, stored));
            }
            Found::Staged {
                offset,
                checkpoint: known,
            } => {
                self.raw.truncate(&staged, offset).await?;
                if durable {
                    // What a failed sync left to the kernel is still on its way.
                    self.sync(&record, Some(known)).await?;
                }
                checkpoint = known;
                offset
            }
            Found::Whole(crc) => {
                self.raw.persist(&record.id.blob_name()).await?;
                checkpoint = crc;
                crc.covered()
            }
            Found::Nothing(begun) => {
                staged = begun;
                0
            }
        };
        if durable {
            on_disk.synced = offset;
        }
        tracing::info!(upload_id = %record.id, offset, "its bytes were looked at after a loss of power or a failed sync");
        let edit = move |record: &mut UploadRecord| {
            if !matches!(record.state, UploadState::Receiving | UploadState::Committing) {
                return Verdict::Leave;
            }
            record.on_disk = on_disk.clone();
            record.checkpoint = checkpoint;
            record.staged.clone_from(&staged);
            if record.length != Some(offset) {
                // Nobody was told that it is whole: its sender goes on.
                record.state = UploadState::Receiving;
            }
            Verdict::Write
        };
        Ok(self.records.edit_upload(record.id, Box::new(edit)).await?.record)
    }

    async fn look(&self, record: &UploadRecord) -> Result<Found, UploadError> {
        let (checkpoint, on_disk) = (record.checkpoint, &record.on_disk);
        let promised = record.promised();
        let stored = match self.raw.parts(&record.staged).await {
            Err(error) if error.kind == BlobErrorKind::StagingLost => {
                return self.look_at_final(record, promised).await;
            }
            parts => parts?.contiguous,
        };
        if stored < promised {
            return Ok(Found::Lost { stored });
        }
        // Bytes whose sync succeeded outlive the machine's start; a later sync that failed says nothing good of them.
        let needs_reading = on_disk.written_in.is_none() || checkpoint.covered() > on_disk.synced;
        if needs_reading && self.read_checksum(record, 0, checkpoint.covered()).await? != checkpoint {
            return Ok(Found::Lost { stored });
        }
        Ok(Found::Staged {
            offset: promised,
            checkpoint,
        })
    }

    /// The staging is gone: a commit gave it its final name, or its own name was lost.
    async fn look_at_final(&self, record: &UploadRecord, promised: u64) -> Result<Found, UploadError> {
        let name = record.id.blob_name();
        let BlobStat { size, identity, .. } = match self.raw.stat(&name).await {
            Err(error) if error.kind == BlobErrorKind::NotFound && promised == 0 => {
                return Ok(Found::Nothing(self.raw.begin(&name, record.length).await?));
            }
            Err(error) if error.kind == BlobErrorKind::NotFound => return Ok(Found::Lost { stored: 0 }),
            stat => stat?,
        };
        // It was marked with the checksum of what was received before it got its name.
        let received = identity.filter(|identity| identity.upload_id == record.id);
        let Some(received) = received.map(|identity| identity.crc64nvme) else {
            return Ok(Found::Lost { stored: size });
        };
        let right = record.length == Some(received.covered())
            && size == received.covered()
            && self.read_checksum(record, 0, size).await? == received;
        Ok(if right {
            Found::Whole(received)
        } else {
            Found::Lost { stored: size }
        })
    }

    /// Syncs the staging. `received` is the checksum of what came, as far as it is known: if the sync fails, that is
    /// what the bytes are compared with before anything is built on them again.
    pub(super) async fn sync(&self, record: &UploadRecord, received: Option<Crc64>) -> Result<(), UploadError> {
        match self.raw.sync(&record.staged).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.note_failure(record.id, error, received).await),
        }
    }

    /// The error for whoever asked; a failed sync is remembered in the record first.
    pub(super) async fn note_failure(&self, id: UploadId, error: BlobError, received: Option<Crc64>) -> UploadError {
        if error.kind == BlobErrorKind::SyncFailed {
            tracing::error!(upload_id = %id, error = %Chain(&error), "what was stored will be read again and compared");
            let edit = move |record: &mut UploadRecord| {
                record.on_disk.written_in = None;
                if let Some(received) = received.filter(|received| received.covered() > record.checkpoint.covered()) {
                    record.checkpoint = received;
                }
                Verdict::WriteDurably
            };
            self.note(id, edit).await;
        }
        error.into()
    }

    /// Stored bytes were needed and could not be read. Spec: faults.md 14.
    pub(super) async fn note_unreadable(&self, record: &UploadRecord, error: &UploadError) {
        tracing::error!(upload_id = %record.id, error = %Chain(error), "stored bytes cannot be read");
        let edit = |record: &mut UploadRecord| {
            if record.on_disk.trouble.is_some() {
                return Verdict::Leave;
            }
            record.on_disk.trouble = Some(Trouble::Unreadable);
            Verdict::Write
        };
        self.note(record.id, edit).await;
    }

    /// Stored bytes are missing or wrong. The upload stays as a record of that until its sender deletes it.
    pub(super) async fn note_lost(&self, record: &UploadRecord) -> Result<(), UploadError> {
        tracing::error!(upload_id = %record.id, "stored bytes are missing or not those received");
        let edit = |record: &mut UploadRecord| {
            if !matches!(record.state, UploadState::Receiving | UploadState::Committing) {
                return Verdict::Leave;
            }
            record.state = UploadState::Receiving;
            record.on_disk.trouble = Some(Trouble::Lost);
            Verdict::WriteDurably
        };
        self.records.edit_upload(record.id, Box::new(edit)).await?;
        Ok(())
    }

    /// Edits the record on the way of a failure, which is what the caller is told.
    async fn note(&self, id: UploadId, edit: impl FnMut(&mut UploadRecord) -> Verdict + Send + 'static) {
        match self.records.edit_upload(id, Box::new(edit)).await {
            Ok(_) | Err(RecordError::NotFound(_)) => {}
            Err(error) => tracing::error!(upload_id = %id, error = %Chain(&error), "its trouble was not recorded"),
        }
    }

    /// Sees to it that an upload whose sender is about to be told that it is whole stays so, whatever happens: senders
    /// take that as success and send nothing more. Spec: core.md §3 (before the completing answer), §4.
    ///
    /// # Errors
    /// It could not be made durable, or recorded: it must not be told.
    pub(super) async fn before_told_whole(self: &Arc<Self>, record: &UploadRecord) -> Result<(), UploadError> {
        let id = record.id;
        if self.config.durability == Durability::None {
            if record.state == UploadState::Receiving && !self.live.has_writer(id) {
                self.begin_finishing(id).await?;
                self.spawn_finish(id);
            }
            return Ok(());
        }
        if record.state == UploadState::Committing && Some(record.on_disk.synced) == record.length {
            return Ok(());
        }
        match self.raw.sync(&record.staged).await {
            Ok(()) => {}
            // It has its final name already: whoever gave it that is about to record so.
            Err(error) if error.kind == BlobErrorKind::StagingLost => {
                return self.finish_whatever_happens(id, None).await;
            }
            // Nobody writes it, so nobody has a newer checksum than the record: what that covers is compared, and what
            // lies behind, of which nobody was told, is dropped.
            Err(error) => return Err(self.note_failure(id, error, None).await),
        }
        let edit = |record: &mut UploadRecord| {
            if !matches!(record.state, UploadState::Receiving | UploadState::Committing) {
                return Verdict::Leave;
            }
            record.state = UploadState::Committing;
            record.on_disk.synced = record.length.unwrap_or(record.on_disk.synced);
            Verdict::WriteDurably
        };
        self.records.edit_upload(id, Box::new(edit)).await?;
        if record.state == UploadState::Receiving {
            self.spawn_finish(id);
        }
        Ok(())
    }
}

fn damaged(record: &UploadRecord, stored: u64) -> UploadError {
    UploadError::Damaged {
        id: record.id,
        stored,
        recorded: record.promised(),
    }
}
