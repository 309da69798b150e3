//! Creation, creation-with-upload and creation-defer-length. Spec: tus 1.0.0, Creation.

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use shared::upload::UploadId;

use super::body::receive;
use super::error::TusError;
use super::headers::{self, BodyLength, CreationHeaders};
use super::routes::Tus;
use super::trace;
use crate::uploads::{Ended, NewUpload, UploadError};

/// `POST /files/`: makes the upload `id`, and takes the bytes that come with it.
///
/// # Errors
/// 400 a header, or a name that no target can have; 413 too long; 507 no room. Nothing is left behind then. A body
/// that stops early leaves an upload that goes on from there.
pub(super) async fn create(
    request: &HttpRequest,
    id: UploadId,
    body: web::Payload,
    tus: &Tus,
) -> Result<HttpResponse, TusError> {
    let headers = CreationHeaders::parse(request)?;
    let ticket = tus.drain.admit().map_err(|_| TusError::Draining)?;
    let uploads = &tus.uploads;
    if let Some(BodyLength::Known(len)) = headers.body {
        match (headers.length, uploads.config.max_upload_size) {
            (Some(length), _) if len > length => return Err(UploadError::TooLong { offset: 0 }.into()),
            (None, Some(most)) if len > most => return Err(UploadError::TooLarge { most }.into()),
            _ => {}
        }
    }
    let manifest = headers.parsed.to_manifest();
    let record = uploads
        .create(NewUpload {
            id,
            length: headers.length,
            metadata: headers.metadata,
            manifest,
        })
        .await?;

    trace::note_upload(id);
    let location = format!(
        "http://{}{}{id}",
        headers::authority(request),
        uploads.config.upload_path
    );
    let mut created = HttpResponse::Created();
    created.insert_header((header::LOCATION, location.as_str()));
    match headers.body {
        None => {
            if record.length == Some(0) {
                uploads.finish_whatever_happens(id, None).await?;
            }
            return Ok(created.finish());
        }
        Some(BodyLength::Known(0)) if record.length == Some(0) => {
            uploads.finish_whatever_happens(id, None).await?;
            return Ok(created.insert_header(("Upload-Offset", 0)).finish());
        }
        Some(BodyLength::Known(_) | BodyLength::Chunked) => {}
    }
    let append = uploads.append(record, 0).await?;
    match receive(body, append, ticket, uploads).await {
        Ok(Ended::Incomplete { offset } | Ended::Complete { offset }) => {
            Ok(created.insert_header(("Upload-Offset", offset)).finish())
        }
        Err(error) => {
            // The upload exists: the client may go on with it although this body was not taken whole.
            let mut response = error.response(request, &uploads.config);
            if let Ok(location) = header::HeaderValue::from_str(&location) {
                response.headers_mut().insert(header::LOCATION, location);
            }
            Ok(response)
        }
    }
}
