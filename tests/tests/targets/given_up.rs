//! Waiting and trying have an end: what is given up is on `/info`, reported, and in the dead letters, and
//! `ferry redrive` brings it. Promise 2 of DESIGN.md.

use std::fs;

use tests::client::Upload;
use tests::pattern::assert_same;
use tests::site::{LIMIT, Part, Program, Site};
use tests::wait::eventually;

use super::{edav, sent, statuses};

/// Row 59, core.md §5: parked work is given up at RETRY_MAX_AGE.
#[tokio::test]
async fn a_delivery_that_waited_too_long_comes_by_redrive() {
    let site = Site::build()
        .env("RETRY_DELAYS", "1s")
        .env("RETRY_MAX_AGE", "2s")
        .start()
        .await;
    let (folder, aside) = (site.data().join("edav"), site.data().join("edav.aside"));
    fs::rename(&folder, &aside).expect("take the folder away");
    let (upload, content) = sent(&site, 1).await;
    given_up(&site, &upload, "configuration", "no such container").await;
    fs::rename(&aside, &folder).expect("give the folder back");
    redriven(&site, &upload, &content).await;
}

/// Row 11 at a target: a full disk is transient, so its tries are counted, and they end.
#[tokio::test]
async fn a_delivery_whose_tries_are_used_up_comes_by_redrive() {
    let site = Site::build()
        .disk("edav", "size=200k")
        .env("RETRY_DELAYS", "1s,1s")
        .start()
        .await;
    let (upload, content) = sent(&site, 2).await;
    let failed = given_up(&site, &upload, "transient", "no space left").await;
    assert_eq!(failed["attempts"], 3, "one, and one for each delay: {failed}");
    assert!(site.files("edav").is_empty(), "a short copy is visible");
    site.mounts().remount(&site.data().join("edav"), "size=8m");
    redriven(&site, &upload, &content).await;
}

/// Row 67 and promise 2: what its sender deleted is delivered first, also what had to be given up meanwhile.
#[tokio::test]
async fn a_deleted_upload_keeps_its_bytes_until_it_is_delivered() {
    let site = Site::build()
        .env("RETRY_DELAYS", "1s")
        .env("RETRY_MAX_AGE", "2s")
        .env("SWEEP_INTERVAL", "200ms")
        .start()
        .await;
    let (folder, aside) = (site.data().join("edav"), site.data().join("edav.aside"));
    fs::rename(&folder, &aside).expect("take the folder away");
    let (upload, content) = sent(&site, 3).await;
    let raw = site.data().join("raw").join(&upload.id);
    upload.delete().await.expect(204);
    eventually("it is given up", LIMIT, || async {
        (dead_letters(&site).await.len() == 1).then_some(())
    })
    .await;
    assert_eq!(upload.try_head().await.expect("an answer").status, 410);
    fs::rename(&aside, &folder).expect("give the folder back");
    // By then a sweep has looked at what is to be removed.
    let other = site.client().create(10, &[]).await;
    other.append(0, b"1234567890").await;
    site.expect_delivered(&other, b"1234567890").await;
    assert!(raw.exists(), "nothing is left to send again");

    let redrive = site.beside(Program::new("ferry").arg("redrive").arg("--data"));
    let ended = redrive.arg(&site.data().display().to_string()).run(LIMIT).await;
    assert!(
        ended.status.success() && ended.stdout.contains("sent again"),
        "{ended:?}"
    );
    eventually("the copy", LIMIT, || async {
        let files = site.files("edav");
        let copy = files
            .iter()
            .find(|path| path.display().to_string().contains(&upload.id))?;
        assert_same("edav", &fs::read(copy).expect("read the copy"), &content);
        Some(())
    })
    .await;
    eventually("the raw object is removed", LIMIT, || async {
        (!raw.exists()).then_some(())
    })
    .await;
}

/// What `/info` says of the delivery that is given up, once all that follows from it is there.
async fn given_up(site: &Site, upload: &Upload, class: &str, reason: &str) -> serde_json::Value {
    let failed = edav(upload, |edav| edav["status"] == "FAILURE").await;
    let text = failed["issues"][0]["message"].as_str().expect("what is wrong");
    assert!(text.contains(reason), "{failed}");
    let letters = eventually("the dead letter", LIMIT, || async {
        Some(dead_letters(site).await).filter(|letters| !letters.is_empty())
    })
    .await;
    assert!(letters.len() == 1 && letters[0].starts_with(class), "{letters:?}");
    // Counted a moment after it is recorded.
    eventually("the dead letter to be counted", LIMIT, || async {
        let metrics = site.metrics(Part::Up).await;
        (metrics.count("ferry_dead_letters_total", &[("reason", class)]) == 1).then_some(())
    })
    .await;
    failed
}

/// The reasons of all dead letters.
async fn dead_letters(site: &Site) -> Vec<String> {
    let (_, bus) = site.database();
    let letters = bus.dead_letters(10).await.expect("read the dead letters");
    letters.into_iter().map(|letter| letter.reason).collect()
}

/// `ferry redrive` brings it.
async fn redriven(site: &Site, upload: &Upload, content: &[u8]) {
    let redrive = site.beside(Program::new("ferry").arg("redrive").arg("--data"));
    let ended = redrive.arg(&site.data().display().to_string()).run(LIMIT).await;
    assert!(ended.status.success(), "{ended:?}");
    assert!(ended.stdout.contains(&upload.id), "{ended:?}");
    edav(upload, |edav| edav["status"] == "SUCCESS").await;
    assert_same("edav", &site.delivered("edav", &upload.id).await, content);
    eventually("no dead letter", LIMIT, || async {
        dead_letters(site).await.is_empty().then_some(())
    })
    .await;
    eventually("a report of each run", LIMIT, || async {
        (statuses(site, upload, "edav") == ["FAILURE", "SUCCESS"]).then_some(())
    })
    .await;
}
