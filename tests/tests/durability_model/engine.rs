//! Both services, whole, in this process, on one start of a machine that forgets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use shared::config::{Config as _, CopierConfig, Durability, IngestConfig, up_defaults};
use shared::database::{Database, Durable};
use shared::foundation::Foundation;
use shared::records::Records;
use shared::routes::Target;
use shared::store::BlobStore;
use tests::client::Client;
use tests::forgetful::Start;

/// Two parts, so that a copy has checkpoints.
const SLICE: u64 = 8 * 1024;

/// Running services.
pub(super) struct Engine {
    ingest: ingest::Running,
    copier: copier::Running,
    pub(super) records: Arc<dyn Records>,
}

impl Engine {
    /// Starts them on what the machine has.
    pub(super) fn start(start: &Start, durability: Durability) -> Self {
        let folder = start.database.parent().expect("a file is in a folder");
        let defaults = up_defaults(folder).expect("a folder with a plain name");
        let mut config = IngestConfig::read(&|_| None, &defaults).expect("the defaults are valid");
        config.listen = "127.0.0.1:0".parse().expect("an address");
        config.durability = durability;
        config.common.report_sinks.clear();
        config.common.sweep_interval = Duration::from_millis(40);
        config.common.shutdown_grace = Duration::from_millis(600);
        let mut copying = CopierConfig::read(&|_| None, &defaults).expect("the defaults are valid");
        copying.common = config.common.clone();
        copying.retry_delays = vec![Duration::from_millis(20); 6];
        copying.slice_bytes = SLICE;
        let foundation = foundation(start, &config, durability);
        let targets = start.clone();
        let open = move |target: &Target| {
            let container = ["dex", "edav"].into_iter().find(|name| *name == target.name);
            let store: Arc<dyn BlobStore> = targets.store(container.expect("a target of the built-in routes"), true);
            Ok(store)
        };
        let copier = copier::start_with(copying, &foundation, Arc::new(open)).expect("start the copier");
        Self {
            ingest: ingest::start(config, &foundation, copier.checks()).expect("start ingest"),
            copier,
            records: foundation.records.clone(),
        }
    }

    pub(super) fn client(&self) -> Client {
        Client::new(&self.ingest.upload_url())
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.ingest.addr()
    }

    /// Ends what is left of them when their start of the machine has ended.
    pub(super) async fn stop(self) {
        tokio::join!(self.ingest.stop(), self.copier.stop());
    }
}

/// What [`Foundation::open`] opens, with the machine's stores, its records' log and its start.
fn foundation(start: &Start, config: &IngestConfig, durability: Durability) -> Foundation {
    let (durable, syncing) = match durability {
        Durability::None => (Durable::OnRequest, false),
        Durability::Finish => (Durable::OnRequest, true),
        Durability::Patch => (Durable::Always, true),
    };
    let database = Database::open_with(&start.database, durable, start.log.sync()).expect("open what survived");
    let raw = start.store("raw", syncing);
    Foundation::on(&config.common, database, raw, Vec::new(), start.boot.clone())
}
