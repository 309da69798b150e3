//! What became of a delivery: one write of its record with the messages that follow, then their publication.
//! Spec: core.md §5, "Order in every consumer".

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use shared::claims::{Beating, Hold};
use shared::failpoint::{self, Injected, Step};
use shared::failure::FailureClass;
use shared::message::{CopyContinue, CopyDelivery, DeliveryOutcome, Event, Message, ReportWork, Source, Work};
use shared::outbox::{Outbox, OutboxError};
use shared::records::{RecordError, Records, Verdict};
use shared::report::{Issue, Level, Report, Status, Times};
use shared::store::StoreUrl;
use shared::telemetry::{Metrics, SPANS, TraceContext};
use shared::upload::{CopyCheckpoint, DeliveryRecord, DeliveryState};
use tokio_util::sync::CancellationToken;
use tracing::instrument;

use crate::failure::Failure;
use crate::reader::Upload;
use crate::retry::{Next, Policy, jitter};

/// One delivery in this worker's hands.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) upload: Arc<Upload>,
    /// The record as it was when it was taken.
    pub(crate) seen: DeliveryRecord,
    /// Deliver even if the target holds it.
    pub(crate) force: bool,
    pub(crate) hold: Arc<Hold>,
    /// Keeps the claim alive from when it is recorded until the outcome is.
    pub(crate) beating: Option<Beating>,
    /// Cancelled when somebody else took the claim.
    pub(crate) lost: CancellationToken,
    /// The record holds our claim.
    pub(crate) claimed: bool,
    /// When this worker took it up.
    pub(crate) began: Timestamp,
}

/// The outcome is not recorded and published; the message must come again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unsettled {
    /// The record is not ours any more: nothing was changed.
    #[error("somebody else has the delivery")]
    Overtaken,
    /// Nothing is known to be recorded.
    #[error("the outcome could not be recorded")]
    Record(#[from] RecordError),
    /// Recorded; the sweeper publishes it if nobody does before.
    #[error("what follows from the outcome could not be published")]
    Outbox(#[from] OutboxError),
}

/// The record is written; whoever wrote it does not learn that.
impl From<Injected> for Unsettled {
    fn from(injected: Injected) -> Self {
        Self::Record(injected.into())
    }
}

/// Writes outcomes.
#[derive(Debug)]
pub(crate) struct Outcomes {
    pub(crate) records: Arc<dyn Records>,
    pub(crate) outbox: Outbox,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) source: Source,
    pub(crate) policy: Policy,
    /// Names of the sinks that get a report.
    pub(crate) sinks: Vec<&'static str>,
    /// The raw container, for reports.
    pub(crate) raw: StoreUrl,
}

impl Outcomes {
    /// Claims the delivery and records where its bytes go, before the first of them.
    pub(crate) async fn claim(&self, lease: &mut Lease, checkpoint: CopyCheckpoint) -> Result<(), Unsettled> {
        let (claim, began) = (lease.hold.claim(), lease.began);
        let change = move |record: &mut DeliveryRecord| {
            record.state = DeliveryState::Claimed;
            record.claim = Some(claim.clone());
            record.checkpoint = Some(checkpoint.clone());
            record.next_attempt_at = None;
            record.first_tried_at.get_or_insert(began);
            // A slice that follows another one belongs to the same try.
            if record.finished_at.take().is_some() {
                record.started_at = None;
            }
            record.started_at.get_or_insert(began);
        };
        self.write(lease, Verdict::Write, change).await?;
        failpoint::reached(Step::CopyClaimed).await?;
        lease.claimed = true;
        lease.beating = Some(lease.hold.keep_beating(lease.lost.clone()));
        if lease.seen.finished_at.is_some() || lease.seen.started_at.is_none() {
            self.count_try(&lease.seen, "started");
        }
        Ok(())
    }

    /// Records how far the copy got; the bytes before it were synced.
    pub(crate) async fn checkpoint(&self, lease: &Lease, checkpoint: CopyCheckpoint) -> Result<(), Unsettled> {
        let change = move |record: &mut DeliveryRecord| record.checkpoint = Some(checkpoint.clone());
        self.write(lease, Verdict::Write, change).await?;
        Ok(failpoint::reached(Step::CopyCheckpointed).await?)
    }

    /// The object is in the target, verified. `written` bytes were written for it now; `None`: it was there.
    #[instrument(target = SPANS, name = "outcome", skip_all, fields(ferry.outcome = "succeeded"))]
    pub(crate) async fn succeeded(
        &self,
        lease: &Lease,
        warnings: Vec<Issue>,
        written: Option<u64>,
    ) -> Result<(), Unsettled> {
        let now = Timestamp::now();
        let messages = self.final_messages(lease, Status::Success, &warnings, now);
        let began = lease.began;
        let change = move |record: &mut DeliveryRecord| {
            record.state = DeliveryState::Succeeded;
            record.issues.clone_from(&warnings);
            end_try(record, began, now);
            record.checkpoint = None;
            record.outbox.extend(messages.iter().cloned());
        };
        let record = self.write(lease, Verdict::WriteDurably, change).await?;
        failpoint::reached(Step::CopyRecorded).await?;
        let target = record.to.target.as_str();
        let seconds = now.duration_since(record.started_at.unwrap_or(began)).as_secs_f64();
        let result = if written.is_some() { "succeeded" } else { "skipped" };
        self.metrics.copies.with_label_values(&[target, result]).inc();
        self.metrics.copy_seconds.observe(seconds);
        self.count_end(lease, "completed");
        if written == Some(lease.upload.size) && seconds > 0.0 {
            // Sizes beyond 2^52 bytes would lose digits that nobody measures.
            let speed = lease.upload.size as f64 / seconds;
            self.metrics.delivery_speed.with_label_values(&[target]).observe(speed);
        }
        tracing::info!(
            upload_id = %record.upload_id, target, size_bytes = lease.upload.size, written_bytes = written, seconds,
            attempts = record.attempts + 1, issues = ?record.issues, "delivered"
        );
        self.publish(record).await
    }

    /// What follows from a failure.
    pub(crate) fn next(&self, lease: &Lease, failure: &Failure) -> Next {
        // Attempts change only under the claim, so those that were seen are those of the record.
        self.policy.next(failure, &lease.seen, Timestamp::now(), jitter())
    }

    /// The try failed, and `next` follows from it; `kept` is the staging that it can go on from.
    #[instrument(target = SPANS, name = "outcome", skip_all, fields(
        ferry.outcome = next.as_str(), otel.status_code = "ERROR", error.type = failure.class.as_str()
    ))]
    pub(crate) async fn failed(
        &self,
        lease: &Lease,
        failure: &Failure,
        next: Next,
        kept: Option<CopyCheckpoint>,
    ) -> Result<(), Unsettled> {
        let now = Timestamp::now();
        let issues = vec![Issue {
            level: Level::Error,
            message: failure.text.clone(),
        }];
        let (state, delay, messages) = match &next {
            Next::Again { delay } => (DeliveryState::Pending, Some(*delay), Vec::new()),
            Next::Park { delay } => (DeliveryState::Parked, Some(*delay), Vec::new()),
            Next::Restart => (DeliveryState::Pending, None, Vec::new()),
            Next::Dead { reason } => {
                let mut messages = self.final_messages(lease, Status::Failure, &issues, now);
                let work = delivery_work(lease, lease.seen.seq);
                messages.push(self.source.dead_letter(&work, lease.upload.id, reason.clone()));
                (DeliveryState::Failed, None, messages)
            }
        };
        let counts = matches!(next, Next::Again { .. } | Next::Dead { .. });
        let restarts = next == Next::Restart;
        let again = self.again(lease, delay);
        let began = lease.began;
        let change = move |record: &mut DeliveryRecord| {
            record.state = state;
            record.issues.clone_from(&issues);
            end_try(record, began, now);
            record.checkpoint.clone_from(&kept);
            record.attempts += u32::from(counts);
            record.integrity_retried |= restarts;
            record.next_attempt_at = delay.map(|delay| later(now, delay));
            record.outbox.extend(messages.iter().cloned());
            if !state.is_final() {
                record.outbox.push(again(record.seq + 1));
            }
        };
        let record = self.write(lease, Verdict::WriteDurably, change).await?;
        failpoint::reached(Step::CopyRecorded).await?;
        self.count_end(lease, "failed");
        self.count_failure(&record, failure, &next);
        self.publish(record).await
    }

    /// The target is split off, or may hold no more of this worker now: its own message goes on with it after
    /// `delay`; the try does not count.
    #[instrument(target = SPANS, name = "outcome", skip_all, fields(ferry.outcome = "split-off"))]
    pub(crate) async fn split_off(
        &self,
        lease: &Lease,
        checkpoint: Option<CopyCheckpoint>,
        delay: Option<Duration>,
    ) -> Result<(), Unsettled> {
        let again = self.again(lease, delay);
        let now = Timestamp::now();
        let change = move |record: &mut DeliveryRecord| {
            pause(record, checkpoint.as_ref());
            if let Some(delay) = delay {
                record.state = DeliveryState::Parked;
                record.next_attempt_at = Some(later(now, delay));
            }
            record.outbox.push(again(record.seq + 1));
        };
        let record = self.write(lease, Verdict::Write, change).await?;
        failpoint::reached(Step::CopyCheckpointed).await?;
        let copied = copied(&record);
        tracing::info!(upload_id = %record.upload_id, target = record.to.target, copied, ?delay, "split off");
        self.publish(record).await
    }

    /// The slice is over. The last of the targets that go on together carries the message for all of them, so that
    /// it is sent only after each of them has recorded how far it got.
    #[instrument(target = SPANS, name = "outcome", skip_all, fields(ferry.outcome = "paused"))]
    pub(crate) async fn paused(
        &self,
        lease: &Lease,
        checkpoint: CopyCheckpoint,
        together: Option<Vec<String>>,
    ) -> Result<(), Unsettled> {
        let (source, id) = (self.source.here(), lease.upload.id);
        let change = move |record: &mut DeliveryRecord| {
            pause(record, Some(&checkpoint));
            if let Some(targets) = &together {
                let work = Work::CopyContinue(CopyContinue {
                    targets: targets.clone(),
                    seq: record.seq + 1,
                });
                record.outbox.push(source.work(&work, id));
            }
        };
        let record = self.write(lease, Verdict::Write, change).await?;
        failpoint::reached(Step::CopyCheckpointed).await?;
        tracing::debug!(upload_id = %id, target = record.to.target, copied = copied(&record), "slice ended");
        self.publish(record).await
    }

    /// Publishes what an earlier outcome left behind.
    ///
    /// # Errors
    /// Some of it is still in the record.
    pub(crate) async fn publish(&self, record: DeliveryRecord) -> Result<(), Unsettled> {
        self.outbox.publish_delivery(record).await?;
        Ok(())
    }

    /// Changes the record if it is still what this worker took.
    async fn write(
        &self,
        lease: &Lease,
        verdict: Verdict,
        mut change: impl FnMut(&mut DeliveryRecord) + Send + 'static,
    ) -> Result<DeliveryRecord, Unsettled> {
        let (hold, run, seq, claimed) = (lease.hold.clone(), lease.seen.run, lease.seen.seq, lease.claimed);
        let traceparent = TraceContext::current().map(|here| here.to_string());
        let edit = move |record: &mut DeliveryRecord| {
            let ours = if claimed {
                hold.is_ours(record.claim.as_ref())
            } else {
                // Before the claim is written nothing else may have happened to the record.
                record.seq == seq
            };
            if !ours || record.run != run || record.state.is_final() {
                return Verdict::Leave;
            }
            change(record);
            if traceparent.is_some() {
                record.traceparent.clone_from(&traceparent);
            }
            verdict
        };
        let target = &lease.seen.to.target;
        let edited = self
            .records
            .edit_delivery(lease.upload.id, target, Box::new(edit))
            .await?;
        if edited.written {
            Ok(edited.record)
        } else {
            Err(Unsettled::Overtaken)
        }
    }

    /// Makes the message of one target, for the `seq` that the record will have.
    fn again(&self, lease: &Lease, delay: Option<Duration>) -> impl Fn(u64) -> Message + Send + 'static {
        let (source, id) = (self.source.here(), lease.upload.id);
        let work = delivery_work(lease, 0);
        move |seq| {
            let mut work = work.clone();
            if let Work::CopyDelivery(delivery) = &mut work {
                delivery.seq = seq;
            }
            let message = source.work(&work, id);
            match delay {
                Some(delay) => message.after(delay),
                None => message,
            }
        }
    }

    /// One report per sink, and the event.
    fn final_messages(&self, lease: &Lease, status: Status, issues: &[Issue], now: Timestamp) -> Vec<Message> {
        let (upload, seen) = (&lease.upload, &lease.seen);
        let report = Report::blob_file_copy(
            upload.id,
            &upload.manifest,
            self.raw.location(&upload.id.blob_name()),
            &seen.to,
            status,
            issues.to_vec(),
            Times {
                start: seen.first_tried_at.unwrap_or(lease.began),
                end: now,
            },
        );
        let outcome = DeliveryOutcome {
            target: seen.to.target.clone(),
            url: seen.to.location.clone(),
            bytes: upload.size,
            crc64nvme: upload.crc.to_base64(),
            attempts: seen.attempts + 1,
            seconds: now.duration_since(upload.completed_at).as_secs_f64(),
        };
        let event = match status {
            Status::Success => Event::DeliverySucceeded(outcome),
            Status::Failure => Event::DeliveryFailed {
                outcome,
                error: issues.iter().map(|issue| issue.message.as_str()).collect(),
            },
        };
        let reports = self.sinks.iter().map(|sink| {
            let work = Work::Report(Box::new(ReportWork {
                sink: (*sink).to_owned(),
                action: report.action(),
                seq: seen.seq,
                report: report.clone(),
            }));
            self.source.work(&work, upload.id)
        });
        reports.chain([self.source.event(&event, upload.id)]).collect()
    }

    /// Counts the end of a try, and its begin if that was not recorded because the target was not reached.
    fn count_end(&self, lease: &Lease, result: &str) {
        if !lease.claimed {
            self.count_try(&lease.seen, "started");
        }
        self.count_try(&lease.seen, result);
    }

    fn count_try(&self, delivery: &DeliveryRecord, result: &str) {
        let labels = [delivery.to.target.as_str(), result];
        self.metrics.delivery_attempts.with_label_values(&labels).inc();
    }

    fn count_failure(&self, record: &DeliveryRecord, failure: &Failure, next: &Next) {
        let (target, class) = (record.to.target.as_str(), failure.class.as_str());
        if failure.class == FailureClass::Integrity {
            self.metrics.copy_integrity_errors.inc();
        }
        if let Next::Dead { .. } = next {
            self.metrics.copies.with_label_values(&[target, "failed"]).inc();
            self.metrics.dead_letters.with_label_values(&[class]).inc();
            tracing::error!(
                upload_id = %record.upload_id, target, class, attempts = record.attempts,
                error = failure.detail, "delivery given up"
            );
        } else {
            self.metrics.copy_retries.with_label_values(&[class]).inc();
            tracing::warn!(
                upload_id = %record.upload_id, target, class, attempts = record.attempts, ?next,
                error = failure.detail, "delivery failed, will be tried again"
            );
        }
    }
}

fn delivery_work(lease: &Lease, seq: u64) -> Work {
    Work::CopyDelivery(CopyDelivery {
        target: lease.seen.to.target.clone(),
        run: lease.seen.run,
        seq,
        force: lease.force,
    })
}

fn end_try(record: &mut DeliveryRecord, began: Timestamp, now: Timestamp) {
    record.claim = None;
    record.next_attempt_at = None;
    record.first_tried_at.get_or_insert(began);
    // Without a claim (the target was not even reached) this try has not been written down yet.
    if record.finished_at.is_some() || record.started_at.is_none() {
        record.started_at = Some(began);
    }
    record.finished_at = Some(now);
}

fn pause(record: &mut DeliveryRecord, checkpoint: Option<&CopyCheckpoint>) {
    record.state = DeliveryState::Pending;
    record.claim = None;
    if let Some(checkpoint) = checkpoint {
        record.checkpoint = Some(checkpoint.clone());
    }
}

fn copied(record: &DeliveryRecord) -> u64 {
    record
        .checkpoint
        .as_ref()
        .map_or(0, |checkpoint| checkpoint.copied.covered())
}

fn later(now: Timestamp, delay: Duration) -> Timestamp {
    let delay = SignedDuration::try_from(delay).unwrap_or(SignedDuration::MAX);
    now.checked_add(delay).unwrap_or(Timestamp::MAX)
}
