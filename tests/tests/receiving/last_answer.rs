//! Row 3: the answer of the last PATCH is lost: the repeat gets 204, only when it is recorded, and finishing is not
//! done twice. Promise 4 of DESIGN.md.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tests::pattern::pattern;
use tests::proxy::{Break, Faults};
use tests::raw::{SlowPatch, exchange};
use tests::reports::action;
use tests::site::{LIMIT, TARGETS};
use tests::wait::eventually;

use super::{Far, Request, length, until_committing};

/// Row 3.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_missed_the_last_answer_is_told_and_nothing_is_done_twice() {
    for durability in ["finish", "patch"] {
        let far = Far::start(&[("DURABILITY", durability)]).await;
        let client = far.site.client();
        let content = pattern(1, 300_000);
        let upload = client.create(content.len(), &[]).await;
        upload.append(0, &content[..100_000]).await;
        let last = Request::patch_of(&upload, 100_000, &content[100_000..]);
        far.proxy.set(Faults::no_answer());
        assert!(exchange(far.proxy.addr(), &last.bytes).await.is_none());
        let counts = far.proxy.counts();
        assert_eq!(
            (counts.cut, counts.to_server),
            (1, length(last.bytes.len())),
            "{counts:?}"
        );

        // The same again, to the byte: its offset is no longer the upload's, and the answer says where that is.
        far.proxy.set(Faults::none());
        let repeat = exchange(far.proxy.addr(), &last.bytes).await.expect("an answer");
        assert_eq!(repeat.status, 409, "{repeat:?}");
        assert_eq!(repeat.header("Upload-Offset"), Some("300000"));
        assert_eq!(upload.offset().await, 300_000);
        // From there on, which is how the protocol wants it; also many at once.
        let far_away = far.client().upload_of(&upload.id);
        for answer in join_all((0..5).map(|_| far_away.patch(300_000, b""))).await {
            assert_eq!(answer.expect(204).number("Upload-Offset"), Some(300_000));
        }
        far.site.expect_delivered(&upload, &content).await;
        assert_eq!(upload.append(300_000, b"").await, 300_000, "also after its delivery");
        assert_done_once(&far, &upload.id).await;
    }
}

/// One object, one set of reports, one finishing.
async fn assert_done_once(far: &Far, id: &str) {
    let reports = far.site.reports_of(id, 7).await;
    let of = |name: &str| reports.iter().filter(|report| action(report) == name).count();
    assert_eq!((of("upload-completed"), of("blob-file-copy")), (1, 2), "{reports:#?}");
    for container in ["raw", TARGETS[0], TARGETS[1]] {
        assert_eq!(far.site.files(container).len(), 1, "{container}");
    }
    assert_eq!(far.count("ferry_uploads_finished_total").await, 1);
    let copies = far
        .site
        .metrics(tests::site::Part::Up)
        .await
        .count("ferry_copies_total", &[]);
    assert_eq!(copies, 2);
}

/// Row 3: "204 only if recorded". The finishing is held up between its steps while its sender is lost and others ask.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_repeat_is_answered_only_when_the_end_is_recorded() {
    const HELD: Duration = Duration::from_secs(3);
    for (durability, step) in [("finish", "finish.claimed"), ("patch", "finish.object-whole")] {
        let mut far = Far::start(&[
            ("DURABILITY", durability),
            ("SWEEP_INTERVAL", "100ms"),
            ("FERRY_FAILPOINTS", &format!("{step}=delay:{}ms", HELD.as_millis())),
        ])
        .await;
        let client = far.site.client();
        let content = pattern(2, 50_000);
        let upload = client.create(content.len(), &[]).await;
        let mut last = SlowPatch::begin(far.proxy.addr(), &upload.path(), 0, content.len()).await;
        last.send(&content).await.expect("send everything");
        eventually("the finishing is held up", LIMIT, || async {
            let log = far.site.log();
            log.lines()
                .any(|line| line.contains("failpoint") && line.contains(step))
                .then_some(())
        })
        .await;
        let begin = Instant::now();
        far.proxy.break_running(Break::Reset);
        let id = upload.id.parse().expect("an upload's id");
        let (records, _) = far.site.database();
        let record = records.upload(id).await.expect("its record");
        assert!(!record.state.is_committed(), "{:?}", record.state);
        until_committing(&far, 1).await;
        let repeats = (0..4).map(|_| async {
            let answer = upload.patch(50_000, b"").await.expect(204);
            assert_eq!(answer.number("Upload-Offset"), Some(50_000));
            let record = records.upload(id).await.expect("its record");
            assert!(record.state.is_committed(), "204 in the state {:?}", record.state);
            begin.elapsed()
        });
        let waited = join_all(repeats).await;
        assert!(
            waited.iter().min().is_some_and(|least| *least > HELD / 3),
            "it was not held up: {waited:?}"
        );
        until_committing(&far, 0).await;
        // What was told is still so when nothing of the process has run on.
        far.site.kill();
        let record = records.upload(id).await.expect("its record");
        assert!(record.state.is_committed() && record.completed.is_some(), "{record:?}");
        drop(records);
        far.site.restart().await;
        far.site.expect_delivered(&upload, &content).await;
        let completed = far.site.reports();
        let completed = completed.iter().filter(|report| action(report) == "upload-completed");
        assert_eq!(completed.count(), 1);
    }
}
