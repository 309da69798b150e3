//! Values on the command line: sizes, durations, metadata, addresses.

use std::time::Duration;

use jiff::SignedDuration;
use url::Url;

/// Where files go if nothing else is said: what `ferry up` listens on by default.
pub(crate) const DEFAULT_COLLECTION: &str = "http://127.0.0.1:8080/files/";

/// A number of bytes above zero: `1048576`, `64KiB`, `8MiB`, `1GiB`, `1TiB`.
///
/// # Errors
/// Text that is no such size, or one over 8 EiB.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err("a size is written like 64KiB, 8MiB or 1GiB".to_owned()),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .filter(|bytes| (1..=1 << 63).contains(bytes))
        .ok_or_else(|| "a size is a whole number above zero, like 8MiB".to_owned())
}

/// A time span above zero: `500ms`, `30s`, `5m`, `1h30m`.
///
/// # Errors
/// Text that is no such time span.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    text.parse::<SignedDuration>()
        .ok()
        .and_then(|span| Duration::try_from(span).ok())
        .filter(|span| !span.is_zero())
        .ok_or_else(|| "a duration is written like 30s, 5m or 1h30m".to_owned())
}

/// One `key=value` of the upload's metadata.
///
/// # Errors
/// No `=`, or a key that TUS cannot carry: empty, not ASCII, with a space or a comma.
pub(crate) fn metadata(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("metadata is written key=value")?;
    if key.is_empty() {
        return Err("the key before = is empty".to_owned());
    }
    if !key.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',') {
        return Err(format!("the key `{key}` must be ASCII without spaces and commas"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// The address of a server's uploads, such as `https://host/files/`.
///
/// # Errors
/// No URL, or not one of HTTP.
pub(crate) fn collection(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        other => Err(format!("`{other}` is not spoken here: http or https")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units_and_are_never_zero() {
        assert_eq!(size("1"), Ok(1));
        assert_eq!(size("64KiB"), Ok(65_536));
        assert_eq!(size("8GiB"), Ok(8 << 30));
        for bad in [
            "",
            "0",
            "0MiB",
            "8MB",
            "8 MiB",
            "-1",
            "1.5GiB",
            "MiB",
            "18446744073709551615TiB",
        ] {
            assert!(size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn durations_name_their_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        for bad in ["", "30", "0s", "-5s", "soon"] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn metadata_values_may_hold_anything_and_keys_what_tus_can_carry() {
        assert_eq!(metadata("a=b=c, d"), Ok(("a".to_owned(), "b=c, d".to_owned())));
        assert_eq!(metadata("a="), Ok(("a".to_owned(), String::new())));
        for bad in ["a", "=b", "a b=c", "a,b=c", "ä=c"] {
            assert!(metadata(bad).is_err(), "{bad:?}");
        }
    }
}
