//! gppm's own `config.yaml`.

use std::path::{Path, PathBuf};

use super::problem::{Place, Problem, Problems};
use super::section::{Report, Section};
use super::{Surroundings, text_of, yaml};

/// What gppm used, and what it took from its command line alone.
const KEYS: &[&str] = &[
    "llamacpp_configs_dir",
    "port",
    "max_llamacpp_instances",
    "host",
    "log_file",
    "sleep_time",
    "timeout_time",
    "log_file_to_monitor",
];

/// Keys without use here, and what stands in their place.
const UNUSED: [(&str, &str); 6] = [
    ("max_llamacpp_instances", "the number of instances and of their requests has no limit"),
    ("host", "--listen says where the API is"),
    ("log_file", "messages go to standard error, and those of instances to --log-dir"),
    ("sleep_time", "nothing is polled at that pace"),
    ("timeout_time", "an instance has stop.grace_s and ready.timeout_s"),
    ("log_file_to_monitor", "agft sees requests by connections and metrics, not by log lines"),
];

/// What of it counts here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GppmConfig {
    /// The directory of instance files.
    pub instances: Option<PathBuf>,
    /// The port of the API.
    pub port: Option<u16>,
    /// What is not used.
    pub notes: Vec<String>,
}

/// Reads gppm's `config.yaml`.
///
/// # Errors
/// [`Problems`]: all that is wrong with it.
pub fn read_gppm_config(file: &Path, around: &Surroundings) -> Result<GppmConfig, Problems> {
    let place = Place { file: file.to_owned(), ..Place::default() };
    let failed = |line, rule| {
        Problems(vec![Problem {
            place: Place { line, ..place.clone() },
            key: String::new(),
            rule,
            remedy: None,
        }])
    };
    let text = text_of(file, around).map_err(|rule| failed(0, rule))?;
    let node = yaml::parse(&text).map_err(|error| failed(error.line, error.message))?;
    if node.is_null() {
        return Ok(GppmConfig::default());
    }
    let report = Report::new(place.clone());
    let mut config = GppmConfig::default();
    if let Some(mut section) = Section::open(&report, "", node, KEYS) {
        config.instances =
            section.take("llamacpp_configs_dir").and_then(|item| item.text("a directory")).map(PathBuf::from);
        config.port = section
            .take("port")
            .and_then(|item| item.whole(1, 65_535))
            .and_then(|port| u16::try_from(port).ok());
        for (key, instead) in UNUSED {
            if section.take(key).is_some() {
                config.notes.push(format!("{}: {key} is not used; {instead}", file.display()));
            }
        }
    }
    match report.into_parts().0 {
        problems if problems.is_empty() => Ok(config),
        problems => Err(Problems(problems)),
    }
}
