use std::collections::BTreeMap;

use super::*;

const STORES: [(&str, &str); 4] = [
    ("RAW_STORE", "file:///srv/raw"),
    ("DEX_STORE", "file:///srv/dex"),
    ("EDAV_STORE", "file:///srv/edav"),
    ("RECORDS", "sqlite:/srv/ferry.db"),
];

/// An environment of the stores and `more`, which wins.
fn variables(more: &[(&str, &str)]) -> impl Fn(&str) -> Option<String> {
    let all: BTreeMap<String, String> = STORES
        .iter()
        .chain(more)
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    move |name| all.get(name).cloned()
}

fn ingest(more: &[(&str, &str)]) -> Result<IngestConfig, Problems> {
    IngestConfig::read(&variables(more), &Defaults::default())
}

fn copier(more: &[(&str, &str)]) -> Result<CopierConfig, Problems> {
    CopierConfig::read(&variables(more), &Defaults::default())
}

fn up(flags: &[(&str, &str)], environment: &[(&str, &str)]) -> Result<UpConfig, Problems> {
    let environment: BTreeMap<&str, &str> = environment.iter().copied().collect();
    let environment = |name: &str| environment.get(name).map(|value| (*value).to_owned());
    let flags: Vec<_> = flags.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    UpConfig::read(
        &layered(&flags, &environment),
        &up_defaults(Path::new("/data")).unwrap(),
    )
}

fn problems<T>(result: Result<T, Problems>) -> Vec<String> {
    match result {
        Ok(_) => Vec::new(),
        Err(problems) => problems.to_string().lines().map(str::to_owned).collect(),
    }
}

#[test]
fn stores_and_records_are_enough_and_the_rest_has_the_defaults_of_the_specification() {
    let config = ingest(&[]).unwrap();
    assert_eq!(config.common.raw_store, StoreUrl::File("/srv/raw".into()));
    assert_eq!(config.common.dex_store, StoreUrl::File("/srv/dex".into()));
    assert_eq!(config.common.edav_store, StoreUrl::File("/srv/edav".into()));
    assert_eq!(config.common.records, RecordsUrl::Sqlite("/srv/ferry.db".into()));
    assert_eq!(config.common.bus, BusUrl::Embedded);
    assert_eq!(config.common.report_sinks, []);
    assert_eq!(config.common.report_timeout, Duration::from_secs(30));
    assert_eq!(config.common.log_format, LogFormat::Json);
    assert_eq!(config.common.shutdown_grace, Duration::from_secs(30));
    assert_eq!(config.common.claim_lease, Duration::from_secs(15));
    assert_eq!(config.common.sweep_interval, Duration::from_secs(20));
    assert_eq!(config.common.reconcile_after, Duration::from_secs(900));
    assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(
        config.admin_listen.map(|a| a.to_string()).as_deref(),
        Some("127.0.0.1:9090")
    );
    assert!(!config.metrics_on_listen);
    assert_eq!(config.upload_path, "/files/");
    assert_eq!((config.max_upload_size, config.raw_reserve), (None, None));
    assert_eq!(config.durability, Durability::Finish);
    assert_eq!(config.body_idle_timeout, Duration::from_secs(60));
    assert_eq!((config.body_min_rate, config.max_connections), (1024, 20_000));
    assert_eq!(
        (config.lock_wait, config.memory_budget),
        (Duration::from_secs(10), 256 << 20)
    );

    let config = copier(&[]).unwrap();
    assert_eq!(
        config.admin_listen.map(|a| a.to_string()).as_deref(),
        Some("127.0.0.1:0")
    );
    assert_eq!((config.concurrency, config.memory_budget), (16, 256 << 20));
    assert_eq!(
        (config.slice_bytes, config.slice_time),
        (8 << 30, Duration::from_secs(60))
    );
    let seconds: Vec<u64> = config.retry_delays.iter().map(Duration::as_secs).collect();
    assert_eq!(seconds, [5, 30, 120, 600, 3600]);
    assert_eq!(config.retry_max_age, Duration::from_secs(72 * 3600));
}

/// Fault 77.
#[test]
fn five_mistakes_are_told_in_one_go_a_line_each() {
    let told = problems(ingest(&[
        ("RAW_STORE", "s3://bucket/prefix?secret=canary"),
        ("RECORDS", ""),
        ("MAX_UPLOAD_SIZE", "8GB"),
        ("DURABILITY", "always"),
        ("SHUTDOWN_GRACE", "0s"),
    ]));
    assert_eq!(told.len(), 5, "{told:#?}");
    for start in [
        "RAW_STORE=s3://bucket/prefix?secret=[redacted]: s3 stores are not in this version of Ferry",
        "RECORDS is missing: write sqlite:PATH",
        "MAX_UPLOAD_SIZE=8GB: is not a size",
        "DURABILITY=always: must be none, finish or patch",
        "SHUTDOWN_GRACE=0s: must be more than 0",
    ] {
        assert!(told.iter().any(|line| line.starts_with(start)), "{start} in {told:#?}");
    }
}

#[test]
fn an_empty_environment_is_told_what_to_write_for_each_required_setting() {
    let told = problems(CopierConfig::read(&|_| None, &Defaults::default()));
    assert_eq!(told.len(), 4, "{told:#?}");
    for name in ["RAW_STORE", "DEX_STORE", "EDAV_STORE", "RECORDS"] {
        let start = format!("{name} is missing: write ");
        assert!(told.iter().any(|line| line.starts_with(&start)), "{name}");
    }
}

/// Security 44.
#[test]
fn only_a_loopback_address_goes_without_the_word_that_everybody_may_upload() {
    for address in ["0.0.0.0:8080", "[::]:8080", "192.0.2.7:80"] {
        let told = problems(ingest(&[("LISTEN", address)]));
        assert_eq!(told.len(), 1);
        assert!(
            told[0].contains("open to everybody") && told[0].contains("AUTH=none"),
            "{told:?}"
        );
        let config = ingest(&[("LISTEN", address), ("AUTH", "none")]).unwrap();
        assert!(config.common.warnings[0].contains("everybody who reaches LISTEN"));
    }
    for address in ["127.0.0.1:0", "127.9.9.9:80", "[::1]:8080", "[::ffff:127.0.0.1]:1"] {
        let config = ingest(&[("LISTEN", address)]).unwrap();
        assert!(
            config.common.warnings[0].starts_with("authorization is off"),
            "warned on every start"
        );
    }
    assert!(problems(ingest(&[("AUTH", "basic")]))[0].contains("not in this version"));
    // Health and metrics may be seen from other machines.
    assert!(ingest(&[("ADMIN_LISTEN", "0.0.0.0:9090")]).is_ok());
}

#[test]
fn what_this_version_does_not_have_is_refused_and_never_ignored() {
    for name in [
        "ROUTES_FILE",
        "UPLOAD_CONFIG_PATH",
        "REDIS_URL",
        "HOOKS_HTTP_URL",
        "HOOKS_DIR",
        "UPLOAD_EXPIRY",
        "CORS_ORIGINS",
        "TRUSTED_PROXIES",
        "OAUTH_AUTH_ENABLED",
    ] {
        let told = problems(ingest(&[(name, "canary")]));
        assert_eq!(told.len(), 1, "{name}");
        assert!(
            told[0].starts_with(name) && told[0].contains("not in this version of Ferry"),
            "{told:?}"
        );
        assert!(!told[0].contains("canary"), "the value may be a secret: {told:?}");
        assert!(ingest(&[(name, "")]).is_ok(), "empty counts as unset: {name}");
    }
    assert!(ingest(&[("OAUTH_AUTH_ENABLED", "false")]).is_ok());
    for (name, value) in [
        ("BUS", "amqp://ferry:canary@broker/"),
        ("RECORDS", "objects"),
        ("DEX_STORE", "gs://bucket"),
        ("EDAV_STORE", "azblob://account/container?sig=canary"),
        ("REPORT_SINKS", "rabbitmq"),
        ("ROUTES_FILE", "deliver.yml"),
    ] {
        let told = problems(copier(&[(name, value)]));
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(
            told[0].contains("not in this version of Ferry") && !told[0].contains("canary"),
            "{told:?}"
        );
    }
    assert!(
        copier(&[("HOOKS_DIR", "/x")]).is_ok(),
        "a copier has no hooks in any version"
    );
    let config = copier(&[("OTEL_PROPAGATORS", "b3")]).unwrap();
    assert!(config.common.warnings[0].starts_with("OTEL_PROPAGATORS has no effect"));
}

#[test]
fn settings_are_checked_against_each_other() {
    let jsonl = ("REPORT_SINKS", "jsonl");
    assert!(problems(copier(&[jsonl]))[0].starts_with("REPORT_JSONL_PATH is missing"));
    let config = copier(&[jsonl, ("REPORT_JSONL_PATH", "/srv/r.jsonl")]).unwrap();
    assert_eq!(config.common.report_sinks, [SinkConfig::Jsonl("/srv/r.jsonl".into())]);
    let graphql = ("REPORT_SINKS", "graphql");
    let url = ("REPORT_GRAPHQL_URL", "https://api.example/graphql");
    assert!(problems(copier(&[graphql]))[0].starts_with("REPORT_GRAPHQL_URL is missing"));
    let told = problems(copier(&[graphql, ("REPORT_GRAPHQL_URL", "api.example")]));
    assert_eq!(told.len(), 1, "{told:?}");
    let config = copier(&[graphql, url, ("REPORT_GRAPHQL_TOKEN", "canary")]).unwrap();
    let [SinkConfig::Graphql { url, token }] = &config.common.report_sinks[..] else {
        panic!("{:?}", config.common.report_sinks)
    };
    assert_eq!(url.as_str(), "https://api.example/graphql");
    assert_eq!(token.as_ref().map(Secret::reveal), Some("canary"));
    assert!(problems(copier(&[("DEX_STORE", "file:///srv/raw")]))[0].contains("also RAW_STORE"));
    assert!(problems(copier(&[("EDAV_STORE", "file:///srv/dex")]))[0].contains("also DEX_STORE"));
    let same = [("LISTEN", "127.0.0.1:80"), ("ADMIN_LISTEN", "127.0.0.1:80")];
    assert!(problems(ingest(&same))[0].contains("also LISTEN"));
    assert!(ingest(&[("LISTEN", "127.0.0.1:0"), ("ADMIN_LISTEN", "127.0.0.1:0")]).is_ok());
    assert_eq!(ingest(&[("ADMIN_LISTEN", "off")]).unwrap().admin_listen, None);
}

#[test]
fn up_needs_nothing_and_keeps_everything_in_its_folder() {
    let UpConfig { ingest, copier } = up(&[], &[]).unwrap();
    assert_eq!(ingest.common.raw_store, StoreUrl::File("/data/raw".into()));
    assert_eq!(copier.common.edav_store, StoreUrl::File("/data/edav".into()));
    assert_eq!(copier.common.dex_store, StoreUrl::File("/data/dex".into()));
    assert_eq!(copier.common.records, RecordsUrl::Sqlite("/data/ferry.db".into()));
    assert_eq!(
        copier.common.report_sinks,
        [SinkConfig::Jsonl("/data/reports.jsonl".into())]
    );
    assert_eq!((ingest.admin_listen, copier.admin_listen), (None, None));
    assert!(ingest.metrics_on_listen);
    assert!(up_defaults(Path::new("")).is_err());
}

#[test]
fn flags_win_over_the_environment_and_both_over_the_defaults_of_up() {
    let environment = [
        ("LISTEN", "127.0.0.1:1"),
        ("DEX_STORE", "file:///mnt/dex"),
        ("REPORT_SINKS", "none"),
    ];
    let config = up(&[("LISTEN", "127.0.0.1:2")], &environment).unwrap();
    assert_eq!(config.ingest.listen.port(), 2);
    assert_eq!(config.copier.common.dex_store, StoreUrl::File("/mnt/dex".into()));
    assert_eq!(config.ingest.common.raw_store, StoreUrl::File("/data/raw".into()));
    assert_eq!(config.copier.common.report_sinks, []);
    let admin = up(&[], &[("ADMIN_LISTEN", "127.0.0.1:9090")]).unwrap();
    assert!(admin.ingest.admin_listen.is_some() && admin.copier.admin_listen.is_none());
}

/// Security 6: metrics are on a listener for others only if somebody said so.
#[test]
fn up_shows_metrics_by_itself_only_on_its_own_machine() {
    let open = [("LISTEN", "0.0.0.0:8080"), ("AUTH", "none")];
    assert!(!up(&[], &open).unwrap().ingest.metrics_on_listen);
    let asked = [open[0], open[1], ("METRICS_ON_LISTEN", "true")];
    assert!(up(&[], &asked).unwrap().ingest.metrics_on_listen);
}

#[test]
fn up_tells_the_problems_of_both_services_once_each() {
    let told = problems(up(
        &[("LISTEN", "everywhere")],
        &[
            ("BUS", "carrier"),
            ("RETRY_DELAYS", "1h,5s"),
            ("HOOKS_DIR", "/hooks"),
            ("ROUTES_FILE", "x"),
        ],
    ));
    assert_eq!(told.len(), 5, "{told:#?}");
    for name in ["LISTEN=", "BUS=", "RETRY_DELAYS=", "HOOKS_DIR:", "ROUTES_FILE:"] {
        assert!(told.iter().any(|line| line.starts_with(name)), "{name}");
    }
}

#[test]
fn the_check_prints_each_setting_once_as_name_and_value() {
    let check = UpConfig::check(&|_| None, &up_defaults(Path::new("/data")).unwrap()).unwrap();
    let mut names: Vec<&str> = check.lines().map(|line| line.split_once('=').unwrap().0).collect();
    assert!(check.contains("RAW_STORE=file:///data/raw\n") && check.contains("RETRY_DELAYS=5s,30s,2m,10m,1h\n"));
    assert!(check.contains("ADMIN_LISTEN=off\n") && check.contains("MAX_UPLOAD_SIZE=\n"));
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
    let failed = IngestConfig::check(&|_| None, &Defaults::default()).unwrap_err();
    assert!(failed.to_string().contains("RAW_STORE is missing"));
}

/// Security 29.
#[test]
fn a_token_is_shown_nowhere() {
    let graphql = ("REPORT_SINKS", "graphql");
    let clear = ("REPORT_GRAPHQL_URL", "http://api.example/graphql");
    let token = ("REPORT_GRAPHQL_TOKEN", "canary");
    let shown = CopierConfig::check(&variables(&[graphql, clear, token]), &Defaults::default()).unwrap();
    assert!(shown.contains("REPORT_GRAPHQL_TOKEN=[redacted]\n"), "{shown}");
    let config = copier(&[graphql, clear, token]).unwrap();
    assert!(
        config.common.warnings[0].contains("unencrypted"),
        "{:?}",
        config.common.warnings
    );
    let told = problems(copier(&[graphql, clear, ("REPORT_GRAPHQL_TOKEN", "canary canary")]));
    assert!(told[0].starts_with("REPORT_GRAPHQL_TOKEN=[redacted]: "), "{told:?}");
    let shown = format!("{shown}{config:?}{told:?}");
    assert!(!shown.contains("canary"), "{shown}");
    let local = ("REPORT_GRAPHQL_URL", "http://127.0.0.1:8090/graphql");
    assert!(copier(&[graphql, local, token]).unwrap().common.warnings.is_empty());
}

/// Every variable of DESIGN.md and core.md §9 that this version has.
#[test]
fn the_help_lists_every_variable_with_its_default() {
    let common = "RAW_STORE RECORDS BUS DEX_STORE EDAV_STORE REPORT_SINKS REPORT_JSONL_PATH REPORT_GRAPHQL_URL \
                  REPORT_GRAPHQL_TOKEN REPORT_TIMEOUT LOG_FORMAT RUST_LOG \
                  SHUTDOWN_GRACE CLAIM_LEASE SWEEP_INTERVAL RECONCILE_AFTER ADMIN_LISTEN MEMORY_BUDGET \
                  OTEL_EXPORTER_OTLP_ENDPOINT OTEL_EXPORTER_OTLP_TRACES_ENDPOINT OTEL_EXPORTER_OTLP_PROTOCOL \
                  OTEL_EXPORTER_OTLP_HEADERS OTEL_EXPORTER_OTLP_TIMEOUT OTEL_SERVICE_NAME OTEL_RESOURCE_ATTRIBUTES \
                  OTEL_TRACES_EXPORTER OTEL_TRACES_SAMPLER OTEL_TRACES_SAMPLER_ARG OTEL_SDK_DISABLED";
    let ingest = "LISTEN AUTH METRICS_ON_LISTEN UPLOAD_PATH MAX_UPLOAD_SIZE DURABILITY RAW_RESERVE BODY_IDLE_TIMEOUT \
                  BODY_MIN_RATE BODY_RATE_WINDOW MAX_CONNECTIONS LOCK_WAIT";
    let copier = "CONCURRENCY SLICE_BYTES SLICE_TIME RETRY_DELAYS RETRY_MAX_AGE";
    let none = Defaults::default();
    for (help, names) in [
        (IngestConfig::help(&none), [common, ingest].join(" ")),
        (CopierConfig::help(&none), [common, copier].join(" ")),
        (UpConfig::help(&none), [common, ingest, copier].join(" ")),
    ] {
        let mut listed: Vec<&str> = help
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        let mut names: Vec<&str> = names.split_whitespace().collect();
        listed.sort_unstable();
        names.sort_unstable();
        assert_eq!(listed, names);
        assert!(
            help.lines().skip(1).all(|line| line.ends_with(']')),
            "each says what holds without it"
        );
    }
    assert!(CopierConfig::help(&none).contains("[default: 5s,30s,2m,10m,1h]"));
    let up = UpConfig::help(&up_defaults(Path::new("/data")).unwrap());
    assert!(up.contains("[default: file:///data/raw]") && !up.contains("[required]"));
}

#[test]
fn text_that_is_not_utf8_or_not_one_line_is_refused() {
    for value in ["/srv/\u{fffd}", "/srv/a\nb"] {
        let told = problems(copier(&[("REPORT_JSONL_PATH", value)]));
        assert_eq!(told.len(), 1, "one line: {told:?}");
        assert!(told[0].starts_with("REPORT_JSONL_PATH=/srv/"));
    }
}
