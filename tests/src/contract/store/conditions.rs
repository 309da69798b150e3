//! Conditional writes, and the tags that they compare.

use std::collections::HashSet;

use shared::store::{BlobErrorKind, Commit, Condition};

use super::{Open, all, begin, commit_of, content, kind, name, put, write};

/// `Condition::Absent`: of several writers at once exactly one creates the blob, by `put` or by `commit`.
pub async fn absent_lets_exactly_one_writer_in(open: &impl Open) {
    let store = open().await;
    let blob = name("once");
    let results = all((0..8).map(|writer| {
        let (store, blob) = (store.clone(), blob.clone());
        async move { put(&store, &blob, &format!("writer {writer}"), Condition::Absent).await }
    }))
    .await;
    let winners: Vec<usize> = (0..8).filter(|&writer| results[writer].is_ok()).collect();
    assert_eq!(winners.len(), 1, "{results:?}");
    for lost in results.into_iter().filter(Result::is_err) {
        assert_eq!(kind(lost), BlobErrorKind::ConditionFailed);
    }
    assert_eq!(content(&store, &blob).await, format!("writer {}", winners[0]));

    let staged = begin(&store, &blob, b"later").await;
    let parts = write(&store, &staged, b"later").await;
    let late = Commit {
        condition: Condition::Absent,
        ..commit_of(parts, b"later")
    };
    assert_eq!(kind(store.commit(&staged, late).await), BlobErrorKind::ConditionFailed);
}

/// `Condition::Matches`: only whoever knows the present content replaces it; nobody creates with it.
pub async fn matches_lets_only_the_known_content_be_replaced(open: &impl Open) {
    let store = open().await;
    let blob = name("record");
    let first = put(&store, &blob, "1", Condition::None).await.expect("first").tag;
    let second = put(&store, &blob, "2", Condition::Matches(first.clone()))
        .await
        .expect("second")
        .tag;
    let stale = put(&store, &blob, "3", Condition::Matches(first)).await;
    assert_eq!(kind(stale), BlobErrorKind::ConditionFailed);
    assert_eq!(content(&store, &blob).await, "2");
    store.delete(&blob).await.expect("delete");
    let missing = put(&store, &blob, "4", Condition::Matches(second)).await;
    assert_eq!(kind(missing), BlobErrorKind::ConditionFailed);
    assert_eq!(kind(store.stat(&blob).await), BlobErrorKind::NotFound);
}

/// `Condition::Matches` under contention: a counter that several raise by compare-and-replace loses no step, although
/// every content has the same length.
pub async fn of_many_that_replace_the_same_content_one_wins(open: &impl Open) {
    const WRITERS: u32 = 4;
    const STEPS: u32 = 25;
    let store = open().await;
    let blob = name("counter");
    put(&store, &blob, "1000", Condition::Absent).await.expect("put");
    all((0..WRITERS).map(|_| {
        let (store, blob) = (store.clone(), blob.clone());
        async move {
            let mut done = 0;
            while done < STEPS {
                let before = store.stat(&blob).await.expect("stat").tag;
                // Read under that tag; if it is stale by now, look again.
                let Ok(body) = store.read(&blob, 0..4, Some(&before)).await else {
                    continue;
                };
                let value: u32 = std::str::from_utf8(&body).expect("text").parse().expect("a number");
                match put(&store, &blob, &(value + 1).to_string(), Condition::Matches(before)).await {
                    Ok(_) => done += 1,
                    Err(error) => assert_eq!(error.kind, BlobErrorKind::ConditionFailed, "{error:?}"),
                }
            }
        }
    }))
    .await;
    assert_eq!(content(&store, &blob).await, (1000 + WRITERS * STEPS).to_string());
}

/// A tag stands for one content: no two of many that follow each other at once share one.
pub async fn contents_of_one_length_have_different_tags(open: &impl Open) {
    let store = open().await;
    let blob = name("same length");
    let mut tags = HashSet::new();
    for round in 0..100 {
        let put = put(&store, &blob, &format!("{round:03}"), Condition::None)
            .await
            .expect("put");
        assert!(
            tags.insert(put.tag.as_str().to_owned()),
            "the tag of round {round} was there before"
        );
    }
}
