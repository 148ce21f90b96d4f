//! The policy in charge: `structured` hands over to `linucb` where its model does not describe the engine.

use serde::{Deserialize, Serialize};

use super::linucb::{LinUcb, LinUcbSettings};
use super::structured::{Structured, StructuredSettings, Trouble};
use super::{BanditError, Choice, Evidence, Policy, Summary, View};
use crate::units::Clocks;

/// A handed-over `structured` gets the clocks back after this many seconds of work without trouble.
const RECOVERY: f64 = 300.0;

/// Either policy, or both with the second one in reserve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Learner {
    structured: Option<Box<Structured>>,
    linucb: LinUcb,
    /// Since the model failed: seconds of work without trouble.
    handed_over: Option<f64>,
}

impl Learner {
    /// `linucb` alone.
    #[must_use]
    pub fn linucb(settings: LinUcbSettings) -> Self {
        Self { structured: None, linucb: LinUcb::new(settings), handed_over: None }
    }

    /// `structured`, with `linucb` in reserve.
    #[must_use]
    pub fn structured(settings: StructuredSettings, reserve: LinUcbSettings) -> Self {
        Self {
            structured: Some(Box::new(Structured::new(settings))),
            linucb: LinUcb::new(reserve),
            handed_over: None,
        }
    }

    /// Takes over the constants of the present configuration; what was learned stays.
    pub fn configure(&mut self, structured: Option<StructuredSettings>, linucb: LinUcbSettings) {
        self.linucb.configure(linucb);
        self.structured = structured.map(|settings| match self.structured.take() {
            Some(mut known) => {
                known.configure(settings);
                known
            }
            None => Box::new(Structured::new(settings)),
        });
    }

    /// Why `structured` has handed over, if it has.
    #[must_use]
    pub fn trouble(&self) -> Option<Trouble> {
        self.structured.as_ref().and_then(|policy| policy.trouble())
    }

    /// The policy with the shared models, where it is in use.
    #[must_use]
    pub fn as_structured(&self) -> Option<&Structured> {
        self.structured.as_deref()
    }

    /// The policy with a regression per clock, where it is in charge.
    #[must_use]
    pub fn as_linucb(&self) -> Option<&LinUcb> {
        (self.structured.is_none() || self.handed_over.is_some()).then_some(&self.linucb)
    }

    /// Is every stored number usable? A model file could say otherwise.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.linucb.is_sound()
            && self.structured.as_ref().is_none_or(|policy| policy.is_sound())
            && self.handed_over.is_none_or(f64::is_finite)
    }

    fn active(&self) -> &dyn Policy {
        match &self.structured {
            Some(structured) if self.handed_over.is_none() => structured.as_ref(),
            _ => &self.linucb,
        }
    }

    fn active_mut(&mut self) -> &mut dyn Policy {
        match &mut self.structured {
            Some(structured) if self.handed_over.is_none() => structured.as_mut(),
            _ => &mut self.linucb,
        }
    }
}

impl Policy for Learner {
    fn choose(&mut self, view: View<'_>) -> Choice {
        self.active_mut().choose(view)
    }

    fn observe(&mut self, evidence: &Evidence<'_>) -> Result<bool, BanditError> {
        let Some(structured) = &mut self.structured else { return self.linucb.observe(evidence) };
        // It goes on learning while it is not in charge: the trouble may pass.
        let learned = structured.observe(evidence);
        let handed_over = match (structured.trouble(), self.handed_over) {
            (Some(_), _) => Some(0.0),
            (None, None) => None,
            (None, Some(quiet)) => Some(quiet + evidence.window.elapsed.0).filter(|quiet| *quiet < RECOVERY),
        };
        let changed = handed_over.is_some() != self.handed_over.is_some();
        self.handed_over = handed_over;
        if changed {
            self.active_mut().interrupt();
        }
        if self.handed_over.is_some() { self.linucb.observe(evidence) } else { learned }
    }

    fn wants_rewards(&self) -> bool {
        self.active().wants_rewards()
    }

    fn interrupt(&mut self) {
        if let Some(structured) = &mut self.structured {
            structured.interrupt();
        }
        self.linucb.interrupt();
    }

    fn limit_broken(&mut self, running: Clocks) {
        self.active_mut().limit_broken(running);
    }

    fn summary(&self) -> Summary {
        self.active().summary()
    }
}
