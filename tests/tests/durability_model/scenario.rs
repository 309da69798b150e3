//! One scenario: a few starts of a machine, each ended by a crash at some step, and a last one that brings everything
//! to its end.

use std::net::SocketAddr;
use std::time::Duration;

use shared::config::Durability;
use tests::client::{Answer, Client};
use tests::forgetful::{Crash, Machine, Start};
use tests::pattern::{Random, pattern};
use tests::raw::SlowPatch;
use tests::site::TARGETS;
use tests::wait::{eventually, within};
use tokio::task::JoinSet;

use super::book::{Before, Entry, assert_whole_where_visible};
use super::engine::Engine;

/// The longest that anything is waited for.
const LIMIT: Duration = Duration::from_secs(60);
/// A start whose crash does not come by itself ends after so many requests.
const REQUESTS: usize = 60;
/// Longest content; a part has 4 KiB.
const LONGEST: u64 = 24 * 1024;

/// What happened, so that a run that met nothing does not pass for one that did.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) power_losses: u64,
    pub(super) kills: u64,
    pub(super) uploads: u64,
    pub(super) told_whole: u64,
    pub(super) delivered: u64,
    pub(super) gone: u64,
    pub(super) failed_syncs: u64,
    pub(super) lost_frames: u64,
}

impl Seen {
    pub(super) fn add(&mut self, other: &Self) {
        self.power_losses += other.power_losses;
        self.kills += other.kills;
        self.uploads += other.uploads;
        self.told_whole += other.told_whole;
        self.delivered += other.delivered;
        self.gone += other.gone;
        self.failed_syncs += other.failed_syncs;
        self.lost_frames += other.lost_frames;
    }

    /// Whether enough was met for the run to mean something.
    pub(super) fn enough(&self, durability: Durability) -> bool {
        let crashed = self.power_losses >= 10 && self.kills >= 2;
        let went_on = self.told_whole >= 20 && self.delivered >= 20;
        // With `patch` no transaction is told before it is durable.
        let forgotten = durability == Durability::Patch || self.lost_frames >= 10;
        crashed && went_on && forgotten && self.failed_syncs >= 1
    }
}

/// What repeats a scenario, printed if it fails.
struct Options {
    seed: u64,
    durability: Durability,
    /// How each start ended, or was to end, and which syncs were to fail in it.
    starts: Vec<(Crash, Option<(&'static str, u64)>)>,
}

impl Drop for Options {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let name = format!("{:?}", self.durability).to_lowercase();
            eprintln!(
                "again: FERRY_TEST_SEED={} cargo test -p tests --test durability_model with_{name}",
                self.seed
            );
            for (crash, failing) in &self.starts {
                eprintln!("  {crash:?}, sync that fails: {failing:?}");
            }
        }
    }
}

/// A sender's end of one start.
struct Sender<'a> {
    machine: &'a Machine,
    start: &'a Start,
    client: Client,
    addr: SocketAddr,
    random: Random,
}

/// Runs the scenario of `seed`.
pub(super) async fn scenario(seed: u64, durability: Durability) -> Seen {
    let mut options = Options {
        seed,
        durability,
        starts: Vec::new(),
    };
    let mut random = Random::new(seed);
    let machine = Machine::new(random.next());
    let (mut book, mut seen) = (Vec::new(), Seen::default());
    let mut ending = JoinSet::new();
    let mut before = Before {
        durability,
        sync_failed: false,
    };
    let syncs_fail = random.once_in(2);
    for _ in 0..2 + random.below(4) {
        let power = !random.once_in(4);
        let crash = Crash {
            container: ["raw", "raw", "dex", "edav"][usize::try_from(random.below(4)).expect("below 4")],
            step: 1 + random.below(60),
            power,
        };
        let failing = (syncs_fail && random.once_in(2)).then(|| {
            let container = ["raw", "raw", "dex"][usize::try_from(random.below(3)).expect("below 3")];
            (container, 1 + random.below(6))
        });
        if let Some((container, which)) = failing {
            machine.fail_sync(container, which);
        }
        options.starts.push((crash.clone(), failing));
        let start = machine.start(Some(crash));
        let engine = Engine::start(&start, durability);
        let mut sender = Sender::new(&machine, &start, &engine, random.next());
        tokio::select! {
            () = start.ended() => {}
            () = sender.send(&mut book, before) => start.end(power),
        }
        ending.spawn(engine.stop());
        *(if power { &mut seen.power_losses } else { &mut seen.kills }) += 1;
        book.iter_mut().for_each(|entry: &mut Entry| entry.power_lost |= power);
        before.sync_failed |= machine.damage().0 > 0;
        assert_whole_where_visible(&machine, &book, durability);
    }
    let start = machine.start(None);
    let engine = Engine::start(&start, durability);
    let mut sender = Sender::new(&machine, &start, &engine, random.next());
    sender.finish(&mut book, before).await;
    sender.expect_all_settled(&mut book, before).await;
    let census = engine.records.census().await.expect("count");
    assert_eq!(
        census.uploads_in(shared::upload::UploadState::Committing),
        0,
        "{book:?}"
    );
    assert_whole_where_visible(&machine, &book, durability);
    (seen.failed_syncs, seen.lost_frames) = machine.damage();
    seen.uploads = count(&book, |_| true);
    seen.told_whole = count(&book, Entry::is_whole);
    seen.gone = count(&book, |entry| entry.gone);
    seen.delivered = count(&book, |entry| entry.delivered.len() == TARGETS.len());
    start.end(false);
    ending.spawn(engine.stop());
    while let Some(ended) = within("the services end", LIMIT, ending.join_next()).await {
        ended.expect("an orderly end");
    }
    seen
}

/// One upload whose processes are killed at a step, finished and delivered by the next ones; then the power is lost.
/// What the first ones did and did not live to sync is there all the same, for the second ones saw to it.
pub(super) async fn killed_and_then_dark(container: &'static str, step: u64, seed: u64, durability: Durability) {
    let before = Before {
        durability,
        sync_failed: false,
    };
    let (machine, mut book, mut ending) = (Machine::new(seed), Vec::new(), JoinSet::new());
    let content = pattern(seed, 3000);
    let kill = Crash {
        container,
        step,
        power: false,
    };
    for crash in [Some(kill), None, None] {
        let start = machine.start(crash);
        let engine = Engine::start(&start, durability);
        let mut sender = Sender::new(&machine, &start, &engine, seed);
        let work = async {
            if book.is_empty() {
                sender.create_with(&mut book, content.clone(), false).await;
                // In one piece: each step of it has its number.
                if let Some(entry) = book.first() {
                    sender.client.upload_of(&entry.id).try_patch(0, &content).await.ok();
                }
            }
            sender.finish(&mut book, before).await;
            sender.expect_all_settled(&mut book, before).await;
        };
        let power = tokio::select! {
            () = start.ended() => false,
            () = work => true,
        };
        start.end(power);
        book.iter_mut().for_each(|entry: &mut Entry| entry.power_lost |= power);
        assert_whole_where_visible(&machine, &book, durability);
        ending.spawn(engine.stop());
    }
    let raw = machine.visible("raw");
    assert!(
        book.iter().all(|entry| raw.contains_key(&entry.id)),
        "lost in raw: {book:?}"
    );
    assert_eq!(
        count(&book, |entry| entry.delivered.len() == TARGETS.len()),
        1,
        "{book:?}"
    );
    while let Some(ended) = within("the services end", LIMIT, ending.join_next()).await {
        ended.expect("an orderly end");
    }
}

fn count(book: &[Entry], what: impl Fn(&Entry) -> bool) -> u64 {
    book.iter()
        .filter(|entry| what(entry))
        .count()
        .try_into()
        .expect("a few")
}

impl<'a> Sender<'a> {
    fn new(machine: &'a Machine, start: &'a Start, engine: &Engine, seed: u64) -> Self {
        Self {
            machine,
            start,
            client: engine.client(),
            addr: engine.addr(),
            random: Random::new(seed),
        }
    }

    /// Compares what is there with what was told before, and goes on, for so many requests.
    async fn send(&mut self, book: &mut Vec<Entry>, before: Before) {
        self.compare(book, before).await;
        for _ in 0..REQUESTS {
            let open: Vec<usize> = (0..book.len())
                .filter(|at| !book[*at].gone && !book[*at].is_whole())
                .collect();
            if open.is_empty() || (open.len() < 3 && self.random.once_in(6)) {
                self.create(book).await;
            } else {
                let at = open[usize::try_from(self.random.below(open.len() as u64)).expect("an index")];
                self.append(&mut book[at]).await;
            }
            if self.random.once_in(3) && !book.is_empty() {
                let at = usize::try_from(self.random.below(book.len() as u64)).expect("an index");
                self.look(&mut book[at]).await;
            }
        }
    }

    /// HEAD of all, after a crash.
    async fn compare(&self, book: &mut [Entry], before: Before) {
        for entry in book.iter_mut().filter(|entry| !entry.gone) {
            let upload = self.client.upload_of(&entry.id);
            let head = eventually("an answer to HEAD", LIMIT, || async {
                let head = upload.try_head().await.ok()?;
                // Somebody is at it, or could not do it now.
                (!matches!(head.status, 423 | 500 | 503)).then_some(head)
            });
            let head = head.await;
            self.start.while_it_runs(|| before.check(entry, &head));
        }
    }

    async fn create(&mut self, book: &mut Vec<Entry>) {
        let len = match self.random.below(8) {
            0 => 0,
            1 => 4096,
            _ => self.random.below(LONGEST),
        };
        let content = pattern(self.random.next(), usize::try_from(len).expect("a few kilobytes"));
        let at_once = self.random.once_in(3);
        self.create_with(book, content, at_once).await;
    }

    /// Creates an upload of `content`, and sends it `at_once`.
    async fn create_with(&mut self, book: &mut Vec<Entry>, content: Vec<u8>, at_once: bool) {
        let len = content.len();
        let (length, metadata) = (len.to_string(), tests::client::encode(&[("filename", "a.bin")]));
        let mut headers = vec![
            ("Tus-Resumable", "1.0.0"),
            ("Upload-Length", length.as_str()),
            ("Upload-Metadata", metadata.as_str()),
        ];
        let mut body = Vec::new();
        if at_once {
            headers.push(("Content-Type", tests::client::OFFSET_OCTETS));
            body.clone_from(&content);
        }
        let with_body = !body.is_empty();
        let Ok(answer) = self.client.send("POST", self.client.collection(), &headers, body).await else {
            return;
        };
        // Also of a creation whose body was not taken: it is known by its Location.
        let Some(id) = answer.header("Location").and_then(|url| url.rsplit('/').next()) else {
            return;
        };
        let told = answer.number("Upload-Offset").unwrap_or(0);
        let entry = Entry {
            id: id.to_owned(),
            told: if answer.status == 201 && (with_body || len == 0) {
                told
            } else {
                0
            },
            content,
            delivered: Vec::new(),
            gone: false,
            power_lost: false,
        };
        self.start.while_it_runs(|| book.push(entry));
    }

    async fn append(&mut self, entry: &mut Entry) {
        let rest = &entry.content[usize::try_from(entry.told).expect("an offset in memory")..];
        let most = if self.random.once_in(2) {
            rest.len()
        } else {
            rest.len().min(9000)
        };
        let len = 1 + self.random.below(u64::try_from(most).expect("a length"));
        let piece = rest[..usize::try_from(len).expect("a length")].to_vec();
        let upload = self.client.upload_of(&entry.id);
        if self.random.once_in(5) {
            // The sender goes away in the middle, and asks.
            if let Ok(mut cut) = SlowPatch::try_begin(self.addr, &upload.path(), entry.told, piece.len() + 1).await
                && cut.send(&piece).await.is_ok()
            {
                drop(cut);
                self.look(entry).await;
            }
            return;
        }
        let Ok(answer) = upload.try_patch(entry.told, &piece).await else {
            return;
        };
        match answer.status {
            204 => self.note(entry, &answer, Some(entry.told + len)),
            409 => self.note(entry, &answer, None),
            _ => self.look(entry).await,
        }
    }

    /// HEAD and `/info`.
    async fn look(&self, entry: &mut Entry) {
        let upload = self.client.upload_of(&entry.id);
        if let Ok(head) = upload.try_head().await {
            match head.status {
                200 => self.note(entry, &head, None),
                410 => {
                    // Lost by a failed sync.
                    self.start.while_it_runs(|| entry.gone = true);
                }
                _ => {}
            }
        }
        let url = self.client.url(&format!("/info/{}", entry.id));
        let Ok(info) = self.client.send("GET", &url, &[], "").await else {
            return;
        };
        let info: serde_json::Value = serde_json::from_slice(&info.body).unwrap_or_default();
        for delivery in info["deliveries"].as_array().into_iter().flatten() {
            let name = delivery["name"].as_str().unwrap_or_default();
            if delivery["status"] == "SUCCESS" && !entry.delivered.iter().any(|known| known == name) {
                self.start.while_it_runs(|| entry.delivered.push(name.to_owned()));
            }
        }
    }

    /// What an answer tells counts if the start has not ended before it is noted.
    fn note(&self, entry: &mut Entry, answer: &Answer, expected: Option<u64>) {
        let Some(told) = answer.number("Upload-Offset") else {
            return;
        };
        // A failed sync sends back to what can be proved.
        let may_go_back = self.machine.damage().0 > 0 && !entry.is_whole();
        self.start.while_it_runs(|| {
            assert!(expected.is_none_or(|expected| told == expected), "{answer:?}");
            assert!(told >= entry.told || may_go_back, "{} was told, {answer:?}", entry.told);
            assert!(told <= entry.len(), "{answer:?}");
            entry.told = told;
        });
    }

    /// Sends the rest of everything.
    async fn finish(&mut self, book: &mut [Entry], before: Before) {
        self.compare(book, before).await;
        for entry in book.iter_mut() {
            let what = format!("{} is sent to its end", entry.id);
            let begin = tokio::time::Instant::now();
            while !entry.gone && !entry.is_whole() {
                assert!(begin.elapsed() < LIMIT, "{what}");
                self.append(entry).await;
            }
        }
    }

    /// Nothing is stuck: each upload is delivered, or its sender was told that it is gone; what was lost behind its
    /// sender's back fails visibly, and only where nothing is synced.
    async fn expect_all_settled(&self, book: &mut [Entry], before: Before) {
        for entry in book.iter_mut().filter(|entry| !entry.gone) {
            let what = format!("{} is final everywhere, with {before:?}", entry.id);
            let info = eventually(&what, LIMIT, || async {
                let info = self.client.info(&entry.id).await;
                let deliveries = info["deliveries"].as_array()?;
                let is_final = |status: &serde_json::Value| *status == "SUCCESS" || *status == "FAILURE";
                let all = deliveries.len() == TARGETS.len();
                (all && deliveries.iter().all(|delivery| is_final(&delivery["status"]))).then_some(info)
            });
            let info = info.await;
            for delivery in info["deliveries"].as_array().expect("a list") {
                if delivery["status"] == "FAILURE" {
                    assert_eq!(before.durability, Durability::None, "{info}");
                    assert!(delivery["issues"].is_array(), "{info}");
                }
            }
            self.look(entry).await;
        }
    }
}
