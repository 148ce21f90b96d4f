//! Instance files: YAML lists of instances, checked as a whole.
//!
//! Everything that is wrong with all files is told at once, each with file, line, instance, key, rule and
//! remedy.

mod gppm_config;
mod gpus;
mod instance;
mod ollama;
mod problem;
mod section;
#[cfg(test)]
mod tests;
mod yaml;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use agft_common::trust::trusted_place;
use rustix::fs::OFlags;

pub use gppm_config::{GppmConfig, read_gppm_config};
pub use problem::{Note, Place, Problem, Problems};
use section::Report;
use yaml::{Node, Value};

use crate::spec::Instance;

/// Longest file, in bytes.
pub const MAX_BYTES: u64 = 1 << 20;

/// What of the process decides how a file is read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// `CUDA_VISIBLE_DEVICES` and `CUDA_DEVICE_ORDER` of the supervisor, which its instances inherit.
    pub cuda: BTreeMap<String, String>,
    /// This program, which loads Ollama's models.
    pub program: PathBuf,
    /// Only files that a stranger could not have written are read.
    pub distrustful: bool,
}

impl Surroundings {
    /// Those of this process. Root is distrustful.
    ///
    /// # Errors
    /// [`io::Error`] if the system does not tell where this program is.
    pub fn of_this_process() -> io::Result<Self> {
        let cuda = ["CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"]
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)));
        Ok(Self {
            cuda: cuda.collect(),
            program: std::env::current_exe()?,
            distrustful: rustix::process::geteuid().is_root(),
        })
    }
}

/// An instance, and where it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// What it is to be.
    pub instance: Instance,
    /// Where it stands.
    pub place: Place,
    node: Node,
}

/// Environment variables whose values are no secrets.
const OPEN_ENV: [&str; 3] = ["CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "OLLAMA_HOST"];

impl Entry {
    /// The entry as its file has it. Values of its environment may be secrets: they are shown only where
    /// `secrets` says so.
    #[must_use]
    pub fn to_json(&self, secrets: bool) -> serde_json::Value {
        let mut json = self.node.to_json();
        if let Some(enabled) = json.get_mut("enabled") {
            *enabled = self.instance.enabled.into();
        }
        // As it is written: 1.10 is no number there.
        for (name, value) in
            json.get_mut("env").and_then(serde_json::Value::as_object_mut).into_iter().flatten()
        {
            let shown = secrets || OPEN_ENV.contains(&name.as_str());
            let text = self.instance.env.get(name).map_or("", String::as_str);
            *value = if shown { text.into() } else { "***".into() };
        }
        json
    }
}

/// Entries of one or more files.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Entries {
    /// In the order of the files; names differ.
    pub list: Vec<Entry>,
    /// What is worth saying.
    pub notes: Vec<Note>,
}

impl Entries {
    /// What they are to be.
    #[must_use]
    pub fn instances(&self) -> Vec<Instance> {
        self.list.iter().map(|entry| entry.instance.clone()).collect()
    }

    /// The entry of this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Entry> {
        self.list.iter().find(|entry| entry.instance.name == name)
    }

    /// Puts each of `other` in the place of the entry with its name, or at the end.
    pub fn replace(&mut self, other: Self) {
        for entry in other.list {
            match self.list.iter_mut().find(|own| own.instance.name == entry.instance.name) {
                Some(own) => *own = entry,
                None => self.list.push(entry),
            }
        }
        self.notes.extend(other.notes);
    }

    /// Takes the entry of this name out; whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.list.len();
        self.list.retain(|entry| entry.instance.name != name);
        self.list.len() < before
    }

    /// The entries as the text of an instance file that reads the same.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        Node { line: 0, value: Value::List(self.list.iter().map(|entry| entry.node.clone()).collect()) }
            .to_yaml()
    }
}

/// Keys of an instance file, with the section that they are in (empty for an entry's own), for the
/// documentation.
#[must_use]
pub fn keys() -> Vec<(&'static str, &'static [&'static str])> {
    use instance as i;
    vec![
        ("", i::KEYS),
        ("ready", i::READY),
        ("restart", i::RESTART),
        ("stop", i::STOP),
        ("hooks", i::HOOK),
        ("log", i::LOG),
        ("on_demand", i::ON_DEMAND),
    ]
}

/// Reads files and directories (of these each `*.yaml` and `*.yml`, by name).
///
/// # Errors
/// [`Problems`]: all that is wrong with all files.
pub fn read(paths: &[PathBuf], around: &Surroundings) -> Result<Entries, Problems> {
    let mut all = Found::default();
    for path in paths {
        match files_at(path, around) {
            Ok(files) => {
                for file in files {
                    match text_of(&file, around) {
                        Ok(text) => all.add(&file, &text, around),
                        Err(rule) => all.wrong_file(&file, rule),
                    }
                }
            }
            Err(rule) => all.wrong_file(path, rule),
        }
    }
    all.finish()
}

/// Reads the text of an instance file; `name` stands for the file in messages.
///
/// # Errors
/// [`Problems`]: all that is wrong with it.
pub fn parse(name: &Path, text: &str, around: &Surroundings) -> Result<Entries, Problems> {
    let mut all = Found::default();
    all.add(name, text, around);
    all.finish()
}

/// The same for JSON, as gppm's client sends it.
///
/// # Errors
/// [`Problems`]: all that is wrong with it.
pub fn from_json(name: &Path, json: &serde_json::Value, around: &Surroundings) -> Result<Entries, Problems> {
    let mut all = Found::default();
    all.add_list(name, Node::from_json(json), around);
    all.finish()
}

/// Checks what has to differ between instances.
///
/// # Errors
/// [`Problems`]: each pair that has the same name or listens at the same address.
pub fn check_together(entries: &[Entry]) -> Result<(), Problems> {
    let mut problems = Vec::new();
    for (k, entry) in entries.iter().enumerate() {
        let mut clash = |key: &str, rule: &str, first: Option<&Entry>, remedy: &str| {
            if let Some(first) = first {
                let rule = format!("{rule} {}", first.place);
                problems.push(Problem {
                    place: entry.place.clone(),
                    key: key.to_owned(),
                    rule,
                    remedy: Some(remedy.to_owned()),
                });
            }
        };
        let named = entries[..k].iter().find(|first| first.instance.name == entry.instance.name);
        clash("name", "is also that of", named, "give one of them another name, or take it out");
        if let Some(own) = entry.instance.on_demand {
            let listens = entries[..k]
                .iter()
                .find(|first| first.instance.on_demand.is_some_and(|other| other.listen == own.listen));
            clash(
                "on_demand.listen",
                "is also that of",
                listens.filter(|_| named.is_none()),
                "choose another port",
            );
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
}

#[derive(Default)]
struct Found {
    entries: Entries,
    problems: Vec<Problem>,
}

impl Found {
    fn wrong_file(&mut self, file: &Path, rule: String) {
        let place = Place { file: file.to_owned(), ..Place::default() };
        self.problems.push(Problem { place, key: String::new(), rule, remedy: None });
    }

    fn add(&mut self, file: &Path, text: &str, around: &Surroundings) {
        match yaml::parse(text) {
            Ok(node) => self.add_list(file, node, around),
            Err(error) => {
                let place = Place { file: file.to_owned(), line: error.line, ..Place::default() };
                self.problems.push(Problem { place, key: String::new(), rule: error.message, remedy: None });
            }
        }
    }

    fn add_list(&mut self, file: &Path, node: Node, around: &Surroundings) {
        let place = Place { file: file.to_owned(), ..Place::default() };
        if node.is_null() {
            self.entries.notes.push(Note { place, text: "has no instances".into() });
            return;
        }
        let Value::List(nodes) = node.value else {
            let place = Place { line: node.line, ..place };
            let rule = format!("is {node}, must be a list of instances");
            let remedy = Some("begin each with `- name: NAME`".to_owned());
            self.problems.push(Problem { place, key: String::new(), rule, remedy });
            return;
        };
        for (k, node) in nodes.into_iter().enumerate() {
            let place =
                Place { line: node.line, index: k + 1, name: instance::name_of(&node), ..place.clone() };
            let report = Report::new(place.clone());
            let instance = instance::read(&report, node.clone(), around);
            let (problems, notes) = report.into_parts();
            self.entries.notes.extend(notes);
            self.problems.extend(problems);
            self.entries.list.extend(instance.map(|instance| Entry { instance, place, node }));
        }
    }

    fn finish(mut self) -> Result<Entries, Problems> {
        // An entry whose own name is wrong is told of already.
        let named: Vec<Entry> =
            self.entries.list.iter().filter(|entry| !entry.instance.name.is_empty()).cloned().collect();
        if let Err(Problems(more)) = check_together(&named) {
            self.problems.extend(more);
        }
        if self.problems.is_empty() { Ok(self.entries) } else { Err(Problems(self.problems)) }
    }
}

/// The file at `path`, or the files of the directory there.
fn files_at(path: &Path, around: &Surroundings) -> Result<Vec<PathBuf>, String> {
    let cannot = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => "no such file or directory; check the path".to_owned(),
        _ => format!("cannot be read: {error}; check the path and its permissions"),
    };
    if !path.metadata().map_err(cannot)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    judge(path, around)?;
    let mut files = Vec::new();
    for file in std::fs::read_dir(path).map_err(cannot)? {
        let file = file.map_err(cannot)?.path();
        let hidden = file.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && file.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn judge(path: &Path, around: &Surroundings) -> Result<(), String> {
    if !around.distrustful {
        return Ok(());
    }
    trusted_place(path)
        .map_err(|why| format!("is not obeyed by root, since others could have written it: {why}"))
}

/// The text of a file. A pipe or device in its place is not waited for.
fn text_of(file: &Path, around: &Surroundings) -> Result<String, String> {
    judge(file, around)?;
    let cannot = |error: io::Error| format!("cannot be read: {error}; check its permissions");
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    let open = OpenOptions::new().read(true).custom_flags(flags).open(file).map_err(cannot)?;
    if !open.metadata().map_err(cannot)?.is_file() {
        return Err("is not a regular file; give a YAML file or a directory of them".into());
    }
    let mut bytes = Vec::new();
    open.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("is larger than {} KiB, must be a file of instances", MAX_BYTES >> 10));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..good].iter().filter(|byte| **byte == b'\n').count();
        format!("is not UTF-8 text in line {line}; save the file as UTF-8")
    })
}
