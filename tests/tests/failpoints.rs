//! Every numbered step of finishing and copying, each made to kill its process, to fail, and to take long: the end is
//! the same. Promises 1 to 4 of DESIGN.md; faults.md rows 2, 44, 50, and "Making faults": the table of each × each.

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use shared::failpoint::Step;
use shared::upload::UploadState;
use tests::oracle::{File, Habits, Run, Sizes, Verdict};
use tests::pattern::{Random, assert_same, pattern};
use tests::site::{LIMIT, Part, Site, SiteBuilder};
use tests::wait::eventually;

const FAILPOINTS: &str = "FERRY_FAILPOINTS";
/// Sites at work at once: most of the time they wait for syncs and delays.
const AT_ONCE: usize = 4;
/// How often a step fails or takes long.
const TIMES: usize = 3;
const SIGKILL: i32 = 9;

/// Short delays, so that what fails comes again soon; slices, so that checkpoints are met; and a lease that no test
/// lives to see the end of: what a dead process held must be free because it is dead.
fn settings(site: SiteBuilder) -> SiteBuilder {
    site.env("LOG_FORMAT", "text")
        .env("RETRY_DELAYS", "100ms,100ms,200ms,200ms,500ms,500ms,1s")
        .env("SWEEP_INTERVAL", "300ms")
        .env("SLICE_BYTES", "1MiB")
        .env("CLAIM_LEASE", "1h")
}

fn habits(bear_refusals: bool) -> Habits {
    Habits {
        sizes: Sizes::SMALL,
        pace: Duration::from_millis(30),
        careless: false,
        bear_refusals,
    }
}

/// Empty, small, and of several slices.
fn files(step: Step) -> Vec<Vec<File>> {
    let seed = u64::try_from(step.as_str().len()).expect("a short name");
    [vec![0, 70_000, 1], vec![300_000, 2_500_000, 4_096]]
        .into_iter()
        .map(|lens| lens.into_iter().map(|len| File { seed: seed + 1, len }).collect())
        .collect()
}

async fn for_each_step<F: Future<Output = Verdict>>(steps: &[Step], case: impl Fn(Step) -> F) {
    let all = stream::iter(steps).map(|step| async {
        let verdict = case(*step).await;
        println!("{}: {verdict}", step.as_str());
    });
    all.buffer_unordered(AT_ONCE).collect::<()>().await;
}

/// How often the log says that `step` was met.
fn met(site: &Site, step: Step) -> usize {
    let line = format!("failpoint step=\"{}\"", step.as_str());
    site.log().matches(&line).count()
}

/// Sends the files while `step` does `action` some times, without the end of any process.
async fn without_a_kill(step: Step, action: &str, bear_refusals: bool) -> Verdict {
    let failpoint = format!("{}={action}*{TIMES}", step.as_str());
    let mut site = settings(Site::build()).env(FAILPOINTS, &failpoint).start().await;
    let run = Run::begin_with(&site, files(step), habits(bear_refusals), &mut Random::new(1));
    eventually(&format!("{} is met", step.as_str()), LIMIT, || async {
        (met(&site, step) >= TIMES).then_some(())
    })
    .await;
    let verdict = run.end(&site, 0).await;
    assert!(site.is_running(), "{}: it ended", step.as_str());
    assert_eq!(met(&site, step), TIMES, "{}", step.as_str());
    verdict
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_of_any_step_is_made_good() {
    for_each_step(Step::ALL, |step| without_a_kill(step, "error", true)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_step_may_take_long() {
    for_each_step(Step::ALL, |step| without_a_kill(step, "delay:150ms", false)).await;
}

/// Rows 2, 44 and 50, in `ferry up`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_step_loses_nothing() {
    for_each_step(Step::ALL, |step| async move {
        let failpoint = format!("{}=exit", step.as_str());
        let mut site = settings(Site::build()).env(FAILPOINTS, &failpoint).start().await;
        let mut run = Run::begin_with(&site, files(step), habits(false), &mut Random::new(2));
        expect_killed(&mut site, Part::Up, step).await;
        run.goes_down();
        site.restart().await;
        run.is_up();
        run.end(&site, 1).await
    })
    .await;
}

/// The same of one process among several. A copier that is killed does not come back: the other one does its work,
/// also what it had begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_of_one_of_several_processes_at_any_step_loses_nothing() {
    for_each_step(Step::ALL, |step| async move {
        let finishing = step.as_str().starts_with("finish.");
        let victim = if finishing { Part::Ingest } else { Part::Copier(0) };
        let failpoint = format!("{}=exit", step.as_str());
        let site = settings(Site::build().copiers(2)).env_of(victim, FAILPOINTS, &failpoint);
        let mut site = site.start().await;
        // As long as it lives there is work, so that it gets some of it.
        let mut run = Run::begin(&site, 2, habits(false), &mut Random::new(3));
        expect_killed(&mut site, victim, step).await;
        if victim.accepts() {
            run.goes_down();
            site.restart_part(victim).await;
            run.is_up();
        }
        run.end(&site, 1).await
    })
    .await;
}

async fn expect_killed(site: &mut Site, victim: Part, step: Step) {
    let status = site.part_ended(victim, LIMIT).await;
    assert_eq!(status.signal(), Some(SIGKILL), "{}: {status}", step.as_str());
    site.forget_env(FAILPOINTS);
}

/// Row 2: the sender of the last byte never comes back, and nobody asks for the upload: it is finished all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_nobody_asks_for_is_finished_after_a_kill_at_any_step() {
    let steps: Vec<Step> = Step::ALL.to_vec();
    let finishing = steps.into_iter().filter(|step| step.as_str().starts_with("finish."));
    let all = stream::iter(finishing).map(|step| async move {
        let failpoint = format!("{}=exit", step.as_str());
        let mut site = settings(Site::build()).env(FAILPOINTS, &failpoint).start().await;
        let content = pattern(7, 100_000);
        let upload = site.client().create(content.len(), &[("filename", "alone.bin")]).await;
        let answer = upload.try_patch(0, &content).await;
        assert!(
            answer.is_err(),
            "{}: answered although it died: {answer:?}",
            step.as_str()
        );
        expect_killed(&mut site, Part::Up, step).await;
        let committing = {
            let (records, _) = site.database();
            let record = records.upload(upload.id.parse().expect("an upload id")).await;
            record.expect("a record").state == UploadState::Committing
        };
        let between = [
            Step::CommittingRecorded,
            Step::FinishClaimed,
            Step::ObjectWhole,
            Step::Published,
        ];
        assert_eq!(committing, between.contains(&step), "{}", step.as_str());
        site.restart().await;
        // Neither HEAD nor /info: either might wake the finisher.
        for target in ["dex", "edav"] {
            let path = eventually(&format!("{}: it is in {target}", step.as_str()), LIMIT, || async {
                site.files(target).into_iter().next()
            })
            .await;
            assert_same(target, &std::fs::read(path).expect("read a copy"), &content);
        }
        eventually(&format!("{}: nothing is committing", step.as_str()), LIMIT, || async {
            let metrics = site.metrics(Part::Up).await;
            let zero = metrics.count("ferry_uploads", &[("state", "committing")]) == 0;
            (zero && metrics.has("ferry_uploads", &[("state", "committing")])).then_some(())
        })
        .await;
    });
    all.buffer_unordered(AT_ONCE).collect::<()>().await;
}
