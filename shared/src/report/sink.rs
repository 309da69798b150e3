//! Where reports go. Spec: reports.md §5.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{JsonlSink, Report};
use crate::config::SinkConfig;
use crate::failure::FailureClass;

/// One place that takes reports. Each has its own queue entries and retries, so none holds up another.
#[async_trait]
pub trait Sink: fmt::Debug + Send + Sync + 'static {
    /// The sink as it stands in `REPORT_SINKS`, messages and metrics.
    fn name(&self) -> &'static str;

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

/// The sinks that are configured, in that order. None is touched yet: one that is away must not hold up a start.
#[must_use]
pub fn sinks(configs: &[SinkConfig]) -> Vec<Arc<dyn Sink>> {
    configs
        .iter()
        .map(|config| match config {
            SinkConfig::Jsonl(path) => Arc::new(JsonlSink::new(path)) as Arc<dyn Sink>,
        })
        .collect()
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
    /// How long the sink asked to be left alone.
    pub retry_after: Option<Duration>,
    /// The driver's own error.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}
