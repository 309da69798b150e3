//! `ferry send`: the life of each file on its way to the server, and of all of them together.
//!
//! ```text
//!  check all ─► per file: lock state ─► create or ask for the offset ─► append ─┬► done ─► wait for /info
//!                                          ▲                                    │
//!                                          └──── pause ◄── failed, try again ◄──┘
//! ```

mod progress;
mod resume;
mod source;
mod tus;
mod wait;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanDuration};
use reqwest::Client;
use shared::shutdown;
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, block_in_place};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use url::Url;

use self::progress::{Line, Screen};
use self::resume::{Key, Slot, StateError};
use self::source::{Source, SourceError};
use self::tus::{Metadata, Tus};
use self::wait::{WaitError, Waiting};
use crate::http::{self, RequestError, STALL, Verdict};
use crate::info::{Delivery, FILE_NAME_KEYS};
use crate::retry::Patience;
use crate::{DONE, FAILED, INTERRUPTED, USAGE, args, chain};

/// Arguments of `ferry send`.
#[derive(Debug, clap::Args)]
pub(crate) struct SendArgs {
    /// The files to send
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Where to send them
    #[arg(long, value_name = "URL", env = "FERRY_URL", hide_env_values = true)]
    #[arg(default_value = args::DEFAULT_COLLECTION, value_parser = args::collection)]
    to: Url,
    /// Metadata of every file; may be given several times. `filename` is added unless a file-name key is given
    #[arg(long, value_name = "KEY=VALUE", value_parser = args::metadata)]
    meta: Vec<(String, String)>,
    /// Wait until every target has the file; fails if one cannot get it
    #[arg(long)]
    wait: bool,
    /// Wait no longer than this for the deliveries of a file, e.g. 10m [default: as long as it takes]
    #[arg(long, value_name = "DURATION", value_parser = args::duration, requires = "wait")]
    timeout: Option<Duration>,
    /// Files that are sent at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    parallel: u16,
    /// Send at most this much in one request, e.g. 64MiB [default: the whole file]
    #[arg(long, value_name = "SIZE", value_parser = args::size)]
    chunk_size: Option<u64>,
    /// Give up after this many failures in a row without progress
    #[arg(long, value_name = "N", default_value_t = 10)]
    retries: u16,
    /// Where unfinished uploads are remembered [default: the user's state folder]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

/// A file that was not sent or not delivered.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("gave up after {retries} retries without progress")]
    GaveUp { retries: u16, source: RequestError },
    #[error(
        "the upload {upload} is one of {server} bytes, not of {ours}: remove {} to send the file from the beginning",
        record.display()
    )]
    OtherUpload {
        upload: Url,
        server: u64,
        ours: u64,
        record: PathBuf,
    },
    #[error("{upload}: {source}")]
    Wait { upload: Url, source: WaitError },
}

/// A file that is where it should be.
#[derive(Debug)]
struct Sent {
    upload: Url,
    size: u64,
    /// Empty unless they were waited for.
    deliveries: Vec<Delivery>,
}

/// What all files share.
#[derive(Debug)]
struct Sender {
    to: Url,
    meta: Metadata,
    chunk_bytes: u64,
    retries: u16,
    state: PathBuf,
    tus: Tus,
    /// `None`: the deliveries are not waited for.
    waiting: Option<Waiting>,
    screen: Screen,
    /// One permit per file that may be sent at once.
    lanes: Semaphore,
}

/// Sends the files; the exit code.
pub(crate) async fn run(args: SendArgs) -> u8 {
    let problems = problems(&args);
    if !problems.is_empty() {
        for problem in problems {
            eprintln!("error: {}", http::printable(&problem));
        }
        return USAGE;
    }
    let Some(state) = args.state.clone().or_else(resume::default_folder) else {
        eprintln!("error: there is no home folder to remember uploads in: give --state DIR");
        return USAGE;
    };
    let client = match http::client() {
        Ok(client) => client,
        Err(error) => {
            eprintln!("error: cannot set up HTTP: {}", chain(&error));
            return FAILED;
        }
    };
    let sender = Arc::new(Sender::new(&args, state, client));
    let screen = sender.screen.clone();
    // Dropping `send_all` in the middle is safe: what a later run needs is on disk before each byte leaves.
    tokio::select! {
        code = send_all(sender, args.files) => code,
        signal = shutdown::on_signal(CancellationToken::new()) => {
            screen.clear();
            match signal {
                Ok(()) => eprintln!("interrupted: the same command goes on from here"),
                Err(error) => eprintln!("error: cannot listen for signals: {error}"),
            }
            INTERRUPTED
        }
    }
}

/// Everything that is wrong with the command, found before anything is sent.
fn problems(args: &SendArgs) -> Vec<String> {
    let mut problems = Vec::new();
    let mut keys = HashSet::new();
    for (key, _) in &args.meta {
        if !keys.insert(key) {
            problems.push(format!("--meta {key} is given twice"));
        }
    }
    let mut paths = HashSet::new();
    for file in &args.files {
        // Opened once for the test only: many files need not be open at once.
        match Source::open(file) {
            Ok(source) if !paths.insert(source.path().to_owned()) => {
                problems.push(format!("{}: given twice", file.display()));
            }
            Ok(_) => {}
            Err(error) => problems.push(format!("{}: {}", file.display(), chain(&error))),
        }
    }
    problems
}

/// Sends `files`, several at once, and tells the outcome of each as it comes; the exit code.
async fn send_all(sender: Arc<Sender>, files: Vec<PathBuf>) -> u8 {
    let mut running = JoinSet::new();
    for file in files {
        let sender = Arc::clone(&sender);
        running.spawn(async move {
            let begun = Instant::now();
            let outcome = sender.send(&file).await;
            (file, outcome, begun.elapsed())
        });
    }
    let mut code = DONE;
    while let Some(joined) = running.join_next().await {
        let (file, outcome, took) = joined.expect("nothing that is run for a file panics");
        match outcome {
            Ok(sent) => {
                if let Err(error) = sender.screen.finished(&sent.result(&file), &sent.fact(&file, took)) {
                    sender.screen.tell(&format!("error: cannot print the result: {error}"));
                    return FAILED;
                }
            }
            Err(error) => {
                sender
                    .screen
                    .tell(&format!("error: {}: {}", file.display(), chain(&error)));
                code = FAILED;
            }
        }
    }
    code
}

impl Sent {
    /// The line on standard output.
    fn result(&self, file: &Path) -> String {
        let mut line = format!("{}  {}", self.upload, file.display());
        for delivery in &self.deliveries {
            line += &format!("  delivered {} {}", delivery.name, delivery.location);
        }
        line
    }

    /// The line for people.
    fn fact(&self, file: &Path, took: Duration) -> String {
        let done = if self.deliveries.is_empty() {
            "sent"
        } else {
            "sent and delivered"
        };
        let (size, took) = (HumanBytes(self.size), HumanDuration(took));
        format!("{}: {done}, {size} in {took}", file.display())
    }
}

impl Sender {
    fn new(args: &SendArgs, state: PathBuf, client: Client) -> Self {
        Self {
            to: args.to.clone(),
            meta: args.meta.iter().cloned().collect(),
            chunk_bytes: args.chunk_size.unwrap_or(u64::MAX),
            retries: args.retries,
            state,
            tus: Tus::new(client.clone(), STALL),
            waiting: args.wait.then(|| Waiting {
                http: client,
                retries: usize::from(args.retries),
                limit: args.timeout,
            }),
            screen: Screen::new(),
            lanes: Semaphore::new(usize::from(args.parallel)),
        }
    }

    /// The life of one file.
    async fn send(&self, file: &Path) -> Result<Sent, SendError> {
        let lane = self.lanes.acquire().await.expect("the lanes are never closed");
        let source = block_in_place(|| Source::open(file))?;
        let metadata = self.metadata(&source);
        let key = Key::of(&self.to, &source, &metadata);
        let mut slot = block_in_place(|| Slot::take(&self.state, &key))?;
        let mut line = self.screen.line(source.name(), source.size());

        let upload = self.upload(&source, &metadata, &mut slot, &mut line).await?;
        let Some(waiting) = &self.waiting else {
            block_in_place(|| slot.forget())?;
            return Ok(Sent {
                upload,
                size: source.size(),
                deliveries: Vec::new(),
            });
        };

        // Waiting for targets, perhaps for hours, holds up no other file and keeps no file open.
        let record = slot.record().to_owned();
        let size = source.size();
        drop((slot, source, lane));
        line.wait();
        match waiting.delivered(&upload, &mut line).await {
            Ok(deliveries) => {
                block_in_place(|| resume::remove(&record))?;
                Ok(Sent {
                    upload,
                    size,
                    deliveries,
                })
            }
            // The record stays: the same command looks again, and does not send the file a second time.
            Err(source) => Err(SendError::Wait { upload, source }),
        }
    }

    /// What goes with the file.
    fn metadata(&self, source: &Source) -> Metadata {
        let mut metadata = self.meta.clone();
        if !FILE_NAME_KEYS.iter().any(|key| metadata.contains_key(*key)) {
            metadata.insert(FILE_NAME_KEYS[0].to_owned(), source.name().to_owned());
        }
        metadata
    }

    /// Brings all bytes to the server, over as many tries as it takes; the upload's URL.
    async fn upload(
        &self,
        source: &Source,
        metadata: &Metadata,
        slot: &mut Slot,
        line: &mut Line,
    ) -> Result<Url, SendError> {
        let mut patience = Patience::new(usize::from(self.retries));
        loop {
            let error = match self.try_upload(source, metadata, slot, line, &mut patience).await {
                Ok(upload) => return Ok(upload),
                Err(SendError::Request(error)) => error,
                Err(SendError::Source(SourceError::Changed)) => {
                    // This content will never be sent again.
                    block_in_place(|| slot.forget())?;
                    return Err(SourceError::Changed.into());
                }
                Err(error) => return Err(error),
            };
            let not_before = match error.verdict() {
                Verdict::Again { not_before } => not_before,
                Verdict::Gone if slot.upload().is_some() => {
                    block_in_place(|| slot.forget())?;
                    None
                }
                Verdict::Gone | Verdict::Final => return Err(error.into()),
            };
            let Some(pause) = patience.pause(not_before) else {
                return Err(SendError::GaveUp {
                    retries: self.retries,
                    source: error,
                });
            };
            line.note(&format!("{}; trying again", chain(&error)));
            line.hint(&format!("trying again in {:.0?}", pause));
            sleep(pause).await;
        }
    }

    /// One try: goes on where the server is, or begins.
    async fn try_upload(
        &self,
        source: &Source,
        metadata: &Metadata,
        slot: &mut Slot,
        line: &mut Line,
        patience: &mut Patience,
    ) -> Result<Url, SendError> {
        let size = source.size();
        let (upload, mut offset) = match slot.upload() {
            Some(upload) => {
                let stored = self.tus.stored(upload).await?;
                let server = stored.length.unwrap_or(size).max(stored.offset);
                if server != size {
                    return Err(SendError::OtherUpload {
                        upload: upload.clone(),
                        server,
                        ours: size,
                        record: slot.record().to_owned(),
                    });
                }
                (upload.clone(), stored.offset)
            }
            None => {
                let upload = self.tus.create(&self.to, size, metadata).await?;
                // Kept before the first byte leaves, so that no interruption loses what was sent.
                block_in_place(|| slot.keep(upload.clone(), source))?;
                (upload, 0)
            }
        };
        patience.reached(offset);
        line.resume_at(offset);
        while offset < size {
            block_in_place(|| source.unchanged())?;
            let end = size.min(offset.saturating_add(self.chunk_bytes));
            let (outgoing, failure) = source.outgoing(offset..end, line.bar());
            let appended = self.tus.append(&upload, offset, outgoing).await;
            // A file that could not be read broke the request: that is the cause, not the connection.
            if let Some(error) = failure.take() {
                return Err(error.into());
            }
            offset = appended?;
            patience.reached(offset);
        }
        block_in_place(|| source.unchanged())?;
        Ok(upload)
    }
}
