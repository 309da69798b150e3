//! The write-ahead log on its way to the disk, and what becomes of it when a sync fails. Spec: faults.md 12, 16.
//!
//! After a failed sync the kernel counts what it could not write as written: the next sync would succeed, and a loss
//! of power would cut the log at the gap, with everything behind it. So the log is doubted from then on, and nothing
//! more is committed before its bytes have been handed to the kernel once more and synced. That they still are what
//! was committed the checksums in the log itself say.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::{Connection, ffi};

use super::file::log_path;
use super::log_check::intact;
use crate::telemetry;

/// Makes the log durable; tests that model a loss of power note when.
pub type SyncLog = Box<dyn Fn(&File) -> io::Result<()> + Send>;

/// The log, as the one who writes to it has it.
pub(super) struct Log {
    database: PathBuf,
    file: File,
    sync: SyncLog,
    doubt: Doubt,
}

/// Whether a sync of the log failed since it was last made sure of.
#[derive(Clone, Debug, Default)]
pub(super) struct Doubt(Arc<AtomicBool>);

impl Doubt {
    /// Whether it is doubted.
    pub(super) fn is_there(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// A sync failed.
    pub(super) fn arises(&self) {
        telemetry::count_sync_error();
        self.0.store(true, Ordering::Release);
    }

    /// Looks at an error of SQLite's own: its syncs fail like any other.
    pub(super) fn look_at(&self, error: &rusqlite::Error) {
        let code = error.sqlite_error().map(|error| error.extended_code);
        if matches!(code, Some(ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC)) {
            self.arises();
        }
    }
}

impl Log {
    /// The log of `database`, which is open.
    pub(super) fn open(database: &Path, sync: SyncLog) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(log_path(database))?;
        Ok(Self {
            database: database.to_owned(),
            file,
            sync,
            doubt: Doubt::default(),
        })
    }

    pub(super) fn doubt(&self) -> &Doubt {
        &self.doubt
    }

    /// Makes everything that is committed durable.
    pub(super) fn sync(&self) -> Result<(), String> {
        (self.sync)(&self.file).map_err(|error| {
            self.doubt.arises();
            format!("sync of the log: {error}")
        })
    }

    /// Called within a transaction that nothing was written in yet, so that nobody else writes to the log: if it is
    /// doubted, makes sure of it.
    pub(super) fn make_sure(&self) -> Result<(), String> {
        if !self.doubt.is_there() {
            return Ok(());
        }
        let committed = super::connect(&self.database)
            .and_then(|beside| frames(&beside))
            .map_err(|error| format!("look at the log: {error}"))?;
        let lost = |error: io::Error| format!("the log after a failed sync: {error}");
        self.write_again(committed).map_err(lost)?;
        (self.sync)(&self.file).map_err(|error| {
            telemetry::count_sync_error();
            lost(error)
        })?;
        self.doubt.0.store(false, Ordering::Release);
        tracing::warn!(database = %self.database.display(), "the log was written again after a failed sync");
        Ok(())
    }

    /// Hands the log to the kernel once more, if all of `committed` frames are in it.
    fn write_again(&self, committed: usize) -> io::Result<()> {
        let mut bytes = vec![0; usize::try_from(self.file.metadata()?.len()).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut bytes, 0)?;
        if committed == 0 {
            return Ok(());
        }
        let intact = intact(&bytes);
        if intact < committed {
            return Err(io::Error::other(format!("{intact} of {committed} frames are left")));
        }
        self.file.write_all_at(&bytes, 0)
    }
}

/// How many frames of the log are committed and not forgotten.
fn frames(connection: &Connection) -> rusqlite::Result<usize> {
    connection
        .query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| row.get::<_, i64>(1))
        .map(|frames| usize::try_from(frames).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::log_check::{FRAME as FRAME_HEADER, HEADER};
    use crate::database::{Database, DatabaseError, Durable, Written};

    fn insert(connection: &Connection, text: &'static str) -> Result<Written<()>, DatabaseError> {
        connection.execute_batch("CREATE TABLE IF NOT EXISTS words (word TEXT)")?;
        connection.execute("INSERT INTO words VALUES (?1)", [text])?;
        Ok(Written::durably(()))
    }

    // What SQLite itself says of a log, this must say too: it is what doubt is ended by.
    #[test]
    fn frames_count_as_far_as_their_checksums_are_right() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("ferry.db");
        let connection = super::super::connect(&database).unwrap();
        connection.execute_batch("CREATE TABLE words (word TEXT)").unwrap();
        for word in ["one", "two", "three"] {
            connection.execute("INSERT INTO words VALUES (?1)", [word]).unwrap();
        }
        let mut log = std::fs::read(log_path(&database)).unwrap();
        let committed = frames(&connection).unwrap();
        assert!(committed >= 3, "{committed} frames");
        assert_eq!(intact(&log), committed);
        let len = (log.len() - HEADER) / committed;
        log[HEADER + 2 * len + FRAME_HEADER + 100] ^= 1;
        assert_eq!(intact(&log), 2, "the third frame is damaged");
        assert_eq!(intact(&log[..HEADER + len + 5]), 1, "the second frame is torn");
        log[9] ^= 1;
        assert_eq!((intact(&log), intact(b"short")), (0, 0));
    }

    // Row 12: a failed sync is no commit, and is never repeated as if it could succeed. What it should have written
    // is written again before the next one; and if that cannot be, nothing more is taken.
    #[tokio::test]
    async fn after_a_failed_sync_nothing_is_committed_before_the_log_was_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ferry.db");
        let fails = Arc::new(AtomicBool::new(false));
        let sync: SyncLog = Box::new({
            let fails = fails.clone();
            move |log| match fails.load(Ordering::SeqCst) {
                true => Err(io::Error::from_raw_os_error(5)),
                false => log.sync_data(),
            }
        });
        let database = Database::open_with(&path, Durable::OnRequest, sync).unwrap();
        database.write(|connection| insert(connection, "before")).await.unwrap();
        let written = || std::fs::metadata(log_path(&path)).unwrap().modified().unwrap();
        let counted = telemetry::sync_errors();

        fails.store(true, Ordering::SeqCst);
        let failed = database.write(|connection| insert(connection, "unsure")).await;
        assert!(matches!(failed, Err(DatabaseError::Transaction(_))), "{failed:?}");
        let at = written();
        let refused = database.write(|connection| {
            connection.execute("DELETE FROM words", [])?;
            Ok(Written::plainly(()))
        });
        assert!(refused.await.is_err(), "nothing is built on a log that may have a gap");
        assert!(written() > at, "it was written again");
        assert!(telemetry::sync_errors() >= counted + 2);

        fails.store(false, Ordering::SeqCst);
        let at = written();
        database.check().await.unwrap();
        assert!(written() > at, "written again, and not only synced again");
        let words: i64 = database
            .read(|connection| Ok(connection.query_row("SELECT count(*) FROM words", [], |row| row.get(0))?))
            .await
            .unwrap();
        assert_eq!(words, 2);

        fails.store(true, Ordering::SeqCst);
        database
            .write(|connection| insert(connection, "lost"))
            .await
            .unwrap_err();
        fails.store(false, Ordering::SeqCst);
        let log = File::options().write(true).open(log_path(&path)).unwrap();
        log.write_all_at(&[0; 64], u64::try_from(HEADER + FRAME_HEADER).unwrap())
            .unwrap();
        assert!(
            database.check().await.is_err(),
            "what is not there cannot be written again"
        );
    }
}
