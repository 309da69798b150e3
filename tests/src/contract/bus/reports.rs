//! Reports for sinks: each sink's apart from the others', in order, and with one process at a time.

use serde_json::json;
use shared::bus::{Bus, Consumer};
use shared::message::{Message, Queue};

use super::{BusSite, LIMIT, depth, next, publish, sample, within};
use crate::wait::eventually;

fn report(sink: &str, number: u64) -> Message {
    let mut message = sample::work(Queue::Report, number);
    message.data["sink"] = json!(sink);
    message
}

async fn consume(bus: &dyn Bus, sink: &str, prefetch: usize) -> Consumer {
    bus.consume_reports(sink, prefetch).await.expect("consume reports")
}

/// One sink's reports wait while another's go on, and are counted.
pub async fn reports_of_each_sink_are_apart(site: &dyn BusSite) {
    let bus = site.open().await;
    let messages = (0..5).flat_map(|n| [report("one", n), report("other", 100 + n)]);
    publish(&*bus, messages.collect()).await;
    assert_eq!(depth(&*bus, Queue::Report).await.ready, 10);
    let mut other = consume(&*bus, "other", 2).await;
    for expected in 100..105 {
        let job = next(&mut other).await;
        assert_eq!(sample::number(&job.message), expected);
        job.ack().await.expect("ack");
    }
    let backlogs = within("the backlogs", LIMIT, bus.backlogs()).await.expect("backlogs");
    let counted: Vec<(&str, u64)> = backlogs.iter().map(|log| (log.sink.as_str(), log.pending)).collect();
    assert_eq!(counted, [("one", 5)]);
    assert_eq!(backlogs[0].oldest, report("one", 0).time);
    assert_eq!(depth(&*bus, Queue::Copy).await.ready, 0);
}

/// A report that was put off comes back before those that were published after it.
pub async fn a_report_that_was_put_off_keeps_its_place(site: &dyn BusSite) {
    let bus = site.open().await;
    publish(&*bus, (0..3).map(|n| report("one", n)).collect()).await;
    let mut consumer = consume(&*bus, "one", 1).await;
    let first = next(&mut consumer).await;
    let before = bus.positions("one").await.expect("positions");
    assert!(before.oldest < before.next, "{before:?}");
    drop(consumer);
    let delay = std::time::Duration::from_millis(50);
    first.later(delay).await.expect("later");
    eventually("it to be due", LIMIT, || async {
        let mut consumer = consume(&*bus, "one", 1).await;
        let job = next(&mut consumer).await;
        (sample::number(&job.message) == 0).then_some(())
    })
    .await;
    let still = bus.positions("one").await.expect("positions");
    assert_eq!(still.oldest, before.oldest, "what was put off is not settled");
    let mut consumer = consume(&*bus, "one", 1).await;
    for expected in 0..3 {
        let job = next(&mut consumer).await;
        assert_eq!(sample::number(&job.message), expected);
        job.ack().await.expect("ack");
    }
    let after = bus.positions("one").await.expect("positions");
    assert!(after.oldest == after.next && after.next >= before.next, "{after:?}");
}

/// While one process has reports of a sink in hand no other gets any: else a newer one might arrive first.
pub async fn reports_of_a_sink_are_with_one_process_at_a_time(site: &dyn BusSite) {
    let (one, other) = (site.open().await, site.open().await);
    publish(&*one, (0..4).map(|n| report("one", n)).collect()).await;
    let mut holder = consume(&*one, "one", 1).await;
    let held = next(&mut holder).await;
    drop(holder);
    let mut waiting = consume(&*other, "one", 4).await;
    // It has looked: what is for another sink, and was published after it began, has come.
    publish(&*one, vec![report("marker", 9)]).await;
    let mut marker = consume(&*other, "marker", 1).await;
    next(&mut marker).await.ack().await.expect("ack");
    assert!(waiting.ready().is_none(), "the first is still in hand");
    held.ack().await.expect("ack");
    for expected in 1..4 {
        let job = next(&mut waiting).await;
        assert_eq!(sample::number(&job.message), expected);
        job.ack().await.expect("ack");
    }
}
