//! HEAD while a PATCH runs: answered at once from what is acknowledged, never waiting for the writer.
//! Spec: tus.md, row "HEAD"; core.md §1, "Acknowledged"; FACTS: an idle sender's bytes are written after a second.

use std::time::{Duration, Instant};

use tests::pattern::{assert_same, pattern};
use tests::raw::SlowPatch;
use tests::site::{LIMIT, Site};
use tests::wait::eventually;

const MIB: usize = 1024 * 1024;
const PIECE: usize = 64 * 1024;
/// The specification's limit.
const AT_ONCE: Duration = Duration::from_millis(100);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn head_is_answered_at_once_while_a_slow_patch_runs() {
    let site = Site::start().await;
    let content = pattern(1, 8 * MIB);
    let upload = site.client().create(content.len(), &[("filename", "slow.bin")]).await;
    let mut patch = SlowPatch::begin(site.addr(), &upload.path(), 0, content.len()).await;
    let mut waits = Vec::new();
    let mut before = 0;
    let mut sent = 0;
    for piece in content[..content.len() - PIECE].chunks(PIECE) {
        patch.send(piece).await.expect("send a piece");
        sent += u64::try_from(piece.len()).expect("a size");
        let begin = Instant::now();
        let offset = upload.offset().await;
        waits.push(begin.elapsed());
        assert!(before <= offset, "HEAD said {before} and then {offset}");
        assert!(offset <= sent, "HEAD says {offset}, but only {sent} were sent");
        before = offset;
    }
    waits.sort_unstable();
    // The slowest of these hundred and more may be the machine's.
    let worst = waits[waits.len() - 3];
    assert!(worst < AT_ONCE, "{:?}", &waits[waits.len() - 10..]);

    // The sender pauses, its connection open: HEAD sees all that came.
    eventually("HEAD tells every byte that came", LIMIT, || async {
        (upload.offset().await == sent).then_some(())
    })
    .await;
    let rest = &content[content.len() - PIECE..];
    patch.send(rest).await.expect("send the last piece");
    let answer = patch.answer().await.expect("an answer");
    assert_eq!(answer.status, 204, "{answer:?}");
    assert_eq!(answer.header("Upload-Offset"), Some(content.len().to_string().as_str()));
    for target in ["dex", "edav"] {
        assert_same(target, &site.delivered(target, &upload.id).await, &content);
    }
}

/// The old connection hangs: the new PATCH takes the upload over, and what the old one had persisted counts
/// (core.md §3, "One writer"; faults.md row 8). A PATCH with a wrong offset disturbs nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_patch_takes_over_from_one_that_hangs() {
    let site = Site::start().await;
    let content = pattern(2, 2 * MIB);
    let upload = site.client().create(content.len(), &[]).await;
    let mut hanging = SlowPatch::begin(site.addr(), &upload.path(), 0, content.len()).await;
    hanging.send(&content[..300_000]).await.expect("send a part");
    eventually("what came is written", LIMIT, || async {
        (upload.offset().await == 300_000).then_some(())
    })
    .await;
    for wrong in [0, 299_999, 300_001] {
        assert_eq!(
            upload.patch(wrong, b"x").await.expect(409).number("Upload-Offset"),
            Some(300_000)
        );
    }
    hanging
        .send(&content[300_000..300_001])
        .await
        .expect("it is still served");
    let stored = eventually("the byte is written", LIMIT, || async {
        let offset = upload.offset().await;
        (offset == 300_001).then_some(offset)
    })
    .await;
    let begin = Instant::now();
    let taken = upload.append(stored, &content[300_001..300_002]).await;
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    let answer = hanging.answer().await;
    assert!(answer.as_ref().is_none_or(|answer| answer.status >= 400), "{answer:?}");
    upload.append(taken, &content[300_002..]).await;
    assert_same("dex", &site.delivered("dex", &upload.id).await, &content);
}
