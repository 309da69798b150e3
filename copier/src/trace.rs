//! The spans of a copier's work: whose trace they are part of, and what they tell. Spec: bus.md, "Two kinds of
//! messages". Names: OpenTelemetry's semantic conventions for messaging.
//!
//! ```text
//!  process copy ──► deliver (each target) ──► verify, outcome ──message──► process report (each sink)
//! ```

use shared::bus::Job;
use shared::message::Queue;
use shared::telemetry::{Origin, SPANS, begin};
use tracing::Span;
use tracing::field::Empty;

use crate::outcome::Lease;

/// The span of the work that `job`, taken from `queue`, asks for.
pub(crate) fn job(job: &Job, queue: Queue) -> Span {
    let message = &job.message;
    let span = tracing::info_span!(
        target: SPANS,
        parent: None,
        "process",
        otel.name = format!("process {}", queue.as_str()),
        otel.kind = "consumer",
        otel.status_code = Empty,
        messaging.system = "ferry",
        messaging.operation.name = "process",
        messaging.operation.type = "process",
        messaging.destination.name = queue.as_str(),
        messaging.message.id = %message.id,
        error.type = Empty,
        ferry.upload_id = %message.subject,
        ferry.message.type = known(&message.kind),
        ferry.sink = Empty,
        ferry.report.action = Empty,
    );
    begin(span, Origin::of_work(message, job.redelivered))
}

/// The span of a report's way into `sink`.
pub(crate) fn report(job: &Job, sink: &str, action: &str) -> Span {
    let span = self::job(job, Queue::Report);
    span.record("ferry.sink", sink);
    span.record("ferry.report.action", action);
    span
}

/// The span of one target, within that of the job.
pub(crate) fn delivery(lease: &Lease) -> Span {
    tracing::info_span!(
        target: SPANS,
        "deliver",
        ferry.upload_id = %lease.upload.id,
        ferry.target = lease.seen.to.target,
        ferry.run = lease.seen.run,
        ferry.attempt = lease.seen.attempts + 1,
        ferry.size_bytes = lease.upload.size,
    )
}

/// Notes that the present span's work failed, for a reason of this class.
pub(crate) fn note_failure(class: &str) {
    let span = Span::current();
    span.record("otel.status_code", "ERROR");
    span.record("error.type", class);
}

/// A message's type, if it is one of ours: messages are hostile, too (security.md 21).
fn known(kind: &str) -> &'static str {
    const KINDS: [&str; 4] = ["copy.upload", "copy.delivery", "copy.continue", "report"];
    KINDS.into_iter().find(|known| *known == kind).unwrap_or("unknown")
}
