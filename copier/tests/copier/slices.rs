//! Large files, stops and kills: a copy goes on where it was.

use std::sync::atomic::Ordering;

use shared::records::Verdict;
use shared::upload::{DeliveryRecord, DeliveryState};

use crate::faulty::Faulty;
use crate::site::{MIB, Site, pattern, until};

/// Waits until the copies to these stores have come to the closed gates.
async fn at_gates(stores: &[&Faulty]) {
    until("copies to stand at the gates", || async {
        stores.iter().all(|store| store.is_at_gate()).then_some(())
    })
    .await;
}

fn copied(delivery: &DeliveryRecord) -> u64 {
    delivery
        .checkpoint
        .as_ref()
        .map_or(0, |checkpoint| checkpoint.copied.covered())
}

/// core.md §6, "Slices": small slices make many messages, but read and write each byte once.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_many_slices_is_read_once_and_arrives_whole() {
    let mut site = Site::new();
    site.config.slice_bytes = 3 * MIB as u64;
    site.start();
    let body = pattern(20 * MIB + 5);
    let id = site.upload(&body).await;
    site.delivered(id).await;
    for target in ["dex", "edav"] {
        assert!(site.object(&site.delivery(id, target).await).await.unwrap().1 == body);
    }
    assert_eq!(site.raw.read_bytes.load(Ordering::Relaxed), body.len() as u64);
    assert_eq!(site.dex.written_bytes.load(Ordering::Relaxed), body.len() as u64);
    assert_eq!(site.reports(id).await.len(), 2);
    assert!(site.staged("dex").is_empty());
}

/// A slice also ends by time, so that a slow copy meets no consumer's time-out.
#[tokio::test(flavor = "multi_thread")]
async fn slices_end_by_time_at_a_part_border() {
    let mut site = Site::new();
    site.config.slice_time = std::time::Duration::from_millis(1);
    site.start();
    let body = pattern(12 * MIB);
    let id = site.upload(&body).await;
    site.delivered(id).await;
    assert!(site.object(&site.delivery(id, "dex").await).await.unwrap().1 == body);
    assert_eq!(site.delivery(id, "dex").await.attempts, 0);
}

/// Row 51: a worker that is stopped hands its copies on at once, and nothing before the checkpoint is done again.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_worker_hands_on_and_the_next_one_goes_on_from_there() {
    let mut site = Site::started();
    site.dex.close_gate(24 * MIB as u64);
    site.edav.close_gate(24 * MIB as u64);
    let body = pattern(32 * MIB);
    let id = site.upload(&body).await;
    let written = 24 * MIB as u64;
    at_gates(&[&site.dex, &site.edav]).await;
    let drained = site.stop().await;
    assert_eq!((drained.finished, drained.cut), (1, 0));
    for target in ["dex", "edav"] {
        let delivery = site.delivery(id, target).await;
        assert_eq!((delivery.state, copied(&delivery)), (DeliveryState::Pending, written));
        assert!(delivery.claim.is_none() && delivery.attempts == 0);
    }
    site.dex.open_gate();
    site.edav.open_gate();
    site.start();
    site.delivered(id).await;
    for target in ["dex", "edav"] {
        assert!(site.object(&site.delivery(id, target).await).await.unwrap().1 == body);
    }
    for store in [&site.dex, &site.edav] {
        assert_eq!(store.written_bytes.load(Ordering::Relaxed), body.len() as u64);
    }
    let read = site.raw.read_bytes.load(Ordering::Relaxed);
    let most = body.len() as u64 + (QUEUED + AHEAD) * MIB as u64;
    assert!(read <= most, "{read} bytes read");
}

/// Ranges that are on their way when a worker stops: two wait in the queue, one is being offered, and a few more
/// were read ahead.
const QUEUED: u64 = 4;
const AHEAD: u64 = 4;

/// Row 50: what a killed worker had claimed is free at once, and at most its last slice is copied again.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_workers_copy_goes_on_from_its_checkpoint() {
    let mut site = Site::new();
    site.config.slice_bytes = 30 * MIB as u64;
    site.start();
    let gate = 32 * MIB as u64;
    site.dex.close_gate(gate);
    site.edav.close_gate(gate);
    let body = pattern(40 * MIB);
    let id = site.upload(&body).await;
    at_gates(&[&site.dex, &site.edav]).await;
    site.kill().await;
    let orphan = site.delivery(id, "dex").await;
    assert_eq!(orphan.state, DeliveryState::Claimed, "nobody cleaned up");
    assert_eq!(copied(&orphan), 30 * MIB as u64);
    site.dex.open_gate();
    site.edav.open_gate();
    site.start();
    site.delivered(id).await;
    for (target, store) in [("dex", &site.dex), ("edav", &site.edav)] {
        assert!(site.object(&site.delivery(id, target).await).await.unwrap().1 == body);
        let written = store.written_bytes.load(Ordering::Relaxed);
        assert!(written * 10 <= body.len() as u64 * 11, "{written} bytes written");
    }
    assert_eq!(site.reports(id).await.len(), 2);
    assert!(site.staged("dex").is_empty());
}

/// A checkpoint is believed only as far as the staging goes.
#[tokio::test(flavor = "multi_thread")]
async fn a_staging_that_lost_bytes_below_its_checkpoint_is_begun_again() {
    let mut site = Site::started();
    site.dex.close_gate(4 * MIB as u64);
    let body = pattern(8 * MIB);
    let id = site.upload(&body).await;
    at_gates(&[&site.dex]).await;
    site.stop().await;
    assert_eq!(copied(&site.delivery(id, "dex").await), 4 * MIB as u64);
    let [staged] = site.staged("dex").try_into().unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(staged).unwrap();
    file.set_len(MIB as u64).unwrap();
    site.dex.open_gate();
    site.start();
    site.delivered(id).await;
    let delivery = site.delivery(id, "dex").await;
    assert!(site.object(&delivery).await.unwrap().1 == body);
    assert_eq!(delivery.attempts, 0);
    assert!(site.staged("dex").is_empty());
}

/// Bytes that changed at rest below a checkpoint: found when the whole is read back, copied once more.
#[tokio::test(flavor = "multi_thread")]
async fn a_staging_that_was_altered_at_rest_never_becomes_visible() {
    let mut site = Site::started();
    site.dex.close_gate(4 * MIB as u64);
    let body = pattern(8 * MIB);
    let id = site.upload(&body).await;
    at_gates(&[&site.dex]).await;
    site.stop().await;
    let [staged] = site.staged("dex").try_into().unwrap();
    let mut bytes = std::fs::read(&staged).unwrap();
    bytes[MIB] ^= 0x10;
    std::fs::write(&staged, bytes).unwrap();
    site.dex.open_gate();
    site.start();
    site.delivered(id).await;
    let delivery = site.delivery(id, "dex").await;
    assert!(site.object(&delivery).await.unwrap().1 == body);
    assert!(delivery.integrity_retried);
}

/// core.md §5, "Claims": a worker that slept while another took its claim changes nothing any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_overtaken_records_and_reports_nothing() {
    let site = Site::started();
    site.dex.close_gate(0);
    let body = pattern(2 * MIB);
    let id = site.upload(&body).await;
    at_gates(&[&site.dex]).await;
    let other = site.another_foundation();
    let owner = other.records.owner().clone();
    let overtake = move |record: &mut DeliveryRecord| {
        let claim = record.claim.as_mut().unwrap();
        claim.owner = owner.clone();
        claim.fence += 1;
        Verdict::Write
    };
    let overtaken = other
        .records
        .edit_delivery(id, "dex", Box::new(overtake))
        .await
        .unwrap()
        .record;
    site.dex.open_gate();
    until("the overtaken worker to have let go", || async {
        let in_flight = site.foundation.metrics.copies_in_flight.with_label_values(&["dex"]);
        (site.dex.commits.load(Ordering::Relaxed) == 1 && in_flight.get() == 0).then_some(())
    })
    .await;
    assert_eq!(site.delivery(id, "dex").await, overtaken);
    drop(other); // dead now: the message that came again finds its claim free, and the copy there
    site.delivered(id).await;
    assert_eq!(site.reports(id).await.len(), 2);
    assert_eq!(site.dex.commits.load(Ordering::Relaxed), 1);
}

/// A copy that only has to be checked keeps nobody waiting, and nothing of it is copied again.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_stopped_while_it_checks_a_copy_has_that_checked_by_the_next_one() {
    let mut site = Site::started();
    site.dex.close_gate(4 * MIB as u64);
    site.edav.allow_read_back(false);
    let body = pattern(6 * MIB);
    let id = site.upload(&body).await;
    at_gates(&[&site.dex]).await;
    until("edav to have all", || async {
        (site.edav.written_bytes.load(Ordering::Relaxed) == body.len() as u64).then_some(())
    })
    .await;
    site.stop().await;
    // The last part may have been cut off in the moment in which it was written.
    let all_but_one = body.len() as u64 - MIB as u64;
    assert!(copied(&site.delivery(id, "edav").await) >= all_but_one);
    site.dex.open_gate();
    site.edav.allow_read_back(true);
    site.start();
    site.delivered(id).await;
    for (target, store) in [("dex", &site.dex), ("edav", &site.edav)] {
        let delivery = site.delivery(id, target).await;
        assert!(site.object(&delivery).await.unwrap().1 == body);
        assert_eq!(delivery.attempts, 0);
        let written = store.written_bytes.load(Ordering::Relaxed);
        assert!(written <= body.len() as u64 + MIB as u64, "{target}: {written}");
    }
    assert_eq!(site.reports(id).await.len(), 2);
}
