//! Why something failed, in the six classes that decide what happens next. Spec: faults.md, "The rules".

use serde::{Deserialize, Serialize};

/// Class of a failure of any store or report sink. It decides whether and when the work is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureClass {
    /// Time-out, reset, 429, 500, 503, no space: tried again after `RETRY_DELAYS`, then dead-lettered.
    Transient,
    /// 401, 403: parked without counting an attempt.
    Denied,
    /// No such container, bad TLS name, missing target: parked without counting an attempt.
    Configuration,
    /// The raw object is gone or unreadable.
    Source,
    /// Bytes differ from those received: once more from the beginning.
    Integrity,
    /// 400, too large, invalid name: dead-lettered at once.
    Permanent,
}

impl FailureClass {
    /// The class as it stands in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Denied => "denied",
            Self::Configuration => "configuration",
            Self::Source => "source",
            Self::Integrity => "integrity",
            Self::Permanent => "permanent",
        }
    }
}
