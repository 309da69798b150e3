//! Hands reports to their sinks. Spec: core.md §7, reports.md.
//!
//! ```text
//!   bus ──► reports for jsonl   ──► lane ──► delivery ──► sink
//!       └─► reports for graphql ──► lane ──► delivery ──► sink
//! ```
//!
//! Each sink has a lane, and on the bus a row of reports, of its own: one that is slow or away holds up no other, and
//! its reports wait on the bus without anybody touching them, however many there are.

mod delivery;
mod lane;
mod pace;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use shared::bus::{Bus, BusError, Consumer, Job};
use shared::message::{Queue, Unreadable, Work};
use shared::records::Records;
use shared::report::Sink;
use shared::telemetry::{Chain, Metrics};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::retry::Policy;
use crate::worker::consumer;

/// How often it is counted what waits.
const MEASURE: Duration = Duration::from_secs(2);

/// What the consumers of reports work with.
#[derive(Debug)]
pub(crate) struct Reports {
    pub(crate) records: Arc<dyn Records>,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) policy: Policy,
    pub(crate) sinks: Vec<Arc<dyn Sink>>,
    /// A sink that does not answer in this time may or may not have the report.
    pub(crate) limit: Duration,
    pub(crate) stop: CancellationToken,
}

/// Hands out reports until the worker stops; what is handed over at that moment is finished.
pub(crate) async fn work(reports: Arc<Reports>) {
    let mut tasks = JoinSet::new();
    for sink in &reports.sinks {
        tasks.spawn(lane::run(reports.clone(), sink.clone()));
    }
    tasks.spawn(strays(reports.clone()));
    tasks.spawn(measure(reports.clone()));
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "the lane of a report sink broke off");
        }
    }
}

/// What is among the reports and in no sink's row: nothing that this version makes. An older one that still runs beside
/// it puts all reports there.
async fn strays(reports: Arc<Reports>) {
    let (bus, stop) = (&*reports.bus, &reports.stop);
    while let Some(mut consumer) = consumer(Queue::Report.as_str(), || bus.consume(Queue::Report, 1), stop).await {
        while let Some(job) = next(&mut consumer, stop).await {
            let id = job.message.subject;
            let settled = match Work::of(&job.message) {
                Err(Unreadable::NewerSchema(_)) => reports.again(job, None, "of a newer version").await,
                Ok(Work::Report(_)) => reports.sort(job).await,
                Ok(_) => reports.bury(job, "a copy job among the reports", "unreadable").await,
                Err(unreadable) => reports.bury(job, &unreadable.to_string(), "unreadable").await,
            };
            if let Err(error) = settled {
                tracing::warn!(upload_id = %id, error = %Chain(&error), "a message may come again");
            }
        }
    }
}

/// The next job; `None` when the consumer is lost or the worker stops.
async fn next(consumer: &mut Consumer, stop: &CancellationToken) -> Option<Job> {
    tokio::select! {
        () = stop.cancelled() => None,
        job = consumer.next() => job,
    }
}

/// Keeps the gauges of what waits: also for sinks that this process does not have.
async fn measure(reports: Arc<Reports>) {
    let mut tick = interval(MEASURE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let pending = &reports.metrics.reports_pending;
    let mut known: Vec<String> = reports.sinks.iter().map(|sink| sink.name().to_owned()).collect();
    loop {
        tokio::select! {
            () = reports.stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let backlogs = match reports.bus.backlogs().await {
            Ok(backlogs) => backlogs,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the waiting reports could not be counted");
                continue;
            }
        };
        for backlog in &backlogs {
            if !known.contains(&backlog.sink) {
                tracing::warn!(
                    sink = backlog.sink,
                    pending = backlog.pending,
                    "reports wait for a sink that this process does not have"
                );
                known.push(backlog.sink.clone());
            }
        }
        for sink in &known {
            let count = backlogs
                .iter()
                .find(|backlog| backlog.sink == *sink)
                .map_or(0, |backlog| backlog.pending);
            pending
                .with_label_values(&[sink])
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let oldest = backlogs.iter().map(|backlog| backlog.oldest).min();
        let lag = oldest.map_or(0, |oldest| Timestamp::now().duration_since(oldest).as_secs().max(0));
        reports.metrics.report_lag_seconds.set(lag);
    }
}

impl Reports {
    /// Puts `job` into the row of its sink.
    async fn sort(&self, job: Job) -> Result<(), BusError> {
        for published in self.bus.publish(vec![job.message.clone()]).await {
            if let Err(error) = published {
                let delay = self.policy.shortest();
                tracing::warn!(upload_id = %job.message.subject, error = %Chain(&error), "a report was not sorted");
                return job.later(delay).await;
            }
        }
        job.ack().await
    }

    /// Puts `job` off. Reports count no attempts: their age decides, and only after `RETRY_MAX_AGE` one is given up.
    async fn again(&self, job: Job, retry_after: Option<Duration>, why: &str) -> Result<(), BusError> {
        let age = Timestamp::now().duration_since(job.message.time);
        match self.policy.by_age(age) {
            Some(delay) => {
                let delay = delay.max(retry_after.unwrap_or_default()).min(self.policy.longest());
                tracing::warn!(upload_id = %job.message.subject, error = why, ?delay, "a report is put off");
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
