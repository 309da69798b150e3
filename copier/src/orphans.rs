//! What crashed copies left in the targets is looked for now and then, and removed when nobody can want it any more.
//! Spec: faults.md 22.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use shared::orphans;
use shared::records::Records;
use shared::telemetry::{Chain, Metrics};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::targets::Targets;

/// Time between two looks; the first one is at the start.
const EVERY: Duration = Duration::from_secs(60 * 60);

/// Looks after all targets until `stop`. One that cannot be looked at holds up only itself, until the next time.
pub(crate) async fn work(
    targets: Arc<Targets>,
    records: Arc<dyn Records>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        for name in targets.names() {
            let look = async {
                let store = targets.store(&name).await.map_err(|failure| failure.detail)?;
                let removed = orphans::remove(store.as_ref(), &name, records.as_ref(), &metrics, Timestamp::now());
                removed.await.map_err(|error| Chain(&error).to_string())
            };
            tokio::select! {
                () = stop.cancelled() => return,
                removed = look => if let Err(error) = removed {
                    tracing::warn!(target = name, error, "the target was not searched for orphans");
                }
            }
        }
    }
}
