//! Who parks.

use std::fmt;
use std::str::FromStr;

use crate::lab::LabError;
use crate::units::Seconds;

/// Who parks, and when.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ParkPolicy {
    /// Nobody.
    Never,
    /// A fixed time after the last connection was closed, as memscaler does.
    Fixed(Seconds),
    /// The rule of `agft park` as `ski-rental`, by utilisation and connections.
    Rule,
    /// The daemon beside an engine, by page and sensors.
    Engine,
    /// The same, which is also shown the connections.
    EngineConnections,
    /// Whoever knows every arrival: parks in every gap, and is back in time.
    Clairvoyant,
    /// The same with the core clock alone.
    ClairvoyantCore,
}

impl ParkPolicy {
    /// Those that are compared unless told otherwise.
    pub const DEFAULT: &str =
        "none,fixed=60,fixed=3,rule,engine,engine-connections,clairvoyant-core,clairvoyant";

    /// Does it go by connections?
    #[must_use]
    pub fn sees_connections(self) -> bool {
        matches!(self, Self::Fixed(_) | Self::Rule | Self::EngineConnections)
    }

    /// Is it run for every comparison?
    pub(super) fn is_reference(self) -> bool {
        matches!(self, Self::Never | Self::Clairvoyant)
    }
}

impl fmt::Display for ParkPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("none"),
            Self::Fixed(wait) => write!(f, "fixed={}", wait.0),
            Self::Rule => f.write_str("rule"),
            Self::Engine => f.write_str("engine"),
            Self::EngineConnections => f.write_str("engine-connections"),
            Self::Clairvoyant => f.write_str("clairvoyant"),
            Self::ClairvoyantCore => f.write_str("clairvoyant-core"),
        }
    }
}

impl FromStr for ParkPolicy {
    type Err = LabError;

    fn from_str(name: &str) -> Result<Self, LabError> {
        if let Some(wait) = name.strip_prefix("fixed=") {
            let seconds = wait.parse::<f64>().ok().filter(|wait| (0.1..=86_400.0).contains(wait));
            return seconds.map(|wait| Self::Fixed(Seconds(wait))).ok_or_else(|| LabError::BadValue {
                what: "parking rule",
                given: name.to_owned(),
                rule: "give seconds from 0.1 to 86400, such as fixed=60",
            });
        }
        match name {
            "none" => Ok(Self::Never),
            "rule" => Ok(Self::Rule),
            "engine" => Ok(Self::Engine),
            "engine-connections" => Ok(Self::EngineConnections),
            "clairvoyant" => Ok(Self::Clairvoyant),
            "clairvoyant-core" => Ok(Self::ClairvoyantCore),
            _ => Err(LabError::UnknownName {
                kind: "parking rule",
                given: name.to_owned(),
                known: "none, fixed=SECONDS, rule, engine, engine-connections, clairvoyant-core, clairvoyant",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_is_found_by_the_name_it_shows() {
        for name in ParkPolicy::DEFAULT.split(',') {
            assert_eq!(name.parse::<ParkPolicy>().unwrap().to_string(), name);
        }
        for wrong in ["fixed=", "fixed=0", "fixed=nan"] {
            let error = wrong.parse::<ParkPolicy>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("parking rule `{wrong}`: give seconds")), "{error}");
        }
        let error = "always".parse::<ParkPolicy>().unwrap_err().to_string();
        assert!(error.starts_with("unknown parking rule `always`; known: none, fixed=SECONDS"), "{error}");
    }
}
