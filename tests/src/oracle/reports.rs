//! The reports that are owed, and those that came. Spec: core.md §7, "One report"; reports.md §1.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use serde_json::Value;

use super::Promise;
use super::verdict::LIMIT;
use crate::reports::{action, destination, parse};
use crate::site::{Site, TARGETS};
use crate::wait::eventually;

/// Reports that may be on their way at a kill: `CONCURRENCY`.
const IN_FLIGHT: usize = 16;

/// What a report is counted by: (upload, action, target), the run being 1 here, and for the status its offset.
type Key = (String, String, String);

/// How the reports came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Came {
    pub(super) different: usize,
    pub(super) repeats: usize,
    pub(super) torn: usize,
}

/// Waits until each report that `promises` owe is there; repeats are byte-identical, and no more than what `kills`
/// can repeat.
///
/// # Panics
/// One is missing, wrong, repeated too often, or overtaken.
pub(super) async fn expect(site: &Site, promises: &[Promise], kills: usize) -> Came {
    let owed: BTreeSet<Key> = promises.iter().flat_map(keys_owed).collect();
    let begin = Instant::now();
    let (reports, torn, missing) = eventually("all reports", LIMIT * 2, || async {
        let (reports, torn) = by_key(site);
        let missing: Vec<Key> = owed.iter().filter(|key| !reports.contains_key(key)).cloned().collect();
        // Given up before the wait itself is, so that the failure says what is missing.
        (missing.is_empty() || begin.elapsed() > LIMIT).then_some((reports, torn, missing))
    })
    .await;
    let some = &missing[..missing.len().min(10)];
    assert!(missing.is_empty(), "{} reports are missing, {some:?} …", missing.len());
    let mut repeats = 0;
    for (key, lines) in &reports {
        let different: BTreeSet<&String> = lines.iter().collect();
        // Of an empty file the first status and the final one tell the same offset.
        let empty = key.1 == "upload-status" && lines[0].contains("\"size\":0");
        let allowed = if empty { 2 } else { 1 };
        assert!(different.len() <= allowed, "two contents of {key:?}: {different:#?}");
        repeats += lines.len() - different.len();
        for line in different {
            assert_eq!(parse(line)["stage_info"]["status"], "SUCCESS", "{line}");
        }
    }
    expect_no_older_status_behind_a_newer(site);
    assert!(repeats <= kills * IN_FLIGHT, "{repeats} repeats by {kills} kills");
    assert!(torn <= kills, "{torn} torn lines by {kills} kills");
    Came {
        different: reports.len(),
        repeats,
        torn,
    }
}

/// The first status is not among them: one that a newer one has overtaken is dropped (reports.md §1).
fn keys_owed(promise: &Promise) -> Vec<Key> {
    let mut owed = vec![
        ("metadata-transform", ""),
        ("upload-started", ""),
        ("upload-completed", ""),
    ];
    owed.extend(TARGETS.map(|target| ("blob-file-copy", target)));
    if promise.file.len > 0 {
        owed.push(("upload-status", "end"));
    }
    owed.into_iter()
        .map(|(action, about)| (promise.upload.id.clone(), action.to_owned(), about.to_owned()))
        .collect()
}

/// `None`: a status in between, which may be lost or repeated.
fn key(report: &Value) -> Option<Key> {
    let about = match action(report) {
        "upload-status" => {
            let (offset, size) = (&report["content"]["offset"], &report["content"]["size"]);
            if *offset == 0 {
                "begin".to_owned()
            } else if offset == size {
                "end".to_owned()
            } else {
                return None;
            }
        }
        _ => destination(report).unwrap_or_default().to_owned(),
    };
    let id = report["upload_id"].as_str().expect("a report of an upload");
    Some((id.to_owned(), action(report).to_owned(), about))
}

/// The API replaces one status by the next that comes: after an older one an upload would look unfinished for ever
/// (known-faults.md 30).
fn expect_no_older_status_behind_a_newer(site: &Site) {
    let mut newest: HashMap<String, u64> = HashMap::new();
    for line in site.report_lines() {
        let Ok(report) = serde_json::from_str::<Value>(&line) else {
            continue;
        };
        if action(&report) == "upload-status" {
            let id = report["upload_id"].as_str().expect("a report of an upload");
            let offset = report["content"]["offset"].as_u64().expect("an offset");
            let before = newest.insert(id.to_owned(), offset).unwrap_or(0);
            assert!(before <= offset, "{id}: a status of {before}, and then one of {offset}");
        }
    }
}

/// All lines by what they are about, and how many a kill tore.
fn by_key(site: &Site) -> (BTreeMap<Key, Vec<String>>, usize) {
    let mut reports: BTreeMap<Key, Vec<String>> = BTreeMap::new();
    let mut torn = 0;
    for line in site.report_lines() {
        match serde_json::from_str::<Value>(&line) {
            Ok(report) => {
                if let Some(key) = key(&report) {
                    reports.entry(key).or_default().push(line);
                }
            }
            Err(_) => torn += 1,
        }
    }
    (reports, torn)
}
