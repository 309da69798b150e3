//! Every call of a store has a deadline. Spec: faults.md, rule 4.

use std::future::Future;
use std::time::Duration;

use shared::failure::FailureClass;
use shared::store::{BlobError, BlobErrorKind};

use crate::failure::Failure;

/// For calls that move bytes: a part that needs longer is a transient failure (core.md §6).
pub(crate) const PART_LIMIT: Duration = Duration::from_secs(600);
/// For calls that move no bytes, and for the bytes of one read of the source: longer is silence (faults.md 52, 57).
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(30);

/// A store's answer within `limit`; none in time is a transient failure of unknown outcome.
pub(crate) async fn within<T>(
    limit: Duration,
    operation: &str,
    call: impl Future<Output = Result<T, BlobError>>,
    failure: fn(&BlobError) -> Failure,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map_err(|error| failure(&error)),
        Err(_) => Err(Failure::new(
            FailureClass::Transient,
            format!("{operation}: {} in {} s", BlobErrorKind::TimedOut, limit.as_secs()),
        )),
    }
}
