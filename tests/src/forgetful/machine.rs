//! The machine: one moment at which everything stops, and what the next start finds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shared::boot::BootId;
use tempfile::TempDir;
use tokio::sync::watch;

use super::disk::Disk;
use super::log::LogCopy;
use super::store::Forgetful;
use crate::pattern::Random;

/// How everything stops, and when: at a step of a store, a step being what a real one does with one call.
#[derive(Clone, Debug)]
pub struct Crash {
    /// The container whose steps are counted.
    pub container: &'static str,
    /// Its step at which it happens, from 1.
    pub step: u64,
    /// The power is lost; otherwise the processes are killed, and nothing is forgotten.
    pub power: bool,
}

/// A machine with its disks. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Machine {
    folder: Arc<TempDir>,
    state: Arc<Mutex<State>>,
    starts: watch::Sender<u64>,
}

/// One start of its processes.
#[derive(Clone, Debug)]
pub struct Start {
    machine: Machine,
    number: u64,
    /// The database file.
    pub database: PathBuf,
    /// The database's files as a crash finds them; the database is to be synced by it.
    pub log: LogCopy,
    /// The start of the machine that it belongs to.
    pub boot: BootId,
}

#[derive(Debug)]
pub(super) struct State {
    random: Random,
    /// Which start runs; nobody who was started before does anything any more.
    number: u64,
    boot: BootId,
    disks: BTreeMap<&'static str, Disk>,
    steps: BTreeMap<&'static str, u64>,
    crash: Option<Crash>,
    /// Syncs that fail: container, and which one of it, from 1.
    failing: BTreeSet<(&'static str, u64)>,
    syncs: BTreeMap<&'static str, u64>,
    failed_syncs: u64,
    lost_frames: u64,
    /// Names of stagings with a writer.
    pub(super) writers: BTreeSet<(&'static str, String)>,
    log: LogCopy,
    next_database: PathBuf,
}

/// The processes that asked have ended.
#[derive(Debug)]
pub(super) struct Ended;

impl Machine {
    /// A new one, with nothing on it; `seed` decides what it forgets.
    ///
    /// # Panics
    /// There is no place for temporary files.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let folder = tempfile::tempdir().expect("make a temporary folder");
        let database = database(folder.path(), 0);
        let state = State {
            random: Random::new(seed),
            number: 0,
            boot: BootId::random(),
            disks: BTreeMap::new(),
            steps: BTreeMap::new(),
            crash: None,
            failing: BTreeSet::new(),
            syncs: BTreeMap::new(),
            failed_syncs: 0,
            lost_frames: 0,
            writers: BTreeSet::new(),
            log: LogCopy::of(&database),
            next_database: database,
        };
        Self {
            folder: Arc::new(folder),
            state: Arc::new(Mutex::new(state)),
            starts: watch::Sender::new(0),
        }
    }

    /// Starts its processes on what the last ones left. They end at `crash`.
    #[must_use]
    pub fn start(&self, crash: Option<Crash>) -> Start {
        let mut state = self.lock();
        state.crash = crash;
        state.steps.clear();
        Start {
            machine: self.clone(),
            number: state.number,
            database: state.next_database.clone(),
            log: state.log.clone(),
            boot: state.boot.clone(),
        }
    }

    /// The sync number `which` of `container`, counted from now and from 1, fails.
    pub fn fail_sync(&self, container: &'static str, which: u64) {
        let mut state = self.lock();
        let so_far = state.syncs.get(container).copied().unwrap_or(0);
        state.failing.insert((container, so_far + which));
    }

    /// Syncs that failed so far, and frames of the records' log that were lost.
    #[must_use]
    pub fn damage(&self) -> (u64, u64) {
        let state = self.lock();
        (state.failed_syncs, state.lost_frames)
    }

    /// What stands under final names in `container`, with their content.
    #[must_use]
    pub fn visible(&self, container: &'static str) -> BTreeMap<String, Vec<u8>> {
        let mut state = self.lock();
        let disk = state.disk(container);
        let names: Vec<String> = disk
            .names()
            .filter(|name| !name.starts_with(".ferry/"))
            .map(str::to_owned)
            .collect();
        let content = |name: String| {
            let bytes = disk.file(&name).map(|(_, file)| file.content().bytes.clone());
            (name, bytes.unwrap_or_default())
        };
        names.into_iter().map(content).collect()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in a test ends it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn crash(&self, state: &mut State, power: bool) {
        let next = database(self.folder.path(), state.number + 1);
        let mut random = Random::new(state.random.next());
        state.lost_frames += state
            .log
            .survive(&next, power.then_some(&mut random))
            .expect("copy the files of the records");
        if power {
            for disk in state.disks.values_mut() {
                disk.lose_power(&mut random);
            }
            state.boot = BootId::random();
        }
        state.log = LogCopy::of(&next);
        state.next_database = next;
        state.number += 1;
        state.crash = None;
        state.writers.clear();
        self.starts.send_replace(state.number);
    }
}

impl State {
    pub(super) fn disk(&mut self, container: &'static str) -> &mut Disk {
        self.disks.entry(container).or_default()
    }

    /// Syncs the file under `name`, unless this sync is one that fails. Answers whether it did not.
    pub(super) fn sync(&mut self, container: &'static str, name: &str) -> bool {
        let count = self.syncs.entry(container).or_default();
        *count += 1;
        let fails = self.failing.remove(&(container, *count));
        let mut random = Random::new(if fails { self.random.next() } else { 0 });
        self.failed_syncs += u64::from(fails);
        if let Some((_, file)) = self.disk(container).file(name) {
            if fails {
                file.fail_sync(&mut random);
            } else {
                file.sync();
            }
        }
        !fails
    }
}

impl Start {
    /// The container's store as this start's processes have it; with `syncing` it syncs at a commit.
    #[must_use]
    pub fn store(&self, container: &'static str, syncing: bool) -> Arc<Forgetful> {
        self.machine.lock().disk(container);
        Arc::new(Forgetful::new(self.clone(), container, syncing))
    }

    /// Ends this start now, if it has not ended.
    pub fn end(&self, power: bool) {
        let mut state = self.machine.lock();
        if state.number == self.number {
            self.machine.crash(&mut state, power);
        }
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// Never: the machine is there as long as its starts are.
    pub async fn ended(&self) {
        let mut starts = self.machine.starts.subscribe();
        let ended = starts.wait_for(|number| *number != self.number).await;
        ended.map(drop).expect("the machine is there");
    }

    /// Does `work` if this start has not ended, and nothing ends while it does: for notes of what its processes have
    /// promised.
    pub fn while_it_runs<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let state = self.machine.lock();
        (state.number == self.number).then(work)
    }

    /// The machine's state, if this start has not ended, after one more step of `container`; the step that the crash
    /// waits for is not done any more.
    pub(super) fn step(&self, container: &'static str) -> Result<MutexGuard<'_, State>, Ended> {
        let mut state = self.machine.lock();
        if state.number != self.number {
            return Err(Ended);
        }
        let steps = state.steps.entry(container).or_default();
        *steps += 1;
        let steps = *steps;
        if let Some(crash) = state.crash.clone()
            && crash.container == container
            && steps >= crash.step
        {
            self.machine.crash(&mut state, crash.power);
            return Err(Ended);
        }
        Ok(state)
    }

    /// The state for what is no step.
    pub(super) fn state(&self) -> Result<MutexGuard<'_, State>, Ended> {
        let state = self.machine.lock();
        if state.number == self.number {
            Ok(state)
        } else {
            Err(Ended)
        }
    }

    /// The place of `container`'s writer of `name` is free again.
    pub(super) fn leave(&self, container: &'static str, name: &str) {
        if let Ok(mut state) = self.state() {
            state.writers.remove(&(container, name.to_owned()));
        }
    }
}

fn database(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number}.db"))
}
