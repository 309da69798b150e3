//! Why something could not be done with an upload.

use shared::failpoint::Injected;
use shared::records::RecordError;
use shared::store::{BlobError, BlobErrorKind};
use shared::upload::UploadId;

/// Why something could not be done with an upload.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    /// There is none.
    #[error("no upload {0}")]
    NotFound(UploadId),
    /// It was deleted, or has expired.
    #[error("upload {0} is gone")]
    Gone(UploadId),
    /// Not all its bytes are there.
    #[error("upload {0} is not finished")]
    Unfinished(UploadId),
    /// The bytes would not follow those that are there.
    #[error("the upload is at offset {present}")]
    OffsetMismatch {
        /// Where they must begin.
        present: u64,
    },
    /// Another request, or another process, is writing it and does not let go.
    #[error("another request is writing the upload")]
    Locked,
    /// More bytes than the upload has room for.
    #[error("the body is longer than what the upload still takes")]
    TooLong {
        /// Bytes that are kept.
        offset: u64,
    },
    /// Longer than any upload may be.
    #[error("uploads may have at most {most} bytes")]
    TooLarge {
        /// The limit.
        most: u64,
    },
    /// The length was declared before, or is less than what is there.
    #[error("{0}")]
    Length(String),
    /// The manifest makes no valid name, or names a file badly.
    #[error("{0}")]
    Manifest(String),
    /// The raw store is full but for its reserve.
    #[error("no space left for uploads")]
    NoSpace,
    /// The store has less than was acknowledged.
    #[error("stored bytes of upload {id} are missing: {stored} of {recorded}; start again")]
    Damaged {
        /// The upload.
        id: UploadId,
        /// Bytes that are there.
        stored: u64,
        /// Bytes that were.
        recorded: u64,
    },
    /// The bytes read are not the bytes received.
    #[error("upload {0}: stored bytes differ from those received")]
    Corrupt(UploadId),
    /// The raw store failed.
    #[error("the raw store is not available")]
    Store(#[source] BlobError),
    /// The records failed.
    #[error("the records are not available")]
    Records(#[from] RecordError),
    /// A task of ours ended before its work was done.
    #[error("the work on upload {0} was broken off")]
    BrokenOff(UploadId),
    /// A test made the step fail.
    #[error(transparent)]
    Injected(#[from] Injected),
    /// Somebody else is finishing it and takes long.
    #[error("upload {0} is still being finished")]
    StillFinishing(UploadId),
}

impl From<BlobError> for UploadError {
    /// A full store is told as such, whatever was tried: the sender comes back when there is room.
    fn from(error: BlobError) -> Self {
        if error.kind == BlobErrorKind::NoSpace {
            Self::NoSpace
        } else {
            Self::Store(error)
        }
    }
}
