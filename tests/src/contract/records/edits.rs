//! One upload's record: created, read, changed.

use std::future::Future;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use shared::checksum::Crc64;
use shared::records::{RecordError, Verdict};
use shared::upload::{Claim, OwnerId, UploadId, UploadRecord, UploadState};

use super::{
    LIMIT, RecordsSite, assert_not_found, change, created, deliveries, edit_upload, now, published, sample, upload,
};
use crate::wait::{eventually, within};

/// `create` answers the record as `upload` then reads it.
pub async fn an_upload_is_there_once_it_is_created(site: &dyn RecordsSite) {
    let records = site.open().await;
    let id = UploadId::random();
    let given = sample::receiving(id);
    let answered = records.create(given.clone()).await.expect("create");
    assert_eq!(upload(&*records, id).await, answered);
    assert_eq!(answered.state, UploadState::Receiving);
    assert_eq!(answered.created_at, given.created_at);
    assert!(deliveries(&*records, id).await.is_empty(), "nothing to deliver yet");
}

/// No field of a record is lost or changed on its way to the store and back.
pub async fn everything_in_a_record_comes_back(site: &dyn RecordsSite) {
    let records = site.open().await;
    let given = sample::receiving(UploadId::random());
    let answered = records.create(given.clone()).await.expect("create");
    let mut expected = given;
    (expected.seq, expected.changed_at) = (answered.seq, answered.changed_at);
    assert_eq!(answered, expected);

    let owner = OwnerId::random();
    let fill = move |record: &mut UploadRecord| {
        record.state = UploadState::Quarantined;
        record.length = None;
        record.metadata = None;
        record.manifest.insert("żółw".into(), "\u{0}\n\u{fffd}'\"%".into());
        record.verified_offset = Some(u64::from(u32::MAX) + 7);
        record.checkpoint = Crc64::known(u64::MAX - 1, 1 << 60);
        record.claim = Some(Claim {
            owner: owner.clone(),
            fence: 3,
            beat: 1 << 50,
        });
        record.targets = sample::resolved(record.id, &["b", "a"]);
        record.reconciled = u32::MAX;
    };
    let edited = edit_upload(&*records, answered.id, fill.clone()).await;
    fill(&mut expected);
    (expected.seq, expected.changed_at) = (edited.seq, edited.changed_at);
    assert_eq!(edited, expected);
    assert_eq!(upload(&*records, answered.id).await, expected);
}

/// `Exists`, and the first one stays as it was.
pub async fn an_upload_is_created_once(site: &dyn RecordsSite) {
    let records = site.open().await;
    let first = created(&*records).await;
    let mut second = sample::receiving(first.id);
    second.length = Some(1234);
    let answer = records.create(second.clone()).await;
    assert!(
        matches!(answer, Err(RecordError::Exists(id)) if id == first.id),
        "{answer:?}"
    );
    let answer = site.open().await.create(second).await;
    assert!(
        matches!(answer, Err(RecordError::Exists(id)) if id == first.id),
        "{answer:?}"
    );
    assert_eq!(upload(&*records, first.id).await, first);
}

/// `NotFound` for each operation on a record that is not there; nothing is made by asking.
pub async fn what_is_not_there_is_not_found(site: &dyn RecordsSite) {
    let records = site.open().await;
    let nobody = UploadId::random();
    assert_not_found(records.upload(nobody).await);
    assert_not_found(records.edit_upload(nobody, change(|_| {})).await);
    assert_not_found(records.edit_delivery(nobody, "dex", change(|_| {})).await);
    assert!(deliveries(&*records, nobody).await.is_empty());
    let there = published(&*records, &["dex"]).await;
    assert_not_found(records.edit_delivery(there.id, "edav", change(|_| {})).await);
    assert_eq!(deliveries(&*records, there.id).await.len(), 1);
    assert_not_found(records.upload(nobody).await);
}

/// An edit is given what the last write left, and is answered with what is recorded then.
pub async fn an_edit_sees_the_newest_record_and_raises_seq(site: &dyn RecordsSite) {
    let records = site.open().await;
    let mut before = created(&*records).await;
    for length in 10..20 {
        let seen = before.clone();
        let answer = records
            .edit_upload(
                before.id,
                Box::new(move |record| {
                    assert_eq!(*record, seen, "an edit sees the newest record");
                    record.length = Some(length);
                    if length % 2 == 0 {
                        Verdict::Write
                    } else {
                        Verdict::WriteDurably
                    }
                }),
            )
            .await
            .expect("edit");
        assert!(answer.written);
        assert_eq!(answer.record.length, Some(length));
        assert_eq!(answer.record.seq, before.seq + 1, "every write raises seq by one");
        assert_eq!(upload(&*records, before.id).await, answer.record);
        before = answer.record;
    }
}

/// `changed_at` is the records' own: a sender of stale times cannot keep a tombstone for ever, or lose it early.
pub async fn every_write_stamps_the_time_of_the_change(site: &dyn RecordsSite) {
    let records = site.open().await;
    let begin = now();
    let first = created(&*records).await;
    assert!(first.changed_at >= begin, "{} is before {begin}", first.changed_at);
    let begin = now();
    let second = edit_upload(&*records, first.id, |record| record.length = Some(10)).await;
    assert!(second.changed_at >= begin, "{} is before {begin}", second.changed_at);
    assert!(second.changed_at >= first.changed_at);
    assert!(second.changed_at <= jiff::Timestamp::now(), "never in the future");
    assert_eq!(second.created_at, first.created_at, "creation stays");
}

/// `Leave` answers the record as it is recorded, whatever the edit did to its copy.
pub async fn an_edit_that_leaves_the_record_writes_nothing(site: &dyn RecordsSite) {
    let records = site.open().await;
    let before = published(&*records, &["dex"]).await;
    let answer = records
        .edit_upload(
            before.id,
            Box::new(|record| {
                record.state = UploadState::Expired;
                sample::commit(record, &["dex", "edav"]);
                Verdict::Leave
            }),
        )
        .await
        .expect("edit");
    assert!(!answer.written);
    assert_eq!(answer.record, before);
    assert_eq!(upload(&*records, before.id).await, before);
    let delivery = deliveries(&*records, before.id).await;
    assert_eq!(delivery.len(), 1, "the target of an edit that was left has no delivery");
    let answer = records
        .edit_delivery(
            before.id,
            "dex",
            Box::new(|record| {
                record.attempts = 99;
                Verdict::Leave
            }),
        )
        .await
        .expect("edit");
    assert!(!answer.written);
    assert_eq!(answer.record, delivery[0]);
    assert_eq!(deliveries(&*records, before.id).await, delivery);
}

/// Fifty at once, from two processes: none is lost, and none shares its `seq` with another.
pub async fn fifty_concurrent_edits_all_count(site: &dyn RecordsSite) {
    let processes = [site.open().await, site.open().await];
    let before = created(&*processes[0]).await;
    let edits = (0..50).map(|n| {
        let records = processes[n % 2].clone();
        tokio::spawn(async move { edit_upload(&*records, before.id, |record| record.reconciled += 1).await })
    });
    let mut seen: Vec<(u64, u32)> = within("fifty edits", LIMIT, join_all(edits))
        .await
        .into_iter()
        .map(|answer| answer.expect("an edit"))
        .map(|record| (record.seq, record.reconciled))
        .collect();
    seen.sort_unstable();
    let expected: Vec<(u64, u32)> = (1..=50).map(|n| (before.seq + u64::from(n), n)).collect();
    assert_eq!(seen, expected);
    let after = upload(&*processes[1], before.id).await;
    assert_eq!((after.seq, after.reconciled), (before.seq + 50, 50));
}

/// A defect of one caller stays with it: the record is as before, and everybody else is served.
pub async fn an_edit_that_panics_harms_nobody_else(site: &dyn RecordsSite) {
    let records = site.open().await;
    let before = created(&*records).await;
    let other = created(&*records).await;
    let broken = records.edit_upload(
        before.id,
        Box::new(|record| {
            record.reconciled = 77;
            resume_unwind(Box::new("an edit with a defect"));
        }),
    );
    let broken = AssertUnwindSafe(broken).catch_unwind();
    if let Ok(Ok(edited)) = within("the edit's end", LIMIT, broken).await {
        panic!("answered as if it were edited: {edited:?}");
    }
    let next = edit_upload(&*records, other.id, |record| record.reconciled += 1);
    assert_eq!(within("another's edit", LIMIT, next).await.reconciled, 1);
    assert_eq!(upload(&*records, before.id).await, before);
    let again = edit_upload(&*records, before.id, |record| record.reconciled += 1).await;
    assert_eq!((again.seq, again.reconciled), (before.seq + 1, 1));
}

/// A dropped future may or may not have written, but its record and its deliveries come together.
pub async fn a_dropped_edit_never_writes_half(site: &dyn RecordsSite) {
    let records = site.open().await;
    for _ in 0..40 {
        let before = created(&*records).await;
        {
            let edit = change(|record: &mut UploadRecord| {
                record.reconciled += 1;
                sample::commit(record, &["edav", "dex"]);
            });
            let mut dropped = pin!(records.edit_upload(before.id, edit));
            // Begun, and dropped wherever that got.
            let begun = dropped.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            if let Poll::Ready(answer) = begun {
                answer.expect("edit");
            }
        }
        // The deliveries are read first: were they there before their upload was committed, it would show.
        let settled = || async {
            let there = deliveries(&*records, before.id).await.len();
            let record = upload(&*records, before.id).await;
            assert!(
                there == 0 || record.state.is_committed(),
                "deliveries before the commit"
            );
            assert_eq!(record.seq - before.seq, u64::from(record.reconciled), "half an edit");
            let there = deliveries(&*records, before.id).await.len();
            let expected = if record.state.is_committed() { 2 } else { 0 };
            // It may be written between two reads; then they agree the next time.
            (there == expected).then_some(())
        };
        eventually("record and deliveries agree", LIMIT, settled).await;
        let after = edit_upload(&*records, before.id, |record| record.reconciled += 1).await;
        assert_eq!(after.seq - before.seq, u64::from(after.reconciled));
    }
}
