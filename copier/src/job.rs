//! The life of one copy job: what its message asks for, checked against the records, done, and settled.
//! Spec: core.md §5, bus.md "Consuming".

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use shared::bus::{BusError, Job};
use shared::claims::ClaimKey;
use shared::failpoint::{self, Step};
use shared::message::{Message, Queue, Unreadable, Work};
use shared::records::RecordError;
use shared::telemetry::Chain;
use shared::upload::{DeliveryRecord, UploadId, UploadRecord, UploadState};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::Engine;
use crate::outcome::Lease;
use crate::reader::Upload;
use crate::trace;
use crate::transfer;

/// How long messages of a newer Ferry are put back: a rolling update takes minutes.
const NEWER_SCHEMA_PATIENCE: SignedDuration = SignedDuration::from_mins(30);
/// The pause before such a message is looked at again.
const NEWER_SCHEMA_DELAY: Duration = Duration::from_secs(30);
/// A retry may come this much before its time.
const EARLY: SignedDuration = SignedDuration::from_secs(1);
/// For this long the process that made a message is left alone to publish it.
const PUBLISHING: SignedDuration = SignedDuration::from_secs(15);
/// The next slice's message may be here before the last one has let go of the delivery: it waits so often, so long.
const LETTING_GO: (u32, Duration) = (100, Duration::from_millis(10));

/// What becomes of a job's message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Everything that it asks for is recorded, and what follows is on the bus.
    Done,
    /// It comes again.
    Later(Duration),
    /// It can never be done.
    Bury(String),
}

/// Does what `job` asks for and settles it. Dropped midway, the job goes back.
pub(crate) async fn settle(engine: Arc<Engine>, job: Job) {
    let span = trace::job(&job, Queue::Copy);
    settle_job(engine, job).instrument(span).await;
}

async fn settle_job(engine: Arc<Engine>, job: Job) {
    let message = &job.message;
    let (id, kind) = (message.subject, message.kind.clone());
    let fate = match fate(&engine, message).await {
        Ok(fate) => fate,
        Err(error) => {
            tracing::warn!(upload_id = %id, kind, error = %Chain(&error), "the job comes again");
            Fate::Later(engine.outcomes.policy.shortest())
        }
    };
    let settled = match fate {
        Fate::Done => acknowledge(job).await,
        // What was not done because this worker stops is for another one, now.
        Fate::Later(_) if engine.stop.is_cancelled() => return drop(job),
        Fate::Later(delay) => job.later(delay).await,
        Fate::Bury(reason) => {
            engine.metrics.dead_letters.with_label_values(&["unreadable"]).inc();
            // What is wrong with a message may quote it: the reason stands in the dead letter only.
            tracing::error!(upload_id = %id, kind, "the job cannot be done; the dead letter says why");
            job.bury(&reason).await
        }
    };
    if let Err(error) = settled {
        tracing::warn!(upload_id = %id, kind, error = %Chain(&error), "the job was not settled and may come again");
    }
}

async fn acknowledge(job: Job) -> Result<(), BusError> {
    job.ack().await?;
    Ok(failpoint::reached(Step::CopyAcknowledged).await?)
}

async fn fate(engine: &Arc<Engine>, message: &Message) -> Result<Fate, RecordError> {
    let shortest = engine.outcomes.policy.shortest();
    let work = match understand(message, Timestamp::now()) {
        Ok(work) => work,
        Err(fate) => return Ok(fate),
    };
    let record = match engine.records.upload(message.subject).await {
        Ok(record) => record,
        Err(error @ RecordError::NotFound(_)) => return Ok(Fate::Bury(error.to_string())),
        Err(error) => return Err(error),
    };
    let upload = match finished(record) {
        Ok(upload) => Arc::new(upload),
        // Announced before it is committed: the record is a moment behind, or a scanner holds the file.
        Err(UploadState::Quarantined) => return Ok(Fate::Later(engine.outcomes.policy.longest())),
        Err(state) if state.is_gone() => return Ok(Fate::Bury(format!("the upload is {}", state.as_str()))),
        Err(_) => return Ok(Fate::Later(shortest)),
    };
    let deliveries = deliveries(engine, upload.id, &work).await?;
    if let Work::CopyDelivery(asked) = &work
        && !deliveries.iter().any(|delivery| delivery.to.target == asked.target)
    {
        return Ok(Fate::Bury(format!("no record of a delivery to {}", asked.target)));
    }
    let mut leases = Vec::new();
    let mut fate = Fate::Done;
    for delivery in deliveries {
        match choose(&work, &delivery, Timestamp::now(), engine.outcomes.policy.longest()) {
            Choice::NotAsked => {}
            Choice::Skip(reason) => {
                engine.metrics.copy_skipped.with_label_values(&[reason]).inc();
                if !publish_leftovers(engine, &delivery).await {
                    fate = Fate::Later(shortest);
                }
            }
            Choice::NotYet(delay) => fate = Fate::Later(delay),
            Choice::Take { force } => match take(engine, &upload, delivery, force).await {
                Some(lease) => leases.push(lease),
                None => fate = Fate::Later(shortest),
            },
        }
    }
    if !leases.is_empty() && !transfer::run(engine, &upload, leases).await {
        fate = Fate::Later(shortest);
    }
    Ok(fate)
}

fn understand(message: &Message, now: Timestamp) -> Result<Work, Fate> {
    match Work::of(message) {
        Ok(Work::Report(_)) => Err(Fate::Bury("a report among the copy jobs".to_owned())),
        Ok(work) => Ok(work),
        Err(Unreadable::NewerSchema(_)) if now.duration_since(message.time) < NEWER_SCHEMA_PATIENCE => {
            Err(Fate::Later(NEWER_SCHEMA_DELAY))
        }
        Err(unreadable) => Err(Fate::Bury(unreadable.to_string())),
    }
}

/// The upload as copies need it. Its state does not matter once it was committed: a deleted upload still gets what
/// was announced (spec/tus.md).
fn finished(record: UploadRecord) -> Result<Upload, UploadState> {
    match record.completed {
        Some(completed) if record.state != UploadState::Quarantined => Ok(Upload {
            id: record.id,
            size: completed.crc64nvme.covered(),
            crc: completed.crc64nvme,
            manifest: record.manifest,
            completed_at: completed.at,
        }),
        _ => Err(record.state),
    }
}

/// The deliveries of an upload, once nobody in this process is just letting go of one that `work` is about.
async fn deliveries(engine: &Engine, id: UploadId, work: &Work) -> Result<Vec<DeliveryRecord>, RecordError> {
    let (times, pause) = LETTING_GO;
    for _ in 0..times {
        let deliveries = engine.records.deliveries(id).await?;
        let letting_go = |delivery: &DeliveryRecord| {
            let key = ClaimKey::Delivery(id, delivery.to.target.clone());
            let is_asked = asks_for(work, &delivery.to.target);
            is_asked && delivery.claim.is_none() && !delivery.state.is_final() && engine.claims.is_held_here(&key)
        };
        if !deliveries.iter().any(letting_go) {
            return Ok(deliveries);
        }
        tokio::time::sleep(pause).await;
    }
    engine.records.deliveries(id).await
}

/// Whether `work` is about the copy to `target`.
fn asks_for(work: &Work, target: &str) -> bool {
    match work {
        Work::CopyUpload(_) => true,
        Work::CopyContinue(work) => work.targets.iter().any(|asked| asked == target),
        Work::CopyDelivery(work) => work.target == target,
        Work::Report(_) => false,
    }
}

/// What a message means for one delivery.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    /// Nothing.
    NotAsked,
    /// It was done, is obsolete, or has a message of its own.
    Skip(&'static str),
    /// It waits for its next try.
    NotYet(Duration),
    /// It is to be done now.
    Take { force: bool },
}

/// The record decides, whatever message comes: so it may come twice, late, or out of order. The messages' `seq` is
/// not looked at, because beats and publications raise the record's as well.
fn choose(work: &Work, delivery: &DeliveryRecord, now: Timestamp, longest: Duration) -> Choice {
    if !asks_for(work, &delivery.to.target) {
        return Choice::NotAsked;
    }
    let (run, force) = match work {
        Work::CopyDelivery(work) => (Some(work.run), work.force),
        Work::CopyUpload(_) | Work::CopyContinue(_) | Work::Report(_) => (None, false),
    };
    if run.is_some_and(|run| run < delivery.run) {
        return Choice::Skip("superseded");
    }
    if delivery.state.is_final() {
        return Choice::Skip("final");
    }
    let waits = delivery.next_attempt_at.map(|due| due.duration_since(now));
    match waits {
        Some(waits) if waits > EARLY => {
            // A wait that a step of the clock has made longer than any is cut (core.md §5).
            let waits = Duration::try_from(waits).unwrap_or_default().min(longest);
            match run {
                // It may be the retry's own message, come early: acknowledged, it would be the last one.
                Some(_) => Choice::NotYet(waits),
                None => Choice::Skip("handed-on"),
            }
        }
        _ => Choice::Take { force },
    }
}

/// Takes `delivery`; `None` if somebody else has it.
async fn take(engine: &Engine, upload: &Arc<Upload>, delivery: DeliveryRecord, force: bool) -> Option<Lease> {
    if !publish_leftovers(engine, &delivery).await {
        return None;
    }
    // What was just published changed the record: the message comes again, to the record as it is then.
    if !delivery.outbox.is_empty() {
        return None;
    }
    let key = ClaimKey::Delivery(upload.id, delivery.to.target.clone());
    let Some(hold) = engine.claims.take(key, delivery.claim.as_ref()).await else {
        engine.metrics.copy_skipped.with_label_values(&["claimed"]).inc();
        return None;
    };
    Some(Lease {
        upload: upload.clone(),
        seen: delivery,
        force,
        hold: Arc::new(hold),
        beating: None,
        lost: CancellationToken::new(),
        claimed: false,
        began: Timestamp::now(),
    })
}

/// Publishes what an outcome left in the record, if whoever made it is not about to. Answers whether nothing is left.
async fn publish_leftovers(engine: &Engine, delivery: &DeliveryRecord) -> bool {
    let Some(newest) = delivery.outbox.iter().map(|message| message.time).max() else {
        return true;
    };
    if Timestamp::now().duration_since(newest) < PUBLISHING {
        return false;
    }
    match engine.outcomes.publish(delivery.clone()).await {
        Ok(()) => true,
        Err(error) => {
            let target = delivery.to.target.as_str();
            tracing::warn!(upload_id = %delivery.upload_id, target, error = %Chain(&error), "not published");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use shared::checksum::Crc64;
    use shared::message::{CopyContinue, CopyDelivery, CopyUpload, Source};
    use shared::store::BlobName;
    use shared::upload::{DeliveryState, ResolvedTarget};

    use super::*;

    const LONGEST: Duration = Duration::from_secs(3600);

    fn delivery(state: DeliveryState, run: u32, due_in: Option<i64>, now: Timestamp) -> DeliveryRecord {
        let to = ResolvedTarget {
            target: "dex".into(),
            object: BlobName::new("x").unwrap(),
            location: "/dex/x".into(),
        };
        DeliveryRecord {
            state,
            run,
            next_attempt_at: due_in.map(|seconds| now + SignedDuration::from_secs(seconds)),
            ..DeliveryRecord::pending(UploadId::random(), to, now)
        }
    }

    fn upload_work(now: Timestamp) -> Work {
        Work::CopyUpload(CopyUpload {
            seq: 1,
            size: 0,
            crc64nvme: Crc64::default(),
            manifest: None,
            created_at: now,
            completed_at: now,
        })
    }

    fn delivery_work(target: &str, run: u32, force: bool) -> Work {
        Work::CopyDelivery(CopyDelivery {
            target: target.into(),
            run,
            seq: 1,
            force,
        })
    }

    fn continue_work(target: &str) -> Work {
        Work::CopyContinue(CopyContinue {
            targets: vec!["other".into(), target.into()],
            seq: 1,
        })
    }

    /// Row 38: whatever comes twice, late or out of order is done once.
    #[test]
    fn the_record_decides_what_a_message_still_means() {
        use DeliveryState::{Claimed, Failed, Parked, Pending, Succeeded};
        let now = Timestamp::now();
        let seconds = Duration::from_secs;
        let table = [
            (
                upload_work(now),
                delivery(Pending, 1, None, now),
                Choice::Take { force: false },
            ),
            (
                upload_work(now),
                delivery(Claimed, 1, None, now),
                Choice::Take { force: false },
            ),
            (
                upload_work(now),
                delivery(Succeeded, 1, None, now),
                Choice::Skip("final"),
            ),
            (upload_work(now), delivery(Failed, 1, None, now), Choice::Skip("final")),
            (
                upload_work(now),
                delivery(Parked, 1, Some(60), now),
                Choice::Skip("handed-on"),
            ),
            (
                upload_work(now),
                delivery(Parked, 1, Some(-60), now),
                Choice::Take { force: false },
            ),
            (
                delivery_work("dex", 1, false),
                delivery(Pending, 2, None, now),
                Choice::Skip("superseded"),
            ),
            (
                delivery_work("dex", 2, false),
                delivery(Pending, 2, None, now),
                Choice::Take { force: false },
            ),
            (
                delivery_work("dex", 2, true),
                delivery(Pending, 2, None, now),
                Choice::Take { force: true },
            ),
            (
                delivery_work("dex", 1, true),
                delivery(Succeeded, 1, None, now),
                Choice::Skip("final"),
            ),
            (
                delivery_work("dex", 1, false),
                delivery(Pending, 1, Some(60), now),
                Choice::NotYet(seconds(60)),
            ),
            (
                delivery_work("dex", 1, false),
                delivery(Pending, 1, Some(999_999), now),
                Choice::NotYet(LONGEST),
            ),
            (
                delivery_work("dex", 1, false),
                delivery(Pending, 1, Some(1), now),
                Choice::Take { force: false },
            ),
            (
                delivery_work("edav", 1, false),
                delivery(Pending, 1, None, now),
                Choice::NotAsked,
            ),
            (
                continue_work("dex"),
                delivery(Pending, 1, None, now),
                Choice::Take { force: false },
            ),
            (
                continue_work("dex"),
                delivery(Pending, 1, Some(60), now),
                Choice::Skip("handed-on"),
            ),
            (continue_work("edav"), delivery(Pending, 1, None, now), Choice::NotAsked),
        ];
        for (work, delivery, expected) in table {
            let choice = choose(&work, &delivery, now, LONGEST);
            assert_eq!(
                choice, expected,
                "{work:?} on {:?}, run {}",
                delivery.state, delivery.run
            );
        }
    }

    #[test]
    fn a_message_of_a_newer_ferry_waits_half_an_hour_and_an_unreadable_one_not_at_all() {
        let mut message = Source::new("copier").work(&delivery_work("dex", 1, false), UploadId::random());
        let now = message.time;
        assert!(understand(&message, now).is_ok());
        message.data["schema"] = serde_json::json!(2);
        assert_eq!(
            understand(&message, now + SignedDuration::from_mins(29)),
            Err(Fate::Later(NEWER_SCHEMA_DELAY))
        );
        let late = understand(&message, now + SignedDuration::from_mins(31));
        assert!(matches!(late, Err(Fate::Bury(reason)) if reason.contains("schema 2")));
        message.data = serde_json::json!({ "schema": 1 });
        assert!(matches!(understand(&message, now), Err(Fate::Bury(_))));
        message.kind = "copy.nothing".into();
        assert!(matches!(understand(&message, now), Err(Fate::Bury(_))));
    }
}
