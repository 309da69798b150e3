//! A look at what a start needs of this machine, before anything is made: folders, files, addresses. All that is wrong
//! is told in one go, and nothing is half started. Spec: faults.md 77.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use crate::config::{Problems, RecordsUrl, SinkConfig};
use crate::store::StoreUrl;

/// Something that a start needs of this machine.
#[derive(Clone, Debug)]
pub enum Need {
    /// A store that will be written, and made if it is missing.
    Store(StoreUrl),
    /// The records' file, and those beside it.
    Records(RecordsUrl),
    /// What a report sink needs.
    Sink(SinkConfig),
    /// An address that will be listened on.
    Listener(SocketAddr),
}

/// The look, and what was found wrong. `name` is always the setting to be named.
#[derive(Debug)]
pub struct Preflight {
    problems: Problems,
    /// The file of the records, which is nobody else's.
    records: Option<PathBuf>,
}

impl Preflight {
    /// Looks at all that is needed; `problems` is what is wrong already.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn look(problems: Problems, needs: &[(&'static str, Need)]) -> Result<(), Problems> {
        let mut look = Self {
            problems,
            records: None,
        };
        for (name, need) in needs {
            match need {
                Need::Store(store) => look.store(name, store),
                Need::Records(records) => look.records(name, records),
                Need::Sink(sink) => look.sink(name, sink),
                Need::Listener(address) => look.listener(name, *address),
            }
        }
        if look.problems.is_empty() {
            Ok(())
        } else {
            Err(look.problems)
        }
    }

    fn store(&mut self, name: &str, store: &StoreUrl) {
        let StoreUrl::File(folder) = store;
        self.folder(name, folder);
        let own = folder.join(".ferry");
        if own.exists() {
            self.folder(name, &own);
        }
    }

    fn records(&mut self, name: &str, records: &RecordsUrl) {
        let RecordsUrl::Sqlite(path) = records;
        self.folder(name, parent(path));
        if path.exists() {
            self.file(name, path);
        }
        self.records = Some(path.clone());
    }

    fn sink(&mut self, name: &str, sink: &SinkConfig) {
        let SinkConfig::Jsonl(path) = sink else {
            return; // one on another machine may be away at the start
        };
        if self.records.as_deref().is_some_and(|records| same(records, path)) {
            self.problem(name, format_args!("{} is the file of the records", path.display()));
        } else if path.exists() {
            self.file(name, path);
        } else {
            self.folder(name, parent(path));
        }
    }

    fn listener(&mut self, name: &str, address: SocketAddr) {
        // Closed again at once: nobody can have connected in between who would not be served a moment later.
        if let Err(error) = TcpListener::bind(address) {
            self.problem(name, format_args!("{address} cannot be listened on: {error}"));
        }
    }

    /// A folder to write in, or the nearest one above it that is there.
    fn folder(&mut self, name: &str, path: &Path) {
        let there = path.ancestors().find(|folder| folder.symlink_metadata().is_ok());
        let there = there
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let problem = match there.metadata() {
            Ok(found) if !found.is_dir() => Some(format!("{} is not a folder", there.display())),
            Ok(_) => written(there, Access::WRITE_OK | Access::EXEC_OK),
            Err(error) => Some(format!("{} cannot be looked at: {error}", there.display())),
        };
        if let Some(problem) = problem {
            self.problem(name, format_args!("{problem}"));
        }
    }

    /// A file that is there.
    fn file(&mut self, name: &str, path: &Path) {
        let problem = if path.is_dir() {
            Some(format!("{} is a folder, not a file", path.display()))
        } else {
            written(path, Access::READ_OK | Access::WRITE_OK)
        };
        if let Some(problem) = problem {
            self.problem(name, format_args!("{problem}"));
        }
    }

    fn problem(&mut self, name: &str, what: std::fmt::Arguments<'_>) {
        self.problems.push(format!("{name}: {what}"));
    }
}

/// Why `path` cannot be used so. A question to the kernel, which knows of read-only file systems: nothing is made.
fn written(path: &Path, how: Access) -> Option<String> {
    let error = io::Error::from(access(path, how).err()?);
    Some(format!("{} cannot be written: {error}", path.display()))
}

/// Whether both are one file, whether or not it is there yet.
fn same(one: &Path, other: &Path) -> bool {
    let place = |path: &Path| {
        (
            parent(path).canonicalize().ok(),
            path.file_name().map(ToOwned::to_owned),
        )
    };
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => place(one) == place(other),
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}
