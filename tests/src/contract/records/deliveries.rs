//! The commit of an upload, its deliveries, and the outboxes of both.

use std::sync::Arc;

use futures_util::future::join_all;
use shared::checksum::Crc64;
use shared::message::{Event, Message, Queue, Route, Source};
use shared::records::{Records, Verdict};
use shared::report::{Issue, Level};
use shared::store::{Staged, StagedId};
use shared::upload::{Claim, CopyCheckpoint, DeliveryRecord, DeliveryState, OwnerId, UploadId, UploadState};

use super::{
    LIMIT, RecordsSite, created, deliveries, edit_delivery, edit_upload, published, sample, set_delivery, upload,
};
use crate::wait::within;

/// A reader in another process never sees the upload committed without its deliveries, nor the other way round.
/// Promise 2 of DESIGN.md hangs on it: what is committed and has no delivery would never be looked for.
pub async fn deliveries_are_there_the_moment_an_upload_is_committed(site: &dyn RecordsSite) {
    let (writer, reader) = (site.open().await, site.open().await);
    for _ in 0..20 {
        let id = created(&*writer).await.id;
        let watched = tokio::spawn(watch_the_commit(reader.clone(), id));
        let committing = writer.edit_upload(
            id,
            Box::new(|record| {
                sample::commit(record, &["edav", "dex"]);
                Verdict::WriteDurably
            }),
        );
        let committed = committing.await.expect("commit").record;
        assert!(committed.state.is_committed());
        within("the reader sees the commit", LIMIT, watched)
            .await
            .expect("the reader");
        let found = deliveries(&*reader, id).await;
        let targets: Vec<&str> = found.iter().map(|delivery| delivery.to.target.as_str()).collect();
        assert_eq!(targets, ["dex", "edav"], "by target name");
        for delivery in found {
            assert_eq!(delivery.upload_id, id);
            assert!(
                committed.targets.contains(&delivery.to),
                "the name resolved by the upload"
            );
            assert_eq!(delivery.state, DeliveryState::Pending);
            assert_eq!((delivery.run, delivery.attempts), (1, 0));
            assert!(delivery.outbox.is_empty(), "the upload's message is the work");
            assert_eq!(delivery.claim, None);
        }
    }
}

async fn watch_the_commit(records: Arc<dyn Records>, id: UploadId) {
    loop {
        let before = deliveries(&*records, id).await.len();
        let committed = upload(&*records, id).await.state.is_committed();
        let after = deliveries(&*records, id).await.len();
        assert!(before == 0 || before == 2, "{before} of two deliveries");
        assert!(
            before == 0 || committed,
            "deliveries of an upload that is not committed"
        );
        assert!(!committed || after == 2, "committed with {after} of two deliveries");
        if committed {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// An upload that came whole in one request is recorded once, as committed.
pub async fn an_upload_that_is_created_committed_has_its_deliveries(site: &dyn RecordsSite) {
    let records = site.open().await;
    let mut record = sample::receiving(UploadId::random());
    sample::commit(&mut record, &["dex", "edav"]);
    let sent = record.outbox.len();
    let answered = records.create(record).await.expect("create");
    if site.publishes_itself() {
        assert_eq!((answered.state, answered.outbox.len()), (UploadState::Published, 0));
    } else {
        assert_eq!((answered.state, answered.outbox.len()), (UploadState::Committed, sent));
    }
    assert_eq!(upload(&*records, answered.id).await, answered);
    let found = deliveries(&*records, answered.id).await;
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().all(|delivery| delivery.state == DeliveryState::Pending));
}

/// What a worker recorded is not undone by a later write of the upload; `/route` may add a target.
pub async fn a_later_edit_leaves_deliveries_alone_and_adds_those_of_new_targets(site: &dyn RecordsSite) {
    let records = site.open().await;
    let id = published(&*records, &["dex", "edav"]).await.id;
    let done = set_delivery(&*records, id, "dex", DeliveryState::Succeeded).await;
    let waiting = deliveries(&*records, id).await[1].clone();
    edit_upload(&*records, id, |record| record.reconciled += 1).await;
    assert_eq!(deliveries(&*records, id).await, [done.clone(), waiting.clone()]);

    edit_upload(&*records, id, |record| {
        let more = sample::resolved(record.id, &["archive"]);
        record.targets.extend(more);
    })
    .await;
    let found = deliveries(&*records, id).await;
    assert_eq!(found.len(), 3);
    assert_eq!(found[0].to.target, "archive");
    assert_eq!(found[0].state, DeliveryState::Pending);
    assert_eq!(found[1..], [done, waiting]);
}

/// No field of a delivery is lost on its way to the store and back, and the other target's is not touched.
pub async fn an_edit_of_a_delivery_changes_that_delivery_only(site: &dyn RecordsSite) {
    let records = site.open().await;
    let before_upload = published(&*records, &["dex", "edav"]).await;
    let id = before_upload.id;
    let before = deliveries(&*records, id).await;
    let time = |text: &str| -> jiff::Timestamp { text.parse().expect("a valid time") };
    let (staged, owner) = (StagedId::random(), OwnerId::random());
    let mut expected = before[1].clone();
    let fill = move |record: &mut DeliveryRecord| {
        record.state = DeliveryState::Parked;
        record.run = 3;
        record.attempts = 5;
        record.integrity_retried = true;
        record.first_tried_at = Some(time("2024-03-07T05:09:08.123456789Z"));
        record.started_at = Some(time("2024-03-07T05:09:09Z"));
        record.finished_at = Some(time("2024-03-07T05:09:10.5Z"));
        record.next_attempt_at = Some(time("2031-01-01T00:00:00.000000001Z"));
        record.claim = Some(Claim {
            owner: owner.clone(),
            fence: u64::from(u32::MAX),
            beat: 2,
        });
        record.checkpoint = Some(CopyCheckpoint {
            staged: Staged {
                name: record.to.object.clone(),
                id: staged.clone(),
            },
            copied: Crc64::known(u64::MAX, 1 << 55),
        });
        record.issues = vec![Issue {
            level: Level::Warning,
            message: "zwei\nZeilen \"und\" \u{0}".to_owned(),
        }];
        record.reconciled = 9;
    };
    let edited = edit_delivery(&*records, id, "edav", fill.clone()).await;
    assert_eq!(edited.seq, before[1].seq + 1, "every write raises seq by one");
    fill(&mut expected);
    expected.seq = edited.seq;
    assert_eq!(edited, expected);
    assert_eq!(deliveries(&*records, id).await, [before[0].clone(), edited]);
    assert_eq!(
        upload(&*records, id).await,
        before_upload,
        "a delivery is a record of its own"
    );
}

/// Thirty at once on one delivery, from two processes, while its neighbour is edited too.
pub async fn concurrent_edits_of_a_delivery_all_count(site: &dyn RecordsSite) {
    let processes = [site.open().await, site.open().await];
    let id = published(&*processes[0], &["dex", "edav"]).await.id;
    let before = deliveries(&*processes[0], id).await;
    let edits = (0..60).map(|n| {
        let records = processes[n % 2].clone();
        let target = if n / 2 % 2 == 0 { "dex" } else { "edav" };
        tokio::spawn(async move { edit_delivery(&*records, id, target, |record| record.attempts += 1).await })
    });
    for edited in within("sixty edits", LIMIT, join_all(edits)).await {
        edited.expect("an edit");
    }
    for (before, after) in before.iter().zip(deliveries(&*processes[1], id).await) {
        assert_eq!(
            (after.attempts, after.seq),
            (30, before.seq + 30),
            "{}",
            after.to.target
        );
    }
}

/// Messages stay until somebody says that the bus has them, through any other change; a committed upload is
/// published when its work message is.
pub async fn the_outbox_is_kept_until_it_is_marked(site: &dyn RecordsSite) {
    let records = site.open().await;
    let id = created(&*records).await.id;
    let committed = edit_upload(&*records, id, |record| sample::commit(record, &["dex"])).await;
    if site.publishes_itself() {
        assert!(committed.outbox.is_empty(), "the bus took it in the same write");
        assert_eq!(committed.state, UploadState::Published);
        assert_eq!(upload(&*records, id).await, committed);
        return;
    }
    assert_eq!(committed.state, UploadState::Committed);
    let messages: Vec<Message> = committed.outbox;
    assert_eq!(messages.len(), 2);
    let touched = edit_upload(&*records, id, |record| record.reconciled += 1).await;
    assert_eq!(touched.outbox, messages);
    assert_eq!(upload(&*records, id).await.outbox, messages);

    let event = messages[1].id;
    let told = edit_upload(&*records, id, move |record| record.mark_published(&[event])).await;
    assert_eq!(told.outbox, messages[..1]);
    assert_eq!(told.state, UploadState::Committed, "no state waits for an event");
    let work = messages[0].id;
    let announced = edit_upload(&*records, id, move |record| record.mark_published(&[work])).await;
    assert!(announced.outbox.is_empty());
    assert_eq!(announced.state, UploadState::Published);
    assert_eq!(upload(&*records, id).await, announced);
}

/// The same for what follows from the outcome of a delivery.
pub async fn a_deliverys_outbox_is_kept_until_it_is_marked(site: &dyn RecordsSite) {
    let records = site.open().await;
    let id = published(&*records, &["dex"]).await.id;
    let failed = edit_delivery(&*records, id, "dex", |record| {
        let event = Event::UploadTerminated {
            reason: "any event".to_owned(),
        };
        record.state = DeliveryState::Failed;
        record.outbox = vec![
            Source::new("contract").event(&event, record.upload_id),
            sample::work(Queue::Report, 1),
            sample::dead(Queue::Copy, "given up", 2),
        ];
    })
    .await;
    if site.publishes_itself() {
        assert!(failed.outbox.is_empty(), "the bus took it in the same write");
        assert_eq!(deliveries(&*records, id).await, [failed]);
        return;
    }
    assert_eq!(failed.outbox.len(), 3);
    assert!(matches!(failed.outbox[2].route, Route::Dead { .. }));
    assert_eq!(deliveries(&*records, id).await, std::slice::from_ref(&failed));
    let ids = [failed.outbox[0].id, failed.outbox[2].id];
    let now = jiff::Timestamp::now();
    let marked = edit_delivery(&*records, id, "dex", move |record| record.mark_published(&ids, now)).await;
    assert_eq!(marked.outbox, failed.outbox[1..2]);
    assert_eq!(deliveries(&*records, id).await, [marked]);
}
