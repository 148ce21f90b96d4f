//! AGFT as it was published, re-created from a description of its behaviour, to stand beside agft. Nothing else uses it.
//!
//! One round takes about 4.5 s: a window of 0.8 s for the state, the clock call with its settling and read-back (1.8 s), a
//! pause (0.3 s), a window for the reward, and a third one that only feeds the frequency sampler. Ten windows of 4.7 s each
//! at the clock as found make the baseline. Then each coarse clock (90 MHz apart, highest first) once, then LinUCB over
//! contexts without an intercept, with one disjoint model per clock, extreme, historical and cascade pruning, refinement
//! to 15 MHz around an anchor, and exploitation once three clocks have 60 % of the last 100 rounds.
//!
//! Kept as it was, defects included: the reward `2 (1 - min(2, EDP / baseline))` of an EDP that goes with the load (mean
//! power x 0.8 s x TPOT), a baseline taken once, z-scores that every window moves, rounds without a token that teach a
//! reward of zero and leave an EDP of zero behind. Three empty windows park the clock at 210 MHz.

use std::collections::{BTreeMap, BTreeSet};

use crate::sim::run::{Autopilot, Look};
use agft::config::Config;
use agft::features::{DIMENSION, Scaler};
use agft::gpu::SupportedClocks;
use agft::metrics::Signals;
use agft::reward::slo::Limits;
use agft::stats::{mean, percentile};
use agft::units::{Clocks, Mhz, Seconds, Target, Time};

/// Length of a window, and how often it samples.
const WINDOW: f64 = 0.8;
const SAMPLE: f64 = 0.05;
/// From the decision to the reward's window: 1.0 s of settling, two calls of nvidia-smi, a pause of 0.3 s.
const CLOCK_CALL: f64 = 2.1;
/// Pause of a baseline pass: 0.3 s before its second window ...
const BASELINE_LEAD: f64 = 0.3;
/// ... and 2.8 s after it.
const BASELINE_PAUSE: f64 = 2.8;
/// Pause while parked, and while waiting for work in the baseline phase.
const IDLE_PAUSE: f64 = 2.0;
const IDLE_CLOCK: Mhz = Mhz(210);
const IDLE_WINDOWS: u32 = 3;

const COARSE_STEP: u32 = 90;
const FINE_STEP: u32 = 15;
const FINE_REACH: u32 = 150;
const BASELINE_SAMPLES: usize = 10;
const BASELINE_FACTOR: f64 = 0.9;
const RIDGE: f64 = 5.0;
const ALPHA: (f64, f64, f64) = (10.0, 0.02, 0.1);
const EMA: f64 = 0.4;
const REFINE_FROM: u64 = 80;
const REFINE_EVERY: u64 = 10;
const MATURE: u64 = 100;
const PRUNE_FROM: u64 = 30;
const PRUNE_EVERY: u64 = 20;
const CONVERGENCE_WINDOW: usize = 100;

/// What a window is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    State,
    Reward,
    Feedback,
}

/// Samples of one window.
#[derive(Debug, Clone)]
struct Sampling {
    purpose: Purpose,
    start: Time,
    first: Signals,
    running: f64,
    waiting: f64,
    kv_usage: f64,
    power_sum: f64,
    samples: u32,
}

impl Sampling {
    fn begin(purpose: Purpose, look: &Look) -> Self {
        let of = |value: Option<f64>| value.unwrap_or(0.0);
        Self {
            purpose,
            start: look.now,
            first: look.signals.clone(),
            running: of(look.signals.running),
            waiting: of(look.signals.waiting),
            kv_usage: of(look.signals.kv_usage),
            power_sum: 0.0,
            samples: 0,
        }
    }

    fn add(&mut self, look: &Look) {
        let follow = |ema: &mut f64, value: Option<f64>| *ema += EMA * (value.unwrap_or(0.0) - *ema);
        follow(&mut self.running, look.signals.running);
        follow(&mut self.waiting, look.signals.waiting);
        follow(&mut self.kv_usage, look.signals.kv_usage);
        self.power_sum += look.power.0;
        self.samples += 1;
    }

    /// The seven features, totals per window as they were.
    fn features(&self, last: &Signals) -> [f64; DIMENSION] {
        let delta = |of: fn(&Signals) -> Option<f64>| {
            (of(last).unwrap_or(0.0) - of(&self.first).unwrap_or(0.0)).max(0.0)
        };
        let steps = delta(|s| s.step_tokens.as_ref().map(|histogram| histogram.count));
        let packed = delta(|s| s.step_tokens.as_ref().map(|histogram| histogram.sum));
        [
            f64::from(u8::from(self.waiting > 0.0)),
            delta(|s| s.prompt_tokens).max(1e-3),
            delta(|s| s.generation_tokens).max(1e-3),
            if steps > 0.0 { packed / steps } else { 0.0 },
            self.running,
            100.0 * self.kv_usage,
            100.0 * delta(|s| s.prefix_hits) / delta(|s| s.prefix_queries).max(1.0),
        ]
    }

    /// Energy x TPOT, if a token came; and whether a limit is broken.
    fn outcome(&self, last: &Signals, limits: Option<&Limits>) -> (Option<f64>, bool) {
        let mean = |of: fn(&Signals) -> Option<&agft::metrics::Histogram>| {
            let (new, old) = (of(last)?, of(&self.first)?);
            let count = new.count - old.count;
            (count > 0.0).then(|| (new.sum - old.sum) / count)
        };
        let tpot = mean(|signals| signals.itl.as_ref());
        let ttft = mean(|signals| signals.ttft.as_ref());
        let energy = self.power_sum / f64::from(self.samples.max(1)) * WINDOW;
        let over = |value: Option<f64>, limit: Seconds| value.is_some_and(|value| value > limit.0);
        let broken = limits.is_some_and(|limits| over(tpot, limits.tpot) || over(ttft, limits.ttft));
        (tpot.map(|tpot| energy * tpot).filter(|edp| *edp > 0.0), broken)
    }
}

/// One clock's ridge regression, its inverse kept by the rank-1 formula.
#[derive(Debug, Clone)]
struct Arm {
    inverse: [[f64; DIMENSION]; DIMENSION],
    b: [f64; DIMENSION],
    rewards: Vec<f64>,
    edps: Vec<f64>,
}

impl Arm {
    fn new() -> Self {
        let mut inverse = [[0.0; DIMENSION]; DIMENSION];
        for (k, row) in inverse.iter_mut().enumerate() {
            row[k] = 1.0 / RIDGE;
        }
        Self { inverse, b: [0.0; DIMENSION], rewards: Vec::new(), edps: Vec::new() }
    }

    fn spread(&self, x: &[f64; DIMENSION]) -> [f64; DIMENSION] {
        self.inverse.map(|row| dot(&row, x))
    }

    fn learn(&mut self, x: &[f64; DIMENSION], reward: f64, edp: f64) {
        let spread = self.spread(x);
        let scale = 1.0 + dot(&spread, x);
        for (row, left) in self.inverse.iter_mut().zip(spread) {
            for (cell, right) in row.iter_mut().zip(spread) {
                *cell -= left * right / scale;
            }
        }
        for (b, x) in self.b.iter_mut().zip(x) {
            *b += reward * x;
        }
        self.rewards.push(reward);
        self.edps.push(edp);
    }

    fn predict(&self, x: &[f64; DIMENSION]) -> f64 {
        dot(&self.spread(&self.b), x)
    }

    fn bound(&self, x: &[f64; DIMENSION], alpha: f64) -> f64 {
        self.predict(x) + alpha * dot(&self.spread(x), x).max(1e-10).sqrt()
    }
}

fn dot(a: &[f64; DIMENSION], b: &[f64; DIMENSION]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The whole program as a state machine: it is called when its present window or pause wants the next look.
#[derive(Debug, Clone)]
pub struct OriginalAgft {
    range: (Mhz, Mhz),
    limits: Option<Limits>,
    due: Time,
    /// What begins when the present pause is over.
    after_pause: Purpose,
    window: Option<Sampling>,
    scaler: Scaler,
    context: [f64; DIMENSION],
    baseline: Vec<f64>,
    /// Ascending.
    clocks: Vec<Mhz>,
    /// The first sweep, highest last.
    sweep: Option<Vec<Mhz>>,
    arms: BTreeMap<Mhz, Arm>,
    pruned: BTreeSet<Mhz>,
    boundary: Option<Mhz>,
    running: Option<Mhz>,
    rounds: u64,
    last_prune: u64,
    actions: Vec<Mhz>,
    edps: Vec<f64>,
    exploiting: bool,
    converged_round: Option<u64>,
    empty_windows: u32,
    parked: bool,
}

impl OriginalAgft {
    /// With the limits of this configuration, on a board with these clocks.
    #[must_use]
    pub fn new(supported: &SupportedClocks, config: &Config) -> Self {
        let control = &config.control;
        let (low, high) = (supported.core_min(), supported.core_max());
        let limits = (!control.ignore_slo).then_some(Limits {
            ttft: control.ttft_limit,
            tpot: control.tpot_limit,
            statistic: control.slo_statistic,
            window: control.slo_window_s,
        });
        Self {
            range: (low, high),
            clocks: coarse(low, high, limits.is_some()),
            limits,
            due: Time(0.0),
            after_pause: Purpose::State,
            window: None,
            scaler: Scaler::default(),
            context: [0.0; DIMENSION],
            baseline: Vec::new(),
            sweep: None,
            arms: BTreeMap::new(),
            pruned: BTreeSet::new(),
            boundary: None,
            running: None,
            rounds: 0,
            last_prune: 0,
            actions: Vec::new(),
            edps: Vec::new(),
            exploiting: false,
            converged_round: None,
            empty_windows: 0,
            parked: false,
        }
    }

    /// The round in which it first began to exploit.
    #[must_use]
    pub fn converged_round(&self) -> Option<u64> {
        self.converged_round
    }

    fn pause(&mut self, now: Time, seconds: f64, then: Purpose) {
        self.due = now + Seconds(seconds);
        self.after_pause = then;
    }

    fn has_baseline(&self) -> bool {
        self.baseline.len() >= BASELINE_SAMPLES
    }

    /// A window is complete.
    fn conclude(&mut self, window: &Sampling, look: &Look) -> Option<Target> {
        match window.purpose {
            Purpose::State => {
                let raw = window.features(&look.signals);
                self.scaler.observe(&raw);
                self.context = self.scaler.scale(&raw);
                self.decide(window, look.now)
            }
            Purpose::Reward => {
                let (edp, broken) = window.outcome(&look.signals, self.limits.as_ref());
                if self.has_baseline() {
                    self.take_reward(edp, broken);
                    self.pause(look.now, 0.0, Purpose::Feedback);
                } else {
                    self.baseline.extend(edp);
                    self.pause(look.now, BASELINE_PAUSE, Purpose::State);
                }
                None
            }
            Purpose::Feedback => {
                self.scaler.observe(&window.features(&look.signals));
                self.pause(look.now, 0.0, Purpose::State);
                None
            }
        }
    }

    fn decide(&mut self, window: &Sampling, now: Time) -> Option<Target> {
        let work = window.running > 1e-3 || window.waiting > 1e-3;
        if !self.has_baseline() {
            if work {
                self.pause(now, BASELINE_LEAD, Purpose::Reward);
            } else {
                self.pause(now, IDLE_PAUSE, Purpose::State);
            }
            return None;
        }
        self.empty_windows = if work { 0 } else { self.empty_windows + 1 };
        if self.empty_windows >= IDLE_WINDOWS {
            self.pause(now, IDLE_PAUSE, Purpose::State);
            let newly = !std::mem::replace(&mut self.parked, true);
            return newly.then_some(Target::Lock(Clocks::core_only(IDLE_CLOCK.max(self.range.0))));
        }
        self.parked = false;
        self.pause(now, CLOCK_CALL, Purpose::Reward);
        self.running = self.choose();
        // Without any clock left it gives them back and only measures.
        Some(self.running.map_or(Target::Default, |core| Target::Lock(Clocks::core_only(core))))
    }

    fn is_allowed(&self, clock: Mhz) -> bool {
        !self.pruned.contains(&clock) && self.boundary.is_none_or(|boundary| clock > boundary)
    }

    fn choose(&mut self) -> Option<Mhz> {
        let mut sweep = self.sweep.take().unwrap_or_else(|| self.clocks.clone());
        let next = std::iter::from_fn(|| sweep.pop()).find(|clock| self.is_allowed(*clock));
        self.sweep = Some(sweep);
        if next.is_some() {
            return next;
        }
        let fresh = Arm::new();
        let score = |clock: Mhz| {
            let arm = self.arms.get(&clock).unwrap_or(&fresh);
            if self.exploiting { arm.predict(&self.context) } else { arm.bound(&self.context, self.alpha()) }
        };
        // Of equals the first.
        let allowed = self.clocks.iter().copied().filter(|clock| self.is_allowed(*clock));
        allowed.map(|clock| (clock, score(clock))).reduce(|a, b| if b.1 > a.1 { b } else { a }).map(|c| c.0)
    }

    #[expect(clippy::cast_precision_loss, reason = "a number of rounds")]
    fn alpha(&self) -> f64 {
        let (start, decay, floor) = ALPHA;
        (start * (-decay * self.rounds as f64).exp()).max(floor)
    }

    fn take_reward(&mut self, edp: Option<f64>, broken: bool) {
        let Some(clock) = self.running else { return };
        let baseline = BASELINE_FACTOR * mean(&self.baseline).unwrap_or(1.0);
        let reward = edp.map_or(0.0, |edp| 2.0 * (1.0 - (edp / baseline).min(2.0)));
        let context = self.context;
        self.arms.entry(clock).or_insert_with(Arm::new).learn(&context, reward, edp.unwrap_or(0.0));
        self.rounds += 1;
        self.actions.push(clock);
        self.edps.push(edp.unwrap_or(0.0));
        if broken {
            self.boundary = self.boundary.max(Some(clock));
            self.exploiting = false;
        }
        self.prune_extreme(clock);
        self.prune_by_history();
        if !self.exploiting
            && self.rounds >= REFINE_FROM
            && (self.rounds - REFINE_FROM).is_multiple_of(REFINE_EVERY)
        {
            self.refine(clock);
        }
        self.judge_convergence();
    }

    fn prune(&mut self, clock: Mhz) {
        self.pruned.insert(clock);
        if clock.0 < self.range.1.0 / 2 {
            self.pruned.extend(self.clocks.iter().copied().filter(|other| *other < clock));
        }
    }

    fn prune_extreme(&mut self, clock: Mhz) {
        let rewards = self.arms.get(&clock).map(|arm| arm.rewards.as_slice()).unwrap_or_default();
        if self.rounds <= 60 && rewards.len() >= 3 && mean(rewards).is_some_and(|reward| reward <= -1.2) {
            self.prune(clock);
        }
    }

    /// Absolute EDPs, so the gap almost never exceeds the threshold.
    fn prune_by_history(&mut self) {
        if self.rounds < PRUNE_FROM || self.rounds - self.last_prune < PRUNE_EVERY {
            return;
        }
        self.last_prune = self.rounds;
        let known: Vec<(Mhz, f64)> = self
            .clocks
            .iter()
            .filter(|clock| self.is_allowed(**clock))
            .filter_map(|clock| {
                let edps: Vec<f64> =
                    self.arms.get(clock)?.edps.iter().copied().filter(|edp| *edp > 0.0).collect();
                (edps.len() >= 6).then(|| mean(&edps).map(|edp| (*clock, edp))).flatten()
            })
            .collect();
        let means: Vec<f64> = known.iter().map(|(_, edp)| *edp).collect();
        let Some(center) = mean(&means).filter(|_| means.len() >= 2) else { return };
        let squares: Vec<f64> = means.iter().map(|edp| (edp - center).powi(2)).collect();
        let threshold = 4.0 * mean(&squares).unwrap_or(0.0).sqrt().max(0.05);
        let best = means.iter().copied().fold(f64::INFINITY, f64::min);
        for (clock, edp) in known {
            let left = self.clocks.iter().filter(|clock| self.is_allowed(**clock)).count();
            if edp - best > threshold && left > 2 {
                self.prune(clock);
            }
        }
    }

    fn refine(&mut self, last: Mhz) {
        let anchor =
            if self.rounds < MATURE { self.statistical_anchor(last) } else { self.predicted_anchor() };
        let Some(anchor) = anchor else { return };
        let low = Mhz(anchor.0.saturating_sub(FINE_REACH)).max(self.range.0);
        let high = Mhz(anchor.0 + FINE_REACH).min(self.range.1);
        let mut clocks: Vec<Mhz> = (low.0..=high.0).step_by(FINE_STEP as usize).map(Mhz).collect();
        clocks.push(anchor);
        clocks.sort();
        clocks.dedup();
        clocks.retain(|clock| self.is_allowed(*clock));
        if !clocks.is_empty() {
            self.clocks = clocks;
        }
    }

    /// The clock that has been cheapest under loads like the last one: low, medium or high by its own terciles.
    fn statistical_anchor(&self, last: Mhz) -> Option<Mhz> {
        let latest = *self.edps.last()?;
        let bin = |edps: &[f64], value: f64| {
            let tercile = |share| percentile(edps, share).unwrap_or(0.0);
            let (low, high) = (tercile(0.33), tercile(0.67));
            if value <= low { 0 } else { 1 + usize::from(value >= high) }
        };
        let known: Vec<(Mhz, &[f64])> = self
            .arms
            .iter()
            .filter(|(clock, arm)| arm.edps.len() >= 6 && self.is_allowed(**clock))
            .map(|(clock, arm)| (*clock, arm.edps.as_slice()))
            .collect();
        let own = known.iter().find(|(clock, _)| *clock == last).map(|(_, edps)| bin(edps, latest));
        let alike = known.iter().filter_map(|(clock, edps)| {
            let same: Vec<f64> = edps.iter().copied().filter(|edp| Some(bin(edps, *edp)) == own).collect();
            (same.len() >= 2).then(|| mean(&same).map(|edp| (*clock, edp))).flatten()
        });
        alike.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(clock, _)| clock).or_else(|| self.cheapest(|_| true))
    }

    /// The cheapest clock among those with at least four EDPs.
    fn cheapest(&self, wanted: impl Fn(Mhz) -> bool) -> Option<Mhz> {
        let known = self
            .arms
            .iter()
            .filter(|(clock, arm)| arm.edps.len() >= 4 && self.is_allowed(**clock) && wanted(**clock));
        let means = known.filter_map(|(clock, arm)| Some((*clock, mean(&arm.edps)?)));
        means.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(clock, _)| clock)
    }

    fn predicted_anchor(&self) -> Option<Mhz> {
        let alpha = self.alpha();
        let bounds: BTreeMap<Mhz, f64> = self
            .arms
            .iter()
            .filter(|(clock, _)| self.is_allowed(**clock))
            .map(|(clock, arm)| (*clock, arm.bound(&self.context, alpha)))
            .collect();
        let (highest, top) = bounds.iter().max_by(|a, b| a.1.total_cmp(b.1))?;
        let least = if *top > 0.0 { 0.8 * top } else { top - 0.3 };
        self.cheapest(|clock| bounds.get(&clock).is_some_and(|bound| *bound >= least)).or(Some(*highest))
    }

    fn judge_convergence(&mut self) {
        if self.exploiting {
            let recent =
                self.edps.len().checked_sub(CONVERGENCE_WINDOW).and_then(|from| self.edps.get(from..));
            if let Some((before, after)) = recent.map(|recent| recent.split_at(CONVERGENCE_WINDOW / 2))
                && let (Some(before), Some(after)) = (mean(before), mean(after))
                && after > 1.3 * before
            {
                self.exploiting = false;
            }
            return;
        }
        let Some(recent) = self.actions.len().checked_sub(CONVERGENCE_WINDOW) else { return };
        let mut counts: BTreeMap<Mhz, usize> = BTreeMap::new();
        for clock in self.actions.iter().skip(recent) {
            *counts.entry(*clock).or_default() += 1;
        }
        let mut counts: Vec<usize> = counts.into_values().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        if 10 * counts.iter().take(3).sum::<usize>() >= 6 * CONVERGENCE_WINDOW {
            self.exploiting = true;
            self.converged_round.get_or_insert(self.rounds);
        }
    }
}

/// Every 90 MHz with both ends: downwards from the top with limits, upwards from the bottom without; ascending.
fn coarse(low: Mhz, high: Mhz, limited: bool) -> Vec<Mhz> {
    let mut clocks: Vec<Mhz> = (0..=(high.0 - low.0) / COARSE_STEP)
        .map(|k| if limited { Mhz(high.0 - COARSE_STEP * k) } else { Mhz(low.0 + COARSE_STEP * k) })
        .chain([low, high])
        .collect();
    clocks.sort();
    clocks.dedup();
    clocks
}

impl Autopilot for OriginalAgft {
    fn due(&self) -> Time {
        self.due
    }

    fn act(&mut self, look: &Look) -> Option<Target> {
        let purpose = self.after_pause;
        let mut window = self.window.take().unwrap_or_else(|| Sampling::begin(purpose, look));
        window.add(look);
        if look.now.since(window.start).0 < WINDOW - 1e-6 {
            self.due = look.now + Seconds(SAMPLE);
            self.window = Some(window);
            return None;
        }
        self.conclude(&window, look)
    }
}

#[cfg(test)]
mod tests;
