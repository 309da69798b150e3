//! What a copier does when nothing, or nothing of its own, goes wrong.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use shared::checksum::Crc64;
use shared::foundation::Foundation;
use shared::message::{CopyDelivery, Source, Work};
use shared::outbox::Redrive;
use shared::report::Level;
use shared::store::{BlobMeta, BlobStore as _, Condition, Identity};
use shared::upload::{DeliveryState, UploadId};

use crate::site::{MIB, Site, pattern, until};

/// Promise 3: a copy is the file, and says whose it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_finished_upload_arrives_in_every_target_and_is_reported_once_for_each() {
    let site = Site::started();
    let body = pattern(5 * MIB + 17);
    let id = site.upload(&body).await;
    site.delivered(id).await;
    for target in ["dex", "edav"] {
        let delivery = site.delivery(id, target).await;
        let (stat, bytes) = site.object(&delivery).await.unwrap();
        assert!(bytes == body, "{target} has other bytes");
        let crc64nvme = Crc64::of(&body);
        assert_eq!(
            stat.identity,
            Some(Identity {
                upload_id: id,
                crc64nvme
            })
        );
        assert!(delivery.claim.is_none() && delivery.checkpoint.is_none() && delivery.issues.is_empty());
        assert!(site.staged(target).is_empty());
    }
    let success = |target: &str| (target.to_owned(), "SUCCESS".to_owned());
    assert_eq!(site.reports(id).await, [success("dex"), success("edav")]);
    let read = site.raw.read_bytes.load(Ordering::Relaxed);
    assert_eq!(read, body.len() as u64, "the source is read once for both targets");
    assert_eq!(site.foundation.metrics.memory_budget_used_bytes.get(), 0);
}

/// Row 25: the sizes at which something could begin or end too early.
#[tokio::test(flavor = "multi_thread")]
async fn files_of_no_byte_one_part_and_a_byte_more_arrive_whole() {
    let site = Site::started();
    for size in [0, 1, MIB, MIB + 1] {
        let body = pattern(size);
        let id = site.upload(&body).await;
        site.delivered(id).await;
        let (_, bytes) = site.object(&site.delivery(id, "dex").await).await.unwrap();
        assert!(bytes == body, "{size} bytes");
    }
}

/// Row 38, promise 4: at least once, with one effect.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_message_many_times_on_two_workers_makes_one_object_and_one_report() {
    let mut site = Site::new();
    let body = pattern(3 * MIB);
    let id = site.upload(&body).await;
    let crc = Crc64::of(&body);
    site.publish((0..6).map(|_| Site::announcement(id, crc)).collect())
        .await;
    let other = site.another_foundation();
    site.start();
    let second = site.another_copier(&other);
    site.delivered(id).await;
    site.publish(vec![Site::announcement(id, crc)]).await;
    assert_eq!(site.reports(id).await.len(), 2, "one per target");
    assert_eq!(site.dex.commits.load(Ordering::Relaxed), 1);
    assert_eq!(site.edav.commits.load(Ordering::Relaxed), 1);
    second.stop().await;
    site.stop().await;
}

/// Row 62, first half. The copy is there although no record says so: its worker died after the commit.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_holds_the_copy_already_counts_as_done() {
    let mut site = Site::new();
    let body = pattern(MIB);
    let id = site.upload(&body).await;
    let delivery = site.delivery(id, "dex").await;
    let meta = BlobMeta {
        identity: Some(Identity {
            upload_id: id,
            crc64nvme: Crc64::of(&body),
        }),
        ..BlobMeta::default()
    };
    site.dex
        .put(&delivery.to.object, Bytes::from(body), meta, Condition::None)
        .await
        .unwrap();
    site.start();
    site.delivered(id).await;
    assert_eq!(site.dex.written_bytes.load(Ordering::Relaxed), 0);
    assert_eq!(site.reports(id).await.len(), 2, "it is reported all the same");
    let skipped = &site.foundation.metrics.copy_skipped;
    assert_eq!(skipped.with_label_values(&["already-there"]).get(), 1);
}

/// Row 62, second half, and known-faults 6: not silently.
#[tokio::test(flavor = "multi_thread")]
async fn another_object_of_that_name_is_replaced_with_a_warning_that_names_it() {
    let mut site = Site::new();
    let body = pattern(MIB);
    let id = site.upload(&body).await;
    let stranger = UploadId::random();
    for (store, identity) in [
        (&site.dex, None),
        (
            &site.edav,
            Some(Identity {
                upload_id: stranger,
                crc64nvme: Crc64::of(b"old"),
            }),
        ),
    ] {
        let delivery = site.delivery(id, "dex").await;
        let meta = BlobMeta {
            identity,
            ..BlobMeta::default()
        };
        let old = Bytes::from_static(b"old");
        store
            .put(&delivery.to.object, old, meta, Condition::None)
            .await
            .unwrap();
    }
    site.start();
    site.delivered(id).await;
    for (target, text) in [("dex", "Ferry did not write"), ("edav", &*stranger.to_string())] {
        let delivery = site.delivery(id, target).await;
        assert!(site.object(&delivery).await.unwrap().1 == body);
        let [issue] = delivery.issues.as_slice() else {
            panic!("one issue: {:?}", delivery.issues)
        };
        assert!(
            issue.level == Level::Warning && issue.message.contains(text),
            "{issue:?}"
        );
    }
    site.quiet().await;
    let warned = |report: &serde_json::Value| report["stage_info"]["issues"][0]["level"] == json!("WARNING");
    assert_eq!(site.sink.reports().iter().filter(|report| warned(report)).count(), 2);
}

/// Row 39: what cannot be understood or done harms nobody.
#[tokio::test(flavor = "multi_thread")]
async fn work_that_can_never_be_done_is_buried_with_its_reason() {
    let site = Site::started();
    let unknown = UploadId::random();
    let mut odd = Site::announcement(unknown, Crc64::default());
    odd.kind = "copy.nothing".into();
    site.publish(vec![odd, Site::announcement(unknown, Crc64::default())])
        .await;
    let id = site.upload(b"good").await;
    site.delivered(id).await;
    site.quiet().await;
    let mut reasons: Vec<_> = site
        .dead_letters()
        .await
        .into_iter()
        .map(|letter| letter.reason)
        .collect();
    reasons.sort_unstable();
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    assert!(reasons[0].contains(&unknown.to_string()), "{reasons:?}");
    assert!(reasons[1].contains("copy.nothing"), "{reasons:?}");
}

/// A rolling update: messages of a newer version are neither lost nor a reason to stop.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_a_newer_ferry_is_kept_for_a_while() {
    let site = Site::started();
    let mut newer = Site::announcement(UploadId::random(), Crc64::default());
    newer.data["schema"] = json!(99);
    let mut old = newer.clone();
    old.id = uuid::Uuid::now_v7();
    old.time = Timestamp::now() - SignedDuration::from_mins(31);
    site.publish(vec![newer, old]).await;
    until("one to be delayed and one to be buried", || async {
        let depth = site.foundation.bus.depth(shared::message::Queue::Copy).await.unwrap();
        (depth.delayed == 1 && site.dead_letters().await.len() == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redriven_delivery_is_a_new_run_with_a_report_of_its_own_and_the_old_runs_messages_are_void() {
    let site = Site::started();
    let id = UploadId::random();
    let body = pattern(MIB);
    site.announce(id, Crc64::of(&body)).await; // without its object
    let failed = site.outcome(id, "dex").await;
    assert_eq!((failed.state, failed.run), (DeliveryState::Failed, 1));
    site.outcome(id, "edav").await;
    assert_eq!(site.reports(id).await.len(), 2);

    site.put_raw(id, &body).await;
    let Foundation {
        records, bus, outbox, ..
    } = site.foundation.clone();
    let source = Source::new("test");
    let redrive = Redrive::new(records, bus, outbox, source.clone());
    assert!(redrive.delivery(&failed).await.unwrap());
    let delivered = site
        .delivery_when(id, "dex", |delivery| delivery.run == 2 && delivery.state.is_final())
        .await;
    assert_eq!(delivered.state, DeliveryState::Succeeded);
    assert!(site.object(&delivered).await.unwrap().1 == body);

    let old = Work::CopyDelivery(CopyDelivery {
        target: "dex".into(),
        run: 1,
        seq: 1,
        force: true,
    });
    site.publish(vec![source.work(&old, id)]).await;
    let reports = site.reports(id).await;
    assert_eq!(reports.len(), 3, "two failures and one success: {reports:?}");
    let skipped = &site.foundation.metrics.copy_skipped;
    assert_eq!(skipped.with_label_values(&["superseded"]).get(), 1);
}
