//! Listings.

use shared::store::{BlobName, Condition};

use super::{Open, content, name, names, put};

/// `list`: byte order of whole names, any prefix, any page size, from any name on.
pub async fn names_are_listed_in_byte_order_page_by_page(open: &impl Open) {
    let store = open().await;
    // In an order that is not theirs; `a-b` sorts before `a/b` and `a0` after it, although `a` is a folder.
    let mut expected = vec![
        "b",
        "a/b",
        "a/ä",
        "a-b",
        "a0",
        "a/b2/c",
        "z/y/x/w",
        "a/B",
        "a/b-",
        "…",
        "z/y/x",
        "A",
        "z0/.hidden",
    ];
    expected.retain(|name| *name != "z/y/x"); // it is a folder of another
    for blob in &expected {
        put(&store, &name(blob), "x", Condition::None).await.expect("put");
    }
    expected.sort_unstable();
    for prefix in [
        "", "a", "a/", "a/b", "a/b2/", "z/y/x/w", "z/y/x/w/", "nothing", "no/such/", "a//", "../", "/",
    ] {
        let wanted: Vec<&str> = expected
            .iter()
            .copied()
            .filter(|name| name.starts_with(prefix))
            .collect();
        for page in [1, 2, 5, 1000] {
            let mut found: Vec<BlobName> = Vec::new();
            loop {
                let next = store.list(prefix, found.last(), page).await.expect("list");
                assert!(next.len() <= page, "{} names in a page of {page}", next.len());
                if next.is_empty() {
                    break;
                }
                found.extend(next);
                assert!(found.len() <= wanted.len(), "{prefix:?} by {page}: {found:?}");
            }
            let found: Vec<&str> = found.iter().map(BlobName::as_str).collect();
            assert_eq!(found, wanted, "{prefix:?} by {page}");
        }
    }
    let after = store.list("", Some(&name("a/b/no/such/name")), 2).await.expect("list");
    assert_eq!(after, [name("a/b2/c"), name("a/ä")]);
    assert!(store.list("", None, 0).await.expect("list").is_empty());
}

/// Names below `.ferry/` are kept out of listings that do not ask for them, and are blobs like any other.
pub async fn names_of_ferrys_own_are_listed_only_when_asked_for(open: &impl Open) {
    let store = open().await;
    let own = BlobName::reserved("open/2026-11-21/x").expect("a name");
    put(&store, &own, "marker", Condition::Absent).await.expect("put");
    put(&store, &name(".ferrying"), "x", Condition::None)
        .await
        .expect("put");
    put(&store, &name("a/.ferry/b"), "x", Condition::None)
        .await
        .expect("put");
    assert_eq!(names(&store, "").await, [".ferrying", "a/.ferry/b"]);
    assert_eq!(names(&store, ".f").await, [".ferrying"]);
    assert_eq!(names(&store, ".ferry/open/").await, [own.as_str()]);
    assert_eq!(content(&store, &own).await, "marker");
    store.delete(&own).await.expect("delete");
    assert!(names(&store, ".ferry/open/").await.is_empty());
}
