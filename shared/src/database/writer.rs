//! The one thread that writes: all requests that wait share a transaction and a sync.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::log::Log;
use super::{DatabaseError, Durable};

/// A transaction holds at most this many requests,
const MOST_REQUESTS: usize = 256;
/// and lasts about this long, so that other processes get their turn.
const LONGEST: Duration = Duration::from_millis(5);

/// What an operation answers, and what must survive a power loss before it does.
#[derive(Debug)]
pub(crate) struct Written<T> {
    answer: T,
    survives: Survives,
}

/// What must survive a power loss before an answer; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Survives {
    Nothing,
    /// What was committed before, and asked to.
    TheEarlier,
    /// All of it.
    This,
}

impl<T> Written<T> {
    /// Need not survive a power loss by itself.
    pub(crate) fn plainly(answer: T) -> Self {
        let survives = Survives::Nothing;
        Self { answer, survives }
    }

    /// Wrote nothing, and answers when every earlier write that asked to survive a power loss does, of whatever
    /// process.
    pub(crate) fn settled(answer: T) -> Self {
        let survives = Survives::TheEarlier;
        Self { answer, survives }
    }

    /// Survives a power loss before it is answered.
    pub(crate) fn durably(answer: T) -> Self {
        let survives = Survives::This;
        Self { answer, survives }
    }
}

/// A waiting write.
pub(super) trait Request: Send {
    /// Does it, inside a transaction. Answers whether it succeeded, and what must be durable then.
    fn run(&mut self, connection: &Connection) -> Result<Survives, ()>;
    /// Tells who waits, after the commit.
    fn answer(self: Box<Self>, committed: Result<(), &str>);
}

pub(super) struct Pending<T, F> {
    operation: Option<F>,
    outcome: Option<Result<T, DatabaseError>>,
    reply: oneshot::Sender<Result<T, DatabaseError>>,
}

impl<T, F> Pending<T, F> {
    pub(super) fn new(operation: F, reply: oneshot::Sender<Result<T, DatabaseError>>) -> Self {
        Self {
            operation: Some(operation),
            outcome: None,
            reply,
        }
    }
}

impl<T, F> Request for Pending<T, F>
where
    T: Send,
    F: FnOnce(&Connection) -> Result<Written<T>, DatabaseError> + Send,
{
    fn run(&mut self, connection: &Connection) -> Result<Survives, ()> {
        let Some(operation) = self.operation.take() else {
            return Err(());
        };
        let (outcome, answer) = match operation(connection) {
            Ok(written) => (Ok(written.answer), Ok(written.survives)),
            Err(error) => (Err(error), Err(())),
        };
        self.outcome = Some(outcome);
        answer
    }

    fn answer(self: Box<Self>, committed: Result<(), &str>) {
        let answer = match (self.outcome, committed) {
            (Some(Ok(answer)), Ok(())) => Ok(answer),
            (Some(Ok(_)) | None, Err(reason)) => Err(DatabaseError::Transaction(reason.to_owned())),
            (Some(Err(error)), _) => Err(error),
            (None, Ok(())) => Err(DatabaseError::Dropped), // it panicked
        };
        let _whoever_waited_is_gone = self.reply.send(answer);
    }
}

pub(super) struct Writer {
    pub(super) connection: Connection,
    /// The write-ahead log: `synchronous=NORMAL` plus a sync of it is what `FULL` does, but only where asked for.
    pub(super) log: Log,
    durable: Durable,
    /// What others had committed (`PRAGMA data_version`) when the log was last synced because of that.
    others_synced: Cell<Option<i64>>,
}

impl Writer {
    pub(super) fn new(connection: Connection, log: Log, durable: Durable) -> Self {
        Self {
            connection,
            log,
            durable,
            others_synced: Cell::new(None),
        }
    }

    /// Serves `requests` until all senders are gone.
    pub(super) fn run(self, mut requests: mpsc::Receiver<Box<dyn Request>>) {
        while let Some(first) = requests.blocking_recv() {
            let mut done = Vec::new();
            let committed = self.transaction(first, &mut requests, &mut done);
            if let Err(reason) = &committed {
                tracing::error!(reason, requests = done.len(), "a transaction of the records failed");
                if !self.connection.is_autocommit()
                    && let Err(error) = self.connection.execute_batch("ROLLBACK")
                {
                    tracing::error!(%error, "it could not be rolled back");
                }
            }
            for request in done {
                request.answer(committed.as_ref().copied().map_err(String::as_str));
            }
        }
    }

    fn transaction(
        &self,
        first: Box<dyn Request>,
        requests: &mut mpsc::Receiver<Box<dyn Request>>,
        done: &mut Vec<Box<dyn Request>>,
    ) -> Result<(), String> {
        let text = |error: rusqlite::Error| error.to_string();
        if let Err(error) = self.execute("BEGIN IMMEDIATE") {
            done.push(first);
            // Those behind it would wait as long again, one after the other, for the same end.
            done.extend(std::iter::from_fn(|| requests.try_recv().ok()));
            return Err(text(error));
        }
        if let Err(reason) = self.log.make_sure() {
            done.push(first);
            return Err(reason);
        }
        let mut survives = Survives::Nothing;
        let begun = Instant::now();
        let mut next = Some(first);
        while let Some(mut request) = next.take() {
            let outcome = self.savepoint(request.as_mut());
            done.push(request);
            survives = survives.max(outcome.map_err(text)?);
            if done.len() < MOST_REQUESTS && begun.elapsed() < LONGEST {
                next = requests.try_recv().ok();
            }
        }
        if survives == Survives::Nothing && self.durable == Durable::Always {
            survives = Survives::This;
        }
        let others = match survives {
            Survives::TheEarlier => Some(self.others().map_err(text)?),
            Survives::Nothing | Survives::This => None,
        };
        self.execute("COMMIT").map_err(text)?;
        match survives {
            Survives::Nothing => Ok(()),
            // What this thread committed it has synced, or the log would be doubted. Others may not have come to it.
            Survives::TheEarlier if others == self.others_synced.get() => Ok(()),
            Survives::TheEarlier | Survives::This => {
                self.log.sync()?;
                if others.is_some() {
                    self.others_synced.set(others);
                }
                Ok(())
            }
        }
    }

    /// Changes whenever another connection, of this or of another process, has committed something.
    fn others(&self) -> rusqlite::Result<i64> {
        self.connection
            .pragma_query_value(None, "data_version", |row| row.get(0))
    }

    /// Runs one request so that its failure, or its panic, undoes its own changes only.
    fn savepoint(&self, request: &mut dyn Request) -> rusqlite::Result<Survives> {
        self.execute("SAVEPOINT request")?;
        let outcome = catch_unwind(AssertUnwindSafe(|| request.run(&self.connection)));
        match outcome {
            Ok(Ok(survives)) => {
                self.execute("RELEASE request")?;
                Ok(survives)
            }
            Ok(Err(())) | Err(_) => {
                self.execute("ROLLBACK TO request")?;
                self.execute("RELEASE request")?;
                Ok(Survives::Nothing)
            }
        }
    }

    fn execute(&self, sql: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute([]).map(drop)
    }
}
