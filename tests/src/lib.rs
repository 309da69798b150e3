//! Whole-system tests with the real binaries, and the contracts that each store, records and bus passes.
//!
//! ```text
//!  tests/*.rs ──► site ──► `ferry up`, or `ingest` and copiers, on a folder of its own ──► reports, deliveries
//!      │            ├─ client (TUS), raw (bytes on a socket)
//!      │            └─ proxy: the same server behind a bad network
//!      └──────► contract ──► shared: any implementation of a trait
//! ```

pub mod client;
pub mod contract;
pub mod forgetful;
pub mod gauge;
pub mod metrics;
pub mod mounts;
pub mod oracle;
pub mod otlp;
pub mod pattern;
pub mod proxy;
pub mod psapi;
pub mod raw;
pub mod refusal;
pub mod reports;
pub mod site;
#[cfg(target_os = "linux")]
pub mod strace;
pub mod wait;
pub mod work;
