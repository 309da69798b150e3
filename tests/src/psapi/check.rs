//! What the processing-status API checks of a report, in its order and with its words. Spec: reports.md §4.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use jiff::Timestamp;
use jsonschema::error::ValidationErrorKind;
use jsonschema::{Draft, Validator};
use serde_json::Value;

/// The files that the API loads, by name.
const FILES: [(&str, &str); 8] = [
    ("base.0.0.1", include_str!("schemas/base.0.0.1.schema.json")),
    ("base.1.0.0", include_str!("schemas/base.1.0.0.schema.json")),
    (
        "blob-file-copy.1.0.0",
        include_str!("schemas/blob-file-copy.1.0.0.schema.json"),
    ),
    (
        "metadata-transform.1.0.0",
        include_str!("schemas/metadata-transform.1.0.0.schema.json"),
    ),
    (
        "metadata-verify.1.0.0",
        include_str!("schemas/metadata-verify.1.0.0.schema.json"),
    ),
    (
        "upload-completed.1.0.0",
        include_str!("schemas/upload-completed.1.0.0.schema.json"),
    ),
    (
        "upload-started.1.0.0",
        include_str!("schemas/upload-started.1.0.0.schema.json"),
    ),
    (
        "upload-status.1.0.0",
        include_str!("schemas/upload-status.1.0.0.schema.json"),
    ),
];

static SCHEMAS: LazyLock<BTreeMap<&str, Validator>> = LazyLock::new(|| {
    let compiled = FILES.iter().map(|(name, text)| {
        let schema = serde_json::from_str(text).expect("a schema is JSON");
        let validator = jsonschema::options()
            .with_draft(Draft::Draft7)
            .should_validate_formats(true)
            .with_format("uuid", |text: &str| {
                text.len() == 36 && uuid::Uuid::try_parse(text).is_ok()
            })
            .build(&schema)
            .expect("a schema compiles");
        (*name, validator)
    });
    compiled.collect()
});

/// The checks 1 to 8 of a body: the report, or the reasons against it.
///
/// # Errors
/// The reasons of the first check that fails.
pub fn check_text(text: &str) -> Result<Value, Vec<String>> {
    let report = serde_json::from_str(text)
        .map_err(|_| vec!["Validation failed. The message is not in JSON format.".to_owned()])?;
    check(&report)?;
    Ok(report)
}

/// The checks 2 to 8.
///
/// # Errors
/// The reasons of the first check that fails.
pub fn check(report: &Value) -> Result<(), Vec<String>> {
    let version = report["report_schema_version"]
        .as_str()
        .filter(|version| !version.is_empty());
    let version = version.unwrap_or("0.0.1");
    let Some(base) = SCHEMAS.get(format!("base.{version}").as_str()) else {
        let reason = format!("Report rejected: Schema file not found for base schema version {version}");
        return Err(vec![reason]);
    };
    conforms(base, report)?;
    match report.get("content_type").and_then(Value::as_str) {
        None => return Err(vec!["Report rejected: `content_type` is missing".to_owned()]),
        Some(kind) if kind.contains("base64") => return Ok(()),
        Some("application/json") => {}
        Some(_) => {
            let reason = "Don't need to go further down the schema, since the mimetype is not json.";
            return Err(vec![reason.to_owned()]);
        }
    }
    let Some(content) = report.get("content").filter(|content| content.is_object()) else {
        return Err(vec!["Report rejected: `content` is not JSON or is missing.".to_owned()]);
    };
    let named = |field: &str| content[field].as_str().filter(|text| !text.is_empty());
    let (Some(name), Some(version)) = (named("content_schema_name"), named("content_schema_version")) else {
        let reason =
            "Report rejected: `content_schema_name` or `content_schema_version` is missing or empty.".to_owned();
        return Err(vec![reason]);
    };
    match SCHEMAS.get(format!("{name}.{version}").as_str()) {
        Some(schema) => conforms(schema, content),
        None => Err(vec![format!(
            "Report rejected: Content schema file not found for content schema name '{name}' and schema version \
             '{version}'."
        )]),
    }
}

fn conforms(schema: &Validator, value: &Value) -> Result<(), Vec<String>> {
    let reasons: Vec<String> = schema
        .iter_errors(value)
        .map(|error| {
            let place = error.instance_path().to_string().replace('/', ".");
            match error.kind() {
                ValidationErrorKind::Required { property } => {
                    let property = property.as_str().unwrap_or_default();
                    format!("${place}.{property}: is missing but it is required")
                }
                _ => format!("${place}: {error}"),
            }
        })
        .collect();
    if reasons.is_empty() { Ok(()) } else { Err(reasons) }
}

/// Whether the report can be read into the API's typed fields; one that cannot is gone without a word.
#[must_use]
pub fn is_readable(report: &Value) -> bool {
    let is_instant = |value: &Value| match value {
        Value::String(text) => text.ends_with('Z') && text.parse::<Timestamp>().is_ok(),
        Value::Number(number) => number.is_i64(),
        _ => false,
    };
    let stage = &report["stage_info"];
    is_instant(&report["dex_ingest_datetime"])
        && is_instant(&stage["start_processing_time"])
        && is_instant(&stage["end_processing_time"])
        && matches!(stage["status"].as_str(), Some("SUCCESS" | "FAILURE"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The examples of reports.md §3.
    const STATUS: &str = r#"{"report_schema_version":"1.0.0","upload_id":"3f0c9a52-6f0e-4f1b-9d3a-2b7c1e5a8d90","sender_id":"test sender","data_stream_id":"dextesting","data_stream_route":"testevent1","jurisdiction":"test-jurisdiction","dex_ingest_datetime":"2024-03-07T05:09:08.123456789Z","content_type":"application/json","disposition_type":"replace","stage_info":{"service":"UPLOAD API","action":"upload-status","version":"1.0.0_abc1234","status":"SUCCESS","issues":null,"start_processing_time":"2024-03-07T05:09:09.5Z","end_processing_time":"2024-03-07T05:09:09.5Z"},"content":{"content_schema_name":"upload-status","content_schema_version":"1.0.0","filename":"dex-smoke-test.csv","tguid":"3f0c9a52-6f0e-4f1b-9d3a-2b7c1e5a8d90","offset":4194304,"size":10485760}}"#;
    const VERIFY: &str = r#"{"report_schema_version":"1.0.0","upload_id":"3f0c9a52-6f0e-4f1b-9d3a-2b7c1e5a8d90","sender_id":"","data_stream_id":"dextesting","data_stream_route":"testevent1","jurisdiction":"","dex_ingest_datetime":"2024-03-07T05:09:08.123456789Z","content_type":"application/json","disposition_type":"add","stage_info":{"service":"UPLOAD API","action":"metadata-verify","version":"1.0.0_abc1234","status":"FAILURE","issues":[{"level":"ERROR","message":"validation failure\nfield sender_id was missing"}],"start_processing_time":"2024-03-07T05:09:08.1237Z","end_processing_time":"2024-03-07T05:09:08.1241Z"},"content":{"content_schema_name":"metadata-verify","content_schema_version":"1.0.0","filename":"dex-smoke-test.csv","metadata":{"data_stream_id":"dextesting"}}}"#;

    fn with(pointer: &str, value: Value) -> Value {
        let mut report: Value = serde_json::from_str(STATUS).unwrap();
        *report.pointer_mut(pointer).unwrap() = value;
        report
    }

    fn without(parent: &str, field: &str) -> Value {
        let mut report: Value = serde_json::from_str(STATUS).unwrap();
        report
            .pointer_mut(parent)
            .unwrap()
            .as_object_mut()
            .unwrap()
            .remove(field);
        report
    }

    fn reasons(report: &Value) -> Vec<String> {
        check(report).err().unwrap_or_default()
    }

    #[test]
    fn the_specifications_examples_are_accepted() {
        for text in [STATUS, VERIFY] {
            let report = check_text(text).unwrap();
            assert!(is_readable(&report));
        }
        let copy = json!({"content_schema_name":"blob-file-copy","content_schema_version":"1.0.0",
            "file_source_blob_url":"https://raw.example/raw/x","file_destination_blob_url":"","destination_name":"edav"});
        assert_eq!(reasons(&with("/content", copy)), Vec::<String>::new());
    }

    /// reports.md §4, in order, verbatim.
    #[test]
    fn each_check_refuses_in_its_own_words() {
        let text = check_text("{").unwrap_err();
        assert_eq!(text, ["Validation failed. The message is not in JSON format."]);
        for (report, reason) in [
            (
                with("/report_schema_version", json!("9.9.9")),
                "Report rejected: Schema file not found for base schema version 9.9.9",
            ),
            (without("", "sender_id"), "$.sender_id: is missing but it is required"),
            (
                without("/stage_info", "status"),
                "$.stage_info.status: is missing but it is required",
            ),
            (
                with("/content_type", json!("text/plain; json")),
                // Also a violation of the base schema's `else`, which comes first.
                "$.content: ",
            ),
            (
                without("", "content"),
                "Report rejected: `content` is not JSON or is missing.",
            ),
            (
                with("/content/content_schema_name", json!("")),
                "Report rejected: `content_schema_name` or `content_schema_version` is missing or empty.",
            ),
            (
                with("/content/content_schema_version", json!("7")),
                "Report rejected: Content schema file not found for content schema name 'upload-status' and schema \
                 version '7'.",
            ),
            (without("/content", "tguid"), "$.tguid: is missing but it is required"),
        ] {
            let found = reasons(&report);
            assert!(found.len() == 1 && found[0].starts_with(reason), "{reason}: {found:?}");
        }
        let mut plain = with("/content_type", json!("json"));
        let reason = "Don't need to go further down the schema, since the mimetype is not json.";
        assert_eq!(reasons(&plain), [reason]);
        plain["content_type"] = json!("text/base64");
        plain["content"] = json!("aGk=");
        assert_eq!(reasons(&plain), Vec::<String>::new());
    }

    #[test]
    fn formats_are_asserted_and_times_must_be_instants() {
        for pointer in ["/upload_id", "/content/tguid", "/dex_ingest_datetime"] {
            assert_eq!(reasons(&with(pointer, json!("nothing"))).len(), 1, "{pointer}");
        }
        // RFC 3339, and yet no instant for the API.
        let report = with("/dex_ingest_datetime", json!("2024-03-07T05:09:08+01:00"));
        assert_eq!(reasons(&report), Vec::<String>::new());
        assert!(!is_readable(&report));
    }
}
