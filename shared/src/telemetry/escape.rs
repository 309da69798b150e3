//! Log lines whose fields cannot forge another line, nor speak to the terminal. Spec: security.md 12.
//!
//! tracing-subscriber escapes ESC in some fields of its text format, but no line ends; its JSON leaves DEL and the
//! C1 controls as they are, which some terminals obey.

use std::fmt;

use tracing::{Event, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::context::TraceContext;

/// Fields of the text format. Names and values lose their colours by it; the level and the time keep theirs.
#[derive(Debug)]
pub(super) struct TextFields;

impl<'w> FormatFields<'w> for TextFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut text = String::new();
        DefaultFields::new().format_fields(Writer::new(&mut text), fields)?;
        text.chars().try_for_each(|c| {
            if unsafe_to_show(c) {
                write!(writer, "{}", c.escape_default())
            } else {
                writer.write_char(c)
            }
        })?;
        // For people the id is noise unless somebody records the trace.
        match TraceContext::current() {
            Some(context) if context.is_sampled() => write!(writer, " trace_id={}", context.trace_id()),
            _ => Ok(()),
        }
    }
}

/// A JSON line of `F`, with the trace that it is part of. Control characters are only found inside strings there, so
/// they can be escaped afterwards.
#[derive(Debug)]
pub(super) struct JsonLine<F>(pub(super) F);

impl<S, N, F> FormatEvent<S, N> for JsonLine<F>
where
    S: Subscriber + for<'l> LookupSpan<'l>,
    N: for<'w> FormatFields<'w> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        let mut line = line.trim_end_matches('\n');
        let context = TraceContext::current();
        if context.is_some() {
            line = line.strip_suffix('}').unwrap_or(line);
        }
        for c in line.chars() {
            if unsafe_to_show(c) {
                write!(writer, "\\u{:04x}", u32::from(c))?; // all of them are below U+10000
            } else {
                writer.write_char(c)?;
            }
        }
        if let Some(context) = context {
            let (trace, span) = (context.trace_id(), context.span_id());
            write!(writer, ",\"trace_id\":\"{trace}\",\"span_id\":\"{span}\"}}")?;
        }
        writer.write_char('\n')
    }
}

/// Control characters, and the two other characters that end a line for some readers.
fn unsafe_to_show(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}
