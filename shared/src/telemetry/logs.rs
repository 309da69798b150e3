//! The log: lines on standard error, as JSON or for people. Standard output belongs to the `ready:` line.

use std::error::Error;
use std::fmt;
use std::io::{self, IsTerminal as _};
use std::sync::OnceLock;

use opentelemetry_sdk::trace::SdkTracer;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{Format, JsonFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry};

use super::context::SPANS;
use super::escape::{JsonLine, TextFields};
use super::traces;
use crate::config::LogFormat;

/// Lines that wait for a slow reader of standard error; further ones are dropped and counted.
const WAITING_LINES: usize = 8192;

/// What is logged unless `RUST_LOG` says otherwise. The HTTP server tells of each of its threads at `info`.
const DEFAULT_FILTER: &str = "info,actix_server=warn";

static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// Keeps the log going. To be held by `main` until the process ends: dropping it writes what still waits, for about
/// a second at most.
#[derive(Debug)]
#[must_use = "the log ends when this is dropped"]
pub(super) struct Logs {
    _writer: WorkerGuard,
}

/// The log was set up a second time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AlreadySetUp;

/// Starts the log of this process on standard error: what `RUST_LOG` says (default `info`), in `format`. Lines are
/// written by a thread of their own, so that a stuck reader stops nothing. Spec: faults.md 74. Spans become those of
/// `tracer`, whatever `RUST_LOG` says.
pub(super) fn init(format: LogFormat, tracer: SdkTracer) -> Result<Logs, AlreadySetUp> {
    // What is wrong in RUST_LOG is told by the configuration; where there is none, it is left out.
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(chosen) if !chosen.is_empty() => EnvFilter::builder()
            .with_default_directive(LevelFilter::INFO.into())
            .parse_lossy(chosen),
        _ => EnvFilter::new(DEFAULT_FILTER),
    };
    let (writer, guard) = waiting_lines(io::stderr());
    let dropped = writer.error_counter();
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    tracing::subscriber::set_global_default(subscriber(format, filter, colours, writer, tracer))
        .map_err(|_| AlreadySetUp)?;
    DROPPED.get_or_init(|| dropped);
    Ok(Logs { _writer: guard })
}

/// Log lines dropped so far because standard error was not read: `ferry_log_dropped_total`.
#[must_use]
pub fn dropped_lines() -> u64 {
    DROPPED
        .get()
        .map_or(0, |counter| u64::try_from(counter.dropped_lines()).unwrap_or(u64::MAX))
}

/// An error with all its sources, as one text: `commit dex/x: denied: permission denied`. For log fields, as the
/// JSON format would print an error alone.
#[derive(Clone, Copy, Debug)]
pub struct Chain<'a>(pub &'a (dyn Error + 'a));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut error = self.0;
        while let Some(source) = error.source() {
            write!(f, ": {source}")?;
            error = source;
        }
        Ok(())
    }
}

/// Lines on their way to `output`.
fn waiting_lines(output: impl io::Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default()
        .buffered_lines_limit(WAITING_LINES)
        .lossy(true)
        .thread_name("log")
        .finish(output)
}

fn subscriber<W>(
    format: LogFormat,
    filter: EnvFilter,
    colours: bool,
    writer: W,
    tracer: SdkTracer,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer::<Registry>().with_writer(writer);
    let layer = match format {
        // Fields stay an object of their own: one named `level` or `target` would hide the line's.
        LogFormat::Json => layer
            .event_format(JsonLine(Format::default().json().with_span_list(false)))
            .fmt_fields(JsonFields::new())
            .with_ansi(false)
            .boxed(),
        LogFormat::Text => layer.fmt_fields(TextFields).with_ansi(colours).boxed(),
    };
    // Spans of traces would make every line long: a line only has the trace's id.
    let lines = filter.and(filter_fn(|metadata| metadata.target() != SPANS));
    Box::new(
        Registry::default()
            .with(layer.with_filter(lines))
            .with(traces::layer(tracer)),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Condvar, Mutex};
    use std::time::Duration;

    use super::super::context::{Origin, TraceContext, begin};
    use super::super::export::Queue;
    use super::*;
    use crate::config::{TraceChoice, TraceSampler};

    /// A reader of the log; while its lock is held, it is stuck.
    #[derive(Clone, Default)]
    struct Written(Arc<(Mutex<Vec<u8>>, Condvar)>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.0.lock().unwrap().extend_from_slice(bytes);
            self.0.1.notify_all();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Of traces that are recorded by somebody.
    fn tracer() -> SdkTracer {
        let sampler = TraceSampler {
            choice: TraceChoice::None,
            parent_based: true,
        };
        traces::tracer(sampler, None::<Queue>)
    }

    /// What `write` logs in `format`.
    fn logged(format: LogFormat, colours: bool, write: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = subscriber(
            format,
            EnvFilter::new("info"),
            colours,
            move || writer.clone(),
            tracer(),
        );
        tracing::subscriber::with_default(subscriber, write);
        String::from_utf8(written.0.0.lock().unwrap().clone()).unwrap()
    }

    const HOSTILE: &str = "a\r\n2026-01-01T00:00:00Z ERROR forged\u{1b}[2J\u{9b}31m\u{7f}\u{2028}b\0";

    /// Security 12, as a message, as a field of each kind, in a span and as an error.
    fn log_hostile() {
        let error = io::Error::other(io::Error::other(HOSTILE));
        let span = tracing::info_span!("upload", name = %HOSTILE, text = HOSTILE);
        let _entered = span.enter();
        tracing::info!("{HOSTILE}");
        tracing::info!(display = %HOSTILE, debug = ?HOSTILE, text = HOSTILE, "fields");
        tracing::info!(error = &error as &dyn Error, chain = %Chain(&error), "error");
        tracing::debug!("not logged");
    }

    #[test]
    fn a_field_cannot_forge_a_line_or_speak_to_the_terminal() {
        for (format, colours) in [
            (LogFormat::Text, false),
            (LogFormat::Json, false),
            (LogFormat::Json, true),
        ] {
            let log = logged(format, colours, log_hostile);
            assert_eq!(log.lines().count(), 3, "a line per event: {log}");
            let shown = log.replace('\n', "");
            assert!(
                !shown.contains(|c: char| c.is_control() || c == '\u{2028}'),
                "{format:?}: {shown:?}"
            );
            assert!(log.contains("forged"), "escaped, not lost");
        }
    }

    #[test]
    fn colours_come_from_us_and_never_from_a_field() {
        let log = logged(LogFormat::Text, true, log_hostile);
        assert_eq!(log.lines().count(), 3);
        assert!(log.contains("\u{1b}[32m INFO"), "{log:?}");
        assert!(!log.contains("\u{1b}[2J") && !log.contains('\u{9b}'));
    }

    #[test]
    fn json_lines_are_json_with_what_was_logged_in_them() {
        let log = logged(LogFormat::Json, false, log_hostile);
        let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["fields"]["message"], HOSTILE);
        assert_eq!(lines[1]["fields"]["text"], HOSTILE);
        assert_eq!(lines[1]["level"], "INFO");
        assert_eq!(
            lines[1]["span"]["name"], "upload",
            "the span's own name is not hidden by a field"
        );
    }

    const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const UNSAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

    /// Logs a line in a trace, and answers the span it is in.
    fn log_within(traceparent: &str) -> TraceContext {
        let parent = TraceContext::parse(traceparent, None).unwrap();
        let span = tracing::info_span!(target: SPANS, parent: None, "work", ferry.upload_id = "not shown");
        begin(span, Origin::Within(parent)).in_scope(|| {
            tracing::info!(n = 1, "within");
            TraceContext::current().unwrap()
        })
    }

    #[test]
    fn a_line_has_the_id_of_its_trace_and_nothing_else_of_it() {
        let log = logged(LogFormat::Json, false, || {
            let span = log_within(UNSAMPLED);
            tracing::info!(span = %span.span_id(), "without");
        });
        let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(lines[0]["span_id"], lines[1]["fields"]["span"]);
        assert_eq!(lines[1].get("trace_id"), None);
        assert!(!log.contains("not shown"), "{log}");
        // People see it where there is a trace to look at.
        let log = logged(LogFormat::Text, false, || {
            log_within(SAMPLED);
            log_within(UNSAMPLED);
        });
        let ends = ["within n=1 trace_id=4bf92f3577b34da6a3ce929d0e0e4736", "within n=1"];
        for (line, end) in log.lines().zip(ends) {
            assert!(line.ends_with(end), "{line}");
        }
        assert_eq!(log.lines().count(), 2);
    }

    /// Fault 74. Were a line waited for, this test would never end.
    #[test]
    fn a_stuck_reader_of_the_log_stops_nobody_and_what_it_misses_is_counted() {
        let written = Written::default();
        let (writer, guard) = waiting_lines(written.clone());
        let dropped = writer.error_counter();
        let subscriber = subscriber(LogFormat::Json, EnvFilter::new("info"), false, writer, tracer());
        let stuck = written.0.0.lock().unwrap();
        let lines = WAITING_LINES + 100;
        tracing::subscriber::with_default(subscriber, || {
            for line in 0..lines {
                tracing::info!(line, "x");
            }
        });
        // One line more than fit may be in the writer's hand.
        assert!(
            (99..=100).contains(&dropped.dropped_lines()),
            "{}",
            dropped.dropped_lines()
        );
        // Waiting lets go of the lock, so the reader goes on.
        let kept = lines - dropped.dropped_lines();
        let missing = |log: &mut Vec<u8>| log.iter().filter(|byte| **byte == b'\n').count() < kept;
        let (log, waited) = written
            .0
            .1
            .wait_timeout_while(stuck, Duration::from_secs(30), missing)
            .unwrap();
        assert!(!waited.timed_out(), "the rest is written when the reader goes on");
        drop(log);
        drop(guard);
    }

    #[test]
    fn a_chain_tells_every_source() {
        let inner = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = crate::store::BlobError {
            operation: crate::store::BlobOp::Commit,
            container: "dex".into(),
            name: "x".into(),
            kind: crate::store::BlobErrorKind::Denied,
            retry_after: None,
            source: Some(Box::new(inner)),
        };
        assert_eq!(
            Chain(&error).to_string(),
            "commit dex/x: access denied: permission denied"
        );
    }
}
