//! Recorded spans on their way to a collector, by OTLP over HTTP. Nothing waits for it: spans wait in a short queue,
//! a thread of its own sends them, and what finds no room or is not taken is dropped and counted. Spec: faults.md 74.
//!
//! The SDK's own batch processor tells nobody how many spans it dropped, and its HTTP exporter reads the environment
//! by itself, behind `--config-check`: only its conversion to the protocol's messages is used.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as ended;
use std::thread;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use prost::Message as _;
use reqwest::{StatusCode, header, redirect};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::logs::Chain;
use crate::build;
use crate::config::TraceExport;

/// Spans that wait for a slow collector; further ones are dropped and counted.
const WAITING_SPANS: usize = 4096;
/// Most spans in one request.
const BATCH: usize = 512;
/// A batch that is not full goes out after this time.
const GATHER: Duration = Duration::from_secs(1);
/// A collector that cannot be connected in this time is away.
const CONNECT: Duration = Duration::from_secs(5);
/// Bytes of an answer that are looked at.
const ANSWER: usize = 64 * 1024;

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Spans dropped so far because the collector was away or slow: `ferry_spans_dropped_total`.
#[must_use]
pub(super) fn dropped_spans() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

fn dropped(spans: usize) {
    DROPPED.fetch_add(u64::try_from(spans).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// Where ended spans wait.
#[derive(Debug)]
pub(super) struct Queue(mpsc::Sender<SpanData>);

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.0.try_send(span).is_err() {
            dropped(1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The thread that sends.
#[derive(Debug)]
pub(super) struct Exporter {
    stop: CancellationToken,
    ended: ended::Receiver<()>,
}

impl Exporter {
    /// Starts sending to `to`.
    ///
    /// # Errors
    /// The system has no thread for it, or no means to speak TLS.
    pub(super) fn start(to: &TraceExport) -> io::Result<(Self, Queue)> {
        let collector = Collector::new(to).map_err(io::Error::other)?;
        let (spans, receiver) = mpsc::channel(WAITING_SPANS);
        let (end, ended) = ended::sync_channel(1);
        let stop = CancellationToken::new();
        // A runtime of its own: a collector whose name is not resolved holds up the end of its runtime.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stopped = stop.clone();
        thread::Builder::new().name("traces".to_owned()).spawn(move || {
            runtime.block_on(send_all(collector, receiver, stopped));
            // Nobody listens any more if the end was not waited for.
            let _told = end.try_send(()).is_ok();
        })?;
        Ok((Self { stop, ended }, Queue(spans)))
    }

    /// Sends what waits, for `limit` at most. What is left then is lost with the process.
    pub(super) fn end(self, limit: Duration) {
        self.stop.cancel();
        if self.ended.recv_timeout(limit).is_err() {
            tracing::warn!(?limit, "the last spans were not sent in time");
        }
    }
}

async fn send_all(collector: Collector, mut spans: mpsc::Receiver<SpanData>, stop: CancellationToken) {
    let mut failing = false;
    while let Some(batch) = next_batch(&mut spans, &stop).await {
        let count = batch.len();
        match collector.take(batch).await {
            Ok(rejected) => {
                dropped(rejected);
                if std::mem::take(&mut failing) {
                    tracing::info!("spans are taken again");
                }
            }
            Err(error) => {
                dropped(count);
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(error = %Chain(&error), "spans are not taken, and dropped until they are");
                }
            }
        }
    }
}

/// The next spans to be sent, gathered for a moment; `None` when all are sent after `stop`.
async fn next_batch(spans: &mut mpsc::Receiver<SpanData>, stop: &CancellationToken) -> Option<Vec<SpanData>> {
    let mut batch = Vec::with_capacity(BATCH);
    tokio::select! {
        biased;
        taken = spans.recv_many(&mut batch, BATCH) => if taken == 0 { return None },
        () = stop.cancelled() => return None,
    }
    let deadline = Instant::now() + GATHER;
    while batch.len() < BATCH && !stop.is_cancelled() {
        let room = BATCH - batch.len();
        tokio::select! {
            () = stop.cancelled() => {}
            taken = timeout_at(deadline, spans.recv_many(&mut batch, room)) => match taken {
                Ok(1..) => {}
                Ok(0) | Err(_) => break,
            },
        }
    }
    Some(batch)
}

/// Why spans were not taken. The collector's words may quote what it was sent, so they are not told.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the collector answers {0}")]
    Status(StatusCode),
    #[error("the collector gives no answer")]
    NoAnswer(#[source] reqwest::Error),
}

impl Refused {
    /// Whether the same request may be taken later. Spec: OTLP 1.x, "OTLP/HTTP Response".
    fn is_transient(&self) -> bool {
        match self {
            Self::Status(status) => matches!(status.as_u16(), 429 | 502 | 503 | 504),
            // Whether it was taken is unknown after a time-out: a collector that is that slow is not asked twice.
            Self::NoAnswer(error) => error.is_connect(),
        }
    }
}

/// The other end.
#[derive(Debug)]
struct Collector {
    http: reqwest::Client,
    to: TraceExport,
    resource: ResourceAttributesWithSchema,
}

impl Collector {
    fn new(to: &TraceExport) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .timeout(to.timeout)
            .connect_timeout(CONNECT.min(to.timeout))
            .redirect(redirect::Policy::none()) // the headers hold secrets
            .user_agent(concat!("ferry/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self {
            http,
            resource: (&resource(to)).into(),
            to: to.clone(),
        })
    }

    /// Sends `batch`, a few times if need be; answers how many of it were rejected.
    async fn take(&self, batch: Vec<SpanData>) -> Result<usize, Refused> {
        let request = ExportTraceServiceRequest {
            resource_spans: group_spans_by_resource_and_scope(batch, &self.resource),
        };
        let body = bytes::Bytes::from(request.encode_to_vec());
        let again = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(500))
            .with_max_times(2)
            .with_jitter();
        (|| self.post(body.clone()))
            .retry(again)
            .when(Refused::is_transient)
            .await
    }

    async fn post(&self, body: bytes::Bytes) -> Result<usize, Refused> {
        let no_answer = |error: reqwest::Error| Refused::NoAnswer(error.without_url());
        let mut answer = self
            .http
            .post(self.to.endpoint.clone())
            .headers(self.to.headers.clone())
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .body(body)
            .send()
            .await
            .map_err(no_answer)?;
        if !answer.status().is_success() {
            return Err(Refused::Status(answer.status()));
        }
        let mut said = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(no_answer)? {
            if said.len() + chunk.len() > ANSWER {
                return Ok(0);
            }
            said.extend_from_slice(&chunk);
        }
        // An answer that is no message is none of ours to judge: the status says that all was taken.
        let said = ExportTraceServiceResponse::decode(said.as_slice()).unwrap_or_default();
        let rejected = said.partial_success.map_or(0, |partial| partial.rejected_spans);
        Ok(usize::try_from(rejected).unwrap_or_default())
    }
}

/// What the spans are of: what the settings say, before what we know ourselves.
fn resource(to: &TraceExport) -> Resource {
    let program = || {
        let path = std::env::current_exe().ok()?;
        Some(path.file_stem()?.to_string_lossy().into_owned())
    };
    let own = [
        ("service.version", build::RELEASE.to_owned()),
        ("service.instance.id", Uuid::new_v4().to_string()),
        (
            "host.name",
            rustix::system::uname().nodename().to_string_lossy().into_owned(),
        ),
        ("service.name", program().unwrap_or_else(|| "ferry".to_owned())),
    ];
    let own = own.map(|(name, value)| KeyValue::new(name, value));
    let set = to
        .resource
        .iter()
        .map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
    let service = to.service_name.clone().map(|name| KeyValue::new("service.name", name));
    // Of two with one name the later one holds.
    Resource::builder_empty()
        .with_attributes(own.into_iter().chain(set).chain(service))
        .build()
}
