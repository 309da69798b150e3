//! The protocol's request headers, parsed and checked before anything is done.

use actix_web::HttpRequest;
use actix_web::http::header::{self, HeaderMap};
use actix_web::http::{Method, StatusCode};
use shared::manifest::{Metadata, MetadataError};

use super::VERSION;
use super::error::TusError;

/// The media type of a PATCH's body.
const OFFSET_OCTET_STREAM: &str = "application/offset+octet-stream";

/// Headers of extensions that this server does not announce. What they ask for must not be passed over in silence:
/// a checksum that nobody compares, or a part that would be delivered as a file.
const UNSUPPORTED: [&str; 2] = ["upload-checksum", "upload-concat"];

/// The method that is meant: `X-HTTP-Method-Override` counts. Spec: tus 1.0.0, Core Protocol, Headers.
pub(super) fn method(request: &HttpRequest) -> Result<Method, TusError> {
    match single(request.headers(), "x-http-method-override")? {
        Some(name) => Method::from_bytes(name.trim().to_ascii_uppercase().as_bytes())
            .map_err(|_| TusError::BadHeader("X-HTTP-Method-Override is not a method")),
        None => Ok(request.method().clone()),
    }
}

/// Bytes of the header block, line ends included.
pub(super) fn block_size(request: &HttpRequest) -> usize {
    request
        .headers()
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 4)
        .sum()
}

/// `Tus-Resumable` must name the version that is spoken here.
pub(super) fn expect_version(request: &HttpRequest) -> Result<(), TusError> {
    match single(request.headers(), "tus-resumable") {
        Ok(Some(VERSION)) => Ok(()),
        _ => Err(TusError::Version),
    }
}

/// What a POST says. Spec: tus 1.0.0, Creation.
#[derive(Debug)]
pub(super) struct CreationHeaders {
    /// `Upload-Length`; `None` for `Upload-Defer-Length: 1`.
    pub(super) length: Option<u64>,
    /// `Upload-Metadata` as it came.
    pub(super) metadata: Option<String>,
    /// The same, parsed.
    pub(super) parsed: Metadata,
    /// The body that comes with it, if one does.
    pub(super) body: Option<BodyLength>,
}

/// How long a body says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyLength {
    /// `Content-Length`.
    Known(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

impl CreationHeaders {
    pub(super) fn parse(request: &HttpRequest) -> Result<Self, TusError> {
        let headers = request.headers();
        refuse_unsupported(headers)?;
        let length = number(
            headers,
            "upload-length",
            "Upload-Length must be a whole number below 2^63",
        )?;
        let deferred = match single(headers, "upload-defer-length")? {
            None => false,
            Some("1") => true,
            Some(_) => return Err(TusError::BadHeader("Upload-Defer-Length can only be 1")),
        };
        if length.is_some() == deferred {
            return Err(TusError::BadHeader(
                "exactly one of Upload-Length and Upload-Defer-Length: 1 is needed",
            ));
        }
        let metadata = single(headers, "upload-metadata")?;
        let parsed = Metadata::parse(metadata.unwrap_or_default().as_bytes()).map_err(|error| match error {
            MetadataError::HeaderTooLong => TusError::MetadataTooLong,
            error => TusError::BadMetadata(error.to_string()),
        })?;
        let body = match body_length(headers)? {
            BodyLength::Known(0) => None,
            body => {
                expect_offset_octet_stream(headers)?;
                Some(body)
            }
        };
        Ok(Self {
            length,
            metadata: metadata.map(str::to_owned),
            parsed,
            body,
        })
    }
}

/// What a PATCH says. Spec: tus 1.0.0, Core Protocol, PATCH.
#[derive(Debug)]
pub(super) struct AppendHeaders {
    /// `Upload-Offset`.
    pub(super) offset: u64,
    /// `Upload-Length`, once, of an upload that deferred it.
    pub(super) length: Option<u64>,
    /// The body.
    pub(super) body: BodyLength,
}

impl AppendHeaders {
    pub(super) fn parse(request: &HttpRequest) -> Result<Self, TusError> {
        let headers = request.headers();
        expect_offset_octet_stream(headers)?;
        refuse_unsupported(headers)?;
        let offset = number(
            headers,
            "upload-offset",
            "Upload-Offset must be a whole number below 2^63",
        )?
        .ok_or(TusError::BadHeader("Upload-Offset is missing"))?;
        let length = number(
            headers,
            "upload-length",
            "Upload-Length must be a whole number below 2^63",
        )?;
        Ok(Self {
            offset,
            length,
            body: body_length(headers)?,
        })
    }
}

fn body_length(headers: &HeaderMap) -> Result<BodyLength, TusError> {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        return Ok(BodyLength::Chunked);
    }
    let length = number(
        headers,
        "content-length",
        "Content-Length must be a whole number below 2^63",
    )?;
    Ok(BodyLength::Known(length.unwrap_or(0)))
}

fn expect_offset_octet_stream(headers: &HeaderMap) -> Result<(), TusError> {
    match single(headers, "content-type")? {
        Some(media_type) if media_type.trim().eq_ignore_ascii_case(OFFSET_OCTET_STREAM) => Ok(()),
        _ => Err(TusError::MediaType),
    }
}

fn refuse_unsupported(headers: &HeaderMap) -> Result<(), TusError> {
    match UNSUPPORTED.iter().find(|name| headers.contains_key(**name)) {
        Some(name) => Err(TusError::UnsupportedHeader(name)),
        None => Ok(()),
    }
}

/// A plain decimal number in u63: no sign, no space, no point.
fn number(headers: &HeaderMap, name: &str, expected: &'static str) -> Result<Option<u64>, TusError> {
    let Some(text) = single(headers, name)? else {
        return Ok(None);
    };
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text
        .parse::<u64>()
        .ok()
        .filter(|number| plain && i64::try_from(*number).is_ok());
    number.map(Some).ok_or(TusError::BadHeader(expected))
}

/// The one value of a header that may come once, in visible ASCII.
fn single<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h str>, TusError> {
    let mut values = headers.get_all(name);
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value
            .to_str()
            .map(Some)
            .map_err(|_| TusError::BadHeader("a header has characters beyond ASCII")),
        (Some(_), Some(_)) => Err(TusError::BadHeader("a header that may come once came twice")),
    }
}

/// Whether the answer to this request leaves a body unread on the connection.
pub(super) fn has_body(request: &HttpRequest) -> bool {
    !matches!(body_length(request.headers()), Ok(BodyLength::Known(0)))
}

/// Where the client reached this server, for absolute URLs.
pub(super) fn authority(request: &HttpRequest) -> String {
    let host = single(request.headers(), "host").ok().flatten();
    let plain = |host: &&str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]_".contains(&byte);
        !host.is_empty() && host.len() <= 255 && host.bytes().all(allowed)
    };
    host.filter(plain)
        .map_or_else(|| request.app_config().local_addr().to_string(), str::to_owned)
}

/// The status that refuses too large a header.
pub(super) const HEADER_TOO_LARGE: StatusCode = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn posted(headers: &[(&str, &str)]) -> Result<CreationHeaders, TusError> {
        let request = headers
            .iter()
            .fold(TestRequest::post(), |request, header| request.append_header(*header));
        CreationHeaders::parse(&request.to_http_request())
    }

    #[test]
    fn lengths_are_plain_numbers_in_u63_and_never_both_nor_neither() {
        assert_eq!(
            posted(&[("Upload-Length", "9223372036854775807")]).unwrap().length,
            Some(i64::MAX as u64)
        );
        assert_eq!(posted(&[("Upload-Defer-Length", "1")]).unwrap().length, None);
        for bad in [
            "-1",
            "+1",
            "1.0",
            "",
            " ",
            "0x10",
            "1e3",
            "9223372036854775808",
            "18446744073709551616",
            "١",
        ] {
            assert!(posted(&[("Upload-Length", bad)]).is_err(), "{bad:?}");
        }
        assert!(posted(&[]).is_err());
        assert!(posted(&[("Upload-Length", "1"), ("Upload-Defer-Length", "1")]).is_err());
        assert!(posted(&[("Upload-Defer-Length", "2")]).is_err());
        assert!(posted(&[("Upload-Length", "1"), ("Upload-Length", "1")]).is_err());
    }

    #[test]
    fn what_is_not_announced_is_refused_and_not_ignored() {
        for name in UNSUPPORTED {
            assert!(matches!(
                posted(&[("Upload-Length", "1"), (name, "partial")]),
                Err(TusError::UnsupportedHeader(refused)) if refused == name
            ));
        }
    }

    #[test]
    fn the_authority_is_the_host_header_unless_that_is_odd() {
        let request = |host: &str| TestRequest::get().insert_header(("Host", host)).to_http_request();
        assert_eq!(authority(&request("ferry.example:8443")), "ferry.example:8443");
        assert_eq!(authority(&request("[::1]:8080")), "[::1]:8080");
        for odd in ["a b", "x/../y", "a\"b", "u@h"] {
            assert_ne!(authority(&request(odd)), odd);
        }
    }
}
