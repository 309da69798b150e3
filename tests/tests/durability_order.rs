//! Row 16 as far as a process can keep it: in which order it writes, syncs, renames and answers, by strace on the real
//! programs. Core.md §3, the table of DURABILITY; promises 1 to 3 of DESIGN.md. What a loss of power makes of that order
//! is shown by `durability_model`.

// There is no strace elsewhere.
#![cfg(target_os = "linux")]

use tests::pattern::{assert_same, pattern};
use tests::site::{LIMIT, Part, Site, SiteBuilder, TARGETS};
use tests::strace::{Missing, Moment, Strace, Trace, real};
use tests::wait::eventually;

const PIECE: usize = 40_000;
const PIECES: usize = 3;

/// What one upload, sent in pieces and delivered, made a site do.
struct Traced {
    /// Of the process that takes uploads.
    ingest: Trace,
    /// Of the one that copies.
    copier: Trace,
    id: String,
    /// The data folder.
    data: String,
}

impl Traced {
    async fn of(site: SiteBuilder) -> Self {
        let site = site.start().await;
        let mut straces = Vec::new();
        for part in site.parts() {
            straces.push(Strace::record(site.pid(part)).await);
        }
        let content = pattern(16, PIECES * PIECE);
        let upload = site.client().create(content.len(), &[("filename", "a.bin")]).await;
        upload.append_in_pieces(&content, PIECE).await;
        for target in TARGETS {
            assert_same(target, &site.delivered(target, &upload.id).await, &content);
        }
        eventually("both deliveries are reported", LIMIT, || async {
            let lines = site.report_lines();
            let copied = lines
                .iter()
                .filter(|line| line.contains(COPIED) && line.contains(&upload.id));
            (copied.count() == TARGETS.len()).then_some(())
        })
        .await;
        let mut traces = Vec::new();
        for strace in straces {
            traces.push(strace.detach().await);
        }
        Self {
            ingest: traces[0].clone(),
            copier: traces.pop().expect("a site has a process"),
            id: upload.id,
            data: real(&site.data()),
        }
    }

    fn patch_answers(&self) -> Vec<Moment> {
        let answers = self.ingest.answers(204, &format!("PATCH /files/{}", self.id));
        assert_eq!(answers.len(), PIECES, "{:?}", self.ingest);
        answers
    }

    fn log(&self) -> String {
        format!("{}/ferry.db-wal", self.data)
    }

    /// The staged file of the upload.
    fn staged(&self) -> Result<String, Missing> {
        let last = *self.patch_answers().last().expect("some answers");
        let renamed = self.ingest.renamed_to(&format!("{}/raw/", self.data), &self.id, last)?;
        Ok(renamed.from)
    }

    /// The completing answer: bytes and identity synced → renamed → folder synced → recorded and synced → answer.
    fn expect_finished_durably(&self) -> Result<(), Missing> {
        let answer = *self.patch_answers().last().expect("some answers");
        let raw = format!("{}/raw", self.data);
        let renamed = self.ingest.renamed_to(&format!("{raw}/"), &self.id, answer)?;
        self.ingest.bytes_durable(&renamed.from, renamed.begin)?;
        let visible = self.ingest.synced(&raw, renamed.end, answer)?;
        self.ingest.logged(&self.log(), visible, answer)
    }

    /// The same for each copy, before its SUCCESS is handed to the sink.
    fn expect_delivered_durably(&self) -> Result<(), Missing> {
        for target in TARGETS {
            let reports = format!("{}/reports.jsonl", self.data);
            let to = format!(r#""destination_name":"{target}""#);
            let texts = [COPIED, self.id.as_str(), to.as_str()];
            let reported = self.copier.writes_of(&reports, &texts);
            assert_eq!(reported.len(), 1, "one report to {target}: {:?}", self.copier);
            let (folder, reported) = (format!("{}/{target}/", self.data), reported[0]);
            let renamed = self.copier.renamed_to(&folder, &self.id, reported)?;
            self.copier.bytes_durable(&renamed.from, renamed.begin)?;
            self.copier.name_durable(&renamed.to, reported)?;
            let (parent, _) = renamed.to.rsplit_once('/').expect("a path");
            let visible = self.copier.synced(parent, renamed.end, reported)?;
            self.copier.logged(&self.log(), visible, reported)?;
        }
        Ok(())
    }
}

/// The schema of the report of a copy.
const COPIED: &str = "blob-file-copy";

/// Nothing is missing.
#[track_caller]
fn there(proof: Result<(), Missing>) {
    if let Err(missing) = proof {
        panic!("{missing}");
    }
}

/// Row 16, `patch`: before each answer the upload's bytes and what says so are on the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_patch_every_answer_comes_after_the_sync_of_its_bytes() {
    let traced = Traced::of(Site::build().env("DURABILITY", "patch")).await;
    let staged = traced.staged().unwrap_or_else(|missing| panic!("{missing}"));
    let created = traced.ingest.answers(201, "POST /files/");
    assert_eq!(created.len(), 1, "{:?}", traced.ingest);
    // The record is not durable before the name that it tells.
    there(traced.ingest.name_durable(&staged, created[0]));
    let made = traced
        .ingest
        .made(&staged)
        .unwrap_or_else(|missing| panic!("{missing}"));
    let (folder, _) = staged.rsplit_once('/').expect("a path");
    let named = traced.ingest.synced(folder, made, created[0]);
    let named = named.unwrap_or_else(|missing| panic!("{missing}"));
    there(traced.ingest.logged(&traced.log(), named, created[0]));
    for answer in &traced.patch_answers()[..PIECES - 1] {
        let synced = traced.ingest.bytes_durable(&staged, *answer);
        let synced = synced.unwrap_or_else(|missing| panic!("{missing}"));
        there(traced.ingest.logged(&traced.log(), synced, *answer));
    }
    there(traced.expect_finished_durably());
    there(traced.expect_delivered_durably());
}

/// Row 16, `finish`, by `ferry up`: before the completing answer everything is on the disk, and every copy is before
/// its SUCCESS; an answer in between waits for no sync.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_finish_the_completing_answer_and_every_success_come_after_their_syncs() {
    let traced = Traced::of(Site::build()).await;
    there(traced.expect_finished_durably());
    there(traced.expect_delivered_durably());
    let staged = traced.staged().unwrap_or_else(|missing| panic!("{missing}"));
    for answer in &traced.patch_answers()[..PIECES - 1] {
        traced
            .ingest
            .bytes_durable(&staged, *answer)
            .expect_err("no sync before an answer that promises none");
    }
}

/// The same by `ingest` and a copier as processes of their own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ingest_and_copier_of_their_own_sync_before_they_answer_and_report() {
    let site = Site::build().copiers(1);
    let traced = Traced::of(site).await;
    there(traced.expect_finished_durably());
    there(traced.expect_delivered_durably());
}

/// Row 16, `none`: no sync of received bytes at all; deliveries are synced before SUCCESS all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_none_only_copies_are_synced() {
    let traced = Traced::of(Site::build().env("DURABILITY", "none")).await;
    assert_eq!(traced.ingest.syncs_below(&format!("{}/raw", traced.data)), 0);
    assert_eq!(traced.patch_answers().len(), PIECES);
    there(traced.expect_delivered_durably());
}

/// Row 16, and core.md §4: a HEAD that finds all bytes there, of an upload that nobody finished, tells so after they and
/// what it records are on the disk: its sender goes away content.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_tells_of_all_bytes_syncs_them_first() {
    let site = Site::build()
        .env("FERRY_FAILPOINTS", "finish.last-byte-stored=error*1")
        .env("SWEEP_INTERVAL", "1h");
    let site = site.start().await;
    let content = pattern(17, PIECE);
    let upload = site.client().create(content.len(), &[]).await;
    let strace = Strace::record(site.pid(Part::Up)).await;
    let staged = real(&site.staged("raw").remove(0));
    upload.patch(0, &content).await.expect(503);
    assert_eq!(upload.offset().await, PIECE as u64);
    let trace = strace.detach().await;
    let told = trace.answers(200, &format!("HEAD /files/{}", upload.id));
    assert_eq!(told.len(), 1, "{trace:?}");
    let synced = trace.bytes_durable(&staged, told[0]);
    let synced = synced.unwrap_or_else(|missing| panic!("{missing}"));
    there(trace.logged(&format!("{}/ferry.db-wal", real(&site.data())), synced, told[0]));
    for target in TARGETS {
        assert_same(target, &site.delivered(target, &upload.id).await, &content);
    }
}
