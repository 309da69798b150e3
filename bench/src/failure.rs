//! Why a measurement ended without a result.

use std::fmt::Display;
use std::io;
use std::time::Duration;

/// A measurement that is no result. None is passed over: a fast server that loses or refuses is not fast.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The system refused.
    #[error("{operation} {object}")]
    Io {
        operation: &'static str,
        object: String,
        #[source]
        source: io::Error,
    },
    /// A server answered what it should not have.
    #[error("{request}: expected {expected}, got {got}")]
    Answer {
        request: String,
        expected: String,
        got: String,
    },
    /// What the server was sent is not what it has.
    #[error("{object}: expected {expected}, found {found}")]
    Lost {
        object: String,
        expected: String,
        found: String,
    },
    /// A server or a tool that the measurement needs did not do what it should.
    #[error("{program}: {reason}")]
    Program { program: String, reason: String },
    /// Nothing happened in time.
    #[error("{what}: not within {limit:?}")]
    Late { what: String, limit: Duration },
    /// The options ask for nothing that can be measured.
    #[error("{0}")]
    Options(String),
    /// What a server did in a measurement, with the end of its log.
    #[error("{server}; its log ends with:\n{log}\n")]
    Measured {
        server: &'static str,
        log: String,
        #[source]
        source: Box<Failure>,
    },
    /// Asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl Failure {
    /// For `map_err`: `operation` failed on `object`.
    pub(crate) fn io(operation: &'static str, object: impl Display) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            operation,
            object: object.to_string(),
            source,
        }
    }
}
