//! The file itself: what is in it, how it is opened, and how one that is damaged is told.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::owner::{self, LastRun};
use super::{OpenError, log_check};
use crate::folders;

/// How long a connection waits for another process's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause before what such a transaction refused is tried again.
const BUSY_PAUSE: Duration = Duration::from_millis(10);
/// The log's length, in pages, at which the writer itself brings it into the file: only if the watch thread
/// could not keep up.
const LONGEST_LOG_PAGES: u32 = 16 * 1024;

/// How every SQLite file begins.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

const SCHEMA: &str = "
CREATE TABLE uploads (
    id BLOB PRIMARY KEY,
    seq INTEGER NOT NULL,
    state TEXT NOT NULL,
    open INTEGER NOT NULL,
    outbox INTEGER NOT NULL,
    changed_at INTEGER NOT NULL,
    body TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX uploads_open ON uploads (id, state, outbox) WHERE open = 1;
CREATE INDEX uploads_gone ON uploads (changed_at) WHERE state IN ('terminated', 'expired');
CREATE TABLE deliveries (
    upload BLOB NOT NULL,
    target TEXT NOT NULL,
    seq INTEGER NOT NULL,
    state TEXT NOT NULL,
    open INTEGER NOT NULL,
    outbox INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (upload, target)
) WITHOUT ROWID;
CREATE INDEX deliveries_open ON deliveries (upload, state, outbox) WHERE open = 1;
CREATE INDEX deliveries_failed ON deliveries (upload, target) WHERE state = 'failed';
";
/// Raised with every change of the tables; a file of a newer Ferry is refused.
pub(super) const SCHEMA_VERSION: i64 = 1;

/// Opens or makes the file at `path`, its folder too. Answers also whether it was checked: a file larger than
/// `at_start` bytes was not.
///
/// # Errors
/// It cannot be used; nothing of it was changed then.
pub(super) fn open(path: &Path, at_start: u64) -> Result<(Connection, bool), OpenError> {
    refuse_remains(path)?;
    let unusable = |error: io::Error| OpenError::Unusable {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    folders::make(folders::above(path), true).map_err(|error| OpenError::Unusable {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    let sqlite = |error| failed(path, &error);
    let connection = Connection::open(path).map_err(sqlite)?;
    // Until the file is known to be good nothing in it is changed: the last connection to close would bring the log
    // into it, and remove the log.
    let leave_log = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
    connection.set_db_config(leave_log, true).map_err(sqlite)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(sqlite)?;
    let checked = fs::metadata(path).map_err(unusable)?.len() <= at_start;
    if checked {
        quick_check(&connection, path)?;
    }
    set_up(&connection).map_err(sqlite)?;
    migrate(&connection, path)?;
    connection.set_db_config(leave_log, false).map_err(sqlite)?;
    Ok((connection, checked))
}

pub(super) fn log_path(path: &Path) -> PathBuf {
    beside(path, "-wal")
}

fn index_path(path: &Path) -> PathBuf {
    beside(path, "-shm")
}

pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

pub(super) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    set_up(&connection)?;
    Ok(connection)
}

fn set_up(connection: &Connection) -> rusqlite::Result<()> {
    keep_log(connection)?;
    // The log is synced by the writer itself, when a request asks for it, and before it is brought into the file.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "wal_autocheckpoint", LONGEST_LOG_PAGES)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// Write-ahead logging. While another process makes the same change in a new file this is refused at once: the busy
/// timeout does not hold for it.
fn keep_log(connection: &Connection) -> rusqlite::Result<()> {
    let deadline = Instant::now() + BUSY_TIMEOUT;
    loop {
        match connection.pragma_update(None, "journal_mode", "WAL") {
            Err(error)
                if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy)
                    && Instant::now() < deadline =>
            {
                thread::park_timeout(BUSY_PAUSE);
            }
            changed => return changed,
        }
    }
}

pub(super) fn connect_reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(64);
    // The files are opened when something is read.
    connection.query_row("SELECT 1 FROM sqlite_schema LIMIT 1", [], |_| Ok(()))?;
    Ok(connection)
}

/// Refuses what a crash, or a hand, left of the records, where SQLite would go on without a word: it takes an empty
/// file for a new one, and a log for ended where it cannot be read.
fn refuse_remains(path: &Path) -> Result<(), OpenError> {
    let damaged = |reason: String| OpenError::Damaged {
        path: path.to_owned(),
        reason,
    };
    let log = log_path(path);
    let in_log = fs::metadata(&log).map_or(0, |metadata| metadata.len());
    match fs::metadata(path) {
        Err(_) if in_log > 0 => Err(damaged(format!("the file is missing, and {} is there", log.display()))),
        Err(_) => Ok(()), // a first start; or it is told by the one who opens it
        Ok(file) if file.len() == 0 && (in_log > 0 || owner::was_used(path)) => {
            Err(damaged("the file is empty, and was not before".to_owned()))
        }
        // SQLite would take the log's copy of the first page, if there is one: the file is harmed all the same.
        Ok(file) if file.len() > 0 && !begins_as_database(path) => Err(damaged("file is not a database".to_owned())),
        Ok(_) => match owner::last_run(path) {
            // Whoever uses it finds it good; and a log that is being written cannot be looked at.
            LastRun::GoesOn => Ok(()),
            LastRun::BeforeThisBoot => log_check::check_header(&log).map_err(damaged),
            LastRun::InThisBoot => log_check::check(&log, &index_path(path)).map_err(damaged),
        },
    }
}

/// Whether the file has the first bytes of every database; one that cannot be read is told by the one who opens it.
fn begins_as_database(path: &Path) -> bool {
    let mut found = [0; MAGIC.len()];
    match File::open(path).and_then(|mut file| file.read_exact(&mut found)) {
        Ok(()) => found == *MAGIC,
        Err(error) => error.kind() != io::ErrorKind::UnexpectedEof,
    }
}

fn migrate(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let run = || -> rusqlite::Result<i64> {
        // Immediate: of several processes that start at once one makes the tables and the others find them.
        connection.execute_batch("BEGIN IMMEDIATE")?;
        let found = connection.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))?;
        if found == 0 {
            connection.execute_batch(SCHEMA)?;
            connection.execute_batch(crate::bus::SCHEMA)?;
            connection.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        }
        connection.execute_batch("COMMIT")?;
        Ok(found)
    };
    match run() {
        Ok(found) if found > SCHEMA_VERSION => Err(OpenError::Newer {
            path: path.to_owned(),
            found,
        }),
        Ok(_) => Ok(()),
        Err(error) => Err(failed(path, &error)),
    }
}

pub(super) fn quick_check(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let answer: rusqlite::Result<String> = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0));
    match answer {
        Ok(answer) if answer == "ok" => Ok(()),
        Ok(reason) => Err(OpenError::Damaged {
            path: path.to_owned(),
            reason,
        }),
        Err(error) => Err(failed(path, &error)),
    }
}

pub(super) fn failed(path: &Path, error: &rusqlite::Error) -> OpenError {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    let (path, reason) = (path.to_owned(), error.to_string());
    match error.sqlite_error_code() {
        Some(DatabaseCorrupt | NotADatabase) => OpenError::Damaged { path, reason },
        _ => OpenError::Unusable { path, reason },
    }
}
