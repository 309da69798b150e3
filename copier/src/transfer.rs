//! Read once, write many: drives one job's copies through one slice. Spec: core.md §6.
//!
//! ```text
//!   Reader ──► range ──┬──► queue of 2 ──► target's task ──► outcome recorded and reported by itself
//!   (a few ahead)      └──► queue of 2 ──► target's task ──► outcome …
//! ```

use std::sync::Arc;
use std::time::Duration;

use shared::store::{Limits, Slots};
use shared::telemetry::Chain;
use shared::upload::CopyCheckpoint;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::Instrument as _;

use crate::Engine;
use crate::failure::Failure;
use crate::outcome::Lease;
use crate::reader::{Chunk, Reader, Source, Upload};
use crate::target::{Cut, Ended, Feed, Ready, Told, deliver};
use crate::trace;

/// Ranges that wait for one target.
const QUEUE: usize = 2;
/// A target that keeps the others waiting this long at once goes on by itself.
const PATIENCE: Duration = Duration::from_secs(5);
/// The others wait this long for a target that looks at what it has, unless it needed longer the last time.
pub(crate) const READY: Duration = Duration::from_millis(100);
/// In all they wait this long for its writes, and this part of the time that the copy takes: so they keep four fifths
/// of their speed (faults.md 61), and nobody is split off for a hiccup.
const HICCUP: Duration = Duration::from_millis(500);
const SHARE: u32 = 4;
/// How often a target that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Copies `upload` to all that `leases` hold, until they are done or the slice is over. Answers whether everything
/// is settled; otherwise the job's message must come again.
pub(crate) async fn run(engine: &Arc<Engine>, upload: &Arc<Upload>, leases: Vec<Lease>) -> bool {
    // Each target says four things at most: nobody ever waits to say them.
    let (tell, told) = mpsc::channel(leases.len().max(1) * 4);
    let mut tasks = JoinSet::new();
    let mut lines = Vec::with_capacity(leases.len());
    let (alone, slice_end) = (leases.len() == 1, Instant::now() + engine.slice_time);
    for (index, lease) in leases.into_iter().enumerate() {
        let (line, chunks, cuts) = Line::new(&lease.seen.to.target);
        lines.push(line);
        let feed = Feed {
            index,
            alone,
            tell: tell.clone(),
            chunks,
            cut: cuts,
            slice_end,
        };
        let span = trace::delivery(&lease);
        tasks.spawn(deliver(engine.clone(), lease, feed).instrument(span));
    }
    drop(tell);
    let mut pump = Pump {
        engine,
        upload,
        lines,
        told,
        sent: 0,
        has_fed: false,
        slice_end,
    };
    pump.run().await;
    let mut settled = true;
    let mut paused = Vec::new();
    loop {
        let ended = tokio::select! {
            ended = tasks.join_next() => ended,
            () = engine.stop.cancelled(), if !pump.is_cut() => {
                pump.cut(&Cut::Stop);
                continue;
            }
        };
        match ended {
            Some(Ok(Ended::Settled)) => {}
            Some(Ok(Ended::Paused(lease, checkpoint))) => paused.push((lease, checkpoint)),
            Some(Ok(Ended::Again)) => settled = false,
            Some(Err(error)) => {
                tracing::error!(upload_id = %upload.id, %error, "a copy ended without an outcome");
                settled = false;
            }
            None => break,
        }
    }
    continue_later(engine, paused).await && settled
}

/// Records how far each of `paused` got, and hands on all of them with one message, so that the next slice reads
/// the source once for all again.
async fn continue_later(engine: &Engine, paused: Vec<(Box<Lease>, CopyCheckpoint)>) -> bool {
    let last = paused.len().saturating_sub(1);
    let mut together = Vec::with_capacity(paused.len());
    let mut settled = true;
    for (place, (lease, checkpoint)) in paused.into_iter().enumerate() {
        together.push(lease.seen.to.target.clone());
        let announced = (place == last).then(|| together.clone());
        if let Err(unsettled) = engine.outcomes.paused(&lease, checkpoint, announced).await {
            let target = lease.seen.to.target.as_str();
            tracing::warn!(upload_id = %lease.upload.id, target, error = %Chain(&unsettled), "slice not recorded");
            together.pop();
            settled = false;
        }
    }
    settled
}

/// The driver's end of a target's queue.
#[derive(Debug)]
struct Line {
    target: String,
    /// `None` once the target has ended, or gets nothing more.
    chunks: Option<mpsc::Sender<Chunk>>,
    cut: watch::Sender<Option<Cut>>,
    stage: Stage,
    /// How long others have waited for it.
    kept_others: Duration,
}

/// How far a target has come.
#[derive(Debug)]
enum Stage {
    /// It waits for a place at its target.
    Outside,
    /// It looks at its target.
    Entered,
    /// It can be fed.
    Ready(Ready),
    /// It gets nothing more in this slice.
    Fed,
    Ended,
}

impl Line {
    fn new(target: &str) -> (Self, mpsc::Receiver<Chunk>, watch::Receiver<Option<Cut>>) {
        let (chunks, receiver) = mpsc::channel(QUEUE);
        let (cut, cuts) = watch::channel(None);
        let line = Self {
            target: target.to_owned(),
            chunks: Some(chunks),
            cut,
            stage: Stage::Entered,
            kept_others: Duration::ZERO,
        };
        (line, receiver, cuts)
    }

    fn end(&mut self, cut: Cut) {
        self.cut.send_replace(Some(cut));
        self.chunks = None;
        self.stage = Stage::Ended;
    }

    fn is_looking(&self) -> bool {
        matches!(self.stage, Stage::Entered)
    }

    fn ready(&self) -> Option<&Ready> {
        match &self.stage {
            Stage::Ready(ready) => Some(ready),
            Stage::Outside | Stage::Entered | Stage::Fed | Stage::Ended => None,
        }
    }

    /// Has written everything it got, and could do more.
    fn is_waiting(&self) -> bool {
        self.chunks
            .as_ref()
            .is_some_and(|chunks| !chunks.is_closed() && chunks.capacity() == chunks.max_capacity())
    }
}

/// Brings ranges of the source to the targets that need them.
struct Pump<'a> {
    engine: &'a Engine,
    upload: &'a Arc<Upload>,
    lines: Vec<Line>,
    told: mpsc::Receiver<Told>,
    sent: u64,
    has_fed: bool,
    slice_end: Instant,
}

/// Why the pump goes no further.
enum Over {
    Stop,
    Source(Failure),
    /// The slice, or the source.
    End,
}

impl Pump<'_> {
    /// Feeds the targets that are ready, and then those that became ready later, until none is left.
    async fn run(&mut self) {
        loop {
            let over = match self.gather().await {
                Ok(true) => self.pump().await,
                Ok(false) => return,
                Err(over) => over,
            };
            // The senders of the cuts stay: they tell a stop from here on, too.
            for line in self.lines.iter_mut().filter(|line| line.ready().is_some()) {
                line.chunks = None;
                line.stage = Stage::Fed;
            }
            match over {
                Over::Stop => return self.cut(&Cut::Stop),
                Over::Source(failure) => return self.cut(&Cut::Source(failure)),
                Over::End => {}
            }
        }
    }

    fn cut(&self, cut: &Cut) {
        for line in &self.lines {
            line.cut.send_if_modified(|present| {
                let first = present.is_none();
                if first {
                    *present = Some(cut.clone());
                }
                first
            });
        }
    }

    fn is_cut(&self) -> bool {
        self.lines.iter().all(|line| line.cut.borrow().is_some())
    }

    /// Waits until a target knows where it begins, and a moment for the others that look at theirs, if they were
    /// quick the last time. Who is ready later is fed later. One that still has no place at its target is not waited
    /// for, and is turned away when nothing else is left of the job. Answers whether there is anything to feed.
    async fn gather(&mut self) -> Result<bool, Over> {
        let mut deadline = None;
        loop {
            let is = |wanted: fn(&Stage) -> bool| self.lines.iter().any(|line| wanted(&line.stage));
            let ready = is(|stage| matches!(stage, Stage::Ready(_)));
            let looking = is(|stage| matches!(stage, Stage::Entered));
            let targets = &self.engine.targets;
            if ready
                && !self
                    .lines
                    .iter()
                    .any(|line| line.is_looking() && targets.is_prompt(&line.target))
            {
                return Ok(true);
            }
            let at_work = ready || looking || is(|stage| matches!(stage, Stage::Fed));
            if self.has_fed && !at_work {
                for line in self
                    .lines
                    .iter_mut()
                    .filter(|line| matches!(line.stage, Stage::Outside))
                {
                    line.end(Cut::SplitOff);
                }
            }
            if ready {
                deadline.get_or_insert_with(|| Instant::now() + READY);
            }
            let told = tokio::select! {
                biased;
                () = self.engine.stop.cancelled() => return Err(Over::Stop),
                told = self.told.recv() => told,
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    for line in self.lines.iter().filter(|line| line.is_looking()) {
                        targets.note_prompt(&line.target, false);
                    }
                    return Ok(true);
                }
            };
            match told {
                Some(told) => self.note(told),
                None => return Ok(ready),
            }
        }
    }

    fn note(&mut self, told: Told) {
        let (index, stage) = match told {
            Told::Outside(index) => (index, Stage::Outside),
            Told::Entered(index) => (index, Stage::Entered),
            Told::Ready(ready) => (ready.index, Stage::Ready(ready)),
            Told::Ended(index) => (index, Stage::Ended),
        };
        // One that was split off may not have heard of it yet.
        if let Some(line) = self
            .lines
            .get_mut(index)
            .filter(|line| !matches!(line.stage, Stage::Ended))
        {
            line.stage = stage;
        }
    }

    /// What is ready only now has missed the beginning: it goes on by itself, unless this is the end anyway.
    fn split_off_latecomers(&mut self, fed: &[usize]) {
        while let Ok(told) = self.told.try_recv() {
            self.note(told);
        }
        let late = self.lines.iter_mut().enumerate();
        for (_, line) in late.filter(|(index, line)| line.ready().is_some() && !fed.contains(index)) {
            line.end(Cut::SplitOff);
        }
    }

    async fn pump(&mut self) -> Over {
        let ready = || self.lines.iter().filter_map(Line::ready);
        let fed: Vec<usize> = ready().map(|ready| ready.index).collect();
        let Some(offset) = ready().map(|ready| ready.offset).min() else {
            return Over::End;
        };
        let Some(limits) = common_parts(ready().map(|ready| &ready.limits)) else {
            return Over::End;
        };
        let engine = self.engine;
        if offset > 0 && offset == self.upload.size {
            return Over::End; // all that is left to do is to check the copies
        }
        let source = tokio::select! {
            biased;
            () = engine.stop.cancelled() => return Over::Stop,
            source = Source::open(engine.raw.clone(), self.upload) => source,
        };
        let mut reader = match source {
            Ok(source) => {
                let (budget, metrics) = (engine.budget.clone(), engine.metrics.clone());
                Reader::new(source, limits, offset, engine.slice_bytes, budget, metrics)
            }
            Err(failure) => return Over::Source(failure),
        };
        let begun = Instant::now();
        (self.sent, self.has_fed) = (0, true);
        loop {
            let read = tokio::select! {
                biased;
                () = engine.stop.cancelled() => return Over::Stop,
                read = reader.next() => read,
            };
            let chunk = match read {
                None => return Over::End,
                Some(Err(failure)) => return Over::Source(failure),
                Some(Ok(chunk)) => chunk,
            };
            let is_last = chunk.end() == self.upload.size;
            if let Err(over) = self.offer(chunk, begun, &fed).await {
                return over;
            }
            if !is_last {
                self.split_off_latecomers(&fed);
            }
            if Instant::now() >= self.slice_end {
                return Over::End;
            }
        }
    }

    /// Gives `chunk` to all that need it, waiting for those whose queue is full. The copy has `begun` then.
    async fn offer(&mut self, chunk: Chunk, begun: Instant, fed: &[usize]) -> Result<(), Over> {
        for &index in fed {
            let since = Instant::now();
            let mut looked = since;
            while let Some(queue) = self.queue_for(index, &chunk) {
                let given = tokio::select! {
                    biased;
                    () = self.engine.stop.cancelled() => return Err(Over::Stop),
                    permit = queue.reserve() => {
                        match permit {
                            Ok(permit) => permit.send(chunk.clone()),
                            Err(_) => self.lines[index].chunks = None, // it has ended by itself
                        }
                        true
                    }
                    () = sleep_until(self.slice_end), if self.sent > 0 => return Err(Over::End),
                    () = sleep_until(looked + LOOK) => false,
                };
                self.note_wait(index, since, looked, begun);
                if given {
                    break;
                }
                looked = Instant::now();
            }
        }
        if fed.iter().all(|index| self.lines[*index].chunks.is_none()) {
            return Err(Over::End);
        }
        self.sent += chunk.end() - chunk.offset;
        Ok(())
    }

    /// Counts the time since `looked` if others had nothing to do in it but to wait for the target `index`; one that
    /// keeps them too long goes on by itself.
    fn note_wait(&mut self, index: usize, since: Instant, looked: Instant, begun: Instant) {
        let mut others = self.lines.iter().enumerate().filter(|(other, _)| *other != index);
        if !others.any(|(_, line)| line.ready().is_some() && line.is_waiting()) {
            return;
        }
        let line = &mut self.lines[index];
        line.kept_others += looked.elapsed();
        if since.elapsed() >= PATIENCE || line.kept_others >= HICCUP + begun.elapsed() / SHARE {
            line.end(Cut::SplitOff);
        }
    }

    /// The queue of a target that needs `chunk`.
    fn queue_for(&self, index: usize, chunk: &Chunk) -> Option<mpsc::Sender<Chunk>> {
        let line = &self.lines[index];
        let needed = line.ready().is_some_and(|ready| ready.offset < chunk.end());
        line.chunks.clone().filter(|_| needed)
    }
}

/// The parts of a copy that all targets can take: stores with parts of their own all cut alike (core.md §6), the
/// others take any.
fn common_parts<'a>(all: impl Iterator<Item = &'a Limits>) -> Option<Limits> {
    let (fixed, free): (Vec<_>, Vec<_>) = all.partition(|limits| limits.slots == Slots::Fixed);
    fixed.into_iter().chain(free).next().cloned()
}

#[cfg(test)]
mod tests {
    use shared::store::ReadBack;

    use super::*;

    #[test]
    fn a_folder_takes_the_parts_of_a_store_that_has_its_own() {
        let limits = |slots| Limits {
            slots,
            ordered: true,
            read_back: ReadBack::Never,
        };
        let (folder, cloud) = (limits(Slots::Free { preferred: 1 << 20 }), limits(Slots::Fixed));
        assert_eq!(common_parts([&folder, &cloud].into_iter()), Some(cloud));
        assert_eq!(common_parts([&folder, &folder].into_iter()), Some(folder));
        assert_eq!(common_parts([].into_iter()), None);
    }
}
