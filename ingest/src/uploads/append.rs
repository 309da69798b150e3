//! Appending: one writer per upload, whole buffers to the store, and nothing told before the store has it.
//!
//! A request may vanish at any moment, and its future with it. So each write runs as a task of its own that holds the
//! writer's place until the store is done: whoever takes over never meets a write in progress.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use shared::checksum::Crc64;
use shared::config::Durability;
use shared::failpoint::{self, Step};
use shared::records::Verdict;
use shared::store::{BlobErrorKind, WriterGuard};
use shared::upload::{UploadId, UploadRecord, UploadState};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::memory::Share;
use super::{Progress, UploadError, Uploads};
use crate::lock::{Place, Writing};

/// Checksums are recorded at least this often, so that a restart reads no more than this again.
const CHECKPOINT_EVERY: u64 = 256 * 1024 * 1024;

/// Buffers from this size on are kept for the next part.
const REUSED: usize = 512 * 1024;

/// One request's turn to write an upload.
#[derive(Debug)]
pub(crate) struct Append {
    uploads: Arc<Uploads>,
    record: UploadRecord,
    turn: Arc<Turn>,
    /// Received and not written.
    buffer: BytesMut,
    /// Where the buffer begins.
    offset: u64,
    /// Where the last recorded checkpoint ended.
    checkpoint: u64,
    /// Status reports have told of no more than this.
    noted: u64,
}

/// What every write of the request shares; when the last of them is done the next writer comes in.
#[derive(Debug)]
struct Turn {
    /// The memory of the buffer, also while it is being written.
    memory: Mutex<Share>,
    // Dropped before the place is given up: the next writer needs it.
    _exclusive: WriterGuard,
    writing: Writing,
}

impl Turn {
    fn progress(&self) -> MutexGuard<'_, Option<Progress>> {
        self.writing.place().progress()
    }

    fn memory(&self) -> MutexGuard<'_, Share> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// All of it came, and the upload waits for more.
    Incomplete {
        /// Bytes that are there.
        offset: u64,
    },
    /// The upload is whole, and that is recorded.
    Complete {
        /// Its length.
        offset: u64,
    },
}

impl Uploads {
    /// Becomes the writer of `record`'s upload at `offset`, which is where it is, or where its sender was told that
    /// it is. A writer at that place is told to stop and waited for.
    ///
    /// # Errors
    /// `OffsetMismatch` without disturbing anybody; `Locked`; `Gone` if it was deleted meanwhile.
    pub(crate) async fn append(self: &Arc<Self>, record: UploadRecord, offset: u64) -> Result<Append, UploadError> {
        let record = self.relied_on(record).await?;
        if !self.live.was_told(record.id, offset) {
            let (record, present) = self.present(&record).await?;
            if present != offset {
                return Err(self.mismatch(&record, present).await);
            }
        }
        let (writing, took_over) = self
            .live
            .enter(record.id, self.config.lock_wait)
            .await
            .map_err(|_| UploadError::Locked)?;
        if took_over {
            self.metrics.uploads_takeover.inc();
        }
        // The world may have changed while the place was waited for.
        let record = self.open(record.id).await?;
        if record.state != UploadState::Receiving {
            // All bytes were there. The place is given back; the caller sees to the finishing.
            return Err(UploadError::OffsetMismatch {
                present: self.offset(&record).await?,
            });
        }
        if !self.relies_on(&record) {
            return Err(UploadError::Locked); // the writer before could not sync; it is looked at without a body
        }
        let exclusive = match self.raw.exclusive(&record.staged).await {
            Err(error) if error.kind == BlobErrorKind::Locked => return Err(UploadError::Locked),
            Err(error) if error.kind == BlobErrorKind::StagingLost => {
                return Err(self.mismatch(&record, self.stored(&record).await?).await);
            }
            exclusive => exclusive?,
        };
        let stored = self.stored(&record).await?;
        let resume = |known: Option<Progress>| match known {
            Some(progress) if offset == stored && progress.written() == stored => progress,
            _ if offset == stored => Progress::resume(record.checkpoint, stored),
            // So that no checkpoint that is still on its way to the record is believed.
            _ => Progress::resume(Crc64::default(), offset),
        };
        if !writing.start(offset, stored, resume) {
            return Err(self.mismatch(&record, stored).await);
        }
        let record = if offset < stored {
            self.rewind(record, offset).await?
        } else {
            record
        };
        let progress = (*writing.place().progress()).unwrap_or_else(|| Progress::resume(Crc64::default(), offset));
        self.spawn_fill(&record, writing.place().clone(), progress);
        let turn = Arc::new(Turn {
            memory: Mutex::new(self.memory.share()),
            writing,
            _exclusive: exclusive,
        });
        let checkpoint = progress.checkpoint().covered();
        Ok(Append {
            uploads: self.clone(),
            record,
            turn,
            buffer: BytesMut::new(),
            offset,
            checkpoint,
            // Also of what was dropped just now: a status never goes back.
            noted: stored,
        })
    }

    /// The refusal of bytes that would not follow the `present` ones. It tells an offset like any answer.
    async fn mismatch(self: &Arc<Self>, record: &UploadRecord, present: u64) -> UploadError {
        if record.completed.is_none()
            && Some(present) == record.length
            && let Err(error) = self.before_told_whole(record).await
        {
            return error;
        }
        UploadError::OffsetMismatch { present }
    }

    /// Drops the bytes from `offset` on, of which nobody was told: their sender goes on before them.
    async fn rewind(&self, record: UploadRecord, offset: u64) -> Result<UploadRecord, UploadError> {
        tracing::info!(upload_id = %record.id, offset, "going on where the sender was told");
        // Asked of the record itself: a checkpoint may have been written since it was read.
        let edit = move |record: &mut UploadRecord| {
            if record.promised() <= offset {
                return Verdict::Leave;
            }
            record.checkpoint = Crc64::default();
            record.on_disk.synced = record.on_disk.synced.min(offset);
            Verdict::Write
        };
        let record = self.records.edit_upload(record.id, Box::new(edit)).await?.record;
        self.raw.truncate(&record.staged, offset).await?;
        Ok(record)
    }

    /// Records that the first `offset` bytes were synced, before anybody is told of them; `checkpoint` is the newest
    /// known checksum.
    pub(super) async fn note_synced(&self, id: UploadId, offset: u64, checkpoint: Crc64) -> Result<(), UploadError> {
        let edit = move |record: &mut UploadRecord| {
            if record.state != UploadState::Receiving || record.on_disk.synced >= offset {
                return Verdict::Leave;
            }
            record.on_disk.synced = offset;
            if checkpoint.covered() > record.checkpoint.covered() {
                record.checkpoint = checkpoint;
            }
            Verdict::WriteDurably
        };
        self.records.edit_upload(id, Box::new(edit)).await?;
        Ok(())
    }

    /// Reads the checksum of bytes that an earlier process took, off the request's way.
    fn spawn_fill(self: &Arc<Self>, record: &UploadRecord, place: Arc<Place>, progress: Progress) {
        let (start, end) = progress.gap();
        if start == end {
            return;
        }
        let (uploads, record) = (self.clone(), record.clone());
        self.tasks.spawn_on(
            async move {
                match uploads.read_checksum(&record, start, end).await {
                    Ok(crc) => {
                        if let Some(progress) = place.progress().as_mut().filter(|now| now.gap() == (start, end)) {
                            progress.fill(crc);
                        }
                    }
                    // The finishing reads them itself, and fails there if they cannot be read.
                    Err(error) => tracing::warn!(upload_id = %record.id, %error, "stored bytes are not readable"),
                }
            },
            &self.runtime,
        );
    }
}

impl Append {
    /// The upload as it is recorded.
    pub(crate) fn record(&self) -> &UploadRecord {
        &self.record
    }

    /// Cancelled when another request takes over.
    pub(crate) fn taken_over(&self) -> &CancellationToken {
        self.turn.writing.stop()
    }

    /// How many more bytes the upload takes, if that is known.
    pub(crate) fn room(&self) -> Option<u64> {
        let end = self.record.length.or(self.uploads.config.max_upload_size);
        end.map(|end| end.saturating_sub(self.offset + self.buffer.len() as u64))
    }

    /// Where the next byte goes.
    pub(crate) fn position(&self) -> u64 {
        self.offset + self.buffer.len() as u64
    }

    /// Records a length that was deferred, before any byte of this request counts.
    ///
    /// # Errors
    /// `Length` if another one was declared before or there are more bytes already; `TooLarge`.
    pub(crate) async fn declare_length(&mut self, length: u64) -> Result<(), UploadError> {
        match self.record.length {
            Some(known) if known == length => return Ok(()),
            Some(known) => {
                return Err(UploadError::Length(format!(
                    "the upload's length was declared as {known} before"
                )));
            }
            None if length < self.offset => {
                return Err(UploadError::Length(format!("{} bytes are there already", self.offset)));
            }
            None => self.uploads.check_size(Some(length))?,
        }
        let edit = move |record: &mut UploadRecord| {
            if record.state != UploadState::Receiving || record.length.is_some_and(|known| known != length) {
                return Verdict::Leave;
            }
            record.length = Some(length);
            Verdict::Write
        };
        let record = self
            .uploads
            .records
            .edit_upload(self.record.id, Box::new(edit))
            .await?
            .record;
        if record.length != Some(length) {
            return Err(UploadError::Length(
                "the upload's length was declared before".to_owned(),
            ));
        }
        self.record = record;
        Ok(())
    }

    /// Takes `chunk`, which must fit into [`Append::room`], and writes what fills a part.
    ///
    /// # Errors
    /// `NoSpace`, `Store`: what could be written is kept.
    pub(crate) async fn push(&mut self, mut chunk: Bytes) -> Result<(), UploadError> {
        while !chunk.is_empty() {
            let slot = self.uploads.raw.limits().slot(self.offset, self.record.length);
            let missing = usize::try_from(slot.end - self.position()).unwrap_or(usize::MAX);
            let now = chunk.split_to(chunk.len().min(missing));
            if !self.gather(&now, slot.end - slot.start) {
                // No memory is left to gather in: what is there is written, and this as it came.
                self.flush().await?;
                self.write(now).await?;
            } else if now.len() == missing {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Adds `bytes` to the buffer of a part that may get as long as `most`, if there is memory for it.
    fn gather(&mut self, bytes: &[u8], most: u64) -> bool {
        let needed = self.buffer.len() + bytes.len();
        let mut memory = self.turn.memory();
        let held = memory.hold(needed as u64, most);
        if held {
            let whole = usize::try_from(memory.bytes()).unwrap_or(needed);
            self.buffer.reserve(whole.saturating_sub(self.buffer.len()));
            self.buffer.extend_from_slice(bytes);
        }
        held
    }

    /// Writes what is buffered, and lets senders know of it.
    ///
    /// # Errors
    /// As [`Append::push`].
    pub(crate) async fn flush(&mut self) -> Result<(), UploadError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.buffer).freeze();
        let len = bytes.len();
        let bytes = self.write(bytes).await?;
        // A full part's memory is used again: fresh pages cost more than the copy. A slow sender's is given back, so
        // that a thousand of them hold little.
        match bytes.try_into_mut() {
            Ok(mut buffer) if len >= REUSED => {
                buffer.clear();
                self.buffer = buffer;
            }
            _ => self.turn.memory().clear(),
        }
        Ok(())
    }

    /// Writes `bytes` behind what is written, and gives them back.
    async fn write(&mut self, bytes: Bytes) -> Result<Bytes, UploadError> {
        let len = bytes.len() as u64;
        self.uploads.check_room_for(len).await?; // without it they are dropped: nobody was told of them
        let written = self.spawn_write(bytes).await;
        let bytes = written.map_err(|_| UploadError::BrokenOff(self.record.id))??;
        self.offset += len;
        if self.offset - self.checkpoint >= CHECKPOINT_EVERY {
            self.checkpoint = self.offset;
            self.spawn_checkpoint();
        }
        Ok(bytes)
    }

    /// Makes what is written durable if every answer must be, and tells senders of it. That an upload is whole is told
    /// only when it is finished, unless nothing need be durable.
    ///
    /// # Errors
    /// `Store`: it must not be told.
    pub(crate) async fn acknowledge(&mut self) -> Result<(), UploadError> {
        let (durability, written) = (self.uploads.config.durability, self.written());
        if durability != Durability::None && self.record.length == Some(written) {
            return Ok(());
        }
        if durability == Durability::Patch && written != self.acknowledged() {
            let checkpoint = self
                .turn
                .progress()
                .as_ref()
                .map(Progress::checkpoint)
                .unwrap_or_default();
            self.uploads.sync(&self.record, Some(checkpoint)).await?;
            self.uploads.note_synced(self.record.id, written, checkpoint).await?;
        }
        if let Some(progress) = self.turn.progress().as_mut() {
            progress.acknowledge();
        }
        let acknowledged = self.acknowledged();
        if acknowledged > self.noted {
            self.noted = acknowledged;
            self.uploads.statuses.note(&self.record, acknowledged);
        }
        Ok(())
    }

    /// Ends the request's turn: the buffer is written and, if the upload is whole now, it is finished. The answer
    /// tells the offset.
    ///
    /// # Errors
    /// As [`Append::push`] and [`Uploads::finish`].
    pub(crate) async fn end(mut self) -> Result<Ended, UploadError> {
        self.flush().await?;
        self.acknowledge().await?;
        self.turn.writing.tell();
        self.finish_turn().await
    }

    /// The same when the sender is gone: nobody is told, so it may go on where it was told last.
    ///
    /// # Errors
    /// As [`Append::end`].
    pub(crate) async fn end_untold(mut self) -> Result<Ended, UploadError> {
        self.flush().await?;
        self.acknowledge().await?;
        self.finish_turn().await
    }

    async fn finish_turn(self) -> Result<Ended, UploadError> {
        let offset = self.offset;
        if self.record.length != Some(offset) {
            self.spawn_checkpoint();
            return Ok(Ended::Incomplete { offset });
        }
        let crc = self.turn.progress().as_ref().and_then(Progress::total);
        let (uploads, id) = (self.uploads.clone(), self.record.id);
        failpoint::reached(Step::LastByteStored).await?;
        // The writer's turn ends first: from `committing` on nobody writes, and the finishing has its own claim. What
        // was told so far is told on meanwhile.
        uploads.begin_finishing(id).await?;
        let _place = self.turn.writing.place().clone();
        drop(self);
        uploads.finish_whatever_happens(id, crc).await?;
        Ok(Ended::Complete { offset })
    }

    /// Drops what is only buffered, because another request goes on from what is written.
    pub(crate) fn give_way(mut self) {
        self.buffer.clear();
    }

    /// Bytes that the store has.
    fn written(&self) -> u64 {
        self.turn.progress().as_ref().map_or(self.offset, Progress::written)
    }

    /// Bytes that senders may be told of.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.turn
            .progress()
            .as_ref()
            .map_or(self.offset, Progress::acknowledged)
    }

    /// Writes `bytes` at the present offset, in a task that goes on if the request is dropped. Gives them back.
    fn spawn_write(&self, bytes: Bytes) -> JoinHandle<Result<Bytes, UploadError>> {
        let (uploads, turn, staged, offset) = (
            self.uploads.clone(),
            self.turn.clone(),
            self.record.staged.clone(),
            self.offset,
        );
        let whole = self.record.length == Some(offset + bytes.len() as u64);
        let tells = match self.uploads.config.durability {
            Durability::None => true,
            Durability::Finish => !whole,
            Durability::Patch => false,
        };
        let write = async move {
            let crc = Crc64::of(&bytes);
            if let Err(error) = uploads.raw.write_part(&staged, offset, bytes.clone()).await {
                // A part of it may be there: what counts is what the store has.
                if let Ok(parts) = uploads.raw.parts(&staged).await
                    && let Some(progress) = turn.progress().as_mut()
                {
                    *progress = progress.after_failure(parts.contiguous);
                    if uploads.config.durability != Durability::Patch {
                        progress.acknowledge();
                    }
                }
                return Err(error.into());
            }
            uploads.metrics.bytes_received.inc_by(crc.covered());
            if let Some(progress) = turn.progress().as_mut() {
                progress.wrote(crc);
                if tells {
                    progress.acknowledge();
                }
            }
            Ok(bytes)
        };
        self.uploads.tasks.spawn_on(write, &self.uploads.runtime)
    }

    /// Records how far the checksum is, without anybody waiting.
    fn spawn_checkpoint(&self) {
        let (uploads, place, id) = (self.uploads.clone(), self.turn.writing.place().clone(), self.record.id);
        self.uploads.tasks.spawn_on(
            async move {
                let Some(checkpoint) = place.progress().as_ref().map(Progress::checkpoint) else {
                    return;
                };
                let edit = move |record: &mut UploadRecord| {
                    let newer = checkpoint.covered() > record.checkpoint.covered();
                    // A writer may have gone back behind it meanwhile.
                    let holds = place
                        .progress()
                        .is_some_and(|now| now.written() >= checkpoint.covered());
                    if record.state != UploadState::Receiving || !newer || !holds {
                        return Verdict::Leave;
                    }
                    record.checkpoint = checkpoint;
                    Verdict::Write
                };
                if let Err(error) = uploads.records.edit_upload(id, Box::new(edit)).await {
                    tracing::warn!(upload_id = %id, %error, "a checkpoint was not recorded");
                }
            },
            &self.uploads.runtime,
        );
    }
}

impl Drop for Append {
    /// The request vanished: what had come is written all the same (FACTS: a lost connection's buffer is kept).
    fn drop(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        let rest = std::mem::take(&mut self.buffer).freeze();
        let write = self.spawn_write(rest);
        self.uploads.tasks.spawn_on(
            async move {
                if let Ok(Err(error)) = write.await {
                    tracing::warn!(%error, "the end of a cut body was not kept");
                }
            },
            &self.uploads.runtime,
        );
    }
}
