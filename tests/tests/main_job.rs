//! The main job, whole: a file goes in over TUS and is in `dex` and `edav`, equal to the byte and reported.
//! Promises 2, 3 and 4 of DESIGN.md; spec: tus.md, http.md §1, reports.md; faults.md rows 3, 6, 25.

use std::fs;

use jiff::Timestamp;
use reqwest::Body;
use serde_json::{Value, json};
use tests::client::{OFFSET_OCTETS, Upload, encode};
use tests::pattern::{assert_same, pattern};
use tests::raw::SlowPatch;
use tests::reports::{action, destination};
use tests::site::{LIMIT, Site, TARGETS};
use tests::wait::eventually;

const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn a_file_is_in_both_targets_and_every_step_is_reported() {
    let site = Site::start().await;
    let content = pattern(1, 3 * MIB + 17);
    let manifest = [
        ("filename", "dex-smoke test.tar.gz"),
        ("data_stream_id", "dextesting"),
        ("data_stream_route", "testevent1"),
        ("sender_id", "test sender"),
        ("jurisdiction", "test-jurisdiction"),
    ];
    let before = Timestamp::now();
    let upload = site.client().create(content.len(), &manifest).await;

    let info = upload.info().await;
    assert_eq!(info["upload_status"]["status"], "Initiated", "{info}");
    assert_eq!(info["file_info"]["size_bytes"], 0, "{info}");
    assert_eq!(info["deliveries"], Value::Null, "{info}");
    let (head, rest) = content.split_at(MIB);
    let offset = upload.append(0, head).await;
    let info = upload.info().await;
    assert_eq!(info["upload_status"]["status"], "In Progress", "{info}");
    assert_eq!(info["file_info"]["size_bytes"], MIB, "{info}");
    assert!(site.files("dex").is_empty(), "nothing is delivered before it is whole");
    upload.append(offset, rest).await;
    site.expect_delivered(&upload, &content).await;

    let info = upload.info().await;
    for (key, value) in manifest {
        assert_eq!(info["manifest"][key], value);
    }
    assert_eq!(info["manifest"]["upload_id"], upload.id.as_str());
    let created = time(&info["manifest"]["dex_ingest_datetime"]);
    assert!(before <= created && created <= Timestamp::now(), "{info}");
    let deliveries = info["deliveries"].as_array().expect("deliveries");
    assert_eq!(deliveries.len(), 2, "one entry per target");
    let day = created
        .to_zoned(jiff::tz::TimeZone::UTC)
        .strftime("%Y/%m/%d")
        .to_string();
    for delivery in deliveries {
        let target = delivery["name"].as_str().expect("a name");
        let name = format!("{day}/dex-smoke test.tar_{}.gz", upload.id);
        let expected = site.data().join(target).join(name);
        assert_eq!(delivery["location"], expected.display().to_string());
        assert_eq!(delivery["issues"], Value::Null);
        assert!(time(&delivery["delivered_at"]) >= created, "{delivery}");
        assert_eq!(site.files(target), [expected], "that file and no other");
        assert!(site.staged(target).is_empty(), "nothing unfinished is left");
    }
    let raw = site.data().join("raw").join(&upload.id);
    assert_same("raw", &fs::read(raw).expect("read the raw object"), &content);
    assert_reports(&site, &upload, &content, &manifest, &info).await;
}

/// Exactly the reports of reports.md §1, each envelope by §2 and content by §3.
async fn assert_reports(site: &Site, upload: &Upload, content: &[u8], manifest: &[(&str, &str)], info: &Value) {
    let all = eventually("both copy reports", LIMIT, || async {
        let reports = site.reports();
        let copies = reports
            .iter()
            .filter(|report| action(report) == "blob-file-copy")
            .count();
        let last = reports
            .iter()
            .any(|report| report["content"]["offset"] == content.len());
        (copies >= 2 && last).then_some(reports)
    })
    .await;
    let is_between = |report: &Value| {
        let offset = &report["content"]["offset"];
        action(report) == "upload-status" && *offset != 0 && *offset != content.len()
    };
    let (between, reports): (Vec<Value>, Vec<Value>) = all.iter().cloned().partition(is_between);
    assert!(between.len() <= 1, "one between the first and the final: {between:#?}");
    let actions: Vec<&str> = reports.iter().map(action).collect();
    let expected = [
        "metadata-transform",
        "upload-started",
        "upload-status",
        "upload-completed",
        "upload-status",
        "blob-file-copy",
        "blob-file-copy",
    ];
    assert_eq!(actions, expected);
    for line in site.report_lines() {
        assert_envelope(&line, upload, manifest, info);
    }
    let [transform, started, first, completed, last, copies @ ..] = &reports[..] else {
        unreachable!("seven, as compared above")
    };
    let transforms = json!([
        { "action": "update", "field": "ID", "value": upload.id },
        { "action": "append", "field": "dex_ingest_datetime", "value": info["manifest"]["dex_ingest_datetime"] },
        { "action": "append", "field": "upload_id", "value": upload.id },
    ]);
    assert_eq!(transform["content"]["transforms"], transforms);
    assert_eq!(started["content"]["status"], "SUCCESS");
    assert_eq!(completed["content"]["status"], "SUCCESS");
    for (status, offset) in [(first, 0), (last, content.len())] {
        let expected = json!({
            "content_schema_name": "upload-status",
            "content_schema_version": "1.0.0",
            "filename": "dex-smoke test.tar.gz",
            "tguid": upload.id,
            "offset": offset,
            "size": content.len(),
        });
        assert_eq!(status["content"], expected);
    }
    let mut destinations: Vec<&str> = copies.iter().filter_map(destination).collect();
    destinations.sort_unstable();
    assert_eq!(destinations, TARGETS, "one SUCCESS per target");
    for copy in copies {
        let deliveries = info["deliveries"].as_array().expect("deliveries");
        let delivery = deliveries
            .iter()
            .find(|delivery| delivery["name"] == copy["content"]["destination_name"])
            .expect("the report's target is on /info");
        assert_eq!(copy["content"]["file_destination_blob_url"], delivery["location"]);
        let raw = site.data().join("raw").join(&upload.id).display().to_string();
        assert_eq!(copy["content"]["file_source_blob_url"], raw);
    }
}

fn assert_envelope(line: &str, upload: &Upload, manifest: &[(&str, &str)], info: &Value) {
    let report = tests::reports::parse(line);
    let keys = [
        "report_schema_version",
        "upload_id",
        "sender_id",
        "data_stream_id",
        "data_stream_route",
        "jurisdiction",
        "dex_ingest_datetime",
        "content_type",
        "disposition_type",
        "stage_info",
        "content",
    ];
    assert_keys(&report, &keys);
    let places: Vec<_> = keys.iter().map(|key| line.find(&format!("\"{key}\":"))).collect();
    assert!(places.is_sorted(), "the order of reports.md §2: {line}");
    assert_eq!(report["report_schema_version"], "1.0.0");
    assert_eq!(report["upload_id"], upload.id.as_str());
    for (key, value) in &manifest[1..] {
        assert_eq!(report[*key], *value, "{line}");
    }
    assert_eq!(report["dex_ingest_datetime"], info["manifest"]["dex_ingest_datetime"]);
    assert_eq!(report["content_type"], "application/json");
    let replaces = action(&report) == "upload-status";
    assert_eq!(report["disposition_type"], if replaces { "replace" } else { "add" });

    let stage = &report["stage_info"];
    let keys = [
        "service",
        "action",
        "version",
        "status",
        "issues",
        "start_processing_time",
        "end_processing_time",
    ];
    assert_keys(stage, &keys);
    assert_eq!(stage["service"], "UPLOAD API");
    assert_eq!(stage["status"], "SUCCESS");
    assert_eq!(stage["issues"], Value::Null);
    let version = stage["version"].as_str().expect("a version");
    assert!(version.contains('_'), "<release>_<commit>: {version}");
    let (start, end) = (
        time(&stage["start_processing_time"]),
        time(&stage["end_processing_time"]),
    );
    assert!(start <= end && end <= Timestamp::now(), "{line}");
    assert_eq!(report["content"]["content_schema_name"], stage["action"]);
    assert_eq!(report["content"]["content_schema_version"], "1.0.0");
}

fn assert_keys(object: &Value, expected: &[&str]) {
    let mut found: Vec<&String> = object.as_object().expect("an object").keys().collect();
    let mut expected = expected.to_vec();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected, "{object}");
}

/// An RFC 3339 instant in UTC, as the status API's parser wants it (reports.md §4).
fn time(value: &Value) -> Timestamp {
    let text = value.as_str().unwrap_or_else(|| panic!("no time: {value}"));
    assert!(text.ends_with('Z'), "{text} is not written in UTC");
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Sizes at the borders of buffers and parts, and none at all (faults.md row 25).
#[tokio::test]
async fn files_of_every_size_arrive_whole() {
    let site = Site::start().await;
    let client = site.client();
    for (seed, size) in (0..).zip([0, 1, MIB - 1, MIB, MIB + 1, 9 * MIB + 5]) {
        let content = pattern(seed, size);
        let upload = client.create(size, &[("filename", "size.bin")]).await;
        if size > 0 {
            upload.append(0, &content).await;
        }
        assert_eq!(upload.offset().await, u64::try_from(size).expect("a size"));
        site.expect_delivered(&upload, &content).await;
    }
}

#[tokio::test]
async fn a_file_sent_in_many_pieces_of_odd_sizes_arrives_whole() {
    let site = Site::start().await;
    let content = pattern(2, MIB + 333);
    let upload = site.client().create(content.len(), &[]).await;
    upload.append_in_pieces(&content, 10_007).await;
    site.expect_delivered(&upload, &content).await;
}

/// HEAD tells what the sender told: length, metadata byte for byte, and that nobody may keep the answer.
#[tokio::test]
async fn head_tells_what_is_known_of_an_upload() {
    let site = Site::start().await;
    let client = site.client();
    // Odd but allowed: a space behind a comma, a key alone, bytes that are no UTF-8.
    let metadata = "filename eC5iaW4=, is_confidential,raw /wD+";
    let headers = [("Upload-Length", "10"), ("Upload-Metadata", metadata)];
    let created = client.tus("POST", client.collection(), &headers, "").await.expect(201);
    let upload = client.upload(&created);
    upload.append(0, b"1234").await;
    let head = upload.head().await.expect(200);
    assert_eq!(head.number("Upload-Offset"), Some(4));
    assert_eq!(head.number("Upload-Length"), Some(10));
    assert_eq!(head.header("Upload-Metadata"), Some(metadata));
    assert_eq!(head.header("Cache-Control"), Some("no-store"));
    assert_eq!(head.header("Tus-Resumable"), Some("1.0.0"));
    assert_eq!(head.header("Upload-Defer-Length"), None);
}

#[tokio::test]
async fn a_length_told_late_completes_the_upload() {
    let site = Site::start().await;
    let content = pattern(3, 100_000);
    let length = content.len().to_string();
    let upload = site.client().create_deferred(&[("filename", "late.txt")]).await;
    let head = upload.head().await.expect(200);
    assert_eq!(head.header("Upload-Defer-Length"), Some("1"));
    assert_eq!(head.header("Upload-Length"), None);
    let offset = upload.append(0, &content[..60_000]).await;
    let headers = [("Upload-Length", length.as_str())];
    let answer = upload
        .patch_with(offset, &headers, &content[60_000..])
        .await
        .expect(204);
    assert_eq!(answer.number("Upload-Offset"), Some(100_000));
    let head = upload.head().await.expect(200);
    assert_eq!(head.number("Upload-Length"), Some(100_000));
    assert_eq!(head.header("Upload-Defer-Length"), None);
    site.expect_delivered(&upload, &content).await;

    // Told with nothing left to send: the upload is complete all the same.
    let upload = site.client().create_deferred(&[]).await;
    upload.append(0, &content).await;
    upload.patch_with(100_000, &headers, b"").await.expect(204);
    site.expect_delivered(&upload, &content).await;
}

#[tokio::test]
async fn an_upload_may_bring_its_bytes_along() {
    let site = Site::start().await;
    let client = site.client();
    let content = pattern(4, 700_000);
    let metadata = encode(&[("filename", "whole.bin")]);
    for sent in [700_000, 300_000] {
        let headers = [
            ("Upload-Length", "700000"),
            ("Upload-Metadata", metadata.as_str()),
            ("Content-Type", OFFSET_OCTETS),
        ];
        let body = content[..sent].to_vec();
        let created = client
            .tus("POST", client.collection(), &headers, body)
            .await
            .expect(201);
        let offset = created.number("Upload-Offset").expect("an offset, because a body came");
        assert_eq!(offset, u64::try_from(sent).expect("a size"));
        let upload = client.upload(&created);
        if sent < content.len() {
            assert_eq!(upload.offset().await, offset);
            upload.append(offset, &content[sent..]).await;
        }
        site.expect_delivered(&upload, &content).await;
    }
}

/// The collection without its last slash, PATCH in chunks, PATCH by POST: what real clients and proxies do.
#[tokio::test]
async fn the_ways_of_real_clients_work() {
    let site = Site::start().await;
    let client = site.client();
    let headers = [("Upload-Length", "6")];
    let created = client
        .tus("POST", &client.url("/files"), &headers, "")
        .await
        .expect(201);
    let upload = client.upload(&created);
    let stream = futures_util::stream::iter(["ab", "cd"].map(Ok::<_, std::io::Error>));
    let headers = [("Upload-Offset", "0"), ("Content-Type", OFFSET_OCTETS)];
    let answer = client.tus("PATCH", &upload.url, &headers, Body::wrap_stream(stream));
    assert_eq!(answer.await.expect(204).number("Upload-Offset"), Some(4));
    let headers = [
        ("Upload-Offset", "4"),
        ("Content-Type", OFFSET_OCTETS),
        ("X-HTTP-Method-Override", "PATCH"),
    ];
    let answer = client.tus("POST", &upload.url, &headers, "ef").await.expect(204);
    assert_eq!(answer.number("Upload-Offset"), Some(6));
    site.expect_delivered(&upload, b"abcdef").await;
}

/// A connection cut in the middle, with either framing, loses nothing that came (faults.md row 6).
#[tokio::test]
async fn an_upload_cut_in_the_middle_resumes_where_it_was() {
    let site = Site::start().await;
    let content = pattern(5, 2 * MIB);
    let cut = MIB + 4321;
    for chunked in [false, true] {
        for half_close in [false, true] {
            let upload = site.client().create(content.len(), &[]).await;
            let mut patch = if chunked {
                let mut patch = SlowPatch::begin_chunked(site.addr(), &upload.path(), 0).await;
                let size = format!("{:x}\r\n", content.len());
                patch.send(size.as_bytes()).await.expect("send a chunk's size");
                patch
            } else {
                SlowPatch::begin(site.addr(), &upload.path(), 0, content.len()).await
            };
            patch.send(&content[..cut]).await.expect("send half of a body");
            if half_close {
                patch.half_close().await;
                if let Some(answer) = patch.answer().await {
                    assert_ne!(answer.status, 204, "half a body is not the body");
                }
            }
            drop(patch);
            let stored = u64::try_from(cut).expect("a size");
            eventually("every byte that came is kept", LIMIT, || async {
                (upload.offset().await == stored).then_some(())
            })
            .await;
            upload.append(stored, &content[cut..]).await;
            site.expect_delivered(&upload, &content).await;
        }
    }
}

/// A sender that missed the last answer repeats itself: it is told 204, and nothing happens twice (faults.md row 3).
#[tokio::test]
async fn a_repeated_last_patch_is_answered_and_finishes_nothing_twice() {
    let site = Site::start().await;
    let content = pattern(6, 5_000);
    let upload = site.client().create(content.len(), &[]).await;
    upload.append(0, &content).await;
    for _ in 0..3 {
        assert_eq!(upload.append(5_000, b"").await, 5_000);
    }
    site.expect_delivered(&upload, &content).await;
    assert_eq!(upload.append(5_000, b"").await, 5_000, "also after its delivery");
    let reports = site.reports_of(&upload.id, 7).await;
    let completed = reports
        .iter()
        .filter(|report| action(report) == "upload-completed")
        .count();
    assert_eq!(completed, 1);
    for target in TARGETS {
        assert_eq!(site.files(target).len(), 1);
    }
}

#[tokio::test]
async fn an_unfinished_upload_that_is_deleted_is_gone() {
    let site = Site::start().await;
    let content = pattern(7, 100_000);
    let client = site.client();
    let upload = client.create(content.len(), &[]).await;
    upload.append(0, &content[..50_000]).await;
    assert_eq!(upload.delete().await.expect(204).header("Tus-Resumable"), Some("1.0.0"));
    assert_gone(&site, &upload).await;
    eventually("its bytes are removed", LIMIT, || async {
        (site.staged("raw").is_empty() && site.files("raw").is_empty()).then_some(())
    })
    .await;
    // A later one is served, and is the only one that is delivered.
    let other = client.create(content.len(), &[]).await;
    other.append(0, &content).await;
    site.expect_delivered(&other, &content).await;
    for target in TARGETS {
        assert_eq!(site.files(target).len(), 1);
    }
}

/// What was announced is delivered first; then the raw object goes too (tus.md, "DELETE"; faults.md row 67).
#[tokio::test]
async fn a_finished_upload_that_is_deleted_is_delivered_and_then_removed() {
    let site = Site::start().await;
    let content = pattern(8, 3 * MIB);
    let upload = site.client().create(content.len(), &[("filename", "gone.bin")]).await;
    upload.append(0, &content).await;
    upload.delete().await.expect(204);
    assert_gone(&site, &upload).await;
    for target in TARGETS {
        let path = eventually("the delivery", LIMIT, || async { site.files(target).pop() }).await;
        assert!(path.display().to_string().ends_with(&format!("gone_{}.bin", upload.id)));
        assert_same(target, &fs::read(&path).expect("read the delivered file"), &content);
    }
    let raw = site.data().join("raw").join(&upload.id);
    eventually("the raw object is removed", LIMIT, || async {
        (!raw.exists()).then_some(())
    })
    .await;
    assert_gone(&site, &upload).await;
}

async fn assert_gone(site: &Site, upload: &Upload) {
    for answer in [upload.head().await, upload.patch(0, b"x").await, upload.delete().await] {
        assert!(matches!(answer.status, 404 | 410), "{answer:?}");
    }
    let url = site.url(&format!("/info/{}", upload.id));
    let answer = site.client().send("GET", &url, &[], "").await.expect("an answer");
    assert_eq!(answer.expect(404).text(), "error getting file manifest\n");
}
