//! Whatever a blob is called and wherever links lead: nothing outside the folder.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use shared::failure::FailureClass;
use shared::store::{BlobErrorKind, BlobMeta, BlobName, BlobStore, Condition, LocalStore, Role, Syncing};
use tests::contract::store::{begin, commit_of, content, kind, name, names, put, write};

use super::{open, temporary, tree};

// DESIGN.md "Contracts"; security.md 10: no symbolic link leads out of a file target, wherever in the name it is.
#[tokio::test]
async fn links_out_of_the_folder_are_refused_at_every_component() {
    let (base, outside) = (temporary(), temporary());
    fs::create_dir_all(outside.path().join("b/c")).unwrap();
    fs::write(outside.path().join("b/c/secret"), "secret").unwrap();
    let store = open(base.path());
    fs::create_dir_all(base.path().join("2/a")).unwrap();
    fs::create_dir_all(base.path().join("3/a/b")).unwrap();
    fs::create_dir_all(base.path().join("4/a/b/c")).unwrap();
    fs::create_dir_all(base.path().join("5/a/b/c")).unwrap();
    symlink(outside.path(), base.path().join("1")).unwrap();
    symlink(outside.path().join("b"), base.path().join("2/a/b")).unwrap();
    symlink(outside.path().join("b/c"), base.path().join("3/a/b/c")).unwrap();
    symlink(outside.path().join("b/c/secret"), base.path().join("4/a/b/c/secret")).unwrap();
    let relative = PathBuf::from("../../../../..").join(outside.path().file_name().unwrap());
    symlink(relative.join("b/c/secret"), base.path().join("5/a/b/c/secret")).unwrap();
    assert_eq!(
        fs::read(base.path().join("5/a/b/c/secret")).unwrap(),
        b"secret",
        "the link is one that works"
    );
    let before = tree(outside.path());

    for target in [
        "1/b/c/secret",
        "2/a/b/c/secret",
        "3/a/b/c/secret",
        "4/a/b/c/secret",
        "5/a/b/c/secret",
    ] {
        let blob = name(target);
        assert_eq!(kind(store.stat(&blob).await), BlobErrorKind::Denied, "stat {target}");
        assert_eq!(
            kind(store.read(&blob, 0..1, None).await),
            BlobErrorKind::Denied,
            "read {target}"
        );
        assert_eq!(
            kind(put(&store, &blob, "x", Condition::None).await),
            BlobErrorKind::Denied,
            "put {target}"
        );
        assert_eq!(
            kind(store.delete(&blob).await),
            BlobErrorKind::Denied,
            "delete {target}"
        );
        put(&store, &blob, "x", Condition::Absent)
            .await
            .expect_err("nothing is put through a link");
        let staged = begin(&store, &blob, b"x").await;
        let parts = write(&store, &staged, b"x").await;
        assert_eq!(
            kind(store.commit(&staged, commit_of(parts, b"x")).await),
            BlobErrorKind::Denied,
            "{target}"
        );
        assert_eq!(
            kind(store.copy_part(&staged, 0, &blob, 0..1).await),
            BlobErrorKind::Denied,
            "copy {target}"
        );
        store.abort(&staged).await.expect("abort");
    }
    for new in ["1/new", "1/new/folder/file", "2/a/b/new", "3/a/b/c/new/file"] {
        put(&store, &name(new), "x", Condition::Absent)
            .await
            .expect_err("nothing is made through a link");
    }
    assert!(names(&store, "").await.is_empty(), "links are not listed");
    store.list("1/b/", None, 10).await.expect_err("nor listed through");
    assert_eq!(tree(outside.path()), before);
    assert!(names(&store, ".ferry/staged/").await.is_empty());
}

// The same for Ferry's own folders.
#[tokio::test]
async fn a_link_in_place_of_the_staging_folder_is_refused() {
    let (base, outside) = (temporary(), temporary());
    let store = open(base.path());
    fs::remove_dir(base.path().join(".ferry/staged")).unwrap();
    symlink(outside.path(), base.path().join(".ferry/staged")).unwrap();
    assert_eq!(kind(store.begin(&name("x"), None).await), BlobErrorKind::Denied);
    assert_eq!(
        kind(put(&store, &name("x"), "x", Condition::None).await),
        BlobErrorKind::Denied
    );
    assert_eq!(kind(store.check().await), BlobErrorKind::Denied);
    assert_eq!(tree(outside.path()), []);
}

// Links that stay inside are the operator's business.
#[tokio::test]
async fn a_link_within_the_folder_is_followed() {
    let base = temporary();
    let store = open(base.path());
    put(&store, &name("volume/x"), "there", Condition::None)
        .await
        .expect("put");
    symlink("volume", base.path().join("link")).unwrap();
    assert_eq!(content(&store, &name("link/x")).await, "there");
}

#[tokio::test]
async fn a_name_that_the_file_system_cannot_take_is_permanent() {
    let base = temporary();
    let store = open(base.path());
    for long in ["x".repeat(256), format!("folder/{}/x", "ä".repeat(200))] {
        let error = put(&store, &name(&long), "x", Condition::None)
            .await
            .expect_err("too long");
        assert_eq!(error.class(Role::Target), FailureClass::Permanent, "{error:?}");
    }
    put(&store, &name(&"x".repeat(255)), "x", Condition::None)
        .await
        .expect("the longest");
}

/// Text that a hostile sender might choose for a name: parts of every known trick, joined at random.
fn hostile() -> impl Strategy<Value = String> {
    let tricks = prop::sample::select(vec![
        "..",
        ".",
        "/",
        "//",
        "\\",
        "..\\",
        "%2e%2e%2f",
        "%2e",
        "%2f",
        "%252e%252e%252f",
        "%c0%af",
        "%00",
        "\0",
        "\n",
        "\r\n",
        "\u{202e}",
        "\u{ff0e}\u{ff0e}\u{ff0f}",
        "\u{2215}",
        "\u{2024}\u{2024}",
        "\u{feff}",
        "\u{e000}",
        "~",
        "~root",
        "$HOME",
        "C:",
        "con",
        "nul",
        ".ferry",
        ".Ferry",
        ".ferry/staged",
        "staged",
        "stripes",
        "sentinel",
        "base",
        "etc/passwd",
        "a",
        "e\u{301}",
        "é",
        " ",
        "*",
        "?",
        "|",
        ":",
        "-rf",
        "..;",
        "....//",
        "file:///",
        "proc/self/root",
    ]);
    let piece =
        prop_oneof![3 => tricks.prop_map(str::to_owned), 1 => "\\PC{0,12}", 1 => any::<String>(), 1 => "[a-c]/"];
    prop::collection::vec(piece, 1..8).prop_map(|pieces| pieces.concat())
}

// security.md 10: at least 5,000 names; nothing outside, nothing overwritten.
#[test]
fn no_name_whatsoever_is_stored_outside_the_folder() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let around = temporary();
    let base = around.path().join("base");
    fs::write(around.path().join("sentinel"), "untouched").unwrap();
    let store: Arc<dyn BlobStore> = Arc::new(LocalStore::open(&base, Syncing::Never, true).expect("open"));
    runtime
        .block_on(put(&store, &name("canary"), "untouched", Condition::None))
        .expect("put");
    let mut beside: Vec<_> = tree(&base.join(".ferry")).into_iter().map(|(path, _)| path).collect();
    beside.retain(|path| !path.starts_with(base.join(".ferry/stripes")));

    let stored = std::cell::Cell::new(0);
    let config = Config {
        cases: 6000,
        failure_persistence: None,
        ..Config::default()
    };
    let run = TestRunner::new(config).run(&hostile(), |text| {
        let Ok(blob) = BlobName::new(text.clone()) else {
            return Ok(());
        };
        let body = Bytes::from(text.clone());
        match runtime.block_on(store.put(&blob, body, BlobMeta::default(), Condition::Absent)) {
            Ok(_) => {
                stored.set(stored.get() + 1);
                let path = base.join(blob.as_str());
                prop_assert!(fs::canonicalize(&path)?.starts_with(fs::canonicalize(&base)?));
                prop_assert_eq!(fs::read(&path)?, text.as_bytes());
            }
            // There already, the folder of another name, or too long.
            Err(error) => prop_assert!(
                matches!(error.kind, BlobErrorKind::ConditionFailed | BlobErrorKind::Invalid),
                "{:?}",
                error
            ),
        }
        let mut entries: Vec<_> = fs::read_dir(around.path())?
            .map(|entry| entry.unwrap().file_name())
            .collect();
        entries.sort();
        prop_assert_eq!(entries, ["base", "sentinel"]);
        Ok(())
    });
    run.unwrap_or_else(|failure| panic!("{failure}"));
    assert!(
        stored.get() > 500,
        "only {} names were good enough to be stored",
        stored.get()
    );
    assert_eq!(fs::read(around.path().join("sentinel")).unwrap(), b"untouched");
    assert_eq!(fs::read(base.join("canary")).unwrap(), b"untouched");
    let mut after: Vec<_> = tree(&base.join(".ferry")).into_iter().map(|(path, _)| path).collect();
    after.retain(|path| !path.starts_with(base.join(".ferry/stripes")));
    assert_eq!(after, beside, "something was put among Ferry's own");
}
