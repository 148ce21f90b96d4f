//! From what a step saw and did to the picture of it.

use std::collections::{BTreeMap, BTreeSet};

use super::against::Comparer;
use super::estimate::Estimate;
use super::history::History;
use super::notes::Notes;
use super::park::ParkFigures;
use super::state::{
    ArmState, ArmStatus, Counts, GpuState, LearnerState, Load, ParkingState, RoundState, State, fault_kinds,
    reason_name, wake_sources,
};
use super::verdict::Verdict;
use crate::bandit::structured::Trouble;
use crate::bandit::{ActionSpace, Cause, Policy, PrunedArm, Reason};
use crate::control::{ClockOutcome, Controller, Event, Learned, Mode, Observation, Output, Round, Scrape};
use crate::features::DIMENSION;
use crate::gpu::{ClockReasons, GpuInfo};
use crate::holdout::Savings;
use crate::metrics::{Histogram, health};
use crate::reward::judge::{NotJudged, delay_words};
use crate::reward::slo::{Limited, Limits};
use crate::stats::Durations;
use crate::text;
use crate::units::{Clocks, Joules, Mhz, Seconds, Target, Time};

/// The learner is looked at this often: a hundred clocks need not be listed for every tick.
const LEARNER_EVERY: Seconds = Seconds(1.0);

/// What does not change during a run, but with a reload.
#[derive(Debug, Clone, PartialEq)]
pub struct About {
    /// The server's name.
    pub name: String,
    /// The learner that is configured.
    pub policy: String,
    /// What is to be small.
    pub objective: String,
    /// The latency limits in force.
    pub limits: Option<Limits>,
}

/// What an observer is told after each step.
pub struct StepFacts<'a> {
    /// What the step was shown.
    pub seen: &'a Observation,
    /// What it wants.
    pub output: &'a Output,
    /// The controller after the step.
    pub controller: &'a Controller,
    /// What the holdout experiment has shown, this step included.
    pub savings: &'a Savings,
    /// How long after its scheduled moment the tick ran; `None` for a look between ticks.
    pub lateness: Option<Seconds>,
    /// Time that collecting, deciding and commanding took.
    pub took: Seconds,
    /// Are there clocks that the driver has not taken back? Then a lock may be in force.
    pub not_given_back: bool,
    /// Wall-clock time, seconds since the Unix epoch.
    pub unix_time: f64,
}

/// Keeps a [`State`] up to date.
#[derive(Debug, Clone)]
pub struct View {
    state: State,
    history: History,
    comparer: Comparer,
    not_judged: NotJudged,
    /// When the previous step was.
    last: Option<Time>,
    /// When the learner was looked at last.
    learner_at: Option<Time>,
    /// The energy counter of each GPU, as last seen.
    counters: Vec<Option<Joules>>,
    /// What was in force before.
    ran: Target,
}

impl View {
    /// The view of a run that begins now (Unix seconds) with this controller.
    pub fn new(
        about: About,
        gpus: &[GpuInfo],
        controller: &Controller,
        savings: &Savings,
        unix_s: f64,
    ) -> Self {
        let gpus: Vec<GpuState> = gpus
            .iter()
            .map(|gpu| GpuState {
                index: gpu.index,
                uuid: text::line(&gpu.uuid).into_owned(),
                name: text::line(&gpu.name).into_owned(),
                ..GpuState::default()
            })
            .collect();
        Self {
            last: None,
            learner_at: None,
            counters: vec![None; gpus.len()],
            ran: Target::Default,
            history: History::default(),
            comparer: Comparer::default(),
            not_judged: NotJudged::default(),
            state: State {
                name: about.name,
                at_unix_s: unix_s,
                policy: about.policy,
                objective: about.objective,
                mode: controller.mode(),
                asked: None,
                in_force: None,
                not_given_back: false,
                floor: None,
                limits: about.limits,
                not_judged: Vec::new(),
                delay: None,
                gpus,
                load: Load::default(),
                round: None,
                learner: learner(controller, Time(0.0)),
                counts: no_counts(),
                estimate: Estimate::default(),
                parking: parking(controller),
                savings: savings.state().clone(),
                verdict: Verdict::default(),
                notes: Notes::default(),
                scrape: Durations::default(),
                lateness: Durations::default(),
                step: Durations::default(),
            },
        }
    }

    /// The picture as of the latest step.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The last minutes up to the latest step.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Another configuration is in force.
    pub(crate) fn reconfigured(&mut self, about: About) {
        self.state.policy = about.policy;
        self.state.objective = about.objective;
        self.state.limits = about.limits;
        self.learner_at = None;
    }

    /// Takes a step in; says whether the history has grown.
    pub fn step(&mut self, facts: &StepFacts<'_>) -> bool {
        let now = facts.seen.now;
        let passed = self.last.map_or(0.0, |last| now.since(last).0.max(0.0));
        self.last = Some(now);
        let state = &mut self.state;
        state.at_unix_s = facts.unix_time;
        state.counts.steps += 1;
        // The time since the step before belongs to the mode that it left.
        *state.counts.mode_s.entry(state.mode.name().to_owned()).or_default() += passed;
        if state.round.as_ref().is_some_and(|round| round.violated.is_some()) {
            state.counts.violated_s += passed;
        }
        state.mode = facts.controller.mode();
        state.floor = facts.controller.space().floor();
        state.in_force = facts.controller.running().clocks();
        state.not_given_back = facts.not_given_back;
        if let Some(target) = facts.output.command {
            state.asked = target.clocks();
        }
        state.step.add(facts.took);
        if let Some(lateness) = facts.lateness {
            state.lateness.add(lateness);
        }
        match &facts.seen.scrape {
            Scrape::Failed(_) => state.counts.scrape_failures += 1,
            scrape => scrape.latency().into_iter().for_each(|latency| state.scrape.add(latency)),
        }
        let engines = facts.seen.scrape.engines();
        let limits = facts.controller.settings().limits;
        if let Some(reasons) = self.not_judged.look(&engines, limits) {
            self.state.not_judged = reasons;
        }
        let source = facts.output.round.as_ref().and_then(|round| round.delay_source);
        if let (Some(engine), Some(source)) = (engines.first(), source) {
            self.state.delay = Some(delay_words(engine, source).to_owned());
        }
        self.gpus(facts.seen);
        self.outcomes(&facts.seen.outcomes);
        facts.output.events.iter().for_each(|event| count(event, &mut self.state.counts));
        self.state.parking = parking(facts.controller);
        if let Some(round) = &facts.output.round {
            self.round(round, facts.controller.learned());
            self.state.savings.clone_from(facts.savings.state());
        }
        if self.state.mode == Mode::Outage {
            // The latest window says nothing of now.
            (self.state.load, self.state.round) = (Load::default(), None);
        }
        if self.learner_at.is_none_or(|at| now.since(at) >= LEARNER_EVERY) {
            self.learner_at = Some(now);
            let before = &self.state.learner;
            let next = learner(facts.controller, now);
            let same = next.converged_round.is_some() && next.converged_round == before.converged_round;
            let since = if same { before.converged_unix_s } else { Some(facts.unix_time) };
            let converged_unix_s = since.filter(|_| next.converged_round.is_some());
            self.state.learner = LearnerState { converged_unix_s, ..next };
        }
        self.state.verdict = Verdict::of(&self.state);
        self.state.notes.take(facts.output, facts.unix_time);
        self.history.push(&self.state)
    }

    /// The loop of this server has ended, and the clocks go back: nothing is known of now.
    pub fn end(&mut self) {
        let state = &mut self.state;
        state.mode = Mode::Fault;
        (state.asked, state.in_force) = (None, None);
        (state.load, state.round) = (Load::default(), None);
    }

    fn gpus(&mut self, seen: &Observation) {
        for ((gpu, counter), tick) in self.state.gpus.iter_mut().zip(&mut self.counters).zip(&seen.gpus) {
            let reading = tick.reading;
            gpu.core_clock = reading.and_then(|reading| reading.core_clock);
            gpu.memory_clock = reading.and_then(|reading| reading.memory_clock);
            gpu.power_w = reading.and_then(|reading| reading.power).map(|power| power.0);
            gpu.temperature_c = reading.and_then(|reading| reading.temperature_c);
            gpu.utilization =
                reading.and_then(|reading| reading.utilization_percent).map(|share| share / 100.0);
            gpu.capped = reading.and_then(|reading| reading.reasons).map(ClockReasons::is_capped);
            for point in &tick.energy {
                if let Some(before) = counter.replace(point.total) {
                    *gpu.energy_j.get_or_insert(0.0) += (point.total.0 - before.0).max(0.0);
                }
            }
        }
    }

    fn outcomes(&mut self, outcomes: &[ClockOutcome]) {
        for outcome in outcomes {
            let target = match outcome {
                ClockOutcome::InForce { target, .. } => *target,
                ClockOutcome::Refused { .. } => {
                    self.state.asked = None;
                    Target::Default
                }
            };
            if std::mem::replace(&mut self.ran, target) != target {
                self.state.counts.clock_changes += 1;
            }
        }
    }

    fn round(&mut self, round: &Round, learned: &Learned) {
        let against = self.comparer.take(round, learned);
        let state = &mut self.state;
        let (window, counts) = (&round.window, &mut state.counts);
        counts.rounds += 1;
        counts.lessons += u64::from(round.learned);
        counts.prompt_tokens += window.prompt_tokens.unwrap_or(0.0);
        counts.generated_tokens += window.generation_tokens.unwrap_or(0.0);
        counts.finished += window.finished.unwrap_or(0.0);
        if let Some(choice) = round.choice {
            *counts.decisions.entry(reason_name(choice.reason).to_owned()).or_default() += 1;
        }
        let per_second = |tokens: Option<f64>| tokens.map(|tokens| tokens / window.elapsed.0);
        let mean = |histogram: &Option<Histogram>| histogram.as_ref().and_then(Histogram::mean);
        let tpot = round.cost.map(|cost| cost.delay.0).or_else(|| mean(&window.itl));
        state.load = Load {
            running: window.at_end.running,
            waiting: window.at_end.waiting,
            kv_usage: window.at_end.kv_usage,
            prefill_tps: per_second(window.prompt_tokens),
            decode_tps: per_second(window.generation_tokens),
            ttft_s: mean(&window.ttft),
            tpot_s: tpot,
        };
        state.estimate.push(round, against.as_ref());
        let edp_js = round.energy.zip(tpot).map(|(energy, tpot)| energy.0 * tpot);
        state.round = Some(RoundState {
            number: round.number,
            window_s: window.elapsed.0,
            power_w: round.power.map(|power| power.0),
            edp_js,
            default_edp_js: edp_js
                .zip(against)
                .map(|(edp, against)| edp * (-against.ratios.energy.log - against.ratios.time.log).exp()),
            reward: round.reward,
            reason: round.choice.map(|choice| reason_name(choice.reason).to_owned()),
            violated: round.violation.map(|violation| limited(violation.limit).to_owned()),
            violated_s: round.violation.map(|violation| violation.measured.0),
        });
    }
}

fn limited(limit: Limited) -> &'static str {
    match limit {
        Limited::Ttft => "ttft",
        Limited::Tpot => "tpot",
    }
}

/// Every word that a map of the counts may have, at zero: a series that begins with its first event hides that event.
fn no_counts() -> Counts {
    let zeros = |names: &[&str]| -> BTreeMap<String, u64> {
        names.iter().map(|name| ((*name).to_owned(), 0)).collect()
    };
    let reasons = [
        Reason::Dwell,
        Reason::Sweep,
        Reason::Retrial,
        Reason::Ucb,
        Reason::Greedy,
        Reason::Doubt,
        Reason::Overload,
        Reason::NothingAllowed,
    ];
    Counts {
        mode_s: Mode::ALL.iter().map(|mode| (mode.name().to_owned(), 0.0)).collect(),
        decisions: zeros(&reasons.map(reason_name)),
        faults: zeros(&fault_kinds()),
        limit_violations: zeros(&["ttft", "tpot"]),
        wakes: zeros(&wake_sources()),
        ..Counts::default()
    }
}

fn count(event: &Event, counts: &mut Counts) {
    let mut fault = |kind: &str| *counts.faults.entry(kind.to_owned()).or_default() += 1;
    match event {
        Event::ClockRefused { .. } => fault("clock_refused"),
        Event::ClockNotHeld { .. } => fault("clock_not_held"),
        Event::ClocksChanged { .. } => fault("clocks_changed"),
        Event::StuckAtIdleClock { .. } => fault("stuck_at_idle_clock"),
        Event::ClockHeldLow { .. } => fault("clock_held_low"),
        Event::Discontinuity(_) => fault("engine_restart"),
        Event::Refused(_) => fault("values_refused"),
        Event::StaleGauges { .. } => fault("stale_gauges"),
        Event::Health(health::Event::Outage { .. }) => counts.outages += 1,
        Event::LimitBroken { violation, .. } => {
            *counts.limit_violations.entry(limited(violation.limit).to_owned()).or_default() += 1;
        }
        Event::Parked { .. } | Event::TooHot { .. } => counts.parkings += 1,
        Event::Woken { by, .. } => {
            *counts.wakes.entry(by.name().to_owned()).or_default() += 1;
        }
        Event::Health(health::Event::Degraded { .. } | health::Event::Recovered { .. })
        | Event::BaselineDone { .. }
        | Event::LeversMeasured(_)
        | Event::Cooled
        | Event::LimitOutOfReach { .. }
        | Event::LimitKept
        | Event::Paused
        | Event::Resumed
        | Event::ArmOut { .. }
        | Event::Converged { .. }
        | Event::Unsettled { .. } => {}
    }
}

fn parking(controller: &Controller) -> ParkingState {
    let parking = controller.parking();
    let lever = parking.settings().and_then(|_| parking.lever());
    let (books, levers) = (parking.books().clone(), parking.levers().book().clone());
    ParkingState {
        lever: lever.map(|lever| lever.kind.name().to_owned()),
        wait_s: parking.park_after().map(|wait| wait.0),
        figures: ParkFigures::new(books, parking.prices().wake, levers),
    }
}

fn learner(controller: &Controller, now: Time) -> LearnerState {
    let state = learner_state(controller.learned(), Some(controller.space()), now);
    if controller.is_held_low() {
        // What was learned before is not what runs now.
        return LearnerState {
            converged: false,
            converged_round: None,
            best: None,
            chosen: None,
            by_load: Vec::new(),
            ..state
        };
    }
    state
}

/// What was learned, at `now` of the run's clock; without a space, of the clocks that were tried or given up.
pub(crate) fn learner_state(learned: &Learned, space: Option<&ActionSpace>, now: Time) -> LearnerState {
    let summary = learned.policy.summary();
    let pruned: BTreeMap<Clocks, &PrunedArm> = summary.pruned.iter().map(|arm| (arm.clocks, arm)).collect();
    let lessons: BTreeMap<Clocks, (u64, f64)> =
        summary.arms.iter().map(|arm| (arm.clocks, (arm.lessons, arm.mean_reward))).collect();
    let all: Vec<Clocks> = match space {
        Some(space) => space.arms().to_vec(),
        None => {
            let known: BTreeSet<Clocks> = lessons.keys().chain(pruned.keys()).copied().collect();
            known.into_iter().rev().collect()
        }
    };
    let linucb = learned.policy.as_linucb();
    let cores: Vec<Mhz> = all.iter().map(|clocks| clocks.core).collect();
    // Whoever is in charge shows what it knows.
    let structured = learned.policy.as_structured().filter(|_| linucb.is_none());
    let by_load = structured.map_or_else(Vec::new, |structured| structured.best_by_load(&cores));
    let arms = all.into_iter().map(|clocks| {
        let known = lessons.get(&clocks).copied().filter(|(lessons, _)| *lessons > 0);
        let (status, why) = space
            .and_then(|space| shut_out(space, clocks, now))
            .or_else(|| {
                let arm = pruned.get(&clocks)?;
                Some((pruned_status(arm.cause.as_ref()), arm.cause.map(|cause| cause.to_string())))
            })
            .unwrap_or((ArmStatus::Available, None));
        ArmState {
            clocks,
            status,
            why,
            lessons: known.map_or(0, |(lessons, _)| lessons),
            mean_reward: known.map(|(_, mean)| mean),
            uncertainty: known.and_then(|_| Some(linucb?.uncertainty(clocks, &[0.0; DIMENSION]))),
        }
    });
    LearnerState {
        phase: summary.phase,
        converged: summary.converged,
        converged_round: learned.converged_at.filter(|_| summary.converged),
        converged_unix_s: None,
        chosen: structured.and_then(|structured| structured.chosen(&cores)),
        lessons: summary.rounds,
        exploration_rate: summary.alpha,
        handed_over: learned.policy.trouble().map(|trouble| trouble_name(trouble).to_owned()),
        best: summary.best(3).map(|arm| arm.clocks),
        by_load,
        arms: arms.collect(),
    }
}

/// Why clocks may not be chosen, whatever the policy thinks of them.
fn shut_out(space: &ActionSpace, clocks: Clocks, now: Time) -> Option<(ArmStatus, Option<String>)> {
    if let Some(failure) = space.failed().get(&clocks).filter(|failure| now < failure.retry_at) {
        return Some((ArmStatus::Failed, Some(text::line(&failure.why).into_owned())));
    }
    let floor = space.floor().filter(|floor| clocks.core < *floor)?;
    Some((ArmStatus::BelowFloor, Some(format!("a latency limit broke: not below {floor}"))))
}

fn pruned_status(cause: Option<&Cause>) -> ArmStatus {
    match cause {
        Some(Cause::Extreme { .. }) => ArmStatus::PrunedExtreme,
        Some(Cause::Cost { .. }) => ArmStatus::PrunedCost,
        Some(Cause::Cascade { .. }) => ArmStatus::PrunedCascade,
        Some(Cause::Descent { .. }) => ArmStatus::PrunedDescent,
        None => ArmStatus::PrunedUnknown,
    }
}

fn trouble_name(trouble: Trouble) -> &'static str {
    match trouble {
        Trouble::StepTimeMisfit => "step times do not follow clock and load",
        Trouble::PowerMisfit => "power does not follow clock and load",
        Trouble::NothingMeasured => "windows have no latency or no energy",
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
