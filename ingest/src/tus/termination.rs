//! Termination. Spec: tus 1.0.0, Termination.

use std::sync::Arc;

use actix_web::HttpResponse;
use shared::upload::UploadId;

use super::error::TusError;
use crate::uploads::Uploads;

/// `DELETE /files/{id}`: the upload's URL is gone. What was announced is delivered all the same.
///
/// # Errors
/// 404, 410; 423 another process is writing it.
pub(super) async fn terminate(id: UploadId, uploads: &Arc<Uploads>) -> Result<HttpResponse, TusError> {
    let record = uploads.open(id).await?;
    uploads.terminate(record).await?;
    Ok(HttpResponse::NoContent().finish())
}
