//! Everything that a sender may do wrong: refused with the right status in one line, and nothing is left of it.
//! Spec: tus.md, "Answers" and "Names and limits"; core.md §8; manifests.md §1, §5; security.md rows 10, 11, 14, 16.

use std::collections::BTreeSet;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Body;
use tests::client::{Answer, Client, OFFSET_OCTETS, Upload, encode};
use tests::pattern::{assert_same, pattern};
use tests::refusal::{assert_head_refused, assert_refused};
use tests::site::{Site, files_below};

/// No numbers of the protocol's: not decimal, signed, or beyond what an offset can be (2^63 and more).
const NO_NUMBERS: [&str; 14] = [
    "-1",
    "+1",
    "1.0",
    "1e3",
    "0x10",
    "ten",
    "1 0",
    "1,0",
    "",
    "١",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "99999999999999999999999999",
];

type Headers<'a> = &'a [(&'a str, &'a str)];

/// Everything below the data folder but database and reports, which change by themselves.
fn everything(site: &Site) -> BTreeSet<PathBuf> {
    ["raw", "dex", "edav"]
        .iter()
        .flat_map(|container| files_below(&site.data().join(container)))
        .collect()
}

/// The site serves the next one as if nothing had happened.
async fn assert_well(site: &Site) {
    let content = pattern(99, 10_000);
    let upload = site.client().create(content.len(), &[("filename", "next.bin")]).await;
    upload.append(0, &content).await;
    assert_same("the next one", &site.delivered("dex", &upload.id).await, &content);
}

async fn post(client: &Client, headers: &[(&str, &str)]) -> Answer {
    client.tus("POST", client.collection(), headers, "").await
}

#[tokio::test]
async fn another_version_of_the_protocol_is_refused_and_does_nothing() {
    let site = Site::start().await;
    let client = site.client();
    let upload = client.create(10, &[]).await;
    upload.append(0, b"1234").await;
    let before = everything(&site);
    let post = [("Upload-Length", "10")];
    let patch = [("Upload-Offset", "4"), ("Content-Type", OFFSET_OCTETS)];
    let requests: [(&str, &str, Headers<'_>); 4] = [
        ("POST", client.collection(), &post),
        ("HEAD", &upload.url, &[]),
        ("PATCH", &upload.url, &patch),
        ("DELETE", &upload.url, &[]),
    ];
    for version in [None, Some("0.2.2"), Some("1.0"), Some("1.0.1"), Some("2.0.0"), Some("")] {
        for (method, url, headers) in requests {
            let what = format!("{method} of version {version:?}");
            let mut headers = headers.to_vec();
            headers.extend(version.map(|version| ("Tus-Resumable", version)));
            let answer = client.send(method, url, &headers, "567890").await.expect("an answer");
            if method == "HEAD" {
                assert_head_refused(&what, &answer, 412);
            } else {
                assert_refused(&what, &answer, 412);
            }
            assert_eq!(answer.header("Tus-Version"), Some("1.0.0"), "{what}");
        }
    }
    assert_eq!(upload.offset().await, 4, "nothing was done");
    assert_eq!(everything(&site), before);
    assert_well(&site).await;
}

#[tokio::test]
async fn what_the_server_can_do_is_told_to_whoever_asks() {
    let site = Site::build().env("MAX_UPLOAD_SIZE", "1MiB").start().await;
    let client = site.client();
    let upload = client.create(10, &[]).await;
    for url in [client.collection(), &client.url("/files"), &upload.url] {
        let answer = client
            .send("OPTIONS", url, &[], "")
            .await
            .expect("an answer")
            .expect(204);
        assert_eq!(answer.header("Tus-Resumable"), Some("1.0.0"));
        assert_eq!(answer.header("Tus-Version"), Some("1.0.0"));
        assert_eq!(answer.header("Tus-Max-Size"), Some("1048576"));
        let extensions: Vec<&str> = answer.header("Tus-Extension").expect("extensions").split(',').collect();
        for extension in [
            "creation",
            "creation-with-upload",
            "creation-defer-length",
            "termination",
        ] {
            assert!(extensions.contains(&extension), "{extensions:?}");
        }
    }
}

#[tokio::test]
async fn a_creation_with_a_wrong_length_is_refused() {
    let site = Site::start().await;
    let client = site.client();
    let before = everything(&site);
    let cases: [Headers<'_>; 8] = [
        &[],
        &[("Upload-Length", "10"), ("Upload-Defer-Length", "1")],
        &[("Upload-Length", "10"), ("Upload-Defer-Length", "0")],
        &[("Upload-Length", "10"), ("Upload-Length", "11")],
        &[("Upload-Defer-Length", "0")],
        &[("Upload-Defer-Length", "2")],
        &[("Upload-Defer-Length", "true")],
        &[("Upload-Defer-Length", "")],
    ];
    for headers in cases {
        assert_refused(&format!("{headers:?}"), &post(&client, headers).await, 400);
    }
    for length in NO_NUMBERS {
        let answer = post(&client, &[("Upload-Length", length)]).await;
        assert_refused(&format!("length {length:?}"), &answer, 400);
    }
    assert_eq!(everything(&site), before);
    assert_well(&site).await;
}

#[tokio::test]
async fn what_is_larger_than_allowed_is_refused() {
    let site = Site::build().env("MAX_UPLOAD_SIZE", "100KiB").start().await;
    let client = site.client();
    let before = everything(&site);
    for length in ["102401", "9223372036854775807"] {
        let answer = post(&client, &[("Upload-Length", length)]).await;
        assert_refused(length, &answer, 413);
        assert_eq!(answer.header("Tus-Max-Size"), Some("102400"));
    }
    assert_eq!(everything(&site), before);
    let late = client.create_deferred(&[]).await;
    let answer = late.patch_with(0, &[("Upload-Length", "102401")], b"1234").await;
    assert_refused("told late", &answer, 413);
    assert_eq!(late.offset().await, 0, "nothing of it counts");
    let content = pattern(1, 102_400);
    let upload = client.create(content.len(), &[]).await;
    upload.append(0, &content).await;
    assert_same("exactly the limit", &site.delivered("dex", &upload.id).await, &content);
}

#[tokio::test]
async fn a_creation_with_wrong_metadata_is_refused() {
    let site = Site::start().await;
    let client = site.client();
    let before = everything(&site);
    let value = |len: usize| STANDARD.encode(vec![b'x'; len]);
    let many: Vec<String> = (0..129).map(|n| format!("k{n} eA==")).collect();
    let cases = [
        ("bad base64", "filename !!!!".to_owned()),
        ("base64 cut short", "filename eA=".to_owned()),
        ("base64 of the other alphabet", "filename _-_-".to_owned()),
        ("two values", "filename eA== eA==".to_owned()),
        ("an empty element", "a eA==,,b eA==".to_owned()),
        ("a key twice", "a eA==,b eA==,a eQ==".to_owned()),
        ("a key that is not ASCII", "schlüssel eA==".to_owned()),
        ("a key over 128 bytes", format!("{} eA==", "k".repeat(129))),
        ("a value over 4 KiB", format!("k {}", value(4097))),
        ("over 128 keys", many.join(",")),
    ];
    for (what, metadata) in cases {
        let answer = post(&client, &[("Upload-Length", "1"), ("Upload-Metadata", &metadata)]).await;
        assert_refused(what, &answer, 400);
    }
    // Five values that are each allowed, and together over 16 KiB.
    let whole: Vec<String> = (0..5).map(|n| format!("k{n} {}", value(4_000))).collect();
    let answer = post(
        &client,
        &[("Upload-Length", "1"), ("Upload-Metadata", &whole.join(","))],
    )
    .await;
    assert!(matches!(answer.status, 413 | 431), "over 16 KiB: {answer:?}");
    assert_refused("over 16 KiB", &answer, answer.status);
    assert_eq!(everything(&site), before);

    // One less of each is allowed.
    let allowed = [
        String::new(),
        format!("{} eA==", "k".repeat(128)),
        format!("k {}", value(4096)),
        many[..128].join(","),
        whole[..2].join(","),
    ];
    for metadata in allowed {
        let headers = [("Upload-Length", "1"), ("Upload-Metadata", metadata.as_str())];
        let upload = client.upload(&post(&client, &headers).await.expect(201));
        assert_eq!(
            upload.head().await.expect(200).header("Upload-Metadata"),
            Some(metadata.as_str())
        );
    }
    assert_well(&site).await;
}

/// A file name that cannot be a file's name is refused at creation, whichever key brings it, and not at delivery.
#[tokio::test]
async fn a_file_name_that_cannot_be_one_is_refused_at_creation() {
    let site = Site::start().await;
    let client = site.client();
    let before = everything(&site);
    let names = [
        "/",
        "/etc/passwd",
        "../../etc/passwd",
        "a/b",
        "a/",
        ".",
        "..",
        "a\0b",
        "a\rb",
        "a\nb",
        "a\r\nSet-Cookie: x=1",
        "\u{1b}[2J",
        "tab\there",
        "\u{7f}",
    ];
    for key in [
        "filename",
        "original_filename",
        "meta_ext_filename",
        "received_filename",
    ] {
        for name in names {
            let metadata = encode(&[("other", "x"), (key, name)]);
            let headers = [("Upload-Length", "1"), ("Upload-Metadata", metadata.as_str())];
            assert_refused(&format!("{key} {name:?}"), &post(&client, &headers).await, 400);
        }
    }
    // The one that is not used as the name is checked too.
    let metadata = encode(&[("filename", "good.txt"), ("received_filename", "../bad.txt")]);
    let headers = [("Upload-Length", "1"), ("Upload-Metadata", metadata.as_str())];
    assert_refused("the second name", &post(&client, &headers).await, 400);
    assert_eq!(everything(&site), before);
    assert_well(&site).await;
}

/// Odd names that are allowed are delivered, below the target's folder, as one file of the name's own extension.
#[tokio::test]
async fn an_odd_file_name_is_delivered_under_a_safe_name() {
    let site = Site::start().await;
    let client = site.client();
    let long = format!("{}.tar.gz", "a".repeat(1_000));
    let wide = format!("{}.csv", "\u{1F422}".repeat(250));
    let names = [
        (long.as_str(), ".gz"),
        (&wide, ".csv"),
        ("..\\..\\windows\\system.ini", ".ini"),
        ("%2e%2e%2f%2e%2e%2fetc%2fpasswd", ""),
        ("..%c0%af..%c0%afetc", ".%c0%afetc"),
        (".profile", ".profile"),
        (".ferry", ".ferry"),
        ("name.", "."),
        ("...", "."),
        (" ", ""),
        ("-rf", ""),
        ("CON.txt", ".txt"),
        ("$(reboot);`id`'\"<>|&*?{{.UploadId}}", ""),
        ("\u{202e}gnp.exe", ".exe"),
        ("ﾆﾎﾝ.Ａ", ".Ａ"),
        ("", ""),
    ];
    for (seed, (name, extension)) in (0..).zip(names) {
        let content = pattern(seed, 100);
        let upload = client.create(content.len(), &[("filename", name)]).await;
        upload.append(0, &content).await;
        for target in ["dex", "edav"] {
            let location = PathBuf::from(site.delivery(target, &upload.id).await);
            let base = site.data().join(target);
            let real = location.canonicalize().expect("the file is where it is said to be");
            let below = real
                .strip_prefix(base.canonicalize().expect("the base is there"))
                .unwrap_or_else(|_| panic!("{name:?} became {}, outside its base", location.display()));
            assert_eq!(
                below.components().count(),
                4,
                "year, month, day, name: {}",
                below.display()
            );
            let file = below
                .file_name()
                .and_then(|file| file.to_str())
                .expect("a name in UTF-8");
            assert!(file.len() <= 255, "{} bytes", file.len());
            assert!(file.ends_with(extension), "{name:?} became {file:?}");
            assert!(!file.contains('\\') && !file.chars().any(char::is_control), "{file:?}");
            assert_same(name, &std::fs::read(&location).expect("read it"), &content);
        }
    }
    for target in ["dex", "edav"] {
        assert_eq!(site.files(target).len(), names.len(), "each is a file of its own");
    }
}

#[tokio::test]
async fn what_is_no_upload_is_not_found() {
    let site = Site::start().await;
    let client = site.client();
    let patch = [("Upload-Offset", "0"), ("Content-Type", OFFSET_OCTETS)];
    let unknown = "3f0c9a52-6f0e-4f1b-9d3a-2b7c1e5a8d90";
    for id in [
        unknown,
        "x",
        "1",
        "3f0c9a526f0e4f1b9d3a2b7c1e5a8d90",
        "index.html",
        "%20",
    ] {
        let url = format!("{}{id}", client.collection());
        assert_head_refused(id, &client.tus("HEAD", &url, &[], "").await, 404);
        assert_refused(id, &client.tus("PATCH", &url, &patch, "x").await, 404);
        assert_refused(id, &client.tus("DELETE", &url, &[], "").await, 404);
        let url = client.url(&format!("/info/{id}"));
        let info = client.send("GET", &url, &[], "").await.expect("an answer").expect(404);
        assert_eq!(info.text(), "error getting file manifest\n", "{id}");
    }
    for path in ["/nothing", "/info", "/info/", "/file/", "/filesystem"] {
        let answer = client.send("GET", &client.url(path), &[], "").await.expect("an answer");
        assert_eq!(answer.expect(404).text(), "404 page not found\n", "{path}");
    }
}

#[tokio::test]
async fn a_method_that_is_not_for_this_path_is_told_which_are() {
    let site = Site::start().await;
    let client = site.client();
    let upload = client.create(10, &[]).await;
    let cases = [
        ("PUT", client.collection(), "POST"),
        ("PATCH", client.collection(), "POST"),
        ("DELETE", client.collection(), "POST"),
        ("PUT", upload.url.as_str(), "PATCH"),
        ("POST", &upload.url, "HEAD"),
        ("TRACE", &upload.url, "DELETE"),
        ("BREW", &upload.url, "PATCH"),
    ];
    for (method, url, allowed) in cases {
        let answer = client.tus(method, url, &[], "").await;
        assert_refused(&format!("{method} {url}"), &answer, 405);
        let allow = answer.header("Allow").expect("Allow");
        let methods: Vec<&str> = allow.split(',').map(str::trim).collect();
        assert!(methods.contains(&allowed), "{method} {url}: {allow}");
        assert!(!methods.contains(&method), "{method} {url}: {allow}");
    }
    assert_eq!(upload.offset().await, 0, "it is still there");
}

#[tokio::test]
async fn a_patch_with_wrong_headers_changes_nothing() {
    let site = Site::start().await;
    let client = site.client();
    let upload = client.create(10, &[]).await;
    upload.append(0, b"1234").await;
    for content_type in [None, Some("application/octet-stream"), Some("text/plain"), Some("")] {
        let mut headers = vec![("Upload-Offset", "4")];
        headers.extend(content_type.map(|value| ("Content-Type", value)));
        let answer = client.tus("PATCH", &upload.url, &headers, "56").await;
        assert_refused(&format!("type {content_type:?}"), &answer, 415);
    }
    let answer = client.tus("PATCH", &upload.url, &[("Content-Type", OFFSET_OCTETS)], "56");
    assert_refused("no offset", &answer.await, 400);
    for offset in NO_NUMBERS {
        let headers = [("Upload-Offset", offset), ("Content-Type", OFFSET_OCTETS)];
        let answer = client.tus("PATCH", &upload.url, &headers, "56").await;
        assert_refused(&format!("offset {offset:?}"), &answer, 400);
    }
    for offset in ["0", "3", "5", "10", "11", "9223372036854775807"] {
        let headers = [("Upload-Offset", offset), ("Content-Type", OFFSET_OCTETS)];
        let answer = client.tus("PATCH", &upload.url, &headers, "56").await;
        assert_refused(&format!("offset {offset}"), &answer, 409);
        assert_eq!(answer.number("Upload-Offset"), Some(4), "where it stands");
    }
    assert_eq!(upload.offset().await, 4);
    upload.append(4, b"567890").await;
    assert_same("after all", &site.delivered("dex", &upload.id).await, b"1234567890");
}

#[tokio::test]
async fn a_length_told_late_and_wrong_changes_nothing() {
    let site = Site::start().await;
    let upload = site.client().create_deferred(&[]).await;
    upload.append(0, b"1234").await;
    for length in NO_NUMBERS {
        let answer = upload.patch_with(4, &[("Upload-Length", length)], b"56").await;
        assert_refused(&format!("length {length:?}"), &answer, 400);
    }
    let answer = upload.patch_with(4, &[("Upload-Length", "3")], b"").await;
    assert!((400..500).contains(&answer.status), "below what is there: {answer:?}");
    assert_refused("below what is there", &answer, answer.status);
    let head = upload.head().await.expect(200);
    assert_eq!(head.number("Upload-Offset"), Some(4));
    assert_eq!(head.header("Upload-Defer-Length"), Some("1"), "still not told");
    let answer = upload.patch_with(4, &[("Upload-Length", "6")], b"56").await.expect(204);
    assert_eq!(answer.number("Upload-Offset"), Some(6));
    let answer = upload.patch_with(6, &[("Upload-Length", "9")], b"789").await;
    assert!((400..500).contains(&answer.status), "told twice: {answer:?}");
    assert_eq!(upload.head().await.expect(200).number("Upload-Length"), Some(6));
    assert_same("after all", &site.delivered("dex", &upload.id).await, b"123456");
}

/// Announced as too long: refused before a byte is read. In chunks: up to the length it counts, and is finished.
#[tokio::test]
async fn a_body_longer_than_the_rest_is_refused() {
    let site = Site::start().await;
    let client = site.client();
    let upload = client.create(10, &[]).await;
    upload.append(0, b"1234").await;
    assert_refused("announced", &upload.patch(4, b"5678901").await, 413);
    assert_eq!(upload.offset().await, 4, "nothing changed");

    let stream = futures_util::stream::iter(["567", "890", "123"].map(Ok::<_, std::io::Error>));
    let headers = [("Upload-Offset", "4"), ("Content-Type", OFFSET_OCTETS)];
    let answer = client
        .tus("PATCH", &upload.url, &headers, Body::wrap_stream(stream))
        .await;
    assert_refused("in chunks", &answer, 413);
    assert_eq!(answer.number("Upload-Offset"), Some(10));
    assert_eq!(upload.offset().await, 10, "it is complete");
    assert_same("in chunks", &site.delivered("dex", &upload.id).await, b"1234567890");
}

/// A body that does not fit the creation leaves no upload behind, or nothing that would ever be delivered.
#[tokio::test]
async fn a_creation_with_a_wrong_body_is_refused() {
    let site = Site::start().await;
    let client = site.client();
    let before = everything(&site);
    let headers = [("Upload-Length", "4"), ("Content-Type", OFFSET_OCTETS)];
    let answer = client.tus("POST", client.collection(), &headers, "12345").await;
    assert_refused("longer than its length", &answer, 413);
    assert_eq!(answer.header("Location"), None);
    let answer = client
        .tus("POST", client.collection(), &[("Content-Type", OFFSET_OCTETS)], "12345")
        .await;
    assert_refused("no length", &answer, 400);
    assert_eq!(everything(&site), before);
    assert_well(&site).await;
    assert_eq!(site.files("dex").len(), 1, "only the last one is delivered");
}

/// An upload that was deleted is gone, and stays gone after a restart.
#[tokio::test]
async fn an_upload_that_was_deleted_stays_gone() {
    let mut site = Site::start().await;
    let client = site.client();
    let upload: Upload = client.create(10, &[]).await;
    upload.append(0, b"1234").await;
    upload.delete().await.expect(204);
    for _ in 0..2 {
        let head = upload.head().await;
        assert!(matches!(head.status, 404 | 410), "{head:?}");
        assert_head_refused("HEAD", &head, head.status);
        for answer in [upload.patch(4, b"567890").await, upload.delete().await] {
            assert!(matches!(answer.status, 404 | 410), "{answer:?}");
            assert_refused("PATCH, DELETE", &answer, answer.status);
        }
        site.kill();
        site.restart().await;
    }
    assert!(site.files("dex").is_empty());
}
