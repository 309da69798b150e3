//! Where reports go. Spec: reports.md §5.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{GraphqlSink, JsonlSink, Report};
use crate::config::SinkConfig;
use crate::failure::FailureClass;

/// One place that takes reports. Each has its own queue entries and retries, so none holds up another.
#[async_trait]
pub trait Sink: fmt::Debug + Send + Sync + 'static {
    /// The sink as it stands in `REPORT_SINKS`, messages and metrics.
    fn name(&self) -> &'static str;

    /// How many reports it may be given at once. Those of one upload always go one after the other.
    fn at_once(&self) -> usize;

    /// Whether a report may still be taken after its sender gave it up or died: something between is holding it. A
    /// newer status is sent once more then. Spec: core.md §7.
    fn takes_late(&self) -> bool;

    /// Hands over one report. Doing so twice shows it twice, so a report that was taken is not sent again.
    /// A dropped future may or may not have handed it over.
    ///
    /// # Errors
    /// The report was not taken, or that is not known; the class says whether and when to try again.
    async fn send(&self, report: &Report) -> Result<(), SinkError>;

    /// Whether the sink would take a report now. Spec: http.md §2.
    ///
    /// # Errors
    /// What stands in the way, with its class.
    async fn check(&self) -> Result<(), SinkError>;
}

/// The sinks that are configured, in that order; one that does not answer within `limit` may or may not have a
/// report. None is touched yet: one that is away must not hold up a start.
///
/// # Errors
/// One cannot be used on this machine at all: it has no means for TLS.
pub fn sinks(configs: &[SinkConfig], limit: Duration) -> Result<Vec<Arc<dyn Sink>>, SinkError> {
    let sink = |config: &SinkConfig| -> Result<Arc<dyn Sink>, SinkError> {
        Ok(match config {
            SinkConfig::Jsonl(path) => Arc::new(JsonlSink::new(path)),
            SinkConfig::Graphql { url, token } => Arc::new(GraphqlSink::new(url, token.as_ref(), limit)?),
        })
    };
    configs.iter().map(sink).collect()
}

/// What is known of a report that a sink did not say it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The sink answered, and that is about this report: another one may get through.
    Refused,
    /// The sink answered that something failed: it may have been this report alone, and that may have been taken.
    Failed,
    /// It was not taken, and no other would be now.
    Away,
    /// No answer, or none that says: it may have been taken, or may still be.
    Unknown,
}

impl Fate {
    /// Whether another report may get through.
    #[must_use]
    pub fn is_of_this_one(self) -> bool {
        matches!(self, Self::Refused | Self::Failed)
    }

    /// Whether the sink may have the report, or may get it still.
    #[must_use]
    pub fn may_be_taken(self) -> bool {
        matches!(self, Self::Unknown | Self::Failed)
    }
}

/// A sink did not take a report.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {object}")] // without `source`: the log prints the whole chain
pub struct SinkError {
    /// What was tried.
    pub operation: &'static str,
    /// On what, without credentials.
    pub object: String,
    /// Whether and when it is tried again.
    pub class: FailureClass,
    /// What became of the report.
    pub fate: Fate,
    /// How long the sink asked to be left alone.
    pub retry_after: Option<Duration>,
    /// The driver's own error.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}
