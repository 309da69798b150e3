//! The bus: work that must be done once in effect, events for whoever listens, and the dead letters.
//! Spec: bus.md. Nothing above this trait knows which implementation it is on.

mod embedded;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use uuid::Uuid;

pub use embedded::EmbeddedBus;
pub(crate) use embedded::{SCHEMA, enqueue};

use crate::message::{Message, Queue};

/// Carries messages between processes. All implementations pass one contract, in `tests/`.
#[async_trait]
pub trait Bus: fmt::Debug + Send + Sync + 'static {
    /// Publishes `messages` and waits until the bus has each of them or says why not; the answers are in their
    /// order. A time-out means *unknown*: the same message may then be published again, with the same id.
    async fn publish(&self, messages: Vec<Message>) -> Vec<Result<(), PublishError>>;

    /// Begins to take work from `queue`, at most `prefetch` jobs at a time that are not settled. It goes on until
    /// the consumer is dropped; jobs that were fetched and not taken go back then.
    ///
    /// # Errors
    /// The queue cannot be consumed now.
    async fn consume(&self, queue: Queue, prefetch: usize) -> Result<Consumer, BusError>;

    /// As [`Bus::consume`], of the reports for `sink`, in their order: none is overtaken by one that was published
    /// after it, unless it was put off. While one process holds some of them no other one gets any. So a sink that is
    /// slow or away holds up its own reports only, and they wait without anybody touching them.
    ///
    /// # Errors
    /// They cannot be consumed now.
    async fn consume_reports(&self, sink: &str, prefetch: usize) -> Result<Consumer, BusError>;

    /// What waits for each sink that anything waits for.
    ///
    /// # Errors
    /// The bus could not be asked.
    async fn backlogs(&self) -> Result<Vec<Backlog>, BusError>;

    /// Where the reports for `sink` are: what was published before a moment is settled when `oldest` has passed the
    /// `next` of that moment.
    ///
    /// # Errors
    /// The bus could not be asked.
    async fn positions(&self, sink: &str) -> Result<Positions, BusError>;

    /// How many messages wait in `queue`; of reports, for all sinks.
    ///
    /// # Errors
    /// The bus could not be asked.
    async fn depth(&self, queue: Queue) -> Result<Depth, BusError>;

    /// At most `limit` dead letters, oldest first.
    ///
    /// # Errors
    /// The bus could not be asked.
    async fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter>, BusError>;

    /// Removes the dead letters `ids`, because their work was sent again; answers how many there were.
    ///
    /// # Errors
    /// Some may be left.
    async fn remove_dead_letters(&self, ids: Vec<Uuid>) -> Result<usize, BusError>;

    /// Whether the bus answers now.
    ///
    /// # Errors
    /// What stands in the way.
    async fn check(&self) -> Result<(), BusError>;
}

/// Settles jobs; each bus has its own.
#[async_trait]
pub(crate) trait Settle: fmt::Debug + Send + Sync {
    async fn ack(&self, tag: u64) -> Result<(), BusError>;
    async fn later(&self, tag: u64, message: &Message, delay: Duration) -> Result<(), BusError>;
    async fn bury(&self, tag: u64, message: &Message, reason: &str) -> Result<(), BusError>;
    /// Called from a destructor: must not block; what it starts may also never happen.
    fn put_back(&self, tag: u64);
}

/// A stream of jobs from one queue.
#[derive(Debug)]
pub struct Consumer {
    jobs: mpsc::Receiver<Job>,
}

impl Consumer {
    pub(crate) fn new(jobs: mpsc::Receiver<Job>) -> Self {
        Self { jobs }
    }

    /// The next job. `None` when the bus lost this consumer: a new one must be made. May be dropped at any time; a
    /// job that was not answered is not taken.
    pub async fn next(&mut self) -> Option<Job> {
        self.jobs.recv().await
    }

    /// A job that is here already.
    pub fn ready(&mut self) -> Option<Job> {
        self.jobs.try_recv().ok()
    }
}

/// A message taken from a queue and not settled yet. Dropped without being settled it goes back at once.
#[derive(Debug)]
pub struct Job {
    /// What is to be done.
    pub message: Message,
    /// How often the bus handed it out before, as far as it knows.
    pub redelivered: u32,
    tag: u64,
    settle: Option<Arc<dyn Settle>>,
    // Gives the consumer's place to the next job when this one is settled.
    _place: OwnedSemaphorePermit,
}

impl Job {
    pub(crate) fn new(
        message: Message,
        redelivered: u32,
        tag: u64,
        settle: Arc<dyn Settle>,
        place: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            message,
            redelivered,
            tag,
            settle: Some(settle),
            _place: place,
        }
    }

    /// Done: its outcome is recorded and everything that follows from it is on the bus.
    ///
    /// # Errors
    /// The bus may hand it out again.
    pub async fn ack(mut self) -> Result<(), BusError> {
        match self.settle.take() {
            Some(settle) => settle.ack(self.tag).await,
            None => Ok(()),
        }
    }

    /// Puts the same message back, to come again after `delay`.
    ///
    /// # Errors
    /// The bus may hand it out again at once.
    pub async fn later(mut self, delay: Duration) -> Result<(), BusError> {
        match self.settle.take() {
            Some(settle) => settle.later(self.tag, &self.message, delay).await,
            None => Ok(()),
        }
    }

    /// Moves it to the dead letters.
    ///
    /// # Errors
    /// The bus may hand it out again.
    pub async fn bury(mut self, reason: &str) -> Result<(), BusError> {
        match self.settle.take() {
            Some(settle) => settle.bury(self.tag, &self.message, reason).await,
            None => Ok(()),
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Some(settle) = self.settle.take() {
            settle.put_back(self.tag);
        }
    }
}

/// Messages in a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Waiting for a worker.
    pub ready: u64,
    /// With a worker, not settled.
    pub in_flight: u64,
    /// Held back for later.
    pub delayed: u64,
}

/// Reports that a sink has not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// The sink's name.
    pub sink: String,
    /// How many, in all states.
    pub pending: u64,
    /// When the one that was published first was made.
    pub oldest: Timestamp,
}

/// Places in the order of publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Positions {
    /// Of the oldest report that is not settled; if there is none, the same as `next`.
    pub oldest: u64,
    /// Of the message that is published next.
    pub next: u64,
}

/// Work that was given up.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// The work.
    pub message: Message,
    /// Why it was given up.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// A publish that is not known to have arrived.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// No queue took it although the bus confirmed it.
    #[error("message {id} was returned as unroutable")]
    Returned {
        /// The message.
        id: Uuid,
    },
    /// The bus refused it.
    #[error("message {id} was refused")]
    Refused {
        /// The message.
        id: Uuid,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer: it may arrive all the same.
    #[error("whether message {id} arrived is unknown")]
    Unknown {
        /// The message.
        id: Uuid,
        /// What came between.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A failed operation on the bus.
#[derive(Debug, thiserror::Error)]
#[error("{operation}: the bus is not available")]
pub struct BusError {
    /// What was tried.
    pub(crate) operation: &'static str,
    /// The driver's error.
    #[source]
    pub(crate) source: Box<dyn std::error::Error + Send + Sync>,
}
