//! One of Ferry's programs as a process of its own, with its output in files.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use uuid::Uuid;

use crate::mounts::Mounts;
use crate::wait::eventually;

/// As much of a log as is printed when a test fails.
const PRINTED_LINES: usize = 200;

/// A program of Ferry's with its arguments and its environment.
#[derive(Clone, Debug)]
pub struct Program {
    name: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
    log_is_read: bool,
    descriptors: Option<u32>,
    mounts: Option<Arc<Mounts>>,
}

impl Program {
    /// `ferry`, `ingest` or `copier`, as built beside the tests.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            log_is_read: true,
            descriptors: None,
            mounts: None,
        }
    }

    /// With one more argument.
    #[must_use]
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// With one more variable. Nothing of the caller's environment reaches the program but where its files are.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With its standard error going into a pipe that nobody reads.
    #[must_use]
    pub fn unread_log(mut self) -> Self {
        self.log_is_read = false;
        self
    }

    /// With at most so many open files.
    #[must_use]
    pub fn descriptors(mut self, most: u32) -> Self {
        self.descriptors = Some(most);
        self
    }

    /// With the file systems of `mounts`. Its working folder is the root then.
    #[must_use]
    pub fn mounts(mut self, mounts: Arc<Mounts>) -> Self {
        self.mounts = Some(mounts);
        self
    }

    /// Whatever comes before it becomes it: its process id is that of the child.
    fn command(&self) -> Command {
        let mut argv = vec![binary(&self.name)];
        if let Some(most) = self.descriptors {
            let limited = format!("ulimit -n {most} && exec \"$@\"");
            argv.splice(0..0, ["sh", "-c", &limited, "sh"].map(PathBuf::from));
        }
        let (first, rest) = argv.split_first().expect("a program has a name");
        let mut command = match &self.mounts {
            Some(mounts) => mounts.command(first),
            None => Command::new(first),
        };
        command.args(rest);
        command
    }

    /// Starts it; its log goes to a file in `folder`.
    ///
    /// # Panics
    /// It is not built, or cannot be started.
    #[must_use]
    pub fn spawn(&self, folder: &Path) -> Process {
        let stdout = folder.join(format!("stdout.{}", Uuid::new_v4()));
        let log = if self.log_is_read {
            let file = OpenOptions::new().create(true).append(true).open(log_path(folder));
            file.expect("open the log file").into()
        } else {
            Stdio::piped() // our end stays open, unread, as long as the process is known
        };
        let child = self
            .command()
            .args(&self.args)
            .env_clear()
            .envs(["PATH", "HOME", "TMPDIR"].iter().filter_map(|name| {
                let value = std::env::var_os(name)?;
                Some((*name, value))
            }))
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("RUST_LOG", "info")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(File::create(&stdout).expect("create the file for standard output"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("start {}: {error}", self.name));
        Process {
            child,
            stdout,
            folder: folder.to_owned(),
        }
    }

    /// Runs it to its end, in a folder of its own.
    ///
    /// # Panics
    /// It goes on for `limit`; it is killed then.
    pub async fn run(&self, limit: Duration) -> Finished {
        let folder = tempfile::tempdir().expect("make a temporary folder");
        let mut process = self.spawn(folder.path());
        let status = process.ended(limit).await;
        Finished {
            status,
            stdout: fs::read_to_string(&process.stdout).expect("read standard output"),
            stderr: log(folder.path()),
            left: super::files_below(folder.path())
                .into_iter()
                .filter(|path| *path != process.stdout && *path != log_path(folder.path()))
                .collect(),
        }
    }
}

/// What a program left behind.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it logged.
    pub stderr: String,
    /// Files that it made in its folder.
    pub left: Vec<PathBuf>,
}

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdout: PathBuf,
    folder: PathBuf,
}

impl Process {
    /// The first line on its standard output that begins with `prefix`, without that.
    ///
    /// # Panics
    /// It ended without one, or needed more than `limit`; its log is printed.
    pub async fn line(&mut self, prefix: &str, limit: Duration) -> String {
        let line = eventually(&format!("a line of output with {prefix:?}"), limit, || {
            // The status first: what was printed before the end is there after it.
            let status = self.status();
            let text = fs::read_to_string(&self.stdout).unwrap_or_default();
            let whole = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
            let found = whole.into_iter().find_map(|line| line.strip_prefix(prefix));
            let found = found.map(str::to_owned);
            async move { found.map(Ok).or(status.map(Err)) }
        })
        .await;
        line.unwrap_or_else(|status| {
            print_log("the program", &self.folder);
            panic!("ended before it was ready: {status}")
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended; `None` while it runs.
    ///
    /// # Panics
    /// The system does not know it.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("ask for a child of ours")
    }

    /// SIGTERM.
    ///
    /// # Panics
    /// It has ended.
    pub fn terminate(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("send SIGTERM to a child that runs");
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(mut self) {
        self.end();
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It goes on for `limit`.
    pub async fn ended(&mut self, limit: Duration) -> ExitStatus {
        eventually("the end of the program", limit, || {
            let status = self.status();
            async move { status }
        })
        .await
    }

    fn end(&mut self) {
        // An error means that it has ended already; it is waited for all the same, so that none is left behind.
        if self.child.kill().is_ok() {
            self.child.wait().expect("wait for a child of ours");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// The program `name` beside this test's own: `target/<profile>/deps/<test>` → `target/<profile>/<name>`.
fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    let profile = test
        .parent()
        .and_then(Path::parent)
        .expect("a test is in target/<profile>/deps");
    let path = profile.join(name);
    assert!(
        path.is_file(),
        "{} is missing. Build first: cargo build --workspace --bins, or run scripts/test",
        path.display()
    );
    path
}

fn log_path(folder: &Path) -> PathBuf {
    folder.join("ferry.log")
}

/// What was logged in `folder`.
pub(super) fn log(folder: &Path) -> String {
    let bytes = fs::read(log_path(folder)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Prints the end of the log of `what` for the one who looks into a failed test.
pub(super) fn print_log(what: &str, folder: &Path) {
    let log = log(folder);
    let lines: Vec<&str> = log.lines().collect();
    let from = lines.len().saturating_sub(PRINTED_LINES);
    eprintln!("--- the last of {} lines that {what} logged ---", lines.len());
    for line in &lines[from..] {
        eprintln!("{line}");
    }
}
