//! Faults that only the inside of the store can be given: failing syncs, no extended attributes, callers that leave.

use std::io;

use jiff::Timestamp;
use tempfile::TempDir;

use super::*;
use crate::checksum::Crc64;
use crate::store::{Identity, StagedId};
use crate::upload::UploadId;

fn folder() -> (TempDir, Folder) {
    let base = tempfile::tempdir().unwrap();
    let folder = Folder::open(base.path(), Syncing::AtCommit, true).unwrap();
    (base, folder)
}

fn name(text: &str) -> BlobName {
    BlobName::new(text).unwrap()
}

fn staged(folder: &Folder, blob: &str, body: &[u8]) -> Staged {
    let staged = folder.begin(name(blob)).unwrap();
    folder.write_part(&staged.id, 0, body).unwrap();
    staged
}

fn commit_of(body: &[u8]) -> Commit {
    let identity = Identity {
        upload_id: UploadId::random(),
        crc64nvme: Crc64::of(body),
    };
    Commit {
        parts: Vec::new(),
        size: body.len() as u64,
        crc: Crc64::of(body),
        meta: BlobMeta {
            identity: Some(identity),
            ..BlobMeta::default()
        },
        condition: Condition::None,
    }
}

fn put(folder: &Folder, blob: &str, body: &str) -> Result<BlobStat, Failed> {
    let (meta, here) = (BlobMeta::default(), CancellationToken::new());
    folder.put(&name(blob), body.as_bytes(), &meta, &Condition::None, &here)
}

fn content(folder: &Folder, blob: &str) -> Bytes {
    let size = folder.stat(&name(blob)).unwrap().size;
    folder.read(&name(blob), &(0..size), None).unwrap()
}

fn failing(_: &File) -> io::Result<()> {
    Err(io::Error::from(rustix::io::Errno::IO))
}

fn staged_files(folder: &Folder) -> Vec<BlobName> {
    folder.list(".ferry/staged/", None, 10).unwrap()
}

/// Waits until `met`, for ten seconds at most.
async fn until(met: impl Fn() -> bool) {
    let waited = tokio::time::timeout(std::time::Duration::from_secs(10), async {
        while !met() {
            tokio::task::yield_now().await;
        }
    });
    waited.await.expect("the condition came in time");
}

// faults.md 12: nothing becomes visible whose sync failed.
#[test]
fn a_file_that_could_not_be_synced_is_not_made_visible() {
    let (_base, mut folder) = folder();
    put(&folder, "blob", "before").unwrap();
    let staged = staged(&folder, "blob", b"after");
    folder.base.syncs.file = failing;
    folder.base.syncs.data = failing;
    let here = CancellationToken::new();
    let error = folder.commit(&staged, &commit_of(b"after"), &here).unwrap_err();
    assert_eq!(error.kind, BlobErrorKind::SyncFailed);
    assert_eq!(
        put(&folder, "blob", "after").unwrap_err().kind,
        BlobErrorKind::SyncFailed
    );
    assert_eq!(
        folder.sync_staged(&staged.id).unwrap_err().kind,
        BlobErrorKind::SyncFailed
    );
    assert_eq!(content(&folder, "blob"), "before");
    assert_eq!(
        staged_files(&folder).len(),
        1,
        "the staging is kept, and nothing of the put"
    );
}

// faults.md 12, 16: a caller that finds the final name after a failed commit takes it for durable.
#[test]
fn a_rename_that_could_not_be_synced_is_taken_back() {
    let (_base, mut folder) = folder();
    let staged = staged(&folder, "a/blob", b"body");
    folder.base.syncs.folder = failing;
    let here = CancellationToken::new();
    let error = folder.commit(&staged, &commit_of(b"body"), &here).unwrap_err();
    assert_eq!(error.kind, BlobErrorKind::SyncFailed);
    assert_eq!(folder.stat(&name("a/blob")).unwrap_err().kind, BlobErrorKind::NotFound);
    assert_eq!(folder.parts(&staged.id).unwrap().contiguous, 4);

    folder.base.syncs.folder = File::sync_all;
    folder.commit(&staged, &commit_of(b"body"), &here).unwrap();
    assert_eq!(content(&folder, "a/blob"), "body");
}

/// Folders in the order in which they were synced, by any test of this process.
#[cfg(target_os = "linux")]
static SYNCED: std::sync::Mutex<Vec<std::path::PathBuf>> = std::sync::Mutex::new(Vec::new());

#[cfg(target_os = "linux")]
fn noted(folder: &File) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;

    let path = std::fs::read_link(format!("/proc/self/fd/{}", folder.as_raw_fd()))?;
    SYNCED.lock().unwrap().push(path);
    Ok(())
}

// faults.md 16: a file is durable when all folders above it are.
#[cfg(target_os = "linux")]
#[test]
fn every_folder_above_a_new_name_is_synced_once_and_its_own_each_time() {
    let (base, mut folder) = folder();
    folder.base.syncs.folder = noted;
    let mut taken = 0;
    let mut synced = || {
        let all = SYNCED.lock().unwrap();
        let new = all[taken..]
            .iter()
            .map(|path| path.strip_prefix(base.path()).unwrap().display().to_string());
        let new: Vec<_> = new.collect();
        taken = all.len();
        new
    };
    put(&folder, "a/b/1", "x").unwrap();
    assert_eq!(synced(), ["a/b", "a", ""]);
    put(&folder, "a/b/2", "x").unwrap();
    assert_eq!(synced(), ["a/b"]);
    put(&folder, "a/c/1", "x").unwrap();
    assert_eq!(synced(), ["a/c", "a", ""]);

    let staged = staged(&folder, "x", b"x");
    folder.sync_staged(&staged.id).unwrap();
    assert_eq!(synced(), [".ferry/staged", ".ferry", ""]);
    folder.sync_staged(&staged.id).unwrap();
    assert_eq!(synced(), [""; 0], "the name is durable already");

    folder.syncing = Syncing::Never;
    put(&folder, "d/1", "x").unwrap();
    assert_eq!(synced(), [""; 0]);
}

// core.md §6: the way without extended attributes, on a file system that has them.
#[test]
fn an_identity_beside_the_file_never_vouches_for_another() {
    let (base, mut folder) = folder();
    folder.attributes = false;
    let meta_files = || std::fs::read_dir(base.path().join(".ferry/meta")).unwrap().count();
    let here = CancellationToken::new();
    let commit = commit_of(b"body");
    folder
        .commit(&staged(&folder, "blob", b"body"), &commit, &here)
        .unwrap();
    assert_eq!(folder.stat(&name("blob")).unwrap().identity, commit.meta.identity);
    let file = File::open(base.path().join("blob")).unwrap();
    let attribute = rustix::fs::fgetxattr(&file, "user.ferry", &mut [0_u8; 512][..]);
    assert!(attribute.is_err(), "this must test the other way");

    // Written over, by a program that is not Ferry.
    std::fs::write(base.path().join("blob"), "evil").unwrap();
    assert_eq!(folder.stat(&name("blob")).unwrap().identity, None);

    folder
        .commit(&staged(&folder, "blob", b"body"), &commit, &here)
        .unwrap();
    assert_eq!(folder.stat(&name("blob")).unwrap().identity, commit.meta.identity);
    folder
        .commit(&staged(&folder, "blob", b"next"), &commit_of(b"next"), &here)
        .unwrap();
    assert_ne!(folder.stat(&name("blob")).unwrap().identity, commit.meta.identity);
    let before = meta_files();
    folder.delete(&name("blob")).unwrap();
    assert_eq!(meta_files(), before - 1, "it goes with its file");

    let refused = Commit {
        condition: Condition::Matches(Tag("other".into())),
        ..commit
    };
    folder
        .commit(&staged(&folder, "blob", b"body"), &refused, &here)
        .unwrap_err();
    assert_eq!(meta_files(), before - 1, "a refused commit leaves none");
}

// Kernels older than 6.13 stamp files by a clock of a few milliseconds, and inodes are used again at once.
#[test]
fn a_tag_tells_when_a_content_was_finished_not_when_it_was_begun() {
    let (_base, folder) = folder();
    let staged = staged(&folder, "blob", b"body");
    let begun = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1);
    folder.staged_file(&staged.id).unwrap().set_modified(begun).unwrap();
    let early = Timestamp::now();
    folder
        .commit(&staged, &commit_of(b"body"), &CancellationToken::new())
        .unwrap();
    let modified = folder.stat(&name("blob")).unwrap().modified;
    assert!(modified >= early && modified <= Timestamp::now(), "{modified}");
}

#[test]
fn somebody_elses_attribute_is_no_identity() {
    let (base, folder) = folder();
    for text in ["", "{}", "not json", &"x".repeat(2000)] {
        let file = File::create(base.path().join("blob")).unwrap();
        rustix::fs::fsetxattr(&file, "user.ferry", text.as_bytes(), rustix::fs::XattrFlags::empty()).unwrap();
        assert_eq!(folder.stat(&name("blob")).unwrap().identity, None, "{text:?}");
    }
}

// The contract of every method: a dropped future leaves no blob that readers can see.
#[tokio::test]
async fn a_caller_that_leaves_while_the_name_is_locked_leaves_nothing_visible() {
    let base = tempfile::tempdir().unwrap();
    let store = LocalStore::open(base.path(), Syncing::Never, true).unwrap();
    let (blob, folder) = (name("blob"), store.folder());
    let held = folder.lock_name(&blob).unwrap();
    let staged = staged(&folder, "blob", b"body");
    {
        let put = store.put(&blob, Bytes::from("body"), BlobMeta::default(), Condition::None);
        let commit = store.commit(&staged, commit_of(b"body"));
        let both = async { tokio::join!(put, commit) };
        // Both run (each holds the folder, and so does its thread), and neither can end before it has the lock.
        let begun = until(|| staged_files(&folder).len() == 2 && Arc::strong_count(&folder) == 2 + 2 * 2);
        tokio::select! {
            ended = both => panic!("they did not wait: {ended:?}"),
            () = begun => {}
        }
    }
    drop(held);
    // The put removes what it staged; the staging of the commit stays, for a repetition.
    until(|| staged_files(&folder).len() == 1 && Arc::strong_count(&folder) == 2).await;
    assert_eq!(store.stat(&blob).await.unwrap_err().kind, BlobErrorKind::NotFound);
    store.commit(&staged, commit_of(b"body")).await.unwrap();
}

#[test]
fn work_that_waited_for_a_thread_is_not_begun_for_a_caller_that_left() {
    let (_base, folder) = folder();
    let staged = staged(&folder, "blob", b"body");
    let gone = CancellationToken::new();
    gone.cancel();
    let late = folder.explained(&gone, |folder, _| folder.write_part(&staged.id, 0, b"late"));
    assert_eq!(late.unwrap_err().kind, BlobErrorKind::Unavailable);
    assert_eq!(
        staging::read_range(&folder.staged_file(&staged.id).unwrap(), &(0..4)).unwrap(),
        "body"
    );
}

#[test]
fn a_staging_that_is_not_there_is_told_from_a_blob_that_is_not() {
    let (_base, folder) = folder();
    let id = StagedId::random();
    assert_eq!(folder.parts(&id).unwrap_err().kind, BlobErrorKind::StagingLost);
    assert_eq!(folder.stat(&name("x")).unwrap_err().kind, BlobErrorKind::NotFound);
}
