//! The API is away.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tests::psapi::{Fault, PsApi};
use tests::site::LIMIT;
use tests::wait::eventually;

use crate::{all_at_api, assert_statuses_in_order, metric, metric_is, site, upload};

/// Uploads of one round.
const ROUND: usize = 12;

/// Row 70: with the API away uploads and copies keep their speed, everything is kept, in order for each upload, and
/// arrives when it is back, a few at a time; meanwhile it is probed and not hammered.
#[tokio::test]
async fn an_outage_of_the_api_harms_nothing() {
    let api = PsApi::start().await;
    let site = site(&api).env("RETRY_DELAYS", "300ms,1s").start().await;
    let (mut uploads, mut there, mut away) = (Vec::new(), Duration::ZERO, Duration::ZERO);
    let begun = Instant::now();
    for round in 0..6 {
        let is_away = round % 2 == 1;
        api.go_away(is_away);
        let begin = Instant::now();
        let mut sent = Vec::new();
        for _ in 0..ROUND {
            sent.push(upload(&site, 256 * 1024).await);
        }
        for upload in &sent {
            for target in ["dex", "edav"] {
                site.delivery(target, &upload.id).await;
            }
        }
        *(if is_away { &mut away } else { &mut there }) += begin.elapsed();
        uploads.append(&mut sent);
    }
    assert!(away < there * 2, "{away:?} with the API away, {there:?} with it there");
    api.go_away(true);
    uploads.push(upload(&site, 1000).await);
    metric_is(&site, "ferry_reports_pending{sink=\"graphql\"}", |count| count >= 7.0).await;
    metric_is(&site, "ferry_report_lag_seconds", |seconds| seconds >= 2.0).await;
    let health = site.client().send("GET", &site.url("/health/ready"), &[], "").await;
    health.expect("an answer").expect(200);

    // Another kind of being away, in which probes can be counted.
    let from = api.store().arrivals.len();
    api.fail(Some(Fault::Status {
        code: 503,
        retry_after: None,
    }));
    api.go_away(false);
    let probing = Instant::now();
    eventually("some probes", LIMIT, || async {
        (api.store().arrivals.len() >= from + 5).then_some(())
    })
    .await;
    assert!(
        probing.elapsed() >= Duration::from_millis(1500),
        "hammered: five in {:?}",
        probing.elapsed()
    );
    // Slow enough for several to be on their way at once.
    api.fail(Some(Fault::Late(Duration::from_millis(20))));
    for upload in &uploads {
        all_at_api(&api, upload).await;
        assert_statuses_in_order(&api, upload);
    }
    metric_is(&site, "ferry_reports_pending{sink=\"graphql\"}", |count| count == 0.0).await;
    metric_is(&site, "ferry_report_lag_seconds", |seconds| seconds == 0.0).await;
    let most = api.concurrent().most;
    assert!(
        (2..=10).contains(&most),
        "{most} requests at once: a storm, or none together"
    );
    assert_eq!(metric(&site, "ferry_dead_letters_total").await, 0.0);
    println!("there {there:?}, away {away:?}, {most} at once, {:?}", begun.elapsed());
}

/// Rows 70 and 50: `kill -9` in an outage loses no report; what is repeated is so byte for byte, and only for kills.
#[tokio::test]
async fn kills_in_an_outage_lose_no_report() {
    const KILLS: usize = 4;
    let api = PsApi::start().await;
    let mut site = site(&api).start().await;
    let mut uploads = Vec::new();
    for kill in 0..KILLS {
        api.go_away(kill % 2 == 1);
        for _ in 0..5 {
            uploads.push(upload(&site, 10_000).await);
        }
        site.kill();
        site.restart().await;
    }
    api.go_away(false);
    for upload in &uploads {
        let reports = all_at_api(&api, upload).await;
        assert_statuses_in_order(&api, upload);
        let different: BTreeSet<String> = reports.iter().map(ToString::to_string).collect();
        assert!(
            different.len() <= crate::REPORTS,
            "two contents of one report: {different:#?}"
        );
    }
    metric_is(&site, "ferry_reports_pending{sink=\"graphql\"}", |count| count == 0.0).await;
    // On their way at a kill: eight at most.
    let repeats = api.store().repeats();
    assert!(repeats <= KILLS * 8, "{repeats} repeats");
}
