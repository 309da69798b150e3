//! A whole Ferry on a folder of its own and free ports: the real `ferry up`, or `ingest` and copiers as processes of
//! their own around one database file.

mod disks;
mod findings;
mod part;
mod process;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

pub use findings::files_below;
pub use part::Part;
use part::Place;
pub use process::{Finished, Process, Program};

use crate::client::Client;
use crate::mounts::Mounts;

/// Where every upload goes.
pub const TARGETS: [&str; 2] = ["dex", "edav"];
/// The longest that a start, a stop or a delivery is waited for: many times what it takes.
pub const LIMIT: Duration = Duration::from_secs(40);

/// How a site is to be started.
#[derive(Clone, Debug)]
pub struct SiteBuilder {
    parts: Vec<Part>,
    args: Vec<String>,
    env: Vec<(Option<Part>, String, String)>,
    listen: String,
    log_is_read: bool,
    descriptors: Option<u32>,
    mounts: Option<Arc<Mounts>>,
    /// Folders of the data with a disk of their own, and the options of each.
    disks: Vec<(String, String)>,
}

impl SiteBuilder {
    /// `ingest` and this many copiers instead of `ferry up`.
    #[must_use]
    pub fn copiers(mut self, copiers: usize) -> Self {
        self.parts = vec![Part::Ingest];
        self.parts.extend((0..copiers).map(Part::Copier));
        self
    }

    /// With this variable in the environment of all its processes, which holds nothing of the caller's own.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((None, name.to_owned(), value.to_owned()));
        self
    }

    /// With this variable in the environment of one of its processes.
    #[must_use]
    pub fn env_of(mut self, part: Part, name: &str, value: &str) -> Self {
        self.env.push((Some(part), name.to_owned(), value.to_owned()));
        self
    }

    /// With one more argument after `ferry up`.
    #[must_use]
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// With standard error of all its processes going into pipes that nobody reads.
    #[must_use]
    pub fn unread_log(mut self) -> Self {
        self.log_is_read = false;
        self
    }

    /// With at most so many open files in each of its processes.
    #[must_use]
    pub fn descriptors(mut self, most: u32) -> Self {
        self.descriptors = Some(most);
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
        let places = self.parts.iter().map(|part| Place::new(*part, folder.path()));
        let mut site = Site {
            places: places.collect(),
            how: self,
            folder,
            addr: None,
            client: None,
        };
        site.mount_disks();
        site.restart().await;
        site
    }
}

/// A running Ferry. Dropping it kills it and removes its folder; if the test failed, its log is printed.
#[derive(Debug)]
pub struct Site {
    how: SiteBuilder,
    folder: TempDir,
    places: Vec<Place>,
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
            parts: vec![Part::Up],
            args: Vec::new(),
            env: Vec::new(),
            listen: "127.0.0.1:0".to_owned(),
            log_is_read: true,
            descriptors: None,
            mounts: None,
            disks: Vec::new(),
        }
    }

    /// Its processes.
    #[must_use]
    pub fn parts(&self) -> Vec<Part> {
        self.how.parts.clone()
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

    /// Where `part` shows its health and metrics.
    ///
    /// # Panics
    /// It does not run.
    #[must_use]
    pub fn metrics_url(&self, part: Part) -> String {
        match part {
            Part::Up => self.url("/metrics"),
            Part::Ingest | Part::Copier(_) => {
                let admin = self.place(part).admin.unwrap_or_else(|| panic!("{part} runs"));
                format!("http://{admin}/metrics")
            }
        }
    }

    /// A TUS client of it, with connections of its own.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(&self.url("/files/"))
    }

    /// From the next start on without the variable `name`, for all its processes.
    pub fn forget_env(&mut self, name: &str) {
        self.how.env.retain(|(_, known, _)| known != name);
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
        for part in self.parts() {
            self.launch_part(part);
        }
    }

    /// Waits until it accepts uploads, and learns where.
    ///
    /// # Panics
    /// It ended instead, or printed something else.
    pub async fn ready(&mut self) {
        for part in self.parts() {
            self.part_ready(part).await;
        }
    }

    /// As [`Site::restart`], of one process.
    ///
    /// # Panics
    /// As [`Site::restart`].
    pub async fn restart_part(&mut self, part: Part) {
        self.launch_part(part);
        self.part_ready(part).await;
    }

    /// As [`Site::launch`], of one process.
    ///
    /// # Panics
    /// As [`Site::launch`].
    pub fn launch_part(&mut self, part: Part) {
        let listen = self
            .addr
            .map_or_else(|| self.how.listen.clone(), |addr| addr.to_string());
        let mut program = part.program(&self.data(), &listen);
        for arg in self.how.args.iter().filter(|_| part == Part::Up) {
            program = program.arg(arg);
        }
        for (of, name, value) in &self.how.env {
            if of.is_none_or(|of| of == part) {
                program = program.env(name, value);
            }
        }
        if !self.how.log_is_read {
            program = program.unread_log();
        }
        if let Some(most) = self.how.descriptors {
            program = program.descriptors(most);
        }
        program = self.beside(program);
        let place = self.place_mut(part);
        assert!(place.process.is_none(), "{part} runs");
        place.process = Some(program.spawn(&place.folder));
    }

    /// As [`Site::ready`], of one process.
    ///
    /// # Panics
    /// As [`Site::ready`].
    pub async fn part_ready(&mut self, part: Part) {
        let address = |line: &str| line.parse().unwrap_or_else(|_| panic!("{part} printed {line:?}"));
        let process = self.place_mut(part).running();
        if part.accepts() {
            let line = process.line("ready: http://", LIMIT).await;
            let addr: SocketAddr = address(line.trim_end_matches("/files/"));
            if let Some(before) = self.addr.replace(addr) {
                assert_eq!(addr, before, "it comes back on its port");
            }
            self.client = Some(self.client());
        }
        if part != Part::Up {
            let place = self.place_mut(part);
            let line = place.running().line("admin: http://", LIMIT).await;
            place.admin = Some(address(line.trim_end_matches('/')));
        }
    }

    /// SIGKILL, and waits for its end.
    ///
    /// # Panics
    /// It does not run.
    pub fn kill(&mut self) {
        for part in self.parts() {
            self.kill_part(part);
        }
    }

    /// As [`Site::kill`], of one process.
    ///
    /// # Panics
    /// As [`Site::kill`].
    pub fn kill_part(&mut self, part: Part) {
        self.place_mut(part).take().kill();
    }

    /// SIGTERM, and does not wait.
    ///
    /// # Panics
    /// It does not run.
    pub fn ask_to_stop(&self) {
        for part in self.parts() {
            self.ask_part_to_stop(part);
        }
    }

    /// As [`Site::ask_to_stop`], of one process.
    ///
    /// # Panics
    /// As [`Site::ask_to_stop`].
    pub fn ask_part_to_stop(&self, part: Part) {
        self.place(part).process.as_ref().expect("a running site").terminate();
    }

    /// Waits for its end; of several processes, answers the status of one that did not succeed, if there is one.
    ///
    /// # Panics
    /// It goes on for `limit`.
    pub async fn stopped(&mut self, limit: Duration) -> ExitStatus {
        let mut ended = None;
        for place in &mut self.places {
            let status = place.take().ended(limit).await;
            if ended.is_none_or(|before: ExitStatus| before.success()) {
                ended = Some(status);
            }
        }
        ended.expect("a site has a process")
    }

    /// As [`Site::stopped`], of one process that was not asked to stop.
    ///
    /// # Panics
    /// As [`Site::stopped`].
    pub async fn part_ended(&mut self, part: Part, limit: Duration) -> ExitStatus {
        self.place_mut(part).take().ended(limit).await
    }

    /// SIGTERM, and waits for its end.
    ///
    /// # Panics
    /// It does not end.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.ask_to_stop();
        self.stopped(LIMIT).await
    }

    /// Whether none of its processes has ended.
    pub fn is_running(&mut self) -> bool {
        self.parts().into_iter().all(|part| self.part_is_running(part))
    }

    /// As [`Site::is_running`], of one process.
    pub fn part_is_running(&mut self, part: Part) -> bool {
        let process = self.place_mut(part).process.as_mut();
        process.is_some_and(|process| process.status().is_none())
    }

    /// The process id of `part`.
    ///
    /// # Panics
    /// It does not run.
    #[must_use]
    pub fn pid(&self, part: Part) -> u32 {
        let process = self.place(part).process.as_ref();
        process.unwrap_or_else(|| panic!("{part} runs")).pid()
    }

    /// Everything that it logged, in all its starts, one process after the other.
    #[must_use]
    pub fn log(&self) -> String {
        self.places.iter().map(Place::log).collect()
    }

    /// As [`Site::log`], of one process.
    #[must_use]
    pub fn log_of(&self, part: Part) -> String {
        self.place(part).log()
    }

    fn place(&self, part: Part) -> &Place {
        let mut places = self.places.iter();
        places
            .find(|place| place.part == part)
            .unwrap_or_else(|| panic!("the site has no {part}"))
    }

    fn place_mut(&mut self, part: Part) -> &mut Place {
        let mut places = self.places.iter_mut();
        places
            .find(|place| place.part == part)
            .unwrap_or_else(|| panic!("the site has no {part}"))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for place in &mut self.places {
            if let Some(process) = place.process.take() {
                process.kill();
            }
        }
        if std::thread::panicking() {
            self.places.iter().for_each(Place::print_log);
        }
    }
}
