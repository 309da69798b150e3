//! Uploads and deliveries: their identities, records and states. Spec: core.md §1–§4.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::boot::BootId;
use crate::checksum::Crc64;
use crate::manifest::Manifest;
use crate::message::Message;
use crate::report::Issue;
use crate::store::{BlobName, Staged};

/// Identifies one upload: a UUID v4, so that it never carries a sender's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UploadId(Uuid);

/// Text that is no upload id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an upload id")]
pub struct NotAnUploadId;

impl UploadId {
    /// A new random id.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// The id's 16 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The id that these 16 bytes are.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// Name of the finished upload in the raw container.
    #[must_use]
    pub fn blob_name(&self) -> BlobName {
        BlobName::new(self.to_string()).expect("a UUID is a single, plain component")
    }
}

impl FromStr for UploadId {
    type Err = NotAnUploadId;

    /// Takes the hyphenated form only: other spellings of a UUID were never given out.
    fn from_str(text: &str) -> Result<Self, NotAnUploadId> {
        match Uuid::try_parse(text) {
            Ok(uuid) if text.len() == 36 => Ok(Self(uuid)),
            _ => Err(NotAnUploadId),
        }
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Everything that is recorded of one upload. The messages that follow from a state are in the same write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UploadRecord {
    /// The upload.
    pub id: UploadId,
    /// Raised by every change.
    pub seq: u64,
    /// Where it stands.
    pub state: UploadState,
    /// Its declared length in bytes; `None` while that is deferred.
    pub length: Option<u64>,
    /// `Upload-Metadata` as it came, for HEAD. `None`: the sender gave none.
    pub metadata: Option<String>,
    /// The metadata as text, with `upload_id` and `dex_ingest_datetime` added (manifests.md §7).
    pub manifest: Manifest,
    /// Created.
    pub created_at: Timestamp,
    /// Last change of the record.
    pub changed_at: Timestamp,
    /// Where the bytes go while they come.
    pub staged: Staged,
    /// Set while a checksummed PATCH runs: the offset that a wrong checksum or a crash goes back to (core.md §3).
    pub verified_offset: Option<u64>,
    /// Checksum of the first bytes, so that a restart reads only what came after them.
    pub checkpoint: Crc64,
    /// What of the staged bytes is known to be on the disk.
    #[serde(default)]
    pub on_disk: OnDisk,
    /// Who finishes it now.
    pub claim: Option<Claim>,
    /// Set when it is committed.
    pub completed: Option<Completed>,
    /// Targets and names, resolved once, when it is committed.
    pub targets: Vec<ResolvedTarget>,
    /// How often its work message was published again (core.md §5, reconciliation).
    pub reconciled: u32,
    /// W3C trace context of the request that made it, then of its finishing: what goes on without a request follows
    /// that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// Messages that follow from this state and are not known to be on the bus.
    pub outbox: Vec<Message>,
}

/// What of an upload's staged bytes is known to be on the disk, for whoever finds them after a crash.
/// Spec: core.md §3; faults.md 12, 14, 16.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnDisk {
    /// Bytes from the start that were synced.
    pub synced: u64,
    /// In which start of the machine the bytes behind them came: they are there for as long as that lasts. `None`: a
    /// sync of them failed, so that they may be gone although nothing says so.
    pub written_in: Option<BootId>,
    /// What is wrong with them.
    pub trouble: Option<Trouble>,
}

/// What is wrong with stored bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trouble {
    /// They could not be read when they were needed; that is tried again.
    Unreadable,
    /// Some are missing, or are not those received: nothing more is done with the upload.
    Lost,
}

/// States of an upload. Spec: core.md §2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UploadState {
    /// Bytes are taken.
    Receiving,
    /// All bytes are there; the object is being made whole.
    Committing,
    /// The object is whole, its deliveries and messages are recorded.
    Committed,
    /// The work message is on the bus.
    Published,
    /// Deleted by the sender; its object goes when its deliveries are final.
    Terminating,
    /// Deleted: a tombstone, 410 for 7 days.
    Terminated,
    /// Never finished in time: a tombstone, 410 for 7 days.
    Expired,
    /// Held back by the scanner.
    Quarantined,
}

impl UploadState {
    /// All states, in the order of an upload's life.
    pub const ALL: [Self; 8] = [
        Self::Receiving,
        Self::Committing,
        Self::Committed,
        Self::Published,
        Self::Terminating,
        Self::Terminated,
        Self::Expired,
        Self::Quarantined,
    ];

    /// The state as it stands in records, metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Receiving => "receiving",
            Self::Committing => "committing",
            Self::Committed => "committed",
            Self::Published => "published",
            Self::Terminating => "terminating",
            Self::Terminated => "terminated",
            Self::Expired => "expired",
            Self::Quarantined => "quarantined",
        }
    }

    /// The upload's URL is gone: 410 until the tombstone is removed.
    #[must_use]
    pub fn is_gone(self) -> bool {
        matches!(self, Self::Terminating | Self::Terminated | Self::Expired)
    }

    /// Whole and announced, or about to be.
    #[must_use]
    pub fn is_committed(self) -> bool {
        matches!(self, Self::Committed | Self::Published)
    }
}

impl UploadRecord {
    /// Some process still has to do something about it. Deliveries are looked at for themselves.
    #[must_use]
    pub fn needs_attention(&self) -> bool {
        !self.outbox.is_empty()
            || match self.state {
                UploadState::Receiving
                | UploadState::Committing
                | UploadState::Committed
                | UploadState::Terminating
                | UploadState::Quarantined => true,
                UploadState::Published | UploadState::Terminated | UploadState::Expired => false,
            }
    }

    /// Staged bytes that are known to be there whatever happened to the machine, unless the disk lost them.
    #[must_use]
    pub fn promised(&self) -> u64 {
        self.checkpoint.covered().max(self.on_disk.synced)
    }

    /// Takes the messages `ids` out of the outbox, because the bus has them. A committed upload whose work message
    /// was among them is published.
    pub fn mark_published(&mut self, ids: &[Uuid]) {
        let announced = self
            .outbox
            .iter()
            .any(|message| message.is_work() && ids.contains(&message.id));
        self.outbox.retain(|message| !ids.contains(&message.id));
        if announced && self.state == UploadState::Committed {
            self.state = UploadState::Published;
        }
    }
}

/// What is known of an upload once it is whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Completed {
    /// Checksum and length of the bytes as received.
    pub crc64nvme: Crc64,
    /// When the last byte was there.
    pub at: Timestamp,
}

/// One target of an upload, and the name its object gets there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedTarget {
    /// The target's name in routes, reports, `/info` and metrics.
    pub target: String,
    /// The object's name in the target's container.
    pub object: BlobName,
    /// Where that is, for reports.
    pub location: String,
}

/// The right to change a record's object. Spec: core.md §5, "Claims".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The process that has it.
    pub owner: OwnerId,
    /// Raised whenever it is taken; a holder with a lower one has lost it.
    pub fence: u64,
    /// Raised by the holder every 5 s, so that others see that it lives.
    pub beat: u64,
}

/// One process, for as long as it runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OwnerId(String);

impl OwnerId {
    /// A new random id.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4().simple().to_string())
    }

    /// The id's text: 32 hexadecimal digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Everything that is recorded of one upload's way into one target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeliveryRecord {
    /// The upload.
    pub upload_id: UploadId,
    /// Target, name and location, resolved when the upload was committed.
    pub to: ResolvedTarget,
    /// Raised by every change.
    pub seq: u64,
    /// Where it stands.
    pub state: DeliveryState,
    /// Which run this is, from 1: a redrive opens a new one (core.md §1).
    pub run: u32,
    /// Tries of this run that failed and count.
    pub attempts: u32,
    /// An integrity failure happened in this run: the next one is final.
    pub integrity_retried: bool,
    /// First try of this run.
    pub first_tried_at: Option<Timestamp>,
    /// Begin of the present or last try.
    pub started_at: Option<Timestamp>,
    /// End of the last try.
    pub finished_at: Option<Timestamp>,
    /// When it is tried again.
    pub next_attempt_at: Option<Timestamp>,
    /// Who copies it now.
    pub claim: Option<Claim>,
    /// How far an unfinished copy got.
    pub checkpoint: Option<CopyCheckpoint>,
    /// What went wrong last, or a warning about a success.
    pub issues: Vec<Issue>,
    /// When its work message was last handed to the bus.
    pub published_at: Timestamp,
    /// How often reconciliation published it again.
    pub reconciled: u32,
    /// W3C trace context of the last work on it, first of the upload's finishing: what comes again follows that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// Messages that follow from this state and are not known to be on the bus.
    pub outbox: Vec<Message>,
}

/// States of a delivery. Spec: core.md §2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeliveryState {
    /// Waits for a worker, or for its next try.
    Pending,
    /// A worker copies it.
    Claimed,
    /// Waits without counting attempts, until its target is usable again.
    Parked,
    /// The object is in the target, verified.
    Succeeded,
    /// Given up; in the dead letters until it is redriven.
    Failed,
}

impl DeliveryState {
    /// All states.
    pub const ALL: [Self; 5] = [
        Self::Pending,
        Self::Claimed,
        Self::Parked,
        Self::Succeeded,
        Self::Failed,
    ];

    /// The state as it stands in records, metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Claimed => "claimed",
            Self::Parked => "parked",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }

    /// Nothing more happens by itself.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// How far an unfinished copy got. Recorded only after the bytes before it were synced (core.md §6).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyCheckpoint {
    /// The staging that holds the bytes.
    pub staged: Staged,
    /// Checksum and length of the bytes copied.
    pub copied: Crc64,
}

impl DeliveryRecord {
    /// The delivery of `upload_id` to `to` as it is when the upload is committed.
    #[must_use]
    pub fn pending(upload_id: UploadId, to: ResolvedTarget, now: Timestamp) -> Self {
        Self {
            upload_id,
            to,
            seq: 1,
            state: DeliveryState::Pending,
            run: 1,
            attempts: 0,
            integrity_retried: false,
            first_tried_at: None,
            started_at: None,
            finished_at: None,
            next_attempt_at: None,
            claim: None,
            checkpoint: None,
            issues: Vec::new(),
            published_at: now,
            reconciled: 0,
            traceparent: None,
            outbox: Vec::new(),
        }
    }

    /// Some process still has to do something about it.
    #[must_use]
    pub fn needs_attention(&self) -> bool {
        !self.outbox.is_empty() || !self.state.is_final()
    }

    /// Takes the messages `ids` out of the outbox, because the bus has them.
    pub fn mark_published(&mut self, ids: &[Uuid], now: Timestamp) {
        if self
            .outbox
            .iter()
            .any(|message| message.is_work() && ids.contains(&message.id))
        {
            self.published_at = now;
        }
        self.outbox.retain(|message| !ids.contains(&message.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_form_that_was_given_out_is_an_upload_id() {
        let id = UploadId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in [
            "",
            "../../etc/passwd",
            "3f0c9a526f0e4f1b9d3a2b7c1e5a8d90",
            "{3f0c9a52-6f0e-4f1b-9d3a-2b7c1e5a8d90}",
        ] {
            assert_eq!(bad.parse::<UploadId>(), Err(NotAnUploadId));
        }
    }
}
