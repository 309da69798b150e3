//! The settings, each declared once, and the variables that this version of Ferry refuses.
//! Spec: DESIGN.md, "Environment"; core.md §9; http.md §7.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::setting::{Setting, Unset};
use super::values::{self, Parsed, SinkKind};
use super::{BusUrl, Durability, LogFormat, RecordsUrl, Secret};
use crate::store::StoreUrl;

pub(super) const fn setting<T>(
    name: &'static str,
    unset: Unset,
    help: &'static str,
    parse: fn(&str) -> Parsed<T>,
) -> Setting<T> {
    Setting {
        name,
        unset,
        help,
        parse,
        secret: false,
    }
}

use Unset::{Default, Means, Refused};

// Both services.

pub(super) const RAW_STORE: Setting<StoreUrl> = setting(
    "RAW_STORE",
    Refused("write where uploads are kept, for example file:///var/lib/ferry/raw"),
    "Store of uploads as they came.",
    values::store,
);
pub(super) const DEX_STORE: Setting<StoreUrl> = setting(
    "DEX_STORE",
    Refused("write where the copies for the target dex go, for example file:///srv/dex"),
    "Store of the target dex.",
    values::store,
);
pub(super) const EDAV_STORE: Setting<StoreUrl> = setting(
    "EDAV_STORE",
    Refused("write where the copies for the target edav go, for example file:///srv/edav"),
    "Store of the target edav.",
    values::store,
);
pub(super) const RECORDS: Setting<RecordsUrl> = setting(
    "RECORDS",
    Refused("write sqlite:PATH, for example sqlite:/var/lib/ferry/ferry.db"),
    "Database of uploads and deliveries, sqlite:PATH.",
    values::records,
);
pub(super) const BUS: Setting<BusUrl> = setting(
    "BUS",
    Default("embedded"),
    "How the services hand over work: embedded, that is in the file of RECORDS.",
    values::bus,
);
pub(super) const REPORT_SINKS: Setting<Vec<SinkKind>> = setting(
    "REPORT_SINKS",
    Default("none"),
    "Where processing-status reports go, a comma list of: jsonl, graphql; or none.",
    values::sinks,
);
pub(super) const REPORT_JSONL_PATH: Setting<PathBuf> = setting(
    "REPORT_JSONL_PATH",
    Means("required by REPORT_SINKS=jsonl"),
    "File that gets a line per report.",
    values::path,
);
pub(super) const REPORT_GRAPHQL_URL: Setting<Url> = setting(
    "REPORT_GRAPHQL_URL",
    Means("required by REPORT_SINKS=graphql"),
    "GraphQL endpoint of the processing-status API.",
    values::http_url,
);
pub(super) const REPORT_GRAPHQL_TOKEN: Setting<Secret> = setting(
    "REPORT_GRAPHQL_TOKEN",
    Means("no authorization is sent"),
    "Bearer token for REPORT_GRAPHQL_URL.",
    values::secret,
)
.secret();
pub(super) const REPORT_TIMEOUT: Setting<Duration> = setting(
    "REPORT_TIMEOUT",
    Default("30s"),
    "A report sink that has not answered by then is asked again.",
    values::duration,
);
pub(super) const SHUTDOWN_GRACE: Setting<Duration> = setting(
    "SHUTDOWN_GRACE",
    Default("30s"),
    "Time to end what is running when asked to stop.",
    values::duration,
);
pub(super) const CLAIM_LEASE: Setting<Duration> = setting(
    "CLAIM_LEASE",
    Default("15s"),
    "Work whose owner gave no sign of life this long is free for others.",
    values::duration,
);
pub(super) const SWEEP_INTERVAL: Setting<Duration> = setting(
    "SWEEP_INTERVAL",
    Default("20s"),
    "How often unfinished work is looked for.",
    values::duration,
);
pub(super) const RECONCILE_AFTER: Setting<Duration> = setting(
    "RECONCILE_AFTER",
    Default("15m"),
    "A delivery that nobody works on is published again after this long.",
    values::duration,
);
pub(super) const LOG_FORMAT: Setting<LogFormat> = setting(
    "LOG_FORMAT",
    Default("json"),
    "Log lines on standard error as json or text.",
    values::log_format,
);
pub(super) const RUST_LOG: Setting<()> = setting(
    "RUST_LOG",
    Default("info"),
    "What is logged: a level, and others per module.",
    values::log_filter,
);

// The upload server.

pub(super) const LISTEN: Setting<SocketAddr> = setting(
    "LISTEN",
    Default("127.0.0.1:8080"),
    "Address for uploads; any other than a loopback one needs AUTH=none.",
    values::address,
);
pub(super) const AUTH: Setting<()> = setting(
    "AUTH",
    Means("only loopback addresses may be listened on"),
    "none: everybody who reaches LISTEN may upload, and is not asked who he is.",
    values::auth,
);
pub(super) const INGEST_ADMIN_LISTEN: Setting<Option<SocketAddr>> = setting(
    "ADMIN_LISTEN",
    Default("127.0.0.1:9090"),
    "Address for health and metrics, or off.",
    values::optional_address,
);
pub(super) const METRICS_ON_LISTEN: Setting<bool> = setting(
    "METRICS_ON_LISTEN",
    Default("false"),
    "true: /metrics also on LISTEN.",
    values::switch,
);
pub(super) const UPLOAD_PATH: Setting<String> = setting(
    "UPLOAD_PATH",
    Default("/files/"),
    "Path that uploads live under.",
    values::upload_path,
);
pub(super) const MAX_UPLOAD_SIZE: Setting<u64> = setting(
    "MAX_UPLOAD_SIZE",
    Means("no limit"),
    "Longest upload.",
    values::upload_size,
);
pub(super) const DURABILITY: Setting<Durability> = setting(
    "DURABILITY",
    Default("finish"),
    "What a loss of power spares: none, every finished upload (finish), every acknowledged byte (patch).",
    values::durability,
);
pub(super) const RAW_RESERVE: Setting<u64> = setting(
    "RAW_RESERVE",
    Means("the smaller of 256MiB and 5 % of the file system"),
    "Space in RAW_STORE that uploads must leave free.",
    values::size,
);
pub(super) const BODY_IDLE_TIMEOUT: Setting<Duration> = setting(
    "BODY_IDLE_TIMEOUT",
    Default("60s"),
    "A request body that brings nothing for this long is ended.",
    values::duration,
);
pub(super) const BODY_MIN_RATE: Setting<u64> = setting(
    "BODY_MIN_RATE",
    Default("1KiB/s"),
    "A request body slower than this over BODY_RATE_WINDOW is ended; 0: none is.",
    values::rate,
);
pub(super) const BODY_RATE_WINDOW: Setting<Duration> = setting(
    "BODY_RATE_WINDOW",
    Default("60s"),
    "Time over which the rate of a request body is taken.",
    values::duration,
);
pub(super) const MAX_CONNECTIONS: Setting<usize> = setting(
    "MAX_CONNECTIONS",
    Default("20000"),
    "Open connections at once.",
    values::count::<1_000_000>,
);
pub(super) const LOCK_WAIT: Setting<Duration> = setting(
    "LOCK_WAIT",
    Default("10s"),
    "How long a request waits for another one to let go of its upload.",
    values::duration,
);

// The copy worker.

pub(super) const COPIER_ADMIN_LISTEN: Setting<Option<SocketAddr>> = setting(
    "ADMIN_LISTEN",
    Default("127.0.0.1:0"),
    "Address for health and metrics, or off; port 0 takes a free one and prints it.",
    values::optional_address,
);
pub(super) const CONCURRENCY: Setting<usize> = setting(
    "CONCURRENCY",
    Default("16"),
    "Files copied at once.",
    values::count::<1024>,
);
pub(super) const MEMORY_BUDGET: Setting<u64> = setting(
    "MEMORY_BUDGET",
    Default("256MiB"),
    "Bytes of files held in memory at once, received or copied.",
    values::memory,
);
pub(super) const SLICE_BYTES: Setting<u64> = setting(
    "SLICE_BYTES",
    Default("8GiB"),
    "After this many bytes of a file others have their turn.",
    values::positive_size,
);
pub(super) const SLICE_TIME: Setting<Duration> = setting(
    "SLICE_TIME",
    Default("60s"),
    "After this long with a file others have their turn.",
    values::duration,
);
pub(super) const RETRY_DELAYS: Setting<Vec<Duration>> = setting(
    "RETRY_DELAYS",
    Default("5s,30s,2m,10m,1h"),
    "Waits before each further try of a failed copy; a failure after the last is final.",
    values::delays,
);
pub(super) const RETRY_MAX_AGE: Setting<Duration> = setting(
    "RETRY_MAX_AGE",
    Default("72h"),
    "A copy that is denied or wrongly configured is tried this long.",
    values::duration,
);

/// Variables that would change what either service does, had this version a meaning for them: a start that
/// ignored them would do something else than its operator thinks.
pub(super) const NOT_HERE: &[(&[&str], &str)] = &[
    (
        &["ROUTES_FILE", "DEX_DELIVERY_CONFIG_FILE"],
        "a routes file is not in this version of Ferry, every upload goes to dex and edav",
    ),
    (
        &["UPLOAD_CONFIG_PATH"],
        "rules for manifests are not in this version of Ferry, any metadata is accepted",
    ),
    (
        &["BUS_PREFIX"],
        "RabbitMQ is not in this version of Ferry, and the embedded bus has no prefix",
    ),
    (
        &["REPORT_RABBITMQ_URL", "REPORT_REST_URL"],
        "its report sink is not in this version of Ferry, REPORT_SINKS has jsonl and graphql",
    ),
    (
        &[
            "OTEL_EXPORTER_OTLP_CERTIFICATE",
            "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
            "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE",
            "OTEL_EXPORTER_OTLP_CLIENT_KEY",
            "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY",
        ],
        "certificates of its own for the collector are not in this version of Ferry, the system's are used",
    ),
    // The original's, which ours does not have at all. Spec: http.md §7.
    (
        &[
            "REPORTER_CONNECTION_STRING",
            "REPORTER_QUEUE",
            "REPORTER_TOPIC",
            "SNS_REPORTER_EVENT_ARN",
        ],
        "Ferry sends reports to REPORT_SINKS",
    ),
    (
        &[
            "PUBLISHER_CONNECTION_STRING",
            "PUBLISHER_TOPIC",
            "PUBLISHER_QUEUE",
            "SUBSCRIBER_CONNECTION_STRING",
            "SUBSCRIBER_TOPIC",
            "SUBSCRIBER_SUBSCRIPTION",
            "SNS_PUBLISHER_EVENT_ARN",
            "SQS_SUBSCRIBER_EVENT_ARN",
            "SQS_SUBSCRIBER_TOPIC_ARN",
        ],
        "Ferry hands over work by BUS",
    ),
];

/// The same for the upload server alone.
pub(super) const NOT_IN_INGEST: &[(&[&str], &str)] = &[
    (
        &["REDIS_URL", "REDIS_CONNECTION_STRING"],
        "locks by Redis are not in this version of Ferry, one upload server uses a RAW_STORE",
    ),
    (
        &["HOOKS_HTTP_URL", "HOOKS_DIR"],
        "hooks are not in this version of Ferry",
    ),
    (
        &["UPLOAD_EXPIRY"],
        "expiration is not in this version of Ferry, unfinished uploads stay",
    ),
    (&["CORS_ORIGINS"], "CORS is not in this version of Ferry"),
    (
        &["TRUSTED_PROXIES"],
        "forwarded headers are not in this version of Ferry, none is trusted",
    ),
    (&["SCAN"], "scanning is not in this version of Ferry"),
    (
        &[
            "AUTH_AUDIENCE",
            "AUTH_STREAMS_CLAIM",
            "AUTH_ROUTE_SCOPES",
            "OAUTH_ISSUER_URL",
        ],
        AUTHORIZATION,
    ),
];

/// Said of all variables about who may do what.
pub(super) const AUTHORIZATION: &str = "authorization is not in this version of Ferry";

/// Variables without an effect that harms nobody: said in the log, no more.
pub(super) const NO_EFFECT: &[(&[&str], &str)] = &[
    (
        &[
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
        ],
        "only traces are exported; write it without TRACES_",
    ),
    (
        &[
            "OTEL_EXPORTER_OTLP_COMPRESSION",
            "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
            "OTEL_BSP_SCHEDULE_DELAY",
            "OTEL_BSP_EXPORT_TIMEOUT",
            "OTEL_BSP_MAX_QUEUE_SIZE",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
        ],
        "spans go out as they are, at most 512 in a request, a second after the first of them",
    ),
    (
        &["OTEL_PROPAGATORS"],
        "traces are carried by traceparent and tracestate",
    ),
    (
        &[
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
            "OTEL_METRICS_EXPORTER",
            "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
            "OTEL_LOGS_EXPORTER",
        ],
        "metrics are at /metrics and the log is on standard error",
    ),
    (
        &["METRICS_LABELS_FROM_MANIFEST"],
        "the labels are always data_stream_id, data_stream_route and sender_id",
    ),
];
