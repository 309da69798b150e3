//! The contract of [`BlobStore`], as cases that run against any store.
//!
//! A case gets a function that opens *the same* container each time it is called, as processes that come and go
//! do; [`store_contract!`](crate::store_contract) makes a test of each case, each with a container of its own. Cases ask
//! [`BlobStore::limits`] where stores differ.

mod conditions;
mod listed;
mod staged;
mod whole;

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use shared::checksum::Crc64;
use shared::store::{
    Attested, BlobError, BlobErrorKind, BlobMeta, BlobName, BlobStat, BlobStore, Commit, Condition, PartTag, Staged,
};

pub use self::conditions::*;
pub use self::listed::*;
pub use self::staged::*;
pub use self::whole::*;

/// Makes one test of each case. `$container` is an expression that makes a new, empty container and gives a
/// function (`AsyncFn() -> Arc<dyn BlobStore>`) that opens it.
#[macro_export]
macro_rules! store_contract {
    ($container:expr) => {
        $crate::store_contract!(@cases $container;
            a_container_answers_for_itself
            a_small_blob_is_put_read_and_replaced
            a_blob_that_is_not_there_is_not_found
            a_deleted_blob_is_gone_and_deleting_it_again_is_no_error
            absent_lets_exactly_one_writer_in
            matches_lets_only_the_known_content_be_replaced
            of_many_that_replace_the_same_content_one_wins
            contents_of_one_length_have_different_tags
            ranges_are_read_exactly_or_not_at_all
            a_read_with_a_stale_tag_is_refused
            an_identity_comes_back_with_the_blob
            a_staged_blob_is_invisible_until_commit_and_whole_after_it
            sizes_around_a_part_border_arrive_whole
            an_empty_blob_is_a_blob
            doubled_writes_change_nothing
            a_gap_is_refused_where_parts_are_ordered
            truncating_forgets_what_lies_behind
            a_staging_is_resumed_by_another_process
            synced_parts_can_be_read_back
            two_stagings_of_one_name_never_mix
            a_second_commit_finds_the_staging_lost
            a_commit_of_another_size_changes_nothing
            a_commit_whose_condition_fails_changes_nothing
            an_aborted_staging_is_lost_and_leaves_nothing
            a_staging_nobody_began_is_lost
            a_range_of_a_blob_is_copied_within_the_store
            names_are_listed_in_byte_order_page_by_page
            names_of_ferrys_own_are_listed_only_when_asked_for
            a_name_that_is_the_folder_of_another_is_never_half_there
        );
    };
    (@cases $container:expr; $($case:ident)+) => {
        $(
            #[tokio::test]
            async fn $case() {
                let container = $container;
                $crate::contract::store::$case(&container).await;
            }
        )+
    };
}

/// A function that opens the container of a case, anew each time.
pub trait Open: AsyncFn() -> Arc<dyn BlobStore> {}
impl<F: AsyncFn() -> Arc<dyn BlobStore>> Open for F {}

/// 2^20 bytes.
pub const MIB: usize = 1024 * 1024;

/// A name that a sender might have chosen.
#[must_use]
pub fn name(text: &str) -> BlobName {
    BlobName::new(text).expect("a valid name")
}

/// Puts `text` without metadata.
///
/// # Errors
/// Those of [`BlobStore::put`].
pub async fn put(
    store: &Arc<dyn BlobStore>,
    blob: &BlobName,
    text: &str,
    condition: Condition,
) -> Result<BlobStat, BlobError> {
    store
        .put(
            blob,
            Bytes::copy_from_slice(text.as_bytes()),
            BlobMeta::default(),
            condition,
        )
        .await
}

/// The kind of error that `result` is.
///
/// # Panics
/// If it is none.
pub fn kind<T: std::fmt::Debug>(result: Result<T, BlobError>) -> BlobErrorKind {
    result.expect_err("this must fail").kind
}

/// Begins a blob that will hold `body`.
pub async fn begin(store: &Arc<dyn BlobStore>, blob: &BlobName, body: &[u8]) -> Staged {
    store.begin(blob, Some(body.len() as u64)).await.expect("begin")
}

/// Writes `body` in the store's own parts.
pub async fn write(store: &Arc<dyn BlobStore>, staged: &Staged, body: &[u8]) -> Vec<PartTag> {
    let mut parts = Vec::new();
    let mut offset = 0;
    while offset < body.len() {
        let slot = store.limits().slot(offset as u64, Some(body.len() as u64));
        let end = usize::try_from(slot.end).expect("a part fits into memory");
        let bytes = Bytes::copy_from_slice(&body[offset..end]);
        parts.push(store.write_part(staged, offset as u64, bytes).await.expect("write"));
        offset = end;
    }
    parts
}

/// Bytes of the store's first part, where the blob's length is not known.
#[must_use]
pub fn part_len(store: &Arc<dyn BlobStore>) -> usize {
    usize::try_from(store.limits().slot(0, None).end).expect("a part fits into memory")
}

/// An unconditional commit of `body` without metadata.
#[must_use]
pub fn commit_of(parts: Vec<PartTag>, body: &[u8]) -> Commit {
    Commit {
        parts,
        size: body.len() as u64,
        crc: Crc64::of(body),
        meta: BlobMeta::default(),
        condition: Condition::None,
    }
}

/// Bytes in which every misplaced, missing or doubled part shows.
#[must_use]
pub fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        // xorshift: no period within any size that a test uses
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// All names that begin with `prefix`.
pub async fn names(store: &Arc<dyn BlobStore>, prefix: &str) -> Vec<String> {
    let names = store.list(prefix, None, 10_000).await.expect("list");
    names.into_iter().map(String::from).collect()
}

/// The whole blob.
pub async fn content(store: &Arc<dyn BlobStore>, blob: &BlobName) -> Bytes {
    let stat = store.stat(blob).await.expect("stat");
    store.read(blob, 0..stat.size, Some(&stat.tag)).await.expect("read")
}

/// What a store attests must be true; what it does not attest, the caller reads.
fn assert_attested(attested: &Attested, body: &[u8]) {
    assert_eq!(attested.size, body.len() as u64);
    if let Some(crc) = attested.crc64 {
        assert_eq!(crc, Crc64::of(body).value());
    }
}

/// Runs all at once, each as a task of its own.
async fn all<T: Send + 'static>(work: impl Iterator<Item = impl Future<Output = T> + Send + 'static>) -> Vec<T> {
    let tasks: Vec<_> = work.map(tokio::spawn).collect();
    let mut done = Vec::new();
    for task in tasks {
        done.push(task.await.expect("a task of the case"));
    }
    done
}
