//! A target that cannot be used: the other one has every file at once, `/info` says what is wrong and when the next try
//! is, nothing is lost, and when the fault ends the file arrives by itself. Promises 2 and 5 of DESIGN.md; core.md §5,
//! §6; faults.md rows 11, 57 and 59, and its rule 7.
#![cfg(target_os = "linux")]

#[path = "targets/folder.rs"]
mod folder;
#[path = "targets/given_up.rs"]
mod given_up;

use jiff::Timestamp;
use serde_json::Value;
use tests::client::Upload;
use tests::pattern::{assert_same, pattern};
use tests::reports::{action, destination};
use tests::site::{LIMIT, Part, Site};
use tests::wait::eventually;

/// Sends a file, and sees that the target `dex` has it at once whatever is wrong with `edav`.
async fn sent(site: &Site, seed: u64) -> (Upload, Vec<u8>) {
    let content = pattern(seed, 300_000);
    let upload = site.client().create(content.len(), &[("filename", "x.bin")]).await;
    upload.append(0, &content).await;
    assert_same("dex", &site.delivered("dex", &upload.id).await, &content);
    (upload, content)
}

/// What `/info` says of `edav` once it is as `wanted`.
async fn edav(upload: &Upload, wanted: impl Fn(&Value) -> bool) -> Value {
    eventually("edav to be as wanted", LIMIT, || async {
        let info = upload.info().await;
        let deliveries = info["deliveries"].as_array()?;
        let edav = deliveries.iter().find(|delivery| delivery["name"] == "edav")?;
        wanted(edav).then(|| edav.clone())
    })
    .await
}

/// Sees that `edav` is tried twice for `reason`, which `/info` tells with the time of the next try, and that this uses
/// up no attempt and leaves uploads and the other target alone.
async fn waits(site: &Site, upload: &Upload, reason: &str, class: &str) {
    let waiting = |edav: &Value| edav["status"] == "IN PROGRESS" && edav["next_attempt_at"].is_string();
    let first = edav(upload, waiting).await;
    let text = first["issues"][0]["message"].as_str().expect("what is wrong");
    assert!(text.contains(reason) && text.contains("edav"), "{first}");
    let next = first["next_attempt_at"].as_str().expect("a time");
    let next: Timestamp = next.parse().expect("RFC 3339");
    assert!(next.duration_since(Timestamp::now()).as_secs() <= 3, "{first}");

    let again = edav(upload, |edav| {
        waiting(edav) && edav["next_attempt_at"] != first["next_attempt_at"]
    })
    .await;
    assert_eq!(again["attempts"], 0, "waiting is no try: {again}");
    // Counted a moment after it is recorded.
    let metrics = eventually("two failed tries", LIMIT, || async {
        let metrics = site.metrics(Part::Up).await;
        let failed = metrics.count("ferry_copy_retries_total", &[("class", class)]);
        (failed >= 2).then_some(metrics)
    })
    .await;
    assert_eq!(metrics.count("ferry_dead_letters_total", &[]), 0);
    assert_eq!(health(site).await, "DEGRADED", "uploads are taken all the same");
}

/// The status of all together on `/health`, which must be 200: a target never makes ingest unready (rule 6).
async fn health(site: &Site) -> String {
    let answer = site.client().send("GET", &site.url("/health"), &[], "").await;
    let answer = answer.expect("an answer").expect(200);
    let health: Value = serde_json::from_slice(&answer.body).expect("JSON");
    health["status"].as_str().expect("a status").to_owned()
}

/// Sees that the file arrives in `edav` by itself, with one report for each target.
async fn arrives(site: &Site, upload: &Upload, content: &[u8]) {
    assert_same("edav", &site.delivered("edav", &upload.id).await, content);
    eventually("both reports", LIMIT, || async {
        let told = ["dex", "edav"].map(|target| statuses(site, upload, target));
        (told == [vec!["SUCCESS".to_owned()], vec!["SUCCESS".to_owned()]]).then_some(())
    })
    .await;
    assert!(site.staged("edav").is_empty());
    eventually("all is well", LIMIT, || async {
        (health(site).await == "UP").then_some(())
    })
    .await;
}

/// Statuses of the final reports about `target`.
fn statuses(site: &Site, upload: &Upload, target: &str) -> Vec<String> {
    let reports = site.reports().into_iter();
    reports
        .filter(|report| report["upload_id"] == upload.id.as_str() && action(report) == "blob-file-copy")
        .filter(|report| destination(report) == Some(target))
        .map(|report| report["stage_info"]["status"].as_str().expect("a status").to_owned())
        .collect()
}
