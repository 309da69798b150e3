//! What a process stands on, opened from its configuration. `ferry up` opens it once for both services.

use std::sync::Arc;

use crate::boot::BootId;
use crate::bus::{Bus, EmbeddedBus};
use crate::claims::Claims;
use crate::config::{BusUrl, Common, Durability, RecordsUrl};
use crate::database::{self, Database, Durable};
use crate::health::Check;
use crate::outbox::Outbox;
use crate::records::{Records, SqliteRecords};
use crate::report::{Sink, SinkError, sinks};
use crate::routes::Routes;
use crate::store::{self, BlobError, BlobStore, StoreUrl, Syncing};
use crate::telemetry::{Chain, Metrics};

/// Records, bus and raw store of a process, and what follows from them.
#[derive(Clone, Debug)]
pub struct Foundation {
    /// What is known of uploads and deliveries.
    pub records: Arc<dyn Records>,
    /// Work and events.
    pub bus: Arc<dyn Bus>,
    /// Where uploads are kept.
    pub raw: Arc<dyn BlobStore>,
    /// Where that is, for reports.
    pub raw_url: StoreUrl,
    /// The targets.
    pub routes: Routes,
    /// Where reports go.
    pub sinks: Vec<Arc<dyn Sink>>,
    /// Who may change what. One for the whole process: it knows what its own tasks hold.
    pub claims: Arc<Claims>,
    /// From records to the bus.
    pub outbox: Outbox,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// The start of the machine that all of this happens in.
    pub boot: BootId,
}

/// Something that the process stands on cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The records.
    #[error(transparent)]
    Records(#[from] database::OpenError),
    /// The raw store.
    #[error("RAW_STORE")]
    RawStore(#[source] BlobError),
    /// A report sink, for a reason on this machine.
    #[error("REPORT_SINKS")]
    ReportSink(#[source] SinkError),
}

impl Foundation {
    /// Opens everything that `common` names. Folders and the records' file are made if they are missing.
    ///
    /// # Errors
    /// The first that cannot be opened.
    pub fn open(common: &Common, durability: Durability) -> Result<Self, OpenError> {
        let (durable, syncing) = match durability {
            Durability::None => (Durable::OnRequest, Syncing::Never),
            Durability::Finish => (Durable::OnRequest, Syncing::AtCommit),
            Durability::Patch => (Durable::Always, Syncing::AtCommit),
        };
        // First: where the records are damaged nothing else is touched. Spec: faults.md 17.
        let RecordsUrl::Sqlite(path) = &common.records;
        let database = Database::open(path, durable)?;
        let raw = store::open(&common.raw_store, syncing, true).map_err(OpenError::RawStore)?;
        let sinks = sinks(&common.report_sinks, common.report_timeout).map_err(OpenError::ReportSink)?;
        let BusUrl::Embedded = common.bus;
        Ok(Self::on(common, database, raw, sinks, BootId::present()))
    }

    /// The same on what was opened already: `database` holds the records and the bus, `raw` is the store that
    /// `common` names, and `boot` the start of the machine that both belong to.
    #[must_use]
    pub fn on(
        common: &Common,
        database: Arc<Database>,
        raw: Arc<dyn BlobStore>,
        sinks: Vec<Arc<dyn Sink>>,
        boot: BootId,
    ) -> Self {
        let bus = EmbeddedBus::new(database.clone());
        let records: Arc<dyn Records> = Arc::new(SqliteRecords::new(database, Some(bus.clone())));
        let bus: Arc<dyn Bus> = bus;
        let metrics = Arc::new(Metrics::new());
        Self {
            claims: Claims::new(records.clone(), common.claim_lease),
            outbox: Outbox::new(records.clone(), bus.clone(), metrics.clone()),
            routes: Routes::built_in(common.dex_store.clone(), common.edav_store.clone()),
            sinks,
            raw_url: common.raw_store.clone(),
            records,
            bus,
            raw,
            metrics,
            boot,
        }
    }

    /// Checks of what both services lean on: raw store, records, bus. Names and order: http.md §2.
    #[must_use]
    pub fn checks(&self) -> Vec<Check> {
        let (raw, records, bus) = (self.raw.clone(), self.records.clone(), self.bus.clone());
        vec![
            Check::vital("File Storage", move || {
                let raw = raw.clone();
                async move { raw.check().await.map_err(|error| Chain(&error).to_string()) }
            }),
            Check::vital("Records", move || {
                let records = records.clone();
                async move { records.check().await.map_err(|error| Chain(&error).to_string()) }
            }),
            Check::vital("Bus", move || {
                let bus = bus.clone();
                async move { bus.check().await.map_err(|error| Chain(&error).to_string()) }
            }),
        ]
    }

    /// Checks of the report sinks.
    #[must_use]
    pub fn sink_checks(&self) -> Vec<Check> {
        let check = |sink: &Arc<dyn Sink>| {
            let (name, sink) = (format!("Report sink {}", sink.name()), sink.clone());
            Check::partial(name, move || {
                let sink = sink.clone();
                async move { sink.check().await.map_err(|error| Chain(&error).to_string()) }
            })
        };
        self.sinks.iter().map(check).collect()
    }
}
