//! A server under measurement: a process of its own, fresh for each round, so that its peak of memory is the round's.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clap::ValueEnum as _;
use url::Url;

use crate::failure::Failure;
use crate::plan::Competitor;
use crate::usage::Usage;
use crate::wait;

/// Longest time until a server accepts uploads.
const START: Duration = Duration::from_secs(60);
/// As much of a log as is told of a server that failed.
const TOLD_LINES: usize = 20;
/// Only builds with failpoints hold their variable's name.
const FAILPOINTS: &[u8] = b"FERRY_FAILPOINTS";

/// Ferry's programs, as they were built.
#[derive(Debug)]
pub(crate) struct Programs {
    folder: PathBuf,
    log_level: String,
}

/// A running server. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    addr: SocketAddr,
    log: PathBuf,
}

impl Programs {
    /// Those in `folder`, which log at `log_level`. All of `needed` must be there, and be what users build.
    ///
    /// # Errors
    /// One is missing, or was built with failpoints and `any_build` is not set.
    pub(crate) fn find(
        folder: PathBuf,
        needed: &[Competitor],
        log_level: String,
        any_build: bool,
    ) -> Result<Self, Failure> {
        let programs = Self { folder, log_level };
        for program in needed.iter().filter_map(|server| server.program()) {
            let path = programs.path(program);
            let bytes = fs::read(&path).map_err(Failure::io("read the program", path.display()))?;
            if !any_build && bytes.windows(FAILPOINTS.len()).any(|window| window == FAILPOINTS) {
                return Err(Failure::Program {
                    program: path.display().to_string(),
                    reason: "is built with failpoints; scripts/bench builds what users build".to_owned(),
                });
            }
        }
        Ok(programs)
    }

    /// What `program` says of its version.
    ///
    /// # Errors
    /// It cannot be run.
    pub(crate) fn version(&self, program: &str) -> Result<String, Failure> {
        let output = Command::new(self.path(program))
            .arg("--version")
            .output()
            .map_err(Failure::io("run", program))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Starts `server` with its files in `folder`, and waits until it accepts uploads.
    ///
    /// # Errors
    /// It ends or says nothing in time; the end of its log is told.
    pub(crate) fn start(&self, server: Competitor, folder: &Path) -> Result<Server, Failure> {
        let (stdout, log) = (folder.join("stdout"), folder.join("log"));
        let create = |path: &Path| File::create_new(path).map_err(Failure::io("create", path.display()));
        let mut command = self.command(server, folder)?;
        command
            .current_dir(folder)
            // A Ctrl-C reaches this process only, which then ends its servers.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(create(&stdout)?)
            .stderr(create(&log)?);
        let child = command.spawn().map_err(Failure::io("start", server.name()))?;
        let mut running = Server {
            child,
            addr: SocketAddr::from(([0, 0, 0, 0], 0)),
            log,
        };
        let said = || format!("the first line of {}", server.name());
        running.addr = wait::until(said, START, || running.said_ready(server, &stdout))?;
        Ok(running)
    }

    fn command(&self, server: Competitor, folder: &Path) -> Result<Command, Failure> {
        let url = |name: &str| {
            Url::from_file_path(folder.join(name))
                .map(String::from)
                .map_err(|()| Failure::Options(format!("{} is no absolute path", folder.display())))
        };
        let own = || std::env::current_exe().map_err(Failure::io("find", "this program"));
        let mut command = Command::new(match server.program() {
            Some(program) => self.path(program),
            None => own()?,
        });
        // The same environment for everybody, whatever the caller's holds.
        command.env_clear().env("RUST_LOG", &self.log_level);
        match server {
            Competitor::Null(kind) => {
                let kind = kind.to_possible_value().expect("no kind is skipped");
                command.arg("null").arg(kind.get_name()).arg(folder);
            }
            Competitor::IngestNone | Competitor::IngestFinish => {
                let durability = if server == Competitor::IngestNone {
                    "none"
                } else {
                    "finish"
                };
                let mut records = OsString::from("sqlite:");
                records.push(folder.join("ferry.db"));
                command
                    .env("LISTEN", "127.0.0.1:0")
                    .env("ADMIN_LISTEN", "off")
                    .env("RAW_STORE", url("raw")?)
                    .env("DEX_STORE", url("dex")?)
                    .env("EDAV_STORE", url("edav")?)
                    .env("RECORDS", records)
                    .env("REPORT_SINKS", "")
                    .env("DURABILITY", durability);
            }
            Competitor::FerryUp => {
                command.args(["up", "--listen", "127.0.0.1:0", "--data"]).arg(folder);
            }
        }
        Ok(command)
    }

    fn path(&self, program: &str) -> PathBuf {
        self.folder.join(program)
    }
}

impl Competitor {
    /// The program of Ferry's that it is.
    pub(crate) fn program(self) -> Option<&'static str> {
        match self {
            Self::Null(_) => None,
            Self::IngestNone | Self::IngestFinish => Some("ingest"),
            Self::FerryUp => Some("ferry"),
        }
    }
}

impl Server {
    /// Where it accepts uploads.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What it has used since its start.
    ///
    /// # Errors
    /// It has ended.
    pub(crate) fn usage(&self) -> Result<Usage, Failure> {
        Usage::of(self.child.id())
    }

    /// The last lines that it logged.
    pub(crate) fn last_lines(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TOLD_LINES)..].join("\n")
    }

    /// `ready: http://ADDR:PORT/files/`, once it is there.
    fn said_ready(&mut self, server: Competitor, stdout: &Path) -> Result<Option<SocketAddr>, Failure> {
        // The status first: what was printed before the end is there after it.
        let ended = self.child.try_wait().map_err(Failure::io("ask for", server.name()))?;
        let printed = fs::read_to_string(stdout).map_err(Failure::io("read", stdout.display()))?;
        let line = printed.split_once('\n').map(|(line, _)| line);
        let unusable = |reason: String| Failure::Program {
            program: server.name().to_owned(),
            reason,
        };
        match (line, ended) {
            (Some(line), _) => parse_ready(line)
                .map(Some)
                .ok_or_else(|| unusable(format!("began with: {line}"))),
            (None, Some(status)) => Err(unusable(format!("{status} before it was ready\n{}", self.last_lines()))),
            (None, None) => Ok(None),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // An error means that it has ended already; it is waited for all the same, so that none is left behind.
        let killed = self.child.kill().and_then(|()| self.child.wait());
        if let Err(error) = killed {
            eprintln!("bench: the end of a server: {error}");
        }
    }
}

fn parse_ready(line: &str) -> Option<SocketAddr> {
    let rest = line.strip_prefix("ready: http://")?;
    rest.split('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_comes_from_the_first_line() {
        let addr = parse_ready("ready: http://127.0.0.1:4242/files/");
        assert_eq!(addr, Some(SocketAddr::from(([127, 0, 0, 1], 4242))));
        assert_eq!(parse_ready("admin: http://127.0.0.1:4242/"), None);
    }

    #[test]
    fn a_build_with_failpoints_is_not_measured() {
        let folder = tempfile::tempdir().unwrap();
        let find = |any_build| {
            let needed = [Competitor::IngestNone];
            Programs::find(folder.path().to_owned(), &needed, "info".to_owned(), any_build)
        };
        assert!(find(false).unwrap_err().to_string().contains("read the program"));
        fs::write(folder.path().join("ingest"), b"...FERRY_FAILPOINTS...").unwrap();
        assert!(
            find(false)
                .unwrap_err()
                .to_string()
                .contains("is built with failpoints")
        );
        assert!(find(true).is_ok());
        fs::write(folder.path().join("ingest"), b"...FERRY_FAIL...").unwrap();
        assert!(find(false).is_ok());
    }
}
