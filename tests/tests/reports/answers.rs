//! What an answer means.

use std::time::{Duration, Instant};

use serde_json::Value;
use tests::psapi::{Fault, PsApi};
use tests::reports::action;
use tests::site::{LIMIT, Site};
use tests::wait::eventually;

use crate::{MORE_THAN_A_TRY, REPORTS, all_at_api, assert_statuses_in_order, metric, metric_is, site, upload};

/// The strict API takes every report of ours, as the mutation and with the token; the token is shown nowhere.
#[tokio::test]
async fn every_report_is_taken_by_the_strict_api() {
    let api = PsApi::with_token(Some("canary-token")).await;
    let site = site(&api).env("REPORT_GRAPHQL_TOKEN", "canary-token").start().await;
    let upload = upload(&site, 100_000).await;
    let reports = all_at_api(&api, &upload).await;
    assert_eq!(reports.len(), REPORTS, "{reports:#?}");
    let in_file = site.reports_of(&upload.id, REPORTS).await;
    for report in in_file {
        let mut report = report;
        report.as_object_mut().expect("a report").remove("disposition_type");
        assert!(reports.contains(&report), "{report}");
    }
    assert_all_kept(&api, &upload.id);
    let health = site
        .client()
        .send("GET", &site.url("/health"), &[], "")
        .await
        .expect("an answer");
    let health: Value = serde_json::from_slice(&health.expect(200).body).expect("JSON");
    assert_eq!(health["status"], "UP", "{health}");
    assert!(health.to_string().contains("Report sink graphql"), "{health}");
    assert!(!site.log().contains("canary-token"), "the token is in the log");
}

/// Nothing was rejected, lost or repeated, and each status replaced the one before.
fn assert_all_kept(api: &PsApi, id: &str) {
    let store = api.store();
    assert!(
        store.rejected.is_empty() && store.lost == 0 && store.repeats() == 0,
        "{store:#?}"
    );
    let kept = store.reports.iter().filter(|report| report["upload_id"] == id);
    assert_eq!(kept.count(), REPORTS - 1);
}

/// Row 71: what `Retry-After` asks for is kept, with 503 and with 429, and the other sink goes on.
#[tokio::test]
async fn a_pause_that_is_asked_for_is_kept() {
    for code in [503, 429] {
        let api = PsApi::start().await;
        // The longest delay bounds what is kept.
        let site = site(&api).env("RETRY_DELAYS", "100ms,10s").start().await;
        api.fail_next(
            1,
            &Fault::Status {
                code,
                retry_after: Some(2),
            },
        );
        let upload = upload(&site, 1000).await;
        site.reports_of(&upload.id, REPORTS).await;
        all_at_api(&api, &upload).await;
        let arrivals: Vec<Instant> = api.store().arrivals.iter().map(|arrival| arrival.at).collect();
        // The others that were on their way already came at once.
        let refused = arrivals[0];
        let after = arrivals.iter().find(|at| **at >= refused + Duration::from_secs(1));
        let waited = *after.expect("it was tried again") - refused;
        assert!(waited >= Duration::from_millis(1950), "{code}: after {waited:?}");
        let between = arrivals.iter().filter(|at| **at > refused + Duration::from_millis(100));
        assert!(
            between.clone().all(|at| *at >= refused + Duration::from_millis(1950)),
            "{code}: {arrivals:?}"
        );
        assert_statuses_in_order(&api, &upload);
    }
}

/// Row 71: a sink that never answers holds up no other.
#[tokio::test]
async fn a_sink_that_hangs_does_not_hold_up_another() {
    let api = PsApi::start().await;
    let site = site(&api).start().await;
    api.fail(Some(Fault::Hang));
    let mut uploads = Vec::new();
    // Far more reports than a lane holds.
    for _ in 0..20 {
        uploads.push(upload(&site, 1000).await);
    }
    for upload in &uploads {
        site.reports_of(&upload.id, REPORTS).await;
    }
    metric_is(&site, "ferry_reports_pending{sink=\"graphql\"}", |count| count >= 140.0).await;
    metric_is(&site, "ferry_reports_pending{sink=\"jsonl\"}", |count| count == 0.0).await;
    api.fail(None);
    for upload in &uploads {
        all_at_api(&api, upload).await;
        assert_statuses_in_order(&api, upload);
    }
    metric_is(&site, "ferry_reports_pending{sink=\"graphql\"}", |count| count == 0.0).await;
}

/// Row 72: what is wrong with a report is a dead letter with the reasons, and not tried again.
#[tokio::test]
async fn a_report_that_is_refused_for_good_is_a_dead_letter() {
    for fault in [
        Fault::Failure {
            reason: "Validation failed",
            issues: vec!["$.sender_id: is missing but it is required"],
        },
        Fault::Errors("ValidationError"),
    ] {
        let api = PsApi::start().await;
        let site = site(&api).start().await;
        api.fail(Some(fault));
        let upload = upload(&site, 1000).await;
        site.reports_of(&upload.id, REPORTS).await;
        metric_is(&site, "ferry_reports_rejected_total{sink=\"graphql\"}", |count| {
            count == 7.0
        })
        .await;
        assert_eq!(api.store().arrivals.len(), REPORTS, "each was tried once");
        assert_eq!(
            metric(&site, "ferry_dead_letters_total{reason=\"permanent\"}").await,
            7.0
        );
        let reasons = dead_letters(&site).await;
        assert_eq!(reasons.len(), REPORTS);
        let told = |reason: &String| reason.contains("$.sender_id: is missing") || reason.contains("it did not work");
        assert!(reasons.iter().all(told), "{reasons:?}");
    }
}

/// As a person reads them: with the bus of a second process.
async fn dead_letters(site: &Site) -> Vec<String> {
    let path = site.data().join("ferry.db");
    let (_, bus) = tests::contract::sqlite::open(&path);
    let letters = bus.dead_letters(100).await.expect("the dead letters");
    letters.into_iter().map(|letter| letter.reason).collect()
}

/// Row 72: whatever else is no success is tried until it is one; each is there once.
#[tokio::test]
async fn an_answer_that_is_no_success_is_asked_for_again() {
    let api = PsApi::start().await;
    let site = site(&api).start().await;
    for fault in [
        Fault::Failure {
            reason: "Failed to create report: database is away",
            issues: vec![],
        },
        Fault::Errors("DataFetchingException"),
        Fault::Garbage,
        Fault::Huge,
        Fault::Drop,
        Fault::Status {
            code: 500,
            retry_after: None,
        },
        Fault::Status {
            code: 401,
            retry_after: None,
        },
        Fault::Status {
            code: 403,
            retry_after: None,
        },
        Fault::Status {
            code: 404,
            retry_after: None,
        },
    ] {
        api.fail_next(3, &fault);
        let upload = upload(&site, 1000).await;
        all_at_api(&api, &upload).await;
        assert_statuses_in_order(&api, &upload);
        let refused = api.store().arrivals.iter().filter(|arrival| !arrival.accepted).count();
        assert!(refused >= 3, "{fault:?}");
        api.store().arrivals.retain(|arrival| arrival.accepted);
    }
    assert_eq!(api.store().repeats(), 0);
    assert_eq!(metric(&site, "ferry_reports_rejected_total").await, 0.0);
}

/// Row 73: a report that was taken without an answer in time is repeated at most once, as it was, and no older status
/// comes after a newer one.
#[tokio::test]
async fn an_answer_after_our_time_out_costs_one_repeat() {
    let api = PsApi::start().await;
    let site = site(&api).start().await;
    api.fail_next(1, &Fault::Late(MORE_THAN_A_TRY));
    let first = upload(&site, 1000).await;
    all_at_api(&api, &first).await;
    let other = upload(&site, 1000).await;
    all_at_api(&api, &other).await;
    eventually("nothing waits", LIMIT, || async {
        (metric(&site, "ferry_reports_pending{sink=\"graphql\"}").await == 0.0).then_some(())
    })
    .await;
    assert_eq!(api.store().repeats(), 1, "the one, byte for byte");
    assert_eq!(api.store().accepted(&first.id).len(), REPORTS + 1);
    assert_statuses_in_order(&api, &first);
}

/// Row 73: a first status that the API takes after we gave it up, and after the final one, does not stay the last
/// word: the final one comes once more. Each is repeated once at most.
#[tokio::test]
async fn a_first_status_that_is_taken_late_is_not_the_last_word() {
    let api = PsApi::start().await;
    let site = site(&api).start().await;
    api.fail_only(is_first_status);
    // Longer than one try, and less than two.
    api.fail_next(1, &Fault::Held(Duration::from_millis(1500)));
    let upload = upload(&site, 1000).await;
    all_at_api(&api, &upload).await;
    eventually("the held one is taken", LIMIT, || async {
        let offsets = api.store().offsets(&upload.id);
        (offsets.iter().filter(|offset| **offset == 0).count() == 2).then_some(())
    })
    .await;
    eventually("the final one is the last word", LIMIT, || async {
        let store = api.store();
        let status = store
            .reports
            .iter()
            .find(|report| report["upload_id"] == upload.id.as_str() && action(report) == "upload-status")?;
        (status["content"]["offset"] == 1000).then_some(())
    })
    .await;
    metric_is(&site, "ferry_reports_pending{sink=\"graphql\"}", |count| count == 0.0).await;
    assert_eq!(api.store().repeats(), 2, "the first, and the final one");
}

/// core.md §7, row 71: a status that is to be tried again is not passed by what its upload has to tell meanwhile.
#[tokio::test]
async fn a_first_status_that_is_not_taken_at_once_is_not_overtaken() {
    for code in [500, 503] {
        let api = PsApi::start().await;
        let site = site(&api).start().await;
        api.fail_only(is_first_status);
        api.fail_next(
            2,
            &Fault::Status {
                code,
                retry_after: None,
            },
        );
        let upload = upload(&site, 1000).await;
        all_at_api(&api, &upload).await;
        metric_is(&site, "ferry_reports_pending{sink=\"graphql\"}", |count| count == 0.0).await;
        let offsets = api.store().offsets(&upload.id);
        assert_eq!((offsets[0], offsets[1]), (0, 1000), "{code}: {offsets:?}");
        assert_statuses_in_order(&api, &upload);
    }
}

fn is_first_status(report: &Value) -> bool {
    action(report) == "upload-status" && report["content"]["offset"] == 0
}

fn is_poison(report: &Value) -> bool {
    report["data_stream_id"] == "poison"
}

/// Rule 5: an upload whose reports make the API fail, each time, holds up the reports of no other.
#[tokio::test]
async fn an_upload_whose_reports_always_fail_holds_up_no_other() {
    let api = PsApi::start().await;
    let site = site(&api).env("RETRY_DELAYS", "1s,20s").start().await;
    api.fail_only(is_poison);
    api.fail(Some(Fault::Status {
        code: 500,
        retry_after: None,
    }));
    let five = || async {
        let begin = Instant::now();
        for _ in 0..5 {
            all_at_api(&api, &upload(&site, 1000).await).await;
        }
        begin.elapsed()
    };
    let alone = five().await;
    let metadata = [("filename", "poison.csv"), ("data_stream_id", "poison")];
    let poison = site.client().create(1000, &metadata).await;
    poison.append(0, &[7; 1000]).await;
    let beside = five().await;
    assert!(
        beside < alone * 3 + Duration::from_secs(3),
        "{alone:?} alone, {beside:?} beside it"
    );
    assert!(api.store().accepted(&poison.id).is_empty());
    api.fail(None);
    all_at_api(&api, &poison).await;
    assert_statuses_in_order(&api, &poison);
}
