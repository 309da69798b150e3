//! Takes jobs from the bus, as many at once as `CONCURRENCY` allows, until the worker stops.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use shared::bus::{Bus, BusError, Consumer};
use shared::message::Queue;
use shared::telemetry::Chain;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::Engine;
use crate::job;

/// Pauses before a bus that does not let us consume is asked again; the last one for ever.
const CONSUME_AGAIN: [Duration; 5] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(10),
    Duration::from_secs(30),
];

/// Works on copy jobs until the engine stops, then ends the running ones early and waits for them. Dropped, it
/// gives back what is unfinished. `running` counts the jobs at work.
pub(crate) async fn work(engine: Arc<Engine>, bus: Arc<dyn Bus>, concurrency: usize, running: Arc<AtomicUsize>) {
    let mut jobs = JoinSet::new();
    let queue = Queue::Copy;
    while let Some(mut consumer) = consumer(queue.as_str(), || bus.consume(queue, concurrency), &engine.stop).await {
        loop {
            tokio::select! {
                () = engine.stop.cancelled() => break,
                Some(ended) = jobs.join_next() => note(ended),
                job = consumer.next(), if jobs.len() < concurrency => match job {
                    Some(job) => {
                        jobs.spawn(counted(running.clone(), job::settle(engine.clone(), job)));
                    }
                    None => {
                        tracing::warn!(queue = Queue::Copy.as_str(), "the bus lost this consumer; a new one is made");
                        break;
                    }
                },
            }
        }
    }
    while let Some(ended) = jobs.join_next().await {
        note(ended);
    }
}

/// A consumer of `queue` as `consume` makes it, however long that takes; `None` once the worker stops.
pub(crate) async fn consumer<F>(queue: &str, consume: impl Fn() -> F, stop: &CancellationToken) -> Option<Consumer>
where
    F: Future<Output = Result<Consumer, BusError>>,
{
    let mut pauses = CONSUME_AGAIN.into_iter();
    let mut pause = Duration::ZERO;
    while !stop.is_cancelled() {
        match consume().await {
            Ok(consumer) => return Some(consumer),
            Err(error) => tracing::warn!(queue, error = %Chain(&error), "no work can be taken"),
        }
        pause = pauses.next().unwrap_or(pause);
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
    None
}

/// `work`, counted in `running` until it ends or is dropped.
async fn counted(running: Arc<AtomicUsize>, work: impl Future<Output = ()>) {
    struct Counted(Arc<AtomicUsize>);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
    running.fetch_add(1, Ordering::Relaxed);
    let _counted = Counted(running);
    work.await;
}

fn note(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a job ended without an outcome; its message comes again");
    }
}
