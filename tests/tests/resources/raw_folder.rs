//! Row 13: a raw folder that is read-only or gone: not ready, 503, nothing made below a lost mount, and back by itself.

use std::fs;

use tests::pattern::{assert_same, pattern};
use tests::site::{Site, files_below};

use super::{RECOVERY, health_says};

async fn refused(site: &Site, upload: &tests::client::Upload) {
    let client = site.client();
    let new = client
        .tus("POST", client.collection(), &[("Upload-Length", "10")], "")
        .await;
    assert_eq!(new.status, 503, "POST: {}", new.text());
    let more = upload.patch(500, &pattern(1, 1000)[500..]).await;
    assert_eq!(more.status, 503, "PATCH: {}", more.text());
}

async fn goes_on(site: &Site, upload: &tests::client::Upload) {
    upload.append(500, &pattern(1, 1000)[500..]).await;
    let arrived = tests::wait::within("the delivery", RECOVERY, site.delivered("dex", &upload.id)).await;
    assert_same("dex", &arrived, &pattern(1, 1000));
}

async fn half(site: &Site) -> tests::client::Upload {
    let upload = site.client().create(1000, &[("filename", "x.bin")]).await;
    upload.append(0, &pattern(1, 500)).await;
    upload
}

#[tokio::test]
async fn a_read_only_raw_folder_takes_nothing_until_it_can_be_written_again() {
    let site = Site::build().disk("raw", "size=16m").start().await;
    let upload = half(&site).await;
    let raw = site.data().join("raw");
    site.mounts().remount(&raw, "ro");
    refused(&site, &upload).await;
    health_says(&site, "File Storage", "DOWN", 503).await;
    assert_eq!(upload.offset().await, 500, "reading goes on");
    site.mounts().remount(&raw, "rw");
    health_says(&site, "File Storage", "UP", 200).await;
    goes_on(&site, &upload).await;
}

#[tokio::test]
async fn a_raw_folder_that_was_moved_away_gets_nothing_until_it_is_back() {
    let site = Site::start().await;
    let upload = half(&site).await;
    let (raw, away) = (site.data().join("raw"), site.data().join("away"));
    fs::rename(&raw, &away).expect("move the folder");
    let before = tree(&away);
    refused(&site, &upload).await;
    health_says(&site, "File Storage", "DOWN", 503).await;
    assert!(!raw.exists(), "it was made anew");
    assert_eq!(tree(&away), before, "something was written where nobody looks for it");
    fs::rename(&away, &raw).expect("move it back");
    health_says(&site, "File Storage", "UP", 200).await;
    goes_on(&site, &upload).await;
}

#[tokio::test]
async fn nothing_is_made_below_a_mount_that_is_lost() {
    // The same folder must come back, as a volume does that is mounted again.
    let folder = tempfile::tempdir().expect("a folder");
    let (volume, raw) = (folder.path().join("volume"), folder.path().join("raw"));
    fs::create_dir(&volume).expect("make a folder");
    let mounts = std::sync::Arc::new(tests::mounts::Mounts::new());
    mounts.bind(&volume, &raw);
    let site = Site::build()
        .mounts(mounts.clone())
        .env("RAW_STORE", &format!("file://{}", raw.display()))
        .start()
        .await;
    let upload = half(&site).await;
    mounts.unmount(&raw);
    refused(&site, &upload).await;
    health_says(&site, "File Storage", "DOWN", 503).await;
    assert!(
        files_below(&mounts.seen(&raw)).is_empty(),
        "written below the lost mount"
    );
    assert!(!mounts.seen(&raw).join(".ferry").exists(), "made below the lost mount");
    mounts.bind(&volume, &raw);
    health_says(&site, "File Storage", "UP", 200).await;
    goes_on(&site, &upload).await;
}

fn tree(folder: &std::path::Path) -> Vec<(std::path::PathBuf, u64)> {
    let files = files_below(folder).into_iter();
    files
        .map(|path| (path.clone(), fs::metadata(path).expect("look").len()))
        .collect()
}

/// Row 14: an upload that has lost bytes which were acknowledged is told as such, to its sender and on `/info`.
#[tokio::test]
async fn an_upload_that_lost_stored_bytes_is_told_as_lost() {
    let site = Site::start().await;
    let upload = site.client().create(1000, &[("filename", "lost.bin")]).await;
    upload.append(0, &pattern(9, 500)).await;
    let staged = site.staged("raw");
    let file = fs::File::options().write(true).open(&staged[0]);
    file.expect("open the staged file").set_len(300).expect("cut it");
    assert_eq!(upload.try_head().await.expect("an answer").status, 410);
    let info = upload.info().await;
    assert!(info["issues"].to_string().contains("missing"), "{info}");
    assert_eq!(info["file_info"]["size_bytes"], 300, "{info}");
    assert_eq!(info["upload_status"]["status"], "In Progress", "{info}");
}
