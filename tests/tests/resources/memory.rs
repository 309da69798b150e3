//! Row 78 and promise 6 of DESIGN.md: memory grows neither with the size nor with the number of files, and before it
//! does senders are slowed down, not refused.

use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use tests::gauge::{forget_peak, peak_memory};
use tests::pattern::pattern;
use tests::raw::SlowPatch;
use tests::site::{Part, Site};
use tests::wait::eventually;

use super::MIB;

const MIB_BYTES: u64 = 1024 * 1024;
/// More than a large file takes on a machine that has much else to do.
const LONG: Duration = Duration::from_secs(180);
/// A process in test build has 40 MiB without work; the budget and the buffers of a few connections come on top.
const MOST: u64 = 96 * MIB_BYTES;

/// The same with 200 connections, each with a piece in its read buffer and one on its way to the disk.
const BURSTS: u64 = 200 * MIB_BYTES;

async fn site() -> Site {
    Site::build().env("MEMORY_BUDGET", "16MiB").start().await
}

/// Sends `mebibytes` of the same bytes, and waits for both copies. Answers the peak of memory meanwhile.
async fn peak_of_one(site: &Site, mebibytes: usize) -> u64 {
    let client = site.client();
    let upload = client.create(mebibytes * MIB, &[("filename", "large.bin")]).await;
    forget_peak(site.pid(Part::Up));
    let piece = bytes::Bytes::from(pattern(1, MIB));
    let pieces = stream::iter((0..mebibytes).map(move |_| Ok::<_, std::io::Error>(piece.clone())));
    let body = reqwest::Body::wrap_stream(pieces);
    let answer = upload.try_stream(0, mebibytes * MIB, body).await.expect("PATCH");
    answer.expect(204);
    eventually("both copies", LONG, || async {
        let info = upload.info().await;
        let deliveries = info["deliveries"].as_array()?;
        let there = deliveries.iter().all(|delivery| delivery["status"] == "SUCCESS");
        (there && deliveries.len() == 2).then_some(())
    })
    .await;
    let peak = peak_memory(site.pid(Part::Up));
    // What it left is not what the next one is to be measured by, nor what the disk has to hold.
    for container in ["raw", "dex", "edav"] {
        for path in site.files(container) {
            std::fs::remove_file(path).expect("remove what was measured");
        }
    }
    peak
}

#[tokio::test]
async fn a_file_four_times_as_large_takes_no_more_memory() {
    let site = site().await;
    let small = peak_of_one(&site, 64).await;
    let large = peak_of_one(&site, 256).await;
    eprintln!("peak of memory: {small} bytes for 64 MiB, {large} for 256 MiB");
    assert!(
        large < small + 16 * MIB_BYTES,
        "{small} bytes for 64 MiB, {large} for 256 MiB"
    );
    assert!(large < MOST, "{large} bytes");
}

/// Sends `count` small files, eight at a time, and waits for the copies of all. Answers the peak of memory meanwhile.
async fn peak_of_many(site: &Site, count: u64) -> u64 {
    forget_peak(site.pid(Part::Up));
    let client = site.client();
    let sent = stream::iter(0..count).map(|seed| {
        let client = client.clone();
        async move {
            let content = pattern(seed, 10_000);
            let upload = client.create(content.len(), &[("filename", "small.bin")]).await;
            upload.append(0, &content).await;
            upload.id
        }
    });
    let ids: Vec<String> = sent.buffer_unordered(8).collect().await;
    for id in &ids {
        site.delivery("dex", id).await;
        site.delivery("edav", id).await;
    }
    peak_memory(site.pid(Part::Up))
}

#[tokio::test]
async fn five_times_as_many_files_take_no_more_memory() {
    let site = site().await;
    let few = peak_of_many(&site, 100).await;
    let many = peak_of_many(&site, 500).await;
    eprintln!("peak of memory: {few} bytes for 100 files, {many} for 500");
    assert!(many < few + 16 * MIB_BYTES, "{few} bytes for 100 files, {many} for 500");
    assert!(many < MOST, "{many} bytes");
}

/// Bursts of many senders at once: what they hold in parts is bounded, and nobody is refused.
#[tokio::test]
async fn two_hundred_senders_at_once_share_one_budget() {
    let site = site().await;
    let client = site.client();
    let uploads = join_all((0..200).map(|_| client.create(4 * MIB, &[("filename", "x.bin")]))).await;
    forget_peak(site.pid(Part::Up));
    let burst = pattern(1, 900 * 1024);
    let addr = site.addr();
    let mut patches = join_all(uploads.iter().map(|upload| async {
        let mut patch = SlowPatch::begin(addr, &upload.path(), 0, burst.len()).await;
        patch.send(&burst[..burst.len() - 1]).await.expect("send");
        patch
    }))
    .await;
    let used = site.metrics(Part::Up).await.sum(USED, &[]);
    assert!(used <= 16.0 * 1024.0 * 1024.0, "{used} of the budget");
    for patch in &mut patches {
        patch.send(&burst[burst.len() - 1..]).await.expect("send the end");
        assert_eq!(patch.answer().await.expect("an answer").status, 204);
    }
    // 200 whole bursts would be 180 MiB on top of that.
    let peak = peak_memory(site.pid(Part::Up));
    eprintln!("peak of memory: {peak} bytes for 200 senders");
    assert!(peak < BURSTS, "{peak} bytes");
    assert!(site.metrics(Part::Up).await.sum(USED, &[]) < 1.0, "given back");
}

const USED: &str = "ferry_memory_budget_used_bytes";
