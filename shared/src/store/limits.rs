//! What stores differ in, as data.

use std::ops::Range;

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;

/// Part sizes of a store, and what it attests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How a blob is cut into parts.
    pub slots: Slots,
    /// Parts must be written strictly in order.
    pub ordered: bool,
    /// What the caller reads back, because the store does not attest it.
    pub read_back: ReadBack,
}

/// How a blob is cut into parts. A part's place is a function of its offset, so that a retried or doubled write
/// lands on itself. Spec: core.md §6, "Part sizes".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slots {
    /// Any size at any offset; this one is best.
    Free {
        /// Bytes per write.
        preferred: u64,
    },
    /// At least 8 MiB but the last, and at most 10,000 of them.
    Fixed,
}

/// When a copy is read back before it is called a success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadBack {
    /// The store attests the checksum of the whole.
    Never,
    /// The staged bytes, before they become visible (folders).
    BeforeCommit,
    /// The visible blob (stores that cannot read unfinished data).
    AfterCommit,
}

impl Limits {
    /// The part that holds `offset`, in a blob of `size_hint` bytes if that is known.
    #[must_use]
    pub fn slot(&self, offset: u64, size_hint: Option<u64>) -> Range<u64> {
        let (start, len) = match (self.slots, size_hint) {
            (Slots::Free { preferred }, _) => (offset / preferred * preferred, preferred),
            (Slots::Fixed, Some(size)) => {
                let len = size.div_ceil(10_000).max(8 * MIB);
                (offset / len * len, len)
            }
            (Slots::Fixed, None) => open_ended(offset),
        };
        start..start.saturating_add(len).min(size_hint.unwrap_or(u64::MAX))
    }
}

/// Start and length of the slot at `offset` when nobody knows how long the blob gets: small parts first, so that
/// small blobs waste nothing, growing so that 10,000 parts hold more than 4.5 TiB.
fn open_ended(offset: u64) -> (u64, u64) {
    let mut start = 0;
    for (parts, len) in [(2000, 8 * MIB), (2000, 64 * MIB), (2000, 256 * MIB)] {
        let end = start + parts * len;
        if offset < end {
            return (start + (offset - start) / len * len, len);
        }
        start = end;
    }
    (start + (offset - start) / GIB * GIB, GIB)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FIXED: Limits = Limits {
        slots: Slots::Fixed,
        ordered: false,
        read_back: ReadBack::Never,
    };

    #[test]
    fn four_and_a_half_tebibytes_of_unknown_length_fit_into_ten_thousand_parts() {
        let (mut offset, mut parts) = (0, 0);
        while offset < 4 * 1024 * GIB + 512 * GIB {
            offset = FIXED.slot(offset, None).end;
            parts += 1;
        }
        assert!(parts <= 10_000, "{parts} parts");
    }

    proptest! {
        #[test]
        fn slots_cover_a_blob_without_gap_or_overlap(size in 1..=50 * 1024 * GIB, at: u64, known: bool, free: bool) {
            let limits =
                if free { Limits { slots: Slots::Free { preferred: MIB }, ..FIXED } } else { FIXED };
            let hint = known.then_some(size);
            let slot = limits.slot(at % size, hint);
            prop_assert!(slot.contains(&(at % size)));
            prop_assert_eq!(limits.slot(slot.start, hint), slot.clone());
            if slot.end < size {
                prop_assert_eq!(limits.slot(slot.end, hint).start, slot.end);
            }
            if known && !free {
                prop_assert!(size.div_ceil(slot.end - slot.start) <= 10_000 || slot.end == size);
            }
        }
    }
}
