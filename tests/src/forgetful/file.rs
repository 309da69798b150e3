//! One file: what it holds for those who read it, and what of that is on the disk.

use shared::store::Identity;

use crate::pattern::Random;

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) bytes: Vec<u8>,
    pub(super) identity: Option<Identity>,
}

/// A change that no sync has brought to the disk yet.
#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Cut(usize),
    Mark(Option<Identity>),
}

impl Content {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Write(offset, bytes) => {
                let end = offset + bytes.len();
                if self.bytes.len() < end {
                    // What lies before and was never written reads as zeros.
                    self.bytes.resize(end, 0);
                }
                self.bytes[*offset..end].copy_from_slice(bytes);
            }
            // A cut that comes to the disk before the bytes that it leaves makes a file of zeros.
            Change::Cut(len) => self.bytes.resize(*len, 0),
            Change::Mark(identity) => self.identity.clone_from(identity),
        }
    }
}

/// A file.
#[derive(Clone, Debug, Default)]
pub(super) struct File {
    now: Content,
    safe: Content,
    pending: Vec<Change>,
    /// Which content it is; raised when it is given its identity.
    pub(super) version: u64,
}

impl File {
    pub(super) fn content(&self) -> &Content {
        &self.now
    }

    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.change(Change::Write(offset, bytes.to_vec()));
    }

    pub(super) fn cut(&mut self, len: usize) {
        self.change(Change::Cut(len));
    }

    pub(super) fn mark(&mut self, identity: Option<Identity>) {
        self.version += 1;
        self.change(Change::Mark(identity));
    }

    fn change(&mut self, change: Change) {
        self.now.apply(&change);
        self.pending.push(change);
    }

    /// All of it is on the disk.
    pub(super) fn sync(&mut self) {
        self.safe.clone_from(&self.now);
        self.pending.clear();
    }

    /// A sync fails: some of the changes are on the disk, the others never will be, and readers see that.
    pub(super) fn fail_sync(&mut self, random: &mut Random) {
        for change in self.pending.drain(..) {
            if random.once_in(2) {
                self.safe.apply(&change);
            }
        }
        self.now.clone_from(&self.safe);
    }

    /// The power is lost: of what was not synced all survives, nothing, the first changes with the last one torn, or
    /// any of them.
    pub(super) fn lose_power(&mut self, random: &mut Random) {
        let count = u64::try_from(self.pending.len()).expect("changes in memory");
        let way = random.below(4);
        let kept = random.below(count + 1);
        for (at, change) in (0..).zip(self.pending.drain(..)) {
            let survives = match way {
                0 => true,
                1 => false,
                2 => at < kept,
                _ => random.once_in(2),
            };
            if survives {
                self.safe.apply(&change);
            } else if way == 2
                && at == kept
                && let Change::Write(offset, bytes) = change
            {
                let len = u64::try_from(bytes.len()).expect("a length in memory");
                let torn = usize::try_from(random.below(len + 1)).expect("less than the length");
                self.safe.apply(&Change::Write(offset, bytes[..torn].to_vec()));
            }
        }
        self.now.clone_from(&self.safe);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All contents that a loss of power leaves of `file`, over many seeds.
    fn survivors(file: &File) -> Vec<Vec<u8>> {
        let mut found: Vec<_> = (0..500)
            .map(|seed| {
                let mut file = file.clone();
                file.lose_power(&mut Random::new(seed));
                file.content().bytes.clone()
            })
            .collect();
        found.sort();
        found.dedup();
        found
    }

    #[test]
    fn what_was_synced_survives_and_of_the_rest_any_part() {
        let mut file = File::default();
        file.write(0, b"ab");
        file.sync();
        assert_eq!(survivors(&file), [b"ab"]);
        file.write(2, b"cd");
        file.write(4, b"ef");
        let found = survivors(&file);
        for expected in [&b"ab"[..], b"abc", b"abcd", b"abcde", b"abcdef", b"ab\0\0ef"] {
            assert!(found.iter().any(|found| found == expected), "{expected:?} in {found:?}");
        }
        assert!(found.iter().all(|found| found.starts_with(b"ab")));
        file.sync();
        file.cut(1);
        assert_eq!(survivors(&file), [&b"a"[..], b"abcdef"]);
    }

    #[test]
    fn after_a_failed_sync_readers_see_what_the_disk_has_and_another_sync_brings_nothing_back() {
        let lost = (0..50).filter(|seed| {
            let mut file = File::default();
            file.write(0, b"ab");
            file.fail_sync(&mut Random::new(*seed));
            let seen = file.content().bytes.clone();
            file.sync();
            assert_eq!(survivors(&file), std::slice::from_ref(&seen));
            seen.is_empty()
        });
        assert!((10..40).contains(&lost.count()), "some are lost, and some are not");
    }
}
