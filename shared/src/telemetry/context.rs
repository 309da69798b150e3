//! Trace contexts: how a piece of work knows what it is part of, across processes and restarts.
//! Spec: W3C Trace Context, level 1; bus.md, "Two kinds of messages"; http.md §7, `OTEL_*`.
//!
//! ```text
//!  sender ─traceparent─► request ──► finish ──message──► process copy ──► deliver ──► outcome ──message──► process report
//!                                       ┆                                    ┆
//!                                       └┄┄ link ┄┄► what is done again, or by nobody's request: in the upload's trace
//! ```
//!
//! The upload's own trace is the one of everything that no sender's trace claims: its id is the MD5 of the upload's id.

use std::cell::Cell;
use std::fmt;

use md5::{Digest as _, Md5};
use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::message::Message;
use crate::upload::UploadId;

/// Target of the spans that make up traces. They are no part of log lines.
pub const SPANS: &str = "ferry::trace";

/// Length of version 00 of a `traceparent`.
const TRACEPARENT_LEN: usize = 55;
/// Longest `tracestate` that is taken along; a longer one is dropped whole. Spec: Trace Context §3.3.1.5.
const TRACESTATE_LEN: usize = 512;

/// A span as others refer to it: which trace, which span, and whether it is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext(SpanContext);

impl TraceContext {
    /// What the headers `traceparent` and `tracestate` say. `None` if the first breaks a rule: the second does not
    /// count then either, and a new trace begins. A `tracestate` that breaks one is left out.
    #[must_use]
    pub fn parse(traceparent: &str, tracestate: Option<&str>) -> Option<Self> {
        let fixed = traceparent.get(..TRACEPARENT_LEN)?;
        let mut parts = fixed.split('-');
        let mut part = |len| {
            parts
                .next()
                .filter(|part| part.len() == len && part.bytes().all(is_lower_hex))
        };
        let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        let known = match (version, traceparent.as_bytes().get(TRACEPARENT_LEN)) {
            ("ff", _) => false,
            (_, None) => true,
            ("00", Some(_)) => false,
            // Later versions may say more, behind a further dash.
            (_, Some(next)) => *next == b'-',
        };
        let context = SpanContext::new(
            TraceId::from_hex(trace).ok()?,
            SpanId::from_hex(span).ok()?,
            TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED,
            true,
            tracestate
                .filter(|state| state.len() <= TRACESTATE_LEN)
                .and_then(|state| state.parse::<TraceState>().ok())
                .unwrap_or_default(),
        );
        (known && context.is_valid()).then_some(Self(context))
    }

    /// Of the span that the caller is in; `None` outside of all.
    #[must_use]
    pub fn current() -> Option<Self> {
        let context = Context::map_current(|context| context.span().span_context().clone());
        context.is_valid().then_some(Self(context))
    }

    /// Of the span that made `message`.
    #[must_use]
    pub fn of_message(message: &Message) -> Option<Self> {
        Self::parse(message.traceparent.as_deref()?, None)
    }

    /// Whether somebody records this trace.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.0.is_sampled()
    }

    /// 32 hexadecimal digits.
    #[must_use]
    pub fn trace_id(&self) -> impl fmt::Display + use<> {
        self.0.trace_id()
    }

    /// 16 hexadecimal digits.
    #[must_use]
    pub fn span_id(&self) -> impl fmt::Display + use<> {
        self.0.span_id()
    }
}

impl fmt::Display for TraceContext {
    /// As a `traceparent`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = self.0.trace_flags() & TraceFlags::SAMPLED;
        write!(f, "00-{}-{}-{flags:02x}", self.0.trace_id(), self.0.span_id())
    }
}

fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// Where a span begins that no other span of this process is around.
#[derive(Clone, Debug)]
pub enum Origin {
    /// As a child of this one.
    Within(TraceContext),
    /// Nobody waits for it any more: in the trace of the upload, with a link to what it follows.
    Upload(UploadId, Option<TraceContext>),
}

impl Origin {
    /// Of the work that `message` asks for. What is done for the first time is part of what asked for it; a retry, a
    /// continuation, a redrive, and a message that somebody else had before follow it. Spec: bus.md.
    #[must_use]
    pub fn of_work(message: &Message, redelivered: u32) -> Self {
        let follows = redelivered > 0
            || message.delay.is_some()
            || matches!(message.kind.as_str(), "copy.delivery" | "copy.continue");
        match TraceContext::of_message(message) {
            Some(context) if !follows => Self::Within(context),
            context => Self::Upload(message.subject, context),
        }
    }

    /// Of work on upload `id` that follows the span of `traceparent`, as a record has it.
    #[must_use]
    pub fn after(id: UploadId, traceparent: Option<&str>) -> Self {
        Self::Upload(id, traceparent.and_then(|text| TraceContext::parse(text, None)))
    }
}

/// Lets `span`, which has no parent and was never entered, begin at `origin`. Answers it.
#[must_use]
pub fn begin(span: Span, origin: Origin) -> Span {
    match origin {
        Origin::Within(TraceContext(parent)) => {
            let parent = Context::new().with_remote_span_context(parent);
            // Without traces in this process, as in unit tests, there is nothing to be done.
            let _set = span.set_parent(parent).is_ok();
        }
        Origin::Upload(id, after) => {
            if let Some(TraceContext(after)) = after {
                span.add_link(after);
            }
            NEXT_TRACE.set(Some(upload_trace(id)));
            drop(span.context()); // begins it
            NEXT_TRACE.set(None);
        }
    }
    span
}

/// `span`, which is a child of the present span if the caller is in one; else it begins at `origin`.
#[must_use]
pub fn here_or(span: Span, origin: impl FnOnce() -> Origin) -> Span {
    match TraceContext::current() {
        Some(_) => span,
        None => begin(span, origin()),
    }
}

/// The trace of all that is done for an upload outside of its sender's traces. Spec: http.md §7.
fn upload_trace(id: UploadId) -> TraceId {
    TraceId::from_bytes(Md5::digest(id.to_string()).into())
}

thread_local! {
    /// The trace that the next root span of this thread belongs to. The SDK lets nobody choose it otherwise.
    static NEXT_TRACE: Cell<Option<TraceId>> = const { Cell::new(None) };
}

/// Random ids, but for the traces of uploads.
#[derive(Debug, Default)]
pub(super) struct Ids(RandomIdGenerator);

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        NEXT_TRACE.take().unwrap_or_else(|| self.0.new_trace_id())
    }

    fn new_span_id(&self) -> SpanId {
        self.0.new_span_id()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    #[test]
    fn a_traceparent_is_taken_by_the_rules_of_the_w3c() {
        for (text, sampled) in [
            (format!("00-{TRACE}-{SPAN}-00"), false),
            (format!("00-{TRACE}-{SPAN}-01"), true),
            // Unknown flags are not passed on.
            (format!("00-{TRACE}-{SPAN}-ff"), true),
            (format!("00-{TRACE}-{SPAN}-08"), false),
            (format!("01-{TRACE}-{SPAN}-01"), true),
            (format!("cc-{TRACE}-{SPAN}-01-what-the-future-says"), true),
        ] {
            let context = TraceContext::parse(&text, None).expect(&text);
            assert_eq!(context.is_sampled(), sampled, "{text}");
            let flags = if sampled { "01" } else { "00" };
            assert_eq!(context.to_string(), format!("00-{TRACE}-{SPAN}-{flags}"));
        }
    }

    #[test]
    fn what_breaks_a_rule_is_no_traceparent() {
        for text in [
            String::new(),
            "00".into(),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-"),
            format!("00-{TRACE}-{SPAN}-0"),
            format!("00-{TRACE}-{SPAN}-001"),
            format!("00-{TRACE}-{SPAN}-01-"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("cc-{TRACE}-{SPAN}-01.more"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("0-{TRACE}-{SPAN}-01-"),
            format!("00_{TRACE}_{SPAN}_01"),
            format!(" 00-{TRACE}-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-{}-01", SPAN.to_uppercase()),
            format!("00-{TRACE}-{SPAN}-0A"),
            format!("00-{TRACE}-{SPAN}-+1"),
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{}-{SPAN}-01", &TRACE[..31]),
            format!("00-{TRACE}-g0f067aa0ba902b7-01"),
            format!("00-{TRACE}-{SPAN}-é"),
        ] {
            assert_eq!(TraceContext::parse(&text, None), None, "{text:?}");
        }
    }

    #[test]
    fn a_tracestate_goes_along_unless_it_is_broken_or_long() {
        let parse = |state: &str| {
            let context = TraceContext::parse(&format!("00-{TRACE}-{SPAN}-01"), Some(state)).unwrap();
            context.0.trace_state().header()
        };
        assert_eq!(parse("vendor=opaque,other@tenant=1"), "vendor=opaque,other@tenant=1");
        assert_eq!(parse("no equals sign"), "");
        assert_eq!(parse(&format!("vendor={}", "x".repeat(TRACESTATE_LEN))), "");
    }

    #[test]
    fn an_upload_has_the_trace_of_its_ids_md5() {
        let id: UploadId = "3f0c9a52-6f0e-4f1b-9d3a-2b7c1e5a8d90".parse().unwrap();
        assert_eq!(upload_trace(id).to_string(), "838e9c371a973b7a9d111fe62b79d87f");
        NEXT_TRACE.set(Some(upload_trace(id)));
        let ids = Ids::default();
        assert_eq!(ids.new_trace_id(), upload_trace(id));
        assert_ne!(ids.new_trace_id(), upload_trace(id), "only the next one");
    }
}
