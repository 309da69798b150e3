//! What is sent: one block of noise, again and again, so that making it costs nothing.

use shared::checksum::Crc64;

/// As large as one write to the socket; stays in the processor's cache.
const BLOCK: usize = 1024 * 1024;

/// The bytes of uploads.
#[derive(Debug)]
pub(crate) struct Payload {
    block: Vec<u8>,
}

impl Payload {
    /// Always the same bytes.
    pub(crate) fn new() -> Self {
        // xorshift64: no zeros that a file system could leave out, nothing that it could compress.
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let block = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .take(BLOCK / size_of::<u64>())
        .flatten()
        .collect();
        Self { block }
    }

    /// An upload of `len` bytes, in pieces of a block.
    pub(crate) fn pieces(&self, len: u64) -> impl Iterator<Item = &[u8]> {
        let block = self.block.len() as u64;
        (0..len.div_ceil(block)).map(move |piece| {
            let left = usize::try_from(len - piece * block).unwrap_or(usize::MAX);
            &self.block[..left.min(self.block.len())]
        })
    }

    /// The checksum of an upload of `len` bytes.
    pub(crate) fn checksum(&self, len: u64) -> Crc64 {
        let mut crc = Crc64::default();
        for piece in self.pieces(len) {
            crc.update(piece);
        }
        crc
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_are_exactly_the_length() {
        let payload = Payload::new();
        for len in [0, 1, BLOCK as u64 - 1, BLOCK as u64, BLOCK as u64 + 1, 3 * BLOCK as u64] {
            let sum: usize = payload.pieces(len).map(<[u8]>::len).sum();
            assert_eq!(sum as u64, len);
            assert_eq!(payload.checksum(len).covered(), len);
        }
    }
}
