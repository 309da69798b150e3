//! A copier on real records, bus and stores in a folder of its own, with faults between.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use copier::{Drained, Running, open_store, start_with};
use jiff::Timestamp;
use shared::bus::DeadLetter;
use shared::checksum::Crc64;
use shared::config::{Config as _, CopierConfig, Durability, up_defaults};
use shared::failure::FailureClass;
use shared::foundation::Foundation;
use shared::manifest::Manifest;
use shared::message::{CopyUpload, Message, Source, Work};
use shared::report::{Fate, Report, Sink, SinkError};
use shared::routes::Target;
use shared::store::{BlobErrorKind, BlobMeta, BlobStat, BlobStore, Condition, Staged, StagedId};
use shared::upload::{
    Completed, DeliveryRecord, DeliveryState, OnDisk, ResolvedTarget, UploadId, UploadRecord, UploadState,
};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::faulty::Faulty;

pub(crate) const MIB: usize = 1024 * 1024;
/// Far longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(60);
/// The retries of a site: two, and at once.
pub(crate) const RETRY_DELAYS: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(100)];

/// A folder with everything that a copier works on, and the copiers on it.
pub(crate) struct Site {
    folder: TempDir,
    pub(crate) foundation: Foundation,
    pub(crate) config: CopierConfig,
    pub(crate) raw: Arc<Faulty>,
    pub(crate) dex: Arc<Faulty>,
    pub(crate) edav: Arc<Faulty>,
    pub(crate) sink: Arc<TestSink>,
    copier: Option<Running>,
}

impl Site {
    /// A site whose copier is not started yet.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let defaults = up_defaults(folder.path()).unwrap();
        let mut config = CopierConfig::read(&|_| None, &defaults).unwrap();
        config.retry_delays = RETRY_DELAYS.to_vec();
        config.common.shutdown_grace = Duration::from_secs(20);
        let mut foundation = Foundation::open(&config.common, Durability::None).unwrap();
        let raw = Faulty::new(foundation.raw.clone());
        let sink = Arc::new(TestSink::default());
        foundation.raw = raw.clone();
        foundation.sinks = vec![sink.clone()];
        let target = |name| Faulty::new(open_store(foundation.routes.target(name).unwrap()).unwrap());
        let (dex, edav) = (target("dex"), target("edav"));
        Self {
            folder,
            foundation,
            config,
            raw,
            dex,
            edav,
            sink,
            copier: None,
        }
    }

    /// A site with a copier at work.
    pub(crate) fn started() -> Self {
        let mut site = Self::new();
        site.start();
        site
    }

    pub(crate) fn start(&mut self) {
        self.copier = Some(self.another_copier(&self.foundation));
    }

    /// One more copier, on `foundation`.
    pub(crate) fn another_copier(&self, foundation: &Foundation) -> Running {
        let stores: HashMap<&str, Arc<Faulty>> = [("dex", self.dex.clone()), ("edav", self.edav.clone())].into();
        let open = move |target: &Target| {
            let store: Arc<dyn BlobStore> = stores[target.name.as_str()].clone();
            Ok(store)
        };
        start_with(self.config.clone(), foundation, Arc::new(open)).unwrap()
    }

    /// What a second process on the same folder stands on.
    pub(crate) fn another_foundation(&self) -> Foundation {
        let mut foundation = Foundation::open(&self.config.common, Durability::None).unwrap();
        foundation.raw = self.raw.clone();
        foundation.sinks = vec![self.sink.clone()];
        foundation
    }

    pub(crate) async fn stop(&mut self) -> Drained {
        self.copier.take().unwrap().stop().await
    }

    /// Ends the copier as a kill would: nothing of it is finished or given back in order. Everything that is open is
    /// closed, so that its claims are known to be those of a dead process.
    pub(crate) async fn kill(&mut self) {
        let dead = self.foundation.records.owner().clone();
        drop(self.copier.take());
        self.foundation = self.another_foundation();
        // Calls that had begun hold the old records for a moment.
        until("the dead process's lock is free", || async {
            self.foundation.records.is_gone(&dead).await.then_some(())
        })
        .await;
    }

    /// A finished upload with these bytes, announced.
    pub(crate) async fn upload(&self, bytes: &[u8]) -> UploadId {
        let id = UploadId::random();
        self.put_raw(id, bytes).await;
        self.announce(id, Crc64::of(bytes)).await;
        id
    }

    /// The raw object of an upload.
    pub(crate) async fn put_raw(&self, id: UploadId, bytes: &[u8]) {
        let body = Bytes::copy_from_slice(bytes);
        let meta = BlobMeta::default();
        self.raw
            .put(&id.blob_name(), body, meta, Condition::None)
            .await
            .unwrap();
    }

    /// Records an upload of this checksum as finished, and announces it.
    pub(crate) async fn announce(&self, id: UploadId, crc64nvme: Crc64) {
        self.announce_to(id, crc64nvme, None).await;
    }

    /// As [`Site::announce`], with one target more.
    pub(crate) async fn announce_to(&self, id: UploadId, crc64nvme: Crc64, more: Option<&str>) {
        let now = Timestamp::now();
        let manifest = Manifest::from([
            ("filename".to_owned(), "results.csv".to_owned()),
            ("data_stream_id".to_owned(), "dextesting".to_owned()),
            ("data_stream_route".to_owned(), "testevent1".to_owned()),
            ("sender_id".to_owned(), "a lab".to_owned()),
            ("upload_id".to_owned(), id.to_string()),
            ("dex_ingest_datetime".to_owned(), now.to_string()),
        ]);
        let mut targets = self.foundation.routes.resolve(id, &manifest).unwrap();
        targets.extend(more.map(|target| ResolvedTarget {
            target: target.to_owned(),
            ..targets[0].clone()
        }));
        let record = UploadRecord {
            id,
            seq: 1,
            state: UploadState::Committed,
            length: Some(crc64nvme.covered()),
            metadata: None,
            targets,
            manifest,
            created_at: now,
            changed_at: now,
            staged: Staged {
                name: id.blob_name(),
                id: StagedId::random(),
            },
            verified_offset: None,
            checkpoint: crc64nvme,
            on_disk: OnDisk::default(),
            claim: None,
            completed: Some(Completed { crc64nvme, at: now }),
            reconciled: 0,
            traceparent: None,
            outbox: vec![Self::announcement(id, crc64nvme)],
        };
        self.foundation.records.create(record).await.unwrap();
    }

    /// The message about a finished upload; each is another one.
    pub(crate) fn announcement(id: UploadId, crc64nvme: Crc64) -> Message {
        let now = Timestamp::now();
        let work = Work::CopyUpload(CopyUpload {
            seq: 1,
            size: crc64nvme.covered(),
            crc64nvme,
            manifest: None,
            created_at: now,
            completed_at: now,
        });
        Source::new("test").work(&work, id)
    }

    pub(crate) async fn publish(&self, messages: Vec<Message>) {
        for taken in self.foundation.bus.publish(messages).await {
            taken.unwrap();
        }
    }

    pub(crate) async fn delivery(&self, id: UploadId, target: &str) -> DeliveryRecord {
        let deliveries = self.foundation.records.deliveries(id).await.unwrap();
        deliveries
            .into_iter()
            .find(|delivery| delivery.to.target == target)
            .unwrap()
    }

    /// The delivery once it is as `wanted`.
    pub(crate) async fn delivery_when(
        &self,
        id: UploadId,
        target: &str,
        wanted: impl Fn(&DeliveryRecord) -> bool,
    ) -> DeliveryRecord {
        let what = format!("{target} to be as wanted");
        until(&what, || async {
            Some(self.delivery(id, target).await).filter(|delivery| wanted(delivery))
        })
        .await
    }

    /// The delivery once it is final.
    pub(crate) async fn outcome(&self, id: UploadId, target: &str) -> DeliveryRecord {
        self.delivery_when(id, target, |delivery| delivery.state.is_final())
            .await
    }

    /// Waits until both targets have the upload.
    pub(crate) async fn delivered(&self, id: UploadId) {
        for target in ["dex", "edav"] {
            let delivery = self.outcome(id, target).await;
            assert_eq!(delivery.state, DeliveryState::Succeeded, "{:?}", delivery.issues);
        }
    }

    /// What stands under the delivery's name; `None` if nothing is visible there.
    pub(crate) async fn object(&self, delivery: &DeliveryRecord) -> Option<(BlobStat, Bytes)> {
        // Not through the faulty store: this is what a reader of the container sees.
        let target = self.foundation.routes.target(&delivery.to.target).unwrap();
        let store = open_store(target).unwrap();
        let stat = match store.stat(&delivery.to.object).await {
            Ok(stat) => stat,
            Err(error) if error.kind == BlobErrorKind::NotFound => return None,
            Err(error) => panic!("{error}"),
        };
        let bytes = store
            .read(&delivery.to.object, 0..stat.size, Some(&stat.tag))
            .await
            .unwrap();
        Some((stat, bytes))
    }

    /// Unfinished files in a target.
    pub(crate) fn staged(&self, target: &str) -> Vec<PathBuf> {
        let staged = self.folder.path().join(target).join(".ferry/staged");
        let entries = std::fs::read_dir(staged).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    pub(crate) async fn dead_letters(&self) -> Vec<DeadLetter> {
        self.foundation.bus.dead_letters(100).await.unwrap()
    }

    /// Waits until the bus has nothing more to do.
    pub(crate) async fn quiet(&self) {
        until("the queues to be empty", || async {
            for queue in shared::message::Queue::ALL {
                let depth = self.foundation.bus.depth(queue).await.unwrap();
                if depth.ready + depth.in_flight + depth.delayed > 0 {
                    return None;
                }
            }
            Some(())
        })
        .await;
    }

    /// The final reports of an upload as (target, status), once the bus is quiet.
    pub(crate) async fn reports(&self, id: UploadId) -> Vec<(String, String)> {
        self.quiet().await;
        let mut found: Vec<_> = self
            .sink
            .reports()
            .into_iter()
            .filter(|report| report["upload_id"] == id.to_string())
            .map(|report| {
                let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
                (
                    text(&report["content"]["destination_name"]),
                    text(&report["stage_info"]["status"]),
                )
            })
            .collect();
        found.sort_unstable();
        found
    }
}

/// Waits for `condition` under a deadline.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut condition: impl FnMut() -> F) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = condition().await {
            return found;
        }
        assert!(begun.elapsed() < DEADLINE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// `len` bytes in which no range is like another.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        bytes.extend_from_slice(&state.to_be_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A sink that remembers what it got.
#[derive(Debug, Default)]
pub(crate) struct TestSink {
    got: Mutex<Vec<serde_json::Value>>,
    failing: Mutex<Option<FailureClass>>,
    tries: Mutex<usize>,
}

impl TestSink {
    /// Everything that was handed over.
    pub(crate) fn reports(&self) -> Vec<serde_json::Value> {
        self.got.lock().unwrap().clone()
    }

    /// From now on every report is refused; `None` ends it.
    pub(crate) fn fail(&self, class: Option<FailureClass>) {
        *self.failing.lock().unwrap() = class;
    }

    pub(crate) fn tries(&self) -> usize {
        *self.tries.lock().unwrap()
    }
}

#[async_trait]
impl Sink for TestSink {
    fn name(&self) -> &'static str {
        "test"
    }

    fn at_once(&self) -> usize {
        1
    }

    fn takes_late(&self) -> bool {
        false
    }

    async fn send(&self, report: &Report) -> Result<(), SinkError> {
        *self.tries.lock().unwrap() += 1;
        if let Some(class) = *self.failing.lock().unwrap() {
            return Err(SinkError {
                operation: "send",
                object: "test".into(),
                class,
                fate: if class == FailureClass::Permanent {
                    Fate::Refused
                } else {
                    Fate::Away
                },
                retry_after: None,
                source: "told to".into(),
            });
        }
        self.got.lock().unwrap().push(serde_json::to_value(report).unwrap());
        Ok(())
    }

    async fn check(&self) -> Result<(), SinkError> {
        Ok(())
    }
}
