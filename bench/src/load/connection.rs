//! One keep-alive connection that speaks as much HTTP/1.1 and TUS as a sender needs, with buffers that it uses again:
//! it must cost little beside the server.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::payload::Payload;
use crate::failure::Failure;

/// Longest silence of a server. Syncing a gigabyte to a slow disk may take a while.
const SILENCE: Duration = Duration::from_secs(180);
/// Longest head or body of an answer.
const LONGEST_ANSWER: usize = 256 * 1024;
/// Bodies up to this size are sent in one write with their head.
const TOGETHER: u64 = 64 * 1024;
/// `filename file.bin`, so that targets can name what they get.
const METADATA: &str = "filename ZmlsZS5iaW4=";

/// A connection to a server.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    authority: String,
    /// The request's head, and a small body.
    request: Vec<u8>,
    /// What came in and belongs to the present answer.
    received: Vec<u8>,
    chunk: Vec<u8>,
}

/// What an upload is known by: the path of its `Location`.
pub(crate) type UploadPath = String;

/// What of an answer matters here.
#[derive(Debug, Default)]
struct Answer {
    status: u16,
    offset: Option<u64>,
    location: Option<String>,
    body: Vec<u8>,
}

impl Connection {
    /// Connects to `server`.
    ///
    /// # Errors
    /// It does not accept.
    pub(crate) fn open(server: SocketAddr) -> Result<Self, Failure> {
        let open = || {
            let stream = TcpStream::connect(server)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(SILENCE))?;
            stream.set_write_timeout(Some(SILENCE))?;
            Ok(stream)
        };
        Ok(Self {
            stream: open().map_err(Failure::io("connect to", server))?,
            authority: server.to_string(),
            request: Vec::new(),
            received: Vec::new(),
            chunk: vec![0; 16 * 1024],
        })
    }

    /// Makes an upload of `len` bytes, without any of them.
    ///
    /// # Errors
    /// Any answer but 201 with `Location`.
    pub(crate) fn create(&mut self, len: u64) -> Result<UploadPath, Failure> {
        let headers = format!("Upload-Length: {len}\r\nUpload-Metadata: {METADATA}\r\nContent-Length: 0\r\n");
        let answer = self.ask("POST", "/files/", &headers, None)?;
        answer.created(None)
    }

    /// Makes an upload of `len` bytes with all of them.
    ///
    /// # Errors
    /// Any answer but 201 with `Location` and the whole length as `Upload-Offset`.
    pub(crate) fn create_with(&mut self, len: u64, payload: &Payload) -> Result<UploadPath, Failure> {
        let headers = format!(
            "Upload-Length: {len}\r\nUpload-Metadata: {METADATA}\r\nContent-Length: {len}\r\n\
             Content-Type: application/offset+octet-stream\r\n"
        );
        let answer = self.ask("POST", "/files/", &headers, Some((len, payload)))?;
        answer.created(Some(len))
    }

    /// Sends all of the upload's `len` bytes in one PATCH.
    ///
    /// # Errors
    /// Any answer but 204 with the whole length as `Upload-Offset`.
    pub(crate) fn append(&mut self, upload: &str, len: u64, payload: &Payload) -> Result<(), Failure> {
        let headers =
            format!("Upload-Offset: 0\r\nContent-Length: {len}\r\nContent-Type: application/offset+octet-stream\r\n");
        let answer = self.ask("PATCH", upload, &headers, Some((len, payload)))?;
        answer.expect("PATCH", 204, Some(len))
    }

    /// Asks whether the upload has all of its `len` bytes.
    ///
    /// # Errors
    /// Any answer but 200 with that `Upload-Offset`.
    pub(crate) fn expect_whole(&mut self, upload: &str, len: u64) -> Result<(), Failure> {
        let answer = self.ask("HEAD", upload, "", None)?;
        answer.expect("HEAD", 200, Some(len))
    }

    /// The body at `path`.
    ///
    /// # Errors
    /// Any answer but 200.
    pub(crate) fn get(&mut self, path: &str) -> Result<Vec<u8>, Failure> {
        let answer = self.ask("GET", path, "", None)?;
        answer.expect("GET", 200, None)?;
        Ok(answer.body)
    }

    fn ask(
        &mut self,
        method: &str,
        path: &str,
        headers: &str,
        body: Option<(u64, &Payload)>,
    ) -> Result<Answer, Failure> {
        self.request.clear();
        for part in [
            method,
            " ",
            path,
            " HTTP/1.1\r\nHost: ",
            &self.authority,
            "\r\nTus-Resumable: 1.0.0\r\n",
            headers,
            "\r\n",
        ] {
            self.request.extend_from_slice(part.as_bytes());
        }
        let sent = match body {
            Some((len, payload)) if len > TOGETHER => {
                let mut pieces = payload.pieces(len);
                self.stream
                    .write_all(&self.request)
                    .and_then(|()| pieces.try_for_each(|piece| self.stream.write_all(piece)))
            }
            Some((len, payload)) => {
                for piece in payload.pieces(len) {
                    self.request.extend_from_slice(piece);
                }
                self.stream.write_all(&self.request)
            }
            None => self.stream.write_all(&self.request),
        };
        let object = || format!("{method} {path}");
        sent.map_err(|source| Failure::io("send", object())(source))?;
        self.answer(method == "HEAD")
            .map_err(|source| Failure::io("read the answer to", object())(source))
    }

    /// Reads one answer, whole.
    fn answer(&mut self, without_body: bool) -> std::io::Result<Answer> {
        self.received.clear();
        let (mut answer, begin, len) = loop {
            self.read()?;
            if let Some(parsed) = parse(&self.received)? {
                break parsed;
            }
        };
        if !without_body {
            while self.received.len() < begin + len {
                self.read()?;
            }
            answer.body.extend_from_slice(&self.received[begin..begin + len]);
        }
        Ok(answer)
    }

    fn read(&mut self) -> std::io::Result<()> {
        let read = self.stream.read(&mut self.chunk)?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if self.received.len() + read > LONGEST_ANSWER {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.received.extend_from_slice(&self.chunk[..read]);
        Ok(())
    }
}

impl Answer {
    fn created(self, offset: Option<u64>) -> Result<UploadPath, Failure> {
        self.expect("POST", 201, offset)?;
        self.location
            .as_deref()
            .and_then(path_of)
            .ok_or_else(|| self.unexpected("POST", "a Location"))
    }

    fn expect(&self, method: &str, status: u16, offset: Option<u64>) -> Result<(), Failure> {
        if self.status != status {
            return Err(self.unexpected(method, &status.to_string()));
        }
        match offset {
            Some(wanted) if self.offset != Some(wanted) => {
                Err(self.unexpected(method, &format!("Upload-Offset: {wanted}")))
            }
            _ => Ok(()),
        }
    }

    fn unexpected(&self, method: &str, expected: &str) -> Failure {
        let body = String::from_utf8_lossy(&self.body);
        Failure::Answer {
            request: method.to_owned(),
            expected: expected.to_owned(),
            got: format!(
                "{} with Upload-Offset {:?} and Location {:?} {}",
                self.status,
                self.offset,
                self.location,
                body.trim_end()
            ),
        }
    }
}

/// The answer in `bytes`, where its body begins and how long that is; `None` while the head is not whole.
fn parse(bytes: &[u8]) -> std::io::Result<Option<(Answer, usize, usize)>> {
    let malformed = |reason: String| std::io::Error::new(std::io::ErrorKind::InvalidData, reason);
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    let begin = match head.parse(bytes) {
        Ok(httparse::Status::Complete(begin)) => begin,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(malformed(error.to_string())),
    };
    let mut answer = Answer {
        status: head.code.unwrap_or_default(),
        ..Answer::default()
    };
    let mut len = 0;
    for header in head.headers {
        let value = || {
            str::from_utf8(header.value)
                .map(str::trim)
                .map_err(|_| malformed(format!("{} is not text", header.name)))
        };
        let number = || {
            let value = value()?;
            value
                .parse()
                .map_err(|_| malformed(format!("{}: {value} is no number", header.name)))
        };
        if header.name.eq_ignore_ascii_case("upload-offset") {
            answer.offset = Some(number()?);
        } else if header.name.eq_ignore_ascii_case("location") {
            answer.location = Some(value()?.to_owned());
        } else if header.name.eq_ignore_ascii_case("content-length") {
            len = usize::try_from(number()?).map_err(|_| malformed("a huge body".to_owned()))?;
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(malformed("a body without a length".to_owned()));
        }
    }
    Ok(Some((answer, begin, len)))
}

/// `http://host:port/path` → `/path`.
fn path_of(location: &str) -> Option<UploadPath> {
    let rest = location.strip_prefix("http://")?;
    rest.find('/').map(|at| rest[at..].to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_location_is_reduced_to_its_path() {
        assert_eq!(path_of("http://127.0.0.1:1/files/x").as_deref(), Some("/files/x"));
        assert_eq!(path_of("http://127.0.0.1:1"), None);
        assert_eq!(path_of("/files/x"), None);
    }

    /// The failure of a PATCH of 5 bytes that gets `answer`.
    fn patch_answered(answer: &'static [u8]) -> Failure {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = Vec::new();
                while !request.windows(4).any(|four| four == b"\r\n\r\n") {
                    let mut byte = [0; 512];
                    let read = stream.read(&mut byte).unwrap();
                    request.extend_from_slice(&byte[..read]);
                }
                stream.write_all(answer).unwrap();
            });
            let mut connection = Connection::open(addr).unwrap();
            connection.append("/files/x", 5, &Payload::new()).unwrap_err()
        })
    }

    #[test]
    fn an_answer_that_was_not_asked_for_is_no_result() {
        for (answer, reason) in [
            (
                &b"HTTP/1.1 204 No Content\r\nUpload-Offset: 4\r\n\r\n"[..],
                "Upload-Offset: 5",
            ),
            (b"HTTP/1.1 204 No Content\r\n\r\n", "Upload-Offset: 5"),
            (
                b"HTTP/1.1 507 Insufficient Storage\r\nContent-Length: 5\r\n\r\nfull\n",
                "507",
            ),
            (b"HTTP/1.1 204 No", "read the answer to PATCH"),
            (b"", "read the answer to PATCH"),
        ] {
            let failure = patch_answered(answer).to_string();
            assert!(failure.contains(reason), "{failure}");
        }
    }
}
