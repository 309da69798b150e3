//! `ingest` and copiers as processes of their own around one database file: the work is shared, and what one of them
//! had when it died is the others' at once. Promises 2 to 5 of DESIGN.md; core.md §5; faults.md rows 38, 44, 50.

use std::time::{Duration, Instant};

use shared::records::Records;
use shared::upload::{DeliveryState, UploadId};
use tests::oracle::{File, Habits, Run, Sizes, seed};
use tests::pattern::{Random, assert_same, pattern};
use tests::site::{LIMIT, Part, Site, TARGETS};
use tests::wait::eventually;
use tests::work::copy_message;

const COPIERS: [Part; 2] = [Part::Copier(0), Part::Copier(1)];

async fn in_state(records: &dyn Records, id: UploadId, state: DeliveryState) -> usize {
    let deliveries = records.deliveries(id).await.expect("read deliveries");
    deliveries.iter().filter(|delivery| delivery.state == state).count()
}

/// Two hundred files of 0 B to 20 MiB: each in both targets once, each reported once, and both copiers at work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_copiers_share_the_work_and_everything_arrives_once() {
    let mut random = Random::new(seed());
    let site = Site::build().copiers(2).start().await;
    let mut lists: Vec<Vec<File>> = (0..8)
        .map(|_| (0..25).map(|_| File::random(&mut random, Sizes::WIDE)).collect())
        .collect();
    lists[0][0].len = 20 * 1024 * 1024;
    let habits = Habits {
        sizes: Sizes::WIDE,
        pace: Duration::from_millis(1),
        careless: false,
        bear_refusals: false,
    };
    let mut run = Run::begin_with(&site, lists, habits, &mut random);
    eventually("everything is sent", 3 * LIMIT, || {
        let done = run.is_done();
        async move { done.then_some(()) }
    })
    .await;
    let verdict = run.end(&site, 0).await;
    println!("{verdict}");
    assert_eq!(verdict.uploads, 201, "two hundred, and one when all was done");
    assert_eq!(
        (verdict.repeats, verdict.torn, verdict.strangers, verdict.orphans),
        (0, 0, 0, 0)
    );
    let mut copies = 0;
    for copier in COPIERS {
        let metrics = site.metrics(copier).await;
        let own = metrics.count("ferry_copies_total", &[("result", "succeeded")]);
        println!("{copier}: {own} copies");
        assert!(own > 0, "{copier} had nothing to do");
        assert_eq!(metrics.count("ferry_copies_total", &[]), own, "no other outcome");
        copies += own;
    }
    assert_eq!(copies, 402, "one copy for each upload and target");
}

/// Row 44, row 50: what a copier had when it was killed, its jobs and its claims, is the other one's at once. The
/// lease is an hour: nobody waits for its end here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_work_of_a_copier_that_is_killed_is_the_other_ones_at_once() {
    let site = Site::build()
        .copiers(2)
        .env("CLAIM_LEASE", "1h")
        .env("RETRY_DELAYS", "1h");
    // It holds what it has, and needs longer for it than the test.
    let site = site.env_of(Part::Copier(0), "FERRY_FAILPOINTS", "copy.part-written=delay:600000ms");
    let mut site = site.start().await;
    site.kill_part(Part::Copier(1));
    let client = site.client();
    let content = pattern(3, 50_000);
    let mut uploads = Vec::new();
    let (records, _) = site.database();
    for _ in 0..5 {
        let upload = client.create(content.len(), &[("filename", "held.bin")]).await;
        upload.append(0, &content).await;
        let id: UploadId = upload.id.parse().expect("an upload id");
        eventually("both deliveries are claimed", LIMIT, || async {
            (in_state(&*records, id, DeliveryState::Claimed).await == 2).then_some(())
        })
        .await;
        uploads.push(upload);
    }
    // The other one is there, and has seen that all is in somebody's hands.
    site.restart_part(Part::Copier(1)).await;
    let probe = client.create(0, &[("filename", "probe.bin")]).await;
    for target in TARGETS {
        site.delivered(target, &probe.id).await;
    }
    site.kill_part(Part::Copier(0));
    let begin = Instant::now();
    for upload in &uploads {
        for target in TARGETS {
            assert_same(target, &site.delivered(target, &upload.id).await, &content);
        }
        site.reports_of(&upload.id, 7).await;
    }
    println!(
        "five uploads of a dead copier were delivered after {:?}",
        begin.elapsed()
    );
    let other = site.metrics(Part::Copier(1)).await;
    assert!(other.count("ferry_copies_total", &[("result", "succeeded")]) >= 10);
}

/// Row 38: the same message twice, at once on two workers, and again when all is done: one object, one report.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_comes_again_and_again_on_two_copiers_has_one_effect() {
    let site = Site::build().copiers(2).env("RETRY_DELAYS", "200ms");
    let site = site
        .env("FERRY_FAILPOINTS", "copy.part-written=delay:1000ms")
        .start()
        .await;
    let content = pattern(4, 50_000);
    let upload = site.client().create(content.len(), &[("filename", "once.bin")]).await;
    upload.append(0, &content).await;
    let id: UploadId = upload.id.parse().expect("an upload id");
    let (records, bus) = site.database();
    let message = copy_message(&*records, id).await;
    eventually("a copier is at it", LIMIT, || async {
        (in_state(&*records, id, DeliveryState::Claimed).await > 0).then_some(())
    })
    .await;
    for answer in bus.publish(vec![message.clone(); 8]).await {
        answer.expect("publish the same again");
    }
    for target in TARGETS {
        assert_same(target, &site.delivered(target, &upload.id).await, &content);
    }
    // Days later.
    for answer in bus.publish(vec![message; 8]).await {
        answer.expect("publish the same again");
    }
    eventually("each was looked at", LIMIT, || async {
        let depth = bus.depth(shared::message::Queue::Copy).await.expect("count messages");
        (depth.ready + depth.in_flight + depth.delayed == 0).then_some(())
    })
    .await;
    let reports = site.reports_of(&upload.id, 7).await;
    println!("{} reports", reports.len());
    let mut skipped = [0, 0];
    let mut copies = 0;
    for copier in COPIERS {
        let metrics = site.metrics(copier).await;
        copies += metrics.count("ferry_copies_total", &[]);
        for (count, reason) in skipped.iter_mut().zip(["claimed", "final"]) {
            *count += metrics.count("ferry_copy_skipped_total", &[("reason", reason)]);
        }
    }
    let [claimed, done] = skipped;
    assert_eq!(copies, 2, "one copy for each target");
    assert!(claimed >= 1, "somebody else had it");
    assert!(done >= 16, "it was done: eight messages for two targets, {done}");
    for target in TARGETS {
        assert_eq!(site.files(target).len(), 1, "one object in {target}");
        assert!(site.staged(target).is_empty(), "nothing is left in {target}");
    }
}
