//! The sender's side of TUS 1.0.0: create an upload, ask for its offset, append to it.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, LOCATION};
use reqwest::{Body, Client, Response, StatusCode};
use tokio::sync::watch;
use url::Url;

use crate::http::{self, RequestError};

const TUS_RESUMABLE: (&str, &str) = ("Tus-Resumable", "1.0.0");
const UPLOAD_LENGTH: &str = "Upload-Length";
const UPLOAD_METADATA: &str = "Upload-Metadata";
const UPLOAD_OFFSET: &str = "Upload-Offset";

/// Keys and values that go with an upload.
pub(crate) type Metadata = BTreeMap<String, String>;

/// Speaks TUS with any server.
#[derive(Clone, Debug)]
pub(crate) struct Tus {
    http: Client,
    /// A request that moves nothing for this long is given up.
    stall: Duration,
}

/// What a server has of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Bytes that it acknowledges.
    pub(crate) offset: u64,
    /// Bytes that it expects in all, if it says so.
    pub(crate) length: Option<u64>,
}

/// The body of one PATCH.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// The bytes.
    pub(crate) body: Body,
    /// How many they are.
    pub(crate) length: u64,
    /// Changes with every step of the body that the connection took; closed when it took all of them.
    pub(crate) moved: watch::Receiver<u64>,
}

impl Tus {
    /// A client that gives up a request when nothing moved for `stall`.
    pub(crate) fn new(http: Client, stall: Duration) -> Self {
        Self { http, stall }
    }

    /// Creates an upload of `size` bytes in `collection`; its URL. Spec: TUS 1.0.0, Creation, POST.
    ///
    /// # Errors
    /// No answer, a refusal (the manifest, the size), or a created upload without an address.
    pub(crate) async fn create(&self, collection: &Url, size: u64, metadata: &Metadata) -> Result<Url, RequestError> {
        let operation = format!("create an upload at {collection}");
        let mut request = self
            .http
            .post(collection.clone())
            .header(TUS_RESUMABLE.0, TUS_RESUMABLE.1)
            .header(UPLOAD_LENGTH, size)
            .header(CONTENT_LENGTH, 0);
        if !metadata.is_empty() {
            request = request.header(UPLOAD_METADATA, encode(metadata));
        }
        let response = http::answer(&operation, self.stall, request.send()).await?;
        let response = http::expect(&operation, self.stall, StatusCode::CREATED, response).await?;
        response
            .headers()
            .get(LOCATION)
            .and_then(|location| location.to_str().ok())
            .and_then(|location| collection.join(location).ok()) // it may be relative
            .filter(|location| matches!(location.scheme(), "http" | "https"))
            .ok_or_else(|| RequestError::Protocol {
                operation,
                problem: "the answer has no usable Location".to_owned(),
                again: false,
            })
    }

    /// Asks how much of `upload` the server has. Spec: TUS 1.0.0, Core Protocol, HEAD.
    ///
    /// # Errors
    /// No answer, no such upload (404, 410), or an answer without an offset.
    pub(crate) async fn stored(&self, upload: &Url) -> Result<Stored, RequestError> {
        let operation = format!("ask for the offset of {upload}");
        let request = self.http.head(upload.clone()).header(TUS_RESUMABLE.0, TUS_RESUMABLE.1);
        let response = http::answer(&operation, self.stall, request.send()).await?;
        // The protocol allows 200 and 204 here.
        let wanted = match response.status() {
            StatusCode::NO_CONTENT => StatusCode::NO_CONTENT,
            _ => StatusCode::OK,
        };
        let response = http::expect(&operation, self.stall, wanted, response).await?;
        match number(response.headers(), UPLOAD_OFFSET) {
            Some(offset) => Ok(Stored {
                offset,
                length: number(response.headers(), UPLOAD_LENGTH),
            }),
            None => Err(RequestError::Protocol {
                operation,
                problem: "the answer has no Upload-Offset".to_owned(),
                again: false,
            }),
        }
    }

    /// Appends to `upload` at `offset`; the offset that the server then acknowledges, which is past `offset` and not
    /// past the last byte given. Spec: TUS 1.0.0, Core Protocol, PATCH.
    ///
    /// A dropped or failed call leaves any number of the bytes stored: ask for the offset before the next one.
    ///
    /// # Errors
    /// The connection failed or stalled, the server refused, or its offset makes no sense.
    pub(crate) async fn append(&self, upload: &Url, offset: u64, outgoing: Outgoing) -> Result<u64, RequestError> {
        let operation = format!("append to {upload}");
        let Outgoing { body, length, moved } = outgoing;
        let request = self
            .http
            .patch(upload.clone())
            .header(TUS_RESUMABLE.0, TUS_RESUMABLE.1)
            .header(UPLOAD_OFFSET, offset)
            .header(CONTENT_TYPE, "application/offset+octet-stream")
            .header(CONTENT_LENGTH, length)
            .body(body);
        let response = self.while_moving(&operation, moved, request.send()).await?;
        let response = http::expect(&operation, self.stall, StatusCode::NO_CONTENT, response).await?;
        match number(response.headers(), UPLOAD_OFFSET) {
            Some(now) if now > offset && now <= offset + length => Ok(now),
            now => Err(RequestError::Protocol {
                operation,
                problem: match now {
                    Some(now) => format!("{length} bytes at {offset} cannot lead to offset {now}"),
                    None => "the answer has no Upload-Offset".to_owned(),
                },
                again: true,
            }),
        }
    }

    /// The answer to `request`, which is given up when neither its body nor its answer gets on.
    async fn while_moving(
        &self,
        operation: &str,
        mut moved: watch::Receiver<u64>,
        request: impl Future<Output = reqwest::Result<Response>>,
    ) -> Result<Response, RequestError> {
        let mut request = pin!(request);
        loop {
            tokio::select! {
                answer = &mut request => return answer.map_err(|source| http::network(operation, source)),
                step = tokio::time::timeout(self.stall, moved.changed()) => match step {
                    Ok(Ok(())) => {}
                    // Everything is out, only the answer is missing.
                    Ok(Err(_closed)) => return http::answer(operation, self.stall, request).await,
                    Err(_elapsed) => {
                        return Err(RequestError::Stalled { operation: operation.to_owned(), after: self.stall });
                    }
                },
            }
        }
    }
}

/// `Upload-Metadata`: `key base64(value)`, joined by commas; a key alone has an empty value.
fn encode(metadata: &Metadata) -> String {
    let pairs: Vec<String> = metadata
        .iter()
        .map(|(key, value)| match value.as_str() {
            "" => key.clone(),
            value => format!("{key} {}", STANDARD.encode(value)),
        })
        .collect();
    pairs.join(",")
}

/// A header's plain decimal number.
fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    let text = headers.get(name)?.to_str().ok()?.trim();
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::http::Verdict;

    #[test]
    fn metadata_is_written_as_tus_wants_it() {
        let metadata = Metadata::from([
            ("filename".to_owned(), "ä.csv".to_owned()),
            ("empty".to_owned(), String::new()),
        ]);
        assert_eq!(encode(&metadata), "empty,filename w6QuY3N2");
    }

    /// A server that takes the connection and then does nothing: the request ends, and is tried again.
    #[tokio::test]
    async fn a_connection_on_which_nothing_moves_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upload: Url = format!("http://{}/files/x", listener.local_addr().unwrap())
            .parse()
            .unwrap();
        let tus = Tus::new(http::client().unwrap(), Duration::from_millis(200));
        let (step, moved) = watch::channel(0);
        let outgoing = Outgoing {
            body: Body::wrap_stream(futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>()),
            length: 1,
            moved,
        };
        let error = tus.append(&upload, 0, outgoing).await.unwrap_err();
        drop(step); // until here: a closed channel would mean that the body is out
        assert!(matches!(error, RequestError::Stalled { .. }), "{error:?}");
        assert_eq!(error.verdict(), Verdict::Again { not_before: None });

        let error = tus.stored(&upload).await.unwrap_err();
        assert!(matches!(error, RequestError::Stalled { .. }), "{error:?}");
    }
}
