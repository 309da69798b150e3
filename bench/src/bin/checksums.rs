//! What checksums cost, as a ratio in one run: `cargo run --release -p bench --bin checksums`.
//!
//! Every byte that Ferry takes in or delivers goes through CRC-64/NVME, so the crate that computes it is chosen by
//! this measurement. Rounds are interleaved, because machines are noisy, and medians are compared.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crc64fast_nvme::Digest;
use sha2::{Digest as _, Sha256};
use shared::checksum::Crc64;

/// As large as the buffers that Ferry writes.
const BUFFER: usize = 1024 * 1024;
/// Bytes in one round of one candidate.
const ROUND: usize = 256 * BUFFER;
const ROUNDS: usize = 7;

/// A checksum under measurement.
struct Candidate {
    name: &'static str,
    run: fn(&[u8]) -> u64,
    times: Vec<Duration>,
}

fn main() {
    let buffer: Vec<u8> = (0..BUFFER)
        .map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1])
        .collect();
    let mut candidates = [
        Candidate {
            name: "crc-fast (shared::checksum)",
            run: ours,
            times: Vec::new(),
        },
        Candidate {
            name: "crc64fast-nvme",
            run: other,
            times: Vec::new(),
        },
        Candidate {
            name: "SHA-256",
            run: sha256,
            times: Vec::new(),
        },
    ];
    assert_eq!(ours(&buffer), other(&buffer), "the two crates disagree");
    for _ in 0..ROUNDS {
        for candidate in &mut candidates {
            let begun = Instant::now();
            for _ in 0..ROUND / BUFFER {
                black_box((candidate.run)(black_box(&buffer)));
            }
            candidate.times.push(begun.elapsed());
        }
    }
    let first = median(&mut candidates[0].times);
    println!("{:<30} {:>10} {:>8}", "checksum", "s/GiB", "ratio");
    for candidate in &mut candidates {
        let median = median(&mut candidate.times);
        let per_gib = median.as_secs_f64() * 4.0; // a round is a quarter of a GiB
        println!(
            "{:<30} {:>10.3} {:>8.2}",
            candidate.name,
            per_gib,
            median.as_secs_f64() / first.as_secs_f64()
        );
    }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn ours(bytes: &[u8]) -> u64 {
    Crc64::of(bytes).value()
}

fn other(bytes: &[u8]) -> u64 {
    let mut digest = Digest::new();
    digest.write(bytes);
    digest.sum64()
}

fn sha256(bytes: &[u8]) -> u64 {
    let digest = Sha256::digest(bytes);
    u64::from(digest[0])
}
