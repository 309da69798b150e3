//! How fast a sink is given reports: it is probed while it is in trouble, and asked for little at first afterwards.

use std::collections::HashSet;
use std::time::Duration;

use shared::report::Fate;
use shared::upload::UploadId;
use tokio::time::Instant;

use crate::retry::jitter;

/// The first pause, unless `RETRY_DELAYS` begins below it.
const FIRST: Duration = Duration::from_secs(1);
/// The longest that the sink itself did not ask for: what was away is used again within a minute of its return, a
/// probe that gets no answer included. Spec: faults.md, rule 7.
const LONGEST: Duration = Duration::from_secs(20);
/// Refusals in a row of reports of so many uploads may be theirs; of more they are the sink's own trouble.
const REFUSALS: usize = 3;
/// Uploads that are told apart by it.
const REMEMBERED: usize = 32;

/// The pace of one sink.
#[derive(Debug)]
pub(super) struct Pace {
    at_once: usize,
    first: Duration,
    longest: Duration,
    most: Duration,
    /// Reports that may be on their way.
    width: usize,
    /// Since the last report that was taken.
    failures: u32,
    /// Uploads of which reports were refused since then.
    refused: HashSet<UploadId>,
    resume_at: Instant,
    /// Raised by each failure that counts: those of reports that were on their way before it do not.
    round: u64,
}

impl Pace {
    /// At most `at_once` reports at once. `delays` are the shortest and the longest of `RETRY_DELAYS`: no pause is
    /// longer than that, whatever the sink asks for.
    pub(super) fn new(at_once: usize, delays: [Duration; 2]) -> Self {
        let [shortest, most] = delays;
        Self {
            at_once: at_once.max(1),
            first: FIRST.min(shortest),
            longest: LONGEST.min(most),
            most,
            width: at_once.max(1),
            failures: 0,
            refused: HashSet::new(),
            resume_at: Instant::now(),
            round: 0,
        }
    }

    /// Whether one more report may go out when `running` are on their way.
    pub(super) fn admits(&self, running: usize, now: Instant) -> bool {
        running < self.width && now >= self.resume_at
    }

    /// The sink has no trouble that is known of.
    pub(super) fn is_well(&self) -> bool {
        self.failures == 0
    }

    /// When the next report may go out.
    pub(super) fn resume_at(&self) -> Instant {
        self.resume_at
    }

    /// What a report that goes out now is to be judged by.
    pub(super) fn round(&self) -> u64 {
        self.round
    }

    /// The sink answered for good: twice as many may be on their way as before.
    pub(super) fn answered(&mut self) {
        self.failures = 0;
        self.refused.clear();
        self.width = self.width.saturating_mul(2).min(self.at_once);
    }

    /// A report of the upload `id` that went out in `round` was not taken.
    pub(super) fn failed(&mut self, id: UploadId, round: u64, fate: Fate, retry_after: Option<Duration>, now: Instant) {
        if let Some(asked) = retry_after {
            self.resume_at = self.resume_at.max(now + asked.min(self.most));
        }
        let alone = fate.is_of_this_one();
        if !alone && round != self.round {
            return;
        }
        self.failures = self.failures.saturating_add(1);
        let counted = if alone {
            if self.refused.len() < REMEMBERED {
                self.refused.insert(id);
            }
            u32::try_from(self.refused.len().saturating_sub(REFUSALS)).unwrap_or(u32::MAX)
        } else {
            self.failures
        };
        if counted == 0 {
            return;
        }
        self.round += 1;
        self.width = 1;
        let doubled = self.first.saturating_mul(1 << (counted - 1).min(20));
        let pause = doubled.min(self.longest).mul_f64(1.0 + 0.1 * jitter());
        self.resume_at = self.resume_at.max(now + pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn pace() -> Pace {
        Pace::new(8, [5 * SECOND, 3600 * SECOND])
    }

    #[test]
    fn a_sink_in_trouble_is_probed_and_then_asked_for_more_and_more() {
        let (mut pace, mut now) = (pace(), Instant::now());
        assert!(pace.admits(7, now) && !pace.admits(8, now));
        for expected in [1, 2, 4, 8, 16, 20, 20] {
            // Eight were on their way: it is one failure.
            let round = pace.round();
            for _ in 0..8 {
                pace.failed(UploadId::random(), round, Fate::Away, None, now);
            }
            let pause = pace.resume_at() - now;
            let expected = expected * SECOND;
            assert!(
                expected.mul_f64(0.9) <= pause && pause <= expected.mul_f64(1.1),
                "{pause:?}"
            );
            assert!(!pace.admits(0, now) && !pace.is_well());
            now = pace.resume_at();
            assert!(pace.admits(0, now) && !pace.admits(1, now), "one probe");
        }
        for width in [2, 4, 8, 8] {
            pace.answered();
            assert!(pace.is_well() && pace.admits(width - 1, now) && !pace.admits(width, now));
        }
    }

    #[test]
    fn what_a_sink_asks_for_is_kept_but_not_for_ever() {
        for (asked, expected) in [(60, 60), (86_400, 3600)] {
            let (mut pace, now) = (pace(), Instant::now());
            pace.failed(UploadId::random(), 0, Fate::Away, Some(asked * SECOND), now);
            assert_eq!(pace.resume_at() - now, expected * SECOND);
        }
    }

    #[test]
    fn a_refused_report_holds_up_no_other_unless_all_are_refused() {
        let (mut pace, now) = (pace(), Instant::now());
        let mut refused = |id| {
            let round = pace.round();
            pace.failed(id, round, Fate::Refused, None, now);
        };
        let one = UploadId::random();
        (0..100).for_each(|_| refused(one));
        (1..REFUSALS).for_each(|_| refused(UploadId::random()));
        assert!(pace.admits(7, now));
        pace.failed(UploadId::random(), pace.round(), Fate::Failed, None, now);
        assert!(!pace.admits(0, now));
    }
}
