//! A failed operation on one blob, and which class of failure it is.

use std::fmt;
use std::time::Duration;

use crate::failure::FailureClass;

/// A failed operation on one blob.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {container}/{name}: {kind}")] // without `source`: the log prints the whole chain
pub struct BlobError {
    /// What was tried.
    pub operation: BlobOp,
    /// The container, without credentials.
    pub container: String,
    /// The blob, or empty if the operation was about the container.
    pub name: String,
    /// What went wrong.
    pub kind: BlobErrorKind,
    /// When the server asked to be left alone until.
    pub retry_after: Option<Duration>,
    /// The driver's own error.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named after the methods of BlobStore")]
pub enum BlobOp {
    Open,
    Check,
    Stat,
    Read,
    List,
    Delete,
    Put,
    Begin,
    Exclusive,
    WritePart,
    CopyPart,
    Parts,
    Truncate,
    Sync,
    ReadStaged,
    Commit,
    Persist,
    Abort,
}

impl fmt::Display for BlobOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Check => "check",
            Self::Stat => "stat",
            Self::Read => "read",
            Self::List => "list",
            Self::Delete => "delete",
            Self::Put => "put",
            Self::Begin => "begin",
            Self::Exclusive => "lock",
            Self::WritePart => "write part of",
            Self::CopyPart => "copy part of",
            Self::Parts => "list parts of",
            Self::Truncate => "truncate",
            Self::Sync => "sync",
            Self::ReadStaged => "read back",
            Self::Commit => "commit",
            Self::Persist => "make durable",
            Self::Abort => "abort",
        })
    }
}

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobErrorKind {
    /// No such blob.
    NotFound,
    /// No such staging, any more.
    StagingLost,
    /// The condition of a write, or the tag of a read, did not hold.
    ConditionFailed,
    /// Another process holds it.
    Locked,
    /// The container is full.
    NoSpace,
    /// The server asked to go slower.
    Throttled,
    /// No answer in time: the outcome is unknown.
    TimedOut,
    /// Connection lost, 500, interrupted.
    Unavailable,
    /// A file or the disk could not be read or written.
    Io,
    /// What was written before may be gone although nothing said so: never to be tried again as if it could work.
    SyncFailed,
    /// Credentials missing, wrong or expired; permissions; a read-only file system.
    Denied,
    /// No such container, wrong endpoint, wrong TLS name.
    NoContainer,
    /// The blob ends before the range does.
    ShortRead,
    /// Size or checksum differ from what was written.
    Mismatch,
    /// A name or a request that this store can never take.
    Invalid,
}

/// On which side of a copy a store stands: "not found" means another thing on each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The raw container that is read.
    Source,
    /// A container that is written.
    Target,
}

impl BlobError {
    /// The class that decides about retries. Spec: faults.md.
    #[must_use]
    #[deny(clippy::wildcard_enum_match_arm)] // a new kind must choose its class
    pub fn class(&self, role: Role) -> FailureClass {
        use BlobErrorKind as Kind;
        match (self.kind, role) {
            (
                Kind::NotFound | Kind::ShortRead | Kind::Io | Kind::SyncFailed | Kind::Mismatch | Kind::Invalid,
                Role::Source,
            ) => FailureClass::Source,
            (Kind::Mismatch | Kind::ShortRead, Role::Target) => FailureClass::Integrity,
            (Kind::Invalid, Role::Target) => FailureClass::Permanent,
            (
                Kind::NotFound
                | Kind::StagingLost
                | Kind::ConditionFailed
                | Kind::Locked
                | Kind::NoSpace
                | Kind::Throttled
                | Kind::TimedOut
                | Kind::Unavailable
                | Kind::Io
                | Kind::SyncFailed,
                Role::Target,
            )
            | (
                Kind::StagingLost
                | Kind::ConditionFailed
                | Kind::Locked
                | Kind::NoSpace
                | Kind::Throttled
                | Kind::TimedOut
                | Kind::Unavailable,
                Role::Source,
            ) => FailureClass::Transient,
            (Kind::Denied, Role::Source | Role::Target) => FailureClass::Denied,
            (Kind::NoContainer, Role::Source | Role::Target) => FailureClass::Configuration,
        }
    }
}

impl fmt::Display for BlobErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFound => "not found",
            Self::StagingLost => "its unfinished data is gone",
            Self::ConditionFailed => "changed by somebody else",
            Self::Locked => "another process is writing it",
            Self::NoSpace => "no space left",
            Self::Throttled => "the store asks to go slower",
            Self::TimedOut => "no answer in time",
            Self::Unavailable => "not available",
            Self::Io => "input/output error",
            Self::SyncFailed => "could not be made durable",
            Self::Denied => "access denied",
            Self::NoContainer => "no such container",
            Self::ShortRead => "ends too early",
            Self::Mismatch => "stored bytes differ from those sent",
            Self::Invalid => "not possible on this store",
        })
    }
}
