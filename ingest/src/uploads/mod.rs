//! The life of an upload, from creation to the announcement, apart from HTTP.
//!
//! ```text
//!   create ──► append… ──► finish ──► committed, announced        terminate
//!                 │           ▲
//!                 └ crash ► sweep
//! ```

mod announce;
mod append;
mod create;
mod download;
mod error;
mod finish;
mod memory;
mod on_disk;
mod progress;
mod room;
mod status;
mod sweep;
mod terminate;

use std::sync::Arc;

use jiff::Timestamp;
use shared::boot::BootId;
use shared::checksum::Crc64;
use shared::claims::Claims;
use shared::config::{Durability, IngestConfig};
use shared::foundation::Foundation;
use shared::message::Source;
use shared::outbox::Outbox;
use shared::records::{RecordError, Records};
use shared::routes::Routes;
use shared::store::{BlobErrorKind, BlobStore};
use shared::telemetry::Metrics;
use shared::upload::{UploadId, UploadRecord};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

pub(crate) use append::{Append, Ended};
pub(crate) use create::NewUpload;
pub(crate) use error::UploadError;
pub(crate) use progress::Progress;
pub(crate) use status::Statuses;
pub(crate) use sweep::sweep;

use crate::lock::Live;
use memory::Memory;
use room::Room;

/// All uploads, and what is needed to take care of them.
#[derive(Debug)]
pub(crate) struct Uploads {
    pub(crate) records: Arc<dyn Records>,
    pub(crate) raw: Arc<dyn BlobStore>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) config: IngestConfig,
    pub(crate) live: Arc<Live>,
    pub(crate) statuses: Statuses,
    outbox: Outbox,
    claims: Arc<Claims>,
    routes: Routes,
    source: Source,
    boot: BootId,
    started_at: Timestamp,
    /// Work that must outlive the request that began it runs here.
    runtime: Handle,
    tasks: TaskTracker,
    room: Room,
    memory: Memory,
}

impl Uploads {
    /// Uploads on what `foundation` opened. Work that outlives a request runs on `runtime`.
    pub(crate) fn new(foundation: &Foundation, config: IngestConfig, runtime: Handle) -> Self {
        Self {
            statuses: Statuses::new(
                &foundation.sinks,
                &foundation.records,
                &foundation.bus,
                &foundation.metrics,
                config.common.report_timeout,
            ),
            records: foundation.records.clone(),
            raw: foundation.raw.clone(),
            metrics: foundation.metrics.clone(),
            memory: Memory::new(config.memory_budget, foundation.metrics.clone()),
            config,
            live: Arc::default(),
            outbox: foundation.outbox.clone(),
            claims: foundation.claims.clone(),
            routes: foundation.routes.clone(),
            source: Source::new("ingest"),
            boot: foundation.boot.clone(),
            started_at: Timestamp::now(),
            runtime,
            tasks: TaskTracker::new(),
            room: Room::default(),
        }
    }

    /// The record of an upload whose URL is good.
    ///
    /// # Errors
    /// `NotFound`; `Gone` if it was deleted or has expired.
    pub(crate) async fn open(&self, id: UploadId) -> Result<UploadRecord, UploadError> {
        let record = match self.records.upload(id).await {
            Err(RecordError::NotFound(_)) => return Err(UploadError::NotFound(id)),
            record => record?,
        };
        if record.state.is_gone() {
            Err(UploadError::Gone(id))
        } else {
            Ok(record)
        }
    }

    /// The offset for an answer; what it tells is never taken back. Spec: core.md §1, "Acknowledged"; §3, "Offset".
    ///
    /// # Errors
    /// `Damaged` if the store has less than the record says was there.
    pub(crate) async fn offset(self: &Arc<Self>, record: &UploadRecord) -> Result<u64, UploadError> {
        let (record, offset) = self.present(record).await?;
        if record.completed.is_none() && Some(offset) == record.length {
            self.before_told_whole(&record).await?;
        }
        Ok(offset)
    }

    /// As [`Uploads::offset`], but not yet for an answer: that the upload is whole may be taken back.
    async fn present(self: &Arc<Self>, record: &UploadRecord) -> Result<(UploadRecord, u64), UploadError> {
        if let Some(completed) = &record.completed {
            if self.config.durability != Durability::None {
                self.records.settled().await?; // whoever recorded it may not have synced it yet
            }
            return Ok((record.clone(), completed.crc64nvme.covered()));
        }
        if let Some(offset) = self.live.tell(record.id) {
            return Ok((record.clone(), offset));
        }
        let record = self.relied_on(record.clone()).await?;
        let offset = self.stored(&record).await?;
        Ok((record, offset))
    }

    /// How many bytes there are, and when the last of them came. No promise to a sender.
    ///
    /// # Errors
    /// As [`Uploads::offset`].
    pub(crate) async fn received(&self, record: &UploadRecord) -> Result<(u64, Timestamp), UploadError> {
        let offset = match (&record.completed, self.live.acknowledged(record.id)) {
            (Some(completed), _) => completed.crc64nvme.covered(),
            (None, Some(offset)) => offset,
            (None, None) if self.relies_on(record) && record.on_disk.trouble.is_none() => self.stored(record).await?,
            // Not looked at now: that may take long, and change it.
            (None, None) => match self.raw.parts(&record.staged).await {
                Ok(parts) => parts.contiguous.min(record.promised()),
                Err(error) if error.kind == BlobErrorKind::StagingLost => 0,
                Err(error) => return Err(error.into()),
            },
        };
        let at = match &record.completed {
            Some(completed) => completed.at,
            None if offset == 0 => record.created_at,
            None => match self.raw.parts(&record.staged).await {
                Ok(parts) => parts.modified.unwrap_or(record.changed_at),
                Err(_) => record.changed_at,
            },
        };
        Ok((offset, at))
    }

    /// Waits until the work that requests began is done.
    pub(crate) async fn settle(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The unbroken bytes in the store, which can be relied on, when nobody in this process is writing.
    async fn stored(&self, record: &UploadRecord) -> Result<u64, UploadError> {
        let parts = match self.raw.parts(&record.staged).await {
            Err(error) if error.kind == BlobErrorKind::StagingLost => return self.already_whole(record).await,
            parts => parts?,
        };
        if self.config.durability == Durability::Patch && parts.contiguous > record.on_disk.synced {
            self.sync(record, None).await?; // what is found is synced before its length is told
            self.note_synced(record.id, parts.contiguous, Crc64::default()).await?;
        }
        if parts.contiguous < record.checkpoint.covered() {
            return Err(UploadError::Damaged {
                id: record.id,
                stored: parts.contiguous,
                recorded: record.checkpoint.covered(),
            });
        }
        Ok(record
            .verified_offset
            .map_or(parts.contiguous, |verified| verified.min(parts.contiguous)))
    }

    /// The staging is gone: a crash came after the object was made whole and before that was recorded.
    async fn already_whole(&self, record: &UploadRecord) -> Result<u64, UploadError> {
        let damaged = |stored| UploadError::Damaged {
            id: record.id,
            stored,
            recorded: record.length.unwrap_or(record.checkpoint.covered()),
        };
        match self.raw.stat(&record.id.blob_name()).await {
            Ok(stat) if Some(stat.size) == record.length => Ok(stat.size),
            Ok(stat) => Err(damaged(stat.size)),
            Err(error) if error.kind == BlobErrorKind::NotFound => Err(damaged(0)),
            Err(error) => Err(error.into()),
        }
    }

    /// Checksum of the staged or finished bytes from `start` to `end`, read in pieces.
    async fn read_checksum(&self, record: &UploadRecord, start: u64, end: u64) -> Result<Crc64, UploadError> {
        const PIECE: u64 = 1024 * 1024;
        let mut crc = Crc64::default();
        let mut at = start;
        while at < end {
            let range = at..end.min(at + PIECE);
            at = range.end;
            let bytes = match self.raw.read_staged(&record.staged, range.clone()).await {
                Err(error) if error.kind == BlobErrorKind::StagingLost => {
                    self.raw.read(&record.id.blob_name(), range, None).await?
                }
                bytes => bytes?,
            };
            crc.update(&bytes);
        }
        Ok(crc)
    }
}
