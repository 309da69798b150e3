//! The sweeper: finds what a crash, a full disk or a lost message left undone, at the start and every 20 s, and does
//! it. Everything that it does is safe to be done by several processes at once. Spec: core.md §4, §5.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use shared::bus::Bus;
use shared::message::Queue;
use shared::orphans;
use shared::outbox::Reconciler;
use shared::store::BlobErrorKind;
use shared::telemetry::Chain;
use shared::upload::{Trouble, UploadId, UploadRecord, UploadState};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{UploadError, Uploads};

/// Uploads looked at between two reads of the list.
const PAGE: usize = 500;
/// How long a deleted upload's URL answers 410 before it is unknown. Spec: core.md §2.
const TOMBSTONES: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Time between two looks for unfinished data that nobody knows; the first one is at the start. Spec: faults.md 22.
const ORPHANS_EVERY: Duration = Duration::from_secs(60 * 60);
/// Tombstones removed in one sweep.
const REMOVED_AT_ONCE: usize = 1000;

/// Sweeps until `stop`. The first sweep looks at every unfinished upload; the later ones leave out those that a
/// request is writing.
pub(crate) async fn sweep(
    uploads: Arc<Uploads>,
    bus: Arc<dyn Bus>,
    mut reconciler: Reconciler,
    every: Duration,
    stop: CancellationToken,
) {
    let mut tick = interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut first, mut searched) = (true, None);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let swept = tokio::select! {
            () = stop.cancelled() => return,
            swept = uploads.sweep(&mut reconciler, first) => swept,
        };
        match swept {
            Ok(()) => first = false,
            Err(error) => tracing::warn!(error = %Chain(&error), "a sweep was not completed"),
        }
        uploads.measure(bus.as_ref()).await;
        if searched.is_none_or(|at: Instant| at.elapsed() >= ORPHANS_EVERY) {
            searched = Some(Instant::now());
            uploads.remove_orphans().await;
        }
    }
}

/// What a sweep found.
#[derive(Debug, Default)]
struct Found {
    /// Uploads of an earlier process that were not finished.
    recovered: u64,
    /// What has waited longest.
    unpublished: Option<Timestamp>,
    undelivered: Option<Timestamp>,
}

impl Found {
    fn note(oldest: &mut Option<Timestamp>, seen: Option<Timestamp>) {
        *oldest = match (*oldest, seen) {
            (Some(oldest), Some(seen)) => Some(oldest.min(seen)),
            (oldest, seen) => oldest.or(seen),
        };
    }
}

/// Seconds since `moment`, for a gauge; 0 if nothing waits.
fn age(moment: Option<Timestamp>) -> i64 {
    moment.map_or(0, |moment| Timestamp::now().duration_since(moment).as_secs().max(0))
}

impl Uploads {
    async fn sweep(self: &Arc<Self>, reconciler: &mut Reconciler, first: bool) -> Result<(), UploadError> {
        reconciler.begin().await;
        let mut found = Found::default();
        let mut after = None;
        loop {
            let page = self.records.open_uploads(after, PAGE).await?;
            for id in &page {
                // One upload's trouble is its own.
                if let Err(error) = self.attend(*id, reconciler, &mut found).await {
                    tracing::warn!(upload_id = %id, error = %Chain(&error), "not swept");
                }
            }
            match page.last() {
                Some(last) if page.len() == PAGE => after = Some(*last),
                _ => break,
            }
        }
        self.metrics.outbox_oldest_seconds.set(age(found.unpublished));
        self.metrics.undelivered_oldest_seconds.set(age(found.undelivered));
        let before = Timestamp::now() - TOMBSTONES;
        self.records.purge_tombstones(before, REMOVED_AT_ONCE).await?;
        if first {
            self.metrics.uploads_recovered.inc_by(found.recovered); // last: a sweep that fails begins again
        }
        Ok(())
    }

    async fn remove_orphans(&self) {
        let (raw, records) = (self.raw.as_ref(), self.records.as_ref());
        if let Err(error) = orphans::remove(raw, "raw", records, &self.metrics, Timestamp::now()).await {
            tracing::warn!(error = %Chain(&error), "the raw store was not searched for orphans");
        }
    }

    async fn attend(
        self: &Arc<Self>,
        id: UploadId,
        reconciler: &mut Reconciler,
        found: &mut Found,
    ) -> Result<(), UploadError> {
        let record = self.records.upload(id).await?;
        if self.is_recovered(&record) {
            found.recovered += 1;
        }
        match record.state {
            // Nothing more is done with one whose bytes are lost, until its sender deletes it.
            UploadState::Receiving if record.on_disk.trouble == Some(Trouble::Lost) => {}
            UploadState::Receiving if !self.live.has_writer(id) => {
                let may_be_whole = match self.may_be_whole(&record).await {
                    Err(UploadError::Damaged { .. }) => return self.note_lost(&record).await,
                    may_be_whole => may_be_whole?,
                };
                if may_be_whole {
                    tracing::info!(upload_id = %id, "all bytes are there: finishing");
                    self.finish_if_left(id).await?;
                }
            }
            UploadState::Committing => self.finish_if_left(id).await?,
            UploadState::Terminating => self.remove_terminated(id).await?,
            _ => {}
        }
        let record = self.records.upload(id).await?;
        let (changed_at, completed_at) = (
            record.changed_at,
            record.completed.as_ref().map(|completed| completed.at),
        );
        if let Err(error) = self.outbox.publish_upload(record).await {
            Found::note(&mut found.unpublished, Some(changed_at));
            tracing::warn!(upload_id = %id, %error, "messages are still not published");
        }
        for delivery in self.records.deliveries(id).await? {
            if !delivery.state.is_final() {
                Found::note(&mut found.undelivered, completed_at);
            }
            let attended = if delivery.outbox.is_empty() {
                reconciler.attend(&delivery).await.map(drop)
            } else {
                self.outbox.publish_delivery(delivery).await.map(drop)
            };
            if let Err(error) = attended {
                tracing::warn!(upload_id = %id, %error, "a delivery's messages are still not published");
            }
        }
        Ok(())
    }

    /// Whether it is an unfinished upload of an earlier process; also one whose sender was back before the sweeper.
    fn is_recovered(&self, record: &UploadRecord) -> bool {
        let unfinished = matches!(record.state, UploadState::Receiving | UploadState::Committing);
        unfinished && record.created_at < self.started_at && record.on_disk.trouble != Some(Trouble::Lost)
    }

    /// Whether an upload that nobody writes has all its bytes, as far as can be told without reading them: after a loss
    /// of power those of many uploads would have to be.
    async fn may_be_whole(&self, record: &UploadRecord) -> Result<bool, UploadError> {
        if self.relies_on(record) {
            return Ok(Some(self.stored(record).await?) == record.length);
        }
        match self.raw.parts(&record.staged).await {
            Ok(parts) => Ok(Some(parts.contiguous) == record.length && parts.contiguous == record.promised()),
            Err(error) if error.kind == BlobErrorKind::StagingLost => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Gauges that only a look at everything can tell.
    async fn measure(&self, bus: &dyn Bus) {
        match self.records.census().await {
            Ok(census) => {
                for state in UploadState::ALL {
                    let count = i64::try_from(census.uploads_in(state)).unwrap_or(i64::MAX);
                    self.metrics.uploads.with_label_values(&[state.as_str()]).set(count);
                }
                for state in shared::upload::DeliveryState::ALL {
                    let count = i64::try_from(census.deliveries_in(state)).unwrap_or(i64::MAX);
                    self.metrics.deliveries.with_label_values(&[state.as_str()]).set(count);
                }
                self.metrics
                    .outbox_messages
                    .set(i64::try_from(census.with_outbox).unwrap_or(i64::MAX));
            }
            Err(error) => tracing::warn!(%error, "the records could not be counted"),
        }
        if let Err(error) = self.look_at_room().await {
            tracing::warn!(error = %Chain(&error), "the room in the raw store could not be seen");
        }
        for queue in Queue::ALL {
            match bus.depth(queue).await {
                Ok(depth) => {
                    for (state, count) in [
                        ("ready", depth.ready),
                        ("in-flight", depth.in_flight),
                        ("delayed", depth.delayed),
                    ] {
                        let gauge = self.metrics.queue_messages.with_label_values(&[queue.as_str(), state]);
                        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
                    }
                }
                Err(error) => tracing::warn!(queue = queue.as_str(), %error, "the queue could not be counted"),
            }
        }
    }
}
