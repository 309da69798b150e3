//! The writers of this process: who writes which upload, how far they are, and how a newcomer takes over.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use shared::upload::UploadId;
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use crate::uploads::Progress;

/// How long a sender may take from hearing an offset to going on there.
const TOLD_FOR: Duration = Duration::from_secs(60);

/// All uploads that somebody writes, or has just written.
#[derive(Debug, Default)]
pub(crate) struct Live {
    slots: Mutex<HashMap<UploadId, Arc<Slot>>>,
    told: Mutex<HashMap<UploadId, (u64, Instant)>>,
}

#[derive(Debug, Default)]
struct Slot {
    /// Held by the one writer.
    writer: Arc<tokio::sync::Mutex<()>>,
    /// Tells the present writer to stop.
    stop: Mutex<CancellationToken>,
    /// How far the bytes are, while there is a writer or its last checkpoint is not recorded yet.
    progress: Mutex<Option<Progress>>,
}

/// The present writer did not let go in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Busy;

impl Live {
    /// How far the upload is, if this process knows it better than the store: somebody is writing.
    pub(crate) fn acknowledged(&self, id: UploadId) -> Option<u64> {
        let slot = lock(&self.slots).get(&id).cloned()?;
        lock(&slot.progress).as_ref().map(Progress::acknowledged)
    }

    /// Whether a writer has the upload now.
    pub(crate) fn has_writer(&self, id: UploadId) -> bool {
        lock(&self.slots)
            .get(&id)
            .is_some_and(|slot| slot.writer.try_lock().is_err())
    }

    /// The same for an answer: what is told here is never taken back. `None`: the store says how far it is.
    ///
    /// While a writer is at it the offset goes on rising: a sender whose connection broke asks where to go on and is
    /// told, and the rest of what it had sent still comes in from the old connection. So the newest offset that was
    /// told is a place to go on at, beside the present one; see [`Writing::start`].
    pub(crate) fn tell(&self, id: UploadId) -> Option<u64> {
        let (mut told, now) = (lock(&self.told), Instant::now());
        told.retain(|_, (_, at)| now.duration_since(*at) < TOLD_FOR);
        let offset = self.acknowledged(id);
        match offset {
            Some(offset) if self.has_writer(id) => told.insert(id, (offset, now)),
            // Nothing more comes in: the present offset is the only one.
            _ => told.remove(&id),
        };
        offset
    }

    /// Whether `offset` is the last that was told, and told while a writer was at it.
    pub(crate) fn was_told(&self, id: UploadId, offset: u64) -> bool {
        lock(&self.told).get(&id).is_some_and(|(told, _)| *told == offset)
    }

    /// Becomes the upload's writer. The one before is told to stop, and its write in progress is waited for.
    /// Answers also whether there was one.
    pub(crate) async fn enter(self: &Arc<Self>, id: UploadId, wait: Duration) -> Result<(Writing, bool), Busy> {
        let place = self.place(id);
        if let Ok(guard) = place.slot.writer.clone().try_lock_owned() {
            return Ok((Writing::new(place, guard), false));
        }
        lock(&place.slot.stop).cancel();
        Ok((Writing::after(place, wait).await?, true))
    }

    /// Becomes the upload's writer when the one before has ended by itself.
    pub(crate) async fn wait_for_turn(self: &Arc<Self>, id: UploadId, wait: Duration) -> Result<Writing, Busy> {
        Writing::after(self.place(id), wait).await
    }

    fn place(self: &Arc<Self>, id: UploadId) -> Arc<Place> {
        let slot = lock(&self.slots).entry(id).or_default().clone();
        Arc::new(Place {
            live: self.clone(),
            id,
            slot,
        })
    }
}

/// The right to write one upload in this process, until it is dropped.
#[derive(Debug)]
pub(crate) struct Writing {
    // Fields are dropped in this order: the place is given up last, after the guard.
    _guard: OwnedMutexGuard<()>,
    stop: CancellationToken,
    place: Arc<Place>,
}

impl Writing {
    async fn after(place: Arc<Place>, wait: Duration) -> Result<Self, Busy> {
        let guard = tokio::time::timeout(wait, place.slot.writer.clone().lock_owned());
        let guard = guard.await.map_err(|_| Busy)?;
        Ok(Self::new(place, guard))
    }

    fn new(place: Arc<Place>, guard: OwnedMutexGuard<()>) -> Self {
        let stop = CancellationToken::new();
        *lock(&place.slot.stop) = stop.clone();
        Self {
            _guard: guard,
            stop,
            place,
        }
    }

    /// Cancelled when somebody takes over.
    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Begins at `offset` of an upload of which the store has `stored` bytes. Answers whether that is right: the
    /// present offset, or the one that was told last, of which nothing behind was told to anybody.
    pub(crate) fn start(&self, offset: u64, stored: u64, resume: impl FnOnce(Option<Progress>) -> Progress) -> bool {
        // Held throughout: nobody is told of bytes that are about to be dropped.
        let mut told = lock(&self.place.live.told);
        let was_told = told.get(&self.place.id).is_some_and(|(told, _)| *told == offset);
        let right = offset == stored || (offset < stored && was_told);
        if right {
            let mut progress = self.place.progress();
            *progress = Some(resume(progress.take()));
        } else {
            told.remove(&self.place.id);
        }
        right
    }

    /// The request's answer tells how far it got: that is never taken back.
    pub(crate) fn tell(&self) {
        lock(&self.place.live.told).remove(&self.place.id);
    }

    /// Where the progress is kept; whoever holds it does not keep other writers out.
    pub(crate) fn place(&self) -> &Arc<Place> {
        &self.place
    }
}

/// Keeps what is known of an upload's progress while anybody needs it.
#[derive(Debug)]
pub(crate) struct Place {
    live: Arc<Live>,
    id: UploadId,
    slot: Arc<Slot>,
}

impl Place {
    /// How far the bytes are. `None` until it was looked up.
    pub(crate) fn progress(&self) -> MutexGuard<'_, Option<Progress>> {
        lock(&self.slot.progress)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut slots = lock(&self.live.slots);
        // The map's and this one: nobody else can get one while the map is locked.
        if Arc::strong_count(&self.slot) == 2 {
            slots.remove(&self.id);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use shared::checksum::Crc64;

    use super::*;

    const WAIT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_newcomer_stops_the_writer_and_waits_for_it_and_nothing_is_left_behind() {
        let live = Arc::new(Live::default());
        let id = UploadId::random();
        let (first, took_over) = live.enter(id, WAIT).await.unwrap();
        assert!(!took_over && live.has_writer(id));
        assert_eq!(
            live.enter(id, WAIT).await.unwrap_err(),
            Busy,
            "the writer did not let go"
        );
        assert!(first.stop().is_cancelled());
        let second = tokio::spawn({
            let live = live.clone();
            async move { live.enter(id, Duration::from_secs(10)).await }
        });
        drop(first);
        let (second, _) = second.await.unwrap().unwrap();
        assert!(!second.stop().is_cancelled());
        assert_eq!(live.tell(id), None, "the store knows");
        drop(second);
        assert!(!live.has_writer(id));
    }

    #[tokio::test]
    async fn what_was_told_last_is_a_place_to_go_on_until_more_is_told() {
        let live = Arc::new(Live::default());
        let id = UploadId::random();
        let at = |offset| move |_| Progress::resume(Crc64::default(), offset);
        let (first, _) = live.enter(id, WAIT).await.unwrap();
        assert!(first.start(7, 7, at(7)));
        assert_eq!(live.tell(id), Some(7));
        drop(first);

        let (second, _) = live.enter(id, WAIT).await.unwrap();
        assert!(!second.start(6, 9, at(6)), "nobody was told of 6");
        drop(second);
        let (third, _) = live.enter(id, WAIT).await.unwrap();
        assert!(!third.start(7, 9, at(7)), "9 was told instead");
        assert!(third.start(9, 9, at(9)));
        assert_eq!(live.tell(id), Some(9));
        third.tell();
        drop(third);
        let (fourth, _) = live.enter(id, WAIT).await.unwrap();
        assert!(!fourth.start(9, 12, at(9)), "the third told more");
        assert!(live.told.lock().unwrap().is_empty());
    }
}
