//! One target that is slow or dead takes nothing from the others. Promise 5 of DESIGN.md.
//!
//! Speeds are compared within one run: rounds with and without the fault take turns, and their medians count.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use shared::checksum::Crc64;
use shared::upload::{DeliveryState, UploadId};

use crate::pace::Pace;
use crate::site::{MIB, Site, pattern, until};

/// Files of a round: most of them small, as most are, and some of many parts.
const SMALL: usize = 150;
const LARGE: usize = 4;
/// Rounds of each kind.
const ROUNDS: usize = 3;
const CONCURRENCY: usize = 8;

/// How long `dex` needs for all files of a round whose other target answers at this pace.
async fn round(pace: Pace) -> Duration {
    let mut site = Site::new();
    site.config.concurrency = CONCURRENCY;
    // Those of a real site: at shorter ones, the waiting deliveries alone would keep the worker busy.
    site.config.retry_delays = [5, 30, 120].map(Duration::from_secs).to_vec();
    site.edav.pace(pace);
    let sizes = std::iter::repeat_n(20_000, SMALL).chain(std::iter::repeat_n(8 * MIB, LARGE));
    let uploads: Vec<(UploadId, Vec<u8>)> = sizes.map(|size| (UploadId::random(), pattern(size))).collect();
    for (id, body) in &uploads {
        site.put_raw(*id, body).await;
    }
    site.start();
    let metrics = site.foundation.metrics.clone();
    let delivered = metrics.copies.with_label_values(&["dex", "succeeded"]);
    let held = metrics.copies_in_flight.with_label_values(&["edav"]);
    let most = AtomicI64::new(0);
    let begun = Instant::now();
    join_all(uploads.iter().map(|(id, body)| site.announce(*id, Crc64::of(body)))).await;
    until("dex to have all", || async {
        most.fetch_max(held.get(), Ordering::Relaxed);
        (delivered.get() == uploads.len() as u64).then_some(())
    })
    .await;
    let took = begun.elapsed();
    let most = usize::try_from(most.into_inner()).unwrap();
    assert!(
        most <= CONCURRENCY / 2,
        "{most} of {CONCURRENCY} places held by one target"
    );
    if pace != Pace::Free {
        assert!(most > 0, "the slow target was not even asked");
        for (id, _) in uploads.iter().step_by(10) {
            assert_eq!(
                site.delivery(*id, "edav").await.attempts,
                0,
                "no try is used up by waiting"
            );
        }
    }
    took
}

/// The part of its speed that `dex` keeps.
async fn kept_speed(pace: Pace) -> f64 {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        without.push(round(Pace::Free).await);
        with.push(round(pace).await);
    }
    with.sort_unstable();
    without.sort_unstable();
    println!("{pace:?}: {with:?}, without {without:?}");
    without[ROUNDS / 2].as_secs_f64() / with[ROUNDS / 2].as_secs_f64()
}

/// Row 61: one target at 1 KiB/s. It holds half of the worker at most, and the others keep four fifths of their speed.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_at_one_kibibyte_a_second_leaves_the_others_their_speed() {
    let kept = kept_speed(Pace::BytesPerSecond(1024)).await;
    assert!(kept >= 0.8, "dex keeps {kept:.2} of its speed");
}

/// Row 60: one target never answers. The other target of the same files, and other files, do not notice.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_never_answers_leaves_the_others_their_speed() {
    let kept = kept_speed(Pace::Hangs).await;
    assert!(kept >= 0.95, "dex keeps {kept:.2} of its speed");
}

/// Row 61: what waited for a slow target arrives when that is quick again, also a part that was on its way; and a
/// slice ends in time although no whole range gets through.
#[tokio::test(flavor = "multi_thread")]
async fn slices_of_a_slow_target_end_by_time_and_all_of_it_arrives_once_it_is_quick() {
    let mut site = Site::new();
    site.config.concurrency = 2;
    site.config.slice_time = Duration::from_millis(500);
    site.start();
    site.edav.pace(Pace::BytesPerSecond(64 * 1024));
    let body = pattern(3 * MIB);
    let first = site.upload(&body).await;
    // At this rate a range takes 16 s: checkpoints in between are those of slices that ended.
    let copied = |delivery: &shared::upload::DeliveryRecord| {
        let copied = delivery
            .checkpoint
            .as_ref()
            .map_or(0, |checkpoint| checkpoint.copied.covered());
        delivery.claim.is_none() && delivery.state == DeliveryState::Pending && copied > 0 && copied < MIB as u64
    };
    site.delivery_when(first, "edav", copied).await;
    assert_eq!(site.outcome(first, "dex").await.state, DeliveryState::Succeeded);
    let second = site.upload(&body).await;
    assert_eq!(site.outcome(second, "dex").await.state, DeliveryState::Succeeded);
    site.edav.pace(Pace::Free);
    for id in [first, second] {
        site.delivered(id).await;
        let edav = site.delivery(id, "edav").await;
        assert!(site.object(&edav).await.unwrap().1 == body);
        assert_eq!(edav.attempts, 0);
        assert_eq!(site.reports(id).await.len(), 2);
    }
    let written = site.edav.written_bytes.load(Ordering::Relaxed);
    assert!(written <= 2 * body.len() as u64 + MIB as u64, "{written} bytes written");
}
