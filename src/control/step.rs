//! The step itself: observe, account, decide, emit. `seen` is the first of it, `claim` the third.

use serde::{Deserialize, Serialize};

use super::clocks::GroupClocks;
use super::event::Event;
use super::learned::Learned;
use super::load::{LoadEstimate, Serving, has_progress, has_work};
use super::readings::{Readings, to_mhz};
use super::round::Round;
use super::servers::{Servers, Sharer};
use super::stale::GaugeTrust;
use super::{Connections, Mode, Observation, Output, Settings};
use crate::bandit::{ActionSpace, Evidence, Phase, Policy};
use crate::features::Ema;
use crate::gpu::ClockReasons;
use crate::holdout::{Experiment, HoldoutSettings, InSlot, SlotWindow};
use crate::metrics::Snapshot;
use crate::metrics::health::{self, Health};
use crate::metrics::window::Window;
use crate::park::levers::{LeverBook, Levers};
use crate::park::wake::Running;
use crate::park::{Parker, State};
use crate::reward::baseline::Load;
use crate::reward::floor::Cause;
use crate::reward::slo::{LatencyWatch, Limited, Violation};
use crate::reward::{Cost, DelaySource, delay, reward};
use crate::units::{Joules, Seconds, Target, Time, Watts};

/// The control loop's state. Everything that decides is in here.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Controller {
    pub(super) settings: Settings,
    pub(super) learned: Learned,
    pub(super) space: ActionSpace,
    pub(super) health: Health,
    /// The last page.
    pub(super) previous: Option<Snapshot>,
    pub(super) readings: Readings,
    pub(super) clocks: GroupClocks,
    pub(super) idle: Parker,
    pub(super) connections: Option<Connections>,
    /// Instances on the GPUs that are said to work.
    pub(super) working: u32,
    pub(super) servers: Servers,
    pub(super) serving: Serving,
    pub(super) mode: Mode,
    /// An operator paused the loop.
    pub(super) paused: bool,
    /// The holdout experiment.
    pub(super) experiment: Experiment,
}

/// What a claim to the clocks rests on, at the end of a window.
pub(super) struct Standing {
    pub(super) work: bool,
    /// A control slot of the holdout experiment: the clocks are the driver's.
    pub(super) control_slot: bool,
    /// The clocks that the parker wants, if they are to change.
    pub(super) by_parker: Option<Target>,
    /// How many windows speak for the baseline.
    pub(super) support: Option<f64>,
}

impl Controller {
    /// A controller for `gpus` GPUs, starting from what was learned before (or [`Learned::fresh`]) at time
    /// `now`. It parks nothing before it has [`with_levers`](Self::with_levers).
    #[must_use]
    pub fn new(settings: Settings, learned: Learned, space: ActionSpace, gpus: usize, now: Time) -> Self {
        let levers = Levers::new(Vec::new(), LeverBook::default(), Running::default());
        let concurrency = Ema::new(settings.ema_alpha);
        // What goes on with a settled model has nothing to wait for.
        let at_once = |holdout: &&HoldoutSettings| {
            holdout.begin_after.0 <= 0.0 || learned.policy.phase() == Phase::Exploitation
        };
        let begun = settings.holdout.as_ref().filter(at_once).map(|holdout| Experiment::begun(holdout, now));
        Self {
            experiment: begun.unwrap_or_default(),
            learned,
            space,
            health: Health::new(now, settings.outage_after),
            previous: None,
            readings: Readings::new(gpus),
            clocks: GroupClocks::new(now),
            idle: Parker::new(settings.idle, levers, now),
            connections: None,
            working: 0,
            servers: Servers::alone(settings.limits, LatencyWatch::default(), false),
            serving: Serving::new(concurrency, LoadEstimate::default(), GaugeTrust::default()),
            mode: Mode::Starting,
            paused: false,
            settings,
        }
    }

    /// One tick: takes what was seen, says what to do.
    pub fn step(&mut self, seen: &Observation) -> Output {
        let mut out = Output::default();
        let now = seen.now;
        let window = self.observe(seen, &mut out);
        let command = if self.health.status() == health::Status::Outage {
            self.enter_outage(now)
        } else if self.paused {
            self.mode = Mode::Paused;
            Some(Target::Default)
        } else if let Some(window) = window {
            let (mut round, standing) = self.account(window, now, &mut out);
            let command = self.decide(&mut round, &standing, now);
            out.round = Some(round);
            command
        } else {
            self.between_windows(now, &mut out)
        };
        self.issue(command, now, &mut out);
        out
    }

    /// Parks by the best of these levers, and tries out which that is.
    #[must_use]
    pub fn with_levers(mut self, levers: Levers) -> Self {
        self.idle.set_levers(levers);
        self
    }

    /// Serves several servers on the same GPUs: each with its own limits, and all of them are to be kept.
    #[must_use]
    pub fn with_sharers(mut self, sharers: Vec<Sharer>) -> Self {
        self.servers.share(sharers);
        self
    }

    /// Takes the place of `before`: keeps what was measured of parking, and unless it was set otherwise the
    /// holdout experiment goes on where it was.
    pub fn take_over(&mut self, before: &Self) {
        self.idle.take_over(&before.idle);
        if let (Some(now), Some(old)) = (&mut self.settings.holdout, before.settings.holdout) {
            if *now == (HoldoutSettings { seed: now.seed, ..old }) {
                self.experiment = before.experiment.clone();
            } else {
                self.experiment.follow(&before.experiment);
            }
            now.seed = old.seed;
        }
    }

    /// What was learned so far.
    #[must_use]
    pub fn learned(&self) -> &Learned {
        &self.learned
    }

    /// The constants in force.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Share of the time that the holdout experiment leaves to default clocks now, 0 to 0.5.
    #[must_use]
    pub fn holdout_share(&self) -> f64 {
        self.settings.holdout.as_ref().map_or(0.0, |holdout| self.experiment.share(holdout))
    }

    /// What the controller is doing.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The action space.
    #[must_use]
    pub fn space(&self) -> &ActionSpace {
        &self.space
    }

    /// What driver-default clocks would cost under the load of the moment, as far as is known.
    #[must_use]
    pub fn baseline(&self) -> Option<Cost> {
        let load = self.serving.load()?;
        self.learned.baseline.estimate(load).map(|baseline| baseline.cost)
    }

    /// Is the GPU parked?
    #[must_use]
    pub fn is_parked(&self) -> bool {
        self.idle.is_parked()
    }

    /// What it knows of parking.
    #[must_use]
    pub fn parking(&self) -> &Parker {
        &self.idle
    }

    /// Has an operator paused the loop?
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// What was commanded last; it runs as soon as the driver confirms it.
    #[must_use]
    pub fn asked(&self) -> Target {
        self.clocks.asked()
    }

    /// Does it hold together, with numbers that can be used? A snapshot from a file could be anything.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.readings.is_sound() && self.learned.is_sound() && self.experiment.is_sound()
    }

    /// What runs, as far as the driver has confirmed.
    #[must_use]
    pub fn running(&self) -> Target {
        self.clocks.running()
    }

    /// Does a GPU stay at a low clock under load, whatever is asked?
    #[must_use]
    pub fn is_held_low(&self) -> bool {
        self.clocks.is_held_low()
    }

    fn enter_outage(&mut self, now: Time) -> Option<Target> {
        if self.mode != Mode::Outage {
            self.forget_the_present();
            self.idle.interrupt(now);
        }
        self.mode = Mode::Outage;
        Some(Target::Default)
    }

    /// No new page: only the watch on a parked GPU acts between windows.
    fn between_windows(&mut self, now: Time, out: &mut Output) -> Option<Target> {
        if self.previous.is_none() || self.mode == Mode::Outage {
            self.mode = Mode::Starting;
            return Some(Target::Default);
        }
        self.park(&self.sample(now), out)
    }

    /// What a window tells of energy, delay and limits, and what is learned from it. [`Self::decide`] fills
    /// in what the round lacks: mode, choice, command, and what the policy has come to.
    fn account(&mut self, window: Window, now: Time, out: &mut Output) -> (Round, Standing) {
        self.verify_clocks(&window, now, out);
        let gpus = self.readings.activity();
        let (work, load, context) = self.serving.take(&window, gpus, &mut out.events);
        let was_parked = self.is_parked();
        // The window lies in what was under way before `now`.
        let place = self.place_in_experiment(&window);
        // Heat waits for no experiment.
        let control_slot = self.in_control_slot(&window, work, now) && self.idle.state() != State::Hot;
        if control_slot && was_parked {
            // What agft saves by parking is part of what the experiment measures.
            self.idle.interrupt(now);
        }
        let by_parker = self.park_by_page(&window, work, control_slot, now, out);
        let raw = context.to_array();
        if work && !was_parked {
            self.learned.scaler.observe(&raw);
        }
        let scaled = self.learned.scaler.scale(&raw);
        self.learned.rounds += 1;

        let serving = !was_parked && !self.is_parked();
        let (ran_at, power, cost, delay_source) = self.weigh(&window, serving);
        let baseline = self.learned.baseline.estimate(load);
        let mut earned = None;
        if let (Some(cost), Some(ran_at)) = (cost, ran_at) {
            earned = baseline
                .map(|b| reward(cost, b.cost, self.settings.objective, self.settings.reward))
                .filter(|reward| reward.is_finite());
            if ran_at == Target::Default {
                self.take_baseline(load, cost, out);
            }
        }
        let reading = self.readings.first();
        let mut round = Round {
            number: self.learned.rounds,
            at: now,
            mode: self.mode,
            context,
            scaled,
            ran_at,
            read_core: reading.and_then(|r| r.core_clock),
            read_memory: reading.and_then(|r| r.memory_clock),
            power,
            energy: power.map(|power| Joules(power.0 * window.elapsed.0)),
            cost,
            delay_source,
            baseline: baseline.map(|baseline| baseline.cost),
            baseline_support: baseline.map(|baseline| baseline.support),
            reward: earned,
            learned: false,
            violation: None,
            holdout: place,
            choice: None,
            command: self.running(),
            alpha: 0.0,
            lessons_at_clock: 0,
            arms_allowed: 0,
            arms_out: 0,
            window,
        };
        if let Some(at) = place {
            self.experiment.push(at, &SlotWindow::from(&round));
        }
        round.learned = serving && self.teach(&round, out);
        self.servers.close(&round.window);
        round.violation = self.guard_limits(now, out);
        let support = baseline.map(|baseline| baseline.support);
        (round, Standing { work, control_slot, by_parker, support })
    }

    /// Does a slot of the holdout experiment leave the clocks to the driver now? The window is the last before `now`.
    fn in_control_slot(&mut self, window: &Window, work: bool, now: Time) -> bool {
        let Some(holdout) = self.holdout().copied() else { return false };
        let policy_chose = work && matches!(self.mode, Mode::Exploration | Mode::Exploitation);
        let chose = if policy_chose { window.elapsed } else { Seconds(0.0) };
        let settled = self.learned.policy.phase() == Phase::Exploitation;
        self.experiment.advance(&holdout, now, settled, chose);
        self.experiment.is_control(&holdout, now)
    }

    /// The settings of the experiment, where there can be one.
    fn holdout(&self) -> Option<&HoldoutSettings> {
        let settings = &self.settings;
        settings.holdout.as_ref().filter(|_| !settings.data_collection && !settings.dry_run)
    }

    /// Where the window lies in the experiment; `None` for one that was not what its slot is for.
    fn place_in_experiment(&self, window: &Window) -> Option<InSlot> {
        let place = self.experiment.place(self.holdout()?, window.start, window.end)?;
        let as_meant = !place.held || self.running() == Target::Default;
        (as_meant && !self.clocks.hands_off(window.end)).then_some(place)
    }

    /// The clocks that a window belongs to, its power, its cost, and where the delay of that is from.
    fn weigh(
        &self,
        window: &Window,
        serving: bool,
    ) -> (Option<Target>, Option<Watts>, Option<Cost>, Option<DelaySource>) {
        // A card that is too hot, or runs at another clock than asked, says nothing about the one asked for.
        let throttled = self.readings.any(ClockReasons::is_throttled);
        let ran_at = self.clocks.ran_in(window, self.settings.dry_run).filter(|_| serving && !throttled);
        let power = self.readings.power(self.clocks.settled(self.settings.settle, window.start), window.end);
        let delay = delay(window).filter(|_| has_progress(window));
        let cost = match (power, delay) {
            (Some(power), Some((delay, _))) if !throttled => Some(Cost { power, delay }),
            _ => None,
        };
        (ran_at, power, cost.filter(Cost::is_sound), delay.map(|(_, source)| source))
    }

    fn take_baseline(&mut self, load: Load, cost: Cost, out: &mut Output) {
        let was_done = self.learned.schedule.first_done();
        self.learned.baseline.observe(load, cost);
        self.learned.schedule.taken();
        if self.learned.schedule.first_done() && !was_done {
            out.events.push(Event::BaselineDone { windows: self.learned.baseline.samples() });
        }
    }

    /// Did the policy learn from it?
    fn teach(&mut self, round: &Round, out: &mut Output) -> bool {
        let evidence = Evidence {
            now: round.at,
            window: &round.window,
            ran_at: round.ran_at,
            read_core: self.readings.mean_core_clock(),
            capped: self.readings.any(ClockReasons::is_capped),
            utilization: self.readings.activity().utilization_percent.map(|percent| percent / 100.0),
            work: has_work(&round.window),
            meters: self.readings.meters(),
            context: &round.scaled,
            reward: round.reward,
        };
        // A training sample that is refused (not finite) is no reason to stop.
        let taught = self.learned.policy.observe(&evidence).unwrap_or(false);
        if taught {
            self.learned.reward_sum += round.reward.unwrap_or(0.0);
            let converged = self.learned.policy.phase() == Phase::Exploitation;
            if converged && self.learned.converged_at.is_none() {
                self.learned.converged_at = Some(self.learned.rounds);
                let summary = self.learned.policy.summary();
                let best = summary.best(3).map(|arm| arm.clocks);
                out.events.push(Event::Converged { best, rounds: summary.rounds });
            } else if !converged && self.learned.converged_at.take().is_some() {
                let rounds = self.learned.policy.summary().rounds;
                out.events.push(Event::Unsettled { rounds });
            }
        }
        taught
    }

    fn guard_limits(&mut self, now: Time, out: &mut Output) -> Option<Violation> {
        let (violation, is_news) = self.servers.judge(now)?;
        let window = self.servers.longest_window();
        let step = self.settings.floor_step.as_f64();
        if let Some(violation) = violation {
            if violation.limit == Limited::Ttft {
                self.idle.limit_broken(now);
            }
            let running = self.running();
            let clock = running.clocks().map(|clocks| clocks.core.as_f64());
            let (was_clock, mut cause) = (self.learned.floor.is_raised(), Cause::Load);
            if !self.settings.data_collection {
                cause = self.learned.floor.violated(clock, step, window, now);
                if let Some(clocks) = running.clocks() {
                    self.learned.policy.limit_broken(clocks);
                }
            }
            if is_news {
                let floor = self.learned.floor.mhz().map(to_mhz);
                out.events.push(Event::LimitBroken { violation, running, floor, cause });
            } else if was_clock && cause == Cause::Load {
                out.events.push(Event::LimitOutOfReach { violation });
            }
        } else {
            let lowest = self.space.arms().last().map_or(0.0, |arm| arm.core.as_f64());
            self.learned.floor.kept(self.servers.pressure(now), step, lowest, window, now);
            if is_news {
                out.events.push(Event::LimitKept);
            }
        }
        let top = self.space.arms().first().map_or(0.0, |arm| arm.core.as_f64());
        self.space.set_floor(self.learned.floor.mhz().map(|floor| to_mhz(floor.min(top))));
        violation
    }

    /// The last gate: a restored model or a reading may name any clock, board and configuration only some.
    fn issue(&mut self, command: Option<Target>, now: Time, out: &mut Output) {
        let Some(target) = command.filter(|_| !self.settings.data_collection) else { return };
        let is_lawful = match target {
            Target::Default => true,
            Target::Lock(_) if self.is_parked() => self.idle.target() == target,
            Target::Lock(clocks) => self.space.is_lockable(clocks),
        };
        let may_lock = is_lawful && !self.clocks.hands_off(now);
        out.command = self.clocks.ask(if may_lock { target } else { Target::Default });
    }
}
