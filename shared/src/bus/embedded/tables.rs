//! The bus's tables, and what is written into them inside other people's transactions.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, params};
use uuid::Uuid;

use super::held::Held;
use crate::bus::BusError;
use crate::database::{DatabaseError, Written};
use crate::message::{Message, Queue, Route};
use crate::upload::OwnerId;

/// The bus's tables.
pub(crate) const SCHEMA: &str = "
CREATE TABLE bus (
    tag INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL,
    state INTEGER NOT NULL,
    due INTEGER NOT NULL,
    delay INTEGER NOT NULL,
    owner TEXT,
    redelivered INTEGER NOT NULL DEFAULT 0,
    body TEXT NOT NULL
);
CREATE INDEX bus_queue ON bus (queue, state, tag);
CREATE INDEX bus_due ON bus (due) WHERE state = 1;
CREATE INDEX bus_owner ON bus (owner) WHERE state = 2;
CREATE TABLE dead_letters (
    tag INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL,
    at INTEGER NOT NULL,
    reason TEXT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX dead_letters_id ON dead_letters (id);
CREATE TABLE events (
    tag INTEGER PRIMARY KEY AUTOINCREMENT,
    body TEXT NOT NULL
);
";

// The states stand as numbers in the statements: SQLite uses a partial index only for a literal condition.
pub(super) const READY: u8 = 0;
pub(super) const DELAYED: u8 = 1;
pub(super) const TAKEN: u8 = 2;

/// Events that are kept for those who follow.
const KEPT_EVENTS: i64 = 10_000;
/// Puts `messages` on the bus within the caller's transaction; answers the queues that have something new.
pub(crate) fn enqueue(connection: &Connection, messages: &[Message]) -> Result<Vec<Queue>, DatabaseError> {
    let now = Timestamp::now().as_millisecond();
    let mut queues = Vec::new();
    for message in messages {
        let body = to_body(message);
        match &message.route {
            Route::Work(queue) => {
                let delay = message.delay.map_or(0, in_milliseconds);
                let (state, due) = if delay == 0 {
                    (READY, 0)
                } else {
                    (DELAYED, now.saturating_add(delay))
                };
                connection
                    .prepare_cached("INSERT INTO bus (queue, state, due, delay, body) VALUES (?1, ?2, ?3, ?4, ?5)")?
                    .execute(params![place(*queue, message.sink()), state, due, delay, body])?;
                if !queues.contains(queue) {
                    queues.push(*queue);
                }
            }
            Route::Event => {
                connection
                    .prepare_cached("INSERT INTO events (body) VALUES (?1)")?
                    .execute([&body])?;
                let newest = connection.last_insert_rowid();
                if newest % 256 == 0 {
                    connection
                        .prepare_cached("DELETE FROM events WHERE tag <= ?1")?
                        .execute([newest - KEPT_EVENTS])?;
                }
            }
            Route::Dead { reason, .. } => insert_dead_letter(connection, message.id, now, reason, &body)?,
        }
    }
    Ok(queues)
}

/// The name in the column `queue`: that of the queue and, of reports, of their sink.
pub(super) fn place(queue: Queue, sink: Option<&str>) -> String {
    match sink {
        Some(sink) => format!("{}{BEFORE_SINK}{sink}", queue.as_str()),
        None => queue.as_str().to_owned(),
    }
}

/// Between the two names.
pub(super) const BEFORE_SINK: char = '.';

/// Gives reports that a Ferry without rows of reports for each sink left behind to theirs, in their order.
pub(super) fn sort_reports(connection: &Connection) -> Result<Written<()>, DatabaseError> {
    connection.execute(
        "UPDATE bus SET queue = 'report.' || json_extract(body, '$.data.sink')
         WHERE queue = 'report' AND CASE WHEN json_valid(body) THEN json_type(body, '$.data.sink') = 'text' END",
        [],
    )?;
    Ok(Written::plainly(()))
}

pub(super) fn insert_dead_letter(
    connection: &Connection,
    id: Uuid,
    at: i64,
    reason: &str,
    body: &str,
) -> Result<(), DatabaseError> {
    connection
        .prepare_cached("INSERT INTO dead_letters (id, at, reason, body) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![id.as_bytes(), at, reason, body])?;
    Ok(())
}

/// Holds a message back where it is: it keeps its place in the order, for when its time comes.
pub(super) fn hold_back(
    connection: &Connection,
    tag: u64,
    message: &Message,
    delay: Duration,
) -> Result<Written<()>, DatabaseError> {
    let (now, delay) = (Timestamp::now().as_millisecond(), in_milliseconds(delay));
    connection
        .prepare_cached("UPDATE bus SET state = 1, due = ?2, delay = ?3, owner = NULL, body = ?4 WHERE tag = ?1")?
        .execute(params![tag, now.saturating_add(delay), delay, to_body(message)])?;
    Ok(Written::plainly(()))
}

/// Frees the jobs `tags` of `owner`, this process, that nobody in it has any more, or has again.
pub(super) fn free(connection: &Connection, tags: &[u64], owner: &OwnerId, held: &Held) -> Result<(), DatabaseError> {
    let mut statement = connection.prepare_cached(
        "UPDATE bus SET state = 0, owner = NULL, redelivered = redelivered + 1
         WHERE tag = ?1 AND state = 2 AND owner = ?2",
    )?;
    for tag in tags.iter().filter(|tag| !held.has(**tag)) {
        statement.execute(params![tag, owner.as_str()])?;
    }
    Ok(())
}

pub(super) fn delete(connection: &Connection, tag: u64) -> Result<Written<()>, DatabaseError> {
    connection
        .prepare_cached("DELETE FROM bus WHERE tag = ?1")?
        .execute([tag])?;
    Ok(Written::plainly(()))
}

fn in_milliseconds(delay: Duration) -> i64 {
    i64::try_from(delay.as_millis()).unwrap_or(i64::MAX)
}

fn to_body(message: &Message) -> String {
    serde_json::to_string(message).expect("messages are plain structs with text keys")
}

pub(super) fn message(body: &str) -> Result<Message, BusError> {
    serde_json::from_str(body).map_err(|error| failed("read a message", error))
}

pub(super) fn failed(operation: &'static str, source: impl std::error::Error + Send + Sync + 'static) -> BusError {
    BusError {
        operation,
        source: Box::new(source),
    }
}
