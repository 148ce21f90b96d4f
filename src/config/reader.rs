//! From the YAML tree to sections: hands each key its value, and collects all there is to complain about.

use std::collections::BTreeSet;

use super::error::{Problem, Warning};
use super::old_keys;
use super::rule::{Rule, likeness};
use super::servers::{SECTIONS, SHORT_KEYS};
use super::yaml::{Node, shown};

/// One `section.key: value` of the file.
struct Entry {
    section: String,
    key: String,
    value: Node,
}

/// A file being read. Keys that no one asks for are unknown.
#[derive(Default)]
pub(super) struct Reader<'t> {
    text: &'t str,
    /// What stands at the top level; a value only where it is not a section.
    tops: Vec<(String, Option<Node>)>,
    entries: Vec<Entry>,
    sections: Vec<&'static str>,
    /// Sections that have keys without use.
    unused_sections: BTreeSet<&'static str>,
    keys: Vec<(&'static str, &'static str)>,
    problems: Vec<Problem>,
    warnings: Vec<Warning>,
    /// It reads an entry of `servers`: keys that have a short name are called by it.
    is_server: bool,
    /// So many decisions without a request, by the old key, in place of [`quiet_s`](super::Parking::quiet_s).
    pub(super) windows: Option<u32>,
}

impl<'t> Reader<'t> {
    /// A reader of what stands at the top level of `text`.
    pub(super) fn new(text: &'t str, tops: Vec<(String, Node)>) -> Self {
        let mut reader = Self { text, ..Self::default() };
        for (section, value) in tops {
            let stray = match value {
                Node::Map(entries) => {
                    let entries = entries.into_iter();
                    reader.entries.extend(entries.map(|(key, value)| Entry {
                        section: section.clone(),
                        key,
                        value,
                    }));
                    None
                }
                // A section whose keys are all commented out.
                Node::Null => None,
                other => Some(other),
            };
            reader.tops.push((section, stray));
        }
        reader
    }

    /// A reader of one entry of `servers`, whose short keys stand for keys of sections.
    pub(super) fn of_server(text: &'t str, entries: Vec<(String, Node)>) -> Self {
        let (sections, own): (Vec<_>, Vec<_>) = entries.into_iter().partition(|(key, node)| match node {
            Node::Map(_) => !SHORT_KEYS.iter().any(|(short, ..)| short == key),
            _ => SECTIONS.contains(&key.as_str()),
        });
        let mut reader = Self { is_server: true, ..Self::new(text, sections) };
        for (key, value) in own {
            let short = SHORT_KEYS.iter().find(|(short, ..)| *short == key);
            let (section, key) = short.map_or(("", key), |(_, section, key)| (*section, (*key).to_owned()));
            reader.entries.push(Entry { section: section.to_owned(), key, value });
        }
        reader
    }

    /// Opens a section; its keys are then asked for one by one.
    pub(super) fn section(&mut self, name: &'static str) -> Section<'_, 't> {
        self.sections.push(name);
        Section { reader: self, name }
    }

    /// Accepts a key that no section asks for with any value and a warning.
    pub(super) fn unused(&mut self, section: &'static str, key: &str, instead: &'static str) {
        self.unused_sections.insert(section);
        if !self.take(section, key).is_empty() {
            self.warn(Warning::Unused { key: self.path(section, Some(key)), instead });
        }
    }

    /// Refuses a key that is another section's alone.
    pub(super) fn refuse(&mut self, section: &'static str, key: &str, why: &str) {
        for node in self.take(section, key) {
            self.wrong(section, key, &node, format!("left out: {why}"), None);
        }
    }

    /// Does the file have this key?
    fn gives(&self, section: &str, key: &str) -> bool {
        self.entries.iter().any(|entry| entry.section == section && entry.key == key)
    }

    /// The value of `key`, or `default` where the file has none or a wrong one (which is then a problem).
    pub(super) fn value<T: 'static>(&mut self, section: &str, key: &str, default: T, rule: &Rule<T>) -> T {
        let mut value = default;
        for node in self.take(section, key) {
            match rule.read(&node) {
                Ok(read) => value = read,
                Err(remedy) => {
                    let blank = (node == Node::Null).then(|| "take the line out for the default".into());
                    self.wrong(section, key, &node, rule.must_be.clone(), remedy.or(blank));
                }
            }
        }
        value
    }

    fn wrong(&mut self, section: &str, key: &str, node: &Node, must_be: String, remedy: Option<String>) {
        let (key, value) = (self.path(section, Some(key)), node.to_string());
        self.problems.push(Problem::Value { key, value, must_be, remedy });
    }

    /// The value of a key by its old name, or `default` where the file does not use that.
    pub(super) fn old_value<T: 'static>(
        &mut self,
        [section, key]: [&str; 2],
        [home, name]: [&str; 2],
        default: T,
        rule: &Rule<T>,
    ) -> T {
        if self.gives(section, key) && self.gives(home, name) {
            let (key, now) = (self.path(section, Some(key)), self.path(home, Some(name)));
            let must_be = format!("left out: it is the old name of {now}");
            let value = format!("given beside {now}");
            self.problems.push(Problem::Value { key, value, must_be, remedy: None });
        }
        self.value(section, key, default, rule)
    }

    /// What the file says for one key: nothing, a value, or (which is a problem) several.
    fn take(&mut self, section: &str, key: &str) -> Vec<Node> {
        let found = self.entries.extract_if(.., |entry| entry.section == section && entry.key == key);
        let found: Vec<Node> = found.map(|entry| entry.value).collect();
        self.refuse_repetition(section, Some(key), found.len());
        found
    }

    fn refuse_repetition(&mut self, section: &str, key: Option<&str>, times: usize) {
        if times > 1 {
            let mut lines = lines_of(self.text, section, key);
            if lines.len() != times || self.is_server {
                lines.clear();
            }
            self.problems.push(Problem::Repeated { key: self.path(section, key), times, lines });
        }
    }

    /// Reports `problem` about a relation of several keys, unless one of them is already known to be wrong.
    pub(super) fn relation(&mut self, keys: &[&str], problem: Problem) {
        if !self.problems.iter().any(|known| keys.contains(&known.key())) {
            self.problems.push(problem);
        }
    }

    /// The name of a key, or of a section, as the file has it.
    fn path(&self, section: &str, key: Option<&str>) -> String {
        match key {
            None => section.to_owned(),
            Some(key) if section.is_empty() => key.to_owned(),
            Some(key) => match short_of(section, key).filter(|_| self.is_server) {
                Some(short) => short.to_owned(),
                None => format!("{section}.{key}"),
            },
        }
    }

    pub(super) fn warn(&mut self, warning: Warning) {
        self.warnings.push(warning);
    }

    /// Everything worth saying, now that every known key has been asked for.
    pub(super) fn finish(mut self) -> (Vec<Problem>, Vec<Warning>) {
        let known: BTreeSet<_> =
            self.sections.iter().copied().chain(self.unused_sections.iter().copied()).collect();
        for section in &known {
            let times = self.tops.iter().filter(|(name, _)| name == *section).count();
            self.refuse_repetition(section, None, times);
        }
        for (name, stray) in std::mem::take(&mut self.tops) {
            let key = shown(&name);
            if !known.contains(name.as_str()) {
                let remedy = self.remedy(None, &name);
                self.problems.push(Problem::Unknown { key, remedy });
            } else if let Some(value) = stray {
                let (value, must_be) = (value.to_string(), "a mapping of keys to values".into());
                self.problems.push(Problem::Value { key, value, must_be, remedy: None });
            }
        }
        for entry in std::mem::take(&mut self.entries) {
            if known.contains(entry.section.as_str()) {
                let remedy = self.remedy(Some(&entry.section), &entry.key);
                let key = self.path(&entry.section, Some(&shown(&entry.key)));
                self.problems.push(Problem::Unknown { key, remedy });
            }
        }
        (self.problems, self.warnings)
    }

    /// What to do about the unknown `key`: the known one that was probably meant, or the ones there are.
    ///
    /// In another section only the same name, or nearly, means the same thing.
    fn remedy(&self, section: Option<&str>, key: &str) -> String {
        const HERE: f64 = 0.65;
        const ELSEWHERE: f64 = 0.85;
        let key = key.to_ascii_lowercase();
        let keys = self.keys.iter().map(|(home, name)| {
            let short = short_of(home, name).filter(|_| self.is_server);
            let (home, name) = short.map_or((*home, *name), |short| ("", short));
            let likeness = likeness(&key, name);
            let least = if section == Some(home) { HERE } else { ELSEWHERE };
            (likeness - least, self.path(home, Some(name)), name)
        });
        let sections = self.sections.iter().filter(|_| section.is_none());
        let sections = sections.map(|name| (likeness(&key, name) - HERE, (*name).to_owned(), *name));
        let nearest =
            keys.chain(sections).filter(|(score, ..)| *score >= 0.0).max_by(|a, b| a.0.total_cmp(&b.0));
        let Some((_, nearest, name)) = nearest else {
            let known: Vec<&str> = match section {
                None => self.sections.iter().copied().filter(|name| !name.is_empty()).collect(),
                Some(section) => {
                    self.keys.iter().filter(|(home, _)| *home == section).map(|(_, key)| *key).collect()
                }
            };
            if known.is_empty() {
                return "no key of this section is used; take it out".to_owned();
            }
            return format!("known here: {}", known.join(", "));
        };
        match nearest.split_once('.') {
            Some((home, _)) if section != Some(home) && key == name => {
                format!("move it to section {home}: {nearest}")
            }
            _ => format!("did you mean {nearest}?"),
        }
    }
}

/// An open section of a [`Reader`].
pub(super) struct Section<'r, 't> {
    reader: &'r mut Reader<'t>,
    name: &'static str,
}

impl Section<'_, '_> {
    /// The value of `key`, or `default` where the file has none or a wrong one (which is then a problem).
    pub(super) fn key<T: 'static>(&mut self, key: &'static str, default: T, rule: &Rule<T>) -> T {
        self.reader.keys.push((self.name, key));
        let default = match old_keys::old_name(self.name, key) {
            Some(old) => self.reader.old_value(old, [self.name, key], default, rule),
            None => default,
        };
        self.reader.value(self.name, key, default, rule)
    }
}

/// The short name of a key in an entry of `servers`, if it has one.
fn short_of(section: &str, key: &str) -> Option<&'static str> {
    SHORT_KEYS.iter().find(|(_, home, name)| *home == section && *name == key).map(|(short, ..)| *short)
}

/// Lines, from 1, on which a section or a key begins, as far as block style without quotes shows it.
///
/// The parser does not hand out positions; the caller believes this guess only if the number of lines is right.
pub(super) fn lines_of(text: &str, section: &str, key: Option<&str>) -> Vec<usize> {
    let name = |line: &str| line.split_once(':').map_or("", |(name, _)| name.trim()).to_owned();
    let mut current = String::new();
    let mut lines = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let top = !line.starts_with([' ', '#']) && !line.is_empty();
        if top {
            current = name(line);
        }
        let hit = match key {
            None => top && current == section,
            Some(key) => !top && current == section && name(line) == key,
        };
        if hit {
            lines.push(at + 1);
        }
    }
    lines
}
