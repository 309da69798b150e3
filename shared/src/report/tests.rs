//! Reports against the examples of reports.md.

use super::*;
use crate::manifest::add_keys;
use crate::message::ReportWork;
use crate::store::BlobName;

/// First example of reports.md §3.
const STATUS: &str = r#"{"report_schema_version":"1.0.0","upload_id":"3f0c9a52-6f0e-4f1b-9d3a-2b7c1e5a8d90","sender_id":"test sender","data_stream_id":"dextesting","data_stream_route":"testevent1","jurisdiction":"test-jurisdiction","dex_ingest_datetime":"2024-03-07T05:09:08.123456789Z","content_type":"application/json","disposition_type":"replace","stage_info":{"service":"UPLOAD API","action":"upload-status","version":"1.0.0_abc1234","status":"SUCCESS","issues":null,"start_processing_time":"2024-03-07T05:09:09.5Z","end_processing_time":"2024-03-07T05:09:09.5Z"},"content":{"content_schema_name":"upload-status","content_schema_version":"1.0.0","filename":"dex-smoke-test.csv","tguid":"3f0c9a52-6f0e-4f1b-9d3a-2b7c1e5a8d90","offset":4194304,"size":10485760}}"#;

fn id() -> UploadId {
    "3f0c9a52-6f0e-4f1b-9d3a-2b7c1e5a8d90".parse().unwrap()
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn manifest() -> Manifest {
    let mut manifest: Manifest = [
        ("data_stream_id", "dextesting"),
        ("data_stream_route", "testevent1"),
        ("sender_id", "test sender"),
        ("data_producer_id", "test-producer-id"),
        ("jurisdiction", "test-jurisdiction"),
        ("received_filename", "dex-smoke-test.csv"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    add_keys(&mut manifest, id(), time("2024-03-07T05:09:08.123456789Z"));
    manifest
}

pub(super) fn one_of_each() -> Vec<Report> {
    let (manifest, at) = (manifest(), time("2024-03-07T05:09:09.5Z"));
    let to = ResolvedTarget {
        target: "edav".into(),
        object: BlobName::new("2024/03/07/dex-smoke-test.csv").unwrap(),
        location: "https://edav.example/upload/2024/03/07/dex-smoke-test.csv".into(),
    };
    let issue = Issue {
        level: Level::Error,
        message: "no\nspace".into(),
    };
    let transforms = add_keys(&mut manifest.clone(), id(), at);
    let times = Times::at(at);
    let source = || "https://raw.example/raw/3f0c9a52-6f0e-4f1b-9d3a-2b7c1e5a8d90".to_owned();
    vec![
        Report::metadata_transform(id(), &manifest, transforms, at),
        Report::upload_started(id(), &manifest, times),
        Report::upload_status(id(), &manifest, 4_194_304, Some(10_485_760), times),
        Report::upload_completed(id(), &manifest, times),
        Report::blob_file_copy(id(), &manifest, source(), &to, Status::Success, vec![], times),
        Report::blob_file_copy(id(), &manifest, source(), &to, Status::Failure, vec![issue], times),
    ]
}

#[test]
fn a_report_is_the_specifications_example_byte_for_byte() {
    let made = one_of_each().remove(2);
    let ours = format!("\"{}\"", build::report_version());
    assert_eq!(made.to_json().replace(&ours, "\"1.0.0_abc1234\""), STATUS);
    let read: Report = serde_json::from_str(STATUS).unwrap();
    assert_eq!(read.to_json(), STATUS);
}

#[test]
fn contents_have_the_fields_of_their_stage_in_order() {
    let contents: Vec<_> = one_of_each()
        .iter()
        .map(|report| serde_json::to_string(&report.content).unwrap())
        .collect();
    assert!(contents[0].starts_with(
        r#"{"content_schema_name":"metadata-transform","content_schema_version":"1.0.0","transforms":[{"action":"update","field":"ID","#
    ));
    assert_eq!(
        contents[1],
        r#"{"content_schema_name":"upload-started","content_schema_version":"1.0.0","status":"SUCCESS"}"#
    );
    assert_eq!(
        contents[3],
        r#"{"content_schema_name":"upload-completed","content_schema_version":"1.0.0","status":"SUCCESS"}"#
    );
    assert_eq!(
        contents[4],
        r#"{"content_schema_name":"blob-file-copy","content_schema_version":"1.0.0","file_source_blob_url":"https://raw.example/raw/3f0c9a52-6f0e-4f1b-9d3a-2b7c1e5a8d90","file_destination_blob_url":"https://edav.example/upload/2024/03/07/dex-smoke-test.csv","destination_name":"edav"}"#
    );
}

#[test]
fn only_a_status_replaces_and_issues_are_null_or_there() {
    let json: Vec<_> = one_of_each().iter().map(|r| serde_json::to_value(r).unwrap()).collect();
    let dispositions: Vec<_> = json.iter().map(|r| r["disposition_type"].as_str().unwrap()).collect();
    assert_eq!(dispositions, ["add", "add", "replace", "add", "add", "add"]);
    for report in &json {
        assert_eq!(report["stage_info"]["action"], report["content"]["content_schema_name"]);
    }
    assert_eq!(json[4]["stage_info"]["issues"], serde_json::Value::Null);
    assert_eq!(json[5]["stage_info"]["status"], "FAILURE");
    assert_eq!(
        json[5]["stage_info"]["issues"],
        serde_json::json!([{ "level": "ERROR", "message": "no\nspace" }])
    );
}

#[test]
fn a_report_that_went_over_the_bus_is_byte_identical() {
    for report in one_of_each() {
        let work = ReportWork {
            sink: "jsonl".into(),
            action: report.action(),
            seq: 1,
            report: report.clone(),
        };
        // The bus holds a `Value`, which sorts its keys.
        let carried = serde_json::to_value(&work).unwrap();
        let read: ReportWork = serde_json::from_str(&carried.to_string()).unwrap();
        assert_eq!(read.report, report);
        assert_eq!(read.report.to_json(), report.to_json());
    }
}

#[test]
fn times_are_utc_with_as_many_digits_as_they_need() {
    for (given, printed) in [
        ("2024-03-07T05:09:08.123456789Z", "2024-03-07T05:09:08.123456789Z"),
        ("2024-03-07T05:09:08.500000000Z", "2024-03-07T05:09:08.5Z"),
        ("2024-03-07T05:09:08.000Z", "2024-03-07T05:09:08Z"),
        ("2024-03-07T07:09:08+02:00", "2024-03-07T05:09:08Z"),
    ] {
        let report = Report::upload_started(id(), &manifest(), Times::at(time(given)));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["stage_info"]["start_processing_time"], printed);
        assert_eq!(json["stage_info"]["end_processing_time"], printed);
    }
}

#[test]
fn a_v1_manifest_is_reported_by_its_own_keys_until_it_is_translated() {
    let mut manifest = Manifest::from([
        ("meta_destination_id".to_owned(), "ndlp".to_owned()),
        ("meta_ext_event".to_owned(), "routineImmunization".to_owned()),
        ("meta_ext_source".to_owned(), "IZGW".to_owned()),
    ]);
    let sender = Sender::of(&manifest);
    assert_eq!(sender.sender_id, "IZGW");
    assert_eq!(sender.data_stream_id, "ndlp");
    assert_eq!(sender.data_stream_route, "routineImmunization");
    assert_eq!(sender.jurisdiction, "");
    manifest.insert("sender_id".to_owned(), String::new());
    assert_eq!(Sender::of(&manifest).sender_id, "", "present counts, even if empty");
}

#[test]
fn a_deferred_length_is_reported_as_0() {
    let report = Report::upload_status(id(), &manifest(), 7, None, Times::at(Timestamp::UNIX_EPOCH));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["content"]["offset"], 7);
    assert_eq!(json["content"]["size"], 0);
}
