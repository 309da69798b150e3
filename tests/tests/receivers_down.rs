//! Row 74: nothing waits for whoever takes traces or log lines. Dead, hanging, refusing or not reading: uploads and
//! copies keep their speed, what is lost is counted, and the end is not held up. Spec: faults.md row 74; DESIGN.md,
//! promise 5.

use std::time::{Duration, Instant};

use tests::client::Client;
use tests::otlp::{Collector, Manner};
use tests::pattern::pattern;
use tests::site::{LIMIT, Part, Site, SiteBuilder};
use tests::wait::eventually;

/// Uploads of one round: each makes some fifteen spans.
const UPLOADS: usize = 60;
/// What the end may take although somebody does not take the last spans (2 s) and lines (1 s), on a busy machine.
const END: Duration = Duration::from_secs(8);

/// Sends a round of small uploads one after the other, waits until all are delivered, and answers how long it took.
async fn round(site: &Site, client: &Client) -> Duration {
    let content = pattern(1, 5_000);
    let begin = Instant::now();
    let mut ids = Vec::with_capacity(UPLOADS);
    for _ in 0..UPLOADS {
        let upload = client.create(content.len(), &[("filename", "round.bin")]).await;
        upload.append(0, &content).await;
        ids.push(upload.id);
    }
    for id in &ids {
        for target in ["dex", "edav"] {
            site.delivery(target, id).await;
        }
    }
    begin.elapsed()
}

/// Waiting even once for a receiver would cost its time-out, which is longer than this.
fn assert_keeps_speed(how: &str, usual: Duration, now: Duration) {
    println!("{how}: {now:?}, usually {usual:?}");
    assert!(
        now < usual * 3 + Duration::from_secs(2),
        "{how}: {now:?}, usually {usual:?}"
    );
}

async fn dropped(site: &Site, name: &str) -> u64 {
    site.metrics(Part::Up).await.count(name, &[])
}

async fn assert_counted(site: &Site, name: &str) {
    eventually(&format!("{name} counts"), LIMIT, || async {
        (dropped(site, name).await > 0).then_some(())
    })
    .await;
}

async fn assert_ends(mut site: Site) {
    let begin = Instant::now();
    assert_eq!(site.terminate().await.code(), Some(0));
    let took = begin.elapsed();
    println!("ended in {took:?}");
    assert!(took < END, "{took:?}");
}

fn exporting(endpoint: &str) -> SiteBuilder {
    Site::build().env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
}

/// Row 74: a collector that takes connections and requests, and never answers. Its time-out is ten minutes: whoever
/// waited for it would wait for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_hangs_holds_up_nothing_and_not_the_end() {
    let collector = Collector::start(Manner::Takes).await;
    let site = exporting(&collector.endpoint())
        .env("OTEL_EXPORTER_OTLP_TIMEOUT", "600000")
        .start()
        .await;
    let client = site.client();
    round(&site, &client).await; // the first is slower, whatever happens
    let usual = round(&site, &client).await;
    assert_eq!(dropped(&site, "ferry_spans_dropped_total").await, 0);
    collector.behave(Manner::Hangs);
    let mut rounds = 0;
    // Until the queue is full, and nothing can be waiting for room in it.
    while dropped(&site, "ferry_spans_dropped_total").await == 0 {
        assert_keeps_speed("hanging", usual, round(&site, &client).await);
        rounds += 1;
        assert!(rounds < 30, "the queue has a bound");
    }
    assert_keeps_speed("full", usual, round(&site, &client).await);
    assert_ends(site).await;
}

/// Row 74: the same, given up after its time-out; when it answers again spans come again, without a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_collector_does_not_take_is_counted_and_what_it_takes_again_arrives() {
    for manner in [Manner::Hangs, Manner::Refuses(500), Manner::Refuses(503)] {
        let collector = Collector::start(Manner::Takes).await;
        let site = exporting(&collector.endpoint())
            .env("OTEL_EXPORTER_OTLP_TIMEOUT", "300")
            .start()
            .await;
        let client = site.client();
        round(&site, &client).await;
        let usual = round(&site, &client).await;
        collector.behave(manner);
        assert_keeps_speed(&format!("{manner:?}"), usual, round(&site, &client).await);
        assert_counted(&site, "ferry_spans_dropped_total").await;
        let told = site.log().matches("spans are not taken").count();
        assert_eq!(told, 1, "once, and not for each request: {}", site.log());
        collector.behave(Manner::Takes);
        let before = collector.spans().len();
        round(&site, &client).await;
        eventually("spans come again", LIMIT, || async {
            (collector.spans().len() > before).then_some(())
        })
        .await;
        assert!(site.log().contains("spans are taken again"));
        assert_ends(site).await;
    }
}

/// Row 74: nobody is there at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_collector_holds_up_nothing() {
    let dead = Collector::start(Manner::Takes).await.endpoint();
    let usual = {
        let site = Site::start().await;
        let client = site.client();
        round(&site, &client).await;
        round(&site, &client).await
    };
    let site = exporting(&dead).start().await;
    let client = site.client();
    round(&site, &client).await;
    assert_keeps_speed("dead", usual, round(&site, &client).await);
    assert_counted(&site, "ferry_spans_dropped_total").await;
    assert_ends(site).await;
}

/// The last spans are sent before the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_sends_what_waits() {
    let collector = Collector::start(Manner::Takes).await;
    let mut site = exporting(&collector.endpoint()).start().await;
    let upload = site.client().create(4, &[]).await;
    upload.append(0, b"1234").await;
    assert_eq!(site.terminate().await.code(), Some(0));
    let spans = collector.spans();
    let patches = spans.iter().filter(|span| span.name == "PATCH /files/{id}").count();
    assert_eq!(patches, 1, "{spans:#?}");
}

/// Row 74: standard error is a pipe that nobody reads. It is full soon, and so is what waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_reads_holds_up_nothing() {
    let usual = {
        let site = Site::build().env("RUST_LOG", "trace").start().await;
        let client = site.client();
        round(&site, &client).await;
        round(&site, &client).await
    };
    let site = Site::build().env("RUST_LOG", "trace").unread_log().start().await;
    let client = site.client();
    let mut rounds = 0;
    while dropped(&site, "ferry_log_dropped_total").await == 0 {
        round(&site, &client).await;
        rounds += 1;
        assert!(rounds < 30, "what waits has a bound");
    }
    println!("full after {rounds} rounds");
    assert_keeps_speed("unread", usual, round(&site, &client).await);
    assert_ends(site).await;
}
