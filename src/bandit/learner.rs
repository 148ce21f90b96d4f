//! The policy in charge: `structured` hands over to `linucb` where its model does not describe the engine, and neither
//! decides while a queue grows under lowered clocks. `linucb` by itself judges a clock by what follows at once; the
//! models of `structured` keep it from clocks that cost more than that.

pub(crate) mod v1;

use serde::{Deserialize, Serialize};

use super::doubt::Doubt;
use super::linucb::{self, LinUcb, LinUcbSettings};
use super::overload::Overload;
use super::structured::{self, Structured, StructuredSettings, Trouble};
use super::{BanditError, Choice, Evidence, Phase, Policy, Reason, Summary, View};
use crate::units::{Clocks, Seconds, Target, Time};

/// A handed-over `structured` gets the clocks back after this many seconds of work without trouble.
const RECOVERY: f64 = 300.0;

/// A clock under which a queue grew, times this, is the lowest that `linucb` may choose ...
const FLOOR_RISE: f64 = 1.1;
/// ... for so long.
const FLOOR_FOR: Seconds = Seconds(180.0);

/// What the policies have learned: all of them that a model file holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Durable {
    structured: Option<structured::Durable>,
    linucb: linucb::Durable,
    handed_over: Option<f64>,
    judge: Option<structured::Durable>,
}

/// What ends with the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Running {
    overload: Overload,
    /// Under this core clock (MHz) a queue grew; `linucb` stays above it until then.
    floor: Option<(f64, Time)>,
    doubt: Doubt,
}

/// Either policy, or both with the second one in reserve. Serialized, it is a snapshot of a run; a model file holds
/// its [`Durable`] part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Learner {
    structured: Option<Box<Structured>>,
    linucb: LinUcb,
    /// Since the model failed: seconds of work without trouble.
    handed_over: Option<f64>,
    /// Keeps `linucb`, where it was asked for, from clocks that the shared models take for a loss.
    judge: Option<Box<Structured>>,
    running: Running,
}

impl From<Durable> for Learner {
    fn from(durable: Durable) -> Self {
        let Durable { structured, linucb, handed_over, judge } = durable;
        let [structured, judge] = [structured, judge].map(|known| known.map(|known| Box::new(known.into())));
        Self { structured, linucb: linucb.into(), handed_over, judge, running: Running::default() }
    }
}

impl Learner {
    /// `linucb` alone.
    #[must_use]
    pub fn linucb(settings: LinUcbSettings) -> Self {
        Self {
            structured: None,
            linucb: LinUcb::new(settings),
            handed_over: None,
            judge: None,
            running: Running::default(),
        }
    }

    /// `linucb`, kept from what the models of `structured` take for a loss or for too slow.
    #[must_use]
    pub fn judged(judge: StructuredSettings, settings: LinUcbSettings) -> Self {
        Self { judge: Some(Box::new(Structured::new(judge))), ..Self::linucb(settings) }
    }

    /// `structured`, with `linucb` in reserve.
    #[must_use]
    pub fn structured(settings: StructuredSettings, reserve: LinUcbSettings) -> Self {
        Self { structured: Some(Box::new(Structured::new(settings))), ..Self::linucb(reserve) }
    }

    /// A copy of what was learned.
    #[must_use]
    pub fn durable(&self) -> Durable {
        Durable {
            structured: self.structured.as_ref().map(|policy| policy.durable().clone()),
            linucb: self.linucb.durable().clone(),
            handed_over: self.handed_over,
            judge: self.judge.as_ref().map(|judge| judge.durable().clone()),
        }
    }

    /// Takes over the constants of the present configuration; what was learned stays. The models serve whichever policy
    /// decides: `by_structured`, or `linucb`.
    pub fn configure(&mut self, structured: StructuredSettings, by_structured: bool, linucb: LinUcbSettings) {
        self.linucb.configure(linucb);
        let known = self.structured.take().or_else(|| self.judge.take());
        let models = match known {
            Some(mut known) => {
                known.configure(structured);
                known
            }
            None => Box::new(Structured::new(structured)),
        };
        let place = if by_structured { &mut self.structured } else { &mut self.judge };
        *place = Some(models);
    }

    /// Why `structured` has handed over, if it has.
    #[must_use]
    pub fn trouble(&self) -> Option<Trouble> {
        self.structured.as_ref().and_then(|policy| policy.trouble())
    }

    /// What the policy with the shared models has learned, where it is in use.
    #[must_use]
    pub fn as_structured(&self) -> Option<&structured::Durable> {
        self.structured.as_ref().map(|policy| policy.durable())
    }

    /// What the policy with a regression per clock has learned, where it is in charge.
    #[must_use]
    pub fn as_linucb(&self) -> Option<&linucb::Durable> {
        self.linucb_decides().then(|| self.linucb.durable())
    }

    /// Is every stored number usable? A model file could say otherwise.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.linucb.durable().is_sound()
            && [&self.structured, &self.judge].into_iter().flatten().all(|models| models.durable().is_sound())
            && self.handed_over.is_none_or(f64::is_finite)
    }

    /// `linucb` judges a clock by what follows at once, and a queue grows later: a clock under which one grew is not chosen
    /// for a while. `structured` predicts the queue, and is left alone.
    fn above_floor(&self, choice: Choice, view: View<'_>) -> Choice {
        let in_force = |until: &Time| self.linucb_decides() && view.now < *until;
        let Some((floor, _)) = self.running.floor.filter(|(_, until)| in_force(until)) else {
            return choice;
        };
        if choice.target.clocks().is_none_or(|clocks| clocks.core.as_f64() >= floor) {
            return choice;
        }
        let lowest = view.space.allowed(view.now).filter(|arm| arm.core.as_f64() >= floor).last();
        Choice { target: lowest.map_or(Target::Default, Target::Lock), reason: Reason::Overload, ..choice }
    }

    fn linucb_decides(&self) -> bool {
        self.structured.is_none() || self.handed_over.is_some()
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

fn default_for(reason: Reason) -> Choice {
    Choice { target: Target::Default, reason, score: None, width: None }
}

impl Policy for Learner {
    fn choose(&mut self, view: View<'_>) -> Choice {
        if self.running.overload.wants_default() {
            return default_for(Reason::Overload);
        }
        if self.linucb_decides() && self.running.doubt.wants_default(view.now) {
            return default_for(Reason::Doubt);
        }
        let lowest = self.judge.as_mut().and_then(|judge| judge.lowest_acceptable(view));
        let choice = match lowest {
            Some(lowest) => {
                let mut space = view.space.clone();
                space.set_floor(view.space.floor().max(Some(lowest)));
                self.active_mut().choose(View { space: &space, ..view })
            }
            None => self.active_mut().choose(view),
        };
        self.above_floor(choice, view)
    }

    fn observe(&mut self, evidence: &Evidence<'_>) -> Result<bool, BanditError> {
        let lowered = matches!(evidence.ran_at, Some(Target::Lock(_)));
        let preempted = evidence.window.preemptions.is_some_and(|count| count > 0.0);
        let was_overloaded = self.running.overload.wants_default();
        self.running.overload.on_tick(evidence.now, &evidence.window.at_end, preempted, lowered);
        if self.running.overload.wants_default()
            && !was_overloaded
            && let Some(clocks) = evidence.ran_at.and_then(Target::clocks)
        {
            self.running.floor = Some((FLOOR_RISE * clocks.core.as_f64(), evidence.now + FLOOR_FOR));
        }
        if let Some(reward) = evidence.reward.filter(|_| lowered && self.linucb_decides()) {
            self.running.doubt.push(reward, evidence.window.elapsed, evidence.now);
        }
        if let Some(judge) = &mut self.judge {
            // A sample that its models refuse leaves them as they were.
            let _ = judge.observe(evidence);
        }
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
        self.running.overload.interrupt();
        for models in [&mut self.structured, &mut self.judge].into_iter().flatten() {
            models.interrupt();
        }
        self.linucb.interrupt();
    }

    fn limit_broken(&mut self, running: Clocks) {
        self.active_mut().limit_broken(running);
    }

    fn phase(&self) -> Phase {
        self.active().phase()
    }

    fn summary(&self) -> Summary {
        self.active().summary()
    }
}
