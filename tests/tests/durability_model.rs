//! What a loss of power leaves: uploads and copies on a machine that forgets whatever was not made durable, crashed at
//! random steps, hundreds of times. Row 16, and row 12 by syncs that fail; the table of core.md §3. Promises 1 to 3 of
//! DESIGN.md.
//!
//! A failing scenario prints its seed and all its options; `FERRY_TEST_SEED=…` repeats it as far as threads let it.
//! `FERRY_TEST_SCENARIOS=…` runs so many of each kind.

#[path = "durability_model/book.rs"]
mod book;
#[path = "durability_model/engine.rs"]
mod engine;
#[path = "durability_model/scenario.rs"]
mod scenario;

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use futures_util::{FutureExt as _, StreamExt as _};
use shared::config::Durability;
use shared::store::BlobStore;
use tests::forgetful::Machine;
use tests::pattern::Random;

use scenario::{Seen, killed_and_then_dark, scenario};

/// Scenarios of each `DURABILITY` in CI; each has up to five crashes.
const SCENARIOS: u64 = 8;
/// As many times more are run until all that is to be met was.
const PATIENCE: u64 = 5;
/// So many at once: most of their time they wait.
const AT_ONCE: usize = 4;

/// The container of a contract's case: a machine that never crashes.
fn container(syncing: bool) -> impl AsyncFn() -> Arc<dyn BlobStore> {
    let start = Machine::new(0).start(None);
    async move || start.store("raw", syncing) as Arc<dyn BlobStore>
}

mod the_model_syncing {
    tests::store_contract!(super::container(true));
}

mod the_model_unsynced {
    tests::store_contract!(super::container(false));
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// Runs the scenarios of one mode.
async fn scenarios(durability: Durability) {
    if let Some(seed) = number("FERRY_TEST_SEED") {
        scenario(seed, durability).await;
        return;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.expect("a clock after 1970");
    let mut seeds = Random::new(now.as_secs() ^ u64::from(now.subsec_nanos()) << 32);
    let begin = Instant::now();
    let (least, mut count) = (number("FERRY_TEST_SCENARIOS").unwrap_or(SCENARIOS), 0);
    let mut seen = Seen::default();
    // A run that met nothing shows nothing.
    while count < least || (!seen.enough(durability) && count < least * PATIENCE) {
        let some: Vec<u64> = (0..least.min(SCENARIOS)).map(|_| seeds.next()).collect();
        count += u64::try_from(some.len()).expect("a few");
        let mut running = futures_util::stream::iter(some)
            .map(|seed| AssertUnwindSafe(scenario(seed, durability)).catch_unwind())
            .buffer_unordered(AT_ONCE);
        while let Some(another) = running.next().await {
            match another {
                Ok(another) => seen.add(&another),
                Err(panic) => {
                    drop(running); // the others end first: theirs are not the options of a failure
                    resume_unwind(panic);
                }
            }
        }
    }
    println!("{durability:?}: {count} scenarios, {seen:?}, {:?}", begin.elapsed());
    assert!(seen.enough(durability), "{seen:?}");
}

/// Row 16, `DURABILITY=patch`: every acknowledged byte is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_patch_no_acknowledged_byte_is_lost() {
    scenarios(Durability::Patch).await;
}

/// Row 16, `DURABILITY=finish`: every upload that its sender takes for finished is there whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_finish_no_finished_upload_is_lost() {
    scenarios(Durability::Finish).await;
}

/// Row 16, `DURABILITY=none`: no offset claims bytes that are gone; what is lost is told, and never delivered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_none_nothing_lost_is_claimed_or_delivered() {
    scenarios(Durability::None).await;
}

/// Row 16: what a killed process made visible and did not live to sync is synced by whoever finds it, before it is told
/// or reported; at each step of making an upload, or a copy, visible.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_process_did_not_live_to_sync_is_synced_by_the_next() {
    let steps = ["raw", "dex"]
        .into_iter()
        .flat_map(|container| (4..=7).map(move |step| (container, step)));
    let all = steps.flat_map(|(container, step)| (0..5).map(move |seed| (container, step, seed)));
    futures_util::stream::iter(all)
        .map(|(container, step, seed)| killed_and_then_dark(container, step, seed, Durability::Finish))
        .buffer_unordered(2 * AT_ONCE)
        .collect::<()>()
        .await;
}
