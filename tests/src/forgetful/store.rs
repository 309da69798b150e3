//! A container of the machine as a store: what a folder store does, step by step.

use std::ops::Range;
use std::sync::MutexGuard;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use shared::store::{
    Attested, BlobError, BlobErrorKind, BlobMeta, BlobName, BlobOp, BlobStat, BlobStore, Commit, Condition, Limits,
    PartTag, Parts, ReadBack, Slots, Space, Staged, StagedId, Tag, WriterGuard,
};

use super::disk::Inode;
use super::file::File;
use super::machine::{Ended, Start, State};

/// Small, so that a small upload has many parts.
const LIMITS: Limits = Limits {
    slots: Slots::Free { preferred: 4096 },
    ordered: true,
    read_back: ReadBack::BeforeCommit,
};

/// A container of one start of the machine. When that ends, every call fails.
#[derive(Debug)]
pub struct Forgetful {
    start: Start,
    container: &'static str,
    syncing: bool,
}

/// The place of a staging's writer.
#[derive(Debug)]
struct Place {
    start: Start,
    container: &'static str,
    path: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.start.leave(self.container, &self.path);
    }
}

/// Why a call failed.
struct Failed(BlobErrorKind);

impl From<Ended> for Failed {
    fn from(_: Ended) -> Self {
        Self(BlobErrorKind::Unavailable)
    }
}

impl From<BlobErrorKind> for Failed {
    fn from(kind: BlobErrorKind) -> Self {
        Self(kind)
    }
}

impl Forgetful {
    pub(super) fn new(start: Start, container: &'static str, syncing: bool) -> Self {
        Self {
            start,
            container,
            syncing,
        }
    }

    fn step(&self) -> Result<MutexGuard<'_, State>, Failed> {
        Ok(self.start.step(self.container)?)
    }

    fn done<T>(&self, operation: BlobOp, name: &str, result: Result<T, Failed>) -> Result<T, BlobError> {
        result.map_err(|Failed(kind)| BlobError {
            operation,
            container: self.container.to_owned(),
            name: name.to_owned(),
            kind,
            retry_after: None,
            source: None,
        })
    }

    /// Looks at the file under `path`, which is a step that crashes need not tell apart.
    fn on<T>(&self, path: &str, look: impl FnOnce(Inode, &mut File) -> Result<T, Failed>) -> Result<T, Failed> {
        let mut state = self.start.state()?;
        let (inode, file) = state.disk(self.container).file(path).ok_or(BlobErrorKind::NotFound)?;
        look(inode, file)
    }

    /// Changes the file of a staging, which is a step.
    fn change<T>(&self, id: &StagedId, change: impl FnOnce(&mut File) -> Result<T, Failed>) -> Result<T, Failed> {
        let mut state = self.step()?;
        let file = state.disk(self.container).file(&path(id));
        change(file.ok_or(BlobErrorKind::StagingLost)?.1)
    }

    fn sync_file(&self, path: &str) -> Result<(), Failed> {
        if self.step()?.sync(self.container, path) {
            Ok(())
        } else {
            Err(BlobErrorKind::SyncFailed.into())
        }
    }

    fn sync_folder_of(&self, name: &str) -> Result<(), Failed> {
        self.step()?.disk(self.container).sync_folder_of(name);
        Ok(())
    }

    /// From the staged `path` to the final `name`.
    fn reveal(&self, path: &str, name: &BlobName, meta: BlobMeta, condition: &Condition) -> Result<BlobStat, Failed> {
        self.step()?
            .disk(self.container)
            .file(path)
            .ok_or(BlobErrorKind::StagingLost)?
            .1
            .mark(meta.identity);
        if self.syncing {
            self.sync_file(path)?;
        }
        {
            let mut state = self.step()?;
            let disk = state.disk(self.container);
            let present = disk.file(name.as_str()).map(|(inode, file)| tag(inode, file));
            let holds = match condition {
                Condition::None => true,
                Condition::Absent => present.is_none(),
                Condition::Matches(wanted) => present.as_ref() == Some(wanted),
            };
            if !holds {
                return Err(BlobErrorKind::ConditionFailed.into());
            }
            if disk.file(path).is_none() {
                return Err(BlobErrorKind::StagingLost.into());
            }
            disk.move_to(path, name.as_str());
        }
        if self.syncing {
            self.sync_folder_of(name.as_str())?;
        }
        self.on(name.as_str(), |inode, file| Ok(describe(inode, file)))
    }

    fn read_range(&self, path: &str, range: &Range<u64>, if_match: Option<&Tag>) -> Result<Bytes, Failed> {
        self.on(path, |inode, file| {
            if if_match.is_some_and(|wanted| *wanted != tag(inode, file)) {
                return Err(BlobErrorKind::ConditionFailed.into());
            }
            let (start, end) = (usize::try_from(range.start), usize::try_from(range.end));
            let bytes = start
                .ok()
                .zip(end.ok())
                .and_then(|(start, end)| file.content().bytes.get(start..end));
            Ok(Bytes::copy_from_slice(bytes.ok_or(BlobErrorKind::ShortRead)?))
        })
    }

    fn begun(&self) -> Result<StagedId, Failed> {
        let id = StagedId::random();
        self.step()?.disk(self.container).create(&path(&id));
        Ok(id)
    }
}

fn path(id: &StagedId) -> String {
    format!(".ferry/staged/{}", id.as_str())
}

fn tag(inode: Inode, file: &File) -> Tag {
    Tag::new(format!("{inode}-{}", file.version))
}

fn len(file: &File) -> u64 {
    u64::try_from(file.content().bytes.len()).expect("a length in memory")
}

fn describe(inode: Inode, file: &File) -> BlobStat {
    BlobStat {
        size: len(file),
        modified: Timestamp::UNIX_EPOCH,
        tag: tag(inode, file),
        identity: file.content().identity.clone(),
    }
}

/// Where something may be written: not behind the end.
fn place(file: &File, offset: u64) -> Result<usize, Failed> {
    if offset > len(file) {
        return Err(BlobErrorKind::Invalid.into());
    }
    Ok(usize::try_from(offset).expect("an offset in memory"))
}

fn staging(failed: Failed) -> Failed {
    match failed.0 {
        BlobErrorKind::NotFound => BlobErrorKind::StagingLost.into(),
        _ => failed,
    }
}

#[async_trait]
impl BlobStore for Forgetful {
    fn limits(&self) -> &Limits {
        &LIMITS
    }

    async fn check(&self) -> Result<(), BlobError> {
        self.done(BlobOp::Check, "", self.start.state().map(drop).map_err(Failed::from))
    }

    async fn space(&self) -> Result<Option<Space>, BlobError> {
        self.done(
            BlobOp::Check,
            "",
            self.start.state().map(|_| None).map_err(Failed::from),
        )
    }

    async fn stat(&self, name: &BlobName) -> Result<BlobStat, BlobError> {
        let stat = self.on(name.as_str(), |inode, file| Ok(describe(inode, file)));
        self.done(BlobOp::Stat, name.as_str(), stat)
    }

    async fn read(&self, name: &BlobName, range: Range<u64>, if_match: Option<&Tag>) -> Result<Bytes, BlobError> {
        self.done(
            BlobOp::Read,
            name.as_str(),
            self.read_range(name.as_str(), &range, if_match),
        )
    }

    async fn list(&self, prefix: &str, after: Option<&BlobName>, limit: usize) -> Result<Vec<BlobName>, BlobError> {
        let list = || {
            let mut state = self.start.state()?;
            let own = prefix.starts_with(".ferry/");
            let names = state.disk(self.container).names();
            let wanted = names.filter(|name| {
                name.starts_with(prefix)
                    && (own || !name.starts_with(".ferry/"))
                    && after.is_none_or(|after| *name > after.as_str())
            });
            let name = |name: &str| match name.strip_prefix(".ferry/") {
                Some(own) => BlobName::reserved(own),
                None => BlobName::new(name),
            };
            Ok(wanted
                .take(limit)
                .map(|text| name(text).expect("it was a name before"))
                .collect())
        };
        self.done(BlobOp::List, prefix, list())
    }

    async fn delete(&self, name: &BlobName) -> Result<(), BlobError> {
        let delete = self
            .step()
            .map(|mut state| state.disk(self.container).remove(name.as_str()));
        self.done(BlobOp::Delete, name.as_str(), delete)
    }

    async fn put(
        &self,
        name: &BlobName,
        body: Bytes,
        meta: BlobMeta,
        condition: Condition,
    ) -> Result<BlobStat, BlobError> {
        let put = || {
            let id = self.begun()?;
            self.change(&id, |file| {
                file.write(0, &body);
                Ok(())
            })?;
            let revealed = self.reveal(&path(&id), name, meta, &condition);
            if revealed.is_err()
                && let Ok(mut state) = self.start.state()
            {
                state.disk(self.container).remove(&path(&id));
            }
            revealed
        };
        self.done(BlobOp::Put, name.as_str(), put())
    }

    async fn begin(&self, name: &BlobName, _size_hint: Option<u64>) -> Result<Staged, BlobError> {
        let begun = self.begun().map(|id| Staged { name: name.clone(), id });
        self.done(BlobOp::Begin, name.as_str(), begun)
    }

    async fn exclusive(&self, staged: &Staged) -> Result<WriterGuard, BlobError> {
        let path = path(&staged.id);
        let exclusive = || {
            let mut state = self.start.state()?;
            state
                .disk(self.container)
                .file(&path)
                .ok_or(BlobErrorKind::StagingLost)?;
            if !state.writers.insert((self.container, path.clone())) {
                return Err(BlobErrorKind::Locked.into());
            }
            Ok(WriterGuard::holding(Place {
                start: self.start.clone(),
                container: self.container,
                path: path.clone(),
            }))
        };
        self.done(BlobOp::Exclusive, staged.name.as_str(), exclusive())
    }

    async fn write_part(&self, staged: &Staged, offset: u64, bytes: Bytes) -> Result<PartTag, BlobError> {
        let written = self.change(&staged.id, |file| {
            file.write(place(file, offset)?, &bytes);
            Ok(())
        });
        let len = u64::try_from(bytes.len()).expect("a length in memory");
        let part = written.map(|()| PartTag {
            offset,
            len,
            tag: String::new(),
        });
        self.done(BlobOp::WritePart, staged.name.as_str(), part)
    }

    async fn copy_part(
        &self,
        staged: &Staged,
        offset: u64,
        source: &BlobName,
        range: Range<u64>,
    ) -> Result<PartTag, BlobError> {
        let bytes = self.read(source, range, None).await?;
        self.write_part(staged, offset, bytes).await
    }

    async fn parts(&self, staged: &Staged) -> Result<Parts, BlobError> {
        let parts = self.on(&path(&staged.id), |_, file| {
            Ok(Parts {
                contiguous: len(file),
                ..Parts::default()
            })
        });
        self.done(BlobOp::Parts, staged.name.as_str(), parts.map_err(staging))
    }

    async fn truncate(&self, staged: &Staged, size: u64) -> Result<(), BlobError> {
        let cut = self.change(&staged.id, |file| {
            file.cut(place(file, size)?);
            Ok(())
        });
        self.done(BlobOp::Truncate, staged.name.as_str(), cut)
    }

    async fn sync(&self, staged: &Staged) -> Result<(), BlobError> {
        let path = path(&staged.id);
        let sync = || {
            self.on(&path, |_, _| Ok(())).map_err(staging)?;
            self.sync_file(&path)?;
            self.sync_folder_of(&path)
        };
        self.done(BlobOp::Sync, staged.name.as_str(), sync())
    }

    async fn read_staged(&self, staged: &Staged, range: Range<u64>) -> Result<Bytes, BlobError> {
        let bytes = self.read_range(&path(&staged.id), &range, None);
        self.done(BlobOp::ReadStaged, staged.name.as_str(), bytes.map_err(staging))
    }

    async fn commit(&self, staged: &Staged, commit: Commit) -> Result<Attested, BlobError> {
        let path = path(&staged.id);
        let committed = || {
            let size = self.on(&path, |_, file| Ok(len(file))).map_err(staging)?;
            if size != commit.size {
                return Err(BlobErrorKind::Mismatch.into());
            }
            let stat = self.reveal(&path, &staged.name, commit.meta, &commit.condition)?;
            Ok(Attested {
                size,
                crc64: None,
                tag: stat.tag,
            })
        };
        self.done(BlobOp::Commit, staged.name.as_str(), committed())
    }

    async fn persist(&self, name: &BlobName) -> Result<(), BlobError> {
        let persist = || {
            self.on(name.as_str(), |_, _| Ok(()))?;
            if self.syncing {
                self.sync_file(name.as_str())?;
                self.sync_folder_of(name.as_str())?;
            }
            Ok(())
        };
        self.done(BlobOp::Persist, name.as_str(), persist())
    }

    async fn abort(&self, staged: &Staged) -> Result<(), BlobError> {
        let aborted = self
            .step()
            .map(|mut state| state.disk(self.container).remove(&path(&staged.id)));
        self.done(BlobOp::Abort, staged.name.as_str(), aborted)
    }
}
