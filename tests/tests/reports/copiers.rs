//! Several copiers, and one of them dies with reports in hand.

use tests::psapi::{Fault, PsApi};
use tests::reports::action;
use tests::site::{LIMIT, Part};
use tests::wait::eventually;

use crate::{REPORTS, all_at_api, site};

/// core.md §7, rows 50 and 70: what one copier has in hand nobody passes, also when it is killed with it.
#[tokio::test]
async fn reports_of_a_copier_that_is_killed_are_not_overtaken() {
    let api = PsApi::start().await;
    // The one that sends waits for its answer until it is killed.
    let mut site = site(&api).copiers(2).env("REPORT_TIMEOUT", "10m").start().await;
    site.kill_part(Part::Copier(1));
    api.fail(Some(Fault::Hang));
    let upload = site.client().create(1000, &[("filename", "order.csv")]).await;
    eventually("a report is on its way", LIMIT, || async {
        (!api.store().arrivals.is_empty()).then_some(())
    })
    .await;
    api.fail(None);
    site.restart_part(Part::Copier(1)).await;
    upload.append(0, &[7; 1000]).await;
    // The other sink has them all by then, and the copier that lives had its chance.
    site.reports_of(&upload.id, REPORTS).await;
    eventually("it has seen what waits", LIMIT, || async {
        let metrics = site.metrics(Part::Copier(1)).await;
        let pending = metrics.count("ferry_reports_pending", &[("sink", "graphql")]);
        (pending == 7).then_some(())
    })
    .await;
    assert_eq!(api.store().accepted(&upload.id).len(), 0, "overtaken");
    site.kill_part(Part::Copier(0));
    let reports = all_at_api(&api, &upload).await;
    let mut actions: Vec<&str> = reports.iter().map(action).collect();
    // An older status that comes again is dropped when a newer one was made.
    actions.retain(|action| *action != "upload-status");
    let copies = ["blob-file-copy"; 2];
    let before = ["metadata-transform", "upload-started", "upload-completed"];
    assert_eq!(actions, [&before[..], &copies[..]].concat());
    let offsets = api.store().offsets(&upload.id);
    assert!(offsets.is_sorted() && offsets.ends_with(&[1000]), "{offsets:?}");
    assert_eq!(api.store().repeats(), 0, "the one that hung was not taken");
}
