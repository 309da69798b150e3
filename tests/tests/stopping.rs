//! Row 4: SIGTERM: readiness off at once, new bodies refused, what can finish does, the others are ended in time and
//! what came of them is kept, exit 0 within the grace time. Promise 1 of DESIGN.md; known-faults.md 50.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tests::client::OFFSET_OCTETS;
use tests::pattern::pattern;
use tests::proxy::{Faults, Proxy};
use tests::raw::{RawAnswer, SlowPatch, exchange};
use tests::site::{LIMIT, Site};
use tests::wait::eventually;

const UPLOADS: u64 = 50;
const SIZE: usize = 600_000;
const GRACE: Duration = Duration::from_secs(6);
/// When bodies are ended at the earliest: the grace time without the third that is kept for it, and without what is
/// kept for closing.
const ENDED_FROM: Duration = Duration::from_millis(3_500);

/// What the log says of the end: bodies that ended by themselves, that were ended, that were left.
fn drained(site: &Site) -> (u64, u64, u64) {
    let log = site.log();
    let mut lines = log.lines().filter(|line| line.contains("ingest: drained"));
    let line = lines.next().expect("the end is told in the log");
    assert_eq!(lines.next(), None, "once");
    let count = |name: &str| {
        let value = line.split_whitespace().find_map(|word| word.strip_prefix(name));
        let value = value.and_then(|value| value.parse().ok());
        value.unwrap_or_else(|| panic!("no {name} in {line:?}"))
    };
    (count("finished="), count("cut="), count("left="))
}

/// The sender is told to come back, in a way that every client understands.
fn assert_ended(answer: &RawAnswer) {
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.header("Retry-After").is_some(), "{answer:?}");
    let close = answer.header("Connection").unwrap_or_default();
    assert!(close.eq_ignore_ascii_case("close"), "{answer:?}");
}

/// Row 4. Fifty senders that would need for ever. Each is told to come back, keeps what it had, and ends well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_slow_uploads_are_ended_in_time_and_lose_nothing() {
    let mut site = Site::build().env("SHUTDOWN_GRACE", "6s").start().await;
    let client = site.client();
    let addr = site.addr();
    let begun = join_all((0..UPLOADS).map(|seed| {
        let client = client.clone();
        async move {
            let content = pattern(seed, SIZE);
            let sent = 10_000 + usize::try_from(seed).expect("a small number") * 10_007;
            let upload = client.create(SIZE, &[("filename", "slow.bin")]).await;
            let mut patch = SlowPatch::begin(addr, &upload.path(), 0, SIZE).await;
            patch.send(&content[..sent]).await.expect("send a part");
            // All of it came: from here on it must be kept.
            let expected = u64::try_from(sent).expect("a size");
            eventually("what was sent is there", LIMIT, || async {
                (upload.offset().await == expected).then_some(())
            })
            .await;
            (upload, content, patch, sent)
        }
    }))
    .await;

    site.ask_to_stop();
    let begin = Instant::now();
    // They go on, a byte now and then, until they are ended.
    let ended = begun.into_iter().map(|(upload, content, mut patch, sent)| async move {
        let mut dripped = sent;
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        let (answer, after) = loop {
            tokio::select! {
                answer = patch.answer() => break (answer, begin.elapsed()),
                _ = tick.tick() => {}
            }
            if patch.send(&content[dripped..=dripped]).await.is_ok() {
                dripped += 1;
            }
        };
        (upload, content, sent, dripped, answer, after)
    });
    let ended = join_all(ended).await;
    let status = site.stopped(GRACE + Duration::from_secs(5)).await;
    let took = begin.elapsed();
    assert_eq!(status.code(), Some(0), "a clean end");
    assert!(
        took <= GRACE + Duration::from_secs(1),
        "{took:?} of a grace of {GRACE:?}"
    );
    assert_eq!(drained(&site), (0, UPLOADS, 0));
    for (_, _, _, _, answer, after) in &ended {
        assert_ended(answer.as_ref().expect("ended with an answer, not with a cut"));
        assert!(*after >= ENDED_FROM, "it was not given its time: {after:?}");
    }

    site.restart().await;
    for (upload, content, sent, dripped, answer, _) in &ended {
        let offset = upload.offset().await;
        let told = answer.as_ref().and_then(|answer| answer.header("Upload-Offset"));
        assert_eq!(told, Some(offset.to_string().as_str()), "what was told is there");
        let offset = usize::try_from(offset).expect("a size");
        assert!(offset >= *sent, "{sent} had come, {offset} are left");
        assert!(offset <= *dripped, "{dripped} were sent, {offset} are there");
        upload
            .append(u64::try_from(offset).expect("a size"), &content[offset..])
            .await;
    }
    for (upload, content, ..) in &ended {
        site.expect_delivered(upload, content).await;
    }
}

/// Row 4. While it drains it takes nothing new, tells what it knows, and lets end what can; then it does not wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_can_end_in_the_grace_time_does() {
    let mut site = Site::build().env("SHUTDOWN_GRACE", "30s").start().await;
    let client = site.client();
    let content = pattern(1, 1_000_000);
    let upload = client.create(content.len(), &[("filename", "last.bin")]).await;
    let other = client.create(10, &[]).await;
    other.append(0, b"1234").await;
    let mut patch = SlowPatch::begin(site.addr(), &upload.path(), 0, content.len()).await;
    patch.send(&content[..400_000]).await.expect("send a part");
    eventually("what was sent is there", LIMIT, || async {
        (upload.offset().await == 400_000).then_some(())
    })
    .await;
    let ready = client.url("/health/ready");
    client
        .send("GET", &ready, &[], "")
        .await
        .expect("an answer")
        .expect(200);

    site.ask_to_stop();
    let begin = Instant::now();
    eventually("readiness is off", Duration::from_secs(5), || async {
        let answer = client.send("GET", &ready, &[], "").await.expect("it still serves");
        (answer.status == 503).then_some(())
    })
    .await;
    let live = client.send("GET", &client.url("/health/live"), &[], "").await;
    live.expect("it still serves").expect(200);
    let refused = other.patch(4, b"567890").await.expect(503);
    assert!(refused.header("Retry-After").is_some(), "{refused:?}");
    let headers = [("Upload-Length", "10")];
    let refused = client.tus("POST", client.collection(), &headers, "").await.expect(503);
    assert!(refused.header("Retry-After").is_some(), "{refused:?}");
    // Bodies that come on connections of their own, with a creation too: refused before they are read.
    let body = "x".repeat(1000);
    for head in [
        "POST /files/ HTTP/1.1\r\nUpload-Length: 1000".to_owned(),
        format!("PATCH {} HTTP/1.1\r\nUpload-Offset: 0", upload.path()),
    ] {
        let request = format!(
            "{head}\r\nHost: new\r\nTus-Resumable: 1.0.0\r\nContent-Type: {OFFSET_OCTETS}\r\n\
             Content-Length: 1000\r\n\r\n{body}"
        );
        let refused = exchange(site.addr(), request.as_bytes()).await;
        assert_ended(&refused.expect("new connections are taken"));
    }
    assert_eq!(other.offset().await, 4, "HEAD is answered until the end");
    assert_eq!(upload.offset().await, 400_000, "the one that runs was not disturbed");
    assert!(site.is_running(), "it waits for the one that can end");

    patch.send(&content[400_000..]).await.expect("send the rest");
    let answer = patch.answer().await.expect("an answer");
    assert_eq!(answer.status, 204, "{answer:?}");
    assert_eq!(site.stopped(LIMIT).await.code(), Some(0));
    assert_eq!(drained(&site), (1, 0, 0));
    assert!(
        begin.elapsed() < Duration::from_secs(20),
        "it had nothing to wait for: {:?}",
        begin.elapsed()
    );
    site.restart().await;
    site.expect_delivered(&upload, &content).await;
    other.append(4, b"567890").await;
    site.expect_delivered(&other, b"1234567890").await;
}

/// Row 4. Senders that nothing reaches: the network takes what is sent to them and gives nothing, or it does not even
/// take it. They hold up neither the end nor those who can still be told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn senders_behind_a_dead_network_hold_up_no_end_and_lose_nothing() {
    const SENT: usize = 250_000;
    const MORE: usize = 260_000;
    let mut site = Site::build().env("SHUTDOWN_GRACE", "6s").start().await;
    let (hole, partition) = (Proxy::start(site.addr()).await, Proxy::start(site.addr()).await);
    let ways = [
        hole.addr(),
        hole.addr(),
        partition.addr(),
        partition.addr(),
        site.addr(),
        site.addr(),
    ];
    let begun = join_all((0..).zip(ways).map(|(seed, way)| {
        let client = site.client();
        async move {
            let content = pattern(seed, SIZE);
            let upload = client.create(SIZE, &[]).await;
            let mut patch = SlowPatch::begin(way, &upload.path(), 0, SIZE).await;
            patch.send(&content[..SENT]).await.expect("send a part");
            eventually("what was sent is there", LIMIT, || async {
                (upload.offset().await == SENT as u64).then_some(())
            })
            .await;
            (upload, content, patch)
        }
    }))
    .await;
    hole.set(Faults::blackhole());
    partition.set(Faults::partition());

    let begin = Instant::now();
    site.ask_to_stop();
    let mut senders = Vec::new();
    for (upload, content, mut patch) in begun {
        // All of them go on: four of them into nothing.
        patch.send(&content[SENT..MORE]).await.expect("the system takes it");
        senders.push((upload, content, patch));
    }
    let (_, content, can_end) = &mut senders[5];
    can_end.send(&content[MORE..]).await.expect("send the rest");
    let answer = can_end.answer().await.expect("an answer");
    assert_eq!(answer.status, 204, "{answer:?}");
    let answer = senders[4].2.answer().await.expect("an answer");
    assert_ended(&answer);
    assert_eq!(answer.header("Upload-Offset"), Some(MORE.to_string().as_str()));
    assert!(begin.elapsed() >= ENDED_FROM, "it was not given its time");

    assert_eq!(site.stopped(GRACE + Duration::from_secs(5)).await.code(), Some(0));
    let took = begin.elapsed();
    assert!(
        took <= GRACE + Duration::from_secs(1),
        "{took:?} of a grace of {GRACE:?}"
    );
    assert_eq!(drained(&site), (1, 5, 0));
    let (swallowed, stalled) = (hole.counts().swallowed, partition.counts().stalled);
    assert!(swallowed >= 2 && stalled >= 2, "{swallowed} {stalled}");
    assert_eq!((hole.counts().to_client, partition.counts().to_client), (0, 0));

    site.restart().await;
    for (upload, content, _) in &senders {
        let offset = upload.offset().await;
        assert!(offset >= SENT as u64, "{offset} are left of what had come");
        let rest = usize::try_from(offset).expect("a size");
        upload.append(offset, &content[rest..]).await;
        site.expect_delivered(upload, content).await;
    }
}

/// Row 4. With nothing in flight the end comes at once, again and again on the same data.
#[tokio::test]
async fn an_idle_site_stops_at_once_and_starts_again() {
    let mut site = Site::start().await;
    let content = pattern(2, 100_000);
    let upload = site.client().create(content.len(), &[]).await;
    let mut offset = 0;
    for piece in content.chunks(25_000) {
        offset = upload.append(offset, piece).await;
        let begin = Instant::now();
        assert_eq!(site.terminate().await.code(), Some(0));
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
        site.restart().await;
        assert_eq!(upload.offset().await, offset);
    }
    site.expect_delivered(&upload, &content).await;
}
