//! Several workers on one queue.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use shared::bus::{Bus, Job};
use shared::message::Queue;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::{BusSite, LIMIT, SOON, assert_nothing_left, consume, next, publish_numbers, sample};
use super::{depth, eventually, wait_for_depth, within};
use crate::pattern::Random;

/// Two workers of two processes: both get some, each message goes to one of them, and none to both at once.
pub async fn two_consumers_share_the_work_and_never_a_job(site: &dyn BusSite) {
    const MESSAGES: u64 = 200;
    let (one, two) = (site.open().await, site.open().await);
    let done = Arc::new(Mutex::new(HashSet::new()));
    let in_hand = Arc::new(Mutex::new(HashSet::new()));
    let both_have_one = Arc::new(Barrier::new(2));
    let mut workers = JoinSet::new();
    for bus in [one.clone(), two] {
        let (done, in_hand, both_have_one) = (done.clone(), in_hand.clone(), both_have_one.clone());
        workers.spawn(async move {
            let mut consumer = consume(&*bus, 4).await;
            let mut first = true;
            loop {
                let job = next(&mut consumer).await;
                let id = job.message.id;
                assert!(
                    in_hand.lock().expect("no holder panics").insert(id),
                    "two workers have it"
                );
                if std::mem::take(&mut first) {
                    within("both workers get work", LIMIT, both_have_one.wait()).await;
                }
                tokio::task::yield_now().await;
                if sample::number(&job.message) < MESSAGES {
                    assert!(done.lock().expect("no holder panics").insert(id), "done twice");
                }
                assert!(in_hand.lock().expect("no holder panics").remove(&id));
                let last = sample::number(&job.message) >= MESSAGES;
                job.ack().await.expect("ack");
                if last {
                    return;
                }
            }
        });
    }
    publish_numbers(&*one, Queue::Copy, 0..MESSAGES).await;
    // Each worker ends with one of these; a prefetched one of the other's comes back when its consumer is dropped.
    publish_numbers(&*one, Queue::Copy, [MESSAGES, MESSAGES + 1]).await;
    while let Some(ended) = within("the workers end", LIMIT, workers.join_next()).await {
        ended.expect("a worker");
    }
    let mut rest = consume(&*one, 4).await;
    let mut done = done.lock().expect("no holder panics").clone();
    while u64::try_from(done.len()).expect("a small number") < MESSAGES {
        let job = next(&mut rest).await;
        assert!(done.insert(job.message.id), "done twice");
        job.ack().await.expect("ack");
    }
    assert_nothing_left(&*one, &mut rest).await;
}

/// What a consumer fetched and nobody took goes to the next worker at once, not after a time-out.
pub async fn a_dropped_consumer_gives_its_prefetched_jobs_back_at_once(site: &dyn BusSite) {
    let bus = site.open().await;
    publish_numbers(&*bus, Queue::Copy, 0..10).await;
    let mut greedy = consume(&*bus, 10).await;
    let job = next(&mut greedy).await;
    wait_for_depth(&*bus, 0, 10, 0).await;
    drop(job);
    drop(greedy);
    let mut consumer = consume(&*bus, 10).await;
    let mut numbers = HashSet::new();
    for _ in 0..10 {
        let job = within("a job that was given back", SOON, next(&mut consumer)).await;
        numbers.insert(sample::number(&job.message));
        job.ack().await.expect("ack");
    }
    assert_eq!(numbers, (0..10).collect());
    assert_nothing_left(&*bus, &mut consumer).await;
}

/// The same at any moment of the way from the queue into a worker's hand, while the process lives on: a job that got
/// stuck there would be with nobody, and no lease would ever end.
pub async fn consumers_that_are_dropped_while_they_fetch_keep_nothing(site: &dyn BusSite) {
    const JOBS: u64 = 10;
    let bus = site.open().await;
    publish_numbers(&*bus, Queue::Copy, 0..JOBS).await;
    for round in 0..40 {
        let mut fetching = consume(&*bus, 10).await;
        let taken = match round % 4 {
            0 => None,
            1 => eventually("a job", LIMIT, || std::future::ready(fetching.ready().map(Some))).await,
            _ => {
                eventually("it fetches", LIMIT, || async {
                    (depth(&*bus, Queue::Copy).await.in_flight > 0).then_some(())
                })
                .await;
                fetching.ready()
            }
        };
        drop(fetching);
        drop(taken);
    }
    wait_for_depth(&*bus, JOBS, 0, 0).await;
    let mut consumer = consume(&*bus, 10).await;
    let mut numbers = HashSet::new();
    for _ in 0..JOBS {
        let job = next(&mut consumer).await;
        numbers.insert(sample::number(&job.message));
        job.ack().await.expect("ack");
    }
    assert_eq!(numbers, (0..JOBS).collect());
    assert_nothing_left(&*bus, &mut consumer).await;
}

/// A worker that stops drops its consumer and finishes what it has: that is nobody else's meanwhile.
pub async fn a_job_in_hand_outlives_its_consumer(site: &dyn BusSite) {
    let bus = site.open().await;
    publish_numbers(&*bus, Queue::Copy, 0..4).await;
    let mut stopping = consume(&*bus, 4).await;
    let job = next(&mut stopping).await;
    assert_eq!(sample::number(&job.message), 0);
    drop(stopping);
    wait_for_depth(&*bus, 3, 1, 0).await;
    let mut consumer = consume(&*bus, 4).await;
    for _ in 0..3 {
        let other = next(&mut consumer).await;
        assert_ne!(other.message.id, job.message.id, "two workers have it");
        other.ack().await.expect("ack");
    }
    wait_for_depth(&*bus, 0, 1, 0).await;
    job.ack().await.expect("ack");
    assert_nothing_left(&*bus, &mut consumer).await;
}

/// Eight publishers, eight jobs at once, and workers that drop, put off and settle: each message is done.
pub async fn two_thousand_messages_go_through_and_none_is_lost(site: &dyn BusSite) {
    const MESSAGES: u64 = 2_000;
    const AT_ONCE: usize = 8;
    let bus = site.open().await;
    let publishers = (0..8).map(|n| {
        let bus = bus.clone();
        tokio::spawn(async move {
            for batch in 0..10 {
                let first = n * 250 + batch * 25;
                publish_numbers(&*bus, Queue::Copy, first..first + 25).await;
            }
        })
    });
    let publishers = join_all(publishers);
    let done = within("all messages are done", LIMIT * 3, work(bus.clone(), MESSAGES, AT_ONCE));
    let (published, done) = futures_util::future::join(publishers, done).await;
    for publisher in published {
        publisher.expect("a publisher");
    }
    assert_eq!(done, (0..MESSAGES).collect());
    wait_for_depth(&*bus, 0, 0, 0).await;
    assert_eq!(bus.dead_letters(10).await.expect("dead letters"), []);
}

/// Works until `expected` different numbers are done, at most `at_once` at a time. Answers the numbers.
async fn work(bus: Arc<dyn Bus>, expected: u64, at_once: usize) -> HashSet<u64> {
    let mut consumer = consume(&*bus, at_once).await;
    let mut running: JoinSet<Option<u64>> = JoinSet::new();
    let in_hand = Arc::new(AtomicUsize::new(0));
    let mut done = HashSet::new();
    let mut random = Random::new(2_000);
    while u64::try_from(done.len()).expect("a small number") < expected {
        tokio::select! {
            Some(ended) = running.join_next() => {
                if let Some(number) = ended.expect("a job") {
                    assert!(done.insert(number), "{number} was acknowledged and came again");
                }
            }
            job = consumer.next() => {
                let job = job.expect("the bus lost the consumer");
                let before = in_hand.fetch_add(1, Ordering::SeqCst);
                assert!(before < at_once, "more unsettled jobs than the prefetch");
                running.spawn(settle(job, random.below(20), in_hand.clone()));
            }
        }
    }
    done
}

async fn settle(job: Job, chance: u64, in_hand: Arc<AtomicUsize>) -> Option<u64> {
    let number = sample::number(&job.message);
    // Before it is settled: from then on the bus may hand out the next one.
    in_hand.fetch_sub(1, Ordering::SeqCst);
    match chance {
        0 => drop(job),
        1 => job.later(Duration::from_millis(10)).await.expect("later"),
        _ => {
            job.ack().await.expect("ack");
            return Some(number);
        }
    }
    None
}
