//! One setting, and the reading of many: what was found is kept for `--config-check`, `--help` and the problems,
//! so that all four come from one declaration. Nothing here touches the process's environment.

use std::fmt::Write as _;

use super::problems::{HIDDEN, Problems, printable};
use super::values::Parsed;
use crate::preflight::Need;

/// Looks a variable up: [`environment`] in a service, a map in a test.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The lookup of a service: its process's environment. Text that is not UTF-8 is told by the reader, which finds
/// the replacement character in it; it never counts as unset.
#[must_use]
pub fn environment(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// `flags` before `below`: what the command line says wins over the environment.
pub fn layered<'a>(flags: &'a [(&'a str, String)], below: Lookup<'a>) -> impl Fn(&str) -> Option<String> + 'a {
    move |name| {
        let flag = flags.iter().find(|(flag, _)| *flag == name);
        flag.map(|(_, value)| value.clone()).or_else(|| below(name))
    }
}

/// Values that a program sets where the environment says nothing, in place of the settings' own defaults.
#[derive(Clone, Debug, Default)]
pub struct Defaults(Vec<(&'static str, String)>);

impl Defaults {
    /// `values` by variable.
    pub(super) fn new(values: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        Self(values.into_iter().collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(default, _)| *default == name)
            .map(|(_, value)| value.as_str())
    }
}

/// What holds if a setting has no value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unset {
    /// This value.
    Default(&'static str),
    /// The setting stays empty: what that means.
    Means(&'static str),
    /// The start is refused: what to write.
    Refused(&'static str),
}

/// The declaration of one setting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting<T> {
    /// The variable.
    pub(super) name: &'static str,
    /// What holds without a value.
    pub(super) unset: Unset,
    /// One line for `--help`.
    pub(super) help: &'static str,
    /// Text to value, or to what is allowed.
    pub(super) parse: fn(&str) -> Parsed<T>,
    /// No part of the value is ever printed.
    pub(super) secret: bool,
}

impl<T> Setting<T> {
    /// A setting whose value is nobody's business.
    pub(super) const fn secret(self) -> Self {
        Self {
            secret: true,
            name: self.name,
            unset: self.unset,
            help: self.help,
            parse: self.parse,
        }
    }
}

/// A setting as it was met by a [`Reader`].
#[derive(Debug)]
struct Met {
    name: &'static str,
    help: &'static str,
    unset: Unset,
    program_default: Option<String>,
    value: String,
    secret: bool,
}

impl Met {
    /// The value, as far as it may be shown.
    fn shown(&self) -> &str {
        if self.secret && !self.value.is_empty() {
            HIDDEN
        } else {
            &self.value
        }
    }
}

/// Reads settings one after the other and goes on after a bad one.
pub(super) struct Reader<'a> {
    lookup: Lookup<'a>,
    defaults: Defaults,
    met: Vec<Met>,
    problems: Problems,
    warnings: Vec<String>,
    needs: Vec<(&'static str, Need)>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(lookup: Lookup<'a>, defaults: &Defaults) -> Self {
        Self {
            lookup,
            defaults: defaults.clone(),
            met: Vec::new(),
            problems: Problems::default(),
            warnings: Vec::new(),
            needs: Vec::new(),
        }
    }

    /// The value of `setting`; `None` if it is unset, or bad, which is a problem then. Every setting is to be
    /// read whatever the others say: that is how `--help` finds it.
    pub(super) fn get<T>(&mut self, setting: &Setting<T>) -> Option<T> {
        let name = setting.name;
        let said = self.said(name);
        let program_default = self.defaults.get(name).map(str::to_owned);
        let own_default = match setting.unset {
            Unset::Default(text) => Some(text.to_owned()),
            Unset::Means(_) | Unset::Refused(_) => None,
        };
        let text = said.or_else(|| program_default.clone()).or(own_default);
        if self.met.iter().all(|met| met.name != name) {
            self.met.push(Met {
                name,
                help: setting.help,
                unset: setting.unset,
                program_default,
                value: text.clone().unwrap_or_default(),
                secret: setting.secret,
            });
        }
        match (text, setting.unset) {
            (Some(text), _) => match parse(setting, &text) {
                Ok(value) => Some(value),
                Err(allowed) => {
                    let shown = if setting.secret { HIDDEN } else { &text };
                    self.problems.value(name, shown, &allowed);
                    None
                }
            },
            (None, Unset::Refused(example)) => {
                self.problems.missing(name, example);
                None
            }
            (None, Unset::Means(_) | Unset::Default(_)) => None,
        }
    }

    /// What the environment or a flag says; empty text counts as unset.
    pub(super) fn said(&self, name: &str) -> Option<String> {
        (self.lookup)(name).filter(|text| !text.is_empty())
    }

    /// From here on the program has no default of its own for `setting`.
    pub(super) fn forget_default<T>(&mut self, setting: &Setting<T>) {
        self.defaults.0.retain(|(name, _)| *name != setting.name);
    }

    /// Notes that the value of `setting`, good by itself, does not fit: what is allowed.
    pub(super) fn refuse<T>(&mut self, setting: &Setting<T>, allowed: &str) {
        let value = self.met.iter().find(|met| met.name == setting.name);
        match value.filter(|met| !met.value.is_empty()) {
            Some(met) => self.problems.value(setting.name, met.shown(), allowed),
            None => self.problems.missing(setting.name, allowed),
        }
    }

    /// Notes that the variable `name` is set, which this version has no meaning for. Its value is not shown: it
    /// may be a secret.
    pub(super) fn refuse_variable(&mut self, name: &str, what: &str) {
        self.problems.push(format!("{name}: {what}; unset it"));
    }

    /// Notes what the log must say at the start.
    pub(super) fn warn(&mut self, text: String) {
        if !self.warnings.contains(&text) {
            self.warnings.push(text);
        }
    }

    /// What the log must say, so far.
    pub(super) fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    /// What is good so far as it can be told from the text: a start needs that, as `setting` says.
    pub(super) fn need<T>(&mut self, setting: &Setting<T>, need: Option<Need>) {
        self.needs.extend(need.map(|need| (setting.name, need)));
    }

    /// All that a start needs.
    pub(super) fn needs(&mut self) -> Vec<(&'static str, Need)> {
        std::mem::take(&mut self.needs)
    }

    /// Ends the reading.
    pub(super) fn finish(self) -> Problems {
        self.problems
    }

    /// `NAME=value` of all settings met, a line each, credentials redacted.
    pub(super) fn effective(&self) -> String {
        self.met.iter().fold(String::new(), |mut text, met| {
            text.push_str(met.name);
            text.push('=');
            text.push_str(&printable(met.shown()));
            text.push('\n');
            text
        })
    }

    /// All settings met, each with its help and what holds without it.
    pub(super) fn help(&self) -> String {
        let mut text = String::from(
            "Environment (empty counts as unset; sizes are written 8GiB, durations 30s, stores file:///path):\n",
        );
        let width = self.met.iter().map(|met| met.name.len()).max().unwrap_or_default();
        for met in &self.met {
            let unset = match (&met.program_default, met.unset) {
                (Some(value), _) => format!("[default: {}]", printable(value)),
                (None, Unset::Default(value)) => format!("[default: {value}]"),
                (None, Unset::Means(meaning)) => format!("[unset: {meaning}]"),
                (None, Unset::Refused(_)) => "[required]".into(),
            };
            writeln!(text, "  {:width$}  {} {unset}", met.name, met.help).expect("writing to a String cannot fail");
        }
        text
    }
}

fn parse<T>(setting: &Setting<T>, text: &str) -> Parsed<T> {
    if text.contains(char::REPLACEMENT_CHARACTER) {
        return Err("is not UTF-8 text".into());
    }
    if text.contains(char::is_control) {
        return Err("holds a control character, such as the end of a line".into());
    }
    (setting.parse)(text)
}
