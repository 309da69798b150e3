//! Several processes on the same records, one after the other and at once.

use shared::upload::{DeliveryState, UploadState};

use super::{LIMIT, RecordsSite, created, deliveries, edit_upload, published, set_delivery, upload};
use crate::wait::eventually;

/// What `/health` asks.
pub async fn the_records_say_that_they_work(site: &dyn RecordsSite) {
    site.open().await.check().await.expect("records that work");
}

/// Everything is there after an ordinary end and a new start, to the last field.
pub async fn records_survive_reopening(site: &dyn RecordsSite) {
    let records = site.open().await;
    let receiving = created(&*records).await;
    let finished = published(&*records, &["dex", "edav"]).await;
    set_delivery(&*records, finished.id, "edav", DeliveryState::Failed).await;
    let expected = deliveries(&*records, finished.id).await;
    let gone = published(&*records, &["dex"]).await;
    let gone = edit_upload(&*records, gone.id, |record| record.state = UploadState::Terminated).await;
    let open = records.open_uploads(None, 10).await.expect("open uploads");
    let census = records.census().await.expect("census");
    drop(records);

    let records = site.open().await;
    for record in [&receiving, &finished, &gone] {
        assert_eq!(upload(&*records, record.id).await, *record);
    }
    assert_eq!(deliveries(&*records, finished.id).await, expected);
    assert_eq!(records.open_uploads(None, 10).await.expect("open uploads"), open);
    assert_eq!(records.census().await.expect("census"), census);
    let failed = records
        .failed_deliveries(None, None, 10)
        .await
        .expect("failed deliveries");
    assert_eq!(failed, expected[1..]);
    let next = edit_upload(&*records, receiving.id, |record| record.length = Some(10)).await;
    assert_eq!(next.seq, receiving.seq + 1, "seq goes on where it was");
}

/// An answered write is seen by the next read of any process: the sweeper of one finishes what another received.
pub async fn two_processes_see_each_others_writes_at_once(site: &dyn RecordsSite) {
    let (one, two) = (site.open().await, site.open().await);
    let mut record = created(&*one).await;
    for _ in 0..10 {
        assert_eq!(upload(&*two, record.id).await, record);
        record = edit_upload(&*two, record.id, |record| record.reconciled += 1).await;
        assert_eq!(upload(&*one, record.id).await, record);
        record = edit_upload(&*one, record.id, |record| record.reconciled += 1).await;
    }
    assert_eq!(record.reconciled, 20);
}

/// The claims of a dead process are free at once, those of a living one never by this way.
pub async fn a_process_that_ended_is_known_to_be_gone(site: &dyn RecordsSite) {
    let (one, two) = (site.open().await, site.open().await);
    let (first, second) = (one.owner().clone(), two.owner().clone());
    assert_ne!(first, second, "each process has a name of its own");
    for _ in 0..3 {
        assert!(!one.is_gone(&second).await, "it lives");
        assert!(!two.is_gone(&first).await, "it lives");
        assert!(!one.is_gone(&first).await, "the one that asks lives");
    }
    drop(two);
    eventually("the end of a process is seen", LIMIT, || async {
        one.is_gone(&second).await.then_some(())
    })
    .await;
    let three = site.open().await;
    assert!(three.is_gone(&second).await, "also by a process that never knew it");
    assert!(!three.is_gone(&first).await, "it still lives");
}
