//! Path templates: text with `{{.Name}}` in it. Spec: deliver.md §4.

use std::fmt::Write as _;

use jiff::civil::DateTime;

/// White space inside the braces, and around trim marks.
const SPACE: [char; 4] = [' ', '\t', '\r', '\n'];

/// A template that was read and found good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template {
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Text(String),
    Field(Field),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Year,
    Month,
    Day,
    Hour,
    UploadId,
    Filename,
    DataStreamId,
    DataStreamRoute,
    Nothing,
}

/// What the names in a template stand for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Values<'a> {
    /// Time of creation, as written, in its own offset.
    pub(super) created: DateTime,
    pub(super) upload_id: &'a str,
    /// The file's name without its extension.
    pub(super) stem: &'a str,
    pub(super) data_stream_id: &'a str,
    pub(super) data_stream_route: &'a str,
}

/// Why a text is no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TemplateError {
    /// `{{` without `}}`.
    #[error("{{{{ is not closed")]
    Unclosed,
    /// Something else than a known name in the braces.
    #[error("{{{{{}}}}} is not a known name", .0.escape_debug())]
    Unknown(String),
}

impl Template {
    /// Reads `text`. Of the language that the original took only `{{.Name}}` is left, with spaces and trim marks.
    pub(super) fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut segments = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (action, behind) = after.split_once("}}").ok_or(TemplateError::Unclosed)?;
            // A trim mark is a mark only with a space on its inner side.
            let (trim_before, inner) = match action.strip_prefix('-') {
                Some(inner) if inner.starts_with(SPACE) => (true, inner),
                _ => (false, action),
            };
            let (trim_behind, inner) = match inner.strip_suffix('-') {
                Some(inner) if inner.ends_with(SPACE) => (true, inner),
                _ => (false, inner),
            };
            let field = inner
                .trim_matches(SPACE)
                .strip_prefix('.')
                .and_then(Field::named)
                .ok_or_else(|| TemplateError::Unknown(action.to_owned()))?;
            let before = if trim_before {
                before.trim_end_matches(SPACE)
            } else {
                before
            };
            segments.push(Segment::Text(before.to_owned()));
            segments.push(Segment::Field(field));
            rest = if trim_behind {
                behind.trim_start_matches(SPACE)
            } else {
                behind
            };
        }
        segments.push(Segment::Text(rest.to_owned()));
        Ok(Self { segments })
    }

    /// The text with its names replaced.
    pub(super) fn render(&self, values: &Values<'_>) -> String {
        let mut path = String::new();
        for segment in &self.segments {
            match segment {
                Segment::Text(text) => path.push_str(text),
                Segment::Field(field) => field.render(values, &mut path),
            }
        }
        path
    }
}

impl Field {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "Year" => Self::Year,
            "Month" => Self::Month,
            "Day" => Self::Day,
            "Hour" => Self::Hour,
            "UploadId" => Self::UploadId,
            "Filename" => Self::Filename,
            "DataStreamID" => Self::DataStreamId,
            "DataStreamRoute" => Self::DataStreamRoute,
            "Suffix" | "Prefix" => Self::Nothing, // known to the original, never filled
            _ => return None,
        })
    }

    fn render(self, values: &Values<'_>, path: &mut String) {
        let two_digits = |path: &mut String, number: i8| {
            write!(path, "{number:02}").expect("text can always be written to");
        };
        match self {
            Self::Year => write!(path, "{}", values.created.year()).expect("text can always be written to"),
            Self::Month => two_digits(path, values.created.month()),
            Self::Day => two_digits(path, values.created.day()),
            Self::Hour => two_digits(path, values.created.hour()),
            Self::UploadId => path.push_str(values.upload_id),
            Self::Filename => path.push_str(values.stem),
            Self::DataStreamId => path.push_str(values.data_stream_id),
            Self::DataStreamRoute => path.push_str(values.data_stream_route),
            Self::Nothing => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VALUES: Values<'static> = Values {
        created: jiff::civil::datetime(2024, 3, 7, 5, 9, 8, 0),
        upload_id: "U",
        stem: "file",
        data_stream_id: "Stream",
        data_stream_route: "Route",
    };

    fn rendered(text: &str) -> String {
        Template::parse(text).unwrap().render(&VALUES)
    }

    #[test]
    fn every_name_has_its_value() {
        assert_eq!(
            rendered("{{.Year}} {{.Month}} {{.Day}} {{.Hour}} {{.UploadId}} {{.Filename}}"),
            "2024 03 07 05 U file"
        );
        assert_eq!(
            rendered("{{.DataStreamID}}-{{.DataStreamRoute}}[{{.Suffix}}{{.Prefix}}]"),
            "Stream-Route[]"
        );
    }

    #[test]
    fn space_inside_braces_does_not_count_and_trim_marks_take_what_is_outside() {
        assert_eq!(rendered("a/{{ .UploadId }}/{{\t.Day\n}}"), "a/U/07");
        assert_eq!(rendered("a \n {{- .UploadId }} b"), "aU b");
        assert_eq!(rendered("a {{ .UploadId -}} \n b"), "a Ub");
        assert_eq!(rendered("a {{- .UploadId -}} \t {{- .Day -}} b"), "aU07b");
    }

    #[test]
    fn text_without_names_stays() {
        for text in ["", "a/b", "}} { } {.Year}", "$x"] {
            assert_eq!(rendered(text), text);
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for bad in ["{{", "a{{.Year", "{{.Year}}{{.Month}"] {
            assert_eq!(Template::parse(bad), Err(TemplateError::Unclosed), "{bad:?}");
        }
        for bad in [
            "{{}}",
            "{{ }}",
            "{{-}}",
            "{{- -}}",
            "{{.}}",
            "{{Year}}",
            "{{.year}}",
            "{{..Year}}",
            "{{. Year}}",
            "{{-.Year}}",
            "{{.Year-}}",
            "{{.Year | printf}}",
            "{{/* x */}}",
            "{{.UploadID}}",
            "{{{.Year}}}",
            "{{if .Year}}x{{end}}",
            "{{\"x\"}}",
        ] {
            assert!(
                matches!(Template::parse(bad), Err(TemplateError::Unknown(_))),
                "{bad:?} was accepted"
            );
        }
        assert_eq!(
            Template::parse("x/{{.Nam\n}}").unwrap_err().to_string(),
            "{{.Nam\\n}} is not a known name"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_rendered(text in "[{}. \\-YearDay/]{0,30}") {
            if let Ok(template) = Template::parse(&text) {
                prop_assert!(!template.render(&VALUES).contains("{{"));
            }
        }
    }
}
