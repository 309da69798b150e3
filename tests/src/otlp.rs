//! A collector of traces for tests: takes OTLP over HTTP, or behaves as badly as a test likes, and shows what came.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::{Span as Sent, status};
use prost::Message as _;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How a collector behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Takes everything.
    Takes,
    /// Answers everything with this status, and takes nothing.
    Refuses(u16),
    /// Takes the connection and the request, and never answers.
    Hangs,
}

/// A span as it came.
#[derive(Clone, Debug)]
pub struct Span {
    /// 32 hexadecimal digits.
    pub trace: String,
    /// 16 hexadecimal digits.
    pub id: String,
    /// The parent's id; empty if it has none.
    pub parent: String,
    /// Its name.
    pub name: String,
    /// Number of its kind in the protocol: 1 internal, 2 server, 3 client, 4 producer, 5 consumer.
    pub kind: i32,
    /// `tracestate`.
    pub state: String,
    /// Attributes as text.
    pub attributes: BTreeMap<String, String>,
    /// Trace and span of each link.
    pub links: Vec<(String, String)>,
    /// Whether its status is an error.
    pub failed: bool,
    /// `service.name` of the process that it came from.
    pub service: String,
}

impl Span {
    /// The attribute `name`; empty if there is none.
    #[must_use]
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

/// A collector on a free port. It ends when it is dropped.
#[derive(Debug)]
pub struct Collector {
    addr: SocketAddr,
    manner: watch::Sender<Manner>,
    seen: Arc<Mutex<Seen>>,
    _serving: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Seen {
    requests: usize,
    heads: Vec<String>,
    bodies: Vec<u8>,
    spans: Vec<Span>,
}

impl Collector {
    /// Starts one.
    ///
    /// # Panics
    /// There is no free port.
    pub async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen on a free port");
        let addr = listener.local_addr().expect("a listener has an address");
        let (manner, manners) = watch::channel(manner);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let mut serving = JoinSet::new();
        serving.spawn(listen(listener, manners, seen.clone()));
        Self {
            addr,
            manner,
            seen,
            _serving: serving,
        }
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` has to say.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Behaves like this from the next request on.
    pub fn behave(&self, manner: Manner) {
        self.manner.send_replace(manner);
    }

    /// Requests that came, whatever they got.
    #[must_use]
    pub fn requests(&self) -> usize {
        lock(&self.seen).requests
    }

    /// Request lines and headers that came.
    #[must_use]
    pub fn heads(&self) -> Vec<String> {
        lock(&self.seen).heads.clone()
    }

    /// All spans that were taken, in the order of their coming.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        lock(&self.seen).spans.clone()
    }

    /// The spans of this trace that were taken.
    #[must_use]
    pub fn trace(&self, id: &str) -> Vec<Span> {
        let mut spans = self.spans();
        spans.retain(|span| span.trace == id);
        spans
    }

    /// Whether `text` is anywhere in what came.
    #[must_use]
    pub fn came(&self, text: &str) -> bool {
        let text = text.as_bytes();
        lock(&self.seen).bodies.windows(text.len()).any(|part| part == text)
    }
}

async fn listen(listener: TcpListener, manners: watch::Receiver<Manner>, seen: Arc<Mutex<Seen>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            taken = listener.accept() => {
                let (stream, _) = taken.expect("accept a connection");
                connections.spawn(serve(stream, manners.clone(), seen.clone()));
            }
        }
    }
}

/// Answers the requests of one connection, until the other side ends it.
async fn serve(stream: TcpStream, manners: watch::Receiver<Manner>, seen: Arc<Mutex<Seen>>) {
    let mut stream = BufReader::new(stream);
    while let Some((head, body)) = request(&mut stream).await {
        let manner = *manners.borrow();
        {
            let mut seen = lock(&seen);
            seen.requests += 1;
            seen.heads.push(head);
            if manner == Manner::Takes {
                seen.spans.append(&mut spans(&body));
                seen.bodies.extend_from_slice(&body);
            }
        }
        let status = match manner {
            Manner::Takes => 200,
            Manner::Refuses(status) => status,
            Manner::Hangs => return std::future::pending().await,
        };
        let answer = format!("HTTP/1.1 {status} Any\r\nContent-Length: 0\r\n\r\n");
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// The next request's head and body; `None` if there is none, or it was cut.
async fn request(stream: &mut BufReader<TcpStream>) -> Option<(String, Vec<u8>)> {
    let mut head = String::new();
    loop {
        let from = head.len();
        if stream.read_line(&mut head).await.ok()? == 0 {
            return None;
        }
        if &head[from..] == "\r\n" {
            break;
        }
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let length = name.eq_ignore_ascii_case("content-length").then_some(value)?;
        Some(length.trim().parse::<usize>().expect("Content-Length is a number"))
    });
    let mut body = vec![0; length.expect("spans are sent with their length")];
    stream.read_exact(&mut body).await.ok()?;
    Some((head, body))
}

fn spans(body: &[u8]) -> Vec<Span> {
    let request = ExportTraceServiceRequest::decode(body).expect("spans in protobuf");
    let mut all = Vec::new();
    for of_resource in request.resource_spans {
        let resource = attributes(
            of_resource
                .resource
                .map(|resource| resource.attributes)
                .unwrap_or_default(),
        );
        let service = resource.get("service.name").cloned().unwrap_or_default();
        let spans = of_resource.scope_spans.into_iter().flat_map(|of_scope| of_scope.spans);
        all.extend(spans.map(|span| shown(span, &service)));
    }
    all
}

fn shown(span: Sent, service: &str) -> Span {
    let links = span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id)));
    Span {
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        links: links.collect(),
        kind: span.kind,
        failed: span
            .status
            .is_some_and(|status| status.code == i32::from(status::StatusCode::Error)),
        attributes: attributes(span.attributes),
        name: span.name,
        state: span.trace_state,
        service: service.to_owned(),
    }
}

fn attributes(pairs: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: AnyValue| match value.value {
        Some(any_value::Value::StringValue(text)) => text,
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        Some(any_value::Value::BoolValue(truth)) => truth.to_string(),
        other => format!("{other:?}"),
    };
    pairs
        .into_iter()
        .map(|pair| (pair.key, pair.value.map(text).unwrap_or_default()))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
