//! Unfinished data that no record knows: a crash came between its begin and its record, or what should have removed it
//! could not. Spec: faults.md 22.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};

use crate::records::{RecordError, Records};
use crate::store::{BlobError, BlobStore, Staged, StagedId};
use crate::telemetry::{Chain, Metrics};

/// From this age on it is removed. Whoever works has a record that knows of it long before.
const OLD: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Younger than this it may be somebody's who is about to record it: it is no orphan yet.
const YOUNG: SignedDuration = SignedDuration::from_hours(1);
/// As much of it as one look takes in; the next one sees more.
const MOST: usize = 10_000;
/// Uploads looked at between two reads of the list.
const PAGE: usize = 500;

/// A look for orphans that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum OrphanError {
    /// Of the store.
    #[error("list unfinished data")]
    Store(#[from] BlobError),
    /// Of those who may know it.
    #[error("look who knows unfinished data")]
    Records(#[from] RecordError),
}

/// Removes what was last written to in `store` seven days before `now` and belongs to no record; counts what is left as
/// `ferry_orphan_parts{store}` under `name`. Answers how many were removed. Safe to be done by several processes.
///
/// # Errors
/// Nothing was removed, since not everything that is there, or not everybody who may know it, could be seen.
pub async fn remove(
    store: &dyn BlobStore,
    name: &str,
    records: &dyn Records,
    metrics: &Metrics,
    now: Timestamp,
) -> Result<usize, OrphanError> {
    let found = store.idle_stagings(now - YOUNG, MOST).await?;
    let found = found.into_iter().map(|(staged, at)| (staged.id.clone(), (staged, at)));
    let mut orphans: HashMap<StagedId, (Staged, Timestamp)> = found.collect();
    // The records are read after the store: what is begun and recorded meanwhile was not found.
    forget_known(&mut orphans, records).await?;
    let found = orphans.len();
    let mut removed = 0;
    for (staged, at) in orphans.into_values().filter(|(_, at)| now.duration_since(*at) >= OLD) {
        match store.abort(&staged).await {
            Ok(()) => removed += 1,
            Err(error) => {
                tracing::warn!(store = name, staged = staged.id.as_str(), error = %Chain(&error), "an orphan is left");
                continue;
            }
        }
        tracing::info!(store = name, staged = staged.id.as_str(), written = %at, "an orphan was removed");
    }
    let left = i64::try_from(found - removed).unwrap_or(i64::MAX);
    metrics.orphan_parts.with_label_values(&[name]).set(left);
    Ok(removed)
}

/// Takes what belongs to a record out of `orphans`.
async fn forget_known(
    orphans: &mut HashMap<StagedId, (Staged, Timestamp)>,
    records: &dyn Records,
) -> Result<(), RecordError> {
    let mut after = None;
    while !orphans.is_empty() {
        let page = records.open_uploads(after, PAGE).await?;
        for id in &page {
            match records.upload(*id).await {
                Ok(upload) => orphans.remove(&upload.staged.id),
                Err(RecordError::NotFound(_)) => None, // removed since
                Err(error) => return Err(error),
            };
            for delivery in records.deliveries(*id).await? {
                if let Some(checkpoint) = delivery.checkpoint {
                    orphans.remove(&checkpoint.staged.id);
                }
            }
        }
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some(*last),
            _ => break,
        }
    }
    Ok(())
}
