//! Bytes that are not those received: never a success, never visible. Promise 3 of DESIGN.md; faults.md rows 52, 55.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use shared::upload::DeliveryState;
use tests::pattern::{assert_same, pattern};
use tests::site::{LIMIT, Part, Site, TARGETS};
use tests::wait::eventually;

use crate::{COPIER, FAILPOINTS, MIB, deliveries, final_reports, outcomes, send, staged};

fn open(path: &Path) -> File {
    let file = OpenOptions::new().read(true).write(true).open(path);
    file.expect("open a file to alter it")
}

fn flip_bit(path: &Path, offset: u64) {
    let file = open(path);
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("read a byte");
    let altered = [byte[0] ^ 0x10];
    file.write_all_at(&altered, offset).expect("write it back altered");
}

/// The second mebibyte, and then the first one, without a checksum that would notice within either of them.
fn swap_parts(path: &Path) {
    let file = open(path);
    let (mut first, mut second) = (vec![0; MIB], vec![0; MIB]);
    file.read_exact_at(&mut first, 0).expect("read a part");
    file.read_exact_at(&mut second, MIB as u64).expect("read a part");
    file.write_all_at(&second, 0).expect("write a part");
    file.write_all_at(&first, MIB as u64).expect("write a part");
}

fn expect_nothing_in_targets(site: &Site) {
    for target in TARGETS {
        let found = [site.files(target), site.staged(target)].concat();
        assert!(found.is_empty(), "{target}: {found:?}");
    }
}

/// Row 55: a bit flipped in the raw object after it was finished. Tried once more from the beginning, then given up:
/// it never is a success, and never visible.
#[tokio::test]
async fn a_raw_object_that_changed_at_rest_is_never_delivered() {
    let mut site = Site::build().copiers(1).start().await;
    site.kill_part(COPIER);
    let upload = send(&site, &pattern(4, 3 * MIB)).await;
    flip_bit(&site.data().join("raw").join(&upload.id), 2_000_000);
    site.restart_part(COPIER).await;
    let (records, bus) = site.database();
    for delivery in outcomes(records.as_ref(), &upload).await {
        let ended = (delivery.state, delivery.integrity_retried);
        assert_eq!(ended, (DeliveryState::Failed, true));
    }
    final_reports(&site, &upload, "FAILURE").await;
    expect_nothing_in_targets(&site);
    let letters = bus.dead_letters(10).await.expect("read the dead letters");
    assert_eq!(letters.len(), TARGETS.len());
    for letter in letters {
        assert!(letter.reason.starts_with("integrity"), "{letter:?}");
    }
    let metrics = site.metrics(COPIER).await;
    let errors = metrics.count("ferry_copy_integrity_errors_total", &[]);
    assert_eq!(errors, 2 * TARGETS.len() as u64, "each target twice");
}

/// Row 55: a copy is altered in its target, on its way (the first mebibyte is there) and when all of it is there but
/// not checked yet; or its parts are swapped. It is found before it is visible, healed by a copy from the beginning,
/// and the other target has no part in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_was_altered_in_its_target_is_found_before_it_is_visible() {
    let content = pattern(5, 3 * MIB);
    let whole = content.len() as u64;
    let first_bit: fn(&Path) = |path| flip_bit(path, 0);
    for (at, alter) in [(1, first_bit), (whole, first_bit), (whole, swap_parts)] {
        let delayed = "copy.part-written=delay:2000ms*6";
        let site = Site::build().env(FAILPOINTS, delayed).start().await;
        let upload = send(&site, &content).await;
        alter(&staged(&site, "edav", at).await);
        assert!(site.files("edav").is_empty(), "altered before it was visible");
        let (records, _) = site.database();
        eventually("the first try to end", LIMIT, || async {
            let all = deliveries(records.as_ref(), &upload).await;
            let edav = all.into_iter().find(|delivery| delivery.to.target == "edav");
            let visible = !site.files("edav").is_empty();
            let retried = edav.is_some_and(|delivery| delivery.integrity_retried);
            assert!(retried || !visible, "the altered copy is visible");
            retried.then_some(())
        })
        .await;
        for target in TARGETS {
            assert_same(target, &site.delivered(target, &upload.id).await, &content);
            assert_eq!(site.files(target).len(), 1);
        }
        let all = outcomes(records.as_ref(), &upload).await;
        let retried: Vec<bool> = all.iter().map(|delivery| delivery.integrity_retried).collect();
        assert_eq!(retried, [false, true], "dex has no part in it");
        let metrics = site.metrics(Part::Up).await;
        assert_eq!(metrics.count("ferry_copy_integrity_errors_total", &[]), 1);
        final_reports(&site, &upload, "SUCCESS").await;
    }
}

/// Row 52: the raw object loses its end during the copies. No short copy becomes visible, the ranges and then the
/// whole are tried again, and that has an end.
#[tokio::test]
async fn a_raw_object_that_is_truncated_during_its_copies_never_makes_a_short_one() {
    let site = Site::build()
        .env("RETRY_DELAYS", "100ms,200ms")
        .env(FAILPOINTS, "copy.part-written=delay:300ms");
    let site = site.start().await;
    let upload = send(&site, &pattern(6, 12 * MIB)).await;
    for target in TARGETS {
        staged(&site, target, 1).await;
    }
    let raw = site.data().join("raw").join(&upload.id);
    open(&raw).set_len(2 * MIB as u64).expect("truncate the raw object");
    let (records, _) = site.database();
    for delivery in outcomes(records.as_ref(), &upload).await {
        assert_eq!(delivery.state, DeliveryState::Failed);
        let text = &delivery.issues[0].message;
        assert!(text.contains("source file"), "{text}");
    }
    expect_nothing_in_targets(&site);
    final_reports(&site, &upload, "FAILURE").await;
    let metrics = site.metrics(Part::Up).await;
    for class in ["integrity", "source"] {
        let again = metrics.count("ferry_copy_retries_total", &[("class", class)]);
        assert!(again >= TARGETS.len() as u64, "{again} retries of class {class}");
    }
}

/// Row 52: the same, but the bytes come back before the tries are used up: it arrives, whole.
#[tokio::test]
async fn a_raw_object_that_has_its_end_again_is_delivered_whole() {
    let content = pattern(7, 12 * MIB);
    let site = Site::build()
        .env("RETRY_DELAYS", "300ms,1s,1s,1s,1s,1s,1s,1s,1s,1s,1s")
        .env(FAILPOINTS, "copy.part-written=delay:200ms*12");
    let site = site.start().await;
    let upload = send(&site, &content).await;
    for target in TARGETS {
        staged(&site, target, 1).await;
    }
    let raw = site.data().join("raw").join(&upload.id);
    open(&raw).set_len(2 * MIB as u64).expect("truncate the raw object");
    let (records, _) = site.database();
    eventually("both copies to have met the short source", LIMIT, || async {
        let all = deliveries(records.as_ref(), &upload).await;
        let met =
            |attempts: u32, text: Option<&str>| attempts > 0 && text.is_some_and(|text| text.contains("instead of"));
        let mut all = all.iter().map(|delivery| {
            let issue = delivery.issues.first().map(|issue| issue.message.as_str());
            met(delivery.attempts, issue)
        });
        all.all(|met| met).then_some(())
    })
    .await;
    assert!(TARGETS.iter().all(|target| site.files(target).is_empty()));
    fs::write(&raw, &content).expect("bring the raw object back");
    for target in TARGETS {
        assert_same(target, &site.delivered(target, &upload.id).await, &content);
        assert!(site.staged(target).is_empty(), "nothing is left in {target}");
    }
    final_reports(&site, &upload, "SUCCESS").await;
}
