//! The disks of a site: file systems of its own for some of its folders, which a test can fill, lose and give back.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Program, Site, SiteBuilder};
use crate::mounts::Mounts;

impl SiteBuilder {
    /// With a disk of its own, a tmpfs with `options` such as `size=8m`, as `folder` of its data (`""`: all of it).
    #[must_use]
    pub fn disk(mut self, folder: &str, options: &str) -> Self {
        self.disks.push((folder.to_owned(), options.to_owned()));
        self
    }

    /// With these file systems, and the disks among them.
    #[must_use]
    pub fn mounts(mut self, mounts: Arc<Mounts>) -> Self {
        self.mounts = Some(mounts);
        self
    }
}

impl Site {
    pub(super) fn mount_disks(&mut self) {
        if self.how.disks.is_empty() {
            return;
        }
        let mounts = self.how.mounts.get_or_insert_with(|| Arc::new(Mounts::new())).clone();
        for (folder, options) in &self.how.disks {
            mounts.tmpfs(&self.data().join(folder), options);
        }
    }

    /// Its file systems.
    ///
    /// # Panics
    /// It has none of its own.
    #[must_use]
    pub fn mounts(&self) -> &Mounts {
        self.how.mounts.as_deref().expect("a site with disks of its own")
    }

    /// The program with the site's file systems.
    #[must_use]
    pub fn beside(&self, program: Program) -> Program {
        match &self.how.mounts {
            Some(mounts) => program.mounts(mounts.clone()),
            None => program,
        }
    }

    /// Where the test finds what `path` is for the site.
    #[must_use]
    pub fn seen(&self, path: &Path) -> PathBuf {
        match &self.how.mounts {
            Some(mounts) => mounts.seen(path),
            None => path.to_owned(),
        }
    }
}
