//! Failpoints: the numbered steps of finishing and copying, at which a test lets a process fail, wait or die.
//! Spec: faults.md, "Making faults".
//!
//! Without the feature `failpoints`, which only the test crate turns on, [`reached`] is nothing: no release binary has
//! them. With it, the variable `FERRY_FAILPOINTS` says what happens where:
//!
//! ```text
//! FERRY_FAILPOINTS=copy.claimed=exit;copy.part-written=delay:200ms;finish.object-whole=error@3*2
//! ```
//!
//! `exit` is `kill -9` of the process by itself, exactly there; `error` is a failure of the step; `delay:` holds it up.
//! `@N` leaves the first N - 1 times alone, `*N` lets it happen N times only.

use uuid::Uuid;

use crate::bus::{BusError, PublishError};
use crate::database::DatabaseError;
use crate::records::RecordError;

/// A step that was made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failpoint {}", .0.as_str())]
pub struct Injected(pub Step);

macro_rules! steps {
    ($($(#[$doc:meta])* $step:ident = $name:literal,)*) => {
        /// A step of finishing (core.md §4) or of copying (faults.md row 50). The failpoint is right behind it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Step {
            $($(#[$doc])* $step,)*
        }

        impl Step {
            /// All of them, in the order in which an upload meets them.
            pub const ALL: &[Self] = &[$(Self::$step,)*];

            /// Its name in `FERRY_FAILPOINTS`.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$step => $name,)*
                }
            }
        }
    };
}

steps! {
    /// The last byte is in the store; nothing says so yet.
    LastByteStored = "finish.last-byte-stored",
    /// `committing` is recorded.
    CommittingRecorded = "finish.committing-recorded",
    /// The claim of whoever finishes it is recorded.
    FinishClaimed = "finish.claimed",
    /// The object has its name.
    ObjectWhole = "finish.object-whole",
    /// `committed` is recorded with deliveries and messages.
    CommittedRecorded = "finish.committed-recorded",
    /// The bus has the messages; the record does not say so yet. With the embedded bus: within the transaction.
    Published = "finish.published",
    /// `published` is recorded.
    PublishedRecorded = "finish.published-recorded",
    /// A staging is begun in the target; no record knows of it yet.
    CopyBegun = "copy.begun",
    /// A copier has claimed a delivery.
    CopyClaimed = "copy.claimed",
    /// A range of the source was read.
    CopyRead = "copy.read",
    /// A part is in the target's staging.
    CopyPartWritten = "copy.part-written",
    /// A checkpoint is recorded.
    CopyCheckpointed = "copy.checkpointed",
    /// The object is in the target under its name.
    CopyCompleted = "copy.completed",
    /// The outcome is recorded with its messages.
    CopyRecorded = "copy.recorded",
    /// The bus has the outcome's messages; the record does not say so yet. With the embedded bus: within the
    /// transaction.
    CopyPublished = "copy.published",
    /// The job is acknowledged.
    CopyAcknowledged = "copy.acknowledged",
    /// A sink has the report; its message is not acknowledged yet.
    CopyReported = "copy.reported",
}

/// What `FERRY_FAILPOINTS` wants at `step`: nothing, a wait, an end of the process, or an error.
///
/// # Errors
/// The step is to fail.
#[cfg(not(feature = "failpoints"))]
#[expect(clippy::unused_async, reason = "with the feature it waits")]
pub async fn reached(step: Step) -> Result<(), Injected> {
    let _ = step;
    Ok(())
}

/// As [`reached`], on a thread that may block.
///
/// # Errors
/// The step is to fail.
#[cfg(not(feature = "failpoints"))]
pub(crate) fn reached_blocking(step: Step) -> Result<(), Injected> {
    let _ = step;
    Ok(())
}

#[cfg(feature = "failpoints")]
pub use armed::reached;
#[cfg(feature = "failpoints")]
pub(crate) use armed::reached_blocking;

/// Records whose write was not answered.
impl From<Injected> for RecordError {
    fn from(injected: Injected) -> Self {
        Self::Unavailable {
            operation: "write",
            object: injected.0.as_str().to_owned(),
            source: Box::new(injected),
        }
    }
}

/// A transaction that does not take place.
impl From<Injected> for DatabaseError {
    fn from(injected: Injected) -> Self {
        Self::Transaction(injected.to_string())
    }
}

/// A bus that did not answer.
impl From<Injected> for BusError {
    fn from(injected: Injected) -> Self {
        Self {
            operation: "settle",
            source: Box::new(injected),
        }
    }
}

/// A publish whose confirm is lost: the message `id` is on the bus.
pub(crate) fn unconfirmed(id: Uuid, injected: Injected) -> PublishError {
    PublishError::Unknown {
        id,
        source: Box::new(injected),
    }
}

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};

    use super::{Injected, Step};

    /// The variable.
    const VARIABLE: &str = "FERRY_FAILPOINTS";

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Action {
        Exit,
        Error,
        Delay(Duration),
    }

    #[derive(Debug)]
    struct Point {
        step: Step,
        action: Action,
        /// The first time that it happens, counted from 1.
        from: u64,
        /// How often it happens.
        times: u64,
        met: AtomicU64,
    }

    /// What `FERRY_FAILPOINTS` wants at `step`: nothing, a wait, an end of the process, or an error.
    ///
    /// # Errors
    /// The step is to fail.
    ///
    /// # Panics
    /// The variable cannot be read: a test that asks for nothing shows nothing.
    pub async fn reached(step: Step) -> Result<(), Injected> {
        for action in actions(step) {
            if let Some(delay) = act(step, action)? {
                tokio::time::sleep(delay).await;
            }
        }
        Ok(())
    }

    /// As [`reached`], on a thread that may block.
    ///
    /// # Errors
    /// The step is to fail.
    ///
    /// # Panics
    /// As [`reached`].
    #[expect(clippy::disallowed_methods, reason = "this thread is what is to be held up")]
    pub(crate) fn reached_blocking(step: Step) -> Result<(), Injected> {
        for action in actions(step) {
            if let Some(delay) = act(step, action)? {
                thread::sleep(delay);
            }
        }
        Ok(())
    }

    /// What is to happen this time.
    fn actions(step: Step) -> impl Iterator<Item = Action> {
        static POINTS: OnceLock<Vec<Point>> = OnceLock::new();
        let points = POINTS.get_or_init(|| {
            let text = std::env::var(VARIABLE).unwrap_or_default();
            parse(&text).unwrap_or_else(|problem| panic!("{VARIABLE}: {problem}"))
        });
        points
            .iter()
            .filter(move |point| point.step == step)
            .filter_map(Point::meet)
    }

    /// Lets `action` happen; answers how long is to be waited for it.
    fn act(step: Step, action: Action) -> Result<Option<Duration>, Injected> {
        // A test sees by the log that the point was met.
        tracing::warn!(step = step.as_str(), ?action, "failpoint");
        match action {
            Action::Error => Err(Injected(step)),
            Action::Delay(delay) => Ok(Some(delay)),
            Action::Exit => {
                // Nothing of the process runs on: no destructor, no flush, no answer.
                if let Err(error) = kill_process(getpid(), Signal::KILL) {
                    panic!("a process cannot kill itself: {error}");
                }
                loop {
                    thread::park();
                }
            }
        }
    }

    impl Point {
        fn meet(&self) -> Option<Action> {
            let met = self.met.fetch_add(1, Ordering::SeqCst) + 1;
            (met >= self.from && met - self.from < self.times).then_some(self.action)
        }
    }

    fn parse(text: &str) -> Result<Vec<Point>, String> {
        let points = text.split(';').map(str::trim).filter(|point| !point.is_empty());
        points
            .map(|point| parse_point(point).ok_or_else(|| format!("{point:?} is no failpoint")))
            .collect()
    }

    fn parse_point(text: &str) -> Option<Point> {
        let (name, rest) = text.split_once('=')?;
        let (rest, times) = match rest.split_once('*') {
            Some((rest, times)) => (rest, times.parse().ok()?),
            None => (rest, u64::MAX),
        };
        let (action, from) = match rest.split_once('@') {
            Some((action, from)) => (action, from.parse().ok()?),
            None => (rest, 1),
        };
        let action = match action.split_once(':') {
            Some(("delay", delay)) => Action::Delay(Duration::from_millis(delay.strip_suffix("ms")?.parse().ok()?)),
            None if action == "exit" => Action::Exit,
            None if action == "error" => Action::Error,
            _ => return None,
        };
        let step = *Step::ALL.iter().find(|step| step.as_str() == name)?;
        Some(Point {
            step,
            action,
            from,
            times,
            met: AtomicU64::new(0),
        })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_variable_says_what_happens_where_and_when() {
            let points = parse("copy.claimed=exit; copy.read=delay:200ms*2;finish.object-whole=error@3*2").unwrap();
            let asked: Vec<_> = points.iter().map(|point| (point.step, point.action)).collect();
            let delay = Action::Delay(Duration::from_millis(200));
            assert_eq!(
                asked,
                [
                    (Step::CopyClaimed, Action::Exit),
                    (Step::CopyRead, delay),
                    (Step::ObjectWhole, Action::Error),
                ]
            );
            let met: Vec<_> = (0..6).map(|_| points[2].meet().is_some()).collect();
            assert_eq!(met, [false, false, true, true, false, false]);
            let met: Vec<_> = (0..3).map(|_| points[1].meet()).collect();
            assert_eq!(met, [Some(delay), Some(delay), None]);
            for wrong in [
                "copy.claimed",
                "copy.nothing=exit",
                "copy.read=delay:5",
                "copy.read=exit@x",
                "copy.read=stop",
            ] {
                assert!(parse(wrong).is_err(), "{wrong}");
            }
        }
    }
}
