//! Each implementation of `Bus` against the contract, and what only a process that is killed can show.
//! Spec: bus.md; faults.md rows 38, 44.

use std::env;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use shared::message::{Message, Queue, Route};
use shared::upload::{OwnerId, UploadId};
use tests::contract::sqlite::{self, SqliteSite};
use tests::wait::{eventually, within};
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(20);
/// The path of the database file that a second process is to open.
const DATABASE: &str = "FERRY_TEST_DATABASE";

mod sqlite_contract {
    tests::bus_contract!(tests::contract::sqlite::SqliteSite::with_bus());
}

fn work(number: u64) -> Message {
    Message {
        id: Uuid::now_v7(),
        route: Route::Work(Queue::Copy),
        delay: None,
        kind: "test.number".to_owned(),
        source: "/test/here".to_owned(),
        subject: UploadId::random(),
        time: Timestamp::now(),
        traceparent: None,
        data: json!({ "schema": 1, "number": number }),
    }
}

/// A process that is killed with SIGKILL puts nothing back by itself: its jobs must come again all the same, at
/// once, because its lock is free (core.md §5), and it must be known to be gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_jobs_of_a_process_that_is_killed_come_again_and_it_is_known_to_be_gone() {
    let site = SqliteSite::with_bus();
    let (records, bus) = sqlite::open(&site.path());
    let answers = bus.publish((0..5).map(work).collect()).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    let mut victim = Victim::start(&site.path());
    let owner: OwnerId = victim.owner(&site.path()).await;
    let depth = bus.depth(Queue::Copy).await.expect("depth");
    assert_eq!((depth.ready, depth.in_flight), (0, 5), "the other process has them all");
    let mut consumer = bus.consume(Queue::Copy, 5).await.expect("consume");
    assert!(!records.is_gone(&owner).await, "it lives");
    assert!(consumer.ready().is_none(), "it has them all");
    victim.kill();
    eventually("its end is seen", LIMIT, || async {
        records.is_gone(&owner).await.then_some(())
    })
    .await;
    let mut numbers = Vec::new();
    for _ in 0..5 {
        let job = within("a job of the dead", LIMIT, consumer.next())
            .await
            .expect("the bus lost the consumer");
        assert!(job.redelivered > 0, "it was handed out before");
        numbers.push(job.message.data["number"].as_u64().expect("a number"));
        job.ack().await.expect("ack");
    }
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 2, 3, 4]);
}

/// This test program again, as a process that takes jobs and never settles them.
struct Victim(Child);

impl Victim {
    fn start(database: &Path) -> Self {
        let child = Command::new(env::current_exe().expect("a running program has a path"))
            .args(["--exact", "takes_jobs_until_it_is_killed", "--ignored", "--nocapture"])
            .env(DATABASE, database)
            .stdin(Stdio::null())
            .spawn()
            .expect("start this program again");
        Self(child)
    }

    /// Its owner id, once it has its jobs.
    async fn owner(&mut self, database: &Path) -> OwnerId {
        let text = eventually("the other process has its jobs", LIMIT, || {
            let ended = self.0.try_wait().expect("ask for a child of ours");
            assert!(ended.is_none(), "it ended: {ended:?}");
            let text = std::fs::read_to_string(ready_file(database)).ok();
            async move { text }
        })
        .await;
        serde_json::from_value(json!(text)).expect("an owner id")
    }

    fn kill(&mut self) {
        self.0.kill().expect("kill a child of ours");
        self.0.wait().expect("wait for a child of ours");
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // Also when the test failed before.
        if self.0.kill().is_ok() {
            self.0.wait().expect("wait for a child of ours");
        }
    }
}

fn ready_file(database: &Path) -> std::path::PathBuf {
    database.with_extension("ready")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "half of another test, which runs it in a process of its own and kills it"]
async fn takes_jobs_until_it_is_killed() {
    let database = env::var_os(DATABASE).expect("set by the test that starts this");
    let database = Path::new(&database);
    let (records, bus) = sqlite::open(database);
    let mut consumer = bus.consume(Queue::Copy, 5).await.expect("consume");
    let mut jobs = Vec::new();
    for _ in 0..5 {
        jobs.push(consumer.next().await.expect("a job"));
    }
    // Written aside and renamed, so that it is never read half.
    let aside = database.with_extension("aside");
    std::fs::write(&aside, records.owner().as_str()).expect("write the owner's name");
    std::fs::rename(&aside, ready_file(database)).expect("rename it");
    std::future::pending::<()>().await;
}
