//! One report on its way to its sink.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use shared::bus::{BusError, Job};
use shared::failpoint::{self, Step};
use shared::failure::FailureClass;
use shared::message::ReportWork;
use shared::records::RecordError;
use shared::report::{Action, Fate, Sink, violations};
use shared::telemetry::Chain;
use shared::upload::UploadId;
use tracing::Instrument as _;

use super::Reports;
use crate::trace;

/// A report, and how often it was tried since it was taken from the bus.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) job: Job,
    pub(super) work: Box<ReportWork>,
    pub(super) tries: u32,
    /// A status that says that all is there, and the sink may still take an older one: it is to come once more.
    pub(super) once_more: bool,
}

impl Letter {
    pub(super) fn new(job: Job, work: Box<ReportWork>) -> Self {
        Self {
            job,
            work,
            tries: 0,
            once_more: false,
        }
    }

    /// The API replaces a status by the one that it takes after it.
    pub(super) fn is_status(&self) -> bool {
        self.work.action == Action::UploadStatus
    }

    /// The last status of an upload says that all of it is there.
    pub(super) fn is_final_status(&self) -> bool {
        self.is_status() && is_final_status(&self.work)
    }
}

/// What became of a try.
#[derive(Debug)]
pub(super) enum Tried {
    /// The sink answered for good: it has the report, or never will.
    Answered,
    /// The sink has the report, which is on the bus to come once more.
    ComesOnceMore,
    /// The sink was not asked.
    Unasked,
    /// The report is to be tried again.
    Failed(Box<Letter>, Failed),
}

/// Why a report is to be tried again.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) fate: Fate,
    pub(super) retry_after: Option<Duration>,
    pub(super) why: String,
}

/// Tries `letter` once, and settles its message unless it is to be tried again.
pub(super) async fn deliver(reports: Arc<Reports>, sink: Arc<dyn Sink>, letter: Letter) -> Tried {
    let span = trace::report(&letter.job, sink.name(), &action(&letter.work.report));
    hand_over(&reports, &*sink, letter).instrument(span).await
}

async fn hand_over(reports: &Reports, sink: &dyn Sink, mut letter: Letter) -> Tried {
    let id = letter.job.message.subject;
    let tried = if letter.tries == 0 {
        before(reports, sink, letter).await
    } else {
        Ok(Ok(letter))
    };
    letter = match tried {
        Ok(Ok(letter)) => letter,
        Ok(Err(())) => return Tried::Unasked,
        Err(error) => {
            tracing::warn!(upload_id = %id, sink = sink.name(), error = %Chain(&error), "a report may come again");
            return Tried::Unasked;
        }
    };
    let failed = match tokio::time::timeout(reports.limit, sink.send(&letter.work.report)).await {
        Ok(Ok(())) => {
            let once_more = letter.once_more;
            let settled = taken(reports, sink, letter).await;
            let tried = answered(sink, id, settled);
            return if once_more { Tried::ComesOnceMore } else { tried };
        }
        Ok(Err(error)) if error.class == FailureClass::Permanent => {
            reports.metrics.reports_rejected.with_label_values(&[sink.name()]).inc();
            trace::note_failure(error.class.as_str());
            let reason = Chain(&error).to_string();
            let settled = reports.bury(letter.job, &reason, error.class.as_str()).await;
            return answered(sink, id, settled);
        }
        Ok(Err(error)) => {
            trace::note_failure(error.class.as_str());
            Failed {
                fate: error.fate,
                retry_after: error.retry_after,
                why: Chain(&error).to_string(),
            }
        }
        Err(_) => {
            trace::note_failure("timeout");
            Failed {
                fate: Fate::Unknown,
                retry_after: None,
                why: "no answer in time".to_owned(),
            }
        }
    };
    letter.tries += 1;
    Tried::Failed(Box::new(letter), failed)
}

fn answered(sink: &dyn Sink, id: UploadId, settled: Result<(), BusError>) -> Tried {
    if let Err(error) = settled {
        tracing::warn!(upload_id = %id, sink = sink.name(), error = %Chain(&error), "a report may come again");
    }
    Tried::Answered
}

async fn taken(reports: &Reports, sink: &dyn Sink, letter: Letter) -> Result<(), BusError> {
    if let Err(injected) = failpoint::reached(Step::CopyReported).await {
        return reports.again(letter.job, None, &injected.to_string()).await;
    }
    let action = action(&letter.work.report);
    let sent = &reports.metrics.reports_sent;
    sent.with_label_values(&[sink.name(), &action]).inc();
    if letter.once_more {
        // By then the older one was given up by whatever is holding it.
        return letter.job.later(reports.limit).await;
    }
    letter.job.ack().await
}

/// What is looked at before the first try. `Ok(Err)`: nothing is left to send.
async fn before(reports: &Reports, sink: &dyn Sink, letter: Letter) -> Result<Result<Letter, ()>, BusError> {
    let id = letter.job.message.subject;
    match is_outdated(reports, &letter.job, &letter.work).await {
        Ok(true) => {
            tracing::debug!(upload_id = %id, sink = sink.name(), "an older status is dropped");
            return letter.job.ack().await.map(Err);
        }
        Ok(false) => {}
        Err(error) => {
            let delay = reports.policy.shortest();
            tracing::warn!(upload_id = %id, error = %Chain(&error), "whether a report is outdated is not known");
            return letter.job.later(delay).await.map(Err);
        }
    }
    let violations = violations(&letter.work.report);
    if !violations.is_empty() {
        let rejected = &reports.metrics.reports_rejected;
        rejected.with_label_values(&[sink.name()]).inc();
        let action = action(&letter.work.report);
        tracing::error!(upload_id = %id, sink = sink.name(), action, ?violations, "a report of ours is not valid");
        let buried = reports.bury(letter.job, &violations.join("; "), "permanent").await;
        return buried.map(Err);
    }
    Ok(Ok(letter))
}

/// Whether a newer status of the upload was made: the API replaces, so an older one must not follow it. Only what
/// comes again can have been overtaken; the first time the order is the bus's.
async fn is_outdated(reports: &Reports, job: &Job, work: &ReportWork) -> Result<bool, RecordError> {
    let comes_again = job.redelivered > 0 || job.message.delay.is_some();
    if work.action != Action::UploadStatus || !comes_again || is_final_status(work) {
        return Ok(false);
    }
    match reports.records.upload(job.message.subject).await {
        Ok(record) => Ok(record.seq > work.seq && record.completed.is_some()),
        Err(RecordError::NotFound(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The action as it stands in the report.
fn action(report: &shared::report::Report) -> String {
    match serde_json::to_value(report.action()) {
        Ok(Value::String(action)) => action,
        _ => String::new(),
    }
}

/// The last status of an upload says that all of it is there.
fn is_final_status(work: &ReportWork) -> bool {
    let report = serde_json::to_value(&work.report).unwrap_or_default();
    let number = |field| report["content"][field].as_u64();
    number("offset") == number("size")
}
