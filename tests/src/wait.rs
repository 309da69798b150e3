//! Waiting for conditions under a deadline; a test never waits for a fixed time.

use std::future::Future;
use std::time::{Duration, Instant};

/// Longest pause between two looks at a condition.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Looks at `condition` until it answers something.
///
/// # Panics
/// It did not within `limit`; the text names `what` was waited for.
pub async fn eventually<T, F, Fut>(what: &str, limit: Duration, mut condition: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let begin = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(answer) = condition().await {
            return answer;
        }
        assert!(begin.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// The outcome of `future`.
///
/// # Panics
/// It took longer than `limit`; the text names `what` was waited for.
pub async fn within<T>(what: &str, limit: Duration, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, future).await {
        Ok(answer) => answer,
        Err(_) => panic!("{what}: not within {limit:?}"),
    }
}
