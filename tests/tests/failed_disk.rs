//! Disks that fail, under the real programs: rows 12 and 14. `strace` makes the calls fail, of one file or folder and
//! for as long as a test likes. Promises 1 to 3 of DESIGN.md.

// There is no strace elsewhere.
#![cfg(target_os = "linux")]

use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use serde_json::Value;
use tests::client::Upload;
use tests::pattern::{assert_same, pattern};
use tests::raw::SlowPatch;
use tests::site::{LIMIT, Part, Site, SiteBuilder, TARGETS};
use tests::strace::{Strace, real};
use tests::wait::eventually;

const KIB: usize = 1024;
const SYNCS: &str = "fsync,fdatasync";

fn site() -> SiteBuilder {
    Site::build().env("SWEEP_INTERVAL", "1s").env("RETRY_DELAYS", "200ms")
}

async fn failed_syncs(site: &Site) -> u64 {
    site.metrics(Part::Up).await.count("ferry_fsync_errors_total", &[])
}

/// The one staged file in raw.
fn staged(site: &Site) -> PathBuf {
    let mut staged = site.staged("raw");
    assert_eq!(staged.len(), 1, "{staged:?}");
    staged.remove(0)
}

async fn expect_delivered(site: &Site, upload: &Upload, content: &[u8]) {
    for target in TARGETS {
        assert_same(target, &site.delivered(target, &upload.id).await, content);
    }
}

/// The status of the delivery to `target` on `/info`.
async fn status(upload: &Upload, target: &str) -> Option<Value> {
    let info = upload.info().await;
    let deliveries = info["deliveries"].as_array()?;
    deliveries.iter().find(|delivery| delivery["name"] == target).cloned()
}

/// Row 12, `patch`: a piece whose sync failed is not acknowledged, nor is it after the next sync "succeeded": what is
/// there is read again and compared first. The upload goes on where its sender was told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_piece_whose_sync_failed_is_read_again_before_the_upload_goes_on() {
    let site = site().env("DURABILITY", "patch").start().await;
    let content = pattern(12, 300 * KIB);
    let upload = site.client().create(content.len(), &[]).await;
    upload.append(0, &content[..100 * KIB]).await;
    assert_eq!(failed_syncs(&site).await, 0);

    let fault = Strace::fail(site.pid(Part::Up), SYNCS, &staged(&site)).await;
    let answer = upload.patch(100 * KIB as u64, &content[100 * KIB..200 * KIB]).await;
    assert!(answer.status >= 500, "acknowledged without a sync: {answer:?}");
    let tried = fault.injected();
    assert!(tried >= 1, "the fault came: {}", fault.lines());
    assert_eq!(failed_syncs(&site).await, tried as u64);
    // While the disk fails nothing is told that it may not have.
    let head = upload.head().await;
    assert!(
        head.status >= 500 || head.number("Upload-Offset") == Some(100 * KIB as u64),
        "{head:?}"
    );
    fault.end().await;

    // The next sync would succeed at once: the kernel counts those pages as written. They are read before it counts.
    let path = real(&staged(&site));
    let strace = Strace::record(site.pid(Part::Up)).await;
    let asked = format!("HEAD /files/{}", upload.id);
    let head = upload.head().await.expect(200);
    let told = head.number("Upload-Offset").expect("an offset");
    assert!(told >= 100 * KIB as u64, "an acknowledged byte is gone: {head:?}");
    let trace = strace.detach().await;
    let answered = trace.answers(200, &asked);
    assert_eq!(answered.len(), 1, "{trace:?}");
    assert!(
        trace.reads_of(&path, answered[0]) > 0,
        "nothing was read again: {trace:?}"
    );

    let told = usize::try_from(told).expect("an offset in memory");
    upload.append(told as u64, &content[told..]).await;
    expect_delivered(&site, &upload, &content).await;
}

/// Row 12: what a failed sync lost of acknowledged bytes is told as such: 410, `/info`, and never a delivery.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_a_failed_sync_left_with_other_bytes_is_gone() {
    let site = site().env("DURABILITY", "patch").start().await;
    let content = pattern(13, 300 * KIB);
    let upload = site.client().create(content.len(), &[]).await;
    upload.append(0, &content[..100 * KIB]).await;
    let path = staged(&site);
    let fault = Strace::fail(site.pid(Part::Up), SYNCS, &path).await;
    let answer = upload.patch(100 * KIB as u64, &content[100 * KIB..200 * KIB]).await;
    assert!(answer.status >= 500, "{answer:?}");
    // A page that the kernel gave up reads as it was on the disk before.
    let file = std::fs::File::options()
        .write(true)
        .open(&path)
        .expect("open the staged file");
    file.write_all_at(&[0; 4 * KIB], 96 * KIB as u64).expect("write to it");
    fault.end().await;

    eventually("it is told that bytes are lost", LIMIT, || async {
        (upload.head().await.status == 410).then_some(())
    })
    .await;
    upload.patch(100 * KIB as u64, &content[100 * KIB..]).await.expect(410);
    let log = site.log();
    assert!(log.contains("missing or not those received"), "it is logged");
    for container in ["raw", "dex", "edav"] {
        assert!(site.files(container).is_empty(), "{:?}", site.files(container));
    }
    // Other uploads live.
    let other = site.client().create(KIB, &[]).await;
    other.append(0, &content[..KIB]).await;
    expect_delivered(&site, &other, &content[..KIB]).await;
}

/// Row 12, `finish`: an upload whose last sync fails is not told as whole by anybody, is not visible and not delivered;
/// when the disk is well again it is finished without its sender.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_is_not_whole_while_its_sync_fails_and_is_finished_when_it_does_not() {
    let site = site().start().await;
    let content = pattern(14, 200 * KIB);
    let upload = site.client().create(content.len(), &[]).await;
    upload.append(0, &content[..100 * KIB]).await;
    let fault = Strace::fail(site.pid(Part::Up), SYNCS, &staged(&site)).await;
    let last = upload.patch(100 * KIB as u64, &content[100 * KIB..]).await;
    assert!(last.status >= 500, "told as finished without a sync: {last:?}");
    assert!(fault.injected() >= 1, "{}", fault.lines());
    let head = upload.head().await;
    assert!(
        head.status >= 500 || head.number("Upload-Offset") != Some(content.len() as u64),
        "told as whole without a sync: {head:?}"
    );
    assert!(site.files("raw").is_empty(), "{:?}", site.files("raw"));
    assert!(status(&upload, "dex").await.is_none());
    assert!(failed_syncs(&site).await >= 1);
    fault.end().await;

    eventually("it is there, all of it or what can be proved", LIMIT, || async {
        (upload.head().await.status == 200).then_some(())
    })
    .await;
    let told = upload.offset().await;
    if told < content.len() as u64 {
        let told = usize::try_from(told).expect("an offset in memory");
        upload.append(told as u64, &content[told..]).await;
    }
    expect_delivered(&site, &upload, &content).await;
}

/// Row 12: nor does a HEAD that finds all bytes there, of an upload that nobody finished, tell so when their sync fails;
/// and what it falls back to is read again and compared.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_tells_no_upload_as_whole_whose_sync_fails() {
    let site = Site::build()
        .env("FERRY_FAILPOINTS", "finish.last-byte-stored=error*1")
        .env("SWEEP_INTERVAL", "1h");
    let site = site.start().await;
    let content = pattern(19, 200 * KIB);
    let upload = site.client().create(content.len(), &[]).await;
    upload.append(0, &content[..100 * KIB]).await;
    let last = upload.patch(100 * KIB as u64, &content[100 * KIB..]).await;
    assert!(last.status >= 500, "{last:?}");
    let fault = Strace::fail(site.pid(Part::Up), SYNCS, &staged(&site)).await;
    for _ in 0..2 {
        let head = upload.head().await;
        assert!(head.status >= 500, "told as whole without a sync: {head:?}");
    }
    assert!(fault.injected() >= 1, "{}", fault.lines());
    assert!(failed_syncs(&site).await >= 1);
    assert!(site.files("raw").is_empty(), "{:?}", site.files("raw"));
    fault.end().await;
    let path = real(&staged(&site));
    let strace = Strace::record(site.pid(Part::Up)).await;
    let told = usize::try_from(upload.offset().await).expect("an offset in memory");
    let trace = strace.detach().await;
    let answered = trace.answers(200, &format!("HEAD /files/{}", upload.id));
    assert!(
        trace.reads_of(&path, answered[0]) > 0,
        "nothing was read again: {trace:?}"
    );
    assert!(told >= 100 * KIB, "an acknowledged byte is gone: {told}");
    if told < content.len() {
        upload.append(told as u64, &content[told..]).await;
    }
    expect_delivered(&site, &upload, &content).await;
}

/// Row 12: the same where the name's folder cannot be synced: the rename does not count, and is done anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_whose_name_cannot_be_synced_is_not_told_as_finished() {
    let site = site().start().await;
    let content = pattern(15, 100 * KIB);
    let upload = site.client().create(content.len(), &[]).await;
    let fault = Strace::fail(site.pid(Part::Up), SYNCS, &site.data().join("raw")).await;
    let last = upload.patch(0, &content).await;
    assert!(last.status >= 500, "told as finished without a sync: {last:?}");
    assert!(fault.injected() >= 1, "{}", fault.lines());
    assert!(status(&upload, "dex").await.is_none());
    assert!(failed_syncs(&site).await >= 1);
    fault.end().await;
    eventually("it is there", LIMIT, || async {
        (upload.head().await.status == 200).then_some(())
    })
    .await;
    let told = usize::try_from(upload.offset().await).expect("an offset in memory");
    if told < content.len() {
        upload.append(told as u64, &content[told..]).await;
    }
    expect_delivered(&site, &upload, &content).await;
}

/// Row 12: a copy whose sync fails is no success, holds up no other target, and is made when the disk is well again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_cannot_be_synced_is_no_success() {
    let site = Site::build().env(
        "RETRY_DELAYS",
        "500ms,500ms,500ms,500ms,500ms,500ms,500ms,500ms,500ms,500ms",
    );
    let site = site.start().await;
    let fault = Strace::fail(site.pid(Part::Up), SYNCS, &site.data().join("dex")).await;
    let content = pattern(16, 100 * KIB);
    let upload = site.client().create(content.len(), &[]).await;
    upload.append(0, &content).await;
    assert_same("edav", &site.delivered("edav", &upload.id).await, &content);
    eventually("the sync of the copy in dex fails", LIMIT, || async {
        (failed_syncs(&site).await >= 1).then_some(())
    })
    .await;
    let dex = status(&upload, "dex").await.expect("a delivery");
    assert_ne!(dex["status"], "SUCCESS", "{dex}");
    fault.end().await;
    assert_same("dex", &site.delivered("dex", &upload.id).await, &content);
}

/// Row 14: stored bytes that cannot be read are class source: never delivered, said on `/info`, in the log and in the
/// report.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_cannot_be_read_is_not_delivered() {
    let site = site().start().await;
    let content = pattern(17, 100 * KIB);
    let upload = site.client().create(content.len(), &[]).await;
    let raw = site.data().join("raw").join(&upload.id);
    let fault = Strace::fail(site.pid(Part::Up), "pread64,preadv,read,copy_file_range", &raw).await;
    upload.append(0, &content).await;
    for target in TARGETS {
        let failed = eventually("the delivery fails", LIMIT, || async {
            status(&upload, target)
                .await
                .filter(|delivery| delivery["status"] == "FAILURE")
        })
        .await;
        let issues = failed["issues"].to_string();
        assert!(issues.contains("source"), "{failed}");
        assert!(site.files(target).is_empty(), "{:?}", site.files(target));
    }
    assert!(fault.injected() >= 2, "{}", fault.lines());
    // Deliveries fail; that the upload itself is complete was true, and stays.
    assert!(site.log().contains(&upload.id));
    fault.end().await;
}

/// Row 14: bytes that a restart has to read again, for their checksum, and cannot: the upload is not told as finished,
/// `/info` says why, and it goes on by itself when they can be read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_whose_bytes_cannot_be_read_is_not_complete() {
    let mut site = site().start().await;
    let content = pattern(18, 200 * KIB);
    let upload = site.client().create(content.len(), &[]).await;
    let mut patch = SlowPatch::begin(site.addr(), &upload.path(), 0, content.len()).await;
    patch.send(&content[..100 * KIB]).await.expect("send a part");
    eventually("what came is told", LIMIT, || async {
        (upload.offset().await == 100 * KIB as u64).then_some(())
    })
    .await;
    // Their checksum dies with the process.
    site.kill();
    site.restart().await;
    let upload = site.client().upload_of(&upload.id);
    let fault = Strace::fail(site.pid(Part::Up), "pread64,preadv,read", &staged(&site)).await;
    let last = upload.patch(100 * KIB as u64, &content[100 * KIB..]).await;
    assert!(last.status >= 500, "told as finished, unread: {last:?}");
    assert!(fault.injected() >= 1, "{}", fault.lines());
    let info = eventually("/info says why", LIMIT, || async {
        let info = upload.info().await;
        info["issues"].to_string().contains("cannot be read").then_some(info)
    })
    .await;
    assert_ne!(info["upload_status"]["status"], "Complete", "{info}");
    assert!(site.files("raw").is_empty(), "{:?}", site.files("raw"));
    assert!(site.log().contains("stored bytes cannot be read"));
    fault.end().await;
    expect_delivered(&site, &upload, &content).await;
}
