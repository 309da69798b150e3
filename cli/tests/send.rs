//! `ferry send` and `ferry status` as their users run them, against a server that fails on demand.

#![allow(
    clippy::unwrap_used,
    reason = "a test may panic; clippy does not see that the helpers are of tests"
)]

mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use server::{DEADLINE, Fault, Server};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::timeout;

const MIB: usize = 1024 * 1024;

/// A folder with files to send, and a state folder beside it.
struct Desk(TempDir);

/// How a run ended.
#[derive(Debug)]
struct Run {
    status: ExitStatus,
    out: String,
    err: String,
}

impl Run {
    #[track_caller]
    fn exits(&self, code: i32) -> &Self {
        assert_eq!(self.status.code(), Some(code), "{self:?}");
        self
    }

    #[track_caller]
    fn tells(&self, text: &str) -> &Self {
        assert!(self.err.contains(text), "`{text}` is missing in {self:?}");
        self
    }
}

impl Desk {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ferry"));
        command
            .args(arguments)
            .current_dir(self.0.path())
            .env_clear()
            .env("XDG_STATE_HOME", self.0.path().join("state"))
            .env("HOME", self.0.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// `ferry send --to <server> <arguments>`, running.
    fn start(&self, server: &Server, arguments: &[&str]) -> Child {
        let collection = server.collection();
        let all = [&["send", "--to", &collection], arguments].concat();
        self.command(&all).spawn().unwrap()
    }

    async fn send(&self, server: &Server, arguments: &[&str]) -> Run {
        end(self.start(server, arguments)).await
    }

    /// Uploads that are remembered.
    fn remembered(&self) -> usize {
        let folder = self.0.path().join("state/ferry");
        match fs::read_dir(folder) {
            Ok(entries) => entries
                .filter(|entry| entry.as_ref().unwrap().path().extension() == Some("json".as_ref()))
                .count(),
            Err(_) => 0,
        }
    }
}

async fn end(child: Child) -> Run {
    let output = timeout(DEADLINE, child.wait_with_output())
        .await
        .expect("ferry ends in time")
        .unwrap();
    Run {
        status: output.status,
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Bytes in which a lost, doubled or moved block shows.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| ((i * 31) ^ (i >> 13)).to_le_bytes()[0]).collect()
}

fn url(server: &Server, id: &str) -> String {
    format!("{}{id}", server.collection())
}

fn delivery(status: &str, name: &str, rest: &str) -> String {
    format!(r#"{{"status":"{status}","name":"{name}","delivered_at":"","issues":null{rest}}}"#)
}

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_every_size_arrive_whole_with_their_names_and_metadata() {
    let (server, desk) = (Server::start().await, Desk::new());
    let contents = [Vec::new(), b"x".to_vec(), pattern(128 * 1024), pattern(3 * MIB + 7)];
    let names = ["empty.csv", "one.csv", "block.csv", "large.csv"];
    for (name, content) in names.iter().zip(&contents) {
        desk.file(name, content);
    }
    let run = desk
        .send(
            &server,
            &[&names[..], &["--meta", "sender_id=a b", "--parallel", "2"]].concat(),
        )
        .await;
    run.exits(0);

    assert_eq!(run.out.lines().count(), 4, "{run:?}");
    for (name, content) in names.iter().zip(&contents) {
        let line = run
            .out
            .lines()
            .find(|line| line.ends_with(&format!("  {name}")))
            .unwrap();
        let id = line.split("  ").next().unwrap().rsplit('/').next().unwrap();
        let upload = &server.uploads()[id];
        assert!(line.starts_with(&url(&server, id)), "{line}");
        assert!(upload.bytes == *content, "{name}");
        run.tells(&format!("{name}: sent, "));
    }
    let (_, one) = server
        .uploads()
        .into_iter()
        .find(|(_, upload)| upload.length == 1)
        .unwrap();
    assert_eq!(one.metadata, "filename b25lLmNzdg==,sender_id YSBi");
    assert_eq!(desk.remembered(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_name_key_of_the_sender_replaces_the_files_own_name() {
    let (server, desk) = (Server::start().await, Desk::new());
    desk.file("a.csv", b"abc");
    desk.send(&server, &["a.csv", "--meta", "received_filename=b"])
        .await
        .exits(0);
    assert_eq!(server.upload().1.metadata, "received_filename Yg==");
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_are_as_large_as_wished() {
    let (server, desk) = (Server::start().await, Desk::new());
    let content = pattern(1000);
    desk.file("a.csv", &content);
    desk.send(&server, &["a.csv", "--chunk-size", "400"]).await.exits(0);
    let offsets: Vec<_> = server.seen().into_iter().filter_map(|seen| seen.offset).collect();
    assert_eq!(offsets, [0, 400, 800]);
    assert!(server.upload().1.bytes == content);
}

/// Promise 1, from the sender's side: what was acknowledged is not sent again, what was not is.
#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_the_same_command_goes_on_at_the_servers_offset() {
    let (server, desk) = (Server::start().await, Desk::new());
    let content = pattern(32 * MIB);
    desk.file("a.csv", &content);
    server.fail(Fault::Hold { after: 2 * MIB });
    let mut first = desk.start(&server, &["a.csv"]);
    server.stored(2 * MIB).await;
    first.kill().await.unwrap();
    assert_eq!(desk.remembered(), 1);

    let run = desk.send(&server, &["a.csv"]).await;
    run.exits(0);
    let (id, upload) = server.upload();
    assert!(upload.bytes == content);
    assert_eq!(run.out, format!("{}  a.csv\n", url(&server, &id)));
    let seen = server.seen();
    let methods: Vec<_> = seen.iter().map(|seen| seen.method.as_str()).collect();
    assert_eq!(methods, ["POST", "PATCH", "HEAD", "PATCH"]);
    assert!(seen[3].offset.unwrap() >= 2 * MIB, "{seen:?}");
    assert_eq!(desk.remembered(), 0);
    server.release();
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_it_at_once_and_the_same_command_goes_on() {
    let (server, desk) = (Server::start().await, Desk::new());
    let content = pattern(32 * MIB);
    desk.file("a.csv", &content);
    server.fail(Fault::Hold { after: MIB });
    let first = desk.start(&server, &["a.csv"]);
    server.stored(MIB).await;
    let pid = first.id().unwrap().cast_signed();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::INT,
    )
    .unwrap();
    end(first)
        .await
        .exits(130)
        .tells("interrupted: the same command goes on");

    desk.send(&server, &["a.csv"]).await.exits(0);
    assert!(server.upload().1.bytes == content);
    server.release();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_gone_for_three_seconds_is_waited_for() {
    let (mut server, desk) = (Server::start().await, Desk::new());
    let content = pattern(32 * MIB);
    desk.file("a.csv", &content);
    server.fail(Fault::Hold { after: 3 * MIB });
    let sending = desk.start(&server, &["a.csv"]);
    server.stored(3 * MIB).await;
    server.stop().await;
    tokio::time::sleep(Duration::from_secs(3)).await; // the outage itself: no condition ends it
    server.start_again().await;

    end(sending).await.exits(0).tells("trying again");
    assert!(server.upload().1.bytes == content);
    let last = server.seen().pop().unwrap();
    assert!(last.offset.unwrap() >= 3 * MIB, "{last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_and_a_draining_server_cost_nothing_but_the_rest() {
    let (server, desk) = (Server::start().await, Desk::new());
    let content = pattern(16 * MIB);
    desk.file("a.csv", &content);
    server.fail(Fault::Cut { after: MIB });
    server.fail(Fault::Drain { after: MIB });
    desk.send(&server, &["a.csv"]).await.exits(0);
    assert!(server.upload().1.bytes == content);
    assert_eq!((server.count("POST"), server.count("PATCH")), (1, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_last_answer_is_a_success_once_head_says_so() {
    let (server, desk) = (Server::start().await, Desk::new());
    let content = pattern(MIB);
    desk.file("a.csv", &content);
    server.fail(Fault::LoseAnswer);
    desk.send(&server, &["a.csv"]).await.exits(0);
    assert!(server.upload().1.bytes == content);
    assert_eq!((server.count("PATCH"), server.count("HEAD")), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_ask_for_patience_get_it() {
    let (server, desk) = (Server::start().await, Desk::new());
    desk.file("a.csv", b"abc");
    server.fail(Fault::Answer(
        "POST",
        "429 Too Many Requests",
        "Retry-After: 2\r\n",
        "slow down\n",
    ));
    server.fail(Fault::Answer("PATCH", "423 Locked", "", "locked\n"));
    server.fail(Fault::Answer("PATCH", "409 Conflict", "", "offset\n"));
    server.fail(Fault::Answer("HEAD", "502 Bad Gateway", "", ""));
    let begun = Instant::now();
    desk.send(&server, &["a.csv"]).await.exits(0);
    assert!(begun.elapsed() >= Duration::from_secs(2), "Retry-After was not heeded");
    assert_eq!(server.upload().1.bytes, b"abc");
    // Every PATCH but the first comes after a HEAD.
    let methods: Vec<_> = server.seen().into_iter().map(|seen| seen.method).collect();
    assert_eq!(
        methods,
        ["POST", "POST", "PATCH", "HEAD", "HEAD", "PATCH", "HEAD", "PATCH"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_progress_it_gives_up_and_remembers_where_it_was() {
    let (server, desk) = (Server::start().await, Desk::new());
    desk.file("a.csv", b"abc");
    for _ in 0..3 {
        server.fail(Fault::Answer("PATCH", "503 Service Unavailable", "", "no space\n"));
    }
    let run = desk.send(&server, &["a.csv", "--retries", "2"]).await;
    run.exits(1)
        .tells("error: a.csv: gave up after 2 retries without progress")
        .tells("no space");
    assert_eq!(server.count("PATCH"), 3);
    assert_eq!((run.out.as_str(), desk.remembered()), ("", 1));

    desk.send(&server, &["a.csv"]).await.exits(0);
    assert_eq!(server.upload().1.bytes, b"abc");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_gone_is_begun_anew() {
    let (server, desk) = (Server::start().await, Desk::new());
    let content = pattern(32 * MIB);
    desk.file("a.csv", &content);
    server.fail(Fault::Hold { after: MIB });
    let mut first = desk.start(&server, &["a.csv"]);
    server.stored(MIB).await;
    first.kill().await.unwrap();
    server.expire(&server.upload().0);

    desk.send(&server, &["a.csv"]).await.exits(0);
    assert!(server.upload().1.bytes == content);
    assert_eq!(server.count("POST"), 2);
    server.release();
}

/// Promise 3: what is complete on the server is one version of the file.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_on_its_way_fails_and_never_completes_its_upload() {
    let (server, desk) = (Server::start().await, Desk::new());
    let path = desk.file("a.csv", &pattern(64 * MIB));
    server.fail(Fault::Hold { after: MIB });
    let sending = desk.start(&server, &["a.csv"]);
    server.stored(MIB).await;
    let mut changed = fs::File::options().append(true).open(path).unwrap();
    std::io::Write::write_all(&mut changed, b"one more line\n").unwrap();
    server.release();

    let run = end(sending).await;
    run.exits(1).tells("error: a.csv: the file changed while it was sent");
    assert_eq!(run.out, "");
    let (_, upload) = server.upload();
    assert!(upload.bytes.len() < upload.length, "a mixed upload was completed");
    assert_eq!(desk.remembered(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_final_and_shown_and_holds_up_no_other_file() {
    let (server, desk) = (Server::start().await, Desk::new());
    desk.file("a.csv", b"abc");
    desk.file("b.csv", b"abc");
    let text = r#"["field sender_id was missing"]"#;
    server.fail(Fault::Answer("POST", "400 Bad Request", "", text));
    let run = desk.send(&server, &["a.csv", "b.csv", "--parallel", "1"]).await;
    run.exits(1)
        .tells(&format!("the server answered 400 Bad Request: {text}"));
    assert_eq!(run.out.lines().count(), 1, "{run:?}");
    assert_eq!(server.count("POST"), 2);
    assert_eq!(server.upload().1.bytes, b"abc");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_in_the_middle_of_a_body_is_shown() {
    let (server, desk) = (Server::start().await, Desk::new());
    desk.file("a.csv", &pattern(32 * MIB));
    server.fail(Fault::Answer(
        "PATCH",
        "403 Forbidden",
        "",
        "ERR_QUOTA: no more today\nsecond line\n",
    ));
    let run = desk.send(&server, &["a.csv"]).await;
    run.exits(1)
        .tells("the server answered 403 Forbidden: ERR_QUOTA: no more today");
    assert!(!run.err.contains("second line"), "{run:?}");
    assert_eq!(server.count("PATCH"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_runs_do_not_send_the_same_file_at_once() {
    let (server, desk) = (Server::start().await, Desk::new());
    let content = pattern(32 * MIB);
    desk.file("a.csv", &content);
    server.fail(Fault::Hold { after: MIB });
    let first = desk.start(&server, &["a.csv"]);
    server.stored(MIB).await;
    let second = desk.send(&server, &["a.csv"]).await;
    second.exits(1).tells("another `ferry send` is sending this file");
    server.release();
    end(first).await.exits(0);
    assert!(server.upload().1.bytes == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_if_one_file_cannot_be() {
    let (server, desk) = (Server::start().await, Desk::new());
    let good = desk.file("a.csv", b"abc");
    fs::create_dir(desk.0.path().join("folder")).unwrap();
    let run = desk
        .send(&server, &["a.csv", "folder", "missing.csv", "-", name(&good)])
        .await;
    run.exits(2)
        .tells("folder: a directory")
        .tells("missing.csv: cannot open the file: ")
        .tells("-: standard input is not supported")
        .tells("given twice");
    assert_eq!(server.seen(), []);
    for wrong in [
        &["a.csv", "--meta", "novalue"][..],
        &["a.csv", "--chunk-size", "0"],
        &[],
    ] {
        desk.send(&server, wrong).await.exits(2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_follows_the_upload_into_every_target() {
    let (server, desk) = (Server::start().await, Desk::new());
    desk.file("a.csv", b"abc");
    let held = delivery(
        "PENDING",
        "edav",
        r#","issues":[{"level":"ERROR","message":"no route"}],"next_attempt_at":"2024-03-07T05:10:00Z""#,
    )
    .replace(r#""issues":null,"#, "");
    let dex = delivery("SUCCESS", "dex", r#","location":"/d/a.csv""#);
    let edav = delivery("SUCCESS", "edav", r#","location":"/e/a.csv""#);
    let half = format!("[{dex},{held}]");
    server.info(&["null", &half, &half, &format!("[{dex},{edav}]")]);
    let run = desk.send(&server, &["a.csv", "--wait"]).await;
    run.exits(0);
    let id = server.upload().0;
    assert_eq!(
        run.out,
        format!(
            "{}  a.csv  delivered dex /d/a.csv  delivered edav /e/a.csv\n",
            url(&server, &id)
        )
    );
    let told = "waiting for edav: no route (next try at 2024-03-07T05:10:00Z)";
    assert_eq!(run.err.matches(told).count(), 1, "{run:?}");
    assert_eq!(desk.remembered(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_delivery_is_told_and_not_sent_again() {
    let (server, desk) = (Server::start().await, Desk::new());
    desk.file("a.csv", b"abc");
    let failed = delivery(
        "FAILURE",
        "edav",
        r#","issues":[{"level":"ERROR","message":"access denied"}]"#,
    )
    .replace(r#""issues":null,"#, "");
    let dex = delivery("SUCCESS", "dex", "");
    server.info(&[&format!("[{dex},{failed}]")]);
    let run = desk.send(&server, &["a.csv", "--wait"]).await;
    run.exits(1).tells("not delivered: edav FAILURE: access denied");
    assert_eq!(run.out, "");

    // An operator had it tried again: the same command sees that, and sends nothing.
    let edav = delivery("SUCCESS", "edav", "");
    server.info(&[&format!("[{dex},{edav}]")]);
    desk.send(&server, &["a.csv", "--wait"]).await.exits(0);
    assert_eq!((server.count("POST"), server.count("PATCH")), (1, 1));
    assert_eq!(desk.remembered(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_killed_while_it_waits_waits_on() {
    let (server, desk) = (Server::start().await, Desk::new());
    desk.file("a.csv", b"abc");
    server.info(&[&format!("[{}]", delivery("IN PROGRESS", "dex", ""))]);
    let mut first = desk.start(&server, &["a.csv", "--wait"]);
    server.asked("GET", 2).await;
    first.kill().await.unwrap();
    server.info(&[&format!("[{}]", delivery("SUCCESS", "dex", ""))]);
    desk.send(&server, &["a.csv", "--wait"]).await.exits(0);
    assert_eq!((server.count("POST"), server.count("PATCH")), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_ends_when_its_time_is_up() {
    let (server, desk) = (Server::start().await, Desk::new());
    desk.file("a.csv", b"abc");
    server.info(&[&format!("[{}]", delivery("IN PROGRESS", "dex", ""))]);
    let run = desk.send(&server, &["a.csv", "--wait", "--timeout", "500ms"]).await;
    run.exits(1).tells("not delivered within 500ms: dex IN PROGRESS");
    assert_eq!(desk.remembered(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_people_and_programs() {
    let (server, desk) = (Server::start().await, Desk::new());
    desk.file("a.csv", b"abc");
    desk.send(&server, &["a.csv"]).await.exits(0);
    server.info(&[&format!(
        "[{}]",
        delivery("SUCCESS", "dex", r#","location":"/d/a.csv""#)
    )]);
    let (id, collection) = (server.upload().0, server.collection());
    let status = |arguments: &[&str]| end(desk.command(&[&["status"], arguments].concat()).spawn().unwrap());

    let by_id = status(&[&id, "--to", &collection]).await;
    by_id.exits(0);
    assert!(by_id.out.contains("target    dex SUCCESS  /d/a.csv"), "{by_id:?}");
    let by_url = status(&[&url(&server, &id)]).await;
    assert_eq!(by_url.exits(0).out, by_id.out);

    let json = status(&[&id, "--to", &collection, "--json"]).await;
    let value: serde_json::Value = serde_json::from_str(&json.exits(0).out).unwrap();
    assert_eq!(value["deliveries"][0]["location"], "/d/a.csv");

    let unknown = "3f0c9a52-6f0e-4f1b-9d3a-2b7c1e5a8d90";
    let run = status(&[unknown, "--to", &collection]).await;
    run.exits(1).tells(&format!("no such upload: {unknown}"));
    status(&["not-an-id"]).await.exits(2);
}
