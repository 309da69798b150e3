//! Folders that survive a loss of power: a name lasts from the sync of the folder that it is in.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Makes the folder `path` and all above it that are missing, with `sync` durably.
pub(crate) fn make(path: &Path, sync: bool) -> io::Result<()> {
    let missing: Vec<&Path> = path
        .ancestors()
        .take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists())
        .collect();
    fs::create_dir_all(path)?;
    if sync {
        for folder in missing {
            self::sync(above(folder))?;
        }
    }
    Ok(())
}

/// Makes the names in `folder` durable.
pub(crate) fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The folder that `path` is in.
pub(crate) fn above(path: &Path) -> &Path {
    match path.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        _ => Path::new("."),
    }
}
