//! What every request has in common: the connection, its time limits, and what an answer means for the next step.

use std::future::Future;
use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, redirect};
use tokio::time::timeout;

/// A request that moves nothing for this long is given up.
pub(crate) const STALL: Duration = Duration::from_secs(60);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that asks for a longer pause than this is asked again after this.
const LONGEST_ASKED_PAUSE: Duration = Duration::from_secs(600);
/// Of an error answer, this much is read to find its text.
const ERROR_BODY_BYTES: usize = 4096;
/// Longest text of an error answer that is shown, in characters.
const SHOWN_CHARS: usize = 500;

/// A client for all requests of one run. Redirects are not followed: a streamed body cannot be sent twice, and a
/// POST would become a GET.
///
/// # Errors
/// TLS cannot be set up on this machine.
pub(crate) fn client() -> Result<Client, reqwest::Error> {
    Client::builder()
        .user_agent(concat!("ferry/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .redirect(redirect::Policy::none())
        .build()
}

/// A request that did not do what it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// No answer: the connection could not be made, or broke.
    #[error("cannot {operation}")]
    Network { operation: String, source: reqwest::Error },
    /// Neither did bytes move nor an answer come.
    #[error("cannot {operation}: nothing moved for {} s", after.as_secs())]
    Stalled { operation: String, after: Duration },
    /// An answer that says no.
    #[error("cannot {operation}: the server answered {status}{}{text}", if text.is_empty() { "" } else { ": " })]
    Refused {
        operation: String,
        status: StatusCode,
        /// First line of the answer's body.
        text: String,
        retry_after: Option<Duration>,
    },
    /// A good answer that breaks the protocol.
    #[error("cannot {operation}: {problem}")]
    Protocol {
        operation: String,
        problem: String,
        /// The server may do better next time, because it will have been asked for its offset first.
        again: bool,
    },
}

/// What to do after a failed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Try again, after a pause; the server may have asked for a longest one.
    Again { not_before: Option<Duration> },
    /// The upload is not there, or no longer.
    Gone,
    /// The same request will fail again.
    Final,
}

impl RequestError {
    /// What to do next.
    pub(crate) fn verdict(&self) -> Verdict {
        const AGAIN: Verdict = Verdict::Again { not_before: None };
        match self {
            Self::Network { source, .. } if source.is_builder() => Verdict::Final,
            Self::Network { .. } | Self::Stalled { .. } | Self::Protocol { again: true, .. } => AGAIN,
            Self::Protocol { again: false, .. } => Verdict::Final,
            Self::Refused {
                status, retry_after, ..
            } => match *status {
                StatusCode::NOT_FOUND | StatusCode::GONE => Verdict::Gone,
                // 409: the offset was not the server's, which HEAD settles. 423: another request is still writing.
                StatusCode::REQUEST_TIMEOUT
                | StatusCode::CONFLICT
                | StatusCode::LOCKED
                | StatusCode::TOO_MANY_REQUESTS => Verdict::Again {
                    not_before: *retry_after,
                },
                status if status.is_server_error() => Verdict::Again {
                    not_before: *retry_after,
                },
                _ => Verdict::Final,
            },
        }
    }
}

/// The answer to a request without a body to speak of: it comes within `limit`, or the request has stalled.
///
/// # Errors
/// The connection failed or stalled.
pub(crate) async fn answer(
    operation: &str,
    limit: Duration,
    request: impl Future<Output = reqwest::Result<Response>>,
) -> Result<Response, RequestError> {
    match timeout(limit, request).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(source)) => Err(network(operation, source)),
        Err(_elapsed) => Err(RequestError::Stalled {
            operation: operation.to_owned(),
            after: limit,
        }),
    }
}

/// A failed connection as an error of `operation`.
pub(crate) fn network(operation: &str, source: reqwest::Error) -> RequestError {
    RequestError::Network {
        operation: operation.to_owned(),
        // The operation names the address already.
        source: source.without_url(),
    }
}

/// `response` if its status is `wanted`, else an error with the one line of text that came with it.
///
/// # Errors
/// Another status.
pub(crate) async fn expect(
    operation: &str,
    limit: Duration,
    wanted: StatusCode,
    response: Response,
) -> Result<Response, RequestError> {
    let status = response.status();
    if status == wanted {
        return Ok(response);
    }
    let retry_after = retry_after(response.headers());
    // A text that does not come is no reason to wait, nor to forget the status.
    let text = timeout(limit, first_line(response)).await.unwrap_or_default();
    Err(RequestError::Refused {
        operation: operation.to_owned(),
        status,
        text,
        retry_after,
    })
}

/// First line of an answer's body, or of its beginning; empty if there is none.
async fn first_line(mut response: Response) -> String {
    let mut body = Vec::new();
    while body.len() < ERROR_BODY_BYTES {
        match response.chunk().await {
            Ok(Some(bytes)) => body.extend_from_slice(&bytes),
            // Cut short: what came before may still be the reason.
            Ok(None) | Err(_) => break,
        }
    }
    body.truncate(ERROR_BODY_BYTES);
    let text = String::from_utf8_lossy(&body);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    printable(line.unwrap_or_default()).chars().take(SHOWN_CHARS).collect()
}

/// The pause that `Retry-After` asks for, in its form of seconds; dates are not used by servers of uploads.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_ASKED_PAUSE))
}

/// `text` without the control characters that would let a server, or another sender's metadata, drive the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, retry_after: Option<Duration>) -> RequestError {
        RequestError::Refused {
            operation: "append".to_owned(),
            status: StatusCode::from_u16(status).unwrap(),
            text: String::new(),
            retry_after,
        }
    }

    #[test]
    fn a_status_decides_whether_another_try_makes_sense() {
        let pause = Some(Duration::from_secs(7));
        for status in [408, 409, 423, 429, 500, 502, 503, 507] {
            assert_eq!(
                refused(status, pause).verdict(),
                Verdict::Again { not_before: pause },
                "{status}"
            );
        }
        for status in [404, 410] {
            assert_eq!(refused(status, None).verdict(), Verdict::Gone, "{status}");
        }
        for status in [301, 400, 401, 403, 412, 413, 415, 431] {
            assert_eq!(refused(status, None).verdict(), Verdict::Final, "{status}");
        }
    }

    #[test]
    fn a_pause_is_as_long_as_asked_for_within_reason() {
        let asked = |value: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
            retry_after(&headers)
        };
        assert_eq!(asked("3"), Some(Duration::from_secs(3)));
        assert_eq!(asked("86400"), Some(LONGEST_ASKED_PAUSE));
        assert_eq!(asked("soon"), None);
    }

    #[test]
    fn a_server_cannot_drive_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\u{9b}c"), "a\u{fffd}[2Jb\u{fffd}c");
    }
}
