//! One token that every task listens to, and the signals that set it off.

use std::io;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// When this process was asked to stop.
static ASKED: OnceLock<Instant> = OnceLock::new();

/// What is left of `grace` since this process was asked to stop; all of it if it was not.
#[must_use]
pub fn left_of(grace: Duration) -> Duration {
    ASKED.get().map_or(grace, |asked| grace.saturating_sub(asked.elapsed()))
}

/// Waits for SIGTERM or Ctrl-C and then cancels `stop`. A second signal ends the process at once, so that a
/// person at a terminal is never held by a drain.
///
/// # Errors
/// The signal handlers could not be installed.
pub async fn on_signal(stop: CancellationToken) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    ASKED.get_or_init(Instant::now);
    tracing::info!(signal = name, "stopping");
    stop.cancel();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::warn!("second signal: stopping at once");
        std::process::exit(130);
    });
    Ok(())
}
