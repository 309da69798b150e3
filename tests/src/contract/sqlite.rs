//! Records and bus in one SQLite file, as `RECORDS=sqlite:PATH` with `BUS=embedded` has them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use shared::bus::{Bus, EmbeddedBus};
use shared::database::{Database, Durable};
use shared::records::{Records, SqliteRecords};
use tempfile::TempDir;

use super::bus::BusSite;
use super::records::RecordsSite;

/// A folder with one database file.
#[derive(Debug)]
pub struct SqliteSite {
    folder: TempDir,
    embedded: bool,
}

impl SqliteSite {
    /// A new, empty one, with the bus in the file of the records; removed when it is dropped.
    ///
    /// # Panics
    /// There is no place for temporary files.
    #[must_use]
    pub fn with_bus() -> Self {
        let folder = tempfile::tempdir().expect("make a temporary folder");
        let embedded = true;
        Self { folder, embedded }
    }

    /// The same with the bus somewhere else, as `BUS=amqp://…` has it: then the outbox is kept.
    ///
    /// # Panics
    /// There is no place for temporary files.
    #[must_use]
    pub fn without_bus() -> Self {
        let embedded = false;
        Self {
            embedded,
            ..Self::with_bus()
        }
    }

    /// The database file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("ferry.db")
    }
}

/// Opens the file as one process does, once for records and bus.
///
/// # Panics
/// It cannot be opened.
#[must_use]
pub fn open(path: &Path) -> (Arc<dyn Records>, Arc<dyn Bus>) {
    let database = Database::open(path, Durable::OnRequest).expect("open the database");
    let bus = EmbeddedBus::new(database.clone());
    let records = SqliteRecords::new(database, Some(bus.clone()));
    (Arc::new(records), bus)
}

#[async_trait]
impl RecordsSite for SqliteSite {
    async fn open(&self) -> Arc<dyn Records> {
        if self.embedded {
            return open(&self.path()).0;
        }
        let database = Database::open(&self.path(), Durable::OnRequest).expect("open the database");
        Arc::new(SqliteRecords::new(database, None))
    }

    fn publishes_itself(&self) -> bool {
        self.embedded
    }
}

#[async_trait]
impl BusSite for SqliteSite {
    async fn open(&self) -> Arc<dyn Bus> {
        open(&self.path()).1
    }
}
