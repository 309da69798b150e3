//! Content and choices that a seed decides, so that a failing run can be had again.

/// `len` bytes that `seed` decides. A prefix of a longer pattern of the same seed is the shorter one, and no two
/// 8-byte words are likely to be equal, so that lost, doubled or swapped parts always show.
#[must_use]
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Compares without printing megabytes.
///
/// # Panics
/// They differ; the text says where.
pub fn assert_same(what: &str, found: &[u8], expected: &[u8]) {
    if found == expected {
        return;
    }
    let first = found.iter().zip(expected).position(|(a, b)| a != b);
    panic!(
        "{what}: {} bytes where {} were expected; first different byte: {first:?}",
        found.len(),
        expected.len()
    );
}

/// A sequence of numbers that a seed decides (splitmix64). Not for secrets.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    #[allow(clippy::should_implement_trait, reason = "an endless sequence needs no Option")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_its_longer_ones_prefix_and_another_seeds_stranger() {
        let long = pattern(7, 100_000);
        assert_eq!(pattern(7, 33), long[..33]);
        assert_ne!(pattern(8, 33), long[..33]);
        assert_ne!(long[..8], long[8..16]);
        assert!(pattern(7, 0).is_empty());
    }
}
