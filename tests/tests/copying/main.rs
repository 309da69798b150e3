//! What happens to a copy on its way: stopped, killed, altered, its source gone, its name taken, asked for twice, one
//! of a great many. Promises 2 to 4 and 6 of DESIGN.md; core.md §5, §6; faults.md rows 38, 50 to 52, 54, 55, 62 to 64,
//! 67.

mod altered;
mod ended;
mod large;
mod many;
mod settled;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use shared::records::Records;
use shared::upload::{DeliveryRecord, UploadId};
use tests::client::Upload;
use tests::reports::{action, destination};
use tests::site::{LIMIT, Part, Site, TARGETS};
use tests::wait::eventually;

const MIB: usize = 1024 * 1024;
const COPIER: Part = Part::Copier(0);
const FAILPOINTS: &str = "FERRY_FAILPOINTS";

async fn send(site: &Site, content: &[u8]) -> Upload {
    let upload = site.client().create(content.len(), &[("filename", "x.bin")]).await;
    upload.append(0, content).await;
    upload
}

fn id_of(upload: &Upload) -> UploadId {
    upload.id.parse().expect("an upload's id")
}

async fn deliveries(records: &dyn Records, upload: &Upload) -> Vec<DeliveryRecord> {
    records.deliveries(id_of(upload)).await.expect("read deliveries")
}

/// The deliveries once all of them are final.
async fn outcomes(records: &dyn Records, upload: &Upload) -> Vec<DeliveryRecord> {
    eventually("all deliveries to be final", LIMIT, || async {
        let found = deliveries(records, upload).await;
        (found.len() == TARGETS.len() && found.iter().all(|delivery| delivery.state.is_final())).then_some(found)
    })
    .await
}

/// The final reports of an upload, one for each target, all with this status.
async fn final_reports(site: &Site, upload: &Upload, status: &str) -> Vec<Value> {
    let found = eventually("final reports", LIMIT, || async {
        let mut reports = site.reports();
        reports.retain(|report| report["upload_id"] == upload.id.as_str() && action(report) == "blob-file-copy");
        (reports.len() >= TARGETS.len()).then_some(reports)
    })
    .await;
    let mut about: Vec<_> = found.iter().filter_map(destination).collect();
    about.sort_unstable();
    assert_eq!(about, TARGETS, "one for each target: {found:#?}");
    for report in &found {
        assert_eq!(report["stage_info"]["status"], status, "{report}");
    }
    found
}

fn len_of(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |found| found.len())
}

/// The one staged file of `target`, once it has at least this many bytes.
async fn staged(site: &Site, target: &str, least: u64) -> PathBuf {
    eventually("a copy to be on its way", LIMIT, || async {
        site.staged(target).into_iter().find(|path| len_of(path) >= least)
    })
    .await
}

/// Most memory that a process ever had, in MiB: `VmHWM`.
fn peak_mib(site: &Site, part: Part) -> u64 {
    let path = format!("/proc/{}/status", site.pid(part));
    let text = fs::read_to_string(path).expect("read about a process that runs");
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    let kib: u64 = number.and_then(|number| number.parse().ok()).expect("a number of KiB");
    kib / 1024
}
