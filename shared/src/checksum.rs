//! CRC-64/NVME: computed while bytes stream by, carried across crashes, and joined from parts.
//!
//! It is the checksum that S3 and Azure attest for whole objects, and the only one whose parts can be joined
//! without reading them again, which is what checkpoints (core.md §3) and concatenations need.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crc_fast::{CrcAlgorithm, Digest, checksum_combine};
use serde::{Deserialize, Serialize};

/// The checksum of a run of bytes, and how many they were.
///
/// ```
/// use shared::checksum::Crc64;
/// let mut whole = Crc64::default();
/// whole.update(b"123456789");
/// assert_eq!(whole.value(), 0xAE8B_1486_0A79_9888);
/// assert_eq!(Crc64::of(b"1234").then(Crc64::of(b"56789")), whole);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crc64 {
    /// The finished checksum of the bytes so far.
    #[serde(with = "base64_be")]
    value: u64,
    /// How many bytes it covers.
    len: u64,
}

impl Crc64 {
    /// The checksum of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut crc = Self::default();
        crc.update(bytes);
        crc
    }

    /// A checksum that somebody else computed over `len` bytes.
    #[must_use]
    pub fn known(value: u64, len: u64) -> Self {
        Self { value, len }
    }

    /// Goes on over `bytes`, which follow those covered so far.
    pub fn update(&mut self, bytes: &[u8]) {
        // The register of CRC-64/NVME is the complement of the finished value.
        let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc64Nvme, !self.value);
        digest.update(bytes);
        self.value = digest.finalize();
        self.len += bytes.len() as u64;
    }

    /// The checksum of these bytes followed by `next`'s, without reading either again.
    #[must_use]
    pub fn then(self, next: Self) -> Self {
        // Most uploads come in one piece; combining with nothing costs as much as with anything.
        if self.len == 0 {
            return next;
        }
        if next.len == 0 {
            return self;
        }
        Self {
            value: checksum_combine(CrcAlgorithm::Crc64Nvme, self.value, next.value, next.len),
            len: self.len + next.len,
        }
    }

    /// The finished value.
    #[must_use]
    pub fn value(self) -> u64 {
        self.value
    }

    /// How many bytes are covered.
    #[must_use]
    pub fn covered(self) -> u64 {
        self.len
    }

    /// Big-endian base64, the form that S3 uses and that reports, `/info` and object metadata show.
    #[must_use]
    pub fn to_base64(self) -> String {
        STANDARD.encode(self.value.to_be_bytes())
    }
}

mod base64_be {
    use base64::Engine as _;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use super::STANDARD;

    pub(super) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(value.to_be_bytes()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(&text).map_err(D::Error::custom)?;
        let bytes = <[u8; 8]>::try_from(bytes).map_err(|_| D::Error::custom("a CRC-64 has 8 bytes"))?;
        Ok(u64::from_be_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_known_answer_of_crc_64_nvme_comes_out() {
        assert_eq!(Crc64::of(b"123456789").value(), 0xAE8B_1486_0A79_9888);
        assert_eq!(Crc64::of(b"").value(), 0);
    }

    #[test]
    fn nothing_before_or_behind_changes_no_checksum() {
        let some = Crc64::of(b"123456789");
        for empty in [Crc64::default(), Crc64::of(b"")] {
            assert_eq!(some.then(empty), some);
            assert_eq!(empty.then(some), some);
            assert_eq!(empty.then(empty), Crc64::default());
        }
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_checksum_of_the_whole(bytes: Vec<u8>, cut: prop::sample::Index) {
            let at = cut.index(bytes.len() + 1);
            let whole = Crc64::of(&bytes);
            let mut streamed = Crc64::of(&bytes[..at]);
            prop_assert_eq!(streamed.then(Crc64::of(&bytes[at..])), whole);
            streamed.update(&bytes[at..]);
            prop_assert_eq!(streamed, whole);
            let text = serde_json::to_string(&whole).unwrap();
            prop_assert_eq!(serde_json::from_str::<Crc64>(&text).unwrap(), whole);
        }
    }
}
