//! A whole Ferry: the real `ferry up` on a folder of its own and a free port.

mod process;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

pub use process::{Finished, Process, Program};

use crate::client::Client;
use crate::reports;
use crate::wait::eventually;

/// The longest that a start, a stop or a delivery is waited for: many times what it takes.
pub const LIMIT: Duration = Duration::from_secs(40);

/// How a site is to be started.
#[derive(Clone, Debug)]
pub struct SiteBuilder {
    program: Program,
    listen: String,
}

impl SiteBuilder {
    /// With this variable in its environment, which holds nothing of the caller's own.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.program = self.program.env(name, value);
        self
    }

    /// With one more argument after `ferry up`.
    #[must_use]
    pub fn arg(mut self, arg: &str) -> Self {
        self.program = self.program.arg(arg);
        self
    }

    /// On this address instead of a free port of the loopback.
    #[must_use]
    pub fn listen(mut self, address: &str) -> Self {
        address.clone_into(&mut self.listen);
        self
    }

    /// Starts it and waits until it accepts uploads.
    ///
    /// # Panics
    /// It does not start.
    pub async fn start(self) -> Site {
        let folder = tempfile::tempdir().expect("make a temporary folder");
        let mut site = Site {
            how: self,
            folder,
            process: None,
            addr: None,
            client: None,
        };
        site.restart().await;
        site
    }
}

/// A running Ferry. Dropping it kills it and removes its folder; if the test failed, its log is printed.
#[derive(Debug)]
pub struct Site {
    how: SiteBuilder,
    folder: TempDir,
    process: Option<Process>,
    addr: Option<SocketAddr>,
    /// Of the present process: made anew with each start, so that no connection of an earlier one is left in it.
    client: Option<Client>,
}

impl Site {
    /// With the defaults of `ferry up`.
    ///
    /// # Panics
    /// It does not start.
    pub async fn start() -> Self {
        Self::build().start().await
    }

    /// With other settings.
    #[must_use]
    pub fn build() -> SiteBuilder {
        SiteBuilder {
            program: Program::new("ferry").arg("up"),
            listen: "127.0.0.1:0".to_owned(),
        }
    }

    /// Its data folder.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Where it listens, also while it is down: it comes back there.
    ///
    /// # Panics
    /// It was never ready.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr.expect("a site that was started")
    }

    /// The URL of `path`, which begins with `/`.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr())
    }

    /// A TUS client of it, with connections of its own.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(&self.url("/files/"))
    }

    /// Starts it, again on the same data and port if it ran before, and waits until it is ready.
    ///
    /// # Panics
    /// It runs, or does not start.
    pub async fn restart(&mut self) {
        self.launch();
        self.ready().await;
    }

    /// Starts it and does not wait.
    ///
    /// # Panics
    /// It runs already.
    pub fn launch(&mut self) {
        assert!(self.process.is_none(), "it runs");
        let listen = self
            .addr
            .map_or_else(|| self.how.listen.clone(), |addr| addr.to_string());
        let program = self
            .how
            .program
            .clone()
            .arg("--data")
            .arg(&self.data().display().to_string())
            .arg("--listen")
            .arg(&listen);
        self.process = Some(program.spawn(self.folder.path()));
    }

    /// Waits until it accepts uploads, and learns where.
    ///
    /// # Panics
    /// It ended instead, or printed something else.
    pub async fn ready(&mut self) {
        let process = self.process.as_mut().expect("it was started");
        let line = process.first_line(LIMIT).await;
        let addr = line
            .strip_prefix("ready: http://")
            .and_then(|rest| rest.strip_suffix("/files/"))
            .unwrap_or_else(|| panic!("printed {line:?}"));
        let addr = addr.parse().unwrap_or_else(|_| panic!("printed {line:?}"));
        if let Some(before) = self.addr.replace(addr) {
            assert_eq!(addr, before, "it comes back on its port");
        }
        self.client = Some(self.client());
    }

    /// SIGKILL, and waits for its end.
    ///
    /// # Panics
    /// It does not run.
    pub fn kill(&mut self) {
        self.process.take().expect("a running site").kill();
    }

    /// SIGTERM, and does not wait.
    ///
    /// # Panics
    /// It does not run.
    pub fn ask_to_stop(&self) {
        self.process.as_ref().expect("a running site").terminate();
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It goes on for `limit`.
    pub async fn stopped(&mut self, limit: Duration) -> ExitStatus {
        let mut process = self.process.take().expect("a running site");
        process.ended(limit).await
    }

    /// SIGTERM, and waits for its end.
    ///
    /// # Panics
    /// It does not end.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.ask_to_stop();
        self.stopped(LIMIT).await
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.status().is_none())
    }

    /// Everything that it logged, in all its starts.
    #[must_use]
    pub fn log(&self) -> String {
        process::log(self.folder.path())
    }

    /// The bytes of upload `id` in `target`, once `/info` says that they were delivered.
    ///
    /// # Panics
    /// They are not within the limit, or the delivery failed.
    pub async fn delivered(&self, target: &str, id: &str) -> Vec<u8> {
        let location = self.delivery(target, id).await;
        fs::read(&location).unwrap_or_else(|error| panic!("{location}, where {id} is said to be: {error}"))
    }

    /// Where upload `id` is in `target`, once `/info` says that it was delivered.
    ///
    /// # Panics
    /// It is not within the limit, or the delivery failed.
    pub async fn delivery(&self, target: &str, id: &str) -> String {
        let client = self.client.as_ref().expect("a site that was started");
        eventually(&format!("{id} is delivered to {target}"), LIMIT, || async {
            let info = client.info(id).await;
            let deliveries = info["deliveries"].as_array()?;
            let delivery = deliveries.iter().find(|delivery| delivery["name"] == target)?;
            assert_ne!(delivery["status"], "FAILURE", "{delivery}");
            let location = delivery["location"].as_str()?;
            (delivery["status"] == "SUCCESS").then(|| location.to_owned())
        })
        .await
    }

    /// All reports so far, in order.
    ///
    /// # Panics
    /// A line is no JSON: without kills none is ever torn.
    #[must_use]
    pub fn reports(&self) -> Vec<Value> {
        self.report_lines().iter().map(|line| reports::parse(line)).collect()
    }

    /// The reports of upload `id` once there are `count`.
    ///
    /// # Panics
    /// There are more, or not as many within the limit.
    pub async fn reports_of(&self, id: &str, count: usize) -> Vec<Value> {
        let reports = eventually(&format!("{count} reports of {id}"), LIMIT, || async {
            let mut reports = self.reports();
            reports.retain(|report| report["upload_id"] == id);
            (reports.len() >= count).then_some(reports)
        })
        .await;
        assert_eq!(reports.len(), count, "{reports:#?}");
        reports
    }

    /// The lines of `reports.jsonl` as they are.
    ///
    /// # Panics
    /// The file cannot be read.
    #[must_use]
    pub fn report_lines(&self) -> Vec<String> {
        let path = self.data().join("reports.jsonl");
        match fs::read(&path) {
            // A line that is being written has no end yet.
            Ok(bytes) => String::from_utf8_lossy(&bytes)
                .split_inclusive('\n')
                .filter_map(|line| line.strip_suffix('\n'))
                .map(str::to_owned)
                .collect(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => panic!("read {}: {error}", path.display()),
        }
    }

    /// All files in the container `raw`, `dex` or `edav` that bear a final name.
    #[must_use]
    pub fn files(&self, container: &str) -> Vec<PathBuf> {
        let mut found = files_below(&self.data().join(container));
        let own = self.data().join(container).join(".ferry");
        found.retain(|path| !path.starts_with(&own));
        found
    }

    /// All files with unfinished data in the container.
    #[must_use]
    pub fn staged(&self, container: &str) -> Vec<PathBuf> {
        files_below(&self.data().join(container).join(".ferry/staged"))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
        if std::thread::panicking() {
            process::print_log(self.folder.path());
        }
    }
}

/// All files below `folder`, which may not be there.
///
/// # Panics
/// A folder cannot be read.
#[must_use]
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => panic!("list {}: {error}", folder.display()),
        };
        for entry in entries {
            let entry = entry.unwrap_or_else(|error| panic!("list {}: {error}", folder.display()));
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(_) => found.push(entry.path()),
                Err(error) => panic!("look at {}: {error}", entry.path().display()),
            }
        }
    }
    found.sort();
    found
}
