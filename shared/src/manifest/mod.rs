//! The sender's manifest: the key/value pairs of `Upload-Metadata`. Spec: manifests.md.

mod metadata;
mod transform;

use std::collections::BTreeMap;
use std::fmt;

pub use metadata::{ElementFault, Metadata, MetadataError};
pub use transform::{Transform, TransformAction, add_keys};

/// A manifest as text: keys and values, with `upload_id` and `dex_ingest_datetime` once it is stored.
pub type Manifest = BTreeMap<String, String>;

/// Key of the upload's id, set by Ferry. Spec: manifests.md §7.
pub const UPLOAD_ID: &str = "upload_id";
/// Key of the time of creation, RFC 3339 in UTC, set by Ferry. Spec: manifests.md §7.
pub const INGEST_TIME: &str = "dex_ingest_datetime";
/// The keys that may hold the file's name; the first one present counts. Spec: manifests.md §2.
pub const FILE_NAME_KEYS: [&str; 4] = [
    "filename",
    "original_filename",
    "meta_ext_filename",
    "received_filename",
];

/// The file's name as the sender gave it: the first file-name key that is present, even if its value is empty.
#[must_use]
pub fn file_name(manifest: &Manifest) -> Option<&str> {
    FILE_NAME_KEYS
        .iter()
        .find_map(|key| manifest.get(*key))
        .map(String::as_str)
}

/// Checks every file name in the manifest, whether or not it is the one that counts. Spec: manifests.md §5, "After
/// all fields".
///
/// # Errors
/// A name has a `/` or a control character, or is `.` or `..`; the error holds an entry for each such name.
pub fn check_file_names(manifest: &Manifest) -> Result<(), FileNameError> {
    let mut refused: Vec<String> = Vec::new();
    for name in FILE_NAME_KEYS.iter().filter_map(|key| manifest.get(*key)) {
        if !is_file_name(name) && !refused.contains(name) {
            refused.push(name.clone());
        }
    }
    if refused.is_empty() {
        Ok(())
    } else {
        Err(FileNameError { refused })
    }
}

fn is_file_name(name: &str) -> bool {
    !matches!(name, "." | "..") && !name.contains(|c: char| c == '/' || c.is_ascii_control())
}

/// File names that are refused. Printed, it is one line without control characters, fit to be sent to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileNameError {
    refused: Vec<String>,
}

impl FileNameError {
    /// The entries as they stand in `validation_errors`, raw: a name may hold newlines or worse. One for each
    /// different name, in the order of [`FILE_NAME_KEYS`].
    #[must_use]
    pub fn entries(&self) -> Vec<String> {
        self.refused.iter().map(entry).collect()
    }
}

impl fmt::Display for FileNameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.refused.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{}", entry(name.escape_debug()))?;
        }
        Ok(())
    }
}

impl std::error::Error for FileNameError {}

fn entry(name: impl fmt::Display) -> String {
    format!("invalid character found in {name} validation failure")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(pairs: &[(&str, &str)]) -> Manifest {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn the_first_file_name_key_counts_even_if_it_is_empty() {
        assert_eq!(file_name(&manifest(&[("name", "x")])), None);
        assert_eq!(file_name(&manifest(&[("received_filename", "r")])), Some("r"));
        assert_eq!(
            file_name(&manifest(&[("received_filename", "r"), ("meta_ext_filename", "m")])),
            Some("m")
        );
        assert_eq!(
            file_name(&manifest(&[("original_filename", "o"), ("meta_ext_filename", "m")])),
            Some("o")
        );
        assert_eq!(
            file_name(&manifest(&[("filename", ""), ("original_filename", "o")])),
            Some("")
        );
    }

    #[test]
    fn names_that_are_paths_or_hold_control_characters_are_refused() {
        for name in ["test/-file", "/", ".", "..", "a\0", "a\r\nb", "\u{1f}", "\u{7f}"] {
            let error = check_file_names(&manifest(&[("received_filename", name)])).unwrap_err();
            assert_eq!(
                error.entries(),
                [format!("invalid character found in {name} validation failure")]
            );
        }
        for name in ["", "a", "...", ".profile", "a\\b", "x y \"z\".csv", "ä…"] {
            assert_eq!(check_file_names(&manifest(&[("received_filename", name)])), Ok(()));
        }
        assert_eq!(check_file_names(&manifest(&[("path", "a/b")])), Ok(()));
    }

    #[test]
    fn all_four_keys_are_checked_in_their_order_and_no_entry_is_repeated() {
        let error = check_file_names(&manifest(&[
            ("received_filename", "r/"),
            ("meta_ext_filename", "a/b"),
            ("original_filename", "fine"),
            ("filename", "r/"),
        ]))
        .unwrap_err();
        assert_eq!(
            error.entries(),
            [
                "invalid character found in r/ validation failure",
                "invalid character found in a/b validation failure"
            ]
        );
    }

    #[test]
    fn the_one_line_form_escapes_what_the_sender_wrote() {
        let error = check_file_names(&manifest(&[
            ("filename", "a\r\nX: y\u{1b}"),
            ("original_filename", ".."),
        ]));
        assert_eq!(
            error.unwrap_err().to_string(),
            "invalid character found in a\\r\\nX: y\\u{1b} validation failure; \
             invalid character found in .. validation failure"
        );
    }
}
