//! Reports on their way to a sink.

use std::time::Duration;

use jiff::Timestamp;
use shared::failure::FailureClass;
use shared::message::{Queue, ReportWork, Source, Work};
use shared::report::{Report, Times};
use shared::upload::UploadId;

use crate::site::{Site, until};

/// The message of an `upload-status` report.
async fn status(site: &Site, id: UploadId, seq: u64, offset: u64, size: u64) -> shared::message::Message {
    let manifest = site.foundation.records.upload(id).await.unwrap().manifest;
    let report = Report::upload_status(id, &manifest, offset, Some(size), Times::at(Timestamp::now()));
    let work = Work::Report(Box::new(ReportWork {
        sink: "test".into(),
        action: report.action(),
        seq,
        report,
    }));
    Source::new("test").work(&work, id)
}

fn offsets(site: &Site) -> Vec<u64> {
    let statuses = site.sink.reports();
    statuses
        .iter()
        .filter_map(|report| report["content"]["offset"].as_u64())
        .collect()
}

/// Row 70: reports wait for their sink, and copies do not wait for reports.
#[tokio::test(flavor = "multi_thread")]
async fn reports_wait_for_a_sink_that_is_away() {
    let site = Site::started();
    for class in [FailureClass::Transient, FailureClass::Denied] {
        site.sink.fail(Some(class));
        let id = site.upload(b"told later").await;
        site.delivered(id).await;
        let tries = site.sink.tries();
        until("some more tries", || async {
            (site.sink.tries() > tries + 4).then_some(())
        })
        .await;
        site.sink.fail(None);
        assert_eq!(site.reports(id).await.len(), 2);
        assert!(site.dead_letters().await.is_empty());
    }
}

/// What a sink refuses for good is kept for people.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_report_is_a_dead_letter_with_the_reason() {
    let site = Site::started();
    site.sink.fail(Some(FailureClass::Permanent));
    let id = site.upload(b"refused").await;
    site.delivered(id).await;
    site.quiet().await;
    let letters = site.dead_letters().await;
    assert_eq!(letters.len(), 2);
    assert!(letters[0].reason.contains("told to"), "{}", letters[0].reason);
    let rejected = &site.foundation.metrics.reports_rejected;
    assert_eq!(rejected.with_label_values(&["test"]).get(), 2);
}

/// reports.md §4: the API loses without a word what is not valid, so it must not leave us.
#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_is_not_valid_never_leaves() {
    let site = Site::started();
    let id = site.upload(b"x").await;
    site.delivered(id).await;
    site.quiet().await;
    let before = site.sink.tries();
    let mut wrong = status(&site, id, 1, 0, 1).await;
    wrong.data["report"]["dex_ingest_datetime"] = serde_json::json!("");
    site.publish(vec![wrong]).await;
    site.quiet().await;
    assert_eq!(site.sink.tries(), before);
    assert!(site.dead_letters().await[0].reason.contains("dex_ingest_datetime"));
}

/// Row 73: an older "replace" never after a newer one.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_status_that_comes_again_is_dropped_once_the_upload_is_whole() {
    let site = Site::started();
    let id = site.upload(b"12345").await;
    site.delivered(id).await;
    site.quiet().await;
    // The record's seq is that of the final status; the first one is from before.
    let seq = site.foundation.records.upload(id).await.unwrap().seq;
    let first = status(&site, id, 0, 0, 5).await;
    let last = status(&site, id, seq, 5, 5).await;
    site.publish(vec![first.clone(), last]).await;
    site.quiet().await;
    assert_eq!(offsets(&site), [0, 5], "in the order of the queue");
    // As a failed try would have put it back.
    site.publish(vec![first.after(Duration::from_millis(1))]).await;
    site.quiet().await;
    assert_eq!(offsets(&site), [0, 5]);
}

/// A sink that only another process has, or that comes back with the next configuration.
#[tokio::test(flavor = "multi_thread")]
async fn a_report_for_an_unknown_sink_waits() {
    let site = Site::started();
    let id = site.upload(b"x").await;
    site.delivered(id).await;
    site.quiet().await;
    let mut message = status(&site, id, 1, 0, 1).await;
    message.data["sink"] = serde_json::json!("graphql");
    site.publish(vec![message]).await;
    until("it to wait", || async {
        let depth = site.foundation.bus.depth(Queue::Report).await.unwrap();
        (depth.ready == 1).then_some(())
    })
    .await;
    assert!(site.dead_letters().await.is_empty());
}
