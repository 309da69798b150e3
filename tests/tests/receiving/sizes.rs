//! Row 25: uploads of zero bytes, of exactly a buffer (1 MiB) or a part (8 MiB), and of one byte more or less.

use futures_util::future::join_all;
use tests::client::{Client, OFFSET_OCTETS, Upload};
use tests::pattern::pattern;

use super::{Far, MIB, length};

/// Row 25: complete, right checksum, delivered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sizes_at_the_borders_of_buffers_and_parts_arrive_whole() {
    let far = Far::start(&[]).await;
    let client = far.client();
    let sizes = [1, MIB - 1, MIB, MIB + 1, 2 * MIB, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1];
    let sent = sizes.map(|size| {
        let client = client.clone();
        async move {
            let content = pattern(length(size), size);
            let at_once = client.create(size, &[("filename", "at once.bin")]).await;
            at_once.append(0, &content).await;
            // Up to the border, and the rest on its own.
            let border = if size > 8 * MIB { 8 * MIB } else { MIB };
            let in_two = client.create(size, &[("filename", "in two.bin")]).await;
            in_two.append_in_pieces(&content, border).await;
            // The last byte alone.
            let last = client.create(size, &[("filename", "last.bin")]).await;
            let offset = last.append(0, &content[..size - 1]).await;
            last.append(offset, &content[size - 1..]).await;
            (content, [at_once, in_two, last])
        }
    });
    for (content, uploads) in join_all(sent).await {
        for upload in uploads {
            assert_eq!(upload.offset().await, length(content.len()));
            far.site.expect_delivered(&upload, &content).await;
        }
    }
    assert_eq!(far.count("ferry_uploads_finished_total").await, 3 * length(sizes.len()));
}

/// Row 25: an upload of zero bytes is complete when that is known, however it is told, and is delivered like any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_of_zero_bytes_are_complete_and_delivered() {
    let far = Far::start(&[]).await;
    let client = far.client();
    let plain = client.create(0, &[("filename", "empty.bin")]).await;
    let with_type = created(&client, &[("Upload-Length", "0"), ("Content-Type", OFFSET_OCTETS)], "").await;
    let chunked = created(
        &client,
        &[("Upload-Length", "0"), ("Content-Type", OFFSET_OCTETS)],
        reqwest::Body::wrap_stream(futures_util::stream::empty::<Result<Vec<u8>, std::io::Error>>()),
    )
    .await;
    let deferred = client.create_deferred(&[]).await;
    deferred.patch_with(0, &[("Upload-Length", "0")], b"").await.expect(204);
    for upload in [plain, with_type, chunked, deferred] {
        let head = upload.head().await.expect(200);
        assert_eq!(
            (head.number("Upload-Offset"), head.number("Upload-Length")),
            (Some(0), Some(0))
        );
        assert_eq!(upload.append(0, b"").await, 0, "a client that sends its nothing");
        upload.patch(0, b"x").await.expect(413);
        far.site.expect_delivered(&upload, b"").await;
    }
    assert_eq!(far.count("ferry_uploads_finished_total").await, 4);
}

async fn created(client: &Client, headers: &[(&str, &str)], body: impl Into<reqwest::Body>) -> Upload {
    let answer = client.tus("POST", client.collection(), headers, body).await;
    client.upload(&answer.expect(201))
}
