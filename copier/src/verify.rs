//! The end of a copy: checked against what was received, made visible, and looked at. Spec: core.md §6, "What the
//! store attests"; faults.md 55, 56.

use std::ops::Range;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use shared::checksum::Crc64;
use shared::failpoint::{self, Step};
use shared::failure::FailureClass;
use shared::store::{Attested, BlobMeta, BlobStat, Commit, Condition, ReadBack, Staged};
use shared::telemetry::SPANS;
use tracing::instrument;

use crate::deadline::{CALL_LIMIT, PART_LIMIT, within};
use crate::failure::Failure;
use crate::reader::checksum;
use crate::staging::CHECKPOINT_BYTES;
use crate::target::{Copy, Stopped};

/// Ranges of a copy that are read back at once.
const READ_BACK_AHEAD: usize = 2;
/// The key under which stores with metadata keep the checksum. Spec: deliver.md §5.
const CHECKSUM_KEY: &str = "ferry_crc64nvme";

/// Where a copy is read back from.
#[derive(Clone, Copy)]
enum Place<'a> {
    Staged(&'a Staged),
    Final,
}

impl Copy {
    /// Makes the complete copy visible if it is the file that was received.
    #[instrument(target = SPANS, name = "verify", skip_all)]
    pub(crate) async fn finish(&mut self) -> Result<(), Stopped> {
        let Some(staging) = &self.staging else { return Ok(()) };
        let staged = staging.staged.clone();
        let wanted = self.lease.upload.crc;
        if staging.copied != wanted {
            return Err(self
                .integrity("the source file's bytes differ from those received")
                .into());
        }
        if self.lease.upload.size > CHECKPOINT_BYTES {
            // Reading a large file back takes long: a crash in the meantime must not cost the copy.
            self.record_checkpoint().await?;
        }
        let read_back = self.store.limits().read_back;
        if read_back == ReadBack::BeforeCommit
            && self.unless_cut(self.read_back(Place::Staged(&staged))).await?? != wanted
        {
            return Err(self
                .integrity("the copy differs from the file before it was made visible")
                .into());
        }
        let attested = self.commit(&staged).await?;
        failpoint::reached(Step::CopyCompleted).await.map_err(Failure::from)?;
        let attests = attested.size == wanted.covered() && attested.crc64.is_none_or(|crc| crc == wanted.value());
        if !attests {
            self.remove().await;
            return Err(self.integrity("the target attests another size or checksum").into());
        }
        if read_back != ReadBack::Never {
            self.expect_visible().await?;
        }
        // Never cut: what is visible and not checked yet must not be left alone.
        if read_back == ReadBack::AfterCommit && self.read_back(Place::Final).await? != wanted {
            self.remove().await;
            return Err(self.integrity("the copy differs from the file").into());
        }
        Ok(())
    }

    /// Whether `existing`, which stands under the object's name, is this upload's copy. Where copies become visible
    /// before they are checked, a worker may have died in between.
    pub(crate) async fn is_there(&self, existing: Option<&BlobStat>) -> Result<bool, Failure> {
        if !existing.is_some_and(|stat| self.is_ours(stat)) {
            return Ok(false);
        }
        // Nor may whoever made it visible have lived to make it durable.
        let persist = self.store.persist(&self.lease.seen.to.object);
        within(PART_LIMIT, "make durable", persist, Failure::of_target).await?;
        Ok(self.store.limits().read_back != ReadBack::AfterCommit
            || self.read_back(Place::Final).await? == self.lease.upload.crc)
    }

    async fn commit(&mut self, staged: &Staged) -> Result<Attested, Failure> {
        let upload = &self.lease.upload;
        let mut entries = upload.manifest.clone();
        entries.insert(CHECKSUM_KEY.to_owned(), upload.crc.to_base64());
        let commit = Commit {
            parts: self
                .staging
                .as_mut()
                .map(|staging| std::mem::take(&mut staging.tags))
                .unwrap_or_default(),
            size: upload.size,
            crc: upload.crc,
            meta: BlobMeta {
                identity: Some(upload.identity()),
                entries,
            },
            condition: Condition::None,
        };
        // Never cut: whether a commit that was dropped took place is not known.
        within(
            PART_LIMIT,
            "commit",
            self.store.commit(staged, commit),
            Failure::of_target,
        )
        .await
    }

    /// Looks at what the target says it has now.
    async fn expect_visible(&self) -> Result<(), Failure> {
        match self.look().await? {
            Some(stat) if self.is_ours(&stat) => Ok(()),
            Some(_) => {
                self.remove().await;
                Err(self.integrity("the target holds something else than was committed"))
            }
            None => Err(self.integrity("the target does not hold what was committed")),
        }
    }

    /// The checksum of what the target gives back.
    async fn read_back(&self, place: Place<'_>) -> Result<Crc64, Failure> {
        let (store, size) = (&self.store, self.lease.upload.size);
        let ranges = std::iter::successors(Some(0..0), |before: &Range<u64>| {
            (before.end < size).then(|| before.end..store.limits().slot(before.end, Some(size)).end)
        });
        stream::iter(ranges.skip(1))
            .map(|range| async move {
                let _share = self.engine.budget.take(range.end - range.start).await;
                let bytes = async {
                    match place {
                        Place::Staged(staged) => store.read_staged(staged, range).await,
                        Place::Final => store.read(&self.lease.seen.to.object, range, None).await,
                    }
                };
                let bytes = within(PART_LIMIT, "read back", bytes, Failure::of_target).await?;
                checksum(&bytes).await
            })
            .buffered(READ_BACK_AHEAD)
            .try_fold(Crc64::default(), |whole, part| std::future::ready(Ok(whole.then(part))))
            .await
    }

    /// Takes a wrong copy away, if what is there is ours: another upload's object stays.
    async fn remove(&self) {
        let identity = self.lease.upload.identity();
        let ours = match self.look().await {
            Ok(stat) => stat.is_some_and(|stat| stat.identity == Some(identity)),
            Err(_) => false,
        };
        if !ours {
            return;
        }
        let name = &self.lease.seen.to.object;
        let delete = within(CALL_LIMIT, "delete", self.store.delete(name), Failure::of_target);
        if let Err(failure) = delete.await {
            tracing::error!(
                upload_id = %self.lease.upload.id, target = self.lease.seen.to.target, error = failure.detail,
                "a wrong copy could not be removed"
            );
        }
    }

    fn integrity(&self, cause: &str) -> Failure {
        let to = &self.lease.seen.to;
        let text = format!("failed to upload file to {} {}: {cause}", to.target, to.object);
        Failure {
            detail: cause.to_owned(),
            ..Failure::new(FailureClass::Integrity, text)
        }
    }
}
