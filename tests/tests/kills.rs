//! `kill -9` of everything at random moments, again and again, while eight senders go on.
//! Promises 1 to 4 of DESIGN.md; faults.md rows 1, 2, 3, 44, 50; core.md §7, "One report".
//!
//! A run is decided by its seed as far as the machine's own timing lets it: `FERRY_TEST_SEED=… ` repeats one.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tests::oracle::{File, Oracle, Promise};
use tests::pattern::{Random, assert_same};
use tests::reports::{action, destination};
use tests::site::Site;
use tests::wait::{eventually, within};
use tokio::task::JoinSet;

const KILLS: usize = 60;
const SENDERS: u64 = 8;
/// Reports that may be on their way at a kill: `CONCURRENCY` of `ferry up`.
const IN_FLIGHT: usize = 16;
/// The longest that what is left over after the last kill may take.
const LIMIT: Duration = Duration::from_secs(60);
const TARGETS: [&str; 2] = ["dex", "edav"];

fn seed() -> u64 {
    let given = std::env::var("FERRY_TEST_SEED").ok();
    given.map_or_else(
        || {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .expect("a clock after 1970");
            now.as_secs() ^ u64::from(now.subsec_nanos()) << 32
        },
        |text| text.parse().expect("FERRY_TEST_SEED is a number"),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_kill_loses_a_byte_a_delivery_or_a_report() {
    let seed = seed();
    println!("FERRY_TEST_SEED={seed}");
    let begin = Instant::now();
    let mut random = Random::new(seed);
    let mut site = Site::start().await;
    let oracle = Oracle::new();
    let mut senders = JoinSet::new();
    for _ in 0..SENDERS {
        let sender = oracle.clone().send_files(site.addr(), site.client(), random.next());
        senders.spawn(sender);
    }
    let mut comparing = JoinSet::new();
    let mut kills = 0;
    while kills < KILLS {
        // The fault itself is what is timed here: any moment in the life of a process.
        tokio::time::sleep(Duration::from_millis(random.below(700))).await;
        assert!(site.is_running(), "it ended by itself");
        oracle.goes_down();
        site.kill();
        kills += 1;
        if random.once_in(5) {
            // Recovery is cut short as well.
            site.launch();
            tokio::time::sleep(Duration::from_millis(random.below(200))).await;
            assert!(site.is_running(), "it ended by itself");
            site.kill();
            kills += 1;
        }
        site.restart().await;
        oracle.is_up();
        comparing.spawn(oracle.clone().compare());
        // A broken promise ends the run where it was seen.
        while let Some(ended) = senders.try_join_next().or_else(|| comparing.try_join_next()) {
            ended.expect("a sender or a comparison");
        }
    }
    oracle.stop();
    for tasks in [&mut senders, &mut comparing] {
        while let Some(ended) = within("senders end", LIMIT, tasks.join_next()).await {
            ended.expect("a sender or a comparison");
        }
    }
    println!("{kills} kills in {:?}", begin.elapsed());
    oracle.finish_all().await;

    let promises = oracle.promises();
    assert!(promises.iter().all(Promise::is_finished));
    for promise in &promises {
        for target in TARGETS {
            let delivered = within("a delivery", LIMIT, site.delivered(target, &promise.upload.id)).await;
            assert_same(&promise.upload.id, &delivered, &promise.file.content());
        }
    }
    let known: BTreeSet<&str> = promises.iter().map(|promise| promise.upload.id.as_str()).collect();
    let strangers = assert_right_under_final_names(&site, &known);
    assert_reports(&site, &promises, kills).await;

    let counts = &oracle.counts;
    println!(
        "{} uploads and {strangers} whose creation was not answered; {counts:?}; {:?}",
        promises.len(),
        begin.elapsed()
    );
    // A run that met nothing shows nothing.
    assert!(promises.len() >= 100, "too few uploads");
    assert!(counts.interrupted.load(Ordering::SeqCst) >= 20, "{counts:?}");
    assert!(counts.finished_by_head.load(Ordering::SeqCst) >= 5, "{counts:?}");
    assert!(counts.compared.load(Ordering::SeqCst) >= 100, "{counts:?}");
    let lost_creations = usize::try_from(counts.unknown.load(Ordering::SeqCst)).expect("a small number");
    assert!(
        strangers <= lost_creations,
        "{strangers} uploads that nobody made: {counts:?}"
    );
}

/// Whatever bears a final name is whole and right, whether or not its sender knows of it; each upload is there once.
/// Nothing unfinished is another name of it. Answers how many are not among `known`.
fn assert_right_under_final_names(site: &Site, known: &BTreeSet<&str>) -> usize {
    let mut strangers = BTreeSet::new();
    for target in TARGETS {
        let mut seen = HashSet::new();
        let mut inodes = HashSet::new();
        for path in site.files(target) {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .expect("a name in UTF-8");
            let (file, id) = File::of_delivered(name).unwrap_or_else(|| panic!("{} is no upload's", path.display()));
            assert!(seen.insert(id.to_owned()), "{id} is in {target} twice");
            assert_file(&path, file);
            let about = fs::symlink_metadata(&path).expect("look at a delivered file");
            assert!(about.is_file(), "{} is no plain file", path.display());
            assert_eq!(about.nlink(), 1, "{} has another name", path.display());
            inodes.insert(about.ino());
            if !known.contains(id) {
                strangers.insert(id.to_owned());
            }
            let raw = site.data().join("raw").join(id);
            assert_file(&raw, file);
        }
        for path in site.staged(target) {
            let about = fs::symlink_metadata(&path).expect("look at a staged file");
            assert!(about.is_file(), "{} leads elsewhere", path.display());
            assert!(!inodes.contains(&about.ino()), "{} is delivered", path.display());
        }
    }
    strangers.len()
}

fn assert_file(path: &Path, file: File) {
    let found = fs::read(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
    assert_same(&path.display().to_string(), &found, &file.content());
}

/// What a report is counted by: (upload, action, target), the run being 1 here, and for the status its offset.
type Key = (String, String, String);

/// `None`: a status in between, which may be lost or repeated.
fn key(report: &Value) -> Option<Key> {
    let about = match action(report) {
        "upload-status" => {
            let (offset, size) = (&report["content"]["offset"], &report["content"]["size"]);
            if *offset == 0 {
                "begin".to_owned()
            } else if offset == size {
                "end".to_owned()
            } else {
                return None;
            }
        }
        _ => destination(report).unwrap_or_default().to_owned(),
    };
    let id = report["upload_id"].as_str().expect("a report of an upload");
    Some((id.to_owned(), action(report).to_owned(), about))
}

/// Each report that an upload owes is there; repeats are byte-identical, and no more than what a kill can repeat.
async fn assert_reports(site: &Site, promises: &[Promise], kills: usize) {
    let owed: BTreeSet<Key> = promises.iter().flat_map(keys_owed).collect();
    let begin = Instant::now();
    let (reports, torn, missing) = eventually("all reports", LIMIT * 2, || async {
        let (reports, torn) = by_key(site);
        let missing: Vec<Key> = owed.iter().filter(|key| !reports.contains_key(key)).cloned().collect();
        // Given up before the wait itself is, so that the failure says what is missing.
        (missing.is_empty() || begin.elapsed() > LIMIT).then_some((reports, torn, missing))
    })
    .await;
    let some = &missing[..missing.len().min(10)];
    assert!(missing.is_empty(), "{} reports are missing, {some:?} …", missing.len());
    let mut repeats = 0;
    for (key, lines) in &reports {
        let different: BTreeSet<&String> = lines.iter().collect();
        // Of an empty file the first status and the final one tell the same offset.
        let empty = key.1 == "upload-status" && lines[0].contains("\"size\":0");
        let allowed = if empty { 2 } else { 1 };
        assert!(different.len() <= allowed, "two contents of {key:?}: {different:#?}");
        repeats += lines.len() - different.len();
        for line in different {
            assert_eq!(tests::reports::parse(line)["stage_info"]["status"], "SUCCESS", "{line}");
        }
    }
    assert_no_older_status_follows_a_newer(site);
    let most = kills * IN_FLIGHT;
    println!(
        "{} different reports, {repeats} repeats of {most} that {kills} kills may make, {torn} torn lines",
        reports.len()
    );
    assert!(repeats <= most, "more repeats than kills can make");
    assert!(torn <= kills, "more torn lines than kills");
}

/// The first status is not among them: one that a newer one has overtaken is dropped (reports.md §1).
fn keys_owed(promise: &Promise) -> Vec<Key> {
    let mut owed = vec![
        ("metadata-transform", ""),
        ("upload-started", ""),
        ("upload-completed", ""),
        ("blob-file-copy", "dex"),
        ("blob-file-copy", "edav"),
    ];
    if promise.file.len > 0 {
        owed.push(("upload-status", "end"));
    }
    owed.into_iter()
        .map(|(action, about)| (promise.upload.id.clone(), action.to_owned(), about.to_owned()))
        .collect()
}

/// The API replaces one status by the next that comes: after an older one an upload would look unfinished for ever
/// (known-faults.md 30).
fn assert_no_older_status_follows_a_newer(site: &Site) {
    let mut newest: HashMap<String, u64> = HashMap::new();
    for line in site.report_lines() {
        let Ok(report) = serde_json::from_str::<Value>(&line) else {
            continue;
        };
        if action(&report) == "upload-status" {
            let id = report["upload_id"].as_str().expect("a report of an upload");
            let offset = report["content"]["offset"].as_u64().expect("an offset");
            let before = newest.insert(id.to_owned(), offset).unwrap_or(0);
            assert!(before <= offset, "{id}: a status of {before}, and then one of {offset}");
        }
    }
}

/// All lines by what they are about, and how many a kill tore.
fn by_key(site: &Site) -> (BTreeMap<Key, Vec<String>>, usize) {
    let mut reports: BTreeMap<Key, Vec<String>> = BTreeMap::new();
    let mut torn = 0;
    for line in site.report_lines() {
        match serde_json::from_str::<Value>(&line) {
            Ok(report) => {
                if let Some(key) = key(&report) {
                    reports.entry(key).or_default().push(line);
                }
            }
            Err(_) => torn += 1,
        }
    }
    (reports, torn)
}
