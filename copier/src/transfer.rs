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
use crate::target::{Cut, Ended, Feed, Ready, deliver};
use crate::trace;

/// Ranges that wait for one target.
const QUEUE: usize = 2;
/// A target that keeps the others waiting this long goes on by itself.
const PATIENCE: Duration = Duration::from_secs(5);

/// Copies `upload` to all that `leases` hold, until they are done or the slice is over. Answers whether everything
/// is settled; otherwise the job's message must come again.
pub(crate) async fn run(engine: &Arc<Engine>, upload: &Arc<Upload>, leases: Vec<Lease>) -> bool {
    let (ready, readies) = mpsc::channel(leases.len().max(1));
    let mut tasks = JoinSet::new();
    let mut lines = Vec::with_capacity(leases.len());
    for (index, lease) in leases.into_iter().enumerate() {
        let (line, chunks, cuts) = Line::new();
        lines.push(line);
        let feed = Feed {
            index,
            ready: Some(ready.clone()),
            chunks,
            cut: cuts,
        };
        let span = trace::delivery(&lease);
        tasks.spawn(deliver(engine.clone(), lease, feed).instrument(span));
    }
    drop(ready);
    let mut pump = Pump {
        engine,
        upload,
        lines,
        sent: 0,
    };
    pump.run(readies).await;
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
    /// `None` once the target has ended, or gets nothing more.
    chunks: Option<mpsc::Sender<Chunk>>,
    cut: watch::Sender<Option<Cut>>,
    ready: Option<Ready>,
}

impl Line {
    fn new() -> (Self, mpsc::Receiver<Chunk>, watch::Receiver<Option<Cut>>) {
        let (chunks, receiver) = mpsc::channel(QUEUE);
        let (cut, cuts) = watch::channel(None);
        let line = Self {
            chunks: Some(chunks),
            cut,
            ready: None,
        };
        (line, receiver, cuts)
    }

    fn end(&mut self, cut: Cut) {
        self.cut.send_replace(Some(cut));
        self.chunks = None;
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
    sent: u64,
}

/// Why the pump goes no further.
enum Over {
    Stop,
    Source(Failure),
    /// The slice, or the source.
    End,
}

impl Pump<'_> {
    async fn run(&mut self, readies: mpsc::Receiver<Ready>) {
        let over = match self.gather(readies).await {
            Ok(()) => self.pump().await,
            Err(over) => over,
        };
        match over {
            Over::Stop => self.cut(&Cut::Stop),
            Over::Source(failure) => self.cut(&Cut::Source(failure)),
            Over::End => {}
        }
        // The senders of the cuts stay: they tell a stop from here on, too.
        for line in &mut self.lines {
            line.chunks = None;
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

    /// Waits until the targets know where they begin. One that takes much longer than another goes on by itself.
    async fn gather(&mut self, mut readies: mpsc::Receiver<Ready>) -> Result<(), Over> {
        let mut deadline = None;
        loop {
            let ready = tokio::select! {
                biased;
                () = self.engine.stop.cancelled() => return Err(Over::Stop),
                ready = readies.recv() => ready,
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => None,
            };
            let Some(ready) = ready else { break };
            deadline.get_or_insert(Instant::now() + PATIENCE);
            if let Some(line) = self.lines.get_mut(ready.index) {
                line.ready = Some(ready);
            }
        }
        for line in self.lines.iter_mut().filter(|line| line.ready.is_none()) {
            line.end(Cut::SplitOff); // one that has ended does not hear it
        }
        Ok(())
    }

    async fn pump(&mut self) -> Over {
        let ready = || self.lines.iter().filter_map(|line| line.ready.as_ref());
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
        let slice_end = Instant::now() + engine.slice_time;
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
            if let Err(over) = self.offer(chunk, slice_end).await {
                return over;
            }
            if Instant::now() >= slice_end {
                return Over::End;
            }
        }
    }

    /// Gives `chunk` to all that need it, waiting for those whose queue is full.
    async fn offer(&mut self, chunk: Chunk, slice_end: Instant) -> Result<(), Over> {
        let mut patience = Instant::now() + PATIENCE;
        for index in 0..self.lines.len() {
            while let Some(queue) = self.queue_for(index, &chunk) {
                tokio::select! {
                    biased;
                    () = self.engine.stop.cancelled() => return Err(Over::Stop),
                    permit = queue.reserve() => {
                        match permit {
                            Ok(permit) => permit.send(chunk.clone()),
                            Err(_) => self.lines[index].chunks = None, // it has ended by itself
                        }
                        break;
                    }
                    () = sleep_until(slice_end), if self.sent > 0 => return Err(Over::End),
                    () = sleep_until(patience) => {
                        let others = self.lines.iter().enumerate();
                        if others.filter(|(other, _)| *other != index).any(|(_, line)| line.is_waiting()) {
                            self.lines[index].end(Cut::SplitOff);
                        }
                        patience = Instant::now() + PATIENCE;
                    }
                }
            }
        }
        if self.lines.iter().all(|line| line.chunks.is_none()) {
            return Err(Over::End);
        }
        self.sent += chunk.end() - chunk.offset;
        Ok(())
    }

    /// The queue of a target that needs `chunk`.
    fn queue_for(&self, index: usize, chunk: &Chunk) -> Option<mpsc::Sender<Chunk>> {
        let line = &self.lines[index];
        let needed = line.ready.as_ref().is_some_and(|ready| ready.offset < chunk.end());
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
