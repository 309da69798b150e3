//! Stores are URLs: `file:///path`. Spec: DESIGN.md, "Stores are URLs".

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::BlobName;

/// A store as a setting names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// A folder of this machine.
    File(PathBuf),
}

/// Text that names no store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreUrlError {
    /// No URL at all.
    #[error("is not a URL; a folder is written file:///path")]
    NotAUrl,
    /// A store of a kind that this build does not have.
    #[error("{0} stores are not in this version of Ferry; it has file:///path")]
    NotInThisVersion(String),
    /// Some other scheme.
    #[error("unknown kind of store {0}; possible is file:///path")]
    UnknownScheme(String),
    /// `file://host/path`, or no path.
    #[error("a folder is written file:///path, with an absolute path and no host")]
    NotAnAbsolutePath,
}

impl StoreUrl {
    /// Where the object `name` of this store is, as reports and `/info` show it; never with credentials.
    /// Spec: deliver.md §5, "Reported location".
    #[must_use]
    pub fn location(&self, name: &BlobName) -> String {
        match self {
            Self::File(path) => path.join(name.as_str()).display().to_string(),
        }
    }
}

impl FromStr for StoreUrl {
    type Err = StoreUrlError;

    fn from_str(text: &str) -> Result<Self, StoreUrlError> {
        let url = url::Url::parse(text).map_err(|_| StoreUrlError::NotAUrl)?;
        match url.scheme() {
            "file" => match url.to_file_path() {
                Ok(path) if path.is_absolute() && url.host_str().is_none_or(str::is_empty) => Ok(Self::File(path)),
                _ => Err(StoreUrlError::NotAnAbsolutePath),
            },
            scheme @ ("s3" | "azblob" | "gs") => Err(StoreUrlError::NotInThisVersion(scheme.to_owned())),
            scheme => Err(StoreUrlError::UnknownScheme(scheme.to_owned())),
        }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => match url::Url::from_file_path(path) {
                Ok(url) => f.write_str(url.as_str()),
                Err(()) => write!(f, "file://{}", path.display()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_read_and_printed_back() {
        let url: StoreUrl = "file:///srv/my%20data".parse().unwrap();
        assert_eq!(url, StoreUrl::File("/srv/my data".into()));
        assert_eq!(url.to_string(), "file:///srv/my%20data");
    }

    #[test]
    fn what_is_no_folder_says_what_would_be() {
        for (text, error) in [
            ("data", StoreUrlError::NotAUrl),
            ("file://host/x", StoreUrlError::NotAnAbsolutePath),
            ("s3://bucket/x", StoreUrlError::NotInThisVersion("s3".into())),
            ("ftp://x/y", StoreUrlError::UnknownScheme("ftp".into())),
        ] {
            assert_eq!(text.parse::<StoreUrl>().unwrap_err(), error);
        }
    }
}
