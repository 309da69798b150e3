//! Rows 5 and 7: senders that vanish without a word, that stop, and that drip.

use std::time::{Duration, Instant};

use tests::pattern::pattern;
use tests::proxy::{Faults, Proxy, Way};
use tests::raw::SlowPatch;
use tests::site::{LIMIT, Part};
use tests::wait::{eventually, within};

use super::{Far, assert_unfinished, index, length, until_stored};

const STALLED: &str = "ferry_uploads_stalled_total";
const TAKEOVERS: &str = "ferry_uploads_takeover_total";

/// Row 5: the client disappears without closing: the idle time-out ends the body, bytes kept, lock free.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_vanishes_is_given_up_and_its_upload_is_free() {
    let far = Far::start(&[("BODY_IDLE_TIMEOUT", "2s")]).await;
    let client = far.site.client();
    let content = pattern(1, 1_000_000);
    let descriptors = far.count("process_open_fds").await;
    let mut uploads = Vec::new();
    let mut senders = Vec::new();
    for _ in 0..5 {
        let upload = client.create(content.len(), &[]).await;
        let mut patch = SlowPatch::begin(far.proxy.addr(), &upload.path(), 0, content.len()).await;
        patch.send(&content[..300_000]).await.expect("send a part");
        until_stored(&upload, 300_000).await;
        uploads.push(upload);
        senders.push(patch);
    }
    assert_eq!(far.count(STALLED).await, 0);
    // They send on and go; nobody on the other side hears of either.
    far.proxy.set(Faults::blackhole());
    for mut sender in senders {
        sender
            .send(&content[300_000..600_000])
            .await
            .expect("the hole takes it");
    }
    eventually("all are given up", LIMIT, || async {
        (far.count(STALLED).await == 5).then_some(())
    })
    .await;
    // The server has closed its ends, although its own words reach nobody either.
    eventually("the connections are closed", LIMIT, || async {
        (far.proxy.counts().ended_by_server == 5).then_some(())
    })
    .await;
    eventually("no descriptor is left", LIMIT, || async {
        // One more at most: the connection that asks.
        (far.count("process_open_fds").await <= descriptors + 1).then_some(())
    })
    .await;
    let counts = far.proxy.counts();
    assert_eq!((counts.to_client, counts.swallowed), (0, 10), "{counts:?}");
    for upload in &uploads {
        assert_eq!(upload.offset().await, 300_000);
        assert_unfinished(&far.site, upload).await;
        upload.append(300_000, &content[300_000..]).await;
        far.site.expect_delivered(upload, &content).await;
    }
    assert_eq!(far.count(TAKEOVERS).await, 0, "nobody held them");
}

/// Row 5: one that stops and still listens is told where it is, in a way that every client takes up again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_stops_is_told_how_much_is_kept() {
    let far = Far::start(&[("BODY_IDLE_TIMEOUT", "2s")]).await;
    let content = pattern(2, 500_000);
    let upload = far.client().create(content.len(), &[]).await;
    let mut patch = SlowPatch::begin(far.proxy.addr(), &upload.path(), 0, content.len()).await;
    patch.send(&content[..123_456]).await.expect("send a part");
    let answer = patch.answer().await.expect("an answer");
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.header("Upload-Offset"), Some("123456"));
    assert!(answer.header("Retry-After").is_some(), "{answer:?}");
    let close = answer.header("Connection").unwrap_or_default();
    assert!(close.eq_ignore_ascii_case("close"), "{answer:?}");
    assert_eq!(far.count(STALLED).await, 1);
    upload.append(123_456, &content[123_456..]).await;
    far.site.expect_delivered(&upload, &content).await;
}

/// A partition that ends within the idle time costs nothing: the same request goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_heals_in_time_is_not_noticed() {
    let far = Far::start(&[("BODY_IDLE_TIMEOUT", "30s")]).await;
    let content = pattern(3, 6_000_000);
    let upload = far.site.client().create(content.len(), &[]).await;
    let mut patch = SlowPatch::begin(far.proxy.addr(), &upload.path(), 0, content.len()).await;
    patch.send(&content[..100_000]).await.expect("send a part");
    until_stored(&upload, 100_000).await;
    far.proxy.set(Faults::partition());
    let rest = content[100_000..].to_vec();
    let sending = tokio::spawn(async move {
        patch.send(&rest).await.expect("send the rest");
        patch.answer().await.expect("an answer")
    });
    eventually("the partition holds something up", LIMIT, || async {
        (far.proxy.counts().stalled == 1).then_some(())
    })
    .await;
    assert_eq!(upload.offset().await, 100_000);
    far.proxy.set(Faults::none());
    let answer = within("the end of the request", LIMIT, sending)
        .await
        .expect("the sender");
    assert_eq!(answer.status, 204, "{answer:?}");
    far.site.expect_delivered(&upload, &content).await;
    assert_eq!((far.count(STALLED).await, far.proxy.counts().accepted), (0, 1));
}

/// Row 7: a body below the minimum rate is ended, its bytes kept; one above it is not, however long it takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dripping_sender_is_ended_and_a_slow_one_is_not() {
    const WINDOW: Duration = Duration::from_secs(4);
    const LEAST: u64 = 2048;
    let far = Far::start(&[("BODY_MIN_RATE", "2KiB/s"), ("BODY_RATE_WINDOW", "4s")]).await;
    let client = far.site.client();
    let send = |rate: u64, len: usize| {
        let (client, server) = (client.clone(), far.site.addr());
        async move {
            let proxy = Proxy::start(server).await;
            let content = pattern(rate, len);
            let upload = client.create(len, &[]).await;
            proxy.set_new(Faults::none().rate(Way::ToServer, rate));
            let begin = Instant::now();
            let mut patch = SlowPatch::begin(proxy.addr(), &upload.path(), 0, len).await;
            patch.send(&content).await.expect("the kernel takes it");
            let answer = patch.answer().await.expect("an answer");
            assert!(proxy.counts().slowed > 20, "{:?}", proxy.counts());
            (upload, content, answer, begin.elapsed())
        }
    };
    // Both at once. What the slow one sends takes three windows and more.
    let steady = LEAST * 3 / 2;
    let len = index(steady * WINDOW.as_secs() * 3);
    let (dripping, slow) = tokio::join!(send(LEAST / 2, len), send(steady, len));

    let (upload, content, answer, took) = dripping;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(took >= WINDOW, "ended after {took:?}");
    let kept: usize = answer
        .header("Upload-Offset")
        .and_then(|kept| kept.parse().ok())
        .expect("an offset");
    assert!(length(kept) >= LEAST / 2 && kept < len / 2, "{kept} of {len}");
    assert_eq!(upload.offset().await, length(kept));
    assert_unfinished(&far.site, &upload).await;
    upload.append(length(kept), &content[kept..]).await;
    far.site.expect_delivered(&upload, &content).await;

    let (upload, content, answer, took) = slow;
    assert_eq!(answer.status, 204, "{answer:?} after {took:?}");
    assert!(took > WINDOW * 2, "it was not slow: {took:?}");
    far.site.expect_delivered(&upload, &content).await;
    assert_eq!(far.site.metrics(Part::Up).await.count(STALLED, &[]), 1);
}
