//! What the processing-status API keeps. Spec: reports.md §4, §5.

use std::time::Instant;

use serde_json::{Value, json};

use super::check::{check, is_readable};
use crate::reports::action;

/// A report as it arrived, whatever became of it.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// When.
    pub at: Instant,
    /// `create` or `replace`.
    pub action: String,
    /// The report.
    pub report: Value,
    /// The API has it, whatever it answered.
    pub accepted: bool,
}

/// Everything that arrived, and what is left of it.
#[derive(Debug, Default)]
pub struct Store {
    /// In the order of arrival.
    pub arrivals: Vec<Arrival>,
    /// What a reader of the API sees now.
    pub reports: Vec<Value>,
    /// Reasons of what was rejected.
    pub rejected: Vec<Vec<String>>,
    /// Accepted and then lost without a word.
    pub lost: usize,
}

impl Store {
    /// Does what `upsertReport` does, and answers its payload.
    pub fn upsert(&mut self, action_name: &str, report: Value) -> Value {
        let refused = |reason: String, issues: Value| {
            json!({"result": "FAILURE", "reason": reason, "uploadId": report["upload_id"], "reportId": null,
                   "issues": issues, "schemaFileNames": []})
        };
        if !matches!(action_name, "create" | "replace") {
            return refused(format!("Invalid action provided: {action_name}"), Value::Null);
        }
        if let Err(reasons) = check(&report) {
            let answer = refused("Validation failed".to_owned(), json!(reasons));
            self.arrived(action_name, report, false);
            self.rejected.push(reasons);
            return answer;
        }
        let id = uuid::Uuid::new_v4().to_string();
        let answer = json!({"result": "SUCCESS", "reason": null, "uploadId": report["upload_id"], "reportId": id,
                            "issues": null, "schemaFileNames": []});
        if !is_readable(&report) {
            self.lost += 1;
            self.arrived(action_name, report, false);
            return answer;
        }
        if action_name == "replace" {
            self.reports.retain(|old| !is_same_stage(old, &report));
        }
        self.reports.push(report.clone());
        self.arrived(action_name, report, true);
        answer
    }

    /// Notes one that got no further.
    pub fn arrived(&mut self, action: &str, report: Value, accepted: bool) {
        self.arrivals.push(Arrival {
            at: Instant::now(),
            action: action.to_owned(),
            report,
            accepted,
        });
    }

    /// Accepted reports of an upload, in the order of arrival, repeats and replaced ones too.
    #[must_use]
    pub fn accepted(&self, upload: &str) -> Vec<Value> {
        let accepted = self.arrivals.iter().filter(|arrival| arrival.accepted);
        let of_upload = accepted.filter(|arrival| arrival.report["upload_id"] == upload);
        of_upload.map(|arrival| arrival.report.clone()).collect()
    }

    /// How often a report arrived that had been accepted before.
    #[must_use]
    pub fn repeats(&self) -> usize {
        let mut seen = std::collections::HashSet::new();
        let accepted = self.arrivals.iter().filter(|arrival| arrival.accepted);
        accepted
            .filter(|arrival| !seen.insert(arrival.report.to_string()))
            .count()
    }

    /// The offsets of an upload's accepted statuses, in the order of arrival.
    #[must_use]
    pub fn offsets(&self, upload: &str) -> Vec<u64> {
        let reports = self.accepted(upload);
        let statuses = reports.iter().filter(|report| action(report) == "upload-status");
        statuses
            .filter_map(|report| report["content"]["offset"].as_u64())
            .collect()
    }
}

fn is_same_stage(one: &Value, other: &Value) -> bool {
    let key = |report: &Value| {
        let stage = &report["stage_info"];
        [
            report["upload_id"].clone(),
            stage["service"].clone(),
            stage["action"].clone(),
        ]
    };
    key(one) == key(other)
}
