//! The step itself: page in, window closed, reward, lesson, choice, command out. `seen` is its first half.

use serde::{Deserialize, Serialize};

use super::event::Event;
use super::learned::Learned;
use super::load::{LoadEstimate, has_progress, has_work};
use super::round::Round;
use super::seen::ClockUpkeep;
use super::sharers::{Sharer, Sharers};
use super::stale::GaugeTrust;
use super::verify::ClockVerifier;
use super::{Connections, Mode, Observation, Output, Settings};
use crate::bandit::{ActionSpace, Choice, Evidence, Policy};
use crate::features::DIMENSION;
use crate::features::{Context, Ema};
use crate::gpu::GpuReading;
use crate::holdout::{HoldoutSettings, InSlot};
use crate::metrics::Snapshot;
use crate::metrics::health::{self, Health};
use crate::metrics::window::Window;
use crate::park::levers::{LeverBook, Levers};
use crate::park::wake::Running;
use crate::park::{Parker, State};
use crate::reward::baseline::Load;
use crate::reward::energy::{EnergyMeter, group_power};
use crate::reward::slo::{self, LatencyWatch, Limited, Limits};
use crate::reward::{Cost, delay, reward};
use crate::units::{Joules, Mhz, Target, Time, Watts};

/// A clock change this early in a window still counts as the window's clock: commands follow a scrape by some
/// milliseconds.
const CHANGE_SLACK: f64 = 0.35;
/// The control loop's state. Everything that decides is in here.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Controller {
    pub(super) settings: Settings,
    pub(super) learned: Learned,
    pub(super) space: ActionSpace,
    pub(super) health: Health,
    pub(super) previous: Option<Snapshot>,
    pub(super) meters: Vec<EnergyMeter>,
    pub(super) readings: Vec<Option<GpuReading>>,
    pub(super) read_at: Vec<Option<Time>>,
    pub(super) in_force: InForce,
    /// The last command: what runs as soon as the driver confirms it.
    pub(super) asked: Target,
    pub(super) verifier: ClockVerifier,
    pub(super) idle: Parker,
    pub(super) connections: Option<Connections>,
    pub(super) latency: LatencyWatch,
    pub(super) concurrency: Ema,
    pub(super) load: LoadEstimate,
    pub(super) limit_broken: bool,
    /// Until then the clocks are the driver's.
    pub(super) fault_until: Option<Time>,
    pub(super) upkeep: ClockUpkeep,
    pub(super) mode: Mode,
    /// An operator paused the loop.
    pub(super) paused: bool,
    pub(super) gauges: GaugeTrust,
    /// Begin of the holdout experiment.
    pub(super) started: Time,
    /// The servers, where several share the GPUs.
    pub(super) sharers: Sharers,
}

/// What runs, as far as the driver has confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct InForce {
    pub(super) target: Target,
    pub(super) since: Time,
    /// What ran before parking, to wake into.
    pub(super) serving: Target,
}

/// What one window says about energy and delay.
struct Weighed {
    ran_at: Option<Target>,
    power: Option<Watts>,
    cost: Option<Cost>,
    delay_source: Option<crate::reward::DelaySource>,
}

impl Controller {
    /// A controller for `gpus` GPUs, starting from what was learned before (or [`Learned::fresh`]) at time `now`. It parks
    /// nothing before it has [`with_levers`](Self::with_levers).
    #[must_use]
    pub fn new(settings: Settings, learned: Learned, space: ActionSpace, gpus: usize, now: Time) -> Self {
        let concurrency = Ema::new(settings.ema_alpha);
        let health = Health::new(now, settings.outage_after);
        let levers = Levers::new(Vec::new(), LeverBook::default(), Running::default());
        let idle = Parker::new(settings.idle, levers, now);
        Self {
            settings,
            learned,
            space,
            health,
            previous: None,
            meters: vec![EnergyMeter::default(); gpus],
            readings: vec![None; gpus],
            read_at: vec![None; gpus],
            in_force: InForce { target: Target::Default, since: now, serving: Target::Default },
            asked: Target::Default,
            verifier: ClockVerifier::default(),
            idle,
            connections: None,
            latency: LatencyWatch::default(),
            concurrency,
            load: LoadEstimate::default(),
            limit_broken: false,
            fault_until: None,
            upkeep: ClockUpkeep::default(),
            mode: Mode::Starting,
            paused: false,
            gauges: GaugeTrust::default(),
            started: now,
            sharers: Sharers::default(),
        }
    }

    /// One tick: takes what was seen, says what to do.
    pub fn step(&mut self, seen: &Observation) -> Output {
        let mut out = Output::default();
        let now = seen.now;
        self.take_gpus(seen);
        self.connections = seen.connections;
        self.take_outcomes(seen, &mut out);
        self.take_orders(&seen.orders, now, &mut out);
        let window = self.take_scrape(seen, &mut out);
        let command = if self.health.status() == health::Status::Outage {
            self.enter_outage(now)
        } else if self.paused {
            self.mode = Mode::Paused;
            Some(Target::Default)
        } else if let Some(window) = window {
            self.verify_clocks(&window, now, &mut out);
            self.close_round(&window, now, &mut out)
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
        self.sharers = Sharers::new(sharers);
        self
    }

    /// Takes the place of `before`: keeps what was measured of parking, and unless it was set otherwise the holdout
    /// experiment goes on where it was.
    pub fn take_over(&mut self, before: &Self) {
        self.idle.take_over(&before.idle);
        if let (Some(now), Some(old)) = (&mut self.settings.holdout, before.settings.holdout) {
            if *now == (HoldoutSettings { seed: now.seed, ..old }) {
                self.started = before.started;
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
        let load = self.load.load?;
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
        self.asked
    }

    /// Does it hold together, with numbers that can be used? A snapshot from a file could be anything.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let gpus = self.meters.len();
        self.readings.len() == gpus && self.read_at.len() == gpus && self.learned.is_sound()
    }

    /// What runs, as far as the driver has confirmed.
    #[must_use]
    pub fn running(&self) -> Target {
        self.in_force.target
    }

    /// Are the clocks the driver's for a while, because of a fault?
    pub(super) fn hands_off(&self, now: Time) -> bool {
        self.fault_until.is_some_and(|until| now < until)
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
        self.park_between_pages(now, out)
    }

    fn close_round(&mut self, window: &Window, now: Time, out: &mut Output) -> Option<Target> {
        let work = self.sees_work(window, out);
        let was_parked = self.is_parked();
        // Heat waits for no experiment.
        let held = self.is_held(now) && self.idle.state() != State::Hot;
        if held && was_parked {
            // What agft saves by parking is part of what the experiment measures.
            self.idle.interrupt(now);
        }
        let by_parker = self.park_by_page(window, work, held, now, out);

        let load = self.load.push(window);
        let running = self.concurrency.push(window.at_end.running.unwrap_or(0.0));
        let context = Context::from_window(window, running);
        let raw = context.to_array();
        if work && !was_parked {
            self.learned.scaler.observe(&raw);
        }
        let scaled = self.learned.scaler.scale(&raw);
        self.learned.rounds += 1;

        let evidence = self.weigh(window, was_parked);
        let baseline = self.learned.baseline.estimate(load);
        let mut earned = None;
        if let (Some(cost), Some(ran_at)) = (evidence.cost, evidence.ran_at) {
            earned = baseline
                .map(|b| reward(cost, b.cost, self.settings.objective, self.settings.reward))
                .filter(|reward| reward.is_finite());
            if ran_at == Target::Default {
                self.take_baseline(load, cost, out);
            }
        }
        let serving = !was_parked && !self.is_parked();
        let taught = serving && self.teach(window, &scaled, evidence.ran_at, earned, now, out);
        if let Some(limits) = self.settings.limits {
            self.latency.push(window, &limits);
        }
        self.sharers.close();
        let violation = self.guard_limits(now, out);

        let support = baseline.map(|b| b.support);
        let claim = self.claim(work, held, support, window.elapsed, now);
        let (mode, command, choice) = self.decide(claim, by_parker, &scaled, now);
        self.mode = mode;
        let holdout = self.place_in_experiment(window);
        let round =
            self.describe(window, context, scaled, now, &evidence, baseline.map(|b| b.cost), choice, command);
        out.round = Some(Round { reward: earned, learned: taught, violation, holdout, ..round });
        command
    }

    /// Does a slot of the holdout experiment leave the clocks to the driver now?
    fn is_held(&self, now: Time) -> bool {
        self.experiment().is_some_and(|holdout| holdout.slot_at(self.started, now).held)
    }

    fn experiment(&self) -> Option<&HoldoutSettings> {
        let settings = &self.settings;
        settings.holdout.as_ref().filter(|_| !settings.data_collection && !settings.dry_run)
    }

    /// Where the window lies in the experiment; `None` for one that was not what its slot is for.
    fn place_in_experiment(&self, window: &Window) -> Option<InSlot> {
        let place = self.experiment()?.place(self.started, window.start, window.end)?;
        let as_meant = !place.held || self.in_force.target == Target::Default;
        (as_meant && !self.hands_off(window.end)).then_some(place)
    }

    /// Energy and delay of a window, and the clocks they belong to.
    fn weigh(&self, window: &Window, was_parked: bool) -> Weighed {
        let since = self.in_force.since;
        let early = since.since(window.start).0 <= CHANGE_SLACK * window.elapsed.0;
        let confirmed = self.settings.dry_run || self.asked == self.in_force.target;
        // A card that is too hot, or that runs at another clock than asked, says nothing about the one asked for.
        let throttled = self.readings.iter().flatten().any(|reading| reading.reasons().is_throttled());
        let ours = confirmed && !throttled && !self.upkeep.off;
        let ran_at = (early && ours && !was_parked && !self.is_parked()).then_some(self.in_force.target);
        let settled = since + self.settings.settle;
        let from = if settled.0 > window.start.0 { settled } else { window.start };
        let power = group_power(&self.meters, from, window.end).map(|(power, _)| power);
        let delay = delay(window).filter(|_| has_progress(window));
        let cost = match (power, delay) {
            (Some(power), Some((delay, _))) if !throttled => Some(Cost { power, delay }),
            _ => None,
        };
        Weighed {
            ran_at,
            power,
            cost: cost.filter(Cost::is_sound),
            delay_source: delay.map(|(_, source)| source),
        }
    }

    fn take_baseline(&mut self, load: Load, cost: Cost, out: &mut Output) {
        let was_done = self.learned.schedule.first_done();
        self.learned.baseline.observe(load, cost);
        self.learned.schedule.taken();
        if self.learned.schedule.first_done() && !was_done {
            out.events.push(Event::BaselineDone { windows: self.learned.baseline.samples() });
        }
    }

    fn teach(
        &mut self,
        window: &Window,
        context: &[f64; DIMENSION],
        ran_at: Option<Target>,
        reward: Option<f64>,
        now: Time,
        out: &mut Output,
    ) -> bool {
        let evidence = Evidence {
            now,
            window,
            ran_at,
            read_core: self.mean_core_clock(),
            capped: self.readings.iter().flatten().any(|reading| reading.reasons().is_capped()),
            utilization: self.activity().utilization_percent.map(|percent| percent / 100.0),
            work: has_work(window),
            meters: &self.meters,
            context,
            reward,
        };
        // A lesson that is refused (not finite) is no reason to stop.
        let taught = self.learned.policy.observe(&evidence).unwrap_or(false);
        if taught {
            self.learned.reward_sum += reward.unwrap_or(0.0);
            let summary = self.learned.policy.summary();
            if summary.converged && self.learned.converged_at.is_none() {
                self.learned.converged_at = Some(self.learned.rounds);
                let best = summary.best(3).map(|arm| arm.clocks);
                out.events.push(Event::Converged { best, rounds: summary.rounds });
            }
        }
        taught
    }

    fn mean_core_clock(&self) -> Option<Mhz> {
        let clocks: Vec<f64> =
            self.readings.iter().flatten().filter_map(|r| r.core_clock).map(Mhz::as_f64).collect();
        #[expect(clippy::cast_precision_loss, reason = "a handful of GPUs")]
        let count = clocks.len() as f64;
        (!clocks.is_empty()).then(|| to_mhz(clocks.iter().sum::<f64>() / count))
    }

    /// The limits that are to be kept, and the latencies that each is about: the one server's, or those of each.
    pub(super) fn promises(&self) -> impl Iterator<Item = (&Limits, &LatencyWatch)> {
        let one = self.settings.limits.iter().filter(|_| self.sharers.is_empty());
        one.map(|limits| (limits, &self.latency)).chain(self.sharers.promises())
    }

    /// Is not to hold anything against the latencies of before.
    pub(super) fn forget_latencies(&mut self) {
        self.latency.clear();
        self.sharers.forget_latencies();
    }

    fn guard_limits(&mut self, now: Time, out: &mut Output) -> Option<crate::reward::slo::Violation> {
        self.promises().next()?;
        let step = self.settings.floor_step.as_f64();
        let violation =
            slo::worst(self.promises().filter_map(|(limits, latency)| latency.violation(limits, now)));
        if let Some(violation) = violation {
            if violation.limit == Limited::Ttft {
                self.idle.limit_broken(now);
            }
            let running = self.in_force.target;
            let clock = running.clocks().map(|clocks| clocks.core.as_f64());
            if !self.settings.data_collection {
                self.learned.floor.violated(clock, step, now);
                if let Some(clocks) = running.clocks() {
                    self.learned.policy.limit_broken(clocks);
                }
            }
            if !self.limit_broken {
                let floor = self.learned.floor.floor_mhz().map(to_mhz);
                out.events.push(Event::LimitBroken { violation, running, floor });
            }
        } else {
            let lowest = self.space.arms().last().map_or(0.0, |arm| arm.core.as_f64());
            self.learned.floor.relax(step, lowest, now);
            if self.limit_broken {
                out.events.push(Event::LimitKept);
            }
        }
        self.limit_broken = violation.is_some();
        let top = self.space.arms().first().map_or(0.0, |arm| arm.core.as_f64());
        self.space.set_floor(self.learned.floor.floor_mhz().map(|floor| to_mhz(floor.min(top))));
        violation
    }

    fn issue(&mut self, command: Option<Target>, now: Time, out: &mut Output) {
        if self.settings.data_collection {
            return;
        }
        let Some(mut target) = command else { return };
        if self.hands_off(now) || !target.clocks().is_none_or(|clocks| self.is_lawful(clocks)) {
            target = Target::Default;
        }
        // Until the driver confirms, nothing is attributed to either clock (see `weigh`).
        if self.asked != target {
            self.asked = target;
            out.command = Some(target);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "assembles one record from the parts of one round")]
    fn describe(
        &self,
        window: &Window,
        context: Context,
        scaled: [f64; DIMENSION],
        now: Time,
        evidence: &Weighed,
        baseline: Option<Cost>,
        choice: Option<Choice>,
        command: Option<Target>,
    ) -> Round {
        let summary = self.learned.policy.summary();
        let clocks = evidence.ran_at.and_then(Target::clocks);
        let lessons = summary.arms.iter().find(|arm| Some(arm.clocks) == clocks).map_or(0, |arm| arm.lessons);
        let reading = self.readings.first().copied().flatten();
        let allowed = self.space.allowed(now).count();
        Round {
            number: self.learned.rounds,
            at: now,
            mode: self.mode,
            window: window.clone(),
            context,
            scaled,
            ran_at: evidence.ran_at,
            read_core: reading.and_then(|r| r.core_clock),
            read_memory: reading.and_then(|r| r.memory_clock),
            power: evidence.power,
            energy: evidence.power.map(|power| Joules(power.0 * window.elapsed.0)),
            cost: evidence.cost,
            delay_source: evidence.delay_source,
            baseline,
            reward: None,
            learned: false,
            violation: None,
            holdout: None,
            choice,
            command: command.unwrap_or(self.in_force.target),
            alpha: summary.alpha,
            lessons_at_clock: lessons,
            arms_allowed: allowed,
            arms_out: self.space.arms().len() - allowed,
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to u32 first")]
fn to_mhz(value: f64) -> Mhz {
    Mhz(value.clamp(0.0, f64::from(u32::MAX)).round() as u32)
}
