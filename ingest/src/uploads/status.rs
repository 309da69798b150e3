//! How far uploads are, told while their bytes come. Spec: core.md §7; reports.md §1, `upload-status`.
//!
//! ```text
//!   append ──► newest offset per upload ──► one task per sink ──► sink
//!                        ▲                         │
//!   finish ── end: no more of this upload, and ────┘ is the last one known to be over?
//! ```
//!
//! These reports are never recorded and nothing waits for them: what a sink is too slow for is left out. The first
//! status of an upload and the final one are recorded, and a copier hands them over. An older one must not come after
//! a newer one: so here nothing is sent before the bus has settled the first, and the final one is recorded only when
//! nothing is on its way any more. If that cannot be known, the final one is sent once more.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use shared::bus::Bus;
use shared::records::Records;
use shared::report::{Report, Sink, Times, violations};
use shared::telemetry::{Chain, Metrics};
use shared::upload::{UploadId, UploadRecord, UploadState};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

/// Between two reports of one upload, and between its creation and the first of them.
const RATE: Duration = Duration::from_secs(1);
/// The longest that one of these reports may take.
pub(super) const LONGEST: Duration = Duration::from_secs(5);
/// The longest that the end of an upload waits for its last one; it is broken off then.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest pause for a sink in trouble.
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
/// Uploads of which a sink's task knows; the others are left out.
const UPLOADS: usize = 4096;
/// How long it is known what was told of an upload, when nothing more comes.
const REMEMBERED: Duration = Duration::from_secs(60);

/// The tasks that tell, one per sink.
#[derive(Debug)]
pub(crate) struct Statuses {
    lanes: Vec<Arc<Lane>>,
    started: Timestamp,
}

impl Statuses {
    /// Tells `sinks`.
    pub(crate) fn new(
        sinks: &[Arc<dyn Sink>],
        records: &Arc<dyn Records>,
        bus: &Arc<dyn Bus>,
        metrics: &Arc<Metrics>,
        limit: Duration,
    ) -> Self {
        let lane = |sink: &Arc<dyn Sink>| {
            Arc::new(Lane {
                sink: sink.clone(),
                records: records.clone(),
                bus: bus.clone(),
                metrics: metrics.clone(),
                limit: limit.min(LONGEST),
                state: Mutex::default(),
                wake: Notify::new(),
            })
        };
        Self {
            lanes: sinks.iter().map(lane).collect(),
            started: Timestamp::now(),
        }
    }

    /// The work of each sink's task, until `stop`.
    pub(crate) fn tasks(&self, stop: &CancellationToken) -> Vec<impl Future<Output = ()> + Send + use<>> {
        let run = |lane: &Arc<Lane>| lane.clone().run(stop.clone());
        self.lanes.iter().map(run).collect()
    }

    /// The upload has `offset` bytes, and more are to come. Never waits.
    pub(super) fn note(&self, record: &UploadRecord, offset: u64) {
        if offset == 0 || record.length.is_some_and(|length| offset >= length) {
            return;
        }
        let age = Timestamp::now().duration_since(record.created_at);
        let young = RATE.saturating_sub(Duration::try_from(age).unwrap_or_default());
        for lane in &self.lanes {
            lane.note(record.id, offset, Instant::now() + young);
        }
    }

    /// No status of this upload goes out any more. Answers the sinks at which one may still arrive: they are to get
    /// the final one once more. Waits a moment for one that is on its way.
    pub(super) async fn end(&self, record: &UploadRecord) -> Vec<&'static str> {
        // What an earlier process had on its way nobody knows.
        let older = record.created_at < self.started && record.length != Some(0);
        let mut unsure = Vec::new();
        for lane in &self.lanes {
            let known = lane.end(record.id).await;
            if !known || (older && lane.sink.takes_late()) {
                unsure.push(lane.sink.name());
            }
        }
        unsure
    }
}

/// One sink's task, and what it is to tell.
#[derive(Debug)]
struct Lane {
    sink: Arc<dyn Sink>,
    records: Arc<dyn Records>,
    bus: Arc<dyn Bus>,
    metrics: Arc<Metrics>,
    limit: Duration,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<UploadId, Entry>,
    /// The entries by when they are to be looked at.
    due: BTreeSet<(Instant, UploadId)>,
    sending: Option<Sending>,
    /// One of these uploads' reports may still arrive.
    unsure: HashSet<UploadId>,
    /// There were too many of them to be named.
    unsure_of_all: bool,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    due: Instant,
    /// What is to be told, if anything is.
    newest: Option<u64>,
    /// What was told last,
    told: u64,
    /// and when it was tried.
    last: Instant,
    /// Where the bus was when the upload was met; its first status is before that.
    met_at: Option<u64>,
    /// The bus has settled its first status.
    first_settled: bool,
}

#[derive(Clone, Debug)]
struct Sending {
    id: UploadId,
    /// Breaks it off.
    cancel: CancellationToken,
    /// Cancelled when it is over.
    over: CancellationToken,
}

impl State {
    fn put(&mut self, id: UploadId, entry: Entry) {
        if let Some(before) = self.entries.insert(id, entry) {
            self.due.remove(&(before.due, id));
        }
        self.due.insert((entry.due, id));
    }

    fn remove(&mut self, id: UploadId) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        self.due.remove(&(entry.due, id));
        Some(entry)
    }

    fn is_unsure(&mut self, id: UploadId) {
        if self.unsure.len() < UPLOADS {
            self.unsure.insert(id);
        } else {
            self.unsure_of_all = true;
        }
    }
}

impl Lane {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, id: UploadId, offset: u64, due: Instant) {
        let mut state = self.state();
        let entry = match state.entries.get(&id) {
            Some(entry) if offset <= entry.told => return,
            Some(entry) => Entry {
                newest: Some(offset),
                // One that was only remembered has had its turn; the next is a second after the last.
                due: if entry.newest.is_some() {
                    entry.due
                } else {
                    due.max(entry.last + RATE)
                },
                ..*entry
            },
            None if state.entries.len() >= UPLOADS => return,
            None => Entry {
                due,
                newest: Some(offset),
                told: 0,
                last: due,
                met_at: None,
                first_settled: false,
            },
        };
        state.put(id, entry);
        drop(state);
        self.wake.notify_one();
    }

    /// Whether everything that went out of this upload is over.
    async fn end(&self, id: UploadId) -> bool {
        let sending = {
            let mut state = self.state();
            state.remove(id);
            state.sending.clone().filter(|sending| sending.id == id)
        };
        if let Some(sending) = sending
            && timeout(PATIENCE, sending.over.cancelled()).await.is_err()
        {
            sending.cancel.cancel();
            sending.over.cancelled().await;
        }
        let mut state = self.state();
        state.remove(id); // put back by what was on its way
        !state.unsure.remove(&id) && !state.unsure_of_all
    }

    async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut failures = 0_u32;
        let mut resume_at = Instant::now();
        while !stop.is_cancelled() {
            let next = self.state().due.first().map(|(due, _)| (*due).max(resume_at));
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.wake.notified() => continue,
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
            match self.tell_next(&stop).await {
                None => {}
                Some(true) => failures = 0,
                Some(false) => {
                    failures = failures.saturating_add(1);
                    let pause = RATE.saturating_mul(1 << (failures - 1).min(10)).min(LONGEST_PAUSE);
                    resume_at = Instant::now() + pause;
                }
            }
        }
    }

    /// Tells what is due. Answers whether the sink took it; `None` if nothing was sent.
    async fn tell_next(&self, stop: &CancellationToken) -> Option<bool> {
        let (id, mut entry, sending) = {
            let mut state = self.state();
            let (due, id) = state.due.first().copied()?;
            if due > Instant::now() {
                return None;
            }
            let entry = state.remove(id)?;
            entry.newest?;
            let sending = Sending {
                id,
                cancel: stop.child_token(),
                over: CancellationToken::new(),
            };
            state.sending = Some(sending.clone());
            (id, entry, sending)
        };
        let outcome = if self.is_first_settled(&mut entry).await {
            self.send(id, entry.newest.unwrap_or_default(), &sending.cancel).await
        } else {
            Outcome::Unsent { gone: false }
        };
        let mut state = self.state();
        state.sending = None;
        // More may have come meanwhile: that is the newest.
        let newest = state.remove(id).and_then(|later| later.newest);
        let told = match outcome {
            Outcome::Taken => {
                entry.told = entry.newest.unwrap_or_default();
                entry.newest = None;
                Some(true)
            }
            Outcome::Failed { unsure } => {
                if unsure {
                    state.is_unsure(id);
                }
                Some(false)
            }
            Outcome::Unsent { .. } => None,
        };
        entry.newest = newest.or(entry.newest).filter(|newest| *newest > entry.told);
        // The next is made a second after this one was at the earliest, whatever the way to it took.
        entry.last = Instant::now();
        entry.due = entry.last + if entry.newest.is_some() { RATE } else { REMEMBERED };
        if !matches!(outcome, Outcome::Unsent { gone: true }) {
            state.put(id, entry);
        }
        drop(state);
        sending.over.cancel();
        told
    }

    /// Whether the upload's first status cannot come any more.
    async fn is_first_settled(&self, entry: &mut Entry) -> bool {
        if entry.first_settled {
            return true;
        }
        match self.bus.positions(self.sink.name()).await {
            Ok(now) => {
                let met_at = *entry.met_at.get_or_insert(now.next);
                entry.first_settled = now.oldest >= met_at;
            }
            Err(error) => tracing::warn!(error = %Chain(&error), "the waiting reports could not be looked at"),
        }
        entry.first_settled
    }

    async fn send(&self, id: UploadId, offset: u64, cancel: &CancellationToken) -> Outcome {
        let record = match self.records.upload(id).await {
            Ok(record) if record.state == UploadState::Receiving => record,
            _ => return Outcome::Unsent { gone: true },
        };
        let report = Report::upload_status(id, &record.manifest, offset, record.length, Times::at(Timestamp::now()));
        let (sink, violations) = (self.sink.name(), violations(&report));
        if !violations.is_empty() {
            self.metrics.reports_rejected.with_label_values(&[sink]).inc();
            tracing::error!(upload_id = %id, sink, ?violations, "a report of ours is not valid");
            return Outcome::Unsent { gone: true };
        }
        let sent = tokio::select! {
            sent = timeout(self.limit, self.sink.send(&report)) => sent,
            () = cancel.cancelled() => return Outcome::Failed { unsure: true },
        };
        match sent {
            Ok(Ok(())) => {
                let sent = &self.metrics.reports_sent;
                sent.with_label_values(&[sink, "upload-status"]).inc();
                Outcome::Taken
            }
            Ok(Err(error)) => {
                tracing::debug!(upload_id = %id, sink, error = %Chain(&error), "a status was not taken");
                Outcome::Failed {
                    unsure: error.fate.may_be_taken(),
                }
            }
            Err(_) => Outcome::Failed { unsure: true },
        }
    }
}

/// What became of one status.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    Taken,
    Failed { unsure: bool },
    Unsent { gone: bool },
}
