//! Row 6: a body that ends early is an error, never the end of the body; what came is kept; nothing says complete.
//! Row 2, as far as the network makes it: all bytes came, and nobody ever comes back.

use std::fs;

use tests::client::{OFFSET_OCTETS, Upload};
use tests::pattern::{assert_same, pattern};
use tests::proxy::{Ending, Faults, Way};
use tests::raw::{SlowPatch, exchange};
use tests::site::{LIMIT, Part};
use tests::wait::eventually;

use super::{Far, MIB, Request, assert_unfinished, index, length, until_committing, until_stored};

const CHUNKED: &str = "Transfer-Encoding: chunked";
const CHUNK: usize = 10_000;
/// A chunk of [`CHUNK`] bytes with its size and its ends of lines.
const ON_THE_WIRE: usize = CHUNK + 8;

/// Behind the last chunk.
const END: &[u8] = b"0\r\n\r\n";

fn in_chunks(content: &[u8], size: usize) -> Vec<u8> {
    let mut wire = Vec::new();
    for chunk in content.chunks(size) {
        wire.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        wire.extend_from_slice(chunk);
        wire.extend_from_slice(b"\r\n");
    }
    wire.extend_from_slice(END);
    wire
}

/// No request is being worked on but the one that asks.
async fn until_idle(far: &Far) {
    eventually("the request has ended", LIMIT, || async {
        let open = far
            .site
            .metrics(Part::Up)
            .await
            .count("dex_server_connections_open", &[]);
        (open == 1).then_some(())
    })
    .await;
}

/// What actix-http reads ahead of the handler. It drops that when it meets the end of a connection before the handler
/// has asked for it: bytes that nobody was told of, but bytes that came.
const READ_AHEAD: u64 = 256 * 1024;

/// A body that is cut: how it is framed, what goes over the wire, how much of that passes, and how much of the content
/// that is.
struct CutBody<'a> {
    framing: &'a str,
    wire: &'a [u8],
    passes: usize,
    kept: usize,
}

/// Row 6: truncated body (length or chunked), half-close.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_ends_early_is_kept_and_is_never_a_complete_upload() {
    // Swept all the time: a sweeper, too, must see that they are not complete.
    let far = Far::start(&[("SWEEP_INTERVAL", "100ms")]).await;
    let client = far.site.client();
    let content = pattern(1, 2 * MIB);
    let by_length = format!("Content-Length: {}", content.len());
    let (chunks, one_chunk) = (in_chunks(&content, CHUNK), in_chunks(&content, content.len()));
    let body = |framing, wire, passes, kept| CutBody {
        framing,
        wire,
        passes,
        kept,
    };
    let bodies = [
        body(by_length.as_str(), &content, 1_900_007, 1_900_007),
        body(CHUNKED, &chunks, 190 * ON_THE_WIRE + 6 + 7, 1_900_007), // inside a chunk
        body(CHUNKED, &chunks, 190 * ON_THE_WIRE, 1_900_000),         // between two
        body(CHUNKED, &chunks, 190 * ON_THE_WIRE + 2, 1_900_000),     // inside a chunk's size
        body(CHUNKED, &one_chunk, 8 + 1_900_007, 1_900_007),          // inside the only one
    ];
    let mut cut: Vec<(Upload, u64)> = Vec::new();

    // The end comes when everything before it was received: that is kept to the byte.
    let mut begun = Vec::new();
    for body in &bodies {
        for ending in [Ending::Cut, Ending::HalfClose, Ending::Reset] {
            let upload = client.create(content.len(), &[("filename", "cut.bin")]).await;
            let request = Request::patch(&upload, 0, body.framing, body.wire);
            let until = request.until(body.passes);
            far.proxy.set_new(Faults::none().end(Way::ToServer, until, ending));
            let (before, behind) = request.bytes.split_at(index(until));
            let sender = SlowPatch::begin_with(far.proxy.addr(), before).await;
            begun.push((upload, body, ending, sender, behind.to_vec()));
        }
    }
    for (upload, body, ending, mut sender, behind) in begun {
        until_stored(&upload, body.kept).await;
        // The connection may break before all of it is out.
        drop(sender.send(&behind).await);
        let answer = sender.answer().await;
        let what = format!(
            "{}, {ending:?} after {} of the wire: {answer:?}",
            body.framing, body.passes
        );
        match ending {
            Ending::HalfClose => assert_eq!(answer.map(|answer| answer.status), Some(400), "{what}"),
            _ => assert!(answer.is_none(), "{what}"),
        }
        assert_eq!(upload.offset().await, length(body.kept), "{what}");
        cut.push((upload, length(body.kept)));
    }
    // In full flow: nothing but what was read ahead is lost.
    for body in &bodies {
        let upload = client.create(content.len(), &[("filename", "cut.bin")]).await;
        let request = Request::patch(&upload, 0, body.framing, body.wire);
        let until = request.until(body.passes);
        far.proxy.set_new(Faults::none().end(Way::ToServer, until, Ending::Cut));
        assert!(exchange(far.proxy.addr(), &request.bytes).await.is_none());
        until_idle(&far).await;
        let kept = length(body.kept);
        // What was only buffered is written when its request is gone.
        eventually("what came is there", LIMIT, || async {
            let offset = upload.offset().await;
            assert!(offset <= kept, "{offset} of {kept}");
            (offset + READ_AHEAD >= kept).then_some(())
        })
        .await;
        cut.push((upload, kept));
    }
    let counts = far.proxy.counts();
    assert_eq!((counts.cut, counts.half_closed, counts.reset), (10, 5, 5), "{counts:?}");

    // A later one goes all the way through the system; those before it are where they were.
    let witness = client.create(CHUNK, &[]).await;
    witness.append(0, &content[..CHUNK]).await;
    far.site.expect_delivered(&witness, &content[..CHUNK]).await;
    for (upload, kept) in &cut {
        assert_unfinished(&far.site, upload).await;
        let offset = upload.offset().await;
        assert!(offset <= *kept && offset + READ_AHEAD >= *kept, "{offset} of {kept}");
        upload.append(offset, &content[index(offset)..]).await;
    }
    for (upload, _) in &cut {
        far.site.expect_delivered(upload, &content).await;
    }
    assert_eq!(far.count("ferry_uploads_finished_total").await, 1 + length(cut.len()));
}

/// Row 6 for an upload whose sender never learns that it was made, and for lengths that are told late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_creation_and_a_cut_deferred_upload_are_not_complete() {
    let far = Far::start(&[("SWEEP_INTERVAL", "100ms")]).await;
    let client = far.site.client();
    let content = pattern(2, MIB);
    let headers = format!("Upload-Length: {MIB}\r\nContent-Type: {OFFSET_OCTETS}\r\nContent-Length: {MIB}\r\n",);
    let request = Request::new("POST /files/", &headers, &content);
    let until = request.until(300_000);
    far.proxy.set_new(Faults::none().end(Way::ToServer, until, Ending::Cut));
    let (before, behind) = request.bytes.split_at(index(until));
    let mut sender = SlowPatch::begin_with(far.proxy.addr(), before).await;
    let staged = eventually("what came is on the disk", LIMIT, || async {
        let staged = far.site.staged("raw");
        let stored = fs::metadata(staged.first()?).ok()?.len();
        (stored == 300_000).then_some(staged)
    })
    .await;
    drop(sender.send(behind).await);
    assert!(sender.answer().await.is_none());
    until_idle(&far).await;
    assert_eq!(staged.len(), 1, "{staged:?}");
    let kept = fs::read(&staged[0]).expect("read the staged file");
    assert_same("what came", &kept, &content[..300_000]);

    for told_in_the_cut_patch in [false, true] {
        let upload = client.create_deferred(&[]).await;
        let mut framing = format!("Content-Length: {MIB}");
        if told_in_the_cut_patch {
            framing += &format!("\r\nUpload-Length: {MIB}");
        }
        let request = Request::patch(&upload, 0, &framing, &content);
        let until = request.until(400_000);
        far.proxy.set_new(Faults::none().end(Way::ToServer, until, Ending::Cut));
        let (before, behind) = request.bytes.split_at(index(until));
        let mut sender = SlowPatch::begin_with(far.proxy.addr(), before).await;
        until_stored(&upload, 400_000).await;
        drop(sender.send(behind).await);
        assert!(sender.answer().await.is_none());
        until_idle(&far).await;
        assert_eq!(upload.offset().await, 400_000);
        assert_unfinished(&far.site, &upload).await;
        let told = upload.head().await.expect(200).number("Upload-Length");
        assert_eq!(told, told_in_the_cut_patch.then_some(length(MIB)));
        let late = MIB.to_string();
        let headers = [("Upload-Length", late.as_str())];
        upload
            .patch_with(400_000, &headers, &content[400_000..])
            .await
            .expect(204);
        far.site.expect_delivered(&upload, &content).await;
    }
    // The one that nobody knows of is where it was, and nowhere else.
    assert_eq!(far.site.staged("raw"), staged);
    assert_eq!(far.count("ferry_uploads_finished_total").await, 2);
}

/// Row 2: all bytes came and the sender never hears of it, nor ever comes back. It is finished all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_whose_bytes_all_came_is_delivered_whatever_became_of_its_sender() {
    let far = Far::start(&[("SWEEP_INTERVAL", "100ms")]).await;
    let client = far.site.client();
    let content = pattern(3, MIB + 1);
    let chunks = in_chunks(&content, CHUNK);
    let by_length = format!("Content-Length: {}", content.len());
    let mut uploads = Vec::new();
    for ending in [Ending::Cut, Ending::Reset] {
        // The answer is lost.
        for (framing, wire) in [(CHUNKED, &chunks), (by_length.as_str(), &content)] {
            let upload = client.create(content.len(), &[]).await;
            let request = Request::patch(&upload, 0, framing, wire);
            far.proxy.set_new(Faults::none().end(Way::ToClient, 0, ending));
            assert!(exchange(far.proxy.addr(), &request.bytes).await.is_none());
            uploads.push(upload);
        }
        // All bytes come, and then not the mark behind them, or half of it.
        for mark in [0, 2] {
            let upload = client.create(content.len(), &[]).await;
            let request = Request::patch(&upload, 0, CHUNKED, &chunks);
            let until = request.until(chunks.len() - END.len() + mark);
            far.proxy.set_new(Faults::none().end(Way::ToServer, until, ending));
            let (before, behind) = request.bytes.split_at(index(until));
            let mut sender = SlowPatch::begin_with(far.proxy.addr(), before).await;
            // Seen on the disk: whoever asked could wake a finisher. The uploads before it are finished by now, or soon.
            eventually("all bytes are there", LIMIT, || async {
                let staged = far.site.staged("raw");
                let [only] = staged.as_slice() else { return None };
                let read = fs::read(only).ok()?;
                (read == content).then_some(())
            })
            .await;
            assert_unfinished(&far.site, &upload).await;
            drop(sender.send(behind).await);
            assert!(sender.answer().await.is_none());
            uploads.push(upload);
        }
    }
    let counts = far.proxy.counts();
    assert_eq!((counts.cut, counts.reset, counts.to_client), (4, 4, 0), "{counts:?}");
    for upload in &uploads {
        far.site.expect_delivered(upload, &content).await;
    }
    until_committing(&far, 0).await;
}
