//! Settings of traces: the standard variables of OpenTelemetry. Spec: DESIGN.md, "Environment"; faults.md 77.

use std::time::Duration;

use percent_encoding::percent_decode_str;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

use super::setting::{Reader, Setting, Unset};
use super::table::setting;
use super::values::{Parsed, count, switch};

/// Where a collector takes traces, below its base URL.
const TRACES_PATH: &str = "v1/traces";

/// Which traces are recorded, and where they go.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceConfig {
    /// `OTEL_TRACES_SAMPLER` with `OTEL_TRACES_SAMPLER_ARG`.
    pub sampler: TraceSampler,
    /// `None`: traces are not exported.
    pub export: Option<TraceExport>,
}

/// `OTEL_TRACES_SAMPLER`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TraceSampler {
    /// Which traces are recorded that begin here.
    pub choice: TraceChoice,
    /// A sender's word about its trace comes first.
    pub parent_based: bool,
}

/// Some of all traces.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TraceChoice {
    /// Each.
    All,
    /// None.
    None,
    /// This part of all, from 0 to 1.
    Ratio(f64),
}

/// A collector, by OTLP over HTTP with protobuf.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceExport {
    /// `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, or below `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub endpoint: Url,
    /// `OTEL_EXPORTER_OTLP_HEADERS`; the values are marked as sensitive and never printed.
    pub headers: HeaderMap,
    /// `OTEL_EXPORTER_OTLP_TIMEOUT`.
    pub timeout: Duration,
    /// `OTEL_SERVICE_NAME`.
    pub service_name: Option<String>,
    /// `OTEL_RESOURCE_ATTRIBUTES`.
    pub resource: Vec<(String, String)>,
}

const ENDPOINT: Setting<Url> = setting(
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    Unset::Means("traces are not exported"),
    "Collector of traces; they go to v1/traces below it.",
    base,
);
const TRACES_ENDPOINT: Setting<Url> = setting(
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    Unset::Means("below OTEL_EXPORTER_OTLP_ENDPOINT"),
    "The whole URL that traces go to.",
    endpoint,
);
const PROTOCOL: Setting<()> = setting(
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    Unset::Default("http/protobuf"),
    "How the collector is spoken to: http/protobuf.",
    protocol,
);
const HEADERS: Setting<HeaderMap> = setting(
    "OTEL_EXPORTER_OTLP_HEADERS",
    Unset::Means("none"),
    "Headers for the collector, NAME=VALUE with commas, values percent-encoded; secret.",
    headers,
)
.secret();
const TIMEOUT: Setting<usize> = setting(
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    Unset::Default("10000"),
    "Milliseconds until the collector must have answered.",
    count::<600_000>,
);
const SERVICE_NAME: Setting<String> = setting(
    "OTEL_SERVICE_NAME",
    Unset::Means("the program's name"),
    "Name of this service in traces.",
    |text| Ok(text.to_owned()),
);
const RESOURCE_ATTRIBUTES: Setting<Vec<(String, String)>> = setting(
    "OTEL_RESOURCE_ATTRIBUTES",
    Unset::Means("none"),
    "What traces say of this service, NAME=VALUE with commas, values percent-encoded.",
    pairs,
);
const EXPORTER: Setting<bool> = setting(
    "OTEL_TRACES_EXPORTER",
    Unset::Default("otlp"),
    "otlp, or none: traces are not exported.",
    exporter,
);
const SAMPLER: Setting<Sampler> = setting(
    "OTEL_TRACES_SAMPLER",
    Unset::Default("parentbased_always_on"),
    "Which traces are recorded: always_on, always_off, traceidratio, or one of them after parentbased_.",
    sampler,
);
const SAMPLER_ARG: Setting<f64> = setting(
    "OTEL_TRACES_SAMPLER_ARG",
    Unset::Default("1"),
    "The part of all traces for traceidratio.",
    ratio,
);
const SDK_DISABLED: Setting<bool> = setting(
    "OTEL_SDK_DISABLED",
    Unset::Default("false"),
    "true: traces are not exported, whatever the others say.",
    switch,
);

/// `OTEL_TRACES_SAMPLER` without its argument.
#[derive(Clone, Copy)]
struct Sampler {
    name: SamplerName,
    parent_based: bool,
}

#[derive(Clone, Copy)]
enum SamplerName {
    AlwaysOn,
    AlwaysOff,
    TraceIdRatio,
}

pub(super) fn traces(reader: &mut Reader<'_>) -> Option<TraceConfig> {
    let below = reader.get(&ENDPOINT);
    let whole = reader.get(&TRACES_ENDPOINT);
    let protocol = reader.get(&PROTOCOL);
    let headers = reader.get(&HEADERS).unwrap_or_default();
    let timeout = reader.get(&TIMEOUT);
    let service_name = reader.get(&SERVICE_NAME);
    let resource = reader.get(&RESOURCE_ATTRIBUTES).unwrap_or_default();
    let exporter = reader.get(&EXPORTER);
    let sampler = reader.get(&SAMPLER);
    let ratio = reader.get(&SAMPLER_ARG);
    let disabled = reader.get(&SDK_DISABLED);
    protocol?;
    let (sampler, ratio) = (sampler?, ratio?);
    let choice = match sampler.name {
        SamplerName::AlwaysOn => TraceChoice::All,
        SamplerName::AlwaysOff => TraceChoice::None,
        SamplerName::TraceIdRatio => TraceChoice::Ratio(ratio),
    };
    let timeout = Duration::from_millis(u64::try_from(timeout?).ok()?);
    let on = exporter? && !disabled?;
    Some(TraceConfig {
        sampler: TraceSampler {
            choice,
            parent_based: sampler.parent_based,
        },
        export: whole.or(below).filter(|_| on).map(|endpoint| TraceExport {
            endpoint,
            headers,
            timeout,
            service_name,
            resource,
        }),
    })
}

fn endpoint(text: &str) -> Parsed<Url> {
    const ALLOWED: &str = "must be a URL such as http://collector:4318, without user and query; secrets belong into \
                           OTEL_EXPORTER_OTLP_HEADERS";
    let url = Url::parse(text).map_err(|_| ALLOWED.to_owned())?;
    let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    if matches!(url.scheme(), "http" | "https") && url.has_host() && plain && url.fragment().is_none() {
        Ok(url)
    } else {
        Err(ALLOWED.to_owned())
    }
}

/// A base URL, as the URL of traces below it.
fn base(text: &str) -> Parsed<Url> {
    let mut url = endpoint(text)?;
    let path = format!("{}/{TRACES_PATH}", url.path().trim_end_matches('/'));
    url.set_path(&path);
    Ok(url)
}

fn protocol(text: &str) -> Parsed<()> {
    match text {
        "http/protobuf" => Ok(()),
        "grpc" | "http/json" => Err("is not in this version of Ferry; must be http/protobuf".into()),
        _ => Err("must be http/protobuf".into()),
    }
}

fn exporter(text: &str) -> Parsed<bool> {
    match text {
        "otlp" => Ok(true),
        "none" => Ok(false),
        _ => Err("must be otlp or none".into()),
    }
}

fn sampler(text: &str) -> Parsed<Sampler> {
    let (parent_based, name) = match text.strip_prefix("parentbased_") {
        Some(name) => (true, name),
        None => (false, text),
    };
    let name = match name {
        "always_on" => SamplerName::AlwaysOn,
        "always_off" => SamplerName::AlwaysOff,
        "traceidratio" => SamplerName::TraceIdRatio,
        _ => return Err("must be always_on, always_off or traceidratio, alone or after parentbased_".into()),
    };
    Ok(Sampler { name, parent_based })
}

fn ratio(text: &str) -> Parsed<f64> {
    match text.parse() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err("must be a number from 0 to 1".into()),
    }
}

/// `NAME=VALUE,NAME=VALUE`, values percent-encoded.
fn pairs(text: &str) -> Parsed<Vec<(String, String)>> {
    const ALLOWED: &str = "is not a list of NAME=VALUE with commas, values percent-encoded";
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').ok_or(ALLOWED)?;
            let name = name.trim();
            let value = percent_decode_str(value.trim()).decode_utf8().map_err(|_| ALLOWED)?;
            if name.is_empty() {
                return Err(ALLOWED.to_owned());
            }
            Ok((name.to_owned(), value.into_owned()))
        })
        .collect()
}

fn headers(text: &str) -> Parsed<HeaderMap> {
    const ALLOWED: &str = "is not a list of HEADER=VALUE with commas, values percent-encoded";
    let mut headers = HeaderMap::new();
    for (name, value) in pairs(text).map_err(|_| ALLOWED.to_owned())? {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| ALLOWED.to_owned())?;
        let mut value = HeaderValue::from_str(&value).map_err(|_| ALLOWED.to_owned())?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::super::Defaults;
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<(TraceConfig, String), String> {
        let lookup = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name)?;
            Some(found.1.to_owned())
        };
        let defaults = Defaults::default();
        let mut reader = Reader::new(&lookup, &defaults);
        let config = traces(&mut reader);
        let effective = reader.effective();
        let problems = reader.finish();
        match config {
            Some(config) if problems.is_empty() => Ok((config, effective)),
            _ => Err(problems.to_string()),
        }
    }

    const COLLECTOR: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");

    #[test]
    fn export_is_off_until_a_collector_is_named_and_may_be_turned_off_again() {
        let (config, _) = read(&[]).unwrap();
        assert_eq!(config.export, None);
        assert!(config.sampler.parent_based && config.sampler.choice == TraceChoice::All);
        for off in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert_eq!(read(&[COLLECTOR, off]).unwrap().0.export, None);
        }
        let (config, _) = read(&[COLLECTOR]).unwrap();
        let export = config.export.unwrap();
        assert_eq!(export.endpoint.as_str(), "http://collector:4318/v1/traces");
        assert_eq!((export.timeout, export.service_name), (Duration::from_secs(10), None));
        for (base, endpoint) in [
            ("https://c/otlp/", "https://c/otlp/v1/traces"),
            ("https://c/otlp", "https://c/otlp/v1/traces"),
        ] {
            let (config, _) = read(&[(COLLECTOR.0, base)]).unwrap();
            assert_eq!(config.export.unwrap().endpoint.as_str(), endpoint);
        }
        let whole = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://traces/in");
        let (config, _) = read(&[COLLECTOR, whole]).unwrap();
        assert_eq!(config.export.unwrap().endpoint.as_str(), "https://traces/in");
    }

    /// Security 29.
    #[test]
    fn headers_reach_the_collector_and_nobody_else() {
        let (config, effective) = read(&[
            COLLECTOR,
            (
                "OTEL_EXPORTER_OTLP_HEADERS",
                "X-Team=canary, Authorization=Bearer%20canary",
            ),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=p%C3%A4,a=b=c"),
            ("OTEL_SERVICE_NAME", "ferry-eu"),
        ])
        .unwrap();
        assert!(
            effective.contains("OTEL_EXPORTER_OTLP_HEADERS=[redacted]\n"),
            "{effective}"
        );
        assert!(!effective.contains("canary") && !format!("{config:?}").contains("canary"));
        let export = config.export.unwrap();
        assert_eq!(export.headers["authorization"], "Bearer canary");
        assert_eq!(export.headers["x-team"], "canary");
        let resource = [("deployment.environment.name", "pä"), ("a", "b=c")];
        assert_eq!(
            export.resource,
            resource.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
        assert_eq!(export.service_name.as_deref(), Some("ferry-eu"));
        let told = read(&[("OTEL_EXPORTER_OTLP_HEADERS", "canary")]).unwrap_err();
        assert!(told.starts_with("OTEL_EXPORTER_OTLP_HEADERS=[redacted]: "), "{told}");
    }

    #[test]
    fn samplers_have_their_standard_names() {
        let sampler = |name| {
            let variables = [("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", "0.25")];
            let sampler = read(&variables).unwrap().0.sampler;
            (sampler.choice, sampler.parent_based)
        };
        assert_eq!(sampler("always_on"), (TraceChoice::All, false));
        assert_eq!(sampler("parentbased_always_off"), (TraceChoice::None, true));
        assert_eq!(sampler("traceidratio"), (TraceChoice::Ratio(0.25), false));
        assert_eq!(sampler("parentbased_traceidratio"), (TraceChoice::Ratio(0.25), true));
    }

    #[test]
    fn every_mistake_is_told_with_what_is_allowed() {
        for (name, value, allowed) in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "must be http/protobuf"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier", "must be http/protobuf"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "must be a URL"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://collector", "must be a URL"),
            (
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                "http://u:canary@collector",
                "OTLP_HEADERS",
            ),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "whole number"),
            ("OTEL_TRACES_SAMPLER", "sometimes", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "2", "from 0 to 1"),
            ("OTEL_TRACES_SAMPLER_ARG", "NaN", "from 0 to 1"),
            ("OTEL_TRACES_EXPORTER", "zipkin", "otlp or none"),
            ("OTEL_SDK_DISABLED", "maybe", "true or false"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a", "NAME=VALUE"),
        ] {
            let told = read(&[(name, value)]).unwrap_err();
            assert!(told.starts_with(name) && told.contains(allowed), "{told}");
            assert!(!told.contains("canary"), "{told}");
        }
    }
}
