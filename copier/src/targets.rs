//! The targets of this worker: their stores, opened when they are needed, and how much of the worker each may hold.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use shared::failure::FailureClass;
use shared::health::Check;
use shared::routes::{Routes, Target};
use shared::store::{self, BlobError, BlobStore, Syncing};
use shared::telemetry::Chain;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::failure::Failure;

/// A target whose places were all taken for this long is slow: nobody waits for one of them.
const PATIENCE: Duration = Duration::from_secs(5);

/// Opens the store of a target; the second argument says whether its base folder may be made. Blocks.
pub type OpenStore = dyn Fn(&Target, bool) -> Result<Arc<dyn BlobStore>, BlobError> + Send + Sync;

/// Opens the store that the target's URL names. Deliveries are always synced before they count (core.md §3).
///
/// # Errors
/// The container cannot be opened.
pub fn open_store(target: &Target, create: bool) -> Result<Arc<dyn BlobStore>, BlobError> {
    store::open(&target.store, Syncing::AtCommit, create)
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
    moved: Mutex<Instant>,
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

    /// Opens all stores, making base folders: the one moment at which a missing folder is no mistake (core.md §6).
    /// A target that cannot be opened holds up only itself. Blocks.
    pub(crate) fn open_all(&self) {
        for target in self.routes.targets() {
            match (self.open)(target, true) {
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
    /// only by the handle that knows the old one (core.md §6).
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
        let store = tokio::task::spawn_blocking(move || open(&wanted, false))
            .await
            .map_err(|error| Failure::new(FailureClass::Transient, format!("open {name}: {error}")))?
            .map_err(|error| Failure::of_target(&error))?;
        lock(&self.opened).insert(name.to_owned(), store.clone());
        Ok(store)
    }

    /// One check per target, by name. Spec: http.md §2.
    pub(crate) fn checks(self: &Arc<Self>) -> Vec<Check> {
        let mut names: Vec<_> = self.routes.targets().iter().map(|target| target.name.clone()).collect();
        names.sort_unstable();
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
        names.into_iter().map(check).collect()
    }

    /// A place at the target `name`, waited for as long as copies to it come to an end; `None` if it is slow and
    /// holds its half of the worker already: others' copies come first then (core.md §5).
    pub(crate) async fn enter(&self, name: &str) -> Option<Place> {
        let of = lock(&self.places)
            .entry(name.to_owned())
            .or_insert_with(|| Arc::new(Places::new(self.most)))
            .clone();
        let permit = match of.free.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let left = PATIENCE.checked_sub(lock(&of.moved).elapsed())?;
                tokio::time::timeout(left, of.free.clone().acquire_owned())
                    .await
                    .ok()?
                    .ok()?
            }
        };
        of.moved();
        Some(Place { _permit: permit, of })
    }
}

impl Places {
    fn new(most: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(most)),
            moved: Mutex::new(Instant::now()),
        }
    }

    fn moved(&self) {
        *lock(&self.moved) = Instant::now();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.moved();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
