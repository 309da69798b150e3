//! The file to be sent: read at any offset, in constant memory, and watched for changes.

use std::fs::{self, File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use indicatif::ProgressBar;
use reqwest::Body;
use tokio::sync::watch;
use tokio::task::{JoinError, spawn_blocking};

use super::tus::Outgoing;

/// Read and handed to the connection at a time.
const BLOCK_BYTES: u32 = 128 * 1024;
/// Blocks that are read ahead of the connection.
const BLOCKS_AHEAD: usize = 2;

/// An open file, as it was when it was opened.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    file: Arc<File>,
    /// Absolute, links resolved.
    path: PathBuf,
    /// The last part of the name by which the file was given.
    name: String,
    stamp: Stamp,
}

/// What tells that a file is not the same any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Length in bytes.
    pub(crate) size: u64,
    /// Last change of the content, in nanoseconds since 1970.
    pub(crate) modified_ns: i128,
    /// File system and file: another one may have been put under the same name.
    identity: (u64, u64),
}

/// A file that cannot be sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    #[error("standard input is not supported: give the name of a file (./- if it is called so)")]
    StandardInput,
    #[error("a directory: give the files in it")]
    Directory,
    #[error("not a regular file")]
    NotRegular,
    #[error("cannot open the file")]
    Open(#[source] io::Error),
    #[error("cannot read the file")]
    Read(#[source] Arc<io::Error>),
    #[error("the file changed while it was sent: send it again when it is complete")]
    Changed,
}

impl Source {
    /// Opens the regular file at `path`. Blocks.
    ///
    /// # Errors
    /// There is no such file, it is not regular, or may not be read.
    pub(crate) fn open(path: &Path) -> Result<Self, SourceError> {
        if path.as_os_str() == "-" {
            return Err(SourceError::StandardInput);
        }
        // Looked at before it is opened: opening a pipe would wait for its writer.
        let metadata = fs::metadata(path).map_err(SourceError::Open)?;
        if metadata.is_dir() {
            return Err(SourceError::Directory);
        }
        if !metadata.is_file() {
            return Err(SourceError::NotRegular);
        }
        let file = File::open(path).map_err(SourceError::Open)?;
        let stamp = Stamp::of(&file.metadata().map_err(SourceError::Open)?);
        let absolute = fs::canonicalize(path).map_err(SourceError::Open)?;
        let name = path.file_name().or(absolute.file_name()).unwrap_or_default();
        Ok(Self {
            file: Arc::new(file),
            name: name.to_string_lossy().into_owned(),
            path: absolute,
            stamp,
        })
    }

    /// Where the file is: absolute, links resolved.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What the file is called.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The file as it was when it was opened.
    pub(crate) fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Length in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.stamp.size
    }

    /// Compares the file under this name with what was opened. Blocks.
    ///
    /// # Errors
    /// [`SourceError::Changed`]; also if there is no file any more.
    pub(crate) fn unchanged(&self) -> Result<(), SourceError> {
        match fs::metadata(&self.path) {
            Ok(metadata) if Stamp::of(&metadata) == self.stamp => Ok(()),
            Ok(_) => Err(SourceError::Changed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(SourceError::Changed),
            Err(error) => Err(SourceError::Read(Arc::new(error))),
        }
    }

    /// The bytes of `range` as a request's body that moves `bar`, and where its failure can be read. Reading happens
    /// off the async threads, two blocks ahead, and stops when the body is dropped.
    ///
    /// The last block of the file leaves only if the file is still the one that was opened, so that an upload is
    /// never completed with a mixture of two versions.
    pub(crate) fn outgoing(&self, range: Range<u64>, bar: ProgressBar) -> (Outgoing, ReadFailure) {
        let (step, moved) = watch::channel(0);
        let failure = ReadFailure::default();
        let length = range.end - range.start;
        let mut sent = range.start;
        let seen = failure.clone();
        let body = self.blocks(range).map(move |block| match block {
            Ok(block) => {
                sent += block.len() as u64;
                bar.set_position(sent);
                step.send_replace(sent);
                Ok(block)
            }
            Err(error) => {
                seen.note(error);
                Err("the file could not be read")
            }
        });
        let body = Body::wrap_stream(body);
        (Outgoing { body, length, moved }, failure)
    }

    /// `range` in blocks, in order. Before the last block of the file is given out, every byte has been read, and
    /// the file is compared with what was opened.
    fn blocks(&self, range: Range<u64>) -> impl Stream<Item = Result<Bytes, SourceError>> + Send + 'static {
        let end = range.end;
        let starts = std::iter::successors(Some(range.start), |start| Some(start + u64::from(BLOCK_BYTES)))
            .take_while(move |start| *start < end);
        let reader = self.clone();
        let watcher = self.clone();
        stream::iter(starts)
            .map(move |start| {
                let source = reader.clone();
                let length = (end - start).min(u64::from(BLOCK_BYTES));
                // Begins to read at once, not when it is waited for.
                let read = spawn_blocking(move || source.read(start, length));
                async move { Ok((start + length, finished(read.await)?)) }
            })
            .buffered(BLOCKS_AHEAD)
            .and_then(move |(end, block)| {
                let source = watcher.clone();
                async move {
                    if end == source.size() {
                        finished(spawn_blocking(move || source.unchanged()).await)?;
                    }
                    Ok(block)
                }
            })
    }

    /// `length` bytes at `start`, at most a block. Blocks.
    fn read(&self, start: u64, length: u64) -> Result<Bytes, SourceError> {
        let mut block = vec![0; usize::try_from(length).expect("a block's length fits in 32 bits")];
        match self.file.read_exact_at(&mut block, start) {
            Ok(()) => Ok(block.into()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(SourceError::Changed),
            Err(error) => Err(SourceError::Read(Arc::new(error))),
        }
    }
}

/// The outcome of a blocking step; one that panicked counts as failed.
fn finished<T>(step: Result<Result<T, SourceError>, JoinError>) -> Result<T, SourceError> {
    step.unwrap_or_else(|panic| Err(SourceError::Read(Arc::new(io::Error::other(panic)))))
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            size: metadata.len(),
            modified_ns: i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()),
            identity: (metadata.dev(), metadata.ino()),
        }
    }
}

/// Why a body ended early. The HTTP library would wrap the reason into one of its own errors.
#[derive(Clone, Debug, Default)]
pub(crate) struct ReadFailure(Arc<OnceLock<SourceError>>);

impl ReadFailure {
    fn note(&self, error: SourceError) {
        // The first failure is the cause; the body ends with it.
        self.0.get_or_init(|| error);
    }

    /// The failure, if there was one.
    pub(crate) fn take(&self) -> Option<SourceError> {
        match self.0.get()? {
            SourceError::Read(error) => Some(SourceError::Read(Arc::clone(error))),
            _ => Some(SourceError::Changed),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn temporary(content: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        file
    }

    async fn read(source: &Source, range: Range<u64>) -> Result<Vec<u8>, SourceError> {
        let blocks: Vec<Bytes> = source.blocks(range).try_collect().await?;
        Ok(blocks.concat())
    }

    #[tokio::test]
    async fn any_range_is_read_in_order() {
        let content: Vec<u8> = (0..1_000_003u32).map(|i| (i % 251) as u8).collect();
        let file = temporary(&content);
        let source = Source::open(file.path()).unwrap();
        assert_eq!(source.size(), 1_000_003);
        assert_eq!(read(&source, 0..1_000_003).await.unwrap(), content);
        assert_eq!(
            read(&source, 131_071..400_000).await.unwrap(),
            content[131_071..400_000]
        );
        assert_eq!(read(&source, 5..5).await.unwrap(), b"");
    }

    /// Promise 3: a copy is the file. The end of a changed file is never sent, so its upload never completes.
    #[tokio::test]
    async fn the_end_of_a_changed_file_is_never_sent() {
        let mut file = temporary(b"the first version");
        let source = Source::open(file.path()).unwrap();
        file.write_all(b" and more").unwrap();
        assert!(matches!(read(&source, 0..17).await, Err(SourceError::Changed)));

        file.as_file().set_len(3).unwrap();
        assert!(matches!(read(&source, 0..17).await, Err(SourceError::Changed)));
    }

    #[test]
    fn another_file_under_the_same_name_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("a"), folder.path().join("b"));
        fs::write(&path, "same").unwrap();
        let source = Source::open(&path).unwrap();
        source.unchanged().unwrap();

        fs::write(&other, "same").unwrap();
        let times = fs::FileTimes::new().set_modified(fs::metadata(&path).unwrap().modified().unwrap());
        File::options()
            .write(true)
            .open(&other)
            .unwrap()
            .set_times(times)
            .unwrap();
        fs::rename(&other, &path).unwrap();
        assert!(matches!(source.unchanged(), Err(SourceError::Changed)));
    }

    #[test]
    fn only_regular_files_are_sent() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Source::open(folder.path()), Err(SourceError::Directory)));
        assert!(matches!(Source::open(Path::new("-")), Err(SourceError::StandardInput)));
        assert!(matches!(
            Source::open(Path::new("/dev/null")),
            Err(SourceError::NotRegular)
        ));
        assert!(matches!(
            Source::open(&folder.path().join("none")),
            Err(SourceError::Open(_))
        ));
    }
}
