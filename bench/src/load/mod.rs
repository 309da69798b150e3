//! The load generator: a thread for each connection, blocking, since nothing is cheaper for a few connections.

mod connection;
mod payload;

use std::net::SocketAddr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) use connection::{Connection, UploadPath};
pub(crate) use payload::Payload;

use crate::failure::Failure;
use crate::plan::{Sending, Workload};
use crate::wait;

/// Longest time between an upload's last byte and its copies.
const DELIVERY: Duration = Duration::from_secs(600);

/// What a load did.
#[derive(Debug)]
pub(crate) struct Done {
    /// From the first byte sent to the last answer, or the last delivery.
    pub(crate) elapsed: Duration,
    /// All uploads that were acknowledged.
    pub(crate) uploads: Vec<UploadPath>,
}

/// Opens as many connections as the workload has.
///
/// # Errors
/// The server does not accept them.
pub(crate) fn connect(server: SocketAddr, workload: &Workload) -> Result<Vec<Connection>, Failure> {
    (0..workload.connections).map(|_| Connection::open(server)).collect()
}

/// Sends the whole workload, all connections at once.
///
/// # Errors
/// An answer that is not the one expected ends it: `Answer`, `Io`, `Late`, `Interrupted`.
pub(crate) fn run(connections: &mut [Connection], workload: &Workload, payload: &Payload) -> Result<Done, Failure> {
    // Each begins with an upload of its own; whoever is done first takes the next, so that all end together.
    let next = AtomicUsize::new(connections.len());
    let start = Barrier::new(connections.len() + 1);
    let (begun, ended) = thread::scope(|scope| {
        let senders: Vec<_> = connections
            .iter_mut()
            .enumerate()
            .map(|(first, connection)| {
                let (next, start) = (&next, &start);
                scope.spawn(move || {
                    start.wait();
                    let mut sent = Vec::new();
                    let mut upload = first;
                    while upload < workload.uploads {
                        match send(connection, workload, payload) {
                            Ok(path) => sent.push(path),
                            Err(failure) => {
                                next.store(workload.uploads, Ordering::Relaxed); // the others need not go on
                                return Err(failure);
                            }
                        }
                        upload = next.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(sent)
                })
            })
            .collect();
        start.wait();
        let begun = Instant::now();
        let join = |sender: thread::ScopedJoinHandle<'_, _>| sender.join().expect("a sender returns its failures");
        (begun, senders.into_iter().map(join).collect::<Vec<_>>())
    });
    let mut uploads = Vec::new();
    for sent in ended {
        uploads.extend(sent?);
    }
    if workload.until_delivered
        && let Some(connection) = connections.first_mut()
    {
        // One after the other: sixteen that ask all the while would be a load of their own.
        for upload in &uploads {
            wait_for_delivery(connection, upload)?;
        }
    }
    Ok(Done {
        elapsed: begun.elapsed(),
        uploads,
    })
}

fn send(connection: &mut Connection, workload: &Workload, payload: &Payload) -> Result<UploadPath, Failure> {
    wait::go_on()?;
    match workload.sending {
        Sending::PostThenPatch => {
            let upload = connection.create(workload.size_bytes)?;
            connection.append(&upload, workload.size_bytes, payload)?;
            Ok(upload)
        }
        Sending::CreationWithUpload => connection.create_with(workload.size_bytes, payload),
    }
}

/// Waits until every target has the upload, by what `/info` says of it.
fn wait_for_delivery(connection: &mut Connection, upload: &str) -> Result<(), Failure> {
    let id = upload.rsplit('/').next().unwrap_or(upload);
    let path = format!("/info/{id}");
    wait::until(
        || format!("delivery of {id}"),
        DELIVERY,
        || {
            let info = connection.get(&path)?;
            Ok(delivered(&path, &info)?.then_some(()))
        },
    )
}

/// Whether all deliveries in `info` succeeded.
fn delivered(path: &str, info: &[u8]) -> Result<bool, Failure> {
    let unexpected = |expected: &str| Failure::Answer {
        request: format!("GET {path}"),
        expected: expected.to_owned(),
        got: String::from_utf8_lossy(info).into_owned(),
    };
    let info: serde_json::Value = serde_json::from_slice(info).map_err(|_| unexpected("JSON"))?;
    let deliveries = info["deliveries"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut succeeded = 0;
    for delivery in deliveries {
        match delivery["status"].as_str() {
            Some("SUCCESS") => succeeded += 1,
            Some("PENDING" | "IN PROGRESS") => {}
            _ => return Err(unexpected("no failed delivery")),
        }
    }
    Ok(succeeded > 0 && succeeded == deliveries.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_success_in_every_target_counts_as_delivered() {
        let of = |statuses: &[&str]| {
            let deliveries: Vec<_> = statuses
                .iter()
                .map(|status| serde_json::json!({ "status": status }))
                .collect();
            delivered(
                "/info/x",
                serde_json::json!({ "deliveries": deliveries }).to_string().as_bytes(),
            )
        };
        assert!(of(&["SUCCESS", "SUCCESS"]).unwrap());
        assert!(!of(&["SUCCESS", "IN PROGRESS"]).unwrap());
        assert!(!of(&[]).unwrap(), "not resolved yet");
        assert!(of(&["SUCCESS", "FAILURE"]).is_err());
        assert!(!delivered("/info/x", br#"{"deliveries":null}"#).unwrap());
        assert!(delivered("/info/x", b"oops").is_err());
    }
}
