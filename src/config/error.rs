//! What can be wrong with a configuration file, and what is merely worth saying.

use std::fmt;
use std::io;

use super::MAX_BYTES;
use super::yaml::{MAX_VALUES, YamlError};
use crate::engine::ProfileError;
use crate::store::Untrusted;

/// Why there is no [`Config`](super::Config). The text names the file, the fact and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    #[error(
        "{file}: no such file; check the path, or write a file (one with nothing but {{}} takes every default)"
    )]
    Missing { file: String },
    #[error("{file}: is a directory, must be a file")]
    Directory { file: String },
    #[error("{file}: cannot be read: {cause}; check the path and its permissions")]
    Unreadable {
        file: String,
        /// What the system said; part of the text, so not a `source`.
        cause: io::Error,
    },
    #[error("{file}: is not obeyed by root, since others could have written it: {why}")]
    Distrusted { file: String, why: Untrusted },
    #[error("{file}: is larger than {} KiB, must be a configuration file", MAX_BYTES / 1024)]
    TooLarge { file: String },
    #[error("{file}: line {line} is not UTF-8 text; save the file as UTF-8")]
    NotUtf8 {
        file: String,
        /// Line with the first bad byte, from 1.
        line: usize,
    },
    #[error("{file}: is empty; write {{}} to take every default")]
    Empty { file: String },
    #[error("{file}: is not YAML: {message}{}", if *.tab { "; indent with blanks, not with tabs" } else { "" })]
    Syntax { file: String, message: String, tab: bool },
    #[error("{file}: has a second YAML document after `---`, must have one; take it out")]
    SecondDocument { file: String },
    #[error(
        "{file}: has more than {MAX_VALUES} values, aliases counted where they are used; must be a configuration file"
    )]
    TooManyValues { file: String },
    #[error("{}", .errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Engines {
        /// What is wrong with the files of `engines.directory`, never empty.
        errors: Vec<ProfileError>,
    },
    #[error("{}", lines(.file, .problems))]
    Invalid {
        file: String,
        /// What is wrong, never empty.
        problems: Vec<Problem>,
    },
}

fn lines(file: &str, problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("{file}: {problem}")).collect::<Vec<_>>().join("\n")
}

impl ConfigError {
    pub(super) fn from_yaml(error: YamlError, file: String, text: &str) -> Self {
        match error {
            YamlError::TooManyValues => Self::TooManyValues { file },
            YamlError::SecondDocument => Self::SecondDocument { file },
            YamlError::Syntax { line, message } => {
                let at_fault = line.and_then(|line| text.lines().nth(line.saturating_sub(1)));
                let tab = at_fault.is_some_and(|line| line.trim_start_matches(' ').starts_with('\t'));
                Self::Syntax { file, message, tab }
            }
        }
    }
}

/// One thing wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// A value breaks its key's rule.
    Value {
        /// Full path of the key, for example `control.seed`.
        key: String,
        /// The value, for humans.
        value: String,
        /// The rule, as it completes "must be".
        must_be: String,
        /// What to write instead, where that is plain.
        remedy: Option<String>,
    },
    /// No key has this name here.
    Unknown {
        /// Full path as it stands in the file.
        key: String,
        /// The name that was probably meant, or the names there are.
        remedy: String,
    },
    /// A key stands there more than once.
    Repeated {
        /// Full path of the key.
        key: String,
        /// How often it is given.
        times: usize,
        /// The lines, from 1; empty where they cannot be told.
        lines: Vec<usize>,
    },
}

impl Problem {
    pub(crate) fn key(&self) -> &str {
        match self {
            Self::Value { key, .. } | Self::Unknown { key, .. } | Self::Repeated { key, .. } => key,
        }
    }
}

impl Problem {
    /// The same, of a part of the file.
    pub(super) fn within(mut self, place: &str) -> Self {
        let (Self::Value { key, .. } | Self::Unknown { key, .. } | Self::Repeated { key, .. }) = &mut self;
        *key = format!("{place}.{key}");
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value { key, value, must_be, remedy } => {
                write!(f, "{key} is {value}, must be {must_be}")?;
                remedy.iter().try_for_each(|remedy| write!(f, "; {remedy}"))
            }
            Self::Unknown { key, remedy } => write!(f, "{key} is not a known key; {remedy}"),
            Self::Repeated { key, times, lines } => {
                write!(f, "{key} is given {times} times")?;
                if !lines.is_empty() {
                    let lines: Vec<_> = lines.iter().map(ToString::to_string).collect();
                    write!(f, " (lines {})", lines.join(", "))?;
                }
                f.write_str(", must be given once")
            }
        }
    }
}

/// Something in a file that is accepted and probably not what its author wants.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum Warning {
    /// A key of AGFT's that AGFT itself ignored, and that agft has no use for.
    Unused {
        /// Full path of the key.
        key: String,
        /// What decides the matter.
        instead: &'static str,
    },
    /// A key that another key makes meaningless.
    NoEffect {
        /// Full path of the key.
        key: &'static str,
        /// The other key and its value.
        because: &'static str,
    },
    /// The metrics page's URL has no path.
    NoPath {
        /// The URL with the usual path.
        usual: String,
    },
    /// A token is sent unencrypted to another machine.
    TokenInClear,
    /// One of the above, of a server of the list.
    OfServer {
        /// `servers.NAME`.
        place: String,
        /// What is worth saying of it.
        warning: Box<Warning>,
    },
}

impl Warning {
    /// The same, of a part of the file.
    pub(super) fn within(self, place: &str) -> Self {
        Self::OfServer { place: place.to_owned(), warning: Box::new(self) }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unused { key, instead } => write!(f, "{key} is not used; {instead}"),
            Self::NoEffect { key, because } => write!(f, "{key} has no effect: {because}"),
            Self::NoPath { usual } => {
                write!(f, "vllm.prometheus_url has no path; engines serve their metrics at {usual}")
            }
            Self::OfServer { place, warning } => write!(f, "{place}: {warning}"),
            Self::TokenInClear => f.write_str(
                "vllm.bearer_token_file: the token crosses the network unencrypted; use an https:// URL",
            ),
        }
    }
}
