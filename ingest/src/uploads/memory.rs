//! The memory in which received bytes are gathered to parts: one budget for all uploads of the process.
//! Spec: faults.md 78; DESIGN.md, "What it promises", 6.
//!
//! Nobody waits for it. A request that gets none writes each piece as it came from the network, and the network waits
//! for that: a sender is slowed down, and no number of senders makes the process larger.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use shared::telemetry::Metrics;

/// The least that is worth gathering, in bytes.
const LEAST: u64 = 64 * 1024;

/// The budget.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    most: u64,
    used: Arc<AtomicU64>,
    metrics: Arc<Metrics>,
}

impl Memory {
    /// `most` bytes for all.
    pub(super) fn new(most: u64, metrics: Arc<Metrics>) -> Self {
        Self {
            most,
            used: Arc::default(),
            metrics,
        }
    }

    /// A share of nothing, which may grow.
    pub(super) fn share(&self) -> Share {
        Share {
            of: self.clone(),
            bytes: 0,
        }
    }

    fn take(&self, bytes: u64) -> bool {
        let fits = |used: u64| Some(used + bytes).filter(|used| *used <= self.most);
        let taken = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .is_ok();
        if taken {
            self.metrics
                .memory_budget_used_bytes
                .add(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        taken
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        self.metrics
            .memory_budget_used_bytes
            .sub(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

/// What one request holds of the budget; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    of: Memory,
    bytes: u64,
}

impl Share {
    /// Lets the share hold `needed` bytes, of which there will be `most` in the end, in doubling steps. Answers
    /// whether it does; otherwise it is as it was.
    pub(super) fn hold(&mut self, needed: u64, most: u64) -> bool {
        if needed <= self.bytes {
            return true;
        }
        let wanted = needed.next_power_of_two().max(LEAST).min(most.max(needed));
        let taken = self.of.take(wanted - self.bytes);
        if taken {
            self.bytes = wanted;
        }
        taken
    }

    /// What it may hold, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives all of it back.
    pub(super) fn clear(&mut self) {
        self.of.give_back(std::mem::take(&mut self.bytes));
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;
    const MIB: u64 = 1024 * KIB;

    #[test]
    fn shares_double_up_to_a_part_and_never_exceed_the_budget_together() {
        let metrics = Arc::new(Metrics::new());
        let memory = Memory::new(MIB + 256 * KIB, metrics.clone());
        let (mut one, mut other) = (memory.share(), memory.share());
        assert!(one.hold(1, MIB) && one.bytes() == LEAST);
        assert!(one.hold(200 * KIB, MIB) && one.bytes() == 256 * KIB);
        assert!(one.hold(700 * KIB, MIB) && one.bytes() == MIB);
        assert!(one.hold(MIB, MIB), "it has them");
        assert!(other.hold(256 * KIB, MIB));
        assert!(
            !other.hold(257 * KIB, MIB) && other.bytes() == 256 * KIB,
            "the rest is taken"
        );
        assert_eq!(metrics.memory_budget_used_bytes.get(), 1280 * 1024);
        drop(one);
        assert!(other.hold(257 * KIB, MIB));
        other.clear();
        assert_eq!(metrics.memory_budget_used_bytes.get(), 0);
    }

    #[test]
    fn a_part_that_is_short_takes_no_more_than_it_needs() {
        let memory = Memory::new(MIB, Arc::new(Metrics::new()));
        let mut share = memory.share();
        assert!(share.hold(10, 100 * KIB) && share.hold(90 * KIB, 100 * KIB));
        assert_eq!(share.bytes(), 100 * KIB);
    }
}
