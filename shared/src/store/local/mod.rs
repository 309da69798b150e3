//! A folder of this machine as a store. Not for network file systems (core.md §5).
//!
//! ```text
//!   BASE/<name>              the blobs
//!   BASE/.ferry/staged/<id>  unfinished data
//!   BASE/.ferry/stripes/<hh> locks that stand for names
//!   BASE/.ferry/meta/<tag>   identities, where the file system has no extended attributes
//! ```
//!
//! All work on files is done by the blocking methods of [`Folder`], off the async threads.

mod base;
mod buffer;
mod commit;
mod failure;
mod identity;
mod list;
mod staging;
mod writers;

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use bytes::Bytes;
use cap_std::fs::OpenOptions;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use self::base::Base;
use self::failure::Failed;
use self::writers::{Place, Writers};
use super::{
    Attested, BlobError, BlobErrorKind, BlobMeta, BlobName, BlobOp, BlobStat, BlobStore, Commit, Condition, Limits,
    PartTag, Parts, ReadBack, Slots, Space, Staged, Tag, WriterGuard,
};

const LIMITS: Limits = Limits {
    slots: Slots::Free { preferred: 1024 * 1024 },
    ordered: true,
    read_back: ReadBack::BeforeCommit,
};

/// A folder of this machine.
///
/// Every path is opened beneath it by the kernel, so that no name and no symbolic link leads out of it. A base
/// folder that is removed, replaced or lost with its mount is `NoContainer` until the same folder is back, or another
/// one that may take its place; nothing is made in what stands there meanwhile.
#[derive(Debug)]
pub struct LocalStore {
    folder: RwLock<Arc<Folder>>,
    /// Whether another folder may take its place.
    replaceable: bool,
}

/// What `commit` and `put` sync before they answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syncing {
    /// Nothing: the kernel writes when it likes (`DURABILITY=none`).
    Never,
    /// The file before the rename, the folder after it.
    AtCommit,
}

/// The opened folder, with the blocking work on it.
#[derive(Debug)]
struct Folder {
    base: Base,
    syncing: Syncing,
    /// Whether files can carry their identity themselves.
    attributes: bool,
    writers: Writers,
}

impl LocalStore {
    /// Opens the folder `path`; with `create` it is made if it is missing, and so is what Ferry keeps in it.
    ///
    /// # Errors
    /// `NoContainer` if it is missing or no folder; `Denied`.
    pub fn open(path: &Path, syncing: Syncing, create: bool) -> Result<Self, BlobError> {
        match Folder::open(path, syncing, create) {
            Ok(folder) => Ok(Self {
                folder: RwLock::new(Arc::new(folder)),
                replaceable: false,
            }),
            Err(failed) => Err(failed.into_error(BlobOp::Open, path, String::new())),
        }
    }

    /// The same store, going on in a folder that was made in place of a removed one, or mounted there. For targets:
    /// what was delivered before is gone with the old folder. Uploads have their bytes only in the one they began in.
    #[must_use]
    pub fn replaceable(mut self) -> Self {
        self.replaceable = true;
        self
    }

    fn folder(&self) -> Arc<Folder> {
        self.folder.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does blocking `work` on a thread for it. When the future is dropped, work that has not begun never will, and
    /// work that has is told by its token: from then on it makes nothing visible.
    async fn run<T: Send + 'static>(
        &self,
        operation: BlobOp,
        name: &str,
        work: impl FnOnce(&Folder, &CancellationToken) -> Result<T, Failed> + Send + 'static,
    ) -> Result<T, BlobError> {
        self.run_in(self.folder(), operation, name, work).await
    }

    /// The same in this folder, which the caller goes on with.
    async fn run_in<T: Send + 'static>(
        &self,
        folder: Arc<Folder>,
        operation: BlobOp,
        name: &str,
        work: impl FnOnce(&Folder, &CancellationToken) -> Result<T, Failed> + Send + 'static,
    ) -> Result<T, BlobError> {
        let gone = CancellationToken::new();
        let _dropped = gone.clone().drop_guard(); // with this future
        let (held, replaceable) = (folder.clone(), self.replaceable);
        let done = tokio::task::spawn_blocking(move || {
            held.explained(&gone, work).map_err(|failed| {
                let lost = replaceable && failed.kind == BlobErrorKind::NoContainer;
                (failed, lost.then(|| held.successor().ok().map(Arc::new)).flatten())
            })
        });
        let failed = match done.await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err((failed, successor))) => {
                if let Some(successor) = successor {
                    tracing::info!(folder = %folder.base.path().display(), "going on in the folder that is there now");
                    *self.folder.write().unwrap_or_else(PoisonError::into_inner) = successor;
                }
                failed
            }
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_stopping) => BlobErrorKind::Unavailable.into(), // the runtime is being shut down
            },
        };
        Err(failed.into_error(operation, folder.base.path(), name.to_owned()))
    }
}

impl Failed {
    fn into_error(self, operation: BlobOp, container: &Path, name: String) -> BlobError {
        BlobError {
            operation,
            container: container.display().to_string(),
            name,
            kind: self.kind,
            retry_after: None,
            source: self.source.map(Into::into),
        }
    }
}

impl Folder {
    fn open(path: &Path, syncing: Syncing, create: bool) -> Result<Self, Failed> {
        Self::within(Base::open(path, create, syncing == Syncing::AtCommit)?, syncing, create)
    }

    /// What stands in its place now, if that may be used.
    fn successor(&self) -> Result<Self, Failed> {
        Self::within(self.base.successor()?, self.syncing, false)
    }

    fn within(base: Base, syncing: Syncing, create: bool) -> Result<Self, Failed> {
        let attributes = identity::has_attributes(&base.descriptor()?)?;
        if create {
            base.own_folder(staging::STAGED)?;
        }
        Ok(Self {
            base,
            syncing,
            attributes,
            writers: Writers::default(),
        })
    }

    /// Does `work`, unless the caller has `gone`: a write that waited for a thread would land on those of the next
    /// caller. What it does not find may be missing because the whole container is: then that is the error.
    fn explained<T>(
        &self,
        gone: &CancellationToken,
        work: impl FnOnce(&Self, &CancellationToken) -> Result<T, Failed>,
    ) -> Result<T, Failed> {
        if gone.is_cancelled() {
            return Err(BlobErrorKind::Unavailable.into()); // heard by nobody
        }
        let done = work(self, gone);
        if let Err(Failed {
            kind: BlobErrorKind::NotFound | BlobErrorKind::StagingLost,
            ..
        }) = &done
        {
            self.base.present()?;
        }
        done
    }

    /// Makes and removes a file, where new uploads would make theirs.
    fn check(&self) -> Result<(), Failed> {
        self.base.present()?;
        let (id, _) = self.new_staged_file()?;
        self.abort(&id)
    }

    fn space(&self) -> Result<Option<Space>, Failed> {
        self.base.present()?;
        let found = self.base.file_system()?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        // File systems without a size of their own say 0.
        Ok((found.f_blocks > 0).then(|| Space {
            total: bytes(found.f_blocks),
            free: bytes(found.f_bavail),
        }))
    }

    fn stat(&self, name: &BlobName) -> Result<BlobStat, Failed> {
        self.describe(&self.base.file(name.as_str(), OpenOptions::new().read(true))?)
    }

    fn read(&self, name: &BlobName, range: &Range<u64>, if_match: Option<&Tag>) -> Result<Bytes, Failed> {
        let file = self.base.file(name.as_str(), OpenOptions::new().read(true))?;
        unchanged(&file, if_match)?;
        let bytes = staging::read_range(&file, range)?;
        unchanged(&file, if_match)?; // nor was it written to meanwhile
        Ok(bytes)
    }
}

fn unchanged(file: &File, if_match: Option<&Tag>) -> Result<(), Failed> {
    match if_match {
        Some(wanted) if identity::tag(file)? != *wanted => Err(BlobErrorKind::ConditionFailed.into()),
        _ => Ok(()),
    }
}

#[async_trait]
impl BlobStore for LocalStore {
    fn limits(&self) -> &Limits {
        &LIMITS
    }

    async fn check(&self) -> Result<(), BlobError> {
        self.run(BlobOp::Check, "", |folder, _| folder.check()).await
    }

    async fn space(&self) -> Result<Option<Space>, BlobError> {
        self.run(BlobOp::Check, "", |folder, _| folder.space()).await
    }

    async fn stat(&self, name: &BlobName) -> Result<BlobStat, BlobError> {
        let blob = name.clone();
        self.run(BlobOp::Stat, name.as_str(), move |folder, _| folder.stat(&blob))
            .await
    }

    async fn read(&self, name: &BlobName, range: Range<u64>, if_match: Option<&Tag>) -> Result<Bytes, BlobError> {
        let (blob, tag) = (name.clone(), if_match.cloned());
        self.run(BlobOp::Read, name.as_str(), move |folder, _| {
            folder.read(&blob, &range, tag.as_ref())
        })
        .await
    }

    async fn list(&self, prefix: &str, after: Option<&BlobName>, limit: usize) -> Result<Vec<BlobName>, BlobError> {
        let (wanted, after) = (prefix.to_owned(), after.cloned());
        self.run(BlobOp::List, prefix, move |folder, _| {
            folder.list(&wanted, after.as_ref(), limit)
        })
        .await
    }

    async fn delete(&self, name: &BlobName) -> Result<(), BlobError> {
        let blob = name.clone();
        self.run(BlobOp::Delete, name.as_str(), move |folder, _| folder.delete(&blob))
            .await
    }

    async fn put(
        &self,
        name: &BlobName,
        body: Bytes,
        meta: BlobMeta,
        condition: Condition,
    ) -> Result<BlobStat, BlobError> {
        let blob = name.clone();
        let work = move |folder: &Folder, gone: &CancellationToken| folder.put(&blob, &body, &meta, &condition, gone);
        self.run(BlobOp::Put, name.as_str(), work).await
    }

    async fn begin(&self, name: &BlobName, _size_hint: Option<u64>) -> Result<Staged, BlobError> {
        let blob = name.clone();
        self.run(BlobOp::Begin, name.as_str(), move |folder, _| folder.begin(blob))
            .await
    }

    async fn exclusive(&self, staged: &Staged) -> Result<WriterGuard, BlobError> {
        let (folder, id) = (self.folder(), staged.id.clone());
        let held = folder.clone();
        self.run_in(folder, BlobOp::Exclusive, staged.name.as_str(), move |folder, _| {
            folder.lock_staged(&id)?;
            // Made here, so that it is given back also if nobody waits for it any more.
            Ok(WriterGuard::holding(Place { folder: held, id }))
        })
        .await
    }

    async fn write_part(&self, staged: &Staged, offset: u64, bytes: Bytes) -> Result<PartTag, BlobError> {
        let id = staged.id.clone();
        let work = move |folder: &Folder, _: &CancellationToken| folder.write_part(&id, offset, &bytes);
        self.run(BlobOp::WritePart, staged.name.as_str(), work).await
    }

    async fn copy_part(
        &self,
        staged: &Staged,
        offset: u64,
        source: &BlobName,
        range: Range<u64>,
    ) -> Result<PartTag, BlobError> {
        let (id, source) = (staged.id.clone(), source.clone());
        let work = move |folder: &Folder, _: &CancellationToken| folder.copy_part(&id, offset, &source, range);
        self.run(BlobOp::CopyPart, staged.name.as_str(), work).await
    }

    async fn parts(&self, staged: &Staged) -> Result<Parts, BlobError> {
        let id = staged.id.clone();
        self.run(BlobOp::Parts, staged.name.as_str(), move |folder, _| folder.parts(&id))
            .await
    }

    async fn truncate(&self, staged: &Staged, size: u64) -> Result<(), BlobError> {
        let id = staged.id.clone();
        self.run(BlobOp::Truncate, staged.name.as_str(), move |folder, _| {
            folder.truncate(&id, size)
        })
        .await
    }

    async fn sync(&self, staged: &Staged) -> Result<(), BlobError> {
        let id = staged.id.clone();
        self.run(BlobOp::Sync, staged.name.as_str(), move |folder, _| {
            folder.sync_staged(&id)
        })
        .await
    }

    async fn read_staged(&self, staged: &Staged, range: Range<u64>) -> Result<Bytes, BlobError> {
        let id = staged.id.clone();
        let work = move |folder: &Folder, _: &CancellationToken| {
            let file = folder.staged_to_read(&id)?;
            staging::read_range(&file, &range)
        };
        self.run(BlobOp::ReadStaged, staged.name.as_str(), work).await
    }

    async fn commit(&self, staged: &Staged, commit: Commit) -> Result<Attested, BlobError> {
        let blob = staged.clone();
        let work = move |folder: &Folder, gone: &CancellationToken| folder.commit(&blob, &commit, gone);
        self.run(BlobOp::Commit, staged.name.as_str(), work).await
    }

    async fn persist(&self, name: &BlobName) -> Result<(), BlobError> {
        let blob = name.clone();
        self.run(BlobOp::Persist, name.as_str(), move |folder, _| folder.persist(&blob))
            .await
    }

    async fn idle_stagings(&self, since: Timestamp, limit: usize) -> Result<Vec<(Staged, Timestamp)>, BlobError> {
        let work = move |folder: &Folder, _: &CancellationToken| folder.idle_stagings(since, limit);
        self.run(BlobOp::List, staging::STAGED, work).await
    }

    async fn abort(&self, staged: &Staged) -> Result<(), BlobError> {
        let id = staged.id.clone();
        self.run(BlobOp::Abort, staged.name.as_str(), move |folder, _| folder.abort(&id))
            .await
    }
}

#[cfg(test)]
mod tests;
