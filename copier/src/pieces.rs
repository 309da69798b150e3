//! How much a target is given at once. A part may take ten minutes (core.md §6): on a target of 1 KiB/s that is less
//! than one mebibyte, and until it is through nothing of it is kept and no slice ends.

use std::time::Duration;

use shared::store::Slots;

/// At first, because nobody knows how fast the target is.
const FIRST: usize = 64 * 1024;
/// Never less.
const LEAST: usize = 4 * 1024;
/// A piece that took less is followed by a larger one.
const QUICK: Duration = Duration::from_millis(100);
/// A piece that took more is followed by a smaller one.
const SLOW: Duration = Duration::from_secs(5);

/// The size of a target's next piece, by how long the last one took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pieces(usize);

impl Default for Pieces {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Pieces {
    /// How many bytes are written at once. Parts of stores that have their own are never cut.
    pub(crate) fn len(self, slots: Slots) -> usize {
        match slots {
            Slots::Free { .. } => self.0,
            Slots::Fixed => usize::MAX,
        }
    }

    /// The last piece took this long.
    pub(crate) fn note(&mut self, took: Duration) {
        if took < QUICK {
            self.0 = self.0.saturating_mul(2);
        } else if took > SLOW {
            self.0 = (self.0 / 2).max(LEAST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: Slots = Slots::Free { preferred: 1024 * 1024 };

    #[test]
    fn a_quick_target_gets_whole_ranges_soon_and_a_slow_one_what_it_can_take() {
        let mut pieces = Pieces::default();
        assert_eq!(pieces.len(FREE), FIRST);
        assert_eq!(pieces.len(Slots::Fixed), usize::MAX);
        for _ in 0..100 {
            pieces.note(Duration::from_millis(1));
        }
        assert_eq!(pieces.len(FREE), usize::MAX, "and no overflow");
        let mut pieces = Pieces::default();
        pieces.note(Duration::from_secs(1));
        assert_eq!(pieces.len(FREE), FIRST, "neither quick nor slow");
        for _ in 0..100 {
            pieces.note(Duration::from_secs(60));
        }
        assert_eq!(pieces.len(FREE), LEAST);
    }
}
