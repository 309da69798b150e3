//! Requests that no client library sends: paths, framing and sizes made to break a server. Each is refused by itself,
//! never with a 5xx, and nobody else notices. Spec: tus.md, "Names and limits"; security.md rows 10, 14, 16.

use std::fs;

use tests::pattern::{assert_same, pattern};
use tests::raw::{RawAnswer, exchange};
use tests::refusal::assert_raw_refused;
use tests::site::{Site, files_below};

const SECRET: &str = "not to be seen by anybody";

async fn request(site: &Site, text: String) -> Option<RawAnswer> {
    exchange(site.addr(), text.as_bytes()).await
}

/// The site serves the next one as if nothing had happened, and has nothing else.
async fn assert_well_and_alone(site: &Site) {
    let content = pattern(99, 10_000);
    let upload = site.client().create(content.len(), &[("filename", "next.bin")]).await;
    upload.append(0, &content).await;
    assert_same("the next one", &site.delivered("dex", &upload.id).await, &content);
    assert_same("the next one", &site.delivered("edav", &upload.id).await, &content);
    assert_eq!(site.files("raw").len(), 1, "{:?}", site.files("raw"));
    assert_eq!(site.files("dex").len(), 1, "{:?}", site.files("dex"));
    assert!(site.staged("raw").is_empty(), "{:?}", site.staged("raw"));
}

/// A path part that is no upload id is 404 at once, whatever it contains; no way leads out of the folder.
#[tokio::test]
async fn no_path_leads_to_anything_but_an_upload() {
    let site = Site::start().await;
    let beside = site.data().join("raw").join("beside.txt");
    fs::write(&beside, SECRET).expect("write a file that is no upload");
    let before = files_below(&site.data().join("raw"));
    let long = "a".repeat(7_000);
    let parts = [
        "../../etc/passwd",
        "../raw/beside.txt",
        "beside.txt",
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/etc/passwd",
        "%2e%2e%2f%2e%2e%2fferry.db",
        "..%5c..%5cetc%5cpasswd",
        "%252e%252e%252fetc%252fpasswd",
        "..%c0%af..%c0%afetc",
        "%u002e%u002e/etc",
        "/etc/passwd",
        "//etc/passwd",
        "./beside.txt",
        ".ferry/staged",
        "%00",
        "%0d%0aSet-Cookie:%20x=1",
        "3f0c9a52-6f0e-4f1b-9d3a-2b7c1e5a8d90/../beside.txt",
        "3f0c9a52-6f0e-4f1b-9d3a-2b7c1e5a8d90%00.txt",
        "3f0c9a52-6f0e-4f1b-9d3a-2b7c1e5a8d90/",
        "{3f0c9a52-6f0e-4f1b-9d3a-2b7c1e5a8d90}",
        "urn:uuid:3f0c9a52-6f0e-4f1b-9d3a-2b7c1e5a8d90",
        "00000000-0000-0000-0000-000000000000",
        &long,
    ];
    let addr = site.addr();
    for part in parts {
        for method in ["HEAD", "GET", "DELETE", "PATCH"] {
            let what = format!("{method} {part:.60}");
            let answer = request(
                &site,
                format!(
                    "{method} /files/{part} HTTP/1.1\r\nHost: {addr}\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n\
                     Content-Type: application/offset+octet-stream\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                ),
            )
            .await
            .unwrap_or_else(|| panic!("{what}: closed without an answer"));
            if method == "HEAD" {
                assert_eq!(answer.status, 404, "{what}");
                assert_eq!(answer.header("Tus-Resumable"), Some("1.0.0"), "{what}");
            } else {
                assert_raw_refused(&what, &answer, 404);
            }
            assert!(answer.header("Set-Cookie").is_none(), "{what}");
        }
        let info = request(
            &site,
            format!("GET /info/{part} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n"),
        )
        .await
        .unwrap_or_else(|| panic!("/info/{part:.60}: closed without an answer"));
        assert_eq!(info.status, 404, "/info/{part:.60}");
        assert!(
            !String::from_utf8_lossy(&info.body).contains(SECRET),
            "/info/{part:.60}"
        );
    }
    assert_eq!(
        files_below(&site.data().join("raw")),
        before,
        "nothing was removed or made"
    );
    fs::remove_file(&beside).expect("remove what the test made");
    assert_well_and_alone(&site).await;
}

/// What is too large or framed twice is answered with 4xx or closed, before it costs anything.
#[tokio::test]
async fn a_request_that_cannot_be_read_is_refused_and_closed() {
    let site = Site::start().await;
    let addr = site.addr();
    let tus = format!("Host: {addr}\r\nTus-Resumable: 1.0.0\r\n");
    let create = format!("POST /files/ HTTP/1.1\r\n{tus}");
    let body = "Content-Type: application/offset+octet-stream\r\n";
    let filler = "x".repeat(80 * 1024);
    let many: String = (0..5_000).map(|n| format!("X-{n}: y\r\n")).collect();
    let requests = [
        (
            "a header of 80 KiB",
            format!("{create}Upload-Length: 1\r\nX-Filler: {filler}\r\n\r\n"),
        ),
        (
            "metadata of 80 KiB",
            format!("{create}Upload-Length: 1\r\nUpload-Metadata: a {filler}\r\n\r\n"),
        ),
        ("5,000 headers", format!("{create}Upload-Length: 1\r\n{many}\r\n")),
        (
            "a path of 80 KiB",
            format!("HEAD /files/{filler} HTTP/1.1\r\n{tus}\r\n"),
        ),
        (
            "both framings",
            format!(
                "{create}Upload-Length: 5\r\n{body}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nhello"
            ),
        ),
        (
            "both framings, the other way round",
            format!(
                "{create}Upload-Length: 5\r\n{body}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nhello"
            ),
        ),
        (
            "two lengths",
            format!("{create}Upload-Length: 5\r\n{body}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
        ),
        (
            "a length below zero",
            format!("{create}Upload-Length: 5\r\n{body}Content-Length: -5\r\n\r\nhello"),
        ),
        (
            "a length of 2^64",
            format!("{create}Upload-Length: 5\r\n{body}Content-Length: 18446744073709551616\r\n\r\nhello"),
        ),
        (
            "a length with a sign",
            format!("{create}Upload-Length: 5\r\n{body}Content-Length: +5\r\n\r\nhello"),
        ),
        (
            "an unknown coding",
            format!("{create}Upload-Length: 5\r\n{body}Transfer-Encoding: xchunked\r\n\r\nhello"),
        ),
        (
            "a coding hidden by a tab",
            format!("{create}Upload-Length: 5\r\n{body}Transfer-Encoding:\tchunked, identity\r\n\r\nhello"),
        ),
        (
            "a chunk's size that is none",
            format!("{create}Upload-Length: 5\r\n{body}Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n"),
        ),
        (
            "a chunk's size of 2^64",
            format!(
                "{create}Upload-Length: 5\r\n{body}Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\nhello\r\n0\r\n\r\n"
            ),
        ),
        ("a space before the colon", format!("{create}Upload-Length : 5\r\n\r\n")),
        ("a folded header", format!("{create}Upload-Length:\r\n 5\r\n\r\n")),
        (
            "NUL in a header",
            format!("{create}Upload-Length: 5\r\nX-A: a\0b\r\n\r\n"),
        ),
        ("no request at all", "hello\r\n\r\n".to_owned()),
        ("another protocol", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
    ];
    for (what, text) in requests {
        // Closed without an answer is all right too: the rest of the request may be on its way.
        if let Some(answer) = request(&site, text).await {
            assert!((400..500).contains(&answer.status), "{what}: {answer:?}");
        }
        assert_eq!(site.files("raw"), Vec::<std::path::PathBuf>::new(), "{what}: an upload");
        assert!(site.files("dex").is_empty(), "{what}: a delivery");
    }
    assert_well(&site).await;
}

/// Some of the broken bodies above come after a head that is in order, so an upload may be open; it is not finished.
async fn assert_well(site: &Site) {
    let content = pattern(98, 10_000);
    let upload = site.client().create(content.len(), &[("filename", "next.bin")]).await;
    upload.append(0, &content).await;
    assert_same("the next one", &site.delivered("dex", &upload.id).await, &content);
    assert_eq!(site.files("raw").len(), 1, "{:?}", site.files("raw"));
}
