//! Lines of `strace -f -y` as calls: which thread, which call on what, with what result, and from which line to which.

use std::collections::HashMap;

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    /// Line in which it began.
    pub(super) begin: usize,
    /// Line in which it ended, the same one if nothing was printed between.
    pub(super) end: usize,
    /// What is called.
    pub(super) name: String,
    /// What stands between the parentheses.
    pub(super) args: String,
    /// What it returned, with what strace says to that; `?` if it never returned.
    pub(super) result: String,
}

impl Call {
    /// It did what it was to do.
    pub(super) fn succeeded(&self) -> bool {
        !self.result.starts_with('-') && !self.result.starts_with('?')
    }

    /// The path behind the first descriptor, `<…>`.
    pub(super) fn path(&self) -> Option<&str> {
        paths(&self.args).next()
    }

    /// The texts in quotation marks, as strace escaped them, but for quotation marks and line ends.
    pub(super) fn texts(&self) -> Vec<String> {
        let mut texts = Vec::new();
        let mut chars = self.args.chars();
        while chars.any(|char| char == '"') {
            let mut text = String::new();
            while let Some(char) = chars.next().filter(|char| *char != '"') {
                match (char, if char == '\\' { chars.next() } else { None }) {
                    ('\\', Some('n')) => text.push('\n'),
                    ('\\', Some('r')) => text.push('\r'),
                    ('\\', Some(quoted @ ('"' | '\\'))) => text.push(quoted),
                    ('\\', Some(other)) => text.extend(['\\', other]),
                    (char, _) => text.push(char),
                }
            }
            texts.push(text);
        }
        texts
    }
}

/// The paths behind descriptors, in order.
pub(super) fn paths(args: &str) -> impl Iterator<Item = &str> {
    args.split(", ").filter_map(|arg| {
        let (descriptor, path) = arg.split_once('<')?;
        let plain = descriptor
            .chars()
            .all(|char| char.is_ascii_alphanumeric() || char == '_');
        let path = path.strip_suffix("(deleted)").unwrap_or(path).strip_suffix('>')?;
        plain.then_some(path)
    })
}

/// All calls of `lines`, in the order in which they began.
///
/// # Panics
/// A line is none of strace's.
pub(super) fn calls(lines: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    // Which call a thread is in.
    let mut open: HashMap<&str, usize> = HashMap::new();
    for (at, line) in lines.lines().enumerate() {
        let (thread, rest) = line.split_once(' ').unwrap_or_else(|| panic!("no thread: {line:?}"));
        let rest = rest.trim_start();
        if rest.starts_with("+++") || rest.starts_with("---") {
            continue;
        }
        if let Some(resumed) = rest.strip_prefix("<... ") {
            // Of one that began before strace was attached nothing is known.
            if let Some(call) = open.remove(thread) {
                let (_, tail) = resumed
                    .split_once(" resumed>")
                    .unwrap_or_else(|| panic!("not resumed: {line:?}"));
                let whole = format!("{}{tail}", calls[call].args);
                let (args, result) = split_result(&whole);
                calls[call].end = at;
                (calls[call].args, calls[call].result) = (args.to_owned(), result.to_owned());
            }
            continue;
        }
        let Some((name, rest)) = rest.split_once('(') else {
            panic!("no call: {line:?}")
        };
        let unfinished = rest.strip_suffix(" <unfinished ...>");
        let (args, result) = match unfinished {
            Some(args) => (args, "?"),
            None => split_result(rest),
        };
        calls.push(Call {
            begin: at,
            end: if unfinished.is_some() { usize::MAX } else { at },
            name: name.to_owned(),
            args: args.to_owned(),
            result: result.to_owned(),
        });
        if unfinished.is_some() {
            open.insert(thread, calls.len() - 1);
        }
    }
    calls
}

/// Arguments and result of `…)   = …`. A line that was cut has no result.
fn split_result(rest: &str) -> (&str, &str) {
    let Some((args, result)) = rest.rsplit_once(" = ") else {
        return (rest, "?");
    };
    (args.trim_end().trim_end_matches(')'), result.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_others_interrupt_lasts_from_its_first_line_to_its_last() {
        let calls = calls(
            "1 pwrite64(5</d/a>, \"x = y)\\n\", 7, 0) = 7\n\
             1 fdatasync(5</d/a> <unfinished ...>\n\
             22 sendto(9<socket:[77]>, \"HTTP/1.1 204\\r\\n\\r\\n\", 16, MSG_NOSIGNAL, NULL, 0) = 16\n\
             1 <... fdatasync resumed>)                 = 0\n\
             3 <... futex resumed>)                    = 0\n\
             22 --- SIGTERM {si_signo=SIGTERM} ---\n\
             22 fsync(4</d>)                       = -1 EIO (Input/output error) (INJECTED)\n\
             22 fsync(4</d> <unfinished ...>\n\
             22 +++ killed by SIGKILL +++\n\
             4 recvfrom(9<socket:[77]>,  <unfinished ...>\n\
             4 <... recvfrom resumed>\"PATCH\", 8192, 0, NULL, NULL) = 5\n",
        );
        let short: Vec<_> = calls
            .iter()
            .map(|call| (call.begin, call.end, call.name.as_str(), call.path(), call.succeeded()))
            .collect();
        assert_eq!(
            short,
            [
                (0, 0, "pwrite64", Some("/d/a"), true),
                (1, 3, "fdatasync", Some("/d/a"), true),
                (2, 2, "sendto", Some("socket:[77]"), true),
                (6, 6, "fsync", Some("/d"), false),
                (7, usize::MAX, "fsync", Some("/d"), false),
                (9, 10, "recvfrom", Some("socket:[77]"), true),
            ]
        );
        assert_eq!(calls[0].texts(), ["x = y)\n"]);
        assert_eq!(calls[2].texts(), ["HTTP/1.1 204\r\n\r\n"]);
    }

    #[test]
    fn both_folders_and_both_names_of_a_rename_are_seen() {
        assert_eq!(paths("5</a/x>(deleted), \"a<b\", 3").collect::<Vec<_>>(), ["/a/x"]);
        let all = calls("794   renameat2(4</a/b>, \"x\\\"\", 3</a>, \"y/z\", RENAME_NOREPLACE) = 0\n");
        assert_eq!(paths(&all[0].args).collect::<Vec<_>>(), ["/a/b", "/a"]);
        assert_eq!(all[0].texts(), ["x\"", "y/z"]);
    }
}
