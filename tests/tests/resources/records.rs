//! Row 17: records that are busy are waited for, with a deadline; damaged ones stop the start by name.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use shared::message::Queue;
use tests::pattern::{assert_same, pattern};
use tests::site::{LIMIT, Program, Site, files_below};
use tests::wait::eventually;

use super::{MIB, RECOVERY, health_says};

/// Holds the write lock of a database as another process does, until standard input ends.
const HOLDER: &str = "import sqlite3, sys\nd = sqlite3.connect(sys.argv[1], isolation_level=None)\n\
                      d.execute('BEGIN IMMEDIATE')\nprint('held', flush=True)\nsys.stdin.read()\n";

/// Somebody else's transaction, until this is dropped.
struct Lock(std::process::Child);

impl Lock {
    fn hold(site: &Site) -> Self {
        let mut holder = std::process::Command::new("python3")
            .args(["-c", HOLDER])
            .arg(site.data().join("ferry.db"))
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("python3 is needed to hold the lock");
        let mut said = String::new();
        let output = holder.stdout.take().expect("it is piped");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut said).expect("read");
        assert_eq!(said, "held\n");
        Self(holder)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().expect("the holder ends");
    }
}

/// Row 17, busy: requests wait together with a deadline and get 503; nothing is lost, and it goes on by itself.
#[tokio::test]
async fn requests_wait_for_busy_records_with_a_deadline_and_recover() {
    let site = Site::start().await;
    let client = site.client();
    let open = client.create(MIB + 1, &[("filename", "open.bin")]).await;
    let lock = Lock::hold(&site);
    let began = Instant::now();
    let headers = [("Upload-Length", "10")];
    let posts = (0..5).map(|_| client.tus("POST", client.collection(), &headers, ""));
    let (posts, ()) = tokio::join!(join_all(posts), async {
        open.append(0, &pattern(1, MIB)).await; // bytes need no record
        health_says(&site, "Records", "DOWN", 503).await;
    });
    for answer in &posts {
        assert_eq!(answer.status, 503, "{}", answer.text());
    }
    assert!(
        began.elapsed() < Duration::from_secs(35),
        "one after the other: {:?}",
        began.elapsed()
    );
    drop(lock);
    health_says(&site, "Records", "UP", 200).await;
    open.append(u64::try_from(MIB).expect("small"), &pattern(1, MIB + 1)[MIB..])
        .await;
    let arrived = tests::wait::within("the delivery", RECOVERY, site.delivered("dex", &open.id)).await;
    assert_same("dex", &arrived, &pattern(1, MIB + 1));
}

/// Row 17 and rule 7: copies and reports whose end could not be recorded come again when the records are back, in the
/// same process.
#[tokio::test]
async fn what_could_not_be_settled_for_busy_records_is_done_when_they_are_back() {
    let site = Site::build()
        .env("FERRY_FAILPOINTS", "copy.part-written=delay:300ms")
        .start()
        .await;
    let content = pattern(3, MIB);
    let client = site.client();
    let uploads = join_all((0..8).map(|_| async {
        let upload = client.create(MIB, &[("filename", "busy.bin")]).await;
        upload.append(0, &content).await;
        upload
    }))
    .await;
    let lock = Lock::hold(&site);
    eventually("something was not settled", LIMIT, || async {
        site.log().contains("may come again").then_some(())
    })
    .await;
    drop(lock);
    let since = Instant::now();
    for upload in &uploads {
        site.expect_delivered(upload, &content).await;
    }
    let (_, bus) = site.database();
    for queue in Queue::ALL {
        eventually(&format!("nothing waits in {}", queue.as_str()), RECOVERY, || async {
            let depth = bus.depth(queue).await.expect("count messages");
            (depth.ready + depth.in_flight + depth.delayed == 0).then_some(())
        })
        .await;
    }
    assert!(since.elapsed() < RECOVERY, "{:?}", since.elapsed());
}

fn overwrite(path: &Path, at: u64, len: usize) {
    let file = fs::File::options().write(true).open(path).expect("open");
    file.write_all_at(&vec![0xa5; len], at).expect("overwrite");
}

fn truncate(path: &Path, len: u64) {
    fs::File::options()
        .write(true)
        .open(path)
        .expect("open")
        .set_len(len)
        .expect("truncate");
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).expect("look").len()
}

/// Every file of the data folder with its bytes, but for the log's index, which is made anew from the log.
fn content(data: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let files = files_below(data)
        .into_iter()
        .filter(|path| !path.ends_with("ferry.db-shm"));
    files
        .map(|path| (path.clone(), fs::read(path).expect("read")))
        .collect()
}

/// Row 17, damaged: exit code 2, the file is named, and nothing is changed, by any of the programs.
#[tokio::test]
async fn damaged_records_stop_the_start_by_name_and_nothing_is_touched() {
    let mut site = Site::start().await;
    for number in 0..40 {
        let upload = site
            .client()
            .create(1000, &[("filename", "x.bin"), ("note", &"n".repeat(900))])
            .await;
        upload.append(0, &pattern(number, 1000)).await;
        site.delivered("dex", &upload.id).await;
    }
    site.kill();
    let whole = tempfile::tempdir().expect("a folder");
    copy(&site.data(), whole.path());
    type Harm = fn(&Path, &Path);
    let harms: [(&str, Harm); 6] = [
        ("garbage header", |file, _| overwrite(file, 0, 64)),
        ("pages in the middle", |file, log| {
            truncate(log, 0); // its log would have newer ones
            overwrite(
                file,
                length(file) / 3 / 4096 * 4096,
                usize::try_from(length(file) / 3).expect("small"),
            );
        }),
        ("truncated", |file, log| {
            truncate(log, 0);
            truncate(file, length(file) / 2);
        }),
        ("emptied", |file, _| truncate(file, 0)),
        ("damaged log", |_, log| overwrite(log, 32 + 24 + 100, 64)),
        ("garbage log", |_, log| overwrite(log, 0, 32)),
    ];
    for (what, harm) in harms {
        let data = tempfile::tempdir().expect("a folder");
        copy(whole.path(), data.path());
        harm(&data.path().join("ferry.db"), &data.path().join("ferry.db-wal"));
        let before = content(data.path());
        let program = Program::new("ferry").arg("up").arg("--listen").arg("127.0.0.1:0");
        let ended = program
            .arg("--data")
            .arg(&data.path().display().to_string())
            .run(LIMIT)
            .await;
        assert_eq!(ended.status.code(), Some(2), "{what}: {ended:?}");
        assert!(ended.stderr.contains("ferry.db"), "{what}: {}", ended.stderr);
        assert_eq!(ended.stdout, "", "{what}");
        assert!(content(data.path()) == before, "{what}: something was changed");
    }
    // What is no damage: the index of a dead process is there in all cases, and a log may be empty.
    truncate(&site.data().join("ferry.db-wal"), 0);
    site.restart().await;
}

fn copy(from: &Path, to: &Path) {
    for path in files_below(from) {
        let target = to.join(path.strip_prefix(from).expect("below it"));
        fs::create_dir_all(target.parent().expect("a folder")).expect("make a folder");
        fs::copy(path, target).expect("copy");
    }
}
