//! Reports as lines of a file. Spec: reports.md §5, core.md §7.
//!
//! A report counts as handed over when its line is with the kernel: it survives the end of any process, but no
//! power loss. A sync per report would cost more than the reports are worth; the records say the same.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::{Fate, Report, Sink, SinkError};
use crate::failure::FailureClass;

/// One report per line, in a file that several processes may append to, and that may be moved away at any time.
#[derive(Debug)]
pub struct JsonlSink {
    lines: Arc<Lines>,
}

impl JsonlSink {
    /// The sink that appends to `path`. File and folder are made when they are needed, again if they vanish.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            lines: Arc::new(Lines {
                path: path.to_owned(),
                open: Mutex::new(None),
            }),
        }
    }

    async fn blocking(
        &self,
        operation: &'static str,
        work: impl FnOnce(&Lines) -> io::Result<()> + Send + 'static,
    ) -> Result<(), SinkError> {
        let lines = self.lines.clone();
        let (class, fate, source) = match tokio::task::spawn_blocking(move || work(&lines)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => (class(error.kind()), Fate::Away, error.into()),
            // Panicked, or the runtime is going down.
            Err(ended) => (FailureClass::Transient, Fate::Unknown, ended.into()),
        };
        Err(SinkError {
            operation,
            object: self.lines.path.display().to_string(),
            class,
            fate,
            retry_after: None,
            source,
        })
    }
}

#[async_trait]
impl Sink for JsonlSink {
    fn name(&self) -> &'static str {
        "jsonl"
    }

    fn at_once(&self) -> usize {
        1 // they would wait for each other's lock
    }

    fn takes_late(&self) -> bool {
        false // nobody but us writes what we write
    }

    async fn send(&self, report: &Report) -> Result<(), SinkError> {
        let mut line = report.to_json();
        line.push('\n');
        self.blocking("append to", move |lines| lines.append(&line)).await
    }

    async fn check(&self) -> Result<(), SinkError> {
        self.blocking("open", Lines::check).await
    }
}

fn class(kind: ErrorKind) -> FailureClass {
    match kind {
        ErrorKind::PermissionDenied => FailureClass::Denied,
        // Already there: a file where the folder should be.
        ErrorKind::AlreadyExists
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory
        | ErrorKind::ReadOnlyFilesystem
        | ErrorKind::InvalidFilename
        | ErrorKind::Unsupported => FailureClass::Configuration,
        _ => FailureClass::Transient,
    }
}

/// The file. Its methods block.
#[derive(Debug)]
struct Lines {
    path: PathBuf,
    /// Kept from report to report; dropped, and with it its lock, by every error.
    open: Mutex<Option<File>>,
}

impl Lines {
    fn append(&self, line: &str) -> io::Result<()> {
        self.with_file(|file| append(file, line))
    }

    fn check(&self) -> io::Result<()> {
        self.with_file(|_| Ok(()))
    }

    /// Runs `work` on the file that the path names now, locked against everybody else who appends: without the
    /// lock, a line that another process is just writing would look torn.
    fn with_file(&self, work: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let file = self.current(open.take())?;
        work(&file)?;
        file.unlock()?;
        *open = Some(file);
        Ok(())
    }

    fn current(&self, kept: Option<File>) -> io::Result<File> {
        if let Some(file) = kept
            && self.lock_if_current(&file)?
        {
            return Ok(file);
        }
        let file = self.create()?;
        if self.lock_if_current(&file)? {
            Ok(file)
        } else {
            Err(io::Error::other("moved away while it was opened"))
        }
    }

    fn create(&self) -> io::Result<File> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        // Read, too: whether the last line is torn.
        File::options().read(true).append(true).create(true).open(&self.path)
    }

    /// Locks `file`, and answers whether the path still names it: it may have been rotated or removed.
    fn lock_if_current(&self, file: &File) -> io::Result<bool> {
        file.lock()?;
        match fs::metadata(&self.path) {
            Ok(named) => {
                let held = file.metadata()?;
                Ok((named.dev(), named.ino()) == (held.dev(), held.ino()))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Appends `line` with one write, after ending a line that a crash or a full disk has torn. That is looked for each
/// time, not only at opening: the process that tore it may be another one.
fn append(mut file: &File, line: &str) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(line.len() + 1);
    if ends_torn(file)? {
        bytes.push(b'\n');
    }
    bytes.extend_from_slice(line.as_bytes());
    loop {
        match file.write(&bytes) {
            Ok(written) if written == bytes.len() => return Ok(()),
            Ok(written) => {
                let reason = format!("only {written} of {} bytes were written", bytes.len());
                return Err(io::Error::new(ErrorKind::WriteZero, reason));
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn ends_torn(file: &File) -> io::Result<bool> {
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() == 0 {
        return Ok(false); // pipes and terminals have no end to look at
    }
    let mut last = [0];
    file.read_exact_at(&mut last, metadata.len() - 1)?;
    Ok(last != *b"\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::report::tests::one_of_each;

    fn report() -> Report {
        one_of_each().remove(0)
    }

    fn lines(path: &Path) -> Vec<String> {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        text.lines().map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn reports_are_appended_line_by_line_to_a_file_in_a_folder_made_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/deep/reports.jsonl");
        let reports = one_of_each();
        for half in reports.chunks(3) {
            let sink = JsonlSink::new(&path);
            for report in half {
                sink.send(report).await.unwrap();
            }
        }
        let expected: Vec<_> = reports.iter().map(Report::to_json).collect();
        assert_eq!(lines(&path), expected);
    }

    // core.md §7: a torn last line is ended before anything follows it.
    #[tokio::test]
    async fn a_torn_last_line_is_ended_first_whoever_tore_it_and_whenever() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reports.jsonl");
        fs::write(&path, "{\"torn\":").unwrap();
        let sink = JsonlSink::new(&path);
        sink.send(&report()).await.unwrap();
        let mut other = File::options().append(true).open(&path).unwrap();
        other.write_all(b"{\"later").unwrap();
        sink.send(&report()).await.unwrap();
        let good = report().to_json();
        assert_eq!(lines(&path), ["{\"torn\":", &good, "{\"later", &good]);
    }

    #[tokio::test]
    async fn a_file_that_was_rotated_or_removed_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logs/reports.jsonl");
        let sink = JsonlSink::new(&path);
        sink.send(&report()).await.unwrap();

        let rotated = folder.path().join("reports.1");
        fs::rename(&path, &rotated).unwrap();
        sink.send(&report()).await.unwrap();
        assert_eq!(lines(&rotated).len(), 1);
        assert_eq!(lines(&path).len(), 1);

        fs::rename(&path, &rotated).unwrap();
        JsonlSink::new(&path).send(&report()).await.unwrap(); // another process was first
        sink.send(&report()).await.unwrap();
        assert_eq!(lines(&rotated).len(), 1);
        assert_eq!(lines(&path).len(), 2);

        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        sink.send(&report()).await.unwrap();
        assert_eq!(lines(&path).len(), 1);
    }

    #[tokio::test]
    async fn reports_of_many_tasks_and_two_handles_never_mix() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reports.jsonl");
        let sinks = [JsonlSink::new(&path), JsonlSink::new(&path)].map(Arc::new);
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..20 {
            let sink = sinks[task % 2].clone();
            tasks.spawn(async move {
                for _ in 0..20 {
                    sink.send(&report()).await.unwrap();
                }
            });
        }
        tasks.join_all().await;
        assert_eq!(lines(&path), vec![report().to_json(); 400]);
    }

    #[tokio::test]
    async fn a_line_that_another_process_is_just_writing_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reports.jsonl");
        let mut other = File::options().append(true).create(true).open(&path).unwrap();
        other.lock().unwrap();
        other.write_all(b"{\"half\":").unwrap();
        let mut send = tokio::spawn(async move { JsonlSink::new(&path).send(&report()).await });
        let early = tokio::time::timeout(Duration::from_millis(200), &mut send).await;
        assert!(early.is_err(), "it did not wait");
        other.write_all(b"1}\n").unwrap();
        other.unlock().unwrap();
        send.await.unwrap().unwrap();
        assert_eq!(
            lines(&folder.path().join("reports.jsonl")),
            ["{\"half\":1}", &report().to_json()]
        );
    }

    #[tokio::test]
    async fn a_path_that_can_never_be_a_file_is_configuration_and_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [folder.path().to_owned(), file.join("reports.jsonl")] {
            let sink = JsonlSink::new(&path);
            assert_eq!(sink.check().await.unwrap_err().class, FailureClass::Configuration);
            let error = sink.send(&report()).await.unwrap_err();
            assert_eq!(error.class, FailureClass::Configuration);
            assert_eq!(error.to_string(), format!("append to {}", path.display()));
        }
    }

    #[tokio::test]
    async fn a_full_disk_is_transient_and_the_next_report_gets_through() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reports.jsonl");
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let sink = JsonlSink::new(&path);
        assert!(sink.check().await.is_ok());
        let error = sink.send(&report()).await.unwrap_err();
        assert_eq!(error.class, FailureClass::Transient);

        fs::remove_file(&path).unwrap();
        sink.send(&report()).await.unwrap();
        assert_eq!(lines(&path), [report().to_json()]);
    }
}
