//! `kill -9` of everything at random moments, again and again, while eight senders go on.
//! Promises 1 to 4 of DESIGN.md; faults.md rows 1, 2, 3, 44, 50; core.md §7, "One report".
//!
//! A run is decided by its seed as far as the machine's own timing lets it: `FERRY_TEST_SEED=…` repeats one.
//! `FERRY_TEST_KILLS` sets the number of kills; a long run, of both shapes one after the other:
//!
//! ```sh
//! cargo build --workspace --bins
//! FERRY_TEST_KILLS=300 cargo test -p tests --test kills -- --nocapture --test-threads 1
//! ```

use std::time::{Duration, Instant};

use tests::oracle::{Habits, Run, Verdict, seed};
use tests::pattern::Random;
use tests::site::{Part, Site, SiteBuilder};

/// Kills of a run in CI.
const KILLS: usize = 60;
const SENDERS: usize = 8;
/// The longest that a process lives, but for its start.
const LIFE_MS: u64 = 700;

fn kills() -> usize {
    let given = std::env::var("FERRY_TEST_KILLS").ok();
    given.map_or(KILLS, |text| text.parse().expect("FERRY_TEST_KILLS is a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_kill_loses_a_byte_a_delivery_or_a_report() {
    let verdict = run(Site::build(), kills()).await;
    // A run that met nothing shows nothing.
    assert!(verdict.uploads >= 100, "too few uploads: {verdict}");
    assert!(verdict.interrupted >= 20, "{verdict}");
    assert!(verdict.finished_by_head >= 5, "{verdict}");
    assert!(verdict.compared >= 100, "{verdict}");
}

/// Of `ingest` and two copiers any one is killed, and now and then all at once: the others go on with what it had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_kill_of_one_of_several_processes_loses_a_byte_a_delivery_or_a_report() {
    let verdict = run(Site::build().copiers(2), kills()).await;
    assert!(verdict.uploads >= 100, "too few uploads: {verdict}");
    assert!(verdict.interrupted >= 10, "{verdict}");
    assert!(verdict.finished_by_head >= 5, "{verdict}");
    assert!(verdict.compared >= 50, "{verdict}");
}

async fn run(site: SiteBuilder, kills: usize) -> Verdict {
    let begin = Instant::now();
    let mut random = Random::new(seed());
    let mut site = site.start().await;
    let mut run = Run::begin(&site, SENDERS, Habits::default(), &mut random);
    let mut killed = 0;
    while killed < kills {
        // The fault itself is what is timed here: any moment in the life of a process.
        tokio::time::sleep(Duration::from_millis(random.below(LIFE_MS))).await;
        assert!(site.is_running(), "it ended by itself");
        let victims = victims(&site, &mut random);
        let accepts = victims.iter().any(|part| part.accepts());
        if accepts {
            run.goes_down();
        }
        for part in &victims {
            site.kill_part(*part);
            killed += 1;
        }
        if random.once_in(5) {
            // Recovery is cut short as well.
            victims.iter().for_each(|part| site.launch_part(*part));
            tokio::time::sleep(Duration::from_millis(random.below(200))).await;
            assert!(site.is_running(), "it ended by itself");
            for part in &victims {
                site.kill_part(*part);
                killed += 1;
            }
        }
        for part in &victims {
            site.restart_part(*part).await;
        }
        if accepts {
            run.is_up();
        }
        run.check();
    }
    println!("{killed} kills in {:?}", begin.elapsed());
    let verdict = run.end(&site, killed).await;
    println!("{verdict}; {:?}", begin.elapsed());
    verdict
}

/// One process, or all of them.
fn victims(site: &Site, random: &mut Random) -> Vec<Part> {
    let parts = site.parts();
    if random.once_in(8) {
        return parts;
    }
    let chosen = random.below(u64::try_from(parts.len()).expect("a few processes"));
    vec![parts[usize::try_from(chosen).expect("a few processes")]]
}
