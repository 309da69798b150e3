//! What each do-nothing server does with the bytes that it is sent.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use clap::ValueEnum;

/// As much as is copied at once.
const STEP: usize = 1024 * 1024;

/// How little a server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Reads and answers
    Discarding,
    /// One file for each upload
    Writing,
    /// The same; before the last answer fdatasync, rename and fsync of the folder
    Syncing,
    /// The same; before the last answer two copies, made in the same way
    Delivering,
}

/// Where the uploads of one server go.
#[derive(Debug)]
pub(crate) struct Sink {
    kind: Kind,
    raw: Folder,
    targets: Vec<Folder>,
    uploads: Mutex<HashMap<u64, Upload>>,
    next: AtomicU64,
}

#[derive(Debug)]
struct Upload {
    length: u64,
    offset: u64,
    /// Until a request takes it to write.
    file: Option<File>,
}

/// One request's turn to write an upload.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    sink: &'a Sink,
    id: u64,
    length: u64,
    offset: u64,
    file: Option<File>,
}

/// A folder, opened once for all syncs of it.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    handle: File,
}

impl Sink {
    /// A sink of `kind` in the existing folder `folder`.
    ///
    /// # Errors
    /// The folders in it cannot be made.
    pub(crate) fn new(kind: Kind, folder: &std::path::Path) -> io::Result<Self> {
        let targets = match kind {
            Kind::Delivering => vec![Folder::make(folder.join("dex"))?, Folder::make(folder.join("edav"))?],
            Kind::Discarding | Kind::Writing | Kind::Syncing => Vec::new(),
        };
        Ok(Self {
            kind,
            raw: Folder::make(folder.join("raw"))?,
            targets,
            uploads: Mutex::default(),
            next: AtomicU64::new(1),
        })
    }

    /// Makes an upload and answers its id.
    ///
    /// # Errors
    /// Its file cannot be made.
    pub(crate) fn create(&self, length: u64) -> io::Result<u64> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let file = match self.kind {
            Kind::Discarding => None,
            Kind::Writing => Some(File::create_new(self.raw.whole(id))?),
            Kind::Syncing | Kind::Delivering => Some(File::create_new(self.raw.staged(id))?),
        };
        let upload = Upload {
            length,
            offset: 0,
            file,
        };
        self.uploads().insert(id, upload);
        Ok(id)
    }

    /// Length and offset of an upload, if there is one.
    pub(crate) fn look(&self, id: u64) -> Option<(u64, u64)> {
        self.uploads().get(&id).map(|upload| (upload.length, upload.offset))
    }

    /// Takes the upload to write at `offset`; `None` if it is not there, or not at this offset.
    pub(crate) fn write(&self, id: u64, offset: u64) -> Option<Writer<'_>> {
        let mut uploads = self.uploads();
        let upload = uploads.get_mut(&id).filter(|upload| upload.offset == offset)?;
        Some(Writer {
            sink: self,
            id,
            length: upload.length,
            offset,
            file: upload.file.take(),
        })
    }

    fn uploads(&self) -> MutexGuard<'_, HashMap<u64, Upload>> {
        // No code that holds the lock can panic halfway.
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer<'_> {
    /// Does with `bytes` what this kind does.
    ///
    /// # Errors
    /// They cannot be written.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(file) = &self.file {
            file.write_all_at(bytes, self.offset)?;
        }
        self.offset += bytes.len() as u64;
        Ok(())
    }

    /// Ends the request, and the upload if that is whole. Answers the new offset.
    ///
    /// # Errors
    /// The file cannot be synced, renamed or copied.
    pub(crate) fn end(mut self) -> io::Result<u64> {
        if self.offset == self.length
            && let Some(file) = self.file.take()
        {
            self.finish(&file)?;
        }
        if let Some(upload) = self.sink.uploads().get_mut(&self.id) {
            upload.offset = self.offset;
            upload.file = self.file;
        }
        Ok(self.offset)
    }

    fn finish(&self, file: &File) -> io::Result<()> {
        let sink = self.sink;
        if matches!(sink.kind, Kind::Syncing | Kind::Delivering) {
            sink.raw.reveal(self.id, file)?;
        }
        if sink.targets.is_empty() {
            return Ok(());
        }
        let source = File::open(sink.raw.whole(self.id))?;
        let copies = sink
            .targets
            .iter()
            .map(|target| File::create_new(target.staged(self.id)))
            .collect::<io::Result<Vec<_>>>()?;
        let mut buffer = vec![0; STEP];
        let mut done = 0;
        while done < self.length {
            let step = usize::try_from(self.length - done).map_or(STEP, |left| left.min(STEP));
            source.read_exact_at(&mut buffer[..step], done)?;
            for copy in &copies {
                copy.write_all_at(&buffer[..step], done)?;
            }
            done += step as u64;
        }
        for (target, copy) in sink.targets.iter().zip(&copies) {
            target.reveal(self.id, copy)?;
        }
        Ok(())
    }
}

impl Folder {
    fn make(path: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&path)?;
        let handle = File::open(&path)?;
        Ok(Self { path, handle })
    }

    fn whole(&self, id: u64) -> PathBuf {
        self.path.join(format!("{id:016x}"))
    }

    fn staged(&self, id: u64) -> PathBuf {
        self.path.join(format!(".{id:016x}"))
    }

    /// Makes a staged file durable under its name.
    fn reveal(&self, id: u64, file: &File) -> io::Result<()> {
        file.sync_data()?;
        fs::rename(self.staged(id), self.whole(id))?;
        self.handle.sync_all()
    }
}
