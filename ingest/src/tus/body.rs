//! A request's body on its way into an upload: how fast it must come, and all the ways in which it can end.

use std::time::Duration;

use actix_web::web;
use futures_util::StreamExt as _;
use shared::config::IngestConfig;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::error::TusError;
use crate::drain::Body;
use crate::uploads::{Append, Ended, UploadError, Uploads};

/// How often a slow body is looked at: what came is written then, so that HEAD sees it.
const LOOK: Duration = Duration::from_secs(1);

/// Reads `body` into `append` until it ends in one of the ways there are. Whatever way that is, what came is kept.
///
/// # Errors
/// `BodyCut`, `BodyStalled`, `Stopped`, `TakenOver`; `TooLong` after the upload was filled and finished; what the
/// store says.
pub(super) async fn receive(
    mut body: web::Payload,
    mut append: Append,
    ticket: Body,
    uploads: &Uploads,
) -> Result<Ended, TusError> {
    let taken_over = append.taken_over().clone();
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pace = Pace::new(&uploads.config);
    loop {
        tokio::select! {
            biased;
            () = taken_over.cancelled() => {
                let id = append.record().id;
                append.give_way();
                uploads.open(id).await?; // 410 if it was a DELETE
                // No offset: it may be the one that was sent, and that would read as if it had been wrong.
                return Err(TusError::TakenOver);
            }
            () = ticket.must_end() => {
                let offset = keep(append).await?;
                ticket.was_cut();
                return Err(TusError::Stopped { offset });
            }
            chunk = body.next() => match chunk {
                Some(Ok(mut chunk)) => {
                    pace.came(chunk.len());
                    let room = append.room().map_or(usize::MAX, |room| usize::try_from(room).unwrap_or(usize::MAX));
                    if chunk.len() > room {
                        chunk.truncate(room);
                        append.push(chunk).await?;
                        return Err(too_long(append, uploads).await?);
                    }
                    append.push(chunk).await?;
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "a body was cut");
                    append.end_untold().await?;
                    return Err(TusError::BodyCut);
                }
                None => return Ok(append.end().await?),
            },
            _ = look.tick() => {
                append.flush().await?;
                append.acknowledge().await?;
                if pace.is_stalled(Instant::now()) {
                    uploads.metrics.uploads_stalled.inc();
                    return Err(TusError::BodyStalled { offset: keep(append).await? });
                }
            }
        }
    }
}

/// Keeps what came. An upload that is whole by now is finished all the same.
async fn keep(append: Append) -> Result<u64, UploadError> {
    match append.end().await? {
        Ended::Incomplete { offset } | Ended::Complete { offset } => Ok(offset),
    }
}

/// More came than the upload takes: the bytes up to its length are kept and the rest is not read.
async fn too_long(append: Append, uploads: &Uploads) -> Result<TusError, UploadError> {
    if let (None, Some(most)) = (append.record().length, uploads.config.max_upload_size) {
        keep(append).await?;
        return Ok(UploadError::TooLarge { most }.into());
    }
    Ok(UploadError::TooLong {
        offset: keep(append).await?,
    }
    .into())
}

/// How fast a body comes.
struct Pace {
    idle_timeout: Duration,
    rate_window: Duration,
    /// Bytes that must come in a window.
    least: u64,
    last: Instant,
    arrived: bool,
    window: Instant,
    in_window: u64,
}

impl Pace {
    fn new(config: &IngestConfig) -> Self {
        Self::with(config.body_idle_timeout, config.body_min_rate, config.body_rate_window)
    }

    fn with(idle_timeout: Duration, min_rate: u64, rate_window: Duration) -> Self {
        let now = Instant::now();
        let least = u128::from(min_rate) * rate_window.as_millis() / 1000;
        Self {
            idle_timeout,
            rate_window,
            least: u64::try_from(least).unwrap_or(u64::MAX),
            last: now,
            arrived: false,
            window: now,
            in_window: 0,
        }
    }

    /// Called for every chunk: no clock is read here.
    fn came(&mut self, bytes: usize) {
        self.arrived = true;
        self.in_window += bytes as u64;
    }

    /// Called once a second.
    fn is_stalled(&mut self, now: Instant) -> bool {
        if std::mem::take(&mut self.arrived) {
            self.last = now;
        }
        if now - self.last >= self.idle_timeout {
            return true;
        }
        if now - self.window < self.rate_window {
            return false;
        }
        self.window = now;
        std::mem::take(&mut self.in_window) < self.least
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_or_drips_is_stalled_and_a_steady_one_is_not() {
        let second = Duration::from_secs(1);
        let stalled_after = |per_second: usize| async move {
            let mut pace = Pace::with(Duration::from_secs(10), 1024, Duration::from_secs(60));
            for elapsed in 0..200 {
                if pace.is_stalled(Instant::now()) {
                    return Some(elapsed);
                }
                if per_second > 0 {
                    pace.came(per_second);
                }
                tokio::time::advance(second).await;
            }
            None
        };
        assert_eq!(stalled_after(0).await, Some(10));
        assert_eq!(stalled_after(1).await, Some(60));
        assert_eq!(stalled_after(2048).await, None);
    }
}
