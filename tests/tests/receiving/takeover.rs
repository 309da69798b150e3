//! Row 8: an old connection hangs, and a new PATCH takes the upload over, in one process within 50 ms.

use std::time::{Duration, Instant};

use tests::client::Upload;
use tests::pattern::pattern;
use tests::proxy::Faults;
use tests::raw::SlowPatch;

use super::{Far, index, length, until_stored};

/// tus.md: "the new PATCH takes over in ≤ 50 ms on one machine".
const TAKEOVER: Duration = Duration::from_millis(50);
const ROUNDS: usize = 15;
const STEP: usize = 10_000;

async fn timed(upload: &Upload, offset: usize, bytes: &[u8]) -> Duration {
    let begin = Instant::now();
    upload.append(length(offset), bytes).await;
    begin.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Row 8. A black hole between the old sender and the server: neither can end the old request but the new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_patch_takes_over_at_once_from_a_connection_that_hangs() {
    let far = Far::start(&[]).await;
    let content = pattern(1, ROUNDS * 3 * STEP);
    let upload = far.site.client().create(content.len(), &[]).await;
    let (mut plain, mut takeovers) = (Vec::new(), Vec::new());
    for at in (0..ROUNDS).map(|round| round * 3 * STEP) {
        // What the same costs when nobody is in the way.
        plain.push(timed(&upload, at, &content[at..at + STEP]).await);
        let at = at + STEP;
        far.proxy.set_new(Faults::none());
        let mut old = SlowPatch::begin(far.proxy.addr(), &upload.path(), length(at), content.len() - at).await;
        old.send(&content[at..at + STEP]).await.expect("send a part");
        until_stored(&upload, at + STEP).await;
        far.proxy.set_running(Faults::blackhole());
        old.send(&content[at + STEP..]).await.expect("the hole takes it");
        let at = index(upload.offset().await);
        takeovers.push(timed(&upload, at, &content[at..at + STEP]).await);
    }
    println!("plain {plain:?}, takeovers {takeovers:?}");
    let (plain, takeover) = (median(plain), median(takeovers));
    assert!(
        takeover <= plain + TAKEOVER,
        "{takeover:?}, and {plain:?} without anybody in the way"
    );
    assert_eq!(far.count("ferry_uploads_takeover_total").await, length(ROUNDS));
    // What was persisted by the old ones counted, and nothing of the rest came in.
    let counts = far.proxy.counts();
    assert_eq!((counts.accepted, counts.to_client), (length(ROUNDS), 0), "{counts:?}");
    far.site.expect_delivered(&upload, &content).await;
}
