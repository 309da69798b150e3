//! A store that does what it is told to do wrong.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use shared::store::{
    Attested, BlobError, BlobErrorKind, BlobMeta, BlobName, BlobOp, BlobStat, BlobStore, Commit, Condition, Limits,
    PartTag, Parts, Space, Staged, Tag, WriterGuard,
};
use tokio::sync::watch;

use crate::pace::{Line, Pace};

/// What goes wrong with one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is refused, before anything happened.
    Fails(BlobOp, BlobErrorKind),
    /// It is done, but the answer is this error.
    AnswerLost(BlobOp, BlobErrorKind),
    /// A bit of what it gives back is wrong (read, read back).
    FlipsBit(BlobOp),
    /// It gives back less than was asked for, without an error.
    Shortens(BlobOp),
    /// Reads of more than these bytes are never answered.
    StallsBeyond(usize),
    /// The commit says that all went well, and nothing is there.
    CommitsNothing,
    /// The commit attests another checksum.
    AttestsAnother,
    /// The commit stores something else under the name.
    CommitsAnother,
}

impl Fault {
    fn concerns(self, operation: BlobOp) -> bool {
        match self {
            Self::Fails(of, _) | Self::AnswerLost(of, _) | Self::FlipsBit(of) | Self::Shortens(of) => of == operation,
            Self::StallsBeyond(_) => operation == BlobOp::Read,
            Self::CommitsNothing | Self::AttestsAnother | Self::CommitsAnother => operation == BlobOp::Commit,
        }
    }
}

/// A real store, its faults to come, and what was asked of it.
pub(crate) struct Faulty {
    inner: Arc<dyn BlobStore>,
    once: Mutex<VecDeque<Fault>>,
    always: Mutex<Option<Fault>>,
    gate: watch::Sender<Option<u64>>,
    at_gate: AtomicUsize,
    reading_back: watch::Sender<bool>,
    line: Line,
    pub(crate) read_bytes: AtomicU64,
    pub(crate) written_bytes: AtomicU64,
    pub(crate) commits: AtomicUsize,
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl Faulty {
    pub(crate) fn new(inner: Arc<dyn BlobStore>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            once: Mutex::default(),
            always: Mutex::default(),
            gate: watch::Sender::new(None),
            at_gate: AtomicUsize::new(0),
            reading_back: watch::Sender::new(true),
            line: Line::new(),
            read_bytes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            commits: AtomicUsize::new(0),
        })
    }

    /// The next call that `fault` concerns goes wrong.
    pub(crate) fn once(&self, fault: Fault) {
        self.once.lock().unwrap().push_back(fault);
    }

    /// All calls that `fault` concerns go wrong; `None` ends it.
    pub(crate) fn always(&self, fault: impl Into<Option<Fault>>) {
        *self.always.lock().unwrap() = fault.into();
    }

    /// Parts at and behind `offset` are not written before the gate is opened.
    pub(crate) fn close_gate(&self, offset: u64) {
        self.gate.send_replace(Some(offset));
    }

    pub(crate) fn open_gate(&self) {
        self.gate.send_replace(None);
    }

    /// Whether staged bytes are given back, or the caller waits until they are.
    pub(crate) fn allow_read_back(&self, allowed: bool) {
        self.reading_back.send_replace(allowed);
    }

    /// From now on it answers like this.
    pub(crate) fn pace(&self, pace: Pace) {
        self.line.set(pace);
    }

    /// A copy has come as far as the gate: it knows of everything before that as written.
    pub(crate) fn is_at_gate(&self) -> bool {
        self.at_gate.load(Ordering::Relaxed) > 0
    }

    /// All faults of the list that were planned have happened.
    pub(crate) fn is_through(&self) -> bool {
        self.once.lock().unwrap().is_empty()
    }

    async fn pass_gate(&self, offset: u64) {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let mut gate = self.gate.subscribe();
        if gate.borrow().is_some_and(|from| offset >= from) {
            self.at_gate.fetch_add(1, Ordering::Relaxed);
            let _waiting = Waiting(&self.at_gate);
            gate.wait_for(|from| from.is_none_or(|from| offset < from))
                .await
                .unwrap();
        }
    }

    fn fault(&self, operation: BlobOp) -> Option<Fault> {
        let mut once = self.once.lock().unwrap();
        let place = once.iter().position(|fault| fault.concerns(operation));
        place
            .and_then(|place| once.remove(place))
            .or_else(|| self.always.lock().unwrap().filter(|fault| fault.concerns(operation)))
    }

    fn error(operation: BlobOp, name: &BlobName, kind: BlobErrorKind) -> BlobError {
        BlobError {
            operation,
            container: "faulty".into(),
            name: name.to_string(),
            kind,
            retry_after: None,
            source: None,
        }
    }

    /// Fails if that is planned for `operation`; otherwise the fault that changes its answer.
    fn before(&self, operation: BlobOp, name: &BlobName) -> Result<Option<Fault>, BlobError> {
        match self.fault(operation) {
            Some(Fault::Fails(_, kind)) => Err(Self::error(operation, name, kind)),
            fault => Ok(fault),
        }
    }

    fn after<T>(answer: T, fault: Option<Fault>, operation: BlobOp, name: &BlobName) -> Result<T, BlobError> {
        match fault {
            Some(Fault::AnswerLost(_, kind)) => Err(Self::error(operation, name, kind)),
            _ => Ok(answer),
        }
    }
}

fn changed(bytes: Bytes, fault: Option<Fault>) -> Bytes {
    match fault {
        Some(Fault::FlipsBit(_)) if !bytes.is_empty() => {
            let mut wrong = bytes.to_vec();
            let middle = wrong.len() / 2;
            wrong[middle] ^= 1;
            wrong.into()
        }
        Some(Fault::Shortens(_)) => bytes.slice(..bytes.len() / 2),
        _ => bytes,
    }
}

#[async_trait]
impl BlobStore for Faulty {
    fn limits(&self) -> &Limits {
        self.inner.limits()
    }

    async fn check(&self) -> Result<(), BlobError> {
        self.line.pass(0).await;
        self.inner.check().await
    }

    async fn space(&self) -> Result<Option<Space>, BlobError> {
        self.inner.space().await
    }

    async fn stat(&self, name: &BlobName) -> Result<BlobStat, BlobError> {
        self.line.pass(0).await;
        self.before(BlobOp::Stat, name)?;
        self.inner.stat(name).await
    }

    async fn read(&self, name: &BlobName, range: Range<u64>, if_match: Option<&Tag>) -> Result<Bytes, BlobError> {
        self.line.pass(0).await;
        let fault = self.before(BlobOp::Read, name)?;
        if let Some(Fault::StallsBeyond(bytes)) = fault
            && range.end - range.start > bytes as u64
        {
            std::future::pending::<()>().await;
        }
        let bytes = self.inner.read(name, range, if_match).await?;
        self.read_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(changed(bytes, fault))
    }

    async fn list(&self, prefix: &str, after: Option<&BlobName>, limit: usize) -> Result<Vec<BlobName>, BlobError> {
        self.inner.list(prefix, after, limit).await
    }

    async fn delete(&self, name: &BlobName) -> Result<(), BlobError> {
        self.line.pass(0).await;
        self.inner.delete(name).await
    }

    async fn put(
        &self,
        name: &BlobName,
        body: Bytes,
        meta: BlobMeta,
        condition: Condition,
    ) -> Result<BlobStat, BlobError> {
        self.inner.put(name, body, meta, condition).await
    }

    async fn begin(&self, name: &BlobName, size_hint: Option<u64>) -> Result<Staged, BlobError> {
        self.line.pass(0).await;
        self.before(BlobOp::Begin, name)?;
        self.inner.begin(name, size_hint).await
    }

    async fn exclusive(&self, staged: &Staged) -> Result<WriterGuard, BlobError> {
        self.line.pass(0).await;
        self.inner.exclusive(staged).await
    }

    async fn write_part(&self, staged: &Staged, offset: u64, bytes: Bytes) -> Result<PartTag, BlobError> {
        self.line.pass(bytes.len()).await;
        self.pass_gate(offset).await;
        let fault = self.before(BlobOp::WritePart, &staged.name)?;
        self.written_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let tag = self.inner.write_part(staged, offset, bytes).await?;
        Self::after(tag, fault, BlobOp::WritePart, &staged.name)
    }

    async fn copy_part(
        &self,
        staged: &Staged,
        offset: u64,
        source: &BlobName,
        range: Range<u64>,
    ) -> Result<PartTag, BlobError> {
        self.inner.copy_part(staged, offset, source, range).await
    }

    async fn parts(&self, staged: &Staged) -> Result<Parts, BlobError> {
        self.line.pass(0).await;
        self.inner.parts(staged).await
    }

    async fn truncate(&self, staged: &Staged, size: u64) -> Result<(), BlobError> {
        self.line.pass(0).await;
        self.inner.truncate(staged, size).await
    }

    async fn sync(&self, staged: &Staged) -> Result<(), BlobError> {
        self.line.pass(0).await;
        self.before(BlobOp::Sync, &staged.name)?;
        self.inner.sync(staged).await
    }

    async fn read_staged(&self, staged: &Staged, range: Range<u64>) -> Result<Bytes, BlobError> {
        self.line.pass(usize::try_from(range.end - range.start).unwrap()).await;
        let mut reading_back = self.reading_back.subscribe();
        reading_back.wait_for(|allowed| *allowed).await.unwrap();
        let fault = self.before(BlobOp::ReadStaged, &staged.name)?;
        Ok(changed(self.inner.read_staged(staged, range).await?, fault))
    }

    async fn commit(&self, staged: &Staged, commit: Commit) -> Result<Attested, BlobError> {
        self.line.pass(0).await;
        let fault = self.before(BlobOp::Commit, &staged.name)?;
        let (size, crc, meta) = (commit.size, commit.crc, commit.meta.clone());
        if fault == Some(Fault::CommitsNothing) {
            let tag = self
                .inner
                .put(&staged.name, Bytes::new(), meta, Condition::None)
                .await?
                .tag;
            self.inner.delete(&staged.name).await?;
            let crc64 = Some(crc.value());
            return Ok(Attested { size, crc64, tag });
        }
        let mut attested = self.inner.commit(staged, commit).await?;
        self.commits.fetch_add(1, Ordering::Relaxed);
        match fault {
            Some(Fault::AttestsAnother) => attested.crc64 = Some(crc.value() ^ 1),
            Some(Fault::CommitsAnother) => {
                let wrong = Bytes::from_static(b"something else");
                self.inner.put(&staged.name, wrong, meta, Condition::None).await?;
            }
            _ => {}
        }
        Self::after(attested, fault, BlobOp::Commit, &staged.name)
    }

    async fn abort(&self, staged: &Staged) -> Result<(), BlobError> {
        self.line.pass(0).await;
        self.inner.abort(staged).await
    }
}
