//! One SQLite file for the records, the outbox and the embedded bus of one machine.
//!
//! ```text
//!  write(…) ─┐                 ┌─ answers, after the commit
//!  write(…) ─┼─► writer thread ┤   (one transaction, one sync, for all who waited)
//!  write(…) ─┘                 └─ changes
//!  read(…)  ───► pool of readers              watch thread: other processes' changes, checkpoints of the log
//! ```
//!
//! Several processes of one machine may share the file. Each holds an operating-system lock on a file named after
//! its [`OwnerId`]: whoever can get that lock knows that the owner is dead. Spec: core.md §5, "SQLite".

mod log;
mod owner;
mod writer;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::folders;
use crate::upload::OwnerId;

pub use log::SyncLog;
use log::{Doubt, Log};
use owner::OwnerLock;
pub(crate) use writer::Written;
use writer::{Pending, Request};

/// Requests that wait for the writer before senders have to wait.
const WAITING_WRITES: usize = 1024;
/// Connections that read at once.
const READERS: usize = 8;
/// How often other processes' changes are looked for.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);
/// How often the log is brought into the file while there are changes.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
/// How long a connection waits for another process's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause before what such a transaction refused is tried again.
const BUSY_PAUSE: Duration = Duration::from_millis(10);
/// Files up to this size are checked before the start goes on, larger ones beside it.
const CHECKED_AT_START: u64 = 1024 * 1024 * 1024;
/// The log's length, in pages, at which the writer itself brings it into the file: only if the watch thread
/// could not keep up.
const LONGEST_LOG_PAGES: u32 = 16 * 1024;

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
const SCHEMA_VERSION: i64 = 1;

/// The file, open for this process.
pub struct Database {
    path: PathBuf,
    lock: OwnerLock,
    requests: Option<mpsc::Sender<Box<dyn Request>>>,
    readers: Arc<Mutex<Vec<Connection>>>,
    reading: Arc<Semaphore>,
    changes: watch::Receiver<i64>,
    checked: Arc<AtomicU8>,
    stop_watching: std_mpsc::Sender<()>,
    threads: Vec<JoinHandle<()>>,
}

/// What survives a power loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durable {
    /// What asks for it.
    OnRequest,
    /// Every write, before it is answered.
    Always,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Not readable or writable, no folder, no space.
    #[error("open records {path}: {reason}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What was tried.
        reason: String,
    },
    /// The file is not what this version wrote, or a crash of the machine harmed it.
    #[error("the records {path} are damaged: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The first thing that is wrong.
        reason: String,
    },
    /// Written by a newer version.
    #[error("the records {path} were written by a newer version of Ferry (schema {found}, known {SCHEMA_VERSION})")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
    },
}

/// A request that was not done; nothing of it is in the file unless the text says so.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// SQLite's error.
    #[error("the database refused")]
    Sqlite(#[from] rusqlite::Error),
    /// What all requests of a failed transaction learn.
    #[error("the transaction failed: {0}")]
    Transaction(String),
    /// The writer is gone, or the request's own code failed.
    #[error("the request was dropped")]
    Dropped,
    /// A large file is still being checked after the start, or was found damaged.
    #[error("the file is not checked yet, or damaged")]
    Unchecked,
}

const CHECKING: u8 = 0;
const SOUND: u8 = 1;
const DAMAGED: u8 = 2;

impl Database {
    /// Opens or makes the file at `path`; its folder is made too.
    ///
    /// # Errors
    /// The file cannot be used; the text names it.
    pub fn open(path: &Path, durable: Durable) -> Result<Arc<Self>, OpenError> {
        Self::open_with(path, durable, Box::new(fs::File::sync_data))
    }

    /// As [`Database::open`], with `sync` to make its log durable.
    ///
    /// # Errors
    /// As [`Database::open`].
    pub fn open_with(path: &Path, durable: Durable, sync: SyncLog) -> Result<Arc<Self>, OpenError> {
        let unusable = |reason: String| OpenError::Unusable {
            path: path.to_owned(),
            reason,
        };
        folders::make(folders::above(path), true).map_err(|error| unusable(error.to_string()))?;
        let connection = connect(path).map_err(|error| failed(path, &error))?;
        let checked = Arc::new(AtomicU8::new(CHECKING));
        let size = fs::metadata(path).map_err(|error| unusable(error.to_string()))?.len();
        if size <= CHECKED_AT_START {
            quick_check(&connection, path)?;
            checked.store(SOUND, Ordering::Release);
        }
        migrate(&connection, path)?;
        let log = Log::open(path, sync).map_err(|error| unusable(format!("its log: {error}")))?;
        // SQLite syncs the log's name when it syncs the log; here others do that.
        folders::sync(folders::above(path)).map_err(|error| unusable(format!("its folder: {error}")))?;
        let lock = OwnerLock::take(path).map_err(|error| unusable(format!("its lock: {error}")))?;

        let (requests, receiver) = mpsc::channel(WAITING_WRITES);
        let (changed, changes) = watch::channel(0);
        let (stop_watching, stopped) = std_mpsc::channel();
        let watching = connect(path).map_err(|error| failed(path, &error))?;
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            thread::Builder::new()
                .name(name.to_owned())
                .spawn(body)
                .map_err(|error| unusable(error.to_string()))
        };
        let doubt = log.doubt().clone();
        let writer = writer::Writer {
            connection,
            log,
            durable,
        };
        let mut threads = vec![
            spawn("records-writer", Box::new(move || writer.run(receiver)))?,
            spawn(
                "records-watch",
                Box::new(move || watch_changes(&watching, &changed, &stopped, &doubt)),
            )?,
        ];
        if size > CHECKED_AT_START {
            let (path, checked) = (path.to_owned(), checked.clone());
            threads.push(spawn("records-check", Box::new(move || check_beside(&path, &checked)))?);
        }
        Ok(Arc::new(Self {
            path: path.to_owned(),
            lock,
            requests: Some(requests),
            readers: Arc::default(),
            reading: Arc::new(Semaphore::new(READERS)),
            changes,
            checked,
            stop_watching,
            threads,
        }))
    }

    /// This process, as claims and leases in the file name it.
    pub fn owner(&self) -> &OwnerId {
        self.lock.owner()
    }

    /// Whether the process `owner` has ended.
    pub async fn is_gone(&self, owner: &OwnerId) -> bool {
        if owner == self.owner() {
            return false;
        }
        let (path, owner) = (self.path.clone(), owner.clone());
        tokio::task::spawn_blocking(move || owner::is_gone(&path, &owner))
            .await
            .unwrap_or(false)
    }

    /// Runs `operation` in a transaction with whatever else waits, and answers after the commit. A dropped future
    /// may have written. What `operation` did is undone if it fails.
    pub(crate) async fn write<T, F>(&self, operation: F) -> Result<T, DatabaseError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<Written<T>, DatabaseError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let request = Box::new(Pending::new(operation, reply));
        let requests = self.requests.as_ref().ok_or(DatabaseError::Dropped)?;
        requests.send(request).await.map_err(|_| DatabaseError::Dropped)?;
        answer.await.map_err(|_| DatabaseError::Dropped)?
    }

    /// As [`Database::write`], for destructors: never waits, and nobody learns the outcome. Answers whether the
    /// writer took it.
    pub(crate) fn write_later<F>(&self, operation: F) -> bool
    where
        F: FnOnce(&Connection) -> Result<Written<()>, DatabaseError> + Send + 'static,
    {
        let (reply, _) = oneshot::channel();
        let request = Box::new(Pending::new(operation, reply));
        self.requests
            .as_ref()
            .is_some_and(|requests| requests.try_send(request).is_ok())
    }

    /// Runs `operation` on a connection that only reads; it sees everything that was answered as written.
    pub(crate) async fn read<T, F>(&self, operation: F) -> Result<T, DatabaseError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, DatabaseError> + Send + 'static,
    {
        let place = self
            .reading
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| DatabaseError::Dropped)?;
        let (path, readers) = (self.path.clone(), self.readers.clone());
        tokio::task::spawn_blocking(move || {
            let _place = place;
            let idle = readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let connection = match idle {
                Some(connection) => connection,
                None => connect_reader(&path)?,
            };
            let answer = operation(&connection)?;
            // A connection whose operation failed is not used again.
            readers.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            Ok(answer)
        })
        .await
        .map_err(|_| DatabaseError::Dropped)?
    }

    /// Changes whenever any process, this one too, changed the file; looked at every 100 ms.
    pub(crate) fn changes(&self) -> watch::Receiver<i64> {
        self.changes.clone()
    }

    /// Whether the file can be read and written now.
    pub(crate) async fn check(&self) -> Result<(), DatabaseError> {
        if self.checked.load(Ordering::Acquire) != SOUND {
            return Err(DatabaseError::Unchecked);
        }
        self.write(|_| Ok(Written::plainly(()))).await
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database")
            .field("path", &self.path)
            .field("owner", self.lock.owner())
            .finish_non_exhaustive()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        drop(self.requests.take()); // the writer does what it was given, and ends
        let _unless_ended = self.stop_watching.send(());
        for thread in self.threads.drain(..) {
            if thread.thread().id() != thread::current().id() && thread.join().is_err() {
                tracing::error!(path = %self.path.display(), "a thread of the records panicked");
            }
        }
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    keep_log(&connection)?;
    // The log is synced by the writer itself, when a request asks for it, and before it is brought into the file.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "wal_autocheckpoint", LONGEST_LOG_PAGES)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
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

fn connect_reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
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

fn quick_check(connection: &Connection, path: &Path) -> Result<(), OpenError> {
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

fn failed(path: &Path, error: &rusqlite::Error) -> OpenError {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    let (path, reason) = (path.to_owned(), error.to_string());
    match error.sqlite_error_code() {
        Some(DatabaseCorrupt | NotADatabase) => OpenError::Damaged { path, reason },
        _ => OpenError::Unusable { path, reason },
    }
}

fn check_beside(path: &Path, checked: &AtomicU8) {
    let sound = connect_reader(path)
        .map_err(|error| failed(path, &error))
        .and_then(|connection| quick_check(&connection, path));
    match sound {
        Ok(()) => checked.store(SOUND, Ordering::Release),
        Err(error) => {
            tracing::error!(%error, "not ready: the records must be restored");
            checked.store(DAMAGED, Ordering::Release);
        }
    }
}

/// Tells of changes, and brings the log into the file where the writer does not have to wait for it.
fn watch_changes(
    connection: &Connection,
    changed: &watch::Sender<i64>,
    stopped: &std_mpsc::Receiver<()>,
    doubt: &Doubt,
) {
    let mut in_file = 0;
    let mut looked = Instant::now();
    while stopped.recv_timeout(WATCH_INTERVAL) == Err(std_mpsc::RecvTimeoutError::Timeout) {
        let version = match connection.pragma_query_value(None, "data_version", |row| row.get::<_, i64>(0)) {
            Ok(version) => version,
            Err(error) => {
                tracing::warn!(%error, "changes of the records cannot be seen");
                continue;
            }
        };
        changed.send_if_modified(|known| std::mem::replace(known, version) != version);
        // What may have a gap must not get into the file: the writer makes sure of it first.
        if version != in_file && !doubt.is_there() && looked.elapsed() >= CHECKPOINT_INTERVAL {
            looked = Instant::now();
            match connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
                Ok(()) => in_file = version,
                Err(error) => {
                    doubt.look_at(&error);
                    tracing::warn!(%error, "the log of the records could not be brought into the file");
                }
            }
        }
    }
}
