//! From records to the bus: what a record's outbox holds is published, confirmed, and then taken out.
//! Spec: core.md §5, bus.md "A confirm is not the end of the promise".

mod reconcile;
mod redrive;

use std::sync::Arc;

use jiff::Timestamp;
use tracing::{Instrument as _, Span};
use uuid::Uuid;

pub use reconcile::Reconciler;
pub use redrive::Redrive;

use crate::bus::{Bus, BusError, PublishError};
use crate::failpoint::{self, Step};
use crate::message::Message;
use crate::records::{RecordError, Records, Verdict};
use crate::telemetry::{Metrics, Origin, SPANS, here_or};
use crate::upload::{DeliveryRecord, UploadRecord};

/// Publishes what follows from records. Any number of processes may do so for the same record: each message keeps
/// its id, and consumers bear the double.
#[derive(Clone, Debug)]
pub struct Outbox {
    records: Arc<dyn Records>,
    bus: Arc<dyn Bus>,
    metrics: Arc<Metrics>,
}

/// Some message of a record is not known to be on the bus. It is still in the record, and the sweeper goes on.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// The bus did not take a message.
    #[error("a message of the record could not be published")]
    Publish(#[from] PublishError),
    /// That the bus has them could not be recorded: they will be published again.
    #[error("that the messages were published could not be recorded")]
    Record(#[from] RecordError),
    /// The bus could not be asked or told.
    #[error("the dead letters could not be looked through")]
    Bus(#[from] BusError),
}

/// The span of publishing `messages`, of one upload. Whoever does it for somebody else that has died has no span.
fn span(messages: &[Message]) -> Span {
    let span = tracing::info_span!(
        target: SPANS,
        "publish",
        otel.kind = "producer",
        messaging.system = "ferry",
        messaging.operation.name = "publish",
        messaging.operation.type = "send",
        messaging.batch.message_count = messages.len(),
    );
    match messages.first() {
        Some(first) => here_or(span, || Origin::after(first.subject, first.traceparent.as_deref())),
        None => span,
    }
}

impl Outbox {
    /// From `records` to `bus`.
    #[must_use]
    pub fn new(records: Arc<dyn Records>, bus: Arc<dyn Bus>, metrics: Arc<Metrics>) -> Self {
        Self { records, bus, metrics }
    }

    /// Publishes the messages of an upload and answers its record as it is then.
    ///
    /// # Errors
    /// Messages are left in the record; those that were taken are out of it.
    pub async fn publish_upload(&self, record: UploadRecord) -> Result<UploadRecord, OutboxError> {
        if record.outbox.is_empty() {
            return Ok(record);
        }
        let (taken, failure) = self.publish(&record.outbox).await;
        let record = if taken.is_empty() {
            record
        } else {
            if record.state.is_committed() {
                confirmed(Step::Published, &taken).await?;
            }
            let edit = move |record: &mut UploadRecord| {
                record.mark_published(&taken);
                Verdict::Write
            };
            self.records.edit_upload(record.id, Box::new(edit)).await?.record
        };
        failure.map_or(Ok(record), |failure| Err(failure.into()))
    }

    /// Publishes the messages of a delivery and answers its record as it is then.
    ///
    /// # Errors
    /// Messages are left in the record; those that were taken are out of it.
    pub async fn publish_delivery(&self, record: DeliveryRecord) -> Result<DeliveryRecord, OutboxError> {
        if record.outbox.is_empty() {
            return Ok(record);
        }
        let (taken, failure) = self.publish(&record.outbox).await;
        let record = if taken.is_empty() {
            record
        } else {
            confirmed(Step::CopyPublished, &taken).await?;
            let edit = move |record: &mut DeliveryRecord| {
                record.mark_published(&taken, Timestamp::now());
                Verdict::Write
            };
            self.records
                .edit_delivery(record.upload_id, &record.to.target, Box::new(edit))
                .await?
                .record
        };
        failure.map_or(Ok(record), |failure| Err(failure.into()))
    }

    /// Ids of the messages that the bus has now, and the first failure.
    async fn publish(&self, messages: &[Message]) -> (Vec<Uuid>, Option<PublishError>) {
        let answers = self.bus.publish(messages.to_vec()).instrument(span(messages)).await;
        let mut taken = Vec::with_capacity(messages.len());
        let mut failure = None;
        for (message, answer) in messages.iter().zip(answers) {
            match answer {
                Ok(()) => taken.push(message.id),
                Err(error) => {
                    let reason = match &error {
                        PublishError::Returned { .. } => "returned",
                        PublishError::Refused { .. } => "refused",
                        PublishError::Unknown { .. } => "unknown",
                    };
                    self.metrics.publish_failures.with_label_values(&[reason]).inc();
                    tracing::warn!(upload_id = %message.subject, kind = message.kind, %error, "not published");
                    failure.get_or_insert(error);
                }
            }
        }
        (taken, failure)
    }
}

/// The bus has the messages `taken`; the record does not say so yet.
async fn confirmed(step: Step, taken: &[Uuid]) -> Result<(), PublishError> {
    let first = taken.first().copied().unwrap_or_default();
    failpoint::reached(step)
        .await
        .map_err(|injected| failpoint::unconfirmed(first, injected))
}
