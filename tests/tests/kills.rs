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

use tests::oracle::{Habits, Oracle, Run, seed};
use tests::pattern::Random;
use tests::site::{Part, Site, SiteBuilder};

/// Kills of a run in CI.
const KILLS: usize = 60;
const SENDERS: usize = 8;
/// The longest that a process lives, but for its start.
const LIFE_MS: u64 = 700;
/// A run that met too little goes on, up to this many times its kills.
const LONGEST: usize = 4;

/// What a run has to meet, or it shows nothing.
#[derive(Clone, Copy, Debug)]
struct Enough {
    uploads: usize,
    interrupted: u64,
    finished_by_head: u64,
    compared: u64,
}

impl Enough {
    fn is_met(self, oracle: &Oracle) -> bool {
        let counts = &oracle.counts;
        oracle.promises().len() >= self.uploads
            && counts.interrupted.get() >= self.interrupted
            && counts.finished_by_head.get() >= self.finished_by_head
            && counts.compared.get() >= self.compared
    }
}

fn kills() -> usize {
    let given = std::env::var("FERRY_TEST_KILLS").ok();
    given.map_or(KILLS, |text| text.parse().expect("FERRY_TEST_KILLS is a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_kill_loses_a_byte_a_delivery_or_a_report() {
    let enough = Enough {
        uploads: 100,
        interrupted: 20,
        finished_by_head: 5,
        compared: 100,
    };
    run(Site::build(), enough).await;
}

/// Of `ingest` and two copiers any one is killed, and now and then all at once: the others go on with what it had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_kill_of_one_of_several_processes_loses_a_byte_a_delivery_or_a_report() {
    let enough = Enough {
        uploads: 100,
        interrupted: 10,
        finished_by_head: 5,
        compared: 50,
    };
    run(Site::build().copiers(2), enough).await;
}

async fn run(site: SiteBuilder, enough: Enough) {
    let kills = kills();
    let begin = Instant::now();
    let mut random = Random::new(seed());
    let mut site = site.start().await;
    let mut run = Run::begin(&site, SENDERS, Habits::default(), &mut random);
    let mut killed = 0;
    while killed < kills || !enough.is_met(run.oracle()) {
        assert!(
            killed < LONGEST * kills,
            "too little was met: {enough:?}, {:?}",
            run.oracle().counts
        );
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
