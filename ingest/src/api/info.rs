//! `GET /info/{id}`: what is known of an upload and its deliveries, all from the shared record. Spec: http.md §1.

use actix_web::http::header::{self, ContentType};
use actix_web::{HttpResponse, web};
use jiff::Timestamp;
use serde::Serialize;
use shared::manifest::Manifest;
use shared::records::RecordError;
use shared::report::{Issue, Level};
use shared::telemetry::Chain;
use shared::upload::{DeliveryRecord, DeliveryState, Trouble, UploadId, UploadRecord};

use crate::tus::Tus;
use crate::uploads::{UploadError, Uploads};

/// The text of every refusal, in the words of the original.
const NOT_FOUND: &str = "error getting file manifest\n";

/// Answers `GET /info/{id}`.
pub(crate) async fn info(path: web::Path<String>, tus: web::Data<Tus>) -> HttpResponse {
    let Ok(id) = path.parse() else { return not_found() };
    match Info::of(id, &tus.uploads).await {
        Ok(info) => {
            let mut body = serde_json::to_string(&info).expect("plain structs with text keys always have a JSON form");
            body.push('\n');
            HttpResponse::Ok()
                .insert_header(ContentType::json())
                .insert_header((header::CACHE_CONTROL, "no-store"))
                .body(body)
        }
        Err(UploadError::NotFound(_) | UploadError::Gone(_) | UploadError::Records(RecordError::NotFound(_))) => {
            not_found()
        }
        Err(error) => {
            tracing::warn!(upload_id = %id, error = %Chain(&error), "info");
            HttpResponse::InternalServerError()
                .insert_header(ContentType::plaintext())
                .body(NOT_FOUND)
        }
    }
}

fn not_found() -> HttpResponse {
    HttpResponse::NotFound()
        .insert_header(ContentType::plaintext())
        .body(NOT_FOUND)
}

#[derive(Debug, Serialize)]
struct Info {
    manifest: Manifest,
    file_info: FileInfo,
    upload_status: UploadStatus,
    deliveries: Option<Vec<Delivery>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    checksum: Option<String>,
    /// What is wrong with the stored bytes of an upload that is not complete (faults.md 12, 14).
    #[serde(skip_serializing_if = "Option::is_none")]
    issues: Option<[Issue; 1]>,
}

#[derive(Debug, Serialize)]
struct FileInfo {
    updated_at: Timestamp,
    size_bytes: u64,
}

#[derive(Debug, Serialize)]
struct UploadStatus {
    status: &'static str,
    chunk_received_at: Timestamp,
}

/// One target's present state.
#[derive(Debug, Serialize)]
struct Delivery {
    status: &'static str,
    name: String,
    location: String,
    /// Empty until the delivery is final.
    delivered_at: String,
    issues: Option<Vec<Issue>>,
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_attempt_at: Option<Timestamp>,
}

impl Info {
    async fn of(id: UploadId, uploads: &Uploads) -> Result<Self, UploadError> {
        let mut record = uploads.open(id).await?;
        let (offset, received_at) = match uploads.received(&record).await {
            Err(UploadError::Damaged { stored, .. }) => {
                record.on_disk.trouble = Some(Trouble::Lost);
                (stored, record.changed_at)
            }
            received => received?,
        };
        let deliveries = uploads.records.deliveries(id).await?;
        let status = match &record.completed {
            Some(_) => "Complete",
            None if offset > 0 => "In Progress",
            None => "Initiated",
        };
        Ok(Self {
            file_info: FileInfo {
                updated_at: received_at,
                size_bytes: offset,
            },
            upload_status: UploadStatus {
                status,
                chunk_received_at: received_at,
            },
            deliveries: (!deliveries.is_empty()).then(|| deliveries.into_iter().map(Delivery::of).collect()),
            checksum: checksum(&record),
            issues: issues(&record),
            manifest: record.manifest,
        })
    }
}

fn checksum(record: &UploadRecord) -> Option<String> {
    record
        .completed
        .as_ref()
        .map(|completed| format!("crc64nvme:{}", completed.crc64nvme.to_base64()))
}

fn issues(record: &UploadRecord) -> Option<[Issue; 1]> {
    let message = match record.on_disk.trouble.filter(|_| record.completed.is_none())? {
        Trouble::Unreadable => "stored bytes cannot be read; tried again",
        Trouble::Lost => "stored bytes are missing or not those received; start again",
    };
    Some([Issue {
        level: Level::Error,
        message: message.to_owned(),
    }])
}

impl Delivery {
    fn of(record: DeliveryRecord) -> Self {
        let status = match record.state {
            DeliveryState::Succeeded => "SUCCESS",
            DeliveryState::Failed => "FAILURE",
            DeliveryState::Pending | DeliveryState::Parked if record.started_at.is_none() => "PENDING",
            DeliveryState::Pending | DeliveryState::Parked | DeliveryState::Claimed => "IN PROGRESS",
        };
        let is_final = record.state.is_final();
        let finished_at = record.finished_at.filter(|_| is_final);
        Self {
            status,
            name: record.to.target,
            location: if is_final { record.to.location } else { String::new() },
            delivered_at: finished_at.map(|at| at.to_string()).unwrap_or_default(),
            issues: (!record.issues.is_empty()).then_some(record.issues),
            attempts: record.attempts + u32::from(record.state == DeliveryState::Succeeded),
            next_attempt_at: record.next_attempt_at.filter(|_| !is_final),
        }
    }
}
