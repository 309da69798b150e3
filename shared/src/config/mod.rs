//! Configuration: one struct per service, filled from the environment. Spec: DESIGN.md, core.md §9.
//!
//! ```text
//!  flags ─► environment ─► defaults of the program ─► default of the setting     the first that says something
//!    └───────────┴──────────────────┴──────────────────────┴──► Config::read ─► the struct, or all problems
//! ```
//!
//! `table` declares each setting once; `--help`, `--config-check` and the problems come from the reading itself.

mod fill;
mod problems;
mod secret;
mod setting;
mod table;
mod traces;
mod values;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use problems::Problems;
pub use secret::Secret;
pub use setting::{Defaults, Lookup, environment, layered};
pub use traces::{TraceChoice, TraceConfig, TraceExport, TraceSampler};

use url::Url;

use crate::preflight::Preflight;
use crate::store::StoreUrl;
use setting::Reader;

/// A configuration that is read from settings: that of a service, or of `ferry up`.
pub trait Config: Sized {
    /// Reads all settings, and goes on after a bad one. `None` only if there was a problem.
    #[doc(hidden)]
    fn fill(reader: &mut Settings<'_>) -> Option<Self>;

    /// What every program reads.
    fn common(&self) -> &Common;

    /// Reads the configuration. `defaults` are the program's own: [`Defaults::default`] in a service,
    /// [`up_defaults`] in `ferry up`; flags are put in front of the environment by [`layered`].
    ///
    /// # Errors
    /// Every problem there is, at once. Spec: faults.md 77.
    fn read(lookup: Lookup<'_>, defaults: &Defaults) -> Result<Self, Problems> {
        let mut settings = Settings(Reader::new(lookup, defaults));
        let config = Self::fill(&mut settings);
        let problems = settings.0.finish();
        config.filter(|_| problems.is_empty()).ok_or(problems)
    }

    /// As [`Config::read`], with a look at all that a start needs of this machine, so far as the settings say it.
    ///
    /// # Errors
    /// Every problem there is, at once. Spec: faults.md 77.
    fn read_to_start(lookup: Lookup<'_>, defaults: &Defaults) -> Result<Self, Problems> {
        let mut settings = Settings(Reader::new(lookup, defaults));
        let config = Self::fill(&mut settings);
        let needs = settings.0.needs();
        let problems = match Preflight::look(settings.0.finish(), &needs) {
            Ok(()) => Problems::default(),
            Err(problems) => problems,
        };
        config.filter(|_| problems.is_empty()).ok_or(problems)
    }

    /// What `--config-check` prints: the effective settings as `NAME=value`, a line each, credentials redacted.
    ///
    /// # Errors
    /// Every problem there is, at once.
    fn check(lookup: Lookup<'_>, defaults: &Defaults) -> Result<String, Problems> {
        let mut settings = Settings(Reader::new(lookup, defaults));
        Self::fill(&mut settings);
        let effective = settings.0.effective();
        let problems = settings.0.finish();
        if problems.is_empty() {
            Ok(effective)
        } else {
            Err(problems)
        }
    }

    /// The part of `--help` about the environment: every variable with its meaning and default.
    #[must_use]
    fn help(defaults: &Defaults) -> String {
        let mut settings = Settings(Reader::new(&|_| None, defaults));
        Self::fill(&mut settings);
        settings.0.help()
    }
}

/// The settings being read. Only this module can look into them.
pub struct Settings<'a>(Reader<'a>);

/// What `ferry up` takes where the environment says nothing: everything below the folder `data`, and one listener.
/// Spec: DESIGN.md, "ferry up".
///
/// # Errors
/// `data` is empty, is not UTF-8, or there is no current folder that it could be relative to.
pub fn up_defaults(data: &Path) -> io::Result<Defaults> {
    let data = std::path::absolute(data)?;
    let text = |path: PathBuf| {
        path.into_os_string().into_string().map_err(|path| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{}: not a UTF-8 path", path.display()),
            )
        })
    };
    let store = |name| StoreUrl::File(data.join(name)).to_string();
    Ok(Defaults::new([
        ("RAW_STORE", store("raw")),
        ("DEX_STORE", store("dex")),
        ("EDAV_STORE", store("edav")),
        ("RECORDS", format!("sqlite:{}", text(data.join("ferry.db"))?)),
        ("REPORT_SINKS", "jsonl".into()),
        ("REPORT_JSONL_PATH", text(data.join("reports.jsonl"))?),
        ("ADMIN_LISTEN", "off".into()),
        ("METRICS_ON_LISTEN", "true".into()),
        ("LOG_FORMAT", "text".into()),
    ]))
}

/// What both services read.
#[derive(Clone, Debug)]
pub struct Common {
    /// `RAW_STORE`: where uploads are kept.
    pub raw_store: StoreUrl,
    /// `RECORDS`: `sqlite:PATH`.
    pub records: RecordsUrl,
    /// `BUS`.
    pub bus: BusUrl,
    /// `DEX_STORE`: the target `dex`.
    pub dex_store: StoreUrl,
    /// `EDAV_STORE`: the target `edav`.
    pub edav_store: StoreUrl,
    /// `REPORT_SINKS` with their settings.
    pub report_sinks: Vec<SinkConfig>,
    /// `REPORT_TIMEOUT`: a sink that has not answered by then may or may not have the report.
    pub report_timeout: Duration,
    /// `LOG_FORMAT`.
    pub log_format: LogFormat,
    /// `OTEL_*`.
    pub traces: TraceConfig,
    /// `SHUTDOWN_GRACE`.
    pub shutdown_grace: Duration,
    /// `CLAIM_LEASE`: a claim whose beat stood still this long is free.
    pub claim_lease: Duration,
    /// `SWEEP_INTERVAL`.
    pub sweep_interval: Duration,
    /// `RECONCILE_AFTER`.
    pub reconcile_after: Duration,
    /// What the log must say at every start, a line each: authorization is off (security.md 44), a variable has no
    /// effect.
    pub warnings: Vec<String>,
}

/// `RECORDS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordsUrl {
    /// `sqlite:PATH`.
    Sqlite(PathBuf),
}

/// `BUS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BusUrl {
    /// `embedded`: in the file of the records.
    Embedded,
}

impl SinkConfig {
    /// The sink as it stands in `REPORT_SINKS`, messages and metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Jsonl(_) => "jsonl",
            Self::Graphql { .. } => "graphql",
        }
    }
}

/// One report sink and its settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SinkConfig {
    /// `jsonl` with `REPORT_JSONL_PATH`.
    Jsonl(PathBuf),
    /// `graphql`.
    Graphql {
        /// `REPORT_GRAPHQL_URL`.
        url: Url,
        /// `REPORT_GRAPHQL_TOKEN`.
        token: Option<Secret>,
    },
}

/// `LOG_FORMAT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// `DURABILITY` of raw data. Spec: core.md §3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Never synced.
    None,
    /// Synced before the completing answer.
    Finish,
    /// Synced before each answer.
    Patch,
}

/// The upload server's configuration.
#[derive(Clone, Debug)]
pub struct IngestConfig {
    /// What both services read.
    pub common: Common,
    /// `LISTEN`.
    pub listen: SocketAddr,
    /// `ADMIN_LISTEN`; `None` in `ferry up`.
    pub admin_listen: Option<SocketAddr>,
    /// `METRICS_ON_LISTEN`.
    pub metrics_on_listen: bool,
    /// `UPLOAD_PATH`, with a `/` at both ends.
    pub upload_path: String,
    /// `MAX_UPLOAD_SIZE` in bytes.
    pub max_upload_size: Option<u64>,
    /// `DURABILITY`.
    pub durability: Durability,
    /// `RAW_RESERVE` in bytes; `None`: min(256 MiB, 5 % of the file system).
    pub raw_reserve: Option<u64>,
    /// `BODY_IDLE_TIMEOUT`.
    pub body_idle_timeout: Duration,
    /// `BODY_MIN_RATE` in bytes per second.
    pub body_min_rate: u64,
    /// `BODY_RATE_WINDOW`.
    pub body_rate_window: Duration,
    /// `MAX_CONNECTIONS`.
    pub max_connections: usize,
    /// `LOCK_WAIT`.
    pub lock_wait: Duration,
    /// `MEMORY_BUDGET` in bytes; in `ferry up` a quarter of it, as copies hold the rest.
    pub memory_budget: u64,
}

/// The copy worker's configuration.
#[derive(Clone, Debug)]
pub struct CopierConfig {
    /// What both services read.
    pub common: Common,
    /// `ADMIN_LISTEN`; `None` in `ferry up`.
    pub admin_listen: Option<SocketAddr>,
    /// `CONCURRENCY`: jobs at once.
    pub concurrency: usize,
    /// `MEMORY_BUDGET` in bytes; in `ferry up` what receiving leaves of it.
    pub memory_budget: u64,
    /// `SLICE_BYTES`.
    pub slice_bytes: u64,
    /// `SLICE_TIME`.
    pub slice_time: Duration,
    /// `RETRY_DELAYS`, ascending.
    pub retry_delays: Vec<Duration>,
    /// `RETRY_MAX_AGE`.
    pub retry_max_age: Duration,
}

/// What `ferry up` runs with: both services in one process.
#[derive(Clone, Debug)]
pub struct UpConfig {
    /// The upload server; it has the admin listener, if one was asked for.
    pub ingest: IngestConfig,
    /// The copy worker; it has none.
    pub copier: CopierConfig,
}

#[cfg(test)]
mod tests;
