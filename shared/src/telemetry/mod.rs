//! Logs and metrics. Neither ever makes the service wait. Spec: faults.md 74; http.md §4; security.md 12.

mod derived;
mod escape;
mod logs;
mod metrics;
mod process;
mod sync_errors;

pub use logs::{AlreadySetUp, Chain, Logs, dropped_lines, init};
pub use metrics::{Metrics, TEXT_FORMAT};
pub use sync_errors::{count_sync_error, sync_errors};
