//! The YAML file and what becomes of it: text -> tree -> a [`Config`] whose every value has been checked.
//!
//! `sections` is the table of keys, `parking` that of the keys that two sections share: name, type, default and rule on
//! one line each. `rule` has the vocabulary of rules,
//! `reader` matches the file against the table, `check` looks at keys that bound each other. All problems of a file are
//! reported in one run. Keys that are AGFT's keep AGFT's names and values, so that its files load as they are.

mod check;
mod choices;
mod engines;
mod error;
mod old_keys;
mod parking;
mod reader;
mod rule;
mod sections;
mod servers;
mod set;
mod yaml;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::Serialize;

pub(crate) use choices::{ConnectionCount, Listen, LogLevel};
pub use choices::{EngineKind, Lever, PolicyKind, Source, WaitKind};
pub use engines::{Vain, unjudged};
pub(crate) use error::{ConfigError, Problem, Warning};
pub use parking::Parking;
pub use sections::{
    Control, Discover, Engines, Experiment, Gpu, Holdout, Idle, Linucb, Logging, Metrics, Model, Observe,
    Park, Vllm,
};

pub(crate) use servers::SECTIONS as SERVER_SECTIONS;
pub use servers::{ONE, Server, Servers};

use crate::engine::Profile;
use crate::store::{Distrust, Untrusted, trusted_path};
use reader::Reader;
use yaml::Node;

/// The file that documents every key, with every default.
#[cfg(test)]
const DOCUMENTED: &str = include_str!("../../config/config.yaml");

/// Largest file that is read.
const MAX_BYTES: u64 = 1024 * 1024;

/// Everything a user can set. The names are the file's; the default of each is in the file `config/config.yaml`.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Config {
    /// The inference servers; without a list the sections below describe the one there is.
    #[serde(skip_serializing_if = "Servers::is_one")]
    pub servers: Servers,
    /// The engine's metrics page.
    pub vllm: Vllm,
    /// Inference engines beside the built-in ones.
    pub engines: Engines,
    /// The GPUs and their clocks.
    pub gpu: Gpu,
    /// When and how clocks are chosen.
    pub control: Control,
    /// How GPUs of servers are watched, and parked while no request is there.
    pub idle: Idle,
    /// The same of GPUs that have no server.
    pub park: Park,
    /// The experiment that proves what is saved.
    pub holdout: Holdout,
    /// The `linucb` policy and the pruning of clocks.
    pub linucb: Linucb,
    /// agft's own log.
    pub logging: Logging,
    /// What is learned, on disk.
    pub model: Model,
    /// How the engine's metrics become measurements.
    pub metrics: Metrics,
    /// Servers that are looked for.
    pub discover: Discover,
    /// What operators see.
    pub observe: Observe,
    /// The record of each run.
    pub experiment: Experiment,
}

/// A configuration, and what is worth saying about it.
#[derive(Debug, PartialEq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// The profiles of its `engines.directory`.
    pub engines: Vec<Profile>,
    /// Things accepted that are probably not what the author wants.
    pub(crate) warnings: Vec<Warning>,
}

impl Config {
    /// Reads the file at `path`, and the profiles of engines in its directory.
    /// Errors: `ConfigError` if a file cannot be read or [`Config::parse`] refuses its text
    pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
        engines::load(Self::load_file(path)?, &path.display().to_string(), false)
    }

    fn load_file(path: &Path) -> Result<Loaded, ConfigError> {
        let file = path.display().to_string();
        let bytes = match read_at_most(path, MAX_BYTES) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Err(ConfigError::TooLarge { file }),
            Err(error) => {
                return Err(match error.kind() {
                    io::ErrorKind::NotFound => ConfigError::Missing { file },
                    io::ErrorKind::IsADirectory => ConfigError::Directory { file },
                    _ => ConfigError::Unreadable { file, cause: error },
                });
            }
        };
        match std::str::from_utf8(&bytes) {
            Ok(text) => Self::parse(text, &file),
            Err(error) => {
                let before = bytes.iter().take(error.valid_up_to());
                Err(ConfigError::NotUtf8 { file, line: 1 + before.filter(|byte| **byte == b'\n').count() })
            }
        }
    }

    /// Reads the file at `path` for a process that will do what it says: root refuses what others could have written.
    /// Errors: [`ConfigError::Distrusted`], or as [`Config::load`]
    pub(crate) fn load_trusted(path: &Path) -> Result<Loaded, ConfigError> {
        let distrusted = |why| ConfigError::Distrusted { file: path.display().to_string(), why };
        if !rustix::process::geteuid().is_root() {
            return Self::load(path);
        }
        let file = path.display().to_string();
        // Before its first word is read: an error message repeats words of a file.
        match trusted_path(path) {
            Ok(()) => engines::load(Self::load_file(path)?, &file, true),
            // Most likely it is not there, which loading says better.
            Err(why @ Untrusted { why: Distrust::Unknown { .. } | Distrust::NotAFile, .. }) => {
                Self::load(path).and(Err(distrusted(why)))
            }
            Err(why) => Err(distrusted(why)),
        }
    }

    /// Reads `text`, which came from `origin` (a path, or any name for the messages). With a directory of engines, whose
    /// files are not read, any name of an engine is taken.
    /// Errors: `ConfigError::Invalid` with all problems of the keys and values, or what keeps the text from
    /// being read at all
    pub fn parse(text: &str, origin: &str) -> Result<Loaded, ConfigError> {
        let file = origin.to_owned();
        let root = match yaml::parse(text) {
            Ok(root) => root,
            Err(error) => return Err(ConfigError::from_yaml(error, file, text)),
        };
        let tops = match root {
            Node::Null => return Err(ConfigError::Empty { file }),
            Node::Map(tops) => tops,
            other => {
                let problem = Problem::Value {
                    key: "the file".into(),
                    value: other.to_string(),
                    must_be: "a mapping of sections (vllm, gpu, control, ...)".into(),
                    remedy: None,
                };
                return Err(ConfigError::Invalid { file, problems: vec![problem] });
            }
        };
        let (lists, tops): (Vec<_>, Vec<_>) = tops.into_iter().partition(|(key, _)| key == "servers");
        let mut reader = Reader::new(text, tops);
        let mut config = Self::read(&mut reader, Self::default(), false);
        let windows = reader.windows;
        check::relations(&config, &mut reader);
        if lists.is_empty() {
            check::advice(&config, &mut reader);
        }
        let (mut problems, mut warnings) = reader.finish();
        if lists.len() > 1 {
            let lines = reader::lines_of(text, "servers", None);
            problems.push(Problem::Repeated { key: "servers".into(), times: lists.len(), lines });
        }
        for (_, list) in lists {
            let (servers, wrong, advice) = servers::read(list, &config, windows, text);
            config.servers = servers;
            problems.extend(wrong);
            warnings.extend(advice);
        }
        if config.engines.directory.is_none() {
            problems.extend(engines::check(&config, &[]));
        }
        if problems.is_empty() {
            Ok(Loaded { config, engines: Vec::new(), warnings })
        } else {
            Err(ConfigError::Invalid { file, problems })
        }
    }

    /// Reads the sections; what is not said is as in `base`. Those of the whole process stand in no entry of a server.
    fn read(reader: &mut Reader<'_>, mut base: Self, is_server: bool) -> Self {
        let mut config = base.clone();
        config.vllm = Vllm::read(reader, base.vllm);
        if !is_server {
            config.engines = Engines::read(reader, base.engines);
        }
        config.gpu = Gpu::read(reader, base.gpu);
        config.control = Control::read(reader, base.control);
        if let Some(quiet) = old_keys::quiet(reader, config.control.decision_interval_s) {
            base.idle.quiet_s = Some(quiet);
        }
        config.idle = Idle::read(reader, base.idle);
        if !is_server {
            config.park = Park::read(reader, base.park);
        }
        config.holdout = Holdout::read(reader, base.holdout);
        config.linucb = Linucb::read(reader, base.linucb);
        if !is_server {
            config.logging = Logging::read(reader, base.logging);
            config.model = Model::read(reader, base.model);
        }
        config.metrics = Metrics::read(reader, base.metrics);
        if !is_server {
            config.discover = Discover::read(reader, base.discover);
            config.observe = Observe::read(reader, base.observe);
            config.experiment = Experiment::read(reader, base.experiment);
            old_keys::read(reader);
        }
        check::elsewhere(reader);
        config
    }

    /// The configuration as a file that [`Config::parse`] reads back to an equal one.
    pub fn to_yaml(&self) -> String {
        yaml::write(self)
    }
}

/// Line, from 1, of `key` (`section.key`, or a section) in the text of a file, if it stands there once in block style.
pub(crate) fn line_of(text: &str, key: &str) -> Option<usize> {
    let (section, key) = key.split_once('.').map_or((key, None), |(section, key)| (section, Some(key)));
    match reader::lines_of(text, section, key)[..] {
        [line] => Some(line),
        _ => None,
    }
}

/// The bytes of the file at `path`, or `None` if there are more than `limit`.
fn read_at_most(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;
