//! The header `Upload-Metadata`. Spec: TUS 1.0.0, Creation, Upload-Metadata; tus.md, "Answers"; manifests.md §1.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Manifest;

/// Longest header in bytes.
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Most keys in one header.
const MAX_KEYS: usize = 128;
/// Longest key in bytes.
const MAX_KEY_BYTES: usize = 128;
/// Longest value in bytes, after decoding.
const MAX_VALUE_BYTES: usize = 4 * 1024;
/// What may stand around an element: HTTP's optional white space.
const SPACE: [char; 2] = [' ', '\t'];

/// The pairs of a header, in its order. No key is empty or there twice; values are any bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    pairs: Vec<(String, Vec<u8>)>,
}

impl Metadata {
    /// Reads the value of the header: `key base64(value)` or `key`, joined by `,`. An empty header has no pairs.
    ///
    /// # Errors
    /// [`MetadataError::HeaderTooLong`], which has a status of its own; any other is the sender's mistake, 400.
    pub fn parse(header: &[u8]) -> Result<Self, MetadataError> {
        if header.len() > MAX_HEADER_BYTES {
            return Err(MetadataError::HeaderTooLong);
        }
        let header = match std::str::from_utf8(header) {
            Ok(text) if text.is_ascii() => text.trim_matches(SPACE),
            _ => return Err(MetadataError::NotAscii),
        };
        let mut metadata = Self::default();
        if header.is_empty() {
            return Ok(metadata);
        }
        for (index, element) in header.split(',').enumerate() {
            if index == MAX_KEYS {
                return Err(MetadataError::TooManyKeys);
            }
            metadata
                .add(element.trim_matches(SPACE))
                .map_err(|fault| MetadataError::Element {
                    number: index + 1,
                    fault,
                })?;
        }
        Ok(metadata)
    }

    fn add(&mut self, element: &str) -> Result<(), ElementFault> {
        let (key, encoded) = element.split_once(' ').unwrap_or((element, ""));
        if key.is_empty() {
            return Err(ElementFault::EmptyKey);
        }
        if key.len() > MAX_KEY_BYTES {
            return Err(ElementFault::KeyTooLong);
        }
        if key.contains(|c: char| c.is_ascii_control()) {
            return Err(ElementFault::ControlInKey);
        }
        if encoded.contains(' ') {
            return Err(ElementFault::ExtraSpace);
        }
        if self.pairs.iter().any(|(earlier, _)| earlier == key) {
            return Err(ElementFault::RepeatedKey);
        }
        let value = STANDARD.decode(encoded).map_err(|_| ElementFault::BadBase64)?;
        if value.len() > MAX_VALUE_BYTES {
            return Err(ElementFault::ValueTooLong);
        }
        self.pairs.push((key.to_owned(), value));
        Ok(())
    }

    /// Keys and values, in the header's order.
    #[must_use]
    pub fn pairs(&self) -> &[(String, Vec<u8>)] {
        &self.pairs
    }

    /// The pairs as text; what is not UTF-8 in a value becomes U+FFFD.
    #[must_use]
    pub fn to_manifest(&self) -> Manifest {
        self.pairs
            .iter()
            .map(|(key, value)| (key.clone(), String::from_utf8_lossy(value).into_owned()))
            .collect()
    }
}

/// Why a header is refused: one line, which repeats nothing of what the sender wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// Longer than 16 KiB: 431 or 413.
    #[error("Upload-Metadata is longer than {MAX_HEADER_BYTES} bytes")]
    HeaderTooLong,
    /// A byte outside ASCII.
    #[error("Upload-Metadata is not ASCII")]
    NotAscii,
    /// More than 128 pairs.
    #[error("Upload-Metadata has more than {MAX_KEYS} keys")]
    TooManyKeys,
    /// One of its elements is wrong.
    #[error("Upload-Metadata, element {number}: {fault}")]
    Element {
        /// Which one, from 1.
        number: usize,
        /// What is wrong with it.
        fault: ElementFault,
    },
}

/// What is wrong with one element of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElementFault {
    /// No key, or no element between two commas.
    #[error("the key is empty")]
    EmptyKey,
    /// Over 128 bytes.
    #[error("the key is longer than {MAX_KEY_BYTES} bytes")]
    KeyTooLong,
    /// Keys are printable.
    #[error("a control character in the key")]
    ControlInKey,
    /// The same key stands further left.
    #[error("the key is there twice")]
    RepeatedKey,
    /// Only one space, between key and value.
    #[error("more than one space")]
    ExtraSpace,
    /// Standard alphabet, with padding.
    #[error("the value is not base64")]
    BadBase64,
    /// Over 4 KiB.
    #[error("the value is longer than {MAX_VALUE_BYTES} bytes")]
    ValueTooLong,
}

#[cfg(test)]
mod tests {
    use proptest::collection::{hash_map, vec};
    use proptest::prelude::*;

    use super::*;

    fn fault(header: &str) -> (usize, ElementFault) {
        match Metadata::parse(header.as_bytes()) {
            Err(MetadataError::Element { number, fault }) => (number, fault),
            other => panic!("{header:?} gave {other:?}"),
        }
    }

    #[test]
    fn elements_may_have_space_around_them_and_no_value() {
        let expected = [
            ("filename".to_owned(), b"a.csv".to_vec()),
            ("empty".to_owned(), vec![]),
            ("is_final".to_owned(), vec![]),
            ("raw".to_owned(), vec![0xff, 0]),
        ];
        for header in [
            "filename YS5jc3Y=,empty ,is_final,raw /wA=",
            "filename YS5jc3Y=, empty , is_final , raw /wA=",
            "  filename YS5jc3Y=\t,\tempty,is_final,raw /wA= ",
        ] {
            assert_eq!(Metadata::parse(header.as_bytes()).unwrap().pairs(), expected);
        }
    }

    #[test]
    fn an_empty_header_has_no_pairs() {
        for header in ["", " ", "\t "] {
            assert_eq!(Metadata::parse(header.as_bytes()), Ok(Metadata::default()));
        }
    }

    #[test]
    fn keys_differ_by_case() {
        assert_eq!(Metadata::parse(b"key YQ==,Key YQ==").unwrap().pairs().len(), 2);
    }

    #[test]
    fn a_wrong_element_is_named_by_its_place() {
        for header in ["a YQ==,", ",a", "a,,b", ","] {
            assert_eq!(fault(header).1, ElementFault::EmptyKey, "{header:?}");
        }
        assert_eq!(fault("a,b,a"), (3, ElementFault::RepeatedKey));
        assert_eq!(fault("a YQ== YQ=="), (1, ElementFault::ExtraSpace));
        assert_eq!(fault("a  YQ=="), (1, ElementFault::ExtraSpace));
        assert_eq!(fault("a,b\tYQ=="), (2, ElementFault::ControlInKey));
        for bad in ["YQ", "YQ=", "Y", "YR==", "_w==", "YQ==\n", "!", "YQ==YQ=="] {
            assert_eq!(fault(&format!("a {bad}")), (1, ElementFault::BadBase64), "{bad:?}");
        }
        assert_eq!(Metadata::parse("ä YQ==".as_bytes()), Err(MetadataError::NotAscii));
        assert_eq!(Metadata::parse(b"\xff"), Err(MetadataError::NotAscii));
        assert_eq!(
            Metadata::parse(b"a,a\r\n").unwrap_err().to_string(),
            "Upload-Metadata, element 2: a control character in the key"
        );
    }

    #[test]
    fn each_limit_holds_to_the_byte() {
        let key = |len| "k".repeat(len);
        assert!(Metadata::parse(key(128).as_bytes()).is_ok());
        assert_eq!(fault(&key(129)), (1, ElementFault::KeyTooLong));

        let value = |len| format!("k {}", STANDARD.encode(vec![b'v'; len]));
        assert!(Metadata::parse(value(4096).as_bytes()).is_ok());
        assert_eq!(fault(&value(4097)), (1, ElementFault::ValueTooLong));

        let keys = |count: usize| (0..count).map(|i| format!("k{i}")).collect::<Vec<_>>().join(",");
        assert_eq!(Metadata::parse(keys(128).as_bytes()).unwrap().pairs().len(), 128);
        assert_eq!(Metadata::parse(keys(129).as_bytes()), Err(MetadataError::TooManyKeys));

        assert!(Metadata::parse(&[b' '; 16 * 1024]).is_ok());
        assert_eq!(
            Metadata::parse(&[b' '; 16 * 1024 + 1]),
            Err(MetadataError::HeaderTooLong)
        );
    }

    #[test]
    fn what_is_no_utf8_is_replaced_in_text_only() {
        let metadata = Metadata::parse(b"b Yf9i,a w6Q=").unwrap();
        assert_eq!(metadata.pairs()[0], ("b".to_owned(), b"a\xffb".to_vec()));
        assert_eq!(
            metadata.to_manifest(),
            Manifest::from([
                ("a".to_owned(), "ä".to_owned()),
                ("b".to_owned(), "a\u{fffd}b".to_owned())
            ])
        );
    }

    proptest! {
        #[test]
        fn any_bytes_give_pairs_or_one_clean_line(header in vec(any::<u8>(), 0..300)) {
            if let Err(error) = Metadata::parse(&header) {
                prop_assert!(!error.to_string().contains(char::is_control));
            }
        }

        #[test]
        fn text_that_is_nearly_a_header_gives_pairs_or_one_clean_line(header in "[ab=+/ ,\t\n]{0,40}") {
            match Metadata::parse(header.as_bytes()) {
                Ok(metadata) => for (key, _) in metadata.pairs() {
                    prop_assert!(!key.is_empty() && !key.contains([' ', ',', '\t', '\n']));
                },
                Err(error) => prop_assert!(!error.to_string().contains(char::is_control)),
            }
        }

        #[test]
        fn what_was_encoded_is_read_back(
            pairs in hash_map("[!-+\\--~]{1,20}", vec(any::<u8>(), 0..60), 0..20),
            space in "[ \t]{0,2}",
        ) {
            let pairs: Vec<_> = pairs.into_iter().collect();
            let elements: Vec<_> = pairs.iter().map(|(k, v)| format!("{k} {}", STANDARD.encode(v))).collect();
            let header = elements.join(&format!("{space},{space}"));
            prop_assert_eq!(Metadata::parse(header.as_bytes()), Ok(Metadata { pairs }));
        }
    }
}
