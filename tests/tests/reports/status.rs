//! How far an upload is, told while its bytes come.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;
use tests::client::Upload;
use tests::psapi::{Fault, PsApi};
use tests::raw::SlowPatch;
use tests::reports::action;
use tests::site::{LIMIT, Site};
use tests::wait::eventually;

use crate::{all_at_api, assert_statuses_in_order, metric, site};

/// Between two pieces of a slow body.
const PIECE: Duration = Duration::from_millis(150);

/// Sends `pieces` pieces of 10 kB, slowly, and answers the upload's id and how long it took.
async fn slowly(site: &Site, pieces: usize) -> Upload {
    let length = pieces * 10_000;
    let upload = site.client().create(length, &[("filename", "slow.csv")]).await;
    let mut patch = SlowPatch::begin(site.addr(), &upload.path(), 0, length).await;
    let mut pace = tokio::time::interval(PIECE);
    for _ in 0..pieces {
        pace.tick().await;
        patch.send(&[1; 10_000]).await.expect("send a piece");
    }
    assert_eq!(patch.answer().await.expect("an answer").status, 204);
    upload
}

fn statuses(reports: &[Value]) -> Vec<&Value> {
    reports
        .iter()
        .filter(|report| action(report) == "upload-status")
        .collect()
}

fn made_at(report: &Value) -> Timestamp {
    let text = report["stage_info"]["end_processing_time"].as_str().expect("a time");
    text.parse().expect("an instant")
}

/// core.md §7: at most one a second, with rising offsets, the final one last; in every sink.
#[tokio::test]
async fn a_slow_upload_is_told_about_once_a_second_and_last_at_its_end() {
    let api = PsApi::start().await;
    let site = site(&api).start().await;
    let begin = Instant::now();
    let upload = slowly(&site, 36).await;
    let took = usize::try_from(begin.elapsed().as_secs()).expect("a short time");
    let at_api = all_at_api(&api, &upload).await;
    let in_file = eventually("the end in the file", LIMIT, || async {
        let mut reports = site.reports();
        reports.retain(|report| report["upload_id"] == upload.id.as_str());
        let copies = reports
            .iter()
            .filter(|report| action(report) == "blob-file-copy")
            .count();
        (copies == 2).then_some(reports)
    })
    .await;
    for reports in [at_api, in_file] {
        let statuses = statuses(&reports);
        let offsets: Vec<u64> = statuses
            .iter()
            .filter_map(|report| report["content"]["offset"].as_u64())
            .collect();
        assert!(offsets.is_sorted_by(|one, next| one < next), "{offsets:?}");
        assert_eq!((offsets.first(), offsets.last()), (Some(&0), Some(&360_000)));
        // The first, the last, and one for each second in between; fewer only if the machine was busy.
        assert!((5..=took + 3).contains(&offsets.len()), "{took} seconds: {offsets:?}");
        for pair in statuses[..statuses.len() - 1].windows(2) {
            let apart = made_at(pair[1]).duration_since(made_at(pair[0]));
            assert!(apart.as_millis() >= 950, "{apart:?}");
        }
    }
    assert_eq!(api.store().repeats(), 0);
}

/// core.md §7: if it is not known what became of the last one in between, the final one is sent once more.
#[tokio::test]
async fn a_status_without_an_answer_is_made_good_by_a_second_final_one() {
    let api = PsApi::start().await;
    let site = site(&api).start().await;
    api.fail_only(is_in_between);
    api.fail(Some(Fault::Hang));
    let upload = slowly(&site, 16).await;
    let last = |reports: &[Value]| {
        let whole = |report: &&&Value| report["content"]["offset"] == report["content"]["size"];
        statuses(reports).iter().filter(whole).count()
    };
    eventually("the final status twice", LIMIT, || async {
        (last(&api.store().accepted(&upload.id)) == 2).then_some(())
    })
    .await;
    assert_eq!(api.store().repeats(), 1, "byte for byte");
    assert_statuses_in_order(&api, &upload);
}

/// Many uploads and a sink that is slow: one status on its way at a time, nothing waits for it, the final ones last.
#[tokio::test]
async fn many_uploads_do_not_wait_for_a_slow_sink() {
    let api = PsApi::start().await;
    let site = site(&api).start().await;
    api.fail_only(is_in_between);
    api.fail(Some(Fault::Late(Duration::from_millis(300))));
    let halves = futures_util::future::join_all((0..60).map(|_| half(&site))).await;
    eventually("some are told of", LIMIT, || async {
        (told_in_between(&api).len() >= 5).then_some(())
    })
    .await;
    let uploads = futures_util::future::join_all(halves.into_iter().map(rest)).await;
    for upload in &uploads {
        all_at_api(&api, upload).await;
        assert_statuses_in_order(&api, upload);
    }
    let times = told_in_between(&api);
    // The next begins when the one before has its answer.
    assert!(
        times
            .windows(2)
            .all(|pair| pair[1] - pair[0] >= Duration::from_millis(290)),
        "{times:?}"
    );
    assert_eq!(metric(&site, "ferry_dead_letters_total").await, 0.0);
}

/// The first half of an upload.
async fn half(site: &Site) -> (Upload, SlowPatch) {
    let upload = site.client().create(200_000, &[("filename", "half.csv")]).await;
    let mut patch = SlowPatch::begin(site.addr(), &upload.path(), 0, 200_000).await;
    patch.send(&[1; 100_000]).await.expect("send the first half");
    (upload, patch)
}

async fn rest((upload, mut patch): (Upload, SlowPatch)) -> Upload {
    patch.send(&[1; 100_000]).await.expect("send the second half");
    assert_eq!(patch.answer().await.expect("an answer").status, 204);
    upload
}

/// When statuses of unfinished uploads arrived.
fn told_in_between(api: &PsApi) -> Vec<Instant> {
    let store = api.store();
    let told = store.arrivals.iter().filter(|arrival| is_in_between(&arrival.report));
    told.map(|arrival| arrival.at).collect()
}

/// A status of an unfinished upload, as it is sent while bytes come.
fn is_in_between(report: &Value) -> bool {
    let content = &report["content"];
    content["offset"]
        .as_u64()
        .is_some_and(|at| at != 0 && content["size"] != at)
}
