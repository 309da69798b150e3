//! What a proxy did: a test asserts that its fault really happened.

use std::sync::atomic::{AtomicU64, Ordering};

use super::faults::{Ending, Way};

/// What a proxy did since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections of clients.
    pub accepted: u64,
    /// Of these, those that were reset because the server could not be reached.
    pub unreachable: u64,
    /// Bytes that were passed to the server.
    pub to_server: u64,
    /// Bytes that were passed to clients.
    pub to_client: u64,
    /// Times that a way waited for its rate.
    pub slowed: u64,
    /// Pieces that waited for their delay.
    pub delayed: u64,
    /// Connections that were cut.
    pub cut: u64,
    /// Connections that were reset by a fault.
    pub reset: u64,
    /// Ways that were closed by a fault.
    pub half_closed: u64,
    /// Ways on which something was swallowed.
    pub swallowed: u64,
    /// Ways on which something waits, or waited, that was not read.
    pub stalled: u64,
    /// Connections whose server ended what it sends, also those where no client was told.
    pub ended_by_server: u64,
    /// Connections whose client ended what it sends, also those where no server was told.
    pub ended_by_client: u64,
}

#[derive(Debug, Default)]
pub(super) struct Tally {
    accepted: AtomicU64,
    unreachable: AtomicU64,
    to_server: AtomicU64,
    to_client: AtomicU64,
    slowed: AtomicU64,
    delayed: AtomicU64,
    cut: AtomicU64,
    reset: AtomicU64,
    half_closed: AtomicU64,
    swallowed: AtomicU64,
    stalled: AtomicU64,
    ended_by_server: AtomicU64,
    ended_by_client: AtomicU64,
}

impl Tally {
    pub(super) fn counts(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        Counts {
            accepted: of(&self.accepted),
            unreachable: of(&self.unreachable),
            to_server: of(&self.to_server),
            to_client: of(&self.to_client),
            slowed: of(&self.slowed),
            delayed: of(&self.delayed),
            cut: of(&self.cut),
            reset: of(&self.reset),
            half_closed: of(&self.half_closed),
            swallowed: of(&self.swallowed),
            stalled: of(&self.stalled),
            ended_by_server: of(&self.ended_by_server),
            ended_by_client: of(&self.ended_by_client),
        }
    }

    pub(super) fn accepted(&self) {
        count(&self.accepted);
    }

    pub(super) fn unreachable(&self) {
        count(&self.unreachable);
    }

    pub(super) fn slowed(&self) {
        count(&self.slowed);
    }

    pub(super) fn delayed(&self) {
        count(&self.delayed);
    }

    pub(super) fn happened(&self, ending: Ending) {
        count(match ending {
            Ending::Cut => &self.cut,
            Ending::Reset => &self.reset,
            Ending::HalfClose => &self.half_closed,
            Ending::Swallow => &self.swallowed,
            Ending::Stall => &self.stalled,
        });
    }

    pub(super) fn passed(&self, way: Way, bytes: u64) {
        let counter = match way {
            Way::ToServer => &self.to_server,
            Way::ToClient => &self.to_client,
        };
        counter.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Whoever sends on `way` ended that.
    pub(super) fn source_ended(&self, way: Way) {
        count(match way {
            Way::ToServer => &self.ended_by_client,
            Way::ToClient => &self.ended_by_server,
        });
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::SeqCst);
}
