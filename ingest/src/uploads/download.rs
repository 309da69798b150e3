//! Reading a finished upload back.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use shared::store::BlobError;
use shared::upload::UploadRecord;

use super::{UploadError, Uploads};

/// Bytes read at once.
const PIECE: u64 = 256 * 1024;

/// A finished upload's bytes.
pub(crate) struct Download<S> {
    /// How many they are.
    pub(crate) size: u64,
    /// The bytes; an error ends the answer short, so that the client sees it.
    pub(crate) bytes: S,
}

impl Uploads {
    /// The bytes of a finished upload.
    ///
    /// # Errors
    /// `Unfinished`; `Damaged` if the object is not as long as the record says.
    pub(crate) async fn download(
        self: &Arc<Self>,
        record: &UploadRecord,
    ) -> Result<Download<impl Stream<Item = Result<Bytes, BlobError>> + use<>>, UploadError> {
        let Some(completed) = &record.completed else {
            return Err(UploadError::Unfinished(record.id));
        };
        let (size, name) = (completed.crc64nvme.covered(), record.id.blob_name());
        let stat = self.raw.stat(&name).await?;
        if stat.size != size {
            return Err(UploadError::Damaged {
                id: record.id,
                stored: stat.size,
                recorded: size,
            });
        }
        let raw = self.raw.clone();
        let bytes = stream::try_unfold(0, move |at| {
            let (raw, name, tag) = (raw.clone(), name.clone(), stat.tag.clone());
            async move {
                if at == size {
                    return Ok(None);
                }
                let end = size.min(at + PIECE);
                let piece = raw.read(&name, at..end, Some(&tag)).await?;
                Ok(Some((piece, end)))
            }
        });
        Ok(Download { size, bytes })
    }
}
