//! Faults of receiving, made by a proxy between the sender and a real `ferry up`.
//! Spec: faults.md rows 1 to 8 and 25; core.md §3, §4; tus.md, "Answers".

mod cuts;
mod kills;
mod last_answer;
mod senders;
mod silence;
mod sizes;
mod takeover;

use tests::client::{Client, OFFSET_OCTETS, Upload};
use tests::proxy::Proxy;
use tests::site::{LIMIT, Part, Site};
use tests::wait::eventually;

const MIB: usize = 1024 * 1024;

/// A site, and the network before it.
struct Far {
    site: Site,
    proxy: Proxy,
}

impl Far {
    /// A site with this environment behind a network without faults.
    async fn start(env: &[(&str, &str)]) -> Self {
        let mut how = Site::build();
        for (name, value) in env {
            how = how.env(name, value);
        }
        let site = how.start().await;
        let proxy = Proxy::start(site.addr()).await;
        Self { site, proxy }
    }

    /// A client on the other side of the network.
    fn client(&self) -> Client {
        Client::new(&format!("http://{}/files/", self.proxy.addr()))
    }

    /// The counter `name` of the site.
    async fn count(&self, name: &str) -> u64 {
        self.site.metrics(Part::Up).await.count(name, &[])
    }
}

/// Waits until HEAD tells `expected`.
async fn until_stored(upload: &Upload, expected: usize) {
    let expected = length(expected);
    eventually(&format!("HEAD tells {expected}"), LIMIT, || async {
        (upload.offset().await == expected).then_some(())
    })
    .await;
}

/// Waits until so many uploads are being finished, as the gauge of row 2 tells; that is set by the sweeper.
async fn until_committing(far: &Far, expected: u64) {
    eventually(&format!("{expected} uploads are committing"), LIMIT, || async {
        let metrics = far.site.metrics(Part::Up).await;
        let labels = [("state", "committing")];
        let told = metrics.has("ferry_uploads", &labels) && metrics.count("ferry_uploads", &labels) == expected;
        told.then_some(())
    })
    .await;
}

/// Nothing, nowhere, says that the upload is complete.
async fn assert_unfinished(site: &Site, upload: &Upload) {
    let info = upload.info().await;
    assert_ne!(info["upload_status"]["status"], "Complete", "{info}");
    assert!(info["deliveries"].is_null() && info["checksum"].is_null(), "{info}");
    for container in ["raw", "dex", "edav"] {
        let files = site.files(container);
        let mut names = files.iter().map(|path| path.display().to_string());
        assert!(!names.any(|name| name.contains(&upload.id)), "{files:?}");
    }
    let reports = site.reports();
    let mut completed = reports
        .iter()
        .filter(|report| tests::reports::action(report) == "upload-completed");
    assert!(
        !completed.any(|report| report["upload_id"] == upload.id.as_str()),
        "{reports:#?}"
    );
}

fn length(len: usize) -> u64 {
    u64::try_from(len).expect("a length in memory")
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("an offset into memory")
}

/// A request by hand, and how long its head is.
struct Request {
    bytes: Vec<u8>,
    head: usize,
}

impl Request {
    /// `body` is what goes over the wire.
    fn new(line: &str, headers: &str, body: &[u8]) -> Self {
        let mut bytes = format!("{line} HTTP/1.1\r\nHost: far\r\nTus-Resumable: 1.0.0\r\n{headers}\r\n").into_bytes();
        let head = bytes.len();
        bytes.extend_from_slice(body);
        Self { bytes, head }
    }

    /// A PATCH at `offset`; `framing` is a header, and `body` framed so.
    fn patch(upload: &Upload, offset: usize, framing: &str, body: &[u8]) -> Self {
        let line = format!("PATCH {}", upload.path());
        let headers = format!("Content-Type: {OFFSET_OCTETS}\r\nUpload-Offset: {offset}\r\n{framing}\r\n");
        Self::new(&line, &headers, body)
    }

    /// The same of a body with its length.
    fn patch_of(upload: &Upload, offset: usize, body: &[u8]) -> Self {
        Self::patch(upload, offset, &format!("Content-Length: {}", body.len()), body)
    }

    /// As many bytes of a connection as the head and so many of the body's wire.
    fn until(&self, wire: usize) -> u64 {
        length(self.head + wire)
    }
}
