//! From the text of a profile's file to a [`Profile`], or to everything that is wrong with it.

use std::fmt;

use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as NoSuch, StrDeserializer};
use toml::{Table, Value};

use super::asleep::Question;
use super::profile::{Dialect, Profile, USUAL_MODEL_LABEL, USUAL_PATH};
use super::recognise::{Recognise, Renamed};
use super::table::{Appears, Name, Row, Selector};
use crate::metrics::Signal;
use crate::metrics::signals::Kind;

/// The largest file that is read; the longest built-in one has 5 kB.
pub(crate) const LARGEST_FILE: u64 = 64 * 1024;

/// Why there is no profile. The text names the file, the fact and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// The file or directory cannot be read.
    #[error("{file}: cannot be read: {cause}; check the path and its permissions")]
    Unreadable {
        /// The file, or the directory.
        file: String,
        /// What the system said; part of the text, so not a `source`.
        cause: std::io::Error,
    },
    /// Others could have written what a privileged process is to obey.
    #[error("{file}: is not obeyed by root, since others could have written it: {why}")]
    Distrusted {
        /// The file.
        file: String,
        /// Who could.
        why: String,
    },
    /// More than a profile.
    #[error("{file}: is larger than {} KiB, must be the profile of one engine", LARGEST_FILE / 1024)]
    TooLarge {
        /// The file.
        file: String,
    },
    /// Not text.
    #[error("{file}: is not UTF-8 text; save the file as UTF-8")]
    NotUtf8 {
        /// The file.
        file: String,
    },
    /// Not TOML.
    #[error("{file}: is not TOML: {message}")]
    Syntax {
        /// The file.
        file: String,
        /// What the parser said, with the line.
        message: String,
    },
    /// Keys or values break their rules.
    #[error("{}", .faults.iter().map(|fault| format!("{file}: {fault}")).collect::<Vec<_>>().join("\n"))]
    Invalid {
        /// The file.
        file: String,
        /// What is wrong, never empty.
        faults: Vec<Fault>,
    },
    /// Two files of a directory are about one engine.
    #[error("{file}: {name} has a profile already, in {other}; take one of them out of the directory")]
    Twice {
        /// The file.
        file: String,
        /// The engine.
        name: String,
        /// The file before it.
        other: String,
    },
}

/// One thing wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Full path of the key, for example `signals.itl.ratio.sum`.
    pub key: String,
    /// What is so.
    pub fact: String,
    /// What has to be, and where that is plain how to get there.
    pub rule: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}, {}", self.key, self.fact, self.rule)
    }
}

impl Profile {
    /// Reads the text of a file, which came from `origin` (a path, or any name for the messages).
    ///
    /// # Errors
    /// [`ProfileError::Syntax`], or [`ProfileError::Invalid`] with all that is wrong.
    pub fn parse(text: &str, origin: &str) -> Result<Self, ProfileError> {
        let file = origin.to_owned();
        let root = match text.parse::<Table>() {
            Ok(root) => root,
            Err(error) => {
                let message = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
                return Err(ProfileError::Syntax { file, message });
            }
        };
        let mut faults = Vec::new();
        let profile = read(root, &mut faults);
        match profile {
            Some(profile) if faults.is_empty() => Ok(profile),
            _ => Err(ProfileError::Invalid { file, faults }),
        }
    }
}

/// Units that a number on the page may have, and what one of each is in agft's.
const UNITS: [(&str, f64); 5] = [
    ("seconds", 1.0),
    ("milliseconds", 1e-3),
    ("microseconds", 1e-6),
    ("nanoseconds", 1e-9),
    ("percent", 1e-2),
];

/// What a key accepts: the rule as it completes "must be", and the value read by it.
struct Rule<T> {
    must_be: &'static str,
    read: fn(&Value) -> Option<T>,
}

const TEXT: Rule<String> = Rule { must_be: "text, not empty", read: |value| text(value, |_| true) };
const METRIC: Rule<String> = Rule {
    must_be: "a metric name: letters, digits, _ and :",
    read: |value| {
        text(value, |text| text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':')))
    },
};
const METRICS: Rule<Vec<String>> =
    Rule { must_be: "a list of metric names, not empty", read: |value| list(value, METRIC.read) };
const LABEL: Rule<String> = Rule {
    must_be: "a label name: letters, digits and _",
    read: |value| text(value, |text| text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')),
};
const LABELS: Rule<Vec<String>> =
    Rule { must_be: "a list of label names, not empty", read: |value| list(value, LABEL.read) };
const PREFIXES: Rule<Vec<String>> = Rule {
    must_be: "a list of prefixes that end in : or _, not empty",
    read: |value| list(value, |value| (METRIC.read)(value).filter(|prefix| prefix.ends_with([':', '_']))),
};
const WORDS: Rule<Vec<String>> =
    Rule { must_be: "a list of words: letters and digits", read: |value| list(value, WORD.read) };
const WORD: Rule<String> = Rule {
    must_be: "a word: letters and digits",
    read: |value| text(value, |text| text.chars().all(|c| c.is_ascii_alphanumeric())),
};
const SIGNALS: Rule<Vec<Signal>> = Rule {
    must_be: "a list of signals, not empty",
    read: |value| list(value, |value| value.as_str().and_then(signal)),
};
const PATH: Rule<String> = Rule {
    must_be: "a path that begins with /, without ? and #",
    read: |value| text(value, |text| text.starts_with('/') && !text.contains(['?', '#', ' '])),
};
const NAME: Rule<String> = Rule {
    must_be: "letters, digits, . - and _, at most 40, not auto: what engine: in the configuration names",
    read: |value| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        text(value, |text| text.len() <= 40 && text.chars().all(plain) && !text.eq_ignore_ascii_case("auto"))
    },
};
const FLAG: Rule<bool> = Rule { must_be: "true or false", read: Value::as_bool };
const TABLE: Rule<Table> = Rule { must_be: "a table", read: |value| value.as_table().cloned() };
const TABLES: Rule<Vec<Table>> = Rule {
    must_be: "a list of tables ([[...]])",
    read: |value| list(value, |value| value.as_table().cloned()),
};
const ANSWERS: Rule<Vec<serde_json::Value>> = Rule {
    must_be: "a list of texts or of true and false, not empty",
    read: |value| {
        list(value, |value| match value {
            Value::String(text) => Some(text.clone().into()),
            Value::Boolean(flag) => Some((*flag).into()),
            _ => None,
        })
    },
};
const APPEARS: Rule<Appears> = Rule {
    must_be: "at_start, with_tokens, with_finished or perhaps",
    read: |value| one_of(value, &Appears::NAMES),
};
const UNIT: Rule<f64> = Rule {
    must_be: "seconds, milliseconds, microseconds, nanoseconds or percent",
    read: |value| one_of(value, &UNITS),
};
const VALUES: Rule<Vec<String>> = Rule {
    must_be: "text, or a list of texts",
    read: |value| (TEXT.read)(value).map(|one| vec![one]).or_else(|| list(value, TEXT.read)),
};

fn text(value: &Value, is_right: impl Fn(&str) -> bool) -> Option<String> {
    value.as_str().filter(|text| !text.trim().is_empty() && is_right(text)).map(str::to_owned)
}

fn list<T>(value: &Value, read: fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    value.as_array().filter(|values| !values.is_empty())?.iter().map(read).collect()
}

fn one_of<T: Copy>(value: &Value, names: &[(&str, T)]) -> Option<T> {
    let text = value.as_str()?;
    names.iter().find(|(name, _)| *name == text).map(|(_, value)| *value)
}

fn signal(key: &str) -> Option<Signal> {
    let key: StrDeserializer<'_, NoSuch> = key.into_deserializer();
    Signal::deserialize(key).ok()
}

/// One table of the file: hands out its values, and complains of what nobody asks for.
struct Keys<'f> {
    place: String,
    table: Table,
    known: Vec<&'static str>,
    faults: &'f mut Vec<Fault>,
}

impl<'f> Keys<'f> {
    fn new(place: String, table: Table, faults: &'f mut Vec<Fault>) -> Self {
        Self { place, table, known: Vec::new(), faults }
    }

    fn path(&self, key: &str) -> String {
        if self.place.is_empty() { key.to_owned() } else { format!("{}.{key}", self.place) }
    }

    fn fault(&mut self, key: &str, fact: impl Into<String>, rule: impl Into<String>) {
        let key = self.path(key);
        self.faults.push(Fault { key, fact: fact.into(), rule: rule.into() });
    }

    /// The value of a key that may be left out.
    fn take<T>(&mut self, key: &'static str, rule: &Rule<T>) -> Option<T> {
        self.known.push(key);
        let value = self.table.remove(key)?;
        let read = (rule.read)(&value);
        if read.is_none() {
            self.fault(key, format!("is {}", shown(&value)), format!("must be {}", rule.must_be));
        }
        read
    }

    /// The value of a key that has to be there.
    fn need<T>(&mut self, key: &'static str, rule: &Rule<T>) -> Option<T> {
        if !self.table.contains_key(key) {
            self.known.push(key);
            self.fault(key, "is missing", format!("must be {}", rule.must_be));
            return None;
        }
        self.take(key, rule)
    }

    /// What is left has no meaning.
    fn finish(self) {
        for (key, _) in &self.table {
            let known = self.known.join(", ");
            let place = if self.place.is_empty() { String::new() } else { format!("{}.", self.place) };
            self.faults.push(Fault {
                key: format!("{place}{key}"),
                fact: "is not a known key".to_owned(),
                rule: format!("must be one of {known}; take it out or correct it"),
            });
        }
    }
}

/// A value as a message shows it, at most a line of it.
fn shown(value: &Value) -> String {
    let whole: String = value.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    match whole.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &whole[..end]),
        None => whole,
    }
}

/// `None` only where something is wrong, which is among the faults then.
fn read(root: Table, faults: &mut Vec<Fault>) -> Option<Profile> {
    let mut keys = Keys::new(String::new(), root, faults);
    let name = keys.need("name", &NAME);
    let about = keys.take("about", &TEXT).unwrap_or_default();
    let path = keys.take("path", &PATH).unwrap_or_else(|| USUAL_PATH.to_owned());
    let remedy = keys.take("remedy", &TEXT).unwrap_or_default();
    let model_label = keys.take("model_label", &LABEL).unwrap_or_else(|| USUAL_MODEL_LABEL.to_owned());
    let rank_labels = keys.take("rank_labels", &LABELS).unwrap_or_default();
    let scrape_is_work = keys.take("scrape_is_work", &FLAG).unwrap_or_default();
    let recognise = keys.need("recognise", &TABLE);
    let signals = keys.need("signals", &TABLE);
    let cannot = keys.take("cannot", &TABLE).unwrap_or_default();
    let dialects = keys.take("dialects", &TABLES).unwrap_or_default();
    let asleep = keys.take("asleep", &TABLES).unwrap_or_default();
    keys.finish();
    let recognise = recognise.and_then(|table| read_recognise(table, faults));
    let table = signals.map(|signals| read_signals(signals, faults)).unwrap_or_default();
    let cannot = read_cannot(cannot, &table, faults);
    let dialects = numbered("dialects", dialects, faults, read_dialect);
    let asleep = numbered("asleep", asleep, faults, read_question);
    Some(Profile {
        name: name?,
        about,
        path,
        remedy,
        recognise: recognise?,
        model_label,
        rank_labels,
        table,
        cannot,
        dialects,
        scrape_is_work,
        asleep,
    })
}

fn numbered<T>(
    key: &str,
    tables: Vec<Table>,
    faults: &mut Vec<Fault>,
    read: fn(Keys<'_>) -> Option<T>,
) -> Vec<T> {
    let each = (1..).zip(tables).map(|(at, table)| read(Keys::new(format!("{key}[{at}]"), table, faults)));
    each.collect::<Vec<_>>().into_iter().flatten().collect()
}

fn read_recognise(table: Table, faults: &mut Vec<Fault>) -> Option<Recognise> {
    let mut keys = Keys::new("recognise".to_owned(), table, faults);
    let prefixes = keys.need("prefixes", &PREFIXES);
    let names = keys.take("names", &METRICS).unwrap_or_default();
    let renamed = keys.take("renamed", &TABLE);
    if renamed.is_some() && !names.is_empty() {
        keys.fault("names", "stands beside renamed", "one of both must be left out");
    }
    keys.finish();
    let renamed = renamed.and_then(|table| {
        let mut keys = Keys::new("recognise.renamed".to_owned(), table, faults);
        let word = keys.need("word", &WORD);
        let signals = keys.need("signals", &SIGNALS);
        let never = keys.take("never", &WORDS).unwrap_or_default();
        keys.finish();
        Some(Renamed { word: word?, signals: signals?, never })
    });
    Some(Recognise { prefixes: prefixes?, names, renamed })
}

fn read_signals(table: Table, faults: &mut Vec<Fault>) -> Vec<Row> {
    let mut rows = Vec::new();
    for (key, value) in table {
        let place = format!("signals.{key}");
        let Some(signal) = known_signal(&place, &key, faults) else { continue };
        let Some(table) = (TABLE.read)(&value) else {
            let fact = format!("is {}", shown(&value));
            faults.push(Fault { key: place, fact, rule: "must be a table with names or ratio".to_owned() });
            continue;
        };
        rows.extend(read_row(signal, Keys::new(place, table, faults)));
    }
    rows.sort_by_key(|row| row.signal);
    let tells = |signal| rows.iter().any(|row: &Row| row.signal == signal);
    if faults.is_empty() && !tells(Signal::Running) && !tells(Signal::GenerationTokens) {
        faults.push(Fault {
            key: "signals".to_owned(),
            fact: "has neither running nor generation_tokens".to_owned(),
            rule: "must have one of both: agft has to see whether there is work".to_owned(),
        });
    }
    rows
}

fn known_signal(place: &str, key: &str, faults: &mut Vec<Fault>) -> Option<Signal> {
    let found = signal(key);
    if found.is_none() {
        let all: Vec<&str> = Signal::all().map(Signal::key).collect();
        faults.push(Fault {
            key: place.to_owned(),
            fact: "is not a signal".to_owned(),
            rule: format!("must be one of {}", all.join(", ")),
        });
    }
    found
}

fn read_row(signal: Signal, mut keys: Keys<'_>) -> Option<Row> {
    const NAMES: Rule<Vec<Value>> = Rule {
        must_be: "a list of names, not empty",
        read: |value| list(value, |value| Some(value.clone())),
    };
    let appears = keys.take("appears", &APPEARS).unwrap_or(Appears::AtStart);
    let scale = keys.take("unit", &UNIT).unwrap_or(1.0);
    let note = keys.take("note", &TEXT).unwrap_or_default();
    let names = keys.take("names", &NAMES);
    let ratio = keys.take("ratio", &TABLE);
    if names.is_none() && ratio.is_none() {
        keys.fault("names", "is missing, and so is ratio", "one of both must be given");
    }
    if ratio.is_some() && signal.kind() != Kind::Histogram {
        let fact = "stands at a signal that is one number";
        keys.fault(
            "ratio",
            fact,
            "must stand at a signal with a mean (ttft, itl, request_tpot, e2e, step_tokens)",
        );
    }
    let (place, faults) = (keys.place.clone(), &mut *keys.faults);
    let mut named: Vec<Name> = Vec::new();
    for (at, value) in (1..).zip(names.into_iter().flatten()) {
        let name = read_name(format!("{place}.names[{at}]"), &value, faults);
        let Some(name) = name else { continue };
        if named.iter().any(|other| other.name == name.name) {
            let (key, fact) = (format!("{place}.names[{at}]"), format!("is {} once more", name.name));
            faults.push(Fault { key, fact, rule: "a name must stand once at a signal".to_owned() });
        }
        named.push(name);
    }
    let ratio = ratio.and_then(|table| {
        let mut part = Keys::new(format!("{place}.ratio"), table, faults);
        let any: Rule<Value> = Rule { must_be: "a metric name", read: |value| Some(value.clone()) };
        let (sum, count) = (part.need("sum", &any), part.need("count", &any));
        part.finish();
        let sum = read_name(format!("{place}.ratio.sum"), &sum?, faults);
        let count = read_name(format!("{place}.ratio.count"), &count?, faults);
        sum.zip(count)
    });
    keys.finish();
    Some(Row { signal, appears, names: named, ratio, scale, note })
}

/// A name as text, or a table of it and the labels that its series must have.
fn read_name(place: String, value: &Value, faults: &mut Vec<Fault>) -> Option<Name> {
    if let Some(name) = (METRIC.read)(value) {
        return Some(Name { name, only: Vec::new() });
    }
    let Some(table) = value.as_table() else {
        let fact = format!("is {}", shown(value));
        let rule = format!("must be {}, or a table of name and where", METRIC.must_be);
        faults.push(Fault { key: place, fact, rule });
        return None;
    };
    let mut keys = Keys::new(place.clone(), table.clone(), faults);
    let name = keys.need("name", &METRIC);
    let labels = keys.need("where", &TABLE);
    keys.finish();
    let mut only = Vec::new();
    for (label, value) in labels? {
        let label_is_right = (LABEL.read)(&Value::String(label.clone())).is_some();
        match (VALUES.read)(&value).filter(|_| label_is_right) {
            Some(values) => only.push(Selector { label, values }),
            None => faults.push(Fault {
                key: format!("{place}.where.{label}"),
                fact: format!("is {}", shown(&value)),
                rule: format!("must be {} beside {}", VALUES.must_be, LABEL.must_be),
            }),
        }
    }
    Some(Name { name: name?, only })
}

fn read_cannot(table: Table, rows: &[Row], faults: &mut Vec<Fault>) -> Vec<(Signal, String)> {
    let mut cannot = Vec::new();
    for (key, value) in table {
        let place = format!("cannot.{key}");
        let Some(signal) = known_signal(&place, &key, faults) else { continue };
        let told = rows.iter().any(|row| row.signal == signal);
        match (TEXT.read)(&value).filter(|_| !told) {
            Some(why) => cannot.push((signal, why)),
            None => faults.push(Fault {
                key: place,
                fact: if told {
                    format!("stands at signals.{key} too")
                } else {
                    format!("is {}", shown(&value))
                },
                rule: "must be the reason why the engine does not tell it".to_owned(),
            }),
        }
    }
    cannot.sort_by_key(|(signal, _)| *signal);
    cannot
}

fn read_dialect(mut keys: Keys<'_>) -> Option<Dialect> {
    let text = keys.need("text", &TEXT);
    let engine_label = keys.take("engine_label", &FLAG);
    let none_of = keys.take("none_of", &METRICS).unwrap_or_default();
    keys.finish();
    Some(Dialect { text: text?, engine_label, none_of })
}

fn read_question(mut keys: Keys<'_>) -> Option<Question> {
    let path = keys.need("path", &PATH);
    let query = keys.take("query", &LABEL);
    let list = keys.take("list", &TEXT);
    let id = keys.take("id", &TEXT);
    if list.is_some() != id.is_some() || (list.is_some() && query.is_none()) {
        keys.fault("list", "is not whole", "must be given with id and query, or all three must be left out");
    }
    let key = keys.need("key", &TEXT);
    let values = keys.need("values", &ANSWERS);
    keys.finish();
    Some(Question { path: path?, query, list: list.zip(id), key: key?, values: values? })
}
