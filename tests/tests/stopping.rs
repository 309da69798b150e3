//! SIGTERM: readiness off at once, what can finish does, what came is kept, exit 0 within the grace time.
//! Promise 1 of DESIGN.md; faults.md row 4; known-faults.md 50.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tests::client::Upload;
use tests::pattern::{assert_same, pattern};
use tests::raw::SlowPatch;
use tests::site::{LIMIT, Site};
use tests::wait::eventually;

const UPLOADS: u64 = 50;
const SIZE: usize = 600_000;
const GRACE: Duration = Duration::from_secs(6);

async fn assert_delivered(site: &Site, upload: &Upload, content: &[u8]) {
    for target in ["dex", "edav"] {
        assert_same(target, &site.delivered(target, &upload.id).await, content);
    }
}

/// Fifty senders that would need for ever. Each is told to come back, keeps what it had, and ends well.
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
        let answer = loop {
            tokio::select! {
                answer = patch.answer() => break answer,
                _ = tick.tick() => {}
            }
            if patch.send(&content[dripped..=dripped]).await.is_ok() {
                dripped += 1;
            }
        };
        (upload, content, sent, dripped, answer)
    });
    let ended = join_all(ended).await;
    let status = site.stopped(GRACE + Duration::from_secs(5)).await;
    let took = begin.elapsed();
    assert_eq!(status.code(), Some(0), "a clean end");
    assert!(
        took <= GRACE + Duration::from_secs(1),
        "{took:?} of a grace of {GRACE:?}"
    );
    assert!(site.log().contains("drained"), "the end is told in the log");
    for (_, _, _, _, answer) in &ended {
        let answer = answer.as_ref().expect("ended with an answer, not with a cut");
        assert_eq!(answer.status, 503, "{answer:?}");
        let close = answer.header("Connection").unwrap_or_default();
        assert!(close.eq_ignore_ascii_case("close"), "{answer:?}");
    }

    site.restart().await;
    for (upload, content, sent, dripped, _) in &ended {
        let offset = usize::try_from(upload.offset().await).expect("a size");
        assert!(offset >= *sent, "{sent} had come, {offset} are left");
        assert!(offset <= *dripped, "{dripped} were sent, {offset} are there");
        upload
            .append(u64::try_from(offset).expect("a size"), &content[offset..])
            .await;
    }
    for (upload, content, ..) in &ended {
        assert_delivered(&site, upload, content).await;
    }
}

/// While it drains it takes nothing new, tells what it knows, and lets end what can; then it does not wait.
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
    assert_eq!(other.offset().await, 4, "HEAD is answered until the end");
    assert!(site.is_running(), "it waits for the one that can end");

    patch.send(&content[400_000..]).await.expect("send the rest");
    let answer = patch.answer().await.expect("an answer");
    assert_eq!(answer.status, 204, "{answer:?}");
    assert_eq!(site.stopped(LIMIT).await.code(), Some(0));
    assert!(
        begin.elapsed() < Duration::from_secs(20),
        "it had nothing to wait for: {:?}",
        begin.elapsed()
    );
    site.restart().await;
    assert_delivered(&site, &upload, &content).await;
    other.append(4, b"567890").await;
    assert_delivered(&site, &other, b"1234567890").await;
}

/// With nothing in flight the end comes at once, again and again on the same data.
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
    assert_delivered(&site, &upload, &content).await;
}
