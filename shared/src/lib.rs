//! What both Ferry services stand on.
//!
//! ```text
//!  ingest ──► records ──► outbox ──► bus ──► copier ──► records ──► outbox ──► bus ──► report sinks
//!     │                                        │
//!     └────────────► store (raw) ──────────────┴──────► store (targets)
//! ```
//!
//! Every change of an upload or a delivery is one write to [`records`]; the messages that follow from it are in
//! the same write, as the record's outbox. [`outbox`] brings them to the [`bus`]. Bytes only ever go through a
//! [`store`]. No type of an SDK or a driver leaves the file that uses it.

pub mod admin;
pub mod boot;
pub mod build;
pub mod bus;
pub mod checksum;
pub mod claims;
pub mod config;
pub mod database;
pub mod failpoint;
pub mod failure;
mod folders;
pub mod foundation;
pub mod health;
pub mod manifest;
pub mod message;
pub mod orphans;
pub mod outbox;
pub mod preflight;
pub mod records;
pub mod report;
pub mod routes;
pub mod run;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod upload;
