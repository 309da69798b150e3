//! Listing: names in byte order, a page at a time, however many files there are.

use std::collections::BinaryHeap;

use cap_std::fs::Dir;

use super::Folder;
use super::failure::Failed;
use crate::store::{BlobErrorKind, BlobName};

/// Ferry's own folder.
const OWN: &str = ".ferry/";
/// How many entries of one folder are held at least: fewer would make it be read too often.
const BATCH: usize = 1000;

impl Folder {
    /// At most `limit` names that begin with `prefix` and come after `after`. Files that a symbolic link stands
    /// for are not listed: a link to a folder above itself would never end.
    pub(super) fn list(&self, prefix: &str, after: Option<&BlobName>, limit: usize) -> Result<Vec<BlobName>, Failed> {
        let top = prefix.rsplit_once('/').map_or("", |(top, _)| top);
        let mut page = Page {
            prefix,
            after: after.map_or("", BlobName::as_str),
            own: prefix.starts_with(OWN),
            limit,
            names: Vec::new(),
        };
        // A prefix that cannot begin a name has none.
        if top.is_empty() || BlobName::try_from(top.to_owned()).is_ok() {
            match self.base.folder(top) {
                Ok(folder) => page.walk(&folder, top)?,
                Err(failed) if matches!(failed.kind, BlobErrorKind::NotFound | BlobErrorKind::Invalid) => {
                    self.base.present()?;
                }
                Err(failed) => return Err(failed),
            }
        }
        if page.names.is_empty() {
            self.base.present()?; // a folder that was removed reads as an empty one
        }
        Ok(page.names)
    }
}

/// A page in the making. An *entry* is a whole name; a folder's ends in `/`, so that entries sort as the names
/// below them do (`a-b` before `a/b`).
struct Page<'a> {
    prefix: &'a str,
    after: &'a str,
    own: bool,
    limit: usize,
    names: Vec<BlobName>,
}

impl Page<'_> {
    /// Adds the names below the folder `path`, as far as the page has room.
    fn walk(&mut self, folder: &Dir, path: &str) -> Result<(), Failed> {
        let mut last = String::new();
        while self.names.len() < self.limit {
            let room = (self.limit - self.names.len()).max(BATCH);
            let entries = self.next_entries(folder, path, &last, room)?;
            let all = entries.len() < room;
            for entry in entries {
                match entry.strip_suffix('/') {
                    Some(below) => {
                        let leaf = below.rsplit_once('/').map_or(below, |(_, leaf)| leaf);
                        match folder.open_dir(leaf).map_err(Failed::from) {
                            Ok(folder) => self.walk(&folder, below)?,
                            // Removed or replaced since it was listed.
                            Err(failed) if matches!(failed.kind, BlobErrorKind::NotFound | BlobErrorKind::Invalid) => {}
                            Err(failed) => return Err(failed),
                        }
                    }
                    None => self.names.extend(self.name(&entry)),
                }
                if self.names.len() == self.limit {
                    return Ok(());
                }
                last = entry;
            }
            if all {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The first `room` entries of the folder `path` behind `last` that matter, in order.
    fn next_entries(&self, folder: &Dir, path: &str, last: &str, room: usize) -> Result<Vec<String>, Failed> {
        let mut first = BinaryHeap::new(); // the largest on top: it gives way to smaller ones
        for found in folder.entries()? {
            let found = found?;
            let name = found.file_name();
            let Some(name) = name.to_str() else { continue }; // no name of ours
            let kind = found.file_type()?;
            // Some file systems do not tell in the listing; the file may be gone by now.
            let kind = if kind.is_dir() || kind.is_file() || kind.is_symlink() {
                kind
            } else {
                match found.metadata() {
                    Ok(found) => found.file_type(),
                    Err(_) => continue,
                }
            };
            let mark = if kind.is_dir() { "/" } else { "" };
            let entry = if path.is_empty() {
                format!("{name}{mark}")
            } else {
                format!("{path}/{name}{mark}")
            };
            let wanted = if kind.is_dir() {
                self.leads_to_names(&entry)
            } else {
                kind.is_file() && self.is_due(&entry)
            };
            if !wanted || entry.as_str() <= last {
                continue;
            }
            if first.len() < room {
                first.push(entry);
            } else if let Some(mut largest) = first.peek_mut()
                && entry < *largest
            {
                *largest = entry;
            }
        }
        Ok(first.into_sorted_vec())
    }

    /// Whether names below the folder `entry` can belong to the page.
    fn leads_to_names(&self, entry: &str) -> bool {
        (entry.starts_with(self.prefix) || self.prefix.starts_with(entry))
            && (entry > self.after || self.after.starts_with(entry))
            && (self.own || entry != OWN)
            && self.name(entry.trim_end_matches('/')).is_some()
    }

    /// Whether the file `entry` belongs to the page, if there is room.
    fn is_due(&self, entry: &str) -> bool {
        entry.starts_with(self.prefix) && entry > self.after && self.name(entry).is_some()
    }

    /// The entry as a name, unless no blob can be called that.
    fn name(&self, entry: &str) -> Option<BlobName> {
        if self.own {
            BlobName::try_from(entry.to_owned()).ok()
        } else {
            BlobName::new(entry).ok()
        }
    }
}
