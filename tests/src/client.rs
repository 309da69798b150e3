//! A TUS client for tests: it does what it is told, right or wrong, and shows the whole answer.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::Value;

/// The media type of a PATCH.
pub const OFFSET_OCTETS: &str = "application/offset+octet-stream";
/// Longer than any answer of a living server takes here.
const LIMIT: Duration = Duration::from_secs(60);

/// A client of one server.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    collection: String,
}

/// A server's answer, body read.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// All headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// The header's value; `None` if there is none, or it is no text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The header's value as a number.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        self.header(name)?.parse().ok()
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// This answer, if it has `status`.
    ///
    /// # Panics
    /// It has another one.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{} {:?}", self.text(), self.headers);
        self
    }
}

impl Client {
    /// A client of the server with this collection, e.g. `http://127.0.0.1:1080/files/`.
    ///
    /// # Panics
    /// The system gives it no means.
    #[must_use]
    pub fn new(collection: &str) -> Self {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(LIMIT)
            .build()
            .expect("make a client");
        Self {
            http,
            collection: collection.to_owned(),
        }
    }

    /// The collection's URL.
    #[must_use]
    pub fn collection(&self) -> &str {
        &self.collection
    }

    /// The server's URL of `path`, which begins with `/`.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.collection.trim_end_matches("/files/"))
    }

    /// Sends exactly this, but for the headers that HTTP itself needs.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn send(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Result<Answer, reqwest::Error> {
        let method = Method::from_bytes(method.as_bytes()).expect("a method is a token");
        let bodiless = matches!(method, Method::GET | Method::HEAD | Method::DELETE | Method::OPTIONS);
        let mut request = self.http.request(method, url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !bodiless {
            request = request.body(body);
        }
        let answer = request.send().await?;
        Ok(Answer {
            status: answer.status().as_u16(),
            headers: answer.headers().clone(),
            body: answer.bytes().await?,
        })
    }

    /// The same, with `Tus-Resumable: 1.0.0`, of a server that lives.
    ///
    /// # Panics
    /// The connection failed.
    pub async fn tus(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Answer {
        let mut all = vec![("Tus-Resumable", "1.0.0")];
        all.extend_from_slice(headers);
        self.send(method, url, &all, body)
            .await
            .unwrap_or_else(|error| panic!("{method} {url}: {error:?}"))
    }

    /// Creates an upload of `length` bytes.
    ///
    /// # Panics
    /// The server refuses.
    pub async fn create(&self, length: usize, metadata: &[(&str, &str)]) -> Upload {
        let headers = [("Upload-Length", length.to_string()), encoded(metadata)];
        self.created(&headers).await
    }

    /// Creates an upload whose length is told later.
    ///
    /// # Panics
    /// The server refuses.
    pub async fn create_deferred(&self, metadata: &[(&str, &str)]) -> Upload {
        let headers = [("Upload-Defer-Length", "1".to_owned()), encoded(metadata)];
        self.created(&headers).await
    }

    async fn created(&self, headers: &[(&str, String)]) -> Upload {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let answer = self.tus("POST", &self.collection, &headers, "").await.expect(201);
        self.upload(&answer)
    }

    /// The upload that a 201 tells of.
    ///
    /// # Panics
    /// It tells of none.
    #[must_use]
    pub fn upload(&self, created: &Answer) -> Upload {
        let url = created
            .header("Location")
            .unwrap_or_else(|| panic!("no Location: {:?}", created.headers));
        let id = url
            .strip_prefix(&self.collection)
            .unwrap_or_else(|| panic!("{url} is not in {}", self.collection));
        Upload {
            client: self.clone(),
            url: url.to_owned(),
            id: id.to_owned(),
        }
    }

    /// The upload `id` of this server, whoever made it, over whatever way.
    #[must_use]
    pub fn upload_of(&self, id: &str) -> Upload {
        Upload {
            client: self.clone(),
            url: format!("{}{id}", self.collection),
            id: id.to_owned(),
        }
    }

    /// `GET /info/{id}`.
    ///
    /// # Panics
    /// The answer is not 200 with JSON.
    pub async fn info(&self, id: &str) -> Value {
        let url = self.url(&format!("/info/{id}"));
        let answer = self
            .send("GET", &url, &[], "")
            .await
            .unwrap_or_else(|error| panic!("GET {url}: {error:?}"))
            .expect(200);
        serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{error}: {}", answer.text()))
    }
}

/// One upload on its server.
#[derive(Clone, Debug)]
pub struct Upload {
    client: Client,
    /// Its URL.
    pub url: String,
    /// Its id: the URL's last part.
    pub id: String,
}

impl Upload {
    /// The URL's path.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/files/{}", self.id)
    }

    /// HEAD.
    ///
    /// # Panics
    /// The connection failed.
    pub async fn head(&self) -> Answer {
        self.client.tus("HEAD", &self.url, &[], "").await
    }

    /// The offset that HEAD tells.
    ///
    /// # Panics
    /// HEAD fails or tells none.
    pub async fn offset(&self) -> u64 {
        let answer = self.head().await.expect(200);
        answer
            .number("Upload-Offset")
            .unwrap_or_else(|| panic!("no offset: {:?}", answer.headers))
    }

    /// PATCH of `body` at `offset`.
    ///
    /// # Panics
    /// The connection failed.
    pub async fn patch(&self, offset: u64, body: &[u8]) -> Answer {
        self.try_patch(offset, body)
            .await
            .unwrap_or_else(|error| panic!("PATCH {}: {error:?}", self.url))
    }

    /// PATCH of `body` at `offset`.
    ///
    /// # Errors
    /// The connection failed: what of the body counts is unknown.
    pub async fn try_patch(&self, offset: u64, body: &[u8]) -> Result<Answer, reqwest::Error> {
        self.try_stream(offset, body.len(), body.to_vec().into()).await
    }

    /// PATCH of a `body` that has `length` bytes and may come slowly, at `offset`.
    ///
    /// # Errors
    /// The connection failed: what of the body counts is unknown.
    pub async fn try_stream(&self, offset: u64, length: usize, body: reqwest::Body) -> Result<Answer, reqwest::Error> {
        let headers = [
            ("Tus-Resumable", "1.0.0"),
            ("Content-Type", OFFSET_OCTETS),
            ("Content-Length", &length.to_string()),
            ("Upload-Offset", &offset.to_string()),
        ];
        self.client.send("PATCH", &self.url, &headers, body).await
    }

    /// HEAD.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn try_head(&self) -> Result<Answer, reqwest::Error> {
        let headers = [("Tus-Resumable", "1.0.0")];
        self.client.send("HEAD", &self.url, &headers, "").await
    }

    /// PATCH of `body` at `offset`, with more headers.
    ///
    /// # Panics
    /// The connection failed.
    pub async fn patch_with(&self, offset: u64, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let offset = offset.to_string();
        let mut all = vec![("Content-Type", OFFSET_OCTETS), ("Upload-Offset", offset.as_str())];
        all.extend_from_slice(headers);
        self.client.tus("PATCH", &self.url, &all, body.to_vec()).await
    }

    /// Appends `body` at `offset`, all of it; answers the new offset.
    ///
    /// # Panics
    /// The server refuses, or tells another offset.
    pub async fn append(&self, offset: u64, body: &[u8]) -> u64 {
        let answer = self.patch(offset, body).await.expect(204);
        let expected = offset + u64::try_from(body.len()).expect("a body in memory");
        assert_eq!(answer.number("Upload-Offset"), Some(expected));
        expected
    }

    /// Appends `body` from the beginning, in pieces of `piece` bytes.
    ///
    /// # Panics
    /// The server refuses one.
    pub async fn append_in_pieces(&self, body: &[u8], piece: usize) {
        let mut offset = 0;
        for piece in body.chunks(piece) {
            offset = self.append(offset, piece).await;
        }
    }

    /// DELETE.
    ///
    /// # Panics
    /// The connection failed.
    pub async fn delete(&self) -> Answer {
        self.client.tus("DELETE", &self.url, &[], "").await
    }

    /// `GET /info/{id}`.
    ///
    /// # Panics
    /// The answer is not 200 with JSON.
    pub async fn info(&self) -> Value {
        self.client.info(&self.id).await
    }
}

fn encoded(metadata: &[(&str, &str)]) -> (&'static str, String) {
    ("Upload-Metadata", encode(metadata))
}

/// `Upload-Metadata` of these pairs.
#[must_use]
pub fn encode(metadata: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = metadata
        .iter()
        .map(|(key, value)| format!("{key} {}", STANDARD.encode(value)))
        .collect();
    pairs.join(",")
}
