//! Senders that go on through any number of kills, and the book of what they were promised: ids and content come from
//! a seed, every acknowledged offset is an obligation. Spec: faults.md, "Making faults", the oracle.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::stream;
use tokio::sync::watch;

use crate::client::{Answer, Client, OFFSET_OCTETS, Upload, encode};
use crate::pattern::{Random, pattern};
use crate::raw::SlowPatch;
use crate::wait::within;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
/// The longest that a sender waits for a server that is being started again.
const LIMIT: Duration = Duration::from_secs(40);
/// A connection that breaks is the work of a kill, which is told within this time.
const TOLD: Duration = Duration::from_secs(5);
/// At most so many files a second and sender, so that a run ends with what can be checked in its time.
const PACE: Duration = Duration::from_millis(100);

/// What a file is: all that its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File {
    /// Of its pattern.
    pub seed: u64,
    /// In bytes.
    pub len: usize,
}

impl File {
    /// From nothing to 4 MiB, most of them small.
    fn random(random: &mut Random) -> Self {
        let most = match random.below(20) {
            0..=2 => 1,
            3..=8 => KIB,
            9..=16 => 256 * KIB,
            _ => 4 * MIB + 1,
        };
        Self {
            seed: random.next(),
            len: usize::try_from(random.below(most)).expect("a few megabytes"),
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn content(self) -> Vec<u8> {
        pattern(self.seed, self.len)
    }

    fn name(self) -> String {
        format!("{}-{}.bin", self.seed, self.len)
    }

    /// The file and the upload's id from the name of a delivered one, `<seed>-<len>_<id>.bin`.
    #[must_use]
    pub fn of_delivered(name: &str) -> Option<(Self, &str)> {
        let (stem, id) = name.strip_suffix(".bin")?.split_once('_')?;
        let (seed, len) = stem.split_once('-')?;
        let file = Self {
            seed: seed.parse().ok()?,
            len: len.parse().ok()?,
        };
        Some((file, id))
    }
}

/// An upload that the server knows, and what it acknowledged of it.
#[derive(Clone, Debug)]
pub struct Promise {
    /// The upload.
    pub upload: Upload,
    /// What it is to become.
    pub file: File,
    /// The highest offset that was told in any answer.
    pub acknowledged: u64,
    /// In a start after the one that completed it, HEAD told that it is whole: it need not be asked again.
    pub settled: bool,
}

impl Promise {
    /// The server said that all is there: it owes the delivery, whether or not the sender ever comes back.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.acknowledged == length(self.file.len)
    }
}

/// What happened, so that a run that showed nothing does not pass for one that did.
#[derive(Debug, Default)]
pub struct Counts {
    /// Requests that were cut by a kill.
    pub interrupted: AtomicU64,
    /// Creations whose answer was lost: there may be an upload that nobody knows.
    pub unknown: AtomicU64,
    /// Uploads whose sender went away after HEAD told that all is there.
    pub finished_by_head: AtomicU64,
    /// Offsets that HEAD told and that were compared.
    pub compared: AtomicU64,
}

/// The state of the server, as the one that kills it tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Server {
    up: bool,
    starts: u32,
}

/// The book, and the word between the one that kills and those that send.
#[derive(Debug)]
pub struct Oracle {
    promises: Mutex<Vec<Promise>>,
    server: watch::Sender<Server>,
    stop: AtomicBool,
    /// What happened so far.
    pub counts: Counts,
}

impl Oracle {
    /// An empty book, of a server that is up.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            promises: Mutex::default(),
            server: watch::Sender::new(Server { up: true, starts: 1 }),
            stop: AtomicBool::new(false),
            counts: Counts::default(),
        })
    }

    /// Told before a kill.
    pub fn goes_down(&self) {
        self.server.send_modify(|server| server.up = false);
    }

    /// Told once the server is ready again.
    pub fn is_up(&self) {
        self.server.send_modify(|server| {
            server.up = true;
            server.starts += 1;
        });
    }

    /// Senders end with their present file.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// All promises so far.
    #[must_use]
    pub fn promises(&self) -> Vec<Promise> {
        self.book().clone()
    }

    fn book(&self) -> MutexGuard<'_, Vec<Promise>> {
        self.promises.lock().expect("nobody panics while writing into the book")
    }

    fn acknowledge(&self, index: usize, offset: u64) {
        let mut book = self.book();
        let promise = &mut book[index];
        assert!(
            offset >= promise.acknowledged,
            "{} was acknowledged, and then {offset} was told: {promise:?}",
            promise.acknowledged
        );
        assert!(
            offset <= length(promise.file.len),
            "{offset} is beyond the end: {promise:?}"
        );
        promise.acknowledged = offset;
    }

    async fn up(&self) -> Server {
        let mut server = self.server.subscribe();
        let up = within("a server that is up", LIMIT, server.wait_for(|server| server.up)).await;
        *up.expect("the oracle holds the other end")
    }

    /// A connection broke that was begun while the server was `then`: only a kill may do that.
    async fn interrupted(&self, then: Server, what: &str) {
        self.counts.interrupted.fetch_add(1, Ordering::SeqCst);
        let mut server = self.server.subscribe();
        let killed = server.wait_for(|now| *now != then);
        let what = format!("{what}: the connection broke, and nobody killed the server");
        within(&what, TOLD, killed)
            .await
            .expect("the oracle holds the other end");
    }

    /// Compares HEAD with everything acknowledged that is not settled, in this start of the server. Ends early if it
    /// is killed.
    ///
    /// # Panics
    /// An acknowledged byte is lost.
    pub async fn compare(self: Arc<Self>) {
        let start = self.up().await.starts;
        for (index, promise) in self.promises().into_iter().enumerate() {
            // A HEAD wakes the finisher: half of the finished ones are left alone, to be finished without any help.
            if promise.settled || (promise.is_finished() && index % 2 == 0) {
                continue;
            }
            let Ok(answer) = promise.upload.try_head().await else {
                return;
            };
            let offset = told(&answer.expect(200));
            // Compared with what was acknowledged before HEAD was sent: the sender may be going on.
            assert!(
                offset >= promise.acknowledged,
                "start {start}: HEAD tells {offset}: {promise:?}"
            );
            self.counts.compared.fetch_add(1, Ordering::SeqCst);
            if promise.is_finished() {
                self.book()[index].settled = true;
            }
        }
    }

    /// Sends files one after another until [`Oracle::stop`].
    ///
    /// # Panics
    /// The server breaks a promise, or answers what it should not.
    pub async fn send_files(self: Arc<Self>, addr: SocketAddr, client: Client, seed: u64) {
        let mut random = Random::new(seed);
        let mut pace = tokio::time::interval(PACE);
        while !self.stop.load(Ordering::SeqCst) {
            pace.tick().await;
            let file = File::random(&mut random);
            let content = file.content();
            let Some(index) = self.create(&client, &mut random, file, &content).await else {
                continue;
            };
            // Some senders never come back.
            let until = if random.once_in(8) {
                random.below(length(content.len()) + 1)
            } else {
                length(content.len())
            };
            self.send_rest(addr, &mut random, index, &content, until).await;
        }
    }

    async fn create(&self, client: &Client, random: &mut Random, file: File, content: &[u8]) -> Option<usize> {
        let (length, metadata) = (file.len.to_string(), encode(&[("filename", &file.name())]));
        let mut headers = vec![
            ("Tus-Resumable", "1.0.0"),
            ("Upload-Length", length.as_str()),
            ("Upload-Metadata", metadata.as_str()),
        ];
        let mut body = Vec::new();
        if random.once_in(4) {
            headers.push(("Content-Type", OFFSET_OCTETS));
            body.extend_from_slice(content);
        }
        let then = self.up().await;
        let answer = match client.send("POST", client.collection(), &headers, body).await {
            Ok(answer) => answer.expect(201),
            Err(_) => {
                self.counts.unknown.fetch_add(1, Ordering::SeqCst);
                self.interrupted(then, "POST").await;
                return None;
            }
        };
        let mut book = self.book();
        book.push(Promise {
            upload: client.upload(&answer),
            file,
            acknowledged: answer.number("Upload-Offset").unwrap_or(0),
            settled: false,
        });
        Some(book.len() - 1)
    }

    /// Sends from what is acknowledged on, until `until` is.
    async fn send_rest(&self, addr: SocketAddr, random: &mut Random, index: usize, content: &[u8], until: u64) {
        let upload = self.book()[index].upload.clone();
        loop {
            let offset = self.book()[index].acknowledged;
            if offset >= until {
                return;
            }
            let rest = &content[usize::try_from(offset).expect("an offset into memory")..];
            let then = self.up().await;
            if random.once_in(6) {
                // Everything is sent, and the answer is not waited for: HEAD must tell the truth.
                if drop_before_the_answer(addr, &upload, offset, rest).await.is_err() {
                    self.interrupted(then, "PATCH").await;
                }
                let told = self.look_again(index, &upload).await;
                if told == length(content.len()) {
                    self.counts.finished_by_head.fetch_add(1, Ordering::SeqCst);
                }
                continue;
            }
            let most = if random.once_in(2) { length(rest.len()) } else { MIB };
            let size = 1 + random.below(most.min(length(rest.len())));
            let piece = rest[..usize::try_from(size).expect("a piece of memory")].to_vec();
            match upload.try_stream(offset, piece.len(), slowly(piece)).await {
                // The dropped request before this one may still have been at work when HEAD was answered.
                Ok(answer) if answer.status == 409 => {
                    assert_ne!(answer.number("Upload-Offset"), Some(offset), "{answer:?}");
                    self.look_again(index, &upload).await;
                }
                Ok(answer) => {
                    let now = told(&answer.expect(204));
                    assert_eq!(now, offset + size, "{}: 204 is for all of the body", upload.url);
                    self.acknowledge(index, now);
                }
                Err(_) => {
                    self.interrupted(then, "PATCH").await;
                    self.look_again(index, &upload).await;
                }
            }
        }
    }

    /// HEAD, until the server lives long enough to answer.
    async fn look_again(&self, index: usize, upload: &Upload) -> u64 {
        loop {
            let then = self.up().await;
            match upload.try_head().await {
                Ok(answer) => {
                    let offset = told(&answer.expect(200));
                    self.acknowledge(index, offset);
                    self.counts.compared.fetch_add(1, Ordering::SeqCst);
                    return offset;
                }
                Err(_) => self.interrupted(then, "HEAD").await,
            }
        }
    }

    /// Sends what is left of all that was given up, and touches no other. The server is not killed any more.
    ///
    /// # Panics
    /// The server refuses.
    pub async fn finish_all(&self) {
        for (index, promise) in self.promises().into_iter().enumerate() {
            if promise.is_finished() {
                continue;
            }
            let offset = promise.upload.offset().await;
            self.acknowledge(index, offset);
            let content = promise.file.content();
            let rest = &content[usize::try_from(offset).expect("an offset into memory")..];
            if !rest.is_empty() {
                let now = promise.upload.append(offset, rest).await;
                self.acknowledge(index, now);
            }
        }
    }
}

fn length(len: usize) -> u64 {
    u64::try_from(len).expect("a length in memory")
}

fn told(answer: &Answer) -> u64 {
    answer
        .number("Upload-Offset")
        .unwrap_or_else(|| panic!("no offset: {answer:?}"))
}

async fn drop_before_the_answer(addr: SocketAddr, upload: &Upload, offset: u64, rest: &[u8]) -> std::io::Result<()> {
    let mut patch = SlowPatch::try_begin(addr, &upload.path(), offset, rest.len()).await?;
    patch.send(rest).await
}

/// As a body that takes a while, so that kills find it on its way: 64 KiB every 8 ms.
fn slowly(content: Vec<u8>) -> reqwest::Body {
    let mut pace = tokio::time::interval(Duration::from_millis(8));
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let chunks = stream::unfold((pace, content), |(mut pace, mut left)| async move {
        if left.is_empty() {
            return None;
        }
        pace.tick().await;
        let rest = left.split_off(left.len().min(64 * 1024));
        Some((Ok::<_, std::io::Error>(left), (pace, rest)))
    });
    reqwest::Body::wrap_stream(chunks)
}
