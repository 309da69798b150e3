//! `MEMORY_BUDGET`: the bytes that all copies of this process together hold in memory. Spec: core.md §6, "Memory".

use std::sync::Arc;

use shared::telemetry::Metrics;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes per permit: a semaphore counts to 2^32 at once, parts can be larger.
const GRAIN: u64 = 1024;

/// The bytes that may be in flight.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    free: Arc<Semaphore>,
    grains: u32,
    metrics: Arc<Metrics>,
}

/// A share of the budget, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    _permit: OwnedSemaphorePermit,
    bytes: i64,
    metrics: Arc<Metrics>,
}

impl Budget {
    pub(crate) fn new(bytes: u64, metrics: Arc<Metrics>) -> Self {
        let grains = u32::try_from(bytes / GRAIN).unwrap_or(u32::MAX).max(1);
        Self {
            free: Arc::new(Semaphore::new(
                usize::try_from(grains).unwrap_or(Semaphore::MAX_PERMITS),
            )),
            grains,
            metrics,
        }
    }

    /// Waits for `bytes`; more than the whole budget gets the whole budget. May be dropped at any time.
    pub(crate) async fn take(&self, bytes: u64) -> Share {
        let permit = self.free.clone().acquire_many_owned(self.grains_of(bytes)).await;
        self.share(bytes, permit.expect("the semaphore is never closed"))
    }

    /// `bytes` if they are free now.
    pub(crate) fn try_take(&self, bytes: u64) -> Option<Share> {
        let permit = self.free.clone().try_acquire_many_owned(self.grains_of(bytes)).ok()?;
        Some(self.share(bytes, permit))
    }

    fn grains_of(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(GRAIN))
            .unwrap_or(u32::MAX)
            .min(self.grains)
    }

    fn share(&self, bytes: u64, permit: OwnedSemaphorePermit) -> Share {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.metrics.memory_budget_used_bytes.add(bytes);
        Share {
            _permit: permit,
            bytes,
            metrics: self.metrics.clone(),
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.metrics.memory_budget_used_bytes.sub(self.bytes);
    }
}
