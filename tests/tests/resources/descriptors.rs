//! Row 15: out of file descriptors, accepting pauses without a busy loop, and running uploads go on.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use tests::client::Client;
use tests::gauge::processor_ticks;
use tests::metrics::Metrics;
use tests::pattern::{assert_same, pattern};
use tests::raw::SlowPatch;
use tests::site::{Part, Site};
use tests::wait::eventually;
use tokio::net::TcpStream;

use super::{MIB, RECOVERY};

#[tokio::test]
async fn without_descriptors_running_uploads_go_on_and_new_connections_wait() {
    let site = Site::start().await;
    let content = pattern(1, 4 * MIB);
    let upload = site.client().create(content.len(), &[("filename", "x.bin")]).await;
    let mut patch = SlowPatch::begin(site.addr(), &upload.path(), 0, content.len()).await;
    patch.send(&content[..MIB]).await.expect("send");
    eventually("the first bytes", RECOVERY, || async {
        (upload.offset().await > 0).then_some(())
    })
    .await;
    let watcher = site.client(); // its connection stays
    let open = open_files(&watcher, &site).await;
    let pid = Pid::from_raw(i32::try_from(site.pid(Part::Up)).expect("a process id"));
    let old = prlimit(pid, Resource::Nofile, limit(16)).expect("lower the limit");
    assert!(open > 16.0, "{open} are open");

    // Nobody is accepted any more; the kernel takes the connections and keeps them.
    let mut waiting = Vec::new();
    for _ in 0..20 {
        waiting.push(TcpStream::connect(site.addr()).await.expect("the kernel takes it"));
    }
    let (began, ticks) = (Instant::now(), processor_ticks(site.pid(Part::Up)));
    let mut sent = MIB;
    let mut pace = tokio::time::interval(Duration::from_millis(100));
    while sent < content.len() {
        pace.tick().await;
        let end = content.len().min(sent + MIB / 8);
        patch
            .send(&content[sent..end - usize::from(end == content.len())])
            .await
            .expect("the upload goes on");
        sent = end;
    }
    assert!(open_files(&watcher, &site).await > 16.0, "process_open_fds is told");
    let used = processor_ticks(site.pid(Part::Up)) - ticks;
    let passed = began.elapsed();
    assert!(passed > Duration::from_secs(2));
    // A loop would use all of a processor: 100 ticks a second.
    let most = u64::try_from(passed.as_millis() / 10).expect("a short time") / 2;
    assert!(used < most, "{used} ticks in {passed:?}");
    let kept = watcher.tus("HEAD", &upload.url, &[], "").await;
    assert!(kept.number("Upload-Offset") > Some(2 * 1024 * 1024), "{kept:?}");

    prlimit(pid, Resource::Nofile, old).expect("raise the limit");
    patch.send(&content[content.len() - 1..]).await.expect("send the end");
    assert_eq!(patch.answer().await.expect("an answer").status, 204);
    assert_same("dex", &site.delivered("dex", &upload.id).await, &content);
    drop(waiting);
    let served = open_files(&site.client(), &site).await;
    assert!(served > 0.0, "new connections are served");
}

/// A low limit is not used up by connections: uploads have files to write to, whoever else connects.
#[tokio::test]
async fn a_flood_of_connections_leaves_descriptors_for_uploads() {
    let site = Site::build().descriptors(200).start().await;
    assert!(site.log().contains("fewer are accepted"), "{}", site.log());
    let content = pattern(2, 2 * MIB);
    let upload = site.client().create(content.len(), &[("filename", "x.bin")]).await;
    let mut patch = SlowPatch::begin(site.addr(), &upload.path(), 0, content.len()).await;
    let mut flood = Vec::new();
    for _ in 0..400 {
        flood.push(TcpStream::connect(site.addr()).await.expect("the kernel takes it"));
    }
    patch.send(&content).await.expect("send");
    assert_eq!(patch.answer().await.expect("an answer").status, 204, "{}", site.log());
    drop(flood);
    assert_same("edav", &site.delivered("edav", &upload.id).await, &content);
    assert!(!site.log().contains("Too many open files"), "{}", site.log());
}

/// `process_open_fds`, asked by `client` on a connection that it has.
async fn open_files(client: &Client, site: &Site) -> f64 {
    let answer = client.send("GET", &site.url("/metrics"), &[], "").await;
    let metrics = Metrics::parse(&answer.expect("GET /metrics").expect(200).text());
    assert!(metrics.has("process_open_fds", &[]));
    metrics.sum("process_open_fds", &[])
}

fn limit(most: u64) -> Rlimit {
    Rlimit {
        current: Some(most),
        // As it is: one that is lowered cannot be raised again by everybody.
        maximum: getrlimit(Resource::Nofile).maximum,
    }
}
