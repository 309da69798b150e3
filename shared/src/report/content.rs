//! What each stage reports. Spec: reports.md §3.

use serde::{Deserialize, Serialize};

use super::{Action, Disposition, SchemaVersion, Status};
use crate::manifest::Transform;
use crate::upload::UploadId;

/// What one stage of an upload reports: a variant per stage, so that none borrows another's fields.
///
/// The names of variants and fields, and the fields' order, are those of the JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "content_schema_name", rename_all = "kebab-case")]
pub enum Content {
    /// The manifest was changed.
    MetadataTransform {
        /// Of this content's schema.
        content_schema_version: SchemaVersion,
        /// The changes, in the order made.
        transforms: Vec<Transform>,
    },
    /// The upload exists.
    UploadStarted {
        /// Of this content's schema.
        content_schema_version: SchemaVersion,
        /// Always success.
        status: Status,
    },
    /// Bytes stored so far and in all. Replaces the report before it.
    UploadStatus {
        /// Of this content's schema.
        content_schema_version: SchemaVersion,
        /// The file's name in the manifest, or empty.
        filename: String,
        /// The upload.
        tguid: UploadId,
        /// Bytes stored.
        offset: u64,
        /// Bytes in all; 0 while that is not known.
        size: u64,
    },
    /// The upload is whole.
    UploadCompleted {
        /// Of this content's schema.
        content_schema_version: SchemaVersion,
        /// Always success.
        status: Status,
    },
    /// One upload in one target, sent when final. URLs carry no credentials.
    BlobFileCopy {
        /// Of this content's schema.
        content_schema_version: SchemaVersion,
        /// The raw object.
        file_source_blob_url: String,
        /// The delivered object, or where it should have been.
        file_destination_blob_url: String,
        /// The target's name.
        destination_name: String,
    },
}

impl Content {
    /// The stage that this is about.
    #[must_use]
    pub fn action(&self) -> Action {
        match self {
            Self::MetadataTransform { .. } => Action::MetadataTransform,
            Self::UploadStarted { .. } => Action::UploadStarted,
            Self::UploadStatus { .. } => Action::UploadStatus,
            Self::UploadCompleted { .. } => Action::UploadCompleted,
            Self::BlobFileCopy { .. } => Action::BlobFileCopy,
        }
    }

    /// What a report with this content does to those before it.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::UploadStatus { .. } => Disposition::Replace,
            Self::MetadataTransform { .. }
            | Self::UploadStarted { .. }
            | Self::UploadCompleted { .. }
            | Self::BlobFileCopy { .. } => Disposition::Add,
        }
    }
}
