//! The base folder vanishes, or something else stands in its place.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use shared::failure::FailureClass;
use shared::store::{BlobErrorKind, BlobStore, Condition, LocalStore, Role, Staged, Syncing};
use tempfile::TempDir;
use tests::contract::store::{begin, commit_of, content, kind, name, put, write};

use super::{Mount, open, temporary, tree};

/// Every operation that could make something must notice that the container is not there, and make nothing.
async fn assert_no_container(store: &Arc<dyn BlobStore>, staged: &Staged) {
    let blob = name("folder/new");
    assert_eq!(kind(store.check().await), BlobErrorKind::NoContainer);
    assert_eq!(kind(store.space().await), BlobErrorKind::NoContainer);
    assert_eq!(
        kind(put(store, &blob, "x", Condition::None).await),
        BlobErrorKind::NoContainer
    );
    assert_eq!(
        kind(put(store, &blob, "x", Condition::Absent).await),
        BlobErrorKind::NoContainer
    );
    assert_eq!(kind(store.begin(&blob, None).await), BlobErrorKind::NoContainer);
    let error = store
        .commit(staged, commit_of(Vec::new(), b"staged"))
        .await
        .expect_err("nothing to commit to");
    assert_eq!(error.class(Role::Target), FailureClass::Configuration, "{error:?}");
    assert_eq!(error.class(Role::Source), FailureClass::Configuration, "{error:?}");
}

/// A base folder below a temporary one, with a blob and a staging in it.
async fn site() -> (TempDir, PathBuf, Arc<dyn BlobStore>, Staged) {
    let around = temporary();
    let base = around.path().join("base");
    let store = open(&base);
    put(&store, &name("kept"), "kept", Condition::None).await.expect("put");
    let staged = begin(&store, &name("later"), b"staged").await;
    write(&store, &staged, b"staged").await;
    (around, base, store, staged)
}

// faults.md 13; core.md §6: a base folder that vanishes is class configuration, and never made anew.
#[tokio::test]
async fn a_folder_that_vanished_is_not_made_anew_and_works_again_when_it_is_back() {
    let (around, base, store, staged) = site().await;
    let aside = around.path().join("aside");
    fs::rename(&base, &aside).unwrap();
    assert_no_container(&store, &staged).await;
    assert!(!base.exists());

    fs::rename(&aside, &base).unwrap();
    store.check().await.expect("the same folder is back");
    assert_eq!(content(&store, &name("kept")).await, "kept");
    store
        .commit(&staged, commit_of(Vec::new(), b"staged"))
        .await
        .expect("commit");
    assert_eq!(content(&store, &name("later")).await, "staged");
}

#[tokio::test]
async fn a_folder_that_was_removed_is_no_container_also_for_readers() {
    let (_around, base, store, staged) = site().await;
    fs::remove_dir_all(&base).unwrap();
    assert_no_container(&store, &staged).await;
    // Not "not found": that would send the job to the dead letters at once.
    assert_eq!(kind(store.stat(&name("kept")).await), BlobErrorKind::NoContainer);
    assert_eq!(
        kind(store.read(&name("kept"), 0..4, None).await),
        BlobErrorKind::NoContainer
    );
    assert_eq!(kind(store.list("", None, 10).await), BlobErrorKind::NoContainer);
    assert_eq!(kind(store.list("a/", None, 10).await), BlobErrorKind::NoContainer);
    assert_eq!(kind(store.parts(&staged).await), BlobErrorKind::NoContainer);
    assert_eq!(
        kind(store.write_part(&staged, 0, Bytes::from("x")).await),
        BlobErrorKind::NoContainer
    );
    assert_eq!(kind(store.delete(&name("kept")).await), BlobErrorKind::NoContainer);
    assert!(!base.exists());
}

#[tokio::test]
async fn a_folder_that_was_made_anew_is_another_one() {
    let (_around, base, store, staged) = site().await;
    fs::rename(&base, base.with_extension("old")).unwrap();
    fs::create_dir(&base).unwrap();
    assert_no_container(&store, &staged).await;
    assert_eq!(tree(&base), [], "nothing was made in it");
}

#[tokio::test]
async fn a_file_in_place_of_the_folder_is_no_container() {
    let (_around, base, store, staged) = site().await;
    fs::rename(&base, base.with_extension("old")).unwrap();
    fs::write(&base, "a file").unwrap();
    assert_no_container(&store, &staged).await;
    assert_eq!(fs::read(&base).unwrap(), b"a file");
}

#[tokio::test]
async fn a_lost_mount_is_no_container_and_nothing_is_written_below_it() {
    let mount = Mount::new("tmpfs", "size=8m");
    let store = open(mount.as_ref());
    let staged = begin(&store, &name("later"), b"staged").await;
    write(&store, &staged, b"staged").await;
    mount.run("umount", &["-l"]);
    assert_no_container(&store, &staged).await;
    assert_eq!(tree(mount.as_ref()), [], "nothing was made below the mount point");
}

#[tokio::test]
async fn only_a_store_that_may_make_its_folder_makes_anything() {
    let around = temporary();
    let missing = around.path().join("missing");
    let opened = LocalStore::open(&missing, Syncing::AtCommit, false);
    assert_eq!(kind(opened), BlobErrorKind::NoContainer);
    assert!(!missing.exists());

    let file = around.path().join("file");
    fs::write(&file, "x").unwrap();
    for create in [false, true] {
        assert_eq!(
            kind(LocalStore::open(&file, Syncing::AtCommit, create)),
            BlobErrorKind::NoContainer
        );
        assert_eq!(
            kind(LocalStore::open(&file.join("x"), Syncing::AtCommit, create)),
            BlobErrorKind::NoContainer
        );
    }

    // An empty folder may be the mount point of a volume that is not there.
    let empty = around.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let store = LocalStore::open(&empty, Syncing::AtCommit, false).expect("it can be read");
    assert_eq!(kind(store.stat(&name("x")).await), BlobErrorKind::NotFound);
    assert_eq!(kind(store.begin(&name("x"), None).await), BlobErrorKind::NoContainer);
    assert_eq!(tree(&empty), []);

    let deep = around.path().join("made/with/all/above");
    open(&deep).check().await.expect("made");
}
