//! Reports to the processing-status API: what happened at one stage of one upload. Spec: reports.md.
//!
//! ```text
//!   stage ──► Report ──► violations ──► outbox ──► bus ──► ReportWork ──► Sink (jsonl, graphql)
//! ```
//!
//! A report holds everything that goes out, its times and the version of its maker included: it is made once, and
//! every repetition of it is byte-identical.

mod content;
mod graphql;
mod jsonl;
mod sink;
mod validate;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use content::Content;
pub use graphql::GraphqlSink;
pub use jsonl::JsonlSink;
pub use sink::{Fate, Sink, SinkError, sinks};
pub use validate::violations;

use crate::build;
use crate::manifest::{INGEST_TIME, Manifest, Transform, file_name};
use crate::upload::{ResolvedTarget, UploadId};

/// What a report is about: `stage_info.action` and `content_schema_name`. Spec: reports.md §1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// The manifest was changed: keys added.
    MetadataTransform,
    /// The upload exists.
    UploadStarted,
    /// How many bytes are there. Replaces the one before it.
    UploadStatus,
    /// The upload is whole.
    UploadCompleted,
    /// A delivery is final.
    BlobFileCopy,
}

/// Something a person should know about a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issue {
    /// How bad it is.
    pub level: Level,
    /// What it is, in one text.
    pub message: String,
}

/// How bad an issue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    /// The stage failed.
    Error,
    /// It did not, but look.
    Warning,
}

/// How a stage ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// It did what it is for.
    Success,
    /// It did not.
    Failure,
}

/// What a report does to those before it, of the same upload and action. Spec: reports.md §1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Disposition {
    /// It stands beside them.
    Add,
    /// They are deleted.
    Replace,
}

/// When a stage was worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Its begin.
    pub start: Timestamp,
    /// Its end.
    pub end: Timestamp,
}

impl Times {
    /// A stage without duration.
    #[must_use]
    pub fn at(moment: Timestamp) -> Self {
        Self {
            start: moment,
            end: moment,
        }
    }
}

/// One report. Its fields stand in the order of reports.md §2, which is also their order in JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    report_schema_version: SchemaVersion,
    upload_id: UploadId,
    #[serde(flatten)]
    sender: Sender,
    content_type: ContentType,
    disposition_type: Disposition,
    stage_info: StageInfo,
    content: Content,
}

/// The version of all schemas, of the envelope and of the contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SchemaVersion {
    /// The only one that Ferry writes.
    #[serde(rename = "1.0.0")]
    V1,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum ContentType {
    #[serde(rename = "application/json")]
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Service {
    // Both services of ours: consumers filter on it.
    #[serde(rename = "UPLOAD API")]
    UploadApi,
}

/// Whose upload it is, and since when: on every report, on failures too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sender {
    sender_id: String,
    data_stream_id: String,
    data_stream_route: String,
    jurisdiction: String,
    dex_ingest_datetime: String,
}

impl Sender {
    /// From the keys of the manifest, or those of v1 where it has not been translated (manifests.md §8).
    fn of(manifest: &Manifest) -> Self {
        let value = |keys: &[&str]| {
            keys.iter()
                .find_map(|key| manifest.get(*key))
                .cloned()
                .unwrap_or_default()
        };
        Self {
            sender_id: value(&["sender_id", "meta_ext_source"]),
            data_stream_id: value(&["data_stream_id", "meta_destination_id"]),
            data_stream_route: value(&["data_stream_route", "meta_ext_event"]),
            jurisdiction: value(&["jurisdiction"]),
            dex_ingest_datetime: value(&[INGEST_TIME]),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct StageInfo {
    service: Service,
    action: Action,
    version: String,
    status: Status,
    issues: Option<Vec<Issue>>, // `null`, never an empty list
    start_processing_time: Timestamp,
    end_processing_time: Timestamp,
}

/// All take the manifest as it is stored, with the keys of [`crate::manifest::add_keys`].
impl Report {
    /// The manifest was changed at one `moment`: `transforms` says how.
    #[must_use]
    pub fn metadata_transform(
        id: UploadId,
        manifest: &Manifest,
        transforms: Vec<Transform>,
        moment: Timestamp,
    ) -> Self {
        let content = Content::MetadataTransform {
            content_schema_version: SchemaVersion::V1,
            transforms,
        };
        Self::new(id, manifest, content, Times::at(moment))
    }

    /// The upload exists.
    #[must_use]
    pub fn upload_started(id: UploadId, manifest: &Manifest, times: Times) -> Self {
        let content = Content::UploadStarted {
            content_schema_version: SchemaVersion::V1,
            status: Status::Success,
        };
        Self::new(id, manifest, content, times)
    }

    /// `offset` bytes of `length` are there; `None` while the length is deferred. In the final one the offset is the
    /// length, and the times end with the moment of completion.
    #[must_use]
    pub fn upload_status(id: UploadId, manifest: &Manifest, offset: u64, length: Option<u64>, times: Times) -> Self {
        let content = Content::UploadStatus {
            content_schema_version: SchemaVersion::V1,
            filename: file_name(manifest).unwrap_or_default().to_owned(),
            tguid: id,
            offset,
            size: length.unwrap_or(0),
        };
        Self::new(id, manifest, content, times)
    }

    /// The upload is whole.
    #[must_use]
    pub fn upload_completed(id: UploadId, manifest: &Manifest, times: Times) -> Self {
        let content = Content::UploadCompleted {
            content_schema_version: SchemaVersion::V1,
            status: Status::Success,
        };
        Self::new(id, manifest, content, times)
    }

    /// The delivery `to` a target is final. `source_url` is the raw object's, without credentials; `issues` are the
    /// causes of a failure, or warnings about a success.
    #[must_use]
    pub fn blob_file_copy(
        id: UploadId,
        manifest: &Manifest,
        source_url: String,
        to: &ResolvedTarget,
        status: Status,
        issues: Vec<Issue>,
        times: Times,
    ) -> Self {
        let content = Content::BlobFileCopy {
            content_schema_version: SchemaVersion::V1,
            file_source_blob_url: source_url,
            file_destination_blob_url: to.location.clone(),
            destination_name: to.target.clone(),
        };
        let mut report = Self::new(id, manifest, content, times);
        report.stage_info.status = status;
        report.stage_info.issues = (!issues.is_empty()).then_some(issues);
        report
    }

    fn new(id: UploadId, manifest: &Manifest, content: Content, times: Times) -> Self {
        Self {
            report_schema_version: SchemaVersion::V1,
            upload_id: id,
            sender: Sender::of(manifest),
            content_type: ContentType::Json,
            disposition_type: content.disposition(),
            stage_info: StageInfo {
                service: Service::UploadApi,
                action: content.action(),
                version: build::report_version(),
                status: Status::Success,
                issues: None,
                start_processing_time: times.start,
                end_processing_time: times.end,
            },
            content,
        }
    }

    /// The upload it is about.
    #[must_use]
    pub fn upload_id(&self) -> UploadId {
        self.upload_id
    }

    /// The stage it is about.
    #[must_use]
    pub fn action(&self) -> Action {
        self.content.action()
    }

    /// What it does to those before it, of the same upload and action.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        self.disposition_type
    }

    /// The report as it goes out: JSON in one line, without an end of line.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("plain structs with text keys always have a JSON form")
    }
}

#[cfg(test)]
mod tests;
