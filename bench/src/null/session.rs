//! One connection of a do-nothing server: request, body, answer, again.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use super::sink::Sink;

/// One write; offsets in files stay multiples of it.
const BUFFER: usize = 1024 * 1024;

/// A connection and its buffer, which is used again for every request.
pub(super) struct Session<'a> {
    stream: TcpStream,
    addr: SocketAddr,
    sink: &'a Sink,
    buffer: Vec<u8>,
    /// How much of the buffer is received and not used.
    filled: usize,
    answer: Vec<u8>,
}

/// What of a request's head matters.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    method: Method,
    /// At the end of the path; none for the collection.
    id: Option<u64>,
    /// Bytes of the head.
    head: usize,
    /// Bytes of the body.
    body: u64,
    offset: u64,
    length: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Post,
    Patch,
    Head,
    Get,
    Other,
}

impl<'a> Session<'a> {
    /// On a connection just accepted.
    ///
    /// # Errors
    /// It is broken already.
    pub(super) fn new(stream: TcpStream, addr: SocketAddr, sink: &'a Sink) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            addr,
            sink,
            buffer: vec![0; BUFFER],
            filled: 0,
            answer: Vec::new(),
        })
    }

    /// Until the sender closes the connection.
    ///
    /// # Errors
    /// The connection breaks, or a file cannot be written.
    pub(super) fn serve(mut self) -> io::Result<()> {
        while let Some(request) = self.request()? {
            self.buffer.copy_within(request.head..self.filled, 0);
            self.filled -= request.head;
            self.answer.clear();
            self.respond(&request)?;
            self.stream.write_all(&self.answer)?;
        }
        Ok(())
    }

    /// The next head; `None` at the end of the connection.
    fn request(&mut self) -> io::Result<Option<Request>> {
        loop {
            if self.filled > 0
                && let Some(request) = parse(&self.buffer[..self.filled])?
            {
                return Ok(Some(request));
            }
            let read = self.stream.read(&mut self.buffer[self.filled..])?;
            if read == 0 {
                return Ok(None);
            }
            self.filled += read;
        }
    }

    fn respond(&mut self, request: &Request) -> io::Result<()> {
        let sink = self.sink;
        match (request.method, request.id) {
            (Method::Post, None) => {
                let id = sink.create(request.length)?;
                let offset = self.receive(id, 0, request.body)?;
                let addr = self.addr;
                write!(
                    self.answer,
                    "HTTP/1.1 201 Created\r\nTus-Resumable: 1.0.0\r\nContent-Length: 0\r\n\
                     Location: http://{addr}/files/{id:016x}\r\n"
                )?;
                if request.body > 0 {
                    write!(self.answer, "Upload-Offset: {}\r\n", offset.unwrap_or_default())?;
                }
                self.answer.extend_from_slice(b"\r\n");
                Ok(())
            }
            (Method::Patch, Some(id)) => match self.receive(id, request.offset, request.body)? {
                Some(offset) => write!(
                    self.answer,
                    "HTTP/1.1 204 No Content\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: {offset}\r\n\r\n"
                ),
                None => self.refuse("409 Conflict"),
            },
            (Method::Head, Some(id)) => match sink.look(id) {
                Some((length, offset)) => write!(
                    self.answer,
                    "HTTP/1.1 200 OK\r\nTus-Resumable: 1.0.0\r\nCache-Control: no-store\r\n\
                     Upload-Length: {length}\r\nUpload-Offset: {offset}\r\nContent-Length: 0\r\n\r\n"
                ),
                None => self.refuse("404 Not Found"),
            },
            // What `/info` says of an upload: here every copy is made before the last PATCH is answered.
            (Method::Get, Some(id)) if sink.look(id).is_some_and(|(length, offset)| length == offset) => {
                let body = r#"{"deliveries":[{"status":"SUCCESS"}]}"#;
                write!(
                    self.answer,
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                )
            }
            _ => self.refuse("400 Bad Request"),
        }
    }

    /// Reads a body of `len` bytes into the upload, in whole buffers, and answers the new offset; `None` if the upload
    /// does not go on there.
    fn receive(&mut self, id: u64, offset: u64, len: u64) -> io::Result<Option<u64>> {
        let Some(mut writer) = self.sink.write(id, offset) else {
            return Ok(None);
        };
        if len == 0 {
            return writer.end().map(Some);
        }
        let mut left = len;
        while left > 0 {
            let whole = usize::try_from(left).map_or(BUFFER, |left| left.min(BUFFER));
            while self.filled < whole {
                let read = self.stream.read(&mut self.buffer[self.filled..whole])?;
                if read == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.filled += read;
            }
            writer.push(&self.buffer[..whole])?;
            self.buffer.copy_within(whole..self.filled, 0);
            self.filled -= whole;
            left -= whole as u64;
        }
        writer.end().map(Some)
    }

    /// A refusal closes the connection: its body was not read.
    fn refuse(&mut self, status: &str) -> io::Result<()> {
        write!(
            self.stream,
            "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )?;
        Err(io::Error::other(format!("refused with {status}")))
    }
}

/// The request that `bytes` begin with; `None` while its head is not whole.
fn parse(bytes: &[u8]) -> io::Result<Option<Request>> {
    let malformed = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Request::new(&mut headers);
    let len = match head.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(malformed(error.to_string())),
    };
    let path = head.path.unwrap_or_default();
    let mut request = Request {
        method: match head.method {
            Some("POST") => Method::Post,
            Some("PATCH") => Method::Patch,
            Some("HEAD") => Method::Head,
            Some("GET") => Method::Get,
            _ => Method::Other,
        },
        id: path.rsplit('/').next().and_then(|id| u64::from_str_radix(id, 16).ok()),
        head: len,
        body: 0,
        offset: 0,
        length: 0,
    };
    for header in head.headers {
        let field = match header.name {
            name if name.eq_ignore_ascii_case("content-length") => &mut request.body,
            name if name.eq_ignore_ascii_case("upload-offset") => &mut request.offset,
            name if name.eq_ignore_ascii_case("upload-length") => &mut request.length,
            _ => continue,
        };
        let value = str::from_utf8(header.value).unwrap_or_default();
        *field = value
            .parse()
            .map_err(|_| malformed(format!("{}: {value} is no number", header.name)))?;
    }
    Ok(Some(request))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_taken_when_it_is_whole_and_without_its_body() {
        let bytes = b"PATCH /files/00000000000000ff HTTP/1.1\r\nContent-Length: 3\r\nUpload-Offset: 7\r\n\r\nabc";
        for end in 1..bytes.len() - 3 {
            assert_eq!(parse(&bytes[..end]).unwrap(), None, "{end}");
        }
        let request = parse(bytes).unwrap().unwrap();
        assert_eq!((request.method, request.id), (Method::Patch, Some(255)));
        assert_eq!((request.body, request.offset, request.length), (3, 7, 0));
        assert_eq!(&bytes[request.head..], b"abc");
        assert!(parse(b"POST /files/ HTTP/1.1\r\nContent-Length: x\r\n\r\n").is_err());
    }
}
