//! The core protocol: OPTIONS, HEAD, PATCH. Spec: tus 1.0.0, Core Protocol.

use std::sync::Arc;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, web};
use shared::config::IngestConfig;
use shared::upload::{UploadId, UploadRecord, UploadState};

use super::body::receive;
use super::error::TusError;
use super::headers::{AppendHeaders, BodyLength};
use super::routes::Tus;
use super::{EXTENSIONS, VERSION};
use crate::uploads::{Ended, UploadError, Uploads};

/// `OPTIONS`: what this server can do. Spec: Core Protocol, OPTIONS.
pub(super) fn options(config: &IngestConfig) -> HttpResponse {
    let mut answer = HttpResponse::NoContent();
    answer
        .insert_header(("Tus-Version", VERSION))
        .insert_header(("Tus-Extension", EXTENSIONS));
    if let Some(most) = config.max_upload_size {
        answer.insert_header(("Tus-Max-Size", most));
    }
    answer.finish()
}

/// `HEAD /files/{id}`: how far the upload is. Spec: Core Protocol, HEAD.
///
/// # Errors
/// 404, 410.
pub(super) async fn head(id: UploadId, uploads: &Arc<Uploads>) -> Result<HttpResponse, TusError> {
    let record = uploads.open(id).await?;
    let offset = uploads.offset(&record).await?;
    let mut answer = HttpResponse::Ok();
    describe(&mut answer, &record);
    answer
        .insert_header(("Upload-Offset", offset))
        .insert_header((header::CACHE_CONTROL, "no-store"));
    Ok(answer.finish())
}

/// What is known of an upload beside its offset.
fn describe(answer: &mut HttpResponseBuilder, record: &UploadRecord) {
    match record.length {
        Some(length) => answer.insert_header(("Upload-Length", length)),
        None => answer.insert_header(("Upload-Defer-Length", "1")),
    };
    if let Some(metadata) = &record.metadata {
        answer.insert_header(("Upload-Metadata", metadata.as_str()));
    }
}

/// `PATCH /files/{id}`: appends the body at `Upload-Offset`. Spec: Core Protocol, PATCH.
///
/// # Errors
/// 404, 410; 409 the offset is not ours; 413 more than the rest; 423 another process is writing; 503 stopping. A body
/// that stops early loses nothing: what arrived is kept, and HEAD tells the client where to go on.
pub(super) async fn append(
    request: &HttpRequest,
    id: UploadId,
    body: web::Payload,
    tus: &Tus,
) -> Result<HttpResponse, TusError> {
    let headers = AppendHeaders::parse(request)?;
    let ticket = tus.drain.admit().map_err(|_| TusError::Draining)?;
    let uploads = &tus.uploads;
    let record = uploads.open(id).await?;
    if record.state != UploadState::Receiving {
        return repeat_last(&headers, &record, uploads).await;
    }
    check_room(&headers, &record, uploads).await?;
    // One writer per upload, released on drop.
    let mut append = match uploads.append(record, headers.offset).await {
        Err(UploadError::OffsetMismatch { present }) if present == headers.offset => {
            // It became whole while its place was waited for.
            let record = uploads.open(id).await?;
            return repeat_last(&headers, &record, uploads).await;
        }
        append => append?,
    };
    if let Some(length) = headers.length {
        append.declare_length(length).await?;
        check_room(&headers, append.record(), uploads).await?;
    }
    let ended = receive(body, append, ticket, uploads).await?; // stored before it is acknowledged
    Ok(appended(ended))
}

/// A client that did not get the answer to its last PATCH sends it again: it gets 204 when everything is recorded.
async fn repeat_last(
    headers: &AppendHeaders,
    record: &UploadRecord,
    uploads: &Arc<Uploads>,
) -> Result<HttpResponse, TusError> {
    match uploads.finish_whatever_happens(record.id, None).await {
        Err(UploadError::Unfinished(_)) => {} // a loss of power took some of it
        finished => finished?,
    }
    let record = uploads.open(record.id).await?;
    let present = uploads.offset(&record).await?;
    if headers.offset != present || record.length != Some(present) {
        return Err(UploadError::OffsetMismatch { present }.into());
    }
    match headers.length {
        Some(length) if length != present => {
            return Err(UploadError::Length(format!("the upload's length was declared as {present} before")).into());
        }
        _ => {}
    }
    if headers.body != BodyLength::Known(0) {
        return Err(UploadError::TooLong { offset: present }.into());
    }
    Ok(appended(Ended::Complete { offset: present }))
}

/// A body that says that it is too long is refused before a byte is read, and changes nothing.
async fn check_room(headers: &AppendHeaders, record: &UploadRecord, uploads: &Arc<Uploads>) -> Result<(), TusError> {
    let BodyLength::Known(len) = headers.body else {
        return Ok(());
    };
    let end = headers.offset.saturating_add(len);
    let (length, limit) = (record.length.or(headers.length), uploads.config.max_upload_size);
    let Some(most) = length.or(limit).filter(|most| end > *most) else {
        return Ok(());
    };
    let present = uploads.offset(record).await?;
    Err(if present != headers.offset {
        UploadError::OffsetMismatch { present }.into()
    } else if length.is_none() {
        UploadError::TooLarge { most }.into()
    } else {
        UploadError::TooLong { offset: present }.into()
    })
}

fn appended(ended: Ended) -> HttpResponse {
    let (Ended::Incomplete { offset } | Ended::Complete { offset }) = ended;
    HttpResponse::NoContent()
        .insert_header(("Upload-Offset", offset))
        .finish()
}
