//! Each implementation of `Records` against the contract, and what only processes can show.
//! Holds promises 1 and 2 of DESIGN.md at their root; faults.md rows 1–3.

use std::time::Duration;

use serde_json::json;
use shared::checksum::Crc64;
use shared::manifest::Manifest;
use shared::message::Queue;
use shared::records::Verdict;
use shared::store::{BlobName, Staged, StagedId};
use shared::upload::{OnDisk, ResolvedTarget, UploadId, UploadRecord, UploadState};
use tests::contract::sqlite::{self, SqliteSite};
use tests::wait::within;

const LIMIT: Duration = Duration::from_secs(20);

mod sqlite_with_its_bus {
    tests::records_contract!(tests::contract::sqlite::SqliteSite::with_bus());
}

mod sqlite_with_a_bus_elsewhere {
    tests::records_contract!(tests::contract::sqlite::SqliteSite::without_bus());
}

/// "Upload committed" and "work enqueued" are one transaction (bus.md, "Embedded"): a worker that waits gets the
/// work, and finds the upload committed with its deliveries, though nobody ever published anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn work_that_follows_from_a_write_is_on_the_bus_with_it() {
    let site = SqliteSite::with_bus();
    let (ingest, _) = sqlite::open(&site.path());
    let (copier, bus) = sqlite::open(&site.path());
    let mut consumer = bus.consume(Queue::Copy, 4).await.expect("consume");
    for _ in 0..10 {
        let id = ingest.create(receiving()).await.expect("create").id;
        let message = shared::message::Message {
            id: uuid::Uuid::now_v7(),
            route: shared::message::Route::Work(Queue::Copy),
            delay: None,
            kind: "copy.upload".to_owned(),
            source: "/test/here".to_owned(),
            subject: id,
            time: jiff::Timestamp::now(),
            traceparent: None,
            data: json!({ "schema": 1 }),
        };
        let sent = message.id;
        let edited = ingest
            .edit_upload(
                id,
                Box::new(move |record| {
                    record.state = UploadState::Committed;
                    record.targets = vec![ResolvedTarget {
                        target: "dex".to_owned(),
                        object: BlobName::new("x").expect("a valid name"),
                        location: "/x".to_owned(),
                    }];
                    record.outbox = vec![message.clone()];
                    Verdict::WriteDurably
                }),
            )
            .await
            .expect("commit");
        assert_eq!(edited.record.state, UploadState::Published);
        let job = within("the work", LIMIT, consumer.next())
            .await
            .expect("the bus lost the consumer");
        assert_eq!((job.message.id, job.message.subject), (sent, id));
        assert!(copier.upload(id).await.expect("read").state.is_committed());
        assert_eq!(copier.deliveries(id).await.expect("read").len(), 1);
        job.ack().await.expect("ack");
    }
}

fn receiving() -> UploadRecord {
    let id = UploadId::random();
    let now = jiff::Timestamp::now();
    UploadRecord {
        id,
        seq: 1,
        state: UploadState::Receiving,
        length: Some(0),
        metadata: None,
        manifest: Manifest::new(),
        created_at: now,
        changed_at: now,
        staged: Staged {
            name: id.blob_name(),
            id: StagedId::random(),
        },
        verified_offset: None,
        checkpoint: Crc64::default(),
        on_disk: OnDisk::default(),
        claim: None,
        completed: None,
        targets: Vec::new(),
        reconciled: 0,
        traceparent: None,
        outbox: Vec::new(),
    }
}
