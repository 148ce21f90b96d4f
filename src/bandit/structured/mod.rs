//! LinUCB whose linear models are shared by all clocks: step time and power are regressed on (clock, load), and the clock
//! is chosen by the bound on the predicted energy-delay product.
//!
//! Rewards per clock need minutes per clock, because the load moves them far more than the clock does. Step time and
//! power, each a small linear function of clock and load, are known after seconds, and every window at any clock and
//! load teaches about all clocks and loads.
//!
//! ```text
//!  ticks --window--> lessons --regression--> step_time, power --predict--> outlook of every clock --plan--> clock
//!                       \-----context-----------------------------^           guard (rules that trust no model)
//! ```

mod balance;
mod budget;
mod by_load;
mod context;
mod forecast;
mod guard;
mod loop_kind;
mod model;
mod plan;
mod power;
mod predict;
mod regression;
mod scales;
mod settings;
mod settled;
mod step_time;
mod surge;
#[cfg(test)]
mod testing;
pub(crate) mod v1;
mod window;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use self::budget::Budget;
use self::context::Context;
use self::guard::Guard;
use self::model::Model;
use self::plan::{Motive, Options, Stage};
use self::predict::{Aim, Outlook, Predictor};
use self::scales::Scales;
use self::settled::Settled;
use self::surge::Surge;
use self::window::{Joiner, Lesson};
use super::{ActionSpace, ArmSummary, BanditError, Choice, Evidence, Phase, Policy, Reason, Summary, View};
use crate::stats::Dice;
use crate::units::{Clocks, Mhz, Seconds, Target, Time};

pub use self::by_load::BestAt;
pub use self::forecast::{Chosen, LogRatio, Ratios};
pub use self::guard::Trouble;
pub use self::settings::StructuredSettings;
pub use self::window::Length;

/// Share of capped ticks from which on the power cap has bitten.
const CAP_BITES: f64 = 0.3;
/// The ceiling under the power cap rises by this factor per window in which the cap did not bite.
const CEILING_RELAX: f64 = 1.02;

/// Between two deviations the preferred clock changes only for a gain above this.
const QUIET_HYSTERESIS: f64 = 0.03;
/// Seconds of learning between deviations while the choice is sure: two clock changes a minute.
const QUIET_EVERY: f64 = 60.0;
/// While it is not, this share of the time learned so far, within bounds in seconds: more at first.
const UNSURE_SHARE: f64 = 0.15;
const UNSURE_EVERY: (f64, f64) = (5.0, QUIET_EVERY);
/// A clock below the preferred one, as its share, at which predictions have to be sure.
const SURE_BELOW: f64 = 0.93;
/// Standard deviation of the predicted gain from which on the choice is sure ...
const SURE_GAIN: f64 = 0.02;
/// ... and of the predicted slowdown, where that is bounded.
const SURE_SLOWDOWN: f64 = 0.015;
/// For convergence it is enough that the choice would hardly move: twice those, and somewhat more once it was
/// so. The spread itself is known from a few draws only, and would flicker.
const SETTLES: f64 = 2.0;
const STAYS_SETTLED: f64 = 2.5;

/// What the policy has learned: all of it that a model file holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Durable {
    settings: StructuredSettings,
    dice: Dice,
    stage: Stage,
    context: Context,
    /// The first lessons at default clocks, until they give the units.
    first: Vec<Lesson>,
    model: Option<Model>,
    /// Core clock read back at driver-default clocks, MHz.
    default_clock: Option<f64>,
    /// Highest clock that the power cap allows, MHz.
    ceiling: Option<f64>,
    /// Lowest clock ever run at, MHz.
    lowest: Option<f64>,
    lessons_at: BTreeMap<Clocks, u64>,
    rounds: u64,
    /// Seconds of learning.
    learning_time: f64,
    /// Choices made at work.
    turn: u64,
    /// The pessimist's present choice, MHz.
    preferred: Option<f64>,
    /// Has the choice converged?
    settled: Settled,
    budget: Budget,
}

impl Durable {
    fn new(settings: StructuredSettings) -> Self {
        Self {
            dice: Dice::new(settings.seed),
            settings,
            stage: Stage::Measure,
            context: Context::default(),
            first: Vec::new(),
            model: None,
            default_clock: None,
            ceiling: None,
            lowest: None,
            lessons_at: BTreeMap::new(),
            rounds: 0,
            learning_time: 0.0,
            turn: 0,
            preferred: None,
            settled: Settled::default(),
            budget: Budget::default(),
        }
    }

    /// Is every stored number usable? A model file could say otherwise.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let positive = |value: Option<f64>| value.is_none_or(|value| value.is_finite() && value > 0.0);
        self.context.is_sound()
            && self.first.iter().all(Lesson::is_sound)
            && self.model.as_ref().is_none_or(Model::is_sound)
            && [self.default_clock, self.ceiling, self.lowest, self.preferred].into_iter().all(positive)
            && self.learning_time.is_finite()
            && self.budget.is_sound()
            && self.settled.is_sound()
    }

    /// Collects the first windows at default clocks, which give the units.
    fn measure(&mut self, lesson: Lesson) {
        if lesson.target == Target::Default {
            self.first.push(lesson);
        }
        let enough = self.first.len() >= usize::try_from(self.settings.default_windows).unwrap_or(1);
        let Some(scales) = Scales::of(&self.first).filter(|_| enough) else { return };
        let mut model = Model::new(scales);
        for lesson in self.first.drain(..) {
            // A first lesson that does not fit leaves the prior; the next ones fit again.
            let _ = model.learn(lesson, self.settings.memory);
        }
        self.model = Some(model);
        self.stage = Stage::Descend(self.settings.descent_windows);
    }

    fn note_clocks(&mut self, lesson: &Lesson) {
        self.lowest = Some(self.lowest.map_or(lesson.clock, |lowest| lowest.min(lesson.clock)));
        if lesson.capped > CAP_BITES {
            self.ceiling = Some(lesson.clock);
        } else if let Some(ceiling) = &mut self.ceiling {
            *ceiling = (*ceiling * CEILING_RELAX).max(lesson.clock);
        }
        match lesson.target {
            Target::Default => {
                // Under the cap the read-back tells the cap, not what default clocks are.
                let seen = self.default_clock.filter(|_| lesson.capped > 0.0);
                self.default_clock = Some(seen.map_or(lesson.clock, |known| known.max(lesson.clock)));
            }
            Target::Lock(clocks) => *self.lessons_at.entry(clocks).or_default() += 1,
        }
    }

    /// The choice at work; `wants_default`: the guard wants driver-default clocks.
    fn decide(
        &mut self,
        view: View<'_>,
        wants_default: bool,
        moves: &mut Moves,
    ) -> (Target, Option<Outlook>, Reason) {
        let Some((targets, outlooks)) = self.outlooks(view.space, view.now) else {
            return (Target::Default, None, Reason::Sweep);
        };
        if targets.len() < 2 {
            return (Target::Default, None, Reason::NothingAllowed);
        }
        let (index, motive) =
            if wants_default { (0, Motive::Preferred) } else { self.pick(&outlooks, moves) };
        let reason = match motive {
            Motive::Descent => Reason::Sweep,
            Motive::Probe => Reason::Ucb,
            Motive::Preferred | Motive::Beside | Motive::Reference => Reason::Greedy,
        };
        let target = targets.get(index).copied().unwrap_or(Target::Default);
        (target, outlooks.get(index).copied(), reason)
    }

    fn pick(&mut self, outlooks: &[Outlook], moves: &mut Moves) -> (usize, Motive) {
        let lowest = self.lowest.unwrap_or(f64::INFINITY);
        let settings = self.settings.clone();
        let options = Options { outlooks, lowest, bound: self.bound(), settings: &settings };
        if let Stage::Descend(left) = self.stage {
            match options.descend().filter(|_| left > 0) {
                Some(next) => {
                    self.stage = Stage::Descend(left - 1);
                    return (next, Motive::Descent);
                }
                None => self.stage = Stage::Run,
            }
        }
        let sure = self.preferred.is_some_and(|clock| self.is_sure(&options, clock, 1.0));
        let fresh = std::mem::take(&mut moves.reconsiders);
        let hysteresis = if fresh { self.settings.hysteresis } else { QUIET_HYSTERESIS };
        let preferred = options.preferred(self.preferred, hysteresis);
        let every = if sure {
            QUIET_EVERY
        } else {
            (UNSURE_SHARE * self.learning_time).clamp(UNSURE_EVERY.0, UNSURE_EVERY.1)
        };
        let due = !fresh && self.learning_time - moves.deviated >= every;
        let deviation = due.then(|| self.deviation(&options, preferred)).flatten();
        if due {
            *moves = Moves { deviated: self.learning_time, reconsiders: deviation.is_some() };
        }
        if let Some(outlook) = outlooks.get(preferred) {
            self.preferred = Some(outlook.clock);
            let margin = if self.settled.is_sure() { STAYS_SETTLED } else { SETTLES };
            let known = self.is_sure(&options, outlook.clock, margin);
            self.settled.decided(outlook.clock, known);
        }
        deviation.unwrap_or((preferred, Motive::Preferred))
    }

    /// A clock other than the preferred one, to learn from.
    fn deviation(&mut self, options: &Options<'_>, preferred: usize) -> Option<(usize, Motive)> {
        self.turn += 1;
        match self.turn % 3 {
            0 => options.probe(preferred).map(|probe| (probe, Motive::Probe)),
            1 if self.settings.max_slowdown.is_some() => (preferred != 0).then_some((0, Motive::Reference)),
            1 => options.beside(preferred, true).map(|beside| (beside, Motive::Beside)),
            _ => options.beside(preferred, false).map(|beside| (beside, Motive::Beside)),
        }
    }

    /// Takes the slowdown of a window into the account of the bound.
    fn account(&mut self, lesson: &Lesson) {
        let Some(allowed) = self.settings.max_slowdown else { return };
        let (Some(model), Some(load), Some(default)) =
            (&self.model, self.context.load(), self.clock_of_default())
        else {
            return;
        };
        let predictor = Predictor::new(model, load, &[]);
        let at_default = predictor.steady(default).step.0;
        // What the model leaves unexplained at this clock and not at default clocks is slowdown as well.
        let off = lesson.delay.map(|delay| (delay.0 / model.expected_step(lesson).0).ln());
        let at_reference = lesson.target == Target::Default;
        let unexplained = off.map_or(0.0, |off| self.budget.unexplained(off, at_reference));
        let slowdown = predictor.steady(lesson.clock).step.0 / at_default * unexplained.exp() - 1.0;
        if slowdown.is_finite() {
            self.budget.push(lesson.seconds, lesson.arrived * at_default, slowdown, allowed);
        }
    }

    /// Is what the choice rests on known well enough, or `margin` times as badly at most?
    fn is_sure(&self, options: &Options<'_>, clock: f64, margin: f64) -> bool {
        // A step below: at default clocks the prediction against them is trivially sure.
        let Some(outlook) = options.outlooks.get(options.nearest(SURE_BELOW * clock)) else { return false };
        let bounded = self.settings.max_slowdown.is_some();
        outlook.sd <= margin * SURE_GAIN && (!bounded || outlook.slowdown_sd <= margin * SURE_SLOWDOWN)
    }

    /// Largest slowdown that the preferred clock may have, as a logarithm.
    fn bound(&self) -> f64 {
        self.settings.max_slowdown.map_or(f64::INFINITY, |allowed| self.budget.bound(allowed).ln_1p())
    }

    /// Targets, highest clock first with default's ahead, and their outlooks; `None` before there is a model.
    fn outlooks(&mut self, space: &ActionSpace, now: Time) -> Option<(Vec<Target>, Vec<Outlook>)> {
        let model = self.model.as_ref()?;
        let load = self.context.load()?;
        let default = self.clock_of_default()?;
        let draws = model.draw(self.settings.draws, &mut self.dice);
        let predictor = Predictor::new(model, load, &draws);
        let mut targets = vec![Target::Default];
        let mut clocks = vec![default];
        for arm in cores(space, now).filter(|arm| arm.core.as_f64() < default) {
            targets.push(Target::Lock(arm));
            clocks.push(arm.core.as_f64());
        }
        let StructuredSettings { objective, tpot_limit: limit, .. } = self.settings;
        let aim = Aim { objective, weight: self.context.delay_weight(), limit };
        let mut outlooks = predictor.outlooks(&clocks, default, aim);
        for (outlook, _) in outlooks.iter_mut().skip(1).filter(|(_, risk)| *risk > LIMIT_RISK) {
            // Out of every bound: never chosen.
            outlook.slowdown = f64::INFINITY;
        }
        let outlooks = outlooks.into_iter().map(|(outlook, _)| outlook).collect();
        Some((targets, outlooks))
    }

    /// The clock that driver-default clocks come to now, in MHz.
    fn clock_of_default(&self) -> Option<f64> {
        let default = self.default_clock?;
        Some(self.ceiling.map_or(default, |ceiling| default.min(ceiling)))
    }

    /// The predicted objective of a clock less default's, at the load of the moment.
    fn expected_gains(&self) -> Option<impl Fn(f64) -> f64 + '_> {
        let predictor = Predictor::new(self.model.as_ref()?, self.context.load()?, &[]);
        let objective = self.settings.objective;
        let weight = self.context.delay_weight();
        let default = predictor.steady(self.clock_of_default()?).objective(objective, weight);
        Some(move |clock: f64| predictor.steady(clock).objective(objective, weight) - default)
    }

    fn phase(&self) -> Phase {
        if self.settled.converged() { Phase::Exploitation } else { Phase::Exploration }
    }

    fn summarise(&self) -> Summary {
        let losses = self.expected_gains();
        Summary {
            phase: self.phase(),
            converged: self.settled.converged(),
            rounds: self.rounds,
            alpha: self.settings.pessimism,
            arms: self
                .lessons_at
                .iter()
                .rev()
                .map(|(clocks, lessons)| ArmSummary {
                    clocks: *clocks,
                    lessons: *lessons,
                    mean_reward: losses.as_ref().map_or(0.0, |of| -of(clocks.core.as_f64())),
                })
                .collect(),
            pruned: Vec::new(),
        }
    }
}

/// A clock that breaks a limit with more than this probability is not chosen.
const LIMIT_RISK: f64 = 0.2;

/// The allowed clocks, one per core clock, with the highest memory clock where pairs are on offer: the models do not
/// know memory clocks (see `step_time`).
fn cores(space: &ActionSpace, now: Time) -> impl Iterator<Item = Clocks> + '_ {
    let mut last: Option<Mhz> = None;
    space.allowed(now).filter(move |arm| last.replace(arm.core) != Some(arm.core))
}

/// What is held now, until the next window is complete.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Held {
    target: Target,
    outlook: Option<Outlook>,
}

/// When the clock may move. A change costs a transition, and tells nothing new most of the time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Moves {
    /// The next choice is made afresh: a deviation ends, or the load has changed.
    reconsiders: bool,
    /// Learning time of the last deviation.
    deviated: f64,
}

/// What ends with the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Running {
    moves: Moves,
    joiner: Joiner,
    surge: Surge,
    guard: Guard,
    held: Option<Held>,
}

/// The policy. Serialized, it is a snapshot of a run; a model file holds its [`Durable`] part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Structured {
    durable: Durable,
    running: Running,
}

impl From<Durable> for Structured {
    fn from(durable: Durable) -> Self {
        Self { durable, running: Running::default() }
    }
}

impl Structured {
    /// A policy that knows nothing.
    #[must_use]
    pub fn new(settings: StructuredSettings) -> Self {
        Durable::new(settings).into()
    }

    /// What it has learned.
    #[must_use]
    pub fn durable(&self) -> &Durable {
        &self.durable
    }

    /// Takes over the constants of the present configuration; what was learned stays.
    pub fn configure(&mut self, settings: StructuredSettings) {
        self.durable.settings = settings;
    }

    /// Why the model does not describe this engine, if it does not: another policy should take over.
    #[must_use]
    pub fn trouble(&self) -> Option<Trouble> {
        self.running.guard.trouble()
    }

    /// The lowest clock that another policy may choose: from there up, a step below what was tried at most, an optimist sees
    /// a gain, or hardly a loss, within the slowdown bound. `None` where nothing is known, or the model is of no use.
    #[must_use]
    pub fn lowest_acceptable(&mut self, view: View<'_>) -> Option<Mhz> {
        if self.trouble().is_some() {
            return None;
        }
        let (targets, outlooks) = self.durable.outlooks(view.space, view.now)?;
        let settings = self.durable.settings.clone();
        let lowest = self.durable.lowest.unwrap_or(f64::INFINITY);
        let options =
            Options { outlooks: &outlooks, lowest, bound: self.durable.bound(), settings: &settings };
        let index = options.lowest_acceptable();
        targets.get(index).copied().and_then(Target::clocks).map(|clocks| clocks.core).or_else(|| {
            // Nothing but default clocks.
            view.space.arms().first().map(|arm| Mhz(arm.core.0.saturating_add(1)))
        })
    }

    fn learn(&mut self, lesson: Lesson) -> Result<bool, BanditError> {
        self.durable.context.push(&lesson);
        self.durable.note_clocks(&lesson);
        let Some(model) = &mut self.durable.model else {
            self.durable.measure(lesson);
            return Ok(true);
        };
        let expected = model.expected_step(&lesson);
        self.running.guard.on_window(lesson.delay, expected);
        if lesson.steps >= self.durable.settings.window.steps {
            let per_step = Seconds(lesson.busy * lesson.seconds / lesson.steps);
            // The one of the two kinds of time that the model describes better.
            let off = |time: &Seconds| (time.0 / expected.0 - 1.0).abs();
            let times = [lesson.delay, lesson.busy_measured.then_some(per_step)];
            let time = times.into_iter().flatten().min_by(|a, b| off(a).total_cmp(&off(b)));
            let power = lesson.power.map(|power| (power.0, model.expected_power(&lesson).0));
            self.running.guard.on_misfit(time.map(|time| (time.0, expected.0)), power, lesson.seconds);
        }
        model.learn(lesson, self.durable.settings.memory)?;
        self.durable.account(&lesson);
        Ok(true)
    }

    /// A sudden change of the arrival rate ends what is held: it was chosen for another load.
    fn watch_arrivals(&mut self, evidence: &Evidence<'_>) {
        let Some(rate) = self.durable.context.rate().filter(|_| evidence.work) else { return };
        let window = evidence.window;
        if let Some(change) = self.running.surge.push(window.elapsed.0, window.arrivals(), rate) {
            self.durable.context.change(change);
            self.running.moves.reconsiders = true;
            if self.durable.stage == Stage::Run {
                self.running.held = None;
            }
        }
    }

    fn hold_or_decide(&mut self, view: View<'_>) -> Choice {
        let allowed =
            |target: Target| target.clocks().is_none_or(|clocks| view.space.is_allowed(clocks, view.now));
        if let Some(held) =
            self.running.held.filter(|held| allowed(held.target) && !self.guard_disagrees(held.target))
        {
            return choice(held.target, held.outlook, Reason::Dwell);
        }
        let Self { durable, running } = self;
        let (target, outlook, reason) =
            durable.decide(view, running.guard.wants_default(), &mut running.moves);
        self.running.held = Some(Held { target, outlook });
        choice(target, outlook, reason)
    }

    fn guard_disagrees(&self, target: Target) -> bool {
        self.running.guard.wants_default() && target != Target::Default
    }
}

impl Policy for Structured {
    fn choose(&mut self, view: View<'_>) -> Choice {
        let choice = self.hold_or_decide(view);
        self.durable.settled.round(self.durable.settings.convergence_window);
        choice
    }

    fn observe(&mut self, evidence: &Evidence<'_>) -> Result<bool, BanditError> {
        let elapsed = evidence.window.elapsed.0;
        self.durable.context.on_tick(evidence.window.at_end.in_flight(), elapsed);
        self.watch_arrivals(evidence);
        let Self { durable, running } = self;
        let settings = &durable.settings;
        let length = if durable.stage == Stage::Run { settings.window } else { settings.start_window };
        durable.learning_time += elapsed;
        let Some(lesson) = running.joiner.push(evidence, length, durable.learning_time) else {
            return Ok(false);
        };
        running.held = None;
        if lesson.delay.is_none() || lesson.power.is_none() {
            running.guard.on_blind_window();
        }
        durable.rounds += 1;
        self.learn(lesson)
    }

    fn wants_rewards(&self) -> bool {
        false
    }

    fn interrupt(&mut self) {
        let Running { moves, joiner, surge, guard, held } = &mut self.running;
        moves.reconsiders = true;
        joiner.interrupt();
        surge.clear();
        guard.interrupt();
        *held = None;
    }

    fn phase(&self) -> Phase {
        self.durable.phase()
    }

    fn summary(&self) -> Summary {
        self.durable.summarise()
    }
}

fn choice(target: Target, outlook: Option<Outlook>, reason: Reason) -> Choice {
    Choice { target, reason, score: outlook.map(|o| -o.gain), width: outlook.map(|o| o.sd) }
}
