//! GET on a finished upload. TUS has no word on it; what keeps a browser from running a sender's file does.
//! Spec: tus.md, row GET; security.md 18.

use std::sync::Arc;

use actix_web::HttpResponse;
use actix_web::body::SizedStream;
use actix_web::http::header;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use shared::manifest;
use shared::upload::{UploadId, UploadRecord};

use super::error::TusError;
use crate::uploads::Uploads;

/// Media types that no browser runs.
const SAFE_TYPES: [&str; 8] = [
    "application/json",
    "application/pdf",
    "application/zip",
    "application/gzip",
    "image/png",
    "image/jpeg",
    "text/csv",
    "text/plain",
];
/// What RFC 8187 lets stand unencoded.
const EXTENDED_VALUE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// `GET /files/{id}`: the bytes.
///
/// # Errors
/// 404, 410; 409 not finished.
pub(super) async fn get(id: UploadId, uploads: &Arc<Uploads>) -> Result<HttpResponse, TusError> {
    let record = uploads.open(id).await?;
    let download = uploads.download(&record).await?;
    let etag = record
        .completed
        .as_ref()
        .map(|completed| format!("\"{:016x}\"", completed.crc64nvme.value()));
    let mut answer = HttpResponse::Ok();
    answer
        .insert_header((header::CONTENT_TYPE, media_type(&record)))
        .insert_header((header::CONTENT_DISPOSITION, disposition(&record)))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((header::CONTENT_SECURITY_POLICY, "sandbox"))
        .insert_header((header::CACHE_CONTROL, "private, no-cache"));
    if let Some(etag) = etag {
        answer.insert_header((header::ETAG, etag));
    }
    Ok(answer.body(SizedStream::new(download.size, Box::pin(download.bytes))))
}

/// The sender's type if it is one that nothing runs.
fn media_type(record: &UploadRecord) -> &'static str {
    let named = ["filetype", "content_type", "type"]
        .iter()
        .find_map(|key| record.manifest.get(*key));
    named
        .and_then(|named| SAFE_TYPES.iter().find(|safe| safe.eq_ignore_ascii_case(named)))
        .copied()
        .unwrap_or("application/octet-stream")
}

/// Always an attachment, its name in both forms of RFC 6266.
fn disposition(record: &UploadRecord) -> String {
    let name = manifest::file_name(&record.manifest).filter(|name| !name.is_empty());
    let name = name.map_or_else(|| record.id.to_string(), str::to_owned);
    let plain: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_graphic() && !matches!(c, '"' | '\\' | '%') || c == ' ' {
                c
            } else {
                '_'
            }
        })
        .collect();
    format!(
        "attachment; filename=\"{plain}\"; filename*=UTF-8''{}",
        utf8_percent_encode(&name, EXTENDED_VALUE)
    )
}
