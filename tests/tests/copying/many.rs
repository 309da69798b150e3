//! The number of files costs nothing: the last one is as quick as the first. Promise 6 of DESIGN.md; faults.md row 64.
//!
//! In CI a few hundred files are sent before and after the records are filled with those of many thousand more. A
//! million that are really sent take an hour or more, and 30 GB:
//!
//! ```sh
//! cargo build --workspace --bins
//! FERRY_TEST_SMALL_FILES=1000000 cargo test -p tests --test copying small_file -- --nocapture
//! ```

use std::fs;
use std::time::Instant;

use futures_util::stream::{self, StreamExt as _};
use rusqlite::{Connection, params};
use tests::pattern::pattern;
use tests::site::{LIMIT, Part, Site, TARGETS};
use tests::wait::eventually;

use crate::peak_mib;

/// Records that are put beside those of the files that are sent.
const FILLED: usize = 20_000;
/// Files of a tenth in CI.
const TENTH: usize = 300;
/// A tenth is looked at in so many parts, and the best counts: what else the machine does costs time here and there.
const PARTS: usize = 3;
/// Senders at once.
const SENDERS: usize = 8;

/// Row 64: the processor time of a small file, from its creation to its second report, is at the end within a fifth of
/// what it was at the beginning, with sweeps all the time; and memory is what it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_file_costs_the_same_whatever_was_before_it() {
    let site = Site::build().env("SWEEP_INTERVAL", "200ms").start().await;
    let mut sent = Sent { site, files: 0 };
    sent.more(100).await; // what is done once is done now
    let given = std::env::var("FERRY_TEST_SMALL_FILES").ok();
    let all: Option<usize> = given.map(|text| text.parse().expect("FERRY_TEST_SMALL_FILES is a number"));
    let tenth = all.map_or(TENTH, |all| all / 10);
    let first = sent.tenth(tenth).await;
    let memory = peak_mib(&sent.site, Part::Up);
    match all {
        Some(_) => {
            for _ in 0..8 {
                sent.tenth(tenth).await;
            }
        }
        None => fill(&sent.site, FILLED),
    }
    let last = sent.tenth(tenth).await;
    let peak = peak_mib(&sent.site, Part::Up);
    assert!(
        last <= first * 1.2,
        "{first:.2} ms of processor time, then {last:.2} ms"
    );
    assert!(peak <= memory + 32, "{memory} MiB, then {peak} MiB");
}

/// A site, and how many files it has delivered.
struct Sent {
    site: Site,
    files: usize,
}

impl Sent {
    /// Sends `files` of them; answers what one costs the processor, in milliseconds.
    async fn tenth(&mut self, files: usize) -> f64 {
        let begun = Instant::now();
        let mut best = f64::INFINITY;
        for _ in 0..PARTS {
            let before = processor_time_ms(&self.site);
            self.more(files / PARTS).await;
            let took = processor_time_ms(&self.site) - before;
            best = best.min(took / f64::from(u32::try_from(files / PARTS).expect("not that many files")));
        }
        println!(
            "{} files: {best:.2} ms each; {files} took {:?}",
            self.files,
            begun.elapsed()
        );
        best
    }

    /// Sends so many files more, and waits until all are delivered and reported.
    async fn more(&mut self, files: usize) {
        let (client, content) = (self.site.client(), pattern(1, 1000));
        stream::iter(0..files)
            .for_each_concurrent(SENDERS, |_| async {
                let upload = client.create(content.len(), &[("filename", "small.bin")]).await;
                upload.append(0, &content).await;
            })
            .await;
        self.files += files;
        let copies = self.files * TARGETS.len();
        eventually("all files to be delivered and reported", LIMIT * 100, || async {
            let metrics = self.site.metrics(Part::Up).await;
            let delivered = metrics.count("ferry_copies_total", &[("result", "succeeded")]);
            let reported = metrics.count("ferry_reports_sent_total", &[("action", "blob-file-copy")]);
            (delivered >= copies as u64 && reported >= copies as u64).then_some(())
        })
        .await;
    }
}

/// User and system time of the site's process so far.
fn processor_time_ms(site: &Site) -> f64 {
    /// Of `USER_HZ`, which is 100 wherever Linux runs.
    const TICK_MS: u32 = 10;
    let path = format!("/proc/{}/stat", site.pid(Part::Up));
    let text = fs::read_to_string(path).expect("read about a process that runs");
    // The second field is a name in parentheses, which may hold anything.
    let (_, fields) = text.rsplit_once(')').expect("a name in parentheses");
    let times = fields.split_whitespace().skip(11).take(2);
    let ticks: u32 = times.map(|ticks| ticks.parse::<u32>().expect("a number")).sum();
    f64::from(ticks * TICK_MS)
}

/// Puts `records` uploads into the database that are delivered, like the one that is in it.
fn fill(site: &Site, records: usize) {
    let mut file = Connection::open(site.data().join("ferry.db")).expect("open the database");
    file.busy_timeout(LIMIT).expect("set a time-out");
    let change = file.transaction().expect("begin a transaction");
    let like: [u8; 16] = change
        .query_row("SELECT id FROM uploads WHERE open = 0 LIMIT 1", [], |row| row.get(0))
        .expect("a record to copy");
    let uploads = "WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < ?1)
         INSERT INTO uploads (id, seq, state, open, outbox, changed_at, body)
         SELECT randomblob(16), seq, state, open, outbox, changed_at, body FROM uploads, number WHERE id = ?2";
    let count = change.execute(uploads, params![records, like]).expect("insert uploads");
    assert_eq!(count, records);
    let deliveries = "INSERT INTO deliveries (upload, target, seq, state, open, outbox, body)
         SELECT id, target, deliveries.seq, deliveries.state, deliveries.open, deliveries.outbox, deliveries.body
         FROM uploads, deliveries
         WHERE deliveries.upload = ?1 AND id NOT IN (SELECT upload FROM deliveries)";
    let count = change.execute(deliveries, params![like]).expect("insert deliveries");
    assert_eq!(count, records * TARGETS.len());
    change.commit().expect("commit");
}
