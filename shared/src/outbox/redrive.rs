//! Sending failed deliveries again. The records say which; the dead letters are only a trace. Spec: bus.md,
//! `ferry.dead`; core.md §1, "Run".

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;

use super::{Outbox, OutboxError};
use crate::bus::Bus;
use crate::message::{Source, Work};
use crate::records::{Records, Verdict};
use crate::upload::{DeliveryRecord, DeliveryState, UploadId, UploadState};

/// Dead letters looked through.
const DEAD_LETTERS: usize = 100_000;

/// Opens new runs of failed deliveries.
#[derive(Clone, Debug)]
pub struct Redrive {
    records: Arc<dyn Records>,
    bus: Arc<dyn Bus>,
    outbox: Outbox,
    source: Source,
}

impl Redrive {
    /// From `records` over `bus`.
    #[must_use]
    pub fn new(records: Arc<dyn Records>, bus: Arc<dyn Bus>, outbox: Outbox, source: Source) -> Self {
        Self {
            records,
            bus,
            outbox,
            source,
        }
    }

    /// Opens a new run of `delivery` and publishes its work. Answers false if it is not failed any more, or its
    /// upload is gone.
    ///
    /// # Errors
    /// Nothing changed, or the work is in the record's outbox and the sweeper publishes it.
    pub async fn delivery(&self, delivery: &DeliveryRecord) -> Result<bool, OutboxError> {
        // One that its sender deleted keeps its bytes until it is delivered.
        let state = self.records.upload(delivery.upload_id).await?.state;
        if matches!(state, UploadState::Terminated | UploadState::Expired) {
            return Ok(false);
        }
        let source = self.source.here();
        let edit = move |record: &mut DeliveryRecord| {
            if record.state != DeliveryState::Failed {
                return Verdict::Leave;
            }
            let now = Timestamp::now();
            *record = DeliveryRecord {
                seq: record.seq,
                run: record.run + 1,
                traceparent: record.traceparent.take(),
                outbox: std::mem::take(&mut record.outbox),
                ..DeliveryRecord::pending(record.upload_id, record.to.clone(), now)
            };
            record.outbox.push(source.delivery(record));
            Verdict::Write
        };
        let edited = self
            .records
            .edit_delivery(delivery.upload_id, &delivery.to.target, Box::new(edit))
            .await?;
        if edited.written {
            self.outbox.publish_delivery(edited.record).await?;
        }
        Ok(edited.written)
    }

    /// Removes the dead letters of deliveries that were sent again; answers how many.
    ///
    /// # Errors
    /// Some are left; they are harmless.
    pub async fn forget(&self, again: &HashSet<(UploadId, String)>) -> Result<usize, OutboxError> {
        let letters = self.bus.dead_letters(DEAD_LETTERS).await?;
        let ids = letters
            .into_iter()
            .filter_map(|letter| match Work::of(&letter.message) {
                Ok(Work::CopyDelivery(work)) if again.contains(&(letter.message.subject, work.target.clone())) => {
                    Some(letter.message.id)
                }
                _ => None,
            });
        Ok(self.bus.remove_dead_letters(ids.collect()).await?)
    }
}
