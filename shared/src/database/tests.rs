//! Files as crashes and hands leave them. Faults.md row 17: a damaged file stops the start, and nothing is changed.

use std::os::unix::fs::FileExt as _;

use tempfile::TempDir;

use super::file::{beside, connect, log_path};
use super::*;

/// A database with some uploads' worth of rows, half of them only in its log, as a killed process leaves it.
fn killed() -> (TempDir, PathBuf) {
    let (running, left) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = running.path().join("ferry.db");
    let database = Database::open(&path, Durable::OnRequest).unwrap();
    let writer = connect(&path).unwrap();
    let fill = |from: u32| {
        for id in from..from + 300 {
            let row = (id.to_be_bytes(), "x".repeat(600));
            writer
                .execute("INSERT INTO uploads VALUES (?1, 1, 'receiving', 1, 0, 0, ?2)", row)
                .unwrap();
        }
    };
    fill(0);
    // Passive, and nobody reads: all of it.
    writer
        .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
        .unwrap();
    fill(1000);
    let copy = left.path().join("ferry.db");
    for suffix in ["", "-wal", "-shm"] {
        fs::copy(beside(&path, suffix), beside(&copy, suffix)).unwrap();
    }
    fs::create_dir(beside(&copy, ".owners")).unwrap();
    let owner = Path::new("ferry.db.owners").join(database.owner().as_str());
    fs::copy(running.path().join(&owner), left.path().join(&owner)).unwrap();
    (left, copy)
}

fn rows(database: &Database) -> i64 {
    let connection = connect_reader(&database.path).unwrap();
    connection
        .query_row("SELECT count(*) FROM uploads", [], |row| row.get(0))
        .unwrap()
}

/// What of the database counts: the index of the log is made anew from the log.
fn content(path: &Path) -> Vec<Option<Vec<u8>>> {
    ["", "-wal"].map(|suffix| fs::read(beside(path, suffix)).ok()).to_vec()
}

fn overwrite(path: &Path, at: u64, len: usize) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&vec![0xa5; len], at).unwrap();
}

fn truncate(path: &Path, len: u64) {
    fs::File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(len)
        .unwrap();
}

#[test]
fn what_a_killed_process_leaves_is_opened_with_all_that_it_committed() {
    let (_folder, path) = killed();
    assert_eq!(rows(&Database::open(&path, Durable::OnRequest).unwrap()), 600);
    // Without the index, which is made anew, and with a log that was lost before anything in it was synced.
    let (_folder, path) = killed();
    fs::remove_file(beside(&path, "-shm")).unwrap();
    assert_eq!(rows(&Database::open(&path, Durable::OnRequest).unwrap()), 600);
    for lost in [0, 20, 4096] {
        let (_folder, path) = killed();
        truncate(&log_path(&path), 0);
        truncate(&log_path(&path), lost);
        assert_eq!(rows(&Database::open(&path, Durable::OnRequest).unwrap()), 300, "{lost}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_damaged_file_or_log_is_refused_by_name_and_not_changed() {
    type Harm = fn(&Path);
    let harms: [(&str, Harm); 10] = [
        ("a garbage header", |path| overwrite(path, 0, 100)),
        ("pages overwritten", |path| overwrite(path, 8 * 4096, 16 * 4096)),
        ("half of it", |path| {
            truncate(path, fs::metadata(path).unwrap().len() / 2)
        }),
        ("no whole page", |path| truncate(path, 1000)),
        ("empty", |path| truncate(path, 0)),
        ("empty, and no log", |path| {
            truncate(path, 0);
            fs::remove_file(log_path(path)).unwrap();
        }),
        ("only the log", |path| fs::remove_file(path).unwrap()),
        ("a garbage log", |path| overwrite(&log_path(path), 0, 32)),
        ("a frame of the log", |path| {
            overwrite(&log_path(path), 32 + 10 * 4120 + 2000, 8)
        }),
        ("a shorter log", |path| {
            truncate(&log_path(path), fs::metadata(log_path(path)).unwrap().len() - 5000);
        }),
    ];
    for (what, harm) in harms {
        let (_folder, path) = killed();
        harm(&path);
        let before = content(&path);
        let error = Database::open(&path, Durable::OnRequest).expect_err(what);
        assert!(matches!(error, OpenError::Damaged { .. }), "{what}: {error}");
        assert!(error.to_string().contains("ferry.db"), "{what}: {error}");
        assert_eq!(content(&path), before, "{what}: changed");
    }
}

/// After a power loss the end of the log may be gone, as is allowed of what was not synced.
#[test]
fn a_log_that_a_power_loss_cut_is_read_as_far_as_it_goes() {
    let (folder, path) = killed();
    for owner in fs::read_dir(beside(&path, ".owners")).unwrap() {
        fs::write(owner.unwrap().path(), "another boot").unwrap();
    }
    overwrite(&log_path(&path), 32 + 10 * 4120 + 2000, 8);
    let found = rows(&Database::open(&path, Durable::OnRequest).unwrap());
    assert!((300..600).contains(&found), "{found}");
    drop(folder);
}

/// core.md §5: files over the limit are checked beside the start, with readiness.
#[tokio::test]
async fn a_large_file_is_checked_beside_the_start_and_not_ready_before() {
    let ready = async |database: &Database| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while database.checked.load(Ordering::Acquire) == CHECKING {
            assert!(Instant::now() < deadline, "not checked");
            tokio::task::yield_now().await;
        }
        database.check().await.is_ok()
    };
    let (_folder, path) = killed();
    let sound = open_checking(&path, 0).unwrap();
    assert!(ready(&sound).await);
    drop(sound);
    overwrite(&path, 8 * 4096, 16 * 4096);
    assert!(open_checking(&path, u64::MAX).is_err());
    let damaged = open_checking(&path, 0).expect("the check is beside the start");
    assert!(!ready(&damaged).await, "damaged, and ready");
    assert!(matches!(damaged.check().await, Err(DatabaseError::Unchecked)));
}

fn open_checking(path: &Path, at_start: u64) -> Result<Arc<Database>, OpenError> {
    Database::open_checking(path, Durable::OnRequest, Box::new(fs::File::sync_data), at_start)
}

// Row 16, and the price of a HEAD of a finished upload: what is told survives a loss of power, but nobody waits for the
// disk once more when all of it is there.
#[tokio::test]
async fn settling_syncs_for_what_others_may_have_left_and_for_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ferry.db");
    let (synced, fails) = (Arc::new(AtomicU8::new(0)), Arc::new(AtomicU8::new(0)));
    let sync: SyncLog = Box::new({
        let (synced, fails) = (synced.clone(), fails.clone());
        move |log| {
            synced.fetch_add(1, Ordering::SeqCst);
            match fails.load(Ordering::SeqCst) {
                0 => log.sync_data(),
                _ => Err(std::io::Error::from_raw_os_error(5)),
            }
        }
    });
    let database = Database::open_with(&path, Durable::OnRequest, sync).unwrap();
    let insert = |id: u8| {
        move |connection: &Connection| -> Result<(), DatabaseError> {
            connection.execute("INSERT INTO uploads VALUES (?1, 1, 'committed', 1, 0, 0, '')", [[id]])?;
            Ok(())
        }
    };
    let settle = || async {
        let before = synced.load(Ordering::SeqCst);
        let settled = database.write(|_| Ok(Written::settled(()))).await;
        settled.map(|()| synced.load(Ordering::SeqCst) - before)
    };
    assert_eq!(
        settle().await.unwrap(),
        1,
        "what an earlier process left may not be synced"
    );
    assert_eq!(settle().await.unwrap(), 0);

    let before = synced.load(Ordering::SeqCst);
    let write = database.write(move |connection| insert(1)(connection).map(Written::durably));
    write.await.unwrap();
    assert_eq!(
        synced.load(Ordering::SeqCst),
        before + 1,
        "synced before it was answered"
    );
    let write = database.write(move |connection| insert(2)(connection).map(Written::plainly));
    write.await.unwrap();
    assert_eq!(settle().await.unwrap(), 0, "nobody wanted the second one to survive");

    let other = connect(&path).unwrap();
    insert(3)(&other).unwrap();
    assert_eq!(settle().await.unwrap(), 1, "another process may be about to sync it");
    assert_eq!(settle().await.unwrap(), 0);

    // In the middle: committed, seen by every reader, and its sync failed.
    fails.store(1, Ordering::SeqCst);
    let write = database.write(move |connection| insert(4)(connection).map(Written::durably));
    write.await.unwrap_err();
    assert_eq!(rows(&database), 4);
    settle().await.unwrap_err();
    fails.store(0, Ordering::SeqCst);
    assert_eq!(settle().await.unwrap(), 1, "the log is written again, and synced");
    assert_eq!(settle().await.unwrap(), 0);
}
