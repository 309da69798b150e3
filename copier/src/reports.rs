//! Hands reports to their sinks. Spec: core.md §7, reports.md.
//!
//! Each sink has a lane of its own, so that one that is slow or away holds up no other. Within a lane reports go out
//! one after the other, in the order of the queue.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use shared::bus::{Bus, BusError, Consumer, Job};
use shared::failpoint::{self, Step};
use shared::failure::FailureClass;
use shared::message::{Queue, ReportWork, Work};
use shared::records::{RecordError, Records};
use shared::report::{Action, Sink, violations};
use shared::telemetry::{Chain, Metrics};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::retry::Policy;
use crate::trace;
use crate::worker::consumer;

/// Reports that are taken from the bus and not settled.
const PREFETCH: usize = 64;
/// A sink that does not answer in this time may or may not have the report.
const SINK_LIMIT: Duration = Duration::from_secs(30);

/// What the consumer of reports works with.
#[derive(Debug)]
pub(crate) struct Reports {
    pub(crate) records: Arc<dyn Records>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) policy: Policy,
    pub(crate) sinks: Vec<Arc<dyn Sink>>,
    pub(crate) stop: CancellationToken,
}

/// A report on its way to one sink.
#[derive(Debug)]
struct Letter {
    job: Job,
    work: Box<ReportWork>,
}

/// Hands out reports until the worker stops; what is handed over at that moment is finished.
pub(crate) async fn work(reports: Arc<Reports>, bus: Arc<dyn Bus>) {
    let mut lanes = JoinSet::new();
    let mut letters = HashMap::new();
    for sink in &reports.sinks {
        // Room for all that is not settled: a report that was put back would be overtaken by later ones.
        let (sender, receiver) = mpsc::channel(PREFETCH);
        letters.insert(sink.name(), sender);
        lanes.spawn(lane(reports.clone(), sink.clone(), receiver));
    }
    while let Some(consumer) = consumer(&*bus, Queue::Report, PREFETCH, &reports.stop).await {
        reports.sort(consumer, &letters).await;
    }
    drop(letters);
    while let Some(ended) = lanes.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "the lane of a report sink broke off");
        }
    }
}

async fn lane(reports: Arc<Reports>, sink: Arc<dyn Sink>, mut letters: mpsc::Receiver<Letter>) {
    while let Some(letter) = letters.recv().await {
        if reports.stop.is_cancelled() {
            continue; // dropped: it goes back
        }
        let id = letter.job.message.subject;
        let span = trace::report(&letter.job, sink.name(), &action(&letter.work.report));
        let handed_over = async {
            if let Err(error) = reports.deliver(&*sink, letter).await {
                tracing::warn!(upload_id = %id, sink = sink.name(), error = %Chain(&error), "a report may come again");
            }
        };
        handed_over.instrument(span).await;
    }
}

impl Reports {
    /// Brings what `consumer` yields to the lanes, until it is lost or the worker stops.
    async fn sort(&self, mut consumer: Consumer, lanes: &HashMap<&'static str, mpsc::Sender<Letter>>) {
        loop {
            let job = tokio::select! {
                () = self.stop.cancelled() => return,
                job = consumer.next() => job,
            };
            let Some(job) = job else {
                tracing::warn!(
                    queue = Queue::Report.as_str(),
                    "the bus lost this consumer; a new one is made"
                );
                return;
            };
            let id = job.message.subject;
            let settled = match Work::of(&job.message) {
                Ok(Work::Report(work)) => match lanes.get(work.sink.as_str()) {
                    Some(lane) => match lane.try_send(Letter { job, work }) {
                        Ok(()) => Ok(()),
                        Err(full) => full.into_inner().job.later(self.policy.shortest()).await,
                    },
                    // Its configuration may come back, or another process has it.
                    None => self.again(job, None, "no such report sink here").await,
                },
                Ok(_) => self.bury(job, "a copy job among the reports", "unreadable").await,
                Err(shared::message::Unreadable::NewerSchema(_)) => self.again(job, None, "of a newer version").await,
                Err(unreadable) => self.bury(job, &unreadable.to_string(), "unreadable").await,
            };
            if let Err(error) = settled {
                tracing::warn!(upload_id = %id, error = %Chain(&error), "a report may come again");
            }
        }
    }

    async fn deliver(&self, sink: &dyn Sink, letter: Letter) -> Result<(), BusError> {
        let Letter { job, work } = letter;
        let (id, action) = (job.message.subject, action(&work.report));
        match self.is_outdated(&job, &work).await {
            Ok(true) => {
                tracing::debug!(upload_id = %id, sink = sink.name(), "an older status is dropped");
                return job.ack().await;
            }
            Ok(false) => {}
            Err(error) => {
                let delay = self.policy.shortest();
                tracing::warn!(upload_id = %id, error = %Chain(&error), "whether a report is outdated is not known");
                return job.later(delay).await;
            }
        }
        let violations = violations(&work.report);
        if !violations.is_empty() {
            let rejected = &self.metrics.reports_rejected;
            rejected.with_label_values(&[sink.name()]).inc();
            tracing::error!(upload_id = %id, sink = sink.name(), action, ?violations, "a report of ours is not valid");
            return self.bury(job, &violations.join("; "), "permanent").await;
        }
        match tokio::time::timeout(SINK_LIMIT, sink.send(&work.report)).await {
            Ok(Ok(())) => {
                if let Err(injected) = failpoint::reached(Step::CopyReported).await {
                    return self.again(job, None, &injected.to_string()).await;
                }
                let sent = &self.metrics.reports_sent;
                sent.with_label_values(&[sink.name(), &action]).inc();
                let lag = Timestamp::now().duration_since(job.message.time);
                self.metrics.report_lag_seconds.set(lag.as_secs());
                job.ack().await
            }
            Ok(Err(error)) if error.class == FailureClass::Permanent => {
                self.metrics.reports_rejected.with_label_values(&[sink.name()]).inc();
                trace::note_failure(error.class.as_str());
                let reason = Chain(&error).to_string();
                self.bury(job, &reason, error.class.as_str()).await
            }
            Ok(Err(error)) => {
                let why = Chain(&error).to_string();
                trace::note_failure(error.class.as_str());
                self.again(job, error.retry_after, &why).await
            }
            Err(_) => {
                trace::note_failure("timeout");
                self.again(job, None, "no answer in time").await
            }
        }
    }

    /// Whether a newer status of the upload was made: the API replaces, so an older one must not follow it. Only
    /// what comes again can have been overtaken; the first time the order is the queue's.
    async fn is_outdated(&self, job: &Job, work: &ReportWork) -> Result<bool, RecordError> {
        let comes_again = job.redelivered > 0 || job.message.delay.is_some();
        if work.action != Action::UploadStatus || !comes_again || is_final_status(work) {
            return Ok(false);
        }
        match self.records.upload(job.message.subject).await {
            Ok(record) => Ok(record.seq > work.seq && record.completed.is_some()),
            Err(RecordError::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Puts `job` back. Reports count no attempts: their age decides, and only after `RETRY_MAX_AGE` one is given up.
    async fn again(&self, job: Job, retry_after: Option<Duration>, why: &str) -> Result<(), BusError> {
        let age = Timestamp::now().duration_since(job.message.time);
        match self.policy.by_age(age) {
            Some(delay) => {
                let delay = delay.max(retry_after.unwrap_or_default()).min(self.policy.longest());
                tracing::warn!(upload_id = %job.message.subject, error = why, ?delay, "a report is tried again");
                job.later(delay).await
            }
            None => self.bury(job, &format!("given up: {why}"), "transient").await,
        }
    }

    async fn bury(&self, job: Job, reason: &str, label: &str) -> Result<(), BusError> {
        self.metrics.dead_letters.with_label_values(&[label]).inc();
        // What is wrong with a message may quote it: the reason stands in the dead letter only.
        tracing::error!(upload_id = %job.message.subject, class = label, "a report is given up; its dead letter says why");
        job.bury(reason).await
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
