//! Which failures come again, when, and when to stop. Spec: core.md §5, "Attempts"; faults.md, "The rules".

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use shared::failure::FailureClass;
use shared::upload::DeliveryRecord;

use crate::failure::Failure;

/// `RETRY_DELAYS` and `RETRY_MAX_AGE`.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    delays: Vec<Duration>,
    max_age: SignedDuration,
}

/// What follows from a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Tried again after `delay`; the try counted.
    Again {
        /// How long the bus holds the message back.
        delay: Duration,
    },
    /// Waits without counting, until the target is usable again.
    Park {
        /// How long the bus holds the message back.
        delay: Duration,
    },
    /// Once more at once, from the first byte.
    Restart,
    /// Given up.
    Dead {
        /// For the dead letter.
        reason: String,
    },
}

impl Next {
    /// For traces.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Again { .. } => "again",
            Self::Park { .. } => "parked",
            Self::Restart => "restarted",
            Self::Dead { .. } => "failed",
        }
    }
}

impl Policy {
    /// `delays` ascending; `None` if there are none.
    pub(crate) fn new(delays: Vec<Duration>, max_age: Duration) -> Option<Self> {
        let max_age = SignedDuration::try_from(max_age).unwrap_or(SignedDuration::MAX);
        (!delays.is_empty()).then_some(Self { delays, max_age })
    }

    /// For work that only waits for somebody else.
    pub(crate) fn shortest(&self) -> Duration {
        self.delays[0]
    }

    /// No wait is longer, whatever a server or a clock says.
    pub(crate) fn longest(&self) -> Duration {
        self.delays[self.delays.len() - 1]
    }

    /// What follows from `failure` of `delivery`, as recorded before it. `jitter` is between -1 and 1.
    pub(crate) fn next(&self, failure: &Failure, delivery: &DeliveryRecord, now: Timestamp, jitter: f64) -> Next {
        let tries = delivery.attempts + 1;
        match failure.class {
            FailureClass::Source if failure.source_gone => dead(failure, tries),
            FailureClass::Transient | FailureClass::Source => match self.delays.get(level(delivery.attempts)) {
                Some(delay) => Next::Again {
                    delay: self.spread(*delay, failure, jitter),
                },
                None => dead(failure, tries),
            },
            FailureClass::Denied | FailureClass::Configuration => {
                let first = delivery.first_tried_at.unwrap_or(now);
                if now.duration_since(first) >= self.max_age {
                    return dead(failure, tries);
                }
                // The longest level that this run has reached; waiting does not raise it.
                let reached = level(delivery.attempts.saturating_sub(1)).min(self.delays.len() - 1);
                Next::Park {
                    delay: self.spread(self.delays[reached], failure, jitter),
                }
            }
            FailureClass::Integrity if !delivery.integrity_retried => Next::Restart,
            FailureClass::Integrity | FailureClass::Permanent => dead(failure, tries),
        }
    }

    /// The delay before work that is `age` old is tried again, where nobody counts attempts; `None`: given up.
    pub(crate) fn by_age(&self, age: SignedDuration) -> Option<Duration> {
        if age >= self.max_age {
            return None;
        }
        let age = Duration::try_from(age).unwrap_or_default();
        let reached = self.delays.iter().rev().find(|delay| **delay <= age);
        Some(*reached.unwrap_or(&self.delays[0]))
    }

    /// ±10 %, so that what failed together does not come back together; never before the server wants it.
    fn spread(&self, delay: Duration, failure: &Failure, jitter: f64) -> Duration {
        let spread = delay.mul_f64(1.0 + 0.1 * jitter.clamp(-1.0, 1.0));
        spread
            .max(failure.retry_after.unwrap_or_default())
            .min(self.longest().max(spread))
    }
}

/// A random number between -1 and 1.
pub(crate) fn jitter() -> f64 {
    let random = RandomState::new().hash_one(());
    f64::from(u32::try_from(random >> 32).unwrap_or(u32::MAX)) / f64::from(u32::MAX) * 2.0 - 1.0
}

fn level(attempts: u32) -> usize {
    usize::try_from(attempts).unwrap_or(usize::MAX)
}

fn dead(failure: &Failure, tries: u32) -> Next {
    Next::Dead {
        reason: format!("{} after {tries} tries: {}", failure.class.as_str(), failure.text),
    }
}

#[cfg(test)]
mod tests {
    use shared::store::BlobName;
    use shared::upload::{ResolvedTarget, UploadId};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn policy() -> Policy {
        Policy::new(
            vec![5 * SECOND, 30 * SECOND, 120 * SECOND],
            Duration::from_secs(72 * 3600),
        )
        .unwrap()
    }

    fn delivery(attempts: u32, integrity_retried: bool, first_tried_ago: i64, now: Timestamp) -> DeliveryRecord {
        let to = ResolvedTarget {
            target: "dex".into(),
            object: BlobName::new("x").unwrap(),
            location: "/dex/x".into(),
        };
        DeliveryRecord {
            attempts,
            integrity_retried,
            first_tried_at: Some(now - SignedDuration::from_hours(first_tried_ago)),
            ..DeliveryRecord::pending(UploadId::random(), to, now)
        }
    }

    #[test]
    fn each_class_has_its_own_next_step() {
        use FailureClass as Class;
        let (policy, now) = (policy(), Timestamp::now());
        let again = |seconds| Next::Again {
            delay: seconds * SECOND,
        };
        let park = |seconds| Next::Park {
            delay: seconds * SECOND,
        };
        // class, source gone, attempts, integrity retried, hours since the first try, what follows (None: dead)
        let table = [
            (Class::Transient, false, 0, false, 0, Some(again(5))),
            (Class::Transient, false, 2, false, 100, Some(again(120))),
            (Class::Transient, false, 3, false, 0, None),
            (Class::Denied, false, 0, false, 0, Some(park(5))),
            (Class::Denied, false, 2, false, 71, Some(park(30))),
            (Class::Configuration, false, 3, false, 0, Some(park(120))),
            (Class::Configuration, false, 9, false, 0, Some(park(120))),
            (Class::Denied, false, 0, false, 72, None),
            (Class::Source, true, 0, false, 0, None),
            (Class::Source, false, 1, false, 0, Some(again(30))),
            (Class::Source, false, 3, false, 0, None),
            (Class::Integrity, false, 0, false, 0, Some(Next::Restart)),
            (Class::Integrity, false, 3, false, 0, Some(Next::Restart)),
            (Class::Integrity, false, 0, true, 0, None),
            (Class::Permanent, false, 0, false, 0, None),
        ];
        for (class, source_gone, attempts, integrity_retried, hours, expected) in table {
            let failure = Failure {
                source_gone,
                ..Failure::new(class, "cause")
            };
            let delivery = delivery(attempts, integrity_retried, hours, now);
            let next = policy.next(&failure, &delivery, now, 0.0);
            match expected {
                Some(expected) => assert_eq!(next, expected, "{class:?}, attempts {attempts}"),
                None => assert!(
                    matches!(&next, Next::Dead { reason } if reason.contains("cause")),
                    "{class:?}, attempts {attempts}: {next:?}"
                ),
            }
        }
    }

    #[test]
    fn a_server_that_names_a_time_is_left_alone_until_then_but_not_for_ever() {
        let (policy, now) = (policy(), Timestamp::now());
        for (retry_after, expected) in [(1, 5), (60, 60), (86_400, 120)] {
            let failure = Failure {
                retry_after: Some(retry_after * SECOND),
                ..Failure::new(FailureClass::Transient, "throttled")
            };
            let next = policy.next(&failure, &delivery(0, false, 0, now), now, 0.0);
            assert_eq!(
                next,
                Next::Again {
                    delay: expected * SECOND
                }
            );
        }
    }

    #[test]
    fn delays_are_spread_by_at_most_a_tenth() {
        let (policy, now) = (policy(), Timestamp::now());
        let failure = Failure::new(FailureClass::Transient, "away");
        for jitter in (0..100).map(|_| jitter()).chain([-1.0, 1.0]) {
            assert!((-1.0..=1.0).contains(&jitter));
            let Next::Again { delay } = policy.next(&failure, &delivery(2, false, 0, now), now, jitter) else {
                panic!("a transient failure comes again");
            };
            assert!((108 * SECOND..=132 * SECOND).contains(&delay), "{delay:?}");
        }
    }

    #[test]
    fn what_nobody_counts_waits_longer_the_older_it_is_and_ends() {
        let policy = policy();
        for (age, expected) in [
            (-9, Some(5)),
            (0, Some(5)),
            (29, Some(5)),
            (30, Some(30)),
            (9999, Some(120)),
        ] {
            let delay = policy.by_age(SignedDuration::from_secs(age));
            assert_eq!(delay, expected.map(|seconds| seconds * SECOND), "age {age}");
        }
        assert_eq!(policy.by_age(SignedDuration::from_hours(72)), None);
    }
}
