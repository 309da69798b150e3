//! How long a failure is worth another try.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// First pause; the following ones double. Jitter adds up to the same again.
const SHORTEST: Duration = Duration::from_millis(500);
/// The pauses stop growing here, so that with jitter none is over 30 s.
const LONGEST: Duration = Duration::from_secs(15);

/// Counts failures in a row. Progress starts the count anew, so that a long upload over a bad line never runs out.
#[derive(Debug)]
pub(crate) struct Patience {
    retries: usize,
    left: ExponentialBackoff,
    furthest: Option<u64>,
}

impl Patience {
    /// Patience for `retries` failures in a row.
    pub(crate) fn new(retries: usize) -> Self {
        Self {
            retries,
            left: pauses(retries),
            furthest: None,
        }
    }

    /// The server has acknowledged `offset` bytes: progress if it is more than ever before.
    pub(crate) fn reached(&mut self, offset: u64) {
        if self.furthest.is_none_or(|furthest| offset > furthest) {
            self.furthest = Some(offset);
            self.renew();
        }
    }

    /// Something went well.
    pub(crate) fn renew(&mut self) {
        self.left = pauses(self.retries);
    }

    /// How long to pause before the next try, at least `not_before` if the server asked for it. `None`: give up.
    pub(crate) fn pause(&mut self, not_before: Option<Duration>) -> Option<Duration> {
        let pause = self.left.next()?;
        Some(pause.max(not_before.unwrap_or_default()))
    }
}

fn pauses(retries: usize) -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(SHORTEST)
        .with_max_delay(LONGEST)
        .with_max_times(retries)
        .with_jitter()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_end_it_and_only_progress_starts_the_count_anew() {
        let mut patience = Patience::new(2);
        patience.reached(0);
        assert!(patience.pause(None).is_some());
        patience.reached(0); // the same offset again is none
        assert!(patience.pause(None).is_some());
        assert_eq!(patience.pause(None), None);

        patience.reached(1);
        assert!(patience.pause(None).is_some());
    }

    #[test]
    fn pauses_grow_to_half_a_minute_at_most_and_ride_out_a_restart() {
        let mut patience = Patience::new(10);
        let pauses: Vec<_> = std::iter::from_fn(|| patience.pause(None)).collect();
        assert_eq!(pauses.len(), 10);
        assert!(pauses[0] >= SHORTEST && pauses[0] <= SHORTEST * 2);
        assert!(
            pauses.iter().all(|pause| *pause <= Duration::from_secs(30)),
            "{pauses:?}"
        );
        assert!(pauses.iter().sum::<Duration>() >= Duration::from_secs(60), "{pauses:?}");
    }

    #[test]
    fn a_server_may_ask_for_more_time() {
        let asked = Duration::from_secs(120);
        assert_eq!(Patience::new(1).pause(Some(asked)), Some(asked));
    }

    #[test]
    fn no_retries_means_none() {
        assert_eq!(Patience::new(0).pause(None), None);
    }
}
