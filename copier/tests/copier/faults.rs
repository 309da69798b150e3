//! What must happen when something breaks. The numbers are those of spec/faults.md.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use shared::checksum::Crc64;
use shared::failure::FailureClass;
use shared::store::{BlobErrorKind, BlobOp};
use shared::upload::{DeliveryRecord, DeliveryState, UploadId};

use crate::faulty::Fault;
use crate::site::{MIB, RETRY_DELAYS, Site, pattern};

/// Row 52: a source that cannot be read for a moment costs a range, not a try.
#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_could_not_be_read_is_read_again() {
    let site = Site::started();
    site.raw.once(Fault::Fails(BlobOp::Read, BlobErrorKind::Unavailable));
    site.raw.once(Fault::Shortens(BlobOp::Read));
    let body = pattern(3 * MIB);
    let id = site.upload(&body).await;
    site.delivered(id).await;
    let delivery = site.delivery(id, "dex").await;
    assert!(site.object(&delivery).await.unwrap().1 == body);
    assert_eq!(delivery.attempts, 0);
    let retries = &site.foundation.metrics.copy_retries;
    assert_eq!(retries.with_label_values(&["transient"]).get(), 1);
    assert_eq!(retries.with_label_values(&["source"]).get(), 1);
}

/// Row 52: a source that brings nothing for 30 s is asked again, and for less: one that is only slow is read, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_stalls_is_read_again_in_smaller_ranges() {
    let site = Site::started();
    site.raw.always(Fault::StallsBeyond(MIB / 4));
    let body = pattern(2 * MIB + 5);
    let id = site.upload(&body).await;
    // The limit of a read, and the pause before the next one.
    let begun = Instant::now();
    site.delivered(id).await;
    assert!(begun.elapsed() < Duration::from_secs(45), "{:?}", begun.elapsed());
    for target in ["dex", "edav"] {
        let delivery = site.delivery(id, target).await;
        assert!(site.object(&delivery).await.unwrap().1 == body, "{target}");
        assert_eq!(delivery.attempts, 0, "{target}");
    }
    let retries = site.foundation.metrics.copy_retries.with_label_values(&["transient"]);
    assert_eq!(retries.get(), 2, "the two ranges that were too long");
    assert_eq!(site.raw.read_bytes.load(Ordering::Relaxed), body.len() as u64);
}

/// Row 52, known-faults 3: a truncated source never makes a short copy, and ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_ends_too_early_never_makes_a_visible_copy() {
    let site = Site::started();
    site.raw.always(Fault::Shortens(BlobOp::Read));
    let short = site.upload(&pattern(2 * MIB)).await;
    for target in ["dex", "edav"] {
        let delivery = site.outcome(short, target).await;
        assert_eq!(delivery.state, DeliveryState::Failed);
        assert_eq!(delivery.attempts as usize, RETRY_DELAYS.len() + 1);
        assert!(site.object(&delivery).await.is_none());
        assert!(site.staged(target).is_empty(), "what was staged is dropped");
    }
    let failure = |target: &str| (target.to_owned(), "FAILURE".to_owned());
    assert_eq!(site.reports(short).await, [failure("dex"), failure("edav")]);
    assert_eq!(site.dead_letters().await.len(), 2);
}

/// A record does not overrule a file: one of another size than received is not copied.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_of_another_size_is_not_even_read() {
    let site = Site::started();
    let id = UploadId::random();
    site.put_raw(id, &pattern(MIB)).await;
    site.announce(id, Crc64::of(&pattern(MIB + 1))).await;
    let delivery = site.outcome(id, "dex").await;
    assert_eq!(delivery.state, DeliveryState::Failed);
    assert!(
        delivery.issues[0].message.contains("bytes instead of"),
        "{:?}",
        delivery.issues
    );
    assert_eq!(site.raw.read_bytes.load(Ordering::Relaxed), 0);
}

/// Row 53: changed once, the copy begins again; the mixture of both never becomes visible.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_changes_during_the_copy_is_begun_again_once() {
    let site = Site::started();
    let changed = Fault::Fails(BlobOp::Read, BlobErrorKind::ConditionFailed);
    site.raw.once(changed);
    let body = pattern(2 * MIB);
    let id = site.upload(&body).await;
    site.delivered(id).await;
    assert!(site.delivery(id, "dex").await.integrity_retried);

    site.raw.always(changed);
    let id = site.upload(&body).await;
    let delivery = site.outcome(id, "dex").await;
    assert_eq!(
        (delivery.state, delivery.integrity_retried),
        (DeliveryState::Failed, true)
    );
    assert!(site.object(&delivery).await.is_none());
}

/// Row 54: no endless retry for what will not come back.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_gone_is_a_dead_letter_at_once() {
    let site = Site::started();
    let id = UploadId::random();
    site.announce(id, Crc64::of(b"gone")).await;
    for target in ["dex", "edav"] {
        let delivery = site.outcome(id, target).await;
        assert_eq!((delivery.state, delivery.attempts), (DeliveryState::Failed, 1));
        assert_eq!(delivery.issues[0].message, "source file does not exist");
        assert!(site.staged(target).is_empty());
    }
    site.quiet().await;
    let reports = site.sink.reports();
    assert_eq!(reports.len(), 2);
    for report in reports {
        assert_eq!(report["stage_info"]["status"], "FAILURE");
        assert_eq!(
            report["stage_info"]["issues"][0]["message"],
            "source file does not exist"
        );
        assert_eq!(report["sender_id"], "a lab", "known-faults 28: the whole envelope");
    }
    let letters = site.dead_letters().await;
    assert!(
        letters
            .iter()
            .all(|letter| letter.reason.contains("source file does not exist"))
    );
    assert_eq!(letters.len(), 2);
}

/// Row 55, on the way from the source.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_bit_from_the_source_never_becomes_visible() {
    let site = Site::started();
    site.raw.once(Fault::FlipsBit(BlobOp::Read));
    let body = pattern(3 * MIB);
    let id = site.upload(&body).await;
    site.delivered(id).await;
    assert!(site.object(&site.delivery(id, "dex").await).await.unwrap().1 == body);
    let errors = site.foundation.metrics.copy_integrity_errors.get();
    assert_eq!(errors, 2, "both targets had it");

    site.raw.always(Fault::FlipsBit(BlobOp::Read));
    let id = site.upload(&body).await;
    for target in ["dex", "edav"] {
        let delivery = site.outcome(id, target).await;
        assert_eq!(
            (delivery.state, delivery.integrity_retried),
            (DeliveryState::Failed, true)
        );
        assert!(delivery.issues[0].message.contains("the source file's bytes differ"));
        assert!(site.object(&delivery).await.is_none());
        assert!(site.staged(target).is_empty());
    }
    assert!(
        site.dead_letters()
            .await
            .iter()
            .all(|letter| letter.reason.starts_with("integrity"))
    );
}

/// Rows 55 and 56, in the target. Each fault alone is healed by one more copy; for ever, it ends without a visible
/// copy; and the other target of the same file has no part in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_stores_something_else_is_found_out_before_success() {
    for fault in [
        Fault::FlipsBit(BlobOp::ReadStaged),
        Fault::CommitsNothing,
        Fault::CommitsAnother,
        Fault::AttestsAnother,
    ] {
        let site = Site::started();
        let body = pattern(2 * MIB);
        site.edav.once(fault);
        let healed = site.upload(&body).await;
        site.delivered(healed).await;
        assert!(site.edav.is_through(), "{fault:?}");
        let delivery = site.delivery(healed, "edav").await;
        assert!(delivery.integrity_retried, "{fault:?}");
        assert!(site.object(&delivery).await.unwrap().1 == body, "{fault:?}");
        assert!(!site.delivery(healed, "dex").await.integrity_retried, "{fault:?}");

        site.edav.always(fault);
        let id = site.upload(&body).await;
        let failed = site.outcome(id, "edav").await;
        assert_eq!(failed.state, DeliveryState::Failed, "{fault:?}");
        assert!(
            site.object(&failed).await.is_none(),
            "{fault:?}: nothing wrong stays visible"
        );
        assert!(site.staged("edav").is_empty(), "{fault:?}");
        let dex = site.outcome(id, "dex").await;
        assert_eq!(dex.state, DeliveryState::Succeeded, "{fault:?}");
        let [dex, edav] = ["dex", "edav"].map(str::to_owned);
        let expected = [(dex, "SUCCESS".to_owned()), (edav, "FAILURE".to_owned())];
        assert_eq!(site.reports(id).await, expected, "{fault:?}");
    }
}

/// Row 57, promise 5: what is wrong with one target stays there, is tried as often as it may be, and ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_failing_target_is_tried_again_alone_and_given_up_in_the_end() {
    let site = Site::started();
    let full = Fault::Fails(BlobOp::WritePart, BlobErrorKind::NoSpace);
    site.edav.once(full);
    let body = pattern(4 * MIB);
    let id = site.upload(&body).await;
    site.delivered(id).await;
    assert_eq!(site.delivery(id, "dex").await.attempts, 0);
    let delivery = site.delivery(id, "edav").await;
    assert_eq!(delivery.attempts, 1);
    assert!(site.object(&delivery).await.unwrap().1 == body);

    site.edav.always(full);
    let id = site.upload(&body).await;
    let failed = site.outcome(id, "edav").await;
    assert_eq!(failed.state, DeliveryState::Failed);
    assert_eq!(failed.attempts as usize, RETRY_DELAYS.len() + 1);
    assert!(
        failed.issues[0].message.starts_with("failed to upload file to "),
        "{:?}",
        failed.issues
    );
    assert_eq!(site.outcome(id, "dex").await.state, DeliveryState::Succeeded);
    assert_eq!(
        site.reports(id).await.len(),
        2,
        "FAILURE is told once, when it is final"
    );
}

/// Row 58: nothing is burned while a target turns us away, and work goes on by itself when it does not any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_denies_access_is_waited_for_without_counting() {
    let site = Site::started();
    site.edav.always(Fault::Fails(BlobOp::Begin, BlobErrorKind::Denied));
    let id = site.upload(b"for later").await;
    let refused = |delivery: &DeliveryRecord| delivery.state == DeliveryState::Parked;
    let first = site.delivery_when(id, "edav", refused).await;
    let again = |delivery: &DeliveryRecord| refused(delivery) && delivery.finished_at > first.finished_at;
    let parked = site.delivery_when(id, "edav", again).await;
    assert_eq!(parked.attempts, 0);
    assert!(parked.next_attempt_at.is_some());
    assert_eq!(site.outcome(id, "dex").await.state, DeliveryState::Succeeded);
    site.edav.always(None);
    site.delivered(id).await;
}

/// Row 58: waiting has an end.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_denies_access_for_too_long_is_given_up() {
    let mut site = Site::new();
    site.config.retry_max_age = Duration::from_millis(200);
    site.start();
    site.edav.always(Fault::Fails(BlobOp::Stat, BlobErrorKind::Denied));
    let id = site.upload(b"never").await;
    let failed = site.outcome(id, "edav").await;
    assert_eq!(failed.state, DeliveryState::Failed);
    assert!(site.dead_letters().await[0].reason.starts_with("denied"));
}

/// Row 59, core.md §2: a target that this worker does not know is its configuration's fault, not the file's.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_not_in_the_routes_is_parked_and_named() {
    let site = Site::started();
    let id = UploadId::random();
    let body = b"somewhere";
    site.put_raw(id, body).await;
    site.announce_to(id, Crc64::of(body), Some("archive")).await;
    let parked = site
        .delivery_when(id, "archive", |delivery| delivery.state == DeliveryState::Parked)
        .await;
    assert_eq!(parked.attempts, 0);
    assert!(parked.issues[0].message.contains("archive"), "{:?}", parked.issues);
    site.delivered(id).await;
}

/// Row 57: an answer that was lost means unknown. What was committed is found, not copied again.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_found_done() {
    for (answer, attempts) in [(BlobErrorKind::TimedOut, 1), (BlobErrorKind::StagingLost, 0)] {
        let site = Site::started();
        site.edav.once(Fault::AnswerLost(BlobOp::Commit, answer));
        let body = pattern(2 * MIB);
        let id = site.upload(&body).await;
        site.delivered(id).await;
        let delivery = site.delivery(id, "edav").await;
        assert!(site.object(&delivery).await.unwrap().1 == body);
        assert_eq!(delivery.attempts, attempts, "{answer:?}");
        assert_eq!(site.edav.commits.load(Ordering::Relaxed), 1, "{answer:?}");
        assert_eq!(site.reports(id).await.len(), 2, "{answer:?}");
    }
}

/// A staging that the target lost is begun again; a sync that failed is not built upon.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_staging_and_a_failed_sync_begin_again_from_the_first_byte() {
    for fault in [
        Fault::Fails(BlobOp::WritePart, BlobErrorKind::StagingLost),
        Fault::Fails(BlobOp::Commit, BlobErrorKind::StagingLost),
        Fault::Fails(BlobOp::Commit, BlobErrorKind::SyncFailed),
    ] {
        let site = Site::started();
        site.edav.once(fault);
        let body = pattern(2 * MIB);
        let id = site.upload(&body).await;
        site.delivered(id).await;
        let delivery = site.delivery(id, "edav").await;
        assert!(site.object(&delivery).await.unwrap().1 == body, "{fault:?}");
        assert_eq!(delivery.attempts, 1, "{fault:?}: transient");
        assert!(site.staged("edav").is_empty(), "{fault:?}");
    }
}

/// Rows 60, 61, promise 5: a target that does not move is split off; its file's other target does not wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_stands_still_goes_on_by_itself() {
    let site = Site::started();
    site.edav.close_gate(0);
    let body = pattern(16 * MIB);
    let id = site.upload(&body).await;
    assert_eq!(site.outcome(id, "dex").await.state, DeliveryState::Succeeded);
    let waiting = site.delivery(id, "edav").await;
    assert!(!waiting.state.is_final());
    assert_eq!(waiting.attempts, 0, "no attempt was counted");
    site.edav.open_gate();
    site.delivered(id).await;
    assert!(site.object(&site.delivery(id, "edav").await).await.unwrap().1 == body);
    assert_eq!(site.reports(id).await.len(), 2);
}

/// Row 61: a target that does not move holds half of the worker at most.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_stands_still_holds_only_half_of_the_worker() {
    let mut site = Site::new();
    site.config.concurrency = 4;
    site.start();
    site.edav.close_gate(0);
    let mut ids = Vec::new();
    for number in 0..8_u8 {
        ids.push(site.upload(&[number; 100]).await);
    }
    for id in &ids {
        assert_eq!(site.outcome(*id, "dex").await.state, DeliveryState::Succeeded);
    }
    let in_flight = site.foundation.metrics.copies_in_flight.with_label_values(&["edav"]);
    assert!(in_flight.get() <= 2, "{}", in_flight.get());
    site.edav.open_gate();
    for id in ids {
        site.delivered(id).await;
        assert_eq!(site.delivery(id, "edav").await.attempts, 0);
    }
}

/// Denied by the raw store: every file waits, none is given up.
#[tokio::test(flavor = "multi_thread")]
async fn a_raw_store_that_denies_access_parks_the_deliveries() {
    let site = Site::started();
    site.raw.always(Fault::Fails(BlobOp::Stat, BlobErrorKind::Denied));
    let id = site.upload(b"here").await;
    site.delivery_when(id, "dex", |delivery| delivery.state == DeliveryState::Parked)
        .await;
    site.raw.always(None);
    site.delivered(id).await;
    let retries = &site.foundation.metrics.copy_retries;
    assert!(retries.with_label_values(&[FailureClass::Denied.as_str()]).get() >= 1);
}
