//! Which request goes where, on one page.

use std::sync::Arc;

use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, web};
use shared::admin;
use shared::upload::UploadId;
use tracing::Instrument as _;

use super::error::TusError;
use super::{VERSION, core, creation, download, headers, termination, trace};
use crate::drain::Drain;
use crate::uploads::Uploads;

/// Longest header block that is taken, in bytes.
const MAX_HEADERS: usize = 64 * 1024;

/// What the handlers work on.
#[derive(Clone, Debug)]
pub(crate) struct Tus {
    pub(crate) uploads: Arc<Uploads>,
    pub(crate) drain: Arc<Drain>,
}

/// What a path below the upload path names.
enum Resource {
    /// With the id of the upload that a POST makes: drawn first, for it names the trace of that request.
    Collection(UploadId),
    Upload(UploadId),
    Unknown,
}

/// Answers every request below the upload path, and those for which there is nothing at all. One function for all of them: the router's patterns cost more than
/// they say.
pub(crate) async fn serve(request: HttpRequest, body: web::Payload, tus: web::Data<Tus>) -> HttpResponse {
    let upload_path = &tus.uploads.config.upload_path;
    if !is_below(request.path(), upload_path) {
        return admin::not_found().await;
    }
    let resource = resource(request.path(), upload_path);
    let method = headers::method(&request);
    let (route, id) = match resource {
        Resource::Collection(new) => (Some(upload_path.clone()), Some(new)),
        Resource::Upload(id) => (Some(format!("{upload_path}{{id}}")), Some(id)),
        Resource::Unknown => (None, None),
    };
    let span = trace::span(&request, method.as_ref().ok(), route.as_deref(), id);
    let answer = async {
        let answer = match &method {
            Ok(method) => {
                tus.uploads.metrics.count_tus_request(method.as_str());
                dispatch(&request, method, resource, body, &tus).await
            }
            Err(error) => Err(error.clone_refusal()),
        };
        answer.unwrap_or_else(|error| error.response(&request, &tus.uploads.config))
    };
    let mut response = answer.instrument(span.clone()).await;
    trace::note_answer(&span, response.status());
    response.headers_mut().insert(
        HeaderName::from_static("tus-resumable"),
        HeaderValue::from_static(VERSION),
    );
    response
}

async fn dispatch(
    request: &HttpRequest,
    method: &Method,
    resource: Resource,
    body: web::Payload,
    tus: &Tus,
) -> Result<HttpResponse, TusError> {
    if headers::block_size(request) > MAX_HEADERS {
        return Err(TusError::HeadersTooLarge);
    }
    if !matches!(*method, Method::OPTIONS | Method::GET) {
        headers::expect_version(request)?;
    }
    if let Resource::Upload(id) = resource {
        trace::note_upload(id);
    }
    match (resource, method.as_str()) {
        (Resource::Unknown, _) => Err(TusError::UnknownPath),
        (_, "OPTIONS") => Ok(core::options(&tus.uploads.config)),
        (Resource::Collection(new), "POST") => creation::create(request, new, body, tus).await,
        (Resource::Collection(_), _) => Err(TusError::MethodNotAllowed("OPTIONS, POST")),
        (Resource::Upload(id), "HEAD") => core::head(id, &tus.uploads).await,
        (Resource::Upload(id), "PATCH") => core::append(request, id, body, tus).await,
        (Resource::Upload(id), "DELETE") => termination::terminate(id, &tus.uploads).await,
        (Resource::Upload(id), "GET") => download::get(id, &tus.uploads).await,
        (Resource::Upload(_), _) => Err(TusError::MethodNotAllowed("DELETE, GET, HEAD, OPTIONS, PATCH")),
    }
}

/// Both `/files` and `/files/` are the collection; what follows is an upload id or nothing of ours.
fn resource(path: &str, upload_path: &str) -> Resource {
    match path.strip_prefix(upload_path.trim_end_matches('/')) {
        Some("" | "/") => Resource::Collection(UploadId::random()),
        Some(rest) => match rest.strip_prefix('/').map(str::parse) {
            Some(Ok(id)) => Resource::Upload(id),
            _ => Resource::Unknown,
        },
        None => Resource::Unknown,
    }
}

/// Whether `path` is below the upload path, or is it.
fn is_below(path: &str, upload_path: &str) -> bool {
    path.strip_prefix(upload_path.trim_end_matches('/'))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// An answer of one line of text.
pub(super) fn text(status: StatusCode, line: &str) -> HttpResponse {
    HttpResponse::build(status)
        .insert_header((header::CONTENT_TYPE, "text/plain; charset=utf-8"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .body(format!("{line}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_collection_and_uuids_are_resources() {
        let id = UploadId::random();
        assert!(matches!(resource("/files", "/files/"), Resource::Collection(_)));
        assert!(matches!(resource("/files/", "/files/"), Resource::Collection(_)));
        assert!(matches!(resource(&format!("/files/{id}"), "/files/"), Resource::Upload(found) if found == id));
        for path in [
            "/filesx",
            "/files//",
            "/files/x",
            "/files/../etc",
            &format!("/files/{id}/"),
            "/other",
        ] {
            assert!(matches!(resource(path, "/files/"), Resource::Unknown), "{path}");
        }
        assert!(is_below("/files/../x", "/files/") && !is_below("/filesystem", "/files/"));
    }
}
