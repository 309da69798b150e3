//! Why a copy did not come about, in the words that records, reports and logs use.

use std::time::Duration;

use shared::failpoint::Injected;
use shared::failure::FailureClass;
use shared::store::{BlobError, BlobErrorKind, BlobOp, Role};
use shared::telemetry::Chain;

/// A failed try of one delivery. [`crate::retry`] decides what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Decides about retries.
    pub(crate) class: FailureClass,
    /// The cause in one line, for `/info` and the report: names and kinds, never a driver's text.
    pub(crate) text: String,
    /// The whole chain, for the log: without the object's name, which is made of the sender's text (security.md 12).
    pub(crate) detail: String,
    /// The raw object is not there: it will not come back.
    pub(crate) source_gone: bool,
    /// What was staged so far may not be built upon.
    pub(crate) staging_spoiled: bool,
    /// How long the server asked to be left alone.
    pub(crate) retry_after: Option<Duration>,
}

impl Failure {
    /// A failure that no store reported.
    pub(crate) fn new(class: FailureClass, text: impl Into<String>) -> Self {
        let text = text.into();
        Self {
            class,
            detail: text.clone(),
            text,
            source_gone: false,
            staging_spoiled: class == FailureClass::Integrity,
            retry_after: None,
        }
    }

    /// The raw object could not be read. Texts: reports.md §3.
    pub(crate) fn of_source(error: &BlobError) -> Self {
        let (class, text) = match error.kind {
            BlobErrorKind::NotFound => (FailureClass::Source, "source file does not exist".to_owned()),
            // The conditional read noticed: what was copied so far is a mixture of two contents.
            BlobErrorKind::ConditionFailed => (
                FailureClass::Integrity,
                "the source file changed during the copy".to_owned(),
            ),
            kind => (
                error.class(Role::Source),
                format!("failed to read the source file: {kind}"),
            ),
        };
        Self {
            source_gone: error.kind == BlobErrorKind::NotFound,
            detail: detail(error),
            retry_after: error.retry_after,
            ..Self::new(class, text)
        }
    }

    /// The target did not take the copy. Texts: reports.md §3.
    pub(crate) fn of_target(error: &BlobError) -> Self {
        let BlobError {
            operation,
            container,
            name,
            kind,
            ..
        } = error;
        // Parts follow each other, so what is staged has become shorter than we left it: somebody cut it.
        let cut = *kind == BlobErrorKind::Invalid && *operation == BlobOp::WritePart;
        let class = if cut {
            FailureClass::Transient
        } else {
            error.class(Role::Target)
        };
        Self {
            staging_spoiled: class == FailureClass::Integrity || cut
                // After a failed sync the kernel takes the lost pages for written: a repetition would "succeed".
                || matches!(kind, BlobErrorKind::StagingLost | BlobErrorKind::SyncFailed),
            detail: detail(error),
            retry_after: error.retry_after,
            ..Self::new(
                class,
                format!("failed to upload file to {container} {name}: {operation}: {kind}"),
            )
        }
    }
}

impl From<Injected> for Failure {
    fn from(injected: Injected) -> Self {
        Self::new(FailureClass::Transient, injected.to_string())
    }
}

fn detail(error: &BlobError) -> String {
    let BlobError {
        operation,
        container,
        kind,
        source,
        ..
    } = error;
    match source {
        Some(source) => format!("{operation} {container}: {kind}: {}", Chain(source.as_ref())),
        None => format!("{operation} {container}: {kind}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(kind: BlobErrorKind) -> BlobError {
        BlobError {
            operation: BlobOp::WritePart,
            container: "/data/dex".into(),
            name: "2026/11/21/jane-doe.csv".into(),
            kind,
            retry_after: None,
            source: Some(std::io::Error::other("disk on fire").into()),
        }
    }

    #[test]
    fn people_are_told_which_file_it_was_and_the_log_why() {
        let failure = Failure::of_target(&error(BlobErrorKind::Io));
        assert_eq!(
            failure.text,
            "failed to upload file to /data/dex 2026/11/21/jane-doe.csv: write part of: input/output error"
        );
        assert_eq!(
            failure.detail,
            "write part of /data/dex: input/output error: disk on fire"
        );
    }

    #[test]
    fn a_staged_copy_that_somebody_cut_is_begun_anew() {
        let failure = Failure::of_target(&error(BlobErrorKind::Invalid));
        assert_eq!(
            (failure.class, failure.staging_spoiled),
            (FailureClass::Transient, true)
        );
    }

    #[test]
    fn only_a_source_that_is_not_there_is_gone() {
        for (kind, gone, class) in [
            (BlobErrorKind::NotFound, true, FailureClass::Source),
            (BlobErrorKind::Io, false, FailureClass::Source),
            (BlobErrorKind::ConditionFailed, false, FailureClass::Integrity),
            (BlobErrorKind::Unavailable, false, FailureClass::Transient),
        ] {
            let failure = Failure::of_source(&error(kind));
            assert_eq!((failure.source_gone, failure.class), (gone, class), "{kind:?}");
        }
    }
}
