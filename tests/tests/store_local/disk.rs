//! What the file system cannot or will not do.

use bytes::Bytes;
use shared::checksum::Crc64;
use shared::failure::FailureClass;
use shared::store::{BlobErrorKind, BlobMeta, Condition, Identity, Role};
use shared::upload::UploadId;
use tests::contract::store::{MIB, begin, commit_of, content, kind, name, names, pattern, put};

use super::{Mount, open, temporary};

// faults.md 11: ENOSPC also after a partial write; what could be written is kept, and it goes on when there is room.
#[tokio::test]
async fn a_full_disk_keeps_what_it_could_take_and_the_blob_is_finished_later() {
    let mount = Mount::new("tmpfs", "size=2m");
    let store = open(mount.as_ref());
    put(&store, &name("ballast"), &"x".repeat(MIB), Condition::None)
        .await
        .expect("there is room");
    let blob = name("large");
    let body = pattern(MIB + MIB / 2);
    let staged = begin(&store, &blob, &body).await;
    let error = store
        .write_part(&staged, 0, Bytes::from(body.clone()))
        .await
        .expect_err("there is no room");
    assert_eq!(
        (error.kind, error.class(Role::Target)),
        (BlobErrorKind::NoSpace, FailureClass::Transient)
    );
    let kept = store.parts(&staged).await.expect("parts").contiguous;
    assert!(kept > 0 && kept < body.len() as u64, "{kept} bytes kept");
    let at = usize::try_from(kept).unwrap();
    assert_eq!(
        store.read_staged(&staged, 0..kept).await.expect("read back"),
        body[..at]
    );
    assert_eq!(
        kind(put(&store, &name("small"), &"x".repeat(MIB), Condition::None).await),
        BlobErrorKind::NoSpace
    );
    assert_eq!(kind(store.stat(&name("small")).await), BlobErrorKind::NotFound);
    assert_eq!(
        names(&store, ".ferry/staged/").await.len(),
        1,
        "the failed put left something"
    );
    assert_eq!(store.space().await.expect("space").expect("a limit").free, 0);

    store
        .delete(&name("ballast"))
        .await
        .expect("a full disk can be emptied");
    let tail = Bytes::copy_from_slice(&body[at..]);
    store
        .write_part(&staged, kept, tail)
        .await
        .expect("there is room again");
    store
        .commit(&staged, commit_of(Vec::new(), &body))
        .await
        .expect("commit");
    assert_eq!(content(&store, &blob).await, body);
}

// faults.md 13: read-only; recovers by itself.
#[tokio::test]
async fn a_read_only_file_system_is_denied_until_it_can_be_written_again() {
    let mount = Mount::new("tmpfs", "size=8m");
    let store = open(mount.as_ref());
    put(&store, &name("kept"), "kept", Condition::None).await.expect("put");
    mount.remount("ro");
    let error = store.check().await.expect_err("it cannot be written");
    assert_eq!(
        (error.kind, error.class(Role::Target)),
        (BlobErrorKind::Denied, FailureClass::Denied)
    );
    assert_eq!(kind(store.begin(&name("x"), None).await), BlobErrorKind::Denied);
    assert_eq!(content(&store, &name("kept")).await, "kept");
    mount.remount("rw");
    store.check().await.expect("it can be written again");
}

// Both ways of keeping identities are really tried by the contract above.
#[tokio::test]
async fn identities_are_attributes_where_there_are_some_and_files_elsewhere() {
    let (with, without) = (temporary(), Mount::new("ramfs", "mode=755"));
    let identity = Identity {
        upload_id: UploadId::random(),
        crc64nvme: Crc64::of(b"x"),
    };
    for (folder, beside) in [(with.path(), 0), (without.as_ref(), 1)] {
        let store = open(folder);
        let meta = BlobMeta {
            identity: Some(identity.clone()),
            ..BlobMeta::default()
        };
        store
            .put(&name("x"), Bytes::from("x"), meta, Condition::None)
            .await
            .expect("put");
        assert_eq!(
            open(folder).stat(&name("x")).await.expect("stat").identity,
            Some(identity.clone())
        );
        assert_eq!(
            names(&store, ".ferry/meta/").await.len(),
            beside,
            "{}",
            folder.display()
        );
    }
}
