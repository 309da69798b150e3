//! The targets of this worker: their stores, opened when they are needed, and how much of the worker each may hold.

use std::collections::HashMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use shared::failure::FailureClass;
use shared::health::Check;
use shared::routes::{Routes, Target};
use shared::store::{self, BlobError, BlobStore};
use shared::telemetry::Chain;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::failure::Failure;

/// A target whose places were all taken for this long is slow: nobody waits for one of them.
const PATIENCE: Duration = Duration::from_secs(5);
/// What was turned away comes back one after the other, as places come free, but with this much between: not all at
/// once, or a long row of deliveries that wait for a slow target would keep the worker busy with turning them away.
const TURNS: RangeInclusive<Duration> = Duration::from_millis(2)..=Duration::from_millis(50);
/// A target that gave back no place for this long may be dead: one comes back after `RETRY_DELAYS` only.
const ALIVE: Duration = Duration::from_secs(1);

/// Opens the store of a target, making its base folder if it has one. Blocks.
pub type OpenStore = dyn Fn(&Target) -> Result<Arc<dyn BlobStore>, BlobError> + Send + Sync;

/// Opens the store that the target's URL names.
///
/// # Errors
/// The container cannot be opened.
pub fn open_store(target: &Target) -> Result<Arc<dyn BlobStore>, BlobError> {
    store::open_target(&target.store)
}

/// Where copies can go.
pub(crate) struct Targets {
    routes: Routes,
    open: Arc<OpenStore>,
    opened: Mutex<HashMap<String, Arc<dyn BlobStore>>>,
    places: Mutex<HashMap<String, Arc<Places>>>,
    most: usize,
}

impl fmt::Debug for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Targets")
            .field("routes", &self.routes)
            .finish_non_exhaustive()
    }
}

/// What the copies to one target hold of the worker.
#[derive(Debug)]
struct Places {
    free: Arc<Semaphore>,
    moves: Mutex<Moves>,
    /// Whether the others of a job may wait for a look at the target.
    prompt: AtomicBool,
}

/// How places come and go.
#[derive(Clone, Copy, Debug)]
struct Moves {
    /// When one was last taken or given back.
    last: Instant,
    /// When one was last given back.
    given_back: Instant,
    /// The time between two that are given back while all are wanted.
    interval: Duration,
    /// When the last of those that were turned away comes back.
    turn: Instant,
}

/// One copy's place at its target, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
    of: Arc<Places>,
}

impl Targets {
    /// The targets of `routes`; each may hold half of `concurrency`.
    pub(crate) fn new(routes: Routes, open: Arc<OpenStore>, concurrency: usize) -> Self {
        Self {
            routes,
            open,
            opened: Mutex::default(),
            places: Mutex::default(),
            most: (concurrency / 2).max(1),
        }
    }

    /// Opens all stores, making base folders. A target that cannot be opened holds up only itself. Blocks.
    pub(crate) fn open_all(&self) {
        for target in self.routes.targets() {
            match (self.open)(target) {
                Ok(store) => {
                    lock(&self.opened).insert(target.name.clone(), store);
                }
                Err(error) => {
                    tracing::warn!(target = target.name, error = %Chain(&error), "the target cannot be opened");
                }
            }
        }
    }

    /// The store of the target `name`. Once open it stays so: a folder that was replaced behind our back is noticed
    /// only by the handle that knows the old one (core.md §6). Until then each try is a start of its own, at which a
    /// missing folder is no mistake (faults.md, rule 7).
    pub(crate) async fn store(&self, name: &str) -> Result<Arc<dyn BlobStore>, Failure> {
        if let Some(store) = lock(&self.opened).get(name) {
            return Ok(store.clone());
        }
        let Some(target) = self.routes.target(name) else {
            return Err(Failure::new(
                FailureClass::Configuration,
                format!("failed to get destination for file delivery {name}: no such target in this worker's routes"),
            ));
        };
        let (open, wanted) = (self.open.clone(), target.clone());
        let store = tokio::task::spawn_blocking(move || open(&wanted))
            .await
            .map_err(|error| Failure::new(FailureClass::Transient, format!("open {name}: {error}")))?
            .map_err(|error| Failure::of_target(&error))?;
        lock(&self.opened).insert(name.to_owned(), store.clone());
        Ok(store)
    }

    /// The names of all targets, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.routes.targets().iter().map(|target| target.name.clone()).collect();
        names.sort_unstable();
        names
    }

    /// One check per target, by name. Spec: http.md §2.
    pub(crate) fn checks(self: &Arc<Self>) -> Vec<Check> {
        let check = |name: String| {
            let targets = self.clone();
            Check::partial(format!("File Delivery Target {name}"), move || {
                let (targets, name) = (targets.clone(), name.clone());
                async move {
                    let store = targets.store(&name).await.map_err(|failure| failure.detail)?;
                    store.check().await.map_err(|error| Chain(&error).to_string())
                }
            })
        };
        self.names().into_iter().map(check).collect()
    }

    /// A place at the target `name`; `None` if its half of the worker is taken: others' copies come first then
    /// (core.md §5).
    pub(crate) fn enter(&self, name: &str) -> Option<Place> {
        let of = self.places(name);
        let permit = of.free.clone().try_acquire_owned().ok()?;
        Some(Place::new(permit, of))
    }

    /// As [`Targets::enter`], after waiting as long as copies to the target come to an end: for those who keep
    /// nothing from being done meanwhile.
    pub(crate) async fn wait_to_enter(&self, name: &str) -> Option<Place> {
        let of = self.places(name);
        let left = PATIENCE.checked_sub(lock(&of.moves).last.elapsed())?;
        let permit = tokio::time::timeout(left, of.free.clone().acquire_owned()).await;
        Some(Place::new(permit.ok()?.ok()?, of))
    }

    /// When a delivery that got no place at the target `name` comes back: soon if places come free, else after
    /// `shortest` (core.md §5); at the latest after `longest`.
    pub(crate) fn turn(&self, name: &str, shortest: Duration, longest: Duration) -> Duration {
        let (of, now) = (self.places(name), Instant::now());
        let mut moves = lock(&of.moves);
        let idle = now.duration_since(moves.given_back);
        let between = moves.interval.max(idle / 8).clamp(*TURNS.start(), *TURNS.end());
        let first = if idle < ALIVE {
            (between * 4).min(shortest)
        } else {
            shortest
        };
        moves.turn = (moves.turn + between).max(now + first).min(now + longest.max(shortest));
        moves.turn.duration_since(now)
    }

    /// Whether the target `name` answered in time when it was last waited for.
    pub(crate) fn is_prompt(&self, name: &str) -> bool {
        self.places(name).prompt.load(Ordering::Relaxed)
    }

    /// Remembers whether the target `name` answered in time.
    pub(crate) fn note_prompt(&self, name: &str, prompt: bool) {
        self.places(name).prompt.store(prompt, Ordering::Relaxed);
    }

    fn places(&self, name: &str) -> Arc<Places> {
        lock(&self.places)
            .entry(name.to_owned())
            .or_insert_with(|| Arc::new(Places::new(self.most)))
            .clone()
    }
}

impl Places {
    fn new(most: usize) -> Self {
        let now = Instant::now();
        Self {
            free: Arc::new(Semaphore::new(most)),
            moves: Mutex::new(Moves {
                last: now,
                given_back: now,
                interval: *TURNS.start(),
                turn: now,
            }),
            prompt: AtomicBool::new(true),
        }
    }
}

impl Place {
    fn new(permit: OwnedSemaphorePermit, of: Arc<Places>) -> Self {
        lock(&of.moves).last = Instant::now();
        Self { _permit: permit, of }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let (now, mut moves) = (Instant::now(), lock(&self.of.moves));
        if self.of.free.available_permits() == 0 {
            let since = now.duration_since(moves.given_back).min(ALIVE);
            moves.interval = (moves.interval * 7 + since) / 8;
        }
        (moves.last, moves.given_back) = (now, now);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use shared::store::StoreUrl;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn targets(concurrency: usize) -> Targets {
        let url = || "file:///nowhere".parse::<StoreUrl>().unwrap();
        let open = |_: &Target| unreachable!("nothing is opened");
        Targets::new(Routes::built_in(url(), url()), Arc::new(open), concurrency)
    }

    #[tokio::test]
    async fn a_target_holds_half_of_the_worker_and_who_keeps_others_does_not_wait_for_more() {
        let targets = targets(4);
        let first = targets.enter("dex").unwrap();
        let _second = targets.enter("dex").unwrap();
        assert!(targets.enter("dex").is_none());
        assert!(targets.enter("edav").is_some(), "each has its own half");
        let (waiting, ()) = tokio::join!(targets.wait_to_enter("dex"), async { drop(first) });
        assert!(
            waiting.is_some(),
            "copies come to an end: one that may wait gets the place"
        );
    }

    #[test]
    fn those_who_were_turned_away_come_back_in_turns() {
        let targets = targets(4);
        let places = targets.places("dex");
        lock(&places.moves).given_back -= 2 * ALIVE;
        let turns: Vec<Duration> = (0..100).map(|_| targets.turn("dex", 5 * SECOND, 6 * SECOND)).collect();
        assert!(turns[0] >= 5 * SECOND - *TURNS.end(), "nothing moves: {:?}", turns[0]);
        assert!(turns[10] >= turns[0] + 9 * *TURNS.end(), "{:?}", turns[10]);
        assert!(turns.iter().all(|turn| *turn <= 6 * SECOND), "{turns:?}");

        drop(targets.enter("dex"));
        lock(&places.moves).turn = Instant::now();
        let turns: Vec<Duration> = (0..100).map(|_| targets.turn("dex", 5 * SECOND, 60 * SECOND)).collect();
        assert!(turns[0] < SECOND, "places come free: {:?}", turns[0]);
        assert!(turns[99] < 5 * SECOND, "{:?}", turns[99]);
    }
}
