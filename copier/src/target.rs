//! The target side of a copy: one delivery, from a look at the target to its recorded outcome. Each target goes its
//! own way: it takes the reader's ranges from a short queue and is recorded and reported by itself.
//! Spec: core.md §6, deliver.md §6.

use std::future::Future;
use std::sync::Arc;

use shared::checksum::Crc64;
use shared::failpoint::{self, Step};
use shared::failure::FailureClass;
use shared::report::{Issue, Level};
use shared::store::{BlobErrorKind, BlobStat, BlobStore, Limits};
use shared::telemetry::Chain;
use shared::upload::{CopyCheckpoint, UploadId};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Engine;
use crate::deadline::{CALL_LIMIT, PART_LIMIT, within};
use crate::failure::Failure;
use crate::outcome::{Lease, Unsettled};
use crate::pieces::Pieces;
use crate::reader::Chunk;
use crate::retry::Next;
use crate::staging::Staging;
use crate::transfer::READY;

/// What a target gets from the driver of its job.
#[derive(Debug)]
pub(crate) struct Feed {
    /// Which of the job's targets this is.
    pub(crate) index: usize,
    /// It is the only one.
    pub(crate) alone: bool,
    /// How far the target has come.
    pub(crate) tell: mpsc::Sender<Told>,
    /// The ranges; closed at the end of the source or of the slice.
    pub(crate) chunks: mpsc::Receiver<Chunk>,
    /// Ends the copy before that.
    pub(crate) cut: watch::Receiver<Option<Cut>>,
    /// From then on nothing more is begun in this slice, if something was done.
    pub(crate) slice_end: Instant,
}

/// What a target tells the driver of its job, each at most once.
#[derive(Debug)]
pub(crate) enum Told {
    /// It waits for a place at its target.
    Outside(usize),
    /// It has a place, and looks at its target.
    Entered(usize),
    /// It knows from where on it needs the source.
    Ready(Ready),
    /// It is done with, for this slice.
    Ended(usize),
}

/// A target is ready to be fed.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) index: usize,
    /// The first byte that it needs: the upload's length if that is none.
    pub(crate) offset: u64,
    pub(crate) limits: Limits,
}

/// Why a copy is ended although neither the source nor the slice is at its end.
#[derive(Clone, Debug)]
pub(crate) enum Cut {
    /// The worker stops.
    Stop,
    /// The other targets of the job wait for this one.
    SplitOff,
    /// The source cannot be read on.
    Source(Failure),
}

/// What is left to do for a delivery whose task has ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Nothing: its outcome is recorded and what follows is on the bus.
    Settled,
    /// It waits for the next slice, which the driver announces for all targets that go on together.
    Paused(Box<Lease>, CopyCheckpoint),
    /// Its message must come again.
    Again,
}

/// How a copy came to its end.
#[derive(Debug)]
enum Done {
    /// The object is in the target, verified; warnings about that, and how many bytes were written now.
    Whole(Vec<Issue>, u64),
    /// It was in the target before.
    AlreadyThere,
    /// The slice is over.
    SliceOver,
}

/// Why a copy did not come to its end.
#[derive(Debug)]
pub(crate) enum Stopped {
    Failed(Failure),
    Cut(Cut),
    /// Somebody else took the claim.
    Lost,
    Unsettled(Unsettled),
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Unsettled> for Stopped {
    fn from(unsettled: Unsettled) -> Self {
        Self::Unsettled(unsettled)
    }
}

/// One copy into one target.
pub(crate) struct Copy {
    pub(crate) engine: Arc<Engine>,
    pub(crate) lease: Lease,
    pub(crate) store: Arc<dyn BlobStore>,
    pub(crate) staging: Option<Staging>,
    pub(crate) pieces: Pieces,
    entered: Instant,
    cut: watch::Receiver<Option<Cut>>,
}

/// Delivers what `lease` holds. Dropped midway it leaves nothing visible, and a claim that ends with its beats.
pub(crate) async fn deliver(engine: Arc<Engine>, lease: Lease, feed: Feed) -> Ended {
    let (tell, index) = (feed.tell.clone(), feed.index);
    let ended = enter_and_copy(engine, lease, feed).await;
    tell.send(Told::Ended(index)).await.ok(); // a driver that is gone needs no word
    ended
}

async fn enter_and_copy(engine: Arc<Engine>, lease: Lease, mut feed: Feed) -> Ended {
    let target = lease.seen.to.target.clone();
    let mut cut = feed.cut.clone();
    let entered = match engine.targets.enter(&target) {
        Some(place) => Ok(Some(place)),
        // It would keep a place of the worker for nothing.
        None if feed.alone => Ok(None),
        None => {
            feed.tell.send(Told::Outside(feed.index)).await.ok(); // without a driver the copy is cut, as seen below
            unless(&mut cut, &lease.lost, engine.targets.wait_to_enter(&target)).await
        }
    };
    let place = match entered {
        Ok(Some(place)) => place,
        Ok(None) | Err(Stopped::Cut(Cut::SplitOff)) => {
            let policy = &engine.outcomes.policy;
            let turn = engine.targets.turn(&target, policy.shortest(), policy.longest());
            return settled(&lease, engine.outcomes.split_off(&lease, None, Some(turn)).await);
        }
        Err(_) => return Ended::Again,
    };
    let in_flight = engine.metrics.copies_in_flight.with_label_values(&[&target]);
    in_flight.inc();
    let entered = Instant::now();
    feed.tell.send(Told::Entered(feed.index)).await.ok(); // as above
    let ended = match engine.targets.store(&target).await {
        Ok(store) => {
            let mut copy = Copy {
                engine,
                lease,
                store,
                staging: None,
                pieces: Pieces::default(),
                entered,
                cut,
            };
            let stopped = copy.run(&mut feed).await;
            copy.end(stopped).await
        }
        Err(failure) => {
            let next = engine.outcomes.next(&lease, &failure);
            let kept = lease.seen.checkpoint.clone();
            settled(&lease, engine.outcomes.failed(&lease, &failure, next, kept).await)
        }
    };
    in_flight.dec();
    drop(place);
    ended
}

impl Copy {
    async fn run(&mut self, feed: &mut Feed) -> Result<Done, Stopped> {
        let existing = self.unless_cut(self.look()).await??;
        if !self.lease.force && self.unless_cut(self.is_there(existing.as_ref())).await?? {
            let skipped = &self.engine.metrics.copy_skipped;
            skipped.with_label_values(&["already-there"]).inc();
            return Ok(Done::AlreadyThere);
        }
        let warnings = existing.map(|stat| replaces(&stat, self.lease.upload.id));
        let resumed = self.stage().await?;
        if resumed {
            self.resume().await?;
        }
        match self.fill(feed).await {
            Ok(Some(written)) => {
                self.finish().await?;
                Ok(Done::Whole(warnings.into_iter().collect(), written))
            }
            Ok(None) => Ok(Done::SliceOver),
            Err(stopped) => Err(stopped),
        }
    }

    /// Writes what the reader brings. Answers how many bytes that were if the copy is complete then, `None` if the
    /// slice is over.
    async fn fill(&mut self, feed: &mut Feed) -> Result<Option<u64>, Stopped> {
        let size = self.lease.upload.size;
        let begun = self.copied().covered();
        let at = Ready {
            index: feed.index,
            offset: begun,
            limits: self.store.limits().clone(),
        };
        if self.entered.elapsed() < READY {
            let target = self.lease.seen.to.target.as_str();
            self.engine.targets.note_prompt(target, true);
        }
        feed.tell.send(Told::Ready(at)).await.ok(); // as above
        // An empty file needs the source too: nobody has seen yet that it is there.
        while size == 0 || self.copied().covered() < size {
            // What waits in the queue of a slow target would hold up the next slice.
            if self.copied().covered() > begun && Instant::now() >= feed.slice_end {
                break;
            }
            let Some(chunk) = self.unless_cut(feed.chunks.recv()).await? else {
                break;
            };
            if let Some(chunk) = chunk.from(self.copied().covered()) {
                self.write(chunk, feed.slice_end).await?;
            }
        }
        // The driver need not wait for this target any more.
        feed.chunks.close();
        // A source that is cut closes the queue, too.
        self.unless_cut(std::future::ready(())).await?;
        let copied = self.copied().covered();
        Ok((copied == size).then_some(copied - begun))
    }

    /// Writes `chunk`, or as much of it as the slice lasts for.
    async fn write(&mut self, chunk: Chunk, slice_end: Instant) -> Result<(), Stopped> {
        let mut left = Some(chunk);
        while let Some(chunk) = left {
            let (piece, rest) = chunk.split(self.pieces.len(self.store.limits().slots));
            let begun = Instant::now();
            self.write_piece(piece).await?;
            self.pieces.note(begun.elapsed());
            self.checkpoint_if_due().await?;
            left = rest.filter(|_| Instant::now() < slice_end);
        }
        // Not in what was timed: a test's delay is no slowness of the target.
        Ok(failpoint::reached(Step::CopyPartWritten).await.map_err(Failure::from)?)
    }

    async fn write_piece(&mut self, piece: Chunk) -> Result<(), Stopped> {
        let Some(staging) = &mut self.staging else {
            return Ok(());
        };
        let part = self
            .store
            .write_part(&staging.staged, piece.offset, piece.bytes.clone());
        let write = within(PART_LIMIT, "write part", part, Failure::of_target);
        let part = unless(&mut self.cut, &self.lease.lost, write).await??;
        staging.copied = staging.copied.then(piece.crc);
        // Where parts have no mark of their own there is nothing to remember of them.
        if !part.tag.is_empty() {
            staging.tags.push(part);
        }
        let target = self.lease.seen.to.target.as_str();
        let bytes = &self.engine.metrics.copy_bytes;
        bytes.with_label_values(&[target]).inc_by(piece.end() - piece.offset);
        Ok(())
    }

    fn copied(&self) -> Crc64 {
        self.staging.as_ref().map(|staging| staging.copied).unwrap_or_default()
    }

    /// What stands under the object's name now.
    pub(crate) async fn look(&self) -> Result<Option<BlobStat>, Failure> {
        let look = async {
            match self.store.stat(&self.lease.seen.to.object).await {
                Ok(stat) => Ok(Some(stat)),
                Err(error) if error.kind == BlobErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        };
        within(CALL_LIMIT, "look", look, Failure::of_target).await
    }

    /// Whether `stat` says that it is this upload's copy, whole.
    pub(crate) fn is_ours(&self, stat: &BlobStat) -> bool {
        let upload = &self.lease.upload;
        stat.size == upload.size && stat.identity.as_ref() == Some(&upload.identity())
    }

    /// `call`, unless this copy is to end before it does.
    pub(crate) async fn unless_cut<T>(&self, call: impl Future<Output = T>) -> Result<T, Stopped> {
        unless(&mut self.cut.clone(), &self.lease.lost, call).await
    }

    async fn end(mut self, ended: Result<Done, Stopped>) -> Ended {
        let engine = self.engine.clone();
        let outcomes = &engine.outcomes;
        match ended {
            Ok(Done::Whole(warnings, written)) => settled(
                &self.lease,
                outcomes.succeeded(&self.lease, warnings, Some(written)).await,
            ),
            Ok(Done::AlreadyThere) => settled(&self.lease, outcomes.succeeded(&self.lease, Vec::new(), None).await),
            Ok(Done::SliceOver) | Err(Stopped::Cut(Cut::Stop)) if self.lease.claimed => match self.synced().await {
                Ok(checkpoint) => Ended::Paused(Box::new(self.lease), checkpoint),
                Err(failure) => self.fail(failure).await,
            },
            Ok(Done::SliceOver) | Err(Stopped::Lost | Stopped::Cut(Cut::Stop)) => Ended::Again,
            Err(Stopped::Cut(Cut::SplitOff)) => {
                let checkpoint = match self.staging {
                    Some(_) => match self.synced().await {
                        Ok(checkpoint) => Some(checkpoint),
                        Err(failure) => return self.fail(failure).await,
                    },
                    None => None,
                };
                settled(&self.lease, outcomes.split_off(&self.lease, checkpoint, None).await)
            }
            Err(Stopped::Failed(failure) | Stopped::Cut(Cut::Source(failure))) => self.fail(failure).await,
            Err(Stopped::Unsettled(unsettled)) => settled(&self.lease, Err(unsettled)),
        }
    }

    async fn fail(self, failure: Failure) -> Ended {
        let engine = self.engine.clone();
        let outcomes = &engine.outcomes;
        // An earlier commit may have succeeded without an answer; then the staging is gone because the copy is there.
        if failure.staging_spoiled
            && failure.class == FailureClass::Transient
            && let Ok(existing) = self.look().await
            && let Ok(true) = self.is_there(existing.as_ref()).await
        {
            return settled(&self.lease, outcomes.succeeded(&self.lease, Vec::new(), Some(0)).await);
        }
        let next = outcomes.next(&self.lease, &failure);
        let recorded = match &self.staging {
            Some(staging) => Some(staging.checkpoint()),
            None => self.lease.seen.checkpoint.clone(),
        };
        let goes_on = !failure.staging_spoiled && matches!(next, Next::Again { .. } | Next::Park { .. });
        let (kept, dropped) = recorded
            .into_iter()
            .partition::<Vec<_>, _>(|checkpoint| goes_on && checkpoint.copied.covered() > 0);
        // Before the record forgets it: afterwards it would have no owner.
        for checkpoint in dropped {
            self.abort(&checkpoint.staged).await;
        }
        let failed = outcomes.failed(&self.lease, &failure, next, kept.into_iter().next());
        settled(&self.lease, failed.await)
    }
}

/// `call`, unless the copy is cut or its claim is lost before. A `call` that is dropped may have happened or not.
async fn unless<T>(
    cut: &mut watch::Receiver<Option<Cut>>,
    lost: &CancellationToken,
    call: impl Future<Output = T>,
) -> Result<T, Stopped> {
    tokio::select! {
        biased;
        cut = cut.wait_for(Option::is_some) => {
            // Without a driver nobody would go on with this copy.
            let cut = cut.ok().and_then(|cut| cut.clone());
            Err(Stopped::Cut(cut.unwrap_or(Cut::Stop)))
        }
        () = lost.cancelled() => Err(Stopped::Lost),
        answer = call => Ok(answer),
    }
}

fn settled(lease: &Lease, outcome: Result<(), Unsettled>) -> Ended {
    match outcome {
        Ok(()) => Ended::Settled,
        Err(unsettled) => {
            tracing::warn!(
                upload_id = %lease.upload.id, target = lease.seen.to.target,
                error = %Chain(&unsettled), "the delivery is not settled, its message comes again"
            );
            Ended::Again
        }
    }
}

/// The warning that an object is replaced. Spec: deliver.md §6.
fn replaces(stat: &BlobStat, by: UploadId) -> Issue {
    let what = match &stat.identity {
        Some(identity) if identity.upload_id == by => "an older copy of this upload".to_owned(),
        Some(identity) => format!("the copy of upload {}", identity.upload_id),
        None => "an object that Ferry did not write".to_owned(),
    };
    Issue {
        level: Level::Warning,
        message: format!("replaced {what} ({} bytes, of {})", stat.size, stat.modified),
    }
}
