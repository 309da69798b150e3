//! The span of a request: what a trace tells of it, and whose trace it is part of. Spec: bus.md, "Two kinds of
//! messages"; http.md §7, `OTEL_*`. Names: OpenTelemetry's semantic conventions for HTTP servers.

use actix_web::HttpRequest;
use actix_web::http::{Method, StatusCode};
use shared::telemetry::{Origin, SPANS, TraceContext, begin};
use shared::upload::UploadId;
use tracing::Span;
use tracing::field::Empty;

/// The span of a request for `route`. It is part of the trace that its sender names, else of that of upload `id`. No
/// words of the sender's are in it.
pub(super) fn span(request: &HttpRequest, method: Option<&Method>, route: Option<&str>, id: Option<UploadId>) -> Span {
    let method = method.map_or("_OTHER", known);
    let span = tracing::info_span!(
        target: SPANS,
        parent: None,
        "request",
        otel.name = name(method, route),
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = method,
        http.route = route,
        http.response.status_code = Empty,
        error.type = Empty,
        ferry.upload_id = Empty,
    );
    match (sent(request), id) {
        (Some(parent), _) => begin(span, Origin::Within(parent)),
        (None, Some(id)) => begin(span, Origin::Upload(id, None)),
        (None, None) => span,
    }
}

/// Notes which upload the present request is about.
pub(super) fn note_upload(id: UploadId) {
    Span::current().record("ferry.upload_id", tracing::field::display(id));
}

/// Notes the answer. Only what is our own fault makes the span an error.
pub(super) fn note_answer(span: &Span, status: StatusCode) {
    span.record("http.response.status_code", status.as_u16());
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
        span.record("error.type", status.as_str());
    }
}

/// What the request's headers say. Spec: Trace Context §3.2.2.4 and §3.3.1: one `traceparent`, any number of
/// `tracestate`.
fn sent(request: &HttpRequest) -> Option<TraceContext> {
    let mut parents = request.headers().get_all("traceparent");
    let (parent, None) = (parents.next()?.to_str().ok()?, parents.next()) else {
        return None;
    };
    let states: Option<Vec<&str>> = request
        .headers()
        .get_all("tracestate")
        .map(|state| state.to_str().ok())
        .collect();
    let state = states
        .filter(|states| !states.is_empty())
        .map(|states| states.join(","));
    TraceContext::parse(parent.trim_matches([' ', '\t']), state.as_deref())
}

fn name(method: &str, route: Option<&str>) -> String {
    // The conventions have another word for methods that they do not know in names.
    let method = if method == "_OTHER" { "HTTP" } else { method };
    match route {
        Some(route) => format!("{method} {route}"),
        None => method.to_owned(),
    }
}

/// The method's name, if it is one of HTTP's own.
fn known(method: &Method) -> &'static str {
    const METHODS: [&str; 9] = [
        "PATCH", "POST", "HEAD", "GET", "DELETE", "OPTIONS", "PUT", "CONNECT", "TRACE",
    ];
    METHODS
        .into_iter()
        .find(|known| *known == method.as_str())
        .unwrap_or("_OTHER")
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn sent_with(headers: &[(&str, &str)]) -> Option<String> {
        let request = headers
            .iter()
            .fold(TestRequest::patch(), |request, header| request.append_header(*header));
        sent(&request.to_http_request()).map(|context| context.to_string())
    }

    #[test]
    fn a_sender_names_its_trace_once_and_rightly_or_not_at_all() {
        assert_eq!(sent_with(&[("traceparent", PARENT)]).as_deref(), Some(PARENT));
        let state = [("Traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2")];
        assert_eq!(sent_with(&state).as_deref(), Some(PARENT));
        assert_eq!(sent_with(&[("traceparent", PARENT), ("traceparent", PARENT)]), None);
        assert_eq!(sent_with(&[("traceparent", "00-0-0-00")]), None);
        assert_eq!(sent_with(&[("tracestate", "a=1")]), None);
    }

    #[test]
    fn names_are_few_whatever_senders_write() {
        assert_eq!(name(known(&Method::PATCH), Some("/files/{id}")), "PATCH /files/{id}");
        let odd = Method::from_bytes(b"PATIENT-42").unwrap();
        assert_eq!((known(&odd), name(known(&odd), None).as_str()), ("_OTHER", "HTTP"));
    }
}
