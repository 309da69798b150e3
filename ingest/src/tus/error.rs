//! Why a request is refused, and the status that says so. Spec: tus.md, "Answers".

use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::{HttpRequest, HttpResponse};
use shared::config::IngestConfig;
use shared::failure::FailureClass;
use shared::store::Role;
use shared::telemetry::Chain;

use super::{VERSION, headers, routes};
use crate::uploads::UploadError;

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum TusError {
    #[error("Tus-Resumable must be {VERSION}")]
    Version,
    #[error("404 page not found")]
    UnknownPath,
    #[error("method not allowed")]
    MethodNotAllowed(&'static str),
    #[error("{0}")]
    BadHeader(&'static str),
    #[error("{0} is not supported by this server")]
    UnsupportedHeader(&'static str),
    #[error("{0}")]
    BadMetadata(String),
    #[error("Upload-Metadata is longer than 16 KiB")]
    MetadataTooLong,
    #[error("the header block is longer than 64 KiB")]
    HeadersTooLarge,
    #[error("Content-Type must be application/offset+octet-stream")]
    MediaType,
    #[error("the server is stopping; try again")]
    Draining,
    #[error("the body ended early; HEAD tells what came")]
    BodyCut,
    #[error("nothing, or too little, came for too long")]
    BodyStalled {
        /// Bytes that are kept.
        offset: u64,
    },
    #[error("another request went on with the upload")]
    TakenOver,
    #[error("the server is stopping; what came is kept")]
    Stopped {
        /// Bytes that are kept.
        offset: u64,
    },
    #[error(transparent)]
    Upload(#[from] UploadError),
}

impl TusError {
    /// The refusal of a request whose method could not be read, which has no other kind.
    pub(super) fn clone_refusal(&self) -> Self {
        match self {
            Self::BadHeader(reason) => Self::BadHeader(reason),
            _ => Self::BadHeader("the request's method is not clear"),
        }
    }

    #[deny(clippy::wildcard_enum_match_arm)] // a new variant must choose its status
    fn status(&self) -> StatusCode {
        match self {
            Self::Version => StatusCode::PRECONDITION_FAILED,
            Self::UnknownPath => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::BadHeader(_) | Self::UnsupportedHeader(_) | Self::BadMetadata(_) | Self::BodyCut => {
                StatusCode::BAD_REQUEST
            }
            Self::MetadataTooLong | Self::HeadersTooLarge => headers::HEADER_TOO_LARGE,
            Self::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            // A stalled body would be 408 in HTTP, but tus-js-client gives up at every 4xx other than 409 and 423: a
            // laptop that was asleep would lose its upload. What came is kept, so going on is always right.
            Self::Draining | Self::Stopped { .. } | Self::BodyStalled { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::TakenOver => StatusCode::CONFLICT,
            Self::Upload(error) => match error {
                UploadError::NotFound(_) => StatusCode::NOT_FOUND,
                UploadError::Gone(_) | UploadError::Damaged { .. } => StatusCode::GONE,
                UploadError::OffsetMismatch { .. } | UploadError::Unfinished(_) => StatusCode::CONFLICT,
                UploadError::Locked => StatusCode::LOCKED,
                UploadError::TooLong { .. } | UploadError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
                UploadError::Length(_) | UploadError::Manifest(_) => StatusCode::BAD_REQUEST,
                UploadError::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
                UploadError::Store(error) => match error.class(Role::Source) {
                    FailureClass::Transient | FailureClass::Denied | FailureClass::Configuration => {
                        StatusCode::SERVICE_UNAVAILABLE
                    }
                    FailureClass::Source | FailureClass::Integrity | FailureClass::Permanent => {
                        StatusCode::INTERNAL_SERVER_ERROR
                    }
                },
                UploadError::Records(_)
                | UploadError::StillFinishing(_)
                | UploadError::BrokenOff(_)
                | UploadError::Injected(_) => StatusCode::SERVICE_UNAVAILABLE,
                UploadError::Corrupt(_) => StatusCode::INTERNAL_SERVER_ERROR,
            },
        }
    }

    /// The bytes that are there, where the client can go on from them.
    fn offset(&self) -> Option<u64> {
        match self {
            Self::BodyStalled { offset } | Self::Stopped { offset } => Some(*offset),
            Self::Upload(UploadError::OffsetMismatch { present }) => Some(*present),
            Self::Upload(UploadError::TooLong { offset }) => Some(*offset),
            _ => None,
        }
    }

    /// One line of text, and what the client needs beside it. Errors of ours are logged here, where they end.
    pub(super) fn response(&self, request: &HttpRequest, config: &IngestConfig) -> HttpResponse {
        let status = self.status();
        if status.is_server_error() {
            tracing::warn!(path = request.path(), status = status.as_u16(), error = %Chain(self), "refused");
        }
        // GET on a path that is not there is answered in the words of the original, everywhere.
        let mut response = routes::text(status, &self.to_string());
        let headers = response.headers_mut();
        if let Some(offset) = self.offset() {
            headers.insert(HeaderName::from_static("upload-offset"), HeaderValue::from(offset));
        }
        match self {
            Self::Version => {
                headers.insert(
                    HeaderName::from_static("tus-version"),
                    HeaderValue::from_static(VERSION),
                );
            }
            Self::MethodNotAllowed(allowed) => {
                headers.insert(HeaderName::from_static("allow"), HeaderValue::from_static(allowed));
            }
            Self::Upload(UploadError::TooLarge { .. }) => {
                if let Some(most) = config.max_upload_size {
                    headers.insert(HeaderName::from_static("tus-max-size"), HeaderValue::from(most));
                }
            }
            Self::Draining | Self::Stopped { .. } | Self::BodyStalled { .. } => {
                headers.insert(HeaderName::from_static("retry-after"), HeaderValue::from_static("5"));
            }
            _ => {}
        }
        if self.closes() || headers::has_body(request) {
            // A body that is not read to its end leaves the connection out of step.
            response
                .head_mut()
                .set_connection_type(actix_http::ConnectionType::Close);
        }
        response
    }

    fn closes(&self) -> bool {
        matches!(
            self,
            Self::Stopped { .. } | Self::BodyStalled { .. } | Self::TakenOver | Self::BodyCut
        )
    }
}
