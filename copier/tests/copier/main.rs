//! The copier on real records, bus and stores, with faults made between it and them.

#![allow(clippy::unwrap_used, reason = "helpers of tests, which may panic")]

mod deliveries;
mod faults;
mod faulty;
mod pace;
mod reports;
mod site;
mod slices;
mod slow_targets;
