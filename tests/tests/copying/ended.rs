//! A copier that is stopped or killed in a copy: the next one goes on behind the checkpoint. faults.md rows 50, 51.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _};
use serde_json::Value;
use shared::failpoint::Step;
use shared::message::Queue;
use shared::upload::DeliveryState;
use tests::pattern::{assert_same, pattern};
use tests::site::{LIMIT, Part, Site, TARGETS};

use crate::{COPIER, FAILPOINTS, MIB, deliveries, final_reports, len_of, send, staged};

const OTHER: Part = Part::Copier(1);
const SIGKILL: i32 = 9;
/// What is read ahead of the slowest target, in its queue and behind that.
const AHEAD: u64 = 8 * MIB as u64;
/// Sites at work at once: most of the time they wait for syncs.
const AT_ONCE: usize = 4;

/// How a long copy comes to its end before its time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Kill,
    Stop,
}

/// A long copy on slow targets, ended in the middle: it goes on behind its checkpoint. Of a kill less than a tenth is
/// read twice, of a stop what was read ahead; each byte before the checkpoint is written once.
async fn a_long_copy_goes_on(end: End) {
    let content = pattern(3, 256 * MIB);
    let size = content.len() as u64;
    let site = Site::build()
        .copiers(1)
        .env_of(COPIER, FAILPOINTS, "copy.part-written=delay:30ms");
    let mut site = site.start().await;
    let upload = send(&site, &content).await;
    let (records, bus) = site.database();
    let mut files = Vec::new();
    for target in TARGETS {
        files.push(staged(&site, target, size * 6 / 10).await);
    }
    match end {
        End::Kill => site.kill_part(COPIER),
        End::Stop => {
            let handed_on = stop_in_time(&mut site).await;
            let depth = bus.depth(Queue::Copy).await.expect("count messages");
            assert_eq!(
                (depth.ready, depth.in_flight, depth.delayed),
                (handed_on, 0, 0),
                "a continuation of each job, and what it follows is acknowledged"
            );
        }
    }
    let mut left = 0;
    for (delivery, file) in deliveries(records.as_ref(), &upload).await.iter().zip(&files) {
        let checkpoint = delivery.checkpoint.as_ref();
        let kept = checkpoint.expect("a copy on its way has a checkpoint").copied.covered();
        let written = len_of(file);
        println!("{}: {written} bytes written, {kept} kept", delivery.to.target);
        let twice = written - kept + AHEAD;
        assert!(twice * 10 < size, "{twice} of {size} bytes are read twice");
        assert_eq!(delivery.attempts, 0);
        if end == End::Stop {
            assert!(
                written - kept <= MIB as u64,
                "no more than the part that was being written is dropped"
            );
            assert_eq!((delivery.state, &delivery.claim), (DeliveryState::Pending, &None));
        }
        left += size - kept;
    }
    site.forget_env(FAILPOINTS);
    site.restart_part(COPIER).await;
    for target in TARGETS {
        assert_same(target, &site.delivered(target, &upload.id).await, &content);
        assert!(site.staged(target).is_empty(), "nothing is left in {target}");
    }
    let written = site.metrics(COPIER).await.count("ferry_copy_bytes_total", &[]);
    assert_eq!(written, left, "it went on behind the checkpoints");
    final_reports(&site, &upload, "SUCCESS").await;
}

/// SIGTERM: it says in its log what it finished, and ends well inside the default grace of 30 s. Answers how many jobs
/// it handed on: one, or two if the machine is so slow that one target was split off.
async fn stop_in_time(site: &mut Site) -> u64 {
    let begun = Instant::now();
    site.ask_part_to_stop(COPIER);
    assert_eq!(site.part_ended(COPIER, LIMIT).await.code(), Some(0));
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    let log = site.log_of(COPIER);
    let line = log.lines().find(|line| line.contains("drained"));
    let line: Value = serde_json::from_str(line.expect("the end is told in the log")).expect("a line of JSON");
    let fields = &line["fields"];
    assert_eq!(fields["cut"], 0, "{line}");
    let finished = fields["finished"].as_u64().expect("a number");
    assert!((1..=2).contains(&finished), "{line}");
    finished
}

/// Row 50.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_copy_that_is_killed_reads_less_than_a_tenth_twice() {
    a_long_copy_goes_on(End::Kill).await;
}

/// Row 51.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_copy_that_is_stopped_ends_at_a_part_border_and_goes_on_from_there() {
    a_long_copy_goes_on(End::Stop).await;
}

/// Row 50: killed exactly behind each step, a copier costs the next one no more than a slice of each target.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_step_of_a_copy_costs_a_slice_at_most() {
    let steps = [
        (Step::CopyBegun, 1),
        (Step::CopyClaimed, 2),
        (Step::CopyRead, 7),
        (Step::CopyPartWritten, 13),
        (Step::CopyCheckpointed, 3),
        (Step::CopyCompleted, 1),
        (Step::CopyRecorded, 1),
        (Step::CopyPublished, 2),
        (Step::CopyAcknowledged, 2),
        (Step::CopyReported, 6),
    ];
    let all = stream::iter(steps).map(|(step, time)| killed_at(step, time));
    all.buffer_unordered(AT_ONCE).collect::<()>().await;
}

async fn killed_at(step: Step, time: usize) {
    const SLICE: u64 = 2 * MIB as u64;
    let content = pattern(9, 8 * MIB);
    let size = content.len() as u64;
    let name = step.as_str();
    let site = Site::build()
        .copiers(2)
        .env("SLICE_BYTES", "2MiB")
        .env("CLAIM_LEASE", "1h")
        .env("RETRY_DELAYS", "200ms,1h")
        .env_of(COPIER, FAILPOINTS, &format!("{name}=exit@{time}"));
    let mut site = site.start().await;
    site.kill_part(OTHER); // all the work is the one's that dies
    let upload = send(&site, &content).await;
    let status = site.part_ended(COPIER, LIMIT).await;
    assert_eq!(status.signal(), Some(SIGKILL), "{name}: {status}");
    let written = TARGETS.map(|target| {
        let files = [site.staged(target), site.files(target)].concat();
        files.iter().map(|path| len_of(Path::new(path))).sum::<u64>()
    });
    site.restart_part(OTHER).await;
    for target in TARGETS {
        assert_same(name, &site.delivered(target, &upload.id).await, &content);
        assert_eq!(site.files(target).len(), 1, "{name}");
    }
    let metrics = site.metrics(OTHER).await;
    for (target, written) in TARGETS.into_iter().zip(written) {
        let again = metrics.count("ferry_copy_bytes_total", &[("target", target)]);
        println!("{name}: {target}: {written} bytes by the one, {again} by the other");
        assert!(
            written + again >= size && written + again <= size + SLICE,
            "{name}: {target}: {written} bytes and {again} for {size}"
        );
    }
    if step == Step::CopyCompleted {
        let skipped = metrics.count("ferry_copy_skipped_total", &[("reason", "already-there")]);
        assert!(skipped >= 1, "row 62: what is there is this upload's, and done");
    }
}
