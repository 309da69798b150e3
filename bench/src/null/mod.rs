//! Do-nothing servers: as little as a TUS server can do for its answer, as fast as is reasonable. They are the
//! ceilings that Ferry is compared with.
//!
//! A thread for each connection, blocking: for 16 connections there is nothing faster, and syncs of several uploads
//! go to the disk together. They trust their sender, the load generator: what is not plain is answered 400.

mod session;
mod sink;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;

use session::Session;
pub(crate) use sink::Kind;
use sink::Sink;

/// Serves until the process is killed; says on standard output where, as Ferry does.
///
/// # Errors
/// There is no free port, or the folder cannot be written.
pub(crate) fn run(kind: Kind, folder: &Path) -> io::Result<()> {
    let sink = Sink::new(kind, folder)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    println!("ready: http://{addr}/files/");
    serve(listener.incoming(), addr, &sink);
    Ok(())
}

/// Serves the connections that come in on `addr`, and returns when there are no more and all have ended.
fn serve(incoming: impl Iterator<Item = io::Result<TcpStream>>, addr: SocketAddr, sink: &Sink) {
    thread::scope(|scope| {
        for stream in incoming {
            scope.spawn(move || {
                let served = stream.and_then(|stream| Session::new(stream, addr, sink)?.serve());
                if let Err(error) = served {
                    eprintln!("a connection ended: {error}");
                }
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;
    use crate::load::{self, Payload};
    use crate::plan::{Competitor, Sending, Workload};
    use crate::verify;

    /// Runs `workload` against a server of `kind` in this process, then does `then` with its folder before everything
    /// is verified.
    fn measured(kind: Kind, workload: Workload, then: impl FnOnce(&Path)) -> Result<(), crate::failure::Failure> {
        let folder = tempfile::tempdir().unwrap();
        let sink = Sink::new(kind, folder.path()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let payload = Payload::new();
        thread::scope(|scope| {
            scope.spawn(|| serve(listener.incoming().take(workload.connections), addr, &sink));
            let mut connections = load::connect(addr, &workload).unwrap();
            let done = load::run(&mut connections, &workload, &payload).unwrap();
            assert_eq!(done.uploads.len(), workload.uploads);
            then(folder.path());
            verify::whole(&mut connections, &done.uploads, &workload)?;
            verify::stored(folder.path(), Competitor::Null(kind), &workload, &payload)
        })
    }

    fn small(sending: Sending) -> Workload {
        Workload {
            connections: 4,
            uploads: 50,
            size_bytes: 4096,
            sending,
            until_delivered: false,
        }
    }

    /// Neither a whole number of buffers, nor less than one.
    fn large() -> Workload {
        Workload {
            connections: 2,
            uploads: 3,
            size_bytes: 5 * 1024 * 1024 + 17,
            sending: Sending::PostThenPatch,
            until_delivered: false,
        }
    }

    #[test]
    fn every_kind_takes_every_load_and_has_it_afterwards() {
        for kind in [Kind::Discarding, Kind::Writing, Kind::Syncing, Kind::Delivering] {
            for workload in [
                small(Sending::PostThenPatch),
                small(Sending::CreationWithUpload),
                large(),
            ] {
                measured(kind, workload, |_| {}).unwrap();
            }
        }
    }

    #[test]
    fn a_file_that_is_gone_cut_or_altered_is_no_result() {
        type Damage = fn(&Path);
        let damages: [(Damage, &str); 3] = [
            (|file| fs::remove_file(file).unwrap(), "expected 3 files"),
            (
                |file| File::options().write(true).open(file).unwrap().set_len(7).unwrap(),
                "found 7 bytes",
            ),
            (
                |file| {
                    let mut bytes = fs::read(file).unwrap();
                    bytes[3_000_000] ^= 1;
                    fs::write(file, bytes).unwrap();
                },
                "expected the checksum",
            ),
        ];
        for (damage, said) in damages {
            let failure = measured(Kind::Delivering, large(), |folder| {
                let file = fs::read_dir(folder.join("edav")).unwrap().next().unwrap().unwrap();
                damage(&file.path());
            })
            .unwrap_err();
            assert!(failure.to_string().contains(said), "{failure}");
        }
    }
}
