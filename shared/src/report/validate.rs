//! Checks a report against the API's own schemas before it leaves. What is not valid there is lost without a word,
//! so it is a bug of ours and must be seen here. Spec: reports.md §4.

use std::sync::LazyLock;

use jiff::Timestamp;
use jsonschema::{Draft, Validator};
use serde_json::Value;

use super::{Action, Report};

/// What the API would hold against `report`; nothing for a good one. Spec: reports.md §4.
///
/// These are the checks 3 and 8, and that times are instants in UTC. The others (1, 2, 4–7: JSON, known schemas,
/// media type, content present and named) hold by the types of [`Report`]. No text repeats a value of the manifest.
#[must_use]
pub fn violations(report: &Report) -> Vec<String> {
    let json = serde_json::to_value(report).expect("plain structs with text keys always have a JSON form");
    let mut found = SCHEMAS.base.violations("$", &json);
    found.extend(
        SCHEMAS
            .content(report.action())
            .violations("$.content", &json["content"]),
    );
    // The schema's `date-time` allows other offsets; the fields that it is read into afterwards do not. The other
    // two times are `Timestamp`s, which print as UTC.
    let ingested = &report.sender.dex_ingest_datetime;
    if !(ingested.ends_with('Z') && ingested.parse::<Timestamp>().is_ok()) {
        found.push("$.dex_ingest_datetime: is no instant in UTC".to_owned());
    }
    // A report that came over the bus could contradict itself.
    if report.stage_info.action != report.content.action() {
        found.push("$.stage_info.action: is not the content_schema_name".to_owned());
    }
    if report.disposition_type != report.content.disposition() {
        found.push("$.disposition_type: is not that of the action".to_owned());
    }
    found
}

static SCHEMAS: LazyLock<Schemas> = LazyLock::new(|| Schemas {
    base: Schema::compile(include_str!("schemas/base.1.0.0.schema.json")),
    metadata_transform: Schema::compile(include_str!("schemas/metadata-transform.1.0.0.schema.json")),
    upload_started: Schema::compile(include_str!("schemas/upload-started.1.0.0.schema.json")),
    upload_status: Schema::compile(include_str!("schemas/upload-status.1.0.0.schema.json")),
    upload_completed: Schema::compile(include_str!("schemas/upload-completed.1.0.0.schema.json")),
    blob_file_copy: Schema::compile(include_str!("schemas/blob-file-copy.1.0.0.schema.json")),
});

struct Schemas {
    base: Schema,
    metadata_transform: Schema,
    upload_started: Schema,
    upload_status: Schema,
    upload_completed: Schema,
    blob_file_copy: Schema,
}

impl Schemas {
    fn content(&self, action: Action) -> &Schema {
        match action {
            Action::MetadataTransform => &self.metadata_transform,
            Action::UploadStarted => &self.upload_started,
            Action::UploadStatus => &self.upload_status,
            Action::UploadCompleted => &self.upload_completed,
            Action::BlobFileCopy => &self.blob_file_copy,
        }
    }
}

struct Schema(Validator);

impl Schema {
    fn compile(text: &str) -> Self {
        let schema = serde_json::from_str(text).expect("the schemas are part of the program, and a test reads each");
        let validator = jsonschema::options()
            .with_draft(Draft::Draft7) // they name their draft by an address that is not the draft's own
            .should_validate_formats(true)
            .with_format("uuid", is_uuid) // not a format of draft 7
            .build(&schema)
            .expect("the schemas are part of the program, and a test compiles each");
        Self(validator)
    }

    /// One line per violation: where below `root`, and what, without the value.
    fn violations(&self, root: &str, json: &Value) -> Vec<String> {
        self.0
            .iter_errors(json)
            .map(|error| {
                let place = error.instance_path().to_string().replace('/', ".");
                format!("{root}{place}: {}", error.masked_with("the value"))
            })
            .collect()
    }
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36 && uuid::Uuid::try_parse(text).is_ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::report::tests::one_of_each;

    #[test]
    fn our_reports_are_valid() {
        for report in one_of_each() {
            assert_eq!(violations(&report), Vec::<String>::new(), "{}", report.to_json());
        }
    }

    #[test]
    fn an_ingest_time_that_the_api_would_not_read_is_found() {
        for bad in [
            "",
            "yesterday",
            "2024-03-07",
            "2024-03-07T05:09:08",
            "2024-03-07T05:09:08+00:00",
            "2024-03-07 05:09:08Z",
        ] {
            let mut report = one_of_each().remove(0);
            report.sender.dex_ingest_datetime = bad.to_owned();
            let found = violations(&report);
            assert!(
                !found.is_empty() && found.iter().all(|v| v.starts_with("$.dex_ingest_datetime: ")),
                "{bad:?} gave {found:?}"
            );
        }
    }

    #[test]
    fn a_report_that_contradicts_itself_is_found() {
        let report = one_of_each().remove(0);
        let mut other_action = report.clone();
        other_action.stage_info.action = Action::UploadStarted;
        assert_eq!(
            violations(&other_action),
            ["$.stage_info.action: is not the content_schema_name"]
        );
        let mut replacing = report;
        replacing.disposition_type = crate::report::Disposition::Replace;
        assert_eq!(
            violations(&replacing),
            ["$.disposition_type: is not that of the action"]
        );
    }

    #[test]
    fn every_required_field_and_format_of_the_envelope_is_asserted() {
        let good = serde_json::to_value(one_of_each().remove(2)).unwrap();
        let base = &SCHEMAS.base;
        assert!(base.violations("$", &good).is_empty());
        for field in [
            "report_schema_version",
            "upload_id",
            "data_stream_id",
            "data_stream_route",
            "dex_ingest_datetime",
            "sender_id",
            "stage_info",
            "content_type",
        ] {
            let mut bad = good.clone();
            bad.as_object_mut().unwrap().remove(field);
            assert_eq!(base.violations("$", &bad).len(), 1, "{field}");
        }
        for (pointer, value) in [
            ("/upload_id", json!("no-uuid")),
            ("/upload_id", json!("3f0c9a526f0e4f1b9d3a2b7c1e5a8d90")),
            ("/stage_info/start_processing_time", json!("2024-03-07")),
            ("/stage_info/end_processing_time", json!("")),
            ("/stage_info/status", json!("FINE")),
            ("/stage_info/issues", json!("none")),
            ("/sender_id", json!(1)),
        ] {
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).unwrap() = value;
            let found = base.violations("$", &bad);
            let place = format!("${}: ", pointer.replace('/', "."));
            assert!(found.len() == 1 && found[0].starts_with(&place), "{found:?}");
        }
    }

    #[test]
    fn every_content_is_checked_by_its_own_schema_and_no_value_is_repeated() {
        for report in one_of_each() {
            let schema = SCHEMAS.content(report.action());
            assert_eq!(schema.violations("$.content", &json!({})).len().min(1), 1);
        }
        let mut status = serde_json::to_value(one_of_each().remove(2)).unwrap();
        status["content"]["tguid"] = json!("hush");
        status["content"]["offset"] = json!("hush");
        let found = SCHEMAS.upload_status.violations("$.content", &status["content"]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().all(|violation| !violation.contains("hush")), "{found:?}");
    }
}
