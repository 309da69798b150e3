//! One way of a connection: a reader with the rate and the ending, a queue, and a writer with the delay.

use std::future::pending;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::connection::{Break, Orders};
use super::counts::Tally;
use super::faults::{Ending, Line, Way};

/// Longest piece that is read at once, in bytes.
const PIECE: usize = 16 * 1024;
/// Pieces in the queue: with [`PIECE`] at most a megabyte on its way.
const QUEUE: usize = 64;
/// With a rate, a piece is what may pass in a fiftieth of a second.
const PIECES_PER_SECOND: u64 = 50;

/// Bytes that are on their way.
struct Piece {
    due: Instant,
    bytes: Vec<u8>,
}

/// How a way ended, as its reader sees it.
enum Ended {
    /// Its sender closed it.
    Closed,
    /// A fault closed it.
    HalfClosed,
    /// The receiver takes no more.
    Refused,
    /// With it the whole connection is broken.
    Broken(Break),
}

/// Passes the bytes of `way` on until it ends.
///
/// # Errors
/// The whole connection is to be broken.
pub(super) async fn run(
    way: Way,
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    orders: watch::Receiver<Orders>,
    tally: &Tally,
) -> Result<(), Break> {
    let (pieces, queue) = mpsc::channel(QUEUE);
    let (ended, ()) = tokio::join!(
        read(way, &mut from, pieces, orders, tally),
        write(way, &mut to, queue, tally)
    );
    match ended {
        Ended::Refused => {}
        Ended::Closed => close(to).await,
        Ended::HalfClosed => {
            close(to).await;
            throw_away(from).await;
        }
        Ended::Broken(how) => return Err(how), // not closed before: that would be no reset
    }
    Ok(())
}

/// Reads as fast and as far as the faults allow. The queue ends when this does.
async fn read(
    way: Way,
    from: &mut ReadHalf<'_>,
    pieces: mpsc::Sender<Piece>,
    mut orders: watch::Receiver<Orders>,
    tally: &Tally,
) -> Ended {
    let mut buffer = vec![0; PIECE];
    let mut progress = Progress::new(orders.borrow_and_update().faults.line(way));
    loop {
        let due = progress.ending();
        let step = async {
            if progress.quiet {
                return pending().await;
            }
            sleep_until(progress.read_again).await;
            if due == Some(Ending::Stall) {
                // Something is there and stays there. An error is for whoever reads it later.
                drop(from.readable().await);
                return Ok(0);
            }
            from.read(&mut buffer[..progress.most()]).await
        };
        let read = tokio::select! {
            biased; // what was set before a byte came is what this byte meets
            changed = orders.changed() => {
                if changed.is_err() {
                    return Ended::Broken(Break::Reset); // the proxy is gone
                }
                progress = Progress::new(orders.borrow_and_update().faults.line(way));
                continue;
            }
            read = step => read,
        };
        match (read, due) {
            (_, Some(Ending::Stall)) => {
                tally.happened(Ending::Stall);
                progress.quiet = true;
            }
            (Ok(0) | Err(_), Some(Ending::Swallow)) => {
                tally.source_ended(way);
                progress.quiet = true;
            }
            (Ok(_), Some(Ending::Swallow)) => {
                if !std::mem::replace(&mut progress.swallowed, true) {
                    tally.happened(Ending::Swallow);
                }
            }
            (Ok(0), _) => {
                tally.source_ended(way);
                return Ended::Closed;
            }
            (Err(_), _) => {
                tally.source_ended(way);
                return Ended::Broken(Break::Reset); // which is what it is, nearly always
            }
            (Ok(_), Some(ending)) => {
                tally.happened(ending);
                return match ending {
                    Ending::Cut => Ended::Broken(Break::Cut),
                    Ending::Reset => Ended::Broken(Break::Reset),
                    Ending::HalfClose | Ending::Swallow | Ending::Stall => Ended::HalfClosed,
                };
            }
            (Ok(len), None) => {
                let now = Instant::now();
                if progress.came(len, now) {
                    tally.slowed();
                }
                let piece = Piece {
                    due: now + progress.line.delay,
                    bytes: buffer[..len].to_vec(),
                };
                if pieces.send(piece).await.is_err() {
                    return Ended::Refused;
                }
            }
        }
    }
}

/// Writes each piece when it is due. Ends early if the receiver takes no more.
async fn write(way: Way, to: &mut WriteHalf<'_>, mut queue: mpsc::Receiver<Piece>, tally: &Tally) {
    while let Some(Piece { due, bytes }) = queue.recv().await {
        if due > Instant::now() {
            tally.delayed();
            sleep_until(due).await;
        }
        if to.write_all(&bytes).await.is_err() {
            return;
        }
        tally.passed(way, bytes.len() as u64);
    }
}

/// The receiver sees the end, unless it is gone.
async fn close(mut to: WriteHalf<'_>) {
    drop(to.shutdown().await);
}

async fn throw_away(mut from: ReadHalf<'_>) {
    let mut buffer = vec![0; PIECE];
    while from.read(&mut buffer).await.is_ok_and(|len| len > 0) {}
}

/// How far a way is under its present faults.
struct Progress {
    line: Line,
    passed: u64,
    read_again: Instant,
    swallowed: bool,
    /// Nothing more is to be seen until the faults change.
    quiet: bool,
}

impl Progress {
    fn new(line: Line) -> Self {
        Self {
            line,
            passed: 0,
            read_again: Instant::now(),
            swallowed: false,
            quiet: false,
        }
    }

    /// What the next byte brings, if it brings an end.
    fn ending(&self) -> Option<Ending> {
        let (after, ending) = self.line.end?;
        (self.passed == after).then_some(ending)
    }

    /// How much may be read at once.
    fn most(&self) -> usize {
        let before_end = match self.line.end {
            Some((after, _)) if after > self.passed => after - self.passed,
            _ => u64::MAX,
        };
        let at_rate = self
            .line
            .rate
            .map_or(u64::MAX, |rate| (rate / PIECES_PER_SECOND).max(1));
        usize::try_from(before_end.min(at_rate)).map_or(PIECE, |most| most.min(PIECE))
    }

    /// `len` bytes were read. Answers whether the next ones have to wait.
    fn came(&mut self, len: usize, now: Instant) -> bool {
        self.passed += len as u64;
        let Some(rate) = self.line.rate else { return false };
        // From when they were due, so that a late look does not make it slower; but no time is saved up.
        let earliest = now.checked_sub(Duration::from_millis(100)).unwrap_or(now);
        let pause = Duration::from_secs_f64(len as f64 / rate as f64);
        self.read_again = self.read_again.max(earliest) + pause;
        self.read_again > now
    }
}
