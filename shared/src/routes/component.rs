//! One component of an object's name, short enough for every file system. Spec: core.md §8.

use std::borrow::Cow;

use sha2::{Digest as _, Sha256};

/// Longest component in bytes of UTF-8.
pub(super) const MAX_BYTES: usize = 255;

/// `component`, cut if it is too long: its stem loses its end and gets `~` and 8 hex digits of the component's
/// SHA-256, so that two long names with one beginning stay two; the extension is kept. An extension that leaves no
/// room for that is cut like a stem.
pub(super) fn fit(component: &str) -> Cow<'_, str> {
    if component.len() <= MAX_BYTES {
        return Cow::Borrowed(component);
    }
    let [a, b, c, d, ..]: [u8; 32] = Sha256::digest(component).into();
    let mark = format!("~{:08x}", u32::from_be_bytes([a, b, c, d]));
    let (stem, extension) = split_extension(component);
    let (stem, extension, room) = match MAX_BYTES.checked_sub(mark.len() + extension.len()) {
        Some(room) => (stem, extension, room),
        None => (component, "", MAX_BYTES - mark.len()),
    };
    let stem = &stem[..stem.floor_char_boundary(room)];
    Cow::Owned(format!("{stem}{mark}{extension}"))
}

/// A name's stem and its extension: from the last `.` to the end, the dot included. Spec: deliver.md §4.
pub(super) fn split_extension(name: &str) -> (&str, &str) {
    name.split_at(name.rfind('.').unwrap_or(name.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_begin_at_the_last_dot() {
        for (name, split) in [
            ("a.tar.gz", ("a.tar", ".gz")),
            (".profile", ("", ".profile")),
            ("name.", ("name", ".")),
            ("README", ("README", "")),
            ("", ("", "")),
        ] {
            assert_eq!(split_extension(name), split);
        }
    }

    #[test]
    fn what_fits_is_left_alone() {
        for name in [String::new(), "a.csv".into(), "x".repeat(255)] {
            assert_eq!(fit(&name), name);
        }
    }

    #[test]
    fn a_long_stem_is_cut_and_marked_and_the_extension_stays() {
        let long = format!("{}.csv", "x".repeat(252));
        // SHA-256 of the whole component, by another program.
        assert_eq!(fit(&long), format!("{}~19d9e42c.csv", "x".repeat(242)));
        assert_ne!(fit(&long), fit(&format!("{}y.csv", "x".repeat(252))));
    }

    #[test]
    fn characters_are_never_cut_in_half() {
        let long = format!("{}.csv", "ä".repeat(200)); // 242 bytes for the stem would be 121 of these
        let fitted = fit(&format!("x{long}")).into_owned(); // and with one byte before, 120 and a half
        assert!(fitted.starts_with(&format!("x{}~", "ä".repeat(120))) && fitted.ends_with(".csv"));
        assert_eq!(fitted.len(), 254);
    }

    #[test]
    fn an_extension_that_leaves_no_room_is_cut_itself() {
        let extension = format!(".{}", "e".repeat(245)); // 246 bytes: just fits
        let fitted = fit(&format!("stem-of-ten{extension}")).into_owned();
        assert!(fitted.starts_with('~') && fitted.ends_with(&extension));
        assert_eq!(fitted.len(), 255);

        let fitted = fit(&format!("a.{}", "e".repeat(300))).into_owned();
        assert!(fitted.starts_with(&format!("a.{}~", "e".repeat(244))));
        assert_eq!(fitted.len(), 255);
    }
}
