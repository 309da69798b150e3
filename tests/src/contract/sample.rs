//! Records and messages for contracts to work on.

use jiff::Timestamp;
use serde_json::{Value, json};
use shared::checksum::Crc64;
use shared::manifest::Manifest;
use shared::message::{CopyUpload, Event, Message, Queue, Route, Source, Work};
use shared::store::{BlobName, Staged, StagedId};
use shared::upload::{Completed, OnDisk, ResolvedTarget, UploadId, UploadRecord, UploadState};
use uuid::Uuid;

/// Long ago: a change that the records stamp themselves is always later.
fn long_ago() -> Timestamp {
    "2020-01-02T03:04:05.123456789Z".parse().expect("a valid time")
}

fn manifest(id: UploadId) -> Manifest {
    Manifest::from([
        ("filename".to_owned(), "Grüße \"1\".csv".to_owned()),
        ("upload_id".to_owned(), id.to_string()),
    ])
}

/// An upload as it is when it is created.
pub(crate) fn receiving(id: UploadId) -> UploadRecord {
    UploadRecord {
        id,
        seq: 1,
        state: UploadState::Receiving,
        length: Some(9),
        metadata: Some("filename R3LDvMOfZSAiMSIuY3N2, empty".to_owned()),
        manifest: manifest(id),
        created_at: long_ago(),
        changed_at: long_ago(),
        staged: Staged {
            name: id.blob_name(),
            id: StagedId::random(),
        },
        verified_offset: None,
        checkpoint: Crc64::default(),
        on_disk: OnDisk::default(),
        claim: None,
        completed: None,
        targets: Vec::new(),
        reconciled: 0,
        traceparent: None,
        outbox: Vec::new(),
    }
}

/// Where the upload goes: to `targets`, which are given in no order.
pub(crate) fn resolved(id: UploadId, targets: &[&str]) -> Vec<ResolvedTarget> {
    targets
        .iter()
        .map(|target| ResolvedTarget {
            target: (*target).to_owned(),
            object: BlobName::new(format!("2020/01/02/Grüße_{id}.csv")).expect("a valid name"),
            location: format!("/{target}/2020/01/02/Grüße_{id}.csv"),
        })
        .collect()
}

/// Makes `record` committed: to `targets`, with its work message and an event in the outbox.
pub(crate) fn commit(record: &mut UploadRecord, targets: &[&str]) {
    let crc64nvme = Crc64::of(b"123456789");
    let source = Source::new("contract");
    let work = Work::CopyUpload(CopyUpload {
        seq: record.seq,
        size: crc64nvme.covered(),
        crc64nvme,
        manifest: CopyUpload::carried(&record.manifest),
        created_at: record.created_at,
        completed_at: long_ago(),
    });
    let event = Event::UploadCompleted {
        manifest: record.manifest.clone(),
        size: crc64nvme.covered(),
        crc64nvme,
    };
    record.state = UploadState::Committed;
    record.completed = Some(Completed {
        crc64nvme,
        at: long_ago(),
    });
    record.targets = resolved(record.id, targets);
    record.outbox = vec![source.work(&work, record.id), source.event(&event, record.id)];
}

/// A message on its way to `queue` that carries `number`.
pub(crate) fn work(queue: Queue, number: u64) -> Message {
    message(Route::Work(queue), number)
}

/// An event that carries `number`.
pub(crate) fn event(number: u64) -> Message {
    message(Route::Event, number)
}

/// A dead letter that carries `number`.
pub(crate) fn dead(queue: Queue, reason: &str, number: u64) -> Message {
    let reason = reason.to_owned();
    message(Route::Dead { queue, reason }, number)
}

/// The bus carries any data: it reads none.
fn message(route: Route, number: u64) -> Message {
    Message {
        id: Uuid::now_v7(),
        route,
        delay: None,
        kind: "contract.number".to_owned(),
        source: "/contract/here".to_owned(),
        subject: UploadId::random(),
        time: long_ago(),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
        data: json!({ "schema": 1, "number": number }),
    }
}

/// What the message carries.
pub(crate) fn number(message: &Message) -> u64 {
    message
        .data
        .get("number")
        .and_then(Value::as_u64)
        .expect("a message of the contract")
}
