//! Bringing jobs from the file to a consumer.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::params;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use uuid::Uuid;

use super::Settler;
use super::held::Held;
use super::tables::{delete, free, insert_dead_letter, message};
use crate::bus::{Job, Settle};
use crate::database::{Database, DatabaseError, Written};
use crate::upload::OwnerId;

/// How often a consumer looks for jobs of dead processes, and for delays that a clock step has upset.
const TIDY_INTERVAL: Duration = Duration::from_secs(2);

/// Brings jobs from the file to one consumer, until that is dropped.
pub(super) struct Intake {
    pub(super) database: Arc<Database>,
    /// As in the column `queue`.
    pub(super) place: String,
    /// Of what goes out in order: only while no other consumer, here or in another process, holds any of it.
    pub(super) turn: Option<Arc<Semaphore>>,
    pub(super) wake: Arc<Notify>,
    pub(super) held: Arc<Held>,
    pub(super) places: Arc<Semaphore>,
    pub(super) jobs: mpsc::Sender<Job>,
}

impl Intake {
    pub(super) async fn run(self) {
        let turn = match &self.turn {
            None => None,
            Some(turn) => tokio::select! {
                turn = turn.clone().acquire_owned() => turn.ok(),
                () = self.jobs.closed() => return,
            },
        };
        let settler: Arc<dyn Settle> = Arc::new(Settler {
            database: self.database.clone(),
            place: self.place.clone(),
            wake: self.wake.clone(),
            held: self.held.clone(),
            _turn: turn,
        });
        let mut changes = self.database.changes();
        let mut tidied: Option<Instant> = None;
        loop {
            let place = tokio::select! {
                place = self.places.clone().acquire_owned() => place,
                () = self.jobs.closed() => return,
            };
            let Ok(mut places) = place else { return };
            let more = self.places.available_permits();
            if let Ok(rest) = self
                .places
                .clone()
                .try_acquire_many_owned(u32::try_from(more).unwrap_or(u32::MAX))
            {
                places.merge(rest);
            }
            if tidied.is_none_or(|at| at.elapsed() >= TIDY_INTERVAL) {
                self.tidy().await;
                tidied = Some(Instant::now());
            }
            changes.mark_unchanged();
            match self.take(places.num_permits()).await {
                Ok(rows) if !rows.is_empty() => {
                    // All become jobs before anything is waited for: a job that is dropped goes back, a row does not.
                    let (jobs, unreadable) = into_jobs(rows, &mut places, &settler);
                    drop(places);
                    for row in unreadable {
                        self.bury_unreadable(row).await;
                    }
                    for job in jobs {
                        if self.jobs.send(job).await.is_err() {
                            return;
                        }
                    }
                }
                Ok(_) => {
                    drop(places);
                    if !self.wait_for_work(&mut changes).await {
                        return;
                    }
                }
                Err(error) => {
                    drop(places);
                    tracing::warn!(queue = self.place, %error, "no work could be taken");
                    tokio::select! {
                        () = tokio::time::sleep(TIDY_INTERVAL) => {}
                        () = self.jobs.closed() => return,
                    }
                }
            }
        }
    }

    /// Nothing of ours writes such a row: it is kept for people to look at.
    async fn bury_unreadable(&self, row: Row) {
        let _over = self.held.over_after(row.tag);
        tracing::error!(queue = self.place, tag = row.tag, "an unreadable message");
        let buried = self.database.write(move |connection| {
            let now = Timestamp::now().as_millisecond();
            insert_dead_letter(connection, Uuid::nil(), now, "unreadable", &row.body)?;
            delete(connection, row.tag)
        });
        if let Err(error) = buried.await {
            tracing::error!(%error, "it could not be moved to the dead letters");
        }
    }

    async fn take(&self, most: usize) -> Result<Vec<Row>, DatabaseError> {
        // Most looks find nothing: they do not go through the writer.
        let now = Timestamp::now().as_millisecond();
        let (place, owner, in_order) = (self.place.clone(), self.database.owner().clone(), self.turn.is_some());
        let waiting = self.database.read(move |connection| {
            let found = connection
                .prepare_cached(
                    "SELECT (EXISTS (SELECT 1 FROM bus WHERE queue = ?1 AND state = 0)
                             OR EXISTS (SELECT 1 FROM bus WHERE state = 1 AND due <= ?2))
                        AND NOT (?3 AND EXISTS (SELECT 1 FROM bus WHERE queue = ?1 AND state = 2 AND owner <> ?4))",
                )?
                .query_row(params![place, now, in_order, owner.as_str()], |row| {
                    row.get::<_, bool>(0)
                })?;
            Ok(found)
        });
        if !waiting.await? {
            return Ok(Vec::new());
        }
        let (place, owner, held) = (self.place.clone(), self.database.owner().clone(), self.held.clone());
        self.database
            .write(move |connection| {
                connection
                    .prepare_cached("UPDATE bus SET state = 0 WHERE state = 1 AND due <= ?1")?
                    .execute([now])?;
                let mut statement = connection.prepare_cached(
                    "UPDATE bus SET state = 2, owner = ?1 WHERE tag IN (
                         SELECT tag FROM bus WHERE queue = ?2 AND state = 0
                             AND NOT (?4 AND EXISTS (SELECT 1 FROM bus
                                                     WHERE queue = ?2 AND state = 2 AND owner <> ?1))
                         ORDER BY tag LIMIT ?3)
                     RETURNING tag, redelivered, body",
                )?;
                let rows = statement.query_map(params![owner.as_str(), place, most, in_order], |row| {
                    Ok(Row {
                        tag: row.get(0)?,
                        redelivered: row.get(1)?,
                        body: row.get(2)?,
                    })
                })?;
                let mut rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
                rows.sort_by_key(|row| row.tag); // RETURNING promises no order
                held.begin(rows.iter().map(|row| row.tag));
                Ok(Written::plainly(rows))
            })
            .await
    }

    /// Frees the jobs of dead processes, and those of this one that could not be settled; cuts delays that a step of the clock has made longer than they
    /// were.
    async fn tidy(&self) {
        let owners = self.database.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT DISTINCT owner FROM bus WHERE state = 2")?;
            let owners = statement.query_map([], |row| row.get::<_, String>(0))?;
            Ok(owners.collect::<rusqlite::Result<Vec<_>>>()?)
        });
        let mut dead = Vec::new();
        for owner in owners.await.unwrap_or_default() {
            let id: Result<OwnerId, _> = serde_json::from_value(serde_json::Value::String(owner.clone()));
            if let Ok(id) = id
                && self.database.is_gone(&id).await
            {
                dead.push(owner);
            }
        }
        let own = self.database.owner().clone();
        let taken = self.database.read(move |connection| {
            let mut statement = connection.prepare_cached("SELECT tag FROM bus WHERE state = 2 AND owner = ?1")?;
            let tags = statement.query_map([own.as_str()], |row| row.get::<_, u64>(0))?;
            Ok(tags.collect::<rusqlite::Result<Vec<_>>>()?)
        });
        let mut unsettled = taken.await.unwrap_or_default();
        unsettled.retain(|tag| !self.held.has(*tag));
        let now = Timestamp::now().as_millisecond();
        let upset = self.database.read(move |connection| {
            let found = connection
                .prepare_cached("SELECT EXISTS (SELECT 1 FROM bus WHERE state = 1 AND due - delay > ?1)")?
                .query_row([now], |row| row.get::<_, bool>(0))?;
            Ok(found)
        });
        if dead.is_empty() && unsettled.is_empty() && !upset.await.unwrap_or(false) {
            return;
        }
        let (own, held) = (self.database.owner().clone(), self.held.clone());
        let tidied = self.database.write(move |connection| {
            free(connection, &unsettled, &own, &held)?;
            for owner in &dead {
                connection
                    .prepare_cached(
                        "UPDATE bus SET state = 0, owner = NULL, redelivered = redelivered + 1
                         WHERE state = 2 AND owner = ?1",
                    )?
                    .execute([owner])?;
            }
            connection
                .prepare_cached("UPDATE bus SET due = ?1 + delay WHERE state = 1 AND due - delay > ?1")?
                .execute([now])?;
            Ok(Written::plainly(()))
        });
        if let Err(error) = tidied.await {
            tracing::warn!(%error, "jobs of dead processes could not be freed");
        }
    }

    /// Waits until there may be work: a nudge, a change of the file, a delay's end. Answers whether the consumer is
    /// still there.
    async fn wait_for_work(&self, changes: &mut tokio::sync::watch::Receiver<i64>) -> bool {
        let next = self.database.read(move |connection| {
            let due = connection
                .prepare_cached("SELECT min(due) FROM bus WHERE state = 1")?
                .query_row([], |row| row.get::<_, Option<i64>>(0))?;
            Ok(due)
        });
        let due = match next.await {
            Ok(due) => due.map(|due| due.saturating_sub(Timestamp::now().as_millisecond()).max(1)),
            Err(error) => {
                tracing::warn!(queue = self.place, %error, "the next delay's end could not be read");
                None
            }
        };
        let nap = due
            .and_then(|due| u64::try_from(due).ok())
            .map_or(TIDY_INTERVAL, Duration::from_millis);
        tokio::select! {
            () = self.wake.notified() => true,
            changed = changes.changed() => changed.is_ok(),
            () = tokio::time::sleep(nap.min(TIDY_INTERVAL)) => true,
            () = self.jobs.closed() => false,
        }
    }
}

/// Jobs of the rows that can be read, each in one of `places`, and the other rows.
fn into_jobs(rows: Vec<Row>, places: &mut OwnedSemaphorePermit, settler: &Arc<dyn Settle>) -> (Vec<Job>, Vec<Row>) {
    let (mut jobs, mut unreadable) = (Vec::new(), Vec::new());
    for row in rows {
        match (message(&row.body), places.split(1)) {
            (Ok(message), Some(place)) => {
                jobs.push(Job::new(message, row.redelivered, row.tag, settler.clone(), place));
            }
            // There is a place for each row: no more were taken.
            _ => unreadable.push(row),
        }
    }
    (jobs, unreadable)
}

struct Row {
    tag: u64,
    redelivered: u32,
    body: String,
}
