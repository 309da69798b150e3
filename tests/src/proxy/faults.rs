//! What can happen to the bytes of a connection.

use std::time::Duration;

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// What the client sends.
    ToServer,
    /// What the server sends.
    ToClient,
}

/// What happens to a way at a given byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The connection is closed on both sides, in order (FIN).
    Cut,
    /// The connection is reset on both sides (RST).
    Reset,
    /// This way is closed and the other one goes on. What else is sent this way is thrown away.
    HalfClose,
    /// From here on what comes is read and thrown away. Nothing is closed, whatever either side does.
    Swallow,
    /// From here on nothing is read: the sender's buffers fill. Nothing is closed, whatever either side does. Once
    /// the fault is lifted the bytes go on without a gap, as after a partition of the network.
    Stall,
}

/// The faults of one connection: none, until they are added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    to_server: Line,
    to_client: Line,
}

/// What happens to the bytes of one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    /// Each byte arrives so much later.
    pub(super) delay: Duration,
    /// At most so many bytes a second.
    pub(super) rate: Option<u64>,
    /// So many bytes pass; the one behind them brings the ending.
    pub(super) end: Option<(u64, Ending)>,
}

impl Faults {
    /// Everything passes.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Requests pass whole; at the first byte of an answer the connection is cut.
    #[must_use]
    pub fn no_answer() -> Self {
        Self::none().end(Way::ToClient, 0, Ending::Cut)
    }

    /// A black hole: it takes what it is given, passes nothing on and closes nothing.
    #[must_use]
    pub fn blackhole() -> Self {
        Self::both(Ending::Swallow)
    }

    /// The network between the two is gone: nothing passes, nothing is read, nothing is closed.
    #[must_use]
    pub fn partition() -> Self {
        Self::both(Ending::Stall)
    }

    fn both(ending: Ending) -> Self {
        Self::none().end(Way::ToServer, 0, ending).end(Way::ToClient, 0, ending)
    }

    /// And the bytes of `way` arrive `delay` later. At most a megabyte is on its way.
    #[must_use]
    pub fn delay(mut self, way: Way, delay: Duration) -> Self {
        self.line_mut(way).delay = delay;
        self
    }

    /// And at most `bytes_per_second`, which is not 0, pass on `way`.
    #[must_use]
    pub fn rate(mut self, way: Way, bytes_per_second: u64) -> Self {
        assert!(bytes_per_second > 0, "a rate of nothing is Ending::Stall");
        self.line_mut(way).rate = Some(bytes_per_second);
        self
    }

    /// And exactly `after` more bytes pass on `way`: the next one brings the `ending`. A way on which no more comes,
    /// or whose sender closes it before, does not end so.
    #[must_use]
    pub fn end(mut self, way: Way, after: u64, ending: Ending) -> Self {
        self.line_mut(way).end = Some((after, ending));
        self
    }

    pub(super) fn line(&self, way: Way) -> Line {
        match way {
            Way::ToServer => self.to_server,
            Way::ToClient => self.to_client,
        }
    }

    fn line_mut(&mut self, way: Way) -> &mut Line {
        match way {
            Way::ToServer => &mut self.to_server,
            Way::ToClient => &mut self.to_client,
        }
    }
}
