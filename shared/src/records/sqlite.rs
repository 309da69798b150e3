//! Records in a SQLite file, for one machine. With the embedded bus in the same file, a record and the messages that
//! follow from it are one transaction, so its outbox is empty as soon as it is written.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::{Census, Edit, Edited, RecordError, Records, Verdict};
use crate::bus::{self, EmbeddedBus};
use crate::database::{Database, DatabaseError, Written};
use crate::failpoint::{self, Step};
use crate::message::{Message, Queue};
use crate::upload::{DeliveryRecord, DeliveryState, OwnerId, UploadId, UploadRecord, UploadState};

/// Records in a SQLite file.
#[derive(Debug)]
pub struct SqliteRecords {
    database: Arc<Database>,
    bus: Option<Arc<EmbeddedBus>>,
}

impl SqliteRecords {
    /// Records in `database`. With `bus`, which must be in the same file, outboxes go there in the same transaction.
    #[must_use]
    pub fn new(database: Arc<Database>, bus: Option<Arc<EmbeddedBus>>) -> Self {
        Self { database, bus }
    }

    /// Wakes the consumers of what was enqueued in a transaction that is committed now.
    fn nudge(&self, queues: &[Queue]) {
        if let Some(bus) = &self.bus {
            bus.nudge(queues);
        }
    }
}

#[async_trait]
impl Records for SqliteRecords {
    fn owner(&self) -> &OwnerId {
        self.database.owner()
    }

    async fn is_gone(&self, owner: &OwnerId) -> bool {
        self.database.is_gone(owner).await
    }

    async fn create(&self, mut record: UploadRecord) -> Result<UploadRecord, RecordError> {
        let (id, embedded) = (record.id, self.bus.is_some());
        let created = self
            .database
            .write(move |connection| {
                record.changed_at = Timestamp::now();
                let queues = if embedded {
                    publish_upload(connection, &mut record)?
                } else {
                    Vec::new()
                };
                let inserted = connection
                    .prepare_cached(
                        "INSERT OR IGNORE INTO uploads (id, seq, state, open, outbox, changed_at, body)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    )?
                    .execute(params![
                        record.id.as_bytes(),
                        record.seq,
                        record.state.as_str(),
                        record.needs_attention(),
                        record.outbox.len(),
                        record.changed_at.as_millisecond(),
                        to_text(&record),
                    ])?;
                if inserted == 0 {
                    // Undoes what went to the bus.
                    return Err(rusqlite::Error::StatementChangedRows(0).into());
                }
                if record.state.is_committed() {
                    insert_deliveries(connection, &record)?;
                }
                Ok(Written::plainly((record, queues)))
            })
            .await;
        match created {
            Ok((record, queues)) => {
                self.nudge(&queues);
                Ok(record)
            }
            Err(DatabaseError::Sqlite(rusqlite::Error::StatementChangedRows(0))) => Err(RecordError::Exists(id)),
            Err(error) => Err(unavailable("create", id, error)),
        }
    }

    async fn upload(&self, id: UploadId) -> Result<UploadRecord, RecordError> {
        let body = self
            .database
            .read(move |connection| Ok(upload_body(connection, id)?))
            .await;
        let body = body.map_err(|error| unavailable("read", id, error))?;
        from_text(&body.ok_or_else(|| not_found(id))?, id)
    }

    async fn edit_upload(
        &self,
        id: UploadId,
        mut edit: Edit<UploadRecord>,
    ) -> Result<Edited<UploadRecord>, RecordError> {
        let embedded = self.bus.is_some();
        let edited = self
            .database
            .write(move |connection| {
                let body = upload_body(connection, id)?;
                let (mut record, verdict) = match decide(body, format!("upload {id}"), &mut edit) {
                    Ok(decided) => decided,
                    Err(undecided) => return Ok(Written::plainly(undecided)),
                };
                record.seq += 1;
                record.changed_at = Timestamp::now();
                if record.state.is_committed() {
                    insert_deliveries(connection, &record)?;
                }
                let queues = if embedded {
                    publish_upload(connection, &mut record)?
                } else {
                    Vec::new()
                };
                connection
                    .prepare_cached(
                        "UPDATE uploads SET seq = ?2, state = ?3, open = ?4, outbox = ?5, changed_at = ?6, body = ?7
                         WHERE id = ?1",
                    )?
                    .execute(params![
                        id.as_bytes(),
                        record.seq,
                        record.state.as_str(),
                        record.needs_attention(),
                        record.outbox.len(),
                        record.changed_at.as_millisecond(),
                        to_text(&record),
                    ])?;
                Ok(written(verdict, Ok((Edited { record, written: true }, queues))))
            })
            .await;
        let (edited, queues) = edited.map_err(|error| unavailable("edit", id, error))??;
        self.nudge(&queues);
        Ok(edited)
    }

    async fn deliveries(&self, id: UploadId) -> Result<Vec<DeliveryRecord>, RecordError> {
        let bodies = self
            .database
            .read(move |connection| {
                let mut statement =
                    connection.prepare_cached("SELECT body FROM deliveries WHERE upload = ?1 ORDER BY target")?;
                let bodies = statement.query_map([id.as_bytes()], text_column)?;
                Ok(bodies.collect::<rusqlite::Result<Vec<_>>>()?)
            })
            .await
            .map_err(|error| unavailable("read deliveries of", id, error))?;
        bodies.iter().map(|body| from_text(body, id)).collect()
    }

    async fn edit_delivery(
        &self,
        id: UploadId,
        target: &str,
        mut edit: Edit<DeliveryRecord>,
    ) -> Result<Edited<DeliveryRecord>, RecordError> {
        let (target, embedded) = (target.to_owned(), self.bus.is_some());
        let edited = self
            .database
            .write(move |connection| {
                let body: Option<String> = connection
                    .prepare_cached("SELECT body FROM deliveries WHERE upload = ?1 AND target = ?2")?
                    .query_row(params![id.as_bytes(), target], text_column)
                    .optional()?;
                let (mut record, verdict) = match decide(body, format!("upload {id} in {target}"), &mut edit) {
                    Ok(decided) => decided,
                    Err(undecided) => return Ok(Written::plainly(undecided)),
                };
                record.seq += 1;
                let queues = if embedded {
                    publish_delivery(connection, &mut record)?
                } else {
                    Vec::new()
                };
                connection
                    .prepare_cached(
                        "UPDATE deliveries SET seq = ?3, state = ?4, open = ?5, outbox = ?6, body = ?7
                         WHERE upload = ?1 AND target = ?2",
                    )?
                    .execute(params![
                        id.as_bytes(),
                        target,
                        record.seq,
                        record.state.as_str(),
                        record.needs_attention(),
                        record.outbox.len(),
                        to_text(&record),
                    ])?;
                Ok(written(verdict, Ok((Edited { record, written: true }, queues))))
            })
            .await;
        let (edited, queues) = edited.map_err(|error| unavailable("edit delivery of", id, error))??;
        self.nudge(&queues);
        Ok(edited)
    }

    async fn open_uploads(&self, after: Option<UploadId>, limit: usize) -> Result<Vec<UploadId>, RecordError> {
        let after = after.map_or_else(Vec::new, |id| id.as_bytes().to_vec());
        let ids = self.database.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT id FROM uploads WHERE open = 1 AND id > ?1
                 UNION SELECT upload FROM deliveries WHERE open = 1 AND upload > ?1
                 ORDER BY 1 LIMIT ?2",
            )?;
            let ids = statement.query_map(params![after, limit], |row| row.get::<_, [u8; 16]>(0))?;
            Ok(ids.collect::<rusqlite::Result<Vec<_>>>()?)
        });
        let ids = ids.await.map_err(|error| unavailable("list", "open uploads", error))?;
        Ok(ids.into_iter().map(UploadId::from_bytes).collect())
    }

    async fn failed_deliveries(
        &self,
        target: Option<&str>,
        after: Option<UploadId>,
        limit: usize,
    ) -> Result<Vec<DeliveryRecord>, RecordError> {
        let (target, from) = (
            target.map(str::to_owned),
            after.map_or_else(Vec::new, |id| id.as_bytes().to_vec()),
        );
        let bodies = self.database.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT body FROM deliveries
                 WHERE state = 'failed' AND (?2 IS NULL OR target = ?2) AND upload IN (
                     SELECT DISTINCT upload FROM deliveries
                     WHERE state = 'failed' AND upload > ?1 AND (?2 IS NULL OR target = ?2)
                     ORDER BY upload LIMIT ?3)
                 ORDER BY upload, target",
            )?;
            let bodies = statement.query_map(params![from, target, limit], text_column)?;
            Ok(bodies.collect::<rusqlite::Result<Vec<_>>>()?)
        });
        let bodies = bodies
            .await
            .map_err(|error| unavailable("list", "failed deliveries", error))?;
        bodies.iter().map(|body| from_text(body, "a failed delivery")).collect()
    }

    async fn purge_tombstones(&self, before: Timestamp, limit: usize) -> Result<usize, RecordError> {
        self.database
            .write(move |connection| {
                let mut statement = connection.prepare_cached(
                    "SELECT id FROM uploads
                     WHERE state IN ('terminated', 'expired') AND changed_at < ?1 AND open = 0 LIMIT ?2",
                )?;
                let ids = statement.query_map(params![before.as_millisecond(), limit], |row| row.get(0))?;
                let ids = ids.collect::<rusqlite::Result<Vec<[u8; 16]>>>()?;
                for id in &ids {
                    connection
                        .prepare_cached("DELETE FROM deliveries WHERE upload = ?1")?
                        .execute([id])?;
                    connection
                        .prepare_cached("DELETE FROM uploads WHERE id = ?1")?
                        .execute([id])?;
                }
                Ok(Written::plainly(ids.len()))
            })
            .await
            .map_err(|error| unavailable("purge", "tombstones", error))
    }

    async fn census(&self) -> Result<Census, RecordError> {
        let census = self.database.read(|connection| {
            let mut census = Census::default();
            let mut statement = connection
                .prepare_cached("SELECT state, count(*), sum(outbox > 0) FROM uploads WHERE open = 1 GROUP BY state")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let state: String = row.get(0)?;
                if let Some(state) = UploadState::ALL.iter().find(|known| known.as_str() == state) {
                    census.uploads.insert(state.as_str(), row.get(1)?);
                }
                census.with_outbox += row.get::<_, u64>(2)?;
            }
            let mut statement = connection.prepare_cached(
                "SELECT state, count(*), sum(outbox > 0) FROM deliveries WHERE open = 1 GROUP BY state
                 UNION ALL SELECT 'failed', count(*), 0 FROM deliveries WHERE state = 'failed' AND open = 0",
            )?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let state: String = row.get(0)?;
                let count: u64 = row.get(1)?;
                if let Some(state) = DeliveryState::ALL.iter().find(|known| known.as_str() == state) {
                    *census.deliveries.entry(state.as_str()).or_default() += count;
                }
                census.with_outbox += row.get::<_, u64>(2)?;
            }
            Ok(census)
        });
        census.await.map_err(|error| unavailable("count", "records", error))
    }

    async fn settled(&self) -> Result<(), RecordError> {
        // Behind every earlier transaction, of this process and of others.
        let settled = self.database.write(|_| Ok(Written::settled(())));
        settled.await.map_err(|error| unavailable("sync", "records", error))
    }

    async fn check(&self) -> Result<(), RecordError> {
        self.database
            .check()
            .await
            .map_err(|error| unavailable("check", "records", error))
    }
}

type Answer<R> = Result<(Edited<R>, Vec<Queue>), RecordError>;

/// Lets `edit` change the record that `body` holds. `Err` is what the caller answers without writing.
fn decide<R: DeserializeOwned>(
    body: Option<String>,
    object: String,
    edit: &mut Edit<R>,
) -> Result<(R, Verdict), Answer<R>> {
    let Some(body) = body else {
        return Err(Err(RecordError::NotFound(object)));
    };
    let mut record = from_text(&body, &object).map_err(Err)?;
    match edit(&mut record) {
        // It may have changed the record all the same.
        Verdict::Leave => Err(from_text(&body, &object).map(|record| (Edited { record, written: false }, Vec::new()))),
        verdict => Ok((record, verdict)),
    }
}

fn written<R>(verdict: Verdict, answer: Answer<R>) -> Written<Answer<R>> {
    match verdict {
        Verdict::WriteDurably => Written::durably(answer),
        Verdict::Write | Verdict::Leave => Written::plainly(answer),
    }
}

fn publish_upload(connection: &Connection, record: &mut UploadRecord) -> Result<Vec<Queue>, DatabaseError> {
    let queues = bus::enqueue(connection, &record.outbox)?;
    if record.state == UploadState::Committed && record.outbox.iter().any(Message::is_work) {
        failpoint::reached_blocking(Step::Published)?;
    }
    record.mark_published(&ids(&record.outbox));
    Ok(queues)
}

fn publish_delivery(connection: &Connection, record: &mut DeliveryRecord) -> Result<Vec<Queue>, DatabaseError> {
    let queues = bus::enqueue(connection, &record.outbox)?;
    if !record.outbox.is_empty() {
        failpoint::reached_blocking(Step::CopyPublished)?;
    }
    record.mark_published(&ids(&record.outbox), Timestamp::now());
    Ok(queues)
}

fn ids(messages: &[Message]) -> Vec<Uuid> {
    messages.iter().map(|message| message.id).collect()
}

/// Deliveries exist from the moment on that their upload is committed.
fn insert_deliveries(connection: &Connection, record: &UploadRecord) -> Result<(), DatabaseError> {
    for target in &record.targets {
        let delivery = DeliveryRecord {
            traceparent: record.traceparent.clone(),
            ..DeliveryRecord::pending(record.id, target.clone(), record.changed_at)
        };
        connection
            .prepare_cached(
                "INSERT OR IGNORE INTO deliveries (upload, target, seq, state, open, outbox, body)
                 VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6)",
            )?
            .execute(params![
                record.id.as_bytes(),
                target.target,
                delivery.seq,
                delivery.state.as_str(),
                delivery.needs_attention(),
                to_text(&delivery),
            ])?;
    }
    Ok(())
}

fn upload_body(connection: &Connection, id: UploadId) -> rusqlite::Result<Option<String>> {
    connection
        .prepare_cached("SELECT body FROM uploads WHERE id = ?1")?
        .query_row([id.as_bytes()], text_column)
        .optional()
}

fn text_column(row: &Row<'_>) -> rusqlite::Result<String> {
    row.get(0)
}

fn to_text(record: &impl Serialize) -> String {
    serde_json::to_string(record).expect("records are plain structs with text keys")
}

fn from_text<R: DeserializeOwned>(body: &str, object: impl ToString) -> Result<R, RecordError> {
    serde_json::from_str(body).map_err(|error| RecordError::Damaged {
        object: object.to_string(),
        source: Box::new(error),
    })
}

fn not_found(id: UploadId) -> RecordError {
    RecordError::NotFound(format!("upload {id}"))
}

fn unavailable(operation: &'static str, object: impl ToString, error: DatabaseError) -> RecordError {
    RecordError::Unavailable {
        operation,
        object: object.to_string(),
        source: Box::new(error),
    }
}
