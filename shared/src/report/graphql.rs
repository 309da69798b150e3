//! Reports as GraphQL mutations of the processing-status API. Spec: reports.md §5, "graphql".
//!
//! HTTP is 200 whatever happened to a report: only the reply's own `result` says that it was taken.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url, redirect};
use serde_json::{Value, json};

use super::{Disposition, Fate, Report, Sink, SinkError};
use crate::config::Secret;
use crate::failure::FailureClass;

/// The mutation, as the API's schema has it.
const MUTATION: &str = "mutation UpsertReport($action: String!, $report: BasicHashMap!) {
  upsertReport(action: $action, report: $report) { result reason uploadId reportId issues schemaFileNames }
}";
/// Every GraphQL server answers this; it changes nothing.
const QUESTION: &str = "{ __typename }";
/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest reply that is read; the API's own have a few hundred bytes.
const LONGEST_REPLY: usize = 256 * 1024;
/// Longest text of the API's that goes into a dead letter, in characters.
const LONGEST_REASON: usize = 4000;

/// Sends each report as one `upsertReport`.
pub struct GraphqlSink {
    http: Client,
    url: Url,
    authorization: Option<HeaderValue>,
    /// Where that is, without what may be a credential.
    place: String,
}

/// Why a report was not taken, or is not known to be.
#[derive(Debug)]
struct Refusal {
    class: FailureClass,
    fate: Fate,
    retry_after: Option<Duration>,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl Refusal {
    fn new(class: FailureClass, fate: Fate, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self {
            class,
            fate,
            retry_after: None,
            source: source.into(),
        }
    }
}

impl GraphqlSink {
    /// The sink at `url`; a connection is waited for 5 s, and everything until the end of the reply for `limit`.
    ///
    /// # Errors
    /// This machine has no means for TLS, such as certificates of authorities; or the token cannot be a header.
    pub fn new(url: &Url, token: Option<&Secret>, limit: Duration) -> Result<Self, SinkError> {
        let place = place(url);
        let unusable = |source: Box<dyn std::error::Error + Send + Sync>| SinkError {
            operation: "set up",
            object: place.clone(),
            class: FailureClass::Configuration,
            fate: Fate::Away,
            retry_after: None,
            source,
        };
        let http = Client::builder()
            .user_agent(concat!("ferry/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .timeout(limit)
            // A POST would become a GET.
            .redirect(redirect::Policy::none())
            .build()
            .map_err(|error| unusable(error.into()))?;
        let authorization = token
            .map(|token| {
                let mut value = HeaderValue::from_str(&format!("Bearer {}", token.reveal()))?;
                value.set_sensitive(true);
                Ok(value)
            })
            .transpose()
            .map_err(|error: reqwest::header::InvalidHeaderValue| unusable(error.into()))?;
        Ok(Self {
            http,
            url: url.clone(),
            authorization,
            place,
        })
    }

    /// The reply to `request`, if it is a GraphQL one.
    async fn ask(&self, request: &Value) -> Result<Value, Refusal> {
        let mut post = self.http.post(self.url.clone()).json(request);
        if let Some(authorization) = &self.authorization {
            post = post.header(AUTHORIZATION, authorization.clone());
        }
        let response = post.send().await.map_err(broken)?;
        let (status, retry_after) = (response.status(), retry_after(response.headers(), Timestamp::now()));
        let body = body(response).await;
        if status != StatusCode::OK {
            let mut refusal = by_status(status, &body.unwrap_or_default());
            refusal.retry_after = retry_after;
            return Err(refusal);
        }
        serde_json::from_slice::<Value>(&body?)
            .ok()
            .filter(|reply| reply.get("data").is_some() || reply.get("errors").is_some())
            .ok_or_else(|| unknown("the answer is not one of GraphQL's"))
    }

    fn error(&self, operation: &'static str, refusal: Refusal) -> SinkError {
        SinkError {
            operation,
            object: self.place.clone(),
            class: refusal.class,
            fate: refusal.fate,
            retry_after: refusal.retry_after,
            source: refusal.source,
        }
    }
}

impl fmt::Debug for GraphqlSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GraphqlSink")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Sink for GraphqlSink {
    fn name(&self) -> &'static str {
        "graphql"
    }

    fn at_once(&self) -> usize {
        8
    }

    fn takes_late(&self) -> bool {
        true
    }

    async fn send(&self, report: &Report) -> Result<(), SinkError> {
        let sent = match self.ask(&request(report)).await {
            Ok(reply) => outcome(&reply),
            Err(refusal) => Err(refusal),
        };
        sent.map_err(|refusal| self.error("send a report to", refusal))
    }

    async fn check(&self) -> Result<(), SinkError> {
        let asked = self.ask(&json!({ "query": QUESTION })).await;
        asked.map(drop).map_err(|refusal| self.error("ask", refusal))
    }
}

/// The report as the API wants it: what it does to those before it is the action, not a field.
fn request(report: &Report) -> Value {
    let action = match report.disposition() {
        Disposition::Add => "create",
        Disposition::Replace => "replace",
    };
    let mut report = serde_json::to_value(report).expect("plain structs with text keys always have a JSON form");
    if let Some(fields) = report.as_object_mut() {
        fields.remove("disposition_type");
    }
    json!({ "query": MUTATION, "variables": { "action": action, "report": report } })
}

/// What a reply says about the report.
fn outcome(reply: &Value) -> Result<(), Refusal> {
    let upsert = &reply["data"]["upsertReport"];
    let errors = reply["errors"].as_array().filter(|errors| !errors.is_empty());
    match (upsert["result"].as_str(), errors) {
        (Some("FAILURE"), _) => {
            let reason = upsert["reason"].as_str().unwrap_or_default();
            let issues = texts(&upsert["issues"]);
            let for_good =
                !issues.is_empty() || reason == "Validation failed" || reason.starts_with("Invalid action provided");
            let text = std::iter::once(reason.to_owned()).chain(issues);
            Err(refused(for_good, text))
        }
        // Beside a success, too: it is not known what they are about. Spec: faults.md 72.
        (_, Some(errors)) => {
            let text = errors.iter().map(|error| {
                let message = error["message"].as_str();
                message.unwrap_or("an error without a message").to_owned()
            });
            Err(refused(errors.iter().any(is_validation), text))
        }
        (Some("SUCCESS"), None) => Ok(()),
        _ => Err(unknown("the answer does not say what became of the report")),
    }
}

fn is_validation(error: &Value) -> bool {
    let classification = error["extensions"]["classification"].as_str().unwrap_or_default();
    classification.to_ascii_lowercase().contains("validation")
}

fn texts(list: &Value) -> Vec<String> {
    let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
    items
        .iter()
        .map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned))
        .collect()
}

fn refused(for_good: bool, reasons: impl IntoIterator<Item = String>) -> Refusal {
    let reasons: Vec<String> = reasons.into_iter().filter(|reason| !reason.is_empty()).collect();
    let class = if for_good {
        FailureClass::Permanent
    } else {
        FailureClass::Transient
    };
    Refusal::new(class, Fate::Refused, printable(&reasons.join("; ")))
}

fn unknown(why: &str) -> Refusal {
    Refusal::new(FailureClass::Transient, Fate::Unknown, why)
}

/// No answer at all.
fn broken(error: reqwest::Error) -> Refusal {
    let (class, fate) = if error.is_builder() {
        (FailureClass::Configuration, Fate::Away)
    } else if error.is_connect() {
        (FailureClass::Transient, Fate::Away)
    } else {
        (FailureClass::Transient, Fate::Unknown)
    };
    Refusal::new(class, fate, error.without_url()) // the sink's own error names the place
}

/// An answer that is not GraphQL's: of a gateway, or of a server in trouble.
fn by_status(status: StatusCode, body: &[u8]) -> Refusal {
    let answered = format!("answered {status}");
    match status.as_u16() {
        // Of this report only: another one may be smaller. The answer's text is all that there is to know.
        400 | 413 | 422 => {
            let text = printable(&String::from_utf8_lossy(body));
            Refusal::new(FailureClass::Permanent, Fate::Refused, format!("{answered}: {text}"))
        }
        401 | 403 | 407 => Refusal::new(FailureClass::Denied, Fate::Away, answered),
        408 | 425 | 429 | 503 => Refusal::new(FailureClass::Transient, Fate::Away, answered),
        500 => Refusal::new(FailureClass::Transient, Fate::Failed, answered),
        501.. => Refusal::new(FailureClass::Transient, Fate::Unknown, answered),
        _ => Refusal::new(FailureClass::Configuration, Fate::Away, answered),
    }
}

/// The whole body, unless it is longer than any reply.
async fn body(mut response: Response) -> Result<Vec<u8>, Refusal> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        if body.len() + chunk.len() > LONGEST_REPLY {
            return Err(unknown("the answer has no end"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// `Retry-After`, in seconds or as a date.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = rfc2822::parse(text).ok()?.timestamp();
    Duration::try_from(date.duration_since(now)).ok()
}

/// One line, of a bounded length, that cannot drive a terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(LONGEST_REASON)
        .collect()
}

/// `url` for people: a query may hold a key.
fn place(url: &Url) -> String {
    let mut place = url.clone();
    place.set_query(None);
    place.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::one_of_each;

    #[test]
    fn the_request_is_the_specifications() {
        let reports = one_of_each();
        let actions: Vec<Value> = reports
            .iter()
            .map(|report| request(report)["variables"]["action"].clone())
            .collect();
        assert_eq!(actions, ["create", "create", "replace", "create", "create", "create"]);
        for report in &reports {
            let request = request(report);
            assert_eq!(request["query"], MUTATION);
            let sent = request["variables"]["report"].as_object().unwrap();
            let mut expected = serde_json::to_value(report).unwrap();
            expected.as_object_mut().unwrap().remove("disposition_type").unwrap();
            assert_eq!(sent, expected.as_object().unwrap());
        }
    }

    /// reports.md §5: what a reply means.
    #[test]
    fn only_the_word_success_is_a_success() {
        use FailureClass::{Permanent, Transient};
        let failure = |reason: &str, issues: Value| json!({"data": {"upsertReport": {"result": "FAILURE", "reason": reason, "issues": issues}}});
        let error = |classification: &str| json!({"data": null, "errors": [{"message": "no\nway", "extensions": {"classification": classification}}]});
        for (reply, expected) in [
            (
                json!({"data": {"upsertReport": {"result": "SUCCESS", "reportId": "x"}}}),
                None,
            ),
            (
                failure("Validation failed", json!(["$.a: is missing"])),
                Some((Permanent, Fate::Refused, "Validation failed; $.a: is missing")),
            ),
            (
                failure("", json!(["$.a: is missing"])),
                Some((Permanent, Fate::Refused, "$.a: is missing")),
            ),
            (
                failure("Invalid action provided: x", json!(null)),
                Some((Permanent, Fate::Refused, "Invalid action provided: x")),
            ),
            (
                failure("Failed to create report: away", json!([])),
                Some((Transient, Fate::Refused, "Failed to create report: away")),
            ),
            (
                failure("Failed to replace report: away", json!(null)),
                Some((Transient, Fate::Refused, "Failed to replace report: away")),
            ),
            (error("ValidationError"), Some((Permanent, Fate::Refused, "no way"))),
            (
                error("DataFetchingException"),
                Some((Transient, Fate::Refused, "no way")),
            ),
            (
                json!({"data": {"upsertReport": {"result": "SUCCESS"}}, "errors": [{"message": "no way"}]}),
                Some((Transient, Fate::Refused, "no way")),
            ),
            (
                json!({"data": {"upsertReport": {"result": "success"}}}),
                Some((
                    Transient,
                    Fate::Unknown,
                    "the answer does not say what became of the report",
                )),
            ),
            (
                json!({"data": null, "errors": []}),
                Some((
                    Transient,
                    Fate::Unknown,
                    "the answer does not say what became of the report",
                )),
            ),
        ] {
            let outcome = outcome(&reply).err();
            let told = outcome.map(|refusal| (refusal.class, refusal.fate, refusal.source.to_string()));
            let expected = expected.map(|(class, fate, text)| (class, fate, text.to_owned()));
            assert_eq!(told, expected, "{reply}");
        }
    }

    #[test]
    fn a_status_decides_the_class() {
        use FailureClass::{Configuration, Denied, Permanent, Transient};
        for (status, class, fate) in [
            (301, Configuration, Fate::Away),
            (400, Permanent, Fate::Refused),
            (401, Denied, Fate::Away),
            (403, Denied, Fate::Away),
            (404, Configuration, Fate::Away),
            (413, Permanent, Fate::Refused),
            (429, Transient, Fate::Away),
            (500, Transient, Fate::Failed),
            (502, Transient, Fate::Unknown),
            (503, Transient, Fate::Away),
            (504, Transient, Fate::Unknown),
        ] {
            let refusal = by_status(StatusCode::from_u16(status).unwrap(), b"why");
            assert_eq!((refusal.class, refusal.fate), (class, fate), "{status}");
            assert_eq!(
                refusal.source.to_string().contains("why"),
                class == Permanent,
                "{status}"
            );
        }
    }

    #[test]
    fn a_server_may_ask_for_a_pause_in_seconds_or_until_a_date() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("120", Some(120)),
            (" 7 ", Some(7)),
            ("Sat, 21 Nov 2026 12:01:30 GMT", Some(90)),
            ("Sat, 21 Nov 2026 11:59:00 GMT", None),
            ("soon", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            assert_eq!(retry_after(&headers, now), expected.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn neither_token_nor_query_is_shown() {
        let url = Url::parse("https://api.example/graphql?key=canary").unwrap();
        let token = Secret::from("canary");
        let sink = GraphqlSink::new(&url, Some(&token), CONNECT).unwrap();
        let error = sink.error("ask", unknown("why"));
        assert_eq!(error.to_string(), "ask https://api.example/graphql");
        let shown = format!("{sink:?} {error:?} {:?} {token:?}", sink.authorization);
        assert!(!shown.contains("canary"), "{shown}");
    }
}
