//! Work as `ingest` makes it, for tests that put it on the bus again.

use shared::message::{CopyUpload, Message, Source, Work};
use shared::records::Records;
use shared::upload::UploadId;

/// The work message of a finished upload.
///
/// # Panics
/// There is no such upload, or it is not finished.
pub async fn copy_message(records: &dyn Records, id: UploadId) -> Message {
    let record = records.upload(id).await.expect("read the record");
    let completed = record.completed.expect("a finished upload");
    let work = Work::CopyUpload(CopyUpload {
        seq: record.seq,
        size: completed.crc64nvme.covered(),
        crc64nvme: completed.crc64nvme,
        manifest: None,
        created_at: record.created_at,
        completed_at: completed.at,
    });
    Source::new("ingest").work(&work, id)
}
