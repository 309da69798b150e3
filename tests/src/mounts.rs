//! File systems of a test's own, which only it and the programs it starts can see: full, read-only, lost and found.
//!
//! A process with a mount namespace (and, for users that may not mount, a user namespace) of its own keeps them; when it
//! ends, as it does with the test, nothing is left mounted. Only Linux has that: elsewhere making one panics.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A place where file systems can be mounted without anybody else noticing.
#[derive(Debug)]
pub struct Mounts {
    keeper: Child,
}

impl Mounts {
    /// A new one, as the machine is now.
    ///
    /// # Panics
    /// The system has no namespaces, or does not let this user have one.
    #[must_use]
    pub fn new() -> Self {
        // It ends when its standard input does, that is with the test at the latest.
        let mut keeper = Command::new("unshare")
            .args(["--map-root-user", "--mount", "sh", "-c", "echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("unshare (util-linux) cannot be started: {error}"));
        let mut line = String::new();
        let mut output = BufReader::new(keeper.stdout.take().expect("it is piped"));
        output.read_line(&mut line).expect("read from unshare");
        assert_eq!(
            line.trim_end(),
            "ready",
            "this test needs a mount namespace: run it as root, or allow unprivileged user namespaces"
        );
        Self { keeper }
    }

    /// A command that runs `program` in there, as the same process.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        let keeper = self.keeper.id().to_string();
        command.args(["--target", &keeper, "--user", "--mount", "--preserve-credentials", "--"]);
        command.arg(program);
        command
    }

    /// Mounts a tmpfs with `options` (such as `size=8m`) on `folder`, which is made.
    ///
    /// # Panics
    /// It cannot be.
    pub fn tmpfs(&self, folder: &Path, options: &str) {
        self.run("mkdir", &["-p"], folder);
        self.run("mount", &["-t", "tmpfs", "-o", options, "ferry-test"], folder);
    }

    /// Lets `folder` show what is in `source`.
    ///
    /// # Panics
    /// It cannot be.
    pub fn bind(&self, source: &Path, folder: &Path) {
        self.run("mkdir", &["-p"], folder);
        self.run("mount", &["--bind", &source.display().to_string()], folder);
    }

    /// Changes what is mounted on `folder`, such as `ro` or `size=16m`.
    ///
    /// # Panics
    /// It cannot be.
    pub fn remount(&self, folder: &Path, options: &str) {
        self.run("mount", &["-o", &format!("remount,{options}")], folder);
    }

    /// Takes away what is mounted on `folder`, although it is in use.
    ///
    /// # Panics
    /// It cannot be.
    pub fn unmount(&self, folder: &Path) {
        self.run("umount", &["--lazy"], folder);
    }

    /// Where this process sees what `path` is in there.
    #[must_use]
    pub fn seen(&self, path: &Path) -> PathBuf {
        let path = path.strip_prefix("/").unwrap_or(path);
        Path::new("/proc")
            .join(self.keeper.id().to_string())
            .join("root")
            .join(path)
    }

    fn run(&self, program: &str, arguments: &[&str], folder: &Path) {
        let done = self.command(Path::new(program)).args(arguments).arg(folder).output();
        let done = done.unwrap_or_else(|error| panic!("nsenter (util-linux) cannot be started: {error}"));
        let error = String::from_utf8_lossy(&done.stderr);
        assert!(
            done.status.success(),
            "{program} {arguments:?} {}: {error}",
            folder.display()
        );
    }
}

impl Default for Mounts {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        // What is in there ends by itself; an error means that the keeper has ended already.
        if self.keeper.kill().is_ok() {
            self.keeper.wait().expect("wait for a child of ours");
        }
    }
}
