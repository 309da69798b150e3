//! The processes that make up a site: `ferry up` alone, or `ingest` and any number of copiers.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::process::{self, Process, Program};

/// One process of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// `ferry up`: both services.
    Up,
    /// `ingest`.
    Ingest,
    /// A `copier`, counted from 0.
    Copier(usize),
}

impl Part {
    /// Whether uploads are accepted by it.
    #[must_use]
    pub fn accepts(self) -> bool {
        matches!(self, Self::Up | Self::Ingest)
    }

    /// It on the site's `data`, accepting uploads on `listen`. What a process alone on its machine has by default is
    /// set here: a port of its own.
    pub(super) fn program(self, data: &Path, listen: &str) -> Program {
        let shared = |program: Program| {
            let store = |name: &str| format!("file://{}", data.join(name).display());
            program
                .env("RAW_STORE", &store("raw"))
                .env("DEX_STORE", &store("dex"))
                .env("EDAV_STORE", &store("edav"))
                .env("RECORDS", &format!("sqlite:{}", data.join("ferry.db").display()))
                .env("BUS", "embedded")
                .env("REPORT_SINKS", "jsonl")
                .env("REPORT_JSONL_PATH", &data.join("reports.jsonl").display().to_string())
                .env("ADMIN_LISTEN", "127.0.0.1:0")
        };
        match self {
            Self::Up => Program::new("ferry")
                .arg("up")
                .arg("--data")
                .arg(&data.display().to_string())
                .arg("--listen")
                .arg(listen),
            Self::Ingest => shared(Program::new("ingest")).env("LISTEN", listen),
            Self::Copier(_) => shared(Program::new("copier")),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up => f.write_str("up"),
            Self::Ingest => f.write_str("ingest"),
            Self::Copier(number) => write!(f, "copier-{number}"),
        }
    }
}

/// A place in the site for one process, in one start after the other.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) part: Part,
    /// Its working folder, with its output.
    pub(super) folder: PathBuf,
    pub(super) process: Option<Process>,
    /// Of the present process.
    pub(super) admin: Option<SocketAddr>,
}

impl Place {
    pub(super) fn new(part: Part, site: &Path) -> Self {
        let folder = site.join(part.to_string());
        fs::create_dir_all(&folder).expect("make a folder in a temporary one");
        Self {
            part,
            folder,
            process: None,
            admin: None,
        }
    }

    /// The present process.
    pub(super) fn running(&mut self) -> &mut Process {
        self.process.as_mut().unwrap_or_else(|| panic!("{} runs", self.part))
    }

    /// The present process, taken out: it is about to end.
    pub(super) fn take(&mut self) -> Process {
        self.process.take().unwrap_or_else(|| panic!("{} runs", self.part))
    }

    pub(super) fn log(&self) -> String {
        process::log(&self.folder)
    }

    pub(super) fn print_log(&self) {
        process::print_log(&self.part.to_string(), &self.folder);
    }
}
