//! A machine that forgets: stores and records in which a loss of power takes what was not made durable, as disks do.
//!
//! ```text
//!   Machine ─┬─ disk raw ─┐   volatile: what everybody sees while the power is on
//!            ├─ disk dex ─┼── durable:  what a sync has brought to the disk
//!            ├─ disk edav ┘   a loss takes any part of the difference, as the seed decides
//!            └─ records       SQLite's real files; a loss cuts the log anywhere behind its last sync
//! ```
//!
//! Everything of one start of the machine stops at one moment, in the middle of any step of any store. What survived
//! is opened by the next start. Spec: faults.md, "Making faults", a simulation; row 16.

mod disk;
mod file;
mod log;
mod machine;
mod store;

pub use log::LogCopy;
pub use machine::{Crash, Machine, Start};
pub use store::Forgetful;
