//! Row 59: a target's folder is gone, replaced, read-only, or its mount is lost. Waiting uses up no try, nothing is made
//! in the place of a folder that is gone, for it may be a mount, and nobody has to start anything again.

use std::fs;
use std::path::PathBuf;

use tests::site::{Site, SiteBuilder, files_below};

use super::{arrives, edav, sent, waits};

/// The folder of `edav`, as the test sees it.
fn folder(site: &Site) -> PathBuf {
    site.seen(&site.data().join("edav"))
}

fn impatient() -> SiteBuilder {
    Site::build().env("RETRY_DELAYS", "1s,2s")
}

/// A file where the folder was, and then nothing at all; and then the folder as it was.
#[tokio::test]
async fn a_target_folder_that_is_moved_away_is_waited_for_and_never_made_anew() {
    let site = impatient().start().await;
    let (folder, aside) = (folder(&site), site.data().join("edav.aside"));
    fs::rename(&folder, &aside).expect("take the folder away");
    fs::write(&folder, b"in the way").expect("put a file there");
    let (upload, content) = sent(&site, 1).await;
    waits(&site, &upload, "no such container", "configuration").await;
    assert_eq!(fs::read(&folder).expect("the file is left alone"), b"in the way");
    fs::remove_file(&folder).expect("take the file away");
    let seen = edav(&upload, |edav| edav["next_attempt_at"].is_string()).await;
    edav(&upload, |edav| edav["next_attempt_at"] != seen["next_attempt_at"]).await;
    assert!(!folder.exists(), "something was made in its place");

    fs::rename(&aside, &folder).expect("give the folder back");
    arrives(&site, &upload, &content).await;
}

/// Another folder, made by hand: there is no telling the one that was removed when it comes back, and nobody should have
/// to know that Ferry must be started again (rule 7).
#[tokio::test]
async fn a_target_folder_that_was_removed_and_made_anew_by_hand_is_used_without_a_restart() {
    let site = impatient().start().await;
    let folder = folder(&site);
    let (_, before) = sent(&site, 2).await;
    fs::remove_dir_all(&folder).expect("remove the folder");
    let (upload, content) = sent(&site, 3).await;
    waits(&site, &upload, "no such container", "configuration").await;
    assert!(!folder.exists(), "it was made anew");
    fs::create_dir(&folder).expect("make the folder anew");
    arrives(&site, &upload, &content).await;
    let (upload, _) = sent(&site, 4).await;
    arrives(&site, &upload, &tests::pattern::pattern(4, before.len())).await;
}

/// A read-only file system is denied, not full: it is waited for.
#[tokio::test]
async fn a_target_that_is_mounted_read_only_is_waited_for() {
    let site = impatient().disk("edav", "size=8m").start().await;
    let edav = site.data().join("edav");
    site.mounts().remount(&edav, "ro");
    let (upload, content) = sent(&site, 5).await;
    waits(&site, &upload, "access denied", "denied").await;
    site.mounts().remount(&edav, "rw");
    arrives(&site, &upload, &content).await;
}

/// The mount point is an empty folder of another file system: nothing is written there, and a volume that is mounted
/// in its place, even a new one, is used.
#[tokio::test]
async fn a_target_whose_mount_is_lost_gets_nothing_below_it_and_goes_on_in_the_next_volume() {
    let site = impatient().disk("edav", "size=8m").start().await;
    let edav = site.data().join("edav");
    site.mounts().unmount(&edav);
    let (upload, content) = sent(&site, 6).await;
    waits(&site, &upload, "no such container", "configuration").await;
    let bare = site.seen(&edav);
    assert!(
        bare.is_dir() && files_below(&bare).is_empty(),
        "written below the lost mount"
    );
    assert!(!bare.join(".ferry").exists(), "made below the lost mount");
    site.mounts().tmpfs(&edav, "size=8m");
    arrives(&site, &upload, &content).await;
}

/// A target that could not be opened at the start, here because its disk was full, is opened as soon as that is over.
#[tokio::test]
async fn a_target_that_could_not_be_opened_at_the_start_is_opened_later() {
    // Its folder is all that the disk has room for.
    let site = Site::build()
        .disk("edav", "size=8m,nr_inodes=1")
        .env("RETRY_DELAYS", "1s,1s,1s,1s,1s,1s,2s,2s,2s,5s,5s")
        .start()
        .await;
    assert!(site.log().contains("the target cannot be opened"), "{}", site.log());
    let (upload, content) = sent(&site, 7).await;
    edav(&upload, |edav| edav["next_attempt_at"].is_string()).await;
    site.mounts().remount(&site.data().join("edav"), "nr_inodes=1000");
    arrives(&site, &upload, &content).await;
}
