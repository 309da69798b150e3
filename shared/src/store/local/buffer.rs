//! Memory for what is read, used again and again. Fresh pages for each range cost more than the read itself, and
//! ranges that are taken on one thread and given back on another leave the allocator with holes that never close.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

/// The size of pooled buffers: that of the ranges in which whole files are read.
const SIZE: usize = 1024 * 1024;
/// Ranges from this size on are worth a pooled buffer.
const WORTHWHILE: usize = 64 * 1024;
/// Buffers kept while nobody needs them.
const KEPT: usize = 8;

static POOL: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// Room for `len` bytes that are about to be read.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    len: usize,
}

impl Buffer {
    pub(super) fn new(len: usize) -> Self {
        let bytes = if (WORTHWHILE..=SIZE).contains(&len) {
            POOL.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop()
                .unwrap_or_else(|| vec![0; SIZE])
        } else {
            vec![0; len]
        };
        Self { bytes, len }
    }

    pub(super) fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }

    /// The bytes for everybody to read; the memory comes back when the last of them is done.
    pub(super) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes.len() == SIZE {
            let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
            if pool.len() < KEPT {
                pool.push(std::mem::take(&mut self.bytes));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_as_long_as_asked_for_and_shows_what_was_read_into_it() {
        for len in [0, 1, WORTHWHILE - 1, WORTHWHILE, SIZE, SIZE + 1] {
            let mut buffer = Buffer::new(len);
            buffer.as_mut().fill(7);
            assert_eq!(buffer.freeze(), vec![7; len]);
        }
    }
}
