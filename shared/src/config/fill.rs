//! The structs, filled setting by setting, and what no setting can check alone.

use std::net::SocketAddr;

use url::{Host, Url};

use super::setting::{Reader, Setting};
use super::traces::traces;
use super::values::SinkKind;
use super::{Common, Config, CopierConfig, IngestConfig, Settings, SinkConfig, UpConfig, table};
use crate::preflight::Need;
use crate::store::StoreUrl;

impl Config for IngestConfig {
    fn common(&self) -> &Common {
        &self.common
    }

    fn fill(Settings(reader): &mut Settings<'_>) -> Option<Self> {
        let listen = reader.get(&table::LISTEN);
        let open = reader.get(&table::AUTH).is_some();
        let own_machine = listen.is_none_or(|address| address.ip().to_canonical().is_loopback());
        check_listen(reader, own_machine, open);
        if !own_machine {
            // Metrics are no secret on one's own machine only: elsewhere they must be asked for. Spec: security.md 6.
            reader.forget_default(&table::METRICS_ON_LISTEN);
        }
        let admin_listen = reader.get(&table::INGEST_ADMIN_LISTEN);
        if let (Some(listen), Some(Some(admin))) = (listen, admin_listen)
            && listen.port() != 0
            && listen == admin
        {
            reader.refuse(
                &table::INGEST_ADMIN_LISTEN,
                "is also LISTEN; write another port, or off",
            );
        }
        let metrics_on_listen = reader.get(&table::METRICS_ON_LISTEN);
        let upload_path = reader.get(&table::UPLOAD_PATH);
        let max_upload_size = reader.get(&table::MAX_UPLOAD_SIZE);
        let durability = reader.get(&table::DURABILITY);
        let raw_reserve = reader.get(&table::RAW_RESERVE);
        let body_idle_timeout = reader.get(&table::BODY_IDLE_TIMEOUT);
        let body_min_rate = reader.get(&table::BODY_MIN_RATE);
        let body_rate_window = reader.get(&table::BODY_RATE_WINDOW);
        let max_connections = reader.get(&table::MAX_CONNECTIONS);
        let lock_wait = reader.get(&table::LOCK_WAIT);
        let memory_budget = reader.get(&table::MEMORY_BUDGET);
        refuse_all(reader, table::NOT_IN_INGEST);
        if reader.said("OAUTH_AUTH_ENABLED").is_some_and(|text| text != "false") {
            reader.refuse_variable("OAUTH_AUTH_ENABLED", table::AUTHORIZATION);
        }
        let common = common(reader);
        reader.need(&table::LISTEN, listen.map(Need::Listener));
        reader.need(&table::INGEST_ADMIN_LISTEN, admin_listen.flatten().map(Need::Listener));
        Some(Self {
            common: common?,
            listen: listen?,
            admin_listen: admin_listen?,
            metrics_on_listen: metrics_on_listen?,
            upload_path: upload_path?,
            max_upload_size,
            durability: durability?,
            raw_reserve,
            body_idle_timeout: body_idle_timeout?,
            body_min_rate: body_min_rate?,
            body_rate_window: body_rate_window?,
            max_connections: max_connections?,
            lock_wait: lock_wait?,
            memory_budget: memory_budget?,
        })
    }
}

impl Config for CopierConfig {
    fn common(&self) -> &Common {
        &self.common
    }

    fn fill(Settings(reader): &mut Settings<'_>) -> Option<Self> {
        copier(reader, &table::COPIER_ADMIN_LISTEN)
    }
}

impl Config for UpConfig {
    fn common(&self) -> &Common {
        &self.ingest.common
    }

    fn fill(settings: &mut Settings<'_>) -> Option<Self> {
        let ingest = IngestConfig::fill(settings);
        let copier = copier(&mut settings.0, &table::INGEST_ADMIN_LISTEN);
        // One process has one admin listener, and says its warnings once: both are ingest's.
        let (mut ingest, mut copier) = (ingest?, copier?);
        copier.admin_listen = None;
        copier.common.warnings.clear();
        // And one budget. Receiving only gathers small pieces to larger ones, and goes on without.
        ingest.memory_budget /= 4;
        copier.memory_budget -= ingest.memory_budget;
        Some(Self { ingest, copier })
    }
}

fn copier(reader: &mut Reader<'_>, admin: &Setting<Option<SocketAddr>>) -> Option<CopierConfig> {
    let admin_listen = reader.get(admin);
    let concurrency = reader.get(&table::CONCURRENCY);
    let memory_budget = reader.get(&table::MEMORY_BUDGET);
    let slice_bytes = reader.get(&table::SLICE_BYTES);
    let slice_time = reader.get(&table::SLICE_TIME);
    let retry_delays = reader.get(&table::RETRY_DELAYS);
    let retry_max_age = reader.get(&table::RETRY_MAX_AGE);
    let common = common(reader);
    for target in [&table::DEX_STORE, &table::EDAV_STORE] {
        let store = reader.get(target);
        reader.need(target, store.map(Need::Store));
    }
    reader.need(admin, admin_listen.flatten().map(Need::Listener));
    Some(CopierConfig {
        common: common?,
        admin_listen: admin_listen?,
        concurrency: concurrency?,
        memory_budget: memory_budget?,
        slice_bytes: slice_bytes?,
        slice_time: slice_time?,
        retry_delays: retry_delays?,
        retry_max_age: retry_max_age?,
    })
}

fn common(reader: &mut Reader<'_>) -> Option<Common> {
    let raw_store = reader.get(&table::RAW_STORE);
    let dex_store = reader.get(&table::DEX_STORE);
    let edav_store = reader.get(&table::EDAV_STORE);
    check_distinct(reader, [&raw_store, &dex_store, &edav_store]);
    let records = reader.get(&table::RECORDS);
    let bus = reader.get(&table::BUS);
    let report_sinks = sinks(reader);
    reader.need(&table::RAW_STORE, raw_store.clone().map(Need::Store));
    reader.need(&table::RECORDS, records.clone().map(Need::Records));
    for sink in report_sinks.iter().flatten() {
        reader.need(&table::REPORT_JSONL_PATH, Some(Need::Sink(sink.clone())));
    }
    let report_timeout = reader.get(&table::REPORT_TIMEOUT);
    let shutdown_grace = reader.get(&table::SHUTDOWN_GRACE);
    let claim_lease = reader.get(&table::CLAIM_LEASE);
    let sweep_interval = reader.get(&table::SWEEP_INTERVAL);
    let reconcile_after = reader.get(&table::RECONCILE_AFTER);
    let log_format = reader.get(&table::LOG_FORMAT);
    reader.get(&table::RUST_LOG);
    let traces = traces(reader);
    refuse_all(reader, table::NOT_HERE);
    for (name, what) in all(table::NO_EFFECT) {
        if reader.said(name).is_some() {
            reader.warn(format!("{name} has no effect: {what}"));
        }
    }
    Some(Common {
        raw_store: raw_store?,
        records: records?,
        bus: bus?,
        dex_store: dex_store?,
        edav_store: edav_store?,
        report_sinks: report_sinks?,
        report_timeout: report_timeout?,
        log_format: log_format?,
        traces: traces?,
        shutdown_grace: shutdown_grace?,
        claim_lease: claim_lease?,
        sweep_interval: sweep_interval?,
        reconcile_after: reconcile_after?,
        warnings: reader.warnings(),
    })
}

fn sinks(reader: &mut Reader<'_>) -> Option<Vec<SinkConfig>> {
    let kinds = reader.get(&table::REPORT_SINKS);
    let path = reader.get(&table::REPORT_JSONL_PATH);
    let url = reader.get(&table::REPORT_GRAPHQL_URL);
    let token = reader.get(&table::REPORT_GRAPHQL_TOKEN);
    let kinds = kinds?;
    let mut sinks = Vec::with_capacity(kinds.len());
    for kind in kinds {
        match kind {
            SinkKind::Jsonl => match &path {
                Some(path) => sinks.push(SinkConfig::Jsonl(path.clone())),
                None => reader.refuse(
                    &table::REPORT_JSONL_PATH,
                    "REPORT_SINKS=jsonl needs the file to write to",
                ),
            },
            SinkKind::Graphql => match &url {
                Some(url) => {
                    if token.is_some() && url.scheme() == "http" && !is_own_machine(url) {
                        reader.warn("REPORT_GRAPHQL_TOKEN is sent unencrypted: REPORT_GRAPHQL_URL is no https".into());
                    }
                    sinks.push(SinkConfig::Graphql {
                        url: url.clone(),
                        token: token.clone(),
                    });
                }
                // A bad one is a problem already.
                None if reader.said(table::REPORT_GRAPHQL_URL.name).is_some() => {}
                None => reader.refuse(
                    &table::REPORT_GRAPHQL_URL,
                    "REPORT_SINKS=graphql needs the address of the processing-status API",
                ),
            },
        }
    }
    Some(sinks)
}

fn is_own_machine(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// Who listens for everybody must have said so. Spec: DESIGN.md, "LISTEN"; security.md 44.
fn check_listen(reader: &mut Reader<'_>, own_machine: bool, open: bool) {
    if !own_machine && !open {
        reader.refuse(
            &table::LISTEN,
            "uploads would be open to everybody who reaches this address, as authorization is not in this version of \
             Ferry; listen on a loopback address such as 127.0.0.1:8080, or set AUTH=none to say that this is meant",
        );
    }
    let who = if own_machine {
        "everybody on this machine"
    } else {
        "everybody who reaches LISTEN"
    };
    reader.warn(format!("authorization is off: {who} may upload, read and delete"));
}

/// Two containers in one folder would take each other's files for their own.
fn check_distinct(reader: &mut Reader<'_>, [raw, dex, edav]: [&Option<StoreUrl>; 3]) {
    if dex.is_some() && dex == raw {
        reader.refuse(&table::DEX_STORE, "is also RAW_STORE; write a folder of its own");
    }
    if edav.is_some() && edav == raw {
        reader.refuse(&table::EDAV_STORE, "is also RAW_STORE; write a folder of its own");
    } else if edav.is_some() && edav == dex {
        reader.refuse(&table::EDAV_STORE, "is also DEX_STORE; write a folder of its own");
    }
}

fn refuse_all(reader: &mut Reader<'_>, table: &[(&[&str], &str)]) {
    for (name, what) in all(table) {
        if reader.said(name).is_some() {
            reader.refuse_variable(name, what);
        }
    }
}

fn all<'a>(table: &'a [(&'a [&'a str], &'a str)]) -> impl Iterator<Item = (&'a str, &'a str)> {
    table
        .iter()
        .flat_map(|(names, what)| names.iter().map(move |name| (*name, *what)))
}
