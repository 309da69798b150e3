//! Making a blob visible: whole, under a condition, and durable if that is asked for.
//!
//! ```text
//!   tag and identity ──► fsync ──► condition (under the name's lock) ──► rename ──► fsync of the folder
//!   └──────────── still invisible ─────────────┘                        └─ visible ─┘
//! ```

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use cap_std::fs::{Dir, OpenOptions};
use rustix::fs::RenameFlags;
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use super::failure::Failed;
use super::staging::{self, STAGED};
use super::{Folder, Syncing};
use crate::checksum::Crc64;
use crate::store::{Attested, BlobErrorKind, BlobMeta, BlobName, BlobStat, Commit, Condition, Staged, StagedId, Tag};

/// Where the 256 files are whose locks stand for names. Spec: core.md §5, "Objects".
const STRIPES: &str = ".ferry/stripes";

impl Folder {
    /// Renames the staged file to its final name, unless the caller has `gone` by then.
    pub(super) fn commit(
        &self,
        staged: &Staged,
        commit: &Commit,
        gone: &CancellationToken,
    ) -> Result<Attested, Failed> {
        self.base.present()?;
        let file = self.staged_file(&staged.id)?;
        if file.metadata()?.len() != commit.size {
            return Err(BlobErrorKind::Mismatch.into());
        }
        let tag = self.seal(&file, commit.meta.identity.as_ref())?;
        self.reveal(&staged.id, &staged.name, &tag, &commit.condition, gone)?;
        if let Err(failed) = self.sync_name_of(&staged.name) {
            // A caller that repeats the commit would find the final name and take it for durable.
            self.withdraw(&staged.id, &staged.name, &tag)?;
            return Err(failed);
        }
        self.base.forget_name(&staging::path(&staged.id)?);
        Ok(Attested {
            size: commit.size,
            crc64: None,
            tag,
        })
    }

    /// Writes a small blob by way of a staging of its own.
    pub(super) fn put(
        &self,
        name: &BlobName,
        body: &[u8],
        meta: &BlobMeta,
        condition: &Condition,
        gone: &CancellationToken,
    ) -> Result<BlobStat, Failed> {
        self.base.present()?;
        let (id, file) = self.new_staged_file()?;
        let revealed = self.fill_and_reveal(&id, &file, name, body, meta, condition, gone);
        if revealed.is_err() {
            // What cannot be removed now is an orphan for the sweeper; the caller hears why the write failed.
            self.abort(&id).ok();
        }
        revealed?;
        // A folder that cannot be synced is no reason to take the blob back: what it replaced would be gone too.
        self.sync_name_of(name)?;
        self.describe(&file)
    }

    /// Removes the blob `name`, if there is one.
    pub(super) fn delete(&self, name: &BlobName) -> Result<(), Failed> {
        let _held = match self.lock_name(name) {
            // A full disk must not keep anything from being deleted.
            Err(failed) if failed.kind == BlobErrorKind::NoSpace => None,
            held => Some(held?),
        };
        // A folder of that name is no blob; the kernel would say so in different ways.
        let Some(tag) = self.tag_of(name)? else {
            return self.base.present();
        };
        self.base.remove(name.as_str())?;
        self.forget_identity(&tag)
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "the steps of `put` that a failure has to clean up behind"
    )]
    fn fill_and_reveal(
        &self,
        id: &StagedId,
        file: &File,
        name: &BlobName,
        body: &[u8],
        meta: &BlobMeta,
        condition: &Condition,
        gone: &CancellationToken,
    ) -> Result<(), Failed> {
        file.write_all_at(body, 0)?;
        let tag = self.seal(file, meta.identity.as_ref())?;
        self.reveal(id, name, &tag, condition, gone)
    }

    /// Renames the sealed staging `id`, whose content is `tag`, to `name` if `condition` holds.
    fn reveal(
        &self,
        id: &StagedId,
        name: &BlobName,
        tag: &Tag,
        condition: &Condition,
        gone: &CancellationToken,
    ) -> Result<(), Failed> {
        let renamed = self.rename_if(id, name, condition, gone);
        let superseded = match &renamed {
            Ok(replaced) => replaced.as_ref(),
            Err(_) => Some(tag),
        };
        if let Some(superseded) = superseded {
            self.forget_identity(superseded)?;
        }
        renamed.map(drop)
    }

    /// Renames, and says which content was replaced.
    fn rename_if(
        &self,
        id: &StagedId,
        name: &BlobName,
        condition: &Condition,
        gone: &CancellationToken,
    ) -> Result<Option<Tag>, Failed> {
        let (folder, leaf) = name.split();
        let folder = self.base.make_folder(folder)?;
        let staged = self.base.folder(STAGED).map_err(Failed::of_staging)?;
        // The kernel alone decides about `Absent`. All others take turns, or a blob that was put between the
        // comparison and the rename of `Matches` would be lost without anybody knowing.
        let _held = if *condition == Condition::Absent {
            None
        } else {
            Some(self.lock_name(name)?)
        };
        let replaced = if *condition == Condition::Absent {
            None
        } else {
            self.tag_of(name)?
        };
        if let Condition::Matches(wanted) = condition
            && replaced.as_ref() != Some(wanted)
        {
            return Err(BlobErrorKind::ConditionFailed.into());
        }
        if gone.is_cancelled() {
            return Err(BlobErrorKind::Unavailable.into()); // heard by nobody
        }
        let done = if *condition == Condition::Absent {
            rustix::fs::renameat_with(&staged, id.as_str(), &folder, leaf, RenameFlags::NOREPLACE)
        } else {
            rustix::fs::renameat(&staged, id.as_str(), &folder, leaf)
        };
        match done {
            Ok(()) => Ok(replaced),
            Err(Errno::EXIST) if *condition == Condition::Absent => Err(BlobErrorKind::ConditionFailed.into()),
            Err(Errno::NOENT) => Err(missing(&staged, id)),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Makes a name that was just given durable, if this store syncs.
    fn sync_name_of(&self, name: &BlobName) -> Result<(), Failed> {
        match self.syncing {
            Syncing::Never => Ok(()),
            Syncing::AtCommit => self.base.sync_folder(name.split().0),
        }
    }

    /// Makes a blob durable that somebody made visible and did not live to sync.
    pub(super) fn persist(&self, name: &BlobName) -> Result<(), Failed> {
        let file = self.base.file(name.as_str(), OpenOptions::new().read(true))?;
        if self.syncing == Syncing::AtCommit {
            self.base.syncs.sync_file(&file)?;
        }
        self.sync_name_of(name)
    }

    /// Makes `name` a staging again, if it still is the content `tag`.
    fn withdraw(&self, id: &StagedId, name: &BlobName, tag: &Tag) -> Result<(), Failed> {
        let _held = self.lock_name(name)?;
        if self.tag_of(name)?.as_ref() == Some(tag) {
            let (folder, leaf) = name.split();
            let (folder, staged) = (self.base.folder(folder)?, self.base.folder(STAGED)?);
            rustix::fs::renameat_with(&folder, leaf, &staged, id.as_str(), RenameFlags::NOREPLACE)?;
        }
        Ok(())
    }

    /// Waits for the lock that stands for `name`, among all processes of this machine.
    pub(super) fn lock_name(&self, name: &BlobName) -> Result<File, Failed> {
        self.base.own_folder(STRIPES)?;
        let stripe = Crc64::of(name.as_str().as_bytes()).value() & 0xff;
        let path = format!("{STRIPES}/{stripe:02x}");
        let file = self.base.file(&path, OpenOptions::new().write(true).create(true))?;
        file.lock()?; // of the opened file, so that the threads of one process exclude each other as well
        Ok(file)
    }
}

/// Why a rename found nothing: another commit of this staging was first, or somebody removed the new folder.
fn missing(staged: &Dir, id: &StagedId) -> Failed {
    match staged.symlink_metadata(id.as_str()) {
        Ok(_) => BlobErrorKind::Unavailable.into(),
        Err(error) => Failed::from(error).of_staging(),
    }
}
