//! Row 22: unfinished data that no record knows is removed once it is seven days old, and nothing else is.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use tests::client::Upload;
use tests::pattern::{assert_same, pattern};
use tests::site::{Part, Site};
use tests::wait::eventually;

use super::RECOVERY;

const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Makes the file look as if it had last been written to so long ago.
fn age(path: &Path, age: Duration) {
    let file = File::options().write(true).open(path).expect("open");
    file.set_modified(SystemTime::now() - age).expect("set its time");
}

/// The staging that a kill leaves in `container` between the begin of it and its record, as old as that.
fn left(site: &Site, container: &str, name: &str, old: Duration) -> std::path::PathBuf {
    let path = site.data().join(container).join(".ferry/staged").join(name);
    fs::write(&path, b"begun").expect("make a file");
    age(&path, old);
    path
}

/// Row 22, crashed: a kill right behind the begin of a copy leaves a staging; started again it is counted, and removed
/// when it is old. What a record knows lives however old it is: a sender may come back after a month.
#[tokio::test]
async fn old_unfinished_data_that_no_record_knows_is_removed_and_all_other_is_kept() {
    let failpoint = "copy.begun=exit";
    let mut site = Site::build().env("FERRY_FAILPOINTS", failpoint).start().await;
    let client = site.client();
    let paused = client.create(1000, &[("filename", "paused.bin")]).await;
    paused.append(0, &pattern(1, 500)).await;
    let [known] = site.staged("raw").try_into().expect("one upload is unfinished");
    // The copier dies where the staging is made and not recorded.
    let killer = client.create(1000, &[("filename", "killer.bin")]).await;
    let _cut = killer.try_patch(0, &pattern(2, 1000)).await;
    site.stopped(RECOVERY).await;
    let orphans = ["dex", "edav"].map(|target| site.staged(target)).concat();
    assert!(!orphans.is_empty(), "the kill left nothing");

    age(&known, 30 * DAY);
    for path in &orphans {
        age(path, 8 * DAY);
    }
    let old = left(&site, "raw", "0123456789abcdef0123456789abcdef", 8 * DAY);
    let counted = left(&site, "raw", "1123456789abcdef0123456789abcdef", 6 * DAY);
    let young = left(&site, "raw", "2123456789abcdef0123456789abcdef", HOUR / 2);
    site.forget_env("FERRY_FAILPOINTS");
    site.restart().await;
    eventually("the orphans to be removed", RECOVERY, || async {
        let gone = !old.exists() && orphans.iter().all(|path| !path.exists());
        (gone && orphans_of(&site, "raw").await == Some(1)).then_some(())
    })
    .await;
    assert!(counted.exists() && young.exists(), "what may be somebody's was removed");
    assert_eq!(orphans_of(&site, "dex").await, Some(0));

    goes_on(&site, &paused, 500, 1).await;
    goes_on(&site, &killer, 1000, 2).await;
}

/// `ferry_orphan_parts` of a store, once it was looked at.
async fn orphans_of(site: &Site, store: &str) -> Option<u64> {
    let metrics = site.metrics(Part::Up).await;
    let labels = [("store", store)];
    metrics
        .has("ferry_orphan_parts", &labels)
        .then(|| metrics.count("ferry_orphan_parts", &labels))
}

/// The upload of 1000 bytes goes on at `offset`, and is delivered.
async fn goes_on(site: &Site, upload: &Upload, offset: usize, seed: u64) {
    let content = pattern(seed, 1000);
    if offset < content.len() {
        let at = u64::try_from(offset).expect("small");
        upload.append(at, &content[offset..]).await;
    }
    for target in ["dex", "edav"] {
        assert_same(target, &site.delivered(target, &upload.id).await, &content);
    }
}
