//! What every refusal looks like. Spec: tus.md, "Answers"; STYLE.md: a body sent to a client never holds a source.

use crate::client::Answer;
use crate::raw::RawAnswer;

/// Longer than any one line that tells a sender what is wrong.
const LONGEST_LINE: usize = 1_000;

/// Checks an answer to a TUS request that is refused: its status, the protocol's version, one line of plain text.
///
/// # Panics
/// It is something else.
#[track_caller]
pub fn assert_refused(what: &str, answer: &Answer, status: u16) {
    assert_eq!(answer.status, status, "{what}: {} {:?}", answer.text(), answer.headers);
    assert_eq!(answer.header("Tus-Resumable"), Some("1.0.0"), "{what}");
    assert_one_line(what, answer.header("Content-Type"), &answer.body);
}

/// The same of an answer to HEAD, which has no body.
///
/// # Panics
/// It is something else.
#[track_caller]
pub fn assert_head_refused(what: &str, answer: &Answer, status: u16) {
    assert_eq!(answer.status, status, "{what}: {:?}", answer.headers);
    assert_eq!(answer.header("Tus-Resumable"), Some("1.0.0"), "{what}");
    assert!(answer.body.is_empty(), "{what}: HEAD has no body");
}

/// The same of an answer that was read by hand.
///
/// # Panics
/// It is something else.
#[track_caller]
pub fn assert_raw_refused(what: &str, answer: &RawAnswer, status: u16) {
    assert_eq!(answer.status, status, "{what}: {answer:?}");
    assert_eq!(answer.header("Tus-Resumable"), Some("1.0.0"), "{what}: {answer:?}");
    assert_one_line(what, answer.header("Content-Type"), &answer.body);
}

#[track_caller]
fn assert_one_line(what: &str, content_type: Option<&str>, body: &[u8]) {
    let content_type = content_type.unwrap_or_default();
    assert!(content_type.starts_with("text/plain"), "{what}: {content_type:?}");
    let text = std::str::from_utf8(body).expect("plain text is UTF-8");
    let line = text.strip_suffix('\n').unwrap_or(text);
    assert!(!line.trim().is_empty(), "{what}: no reason is given");
    assert!(line.len() <= LONGEST_LINE, "{what}: {} bytes", line.len());
    assert!(!line.chars().any(char::is_control), "{what}: {line:?} is not one line");
}
