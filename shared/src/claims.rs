//! Claims: the right to change a record's object. Spec: core.md §5, "Claims".
//!
//! A claim is written into the record; this room decides whether one may be taken, and keeps it beating. No clock of
//! another machine is ever believed: a claim is dead when its beat stood still for the lease *as seen here*, or when
//! its owner is known to have ended.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::records::{Edit, Records, Verdict};
use crate::upload::{Claim, DeliveryRecord, UploadId, UploadRecord};

/// How often a holder raises its beat.
const BEAT: Duration = Duration::from_secs(5);

/// What is claimed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ClaimKey {
    /// Finishing or removing an upload.
    Upload(UploadId),
    /// Copying an upload to a target.
    Delivery(UploadId, String),
}

/// The claims of this process, and what it has seen of others'.
#[derive(Debug)]
pub struct Claims {
    records: Arc<dyn Records>,
    lease: Duration,
    held: Mutex<HashSet<ClaimKey>>,
    seen: Mutex<HashMap<ClaimKey, Seen>>,
}

#[derive(Debug)]
struct Seen {
    fence: u64,
    beat: u64,
    since: Instant,
}

impl Claims {
    /// Claims on `records`; one whose beat stands still for `lease` is free.
    #[must_use]
    pub fn new(records: Arc<dyn Records>, lease: Duration) -> Arc<Self> {
        Arc::new(Self {
            records,
            lease,
            held: Mutex::default(),
            seen: Mutex::default(),
        })
    }

    /// Tries to take `key`, whose record holds the claim `present`. The answer must then be written into the record
    /// by an edit that checks [`Hold::may_replace`]. `None`: somebody else, or another task of this process, has it.
    pub async fn take(self: &Arc<Self>, key: ClaimKey, present: Option<&Claim>) -> Option<Hold> {
        if !self
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key.clone())
        {
            return None;
        }
        let hold = Hold {
            claim: Claim {
                owner: self.records.owner().clone(),
                fence: present.map_or(0, |claim| claim.fence) + 1,
                beat: 0,
            },
            replaces: present.map(|claim| claim.fence),
            claims: self.clone(),
            key,
        };
        // From here on `hold` gives the place in `held` back when it is dropped.
        match present {
            Some(claim) if self.is_live(&hold.key, claim).await => None,
            _ => Some(hold),
        }
    }

    /// Whether `claim` on `key` must be respected: its holder is not known to be dead.
    pub async fn is_live(&self, key: &ClaimKey, claim: &Claim) -> bool {
        if claim.owner == *self.records.owner() {
            // A leftover of a task of ours that ended without giving it back, unless the task is still there; the
            // caller that is about to take the claim has put itself into `held` and knows that nobody else was.
            return false;
        }
        if self.records.is_gone(&claim.owner).await {
            return false;
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        seen.retain(|_, seen| now.duration_since(seen.since) < self.lease * 100);
        match seen.get(key) {
            Some(before) if (before.fence, before.beat) == (claim.fence, claim.beat) => {
                now.duration_since(before.since) < self.lease
            }
            _ => {
                seen.insert(
                    key.clone(),
                    Seen {
                        fence: claim.fence,
                        beat: claim.beat,
                        since: now,
                    },
                );
                true
            }
        }
    }

    /// Whether a task of this process holds `key`.
    #[must_use]
    pub fn is_held_here(&self, key: &ClaimKey) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).contains(key)
    }
}

/// A claim that a task of this process has taken; dropped, this process may take it again. The claim in the record
/// is the caller's to clear, in the same edit as the outcome.
#[derive(Debug)]
pub struct Hold {
    claims: Arc<Claims>,
    key: ClaimKey,
    claim: Claim,
    replaces: Option<u64>,
}

impl Hold {
    /// The claim to write into the record.
    #[must_use]
    pub fn claim(&self) -> Claim {
        self.claim.clone()
    }

    /// Whether the record still holds the claim that was looked at, so that ours may be written over it.
    #[must_use]
    pub fn may_replace(&self, present: Option<&Claim>) -> bool {
        present.map(|claim| claim.fence) == self.replaces
    }

    /// Whether the record holds this claim: what a holder checks in every edit, so that one who was overtaken
    /// while it slept changes nothing.
    #[must_use]
    pub fn is_ours(&self, present: Option<&Claim>) -> bool {
        present.is_some_and(|claim| claim.owner == self.claim.owner && claim.fence == self.claim.fence)
    }

    /// Raises the beat every 5 s until the answer is dropped. Cancels `lost` when somebody else took the claim.
    #[must_use]
    pub fn keep_beating(self: &Arc<Self>, lost: CancellationToken) -> Beating {
        let hold = self.clone();
        Beating(tokio::spawn(async move {
            let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + BEAT, BEAT);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                match hold.beat().await {
                    Ok(true) => {}
                    Ok(false) => return lost.cancel(),
                    // Others go by what they see: if this lasts longer than the lease the claim is theirs.
                    Err(error) => tracing::warn!(key = ?hold.key, %error, "the claim could not be renewed"),
                }
            }
        }))
    }

    async fn beat(self: &Arc<Self>) -> Result<bool, crate::records::RecordError> {
        fn raise(hold: &Hold, claim: Option<&mut Claim>) -> Verdict {
            match claim {
                Some(claim) if hold.is_ours(Some(claim)) => {
                    claim.beat += 1;
                    Verdict::Write
                }
                _ => Verdict::Leave,
            }
        }
        let hold = self.clone();
        Ok(match &self.key {
            ClaimKey::Upload(id) => {
                let edit: Edit<UploadRecord> = Box::new(move |record| raise(&hold, record.claim.as_mut()));
                self.claims.records.edit_upload(*id, edit).await?.written
            }
            ClaimKey::Delivery(id, target) => {
                let edit: Edit<DeliveryRecord> = Box::new(move |record| raise(&hold, record.claim.as_mut()));
                self.claims.records.edit_delivery(*id, target, edit).await?.written
            }
        })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.claims
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.key);
    }
}

/// Keeps a claim beating until it is dropped.
#[derive(Debug)]
pub struct Beating(JoinHandle<()>);

impl Drop for Beating {
    fn drop(&mut self) {
        self.0.abort();
    }
}
