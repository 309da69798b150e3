//! The oracle: senders that go on through any number of faults, the book of what they were promised, and the verdict
//! whether the promises were kept. Ids and content come from a seed, every acknowledged offset is an obligation.
//! Spec: faults.md, "Making faults".
//!
//! ```text
//!   Run ──► senders ──► the site                    verdict ──► folders, /info, reports, records, bus
//!    │         └─ offsets, urls ──► book ──────────────┘
//!    └─ "it goes down", "it is up again": only then may a connection break
//! ```

mod book;
mod file;
mod reports;
mod senders;
mod verdict;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::task::JoinSet;

use book::Book;
pub use book::{Count, Counts, Promise};
pub use file::{File, Sizes};
pub use senders::Habits;
pub use verdict::Verdict;

use crate::pattern::Random;
use crate::site::Site;
use crate::wait::within;

/// The longest that a sender waits for a server that is being started again.
const LIMIT: Duration = Duration::from_secs(60);
/// A connection that breaks is the work of a kill, which is told within this time.
const TOLD: Duration = Duration::from_secs(10);

/// The seed of this run: `FERRY_TEST_SEED`, or a new one, which is printed.
///
/// # Panics
/// The variable is no number.
#[must_use]
pub fn seed() -> u64 {
    let given = std::env::var("FERRY_TEST_SEED").ok();
    let seed = given.map_or_else(
        || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let now = now.expect("a clock after 1970");
            now.as_secs() ^ u64::from(now.subsec_nanos()) << 32
        },
        |text| text.parse().expect("FERRY_TEST_SEED is a number"),
    );
    println!("FERRY_TEST_SEED={seed}");
    seed
}

/// The state of the server, as the one that makes the faults tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Server {
    up: bool,
    starts: u32,
}

/// The book, and the word between the one that makes the faults and those that send.
#[derive(Debug)]
pub struct Oracle {
    book: Book,
    server: watch::Sender<Server>,
    stop: AtomicBool,
    habits: Habits,
    /// What happened so far.
    pub counts: Counts,
}

impl Oracle {
    fn new(habits: Habits) -> Arc<Self> {
        Arc::new(Self {
            book: Book::default(),
            server: watch::Sender::new(Server { up: true, starts: 1 }),
            stop: AtomicBool::new(false),
            habits,
            counts: Counts::default(),
        })
    }

    /// All promises so far.
    #[must_use]
    pub fn promises(&self) -> Vec<Promise> {
        self.book.all()
    }

    async fn up(&self) -> Server {
        let mut server = self.server.subscribe();
        let up = within("a server that is up", LIMIT, server.wait_for(|server| server.up)).await;
        *up.expect("the oracle holds the other end")
    }

    /// A connection broke that was begun while the server was `then`: only a kill may do that.
    async fn interrupted(&self, then: Server, what: &str) {
        self.counts.interrupted.one_more();
        let mut server = self.server.subscribe();
        let killed = server.wait_for(|now| *now != then);
        let what = format!("{what}: the connection broke, and nobody killed the server");
        within(&what, TOLD, killed)
            .await
            .expect("the oracle holds the other end");
    }
}

/// Senders at work on a site.
#[derive(Debug)]
pub struct Run {
    oracle: Arc<Oracle>,
    senders: JoinSet<()>,
    comparing: JoinSet<()>,
}

impl Run {
    /// Begins `senders` of these `habits` on `site`, who send one file after another until [`Run::end`].
    #[must_use]
    pub fn begin(site: &Site, senders: usize, habits: Habits, random: &mut Random) -> Self {
        let mut run = Self::idle(habits);
        for _ in 0..senders {
            let (oracle, seed) = (run.oracle.clone(), random.next());
            run.senders
                .spawn(oracle.send_until_stop(site.addr(), site.client(), seed));
        }
        run
    }

    /// Begins a sender for each of these lists of files, who sends them all and ends then.
    #[must_use]
    pub fn begin_with(site: &Site, lists: Vec<Vec<File>>, habits: Habits, random: &mut Random) -> Self {
        let mut run = Self::idle(habits);
        for files in lists {
            let (oracle, seed) = (run.oracle.clone(), random.next());
            run.senders
                .spawn(oracle.send_all(site.addr(), site.client(), files, seed));
        }
        run
    }

    fn idle(habits: Habits) -> Self {
        Self {
            oracle: Oracle::new(habits),
            senders: JoinSet::new(),
            comparing: JoinSet::new(),
        }
    }

    /// The book.
    #[must_use]
    pub fn oracle(&self) -> &Oracle {
        &self.oracle
    }

    /// Told before whoever accepts uploads is killed, or as soon as its death is seen.
    pub fn goes_down(&self) {
        self.oracle.server.send_modify(|server| server.up = false);
    }

    /// Told once it is ready again. What was acknowledged is compared with what HEAD says now, beside the senders.
    ///
    /// # Panics
    /// A promise was broken so far.
    pub fn is_up(&mut self) {
        self.oracle.server.send_modify(|server| {
            server.up = true;
            server.starts += 1;
        });
        self.comparing.spawn(self.oracle.clone().compare());
        self.check();
    }

    /// Ends the run where a broken promise was seen.
    ///
    /// # Panics
    /// One was.
    pub fn check(&mut self) {
        while let Some(ended) = self.senders.try_join_next().or_else(|| self.comparing.try_join_next()) {
            ended.expect("a sender or a comparison");
        }
    }

    /// Whether all senders are at their end.
    ///
    /// # Panics
    /// A promise was broken so far.
    pub fn is_done(&mut self) -> bool {
        self.check();
        self.senders.is_empty()
    }

    /// Lets the senders end, sends what is left of all that was given up, and waits until everything that was
    /// promised is kept. There are no more faults; `kills` is how many there were.
    ///
    /// # Panics
    /// A promise was broken.
    pub async fn end(mut self, site: &Site, kills: usize) -> Verdict {
        self.oracle.stop.store(true, Ordering::SeqCst);
        for tasks in [&mut self.senders, &mut self.comparing] {
            while let Some(ended) = within("senders end", 2 * LIMIT, tasks.join_next()).await {
                ended.expect("a sender or a comparison");
            }
        }
        self.oracle.finish_all().await;
        // Liveness: whatever happened, a new file passes.
        let new = vec![File { seed: 1, len: 100_000 }];
        let sent = self.oracle.clone().send_all(site.addr(), site.client(), new, 1);
        within("a new file is taken", LIMIT, sent).await;
        self.oracle.verdict(site, kills).await
    }
}
