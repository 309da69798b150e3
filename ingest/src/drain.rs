//! Stopping without cutting anybody off: no new bodies, then time for those that run, then an orderly end of each.
//! actix on its own drops running handlers without a word (faults.md row 4).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

/// The bodies that are being read, and whether they may go on.
#[derive(Debug)]
pub(crate) struct Drain {
    draining: CancellationToken,
    end_bodies: CancellationToken,
    running: watch::Sender<u64>,
    cut: AtomicU64,
}

/// The server is stopping: no new bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Draining;

/// A body that is being read, until it is dropped.
#[derive(Debug)]
pub(crate) struct Body {
    drain: Arc<Drain>,
}

/// What became of the bodies that ran when the stop began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Ended by themselves.
    pub finished: u64,
    /// Ended by us; what had come is kept.
    pub cut: u64,
    /// Still running when the time was over.
    pub left: u64,
}

impl Drain {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            draining: CancellationToken::new(),
            end_bodies: CancellationToken::new(),
            running: watch::Sender::new(0),
            cut: AtomicU64::new(0),
        })
    }

    /// Counts a body in, unless the server is stopping.
    pub(crate) fn admit(self: &Arc<Self>) -> Result<Body, Draining> {
        // Counted first: a drain that begins between the two steps sees it.
        self.running.send_modify(|running| *running += 1);
        let body = Body { drain: self.clone() };
        if self.draining.is_cancelled() {
            Err(Draining)
        } else {
            Ok(body)
        }
    }

    /// Stops admitting, gives running bodies until `grace` − min(5 s, a third) from now to end by themselves, ends
    /// the others, and waits for them until `grace` is nearly over.
    pub(crate) async fn drain(&self, grace: Duration) -> Drained {
        let begun = Instant::now();
        self.draining.cancel();
        let before = *self.running.borrow();
        let reserve = Duration::from_secs(5).min(grace / 3);
        self.wait_until(begun + (grace - reserve)).await;
        self.end_bodies.cancel();
        self.wait_until(begun + (grace - reserve / 3)).await;
        let (left, cut) = (*self.running.borrow(), self.cut.load(Ordering::Relaxed));
        Drained {
            finished: before.saturating_sub(left + cut),
            cut,
            left,
        }
    }

    async fn wait_until(&self, deadline: Instant) {
        let mut running = self.running.subscribe();
        // The sender is `self`: the only possible error is the deadline.
        let _all_ended = timeout_at(deadline, running.wait_for(|running| *running == 0))
            .await
            .is_ok();
    }
}

impl Body {
    /// Resolves when the body must end although more could come.
    pub(crate) async fn must_end(&self) {
        self.drain.end_bodies.cancelled().await;
    }

    /// Notes that it was ended that way.
    pub(crate) fn was_cut(&self) {
        self.drain.cut.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.drain.running.send_modify(|running| *running -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bodies_get_their_time_and_are_then_told_to_end() {
        let drain = Drain::new();
        let quick = drain.admit().unwrap();
        let slow = drain.admit().unwrap();
        let begun = Instant::now();
        let stopping = tokio::spawn({
            let drain = drain.clone();
            async move { drain.drain(Duration::from_secs(30)).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(drain.admit().unwrap_err(), Draining);
        drop(quick);
        slow.must_end().await;
        assert_eq!(begun.elapsed(), Duration::from_secs(25));
        slow.was_cut();
        drop(slow);
        assert_eq!(
            stopping.await.unwrap(),
            Drained {
                finished: 1,
                cut: 1,
                left: 0
            }
        );
    }
}
