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

mod file;
mod log;
mod log_check;
mod owner;
mod writer;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::folders;
use crate::upload::OwnerId;

use file::{SCHEMA_VERSION, connect, connect_reader, failed, quick_check};
pub use log::SyncLog;
use log::{Doubt, Log};
use owner::OwnerLock;
pub(crate) use writer::Written;
use writer::{Pending, Request, Writer};

/// Requests that wait for the writer before senders have to wait.
const WAITING_WRITES: usize = 1024;
/// Connections that read at once.
const READERS: usize = 8;
/// How often other processes' changes are looked for.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);
/// How often the log is brought into the file while there are changes.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
/// Files up to this size are checked before the start goes on, larger ones beside it.
const CHECKED_AT_START: u64 = 1024 * 1024 * 1024;

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
        Self::open_checking(path, durable, sync, CHECKED_AT_START)
    }

    /// As [`Database::open_with`]; files larger than `at_start` bytes are checked beside the start.
    fn open_checking(path: &Path, durable: Durable, sync: SyncLog, at_start: u64) -> Result<Arc<Self>, OpenError> {
        let unusable = |reason: String| OpenError::Unusable {
            path: path.to_owned(),
            reason,
        };
        let sqlite = |error| failed(path, &error);
        let (connection, sound) = file::open(path, at_start)?;
        let checked = Arc::new(AtomicU8::new(if sound { SOUND } else { CHECKING }));
        let readers = (0..READERS).map(|_| connect_reader(path));
        let readers = readers.collect::<rusqlite::Result<Vec<_>>>().map_err(sqlite)?;
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
        let writer = Writer::new(connection, log, durable);
        let mut threads = vec![
            spawn("records-writer", Box::new(move || writer.run(receiver)))?,
            spawn(
                "records-watch",
                Box::new(move || watch_changes(&watching, &changed, &stopped, &doubt)),
            )?,
        ];
        if !sound {
            let (path, checked) = (path.to_owned(), checked.clone());
            threads.push(spawn("records-check", Box::new(move || check_beside(&path, &checked)))?);
        }
        Ok(Arc::new(Self {
            path: path.to_owned(),
            lock,
            requests: Some(requests),
            // All of them now: later there may be no descriptor for one (faults.md 15).
            readers: Arc::new(Mutex::new(readers)),
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

    /// Whether the file can be read and written now: something is written, or a full disk would not be seen.
    pub(crate) async fn check(&self) -> Result<(), DatabaseError> {
        if self.checked.load(Ordering::Acquire) != SOUND {
            return Err(DatabaseError::Unchecked);
        }
        self.write(|connection| {
            connection.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            Ok(Written::plainly(()))
        })
        .await
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

#[cfg(test)]
mod tests;
