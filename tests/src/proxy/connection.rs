//! One connection: its two ways, and how it ends.

use tokio::net::TcpStream;
use tokio::sync::watch;

use super::counts::Tally;
use super::faults::{Ending, Faults, Way};
use super::way;

/// What the proxy's owner wants of a running connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Orders {
    pub(super) faults: Faults,
    /// To be broken at once.
    pub(super) now: Option<Break>,
}

/// How a connection is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// Closed on both sides (FIN; what the proxy has not read makes it a reset, as everywhere in TCP).
    Cut,
    /// Reset on both sides (RST).
    Reset,
}

/// Passes bytes both ways until both have ended, or something breaks the connection.
pub(super) async fn run(mut client: TcpStream, mut server: TcpStream, orders: watch::Receiver<Orders>, tally: &Tally) {
    // Small pieces are what many faults are about: they must not be gathered. A socket that its peer has reset already
    // takes no options, here as below.
    drop((client.set_nodelay(true), server.set_nodelay(true)));
    let mut break_now = orders.clone();
    let broken = {
        let (client_reads, client_writes) = client.split();
        let (server_reads, server_writes) = server.split();
        let ways = async {
            tokio::try_join!(
                way::run(Way::ToServer, client_reads, server_writes, orders.clone(), tally),
                way::run(Way::ToClient, server_reads, client_writes, orders.clone(), tally),
            )
        };
        tokio::select! {
            biased;
            // An error is the end of the proxy, with which this task ends too.
            Ok(how) = ordered(&mut break_now) => {
                tally.happened(match how {
                    Break::Cut => Ending::Cut,
                    Break::Reset => Ending::Reset,
                });
                Some(how)
            }
            ended = ways => ended.err(),
        }
    };
    if broken == Some(Break::Reset) {
        reset(&client);
        reset(&server);
    }
}

async fn ordered(orders: &mut watch::Receiver<Orders>) -> Result<Break, watch::error::RecvError> {
    loop {
        if let Some(how) = orders.borrow_and_update().now {
            return Ok(how);
        }
        orders.changed().await?;
    }
}

/// The connection is reset when it is dropped.
pub(super) fn reset(stream: &TcpStream) {
    drop(stream.set_zero_linger());
}
