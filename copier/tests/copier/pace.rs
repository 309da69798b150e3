//! How fast a store answers: as it can, like a line of so many bytes a second, or never.

use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// How a store answers its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// As fast as it can.
    Free,
    /// Everybody's bytes one after the other over one line of this rate.
    BytesPerSecond(u64),
    /// Never, until that ends.
    Hangs,
}

/// The line to a store.
#[derive(Debug)]
pub(crate) struct Line {
    pace: watch::Sender<Pace>,
    busy_until: Mutex<Instant>,
}

impl Line {
    pub(crate) fn new() -> Self {
        Self {
            pace: watch::Sender::new(Pace::Free),
            busy_until: Mutex::new(Instant::now()),
        }
    }

    /// From now on it is like this; calls that wait go on if they may.
    pub(crate) fn set(&self, pace: Pace) {
        *self.busy_until.lock().unwrap() = Instant::now();
        self.pace.send_replace(pace);
    }

    /// Waits as long as a call takes that moves `bytes`.
    pub(crate) async fn pass(&self, bytes: usize) {
        let mut pace = self.pace.subscribe();
        loop {
            let now = *pace.borrow_and_update();
            match now {
                Pace::Free => return,
                Pace::Hangs => {}
                Pace::BytesPerSecond(rate) => {
                    let through = self.reserve(bytes, rate);
                    tokio::select! {
                        () = sleep_until(through) => return,
                        _ = pace.changed() => continue,
                    }
                }
            }
            // The store outlives its calls.
            pace.changed().await.unwrap();
        }
    }

    fn reserve(&self, bytes: usize, rate: u64) -> Instant {
        let took = Duration::from_millis(bytes as u64 * 1000 / rate);
        let mut busy_until = self.busy_until.lock().unwrap();
        *busy_until = (*busy_until).max(Instant::now()) + took;
        *busy_until
    }
}
