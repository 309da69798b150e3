//! Several processes on one bus, at once and one after the other.

use std::time::{Duration, Instant};

use shared::message::Queue;

use super::{BusSite, LIMIT, SOON, assert_nothing_left, consume, next, publish, publish_numbers, sample};
use super::{wait_for_depth, within};

/// Work that `ingest` publishes reaches an idle `copier` of another process within about a second.
pub async fn a_waiting_consumer_sees_work_of_another_process_soon(site: &dyn BusSite) {
    let (ingest, copier) = (site.open().await, site.open().await);
    let mut consumer = consume(&*copier, 2).await;
    for n in 0..3 {
        let begin = Instant::now();
        publish_numbers(&*ingest, Queue::Copy, [n]).await;
        let job = within("another process's work", SOON, next(&mut consumer)).await;
        assert_eq!(sample::number(&job.message), n);
        assert!(begin.elapsed() < SOON);
        job.ack().await.expect("ack");
    }
    wait_for_depth(&*ingest, 0, 0, 0).await;

    // Delayed work too, though nothing changes when it becomes due.
    let delay = Duration::from_millis(400);
    publish(&*ingest, vec![sample::work(Queue::Copy, 3).after(delay)]).await;
    let job = within("another process's delayed work", delay + SOON, next(&mut consumer)).await;
    assert_eq!(sample::number(&job.message), 3);
    job.ack().await.expect("ack");
    assert_nothing_left(&*copier, &mut consumer).await;
}

/// The jobs of a process that ends without settling them go to another one, which need not be told.
/// (faults.md row 44; what `kill -9` leaves is tried with real processes.)
pub async fn a_process_that_ends_frees_its_jobs(site: &dyn BusSite) {
    let (stays, ends) = (site.open().await, site.open().await);
    publish_numbers(&*stays, Queue::Copy, 0..6).await;
    let mut dying = consume(&*ends, 6).await;
    let in_hand = [next(&mut dying).await, next(&mut dying).await];
    wait_for_depth(&*stays, 0, 6, 0).await;
    let mut consumer = consume(&*stays, 6).await;
    assert!(consumer.ready().is_none(), "another process's jobs");
    drop((in_hand, dying, ends));
    let mut numbers = Vec::new();
    for _ in 0..6 {
        let job = within("a job of the dead", LIMIT, next(&mut consumer)).await;
        numbers.push(sample::number(&job.message));
        job.ack().await.expect("ack");
    }
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5]);
    assert_nothing_left(&*stays, &mut consumer).await;
}

/// What was answered with success is there after an end and a new start: ready, held back, and dead letters.
pub async fn what_was_published_survives_reopening(site: &dyn BusSite) {
    let bus = site.open().await;
    publish_numbers(&*bus, Queue::Copy, 0..50).await;
    let delay = Duration::from_millis(300);
    let begin = Instant::now();
    publish(&*bus, vec![sample::work(Queue::Copy, 50).after(delay)]).await;
    publish(&*bus, vec![sample::dead(Queue::Copy, "for people", 51)]).await;
    drop(bus);

    let bus = site.open().await;
    let mut consumer = consume(&*bus, 60).await;
    let mut numbers = Vec::new();
    for _ in 0..51 {
        let job = next(&mut consumer).await;
        numbers.push(sample::number(&job.message));
        if sample::number(&job.message) == 50 {
            assert!(
                begin.elapsed() + Duration::from_millis(20) >= delay,
                "before it was due"
            );
        }
        job.ack().await.expect("ack");
    }
    numbers.retain(|number| *number != 50);
    assert_eq!(numbers, (0..50).collect::<Vec<_>>(), "in order");
    let letters = bus.dead_letters(10).await.expect("dead letters");
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].reason, "for people");
    assert_nothing_left(&*bus, &mut consumer).await;
}
