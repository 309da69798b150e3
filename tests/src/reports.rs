//! Reading reports as the processing-status API would. Spec: reports.md.

use serde_json::Value;

/// One line of `reports.jsonl`.
///
/// # Panics
/// It is no JSON.
#[must_use]
pub fn parse(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in the report {line:?}"))
}

/// What it is about.
///
/// # Panics
/// It does not say.
#[must_use]
pub fn action(report: &Value) -> &str {
    report["stage_info"]["action"]
        .as_str()
        .unwrap_or_else(|| panic!("no action in {report}"))
}

/// Which target it is about; only copy reports have one.
#[must_use]
pub fn destination(report: &Value) -> Option<&str> {
    report["content"]["destination_name"].as_str()
}
