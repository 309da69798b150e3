//! What is known of every upload and delivery. Spec: core.md §2–§5.
//!
//! A record is changed by one conditional write; the messages that follow from the change are in the same write,
//! in the record's outbox. So there is no state that nothing would ever be published for.

mod sqlite;

use std::collections::BTreeMap;
use std::fmt;

use async_trait::async_trait;
use jiff::Timestamp;

pub use sqlite::SqliteRecords;

use crate::failure::FailureClass;
use crate::upload::{DeliveryRecord, DeliveryState, OwnerId, UploadId, UploadRecord, UploadState};

/// Changes a record in place, or leaves it. May be called again with a newer record when somebody else was faster,
/// so it decides from what it is given and from nothing that it saw before.
pub type Edit<R> = Box<dyn FnMut(&mut R) -> Verdict + Send>;

/// What an [`Edit`] decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Write the changed record.
    Write,
    /// As `Write`, and survive a power loss before answering (core.md §3, "FULL").
    WriteDurably,
    /// The record is not what this edit is for: nothing is written.
    Leave,
}

/// A record after an edit.
#[derive(Clone, Debug, PartialEq)]
pub struct Edited<R> {
    /// As it is recorded now.
    pub record: R,
    /// Whether the edit was written, or left it.
    pub written: bool,
}

/// The records of all uploads and deliveries. All implementations pass one contract, in `tests/`.
///
/// The store itself raises `seq` and sets `changed_at` with every write. A dropped future may or may not have
/// written; it never wrote half.
#[async_trait]
pub trait Records: fmt::Debug + Send + Sync + 'static {
    /// This process, as claims name it.
    fn owner(&self) -> &OwnerId;

    /// Whether the process `owner` is known to have ended. `false` means unknown: then its beats are watched.
    async fn is_gone(&self, owner: &OwnerId) -> bool;

    /// Records a new upload. Answers it as recorded: what the bus took in the same write is out of its outbox.
    ///
    /// # Errors
    /// `Exists` if there is a record of this id.
    async fn create(&self, record: UploadRecord) -> Result<UploadRecord, RecordError>;

    /// The record of an upload.
    ///
    /// # Errors
    /// `NotFound`.
    async fn upload(&self, id: UploadId) -> Result<UploadRecord, RecordError>;

    /// Changes the record of an upload. When the write leaves it committed, a pending delivery record exists for
    /// each of its targets from the same moment on.
    ///
    /// # Errors
    /// `NotFound`; otherwise nothing is known to be written.
    async fn edit_upload(&self, id: UploadId, edit: Edit<UploadRecord>) -> Result<Edited<UploadRecord>, RecordError>;

    /// The deliveries of an upload, by target name.
    ///
    /// # Errors
    /// The records could not be read. An upload without deliveries has an empty list.
    async fn deliveries(&self, id: UploadId) -> Result<Vec<DeliveryRecord>, RecordError>;

    /// Changes the record of one delivery.
    ///
    /// # Errors
    /// `NotFound`; otherwise nothing is known to be written.
    async fn edit_delivery(
        &self,
        id: UploadId,
        target: &str,
        edit: Edit<DeliveryRecord>,
    ) -> Result<Edited<DeliveryRecord>, RecordError>;

    /// Ids of uploads that need attention, or have a delivery that does, in order, after `after`.
    ///
    /// # Errors
    /// The records could not be read.
    async fn open_uploads(&self, after: Option<UploadId>, limit: usize) -> Result<Vec<UploadId>, RecordError>;

    /// Failed deliveries, optionally of one target, of at most `limit` uploads after `after`, in their order.
    ///
    /// # Errors
    /// The records could not be read.
    async fn failed_deliveries(
        &self,
        target: Option<&str>,
        after: Option<UploadId>,
        limit: usize,
    ) -> Result<Vec<DeliveryRecord>, RecordError>;

    /// Removes at most `limit` tombstones (terminated, expired) that did not change since `before`; answers how many.
    ///
    /// # Errors
    /// The records could not be written.
    async fn purge_tombstones(&self, before: Timestamp, limit: usize) -> Result<usize, RecordError>;

    /// How many uploads and deliveries that need attention are in each state, and how many deliveries failed; for
    /// metrics. What is done for good is not counted: that would read every record there ever was.
    ///
    /// # Errors
    /// The records could not be read.
    async fn census(&self) -> Result<Census, RecordError>;

    /// Returns when every durable write that was read before survives a power loss: a reader may see it a moment before
    /// whoever made it has synced it. Costs no sync when nobody can be in that moment.
    ///
    /// # Errors
    /// It may not survive one.
    async fn settled(&self) -> Result<(), RecordError>;

    /// Whether records can be read and written now.
    ///
    /// # Errors
    /// What stands in the way.
    async fn check(&self) -> Result<(), RecordError>;
}

/// Counts for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Uploads by state; states without uploads may be left out.
    pub uploads: BTreeMap<&'static str, u64>,
    /// Deliveries by state; states without deliveries may be left out.
    pub deliveries: BTreeMap<&'static str, u64>,
    /// Records with messages that are not known to be on the bus.
    pub with_outbox: u64,
}

impl Census {
    /// Uploads in `state`.
    #[must_use]
    pub fn uploads_in(&self, state: UploadState) -> u64 {
        self.uploads.get(state.as_str()).copied().unwrap_or_default()
    }

    /// Deliveries in `state`.
    #[must_use]
    pub fn deliveries_in(&self, state: DeliveryState) -> u64 {
        self.deliveries.get(state.as_str()).copied().unwrap_or_default()
    }
}

/// A failed operation on records.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// No such record.
    #[error("no record of {0}")]
    NotFound(String),
    /// There is one already.
    #[error("there is a record of upload {0} already")]
    Exists(UploadId),
    /// The store of records is busy, full or away.
    #[error("{operation} {object}: the records are not available")]
    Unavailable {
        /// What was tried.
        operation: &'static str,
        /// On which record.
        object: String,
        /// The driver's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A record that cannot be read back.
    #[error("the record of {object} is damaged")]
    Damaged {
        /// Which.
        object: String,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl RecordError {
    /// The class that decides about retries.
    #[must_use]
    pub fn class(&self) -> FailureClass {
        match self {
            Self::NotFound(_) | Self::Exists(_) => FailureClass::Permanent,
            Self::Unavailable { .. } => FailureClass::Transient,
            Self::Damaged { .. } => FailureClass::Source,
        }
    }
}
