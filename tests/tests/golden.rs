//! Golden copies of everything that an upgrade finds in queues and records, as it was first written: still understood,
//! and still written like that. Promise 2 of DESIGN.md; faults.md row 41.
//!
//! A file of `golden/` is never changed once it is released. A new schema gets files of its own, and the old ones
//! stay.

use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rusqlite::{Connection, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use shared::checksum::Crc64;
use shared::manifest::{Manifest, add_keys};
use shared::message::{
    CopyContinue, CopyDelivery, CopyUpload, DeliveryOutcome, Event, Message, Queue, ReportWork, Route, Source, Work,
};
use shared::report::{Issue, Level, Report, Status, Times};
use shared::store::{BlobName, Staged};
use shared::upload::{
    Claim, Completed, CopyCheckpoint, DeliveryRecord, DeliveryState, OnDisk, ResolvedTarget, Trouble, UploadId,
    UploadRecord, UploadState,
};
use tests::reports::{action, destination};
use tests::site::{LIMIT, Part, Site};
use tests::wait::eventually;

const ID: &str = "0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9";
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
/// What the upload of the golden records holds.
const CONTENT: &[u8] = b"123456789";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("golden/{name}.json"))
}

fn read(name: &str) -> String {
    let path = golden(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

/// The golden copy `name` is understood as `value`, and `value` is written like it.
fn expect_golden<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, value: &T) {
    let text = read(name);
    let understood: T = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(&understood, value, "{name} is understood");
    let copy: Value = serde_json::from_str(&text).expect("JSON, as just seen");
    let written = serde_json::to_value(value).expect("records and messages have a JSON form");
    assert_eq!(written, copy, "{name} is written as it was");
}

/// Of types whose values are drawn at random.
fn fixed<T: DeserializeOwned>(text: &str) -> T {
    serde_json::from_value(json!(text)).expect("a text")
}

fn id() -> UploadId {
    ID.parse().expect("an upload id")
}

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(1_767_225_600 + second).expect("a time in 2026")
}

fn manifest() -> Manifest {
    let entries = [
        ("filename", "résults.csv"),
        ("data_stream_id", "dextesting"),
        ("data_stream_route", "testevent1"),
        ("sender_id", "a lab"),
        ("jurisdiction", "GA"),
        ("upload_id", ID),
        ("dex_ingest_datetime", "2026-01-01T00:00:00Z"),
    ];
    entries.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

fn target(name: &str) -> ResolvedTarget {
    let object = format!("2026/01/01/résults_{ID}.csv");
    ResolvedTarget {
        target: name.to_owned(),
        location: format!("/data/{name}/{object}"),
        object: BlobName::new(object).expect("a name"),
    }
}

fn staged(name: BlobName) -> Staged {
    Staged {
        name,
        id: fixed("00112233445566778899aabbccddeeff"),
    }
}

fn claim() -> Claim {
    Claim {
        owner: fixed("ffeeddccbbaa99887766554433221100"),
        fence: 3,
        beat: 17,
    }
}

fn works() -> Vec<(&'static str, Work)> {
    let upload = CopyUpload {
        seq: 4,
        size: CONTENT.len() as u64,
        crc64nvme: Crc64::of(CONTENT),
        manifest: Some(manifest()),
        created_at: time(0),
        completed_at: time(60),
    };
    let delivery = CopyDelivery {
        target: "edav".to_owned(),
        run: 1,
        seq: 9,
        force: true,
    };
    let next = CopyContinue {
        targets: vec!["edav".to_owned()],
        seq: 9,
    };
    let mut works = vec![
        ("copy-upload", Work::CopyUpload(upload)),
        ("copy-delivery", Work::CopyDelivery(delivery)),
        ("copy-continue", Work::CopyContinue(next)),
    ];
    works.extend(reports().into_iter().map(|(name, report)| {
        let work = ReportWork {
            sink: "jsonl".to_owned(),
            action: report.action(),
            seq: 5,
            report,
        };
        (name, Work::Report(Box::new(work)))
    }));
    works
}

fn reports() -> Vec<(&'static str, Report)> {
    let (id, manifest) = (id(), manifest());
    let times = Times {
        start: time(0),
        end: time(60),
    };
    let issues = vec![Issue {
        level: Level::Error,
        message: "no space".to_owned(),
    }];
    let source = format!("file:///data/raw/{ID}");
    let failed = Report::blob_file_copy(id, &manifest, source, &target("edav"), Status::Failure, issues, times);
    let transforms = add_keys(&mut manifest.clone(), id, time(0));
    let all = vec![
        (
            "report-metadata-transform",
            Report::metadata_transform(id, &manifest, transforms, time(0)),
        ),
        ("report-upload-started", Report::upload_started(id, &manifest, times)),
        (
            "report-upload-status",
            Report::upload_status(id, &manifest, 9, Some(9), times),
        ),
        (
            "report-upload-completed",
            Report::upload_completed(id, &manifest, times),
        ),
        ("report-blob-file-copy", failed),
    ];
    all.into_iter()
        .map(|(name, report)| (name, of_the_first_release(&report)))
        .collect()
}

/// A report names the build that made it.
fn of_the_first_release(report: &Report) -> Report {
    let mut value = serde_json::to_value(report).expect("a report has a JSON form");
    value["stage_info"]["version"] = json!("0.1.0");
    serde_json::from_value(value).expect("a report")
}

fn events() -> Vec<(&'static str, Event)> {
    let outcome = DeliveryOutcome {
        target: "edav".to_owned(),
        url: target("edav").location,
        bytes: 9,
        crc64nvme: Crc64::of(CONTENT).to_base64(),
        attempts: 2,
        seconds: 1.5,
    };
    let created = Event::UploadCreated {
        manifest: manifest(),
        length: Some(9),
    };
    let completed = Event::UploadCompleted {
        manifest: manifest(),
        size: 9,
        crc64nvme: Crc64::of(CONTENT),
    };
    let terminated = Event::UploadTerminated {
        reason: "deleted by its sender".to_owned(),
    };
    let failed = Event::DeliveryFailed {
        outcome: outcome.clone(),
        error: "no space".to_owned(),
    };
    vec![
        ("event-upload-created", created),
        ("event-upload-completed", completed),
        ("event-upload-terminated", terminated),
        ("event-delivery-succeeded", Event::DeliverySucceeded(outcome)),
        ("event-delivery-failed", failed),
    ]
}

/// `message` with what is drawn for each.
fn pinned(message: Message) -> Message {
    Message {
        id: "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b".parse().expect("a UUID"),
        source: "/ingest/host".to_owned(),
        time: time(61),
        traceparent: Some(TRACEPARENT.to_owned()),
        ..message
    }
}

fn uploads() -> Vec<(&'static str, UploadRecord)> {
    let receiving = UploadRecord {
        id: id(),
        seq: 3,
        state: UploadState::Receiving,
        length: Some(9),
        metadata: Some("filename csOpc3VsdHMuY3N2".to_owned()),
        manifest: manifest(),
        created_at: time(0),
        changed_at: time(30),
        staged: staged(id().blob_name()),
        verified_offset: Some(4),
        checkpoint: Crc64::of(&CONTENT[..4]),
        on_disk: OnDisk {
            synced: 4,
            written_in: Some(fixed("6b1f0c9e-52a4-4b0c-9e0b-8f1c52b9a001")),
            trouble: Some(Trouble::Unreadable),
        },
        claim: Some(claim()),
        completed: None,
        targets: Vec::new(),
        reconciled: 0,
        traceparent: Some(TRACEPARENT.to_owned()),
        outbox: vec![pinned(Source::new("ingest").event(&events()[0].1, id()))],
    };
    let published = UploadRecord {
        seq: 6,
        state: UploadState::Published,
        verified_offset: None,
        checkpoint: Crc64::of(CONTENT),
        on_disk: OnDisk::default(),
        claim: None,
        completed: Some(Completed {
            crc64nvme: Crc64::of(CONTENT),
            at: time(60),
        }),
        targets: vec![target("dex"), target("edav")],
        outbox: Vec::new(),
        ..receiving.clone()
    };
    vec![("upload-receiving", receiving), ("upload-published", published)]
}

fn deliveries() -> Vec<(&'static str, DeliveryRecord)> {
    let pending = |name: &str| DeliveryRecord::pending(id(), target(name), time(60));
    let claimed = DeliveryRecord {
        seq: 8,
        state: DeliveryState::Claimed,
        run: 2,
        attempts: 1,
        integrity_retried: true,
        first_tried_at: Some(time(61)),
        started_at: Some(time(62)),
        finished_at: Some(time(63)),
        next_attempt_at: Some(time(70)),
        claim: Some(claim()),
        checkpoint: Some(CopyCheckpoint {
            staged: staged(target("dex").object),
            copied: Crc64::of(&CONTENT[..4]),
        }),
        issues: vec![Issue {
            level: Level::Warning,
            message: "replaced".to_owned(),
        }],
        reconciled: 1,
        traceparent: Some(TRACEPARENT.to_owned()),
        outbox: vec![pinned(Source::new("copier").work(&works()[1].1, id()))],
        ..pending("dex")
    };
    vec![
        ("delivery-pending-dex", pending("dex")),
        ("delivery-pending-edav", pending("edav")),
        ("delivery-claimed", claimed),
    ]
}

/// Row 41: every work message, as the embedded bus keeps it, as it goes over a wire, and as a dead letter.
#[test]
fn work_messages_of_every_released_schema_are_understood_and_written_as_they_were() {
    let source = Source::new("ingest");
    for (name, work) in works() {
        let message = pinned(source.work(&work, id()));
        expect_golden(name, &message);
        let understood: Message = serde_json::from_str(&read(name)).expect("a message");
        assert_eq!(Work::of(&understood).as_ref(), Ok(&work), "{name}");
    }
    let (_, work) = &works()[1];
    let dead = source.dead_letter(work, id(), "transient after 6 tries: no space".to_owned());
    expect_golden(
        "dead-letter",
        &pinned(dead).after(std::time::Duration::from_millis(1500)),
    );
    let message = pinned(source.work(&works()[0].1, id()));
    let wire: Value = serde_json::from_slice(&message.to_cloudevent()).expect("JSON");
    expect_golden("copy-upload-wire", &wire);
    let route = Route::Work(Queue::Copy);
    let understood = Message::from_cloudevent(read("copy-upload-wire").as_bytes(), route);
    assert_eq!(understood, Ok(message));
}

/// Row 41: others than Ferry read events.
#[test]
fn events_are_written_as_they_were() {
    for (name, event) in events() {
        expect_golden(name, &pinned(Source::new("ingest").event(&event, id())));
    }
}

/// Row 41: records with every field set, and the names of all states.
#[test]
fn records_of_every_release_are_understood_and_written_as_they_were() {
    for (name, record) in uploads() {
        expect_golden(name, &record);
    }
    for (name, record) in deliveries() {
        expect_golden(name, &record);
    }
    expect_golden("upload-states", &UploadState::ALL.to_vec());
    expect_golden("delivery-states", &DeliveryState::ALL.to_vec());
}

/// Row 41, through the public door: a Ferry that is started on what an older one left in its database, copies and
/// reports it.
#[tokio::test]
async fn what_an_older_ferry_left_in_its_queues_is_done_after_an_upgrade() {
    let mut site = Site::start().await;
    site.kill();
    let left = [
        ("copy-upload", vec!["dex", "edav"]),
        ("copy-delivery", vec!["edav"]),
        ("copy-continue", vec!["edav"]),
    ];
    let file = Connection::open(site.data().join("ferry.db")).expect("open the database");
    let mut uploads = Vec::new();
    for (message, targets) in left {
        let id = UploadId::random();
        fs::write(site.data().join("raw").join(id.to_string()), CONTENT).expect("write a raw object");
        leave(&file, id, message, &targets);
        uploads.push((id, targets));
    }
    enqueue(&file, "report", &read("report-upload-started"));
    drop(file);
    site.restart().await;
    for (id, targets) in &uploads {
        for target in targets {
            site.delivery(target, &id.to_string()).await;
            let files = site.files(target);
            let of_upload = |path: &&PathBuf| path.to_string_lossy().contains(&id.to_string());
            let path = files.iter().find(of_upload).expect("a delivered file");
            assert_eq!(fs::read(path).expect("read a copy"), CONTENT);
        }
        let reports = site.reports_of(&id.to_string(), targets.len()).await;
        let mut about: Vec<_> = reports.iter().filter_map(destination).collect();
        about.sort_unstable();
        assert_eq!(&about, targets);
    }
    // The older one may go on beside it for a while.
    let beside = UploadId::random().to_string();
    let file = Connection::open(site.data().join("ferry.db")).expect("open the database");
    enqueue(&file, "report", &read("report-upload-started").replace(ID, &beside));
    drop(file);
    for id in [ID, &beside] {
        let reports = site.reports_of(id, 1).await;
        assert_eq!(action(&reports[0]), "upload-started");
    }
    let dead = site.metrics(Part::Up).await.count("ferry_dead_letters_total", &[]);
    assert_eq!(dead, 0);
    eventually("the queues are empty", LIMIT, || async {
        let (_, bus) = site.database();
        let depth = bus.depth(Queue::Copy).await.expect("count messages");
        (depth.ready + depth.in_flight + depth.delayed == 0).then_some(())
    })
    .await;
}

/// Puts the golden records of a finished upload, as that of `id`, and the golden `message` about it into a database.
fn leave(file: &Connection, id: UploadId, message: &str, targets: &[&str]) {
    let of_id = |name: &str| read(name).replace(ID, &id.to_string());
    let key = id.as_bytes();
    file.execute(
        "INSERT INTO uploads (id, seq, state, open, outbox, changed_at, body) VALUES (?1, 6, 'published', 0, 0, ?2, ?3)",
        params![key, time(60).as_millisecond(), of_id("upload-published")],
    )
    .expect("insert an upload");
    for target in targets {
        file.execute(
            "INSERT INTO deliveries (upload, target, seq, state, open, outbox, body)
             VALUES (?1, ?2, 1, 'pending', 1, 0, ?3)",
            params![key, target, of_id(&format!("delivery-pending-{target}"))],
        )
        .expect("insert a delivery");
    }
    enqueue(file, "copy", &of_id(message));
}

fn enqueue(file: &Connection, queue: &str, message: &str) {
    file.execute(
        "INSERT INTO bus (queue, state, due, delay, body) VALUES (?1, 0, 0, 0, ?2)",
        [queue, message],
    )
    .expect("put a message on the bus");
}
