//! The policies that can be compared.

use std::fmt;
use std::str::FromStr;

use super::LabError;
use super::sim::Kind;
use agft::bandit::ActionSpace;
use agft::compose;
use agft::config::{Config, PolicyKind};
use agft::control::{Controller, Learned};
use agft::gpu::SupportedClocks;
use agft::park::levers::LeverBook;
use agft::units::{Time, Watts};

/// Who sets the clocks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PolicySpec {
    /// agft with `control.policy: structured`.
    Structured,
    /// agft with `control.policy: linucb`.
    LinUcb,
    /// Nobody: driver-default clocks.
    Default,
    /// The best fixed clock, found afterwards by sweep on the same arrivals.
    BestFixed,
    /// One clock per stretch of the load, found afterwards: see [`clairvoyant`](super::clairvoyant).
    Clairvoyant,
    /// AGFT as it was published: see [`original`](super::original).
    Agft,
    /// Driver-default clocks under a power cap.
    PowerCap(Cap),
}

impl PolicySpec {
    /// Does what it does depend on the engine's page? The original reads vLLM's alone.
    #[must_use]
    pub fn reads_page(self) -> bool {
        matches!(self, Self::Structured | Self::LinUcb)
    }
}

/// A policy before a server of one kind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Entrant {
    /// The policy.
    pub policy: PolicySpec,
    /// Whose page it reads; `None` of one to which that makes no difference.
    pub engine: Option<&'static Kind>,
}

impl fmt::Display for Entrant {
    /// The policy, and the engine if it is not the usual one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { policy, engine } = self;
        match engine.filter(|kind| *kind != Kind::usual()) {
            Some(kind) => f.pad(&format!("{policy} {}", kind.name())),
            None => f.pad(&policy.to_string()),
        }
    }
}

/// A power cap.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cap {
    /// In watts.
    Absolute(Watts),
    /// As percent of the board's own.
    Percent(f64),
}

impl Cap {
    /// In watts, on a board with this cap of its own.
    #[must_use]
    pub fn on(self, board: Watts) -> Watts {
        match self {
            Self::Absolute(watts) => watts,
            Self::Percent(percent) => Watts(board.0 * percent / 100.0),
        }
    }
}

impl fmt::Display for PolicySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Structured => f.write_str("structured"),
            Self::LinUcb => f.write_str("linucb"),
            Self::Default => f.write_str("default"),
            Self::BestFixed => f.write_str("best-fixed"),
            Self::Clairvoyant => f.write_str("clairvoyant"),
            Self::Agft => f.write_str("agft"),
            Self::PowerCap(Cap::Absolute(watts)) => write!(f, "power-cap={}", watts.0),
            Self::PowerCap(Cap::Percent(percent)) => write!(f, "power-cap={percent}%"),
        }
    }
}

impl FromStr for PolicySpec {
    type Err = LabError;

    fn from_str(name: &str) -> Result<Self, LabError> {
        if let Some(cap) = name.strip_prefix("power-cap=") {
            return cap_from(cap).map(Self::PowerCap);
        }
        match name.to_ascii_lowercase().as_str() {
            "structured" => Ok(Self::Structured),
            "linucb" => Ok(Self::LinUcb),
            "default" => Ok(Self::Default),
            "best-fixed" => Ok(Self::BestFixed),
            "clairvoyant" => Ok(Self::Clairvoyant),
            "agft" => Ok(Self::Agft),
            _ => Err(LabError::UnknownName {
                kind: "policy",
                given: name.to_owned(),
                known: "structured, linucb, default, best-fixed, clairvoyant, agft, power-cap=WATTS, power-cap=PERCENT%",
            }),
        }
    }
}

fn cap_from(text: &str) -> Result<Cap, LabError> {
    let (number, percent) = text.strip_suffix('%').map_or((text, false), |number| (number, true));
    let value = number.trim().parse::<f64>().ok().filter(|value| value.is_finite() && *value > 0.0);
    match (value, percent) {
        (Some(value), true) if value <= 100.0 => Ok(Cap::Percent(value)),
        (Some(value), false) => Ok(Cap::Absolute(Watts(value))),
        _ => Err(LabError::BadValue {
            what: "power cap",
            given: text.to_owned(),
            rule: "give watts above 0, such as power-cap=250, or percent of the board's cap, such as power-cap=70%",
        }),
    }
}

/// The controller that the daemon would run with this configuration, this policy and seed, but for the holdout: a run of
/// minutes is too short for it. It would cost some runs a moment, and show nothing.
#[must_use]
pub fn controller(config: &Config, supported: &SupportedClocks, policy: PolicyKind, seed: u64) -> Controller {
    let mut config = config.clone();
    config.holdout.share = 0.0;
    with_holdout(&config, supported, policy, seed)
}

/// The same with the holdout as it is configured.
#[must_use]
pub fn with_holdout(
    config: &Config,
    supported: &SupportedClocks,
    policy: PolicyKind,
    seed: u64,
) -> Controller {
    let mut config = config.clone();
    config.control.policy = policy;
    config.control.seed = seed;
    as_configured(&config, supported)
}

/// The controller that the daemon would run with this configuration.
#[must_use]
pub fn as_configured(config: &Config, supported: &SupportedClocks) -> Controller {
    let memory = compose::memory_clocks(config, supported);
    let space = ActionSpace::new(supported, &compose::space_settings(config, memory));
    let settings = compose::control_settings(config, false);
    let learned = Learned::fresh(compose::learner(config), config.metrics.baseline_measurements);
    Controller::new(settings, learned, space, 1, Time(0.0)).with_levers(compose::levers(
        config,
        supported,
        LeverBook::default(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_is_found_by_the_name_it_shows() {
        for name in ["structured", "linucb", "default", "best-fixed", "clairvoyant", "agft"] {
            assert_eq!(name.parse::<PolicySpec>().unwrap().to_string(), name);
        }
        for name in ["power-cap=250", "power-cap=70%"] {
            assert_eq!(name.parse::<PolicySpec>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn cap_is_watts_or_a_share_and_nothing_else() {
        assert_eq!(cap_from("250").unwrap().on(Watts(400.0)), Watts(250.0));
        assert_eq!(cap_from("70%").unwrap().on(Watts(400.0)), Watts(280.0));
        for wrong in ["", "0", "-5", "120%", "nan", "much"] {
            let error = cap_from(wrong).unwrap_err().to_string();
            assert!(error.starts_with(&format!("power cap `{wrong}`: give watts")), "{error}");
        }
    }

    #[test]
    fn long_gaps_show_what_each_lever_saves_and_the_best_is_used() {
        use crate::sim::Pattern;
        use crate::sim::WorldSpec;
        use crate::sim::run::{Driver, RunSpec, run};
        use agft::park::levers::LeverKind;
        use agft::units::Seconds;

        let world = WorldSpec::named("l40s", "8b", Pattern::Light, Some(0.001)).unwrap();
        let config = Config::default();
        let supported = crate::sim::World::new(world.clone(), 1).unwrap().supported_clocks().unwrap();
        let mut controller = as_configured(&config, &supported);
        let spec = RunSpec { world, seed: 1, seconds: Seconds(900.0), tick: Seconds(0.3) };
        run(&spec, Driver::Controller(&mut controller), |_| {}).unwrap();
        let levers = controller.parking().levers();
        let saving = |kind| levers.book().saving(kind).unwrap_or_else(|| panic!("{:?}", levers.book())).0;
        // The board's measured idle points: 102.3 W, 61 W with the core clock down, 35.6 W with both.
        assert!((saving(LeverKind::Core) - 41.3).abs() < 5.0, "{:?}", levers.book());
        assert!((saving(LeverKind::Both) - 66.7).abs() < 7.0, "{:?}", levers.book());
        assert_eq!(levers.best(None).unwrap().kind, LeverKind::Both);
        assert!(levers.book().levers[&LeverKind::Both].wake_s.is_some_and(|wake| wake < 0.5));
    }
}
