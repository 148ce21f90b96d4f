//! Who parks.

use std::fmt;
use std::str::FromStr;

use crate::LabError;
use agft::units::Seconds;

/// Who parks, and when.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ParkPolicy {
    /// Nobody.
    Never,
    /// A fixed time after the last connection was closed, as memscaler does.
    Fixed(Seconds),
    /// The same at half the highest core clock, and at the parked clocks only after the longer time.
    Staged(Seconds, Seconds),
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
        matches!(self, Self::Fixed(_) | Self::Staged(..) | Self::Rule | Self::EngineConnections)
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
            Self::Staged(first, second) => write!(f, "staged={}/{}", first.0, second.0),
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
        let seconds = |text: &str| {
            let seconds = text.parse::<f64>().ok().filter(|wait| (0.1..=86_400.0).contains(wait));
            seconds.map(Seconds)
        };
        let bad = |rule| LabError::BadValue { what: "parking rule", given: name.to_owned(), rule };
        if let Some(wait) = name.strip_prefix("fixed=") {
            return seconds(wait)
                .map(Self::Fixed)
                .ok_or_else(|| bad("give seconds from 0.1 to 86400, such as fixed=60"));
        }
        if let Some(waits) = name.strip_prefix("staged=") {
            return waits
                .split_once('/')
                .and_then(|(first, second)| seconds(first).zip(seconds(second)))
                .filter(|(first, second)| first <= second)
                .map(|(first, second)| Self::Staged(first, second))
                .ok_or_else(|| bad("give two times in seconds from 0.1 to 86400, such as staged=0.5/3"));
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
                known: "none, fixed=SECONDS, staged=SECONDS/SECONDS, rule, engine, engine-connections, clairvoyant-core, clairvoyant",
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
        let staged = ParkPolicy::Staged(Seconds(0.5), Seconds(3.0));
        assert_eq!(staged.to_string().parse::<ParkPolicy>().unwrap(), staged);
        let error = "staged=3/1".parse::<ParkPolicy>().unwrap_err().to_string();
        assert!(error.starts_with("parking rule `staged=3/1`: give two times"), "{error}");
        for wrong in ["fixed=", "fixed=0", "fixed=nan"] {
            let error = wrong.parse::<ParkPolicy>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("parking rule `{wrong}`: give seconds")), "{error}");
        }
        let error = "always".parse::<ParkPolicy>().unwrap_err().to_string();
        assert!(error.starts_with("unknown parking rule `always`; known: none, fixed=SECONDS"), "{error}");
    }
}
