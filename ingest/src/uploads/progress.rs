//! How far an upload's bytes are, and their checksum, across requests and crashes. Spec: core.md §3.

use shared::checksum::Crc64;

/// The bytes of an unfinished upload.
///
/// ```text
///   0 ────────── known ────────── gap ────────── written
///     checksum known   read again     checksum of what
///     (checkpoint)     off the way    came meanwhile
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    known: Crc64,
    gap_end: u64,
    tail: Crc64,
    acknowledged: u64,
}

impl Progress {
    /// `stored` bytes are there, whose checksum is known up to `checkpoint`.
    pub(crate) fn resume(checkpoint: Crc64, stored: u64) -> Self {
        let known = if checkpoint.covered() <= stored {
            checkpoint
        } else {
            Crc64::default()
        };
        Self {
            known,
            gap_end: stored,
            tail: Crc64::default(),
            acknowledged: stored,
        }
    }

    /// End of the bytes that the store has.
    pub(crate) fn written(&self) -> u64 {
        self.gap_end + self.tail.covered()
    }

    /// End of the bytes that a sender may be told of.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// The store has `bytes` more.
    pub(crate) fn wrote(&mut self, bytes: Crc64) {
        self.tail = self.tail.then(bytes);
    }

    /// What is written may be told.
    pub(crate) fn acknowledge(&mut self) {
        self.acknowledged = self.written();
    }

    /// The bytes whose checksum must be read again: start and end, equal if there are none.
    pub(crate) fn gap(&self) -> (u64, u64) {
        (self.known.covered(), self.gap_end)
    }

    /// The gap's checksum was read.
    pub(crate) fn fill(&mut self, gap: Crc64) {
        if gap.covered() == self.gap_end - self.known.covered() {
            self.known = self.known.then(gap);
        }
    }

    /// Checksum of everything written, if nothing must be read again for it.
    pub(crate) fn total(&self) -> Option<Crc64> {
        (self.known.covered() == self.gap_end).then(|| self.known.then(self.tail))
    }

    /// The newest checksum worth recording.
    pub(crate) fn checkpoint(&self) -> Crc64 {
        self.total().unwrap_or(self.known)
    }

    /// A write failed: the store has `stored` bytes, which may be more than were counted. Nobody was told of those.
    pub(crate) fn after_failure(&self, stored: u64) -> Self {
        Self {
            acknowledged: self.acknowledged.min(stored),
            ..Self::resume(self.checkpoint(), stored)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_goes_on_behind_a_gap_and_is_whole_when_that_is_filled() {
        let bytes: Vec<u8> = (0..=255).collect();
        let mut progress = Progress::resume(Crc64::of(&bytes[..10]), 100);
        progress.wrote(Crc64::of(&bytes[100..150]));
        progress.wrote(Crc64::of(&bytes[150..]));
        assert_eq!(
            (progress.written(), progress.acknowledged(), progress.gap()),
            (256, 100, (10, 100))
        );
        assert_eq!(
            (progress.total(), progress.checkpoint()),
            (None, Crc64::of(&bytes[..10]))
        );
        progress.acknowledge();
        progress.fill(Crc64::of(&bytes[10..100]));
        assert_eq!(
            (progress.total(), progress.acknowledged()),
            (Some(Crc64::of(&bytes)), 256)
        );
    }

    #[test]
    fn a_checkpoint_beyond_the_stored_bytes_is_not_believed() {
        let progress = Progress::resume(Crc64::of(b"12345"), 3);
        assert_eq!((progress.gap(), progress.total()), ((0, 3), None));
    }

    #[test]
    fn bytes_that_a_failed_write_left_are_read_again() {
        let mut progress = Progress::resume(Crc64::default(), 0);
        progress.wrote(Crc64::of(b"12345"));
        let after = progress.after_failure(7);
        assert_eq!((after.gap(), after.written(), after.acknowledged()), ((5, 7), 7, 0));
    }
}
