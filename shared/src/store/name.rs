//! Names of blobs: the one type through which text becomes the name of anything stored.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The folder of everything that Ferry keeps beside the data.
const RESERVED: &str = ".ferry";
/// Longest name in bytes of UTF-8. Spec: deliver.md §4.
const MAX_LEN: usize = 1024;

/// A blob's name: `/`-separated components, relative, and safe on every store. Spec: security.md 10.
///
/// No component is empty, `.` or `..`; there is no control character and no `\`; at most 1,024 bytes; not below
/// `.ferry/`, unless made by [`BlobName::reserved`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BlobName(String);

/// Text that is no blob's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unsafe path {}: {reason}", name.escape_debug())]
pub struct NameError {
    name: String,
    reason: &'static str,
}

impl BlobName {
    /// Checks `name`, which may come from a sender.
    ///
    /// # Errors
    /// The text breaks a rule of the type; the error says which.
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = Self::checked(name.into())?;
        if name.is_reserved() {
            return Err(NameError {
                name: name.0,
                reason: "names below .ferry are Ferry's own",
            });
        }
        Ok(name)
    }

    /// A name of Ferry's own, below `.ferry/`.
    ///
    /// # Errors
    /// As [`BlobName::new`]; `path` is what follows `.ferry/`.
    pub fn reserved(path: &str) -> Result<Self, NameError> {
        Self::checked(format!("{RESERVED}/{path}"))
    }

    fn checked(name: String) -> Result<Self, NameError> {
        let reason = if name.len() > MAX_LEN {
            "longer than 1,024 bytes"
        } else if name.chars().any(char::is_control) {
            "a control character"
        } else if name.contains('\\') {
            "a backslash"
        } else if name.split('/').any(|component| matches!(component, "" | "." | "..")) {
            "an empty, . or .. component"
        } else {
            return Ok(Self(name));
        };
        Err(NameError { name, reason })
    }

    /// The whole name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name's folder (empty at the top) and its last component.
    #[must_use]
    pub fn split(&self) -> (&str, &str) {
        self.0.rsplit_once('/').unwrap_or(("", &self.0))
    }

    fn is_reserved(&self) -> bool {
        // Compared without regard to case: some file systems do not tell the difference.
        self.0
            .split('/')
            .next()
            .is_some_and(|first| first.eq_ignore_ascii_case(RESERVED))
    }
}

impl fmt::Display for BlobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<BlobName> for String {
    fn from(name: BlobName) -> Self {
        name.0
    }
}

impl TryFrom<String> for BlobName {
    type Error = NameError;

    /// For records, which hold names of both kinds.
    fn try_from(name: String) -> Result<Self, NameError> {
        Self::checked(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_container_or_hide_are_refused() {
        let long = "x".repeat(1025);
        for bad in [
            "", "/a", "a/", "a//b", ".", "..", "a/../b", "a/./b", "a\\b", "a\0b", "a\r\nb", ".ferry/x", ".Ferry", &long,
        ] {
            assert!(BlobName::new(bad).is_err(), "{bad:?} was accepted");
        }
        for good in [
            "a",
            "2026/11/21/x y.csv",
            "…/ä",
            ".profile",
            "a/.ferry/b",
            "..a",
            "%2e%2e/x",
        ] {
            assert_eq!(BlobName::new(good).unwrap().as_str(), good);
        }
        assert_eq!(BlobName::reserved("staged/1").unwrap().split(), (".ferry/staged", "1"));
    }

    #[test]
    fn the_error_shows_the_name_in_one_line() {
        assert_eq!(
            BlobName::new("a\nb").unwrap_err().to_string(),
            "unsafe path a\\nb: a control character"
        );
    }
}
