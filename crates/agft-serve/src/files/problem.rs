//! What can be wrong with instance files, and what is merely worth saying.

use std::fmt;
use std::path::PathBuf;

use crate::text::shown;

/// Where in the files something stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The file, or what stands for one in a message.
    pub file: PathBuf,
    /// Line number, from 1; 0 where the problem has no line.
    pub line: usize,
    /// Which entry of the file's list, from 1; 0 for the file as a whole.
    pub index: usize,
    /// The instance's name, where it has one.
    pub name: Option<String>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        match (&self.name, self.index) {
            (_, 0) => Ok(()),
            (Some(name), index) => write!(f, ": instance {index} ({})", shown(name)),
            (None, index) => write!(f, ": instance {index}"),
        }
    }
}

/// One thing wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// The key, as `restart.policy`; empty where it is not about a key.
    pub key: String,
    /// The fact and the rule, as they follow the key: `is 5, must be ...`.
    pub rule: String,
    /// What to do.
    pub remedy: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.place)?;
        if !self.key.is_empty() {
            write!(f, " {}", shown(&self.key))?;
        }
        write!(f, " {}", self.rule)?;
        self.remedy.iter().try_for_each(|remedy| write!(f, "; {remedy}"))
    }
}

/// All that is wrong; never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (k, problem) in self.0.iter().enumerate() {
            if k > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

/// Something that is accepted, and perhaps not what its author wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Where.
    pub place: Place,
    /// What.
    pub text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.text)
    }
}
