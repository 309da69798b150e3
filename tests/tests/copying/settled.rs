//! What a delivery comes to when its source is gone, its name is taken, its upload deleted, or its message comes again.
//! Promises 2 and 4 of DESIGN.md; faults.md rows 38, 54, 62, 67.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use rusqlite::Connection;
use shared::bus::Bus;
use shared::message::{Message, Queue};
use shared::records::{Records, Verdict};
use shared::upload::{DeliveryRecord, DeliveryState, UploadRecord};
use tests::client::Upload;
use tests::pattern::{assert_same, pattern};
use tests::reports::destination;
use tests::site::{LIMIT, Part, Site, TARGETS};
use tests::wait::eventually;
use tests::work::copy_message;

use crate::{COPIER, FAILPOINTS, MIB, deliveries, final_reports, id_of, outcomes, send, staged};

/// Row 54: the raw object is gone before the copy. Given up at once, and told everywhere.
#[tokio::test]
async fn a_raw_object_that_is_gone_is_told_at_once() {
    const TEXT: &str = "source file does not exist";
    let mut site = Site::build().copiers(1).start().await;
    site.kill_part(COPIER);
    let upload = send(&site, &pattern(6, 100_000)).await;
    fs::remove_file(site.data().join("raw").join(&upload.id)).expect("remove the raw object");
    site.restart_part(COPIER).await;
    let (records, bus) = site.database();
    for delivery in outcomes(records.as_ref(), &upload).await {
        let ended = (delivery.state, delivery.attempts);
        assert_eq!(ended, (DeliveryState::Failed, 1), "no endless retry");
    }
    let info = upload.info().await;
    for delivery in info["deliveries"].as_array().expect("deliveries") {
        assert_eq!(delivery["status"], "FAILURE");
        assert_eq!(delivery["issues"][0]["message"], TEXT);
    }
    for report in final_reports(&site, &upload, "FAILURE").await {
        assert_eq!(report["stage_info"]["issues"][0]["message"], TEXT);
    }
    let letters = bus.dead_letters(10).await.expect("read the dead letters");
    assert!(letters.iter().all(|letter| letter.reason.contains(TEXT)), "{letters:?}");
    assert_eq!(letters.len(), TARGETS.len());
    let metrics = site.metrics(COPIER).await;
    let dead = metrics.count("ferry_dead_letters_total", &[("reason", "source")]);
    assert_eq!(dead, TARGETS.len() as u64);
}

/// Row 62: the name is taken in `dex`, by a stranger's file or by another upload's copy. It is replaced, as is the
/// default, and the report warns of what was replaced.
#[tokio::test]
async fn a_taken_name_is_replaced_with_a_warning_that_says_what_was_there() {
    let mut site = Site::build().copiers(1).start().await;
    let earlier = send(&site, &pattern(11, 1000)).await;
    let copy_of_earlier = PathBuf::from(site.delivery("dex", &earlier.id).await);
    let written: fn(&Path, &Path) = |_, name| fs::write(name, b"a stranger's").expect("take the name");
    let renamed: fn(&Path, &Path) = |copy, name| fs::rename(copy, name).expect("take the name");
    let another = format!("the copy of upload {}", earlier.id);
    for (take, what) in [(written, "an object that Ferry did not write"), (renamed, &another)] {
        site.kill_part(COPIER);
        let content = pattern(7, 100_000);
        let upload = send(&site, &content).await;
        let (records, _) = site.database();
        let all = deliveries(records.as_ref(), &upload).await;
        let name = PathBuf::from(&all[0].to.location);
        fs::create_dir_all(name.parent().expect("a file in a folder")).expect("make the folder");
        take(&copy_of_earlier, &name);
        site.restart_part(COPIER).await;
        for target in TARGETS {
            assert_same(target, &site.delivered(target, &upload.id).await, &content);
        }
        for report in final_reports(&site, &upload, "SUCCESS").await {
            let issue = &report["stage_info"]["issues"][0];
            if destination(&report) == Some("dex") {
                assert_eq!(issue["level"], "WARNING", "{report}");
                let text = issue["message"].as_str().expect("a text");
                assert!(text.contains(what), "{text}");
            } else {
                assert!(issue.is_null(), "{report}");
            }
        }
    }
}

/// Row 67: DELETE in the middle of the copies. The URL is gone at once; the copies come to their end, and only then
/// the raw object goes.
#[tokio::test]
async fn an_upload_that_is_deleted_during_its_copies_is_delivered_and_then_removed() {
    let content = pattern(8, 4 * MIB);
    let site = Site::build()
        .env("SWEEP_INTERVAL", "200ms") // it looks whether the object may go all the time
        .env(FAILPOINTS, "copy.part-written=delay:500ms");
    let site = site.start().await;
    let upload = send(&site, &content).await;
    for target in TARGETS {
        staged(&site, target, 1).await;
    }
    upload.delete().await.expect(204);
    assert_eq!(upload.head().await.status, 410);
    let raw = site.data().join("raw").join(&upload.id);
    let (records, _) = site.database();
    eventually("both copies to be there", LIMIT, || async {
        // In this order: what is final now may have been removed a moment ago.
        let exists = raw.exists();
        let all = deliveries(records.as_ref(), &upload).await;
        let delivered = all.iter().all(|delivery| delivery.state == DeliveryState::Succeeded);
        assert!(exists || delivered, "the raw object went before the copies were there");
        delivered.then_some(())
    })
    .await;
    for target in TARGETS {
        let files = site.files(target);
        assert_eq!(files.len(), 1, "{target}");
        assert_same(target, &fs::read(&files[0]).expect("read the copy"), &content);
    }
    eventually("the raw object to be removed", LIMIT, || async {
        (!raw.exists()).then_some(())
    })
    .await;
    final_reports(&site, &upload, "SUCCESS").await;
}

/// Row 38: days later, when its consumer has taken the delivered object away, the message comes again: nothing is
/// delivered a second time, nothing reported. Nor when nothing is known of the upload any more: that is a dead letter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_comes_again_after_days_delivers_nothing_a_second_time() {
    const LATER: SignedDuration = SignedDuration::from_hours(9 * 24);
    let site = Site::build().env("SWEEP_INTERVAL", "200ms").start().await;
    let content = pattern(12, 50_000);
    let upload = send(&site, &content).await;
    for target in TARGETS {
        let location = site.delivery(target, &upload.id).await;
        assert_same(target, &fs::read(&location).expect("read the copy"), &content);
        fs::remove_file(&location).expect("take the object away");
    }
    let reports = final_reports(&site, &upload, "SUCCESS").await;
    let (records, bus) = site.database();
    let message = copy_message(records.as_ref(), id_of(&upload)).await;
    make_older(records.as_ref(), &upload, LATER).await;
    publish(bus.as_ref(), vec![message.clone(); 3]).await;
    let metrics = site.metrics(Part::Up).await;
    let skipped = metrics.count("ferry_copy_skipped_total", &[("reason", "final")]);
    assert_eq!(skipped, 3 * TARGETS.len() as u64);
    assert_eq!(metrics.count("ferry_copies_total", &[]), TARGETS.len() as u64);

    upload.delete().await.expect(204);
    eventually("the upload to be deleted", LIMIT, || async {
        (!site.data().join("raw").join(&upload.id).exists()).then_some(())
    })
    .await;
    publish(bus.as_ref(), vec![message.clone()]).await;
    let metrics = site.metrics(Part::Up).await;
    let skipped = metrics.count("ferry_copy_skipped_total", &[("reason", "final")]);
    assert_eq!(skipped, 4 * TARGETS.len() as u64, "its tombstone remembers");
    forget(&site, &upload, LATER).await;
    publish(bus.as_ref(), vec![message]).await;
    let letters = bus.dead_letters(10).await.expect("read the dead letters");
    assert_eq!(letters.len(), 1, "{letters:#?}");
    assert!(letters[0].reason.contains(&upload.id), "{letters:#?}");
    for target in TARGETS {
        let found = [site.files(target), site.staged(target)].concat();
        assert!(found.is_empty(), "{found:?}");
    }
    assert_eq!(final_reports(&site, &upload, "SUCCESS").await, reports);
}

/// Puts `messages` on the bus, and waits until each was looked at.
async fn publish(bus: &dyn Bus, messages: Vec<Message>) {
    for answer in bus.publish(messages).await {
        answer.expect("publish the same again");
    }
    eventually("each to be looked at", LIMIT, || async {
        let depth = bus.depth(Queue::Copy).await.expect("count messages");
        (depth.ready + depth.in_flight + depth.delayed == 0).then_some(())
    })
    .await;
}

/// Lets all that is recorded of `upload` have happened so much earlier.
async fn make_older(records: &dyn Records, upload: &Upload, by: SignedDuration) {
    let older = move |time: &mut Timestamp| *time -= by;
    let edit = move |record: &mut UploadRecord| {
        older(&mut record.created_at);
        record
            .completed
            .iter_mut()
            .for_each(|completed| older(&mut completed.at));
        Verdict::Write
    };
    let edited = records.edit_upload(id_of(upload), Box::new(edit)).await;
    edited.expect("change the record");
    for target in TARGETS {
        let edit = move |record: &mut DeliveryRecord| {
            older(&mut record.published_at);
            let times = [
                &mut record.first_tried_at,
                &mut record.started_at,
                &mut record.finished_at,
            ];
            times.into_iter().flatten().for_each(older);
            Verdict::Write
        };
        let edited = records.edit_delivery(id_of(upload), target, Box::new(edit)).await;
        edited.expect("change the record");
    }
}

/// Waits until the sweeper has removed the tombstone of `upload`, after making it so much older.
async fn forget(site: &Site, upload: &Upload, by: SignedDuration) {
    let (records, _) = site.database();
    eventually("the upload to be terminated", LIMIT, || async {
        let record = records.upload(id_of(upload)).await.expect("read the record");
        (record.state == shared::upload::UploadState::Terminated && record.outbox.is_empty()).then_some(())
    })
    .await;
    // The records stamp each change themselves: only the file can be told otherwise.
    let file = Connection::open(site.data().join("ferry.db")).expect("open the database");
    file.busy_timeout(LIMIT).expect("set a time-out");
    let id = id_of(upload);
    let milliseconds = i64::try_from(by.as_millis()).expect("some days");
    let changed = file
        .execute(
            "UPDATE uploads SET changed_at = changed_at - ?1 WHERE id = ?2",
            rusqlite::params![milliseconds, id.as_bytes()],
        )
        .expect("change the record");
    assert_eq!(changed, 1);
    eventually("the tombstone to be removed", LIMIT, || async {
        (upload.head().await.status == 404).then_some(())
    })
    .await;
}
