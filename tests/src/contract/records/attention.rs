//! What the sweeper and people ask for: open uploads, failed deliveries, tombstones, counts.

use std::collections::BTreeSet;
use std::time::Duration;

use shared::message::Queue;
use shared::records::Records;
use shared::upload::{DeliveryState, UploadId, UploadState};

use super::{
    LIMIT, RecordsSite, assert_not_found, created, deliveries, edit_delivery, edit_upload, now, published, sample,
    set_delivery, upload,
};
use crate::wait::eventually;

async fn all_open(records: &dyn Records) -> BTreeSet<UploadId> {
    let found = records.open_uploads(None, 10_000).await.expect("open uploads");
    assert!(found.is_sorted(), "in order");
    let set: BTreeSet<UploadId> = found.iter().copied().collect();
    assert_eq!(set.len(), found.len(), "each once");
    set
}

/// An upload in `state`, whose deliveries are final.
async fn in_state(records: &dyn Records, state: UploadState) -> UploadId {
    let id = published(records, &["dex"]).await.id;
    set_delivery(records, id, "dex", DeliveryState::Succeeded).await;
    edit_upload(records, id, move |record| record.state = state).await.id
}

/// No more and no less than what `needs_attention` says of the upload and of each of its deliveries. What is
/// missing here is never swept (faults.md row 2); what is too much makes every sweep longer for ever.
pub async fn exactly_what_needs_attention_is_open(site: &dyn RecordsSite) {
    let records = site.open().await;
    let mut expected = BTreeSet::new();
    expected.insert(created(&*records).await.id);
    for state in UploadState::ALL {
        let id = in_state(&*records, state).await;
        if upload(&*records, id).await.needs_attention() {
            expected.insert(id);
        }
    }
    assert_eq!(expected.len(), 6, "created, and five of eight states");
    for state in DeliveryState::ALL {
        let id = published(&*records, &["dex", "edav"]).await.id;
        set_delivery(&*records, id, "edav", DeliveryState::Succeeded).await;
        if set_delivery(&*records, id, "dex", state).await.needs_attention() {
            expected.insert(id);
        }
    }
    assert_eq!(expected.len(), 9, "and three of five states of a delivery");

    // Messages that are not known to be on the bus need attention, in whatever state their record is.
    let tombstone = in_state(&*records, UploadState::Terminated).await;
    edit_upload(&*records, tombstone, |record| record.outbox = vec![sample::event(1)]).await;
    let delivered = in_state(&*records, UploadState::Published).await;
    edit_delivery(&*records, delivered, "dex", |record| {
        record.outbox = vec![sample::work(Queue::Report, 1)];
    })
    .await;
    if !site.publishes_itself() {
        expected.extend([tombstone, delivered]);
    }
    assert_eq!(all_open(&*records).await, expected);
    assert_eq!(all_open(&*site.open().await).await, expected, "in another process");
}

/// Pages join without a gap or a repetition, also while earlier ones are closed meanwhile.
pub async fn open_uploads_come_in_pages(site: &dyn RecordsSite) {
    let records = site.open().await;
    let mut expected = BTreeSet::new();
    for _ in 0..25 {
        expected.insert(created(&*records).await.id);
    }
    let mut found = Vec::new();
    loop {
        let page = records
            .open_uploads(found.last().copied(), 7)
            .await
            .expect("open uploads");
        assert!(page.len() <= 7, "a page of {}", page.len());
        let Some(first) = page.first().copied() else {
            break;
        };
        found.extend(page);
        edit_upload(&*records, first, |record| record.state = UploadState::Expired).await;
    }
    assert!(found.is_sorted(), "in order");
    assert_eq!(found.len(), 25);
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected);
    assert_eq!(
        all_open(&*records).await.len(),
        25 - 4,
        "four pages, one closed of each"
    );
}

/// It closes with the last of its deliveries, and a redrive opens it again until the new run is final.
pub async fn an_upload_closes_when_all_is_final_and_opens_on_a_redrive(site: &dyn RecordsSite) {
    let records = site.open().await;
    let id = published(&*records, &["dex", "edav"]).await.id;
    let open = BTreeSet::from([id]);
    assert_eq!(all_open(&*records).await, open);
    set_delivery(&*records, id, "dex", DeliveryState::Claimed).await;
    set_delivery(&*records, id, "edav", DeliveryState::Failed).await;
    assert_eq!(all_open(&*records).await, open);
    set_delivery(&*records, id, "dex", DeliveryState::Succeeded).await;
    assert_eq!(all_open(&*records).await, BTreeSet::new(), "all is final");

    edit_delivery(&*records, id, "edav", |record| {
        record.state = DeliveryState::Pending;
        record.run += 1;
    })
    .await;
    assert_eq!(all_open(&*records).await, open, "redriven");
    edit_upload(&*records, id, |record| record.reconciled += 1).await;
    assert_eq!(
        all_open(&*records).await,
        open,
        "a write of the upload does not close it"
    );
    set_delivery(&*records, id, "edav", DeliveryState::Succeeded).await;
    assert_eq!(all_open(&*records).await, BTreeSet::new(), "all is final again");
}

/// With a target's name: that target's, in order of their uploads, in pages.
pub async fn failed_deliveries_are_found_by_target_and_in_pages(site: &dyn RecordsSite) {
    let records = site.open().await;
    let mut expected = BTreeSet::new();
    for n in 0..9 {
        let id = published(&*records, &["dex", "edav"]).await.id;
        set_delivery(&*records, id, "dex", DeliveryState::Failed).await;
        if n % 3 != 0 {
            set_delivery(&*records, id, "edav", DeliveryState::Failed).await;
            expected.insert(id);
        } else {
            set_delivery(&*records, id, "edav", DeliveryState::Parked).await;
        }
    }
    let mut found = Vec::new();
    loop {
        let page = records
            .failed_deliveries(Some("edav"), found.last().copied(), 4)
            .await
            .expect("failed deliveries");
        assert!(page.len() <= 4, "a page of {}", page.len());
        for delivery in &page {
            assert_eq!(
                (delivery.to.target.as_str(), delivery.state),
                ("edav", DeliveryState::Failed)
            );
            let recorded = deliveries(&*records, delivery.upload_id).await;
            assert!(recorded.contains(delivery), "as it is recorded");
        }
        if page.is_empty() {
            break;
        }
        found.extend(page.iter().map(|delivery| delivery.upload_id));
    }
    assert!(found.is_sorted());
    assert_eq!(found.len(), 6);
    assert_eq!(found.iter().copied().collect::<BTreeSet<_>>(), expected);

    // A redrive takes it out.
    set_delivery(&*records, found[0], "edav", DeliveryState::Pending).await;
    let left = records
        .failed_deliveries(Some("edav"), None, 100)
        .await
        .expect("failed deliveries");
    assert_eq!(left.len(), 5);
    let none = records
        .failed_deliveries(Some("archive"), None, 100)
        .await
        .expect("failed deliveries");
    assert_eq!(none, []);
}

/// Without a target's name an upload may have several: a page's end between two of them must lose neither, or a
/// redrive of everything would leave some out.
pub async fn pages_of_failed_deliveries_of_all_targets_leave_none_out(site: &dyn RecordsSite) {
    let records = site.open().await;
    for _ in 0..5 {
        let id = published(&*records, &["archive", "dex", "edav"]).await.id;
        set_delivery(&*records, id, "dex", DeliveryState::Failed).await;
        set_delivery(&*records, id, "edav", DeliveryState::Failed).await;
    }
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let page = records
            .failed_deliveries(None, after, 3)
            .await
            .expect("failed deliveries");
        let Some(last) = page.last() else { break };
        after = Some(last.upload_id);
        found.extend(
            page.into_iter()
                .map(|delivery| (delivery.upload_id, delivery.to.target)),
        );
    }
    assert!(found.is_sorted(), "in order of their uploads");
    found.dedup();
    assert_eq!(found.len(), 10);
}

/// Terminated and expired ones that did not change since; nothing else, however old. Their deliveries go too.
pub async fn only_old_tombstones_are_purged(site: &dyn RecordsSite) {
    let records = site.open().await;
    let old = [
        in_state(&*records, UploadState::Terminated).await,
        in_state(&*records, UploadState::Expired).await,
    ];
    let before = later_than(&*records, old[1]).await;
    let mut kept = vec![in_state(&*records, UploadState::Terminated).await];
    assert_eq!(records.purge_tombstones(before, 100).await.expect("purge"), 2);
    for id in old {
        assert_not_found(records.upload(id).await);
        assert!(deliveries(&*records, id).await.is_empty());
    }
    upload(&*records, kept[0]).await;

    // Everything else stays, even if it did not change for longer than a tombstone is kept.
    for state in UploadState::ALL {
        let tombstone = matches!(state, UploadState::Terminated | UploadState::Expired);
        if !tombstone {
            kept.push(in_state(&*records, state).await);
        }
    }
    let last = kept.last().copied().expect("seven were kept");
    let after_all = later_than(&*records, last).await;
    assert_eq!(records.purge_tombstones(after_all, 100).await.expect("purge"), 1);
    assert_not_found(records.upload(kept.remove(0)).await);
    for id in kept {
        upload(&*records, id).await;
        assert_eq!(deliveries(&*records, id).await.len(), 1);
    }
}

/// A moment after the last change of `id` and before any that comes now, by whole milliseconds: a store may keep no
/// more than that.
async fn later_than(records: &dyn Records, id: UploadId) -> jiff::Timestamp {
    let changed = upload(records, id).await.changed_at;
    eventually("the clock goes on", LIMIT, || async {
        (now() > changed + Duration::from_millis(4)).then_some(changed + Duration::from_millis(2))
    })
    .await
}

/// A long list of tombstones is worked off in bounded steps.
pub async fn purging_stops_at_its_limit(site: &dyn RecordsSite) {
    let records = site.open().await;
    let mut last = None;
    for _ in 0..5 {
        last = Some(in_state(&*records, UploadState::Terminated).await);
    }
    let before = later_than(&*records, last.expect("five were made")).await;
    for expected in [2, 2, 1, 0] {
        assert_eq!(records.purge_tombstones(before, 2).await.expect("purge"), expected);
    }
}

/// What needs attention, by state, and all failed deliveries. What is done for good is not counted.
pub async fn the_census_counts_what_needs_attention(site: &dyn RecordsSite) {
    let records = site.open().await;
    assert_eq!(records.census().await.expect("census").with_outbox, 0);
    for state in UploadState::ALL {
        in_state(&*records, state).await;
    }
    in_state(&*records, UploadState::Terminating).await;
    created(&*records).await;
    for state in DeliveryState::ALL {
        let id = published(&*records, &["dex", "edav"]).await.id;
        set_delivery(&*records, id, "dex", state).await;
        set_delivery(&*records, id, "edav", DeliveryState::Failed).await;
    }
    let census = records.census().await.expect("census");
    for state in UploadState::ALL {
        let expected = match state {
            UploadState::Receiving | UploadState::Terminating => 2,
            UploadState::Committing | UploadState::Committed | UploadState::Quarantined => 1,
            // Its deliveries are counted for themselves.
            UploadState::Published | UploadState::Terminated | UploadState::Expired => 0,
        };
        assert_eq!(census.uploads_in(state), expected, "{}", state.as_str());
    }
    for state in DeliveryState::ALL {
        let expected = match state {
            DeliveryState::Pending | DeliveryState::Claimed | DeliveryState::Parked => 1,
            DeliveryState::Succeeded => 0,
            DeliveryState::Failed => 1 + 5,
        };
        assert_eq!(census.deliveries_in(state), expected, "{}", state.as_str());
    }
    assert_eq!(census.with_outbox, 0);

    let id = created(&*records).await.id;
    edit_upload(&*records, id, |record| sample::commit(record, &["dex"])).await;
    edit_delivery(&*records, id, "dex", |record| {
        record.outbox = vec![sample::work(Queue::Report, 1)];
    })
    .await;
    let expected = if site.publishes_itself() { 0 } else { 2 };
    assert_eq!(records.census().await.expect("census").with_outbox, expected);
}
