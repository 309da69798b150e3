//! `--wait`: follows a finished upload until every target has it. Spec: http.md §1.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::Client;
use tokio::time::{Instant, sleep, timeout_at};
use url::Url;

use super::progress::Line;
use crate::chain;
use crate::http::{RequestError, Verdict};
use crate::info::{self, Delivery, Info};
use crate::retry::Patience;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A file that did not reach its targets, as far as is known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WaitError {
    #[error("not delivered: {0}")]
    Failed(String),
    #[error("not delivered within {}: {pending}", spell(*.limit))]
    TimedOut { limit: Duration, pending: String },
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("`{0}` is no upload's URL, so its deliveries cannot be asked for")]
    NoInfo(Url),
}

/// How to wait.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) http: Client,
    /// Failures in a row that are ridden out.
    pub(crate) retries: usize,
    /// How long in all; `None`: as long as it takes.
    pub(crate) limit: Option<Duration>,
}

impl Waiting {
    /// Asks until every delivery of `upload` is a success, and tells on `line` what holds it up.
    ///
    /// # Errors
    /// A delivery failed for good, the time is up, or the server does not answer any more.
    pub(crate) async fn delivered(&self, upload: &Url, line: &mut Line) -> Result<Vec<Delivery>, WaitError> {
        let mut last = None;
        let Some(limit) = self.limit else {
            return self.poll(upload, line, &mut last).await;
        };
        let polled = timeout_at(Instant::now() + limit, self.poll(upload, line, &mut last)).await;
        polled.unwrap_or_else(|_elapsed| {
            let pending = pending(last.as_ref());
            Err(WaitError::TimedOut { limit, pending })
        })
    }

    /// The newest answer is left in `last`.
    async fn poll(&self, upload: &Url, line: &mut Line, last: &mut Option<Info>) -> Result<Vec<Delivery>, WaitError> {
        let url = info::url_of(upload).ok_or_else(|| WaitError::NoInfo(upload.clone()))?;
        let mut patience = Patience::new(self.retries);
        let mut pause = FIRST_PAUSE;
        loop {
            match info::read(&self.http, &url).await {
                Ok((info, _)) => {
                    patience.renew();
                    match verdict(&info) {
                        Outcome::Delivered(deliveries) => return Ok(deliveries),
                        Outcome::Failed(text) => return Err(WaitError::Failed(text)),
                        Outcome::Held(Some(text)) => line.note(&text),
                        Outcome::Held(None) => {}
                    }
                    line.hint(&format!("waiting for {}", pending(Some(&info))));
                    *last = Some(info);
                    sleep(pause).await;
                    pause = (pause * 3 / 2).min(LONGEST_PAUSE);
                }
                Err(error) => {
                    let Verdict::Again { not_before } = error.verdict() else {
                        return Err(error.into());
                    };
                    let Some(pause) = patience.pause(not_before) else {
                        return Err(error.into());
                    };
                    line.note(&chain(&error));
                    sleep(pause).await;
                }
            }
        }
    }
}

enum Outcome {
    Delivered(Vec<Delivery>),
    Failed(String),
    /// Not final; the text says what went wrong so far, if anything did.
    Held(Option<String>),
}

fn verdict(info: &Info) -> Outcome {
    let deliveries = info.deliveries.as_deref().unwrap_or_default();
    let failed: Vec<String> = deliveries
        .iter()
        .filter(|delivery| delivery.has_failed())
        .map(|delivery| format!("{} FAILURE: {}", delivery.name, issues(delivery)))
        .collect();
    if !failed.is_empty() {
        return Outcome::Failed(failed.join("; "));
    }
    // An empty list says nothing: entries appear when the upload is complete.
    if !deliveries.is_empty() && deliveries.iter().all(Delivery::is_delivered) {
        return Outcome::Delivered(deliveries.to_vec());
    }
    let held: Vec<String> = deliveries
        .iter()
        .filter(|delivery| !delivery.is_delivered() && !delivery.issues().is_empty())
        .map(waiting_for)
        .collect();
    Outcome::Held((!held.is_empty()).then(|| held.join("; ")))
}

/// `waiting for edav: <issue> (next try at …)`
fn waiting_for(delivery: &Delivery) -> String {
    let mut text = format!("waiting for {}: {}", delivery.name, issues(delivery));
    if let Some(at) = &delivery.next_attempt_at {
        let at = match at.parse::<Timestamp>() {
            Ok(at) => format!("{at:.0}"),
            Err(_) => at.clone(),
        };
        write!(text, " (next try at {at})").expect("writing to a String cannot fail");
    }
    text
}

fn issues(delivery: &Delivery) -> String {
    match delivery.issues() {
        [] => "no reason given".to_owned(),
        issues => issues
            .iter()
            .map(|issue| issue.message.as_str())
            .collect::<Vec<_>>()
            .join(", "),
    }
}

/// What is not delivered yet: `dex PENDING, edav IN PROGRESS`.
fn pending(info: Option<&Info>) -> String {
    let Some(info) = info else {
        return "the server's answer".to_owned();
    };
    let open: Vec<String> = info
        .deliveries
        .iter()
        .flatten()
        .filter(|delivery| !delivery.is_delivered())
        .map(|delivery| format!("{} {}", delivery.name, delivery.status))
        .collect();
    if open.is_empty() {
        "its targets to be known".to_owned()
    } else {
        open.join(", ")
    }
}

fn spell(span: Duration) -> String {
    match jiff::SignedDuration::try_from(span) {
        Ok(span) => format!("{span:#}"),
        Err(_) => format!("{} s", span.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(deliveries: &str) -> Info {
        let json = format!(
            r#"{{"manifest":{{}},"file_info":null,"upload_status":{{"status":"Complete","chunk_received_at":""}},
                 "deliveries":{deliveries}}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn delivered_means_every_target_and_at_least_one() {
        for none in ["null", "[]"] {
            assert!(matches!(verdict(&info(none)), Outcome::Held(None)), "{none}");
        }
        let half =
            r#"[{"status":"SUCCESS","name":"dex","issues":null},{"status":"IN PROGRESS","name":"edav","issues":null}]"#;
        assert!(matches!(verdict(&info(half)), Outcome::Held(None)));
        assert_eq!(pending(Some(&info(half))), "edav IN PROGRESS");
        let whole = r#"[{"status":"SUCCESS","name":"dex","issues":null}]"#;
        assert!(matches!(verdict(&info(whole)), Outcome::Delivered(found) if found.len() == 1));
    }

    #[test]
    fn one_failure_is_a_failure_whatever_the_others_do() {
        let mixed = r#"[{"status":"PENDING","name":"dex","issues":null},
            {"status":"FAILURE","name":"edav","issues":[{"level":"ERROR","message":"access denied"}]}]"#;
        match verdict(&info(mixed)) {
            Outcome::Failed(text) => assert_eq!(text, "edav FAILURE: access denied"),
            _ => panic!("not a failure"),
        }
    }

    #[test]
    fn what_holds_a_target_up_is_told_with_its_next_try() {
        let held = r#"[{"status":"PENDING","name":"edav","issues":[{"level":"ERROR","message":"no route to host"}],
            "attempts":1,"next_attempt_at":"2024-03-07T05:10:00.123Z"}]"#;
        match verdict(&info(held)) {
            Outcome::Held(Some(text)) => {
                assert_eq!(
                    text,
                    "waiting for edav: no route to host (next try at 2024-03-07T05:10:00Z)"
                );
            }
            _ => panic!("nothing told"),
        }
    }
}
