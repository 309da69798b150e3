//! Waiting for conditions under a deadline, and for being asked to stop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::failure::Failure;

/// Longest pause between two looks: short beside what is measured, long enough to cost the server nothing.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

static STOPPED: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C and SIGTERM end the run in order: servers are killed, file systems unmounted, files removed.
///
/// # Errors
/// The runtime that listens for signals cannot be made.
pub(crate) fn listen_for_signals() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::io("make", "the runtime for signals"))?;
    // Lives as long as the process: there is nothing after it that a signal would have to end.
    thread::spawn(move || {
        if let Err(error) = runtime.block_on(shared::shutdown::on_signal(CancellationToken::new())) {
            eprintln!("bench: signals are not heard: {error}");
            return;
        }
        STOPPED.store(true, Ordering::Relaxed);
    });
    Ok(())
}

/// Whether the run goes on.
///
/// # Errors
/// It was asked to stop.
pub(crate) fn go_on() -> Result<(), Failure> {
    if STOPPED.load(Ordering::Relaxed) {
        Err(Failure::Interrupted)
    } else {
        Ok(())
    }
}

/// Looks until `look` answers something.
///
/// # Errors
/// What `look` fails with; `Late` after `limit`; `Interrupted`.
pub(crate) fn until<T>(
    what: impl Fn() -> String,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>, Failure>,
) -> Result<T, Failure> {
    let begun = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(answer) = look()? {
            return Ok(answer);
        }
        go_on()?;
        if begun.elapsed() >= limit {
            return Err(Failure::Late { what: what(), limit });
        }
        thread::park_timeout(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_comes_ends_at_the_deadline() {
        let never = until(|| "a miracle".to_owned(), Duration::from_millis(5), || Ok(None::<()>));
        assert_eq!(never.unwrap_err().to_string(), "a miracle: not within 5ms");
    }

    #[test]
    fn what_comes_later_is_waited_for() {
        let mut looks = 0;
        let seen = until(String::new, Duration::from_secs(60), || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        });
        assert_eq!(seen.unwrap(), 3);
    }
}
