//! One sink's way: reports in the order of the bus, several at once if the sink bears that, those of one upload always
//! one after the other.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use shared::bus::{BusError, Consumer, Job};
use shared::message::{Unreadable, Work};
use shared::report::{Fate, Sink};
use shared::telemetry::Chain;
use shared::upload::UploadId;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::Reports;
use super::delivery::{Letter, Tried, deliver};
use super::pace::Pace;
use crate::worker::consumer;

/// Reports that are taken from the bus and not settled.
const HELD: usize = 64;
/// A report that was tried so often, one time after the other, makes room: the trouble may be its own.
const TRIES: u32 = 3;
/// Uploads that are remembered because of a status without an answer.
const LATE: usize = 4096;

/// Hands the reports for `sink` over until the worker stops.
pub(super) async fn run(reports: Arc<Reports>, sink: Arc<dyn Sink>) {
    let bus = &*reports.bus;
    let what = sink.name();
    let delays = [reports.policy.shortest(), reports.policy.longest()];
    let mut pace = Pace::new(sink.at_once(), delays);
    while let Some(consumer) = consumer(what, || bus.consume_reports(what, HELD), &reports.stop).await {
        let lane = Lane {
            reports: &reports,
            sink: &sink,
            waiting: VecDeque::new(),
            busy: HashSet::new(),
            running: JoinSet::new(),
            late: HashSet::new(),
        };
        lane.serve(consumer, &mut pace).await;
    }
}

struct Lane<'a> {
    reports: &'a Arc<Reports>,
    sink: &'a Arc<dyn Sink>,
    /// In order; dropped, they go back.
    waiting: VecDeque<Letter>,
    /// Uploads of which a report is on its way.
    busy: HashSet<UploadId>,
    running: JoinSet<(UploadId, u64, Tried)>,
    /// Uploads of which the sink may still take a first status that we gave up. Spec: core.md §7; faults.md 73.
    late: HashSet<UploadId>,
}

impl Lane<'_> {
    /// Until the consumer is lost or the worker stops; what is on its way then is finished.
    async fn serve(mut self, mut consumer: Consumer, pace: &mut Pace) {
        loop {
            self.start(pace);
            let paused = !self.waiting.is_empty() && self.running.is_empty();
            let room = self.waiting.len() + self.running.len() < HELD;
            tokio::select! {
                () = self.reports.stop.cancelled() => break,
                Some(ended) = self.running.join_next() => match ended {
                    Ok((id, round, tried)) => self.ended(id, round, tried, pace).await,
                    Err(error) => {
                        tracing::error!(sink = self.sink.name(), %error, "handing over a report broke off");
                        break; // its upload is not known: everything comes again
                    }
                },
                job = consumer.next(), if room => match job {
                    Some(job) => self.take(job).await,
                    None => {
                        tracing::warn!(sink = self.sink.name(), "the bus lost this consumer; a new one is made");
                        break;
                    }
                },
                () = sleep_until(pace.resume_at()), if paused => {}
            }
        }
        drop(consumer);
        self.waiting.clear();
        while let Some(ended) = self.running.join_next().await {
            if let Err(error) = ended {
                tracing::error!(sink = self.sink.name(), %error, "handing over a report broke off");
            }
        }
    }

    /// Sends what may be sent now.
    fn start(&mut self, pace: &Pace) {
        let mut at = 0;
        let mut behind = HashSet::new();
        while at < self.waiting.len() && pace.admits(self.running.len(), Instant::now()) {
            let id = self.waiting[at].job.message.subject;
            if self.busy.contains(&id) || behind.contains(&id) {
                behind.insert(id);
                at += 1;
                continue;
            }
            let Some(mut letter) = self.waiting.remove(at) else {
                return;
            };
            letter.once_more = letter.is_final_status() && self.late.contains(&id);
            self.busy.insert(id);
            let (reports, sink, round) = (self.reports.clone(), self.sink.clone(), pace.round());
            self.running
                .spawn(async move { (id, round, deliver(reports, sink, letter).await) });
        }
    }

    async fn take(&mut self, job: Job) {
        let id = job.message.subject;
        let settled = match Work::of(&job.message) {
            Ok(Work::Report(work)) => {
                self.waiting.push_back(Letter::new(job, work));
                return;
            }
            Ok(_) => {
                self.reports
                    .bury(job, "a copy job among the reports", "unreadable")
                    .await
            }
            Err(Unreadable::NewerSchema(_)) => self.reports.again(job, None, "of a newer version").await,
            Err(unreadable) => self.reports.bury(job, &unreadable.to_string(), "unreadable").await,
        };
        self.note(id, settled);
    }

    async fn ended(&mut self, id: UploadId, round: u64, tried: Tried, pace: &mut Pace) {
        self.busy.remove(&id);
        match tried {
            Tried::Answered | Tried::ComesOnceMore => {
                if matches!(tried, Tried::ComesOnceMore) {
                    self.late.remove(&id);
                }
                if !pace.is_well() {
                    tracing::info!(sink = self.sink.name(), "the sink takes reports again");
                }
                pace.answered();
            }
            Tried::Unasked => {}
            Tried::Failed(letter, failed) => {
                if pace.is_well() {
                    tracing::warn!(
                        sink = self.sink.name(),
                        error = failed.why,
                        "the sink does not take reports"
                    );
                }
                pace.failed(id, round, failed.fate, failed.retry_after, Instant::now());
                let may_be_taken = failed.fate.may_be_taken() && self.sink.takes_late();
                if may_be_taken && letter.is_status() && !letter.is_final_status() && self.late.len() < LATE {
                    self.late.insert(id);
                }
                if failed.fate == Fate::Refused || letter.tries >= TRIES {
                    let again = self.reports.again(letter.job, failed.retry_after, &failed.why);
                    let settled = again.await;
                    self.note(id, settled);
                } else {
                    // In front of all of its upload.
                    self.waiting.push_front(*letter);
                }
            }
        }
    }

    fn note(&self, id: UploadId, settled: Result<(), BusError>) {
        if let Err(error) = settled {
            let sink = self.sink.name();
            tracing::warn!(upload_id = %id, sink, error = %Chain(&error), "a report may come again");
        }
    }
}
