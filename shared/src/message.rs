//! What goes over the bus: work that Ferry's own workers do, and events for whoever wants to know.
//! `CloudEvents` 1.0 JSON, structured mode. Spec: bus.md, "Two kinds of messages".

use std::time::Duration;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::checksum::Crc64;
use crate::manifest::Manifest;
use crate::report::{Action, Report};
use crate::telemetry::TraceContext;
use crate::upload::{DeliveryRecord, UploadId};

/// Media type of a message's body.
pub const CONTENT_TYPE: &str = "application/cloudevents+json";
/// Manifests larger than this in JSON are not carried: the reader takes them from the record.
const CARRIED_MANIFEST_BYTES: usize = 16 * 1024;
/// The schema of `data` that this build writes; it reads this and all older ones.
const SCHEMA: u64 = 1;

/// A message: where it goes, and the event it carries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `CloudEvents` id, UUID v7; the same in every repetition.
    pub id: Uuid,
    /// Where it goes.
    pub route: Route,
    /// How long the bus holds it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Duration>,
    /// `CloudEvents` type, e.g. `copy.upload`.
    pub kind: String,
    /// Which process made it, e.g. `/ingest/host`.
    pub source: String,
    /// The upload it is about.
    pub subject: UploadId,
    /// When it was made.
    pub time: Timestamp,
    /// W3C trace context of the request or the work that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// The payload, with its integer `schema`.
    pub data: Value,
}

/// Where a message goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Route {
    /// To one of Ferry's own queues; a publish that no queue took is a failure.
    Work(Queue),
    /// To whoever listens, maybe nobody.
    Event,
    /// To the dead letters, a trace for people, with the reason.
    Dead {
        /// The queue whose work it was.
        queue: Queue,
        /// Why it was given up.
        reason: String,
    },
}

/// Ferry's own queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Queue {
    /// Copy jobs.
    Copy,
    /// Reports on their way to a sink.
    Report,
}

impl Queue {
    /// All queues.
    pub const ALL: [Self; 2] = [Self::Copy, Self::Report];

    /// Routing key and metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Report => "report",
        }
    }
}

/// Who makes messages: the process's name in their `source`, and the span in their `traceparent`.
#[derive(Clone, Debug)]
pub struct Source {
    name: String,
    traceparent: Option<String>,
}

impl Source {
    /// `service` on this host.
    #[must_use]
    pub fn new(service: &str) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self {
            name: format!("/{service}/{host}"),
            traceparent: None,
        }
    }

    /// The same within the span that the caller is in: for messages that are made elsewhere, as in a change of a
    /// record, which runs on a thread of the records.
    #[must_use]
    pub fn here(&self) -> Self {
        Self {
            name: self.name.clone(),
            traceparent: TraceContext::current().map(|context| context.to_string()),
        }
    }

    /// A work message.
    #[must_use]
    pub fn work(&self, work: &Work, subject: UploadId) -> Message {
        self.message(Route::Work(work.queue()), work.kind(), subject, work.data())
    }

    /// The work of one delivery, as part of the change of its record that is being made.
    #[must_use]
    pub fn delivery(&self, record: &DeliveryRecord) -> Message {
        let work = Work::CopyDelivery(CopyDelivery {
            target: record.to.target.clone(),
            run: record.run,
            seq: record.seq + 1,
            force: false,
        });
        let message = self.work(&work, record.upload_id);
        Message {
            // Whoever publishes it again may have no span of its own: then it follows the work before.
            traceparent: message.traceparent.or_else(|| record.traceparent.clone()),
            ..message
        }
    }

    /// An event.
    #[must_use]
    pub fn event(&self, event: &Event, subject: UploadId) -> Message {
        self.message(Route::Event, event.kind(), subject, versioned(event.data()))
    }

    /// The trace that a given-up piece of work leaves for people.
    #[must_use]
    pub fn dead_letter(&self, work: &Work, subject: UploadId, reason: String) -> Message {
        self.message(
            Route::Dead {
                queue: work.queue(),
                reason,
            },
            work.kind(),
            subject,
            work.data(),
        )
    }

    fn message(&self, route: Route, kind: &str, subject: UploadId, data: Value) -> Message {
        Message {
            id: Uuid::now_v7(),
            route,
            delay: None,
            kind: kind.to_owned(),
            source: self.name.clone(),
            subject,
            time: Timestamp::now(),
            traceparent: self
                .traceparent
                .clone()
                .or_else(|| TraceContext::current().map(|context| context.to_string())),
            data,
        }
    }
}

impl Message {
    /// Held back by the bus for `delay`.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// The sink that it is for, if it is a report. The bus keeps those of each sink apart.
    #[must_use]
    pub fn sink(&self) -> Option<&str> {
        match self.route {
            Route::Work(Queue::Report) => self.data.get("sink")?.as_str(),
            _ => None,
        }
    }

    /// Goes to one of Ferry's own queues.
    #[must_use]
    pub fn is_work(&self) -> bool {
        matches!(self.route, Route::Work(_))
    }

    /// The body as it goes over the wire.
    #[must_use]
    pub fn to_cloudevent(&self) -> Vec<u8> {
        let mut event = json!({
            "specversion": "1.0",
            "id": self.id,
            "source": self.source,
            "type": self.kind,
            "subject": self.subject,
            "time": self.time,
            "datacontenttype": "application/json",
            "data": self.data,
        });
        if let Some(traceparent) = &self.traceparent {
            event["traceparent"] = json!(traceparent);
        }
        event.to_string().into_bytes()
    }

    /// A message from the body that came over the wire, by `route`.
    ///
    /// # Errors
    /// `Malformed` with the reason.
    pub fn from_cloudevent(body: &[u8], route: Route) -> Result<Self, Unreadable> {
        #[derive(Deserialize)]
        struct CloudEvent {
            specversion: String,
            id: Uuid,
            source: String,
            #[serde(rename = "type")]
            kind: String,
            subject: UploadId,
            time: Timestamp,
            traceparent: Option<String>,
            data: Value,
        }
        let event: CloudEvent =
            serde_json::from_slice(body).map_err(|error| Unreadable::Malformed(error.to_string()))?;
        if event.specversion != "1.0" {
            return Err(Unreadable::Malformed(format!(
                "CloudEvents version {}",
                event.specversion
            )));
        }
        Ok(Self {
            id: event.id,
            route,
            delay: None,
            kind: event.kind,
            source: event.source,
            subject: event.subject,
            time: event.time,
            traceparent: event.traceparent,
            data: event.data,
        })
    }
}

/// Why a message could not be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Written by a newer Ferry: normal for minutes in a rolling update.
    #[error("schema {0} is newer than this worker knows")]
    NewerSchema(u64),
    /// A type that no worker of Ferry's takes.
    #[error("unknown type {0}")]
    UnknownType(String),
    /// Not what its type promises.
    #[error("malformed: {0}")]
    Malformed(String),
}

/// Work for Ferry's own workers. Messages name targets and uploads, never URLs: those come from records and routes.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// A finished upload.
    CopyUpload(CopyUpload),
    /// One target split off, tried again, or redelivered by a person.
    CopyDelivery(CopyDelivery),
    /// A slice ended; the checkpoints are in the delivery records.
    CopyContinue(CopyContinue),
    /// One report for one sink.
    Report(Box<ReportWork>),
}

/// `copy.upload`: a finished upload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CopyUpload {
    /// The record's at that moment.
    pub seq: u64,
    /// Length in bytes.
    pub size: u64,
    /// Checksum of the bytes as received.
    pub crc64nvme: Crc64,
    /// The manifest, if it is small enough to be carried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Manifest>,
    /// When the upload was created.
    pub created_at: Timestamp,
    /// When its last byte was there.
    pub completed_at: Timestamp,
}

impl CopyUpload {
    /// `manifest` as it may be carried in a message.
    #[must_use]
    pub fn carried(manifest: &Manifest) -> Option<Manifest> {
        let bytes: usize = manifest.iter().map(|(key, value)| key.len() + value.len() + 6).sum();
        (bytes <= CARRIED_MANIFEST_BYTES).then(|| manifest.clone())
    }
}

/// `copy.delivery`: one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyDelivery {
    /// The target's name.
    pub target: String,
    /// Which run of the delivery this belongs to; older ones are dropped.
    pub run: u32,
    /// The delivery record's at that moment.
    pub seq: u64,
    /// Deliver even if the target holds it.
    #[serde(default)]
    pub force: bool,
}

/// `copy.continue`: a slice ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyContinue {
    /// The targets that were in the slice and are not done.
    pub targets: Vec<String>,
    /// The delivery record's at that moment.
    pub seq: u64,
}

/// `report`: one report for one sink.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReportWork {
    /// The sink's name.
    pub sink: String,
    /// What the report is about.
    pub action: Action,
    /// The record's when the report was made: an older status never follows a newer one.
    pub seq: u64,
    /// The report as it goes out.
    pub report: Report,
}

impl Work {
    /// The queue it is done from.
    #[must_use]
    pub fn queue(&self) -> Queue {
        match self {
            Self::CopyUpload(_) | Self::CopyDelivery(_) | Self::CopyContinue(_) => Queue::Copy,
            Self::Report(_) => Queue::Report,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::CopyUpload(_) => "copy.upload",
            Self::CopyDelivery(_) => "copy.delivery",
            Self::CopyContinue(_) => "copy.continue",
            Self::Report(_) => "report",
        }
    }

    fn data(&self) -> Value {
        versioned(match self {
            Self::CopyUpload(data) => to_value(data),
            Self::CopyDelivery(data) => to_value(data),
            Self::CopyContinue(data) => to_value(data),
            Self::Report(data) => to_value(data),
        })
    }

    /// The work that `message` asks for.
    ///
    /// # Errors
    /// `NewerSchema` (put it back for a while), `UnknownType` or `Malformed` (dead letter).
    pub fn of(message: &Message) -> Result<Self, Unreadable> {
        match message.kind.as_str() {
            "copy.upload" => payload(message).map(Self::CopyUpload),
            "copy.delivery" => payload(message).map(Self::CopyDelivery),
            "copy.continue" => payload(message).map(Self::CopyContinue),
            "report" => payload(message).map(|report| Self::Report(Box::new(report))),
            unknown => Err(Unreadable::UnknownType(unknown.to_owned())),
        }
    }
}

fn payload<T: DeserializeOwned>(message: &Message) -> Result<T, Unreadable> {
    match message.data.get("schema").and_then(Value::as_u64) {
        Some(schema) if schema > SCHEMA => return Err(Unreadable::NewerSchema(schema)),
        Some(_) => {}
        None => return Err(Unreadable::Malformed("data has no integer schema".to_owned())),
    }
    T::deserialize(&message.data).map_err(|error| Unreadable::Malformed(error.to_string()))
}

/// What Ferry tells whoever wants to know. Nothing of its own depends on these.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the fields are those of bus.md's table of events")]
pub enum Event {
    /// The upload exists.
    UploadCreated { manifest: Manifest, length: Option<u64> },
    /// The upload is whole.
    UploadCompleted {
        manifest: Manifest,
        size: u64,
        crc64nvme: Crc64,
    },
    /// The sender deleted it.
    UploadTerminated { reason: String },
    /// The object is in a target.
    DeliverySucceeded(DeliveryOutcome),
    /// A delivery was given up.
    DeliveryFailed { outcome: DeliveryOutcome, error: String },
}

/// The outcome of a delivery in an event.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeliveryOutcome {
    /// The target's name.
    pub target: String,
    /// Where the object is, or would have been.
    pub url: String,
    /// Its length.
    pub bytes: u64,
    /// Its checksum.
    pub crc64nvme: String,
    /// Tries in this run.
    pub attempts: u32,
    /// From the upload's completion to this outcome.
    pub seconds: f64,
}

impl Event {
    fn kind(&self) -> &'static str {
        match self {
            Self::UploadCreated { .. } => "upload.created",
            Self::UploadCompleted { .. } => "upload.completed",
            Self::UploadTerminated { .. } => "upload.terminated",
            Self::DeliverySucceeded(_) => "delivery.succeeded",
            Self::DeliveryFailed { .. } => "delivery.failed",
        }
    }

    fn data(&self) -> Value {
        match self {
            Self::UploadCreated { manifest, length } => {
                json!({ "manifest": CopyUpload::carried(manifest), "size": length })
            }
            Self::UploadCompleted {
                manifest,
                size,
                crc64nvme,
            } => json!({
                "manifest": CopyUpload::carried(manifest),
                "size": size,
                "crc64nvme": crc64nvme.to_base64(),
            }),
            Self::UploadTerminated { reason } => json!({ "reason": reason }),
            Self::DeliverySucceeded(outcome) => to_value(outcome),
            Self::DeliveryFailed { outcome, error } => {
                let mut data = to_value(outcome);
                data["error"] = json!(error);
                data
            }
        }
    }
}

fn versioned(mut data: Value) -> Value {
    data["schema"] = json!(SCHEMA);
    data
}

fn to_value(data: &impl Serialize) -> Value {
    serde_json::to_value(data).expect("plain structs with text keys always have a JSON form")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn continuation() -> Message {
        let work = Work::CopyContinue(CopyContinue {
            targets: vec!["dex".into()],
            seq: 7,
        });
        Source::new("copier").work(&work, UploadId::random())
    }

    #[test]
    fn a_message_comes_back_from_the_wire_as_it_was_sent() {
        let sent = continuation();
        let read = Message::from_cloudevent(&sent.to_cloudevent(), Route::Work(Queue::Copy)).unwrap();
        assert_eq!(read, sent);
        assert!(matches!(
            Work::of(&read),
            Ok(Work::CopyContinue(CopyContinue { seq: 7, .. }))
        ));
    }

    #[test]
    fn what_cannot_be_understood_says_why() {
        let mut message = continuation();
        message.data["schema"] = json!(2);
        assert_eq!(Work::of(&message), Err(Unreadable::NewerSchema(2)));
        message.data = json!({ "schema": 1 });
        assert!(matches!(Work::of(&message), Err(Unreadable::Malformed(_))));
        message.kind = "copy.nothing".into();
        assert_eq!(Work::of(&message), Err(Unreadable::UnknownType("copy.nothing".into())));
        assert!(matches!(
            Message::from_cloudevent(b"{", Route::Event),
            Err(Unreadable::Malformed(_))
        ));
    }
}
