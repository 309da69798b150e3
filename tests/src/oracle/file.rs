//! Files whose names say what is in them.

use crate::pattern::{Random, pattern};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// What a file is: all that its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File {
    /// Of its pattern.
    pub seed: u64,
    /// In bytes.
    pub len: usize,
}

/// How long files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The longest, in bytes. There are about three of the longest kind among twenty, and three that are empty.
    pub most: u64,
}

impl Sizes {
    /// From nothing to 4 MiB.
    pub const SMALL: Self = Self { most: 4 * MIB };
    /// From nothing to 20 MiB.
    pub const WIDE: Self = Self { most: 20 * MIB };
}

impl File {
    /// One of `sizes`, most of them small.
    pub fn random(random: &mut Random, sizes: Sizes) -> Self {
        let most = match random.below(20) {
            0..=2 => 0,
            3..=8 => KIB,
            9..=16 => 256 * KIB,
            _ => sizes.most,
        };
        Self {
            seed: random.next(),
            len: usize::try_from(random.below(most.min(sizes.most) + 1)).expect("a few megabytes"),
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn content(self) -> Vec<u8> {
        pattern(self.seed, self.len)
    }

    /// Its length as offsets are counted.
    ///
    /// # Panics
    /// Never: it is in memory.
    #[must_use]
    pub fn length(self) -> u64 {
        u64::try_from(self.len).expect("a length in memory")
    }

    /// Its name, for `filename`.
    #[must_use]
    pub fn name(self) -> String {
        format!("{}-{}.bin", self.seed, self.len)
    }

    /// The file and the upload's id from the name of a delivered one, `<seed>-<len>_<id>.bin`.
    #[must_use]
    pub fn of_delivered(name: &str) -> Option<(Self, &str)> {
        let (stem, id) = name.strip_suffix(".bin")?.split_once('_')?;
        let (seed, len) = stem.split_once('-')?;
        let file = Self {
            seed: seed.parse().ok()?,
            len: len.parse().ok()?,
        };
        Some((file, id))
    }
}
