//! The contract of [`Bus`]. Spec: bus.md; the trait's own comments. Nothing here knows which implementation it is on.
//!
//! "Nothing comes" is never shown by waiting a while: a marker is published behind what must not come, or the depth
//! of the queue is asked.

mod delays;
mod given_up;
mod processes;
mod reports;
mod sharing;
mod work;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use shared::bus::{Bus, Consumer, Depth, Job};
use shared::message::{Message, Queue};

pub use delays::*;
pub use given_up::*;
pub use processes::*;
pub use reports::*;
pub use sharing::*;
pub use work::*;

use super::sample;
use crate::wait::{eventually, within};

/// The longest that anything is waited for.
const LIMIT: Duration = Duration::from_secs(30);
/// What "at once" and "within about a second" may take on a busy machine.
const SOON: Duration = Duration::from_secs(3);

/// Where one implementation keeps the bus of one case.
#[async_trait]
pub trait BusSite: fmt::Debug + Send + Sync {
    /// Opens the bus as one more process does. That process ends when the answer, its consumers and their jobs are
    /// dropped.
    async fn open(&self) -> Arc<dyn Bus>;
}

/// Makes one test of each case. `$site` makes a fresh site.
#[macro_export]
macro_rules! bus_contract {
    ($site:expr) => {
        $crate::bus_contract! { @cases $site;
            the_bus_says_that_it_works
            work_that_is_acknowledged_is_gone
            a_message_arrives_as_it_was_published
            one_consumer_gets_work_in_order
            a_consumer_has_no_more_unsettled_jobs_than_its_prefetch
            queues_are_apart
            a_dropped_job_comes_back_and_is_counted
            a_wait_for_the_next_job_that_is_dropped_takes_none
            the_same_message_published_twice_arrives_at_least_once
            events_need_no_consumer_and_are_no_work
            depth_counts_what_waits_is_worked_on_and_is_held_back
            a_job_put_off_comes_after_its_delay_with_the_same_id
            work_published_with_a_delay_comes_after_it
            what_is_held_back_stands_in_nobodys_way
            a_buried_job_is_a_dead_letter_with_its_reason
            a_message_for_the_dead_letters_is_no_work
            dead_letters_come_oldest_first_and_are_removed_by_id
            two_consumers_share_the_work_and_never_a_job
            a_dropped_consumer_gives_its_prefetched_jobs_back_at_once
            consumers_that_are_dropped_while_they_fetch_keep_nothing
            a_job_in_hand_outlives_its_consumer
            two_thousand_messages_go_through_and_none_is_lost
            a_waiting_consumer_sees_work_of_another_process_soon
            a_process_that_ends_frees_its_jobs
            what_was_published_survives_reopening
            reports_of_each_sink_are_apart
            a_report_that_was_put_off_keeps_its_place
            reports_of_a_sink_are_with_one_process_at_a_time
        }
    };
    (@cases $site:expr; $($case:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $case() {
                let site = $site;
                $crate::contract::bus::$case(&site).await;
            }
        )*
    };
}

/// Publishes all, which must succeed.
async fn publish(bus: &dyn Bus, messages: Vec<Message>) {
    let expected = messages.len();
    let answers = within("publish", LIMIT, bus.publish(messages)).await;
    assert_eq!(answers.len(), expected, "an answer for each message");
    for answer in answers {
        answer.expect("publish");
    }
}

async fn publish_numbers(bus: &dyn Bus, queue: Queue, numbers: impl IntoIterator<Item = u64>) {
    let messages = numbers.into_iter().map(|n| sample::work(queue, n)).collect();
    publish(bus, messages).await;
}

async fn consume(bus: &dyn Bus, prefetch: usize) -> Consumer {
    bus.consume(Queue::Copy, prefetch).await.expect("consume")
}

async fn next(consumer: &mut Consumer) -> Job {
    within("a job", LIMIT, consumer.next())
        .await
        .expect("the bus lost the consumer")
}

async fn depth(bus: &dyn Bus, queue: Queue) -> Depth {
    bus.depth(queue).await.expect("depth")
}

/// Waits until the depth of the copy queue is this: a broker's counts may lag behind.
async fn wait_for_depth(bus: &dyn Bus, ready: u64, in_flight: u64, delayed: u64) {
    let expected = Depth {
        ready,
        in_flight,
        delayed,
    };
    eventually(&format!("a depth of {expected:?}"), LIMIT, || async {
        (depth(bus, Queue::Copy).await == expected).then_some(())
    })
    .await;
}

/// The queue is empty for good: a marker that is published now is the next that comes.
async fn assert_nothing_left(bus: &dyn Bus, consumer: &mut Consumer) {
    const MARKER: u64 = u64::MAX;
    publish_numbers(bus, Queue::Copy, [MARKER]).await;
    let job = next(consumer).await;
    assert_eq!(
        sample::number(&job.message),
        MARKER,
        "came although nothing was left: {job:?}"
    );
    job.ack().await.expect("ack");
    wait_for_depth(bus, 0, 0, 0).await;
}
