//! The bus in the SQLite file of the records, for one machine. Spec: bus.md, "Embedded".
//!
//! A message waits (`READY`), is held back (`DELAYED`) or is with a process (`TAKEN`, under its owner id). What a
//! dead process had is ready again as soon as its owner lock is free: that lock is the lease, so a job is never
//! taken from a worker that is only slow.

mod held;
mod intake;
mod tables;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::params;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use uuid::Uuid;

use held::Held;
use intake::Intake;
use tables::{BEFORE_SINK, DELAYED, READY, TAKEN, delete, failed, free, hold_back, message, place, sort_reports};
pub(crate) use tables::{SCHEMA, enqueue};

use super::{Backlog, Bus, BusError, Consumer, DeadLetter, Depth, Positions, PublishError, Settle};
use crate::database::{Database, DatabaseError, Written};
use crate::message::{Message, Queue, Route};

/// The bus in a SQLite file.
#[derive(Debug)]
pub struct EmbeddedBus {
    database: Arc<Database>,
    /// Who waits, by the name of what they wait for.
    waiting: Mutex<BTreeMap<String, Waiting>>,
    held: Arc<Held>,
}

/// This process's consumers of one queue, or of one sink's reports.
#[derive(Debug)]
struct Waiting {
    wake: Arc<Notify>,
    /// The one of them that takes what goes out in order.
    turn: Arc<Semaphore>,
}

impl Default for Waiting {
    fn default() -> Self {
        Self {
            wake: Arc::default(),
            turn: Arc::new(Semaphore::new(1)),
        }
    }
}

impl EmbeddedBus {
    /// The bus in `database`.
    #[must_use]
    pub fn new(database: Arc<Database>) -> Arc<Self> {
        Arc::new(Self {
            database,
            waiting: Mutex::default(),
            held: Arc::default(),
        })
    }

    /// Wakes this process's consumers of `queues`; those of other processes see the file change.
    pub(crate) fn nudge(&self, queues: &[Queue]) {
        for (place, waiting) in self.waiting.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if queues.iter().any(|queue| is_of(place, *queue)) {
                waiting.wake.notify_one();
            }
        }
    }

    /// Brings what is in `place` to a new consumer.
    async fn take_from(&self, place: String, in_order: bool, prefetch: usize) -> Result<Consumer, BusError> {
        self.check().await?;
        if is_of(&place, Queue::Report) {
            // Before anybody takes any of them.
            let sorted = self.database.write(sort_reports).await;
            sorted.map_err(|error| failed("sort reports", error))?;
        }
        let (jobs, receiver) = mpsc::channel(prefetch.max(1));
        let (wake, turn) = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let waiting = waiting.entry(place.clone()).or_default();
            (waiting.wake.clone(), in_order.then(|| waiting.turn.clone()))
        };
        let intake = Intake {
            database: self.database.clone(),
            place,
            turn,
            wake,
            held: self.held.clone(),
            places: Arc::new(Semaphore::new(prefetch.max(1))),
            jobs,
        };
        tokio::spawn(intake.run());
        Ok(Consumer::new(receiver))
    }

    /// The newest events after `cursor` (0: all that are kept), each with its cursor.
    ///
    /// # Errors
    /// The file could not be read.
    pub async fn events_after(&self, cursor: i64, limit: usize) -> Result<Vec<(i64, Message)>, BusError> {
        let rows = self.database.read(move |connection| {
            let mut statement =
                connection.prepare_cached("SELECT tag, body FROM events WHERE tag > ?1 ORDER BY tag LIMIT ?2")?;
            let rows = statement.query_map(params![cursor, limit], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<rusqlite::Result<Vec<(i64, String)>>>()?)
        });
        let rows = rows.await.map_err(|error| failed("read events", error))?;
        rows.into_iter().map(|(tag, body)| Ok((tag, message(&body)?))).collect()
    }
}

#[async_trait]
impl Bus for EmbeddedBus {
    async fn publish(&self, messages: Vec<Message>) -> Vec<Result<(), PublishError>> {
        let ids: Vec<Uuid> = messages.iter().map(|message| message.id).collect();
        let enqueued = self
            .database
            .write(move |connection| Ok(Written::plainly(enqueue(connection, &messages)?)))
            .await;
        match enqueued {
            Ok(queues) => {
                self.nudge(&queues);
                ids.iter().map(|_| Ok(())).collect()
            }
            Err(error) => {
                let reason = error.to_string();
                ids.into_iter()
                    .map(|id| {
                        let source = Box::new(DatabaseError::Transaction(reason.clone()));
                        Err(PublishError::Refused { id, source })
                    })
                    .collect()
            }
        }
    }

    async fn consume(&self, queue: Queue, prefetch: usize) -> Result<Consumer, BusError> {
        self.take_from(place(queue, None), false, prefetch).await
    }

    async fn consume_reports(&self, sink: &str, prefetch: usize) -> Result<Consumer, BusError> {
        self.take_from(place(Queue::Report, Some(sink)), true, prefetch).await
    }

    async fn backlogs(&self) -> Result<Vec<Backlog>, BusError> {
        let rows = self.database.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT queue, pending, (SELECT body FROM bus WHERE tag = first) FROM (
                     SELECT queue, count(*) AS pending, min(tag) AS first FROM bus
                     WHERE queue > ?1 AND queue < ?2 GROUP BY queue)",
            )?;
            // Names that begin with `report.`: the second bound is the next character.
            let before = place(Queue::Report, Some(""));
            let behind = format!("{}/", Queue::Report.as_str());
            let rows = statement.query_map([before, behind], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            Ok(rows.collect::<rusqlite::Result<Vec<(String, u64, String)>>>()?)
        });
        let rows = rows.await.map_err(|error| failed("count reports", error))?;
        rows.into_iter()
            .map(|(place, pending, body)| {
                Ok(Backlog {
                    sink: place
                        .split_once(BEFORE_SINK)
                        .map(|(_, sink)| sink.to_owned())
                        .unwrap_or(place),
                    pending,
                    oldest: message(&body)?.time,
                })
            })
            .collect()
    }

    async fn positions(&self, sink: &str) -> Result<Positions, BusError> {
        let place = place(Queue::Report, Some(sink));
        let positions = self.database.read(move |connection| {
            let next: u64 = connection
                .prepare_cached("SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'bus'), 0) + 1")?
                .query_row([], |row| row.get(0))?;
            let mut oldest = next;
            for state in [READY, DELAYED, TAKEN] {
                let found: Option<u64> = connection
                    .prepare_cached("SELECT min(tag) FROM bus WHERE queue = ?1 AND state = ?2")?
                    .query_row(params![place, state], |row| row.get(0))?;
                oldest = found.map_or(oldest, |found| oldest.min(found));
            }
            Ok(Positions { oldest, next })
        });
        positions.await.map_err(|error| failed("look at reports", error))
    }

    async fn depth(&self, queue: Queue) -> Result<Depth, BusError> {
        let counts = self.database.read(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT state, count(*) FROM bus WHERE queue >= ?1 AND queue < ?1 || '/' GROUP BY state",
            )?;
            let rows = statement.query_map([queue.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<rusqlite::Result<HashMap<u8, u64>>>()?)
        });
        let counts = counts.await.map_err(|error| failed("count messages", error))?;
        let of = |state| counts.get(&state).copied().unwrap_or_default();
        Ok(Depth {
            ready: of(READY),
            in_flight: of(TAKEN),
            delayed: of(DELAYED),
        })
    }

    async fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter>, BusError> {
        let rows = self.database.read(move |connection| {
            let mut statement =
                connection.prepare_cached("SELECT at, reason, body FROM dead_letters ORDER BY tag LIMIT ?1")?;
            let rows = statement.query_map([limit], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            Ok(rows.collect::<rusqlite::Result<Vec<(i64, String, String)>>>()?)
        });
        let rows = rows.await.map_err(|error| failed("list dead letters", error))?;
        rows.into_iter()
            .map(|(at, reason, body)| {
                let at = Timestamp::from_millisecond(at).unwrap_or(Timestamp::UNIX_EPOCH);
                Ok(DeadLetter {
                    message: message(&body)?,
                    reason,
                    at,
                })
            })
            .collect()
    }

    async fn remove_dead_letters(&self, ids: Vec<Uuid>) -> Result<usize, BusError> {
        self.database
            .write(move |connection| {
                let mut removed = 0;
                let mut statement = connection.prepare_cached("DELETE FROM dead_letters WHERE id = ?1")?;
                for id in &ids {
                    removed += statement.execute([id.as_bytes()])?;
                }
                Ok(Written::plainly(removed))
            })
            .await
            .map_err(|error| failed("remove dead letters", error))
    }

    async fn check(&self) -> Result<(), BusError> {
        self.database.check().await.map_err(|error| failed("check", error))
    }
}

/// Whether `place` is `queue`, or a sink's part of it.
fn is_of(place: &str, queue: Queue) -> bool {
    let rest = place.strip_prefix(queue.as_str());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(BEFORE_SINK))
}

#[derive(Debug)]
struct Settler {
    database: Arc<Database>,
    place: String,
    wake: Arc<Notify>,
    held: Arc<Held>,
    // Each job has its settler: until the last one is settled or put back no other consumer begins.
    _turn: Option<OwnedSemaphorePermit>,
}

#[async_trait]
impl Settle for Settler {
    async fn ack(&self, tag: u64) -> Result<(), BusError> {
        let _over = self.held.over_after(tag);
        self.database
            .write(move |connection| delete(connection, tag))
            .await
            .map_err(|error| failed("ack", error))
    }

    async fn later(&self, tag: u64, message: &Message, delay: Duration) -> Result<(), BusError> {
        let _over = self.held.over_after(tag);
        let mut message = message.clone();
        message.delay = Some(delay);
        let held = self
            .database
            .write(move |connection| hold_back(connection, tag, &message, delay));
        held.await.map_err(|error| failed("put back", error))?;
        self.wake.notify_one(); // the next delay's end may be nearer now
        Ok(())
    }

    async fn bury(&self, tag: u64, message: &Message, reason: &str) -> Result<(), BusError> {
        let _over = self.held.over_after(tag);
        let mut message = message.clone();
        message.route = Route::Dead {
            queue: if is_of(&self.place, Queue::Report) {
                Queue::Report
            } else {
                Queue::Copy
            },
            reason: reason.to_owned(),
        };
        let moved = self.database.write(move |connection| {
            enqueue(connection, &[message])?;
            delete(connection, tag)
        });
        moved.await.map_err(|error| failed("dead-letter", error))
    }

    fn put_back(&self, tag: u64) {
        self.held.end(tag);
        let (wake, held, owner) = (self.wake.clone(), self.held.clone(), self.database.owner().clone());
        let taken = self.database.write_later(move |connection| {
            free(connection, &[tag], &owner, &held)?;
            wake.notify_one();
            Ok(Written::plainly(()))
        });
        if !taken {
            tracing::debug!(queue = self.place, tag, "a job is put back later");
        }
    }
}
