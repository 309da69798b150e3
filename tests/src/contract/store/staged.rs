//! Blobs in the making: parts, what survives, commit and abort.

use bytes::Bytes;
use shared::checksum::Crc64;
use shared::store::{BlobErrorKind, BlobMeta, Commit, Condition, Identity, ReadBack, Staged, StagedId};
use shared::upload::UploadId;

use super::{MIB, Open, assert_attested, begin, commit_of, content, kind, name, names, part_len, pattern, put, write};

/// `begin`, `write_part`, `commit`: nothing under the name before, all of it after.
pub async fn a_staged_blob_is_invisible_until_commit_and_whole_after_it(open: &impl Open) {
    let store = open().await;
    let blob = name("in/the/making");
    let body = pattern(2 * MIB + 3);
    let staged = begin(&store, &blob, &body).await;
    assert_eq!(staged.name, blob);
    let parts = write(&store, &staged, &body).await;
    assert_eq!(kind(store.stat(&blob).await), BlobErrorKind::NotFound);
    assert!(names(&store, "").await.is_empty(), "unfinished data is listed");

    let attested = store.commit(&staged, commit_of(parts, &body)).await.expect("commit");
    assert_attested(&attested, &body);
    assert_eq!(store.stat(&blob).await.expect("stat").tag, attested.tag);
    assert_eq!(content(&store, &blob).await, body);
    assert_eq!(names(&store, "").await, ["in/the/making"]);
}

/// Sizes one below, at and one above the border of a part, and of two.
pub async fn sizes_around_a_part_border_arrive_whole(open: &impl Open) {
    let store = open().await;
    let part = part_len(&store);
    for size in [1, part - 1, part, part + 1, 2 * part - 1, 2 * part, 2 * part + 1] {
        let (blob, body) = (name(&format!("size/{size}")), pattern(size));
        let staged = begin(&store, &blob, &body).await;
        let parts = write(&store, &staged, &body).await;
        assert_eq!(store.parts(&staged).await.expect("parts").contiguous, size as u64);
        let attested = store.commit(&staged, commit_of(parts, &body)).await.expect("commit");
        assert_attested(&attested, &body);
        assert_eq!(content(&store, &blob).await, body, "{size} bytes");
    }
}

/// A blob of no bytes and no parts.
pub async fn an_empty_blob_is_a_blob(open: &impl Open) {
    let store = open().await;
    let blob = name("empty");
    let staged = begin(&store, &blob, b"").await;
    assert_eq!(store.parts(&staged).await.expect("parts").contiguous, 0);
    let attested = store.commit(&staged, commit_of(Vec::new(), b"")).await.expect("commit");
    assert_attested(&attested, b"");
    assert_eq!(store.stat(&blob).await.expect("stat").size, 0);
    assert_eq!(store.read(&blob, 0..0, None).await.expect("read"), "");
}

/// `write_part` twice, also of an earlier part after a later one, is as once.
pub async fn doubled_writes_change_nothing(open: &impl Open) {
    let store = open().await;
    let blob = name("doubled");
    let part = part_len(&store);
    let body = pattern(part + 5);
    let staged = begin(&store, &blob, &body).await;
    let (front, back) = (
        Bytes::copy_from_slice(&body[..part]),
        Bytes::copy_from_slice(&body[part..]),
    );
    store.write_part(&staged, 0, front.clone()).await.expect("first");
    store.write_part(&staged, 0, front.clone()).await.expect("first again");
    store
        .write_part(&staged, part as u64, back.clone())
        .await
        .expect("second");
    let tail = store
        .write_part(&staged, part as u64, back)
        .await
        .expect("second again");
    let head = store.write_part(&staged, 0, front).await.expect("first, late");
    assert_eq!(
        (head.offset, head.len, tail.offset, tail.len),
        (0, part as u64, part as u64, 5)
    );
    assert_eq!(store.parts(&staged).await.expect("parts").contiguous, body.len() as u64);
    store
        .commit(&staged, commit_of(vec![head, tail], &body))
        .await
        .expect("commit");
    assert_eq!(content(&store, &blob).await, body);
}

/// Where parts are ordered, nothing is written behind the end; elsewhere a gap is not counted as stored.
pub async fn a_gap_is_refused_where_parts_are_ordered(open: &impl Open) {
    let store = open().await;
    let part = store.limits().slot(0, None).end;
    let staged = begin(&store, &name("gap"), &pattern(MIB)).await;
    let late = store.write_part(&staged, part, Bytes::from("late")).await;
    if store.limits().ordered {
        assert_eq!(kind(late), BlobErrorKind::Invalid);
    } else {
        late.expect("parts may come in any order");
    }
    assert_eq!(store.parts(&staged).await.expect("parts").contiguous, 0);
}

/// `truncate` to a part's border; what is written then takes the place of what was there.
pub async fn truncating_forgets_what_lies_behind(open: &impl Open) {
    let store = open().await;
    let blob = name("cut");
    let part = part_len(&store);
    let body = pattern(part + 7);
    let staged = begin(&store, &blob, &body).await;
    write(&store, &staged, &[&body[..part], b"a wrong and longer end"].concat()).await;
    store.truncate(&staged, part as u64).await.expect("truncate");
    assert_eq!(store.parts(&staged).await.expect("parts").contiguous, part as u64);
    assert_eq!(
        kind(store.truncate(&staged, part as u64 + 1).await),
        BlobErrorKind::Invalid
    );
    let mut parts = store.parts(&staged).await.expect("parts").tags;
    let tail = store
        .write_part(&staged, part as u64, Bytes::copy_from_slice(&body[part..]))
        .await
        .expect("write");
    if !parts.is_empty() {
        parts.push(tail);
    }
    store.commit(&staged, commit_of(parts, &body)).await.expect("commit");
    assert_eq!(content(&store, &blob).await, body);
}

/// What was written before a process ended is found by the next one, which goes on there (faults.md 1).
pub async fn a_staging_is_resumed_by_another_process(open: &impl Open) {
    let blob = name("resumed");
    let part = part_len(&open().await);
    let body = pattern(2 * part + 11);
    let recorded = {
        let store = open().await;
        let staged = begin(&store, &blob, &body).await;
        store
            .write_part(&staged, 0, Bytes::copy_from_slice(&body[..part]))
            .await
            .expect("write");
        serde_json::to_string(&staged).expect("a staging is recorded")
    };
    let staged: Staged = serde_json::from_str(&recorded).expect("and found again");
    let store = open().await;
    let found = store.parts(&staged).await.expect("parts");
    assert_eq!(found.contiguous, part as u64);
    let mut parts = found.tags;
    for start in [part, 2 * part] {
        let end = (start + part).min(body.len());
        let bytes = Bytes::copy_from_slice(&body[start..end]);
        parts.push(store.write_part(&staged, start as u64, bytes).await.expect("write"));
    }
    store.commit(&staged, commit_of(parts, &body)).await.expect("commit");
    assert_eq!(content(&store, &blob).await, body);
}

/// `sync` succeeds, and where a caller is to read back before the commit, it can, exactly.
pub async fn synced_parts_can_be_read_back(open: &impl Open) {
    let store = open().await;
    let body = pattern(MIB + 1);
    let staged = begin(&store, &name("read back"), &body).await;
    write(&store, &staged, &body).await;
    store.sync(&staged).await.expect("sync");
    store.sync(&staged).await.expect("sync again");
    if store.limits().read_back == ReadBack::BeforeCommit {
        let end = body.len() as u64;
        assert_eq!(store.read_staged(&staged, 0..end).await.expect("all"), body);
        assert_eq!(
            store.read_staged(&staged, end - 2..end).await.expect("the end"),
            body[body.len() - 2..]
        );
        assert_eq!(
            kind(store.read_staged(&staged, 0..end + 1).await),
            BlobErrorKind::ShortRead
        );
    }
}

/// Two stagings of one name: each commits its own bytes, and aborting one leaves the other alone (core.md §6).
pub async fn two_stagings_of_one_name_never_mix(open: &impl Open) {
    let store = open().await;
    let blob = name("contended");
    let bodies: [Vec<u8>; 3] = [vec![b'a'; MIB + 1], vec![b'b'; MIB + 1], vec![b'c'; 5]];
    let mut stagings = Vec::new();
    for body in &bodies {
        stagings.push(begin(&store, &blob, body).await);
    }
    assert!(stagings[0].id != stagings[1].id && stagings[1].id != stagings[2].id);
    let mut parts = Vec::new();
    for (staged, body) in stagings.iter().zip(&bodies) {
        parts.push(write(&store, staged, body).await);
    }
    store.abort(&stagings[2]).await.expect("abort");
    for at in [1, 0] {
        store
            .commit(&stagings[at], commit_of(parts[at].clone(), &bodies[at]))
            .await
            .expect("commit");
        assert_eq!(content(&store, &blob).await, bodies[at]);
    }
}

/// The second of two commits is `StagingLost`, and the blob is what the first made it.
pub async fn a_second_commit_finds_the_staging_lost(open: &impl Open) {
    let store = open().await;
    let blob = name("committed twice");
    let staged = begin(&store, &blob, b"body").await;
    let parts = write(&store, &staged, b"body").await;
    store
        .commit(&staged, commit_of(parts.clone(), b"body"))
        .await
        .expect("commit");
    let before = store.stat(&blob).await.expect("stat");
    assert_eq!(
        kind(store.commit(&staged, commit_of(parts, b"body")).await),
        BlobErrorKind::StagingLost
    );
    assert_eq!(kind(store.parts(&staged).await), BlobErrorKind::StagingLost);
    assert_eq!(store.stat(&blob).await.expect("stat"), before);
}

/// `Mismatch`: a commit of more or fewer bytes than are staged makes nothing visible and loses nothing.
pub async fn a_commit_of_another_size_changes_nothing(open: &impl Open) {
    let store = open().await;
    let blob = name("wrong size");
    let staged = begin(&store, &blob, b"body").await;
    let parts = write(&store, &staged, b"body").await;
    for size in [0, 3, 5] {
        let wrong = Commit {
            size,
            ..commit_of(parts.clone(), b"body")
        };
        assert_eq!(
            kind(store.commit(&staged, wrong).await),
            BlobErrorKind::Mismatch,
            "{size} bytes"
        );
        assert_eq!(kind(store.stat(&blob).await), BlobErrorKind::NotFound);
    }
    store
        .commit(&staged, commit_of(parts, b"body"))
        .await
        .expect("the right size");
}

/// A commit whose condition does not hold leaves the blob and its identity as they were, and the staging too.
pub async fn a_commit_whose_condition_fails_changes_nothing(open: &impl Open) {
    let store = open().await;
    let blob = name("guarded");
    let identity = Identity {
        upload_id: UploadId::random(),
        crc64nvme: Crc64::of(b"there"),
    };
    let meta = BlobMeta {
        identity: Some(identity),
        ..BlobMeta::default()
    };
    let stale = put(&store, &blob, "older", Condition::None).await.expect("put").tag;
    let before = store
        .put(&blob, Bytes::from("there"), meta, Condition::None)
        .await
        .expect("put");

    let staged = begin(&store, &blob, b"newer").await;
    let parts = write(&store, &staged, b"newer").await;
    let other = Identity {
        upload_id: UploadId::random(),
        crc64nvme: Crc64::of(b"newer"),
    };
    for condition in [Condition::Absent, Condition::Matches(stale)] {
        let meta = BlobMeta {
            identity: Some(other.clone()),
            ..BlobMeta::default()
        };
        let refused = Commit {
            condition,
            meta,
            ..commit_of(parts.clone(), b"newer")
        };
        assert_eq!(
            kind(store.commit(&staged, refused).await),
            BlobErrorKind::ConditionFailed
        );
        assert_eq!(store.stat(&blob).await.expect("stat"), before);
        assert_eq!(content(&store, &blob).await, "there");
    }
    let allowed = Commit {
        condition: Condition::Matches(before.tag),
        ..commit_of(parts, b"newer")
    };
    store
        .commit(&staged, allowed)
        .await
        .expect("the staging is still there");
    assert_eq!(content(&store, &blob).await, "newer");
}

/// `abort`: nothing visible, nothing listed as Ferry's own, no further use; a second time is no error.
pub async fn an_aborted_staging_is_lost_and_leaves_nothing(open: &impl Open) {
    let store = open().await;
    let staged = begin(&store, &name("aborted"), b"body").await;
    let parts = write(&store, &staged, b"body").await;
    for time in ["first", "second"] {
        store
            .abort(&staged)
            .await
            .unwrap_or_else(|error| panic!("{time} abort: {error}"));
    }
    assert_eq!(
        kind(store.commit(&staged, commit_of(parts, b"body")).await),
        BlobErrorKind::StagingLost
    );
    assert_eq!(kind(store.stat(&staged.name).await), BlobErrorKind::NotFound);
    assert!(names(&store, ".ferry/staged/").await.is_empty());
}

/// Every operation on a staging that never was, or is no more, says so.
pub async fn a_staging_nobody_began_is_lost(open: &impl Open) {
    let store = open().await;
    let staged = begin(&store, &name("s"), b"x").await;
    store.abort(&staged).await.expect("abort");
    for lost in [
        staged,
        Staged {
            name: name("s"),
            id: StagedId::random(),
        },
    ] {
        assert_eq!(
            kind(store.write_part(&lost, 0, Bytes::from("x")).await),
            BlobErrorKind::StagingLost
        );
        assert_eq!(kind(store.parts(&lost).await), BlobErrorKind::StagingLost);
        assert_eq!(kind(store.truncate(&lost, 0).await), BlobErrorKind::StagingLost);
        assert_eq!(kind(store.sync(&lost).await), BlobErrorKind::StagingLost);
        assert_eq!(kind(store.read_staged(&lost, 0..0).await), BlobErrorKind::StagingLost);
        assert_eq!(kind(store.exclusive(&lost).await), BlobErrorKind::StagingLost);
        assert_eq!(
            kind(store.commit(&lost, commit_of(Vec::new(), b"")).await),
            BlobErrorKind::StagingLost
        );
    }
}

/// `copy_part`: a range of a blob, and two blobs one after the other, as a concatenation does.
pub async fn a_range_of_a_blob_is_copied_within_the_store(open: &impl Open) {
    let store = open().await;
    let part = part_len(&store);
    let (front, back) = (pattern(part + 10), pattern(4321));
    for (blob, body) in [("partial/1", &front), ("partial/2", &back)] {
        let staged = begin(&store, &name(blob), body).await;
        let parts = write(&store, &staged, body).await;
        store.commit(&staged, commit_of(parts, body)).await.expect("commit");
    }
    let whole = [&front[10..], &back[..]].concat();
    let blob = name("final");
    let staged = begin(&store, &blob, &whole).await;
    let head = store
        .copy_part(&staged, 0, &name("partial/1"), 10..front.len() as u64)
        .await
        .expect("copy");
    assert_eq!((head.offset, head.len), (0, part as u64));
    let tail = store
        .copy_part(&staged, head.len, &name("partial/2"), 0..4321)
        .await
        .expect("copy");

    let beyond = store.copy_part(&staged, 0, &name("partial/2"), 0..4322).await;
    assert_eq!(kind(beyond), BlobErrorKind::ShortRead);
    assert_eq!(
        kind(store.copy_part(&staged, 0, &name("partial/3"), 0..1).await),
        BlobErrorKind::NotFound
    );
    if store.limits().ordered {
        let gap = store
            .copy_part(&staged, whole.len() as u64 + 1, &name("partial/2"), 0..1)
            .await;
        assert_eq!(kind(gap), BlobErrorKind::Invalid);
    }
    store
        .commit(&staged, commit_of(vec![head, tail], &whole))
        .await
        .expect("commit");
    assert_eq!(content(&store, &blob).await, whole);
}
