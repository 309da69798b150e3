//! Work for later. A due time is never early; how late it may be, the machine decides.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use shared::message::Queue;

use super::{BusSite, LIMIT, SOON, assert_nothing_left, consume, next, publish, publish_numbers, sample};
use super::{wait_for_depth, within};

/// Clocks of a bus may count whole milliseconds, or be another process's.
const EARLY: Duration = Duration::from_millis(20);
/// Later than this nobody would call it the delay that was asked for.
const LATE: Duration = Duration::from_secs(5);

fn assert_due(waited: Duration, delay: Duration) {
    assert!(waited + EARLY >= delay, "after {waited:?}, not {delay:?}");
    assert!(waited <= delay + LATE, "after {waited:?}, not {delay:?}");
}

/// A retry is the same message, with the same id, not before its time; several delays may be asked one after another.
pub async fn a_job_put_off_comes_after_its_delay_with_the_same_id(site: &dyn BusSite) {
    let bus = site.open().await;
    let sent = sample::work(Queue::Copy, 1);
    publish(&*bus, vec![sent.clone()]).await;
    let mut consumer = consume(&*bus, 2).await;
    let mut job = next(&mut consumer).await;
    for delay in [300, 50, 600].map(Duration::from_millis) {
        let begin = Instant::now();
        job.later(delay).await.expect("later");
        job = next(&mut consumer).await;
        assert_due(begin.elapsed(), delay);
        assert_eq!(job.message.id, sent.id);
        assert_eq!((&job.message.kind, &job.message.data), (&sent.kind, &sent.data));
        assert_eq!(job.message.subject, sent.subject);
    }
    job.ack().await.expect("ack");
    assert_nothing_left(&*bus, &mut consumer).await;
}

/// `Message::after`, with several delays in no order.
pub async fn work_published_with_a_delay_comes_after_it(site: &dyn BusSite) {
    let bus = site.open().await;
    let mut consumer = consume(&*bus, 10).await;
    let delays = [700, 100, 0, 400, 1_000].map(Duration::from_millis);
    let messages: Vec<_> = (0..)
        .zip(delays)
        .map(|(n, delay)| sample::work(Queue::Copy, n).after(delay))
        .collect();
    let mut expected: HashMap<_, _> = messages
        .iter()
        .zip(delays)
        .map(|(message, delay)| (message.id, delay))
        .collect();
    let begin = Instant::now();
    publish(&*bus, messages).await;
    while !expected.is_empty() {
        let job = next(&mut consumer).await;
        let delay = expected.remove(&job.message.id).expect("each once");
        assert_due(begin.elapsed(), delay);
        job.ack().await.expect("ack");
    }
    assert_nothing_left(&*bus, &mut consumer).await;
}

/// A message held back for long is behind those that are due, whatever came first.
pub async fn what_is_held_back_stands_in_nobodys_way(site: &dyn BusSite) {
    let bus = site.open().await;
    let mut consumer = consume(&*bus, 1).await;
    let late: Vec<_> = (0..20)
        .map(|n| sample::work(Queue::Copy, n).after(LIMIT * 10))
        .collect();
    publish(&*bus, late).await;
    publish_numbers(&*bus, Queue::Copy, [100]).await;
    let job = within("a job that is due", SOON, next(&mut consumer)).await;
    assert_eq!(sample::number(&job.message), 100);
    job.later(LIMIT * 10).await.expect("later");
    publish_numbers(&*bus, Queue::Copy, [101]).await;
    let job = within("a job that is due", SOON, next(&mut consumer)).await;
    assert_eq!(sample::number(&job.message), 101);
    job.ack().await.expect("ack");
    wait_for_depth(&*bus, 0, 0, 21).await;
}
