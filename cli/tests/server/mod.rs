//! A small TUS server that fails on demand. Plain sockets, so that a fault happens exactly where a test wants it.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

/// No test waits longer for anything.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// What goes wrong, once, with the next request that it fits.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// PATCH: after so many bytes of its body were stored, the connection is closed.
    Cut { after: usize },
    /// PATCH: after so many bytes of its body were stored, 503 and the connection is closed.
    Drain { after: usize },
    /// PATCH: everything is stored, the connection closed without an answer.
    LoseAnswer,
    /// PATCH: after so many bytes of its body were stored, nothing is read until [`Server::release`].
    Hold { after: usize },
    /// A request with this method gets this answer, its body is not read: status line, headers, body.
    Answer(&'static str, &'static str, &'static str, &'static str),
}

/// One upload as the server has it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Upload {
    pub(crate) length: usize,
    pub(crate) metadata: String,
    pub(crate) bytes: Vec<u8>,
    /// Raised by every PATCH: an older one that still hangs stores nothing more.
    writer: u64,
}

/// A request that came: method, path and `Upload-Offset`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) offset: Option<usize>,
}

#[derive(Debug, Default)]
struct State {
    uploads: BTreeMap<String, Upload>,
    faults: VecDeque<Fault>,
    /// Answers of `/info`, in order; the last one stays.
    info: VecDeque<String>,
    seen: Vec<Seen>,
}

/// The server. Its state outlives [`Server::stop`], as on a disk.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    released: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::default());
        let released = watch::Sender::new(false);
        let accepting = tokio::spawn(accept(listener, Arc::clone(&state), released.clone()));
        Self {
            address,
            state,
            released,
            accepting,
        }
    }

    /// Ends it as `kill -9` would: nobody listens, all connections break.
    pub(crate) async fn stop(&mut self) {
        self.accepting.abort();
        assert!((&mut self.accepting).await.unwrap_err().is_cancelled());
    }

    /// Starts it again, at the same address with the same state.
    pub(crate) async fn start_again(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.accepting = tokio::spawn(accept(listener, Arc::clone(&self.state), self.released.clone()));
    }

    pub(crate) fn collection(&self) -> String {
        format!("http://{}/files/", self.address)
    }

    pub(crate) fn fail(&self, fault: Fault) {
        self.lock().faults.push_back(fault);
    }

    /// Lets held requests go on.
    pub(crate) fn release(&self) {
        self.released.send_replace(true);
    }

    pub(crate) fn info(&self, deliveries: &[&str]) {
        self.lock().info = deliveries
            .iter()
            .map(|deliveries| {
                format!(
                    r#"{{"manifest":{{"filename":"a.csv"}},"file_info":{{"size_bytes":3,"updated_at":"2024-03-07T05:09:08Z"}},
                    "upload_status":{{"status":"Complete","chunk_received_at":"2024-03-07T05:09:08Z"}},"deliveries":{deliveries}}}"#
                )
            })
            .collect();
    }

    /// Removes an upload, as its expiry would.
    pub(crate) fn expire(&self, id: &str) {
        self.lock().uploads.remove(id).unwrap();
    }

    pub(crate) fn uploads(&self) -> BTreeMap<String, Upload> {
        self.lock().uploads.clone()
    }

    /// The only upload there is.
    pub(crate) fn upload(&self) -> (String, Upload) {
        let mut uploads = self.uploads().into_iter();
        let only = uploads.next().expect("one upload");
        assert!(uploads.next().is_none(), "more than one upload");
        only
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.lock().seen.clone()
    }

    /// How many requests with this method came.
    pub(crate) fn count(&self, method: &str) -> usize {
        self.lock().seen.iter().filter(|seen| seen.method == method).count()
    }

    /// Waits until the only upload has so many bytes.
    pub(crate) async fn stored(&self, bytes: usize) {
        self.until(|state| state.uploads.values().any(|upload| upload.bytes.len() >= bytes))
            .await;
    }

    /// Waits until so many requests with this method came.
    pub(crate) async fn asked(&self, method: &str, times: usize) {
        self.until(|state| state.seen.iter().filter(|seen| seen.method == method).count() >= times)
            .await;
    }

    async fn until(&self, condition: impl Fn(&State) -> bool) {
        let poll = async {
            while !condition(&self.lock()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(DEADLINE, poll).await.expect("the condition comes true in time");
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>, released: watch::Sender<bool>) {
    let mut connections = JoinSet::new(); // dropped, and with it every connection, when the server stops
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let connection = Connection {
            socket,
            read: Vec::new(),
            state: Arc::clone(&state),
            released: released.subscribe(),
        };
        connections.spawn(connection.serve());
    }
}

struct Connection {
    socket: TcpStream,
    /// Read from the socket and not used yet.
    read: Vec<u8>,
    state: Arc<Mutex<State>>,
    released: watch::Receiver<bool>,
}

struct Head {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
}

impl Head {
    fn number(&self, name: &str) -> Option<usize> {
        self.headers.get(name).map(|value| value.parse().unwrap())
    }
}

impl Connection {
    async fn serve(mut self) {
        while let Some(head) = self.head().await {
            let fault = {
                let mut state = self.state.lock().unwrap();
                state.seen.push(Seen {
                    method: head.method.clone(),
                    path: head.path.clone(),
                    offset: head.number("upload-offset"),
                });
                let fits = |fault: &Fault| match fault {
                    Fault::Answer(method, ..) => head.method == *method,
                    _ => head.method == "PATCH",
                };
                let found = state.faults.iter().position(fits);
                found.and_then(|index| state.faults.remove(index))
            };
            if !self.answer(&head, fault).await {
                return;
            }
        }
    }

    /// Handles one request; whether the connection goes on.
    async fn answer(&mut self, head: &Head, fault: Option<Fault>) -> bool {
        if let Some(Fault::Answer(_, status, headers, body)) = fault {
            let unread = head.number("content-length").unwrap_or(0) > 0;
            let end = if unread { "Connection: close\r\n" } else { "" };
            self.send(status, &format!("{headers}{end}"), body).await;
            if unread {
                self.linger().await;
            }
            return !unread;
        }
        if let Some(id) = head.path.strip_prefix("/info/") {
            let info = self.next_info(id);
            match info {
                Some(info) => self.send("200 OK", "Content-Type: application/json\r\n", &info).await,
                None => self.send("404 Not Found", "", "error getting file manifest\n").await,
            }
            return true;
        }
        assert_eq!(
            head.headers.get("tus-resumable").map(String::as_str),
            Some("1.0.0"),
            "{}",
            head.method
        );
        let id = head.path.strip_prefix("/files/").expect("a path of uploads").to_owned();
        match head.method.as_str() {
            "POST" => {
                let id = self.create(head);
                let location = format!("Location: /files/{id}\r\n");
                self.send("201 Created", &location, "").await;
                true
            }
            "HEAD" => {
                let upload = self.state.lock().unwrap().uploads.get(&id).cloned();
                match upload {
                    Some(upload) => {
                        let (offset, length) = (upload.bytes.len(), upload.length);
                        let headers = format!("Upload-Offset: {offset}\r\nUpload-Length: {length}\r\n");
                        self.send("200 OK", &headers, "").await;
                    }
                    None => self.send("410 Gone", "", "").await,
                }
                true
            }
            "PATCH" => self.append(&id, head, fault).await,
            other => panic!("unexpected method {other}"),
        }
    }

    /// The next answer of `/info` for an upload that exists.
    fn next_info(&self, id: &str) -> Option<String> {
        let mut state = self.state.lock().unwrap();
        if !state.uploads.contains_key(id) {
            return None;
        }
        match state.info.len() {
            0 | 1 => state.info.front().cloned(),
            _ => state.info.pop_front(),
        }
    }

    fn create(&self, head: &Head) -> String {
        let mut state = self.state.lock().unwrap();
        let id = uuid::Uuid::new_v4().to_string();
        let upload = Upload {
            length: head.number("upload-length").expect("Upload-Length"),
            metadata: head.headers.get("upload-metadata").cloned().unwrap_or_default(),
            ..Upload::default()
        };
        state.uploads.insert(id.clone(), upload);
        id
    }

    async fn append(&mut self, id: &str, head: &Head, fault: Option<Fault>) -> bool {
        assert_eq!(
            head.headers.get("content-type").map(String::as_str),
            Some("application/offset+octet-stream")
        );
        let length = head.number("content-length").expect("a body of known length");
        let begun = {
            let mut state = self.state.lock().unwrap();
            match state.uploads.get_mut(id) {
                None => Err("404 Not Found"),
                Some(upload) if head.number("upload-offset") != Some(upload.bytes.len()) => Err("409 Conflict"),
                Some(upload) => {
                    assert!(
                        upload.bytes.len() + length <= upload.length,
                        "more bytes than were announced"
                    );
                    upload.writer += 1;
                    Ok(upload.writer)
                }
            }
        };
        let writer = match begun {
            Ok(writer) => writer,
            Err(status) => {
                self.send(status, "Connection: close\r\n", "").await;
                self.linger().await;
                return false;
            }
        };

        let mut stored = 0;
        while stored < length {
            match fault {
                Some(Fault::Cut { after }) if stored >= after => return false,
                Some(Fault::Drain { after }) if stored >= after => {
                    self.send("503 Service Unavailable", "Connection: close\r\n", "stopping\n")
                        .await;
                    return false;
                }
                Some(Fault::Hold { after }) if stored >= after => {
                    self.released.wait_for(|released| *released).await.unwrap();
                }
                _ => {}
            }
            if self.read.is_empty() && !self.fill().await {
                return false; // cut by the client: what came is kept
            }
            let take = self.read.len().min(length - stored);
            let mut state = self.state.lock().unwrap();
            match state.uploads.get_mut(id) {
                Some(upload) if upload.writer == writer => upload.bytes.extend(self.read.drain(..take)),
                _ => return false, // gone, or taken over
            }
            stored += take;
        }
        if matches!(fault, Some(Fault::LoseAnswer)) {
            return false;
        }
        let offset = self.state.lock().unwrap().uploads[id].bytes.len();
        self.send("204 No Content", &format!("Upload-Offset: {offset}\r\n"), "")
            .await;
        true
    }

    async fn head(&mut self) -> Option<Head> {
        let end = loop {
            if let Some(end) = self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                break end;
            }
            if !self.fill().await {
                return None;
            }
        };
        let text = String::from_utf8(self.read.drain(..end + 4).collect()).unwrap();
        let mut lines = text.lines();
        let mut request = lines.next().unwrap().split(' ');
        let (method, path) = (request.next().unwrap(), request.next().unwrap());
        let headers = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        Some(Head {
            method: method.to_owned(),
            path: path.to_owned(),
            headers,
        })
    }

    /// Reads more; whether anything came.
    async fn fill(&mut self) -> bool {
        let mut block = vec![0; 64 * 1024];
        match self.socket.read(&mut block).await {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.read.extend_from_slice(&block[..count]);
                true
            }
        }
    }

    async fn send(&mut self, status: &str, headers: &str, body: &str) {
        let length = if status.starts_with("204") {
            String::new()
        } else {
            format!("Content-Length: {}\r\n", body.len())
        };
        let answer = format!("HTTP/1.1 {status}\r\nTus-Resumable: 1.0.0\r\n{headers}{length}\r\n{body}");
        // The client may be gone: then the answer is lost, which is part of the tests.
        drop(self.socket.write_all(answer.as_bytes()).await);
    }

    /// Ends a connection whose request was not read: a reset would take the answer away from the client.
    async fn linger(&mut self) {
        drop(self.socket.shutdown().await);
        let drain = async {
            while self.fill().await {
                self.read.clear()
            }
        };
        drop(timeout(Duration::from_secs(5), drain).await);
    }
}
