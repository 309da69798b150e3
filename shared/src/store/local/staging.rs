//! Unfinished data: one file for each staging, filled strictly from the front, so that its length is what survived.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use cap_std::fs::OpenOptions;
use jiff::Timestamp;

use super::Folder;
use super::buffer::Buffer;
use super::failure::Failed;
use crate::store::{BlobErrorKind, BlobName, PartTag, Parts, Staged, StagedId};

/// Where stagings are, each under its id.
pub(super) const STAGED: &str = ".ferry/staged";
/// Step of a copy that the kernel does not do by itself.
const STEP: usize = 1024 * 1024;

impl Folder {
    /// Makes the file of a new staging.
    pub(super) fn begin(&self, name: BlobName) -> Result<Staged, Failed> {
        self.base.present()?;
        let (id, _) = self.new_staged_file()?;
        Ok(Staged { name, id })
    }

    /// A new, empty staged file, opened for writing.
    pub(super) fn new_staged_file(&self) -> Result<(StagedId, File), Failed> {
        self.base.own_folder(STAGED)?;
        let id = StagedId::random();
        let file = self
            .base
            .file(&path(&id)?, OpenOptions::new().read(true).write(true).create_new(true))?;
        Ok((id, file))
    }

    /// The staged file for reading and writing: its writer's own, if that is in this process, so that an upload
    /// that runs goes on where no file can be opened any more (faults.md 15).
    pub(super) fn staged_file(&self, id: &StagedId) -> Result<Arc<File>, Failed> {
        match self.writers.file(id) {
            Some(file) if self.base.is_file(&path(id)?, &file).map_err(Failed::of_staging)? => Ok(file),
            // Removed, or renamed to its final name: nobody writes to it any more.
            Some(_) => Err(BlobErrorKind::StagingLost.into()),
            None => self.open_staged(id).map(Arc::new),
        }
    }

    /// The same for looking only, which a read-only file system allows.
    pub(super) fn staged_to_read(&self, id: &StagedId) -> Result<Arc<File>, Failed> {
        if self.writers.file(id).is_some() {
            return self.staged_file(id);
        }
        let file = self.base.file(&path(id)?, OpenOptions::new().read(true));
        file.map(Arc::new).map_err(Failed::of_staging)
    }

    fn open_staged(&self, id: &StagedId) -> Result<File, Failed> {
        self.base
            .file(&path(id)?, OpenOptions::new().read(true).write(true))
            .map_err(Failed::of_staging)
    }

    /// Locks the staged file, among all processes of this machine, until [`Writers::leave`].
    pub(super) fn lock_staged(&self, id: &StagedId) -> Result<(), Failed> {
        self.base.present()?;
        let file = self.open_staged(id)?;
        match file.try_lock() {
            Ok(()) => {
                self.writers.enter(id, file);
                Ok(())
            }
            Err(std::fs::TryLockError::WouldBlock) => Err(BlobErrorKind::Locked.into()),
            Err(std::fs::TryLockError::Error(error)) => Err(error.into()),
        }
    }

    /// Writes `bytes` at `offset`. What could be written before an error stays.
    pub(super) fn write_part(&self, id: &StagedId, offset: u64, bytes: &[u8]) -> Result<PartTag, Failed> {
        self.base.present()?; // what is written below a mount that is lost is lost with it
        let file = self.staged_file(id)?;
        refuse_gap(&file, offset)?;
        file.write_all_at(bytes, offset)?;
        Ok(PartTag {
            offset,
            len: bytes.len() as u64,
            tag: String::new(),
        })
    }

    /// Copies `range` of the blob `source` to `offset`.
    pub(super) fn copy_part(
        &self,
        id: &StagedId,
        offset: u64,
        source: &BlobName,
        range: Range<u64>,
    ) -> Result<PartTag, Failed> {
        self.base.present()?;
        let file = self.staged_file(id)?;
        refuse_gap(&file, offset)?;
        let source = self.base.file(source.as_str(), OpenOptions::new().read(true))?;
        let len = checked_len(&source, &range)?;
        let done = copy_in_kernel(&source, range.start, &file, offset, len)?;
        copy_in_steps(&source, range.start + done, &file, offset + done, len - done)?;
        Ok(PartTag {
            offset,
            len,
            tag: String::new(),
        })
    }

    /// What is there.
    pub(super) fn parts(&self, id: &StagedId) -> Result<Parts, Failed> {
        let metadata = self.staged_to_read(id)?.metadata()?;
        Ok(Parts {
            contiguous: metadata.len(),
            tags: Vec::new(),
            modified: metadata.modified().ok().and_then(|time| Timestamp::try_from(time).ok()),
        })
    }

    /// Cuts the staged file to `size`.
    pub(super) fn truncate(&self, id: &StagedId, size: u64) -> Result<(), Failed> {
        let file = self.staged_file(id)?;
        refuse_gap(&file, size)?;
        Ok(file.set_len(size)?)
    }

    /// Makes the staged bytes durable, and the name under which a restart finds them.
    pub(super) fn sync_staged(&self, id: &StagedId) -> Result<(), Failed> {
        let file = self.staged_file(id)?;
        self.base.syncs.sync_data(&file)?;
        self.base.sync_name(&path(id)?)
    }

    /// Staged files that nobody has written to since `since`.
    pub(super) fn idle_stagings(&self, since: Timestamp, limit: usize) -> Result<Vec<(Staged, Timestamp)>, Failed> {
        let mut found = Vec::new();
        for entry in self.base.folder(STAGED)?.entries()? {
            if found.len() == limit {
                break;
            }
            let entry = entry?;
            let metadata = match entry.metadata() {
                Err(error) if error.kind() == ErrorKind::NotFound => continue, // removed since
                metadata => metadata?,
            };
            let written = metadata.modified().ok().map(cap_std::time::SystemTime::into_std);
            let written = written.and_then(|time| Timestamp::try_from(time).ok());
            let name = entry.file_name().into_string().ok();
            if let (true, Some(name), Some(written)) = (metadata.is_file(), name, written)
                && let Ok(blob) = BlobName::reserved(&format!("staged/{name}"))
                && written <= since
            {
                let id = StagedId(name);
                found.push((Staged { name: blob, id }, written));
            }
        }
        Ok(found)
    }

    /// Removes the staged file, if there is one.
    pub(super) fn abort(&self, id: &StagedId) -> Result<(), Failed> {
        let path = path(id)?;
        self.base.forget_name(&path);
        self.base.remove(&path)
    }
}

/// The staged file's path. An id is one plain component: ids come back from records.
pub(super) fn path(id: &StagedId) -> Result<String, Failed> {
    match BlobName::reserved(&format!("staged/{}", id.as_str())) {
        Ok(name) if name.split().0 == STAGED => Ok(name.into()),
        _ => Err(BlobErrorKind::Invalid.into()),
    }
}

/// The bytes `range` of `file`, all of them or an error.
pub(super) fn read_range(file: &File, range: &Range<u64>) -> Result<Bytes, Failed> {
    let len = checked_len(file, range)?;
    let mut buffer = Buffer::new(usize::try_from(len).map_err(|_| BlobErrorKind::Invalid)?);
    // Without moving the file's own place: others may be reading it, too.
    match file.read_exact_at(buffer.as_mut(), range.start) {
        Ok(()) => Ok(buffer.freeze()),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(BlobErrorKind::ShortRead.into()),
        Err(error) => Err(error.into()),
    }
}

/// The length of `range`, which lies in `file`: known before any memory is taken for it.
fn checked_len(file: &File, range: &Range<u64>) -> Result<u64, Failed> {
    let len = range.end.checked_sub(range.start).ok_or(BlobErrorKind::Invalid)?;
    if range.end > file.metadata()?.len() {
        Err(BlobErrorKind::ShortRead.into())
    } else {
        Ok(len)
    }
}

/// A write behind the end would leave a hole that counts as stored.
fn refuse_gap(file: &File, offset: u64) -> Result<(), Failed> {
    if offset > file.metadata()?.len() {
        Err(BlobErrorKind::Invalid.into())
    } else {
        Ok(())
    }
}

/// Copies without the bytes passing through this process, as far as the file systems can; says how far.
#[cfg(target_os = "linux")]
fn copy_in_kernel(source: &File, mut from: u64, target: &File, mut to: u64, len: u64) -> Result<u64, Failed> {
    use rustix::io::Errno;

    let end = from + len;
    while from < end {
        let step = usize::try_from(end - from).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), step) {
            // Nothing although there is more: some file systems say so of what they cannot copy.
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::NOTSUP | Errno::PERM) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(len - (end - from))
}

#[cfg(not(target_os = "linux"))]
#[allow(clippy::unnecessary_wraps, reason = "the signature of the one for Linux")]
fn copy_in_kernel(_source: &File, _from: u64, _target: &File, _to: u64, _len: u64) -> Result<u64, Failed> {
    Ok(0)
}

fn copy_in_steps(source: &File, from: u64, target: &File, to: u64, len: u64) -> Result<(), io::Error> {
    let mut buffer = vec![0; usize::try_from(len).map_or(STEP, |len| len.min(STEP))];
    let mut done = 0;
    while done < len {
        let step = usize::try_from(len - done).map_or(STEP, |left| left.min(STEP));
        source.read_exact_at(&mut buffer[..step], from + done)?;
        target.write_all_at(&buffer[..step], to + done)?;
        done += step as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_copy_in_steps_takes_exactly_the_range() {
        let mut source = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..2 * STEP + 7).map(|at| u8::try_from(at % 251).unwrap()).collect();
        source.write_all(&bytes).unwrap();
        let target = tempfile::tempfile().unwrap();
        copy_in_steps(&source, 3, &target, 0, 2 * STEP as u64 + 1).unwrap();
        assert_eq!(
            read_range(&target, &(0..2 * STEP as u64 + 1)).unwrap(),
            bytes[3..2 * STEP + 4]
        );
        assert!(
            read_range(&target, &(0..2 * STEP as u64 + 2)).is_err(),
            "more was copied"
        );
    }

    #[test]
    fn an_id_from_a_record_stays_in_its_folder() {
        for bad in ["../x", "a/b", "", ".."] {
            let id: StagedId = serde_json::from_value(serde_json::Value::from(bad)).unwrap();
            assert_eq!(path(&id).unwrap_err().kind, BlobErrorKind::Invalid, "{bad:?}");
        }
    }
}
