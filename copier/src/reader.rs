//! The source side of a copy: read once, in ranges, a few ahead, each with its checksum.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use shared::checksum::Crc64;
use shared::failpoint::{self, Step};
use shared::failure::FailureClass;
use shared::manifest::Manifest;
use shared::store::{BlobName, BlobStore, Identity, Limits, Tag};
use shared::telemetry::Metrics;
use shared::upload::UploadId;
use tokio_util::task::AbortOnDropHandle;

use crate::budget::{Budget, Share};
use crate::deadline::{CALL_LIMIT, within};
use crate::failure::Failure;

/// Ranges that are read ahead of the one that is wanted.
const AHEAD: usize = 3;
/// Pauses before a range that could not be read is asked for again, within the same try of the copy.
const READ_AGAIN: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(2)];
/// What could not be read in time is asked for again in pieces of this part of it, ...
const SMALLER: u64 = 8;
/// ... but not of less than these bytes.
const LEAST: u64 = 4 * 1024;
/// From here on a checksum is computed off the async threads.
const LARGE: usize = 64 * 1024;

/// A finished upload, as far as a copy needs to know it.
#[derive(Clone, Debug)]
pub(crate) struct Upload {
    pub(crate) id: UploadId,
    /// Length in bytes.
    pub(crate) size: u64,
    /// Checksum of the bytes as received.
    pub(crate) crc: Crc64,
    pub(crate) manifest: Manifest,
    pub(crate) completed_at: jiff::Timestamp,
}

impl Upload {
    /// What a target says of an object that is this upload's copy.
    pub(crate) fn identity(&self) -> Identity {
        Identity {
            upload_id: self.id,
            crc64nvme: self.crc,
        }
    }
}

/// Some bytes of the source on their way to the targets; cloned, not copied.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    pub(crate) offset: u64,
    pub(crate) bytes: Bytes,
    pub(crate) crc: Crc64,
    // Goes back to the budget when the last target has dropped the bytes.
    _share: Arc<Share>,
}

impl Chunk {
    pub(crate) fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }

    /// What of it lies at and behind `offset`; `None` if nothing does. Targets resume where they were, so this cuts
    /// few chunks of a slice.
    pub(crate) fn from(mut self, offset: u64) -> Option<Self> {
        let skipped = usize::try_from(offset.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        if skipped >= self.bytes.len() {
            return None;
        }
        if skipped > 0 {
            self.bytes = self.bytes.slice(skipped..);
            self.crc = Crc64::of(&self.bytes);
            self.offset = offset;
        }
        Some(self)
    }

    /// The first `len` bytes of it, and what is left.
    pub(crate) fn split(self, len: usize) -> (Self, Option<Self>) {
        if len >= self.bytes.len() {
            return (self, None);
        }
        let bytes = self.bytes.slice(..len);
        let first = Self {
            offset: self.offset,
            crc: Crc64::of(&bytes),
            bytes,
            _share: self._share.clone(),
        };
        let end = first.end();
        (first, self.from(end))
    }
}

/// The raw object as it was when this copy began.
#[derive(Debug)]
pub(crate) struct Source {
    store: Arc<dyn BlobStore>,
    name: BlobName,
    size: u64,
    tag: Tag,
}

impl Source {
    /// Looks at the raw object of `upload`. One of another size is never copied: a record does not overrule a file.
    pub(crate) async fn open(store: Arc<dyn BlobStore>, upload: &Upload) -> Result<Self, Failure> {
        let name = upload.id.blob_name();
        let stat = within(
            CALL_LIMIT,
            "look at the source file",
            store.stat(&name),
            Failure::of_source,
        )
        .await?;
        if stat.size != upload.size {
            return Err(Failure::new(
                FailureClass::Source,
                format!("source file has {} bytes instead of {}", stat.size, upload.size),
            ));
        }
        Ok(Self {
            store,
            name,
            size: stat.size,
            tag: stat.tag,
        })
    }

    /// The bytes of `range`, of the content that was there when the copy began. A source that needs too long for all
    /// of them is asked for less at once: only one that brings next to nothing is silent.
    async fn read(&self, range: Range<u64>, metrics: &Metrics) -> Result<Bytes, Failure> {
        let mut whole = BytesMut::new();
        let mut piece = range.clone();
        let mut pauses = READ_AGAIN.iter();
        loop {
            let failure = match self.read_once(&piece).await {
                Ok(bytes) if piece == range => return Ok(bytes),
                Ok(bytes) => {
                    whole.extend_from_slice(&bytes);
                    if piece.end == range.end {
                        return Ok(whole.freeze());
                    }
                    piece = piece.end..range.end.min(piece.end + bytes.len() as u64);
                    pauses = READ_AGAIN.iter();
                    continue;
                }
                Err(failure) => failure,
            };
            let again = matches!(failure.class, FailureClass::Transient | FailureClass::Source) && !failure.source_gone;
            match pauses.next() {
                Some(pause) if again => {
                    let class = failure.class.as_str();
                    metrics.copy_retries.with_label_values(&[class]).inc();
                    tracing::warn!(upload_id = %self.name, offset = piece.start, error = failure.detail, "read again");
                    if failure.class == FailureClass::Transient {
                        piece.end = piece
                            .end
                            .min(piece.start + ((piece.end - piece.start) / SMALLER).max(LEAST));
                    }
                    tokio::time::sleep(failure.retry_after.unwrap_or(*pause).min(READ_AGAIN[1])).await;
                }
                _ => return Err(failure),
            }
        }
    }

    async fn read_once(&self, range: &Range<u64>) -> Result<Bytes, Failure> {
        let read = self.store.read(&self.name, range.clone(), Some(&self.tag));
        match within(CALL_LIMIT, "read the source file", read, Failure::of_source).await {
            Ok(bytes) if bytes.len() as u64 == range.end - range.start => Ok(bytes),
            // The store promises all or an error; a copy that trusted a short answer would be a short copy.
            Ok(_) => Err(Failure::new(FailureClass::Source, "the source file ends too early")),
            Err(failure) => Err(failure),
        }
    }
}

/// Reads a source from one offset to another.
pub(crate) struct Reader {
    source: Arc<Source>,
    limits: Limits,
    budget: Budget,
    metrics: Arc<Metrics>,
    next: u64,
    end: u64,
    ahead: VecDeque<AbortOnDropHandle<Result<Chunk, Failure>>>,
}

impl Reader {
    /// Reads about `most` bytes of `source` from `offset` on, in ranges that are parts by `limits`, and not less than
    /// one of them. Nothing behind that is read ahead: the next slice may be another worker's.
    pub(crate) fn new(
        source: Source,
        limits: Limits,
        offset: u64,
        most: u64,
        budget: Budget,
        metrics: Arc<Metrics>,
    ) -> Self {
        let last = offset.saturating_add(most.max(1) - 1);
        let end = limits
            .slot(last.min(source.size.saturating_sub(1)), Some(source.size))
            .end;
        Self {
            source: Arc::new(source),
            limits,
            budget,
            metrics,
            next: offset,
            end,
            ahead: VecDeque::with_capacity(AHEAD + 1),
        }
    }

    /// The next range; `None` at the end. May be dropped at any time, nothing is lost by it.
    pub(crate) async fn next(&mut self) -> Option<Result<Chunk, Failure>> {
        if self.ahead.is_empty() {
            let range = self.range()?;
            let share = self.budget.take(range.end - range.start).await;
            self.read(range, share);
        }
        // Only the range that is wanted next waits for memory. Reading ahead takes what is free, so that no copy
        // holds memory for later while another one waits for its next range.
        while self.ahead.len() <= AHEAD
            && let Some(range) = self.range()
            && let Some(share) = self.budget.try_take(range.end - range.start)
        {
            self.read(range, share);
        }
        let read = self.ahead.front_mut()?.await;
        self.ahead.pop_front();
        Some(read.unwrap_or_else(|error| Err(Failure::new(FailureClass::Transient, format!("read: {error}")))))
    }

    fn range(&self) -> Option<Range<u64>> {
        let slot = || self.limits.slot(self.next, Some(self.source.size));
        (self.next < self.end).then(|| self.next..slot().end)
    }

    fn read(&mut self, range: Range<u64>, share: Share) {
        self.next = range.end;
        let (source, metrics) = (self.source.clone(), self.metrics.clone());
        self.ahead.push_back(AbortOnDropHandle::new(tokio::spawn(async move {
            let offset = range.start;
            let bytes = source.read(range, &metrics).await?;
            failpoint::reached(Step::CopyRead).await?;
            let crc = checksum(&bytes).await?;
            Ok(Chunk {
                offset,
                bytes,
                crc,
                _share: Arc::new(share),
            })
        })));
    }
}

/// The checksum of `bytes`; large ones are hashed where they hold up no other task.
pub(crate) async fn checksum(bytes: &Bytes) -> Result<Crc64, Failure> {
    if bytes.len() < LARGE {
        return Ok(Crc64::of(bytes));
    }
    let bytes = bytes.clone();
    tokio::task::spawn_blocking(move || Crc64::of(&bytes))
        .await
        .map_err(|error| Failure::new(FailureClass::Transient, format!("checksum: {error}")))
}
