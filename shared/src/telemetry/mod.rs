//! Logs, traces and metrics. None of them ever makes the service wait. Spec: faults.md 74; http.md §4; security.md 12.

mod context;
mod derived;
mod escape;
mod export;
mod logs;
mod metrics;
mod process;
mod sync_errors;
mod traces;

use std::io;
use std::time::Duration;

pub use context::{Origin, SPANS, TraceContext, begin, here_or};
pub use logs::{Chain, dropped_lines};
pub use metrics::{Metrics, TEXT_FORMAT};
pub use sync_errors::{count_sync_error, sync_errors};

use crate::config::Common;
use export::Exporter;
use logs::Logs;

/// Keeps log and traces going. To be held by `main` until the process ends.
#[derive(Debug)]
#[must_use = "log and traces end when this is dropped"]
pub struct Telemetry {
    traces: Option<Exporter>,
    // Dropped last: the end of the traces may have something to say. It writes what still waits, for about a second.
    _logs: Logs,
}

/// Why a process has no log or no traces.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// It was set up a second time.
    #[error("the log of this process is set up already")]
    AlreadySetUp,
    /// The thread that sends spans.
    #[error("traces cannot be sent")]
    Traces(#[source] io::Error),
}

/// Starts log and traces of this process. Spec: faults.md 74.
///
/// # Errors
/// Both can be set up once; traces need a thread.
pub fn init(common: &Common) -> Result<Telemetry, InitError> {
    let (exporter, queue) = match &common.traces.export {
        Some(to) => {
            let (exporter, queue) = Exporter::start(to).map_err(InitError::Traces)?;
            (Some(exporter), Some(queue))
        }
        None => (None, None),
    };
    let tracer = traces::tracer(common.traces.sampler, queue);
    let logs = logs::init(common.log_format, tracer).map_err(|_| InitError::AlreadySetUp)?;
    Ok(Telemetry {
        traces: exporter,
        _logs: logs,
    })
}

impl Telemetry {
    /// Ends both. Spans that still wait are sent, for `limit` at most.
    pub fn end(self, limit: Duration) {
        if let Some(traces) = self.traces {
            traces.end(limit);
        }
    }
}
