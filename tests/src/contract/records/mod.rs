//! The contract of [`Records`]. Spec: core.md §2–§5; the trait's own comments.

mod attention;
mod deliveries;
mod edits;
mod processes;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use shared::records::{Edit, RecordError, Records, Verdict};
use shared::upload::{DeliveryRecord, DeliveryState, UploadId, UploadRecord};

pub use attention::*;
pub use deliveries::*;
pub use edits::*;
pub use processes::*;

use super::sample;

/// The longest that anything is waited for.
const LIMIT: Duration = Duration::from_secs(20);

/// Where one implementation keeps the records of one case.
#[async_trait]
pub trait RecordsSite: fmt::Debug + Send + Sync {
    /// Opens the records as one more process does. Dropping the answer is that process's end.
    async fn open(&self) -> Arc<dyn Records>;

    /// Whether the bus takes the outbox in the same write: then nobody ever sees a message in it, and an upload
    /// that is written as committed with its work message is published at once.
    fn publishes_itself(&self) -> bool;
}

/// Makes one test of each case. `$site` makes a fresh site.
#[macro_export]
macro_rules! records_contract {
    ($site:expr) => {
        $crate::records_contract! { @cases $site;
            an_upload_is_there_once_it_is_created
            everything_in_a_record_comes_back
            an_upload_is_created_once
            what_is_not_there_is_not_found
            an_edit_sees_the_newest_record_and_raises_seq
            every_write_stamps_the_time_of_the_change
            an_edit_that_leaves_the_record_writes_nothing
            fifty_concurrent_edits_all_count
            an_edit_that_panics_harms_nobody_else
            a_dropped_edit_never_writes_half
            deliveries_are_there_the_moment_an_upload_is_committed
            an_upload_that_is_created_committed_has_its_deliveries
            a_later_edit_leaves_deliveries_alone_and_adds_those_of_new_targets
            an_edit_of_a_delivery_changes_that_delivery_only
            concurrent_edits_of_a_delivery_all_count
            the_outbox_is_kept_until_it_is_marked
            a_deliverys_outbox_is_kept_until_it_is_marked
            exactly_what_needs_attention_is_open
            open_uploads_come_in_pages
            an_upload_closes_when_all_is_final_and_opens_on_a_redrive
            failed_deliveries_are_found_by_target_and_in_pages
            pages_of_failed_deliveries_of_all_targets_leave_none_out
            only_old_tombstones_are_purged
            purging_stops_at_its_limit
            the_census_counts_what_needs_attention
            the_records_say_that_they_work
            records_survive_reopening
            two_processes_see_each_others_writes_at_once
            a_process_that_ended_is_known_to_be_gone
        }
    };
    (@cases $site:expr; $($case:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $case() {
                let site = $site;
                $crate::contract::records::$case(&site).await;
            }
        )*
    };
}

/// An edit that writes what `change` makes of the record.
fn change<R>(mut change: impl FnMut(&mut R) + Send + 'static) -> Edit<R> {
    Box::new(move |record| {
        change(record);
        Verdict::Write
    })
}

async fn created(records: &dyn Records) -> UploadRecord {
    records
        .create(sample::receiving(UploadId::random()))
        .await
        .expect("create an upload")
}

async fn edit_upload(
    records: &dyn Records,
    id: UploadId,
    edit: impl FnMut(&mut UploadRecord) + Send + 'static,
) -> UploadRecord {
    let edited = records.edit_upload(id, change(edit)).await.expect("edit an upload");
    assert!(edited.written, "the edit asked for a write");
    edited.record
}

async fn edit_delivery(
    records: &dyn Records,
    id: UploadId,
    target: &str,
    edit: impl FnMut(&mut DeliveryRecord) + Send + 'static,
) -> DeliveryRecord {
    let edited = records
        .edit_delivery(id, target, change(edit))
        .await
        .expect("edit a delivery");
    assert!(edited.written, "the edit asked for a write");
    edited.record
}

/// An upload that is committed to `targets`, and on the bus as far as its record tells.
async fn published(records: &dyn Records, targets: &'static [&'static str]) -> UploadRecord {
    let id = created(records).await.id;
    edit_upload(records, id, move |record| sample::commit(record, targets)).await;
    let record = edit_upload(records, id, |record| {
        let ids: Vec<_> = record.outbox.iter().map(|message| message.id).collect();
        record.mark_published(&ids);
    })
    .await;
    assert!(record.outbox.is_empty());
    record
}

async fn set_delivery(records: &dyn Records, id: UploadId, target: &str, state: DeliveryState) -> DeliveryRecord {
    edit_delivery(records, id, target, move |record| record.state = state).await
}

async fn upload(records: &dyn Records, id: UploadId) -> UploadRecord {
    records.upload(id).await.expect("read an upload")
}

async fn deliveries(records: &dyn Records, id: UploadId) -> Vec<DeliveryRecord> {
    records.deliveries(id).await.expect("read deliveries")
}

/// Now, for comparison with a time that a store may keep in whole milliseconds.
fn now() -> Timestamp {
    let now = Timestamp::now().as_millisecond();
    Timestamp::from_millisecond(now).expect("the present is in range")
}

fn assert_not_found<T: fmt::Debug>(answer: Result<T, RecordError>) {
    assert!(matches!(answer, Err(RecordError::NotFound(_))), "{answer:?}");
}
