//! One mapping of a file: hands out its keys, and collects what is wrong with them.

use std::cell::RefCell;
use std::time::Duration;

use super::problem::{Note, Place, Problem};
use super::yaml::{Node, Value};
use crate::text::shown;

/// What is being read, and what was found wrong with it.
pub(super) struct Report {
    pub(super) place: Place,
    problems: RefCell<Vec<Problem>>,
    notes: RefCell<Vec<Note>>,
}

impl Report {
    pub(super) fn new(place: Place) -> Self {
        Self { place, problems: RefCell::default(), notes: RefCell::default() }
    }

    pub(super) fn into_parts(self) -> (Vec<Problem>, Vec<Note>) {
        (self.problems.into_inner(), self.notes.into_inner())
    }

    /// `line` 0 stands for the entry's own.
    pub(super) fn problem(&self, line: usize, key: &str, rule: String, remedy: Option<String>) {
        let line = if line == 0 { self.place.line } else { line };
        let place = Place { line, ..self.place.clone() };
        self.problems.borrow_mut().push(Problem { place, key: key.to_owned(), rule, remedy });
    }

    pub(super) fn note(&self, text: String) {
        self.notes.borrow_mut().push(Note { place: self.place.clone(), text });
    }
}

/// A value, and the key that it belongs to.
pub(super) struct Item<'r> {
    pub(super) report: &'r Report,
    /// As `restart.policy`.
    pub(super) key: String,
    pub(super) node: Node,
}

impl<'r> Item<'r> {
    /// Reports that the value breaks the key's rule.
    pub(super) fn wrong(&self, must_be: &str, remedy: Option<String>) {
        let rule = format!("is {}, must be {must_be}", self.node);
        let blank = || self.node.is_null().then(|| "take the line out for the default".to_owned());
        self.report.problem(self.node.line, &self.key, rule, remedy.or_else(blank));
    }

    fn child(&self, key: String, node: Node) -> Self {
        Self { report: self.report, key, node }
    }

    /// A scalar as it is written, whatever its type; no NUL, which no process can be given.
    pub(super) fn written(&self, must_be: &str) -> Option<String> {
        match &self.node.value {
            Value::Scalar { text, .. } if !self.node.is_null() => {
                if text.contains('\0') {
                    self.wrong("text without the character NUL", None);
                    return None;
                }
                Some(text.clone())
            }
            _ => {
                let remedy = match &self.node.value {
                    Value::Scalar { .. } => Some("write \"\" for empty text"),
                    // To YAML, {port} without quotes is a mapping.
                    Value::Map(entries) if matches!(entries.as_slice(), [(_, node)] if node.is_null()) => {
                        Some("put what has braces in quotes")
                    }
                    _ => None,
                };
                self.wrong(must_be, remedy.map(ToOwned::to_owned));
                None
            }
        }
    }

    /// A scalar that is not empty.
    pub(super) fn text(&self, must_be: &str) -> Option<String> {
        let text = self.written(must_be)?;
        if text.trim().is_empty() {
            self.wrong(must_be, None);
            return None;
        }
        Some(text)
    }

    /// A truth value, in the words of YAML 1.1 too, as gppm read them.
    pub(super) fn bool(&self) -> Option<bool> {
        let remedy = match &self.node.value {
            Value::Scalar { text, plain } => {
                let value = match text.to_ascii_lowercase().as_str() {
                    "true" | "yes" | "on" => Some(true),
                    "false" | "no" | "off" => Some(false),
                    _ => None,
                };
                match value {
                    Some(value) if *plain => return Some(value),
                    Some(_) => Some("write it without quotes".to_owned()),
                    None => None,
                }
            }
            _ => None,
        };
        self.wrong("true or false", remedy);
        None
    }

    /// A number without quotes.
    fn number(&self) -> Option<f64> {
        match &self.node.value {
            Value::Scalar { text, plain: true } => text.parse().ok().filter(|value: &f64| value.is_finite()),
            _ => None,
        }
    }

    /// Seconds, whole or not.
    pub(super) fn seconds(&self, least: f64, most: f64) -> Option<Duration> {
        let value = self.number().filter(|value| (least..=most).contains(value));
        let read = value.and_then(|value| Duration::try_from_secs_f64(value).ok());
        if read.is_none() {
            let unit = match &self.node.value {
                Value::Scalar { text, .. } if text.ends_with(['s', 'm', 'h']) => {
                    Some("write the number of seconds, without a unit".to_owned())
                }
                _ => None,
            };
            self.wrong(&format!("a number of seconds from {least} to {most}"), unit);
        }
        read
    }

    /// A whole number.
    pub(super) fn whole(&self, least: u32, most: u32) -> Option<u32> {
        let read = match &self.node.value {
            Value::Scalar { text, plain: true } => {
                text.parse().ok().filter(|value| (least..=most).contains(value))
            }
            _ => None,
        };
        if read.is_none() {
            self.wrong(&format!("a whole number from {least} to {most}"), None);
        }
        read
    }

    pub(super) fn list(self, must_be: &str) -> Vec<Self> {
        match self.node.value {
            Value::List(items) => {
                let key = &self.key;
                let named = items.into_iter().enumerate();
                named
                    .map(|(k, node)| Self { report: self.report, key: format!("{key}[{}]", k + 1), node })
                    .collect()
            }
            _ => {
                self.wrong(must_be, None);
                Vec::new()
            }
        }
    }

    /// The entries of a mapping whose keys are the user's own. A key that stands there twice is a problem.
    pub(super) fn entries(self, must_be: &str) -> Vec<(String, Self)> {
        let Value::Map(entries) = &self.node.value else {
            if !self.node.is_null() {
                self.wrong(must_be, None);
            }
            return Vec::new();
        };
        let mut kept: Vec<(String, Self)> = Vec::new();
        for (name, node) in entries {
            let item = self.child(format!("{}.{}", self.key, shown(name)), node.clone());
            match kept.iter().find(|(known, _)| known == name) {
                Some((_, first)) => {
                    let rule = format!("stands there twice (lines {} and {})", first.node.line, node.line);
                    self.report.problem(node.line, &item.key, rule, Some("take one out".into()));
                }
                None => kept.push((name.clone(), item)),
            }
        }
        kept
    }

    /// The value as a mapping with these keys; anything else in it is a problem.
    pub(super) fn section(self, keys: &'static [&'static str]) -> Option<Section<'r>> {
        Section::open(self.report, &self.key, self.node, keys)
    }
}

/// A mapping with known keys.
pub(super) struct Section<'r> {
    report: &'r Report,
    /// With a point at the end where there is one.
    prefix: String,
    keys: &'static [&'static str],
    entries: Vec<(String, Node)>,
    pub(super) line: usize,
}

impl<'r> Section<'r> {
    /// Opens the mapping `node`, that `key` has (none at the top).
    pub(super) fn open(
        report: &'r Report,
        key: &str,
        node: Node,
        keys: &'static [&'static str],
    ) -> Option<Self> {
        let line = node.line;
        let Value::Map(entries) = node.value else {
            let rule = format!("is {node}, must be a mapping of keys to values");
            report.problem(line, key, rule, Some(format!("keys: {}", keys.join(", "))));
            return None;
        };
        let prefix = if key.is_empty() { String::new() } else { format!("{key}.") };
        let mut section = Self { report, prefix, keys, entries: Vec::new(), line };
        for (name, node) in entries {
            if !keys.contains(&name.as_str()) {
                section.unknown(&name, node.line);
            } else if let Some((_, first)) = section.entries.iter().find(|(known, _)| *known == name) {
                let rule = format!("stands there twice (lines {} and {})", first.line, node.line);
                report.problem(node.line, &section.path(&name), rule, Some("take one out".into()));
            } else {
                section.entries.push((name, node));
            }
        }
        Some(section)
    }

    fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn unknown(&self, name: &str, line: usize) {
        let likely = self
            .keys
            .iter()
            .map(|key| (strsim::jaro_winkler(key, &name.to_lowercase()), key))
            .filter(|(likeness, _)| *likeness > 0.8)
            .max_by(|a, b| a.0.total_cmp(&b.0));
        let remedy = match likely {
            Some((_, key)) => format!("did you mean {key}?"),
            None => format!("keys here: {}", self.keys.join(", ")),
        };
        self.report.problem(line, &self.path(name), "is not a known key".into(), Some(remedy));
    }

    /// Takes the value of `key` out.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Item<'r>> {
        debug_assert!(self.keys.contains(&key), "{key} is not among the keys of {}", self.prefix);
        let at = self.entries.iter().position(|(name, _)| name == key)?;
        let (_, node) = self.entries.remove(at);
        Some(Item { report: self.report, key: self.path(key), node })
    }

    /// The value of a key that has another name in gppm's files.
    pub(super) fn take_either(&mut self, key: &'static str, old: &'static str) -> Option<Item<'r>> {
        let (new, old) = (self.take(key), self.take(old));
        if let (Some(new), Some(old)) = (&new, &old) {
            let rule = format!("is given beside {}, which is the same", new.key);
            self.report.problem(old.node.line, &old.key, rule, Some("take one out".into()));
        }
        new.or(old)
    }

    /// Reports that a key has to be there.
    pub(super) fn missing(&self, key: &str, must_be: &str) {
        let rule = format!("is missing, must be {must_be}");
        self.report.problem(self.line, &self.path(key), rule, Some("add it".into()));
    }
}
