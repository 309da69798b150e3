//! Calls as what they do to files, names and senders, and claims about their order.

use std::collections::HashMap;
use std::fmt;

use super::line::{self, Call};

/// From the first to the last line of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    begin: usize,
    end: usize,
}

/// What a call did, if it succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Deed {
    /// A file or a folder has this new name.
    Named(String),
    /// A file got a new name instead of its old one.
    Renamed(String, String),
    /// Bytes of a file were changed; the text is what they begin with.
    Written(String, String),
    /// Bytes of a file were read.
    Read(String),
    /// A file or a folder was synced.
    Synced(String),
    /// An answer of this status went to whoever had asked, by method and path.
    Answered(u16, String),
}

/// What a process did, in order.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    deeds: Vec<(Span, Deed)>,
}

/// A sync that should be there and is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing(String);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A moment in a trace: the line in which something began or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(usize);

/// A rename.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renamed {
    /// The old path.
    pub from: String,
    /// The new one.
    pub to: String,
    /// When it began.
    pub begin: Moment,
    /// When it was done.
    pub end: Moment,
}

impl Trace {
    /// Of the output of `strace -f -y`.
    ///
    /// # Panics
    /// It is none.
    #[must_use]
    pub fn parse(lines: &str) -> Self {
        let mut asked = HashMap::new();
        let mut deeds = Vec::new();
        for call in line::calls(lines) {
            let span = Span {
                begin: call.begin,
                end: call.end,
            };
            note_request(&call, &mut asked);
            // A write that failed may have changed a part all the same; nothing else that failed counts.
            if let Some(deed) = deed(&call, &asked)
                && (call.succeeded() || matches!(deed, Deed::Written(..)))
            {
                deeds.push((span, deed));
            }
        }
        Self { deeds }
    }

    /// When each answer of `status` to the requests `asked`, e.g. `PATCH /files/…`, began to be sent.
    #[must_use]
    pub fn answers(&self, status: u16, asked: &str) -> Vec<Moment> {
        self.all(|deed| matches!(deed, Deed::Answered(found, to) if *found == status && to == asked))
            .map(|span| Moment(span.begin))
            .collect()
    }

    /// When each write to `path` whose text has all of `texts` began.
    #[must_use]
    pub fn writes_of(&self, path: &str, texts: &[&str]) -> Vec<Moment> {
        self.all(|deed| {
            matches!(deed, Deed::Written(to, text) if to == path && texts.iter().all(|part| text.contains(part)))
        })
        .map(|span| Moment(span.begin))
        .collect()
    }

    /// How often anything below `folder` was synced.
    #[must_use]
    pub fn syncs_below(&self, folder: &str) -> usize {
        self.all(|deed| matches!(deed, Deed::Synced(path) if path.starts_with(folder)))
            .count()
    }

    /// How often bytes of `path` were read before `moment`.
    #[must_use]
    pub fn reads_of(&self, path: &str, moment: Moment) -> usize {
        self.all(|deed| matches!(deed, Deed::Read(from) if from == path))
            .filter(|span| span.end < moment.0)
            .count()
    }

    /// When the file `path` was made.
    ///
    /// # Errors
    /// It was not.
    pub fn made(&self, path: &str) -> Result<Moment, Missing> {
        self.all(|deed| matches!(deed, Deed::Named(name) if name == path))
            .map(|span| Moment(span.end))
            .next()
            .ok_or_else(|| Missing(format!("{path} is not made")))
    }

    /// The last rename before `moment` to a name that begins with `folder` and has `text` in it.
    ///
    /// # Errors
    /// There is none.
    pub fn renamed_to(&self, folder: &str, text: &str, moment: Moment) -> Result<Renamed, Missing> {
        let mut found = self.deeds.iter().filter_map(|(span, deed)| match deed {
            Deed::Renamed(from, to) if to.starts_with(folder) && to.contains(text) && span.end < moment.0 => {
                Some(Renamed {
                    from: from.clone(),
                    to: to.clone(),
                    begin: Moment(span.begin),
                    end: Moment(span.end),
                })
            }
            _ => None,
        });
        found
            .next_back()
            .ok_or_else(|| Missing(format!("no rename to {folder}…{text} before line {}", moment.0)))
    }

    /// The bytes of `path` are durable at `moment`: a sync of it lies between its last write before and that. Answers
    /// when that sync was done.
    ///
    /// # Errors
    /// They are not, or nothing was written.
    pub fn bytes_durable(&self, path: &str, moment: Moment) -> Result<Moment, Missing> {
        let writes = self.all(|deed| matches!(deed, Deed::Written(to, _) if to == path));
        let last = writes
            .filter(|span| span.begin < moment.0)
            .max_by_key(|span| span.end)
            .ok_or_else(|| Missing(format!("no write to {path} before line {}", moment.0)))?;
        self.synced(path, Moment(last.end), moment)
            .map_err(|Missing(why)| Missing(format!("{why}; its last write is in line {}", last.end)))
    }

    /// `path`, a name that is new since the trace began, is durable at `moment`: its folder was synced after it was
    /// there, and so on upwards for folders that are new, too.
    ///
    /// # Errors
    /// It is not.
    pub fn name_durable(&self, path: &str, moment: Moment) -> Result<(), Missing> {
        let is_new = |deed: &Deed| matches!(deed, Deed::Named(name) | Deed::Renamed(_, name) if name == path);
        let Some(named) = self.all(is_new).find(|span| span.begin < moment.0) else {
            return Ok(());
        };
        let (folder, _) = path.rsplit_once('/').unwrap_or_default();
        self.synced(folder, Moment(named.end), moment)
            .map_err(|Missing(why)| Missing(format!("{why}; {path} is there since line {}", named.end)))?;
        self.name_durable(folder, moment)
    }

    /// Something was written to the log `path` and synced, all of it between `after` and `before`.
    ///
    /// # Errors
    /// It was not.
    pub fn logged(&self, path: &str, after: Moment, before: Moment) -> Result<(), Missing> {
        let writes = self.all(|deed| matches!(deed, Deed::Written(to, _) if to == path));
        let mut within = writes.filter(|span| span.begin > after.0 && span.end < before.0);
        let Some(first) = within.next() else {
            return Err(Missing(format!(
                "{path} is not written between lines {} and {}",
                after.0, before.0
            )));
        };
        self.synced(path, Moment(first.end), before).map(drop)
    }

    /// When the first sync of `path` that lies between the two moments was done.
    ///
    /// # Errors
    /// There is none.
    pub fn synced(&self, path: &str, after: Moment, before: Moment) -> Result<Moment, Missing> {
        let mut syncs = self.all(|deed| matches!(deed, Deed::Synced(what) if what == path));
        syncs
            .find(|span| span.begin > after.0 && span.end < before.0)
            .map(|span| Moment(span.end))
            .ok_or_else(|| Missing(format!("no sync of {path} between lines {} and {}", after.0, before.0)))
    }

    fn all<'a>(&'a self, wanted: impl Fn(&Deed) -> bool + 'a) -> impl Iterator<Item = Span> + 'a {
        let deeds = self.deeds.iter().filter(move |(_, deed)| wanted(deed));
        deeds.map(|(span, _)| *span)
    }
}

/// Remembers what was asked last on a connection.
fn note_request(call: &Call, asked: &mut HashMap<String, String>) {
    if !matches!(call.name.as_str(), "recvfrom" | "read") {
        return;
    }
    let Some(socket) = call.path().filter(|path| path.starts_with("socket:")) else {
        return;
    };
    let texts = call.texts();
    let request = texts.first().and_then(|text| text.split_once(" HTTP/1.1\r\n"));
    if let Some((request, _)) = request {
        asked.insert(socket.to_owned(), request.to_owned());
    }
}

fn deed(call: &Call, asked: &HashMap<String, String>) -> Option<Deed> {
    let path = call.path().unwrap_or_default().to_owned();
    let texts = call.texts();
    let first = texts.first().map_or("", String::as_str);
    Some(match call.name.as_str() {
        "openat" | "openat2" if call.args.contains("O_CREAT") => Deed::Named(below(&path, first)),
        "mkdirat" => Deed::Named(below(&path, first)),
        "rename" | "renameat" | "renameat2" | "linkat" => {
            let mut folders = line::paths(&call.args);
            let from = below(folders.next().unwrap_or_default(), first);
            let to = below(folders.next().unwrap_or_default(), texts.get(1)?);
            Deed::Renamed(from, to)
        }
        "fsync" | "fdatasync" => Deed::Synced(path),
        "pread64" => Deed::Read(path),
        "write" | "writev" | "pwrite64" | "pwritev" | "sendto" | "sendmsg" if path.starts_with("socket:") => {
            let status = first.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
            Deed::Answered(status, asked.get(&path)?.clone())
        }
        "write" | "writev" | "pwrite64" | "pwritev" | "ftruncate" | "fsetxattr" if path.starts_with('/') => {
            Deed::Written(path, first.to_owned())
        }
        "copy_file_range" => Deed::Written(line::paths(&call.args).nth(1)?.to_owned(), String::new()),
        _ => return None,
    })
}

/// `name` in `folder`, as a path.
fn below(folder: &str, name: &str) -> String {
    match (name.strip_prefix('/'), folder) {
        (Some(_), _) | (None, "") => name.to_owned(),
        (None, folder) => format!("{folder}/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: &str = "7 recvfrom(9<socket:[1]>, \"PATCH /files/u HTTP/1.1\\r\\nHost: x\\r\\n\", 99, 0) = 30\n";
    const WRITE: &str = "8 pwrite64(5</d/s/a>, \"ab\"..., 2, 0) = 2\n";
    const SYNC: &str = "8 fdatasync(5</d/s/a>) = 0\n";
    const ANSWER: &str = "7 sendto(9<socket:[1]>, \"HTTP/1.1 204 No Content\\r\\n\", 20, 0, NULL, 0) = 20\n";

    fn proof(lines: &[&str]) -> Result<Moment, Missing> {
        let trace = Trace::parse(&lines.concat());
        let answers = trace.answers(204, "PATCH /files/u");
        assert_eq!(answers.len(), 1, "{trace:?}");
        trace.bytes_durable("/d/s/a", answers[0])
    }

    #[test]
    fn a_sync_between_the_last_write_and_the_answer_is_a_proof() {
        assert_eq!(proof(&[ASKED, WRITE, SYNC, ANSWER]), Ok(Moment(2)));
        assert_eq!(proof(&[ASKED, WRITE, SYNC, WRITE, SYNC, ANSWER]), Ok(Moment(4)));
    }

    #[test]
    fn a_sync_that_is_missing_or_failed_or_was_elsewhere_is_none() {
        let begun = "8 fdatasync(5</d/s/a> <unfinished ...>\n";
        let ended = "8 <... fdatasync resumed>) = 0\n";
        for lines in [
            &[ASKED, WRITE, ANSWER][..],
            &[ASKED, WRITE, ANSWER, SYNC],
            &[ASKED, SYNC, WRITE, ANSWER],
            &[ASKED, WRITE, SYNC, WRITE, ANSWER],
            &[ASKED, WRITE, "8 fdatasync(5</d/s/b>) = 0\n", ANSWER],
            &[
                ASKED,
                WRITE,
                "8 fdatasync(5</d/s/a>) = -1 EIO (Input/output error) (INJECTED)\n",
                ANSWER,
            ],
            // It had begun before the last bytes were there, or was not done when the answer went out.
            &[ASKED, begun, "7 pwrite64(5</d/s/a>, \"c\", 1, 2) = 1\n", ended, ANSWER],
            &[ASKED, WRITE, begun, ANSWER, ended],
            &[ASKED, SYNC, ANSWER],
        ] {
            proof(lines).expect_err(&lines.concat());
        }
    }

    #[test]
    fn a_new_name_needs_the_sync_of_its_folder_and_of_every_new_folder_above() {
        let new = "1 mkdirat(3</d>, \"x\", 0755) = 0\n1 mkdirat(3</d>, \"x/y\", 0755) = 0\n\
                   1 renameat2(4</d/s>, \"a\", 5</d/x/y>, \"b\", RENAME_NOREPLACE) = 0\n";
        let synced = |folders: &[&str]| {
            let syncs = folders.iter().map(|folder| format!("1 fsync(6<{folder}>) = 0\n"));
            let trace = Trace::parse(&format!("{new}{}", syncs.collect::<String>()));
            trace.name_durable("/d/x/y/b", Moment(99))
        };
        assert_eq!(synced(&["/d/x/y", "/d/x", "/d"]), Ok(()));
        for folders in [&["/d/x/y", "/d/x"][..], &["/d/x/y", "/d"], &["/d/x", "/d"], &[]] {
            synced(folders).unwrap_err();
        }
        let trace = Trace::parse(new);
        let renamed = trace.renamed_to("/d/x/", "b", Moment(99)).unwrap();
        assert_eq!((renamed.from.as_str(), renamed.to.as_str()), ("/d/s/a", "/d/x/y/b"));
    }

    #[test]
    fn a_log_must_be_written_and_synced_in_the_given_time() {
        let (write, sync) = ("1 pwrite64(3</l>, \"x\", 1, 0) = 1\n", "1 fdatasync(3</l>) = 0\n");
        let trace = |lines: &[&str]| Trace::parse(&lines.concat()).logged("/l", Moment(0), Moment(3));
        assert_eq!(trace(&[ASKED, write, sync, ANSWER]), Ok(()));
        trace(&[write, ASKED, sync, ANSWER]).unwrap_err();
        trace(&[ASKED, sync, write, ANSWER]).unwrap_err();
    }
}
