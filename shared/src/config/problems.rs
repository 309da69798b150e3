//! Everything that is wrong with a configuration, told in one go and without secrets.
//! Spec: faults.md 77; security.md 29.

use std::fmt;

/// All problems of a configuration, each once. `main` prints them on standard error and exits with 2.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(Vec<String>);

impl Problems {
    /// Adds one, unless it is there already. What a start finds out later, as a folder that cannot be written,
    /// goes in here too. `problem` is one line, names the variable and holds no secret.
    pub fn push(&mut self, problem: String) {
        if !self.0.contains(&problem) {
            self.0.push(problem);
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A value that is not allowed, and what is.
    pub(super) fn value(&mut self, name: &str, value: &str, allowed: &str) {
        self.push(format!("{name}={}: {allowed}", printable(value)));
    }

    /// A value that is missing, and what to write.
    pub(super) fn missing(&mut self, name: &str, what: &str) {
        self.push(format!("{name} is missing: {what}"));
    }
}

impl fmt::Display for Problems {
    /// One line per problem, no line end after the last.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Problems {}

/// Query parameters of store URLs that hold no secret; any other may be a key, a token or a signature.
const OPEN_PARAMETERS: [&str; 3] = ["region", "endpoint", "path_style"];

/// `value` for people: on one line, and without what may be a credential. Where it cannot be told, too much is
/// hidden rather than too little.
pub(super) fn printable(value: &str) -> String {
    redacted(value)
        .chars()
        .map(|c| {
            if c.is_control() {
                c.escape_default().to_string()
            } else {
                c.to_string()
            }
        })
        .collect()
}

/// Stands for what is not shown.
pub(super) const HIDDEN: &str = "[redacted]";

fn redacted(value: &str) -> String {
    let Some((scheme, rest)) = value.split_once("://") else {
        // A connection string or a bare token where something else belongs: `…;AccountKey=…`, `?sig=…`.
        let lower = value.to_ascii_lowercase();
        let secret = ["key=", "sig=", "signature=", "token=", "secret", "password", "bearer "];
        return if secret.iter().any(|word| lower.contains(word)) {
            HIDDEN.into()
        } else {
            value.into()
        };
    };
    let mut text = format!("{scheme}://");
    // Up to the last `@`: a password may hold `/`, `?` or `@` that nobody encoded. A folder's name may hold one, too.
    let rest = match rest.rsplit_once('@') {
        Some((_, host)) if !(scheme == "file" && rest.starts_with('/')) => {
            text.push_str(HIDDEN);
            text.push('@');
            host
        }
        _ => rest,
    };
    let Some((place, query)) = rest.split_once('?') else {
        return text + rest;
    };
    text.push_str(place);
    for (separator, parameter) in std::iter::once('?').chain(std::iter::repeat('&')).zip(query.split('&')) {
        text.push(separator);
        match parameter.split_once('=') {
            Some((name, _)) if OPEN_PARAMETERS.contains(&name) => text.push_str(parameter),
            Some((name, _)) => text.push_str(&format!("{name}={HIDDEN}")),
            None => text.push_str(HIDDEN),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Security 29: nothing secret of a setting is printed, wherever it was put.
    #[test]
    fn credentials_are_redacted_wherever_they_hide() {
        for (value, shown) in [
            ("amqp://user:canary@host:5672/v", "amqp://[redacted]@host:5672/v"),
            ("amqp://user:ca/na@ry@host/", "amqp://[redacted]@host/"),
            ("amqp://u:canary@a,amqp://u:canary@b", "amqp://[redacted]@b"),
            ("amqp://u:can?ary@b", "amqp://[redacted]@b"),
            (
                "s3://b/p?region=eu&secret_key=canary",
                "s3://b/p?region=eu&secret_key=[redacted]",
            ),
            (
                "azblob://a/c?sv=1&sig=canary",
                "azblob://a/c?sv=[redacted]&sig=[redacted]",
            ),
            ("AccountName=a;AccountKey=canary", "[redacted]"),
            ("Bearer canary", "[redacted]"),
            ("file:///srv/a@b", "file:///srv/a@b"),
            ("5s,30s", "5s,30s"),
        ] {
            assert_eq!(printable(value), shown);
        }
    }

    #[test]
    fn a_problem_is_one_line_and_told_once() {
        let mut problems = Problems::default();
        problems.value("LISTEN", "x\nRAW_STORE=y\u{1b}[2J", "is not an address");
        problems.value("LISTEN", "x\nRAW_STORE=y\u{1b}[2J", "is not an address");
        assert_eq!(
            problems.to_string(),
            "LISTEN=x\\nRAW_STORE=y\\u{1b}[2J: is not an address"
        );
    }
}
