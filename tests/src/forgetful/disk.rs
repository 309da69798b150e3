//! One container: its files, and under which names they are, now and after a loss of power.

use std::collections::BTreeMap;

use super::file::File;
use crate::pattern::Random;

/// Which file, whatever its name.
pub(super) type Inode = u64;

/// Names that no sync of their folder has brought to the disk yet: one that is gone, one that is there, or both at
/// once, for a rename happens or does not.
#[derive(Clone, Debug)]
struct Renaming {
    gone: Option<String>,
    there: Option<(String, Inode)>,
}

impl Renaming {
    fn touches(&self, in_folder: &str) -> bool {
        let names = [self.gone.as_ref(), self.there.as_ref().map(|(name, _)| name)];
        names.into_iter().flatten().any(|name| folder(name) == in_folder)
    }

    fn apply(&self, names: &mut BTreeMap<String, Inode>) {
        if let Some(gone) = &self.gone {
            names.remove(gone);
        }
        if let Some((name, inode)) = &self.there {
            names.insert(name.clone(), *inode);
        }
    }
}

/// A container.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    files: BTreeMap<Inode, File>,
    names: BTreeMap<String, Inode>,
    safe: BTreeMap<String, Inode>,
    pending: Vec<Renaming>,
    last: Inode,
}

impl Disk {
    /// All names in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// The file under `name`, and which it is.
    pub(super) fn file(&mut self, name: &str) -> Option<(Inode, &mut File)> {
        let inode = *self.names.get(name)?;
        Some((inode, self.files.get_mut(&inode).expect("a name is that of a file")))
    }

    /// A new, empty file.
    pub(super) fn create(&mut self, name: &str) {
        self.last += 1;
        self.files.insert(self.last, File::default());
        self.rename(None, Some((name.to_owned(), self.last)));
    }

    /// The file under `from`, which is there, gets the name `to`.
    pub(super) fn move_to(&mut self, from: &str, to: &str) {
        let inode = self.names[from];
        self.rename(Some(from.to_owned()), Some((to.to_owned(), inode)));
    }

    /// Nothing has this name any more.
    pub(super) fn remove(&mut self, name: &str) {
        if self.names.contains_key(name) {
            self.rename(Some(name.to_owned()), None);
        }
    }

    fn rename(&mut self, gone: Option<String>, there: Option<(String, Inode)>) {
        let renaming = Renaming { gone, there };
        renaming.apply(&mut self.names);
        self.pending.push(renaming);
    }

    /// The names in the folder of `name` are on the disk.
    pub(super) fn sync_folder_of(&mut self, name: &str) {
        let folder = folder(name);
        let (synced, pending) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition::<Vec<_>, _>(|renaming| renaming.touches(folder));
        self.pending = pending;
        for renaming in synced {
            renaming.apply(&mut self.safe);
        }
    }

    /// The power is lost: names that were not synced survive or do not, each as the seed decides, and so does what is
    /// in the files.
    pub(super) fn lose_power(&mut self, random: &mut Random) {
        for renaming in std::mem::take(&mut self.pending) {
            if random.once_in(2) {
                renaming.apply(&mut self.safe);
            }
        }
        self.names.clone_from(&self.safe);
        let names = &self.names;
        self.files.retain(|inode, _| names.values().any(|named| named == inode));
        for file in self.files.values_mut() {
            file.lose_power(random);
        }
    }
}

fn folder(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(folder, _)| folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survivors(disk: &Disk) -> Vec<Vec<String>> {
        let mut found: Vec<_> = (0..200)
            .map(|seed| {
                let mut disk = disk.clone();
                disk.lose_power(&mut Random::new(seed));
                disk.names().map(str::to_owned).collect::<Vec<_>>()
            })
            .collect();
        found.sort();
        found.dedup();
        found
    }

    #[test]
    fn a_name_lasts_from_the_sync_of_its_folder_on_and_a_rename_happens_or_does_not() {
        let mut disk = Disk::default();
        disk.create("staged/1");
        assert_eq!(survivors(&disk), [vec![], vec!["staged/1"]]);
        disk.sync_folder_of("staged/1");
        assert_eq!(survivors(&disk), [["staged/1"]]);
        disk.move_to("staged/1", "final");
        assert_eq!(survivors(&disk), [["final"], ["staged/1"]]);
        disk.sync_folder_of("final");
        assert_eq!(survivors(&disk), [["final"]]);
        disk.remove("final");
        assert_eq!(survivors(&disk), [vec![], vec!["final"]]);
    }
}
