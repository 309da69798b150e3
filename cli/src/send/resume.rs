//! What is kept between runs: the URL of an upload that has begun, so that the same command goes on with it.
//!
//! ```text
//!  <state folder>/<SHA-256 of the sending>.json    the upload's URL, replaced whole
//!                 <SHA-256 of the sending>.lock    locked while a process sends it
//! ```
//!
//! The lock has a file of its own: replacing a locked file would leave the lock on the old one.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use url::{ParseError, Url};

use super::source::Source;
use super::tus::Metadata;

/// Identifies one sending: this content of this file, with these metadata, to this collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key(String);

/// The kept state of one sending, locked against other processes until it is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    record: PathBuf,
    lock: PathBuf,
    _locked: File,
    upload: Option<Url>,
}

/// The record's JSON. Only `upload` is read back; the rest is for people.
#[derive(Debug, Deserialize, Serialize)]
struct Record {
    upload: String,
    #[serde(default)]
    file: String,
    #[serde(default)]
    begun_at: Timestamp,
}

/// The state cannot be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("another `ferry send` is sending this file to the same place")]
    Busy,
    #[error("cannot {operation} {}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} is damaged: remove it to send the file from the beginning", path.display())]
    Damaged {
        path: PathBuf,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Where state is kept if nothing else is said: `$XDG_STATE_HOME/ferry` or `~/.local/state/ferry`, on macOS
/// `~/Library/Application Support/ferry`. `None`: there is no home.
pub(crate) fn default_folder() -> Option<PathBuf> {
    let home = || std::env::home_dir().filter(|home| home.is_absolute());
    if cfg!(target_os = "macos") {
        return Some(home()?.join("Library/Application Support/ferry"));
    }
    let configured = std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute()); // the XDG rules: a relative one counts as unset
    Some(configured.or_else(|| Some(home()?.join(".local/state")))?.join("ferry"))
}

impl Key {
    /// The key of sending `source` with `metadata` to `collection`.
    pub(crate) fn of(collection: &Url, source: &Source, metadata: &Metadata) -> Self {
        let mut hash = Sha256::new();
        let mut field = |bytes: &[u8]| {
            // Lengths in between, so that no two sendings run together into the same bytes.
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        field(collection.as_str().trim_end_matches('/').as_bytes()); // `/files` and `/files/` are the same
        field(source.path().as_os_str().as_bytes());
        field(&source.size().to_be_bytes());
        field(&source.stamp().modified_ns.to_be_bytes());
        for (key, value) in metadata {
            field(key.as_bytes());
            field(value.as_bytes());
        }
        Self(format!("{:x}", hash.finalize()))
    }
}

impl Slot {
    /// Takes the state of `key` in `folder`, which is made if it is missing. Blocks.
    ///
    /// # Errors
    /// [`StateError::Busy`] if another process has it; the folder cannot be used, or the record not read.
    pub(crate) fn take(folder: &Path, key: &Key) -> Result<Self, StateError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700) // the URLs in it are all that is needed to write to an upload
            .create(folder)
            .map_err(|source| io_error("create the folder", folder, source))?;
        let lock = folder.join(format!("{}.lock", key.0));
        let _locked = take_lock(&lock)?;
        let record = folder.join(format!("{}.json", key.0));
        let mut slot = Self {
            record,
            lock,
            _locked,
            upload: None,
        };
        slot.upload = slot.read()?;
        Ok(slot)
    }

    /// The upload that was begun.
    pub(crate) fn upload(&self) -> Option<&Url> {
        self.upload.as_ref()
    }

    /// Where the record is.
    pub(crate) fn record(&self) -> &Path {
        &self.record
    }

    /// Keeps the address of the upload that was begun with `source`, durably. Blocks.
    ///
    /// # Errors
    /// It could not be written; what was kept before is as it was.
    pub(crate) fn keep(&mut self, upload: Url, source: &Source) -> Result<(), StateError> {
        let record = Record {
            upload: upload.to_string(),
            file: source.path().display().to_string(),
            begun_at: Timestamp::now(),
        };
        self.write(&record)
            .map_err(|source| io_error("write the state file", &self.record, source))?;
        self.upload = Some(upload);
        Ok(())
    }

    /// Forgets the upload: it is finished, or gone. Blocks.
    ///
    /// # Errors
    /// The record could not be removed.
    pub(crate) fn forget(&mut self) -> Result<(), StateError> {
        self.upload = None;
        remove(&self.record)
    }

    fn read(&self) -> Result<Option<Url>, StateError> {
        let json = match fs::read(&self.record) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(io_error("read the state file", &self.record, source)),
        };
        let damaged = |source| StateError::Damaged {
            path: self.record.clone(),
            source,
        };
        let record: Record = serde_json::from_slice(&json).map_err(|error| damaged(error.into()))?;
        let upload = record
            .upload
            .parse()
            .map_err(|error: ParseError| damaged(error.into()))?;
        Ok(Some(upload))
    }

    fn write(&self, record: &Record) -> io::Result<()> {
        let folder = self.record.parent().expect("the record was joined to a folder");
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        serde_json::to_writer(&mut file, record)?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(&self.record)?;
        File::open(folder)?.sync_all() // the new name, too
    }
}

/// Removes the record of a finished sending, whose lock was given back already. Blocks.
///
/// # Errors
/// It could not be removed; it is no error if there is none.
pub(crate) fn remove(record: &Path) -> Result<(), StateError> {
    match fs::remove_file(record) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove the state file", record, error)),
        _ => Ok(()),
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Removed while it is still locked, see `take_lock`. One that stays behind is harmless.
        drop(fs::remove_file(&self.lock));
    }
}

/// Locks the file at `path`. The system gives the lock back when the process ends, however it ends.
fn take_lock(path: &Path) -> Result<File, StateError> {
    loop {
        let error = |source| io_error("lock the state file", path, source);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(error)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StateError::Busy),
            Err(TryLockError::Error(source)) => return Err(error(source)),
        }
        // The process that had it may have removed it between our opening and our locking: then this lock is on a
        // file that nobody else will ever open, and holds off nobody.
        let ours = file.metadata().map_err(error)?;
        match fs::metadata(path) {
            Ok(named) if (named.dev(), named.ino()) == (ours.dev(), ours.ino()) => return Ok(file),
            Ok(_) => {}
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(error(source)),
        }
    }
}

fn io_error(operation: &'static str, path: &Path, source: io::Error) -> StateError {
    StateError::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLLECTION: &str = "http://h/files/";

    fn source(folder: &Path, content: &str) -> Source {
        let path = folder.join("a.csv");
        fs::write(&path, content).unwrap();
        Source::open(&path).unwrap()
    }

    fn key(collection: &str, source: &Source, metadata: &[(&str, &str)]) -> Key {
        let metadata = metadata
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        Key::of(&collection.parse().unwrap(), source, &metadata)
    }

    #[test]
    fn a_sending_is_told_by_place_file_content_and_metadata() {
        let folder = tempfile::tempdir().unwrap();
        let first = source(folder.path(), "one");
        let same = key(COLLECTION, &first, &[("a", "b")]);
        assert_eq!(same, key("http://h/files", &first, &[("a", "b")]));
        assert_ne!(same, key("http://g/files/", &first, &[("a", "b")]));
        assert_ne!(same, key(COLLECTION, &first, &[("a", "c")]));
        assert_ne!(same, key(COLLECTION, &first, &[("ab", "")]));
        let longer = source(folder.path(), "longer");
        assert_ne!(same, key(COLLECTION, &longer, &[("a", "b")]));
    }

    #[test]
    fn an_upload_is_kept_until_it_is_forgotten_and_nothing_stays_behind() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("deep/state");
        let source = source(folder.path(), "x");
        let key = key(COLLECTION, &source, &[]);
        let upload: Url = "http://h/files/1".parse().unwrap();

        let mut slot = Slot::take(&state, &key).unwrap();
        assert_eq!(slot.upload(), None);
        slot.keep(upload.clone(), &source).unwrap();
        drop(slot);

        let mut slot = Slot::take(&state, &key).unwrap();
        assert_eq!(slot.upload(), Some(&upload));
        slot.forget().unwrap();
        slot.forget().unwrap();
        drop(slot);
        assert_eq!(fs::read_dir(&state).unwrap().count(), 0);
    }

    #[test]
    fn a_sending_belongs_to_one_process_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let key = key(COLLECTION, &source(folder.path(), "x"), &[]);
        let slot = Slot::take(folder.path(), &key).unwrap();
        assert!(matches!(Slot::take(folder.path(), &key), Err(StateError::Busy)));
        drop(slot);
        Slot::take(folder.path(), &key).unwrap();
    }

    #[test]
    fn a_damaged_record_is_told_and_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let key = key(COLLECTION, &source(folder.path(), "x"), &[]);
        let record = folder.path().join(format!("{}.json", key.0));
        fs::write(&record, "{").unwrap();
        assert!(matches!(
            Slot::take(folder.path(), &key),
            Err(StateError::Damaged { .. })
        ));
        assert_eq!(fs::read(&record).unwrap(), b"{");
    }
}
