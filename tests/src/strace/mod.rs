//! What a process really asks of the kernel, and in which order: `strace` attached to it, its output parsed. For what no
//! kill can show: `kill -9` loses nothing that the kernel has. Linux only, like strace.
//!
//! ```text
//!   Strace::attach ──► lines ──► line: calls ──► trace: what was created, written, synced, renamed, answered ──► claims
//! ```

mod line;
mod trace;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, getuid, kill_process};
use tempfile::TempDir;

pub use trace::{Missing, Moment, Renamed, Trace};

use crate::wait::eventually;

/// Longer than any attaching or detaching takes.
const LIMIT: Duration = Duration::from_secs(40);
/// Text of each argument that is kept: a report's line is shorter.
const KEPT: &str = "3000";
/// Calls that tell where bytes and names go; and the answers to senders.
const ORDER: &str = "openat,openat2,mkdirat,write,writev,pwrite64,pwritev,ftruncate,copy_file_range,fsetxattr,fsync,\
                     fdatasync,renameat,renameat2,rename,linkat,read,pread64,recvfrom,sendto,sendmsg";

/// `strace`, attached to a process. Dropping it detaches it.
#[derive(Debug)]
pub struct Strace {
    child: Child,
    folder: TempDir,
}

impl Strace {
    /// Notes all calls of `pid` that [`Trace`] knows, from now on.
    ///
    /// # Panics
    /// `strace` is not there, or may not attach.
    pub async fn record(pid: u32) -> Self {
        Self::attach(pid, &["-y", "-s", KEPT, "-e", &format!("trace={ORDER}")]).await
    }

    /// From now on every call of `pid` to one of `calls` on the file or folder `path`, which need not be there yet,
    /// fails with EIO.
    ///
    /// # Panics
    /// As [`Strace::record`].
    pub async fn fail(pid: u32, calls: &str, path: &Path) -> Self {
        let fault = format!("inject={calls}:error=EIO");
        let trace = format!("trace={calls}");
        Self::attach(pid, &["-y", "-P", &real(path), "-e", &trace, "-e", &fault]).await
    }

    async fn attach(pid: u32, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("make a temporary folder");
        // Where only root may look into processes that are not one's own children.
        let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
        let mut command = if getuid().is_root() || matches!(scope.trim(), "" | "0") {
            Command::new("strace")
        } else {
            let mut command = Command::new("sudo");
            command.args(["-n", "strace"]);
            command
        };
        let noise = fs::File::create(folder.path().join("noise")).expect("create a file");
        let child = command
            .args(["-f", "-o"])
            .arg(folder.path().join("lines"))
            .args(options)
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(noise)
            .spawn()
            .unwrap_or_else(|error| panic!("start strace: {error}; install it: scripts/need 'strace -V' strace"));
        let mut this = Self { child, folder };
        let attached = eventually("strace attaches", LIMIT, || {
            let ended = this.child.try_wait().expect("ask for a child of ours");
            let said = this.said();
            async move { (said.contains(" attached") || ended.is_some()).then_some(ended.is_none()) }
        });
        assert!(attached.await, "strace may not attach: {}", this.said());
        this
    }

    fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join("noise")).unwrap_or_default()
    }

    /// The lines so far. The last one may not be whole.
    #[must_use]
    pub fn lines(&self) -> String {
        let bytes = fs::read(self.lines_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn lines_path(&self) -> PathBuf {
        self.folder.path().join("lines")
    }

    /// How often it made a call fail.
    #[must_use]
    pub fn injected(&self) -> usize {
        self.lines().matches("(INJECTED)").count()
    }

    /// Detaches; answers what it noted.
    ///
    /// # Panics
    /// It does not detach, or what it noted is no trace.
    pub async fn detach(mut self) -> Trace {
        self.ended().await;
        Trace::parse(&self.lines())
    }

    /// Detaches, and so ends the faults that it makes.
    ///
    /// # Panics
    /// It does not detach.
    pub async fn end(mut self) {
        self.ended().await;
    }

    async fn ended(&mut self) {
        self.ask_to_detach();
        eventually("strace detaches", LIMIT, || {
            let ended = self.child.try_wait().expect("ask for a child of ours");
            async move { ended }
        })
        .await;
    }

    fn ask_to_detach(&self) {
        let pid = Pid::from_child(&self.child);
        // An error means that it has ended, with the process that it was attached to.
        kill_process(pid, Signal::INT).ok();
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        // Not SIGKILL: what it is attached to would stay stopped in some call.
        self.ask_to_detach();
        self.child.wait().expect("wait for a child of ours");
    }
}

/// `path` as strace sees it: without links in its folders.
///
/// # Panics
/// Its folder is not there.
#[must_use]
pub fn real(path: &Path) -> String {
    let (folder, name) = (path.parent(), path.file_name());
    let folder = folder.and_then(|folder| fs::canonicalize(folder).ok());
    let folder = folder.unwrap_or_else(|| panic!("{} has no folder", path.display()));
    let path = folder.join(name.expect("a file has a name"));
    path.to_str().expect("a temporary folder has a plain name").to_owned()
}
