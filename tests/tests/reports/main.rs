//! Reports on their way to a processing-status API with faults, through the real `ferry up`.
//! Promises 2 and 5 of DESIGN.md; faults.md rows 70–73; core.md §7; reports.md §5.

mod answers;
mod copiers;
mod outage;
mod status;

use std::time::Duration;

use serde_json::Value;
use tests::client::Upload;
use tests::psapi::PsApi;
use tests::reports::action;
use tests::site::{LIMIT, Site, SiteBuilder};
use tests::wait::eventually;

/// Reports of a small upload.
const REPORTS: usize = 7;

/// A site that reports to `api` and to its file, and tries again soon.
fn site(api: &PsApi) -> SiteBuilder {
    Site::build()
        .env("REPORT_SINKS", "graphql,jsonl")
        .env("REPORT_GRAPHQL_URL", &api.url())
        .env("REPORT_TIMEOUT", "1s")
        .env("RETRY_DELAYS", "100ms,200ms,500ms")
}

async fn upload(site: &Site, bytes: usize) -> Upload {
    let upload = site.client().create(bytes, &[("filename", "report.csv")]).await;
    upload.append(0, &vec![7; bytes]).await;
    upload
}

/// The API's accepted reports of `upload`, once the reports of a whole upload are there.
async fn all_at_api(api: &PsApi, upload: &Upload) -> Vec<Value> {
    eventually("all reports at the API", LIMIT, || async {
        let accepted = api.store().accepted(&upload.id);
        let mut kinds: Vec<String> = accepted.iter().filter_map(kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        // The first status is left out when a newer one has overtaken it.
        (kinds.len() >= REPORTS - 1).then_some(accepted)
    })
    .await
}

/// What a report is counted by; `None`: a status that need not come.
fn kind(report: &Value) -> Option<String> {
    let content = &report["content"];
    match action(report) {
        "upload-status" => (content["offset"] == content["size"]).then(|| "last status".to_owned()),
        "blob-file-copy" => Some(format!("copy to {}", content["destination_name"])),
        other => Some(other.to_owned()),
    }
}

/// The sum of the samples of a metric whose line begins so.
async fn metric(site: &Site, begin: &str) -> f64 {
    let answer = site.client().send("GET", &site.url("/metrics"), &[], "").await;
    let text = answer.expect("an answer").expect(200).text();
    let lines = text.lines().filter(|line| line.starts_with(begin));
    lines
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}

async fn metric_is(site: &Site, begin: &str, wanted: impl Fn(f64) -> bool) {
    eventually(begin, LIMIT, || async {
        wanted(metric(site, begin).await).then_some(())
    })
    .await;
}

/// In the order of arrival no status is older than one before it.
fn assert_statuses_in_order(api: &PsApi, upload: &Upload) {
    let offsets = api.store().offsets(&upload.id);
    assert!(offsets.is_sorted(), "{offsets:?}");
}

/// Longer than one try may take.
const MORE_THAN_A_TRY: Duration = Duration::from_secs(2);
