//! Reading `/metrics` as Prometheus would.

use std::collections::BTreeMap;

/// One scrape.
#[derive(Clone, Debug)]
pub struct Metrics {
    samples: Vec<Sample>,
}

#[derive(Clone, Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    /// The samples of a page in the text format.
    ///
    /// # Panics
    /// A line is not in that format.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let samples = lines.map(|line| sample(line).unwrap_or_else(|| panic!("no sample: {line:?}")));
        Self {
            samples: samples.collect(),
        }
    }

    /// The sum of all samples of `name` that have these labels and any others; 0 if there are none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let values = self.matching(name, labels).map(|sample| sample.value);
        values.fold(0.0, |sum, value| sum + value) // the sum of no floats is -0
    }

    /// The same as a whole number, as counters of events are.
    ///
    /// # Panics
    /// It is none.
    #[must_use]
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let sum = self.sum(name, labels);
        // Compared by their texts: no conversion could tell a fraction.
        sum.to_string().parse().unwrap_or_else(|_| panic!("{name} is {sum}"))
    }

    /// Whether there is such a sample: a gauge that nobody has set is not 0.
    #[must_use]
    pub fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.matching(name, labels).next().is_some()
    }

    fn matching<'a>(&'a self, name: &'a str, labels: &'a [(&str, &str)]) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            let has = |(key, value): &(&str, &str)| sample.labels.get(*key).is_some_and(|found| found == value);
            sample.name == name && labels.iter().all(has)
        })
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (name, rest) = match line.split_once('{') {
        Some((name, rest)) => (name, rest),
        None => {
            let (name, value) = line.split_once(' ')?;
            return Some(Sample {
                name: name.to_owned(),
                labels: BTreeMap::new(),
                value: value.trim().parse().ok()?,
            });
        }
    };
    let mut labels = BTreeMap::new();
    let mut rest = rest;
    while !rest.starts_with('}') {
        let (key, quoted) = rest.split_once("=\"")?;
        let (value, after) = unquote(quoted)?;
        labels.insert(key.trim_start_matches(',').to_owned(), value);
        rest = after;
    }
    Some(Sample {
        name: name.to_owned(),
        labels,
        value: rest.strip_prefix('}')?.trim().parse().ok()?,
    })
}

/// The value up to its closing quote, and what follows that.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            char => value.push(char),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_over_the_labels_that_are_not_asked_for() {
        let text = "# HELP a Help.\n# TYPE a counter\na{t=\"dex\",r=\"ok\"} 3\na{t=\"dex\",r=\"a \\\"b\\\", c}\"} 4\n\
                    a{t=\"edav\",r=\"ok\"} 5\nb 1.5\n";
        let metrics = Metrics::parse(text);
        assert_eq!(metrics.count("a", &[]), 12);
        assert_eq!(metrics.count("a", &[("t", "dex")]), 7);
        assert_eq!(metrics.count("a", &[("r", "a \"b\", c}")]), 4);
        assert_eq!(metrics.count("a", &[("t", "none")]), 0);
        assert!((metrics.sum("b", &[]) - 1.5).abs() < f64::EPSILON);
        assert!(metrics.has("b", &[]) && !metrics.has("c", &[]));
    }
}
