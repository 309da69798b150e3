//! SQLite's files at the moment at which the power is lost: the database, and its log cut anywhere behind the last
//! sync. What is left of the log SQLite itself recovers, transaction by transaction.
//!
//! Formats: SQLite, "WAL-mode File Format". The index is read as it lies in memory, which is shared by its file.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use shared::database::SyncLog;

use crate::pattern::Random;

const LOG_HEADER: u64 = 32;
const FRAME_HEADER: u64 = 24;

/// What the index of the log says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Index {
    /// Changed whenever the log begins anew.
    salt: u64,
    page: u64,
    /// Frames that are committed.
    frames: u64,
    /// Frames that a checkpoint has begun to bring into the database, for which it synced them.
    in_database: u64,
}

/// The files of one database, and what of them is durable.
#[derive(Clone, Debug)]
pub struct LogCopy {
    database: PathBuf,
    synced: Arc<Mutex<Index>>,
}

impl LogCopy {
    /// Of the database at `path`, which need not be there yet.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        Self {
            database: path.to_owned(),
            synced: Arc::default(),
        }
    }

    /// What the database is to sync its log with: it notes how far the log is, and has no need of the disk.
    #[must_use]
    pub fn sync(&self) -> SyncLog {
        let this = self.clone();
        Box::new(move |_log: &File| {
            let index = this.index()?;
            *this.synced.lock().unwrap_or_else(PoisonError::into_inner) = index;
            Ok(())
        })
    }

    /// Copies what a crash leaves to the database `to`: everything, or with `loss` what a loss of power does.
    /// Answers how many transactions' frames were lost.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn survive(&self, to: &Path, loss: Option<&mut Random>) -> io::Result<u64> {
        let share = loss.map(|random| random.next());
        loop {
            let before = self.index()?;
            fs::copy(&self.database, to)?;
            let log = fs::read(beside(&self.database, "-wal"))?;
            if self.index()?.salt != before.salt {
                continue; // it began anew meanwhile
            }
            let synced = *self.synced.lock().unwrap_or_else(PoisonError::into_inner);
            let durable = if synced.salt == before.salt { synced.frames } else { 0 };
            let durable = durable.max(before.in_database).min(before.frames);
            let lost = share.map_or(0, |share| share % (before.frames - durable + 1));
            let len = LOG_HEADER + (before.frames - lost) * (FRAME_HEADER + before.page);
            let len = usize::try_from(len).expect("a log in memory").min(log.len());
            fs::write(beside(to, "-wal"), &log[..len])?;
            return Ok(lost);
        }
    }

    fn index(&self) -> io::Result<Index> {
        let bytes = match fs::read(beside(&self.database, "-shm")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Index::default()),
            bytes => bytes?,
        };
        let number = |at: usize| {
            let bytes = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            u64::from(bytes.map_or(0, u32::from_ne_bytes))
        };
        // The page's size takes the upper half of the word at 12, behind two bytes that are flags.
        let page = bytes.get(14..16).and_then(|bytes| bytes.try_into().ok());
        Ok(Index {
            salt: number(32) << 32 | number(36),
            page: u64::from(page.map_or(0, u16::from_ne_bytes)),
            frames: number(16),
            in_database: number(128),
        })
    }
}

fn beside(database: &Path, end: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(end);
    name.into()
}

#[cfg(test)]
mod tests {
    use shared::bus::EmbeddedBus;
    use shared::database::{Database, Durable};
    use shared::records::{Records as _, SqliteRecords, Verdict};
    use shared::upload::{UploadId, UploadRecord};

    use super::*;
    use crate::contract::sample;

    fn open(path: &Path, log: &LogCopy) -> SqliteRecords {
        let database = Database::open_with(path, Durable::OnRequest, log.sync()).expect("open");
        let bus = EmbeddedBus::new(database.clone());
        SqliteRecords::new(database, Some(bus))
    }

    // The model of row 16 for records: any suffix behind the last durable write may be lost, and nothing else.
    #[tokio::test]
    async fn a_loss_takes_a_suffix_of_the_transactions_behind_the_last_durable_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ferry.db");
        let log = LogCopy::of(&path);
        let records = open(&path, &log);
        let id = records
            .create(sample::receiving(UploadId::random()))
            .await
            .expect("create")
            .id;
        for (offset, verdict) in [
            (1, Verdict::Write),
            (2, Verdict::WriteDurably),
            (3, Verdict::Write),
            (4, Verdict::Write),
        ] {
            let edit = move |record: &mut UploadRecord| {
                record.on_disk.synced = offset;
                verdict
            };
            records.edit_upload(id, Box::new(edit)).await.expect("edit");
        }
        let mut found = Vec::new();
        for seed in 0..60 {
            let left = folder.path().join(format!("{seed}.db"));
            let mut random = Random::new(seed);
            let loss = (seed > 0).then_some(&mut random);
            log.survive(&left, loss).expect("copy");
            let records = open(&left, &LogCopy::of(&left));
            found.push(records.upload(id).await.expect("the record").on_disk.synced);
        }
        assert_eq!(found[0], 4, "a kill loses nothing");
        found.sort_unstable();
        found.dedup();
        assert_eq!(found, [2, 3, 4]);
    }
}
