//! The verdict, when faults have ended: nothing promised is missing, nothing else is there, and nothing waits.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use shared::message::Queue;
use shared::upload::UploadState;

use super::{File, Oracle, Promise, reports};
use crate::pattern::assert_same;
use crate::site::{Part, Site, TARGETS};
use crate::wait::{eventually, within};

/// When a fault ends, work goes on within this time (faults.md, rule 7), and is done soon after.
pub(super) const LIMIT: Duration = Duration::from_secs(60);
/// Copies that one process has begun at most: `CONCURRENCY` files for each target.
const AT_WORK: usize = 16 * TARGETS.len();
/// Uploads that may still be open: those whose creation was not answered.
const OPEN: usize = 10_000;

/// What a run came to; its promises were kept.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Uploads that were promised and delivered.
    pub uploads: usize,
    /// Uploads in the targets whose creation was not answered.
    pub strangers: usize,
    /// Requests that a kill cut.
    pub interrupted: u64,
    /// Requests that were answered with 5xx.
    pub refused: u64,
    /// Uploads that only a HEAD told to be whole.
    pub finished_by_head: u64,
    /// Offsets that were compared.
    pub compared: u64,
    /// Different reports.
    pub reports: usize,
    /// Reports that came again.
    pub repeats: usize,
    /// Lines of reports that were torn.
    pub torn: usize,
    /// Unfinished data in the targets that no record knows.
    pub orphans: usize,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} uploads, {} more whose creation was not answered; {} requests cut, {} refused; {} finished by HEAD, \
             {} offsets compared; {} reports, {} repeated, {} lines torn; {} orphans",
            self.uploads,
            self.strangers,
            self.interrupted,
            self.refused,
            self.finished_by_head,
            self.compared,
            self.reports,
            self.repeats,
            self.torn,
            self.orphans
        )
    }
}

impl Oracle {
    /// Waits until all is done, and judges.
    ///
    /// # Panics
    /// A promise was broken; the text says which.
    pub(super) async fn verdict(&self, site: &Site, kills: usize) -> Verdict {
        let promises = self.promises();
        for promise in &promises {
            assert!(promise.is_finished(), "every sender got to its end: {promise:?}");
        }
        expect_deliveries(site, &promises).await;
        expect_nothing_waits(site, &promises, self.counts.unknown.get()).await;
        let known: BTreeSet<&str> = promises.iter().map(|promise| promise.upload.id.as_str()).collect();
        let strangers = strangers(site, &known);
        let unknown = self.counts.unknown.get();
        assert!(
            u64::try_from(strangers).is_ok_and(|strangers| strangers <= unknown),
            "{strangers} uploads that nobody made; {unknown} creations were not answered"
        );
        let came = reports::expect(site, &promises, kills.max(self.refusals())).await;
        Verdict {
            uploads: promises.len(),
            strangers,
            interrupted: self.counts.interrupted.get(),
            refused: self.counts.refused.get(),
            finished_by_head: self.counts.finished_by_head.get(),
            compared: self.counts.compared.get(),
            reports: came.different,
            repeats: came.repeats,
            torn: came.torn,
            orphans: orphans(site, kills),
        }
    }

    /// A failure on the way of a report lets it come again, too.
    fn refusals(&self) -> usize {
        usize::from(self.habits.bear_refusals)
    }
}

/// Conservation: what was promised is in each target, by `/info` and in the folder.
async fn expect_deliveries(site: &Site, promises: &[Promise]) {
    for promise in promises {
        for target in TARGETS {
            let delivered = within("a delivery", LIMIT, site.delivered(target, &promise.upload.id)).await;
            assert_same(&promise.upload.id, &delivered, &promise.file.content());
        }
    }
}

/// Nothing is in a queue, nothing was given up, and nothing but uploads whose creation was not answered is open.
async fn expect_nothing_waits(site: &Site, promises: &[Promise], unknown: u64) {
    let (records, bus) = site.database();
    for queue in Queue::ALL {
        eventually(&format!("the queue {} is empty", queue.as_str()), LIMIT, || async {
            let depth = bus.depth(queue).await.expect("count messages");
            (depth.ready + depth.in_flight + depth.delayed == 0).then_some(())
        })
        .await;
    }
    let dead = bus.dead_letters(10).await.expect("list dead letters");
    assert!(dead.is_empty(), "{dead:#?}");
    let open = records.open_uploads(None, OPEN).await.expect("list open uploads");
    assert!(
        u64::try_from(open.len()).is_ok_and(|open| open <= unknown),
        "{} uploads are open, {unknown} creations were not answered",
        open.len()
    );
    for id in open {
        let record = records.upload(id).await.expect("read an open upload");
        let known = promises.iter().any(|promise| promise.upload.id == id.to_string());
        assert!(!known && record.state == UploadState::Receiving, "{record:#?}");
    }
    // Row 2: the gauge is set by each sweep.
    let part = site.parts().into_iter().find(|part| part.accepts());
    let part: Part = part.expect("a site accepts uploads");
    eventually("nothing is committing", LIMIT, || async {
        let (metrics, labels) = (site.metrics(part).await, [("state", "committing")]);
        let zero = metrics.has("ferry_uploads", &labels) && metrics.count("ferry_uploads", &labels) == 0;
        zero.then_some(())
    })
    .await;
}

/// Identity: whatever bears a final name is whole and right, whether or not its sender knows of it; each upload is
/// there once. Nothing unfinished is another name of it. Answers how many are not among `known`.
fn strangers(site: &Site, known: &BTreeSet<&str>) -> usize {
    let mut strangers = BTreeSet::new();
    for target in TARGETS {
        let mut seen = HashSet::new();
        let mut inodes = HashSet::new();
        for path in site.files(target) {
            let name = path.file_name().and_then(|name| name.to_str());
            let name = name.expect("a name in UTF-8");
            let (file, id) = File::of_delivered(name).unwrap_or_else(|| panic!("{} is no upload's", path.display()));
            assert!(seen.insert(id.to_owned()), "{id} is in {target} twice");
            assert_file(&path, file);
            let about = fs::symlink_metadata(&path).expect("look at a delivered file");
            assert!(about.is_file(), "{} is no plain file", path.display());
            assert_eq!(about.nlink(), 1, "{} has another name", path.display());
            inodes.insert(about.ino());
            if !known.contains(id) {
                strangers.insert(id.to_owned());
            }
            assert_file(&site.data().join("raw").join(id), file);
        }
        for path in site.staged(target) {
            let about = fs::symlink_metadata(&path).expect("look at a staged file");
            assert!(about.is_file(), "{} leads elsewhere", path.display());
            assert!(!inodes.contains(&about.ino()), "{} is delivered", path.display());
        }
    }
    strangers.len()
}

/// Unfinished data in the targets: only what a kill left between the begin of a staging and its record, so empty, and
/// no more than what kills can leave.
fn orphans(site: &Site, kills: usize) -> usize {
    let orphans: Vec<_> = TARGETS.iter().flat_map(|target| site.staged(target)).collect();
    for path in &orphans {
        let about = fs::symlink_metadata(path).expect("look at a staged file");
        assert_eq!(about.len(), 0, "{} is left", path.display());
    }
    assert!(orphans.len() <= kills * AT_WORK, "{kills} kills left {orphans:?}");
    orphans.len()
}

fn assert_file(path: &Path, file: File) {
    let found = fs::read(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
    assert_same(&path.display().to_string(), &found, &file.content());
}
