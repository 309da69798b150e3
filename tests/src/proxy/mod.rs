//! A TCP proxy in front of a server, with the faults of a network. It knows nothing of what is said through it.
//! Spec: faults.md, "Making faults".
//!
//! ```text
//!             ┌ reads at the rate, counts ──► queue ──► writes after the delay ┐   Way::ToServer
//!  client ────┤                                                                ├──── server
//!             └ writes ◄── queue ◄─────────────────────────────────────── reads ┘   Way::ToClient
//! ```
//!
//! [`Faults`] say what happens to the bytes of each way. They can be changed at any time, for running connections,
//! for new ones, or for both; [`Proxy::counts`] tells what was really done.

mod connection;
mod counts;
mod faults;
#[cfg(test)]
mod tests;
mod way;

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

pub use connection::Break;
use connection::Orders;
pub use counts::Counts;
use counts::Tally;
pub use faults::{Ending, Faults, Way};

/// A proxy on a free port of the loopback. Dropping it breaks all its connections.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

/// Says what a new connection meets.
type Plan = Box<dyn FnMut() -> Faults + Send>;

struct Shared {
    server: SocketAddr,
    tally: Tally,
    plan: Mutex<Plan>,
    running: Mutex<Vec<watch::Sender<Orders>>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl Proxy {
    /// A proxy without faults in front of `server`, which need not run yet.
    ///
    /// # Panics
    /// There is no free port.
    pub async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind a free port");
        let addr = listener.local_addr().expect("a bound listener has an address");
        let shared = Arc::new(Shared {
            server,
            tally: Tally::default(),
            plan: Mutex::new(Box::new(Faults::none)),
            running: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        Self {
            addr,
            shared,
            accepting,
        }
    }

    /// Where clients reach the server through it.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// From now on these faults, on running connections and on new ones. On a running connection they are counted
    /// from here; bytes that were in the proxy's queue already are not touched by them.
    pub fn set(&self, faults: Faults) {
        self.set_new(faults);
        self.set_running(faults);
    }

    /// From now on these faults on new connections.
    pub fn set_new(&self, faults: Faults) {
        self.set_each(move || faults);
    }

    /// From now on each new connection gets the faults that `plan` says.
    pub fn set_each(&self, plan: impl FnMut() -> Faults + Send + 'static) {
        *lock(&self.shared.plan) = Box::new(plan);
    }

    /// From now on these faults on the connections that run.
    pub fn set_running(&self, faults: Faults) {
        self.order(|orders| orders.faults = faults);
    }

    /// Breaks all connections that run, at once; what is in the proxy's queues is lost.
    pub fn break_running(&self, how: Break) {
        self.order(|orders| orders.now = Some(how));
    }

    /// What it did so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.tally.counts()
    }

    fn order(&self, change: impl Fn(&mut Orders)) {
        for connection in lock(&self.shared.running).iter() {
            connection.send_modify(&change);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Accepts until it is aborted; its connections end with it.
async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(ended) = connections.join_next() => ended.expect("a connection does not panic"),
            accepted = listener.accept() => {
                let (client, _) = accepted.expect("accept on the loopback");
                let orders = admit(&shared);
                connections.spawn(serve(client, orders, shared.clone()));
            }
        }
    }
}

/// Lets the proxy's owner know of a new connection, and gives it its faults.
fn admit(shared: &Shared) -> watch::Receiver<Orders> {
    // One after the other, and held: faults set at this moment reach the connection in one way or the other.
    let mut running = lock(&shared.running);
    let faults = lock(&shared.plan)();
    let (sender, orders) = watch::channel(Orders { faults, now: None });
    running.retain(|connection| !connection.is_closed());
    running.push(sender);
    shared.tally.accepted();
    orders
}

async fn serve(client: TcpStream, orders: watch::Receiver<Orders>, shared: Arc<Shared>) {
    match TcpStream::connect(shared.server).await {
        Ok(server) => connection::run(client, server, orders, &shared.tally).await,
        Err(_) => {
            shared.tally.unreachable();
            connection::reset(&client);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics while holding it")
}
