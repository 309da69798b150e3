//! The copy worker: takes finished uploads from the bus and brings verified copies of them to every target.
//!
//! ```text
//!   bus ──► worker ──► job ──► transfer ──┬──► target ──► verify ──► outcome ──► records ──► outbox ──► bus
//!                       │         ▲       └──► target ──► verify ──► outcome ──► …            │
//!                    records    reader ◄── raw store                                          ▼
//!                                                                            reports ──► report sinks
//! ```
//!
//! A message only wakes a worker; what is to be done is in the records. Every step may be repeated: a copy that is
//! there counts as done, one that is half there goes on, and what two workers want at once only one of them claims.

mod budget;
mod deadline;
mod failure;
mod job;
mod orphans;
mod outcome;
mod pieces;
mod reader;
mod reports;
mod retry;
mod staging;
mod target;
mod targets;
mod trace;
mod transfer;
mod verify;
mod worker;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix_web::dev::{Server, ServerHandle};
use shared::admin::{self, Admin};
use shared::claims::Claims;
use shared::config::CopierConfig;
use shared::foundation::Foundation;
use shared::health::{Check, Health};
use shared::message::Source;
use shared::records::Records;
use shared::store::BlobStore;
use shared::telemetry::{Chain, Metrics};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use targets::{OpenStore, open_store};

use budget::Budget;
use outcome::Outcomes;
use reports::Reports;
use retry::Policy;
use targets::Targets;

/// What is left of the grace time for the admin listener and for what has to be given back.
const CLOSING: Duration = Duration::from_millis(500);

/// Why a copier cannot start; nothing of it is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// `RETRY_DELAYS` is empty.
    #[error("RETRY_DELAYS must name at least one delay")]
    NoRetryDelays,
    /// `CONCURRENCY` is 0.
    #[error("CONCURRENCY must be at least 1")]
    NoConcurrency,
    /// The admin listener.
    #[error("the admin listener")]
    Admin(#[source] io::Error),
}

/// A copier at work; dropped, it breaks off: what it had begun is done again by the next one.
#[derive(Debug)]
pub struct Running {
    stop: CancellationToken,
    tasks: JoinSet<()>,
    listener: Option<Listener>,
    jobs: Arc<AtomicUsize>,
    targets: Arc<Targets>,
    grace: Duration,
}

/// The pages of a copier that runs in a process of its own.
#[derive(Debug)]
struct Listener {
    addr: SocketAddr,
    server: ServerHandle,
    health: Arc<Health>,
    task: JoinSet<()>,
}

/// How a copier ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Jobs that were at work and came to a recorded end, be it that of a slice.
    pub finished: usize,
    /// Jobs that did not: their messages come again.
    pub cut: usize,
}

/// What the tasks of a copier share.
#[derive(Debug)]
struct Engine {
    records: Arc<dyn Records>,
    claims: Arc<Claims>,
    metrics: Arc<Metrics>,
    raw: Arc<dyn BlobStore>,
    targets: Arc<Targets>,
    outcomes: Outcomes,
    budget: Budget,
    slice_bytes: u64,
    slice_time: Duration,
    stop: CancellationToken,
}

/// Starts a copier on what `foundation` opened: from now on it takes jobs. It does not wait for the bus or for
/// targets, whose absence it bears. Must be called within a runtime.
///
/// # Errors
/// The admin listener cannot be bound, or a setting that nothing can be done with.
pub fn start(config: CopierConfig, foundation: &Foundation) -> Result<Running, StartError> {
    start_with(config, foundation, Arc::new(open_store))
}

/// As [`start`], with the targets' stores from `open`.
///
/// # Errors
/// As [`start`].
pub fn start_with(config: CopierConfig, foundation: &Foundation, open: Arc<OpenStore>) -> Result<Running, StartError> {
    let policy = Policy::new(config.retry_delays, config.retry_max_age).ok_or(StartError::NoRetryDelays)?;
    if config.concurrency == 0 {
        return Err(StartError::NoConcurrency);
    }
    let targets = Arc::new(Targets::new(foundation.routes.clone(), open, config.concurrency));
    targets.open_all();
    let listener = match config.admin_listen {
        Some(address) => Some(Listener::start(address, foundation, &targets)?),
        None => None,
    };
    let stop = CancellationToken::new();
    let reports = Arc::new(Reports {
        records: foundation.records.clone(),
        metrics: foundation.metrics.clone(),
        policy: policy.clone(),
        sinks: foundation.sinks.clone(),
        bus: foundation.bus.clone(),
        limit: config.common.report_timeout,
        stop: stop.clone(),
    });
    let engine = Arc::new(Engine {
        records: foundation.records.clone(),
        claims: foundation.claims.clone(),
        metrics: foundation.metrics.clone(),
        raw: foundation.raw.clone(),
        targets: targets.clone(),
        outcomes: Outcomes {
            records: foundation.records.clone(),
            outbox: foundation.outbox.clone(),
            metrics: foundation.metrics.clone(),
            source: Source::new("copier"),
            policy,
            sinks: foundation.sinks.iter().map(|sink| sink.name()).collect(),
            raw: foundation.raw_url.clone(),
        },
        budget: Budget::new(config.memory_budget, foundation.metrics.clone()),
        slice_bytes: config.slice_bytes,
        slice_time: config.slice_time,
        stop: stop.clone(),
    });
    let jobs = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    let bus = &foundation.bus;
    tasks.spawn(worker::work(engine, bus.clone(), config.concurrency, jobs.clone()));
    tasks.spawn(reports::work(reports));
    tasks.spawn(orphans::work(
        targets.clone(),
        foundation.records.clone(),
        foundation.metrics.clone(),
        stop.clone(),
    ));
    Ok(Running {
        stop,
        tasks,
        listener,
        jobs,
        targets,
        grace: config.common.shutdown_grace,
    })
}

impl Running {
    /// Where health and metrics are, if the copier has a listener of its own.
    #[must_use]
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.listener.as_ref().map(|listener| listener.addr)
    }

    /// Checks of the targets, for the health of a process that runs more than a copier.
    #[must_use]
    pub fn checks(&self) -> Vec<Check> {
        self.targets.checks()
    }

    /// Takes no more jobs, ends the running ones at their next part, and waits for that within the grace time.
    /// What is not done by then is done again by another worker. Spec: faults.md 51.
    pub async fn stop(mut self) -> Drained {
        if let Some(listener) = &self.listener {
            listener.health.drain();
        }
        let at_work = self.jobs.load(Ordering::Relaxed);
        self.stop.cancel();
        let all = async {
            while let Some(ended) = self.tasks.join_next().await {
                if let Err(error) = ended {
                    tracing::error!(%error, "a task of the copier broke off");
                }
            }
        };
        let in_time = tokio::time::timeout(self.grace.saturating_sub(CLOSING), all)
            .await
            .is_ok();
        let cut = if in_time { 0 } else { self.jobs.load(Ordering::Relaxed) };
        self.tasks.shutdown().await;
        let drained = Drained {
            finished: at_work.saturating_sub(cut),
            cut,
        };
        tracing::info!(finished = drained.finished, cut = drained.cut, "drained");
        if let Some(mut listener) = self.listener {
            let _ended = tokio::time::timeout(CLOSING, listener.server.stop(true)).await.is_ok();
            listener.task.shutdown().await;
        }
        drained
    }
}

impl Listener {
    fn start(address: SocketAddr, foundation: &Foundation, targets: &Arc<Targets>) -> Result<Self, StartError> {
        let mut checks = foundation.checks();
        checks.extend(targets.checks());
        checks.extend(foundation.sink_checks());
        let health = Arc::new(Health::new(checks));
        let admin = Admin {
            app: "copier",
            health: health.clone(),
            metrics: foundation.metrics.clone(),
        };
        let (addr, server) = admin::serve(address, admin).map_err(StartError::Admin)?;
        let handle = server.handle();
        let mut task = JoinSet::new();
        task.spawn(serve(server));
        Ok(Self {
            addr,
            server: handle,
            health,
            task,
        })
    }
}

async fn serve(server: Server) {
    if let Err(error) = server.await {
        tracing::error!(error = %Chain(&error), "the admin listener ended");
    }
}
