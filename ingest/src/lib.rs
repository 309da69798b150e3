//! The upload server: HTTP in, durable bytes, event out.
//!
//! ```text
//!             ┌ tus ──────► uploads ──► store (raw)
//!  request ───┤                │
//!             ├ api            └──────► records, with what follows ──► bus
//!             └ health, metrics
//! ```
//!
//! [`start`] is the one door for the binary, `ferry up` and the tests.

mod api;
mod descriptors;
mod drain;
mod lock;
mod tus;
mod uploads;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::{Server, ServerHandle, Service as _};
use actix_web::{App, HttpServer, web};
use shared::admin::{self, Admin};
use shared::config::IngestConfig;
use shared::foundation::Foundation;
use shared::health::{Check, Health};
use shared::message::Source;
use shared::outbox::Reconciler;
use shared::telemetry::Metrics;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use drain::Drain;
pub use drain::Drained;
use tus::Tus;
use uploads::Uploads;

/// Time for a request's header block (security.md 25).
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for an idle connection (tus.md, "Names and limits").
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// What is left of the grace time for closing connections and the sweeper.
const CLOSING: Duration = Duration::from_millis(500);

/// The server could not be started; nothing of it is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener.
    #[error("listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The admin listener.
    #[error("the admin listener")]
    Admin(#[source] io::Error),
}

/// A server that accepts uploads.
#[derive(Debug)]
pub struct Running {
    addr: SocketAddr,
    admin_addr: Option<SocketAddr>,
    upload_path: String,
    grace: Duration,
    health: Arc<Health>,
    uploads: Arc<Uploads>,
    drain: Arc<Drain>,
    servers: Vec<ServerHandle>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

/// Starts the server on what `foundation` opened. `more_checks` are those of services in the same process.
///
/// # Errors
/// A listener cannot be bound.
pub fn start(config: IngestConfig, foundation: &Foundation, more_checks: Vec<Check>) -> Result<Running, StartError> {
    let connections = descriptors::connections(config.max_connections);
    let health = Arc::new(Health::new(checks(foundation, more_checks)));
    let admin = Admin {
        app: "upload server",
        health: health.clone(),
        metrics: foundation.metrics.clone(),
    };
    let uploads = Arc::new(Uploads::new(foundation, config.clone(), Handle::current()));
    let drain = Drain::new();
    let tus = Tus {
        uploads: uploads.clone(),
        drain: drain.clone(),
    };

    let (addr, server) = listen(&config, connections, tus, &admin).map_err(|source| StartError::Listen {
        address: config.listen,
        source,
    })?;
    let mut servers = vec![server.handle()];
    let mut tasks = JoinSet::new();
    let admin_addr = match config.admin_listen {
        None => None,
        Some(address) => {
            let (addr, server) = admin::serve(address, admin).map_err(StartError::Admin)?;
            servers.push(server.handle());
            tasks.spawn(serve(server));
            Some(addr)
        }
    };
    tasks.spawn(serve(server));

    let stop = CancellationToken::new();
    let reconciler = Reconciler::new(
        foundation.records.clone(),
        foundation.bus.clone(),
        foundation.outbox.clone(),
        foundation.claims.clone(),
        foundation.metrics.clone(),
        Source::new("ingest"),
        config.common.reconcile_after,
    );
    for status in uploads.statuses.tasks(&stop) {
        tasks.spawn(status);
    }
    tasks.spawn(uploads::sweep(
        uploads.clone(),
        foundation.bus.clone(),
        reconciler,
        config.common.sweep_interval,
        stop.clone(),
    ));
    Ok(Running {
        addr,
        admin_addr,
        upload_path: config.upload_path,
        grace: config.common.shutdown_grace,
        health,
        uploads,
        drain,
        servers,
        stop,
        tasks,
    })
}

impl Running {
    /// Where uploads are accepted, with the port that was got for port 0.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where health and metrics are, if there is a listener of their own.
    #[must_use]
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin_addr
    }

    /// The URL that uploads are created at.
    #[must_use]
    pub fn upload_url(&self) -> String {
        format!("http://{}{}", self.addr, self.upload_path)
    }

    /// Stops within the grace time: no new bodies, time for those that run, an orderly end of each, and only then
    /// the listener. Spec: faults.md row 4.
    pub async fn stop(mut self) -> Drained {
        self.health.drain();
        let drained = self.drain.drain(self.grace.saturating_sub(CLOSING)).await;
        tracing::info!(
            finished = drained.finished,
            cut = drained.cut,
            left = drained.left,
            "drained"
        );
        self.stop.cancel();
        for server in &self.servers {
            // Every body has ended: what is left are idle connections, for which nobody waits.
            let _ended = tokio::time::timeout(CLOSING, server.stop(true)).await.is_ok();
        }
        let _settled = tokio::time::timeout(CLOSING, self.uploads.settle()).await.is_ok();
        self.tasks.shutdown().await;
        drained
    }
}

fn checks(foundation: &Foundation, more: Vec<Check>) -> Vec<Check> {
    let mut checks = foundation.checks();
    checks.extend(more);
    checks.extend(foundation.sink_checks());
    checks
}

fn listen(config: &IngestConfig, connections: usize, tus: Tus, admin: &Admin) -> io::Result<(SocketAddr, Server)> {
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let (admin, with_metrics) = (admin.clone(), config.metrics_on_listen);
    let server = HttpServer::new(move || {
        let metrics = admin.metrics.clone();
        App::new()
            .app_data(web::Data::new(tus.clone()))
            .wrap_fn(move |request, service| {
                let metrics = metrics.clone();
                let in_flight = InFlight::begin(&metrics);
                let method = request.method().clone();
                let answer = service.call(request);
                async move {
                    let answer = answer.await;
                    drop(in_flight);
                    if let Ok(answer) = &answer {
                        metrics.count_request(method.as_str(), answer.status().as_u16());
                    }
                    answer
                }
            })
            .configure(|config| admin.configure(with_metrics, config))
            .service(web::resource("/info/{id}").route(web::get().to(api::info)))
            .default_service(web::to(tus::serve))
    })
    .workers(workers)
    .max_connections(connections.div_ceil(workers))
    .client_request_timeout(HEADER_TIMEOUT)
    .keep_alive(IDLE_TIMEOUT)
    .disable_signals()
    .shutdown_timeout(CLOSING.as_secs().max(1))
    .bind(config.listen)?;
    let addr = server.addrs().first().copied().ok_or(io::ErrorKind::AddrNotAvailable)?;
    Ok((addr, server.run()))
}

/// A request that is being worked on, until it is dropped: a reset connection takes its handler along.
struct InFlight(Arc<Metrics>);

impl InFlight {
    fn begin(metrics: &Arc<Metrics>) -> Self {
        metrics.requests_in_flight.inc();
        Self(metrics.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.requests_in_flight.dec();
    }
}

async fn serve(server: Server) {
    if let Err(error) = server.await {
        tracing::error!(%error, "a listener ended");
    }
}
