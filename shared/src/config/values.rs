//! Values as settings write them: sizes `8GiB`, durations `30s`, addresses, paths. Each parser answers with the
//! value or with what would be allowed. Spec: DESIGN.md, "Environment"; core.md §9.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use url::Url;

use super::{BusUrl, Durability, LogFormat, RecordsUrl, Secret};
use crate::store::StoreUrl;

/// A value, or what is allowed instead.
pub(super) type Parsed<T> = Result<T, String>;

/// Waits longer than this make no sense and would overflow the clock's arithmetic.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Paths that Ferry answers itself, so that uploads cannot live there. Spec: http.md.
const OWN_PATHS: [&str; 5] = ["/info/", "/health/", "/version/", "/metrics/", "/route/"];

/// Bytes: `8GiB`, `512KiB`, `4096`. At most 2^63 − 1, which is what a record can hold.
pub(super) fn size(text: &str) -> Parsed<u64> {
    const ALLOWED: &str = "is not a size; write bytes as 4096, 512KiB, 64MiB, 8GiB or 1TiB, without a fraction";
    let (digits, unit) = number_and_unit(text);
    let factor: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(ALLOWED.into()),
    };
    let number: u64 = digits.parse().map_err(|_| ALLOWED.to_owned())?;
    number
        .checked_mul(factor)
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or_else(|| "is too large; the most is 8388607TiB".into())
}

/// A size that is not zero.
pub(super) fn positive_size(text: &str) -> Parsed<u64> {
    match size(text)? {
        0 => Err("must be more than 0".into()),
        bytes => Ok(bytes),
    }
}

/// The longest upload. Zero is refused: other servers take it as "no limit", which would be the opposite.
pub(super) fn upload_size(text: &str) -> Parsed<u64> {
    match size(text)? {
        0 => Err("would allow no upload at all; leave it empty for no limit".into()),
        bytes => Ok(bytes),
    }
}

/// The memory for transfers: at least one slot of a blob. Spec: core.md §6, "Part sizes".
pub(super) fn memory(text: &str) -> Parsed<u64> {
    match size(text)? {
        bytes if bytes < 8 << 20 => Err("is too small; the least is 8MiB".into()),
        bytes => Ok(bytes),
    }
}

/// Bytes per second: `1KiB/s`. Zero means no minimum.
pub(super) fn rate(text: &str) -> Parsed<u64> {
    size(text.strip_suffix("/s").unwrap_or(text))
        .map_err(|_| "is not a rate; write bytes per second as 1KiB/s, or 0 for none".into())
}

/// A time span that is not zero: `250ms`, `30s`, `2m`, `1h`, `7d`; at most ten years.
pub(super) fn duration(text: &str) -> Parsed<Duration> {
    const ALLOWED: &str = "is not a duration; write 250ms, 30s, 2m, 1h or 7d, without a fraction";
    let (digits, unit) = number_and_unit(text);
    let number: u64 = digits.parse().map_err(|_| ALLOWED.to_owned())?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(ALLOWED.into()),
    };
    match number.checked_mul(unit_ms).map(Duration::from_millis) {
        Some(Duration::ZERO) => Err("must be more than 0".into()),
        Some(span) if span <= LONGEST => Ok(span),
        _ => Err("is too long; the most is 3650d".into()),
    }
}

/// `5s,30s,2m`: at least one, none shorter than the one before it.
pub(super) fn delays(text: &str) -> Parsed<Vec<Duration>> {
    let delays = text
        .split(',')
        .map(|part| duration(part.trim()))
        .collect::<Parsed<Vec<_>>>()
        .map_err(|_| "is not a list of durations; write 5s,30s,2m,10m,1h".to_owned())?;
    if delays.is_sorted() {
        Ok(delays)
    } else {
        Err("must be ascending, as in 5s,30s,2m,10m,1h".into())
    }
}

/// How many: `1` to `LIMIT`.
pub(super) fn count<const LIMIT: usize>(text: &str) -> Parsed<usize> {
    match text.parse() {
        Ok(number) if (1..=LIMIT).contains(&number) => Ok(number),
        _ => Err(format!("must be a whole number from 1 to {LIMIT}")),
    }
}

/// `true` or `false`.
pub(super) fn switch(text: &str) -> Parsed<bool> {
    text.parse().map_err(|_| "must be true or false".into())
}

/// `127.0.0.1:8080`, `[::1]:8080`; port 0 takes a free one.
pub(super) fn address(text: &str) -> Parsed<SocketAddr> {
    text.parse()
        .map_err(|_| "is not an address; write IP:PORT, for example 127.0.0.1:8080 or [::1]:8080".into())
}

/// An address, or `off` for no listener.
pub(super) fn optional_address(text: &str) -> Parsed<Option<SocketAddr>> {
    match text {
        "off" => Ok(None),
        _ => address(text)
            .map(Some)
            .map_err(|_| "is not an address; write IP:PORT, for example 127.0.0.1:9090, or off".into()),
    }
}

/// Any path of this machine.
pub(super) fn path(text: &str) -> Parsed<PathBuf> {
    Ok(PathBuf::from(text))
}

/// The path that uploads live under, with a `/` at both ends; none that something else is served at.
pub(super) fn upload_path(text: &str) -> Parsed<String> {
    let path = if text.ends_with('/') {
        text.to_owned()
    } else {
        format!("{text}/")
    };
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let plain = |segment: &&str| {
        let mut characters = segment.chars();
        !segment.is_empty()
            && !matches!(*segment, "." | "..")
            && characters.all(|c| c.is_ascii_alphanumeric() || "-._~".contains(c))
    };
    let tidy = path.starts_with('/') && !path.starts_with("//") && !path.ends_with("//");
    if !tidy || !segments.iter().all(plain) {
        return Err("must be a path like /files/, of letters, digits and -._~, and not / alone".into());
    }
    if let Some(own) = OWN_PATHS.iter().find(|own| path.starts_with(*own)) {
        return Err(format!(
            "is taken: Ferry answers {own} itself; write a path like /files/"
        ));
    }
    Ok(path)
}

/// `file:///path`.
pub(super) fn store(text: &str) -> Parsed<StoreUrl> {
    text.parse().map_err(|error| format!("{error}"))
}

/// `https://host/path`. Credentials have settings of their own: an address is shown in logs.
pub(super) fn http_url(text: &str) -> Parsed<Url> {
    const ALLOWED: &str = "is not an address of HTTP; write for example https://status.example/graphql";
    let url = Url::parse(text).map_err(|_| ALLOWED.to_owned())?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() || url.fragment().is_some() {
        return Err(ALLOWED.into());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("holds a password; write the address only".into());
    }
    Ok(url)
}

/// A token, as it can stand in a header.
pub(super) fn secret(text: &str) -> Parsed<Secret> {
    if text.chars().all(|c| c.is_ascii_graphic()) {
        Ok(text.into())
    } else {
        Err("must be visible ASCII characters without spaces".into())
    }
}

/// `sqlite:PATH`. Spec: core.md §5.
pub(super) fn records(text: &str) -> Parsed<RecordsUrl> {
    const ALLOWED: &str = "must be sqlite:PATH, for example sqlite:/var/lib/ferry/ferry.db";
    if text == "objects" {
        return Err("objects is not in this version of Ferry; write sqlite:PATH".into());
    }
    let path = text.strip_prefix("sqlite:").ok_or(ALLOWED)?;
    let path = match path.strip_prefix("//") {
        None => path,
        Some(absolute) if absolute.starts_with('/') => absolute,
        Some(_) => return Err(ALLOWED.into()),
    };
    // SQLite reads these as something else than a path; a database in memory would forget acknowledged uploads.
    if path.is_empty() || path.ends_with('/') || path.starts_with(':') || path.starts_with("file:") {
        return Err(ALLOWED.into());
    }
    Ok(RecordsUrl::Sqlite(path.into()))
}

/// `embedded`. Spec: core.md §5: of the pairs allowed together, this version has sqlite and embedded only; with
/// a second kind of records or bus, [`super::fill`] must check the pair.
pub(super) fn bus(text: &str) -> Parsed<BusUrl> {
    if text == "embedded" {
        Ok(BusUrl::Embedded)
    } else if text.starts_with("amqp://") || text.starts_with("amqps://") {
        Err("RabbitMQ is not in this version of Ferry; write embedded, or leave it empty".into())
    } else if text.starts_with("embedded:") {
        Err("has a path, but the embedded bus is in the file of RECORDS; write embedded".into())
    } else {
        Err("must be embedded".into())
    }
}

/// `none`, `finish`, `patch`. Spec: core.md §3.
pub(super) fn durability(text: &str) -> Parsed<Durability> {
    match text {
        "none" => Ok(Durability::None),
        "finish" => Ok(Durability::Finish),
        "patch" => Ok(Durability::Patch),
        _ => Err("must be none, finish or patch".into()),
    }
}

/// `json`, `text`.
pub(super) fn log_format(text: &str) -> Parsed<LogFormat> {
    match text {
        "json" => Ok(LogFormat::Json),
        "text" => Ok(LogFormat::Text),
        _ => Err("must be json or text".into()),
    }
}

/// Directives of `RUST_LOG`, checked only: [`crate::telemetry::init`] reads them itself, also where there is no
/// configuration.
pub(super) fn log_filter(text: &str) -> Parsed<()> {
    EnvFilter::try_new(text)
        .map(drop)
        .map_err(|_| "is no list of levels; write info, or info,copier=debug".into())
}

/// `none`: that nobody is asked who he is, said in so many words. Spec: security.md 44.
pub(super) fn auth(text: &str) -> Parsed<()> {
    match text {
        "none" => Ok(()),
        _ => Err("authorization is not in this version of Ferry; write none, or leave it empty".into()),
    }
}

/// Kinds of report sinks, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SinkKind {
    /// Lines of a file.
    Jsonl,
    /// Mutations of the processing-status API.
    Graphql,
}

/// Comma list of report sinks; `none` for none.
pub(super) fn sinks(text: &str) -> Parsed<Vec<SinkKind>> {
    if text == "none" {
        return Ok(Vec::new());
    }
    let mut kinds = Vec::new();
    for name in text.split(',').map(str::trim) {
        let kind = match name {
            "jsonl" => SinkKind::Jsonl,
            "graphql" => SinkKind::Graphql,
            "rabbitmq" | "rest" => {
                return Err(format!(
                    "{name} is not in this version of Ferry; allowed are jsonl, graphql and none"
                ));
            }
            _ => return Err("holds an unknown sink; allowed are jsonl, graphql and none".into()),
        };
        if kinds.contains(&kind) {
            return Err(format!("names {name} twice, so every report would be sent twice"));
        }
        kinds.push(kind);
    }
    Ok(kinds)
}

fn number_and_unit(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes_with_binary_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("7B", 7),
            ("512KiB", 512 << 10),
            ("3MiB", 3 << 20),
            ("8GiB", 8 << 30),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "8GB", "8 GiB", "1.5GiB", "-1", "+1", "8gib", "0x10", "8GiBs"] {
            assert!(size(text).unwrap_err().contains("not a size"), "{text}");
        }
        for text in ["8388608TiB", "9223372036854775808", "18446744073709551615TiB"] {
            assert!(size(text).unwrap_err().contains("too large"), "{text}");
        }
        assert_eq!(size("8388607TiB"), Ok(8_388_607 << 40));
    }

    #[test]
    fn limits_of_single_settings_hold() {
        assert!(positive_size("0").is_err() && upload_size("0KiB").is_err());
        assert!(memory("7MiB").is_err());
        assert_eq!(memory("8MiB"), Ok(8 << 20));
        assert_eq!((rate("1KiB/s"), rate("0"), rate("9")), (Ok(1024), Ok(0), Ok(9)));
        assert!(rate("1KiB/m").is_err());
        assert!(count::<8>("0").is_err() && count::<8>("9").is_err() && count::<8>("many").is_err());
        assert_eq!(count::<8>("8"), Ok(8));
        assert_eq!((switch("true"), switch("false")), (Ok(true), Ok(false)));
        assert!(switch("1").is_err() && switch("yes").is_err());
    }

    #[test]
    fn durations_have_a_unit_and_an_end() {
        for (text, span) in [
            ("250ms", Duration::from_millis(250)),
            ("30s", Duration::from_secs(30)),
            ("2m", Duration::from_secs(120)),
            ("72h", Duration::from_secs(72 * 3600)),
            ("7d", Duration::from_secs(7 * 86400)),
        ] {
            assert_eq!(duration(text), Ok(span), "{text}");
        }
        for text in [
            "",
            "30",
            "s",
            "1.5s",
            "-1s",
            "1h30m",
            "30S",
            "0s",
            "3651d",
            "18446744073709551615d",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn delays_ascend() {
        let seconds = |all: &[u64]| all.iter().copied().map(Duration::from_secs).collect::<Vec<_>>();
        assert_eq!(delays("5s,30s,2m,10m,1h"), Ok(seconds(&[5, 30, 120, 600, 3600])));
        assert_eq!(delays("1s, 1s"), Ok(seconds(&[1, 1])));
        assert!(delays("30s,5s").unwrap_err().contains("ascending"));
        assert!(delays("5s,,30s").is_err() && delays("5").is_err());
    }

    #[test]
    fn upload_paths_get_their_end_slash_and_leave_ferrys_own_paths_alone() {
        assert_eq!(upload_path("/files"), Ok("/files/".into()));
        assert_eq!(upload_path("/upload/files/"), Ok("/upload/files/".into()));
        assert_eq!(upload_path("/information"), Ok("/information/".into()));
        for text in [
            "/",
            "//",
            "files",
            "/info/",
            "/health",
            "/health/live",
            "/version",
            "/metrics",
            "/route/x",
            "/a//b",
            "/a/../b",
            "/{id}",
            "/a b",
            "/files//",
        ] {
            assert!(upload_path(text).is_err(), "{text}");
        }
    }

    #[test]
    fn records_and_bus_are_what_this_version_has() {
        assert_eq!(records("sqlite:a/b.db"), Ok(RecordsUrl::Sqlite("a/b.db".into())));
        assert_eq!(
            records("sqlite:///srv/b.db"),
            Ok(RecordsUrl::Sqlite("/srv/b.db".into()))
        );
        for text in [
            "sqlite:",
            "sqlite::memory:",
            "sqlite:file:x?mode=memory",
            "sqlite://x/y",
            "x.db",
            "sqlite:x/",
        ] {
            assert!(records(text).unwrap_err().contains("sqlite:PATH"), "{text}");
        }
        assert!(records("objects").unwrap_err().contains("not in this version of Ferry"));
        assert_eq!(bus("embedded"), Ok(BusUrl::Embedded));
        for text in ["amqp://host/", "amqps://a,amqps://b"] {
            assert!(
                bus(text).unwrap_err().contains("not in this version of Ferry"),
                "{text}"
            );
        }
        assert!(bus("embedded:x.db").unwrap_err().contains("RECORDS"));
        assert!(bus("kafka://x").is_err());
    }

    #[test]
    fn addresses_of_sinks_are_http_and_hold_no_password() {
        for text in ["http://127.0.0.1:8090/graphql", "https://api.example/graphql?tenant=7"] {
            assert_eq!(http_url(text).map(|url| url.to_string()), Ok(text.to_owned()));
        }
        for text in [
            "",
            "/graphql",
            "api.example/graphql",
            "ftp://api.example/",
            "http://",
            "http://a/#b",
        ] {
            assert!(http_url(text).unwrap_err().contains("is not an address"), "{text}");
        }
        assert!(
            http_url("https://me:canary@api.example/")
                .unwrap_err()
                .contains("password")
        );
        assert_eq!(secret("a.B-7_").unwrap().reveal(), "a.B-7_");
        assert!(secret("two words").is_err() && secret("grün").is_err());
    }

    #[test]
    fn sinks_are_known_and_named_once() {
        assert_eq!(sinks("jsonl"), Ok(vec![SinkKind::Jsonl]));
        assert_eq!(sinks("none"), Ok(vec![]));
        assert_eq!(sinks("graphql,jsonl"), Ok(vec![SinkKind::Graphql, SinkKind::Jsonl]));
        for name in ["rabbitmq", "rest"] {
            let text = format!("jsonl,{name}");
            assert!(sinks(&text).unwrap_err().contains("not in this version"), "{name}");
        }
        assert!(sinks("jsonl, jsonl").unwrap_err().contains("twice"));
        assert!(sinks("syslog").unwrap_err().contains("allowed are jsonl"));
    }
}
