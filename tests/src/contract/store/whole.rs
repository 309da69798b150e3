//! Finished blobs: put, read, delete, identity.

use bytes::Bytes;
use shared::checksum::Crc64;
use shared::store::{BlobErrorKind, BlobMeta, Commit, Condition, Identity};
use shared::upload::UploadId;

use super::{Open, begin, commit_of, content, kind, name, names, put, write};

/// `check` succeeds, and if the container has a limit, there is room in it.
pub async fn a_container_answers_for_itself(open: &impl Open) {
    let store = open().await;
    store.check().await.expect("check");
    if let Some(space) = store.space().await.expect("space") {
        assert!(space.free > 0 && space.free <= space.total, "{space:?}");
    }
    assert!(names(&store, "").await.is_empty(), "the check left something visible");
}

/// `put` creates and replaces; `stat` and `read` tell what was put last.
pub async fn a_small_blob_is_put_read_and_replaced(open: &impl Open) {
    let store = open().await;
    let blob = name("folder/x y ä.csv");
    for body in ["one", "another"] {
        let put = put(&store, &blob, body, Condition::None).await.expect("put");
        let stat = store.stat(&blob).await.expect("stat");
        assert_eq!(stat, put);
        assert_eq!((stat.size, stat.identity), (body.len() as u64, None));
        assert_eq!(content(&open().await, &blob).await, body);
    }
}

/// `stat` and `read` of nothing are `NotFound`, also below a blob and for a folder.
pub async fn a_blob_that_is_not_there_is_not_found(open: &impl Open) {
    let store = open().await;
    put(&store, &name("a/b"), "x", Condition::None).await.expect("put");
    for missing in ["nothing", "a", "a/b/c", "no/such/folder"] {
        let missing = name(missing);
        assert_eq!(
            kind(store.stat(&missing).await),
            BlobErrorKind::NotFound,
            "stat {missing}"
        );
        assert_eq!(
            kind(store.read(&missing, 0..0, None).await),
            BlobErrorKind::NotFound,
            "read {missing}"
        );
    }
}

/// `delete` removes one blob, and is content with none.
pub async fn a_deleted_blob_is_gone_and_deleting_it_again_is_no_error(open: &impl Open) {
    let store = open().await;
    let (gone, stays) = (name("d/gone"), name("d/stays"));
    for blob in [&gone, &stays] {
        put(&store, blob, "x", Condition::None).await.expect("put");
    }
    for time in ["first", "second"] {
        store
            .delete(&gone)
            .await
            .unwrap_or_else(|error| panic!("{time} deletion: {error}"));
        assert_eq!(kind(store.stat(&gone).await), BlobErrorKind::NotFound);
    }
    store.delete(&name("never/was")).await.expect("nothing to delete");
    store.delete(&name("d")).await.expect("a folder is no blob");
    assert_eq!(content(&store, &stays).await, "x");
}

/// `read` gives the whole range or an error, and an empty range as well.
pub async fn ranges_are_read_exactly_or_not_at_all(open: &impl Open) {
    let store = open().await;
    let blob = name("ten");
    put(&store, &blob, "0123456789", Condition::None).await.expect("put");
    for (range, text) in [
        (0..10, "0123456789"),
        (0..1, "0"),
        (9..10, "9"),
        (3..7, "3456"),
        (4..4, ""),
        (10..10, ""),
    ] {
        assert_eq!(
            store.read(&blob, range.clone(), None).await.expect("read"),
            text,
            "{range:?}"
        );
    }
    for range in [0..11, 9..11, 10..11, 11..12, 0..u64::MAX] {
        assert_eq!(
            kind(store.read(&blob, range.clone(), None).await),
            BlobErrorKind::ShortRead,
            "{range:?}"
        );
    }
}

/// `read` with `if_match`: a blob that was replaced since is not mixed with what was read before (faults.md 53).
pub async fn a_read_with_a_stale_tag_is_refused(open: &impl Open) {
    let store = open().await;
    let blob = name("source");
    let old = put(&store, &blob, "old content", Condition::None)
        .await
        .expect("put")
        .tag;
    assert_eq!(store.read(&blob, 0..3, Some(&old)).await.expect("read"), "old");
    let new = put(&store, &blob, "new content", Condition::None)
        .await
        .expect("put")
        .tag;
    assert_eq!(
        kind(store.read(&blob, 3..11, Some(&old)).await),
        BlobErrorKind::ConditionFailed
    );
    assert_eq!(store.read(&blob, 0..3, Some(&new)).await.expect("read"), "new");
}

/// Whose copy a blob is, is known as long as the content is there, and not of what replaces it.
pub async fn an_identity_comes_back_with_the_blob(open: &impl Open) {
    let store = open().await;
    let blob = name("2026/11/21/delivered.csv");
    let identity = Identity {
        upload_id: UploadId::random(),
        crc64nvme: Crc64::of(b"delivered"),
    };
    let staged = begin(&store, &blob, b"delivered").await;
    let parts = write(&store, &staged, b"delivered").await;
    let meta = BlobMeta {
        identity: Some(identity.clone()),
        ..BlobMeta::default()
    };
    store
        .commit(
            &staged,
            Commit {
                meta: meta.clone(),
                ..commit_of(parts, b"delivered")
            },
        )
        .await
        .expect("commit");
    assert_eq!(
        open().await.stat(&blob).await.expect("stat").identity,
        Some(identity.clone())
    );

    put(&store, &blob, "delivered", Condition::None)
        .await
        .expect("somebody else's file of that length");
    assert_eq!(store.stat(&blob).await.expect("stat").identity, None);

    let put = store
        .put(&blob, Bytes::from("small"), meta, Condition::None)
        .await
        .expect("put");
    assert_eq!(put.identity, Some(identity));
}

/// A name below another blob: stores that cannot have both refuse the second for good and keep the first.
pub async fn a_name_that_is_the_folder_of_another_is_never_half_there(open: &impl Open) {
    let store = open().await;
    put(&store, &name("one"), "first", Condition::None).await.expect("put");
    put(&store, &name("two/below"), "first", Condition::None)
        .await
        .expect("put");
    for (first, second) in [("one", "one/below"), ("two/below", "two")] {
        let (first, second) = (name(first), name(second));
        match put(&store, &second, "second", Condition::None).await {
            Ok(_) => assert_eq!(content(&store, &second).await, "second"),
            Err(error) => {
                assert_eq!(error.kind, BlobErrorKind::Invalid, "{error:?}");
                assert_eq!(kind(store.stat(&second).await), BlobErrorKind::NotFound);
            }
        }
        assert_eq!(content(&store, &first).await, "first");
    }
    assert!(
        names(&store, ".ferry/staged/").await.is_empty(),
        "what could not be put was left behind"
    );
}
