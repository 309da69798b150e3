//! The folder store: the contract of all stores, and what only folders have to withstand.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use shared::store::{BlobErrorKind, BlobStore, Condition, LocalStore, Syncing};
use tempfile::TempDir;
use tests::contract::store::{begin, kind, name, names, put};

#[path = "store_local/base.rs"]
mod base;
#[path = "store_local/disk.rs"]
mod disk;
#[path = "store_local/names.rs"]
mod names;

mod synced {
    tests::store_contract!(super::container(super::temporary(), super::Syncing::AtCommit));
}

mod unsynced {
    tests::store_contract!(super::container(super::temporary(), super::Syncing::Never));
}

/// `ramfs` has no extended attributes: identities live in files of their own there.
mod without_attributes {
    tests::store_contract!(super::container(
        super::Mount::new("ramfs", "mode=755"),
        super::Syncing::AtCommit
    ));
}

fn temporary() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn open(path: &Path) -> Arc<dyn BlobStore> {
    Arc::new(LocalStore::open(path, Syncing::AtCommit, true).expect("open"))
}

/// The container of a contract's case: a folder that goes when the function does.
fn container(folder: impl AsRef<Path>, syncing: Syncing) -> impl AsyncFn() -> Arc<dyn BlobStore> {
    async move || {
        let store = LocalStore::open(folder.as_ref(), syncing, true).expect("open");
        Arc::new(store) as Arc<dyn BlobStore>
    }
}

/// A file system of its own, in a temporary folder. These tests need the right to mount; without it they fail.
struct Mount {
    folder: TempDir,
}

impl Mount {
    fn new(kind: &str, options: &str) -> Self {
        let mount = Self { folder: temporary() };
        mount.run("mount", &["-t", kind, "-o", options, "ferry-test"]);
        mount
    }

    fn remount(&self, options: &str) {
        self.run("mount", &["-o", &format!("remount,{options}")]);
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let done = Command::new(program).args(arguments).arg(self.folder.path()).output();
        let done = done.unwrap_or_else(|error| panic!("{program} cannot be started: {error}"));
        let error = String::from_utf8_lossy(&done.stderr);
        assert!(
            done.status.success(),
            "{program} {arguments:?}: {error} (this test must be run with the right to mount)"
        );
    }
}

impl AsRef<Path> for Mount {
    fn as_ref(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily, since a store may still be open. One that a test has already unmounted is no matter.
        Command::new("umount").arg("-l").arg(self.folder.path()).output().ok();
    }
}

/// Everything below `folder`, with the content of files.
fn tree(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(tree(&path));
            found.push((path, Vec::new()));
        } else {
            let content = fs::read(&path).unwrap_or_default();
            found.push((path, content));
        }
    }
    found.sort();
    found
}

// core.md §3, "One writer": between processes the writer holds a lock on the staged file.
#[tokio::test]
async fn one_process_at_a_time_writes_a_staging() {
    let base = temporary();
    let (one, other) = (open(base.path()), open(base.path()));
    let (staged, second) = (begin(&one, &name("x"), b"").await, begin(&one, &name("x"), b"").await);
    let guard = one.exclusive(&staged).await.expect("the first writer");
    assert_eq!(kind(other.exclusive(&staged).await), BlobErrorKind::Locked);
    assert_eq!(kind(one.exclusive(&staged).await), BlobErrorKind::Locked);
    let _independent = other.exclusive(&second).await.expect("another staging of that name");
    one.write_part(&staged, 0, Bytes::from("x"))
        .await
        .expect("the writer writes");
    drop(guard);
    other.exclusive(&staged).await.expect("the next writer");
}

// deliver.md §6: folders 0755.
#[tokio::test]
async fn folders_of_names_have_the_mode_that_readers_need() {
    let base = temporary();
    let store = open(base.path());
    put(&store, &name("a/b/c"), "x", Condition::None).await.expect("put");
    fs::create_dir(base.path().join("by hand")).unwrap(); // 0777 less the umask
    let mode = |path: &str| fs::metadata(base.path().join(path)).unwrap().permissions().mode() & 0o777;
    for folder in ["a", "a/b"] {
        assert_eq!(mode(folder), 0o755 & mode("by hand"), "{folder}");
    }
}

#[tokio::test]
async fn what_is_no_file_of_ours_is_neither_listed_nor_waited_for() {
    let base = temporary();
    let store = open(base.path());
    put(&store, &name("a/file"), "x", Condition::None).await.expect("put");
    fs::write(base.path().join(std::ffi::OsStr::from_bytes(b"a/not \xff text")), "x").unwrap();
    fs::write(base.path().join("a/line\nbreak"), "x").unwrap();
    fs::create_dir(base.path().join(".FERRY")).unwrap();
    fs::write(base.path().join(".FERRY/x"), "x").unwrap();
    let made = Command::new("mkfifo")
        .arg(base.path().join("a/pipe"))
        .status()
        .expect("mkfifo");
    assert!(made.success());
    assert_eq!(names(&store, "").await, ["a/file"]);
    assert_eq!(kind(store.stat(&name("a/pipe")).await), BlobErrorKind::NotFound);
    assert_eq!(
        kind(store.read(&name("a/pipe"), 0..1, None).await),
        BlobErrorKind::NotFound
    );
}

// More entries in one folder than are held at a time, most of which lead to no name.
#[tokio::test]
async fn a_page_is_filled_from_behind_thousands_of_empty_folders() {
    let base = temporary();
    let store = open(base.path());
    for at in 0..2500 {
        fs::create_dir(base.path().join(format!("empty {at:04}"))).unwrap();
    }
    for at in 0..1500 {
        fs::write(base.path().join(format!("file {at:04}")), "").unwrap();
    }
    let all: Vec<String> = (0..1500).map(|at| format!("file {at:04}")).collect();
    assert_eq!(names(&store, "").await, all);
    let next = store.list("", Some(&name("file 0700")), 1).await.expect("list");
    assert_eq!(next, [name("file 0701")]);
}
