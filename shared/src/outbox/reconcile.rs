//! A confirm is not the end of the promise: deliveries whose work message was lost are published again.
//! Spec: core.md §5, "Reconciliation".

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{Outbox, OutboxError};
use crate::bus::Bus;
use crate::claims::{ClaimKey, Claims};
use crate::message::{Queue, Source};
use crate::records::{RecordError, Records, Verdict};
use crate::telemetry::Metrics;
use crate::upload::{DeliveryRecord, DeliveryState};

/// Republications in one sweep.
const MOST_PER_SWEEP: u32 = 1000;
/// Longest interval between two republications of one delivery.
const LONGEST_INTERVAL: SignedDuration = SignedDuration::from_hours(24);
/// A message is looked for after this time even if the queue never was empty.
const BACKLOG_PATIENCE: SignedDuration = SignedDuration::from_hours(6);

/// Finds deliveries that nobody will do, and publishes their work again.
#[derive(Debug)]
pub struct Reconciler {
    records: Arc<dyn Records>,
    bus: Arc<dyn Bus>,
    outbox: Outbox,
    claims: Arc<Claims>,
    metrics: Arc<Metrics>,
    source: Source,
    after: SignedDuration,
    /// When the copy queue was last seen without ready messages. Before that moment every message that was in it
    /// has been handed to a worker; behind a backlog an old delivery is only waiting its turn.
    queue_empty_at: Option<Timestamp>,
    republished: u32,
}

impl Reconciler {
    /// Looks after deliveries `after` (15 min) without a sign of work.
    #[must_use]
    pub fn new(
        records: Arc<dyn Records>,
        bus: Arc<dyn Bus>,
        outbox: Outbox,
        claims: Arc<Claims>,
        metrics: Arc<Metrics>,
        source: Source,
        after: Duration,
    ) -> Self {
        let after = SignedDuration::try_from(after).unwrap_or(LONGEST_INTERVAL);
        Self {
            records,
            bus,
            outbox,
            claims,
            metrics,
            source,
            after,
            queue_empty_at: None,
            republished: 0,
        }
    }

    /// Begins a sweep: looks at the queue, and counts anew.
    pub async fn begin(&mut self) {
        self.republished = 0;
        match self.bus.depth(Queue::Copy).await {
            Ok(depth) if depth.ready == 0 => self.queue_empty_at = Some(Timestamp::now()),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the copy queue could not be looked at"),
        }
    }

    /// Publishes the work of `delivery` again if its message must be lost. Answers whether it did.
    ///
    /// # Errors
    /// It could not be recorded or published; the next sweep tries again.
    pub async fn attend(&mut self, delivery: &DeliveryRecord) -> Result<bool, OutboxError> {
        if self.republished >= MOST_PER_SWEEP || !self.is_overdue(delivery, Timestamp::now()) {
            return Ok(false);
        }
        let key = ClaimKey::Delivery(delivery.upload_id, delivery.to.target.clone());
        let has_worker = self.claims.is_held_here(&key)
            || match &delivery.claim {
                Some(claim) => self.claims.is_live(&key, claim).await,
                None => false,
            };
        if has_worker {
            return Ok(false);
        }
        let edited = self.republish(delivery).await?;
        if edited {
            self.republished += 1;
            self.metrics.reconciled.inc();
            tracing::warn!(
                upload_id = %delivery.upload_id,
                target = delivery.to.target,
                "the delivery's message was lost; published again"
            );
        }
        Ok(edited)
    }

    async fn republish(&self, delivery: &DeliveryRecord) -> Result<bool, OutboxError> {
        let (seq, source) = (delivery.seq, self.source.here());
        let edit = move |record: &mut DeliveryRecord| {
            if record.seq != seq {
                return Verdict::Leave; // somebody is at it
            }
            record.reconciled += 1;
            record.published_at = Timestamp::now();
            record.outbox.push(source.delivery(record));
            Verdict::Write
        };
        let edited = self
            .records
            .edit_delivery(delivery.upload_id, &delivery.to.target, Box::new(edit))
            .await;
        let edited = match edited {
            Err(RecordError::NotFound(_)) => return Ok(false),
            edited => edited?,
        };
        if edited.written {
            self.outbox.publish_delivery(edited.record).await?;
        }
        Ok(edited.written)
    }

    /// A parked delivery counts like a waiting one: long past its time, its message is lost as well.
    fn is_overdue(&self, delivery: &DeliveryRecord, now: Timestamp) -> bool {
        let waits = match delivery.state {
            DeliveryState::Pending | DeliveryState::Claimed | DeliveryState::Parked => true,
            DeliveryState::Succeeded | DeliveryState::Failed => false,
        };
        if !waits || !delivery.outbox.is_empty() {
            return false;
        }
        let doubled = self
            .after
            .checked_mul(1 << delivery.reconciled.min(20))
            .unwrap_or(LONGEST_INTERVAL);
        let since = delivery
            .published_at
            .max(delivery.next_attempt_at.unwrap_or(Timestamp::MIN));
        let waited = now.duration_since(since);
        waited > doubled.min(LONGEST_INTERVAL)
            && (self.queue_empty_at.is_some_and(|empty| empty > since) || waited > BACKLOG_PATIENCE)
    }
}
