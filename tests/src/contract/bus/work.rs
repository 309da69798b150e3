//! Publish, consume, settle.

use std::collections::HashSet;

use futures_util::FutureExt as _;
use serde_json::json;
use shared::message::Queue;

use super::{BusSite, LIMIT, assert_nothing_left, consume, depth, next, publish, publish_numbers, sample};
use super::{eventually, wait_for_depth};

/// What `/health` asks.
pub async fn the_bus_says_that_it_works(site: &dyn BusSite) {
    let bus = site.open().await;
    bus.check().await.expect("a bus that works");
    assert!(bus.publish(Vec::new()).await.is_empty(), "nothing to publish");
}

/// Publish, consume, ack: and it never comes again, to nobody.
pub async fn work_that_is_acknowledged_is_gone(site: &dyn BusSite) {
    let bus = site.open().await;
    publish_numbers(&*bus, Queue::Copy, [1]).await;
    let mut consumer = consume(&*bus, 4).await;
    let job = next(&mut consumer).await;
    assert_eq!(sample::number(&job.message), 1);
    assert_eq!(job.redelivered, 0, "handed out for the first time");
    job.ack().await.expect("ack");
    wait_for_depth(&*bus, 0, 0, 0).await;
    assert_nothing_left(&*bus, &mut consumer).await;
    drop(consumer);
    let mut another = consume(&*bus, 4).await;
    assert_nothing_left(&*bus, &mut another).await;
}

/// Id, type, trace and data are those of the publisher, near the limit of 64 KiB too.
pub async fn a_message_arrives_as_it_was_published(site: &dyn BusSite) {
    let bus = site.open().await;
    let mut sent = sample::work(Queue::Copy, 1);
    sent.data["text"] = json!("zwei\nZeilen, \"żółw\" \u{1F422} \u{0}");
    sent.data["filler"] = json!("x".repeat(60 * 1024));
    publish(&*bus, vec![sent.clone()]).await;
    let mut consumer = consume(&*bus, 1).await;
    let job = next(&mut consumer).await;
    assert_eq!(job.message, sent);
    job.ack().await.expect("ack");
}

/// One consumer gets work in the order in which it was published, in one call or in several.
pub async fn one_consumer_gets_work_in_order(site: &dyn BusSite) {
    let bus = site.open().await;
    publish_numbers(&*bus, Queue::Copy, 0..60).await;
    for n in 60..80 {
        publish_numbers(&*bus, Queue::Copy, [n]).await;
    }
    let mut consumer = consume(&*bus, 7).await;
    for n in 0..100 {
        if n == 40 {
            // Also what is published while the consumer is at work.
            publish_numbers(&*bus, Queue::Copy, 80..100).await;
        }
        let job = next(&mut consumer).await;
        assert_eq!(sample::number(&job.message), n);
        job.ack().await.expect("ack");
    }
    wait_for_depth(&*bus, 0, 0, 0).await;
}

/// Back pressure: what a worker does not settle bounds what it is given. (A copy's memory is bounded by it.)
pub async fn a_consumer_has_no_more_unsettled_jobs_than_its_prefetch(site: &dyn BusSite) {
    let bus = site.open().await;
    publish_numbers(&*bus, Queue::Copy, 0..10).await;
    let mut consumer = consume(&*bus, 3).await;
    let mut in_hand = Vec::new();
    for _ in 0..3 {
        in_hand.push(next(&mut consumer).await);
    }
    for settled in 0..7 {
        wait_for_depth(&*bus, 7 - settled, 3, 0).await;
        assert!(consumer.ready().is_none(), "a fourth job with three unsettled");
        in_hand.remove(0).ack().await.expect("ack");
        in_hand.push(next(&mut consumer).await);
    }
    wait_for_depth(&*bus, 0, 3, 0).await;
    for job in in_hand {
        job.ack().await.expect("ack");
    }
    wait_for_depth(&*bus, 0, 0, 0).await;
}

/// A consumer gets its own queue's work only, however full the other one is.
pub async fn queues_are_apart(site: &dyn BusSite) {
    let bus = site.open().await;
    publish_numbers(&*bus, Queue::Report, 0..5).await;
    publish_numbers(&*bus, Queue::Copy, [100]).await;
    let mut copies = consume(&*bus, 10).await;
    let job = next(&mut copies).await;
    assert_eq!(sample::number(&job.message), 100);
    job.ack().await.expect("ack");
    assert_nothing_left(&*bus, &mut copies).await;
    assert_eq!(depth(&*bus, Queue::Report).await.ready, 5);
    let mut reports = bus.consume(Queue::Report, 10).await.expect("consume");
    for n in 0..5 {
        let job = next(&mut reports).await;
        assert_eq!(sample::number(&job.message), n);
        job.ack().await.expect("ack");
    }
}

/// Dropped without being settled it comes again, and the bus counts it: an isolated worker is told by that count.
pub async fn a_dropped_job_comes_back_and_is_counted(site: &dyn BusSite) {
    let bus = site.open().await;
    publish_numbers(&*bus, Queue::Copy, [1]).await;
    let mut consumer = consume(&*bus, 1).await;
    let mut id = None;
    let mut before = None;
    for _ in 0..4 {
        let job = next(&mut consumer).await;
        assert_eq!(*id.get_or_insert(job.message.id), job.message.id, "the same message");
        assert!(
            before < Some(job.redelivered),
            "{before:?} and then {}",
            job.redelivered
        );
        before = Some(job.redelivered);
        drop(job);
    }
    next(&mut consumer).await.ack().await.expect("ack");
    assert_nothing_left(&*bus, &mut consumer).await;
}

/// `next` may lose a race in a `select!` at any time: no job is lost by it, or taken and forgotten.
pub async fn a_wait_for_the_next_job_that_is_dropped_takes_none(site: &dyn BusSite) {
    let bus = site.open().await;
    let mut consumer = consume(&*bus, 2).await;
    publish_numbers(&*bus, Queue::Copy, 0..50).await;
    let mut seen = HashSet::new();
    while seen.len() < 50 {
        // Polled once and dropped, over and over.
        let job = eventually("a job", LIMIT, || {
            let polled = consumer.next().now_or_never();
            async move { polled }
        })
        .await
        .expect("the bus lost the consumer");
        assert_eq!(job.redelivered, 0, "no wait took it and dropped it");
        assert!(
            seen.insert(sample::number(&job.message)),
            "handed out twice: {:?}",
            job.message
        );
        job.ack().await.expect("ack");
    }
    assert_nothing_left(&*bus, &mut consumer).await;
}

/// A publisher that does not know repeats itself with the same id: that is no error, at any stage of the first one,
/// and the work comes at least once. (A consumer must bear two: faults.md row 38.)
pub async fn the_same_message_published_twice_arrives_at_least_once(site: &dyn BusSite) {
    let bus = site.open().await;
    let message = sample::work(Queue::Copy, 1);
    publish(&*bus, vec![message.clone(), message.clone()]).await;
    publish(&*bus, vec![message.clone()]).await;
    let mut consumer = consume(&*bus, 1).await;
    let job = next(&mut consumer).await;
    assert_eq!(job.message, message);
    publish(&*bus, vec![message.clone()]).await;
    job.ack().await.expect("ack");
    publish_numbers(&*bus, Queue::Copy, [2]).await;
    loop {
        let job = next(&mut consumer).await;
        let last = sample::number(&job.message) == 2;
        assert!(last || job.message == message, "{:?}", job.message);
        job.ack().await.expect("ack");
        if last {
            break;
        }
    }
    publish(&*bus, vec![message]).await;
    eventually("the queue is empty", LIMIT, || {
        let left = consumer.ready();
        let bus = &bus;
        async move {
            if let Some(job) = left {
                job.ack().await.expect("ack");
            }
            let depth = depth(&**bus, Queue::Copy).await;
            (depth.ready + depth.in_flight == 0).then_some(())
        }
    })
    .await;
}

/// Nobody listens, and it is a success all the same; no worker ever gets an event.
pub async fn events_need_no_consumer_and_are_no_work(site: &dyn BusSite) {
    let bus = site.open().await;
    publish(
        &*bus,
        vec![sample::event(1), sample::work(Queue::Copy, 2), sample::event(3)],
    )
    .await;
    let mut consumer = consume(&*bus, 10).await;
    let job = next(&mut consumer).await;
    assert_eq!(sample::number(&job.message), 2);
    job.ack().await.expect("ack");
    assert_nothing_left(&*bus, &mut consumer).await;
    assert_eq!(depth(&*bus, Queue::Report).await, shared::bus::Depth::default());
    assert_eq!(bus.dead_letters(10).await.expect("dead letters"), []);
}

/// The metrics of a queue: ready, with a worker, held back; each queue for itself.
pub async fn depth_counts_what_waits_is_worked_on_and_is_held_back(site: &dyn BusSite) {
    let bus = site.open().await;
    wait_for_depth(&*bus, 0, 0, 0).await;
    publish_numbers(&*bus, Queue::Copy, 0..6).await;
    wait_for_depth(&*bus, 6, 0, 0).await;
    let later = |n| sample::work(Queue::Copy, n).after(LIMIT * 10);
    publish(&*bus, vec![later(6), later(7)]).await;
    wait_for_depth(&*bus, 6, 0, 2).await;
    let mut consumer = consume(&*bus, 4).await;
    wait_for_depth(&*bus, 2, 4, 2).await;
    next(&mut consumer).await.ack().await.expect("ack");
    wait_for_depth(&*bus, 1, 4, 2).await;
    next(&mut consumer).await.later(LIMIT * 10).await.expect("later");
    wait_for_depth(&*bus, 0, 4, 3).await;
    next(&mut consumer).await.bury("no use").await.expect("bury");
    wait_for_depth(&*bus, 0, 3, 3).await;
    drop(consumer);
    wait_for_depth(&*bus, 3, 0, 3).await;
    assert_eq!(depth(&*bus, Queue::Report).await, shared::bus::Depth::default());
}
