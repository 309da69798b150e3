//! The metrics of a process, and their text. Names: faults.md, with the prefix `ferry_`; http.md §4.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder, exponential_buckets,
};

use super::derived;
use crate::build;

/// Media type of [`Metrics::text`].
pub const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Label sets of `upload_manifest_count`; further ones are counted as `other`. Spec: http.md §4; security.md 12.
const MANIFEST_LABEL_SETS: usize = 1000;

/// Value of a label that stands for all values not told apart.
const OTHER: &str = "other";

/// The metrics of a process. Names: faults.md, with the prefix `ferry_`.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// `ferry_uploads_created_total`
    pub uploads_created: IntCounter,
    /// `ferry_uploads_finished_total`
    pub uploads_finished: IntCounter,
    /// `ferry_uploads_terminated_total`
    pub uploads_terminated: IntCounter,
    /// `ferry_uploads_recovered_total`: unfinished uploads found at a start
    pub uploads_recovered: IntCounter,
    /// `ferry_uploads_stalled_total`: bodies ended because nothing, or too little, came
    pub uploads_stalled: IntCounter,
    /// `ferry_uploads_takeover_total`
    pub uploads_takeover: IntCounter,
    /// `ferry_bytes_received_total`
    pub bytes_received: IntCounter,
    /// `ferry_uploads{state}`: set at each sweep
    pub uploads: IntGaugeVec,
    /// `ferry_deliveries{state}`: set at each sweep
    pub deliveries: IntGaugeVec,
    /// `ferry_raw_free_bytes`
    pub raw_free_bytes: IntGauge,
    /// `ferry_outbox_messages`: records with messages not known to be on the bus
    pub outbox_messages: IntGauge,
    /// `ferry_publish_failures_total{reason}`
    pub publish_failures: IntCounterVec,
    /// `ferry_reconciled_total`
    pub reconciled: IntCounter,
    /// `ferry_queue_messages{queue,state}`
    pub queue_messages: IntGaugeVec,
    /// `ferry_dead_letters_total{reason}`: reason is a failure class or `unreadable`
    pub dead_letters: IntCounterVec,
    /// `ferry_copies_total{target,result}`: succeeded, failed, skipped
    pub copies: IntCounterVec,
    /// `ferry_copy_bytes_total{target}`
    pub copy_bytes: IntCounterVec,
    /// `ferry_copy_seconds`
    pub copy_seconds: Histogram,
    /// `ferry_copy_skipped_total{reason}`
    pub copy_skipped: IntCounterVec,
    /// `ferry_copy_retries_total{class}`
    pub copy_retries: IntCounterVec,
    /// `ferry_copy_integrity_errors_total`
    pub copy_integrity_errors: IntCounter,
    /// `ferry_copies_in_flight{target}`
    pub copies_in_flight: IntGaugeVec,
    /// `ferry_orphan_parts{store}`: unfinished data that no record knows, as it was left by the last look (an hour apart)
    pub orphan_parts: IntGaugeVec,
    /// `ferry_memory_budget_used_bytes`
    pub memory_budget_used_bytes: IntGauge,
    /// `ferry_reports_sent_total{sink,action}`
    pub reports_sent: IntCounterVec,
    /// `ferry_reports_rejected_total{sink}`
    pub reports_rejected: IntCounterVec,
    /// `ferry_reports_pending{sink}`: made and not yet taken; set every 2 s
    pub reports_pending: IntGaugeVec,
    /// `ferry_report_lag_seconds`: age of the oldest report that its sink has not taken; set every 2 s
    pub report_lag_seconds: IntGauge,
    /// `ferry_outbox_oldest_seconds`: age of the oldest message not known to be on the bus; set at each sweep
    pub outbox_oldest_seconds: IntGauge,
    /// `ferry_undelivered_oldest_seconds`: age of the oldest upload not final in every target; set at each sweep
    pub undelivered_oldest_seconds: IntGauge,
    /// `dex_server_connections_open`: requests in flight, as in the original
    pub requests_in_flight: IntGauge,
    /// `dex_server_upload_speed_bytes_per_second`: of finished uploads, from creation to the end
    pub upload_speed: Histogram,
    /// `dex_server_deliveries_total{target,result}`: attempts; started, completed, failed
    pub delivery_attempts: IntCounterVec,
    /// `dex_server_delivery_speed_bytes_per_second{target}`
    pub delivery_speed: HistogramVec,
    http_requests: IntCounterVec,
    tus_requests: IntCounterVec,
    manifests: IntCounterVec,
    manifest_labels: Mutex<HashSet<[String; 3]>>,
}

/// Buckets of `ferry_copy_seconds`: from small files to those of hours.
const COPY_SECONDS: [f64; 12] = [
    0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0,
];

/// Buckets of all speeds: those of the original. Spec: http.md §4.
fn speeds() -> Vec<f64> {
    exponential_buckets(10.0, 2.5, 20).expect("start and factor are positive, and the factor is above 1")
}

impl Metrics {
    /// The metrics of one process, all at nothing.
    #[must_use]
    pub fn new() -> Self {
        let r = Registrar(Registry::new());
        let info = r.gauges("ferry_build_info", "What was built; always 1.", &["version", "git_sha"]);
        info.with_label_values(&[build::RELEASE, build::GIT_SHA]).set(1);
        Self {
            uploads_created: r.counter("ferry_uploads_created_total", "Uploads created."),
            uploads_finished: r.counter("ferry_uploads_finished_total", "Uploads whose bytes are all here."),
            uploads_terminated: r.counter("ferry_uploads_terminated_total", "Uploads deleted by their senders."),
            uploads_recovered: r.counter("ferry_uploads_recovered_total", "Unfinished uploads found at a start."),
            uploads_stalled: r.counter(
                "ferry_uploads_stalled_total",
                "Request bodies ended because nothing, or too little, came.",
            ),
            uploads_takeover: r.counter(
                "ferry_uploads_takeover_total",
                "Uploads that a new request took over from a hanging one.",
            ),
            bytes_received: r.counter("ferry_bytes_received_total", "Bytes of uploads received."),
            uploads: r.gauges("ferry_uploads", "Uploads by state.", &["state"]),
            deliveries: r.gauges("ferry_deliveries", "Deliveries by state.", &["state"]),
            raw_free_bytes: r.gauge("ferry_raw_free_bytes", "Free space of the raw store."),
            outbox_messages: r.gauge(
                "ferry_outbox_messages",
                "Records with messages not known to be on the bus.",
            ),
            publish_failures: r.counters(
                "ferry_publish_failures_total",
                "Messages that the bus did not take.",
                &["reason"],
            ),
            reconciled: r.counter(
                "ferry_reconciled_total",
                "Deliveries published again because nobody worked on them.",
            ),
            queue_messages: r.gauges("ferry_queue_messages", "Messages in the queues.", &["queue", "state"]),
            dead_letters: r.counters(
                "ferry_dead_letters_total",
                "Messages that will not be tried again.",
                &["reason"],
            ),
            copies: r.counters("ferry_copies_total", "Deliveries by outcome.", &["target", "result"]),
            copy_bytes: r.counters("ferry_copy_bytes_total", "Bytes written to targets.", &["target"]),
            copy_seconds: r.histogram(
                "ferry_copy_seconds",
                "Time from the start of a copy to its outcome.",
                COPY_SECONDS.to_vec(),
            ),
            copy_skipped: r.counters(
                "ferry_copy_skipped_total",
                "Deliveries that needed no copying.",
                &["reason"],
            ),
            copy_retries: r.counters("ferry_copy_retries_total", "Failed tries that come again.", &["class"]),
            copy_integrity_errors: r.counter(
                "ferry_copy_integrity_errors_total",
                "Copies whose bytes were not those received.",
            ),
            copies_in_flight: r.gauges("ferry_copies_in_flight", "Copies being made.", &["target"]),
            orphan_parts: r.gauges(
                "ferry_orphan_parts",
                "Unfinished data that no record knows.",
                &["store"],
            ),
            memory_budget_used_bytes: r.gauge("ferry_memory_budget_used_bytes", "Bytes of files held in memory."),
            reports_sent: r.counters(
                "ferry_reports_sent_total",
                "Reports that a sink took.",
                &["sink", "action"],
            ),
            reports_rejected: r.counters(
                "ferry_reports_rejected_total",
                "Reports that a sink refused for good.",
                &["sink"],
            ),
            reports_pending: r.gauges(
                "ferry_reports_pending",
                "Reports that a sink has not taken yet.",
                &["sink"],
            ),
            report_lag_seconds: r.gauge(
                "ferry_report_lag_seconds",
                "Age of the oldest report that its sink has not taken yet.",
            ),
            outbox_oldest_seconds: r.gauge(
                "ferry_outbox_oldest_seconds",
                "Age of the oldest message not known to be on the bus.",
            ),
            undelivered_oldest_seconds: r.gauge(
                "ferry_undelivered_oldest_seconds",
                "Age of the oldest upload that is not final in every target.",
            ),
            requests_in_flight: r.gauge("dex_server_connections_open", "Requests in flight."),
            upload_speed: r.histogram(
                "dex_server_upload_speed_bytes_per_second",
                "Speed of finished uploads, from creation to the end.",
                speeds(),
            ),
            delivery_attempts: r.counters(
                "dex_server_deliveries_total",
                "Tries to deliver.",
                &["target", "result"],
            ),
            delivery_speed: r.histograms(
                "dex_server_delivery_speed_bytes_per_second",
                "Speed of copies.",
                &["target"],
                speeds(),
            ),
            http_requests: r.counters("http_requests_total", "Requests answered.", &["code", "method"]),
            tus_requests: r.counters("tusd_requests_total", "TUS requests.", &["method"]),
            manifests: r.counters(
                "upload_manifest_count",
                "Finished uploads by manifest.",
                &["data_stream_id", "data_stream_route", "sender_id"],
            ),
            manifest_labels: Mutex::new(HashSet::new()),
            registry: r.0,
        }
    }

    /// All metrics as Prometheus text 0.0.4, those of the process included.
    #[must_use]
    pub fn text(&self) -> String {
        let mut families = self.registry.gather();
        families.extend(derived::families(&families));
        families.sort_by(|a, b| a.name().cmp(b.name()));
        TextEncoder::new().encode_to_string(&families).unwrap_or_else(|error| {
            tracing::error!(%error, "write metrics as text");
            String::new()
        })
    }

    /// Counts an answered request: `http_requests_total{code,method}`. Methods that no route has are one.
    pub fn count_request(&self, method: &str, status: u16) {
        self.http_requests
            .with_label_values(&[status.to_string().as_str(), known_method(method)])
            .inc();
    }

    /// Counts a TUS request: `tusd_requests_total{method}`.
    pub fn count_tus_request(&self, method: &str) {
        self.tus_requests.with_label_values(&[known_method(method)]).inc();
    }

    /// Counts a finished upload by its `data_stream_id`, `data_stream_route` and `sender_id`:
    /// `upload_manifest_count`. These are a sender's own words, so only the first 1,000 sets are told apart.
    pub fn count_manifest(&self, labels: [&str; 3]) {
        let mut known = self.manifest_labels.lock().unwrap_or_else(PoisonError::into_inner);
        let set = labels.map(str::to_owned);
        let told_apart = known.contains(&set) || (known.len() < MANIFEST_LABEL_SETS && known.insert(set));
        drop(known);
        let labels = if told_apart { labels } else { [OTHER; 3] };
        self.manifests.with_label_values(&labels).inc();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// A method as a label: what comes from the network must not make new time series. Spec: security.md 12.
fn known_method(method: &str) -> &'static str {
    const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    METHODS.into_iter().find(|known| *known == method).unwrap_or(OTHER)
}

/// Makes metrics and registers them. All names and labels are constants of this file, and its tests make them all.
struct Registrar(Registry);

impl Registrar {
    fn add<M: Collector + Clone + 'static>(&self, metric: prometheus::Result<M>) -> M {
        let metric = metric.expect("names, labels and buckets are valid constants");
        self.0
            .register(Box::new(metric.clone()))
            .expect("each name is registered once");
        metric
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn histogram(&self, name: &str, help: &str, buckets: Vec<f64>) -> Histogram {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)))
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: Vec<f64>) -> HistogramVec {
        self.add(HistogramVec::new(
            HistogramOpts::new(name, help).buckets(buckets),
            labels,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of a sample, labels included in its name.
    fn sample(text: &str, name: &str) -> Option<f64> {
        let line = text
            .lines()
            .find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')))?;
        line.rsplit_once(' ')?.1.parse().ok()
    }

    #[test]
    fn the_text_has_every_name_of_this_version_each_once_with_type_and_help() {
        let metrics = Metrics::new();
        metrics.uploads_created.inc();
        metrics.copies.with_label_values(&["dex", "succeeded"]).inc_by(2);
        let text = metrics.text();
        assert_eq!(sample(&text, "ferry_uploads_created_total"), Some(1.0));
        assert_eq!(
            sample(&text, "ferry_copies_total{result=\"succeeded\",target=\"dex\"}"),
            Some(2.0)
        );
        let info = format!(
            "ferry_build_info{{git_sha=\"{}\",version=\"{}\"}}",
            build::GIT_SHA,
            build::RELEASE
        );
        assert_eq!(sample(&text, &info), Some(1.0));
        let mut names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all, "sorted and each once");
        assert!(names.contains(&"ferry_log_dropped_total counter") && names.contains(&"ferry_copy_seconds histogram"));
    }

    #[test]
    fn dashboards_of_the_original_find_their_names() {
        let metrics = Metrics::new();
        metrics.bytes_received.inc_by(7);
        metrics.uploads_terminated.inc();
        for (state, count) in [("receiving", 3), ("committing", 1), ("published", 90)] {
            metrics.uploads.with_label_values(&[state]).set(count);
        }
        metrics.queue_messages.with_label_values(&["work", "ready"]).set(4);
        metrics.queue_messages.with_label_values(&["work", "unacked"]).set(2);
        metrics.copies_in_flight.with_label_values(&["edav"]).set(5);
        metrics.count_request("GET", 200);
        let text = metrics.text();
        for (name, value) in [
            ("tusd_bytes_received", 7.0),
            ("tusd_uploads_terminated", 1.0),
            ("tusd_uploads_created", 0.0),
            ("dex_server_active_uploads{state=\"receiving\"}", 3.0),
            ("dex_server_active_uploads{state=\"committing\"}", 1.0),
            ("dex_server_queue_messages{queue=\"work\"}", 6.0),
            ("dex_server_active_deliveries{target=\"edav\"}", 5.0),
            ("http_requests_total{code=\"200\",method=\"GET\"}", 1.0),
        ] {
            assert_eq!(sample(&text, name), Some(value), "{name}");
        }
        assert_eq!(sample(&text, "dex_server_active_uploads{state=\"published\"}"), None);
        assert!(text.contains("# TYPE tusd_bytes_received counter\n"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_process_is_measured() {
        let text = Metrics::new().text();
        let now = f64::from(u32::try_from(jiff::Timestamp::now().as_second()).unwrap());
        assert!(sample(&text, "process_resident_memory_bytes").unwrap() > 100_000.0);
        assert!(sample(&text, "process_open_fds").unwrap() >= 3.0);
        assert!(sample(&text, "process_max_fds").unwrap() >= 3.0);
        assert!(sample(&text, "process_threads").unwrap() >= 1.0);
        assert!(sample(&text, "process_cpu_seconds_total").unwrap() >= 0.0);
        let started = sample(&text, "process_start_time_seconds").unwrap();
        assert!(
            started > now - 86_400.0 && started < now + 60.0,
            "{started} and now {now}"
        );
    }

    /// Security 12: what senders write does not make time series without end.
    #[test]
    fn labels_from_the_network_are_bounded() {
        let metrics = Metrics::new();
        for number in 0..MANIFEST_LABEL_SETS + 5 {
            metrics.count_manifest(["stream", "route", &number.to_string()]);
            metrics.count_request(&format!("METHOD{number}"), 405);
            metrics.count_tus_request("BREW");
        }
        metrics.count_manifest(["stream", "route", "0"]);
        let text = metrics.text();
        let of = |name: &str| text.lines().filter(|line| line.starts_with(name)).count();
        assert_eq!(of("upload_manifest_count{"), MANIFEST_LABEL_SETS + 1);
        assert_eq!(of("http_requests_total{"), 1);
        let first = "upload_manifest_count{data_stream_id=\"stream\",data_stream_route=\"route\",sender_id=\"0\"}";
        assert_eq!(sample(&text, first), Some(2.0));
        let rest = "upload_manifest_count{data_stream_id=\"other\",data_stream_route=\"other\",sender_id=\"other\"}";
        assert_eq!(sample(&text, rest), Some(5.0));
    }
}
