//! Row 11: a full disk takes nothing that was acknowledged, and when there is room everything goes on by itself.

use std::fs;
use std::path::Path;

use tests::pattern::{assert_same, pattern};
use tests::site::{Part, Site};
use tests::wait::eventually;

use super::{MIB, RECOVERY, health_says};

fn bytes(count: usize) -> u64 {
    u64::try_from(count).expect("a count in memory")
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("an offset into memory")
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).expect("look at a file").len()
}

/// A new upload that hardly needs any room.
const NEW: [(&str, &str); 1] = [("Upload-Length", "10")];

/// Fills what is left in `folder` of the site with a file, and answers where it is.
fn fill(site: &Site, folder: &str) -> std::path::PathBuf {
    let path = site.seen(&site.data().join(folder).join("somebody-elses"));
    let mut file = fs::File::create(&path).expect("make a file");
    let mut piece = vec![7; MIB];
    while !piece.is_empty() {
        match std::io::Write::write(&mut file, &piece) {
            Ok(written) => assert!(written > 0),
            Err(_) => piece.truncate(piece.len() / 2),
        }
    }
    path
}

/// Row 11, promise 1: one small disk for uploads, copies, reports and records. It fills while an upload comes: 507, HEAD
/// tells the bytes that are there, also after a kill, and nothing else is lost; when there is room it goes on.
#[tokio::test]
async fn a_disk_that_holds_everything_fills_up_and_nothing_is_lost() {
    let mut site = Site::build()
        .disk("", "size=12m")
        .env("RAW_RESERVE", "2MiB")
        .start()
        .await;
    let client = site.client();
    let done = client.create(1000, &[("filename", "done.bin")]).await;
    done.append(0, &pattern(1, 1000)).await;
    for target in ["dex", "edav"] {
        assert_same(target, &site.delivered(target, &done.id).await, &pattern(1, 1000));
    }
    let other = client.create(2000, &[("filename", "other.bin")]).await;
    other.append(0, &pattern(2, 1000)).await;

    let content = pattern(3, 12 * MIB);
    let large = client.create(content.len(), &[("filename", "large.bin")]).await;
    let refused = large.patch(0, &content).await;
    assert_eq!(refused.status, 507, "{}", refused.text());
    let kept = large.offset().await;
    assert!(kept > bytes(MIB), "{kept} bytes were kept");
    assert_eq!(client.tus("POST", client.collection(), &NEW, "").await.status, 507);
    assert_eq!(large.patch(kept, &content[index(kept)..]).await.status, 507);
    // A little more may have fitted: others let go of some room.
    let before = kept;
    let kept = large.offset().await;
    assert!(kept >= before, "the repeat lost something: {kept} of {before}");

    site.kill();
    // Others take what the reserve kept: Ferry starts on a disk without a free byte.
    let others = fill(&site, "");
    site.restart().await;
    assert_eq!(large.offset().await, kept, "HEAD told bytes that are not there");
    let longest = site.staged("raw").iter().map(|path| length(path)).max();
    assert_eq!(longest, Some(kept), "HEAD tells what is stored");
    assert_eq!(other.offset().await, 1000, "another upload lost something");
    assert_eq!(done.head().await.expect(200).number("Upload-Offset"), Some(1000));
    assert_eq!(large.info().await["upload_status"]["status"], "In Progress");
    eventually("the metric", RECOVERY, || async {
        (site.metrics(Part::Up).await.sum("ferry_raw_free_bytes", &[]) < 2.1e6).then_some(())
    })
    .await;

    fs::remove_file(&others).expect("others make room");
    site.mounts().remount(&site.data(), "size=56m");
    other.append(1000, &pattern(2, 2000)[1000..]).await;
    large.append(kept, &content[index(kept)..]).await;
    for target in ["dex", "edav"] {
        assert_same(target, &site.delivered(target, &large.id).await, &content);
        assert_same(target, &site.delivered(target, &other.id).await, &pattern(2, 2000));
    }
    client.tus("POST", client.collection(), &NEW, "").await.expect(201);
}

/// Row 11: the kernel itself says no in the middle of a part; 507, HEAD tells the bytes kept, the record is as it was,
/// finished uploads and records live; when room is made the upload goes on and is delivered.
#[tokio::test]
async fn an_upload_that_fills_the_disk_keeps_its_bytes_and_goes_on_when_there_is_room() {
    let site = Site::build()
        .disk("raw", "size=4m")
        .env("RAW_RESERVE", "0")
        .start()
        .await;
    let client = site.client();
    let first = client.create(1000, &[("filename", "first.bin")]).await;
    first.append(0, &pattern(1, 1000)).await;
    assert_same("first", &site.delivered("dex", &first.id).await, &pattern(1, 1000));
    let other = client.create(2000, &[("filename", "other.bin")]).await;
    other.append(0, &pattern(2, 1000)).await;

    let content = pattern(3, 6 * MIB);
    let large = client.create(content.len(), &[("filename", "large.bin")]).await;
    let answer = large.patch(0, &content).await;
    assert_eq!(answer.status, 507, "{}", answer.text());
    let kept = large.offset().await;
    assert!(
        kept > 3 * bytes(MIB) && kept % bytes(MIB) != 0,
        "the part of a part is kept: {kept}"
    );
    let staged = site.staged("raw").iter().map(|path| length(path)).max();
    assert_eq!(staged, Some(kept), "HEAD tells the bytes that are there");
    assert_eq!(large.info().await["upload_status"]["status"], "In Progress");
    assert_eq!(client.tus("POST", client.collection(), &NEW, "").await.status, 507);
    assert_eq!(other.offset().await, 1000, "another upload lost something");
    assert_eq!(first.head().await.status, 200);
    eventually("the metric", RECOVERY, || async {
        (site.metrics(Part::Up).await.sum("ferry_raw_free_bytes", &[]) < 65536.0).then_some(())
    })
    .await;

    site.mounts().remount(&site.data().join("raw"), "size=16m");
    other.append(1000, &pattern(2, 2000)[1000..]).await;
    large.append(kept, &content[index(kept)..]).await;
    assert_same("large", &site.delivered("edav", &large.id).await, &content);
    assert_same("other", &site.delivered("edav", &other.id).await, &pattern(2, 2000));
}

/// Row 11, core.md §3 "Space": below the reserve only new uploads are refused; a running one ends, and one that would
/// eat what records need stops.
#[tokio::test]
async fn below_the_reserve_new_uploads_are_refused_and_running_ones_end() {
    let site = Site::build()
        .disk("raw", "size=16m")
        .env("RAW_RESERVE", "8MiB")
        .start()
        .await;
    let client = site.client();
    let small = client.create(2 * MIB, &[("filename", "small.bin")]).await;
    let large = client.create(20 * MIB, &[("filename", "large.bin")]).await;
    large.append(0, &pattern(1, 9 * MIB)).await;
    let new = eventually("the refusal", RECOVERY, || async {
        let answer = client.tus("POST", client.collection(), &NEW, "").await;
        (answer.status == 507).then_some(answer)
    })
    .await;
    assert!(new.text().contains("space"), "{}", new.text());
    small.append(0, &pattern(2, 2 * MIB)).await;
    assert_same("small", &site.delivered("dex", &small.id).await, &pattern(2, 2 * MIB));
    let rest = &pattern(1, 20 * MIB)[9 * MIB..];
    assert_eq!(large.patch(bytes(9 * MIB), rest).await.status, 507);
    let kept = large.offset().await;
    assert!(
        (9 * bytes(MIB)..=10 * bytes(MIB)).contains(&kept),
        "half of the reserve is left: {kept}"
    );
    assert_eq!(large.delete().await.status, 204);
    // The file goes a moment after the answer.
    eventually("room for a new upload", RECOVERY, || async {
        let new = client.tus("POST", client.collection(), &NEW, "");
        (new.await.status == 201).then_some(())
    })
    .await;
}

/// Row 11 and rule 5: a full target is transient and holds up nothing else; the copy arrives by itself.
#[tokio::test]
async fn a_full_target_gets_its_copy_when_there_is_room_and_the_other_at_once() {
    let site = Site::build()
        .disk("dex", "size=1m")
        .env("RETRY_DELAYS", "1s,1s,1s,2s,2s,2s,5s,5s,5s,5s,5s,10s")
        .start()
        .await;
    let content = pattern(5, 3 * MIB);
    let upload = site.client().create(content.len(), &[("filename", "x.bin")]).await;
    upload.append(0, &content).await;
    assert_same("edav", &site.delivered("edav", &upload.id).await, &content);
    eventually("a failed try", RECOVERY, || async {
        let metrics = site.metrics(Part::Up).await;
        (metrics.count("ferry_copy_retries_total", &[("class", "transient")]) > 0).then_some(())
    })
    .await;
    assert!(site.files("dex").is_empty(), "a short copy is visible");
    site.mounts().remount(&site.data().join("dex"), "size=8m");
    assert_same("dex", &site.delivered("dex", &upload.id).await, &content);
}

/// Row 11, core.md §3: a full database is transient, no state is taken back, and it recovers by itself.
#[tokio::test]
async fn full_records_refuse_and_keep_what_they_have_and_work_again_by_themselves() {
    let site = Site::build()
        .disk("", "size=24m")
        .disk("raw", "size=24m")
        .env("RAW_RESERVE", "0")
        .start()
        .await;
    let client = site.client();
    let done = client.create(1000, &[("filename", "done.bin")]).await;
    done.append(0, &pattern(1, 1000)).await;
    site.delivered("dex", &done.id).await;
    site.delivered("edav", &done.id).await;
    let open = client.create(2 * MIB, &[("filename", "open.bin")]).await;
    open.append(0, &pattern(2, MIB)).await;

    let ballast = fill(&site, ".");
    // What the log still has room for is used up by trying.
    let refused = eventually("a refusal", RECOVERY, || async {
        let answer = client.tus("POST", client.collection(), &NEW, "").await;
        (answer.status != 201).then_some(answer)
    })
    .await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    health_says(&site, "Records", "DOWN", 503).await;
    assert_eq!(open.offset().await, bytes(MIB));
    assert_eq!(done.info().await["upload_status"]["status"], "Complete");
    // The last byte is kept, although it cannot be recorded that it is the last.
    let last = open.patch(bytes(MIB), &pattern(2, 2 * MIB)[MIB..]).await;
    assert_eq!(last.status, 503, "{}", last.text());

    fs::remove_file(ballast).expect("make room");
    health_says(&site, "Records", "UP", 200).await;
    // Nobody sends anything more: the sweeper finishes it.
    let arrived = tests::wait::within("the delivery", RECOVERY, site.delivered("edav", &open.id)).await;
    assert_same("open", &arrived, &pattern(2, 2 * MIB));
    client.create(10, &[("filename", "new.bin")]).await;
}
