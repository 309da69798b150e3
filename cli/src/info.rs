//! Reading `/info/{id}`: what the server knows of an upload and its deliveries. Spec: http.md §1.

use std::collections::BTreeMap;

use reqwest::{Client, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use crate::http::{self, RequestError, STALL};

/// Keys of a manifest that name the file; the first present wins. Spec: manifests.md §2.
pub(crate) const FILE_NAME_KEYS: [&str; 4] = [
    "filename",
    "original_filename",
    "meta_ext_filename",
    "received_filename",
];

/// An answer of `/info`. Keys that are not used here, and keys to come, are passed over.
#[derive(Debug, Deserialize)]
pub(crate) struct Info {
    /// What the sender said of the file.
    #[serde(default)]
    pub(crate) manifest: BTreeMap<String, Value>,
    /// Missing while the store has no object.
    pub(crate) file_info: Option<FileInfo>,
    pub(crate) upload_status: UploadStatus,
    /// `None` until the upload is complete.
    pub(crate) deliveries: Option<Vec<Delivery>>,
    /// `crc64nvme:<base64>` once complete.
    pub(crate) checksum: Option<String>,
}

/// The stored bytes.
#[derive(Debug, Deserialize)]
pub(crate) struct FileInfo {
    pub(crate) size_bytes: u64,
    /// RFC 3339.
    pub(crate) updated_at: String,
}

/// How far the upload itself is.
#[derive(Debug, Deserialize)]
pub(crate) struct UploadStatus {
    /// `Initiated`, `In Progress` or `Complete`.
    pub(crate) status: String,
    /// RFC 3339.
    pub(crate) chunk_received_at: String,
}

/// One target's present state.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub(crate) struct Delivery {
    /// `PENDING`, `IN PROGRESS`, `SUCCESS` or `FAILURE`; the last two are final.
    pub(crate) status: String,
    /// The target.
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) location: String,
    /// RFC 3339, or empty.
    #[serde(default)]
    pub(crate) delivered_at: String,
    pub(crate) issues: Option<Vec<Issue>>,
    pub(crate) attempts: Option<u64>,
    /// RFC 3339.
    pub(crate) next_attempt_at: Option<String>,
}

/// What went wrong, or is worth knowing.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub(crate) struct Issue {
    pub(crate) level: String,
    pub(crate) message: String,
}

impl Delivery {
    /// The target has the file, verified.
    pub(crate) fn is_delivered(&self) -> bool {
        self.status == "SUCCESS"
    }

    /// Given up, until an operator has it tried again.
    pub(crate) fn has_failed(&self) -> bool {
        self.status == "FAILURE"
    }

    /// Its issues, none if there is no list.
    pub(crate) fn issues(&self) -> &[Issue] {
        self.issues.as_deref().unwrap_or_default()
    }
}

/// `/info` of an upload: the last segment of the collection's path becomes `info`, whatever a gateway put before it.
/// `None` if `upload` is no address of an upload.
pub(crate) fn url_of(upload: &Url) -> Option<Url> {
    let (collection, id) = upload.path().trim_end_matches('/').rsplit_once('/')?;
    let (prefix, _files) = collection.rsplit_once('/')?;
    if id.is_empty() {
        return None;
    }
    let path = format!("{prefix}/info/{id}");
    let mut info = upload.clone();
    info.set_path(&path);
    Some(info)
}

/// Asks `/info` at `url`; the text beside it is the answer as it came.
///
/// # Errors
/// No answer, one with another status than 200 (404: no such upload), or one that is not `/info`'s.
pub(crate) async fn read(http: &Client, url: &Url) -> Result<(Info, String), RequestError> {
    let operation = format!("read {url}");
    let response = http::answer(&operation, STALL, http.get(url.clone()).send()).await?;
    let response = http::expect(&operation, STALL, StatusCode::OK, response).await?;
    let text = match tokio::time::timeout(STALL, response.text()).await {
        Ok(text) => text.map_err(|source| http::network(&operation, source))?,
        Err(_elapsed) => {
            return Err(RequestError::Stalled {
                operation,
                after: STALL,
            });
        }
    };
    match serde_json::from_str(&text) {
        Ok(info) => Ok((info, text)),
        Err(error) => Err(RequestError::Protocol {
            operation,
            problem: format!("the answer is not what /info says: {error}"),
            again: false,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info_url(upload: &str) -> Option<String> {
        url_of(&upload.parse().unwrap()).map(String::from)
    }

    #[test]
    fn the_gateways_prefix_stays_when_files_becomes_info() {
        let cases = [
            ("http://h:1/files/an-id", "http://h:1/info/an-id"),
            (
                "https://gw.example/upload/files/an-id",
                "https://gw.example/upload/info/an-id",
            ),
            ("http://h/info/an-id", "http://h/info/an-id"),
            ("http://h/files/a%2Fb/", "http://h/info/a%2Fb"),
        ];
        for (upload, info) in cases {
            assert_eq!(info_url(upload).as_deref(), Some(info), "{upload}");
        }
        assert_eq!(info_url("http://h/an-id"), None);
        assert_eq!(info_url("http://h/"), None);
    }

    /// The examples of http.md §1, cut short.
    #[test]
    fn an_answer_is_read_at_every_stage() {
        let initiated: Info = serde_json::from_str(
            r#"{"manifest":{"received_filename":"a.csv"},"file_info":null,
                "upload_status":{"status":"Initiated","chunk_received_at":"2024-03-07T05:09:08.2Z"},"deliveries":null}"#,
        )
        .unwrap();
        assert!(initiated.deliveries.is_none() && initiated.file_info.is_none());

        let complete: Info = serde_json::from_str(
            r#"{"manifest":{},"file_info":{"updated_at":"2024-03-07T05:09:08.2Z","size_bytes":3},
                "upload_status":{"status":"Complete","chunk_received_at":"2024-03-07T05:09:08.2Z"},
                "deliveries":[{"status":"PENDING","name":"edav","location":"","delivered_at":"","issues":null,"attempts":0},
                              {"status":"FAILURE","name":"dex","location":"","delivered_at":"2024-03-07T06:30:00Z",
                               "issues":[{"level":"ERROR","message":"access denied"}]},
                              {"status":"SUCCESS","name":"x","location":"l","delivered_at":"t","issues":null}],
                "checksum":"crc64nvme:AAAAAAAAAAA=","key_of_a_later_release":1}"#,
        )
        .unwrap();
        let deliveries = complete.deliveries.unwrap();
        assert!(!deliveries[0].is_delivered() && !deliveries[0].has_failed());
        assert!(deliveries[1].has_failed());
        assert_eq!(deliveries[1].issues()[0].message, "access denied");
        assert!(deliveries[2].is_delivered());
    }
}
