//! What a site shows to those who look from outside: `/info`, metrics, reports, folders, and its database.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use shared::bus::Bus;
use shared::checksum::Crc64;
use shared::records::Records;

use super::{LIMIT, Part, Site, TARGETS};
use crate::client::Upload;
use crate::contract::sqlite;
use crate::metrics::Metrics;
use crate::pattern::assert_same;
use crate::reports;
use crate::wait::eventually;

impl Site {
    /// What `part` tells on `/metrics`.
    ///
    /// # Panics
    /// It does not run, or does not answer.
    pub async fn metrics(&self, part: Part) -> Metrics {
        let url = self.metrics_url(part);
        let answer = self.client.as_ref().expect("a site that was started");
        let answer = answer
            .send("GET", &url, &[], "")
            .await
            .unwrap_or_else(|error| panic!("GET {url}: {error:?}"))
            .expect(200);
        Metrics::parse(&answer.text())
    }

    /// Its records and its bus, opened as by one more process of the site.
    ///
    /// # Panics
    /// They cannot be opened.
    #[must_use]
    pub fn database(&self) -> (Arc<dyn Records>, Arc<dyn Bus>) {
        sqlite::open(&self.seen(&self.data().join("ferry.db")))
    }

    /// The bytes of upload `id` in `target`, once `/info` says that they were delivered.
    ///
    /// # Panics
    /// They are not within the limit, or the delivery failed.
    pub async fn delivered(&self, target: &str, id: &str) -> Vec<u8> {
        let location = self.delivery(target, id).await;
        fs::read(self.seen(Path::new(&location)))
            .unwrap_or_else(|error| panic!("{location}, where {id} is said to be: {error}"))
    }

    /// Where upload `id` is in `target`, once `/info` says that it was delivered.
    ///
    /// # Panics
    /// It is not within the limit, or the delivery failed.
    pub async fn delivery(&self, target: &str, id: &str) -> String {
        let client = self.client.as_ref().expect("a site that was started");
        eventually(&format!("{id} is delivered to {target}"), LIMIT, || async {
            let info = client.info(id).await;
            let deliveries = info["deliveries"].as_array()?;
            let delivery = deliveries.iter().find(|delivery| delivery["name"] == target)?;
            assert_ne!(delivery["status"], "FAILURE", "{delivery}");
            let location = delivery["location"].as_str()?;
            (delivery["status"] == "SUCCESS").then(|| location.to_owned())
        })
        .await
    }

    /// Waits until `content` is in every target, once, and `/info` says that the upload is complete, with its checksum.
    ///
    /// # Panics
    /// It is not within the limit, or something else is there.
    pub async fn expect_delivered(&self, upload: &Upload, content: &[u8]) {
        for target in TARGETS {
            assert_same(target, &self.delivered(target, &upload.id).await, content);
            let files = self.files(target);
            let of_upload = files
                .iter()
                .filter(|path| path.display().to_string().contains(&upload.id));
            assert_eq!(of_upload.count(), 1, "{files:?}");
        }
        let info = upload.info().await;
        assert_eq!(info["upload_status"]["status"], "Complete", "{info}");
        assert_eq!(info["file_info"]["size_bytes"], content.len(), "{info}");
        let checksum = format!("crc64nvme:{}", Crc64::of(content).to_base64());
        assert_eq!(info["checksum"], checksum, "{info}");
    }

    /// All reports so far, in order.
    ///
    /// # Panics
    /// A line is no JSON: without kills none is ever torn.
    #[must_use]
    pub fn reports(&self) -> Vec<Value> {
        self.report_lines().iter().map(|line| reports::parse(line)).collect()
    }

    /// The reports of upload `id` once there are `count`.
    ///
    /// # Panics
    /// There are more, or not as many within the limit.
    pub async fn reports_of(&self, id: &str, count: usize) -> Vec<Value> {
        let reports = eventually(&format!("{count} reports of {id}"), LIMIT, || async {
            let mut reports = self.reports();
            reports.retain(|report| report["upload_id"] == id);
            (reports.len() >= count).then_some(reports)
        })
        .await;
        assert_eq!(reports.len(), count, "{reports:#?}");
        reports
    }

    /// The lines of `reports.jsonl` as they are.
    ///
    /// # Panics
    /// The file cannot be read.
    #[must_use]
    pub fn report_lines(&self) -> Vec<String> {
        let path = self.seen(&self.data().join("reports.jsonl"));
        match fs::read(&path) {
            // A line that is being written has no end yet.
            Ok(bytes) => String::from_utf8_lossy(&bytes)
                .split_inclusive('\n')
                .filter_map(|line| line.strip_suffix('\n'))
                .map(str::to_owned)
                .collect(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => panic!("read {}: {error}", path.display()),
        }
    }

    /// All files in the container `raw`, `dex` or `edav` that bear a final name.
    #[must_use]
    pub fn files(&self, container: &str) -> Vec<PathBuf> {
        let folder = self.seen(&self.data().join(container));
        let mut found = files_below(&folder);
        let own = folder.join(".ferry");
        found.retain(|path| !path.starts_with(&own));
        found
    }

    /// All files with unfinished data in the container.
    #[must_use]
    pub fn staged(&self, container: &str) -> Vec<PathBuf> {
        files_below(&self.seen(&self.data().join(container).join(".ferry/staged")))
    }
}

/// All files below `folder`, which may not be there.
///
/// # Panics
/// A folder cannot be read.
#[must_use]
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => panic!("list {}: {error}", folder.display()),
        };
        for entry in entries {
            let entry = entry.unwrap_or_else(|error| panic!("list {}: {error}", folder.display()));
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(_) => found.push(entry.path()),
                Err(error) => panic!("look at {}: {error}", entry.path().display()),
            }
        }
    }
    found.sort();
    found
}
