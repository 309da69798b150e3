//! Senders: what real ones do, at their best and at their worst.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::stream;

use super::{File, Oracle, Promise, Sizes};
use crate::client::{Answer, Client, OFFSET_OCTETS, Upload, encode};
use crate::pattern::Random;
use crate::raw::SlowPatch;

const MIB: u64 = 1024 * 1024;
/// The longest that a careless sender waits before it comes back.
const BACKOFF_MS: u64 = 300;

/// What senders do.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// How long their files are.
    pub sizes: Sizes,
    /// At most one file in this time and by each sender, so that a run ends with what can be checked in its time.
    pub pace: Duration,
    /// Bodies take a while, so that faults find them on their way; some senders never come back, and some do not
    /// wait for the answer.
    pub careless: bool,
    /// A 5xx is not the end of a run: it is what the fault is about.
    pub bear_refusals: bool,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            sizes: Sizes::SMALL,
            pace: Duration::from_millis(100),
            careless: true,
            bear_refusals: false,
        }
    }
}

impl Oracle {
    /// Sends files one after another until the run ends.
    pub(super) async fn send_until_stop(self: Arc<Self>, addr: SocketAddr, client: Client, seed: u64) {
        let mut random = Random::new(seed);
        let mut pace = tokio::time::interval(self.habits.pace);
        while !self.stop.load(Ordering::SeqCst) {
            pace.tick().await;
            let file = File::random(&mut random, self.habits.sizes);
            let content = file.content();
            let Some(index) = self.create(&client, &mut random, file, &content).await else {
                continue;
            };
            let until = if self.habits.careless && random.once_in(8) {
                random.below(file.length() + 1)
            } else {
                file.length()
            };
            self.send_rest(addr, &mut random, index, &content, until).await;
        }
    }

    /// Sends each of `files`, and is not content before all of each is acknowledged.
    pub(super) async fn send_all(self: Arc<Self>, addr: SocketAddr, client: Client, files: Vec<File>, seed: u64) {
        let mut random = Random::new(seed);
        for file in files {
            let content = file.content();
            let index = loop {
                if let Some(index) = self.create(&client, &mut random, file, &content).await {
                    break index;
                }
            };
            self.send_rest(addr, &mut random, index, &content, file.length()).await;
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
            Ok(answer) => answer,
            Err(_) => {
                self.counts.unknown.one_more();
                self.interrupted(then, "POST").await;
                return None;
            }
        };
        let acknowledged = if self.is_refused(&answer) {
            if answer.header("Location").is_none() {
                self.counts.unknown.one_more();
                return None;
            }
            0
        } else {
            let offset = answer.clone().expect(201).number("Upload-Offset");
            offset.unwrap_or(0)
        };
        Some(self.book.add(Promise {
            upload: client.upload(&answer),
            file,
            acknowledged,
            settled: false,
        }))
    }

    /// Sends from what is acknowledged on, until `until` is.
    async fn send_rest(&self, addr: SocketAddr, random: &mut Random, index: usize, content: &[u8], until: u64) {
        let upload = self.book.get(index).upload;
        loop {
            let offset = self.book.get(index).acknowledged;
            if offset >= until {
                return;
            }
            let rest = &content[usize::try_from(offset).expect("an offset into memory")..];
            let then = self.up().await;
            if self.habits.careless && random.once_in(6) {
                // Everything is sent, and the answer is not waited for: HEAD must tell the truth.
                if drop_before_the_answer(addr, &upload, offset, rest).await.is_err() {
                    self.interrupted(then, "PATCH").await;
                }
                // Senders come back at once, or after the server had its time with what they sent.
                tokio::time::sleep(Duration::from_millis(random.below(BACKOFF_MS))).await;
                if self.look_again(index, &upload).await == length(content) {
                    self.counts.finished_by_head.one_more();
                }
                continue;
            }
            let most = if random.once_in(2) { length(rest) } else { MIB };
            let size = 1 + random.below(most.min(length(rest)));
            let piece = rest[..usize::try_from(size).expect("a piece of memory")].to_vec();
            let len = piece.len();
            let body = if self.habits.careless {
                slowly(piece)
            } else {
                piece.into()
            };
            match upload.try_stream(offset, len, body).await {
                Ok(answer) if self.is_refused(&answer) => {
                    self.look_again(index, &upload).await;
                }
                // The dropped request before this one may still have been at work when HEAD was answered.
                Ok(answer) if answer.status == 409 => {
                    assert_ne!(answer.number("Upload-Offset"), Some(offset), "{answer:?}");
                    self.look_again(index, &upload).await;
                }
                Ok(answer) => {
                    let now = told(&answer.expect(204));
                    assert_eq!(now, offset + size, "{}: 204 is for all of the body", upload.url);
                    self.book.acknowledge(index, now);
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
                Ok(answer) if self.is_refused(&answer) => {}
                Ok(answer) => {
                    let offset = told(&answer.expect(200));
                    self.book.acknowledge(index, offset);
                    self.counts.compared.one_more();
                    return offset;
                }
                Err(_) => self.interrupted(then, "HEAD").await,
            }
        }
    }

    fn is_refused(&self, answer: &Answer) -> bool {
        let refused = self.habits.bear_refusals && answer.status >= 500;
        if refused {
            self.counts.refused.one_more();
        }
        refused
    }

    /// Compares HEAD with everything acknowledged that is not settled, in this start of the server. Ends early if it
    /// is killed.
    ///
    /// # Panics
    /// An acknowledged byte is lost.
    pub(super) async fn compare(self: Arc<Self>) {
        let start = self.up().await.starts;
        for (index, promise) in self.promises().into_iter().enumerate() {
            // A HEAD wakes the finisher: half of the finished ones are left alone, to be finished without any help.
            if promise.settled || (promise.is_finished() && index % 2 == 0) {
                continue;
            }
            let Ok(answer) = promise.upload.try_head().await else {
                return;
            };
            if self.is_refused(&answer) {
                continue;
            }
            let offset = told(&answer.expect(200));
            // Compared with what was acknowledged before HEAD was sent: the sender may be going on.
            assert!(
                offset >= promise.acknowledged,
                "start {start}: HEAD tells {offset}: {promise:?}"
            );
            self.counts.compared.one_more();
            if promise.is_finished() {
                self.book.settle(index);
            }
        }
    }

    /// Sends what is left of all that was given up, and touches no other. There are no more faults.
    ///
    /// # Panics
    /// The server refuses.
    pub(super) async fn finish_all(&self) {
        for (index, promise) in self.promises().into_iter().enumerate() {
            if promise.is_finished() {
                continue;
            }
            let offset = promise.upload.offset().await;
            self.book.acknowledge(index, offset);
            let content = promise.file.content();
            let rest = &content[usize::try_from(offset).expect("an offset into memory")..];
            if !rest.is_empty() {
                let now = promise.upload.append(offset, rest).await;
                self.book.acknowledge(index, now);
            }
        }
    }
}

fn length(content: &[u8]) -> u64 {
    u64::try_from(content.len()).expect("a length in memory")
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
