//! HTTP by hand, for requests that no client library would send.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::client::OFFSET_OCTETS;
use crate::wait::within;

/// Longer than any answer of a living server takes here.
const LIMIT: Duration = Duration::from_secs(40);

/// An answer, read by hand.
#[derive(Clone, Debug)]
pub struct RawAnswer {
    /// The status code.
    pub status: u16,
    /// All headers, in order.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl RawAnswer {
    /// The first value of this header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self
            .headers
            .iter()
            .find(|(found, _)| found.eq_ignore_ascii_case(name))?;
        Some(value)
    }
}

/// Sends `request` on a connection of its own. `None`: the server closed it without an answer.
///
/// # Panics
/// It does not take the connection, or neither answers nor closes.
pub async fn exchange(addr: SocketAddr, request: &[u8]) -> Option<RawAnswer> {
    let mut stream = TcpStream::connect(addr).await.expect("connect");
    let bodiless = request.starts_with(b"HEAD ");
    let (mut reading, mut writing) = stream.split();
    let mut received = Vec::new();
    // At once, because a server may answer, and stop reading, before it has the whole request. Then the rest
    // cannot be written, which is its right.
    let (answer, _) = tokio::join!(
        within("an answer", LIMIT, read_answer(&mut reading, &mut received, bodiless)),
        writing.write_all(request)
    );
    answer
}

/// May be dropped at any time: what came so far is in `received`.
async fn read_answer(
    stream: &mut (impl tokio::io::AsyncRead + Unpin),
    received: &mut Vec<u8>,
    bodiless: bool,
) -> Option<RawAnswer> {
    loop {
        if let Some(answer) = parse(received, bodiless, false) {
            return Some(answer);
        }
        match stream.read_buf(received).await {
            Ok(0) | Err(_) => return parse(received, bodiless, true),
            Ok(_) => {}
        }
    }
}

/// The final answer in `bytes`, if it is all there; `ended`: the connection is.
fn parse(bytes: &[u8], bodiless: bool, ended: bool) -> Option<RawAnswer> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).expect("heads of answers are text");
    let body = &bytes[end + 4..];
    let mut lines = head.split("\r\n");
    let status: u16 = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|status| status.parse().ok())
        .unwrap_or_else(|| panic!("no status line: {head:?}"));
    if (100..200).contains(&status) {
        return parse(body, bodiless, ended);
    }
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(':').unwrap_or_else(|| panic!("no header: {line:?}")))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    let mut answer = RawAnswer {
        status,
        headers,
        body: Vec::new(),
    };
    let announced = answer
        .header("Content-Length")
        .map(|length| length.parse::<usize>().expect("Content-Length is a number"));
    let expected = if bodiless || status == 204 || status == 304 {
        0
    } else {
        match announced {
            Some(length) => length,
            None if ended => body.len(),
            None => return None,
        }
    };
    if body.len() < expected && !ended {
        return None;
    }
    answer.body = body[..expected.min(body.len())].to_vec();
    Some(answer)
}

/// A PATCH whose body is sent as slowly, and as far, as a test likes.
#[derive(Debug)]
pub struct SlowPatch {
    stream: TcpStream,
    received: Vec<u8>,
}

impl SlowPatch {
    /// Sends the head: `length` bytes are announced for `offset` of the upload at `path`.
    ///
    /// # Panics
    /// The server does not take it.
    pub async fn begin(addr: SocketAddr, path: &str, offset: u64, length: usize) -> Self {
        Self::try_begin(addr, path, offset, length)
            .await
            .expect("begin a PATCH")
    }

    /// The same, of a server that may be away.
    ///
    /// # Errors
    /// It does not take it.
    pub async fn try_begin(addr: SocketAddr, path: &str, offset: u64, length: usize) -> std::io::Result<Self> {
        Self::with_framing(addr, path, offset, &format!("Content-Length: {length}")).await
    }

    /// Sends the head of a body in chunks, which the caller frames.
    ///
    /// # Panics
    /// The server does not take it.
    pub async fn begin_chunked(addr: SocketAddr, path: &str, offset: u64) -> Self {
        Self::with_framing(addr, path, offset, "Transfer-Encoding: chunked")
            .await
            .expect("begin a PATCH")
    }

    /// Sends the beginning of a request that the caller writes himself, as far into its body as he likes.
    ///
    /// # Panics
    /// The server does not take it.
    pub async fn begin_with(addr: SocketAddr, bytes: &[u8]) -> Self {
        let begun = Self::sending(addr, bytes).await;
        begun.expect("begin a request")
    }

    async fn with_framing(addr: SocketAddr, path: &str, offset: u64, framing: &str) -> std::io::Result<Self> {
        let head = format!(
            "PATCH {path} HTTP/1.1\r\nHost: {addr}\r\nTus-Resumable: 1.0.0\r\nContent-Type: {OFFSET_OCTETS}\r\n\
             Upload-Offset: {offset}\r\n{framing}\r\n\r\n"
        );
        Self::sending(addr, head.as_bytes()).await
    }

    async fn sending(addr: SocketAddr, bytes: &[u8]) -> std::io::Result<Self> {
        let mut stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        stream.write_all(bytes).await?;
        let received = Vec::new();
        Ok(Self { stream, received })
    }

    /// Sends the next bytes of the body.
    ///
    /// # Errors
    /// The server closed the connection.
    pub async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Ends the sending side in the middle, and goes on listening.
    ///
    /// # Panics
    /// The connection is gone.
    pub async fn half_close(&mut self) {
        self.stream.shutdown().await.expect("half-close a connection");
    }

    /// The server's answer; `None` if it closed without one. May be dropped and asked again.
    ///
    /// # Panics
    /// It does neither.
    pub async fn answer(&mut self) -> Option<RawAnswer> {
        within(
            "an answer",
            LIMIT,
            read_answer(&mut self.stream, &mut self.received, false),
        )
        .await
    }
}
