//! Dead letters: a trace for people of work that was given up.

use jiff::Timestamp;
use shared::message::Queue;
use uuid::Uuid;

use super::{BusSite, LIMIT, assert_nothing_left, consume, eventually, next, publish, publish_numbers, sample};

/// It leaves the queue for good and is found among the dead letters, whole and with the reason.
pub async fn a_buried_job_is_a_dead_letter_with_its_reason(site: &dyn BusSite) {
    let bus = site.open().await;
    let begin = Timestamp::now();
    let sent = sample::work(Queue::Copy, 1);
    publish(&*bus, vec![sent.clone()]).await;
    let mut consumer = consume(&*bus, 2).await;
    let reason = "target \"edav\": Zugriff verweigert (żółw)";
    next(&mut consumer).await.bury(reason).await.expect("bury");
    let letters = eventually("the dead letter", LIMIT, || async {
        let letters = bus.dead_letters(10).await.expect("dead letters");
        (!letters.is_empty()).then_some(letters)
    })
    .await;
    assert_eq!(letters.len(), 1);
    let letter = &letters[0];
    assert_eq!(letter.reason, reason);
    assert_eq!((letter.message.id, letter.message.subject), (sent.id, sent.subject));
    assert_eq!((&letter.message.kind, &letter.message.data), (&sent.kind, &sent.data));
    assert!(letter.at <= Timestamp::now());
    assert!(letter.at.as_second() >= begin.as_second(), "{} is when?", letter.at);
    assert_nothing_left(&*bus, &mut consumer).await;
}

/// `Route::Dead`: what a worker gave up by its record. It goes to nobody's queue.
pub async fn a_message_for_the_dead_letters_is_no_work(site: &dyn BusSite) {
    let bus = site.open().await;
    let sent = [
        sample::dead(Queue::Copy, "tried for 72 h", 1),
        sample::dead(Queue::Report, "not valid", 2),
    ];
    publish(&*bus, sent.to_vec()).await;
    let letters = eventually("both dead letters", LIMIT, || async {
        let letters = bus.dead_letters(10).await.expect("dead letters");
        (letters.len() >= 2).then_some(letters)
    })
    .await;
    let found: Vec<_> = letters
        .iter()
        .map(|letter| (letter.message.id, letter.reason.as_str()))
        .collect();
    assert_eq!(found, [(sent[0].id, "tried for 72 h"), (sent[1].id, "not valid")]);
    let mut consumer = consume(&*bus, 2).await;
    assert_nothing_left(&*bus, &mut consumer).await;
}

/// Oldest first, no more than asked for; removed ones are counted and gone, others stay.
pub async fn dead_letters_come_oldest_first_and_are_removed_by_id(site: &dyn BusSite) {
    let bus = site.open().await;
    let mut consumer = consume(&*bus, 1).await;
    for n in 0..5 {
        publish_numbers(&*bus, Queue::Copy, [n]).await;
        next(&mut consumer)
            .await
            .bury(&format!("reason {n}"))
            .await
            .expect("bury");
    }
    let five = eventually("five dead letters", LIMIT, || async {
        let letters = bus.dead_letters(100).await.expect("dead letters");
        (letters.len() == 5).then_some(letters)
    })
    .await;
    let numbers = |letters: &[shared::bus::DeadLetter]| -> Vec<u64> {
        letters.iter().map(|letter| sample::number(&letter.message)).collect()
    };
    assert_eq!(numbers(&five), [0, 1, 2, 3, 4]);
    assert_eq!(five[3].reason, "reason 3");
    let two = bus.dead_letters(2).await.expect("dead letters");
    assert_eq!(numbers(&two), [0, 1]);

    let some = vec![five[1].message.id, Uuid::now_v7(), five[4].message.id];
    assert_eq!(bus.remove_dead_letters(some.clone()).await.expect("remove"), 2);
    assert_eq!(bus.remove_dead_letters(some).await.expect("remove"), 0);
    assert_eq!(bus.remove_dead_letters(Vec::new()).await.expect("remove"), 0);
    let left = bus.dead_letters(100).await.expect("dead letters");
    assert_eq!(numbers(&left), [0, 2, 3]);
    let another = site.open().await;
    assert_eq!(another.dead_letters(100).await.expect("dead letters"), left);
}
