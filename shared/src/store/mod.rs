//! Blob stores: receiving and copying are the same act, so there is one trait for both.
//!
//! ```text
//!   begin ──► StagedId ──► write_part(offset, bytes)… ──► commit ──► Attested   (or abort)
//!                              parts / truncate: what survived a crash
//! ```
//!
//! Parts of a blob in the making are written at known offsets, and at the end the blob becomes visible whole.
//! What stores differ in is data ([`Limits`]), not code in their callers. All stores pass one contract suite, in
//! `tests/`.

mod error;
mod limits;
mod local;
mod name;
mod url;

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use error::{BlobError, BlobErrorKind, BlobOp, Role};
pub use limits::{Limits, ReadBack, Slots};
pub use local::{LocalStore, Syncing};
pub use name::{BlobName, NameError};
pub use url::{StoreUrl, StoreUrlError};

use crate::checksum::Crc64;
use crate::upload::UploadId;

/// One container (folder, S3 bucket, Azure container) of named blobs. All pass one contract, in `tests/`.
///
/// A dropped future of any method leaves no blob that readers can see, and nothing that a repetition of the same
/// call would not put right.
#[async_trait]
pub trait BlobStore: fmt::Debug + Send + Sync + 'static {
    /// Part sizes, and what this store attests.
    fn limits(&self) -> &Limits;

    /// Whether the container can be reached and written now. Spec: http.md §2.
    ///
    /// # Errors
    /// What stands in the way, with its class.
    async fn check(&self) -> Result<(), BlobError>;

    /// Room left in the container, where it has a limit.
    ///
    /// # Errors
    /// The container could not be asked.
    async fn space(&self) -> Result<Option<Space>, BlobError>;

    /// Size, tag and identity of a finished blob.
    ///
    /// # Errors
    /// `NotFound` if there is none.
    async fn stat(&self, name: &BlobName) -> Result<BlobStat, BlobError>;

    /// The bytes `range` of a finished blob, all of them or an error. With `if_match` only if the blob is still
    /// the one that had this tag. Ranges are held in memory: callers keep them to a part's size.
    ///
    /// # Errors
    /// `NotFound`; `ConditionFailed` if the blob has another tag; `ShortRead` if it ends inside `range`.
    async fn read(&self, name: &BlobName, range: Range<u64>, if_match: Option<&Tag>) -> Result<Bytes, BlobError>;

    /// At most `limit` names that begin with `prefix` (text, need not end at a `/`) and come after `after`, in
    /// byte order. Names below `.ferry/` only if `prefix` asks for them.
    ///
    /// # Errors
    /// The container could not be read.
    async fn list(&self, prefix: &str, after: Option<&BlobName>, limit: usize) -> Result<Vec<BlobName>, BlobError>;

    /// Removes a finished blob. One that is not there is no error.
    ///
    /// # Errors
    /// The blob is still there, or may be.
    async fn delete(&self, name: &BlobName) -> Result<(), BlobError>;

    /// Creates or replaces the small blob `name` if `condition` holds. Readers see the whole blob or none of it.
    ///
    /// # Errors
    /// `ConditionFailed` if `condition` does not hold; nothing has changed then.
    async fn put(
        &self,
        name: &BlobName,
        body: Bytes,
        meta: BlobMeta,
        condition: Condition,
    ) -> Result<BlobStat, BlobError>;

    /// Begins a blob that is written in parts. Nothing is visible under `name` before [`BlobStore::commit`].
    /// The answer must be recorded before the first part, or its leftovers have no owner.
    ///
    /// # Errors
    /// `NoSpace`, or the container cannot be written.
    async fn begin(&self, name: &BlobName, size_hint: Option<u64>) -> Result<Staged, BlobError>;

    /// Takes the one writer's place of `staged` among the processes of this machine, until the guard is dropped.
    /// Stores that cannot do so always agree; there the record's claim is what counts (core.md §3).
    ///
    /// # Errors
    /// `Locked` if another process writes it; `StagingLost` if there is no such staging.
    async fn exclusive(&self, staged: &Staged) -> Result<WriterGuard, BlobError>;

    /// Writes `bytes` at `offset`. Doing so twice is harmless. Where [`Limits::ordered`] is set, `offset` may not
    /// lie behind the bytes already there.
    ///
    /// # Errors
    /// `NoSpace` (a prefix may have been kept: ask [`BlobStore::parts`]); `StagingLost`.
    async fn write_part(&self, staged: &Staged, offset: u64, bytes: Bytes) -> Result<PartTag, BlobError>;

    /// Copies `range` of a finished blob of this same store to `offset` of `staged`, inside the store.
    ///
    /// # Errors
    /// As [`BlobStore::write_part`] and [`BlobStore::read`].
    async fn copy_part(
        &self,
        staged: &Staged,
        offset: u64,
        source: &BlobName,
        range: Range<u64>,
    ) -> Result<PartTag, BlobError>;

    /// What of `staged` is there, in order and without a gap; this is what a crash left.
    ///
    /// # Errors
    /// `StagingLost` if there is no such staging (any more).
    async fn parts(&self, staged: &Staged) -> Result<Parts, BlobError>;

    /// Forgets everything of `staged` at and behind `size`.
    ///
    /// # Errors
    /// `StagingLost`; `Invalid` if fewer bytes than `size` are there.
    async fn truncate(&self, staged: &Staged, size: u64) -> Result<(), BlobError>;

    /// Returns when the parts written so far survive a power loss.
    ///
    /// # Errors
    /// `SyncFailed`: what was written since the last sync must not be counted as stored, unless it is read again and
    /// compared. From then on reads show what is on the disk.
    async fn sync(&self, staged: &Staged) -> Result<(), BlobError>;

    /// Bytes of the staging, before they are visible: how a copy is checked on stores that attest nothing.
    ///
    /// # Errors
    /// `StagingLost`, `ShortRead`.
    async fn read_staged(&self, staged: &Staged, range: Range<u64>) -> Result<Bytes, BlobError>;

    /// Makes the blob visible under its name, whole, with its metadata, if `condition` holds; then the staging is
    /// gone. The caller compares what is attested, and reads back what is not.
    ///
    /// # Errors
    /// `StagingLost` if there is no such staging: the caller looks at the final name, for an earlier commit may
    /// have succeeded without an answer. `Mismatch` if the staged bytes are not `commit.size` many.
    /// `ConditionFailed`.
    async fn commit(&self, staged: &Staged, commit: Commit) -> Result<Attested, BlobError>;

    /// Returns when the finished blob `name` survives a power loss, whoever made it visible: who did may have died
    /// right then. Where whatever is visible is durable there is nothing to do.
    ///
    /// # Errors
    /// `NotFound`; `SyncFailed`: it is visible and may not last.
    async fn persist(&self, name: &BlobName) -> Result<(), BlobError> {
        let _visible_is_durable = name;
        Ok(())
    }

    /// At most `limit` stagings that nobody has written to since `since`, with the time when somebody last did. Their
    /// names are those under which the store keeps them. Stores that let unfinished data expire by themselves have
    /// none (faults.md 22).
    ///
    /// # Errors
    /// The container could not be read.
    async fn idle_stagings(&self, since: Timestamp, limit: usize) -> Result<Vec<(Staged, Timestamp)>, BlobError> {
        let (_they_expire, _all) = (since, limit);
        Ok(Vec::new())
    }

    /// Drops the staging and its bytes. One that is not there is no error.
    ///
    /// # Errors
    /// Something of it may be left.
    async fn abort(&self, staged: &Staged) -> Result<(), BlobError>;
}

/// Opens the store behind `url`, making its base folder if it has one and `create` is set.
///
/// # Errors
/// The container cannot be opened; the text names the URL.
pub fn open(url: &StoreUrl, syncing: Syncing, create: bool) -> Result<Arc<dyn BlobStore>, BlobError> {
    match url {
        StoreUrl::File(path) => Ok(Arc::new(LocalStore::open(path, syncing, create)?)),
    }
}

/// Opens the store behind `url` as a target of copies, making its base folder if it has one: always synced before
/// they count (core.md §3), and without a restart it goes on in a base folder that was made anew by hand.
///
/// # Errors
/// As [`open`].
pub fn open_target(url: &StoreUrl) -> Result<Arc<dyn BlobStore>, BlobError> {
    match url {
        StoreUrl::File(path) => {
            let store = LocalStore::open(path, Syncing::AtCommit, true)?;
            Ok(Arc::new(store.replaceable()))
        }
    }
}

/// A blob in the making: its future name, and the id of this staging of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    /// The name that it gets at commit.
    pub name: BlobName,
    /// Which staging of that name this is.
    pub id: StagedId,
}

/// Random, and part of every name that a store gives to unfinished data, so that two stagings of one name never
/// mix. Stores with ids of their own (S3 and GCS uploads) carry theirs here. Spec: core.md §6.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StagedId(String);

impl StagedId {
    /// A new random id.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4().simple().to_string())
    }

    /// The id's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Identifies one content of one blob: an `ETag`, or what stands for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag(pub(crate) String);

impl Tag {
    /// A store's own mark for one content, safe in a header.
    #[must_use]
    pub fn new(mark: impl Into<String>) -> Self {
        Self(mark.into())
    }

    /// The tag's text, safe in a header.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a store answers for one written part; needed again at commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartTag {
    /// Where the part begins.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
    /// The store's own mark for it, empty where it has none.
    pub tag: String,
}

/// What of a staging is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// End of the unbroken row of bytes from 0.
    pub contiguous: u64,
    /// The parts in that row, in order. Empty where parts have no marks of their own.
    pub tags: Vec<PartTag>,
    /// When the last of them was written, if the store knows.
    pub modified: Option<Timestamp>,
}

/// What [`BlobStore::commit`] needs.
#[derive(Clone, Debug)]
pub struct Commit {
    /// Answers of `write_part`, in order; empty where [`Parts::tags`] is.
    pub parts: Vec<PartTag>,
    /// The whole length.
    pub size: u64,
    /// Checksum of the whole, for stores that compare it themselves.
    pub crc: Crc64,
    /// What is written on the object.
    pub meta: BlobMeta,
    /// When to refuse.
    pub condition: Condition,
}

/// What the store itself says about a committed blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attested {
    /// Its size in bytes.
    pub size: u64,
    /// CRC-64/NVME of the whole as the store computed it, if it does.
    pub crc64: Option<u64>,
    /// Its tag.
    pub tag: Tag,
}

/// A finished blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobStat {
    /// Size in bytes.
    pub size: u64,
    /// When its content last changed.
    pub modified: Timestamp,
    /// Its tag.
    pub tag: Tag,
    /// Whose copy it is, if Ferry wrote it.
    pub identity: Option<Identity>,
}

/// Which upload a delivered object is, and what it holds. Spec: core.md §6, "Identity".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The upload.
    pub upload_id: UploadId,
    /// Checksum and length of the bytes as received.
    pub crc64nvme: Crc64,
}

/// What is written on an object beside its bytes. Spec: deliver.md §5.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlobMeta {
    /// Which upload this is.
    pub identity: Option<Identity>,
    /// User metadata, for stores that keep some.
    pub entries: BTreeMap<String, String>,
}

/// When a write may take place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Always.
    #[default]
    None,
    /// Only if there is no such blob.
    Absent,
    /// Only if the blob still has this tag.
    Matches(Tag),
}

/// Room in a container, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// In all.
    pub total: u64,
    /// Free to unprivileged writers.
    pub free: u64,
}

/// Held by the one writer of a staging; dropping it lets another one in.
#[derive(Debug)]
pub struct WriterGuard {
    _held: Option<Box<dyn Any + Send + Sync>>,
}

impl WriterGuard {
    /// A guard that keeps `held` until it is dropped.
    #[must_use]
    pub fn holding(held: impl Any + Send + Sync) -> Self {
        Self {
            _held: Some(Box::new(held)),
        }
    }
}
