//! The rule as steps of version 3 hold it: its constants stood elsewhere, and heat was no matter beside a server.

use serde::Deserialize;

use super::{Rule, Settings};
use crate::park::gap::GapRule;
use crate::park::source::Connections;
use crate::units::{Seconds, Time, Watts};

#[derive(Debug, Default, Deserialize)]
pub(in crate::park) struct IdleWatch {
    gaps: Option<GapRule>,
    level: Option<Watts>,
    level_from: Option<Time>,
    quiet_power: Option<Watts>,
    up_since: Option<Time>,
    connections: Option<Connections>,
    asked_at: Option<Time>,
    pub(in crate::park) worked_at: Option<Time>,
    step_time: Option<Seconds>,
}

impl IdleWatch {
    /// The rule with these constants.
    pub(in crate::park) fn with(self, settings: Settings) -> Rule {
        Rule {
            gaps: self.gaps.unwrap_or_else(|| GapRule::new(&settings.gap)),
            settings,
            hot: false,
            level: self.level,
            level_from: self.level_from,
            quiet_power: self.quiet_power,
            up_since: self.up_since,
            connections: self.connections,
            asked_at: self.asked_at,
            worked_at: self.worked_at,
            step_time: self.step_time,
        }
    }
}

#[cfg(test)]
impl IdleWatch {
    pub(in crate::park) fn of(gaps: GapRule) -> Self {
        Self { gaps: Some(gaps), ..Self::default() }
    }
}
