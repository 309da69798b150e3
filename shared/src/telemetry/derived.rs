//! Metrics that are read off something else when they are asked for: names of the original whose value one of ours
//! has already, so that dashboards live on (http.md §4), and counters kept elsewhere.

use std::collections::BTreeMap;

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

use super::{export, logs, process, sync_errors};

/// A name of the original and ours, both without labels.
const SAME_COUNTERS: [(&str, &str); 4] = [
    ("tusd_bytes_received", "ferry_bytes_received_total"),
    ("tusd_uploads_created", "ferry_uploads_created_total"),
    ("tusd_uploads_finished", "ferry_uploads_finished_total"),
    ("tusd_uploads_terminated", "ferry_uploads_terminated_total"),
];

/// What is to be added to `families`.
pub(super) fn families(families: &[MetricFamily]) -> Vec<MetricFamily> {
    let ours = |name: &str| families.iter().find(|family| family.name() == name);
    let mut derived = process::families();
    derived.extend(SAME_COUNTERS.iter().filter_map(|(name, our_name)| {
        let total = ours(our_name)?.get_metric().first()?.get_counter().get_value();
        Some(family(
            name,
            &format!("The same as {our_name}."),
            MetricType::COUNTER,
            [(Vec::new(), total)],
        ))
    }));
    derived.extend(ours("ferry_uploads").and_then(|uploads| {
        let active = |labels: &Labels| {
            labels
                .iter()
                .any(|(_, state)| state == "receiving" || state == "committing")
        };
        summed(
            "dex_server_active_uploads",
            "Uploads that are not whole yet.",
            uploads,
            "state",
            active,
        )
    }));
    derived.extend(ours("ferry_copies_in_flight").and_then(|copies| {
        summed(
            "dex_server_active_deliveries",
            "Copies being made.",
            copies,
            "target",
            |_| true,
        )
    }));
    derived.extend(ours("ferry_queue_messages").and_then(|queues| {
        summed(
            "dex_server_queue_messages",
            "Messages in a queue, in all states.",
            queues,
            "queue",
            |_| true,
        )
    }));
    derived.push(kept_elsewhere(
        "ferry_log_dropped_total",
        "Log lines dropped because nobody read standard error.",
        logs::dropped_lines(),
    ));
    derived.push(kept_elsewhere(
        "ferry_spans_dropped_total",
        "Spans dropped because the trace collector was away, slow or refused them.",
        export::dropped_spans(),
    ));
    derived.push(kept_elsewhere(
        "ferry_fsync_errors_total",
        "Failed syncs of files, folders or the log of the records.",
        sync_errors::sync_errors(),
    ));
    derived
}

/// A counter that is not in a registry.
fn kept_elsewhere(name: &str, help: &str, count: u64) -> MetricFamily {
    #[allow(
        clippy::cast_precision_loss,
        reason = "a sample is a float; 2^53 mishaps are not counted one by one"
    )]
    let count = count as f64;
    family(name, help, MetricType::COUNTER, [(Vec::new(), count)])
}

type Labels = Vec<(String, String)>;

/// A family of gauges or counters with these samples.
pub(super) fn family(
    name: &str,
    help: &str,
    kind: MetricType,
    samples: impl IntoIterator<Item = (Labels, f64)>,
) -> MetricFamily {
    let metrics = samples.into_iter().map(|(labels, value)| {
        let pairs = labels.into_iter().map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name(name);
            pair.set_value(value);
            pair
        });
        let mut metric = Metric::from_label(pairs.collect());
        if kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        metric
    });
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics.collect());
    family
}

/// The gauges of `family` that `wanted` chooses, added up by the label `by`; `None` if there are none.
fn summed(
    name: &str,
    help: &str,
    source: &MetricFamily,
    by: &str,
    wanted: impl Fn(&Labels) -> bool,
) -> Option<MetricFamily> {
    let mut sums: BTreeMap<String, f64> = BTreeMap::new();
    for metric in source.get_metric() {
        let labels: Labels = metric
            .get_label()
            .iter()
            .map(|pair| (pair.name().to_owned(), pair.value().to_owned()))
            .collect();
        if let Some((_, value)) = labels.iter().find(|(label, _)| label == by)
            && wanted(&labels)
        {
            *sums.entry(value.clone()).or_default() += metric.get_gauge().get_value();
        }
    }
    let samples = sums.into_iter().map(|(value, sum)| (vec![(by.to_owned(), value)], sum));
    (samples.len() > 0).then(|| family(name, help, MetricType::GAUGE, samples))
}
