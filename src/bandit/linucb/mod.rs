//! AGFT's policy: disjoint LinUCB, one ridge regression per clock.
//!
//! First every clock is tried once from the top down, then the highest upper confidence bound wins, with an
//! exploration rate that decays; once the choices have settled on a few clocks, the highest expectation wins.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::arm::{Arm, input};
use super::{
    ActionSpace, ArmSummary, BanditError, Choice, Evidence, Phase, Policy, Reason, Summary, Target, View,
};
use crate::features::DIMENSION;
use crate::units::{Clocks, Seconds, Time};

/// Constants of the policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinUcbSettings {
    /// Exploration rate at the first round.
    pub initial_alpha: f64,
    /// Its exponential decay per round.
    pub alpha_decay_rate: f64,
    /// The rate never falls below this.
    pub min_alpha: f64,
    /// Ridge weight λ of every arm.
    pub lambda_reg: f64,
    /// How long a clock is held before the next choice: judging takes a few windows, and switching is not free.
    pub dwell: Seconds,
    /// Number of latest choices that convergence looks at.
    pub convergence_window: usize,
    /// Converged when this many clocks ...
    pub convergence_top_k: usize,
    /// ... hold at least this share of those choices.
    pub convergence_threshold: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Held {
    clocks: Clocks,
    since: Time,
    reason: Reason,
}

/// Disjoint LinUCB over clocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinUcb {
    settings: LinUcbSettings,
    arms: BTreeMap<Clocks, Arm>,
    /// Clocks the first sweep has tried.
    swept: Vec<Clocks>,
    sweep_done: bool,
    /// Lessons learned, over all arms.
    rounds: u64,
    /// Latest choices, oldest first; at most `convergence_window`.
    recent: VecDeque<Clocks>,
    exploiting: bool,
    #[serde(skip)]
    held: Option<Held>,
}

impl LinUcb {
    /// A policy that knows nothing.
    #[must_use]
    pub fn new(settings: LinUcbSettings) -> Self {
        Self {
            settings,
            arms: BTreeMap::new(),
            swept: Vec::new(),
            sweep_done: false,
            rounds: 0,
            recent: VecDeque::new(),
            exploiting: false,
            held: None,
        }
    }

    /// Takes over the constants of the present configuration; what was learned stays.
    ///
    /// A changed λ applies to arms not yet tried.
    pub fn configure(&mut self, settings: LinUcbSettings) {
        self.settings = settings;
    }

    /// Exploration rate `max(α₀ e^(-decay·rounds), α_min)`.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a count of windows stays far below 2^53")]
    pub fn alpha(&self) -> f64 {
        let decayed =
            self.settings.initial_alpha * (-self.settings.alpha_decay_rate * self.rounds as f64).exp();
        decayed.max(self.settings.min_alpha)
    }

    /// Expected reward of a clock in a z-scored context (0 for one never tried).
    #[must_use]
    pub fn predict(&self, clocks: Clocks, context: &[f64; DIMENSION]) -> f64 {
        self.arms.get(&clocks).map_or(0.0, |arm| arm.mean(input(context).view()))
    }

    /// Learns that a clock earned `reward` in a z-scored context.
    ///
    /// # Errors
    /// [`BanditError`]; nothing is changed then.
    pub fn learn(
        &mut self,
        clocks: Clocks,
        context: &[f64; DIMENSION],
        reward: f64,
    ) -> Result<(), BanditError> {
        let lambda = self.settings.lambda_reg;
        let arm = self.arms.entry(clocks).or_insert_with(|| Arm::new(lambda));
        arm.update(input(context).view(), reward)?;
        self.rounds += 1;
        Ok(())
    }

    /// The constants in force.
    #[must_use]
    pub fn settings(&self) -> &LinUcbSettings {
        &self.settings
    }

    /// Is every stored number usable? A model file could say otherwise.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        true
    }

    fn next_of_sweep(&mut self, space: &ActionSpace, now: Time) -> Option<Clocks> {
        if self.sweep_done {
            return None;
        }
        let next = space.allowed(now).find(|clocks| !self.swept.contains(clocks));
        match next {
            Some(clocks) => self.swept.push(clocks),
            None => self.sweep_done = true,
        }
        next
    }

    /// Highest score among the allowed clocks; of equals the first, that is the highest clock.
    fn best(&self, view: View<'_>) -> Option<(Clocks, f64, f64)> {
        let x = input(view.context);
        let alpha = if self.exploiting { 0.0 } else { self.alpha() };
        let untried = Arm::new(self.settings.lambda_reg);
        let mut best: Option<(Clocks, f64, f64)> = None;
        for clocks in view.space.allowed(view.now) {
            // Exploitation stays with what has been tried: an untried arm's expectation of 0 is ignorance, not merit.
            let arm = match self.arms.get(&clocks) {
                Some(arm) => arm,
                None if self.exploiting => continue,
                None => &untried,
            };
            let Ok((score, width)) = arm.ucb(x.view(), alpha) else { continue };
            if best.is_none_or(|(_, top, _)| score > top) {
                best = Some((clocks, score, width));
            }
        }
        best
    }

    fn note_choice(&mut self, clocks: Clocks) {
        self.recent.push_back(clocks);
        while self.recent.len() > self.settings.convergence_window {
            self.recent.pop_front();
        }
        if self.sweep_done && !self.exploiting && self.has_settled() {
            self.exploiting = true;
        }
    }

    /// Do the `top_k` most frequent clocks hold the threshold's share of a full window of choices?
    #[expect(clippy::cast_precision_loss, reason = "at most a few thousand choices are kept")]
    fn has_settled(&self) -> bool {
        if self.recent.len() < self.settings.convergence_window {
            return false;
        }
        let mut counts: BTreeMap<Clocks, usize> = BTreeMap::new();
        for clocks in &self.recent {
            *counts.entry(*clocks).or_default() += 1;
        }
        let mut counts: Vec<usize> = counts.into_values().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let top: usize = counts.iter().take(self.settings.convergence_top_k).sum();
        top as f64 / self.recent.len() as f64 >= self.settings.convergence_threshold
    }
}

impl Policy for LinUcb {
    fn choose(&mut self, view: View<'_>) -> Choice {
        if let Some(held) = self.held
            && view.space.is_allowed(held.clocks, view.now)
            && view.now.since(held.since).0 < self.settings.dwell.0
        {
            self.note_choice(held.clocks);
            return Choice {
                target: Target::Lock(held.clocks),
                reason: Reason::Dwell,
                score: None,
                width: None,
            };
        }
        let (clocks, reason, score, width) = if let Some(clocks) = self.next_of_sweep(view.space, view.now) {
            (clocks, Reason::Sweep, None, None)
        } else if let Some((clocks, score, width)) = self.best(view) {
            let reason = if self.exploiting { Reason::Greedy } else { Reason::Ucb };
            (clocks, reason, Some(score), Some(width))
        } else {
            self.held = None;
            return Choice {
                target: Target::Default,
                reason: Reason::NothingAllowed,
                score: None,
                width: None,
            };
        };
        self.held = Some(Held { clocks, since: view.now, reason });
        self.note_choice(clocks);
        Choice { target: Target::Lock(clocks), reason, score, width }
    }

    fn observe(&mut self, evidence: &Evidence<'_>) -> Result<bool, BanditError> {
        let (Some(Target::Lock(clocks)), Some(reward)) = (evidence.ran_at, evidence.reward) else {
            return Ok(false);
        };
        self.learn(clocks, evidence.context, reward)?;
        Ok(true)
    }

    fn wants_rewards(&self) -> bool {
        true
    }

    fn interrupt(&mut self) {
        // A sweep step that was cut short has taught nothing yet: it is owed.
        if let Some(held) = self.held.take()
            && held.reason == Reason::Sweep
            && self.arms.get(&held.clocks).is_none_or(|arm| arm.lessons() == 0)
        {
            self.swept.retain(|clocks| *clocks != held.clocks);
        }
    }

    fn summary(&self) -> Summary {
        Summary {
            phase: if self.exploiting { Phase::Exploitation } else { Phase::Exploration },
            converged: self.exploiting,
            rounds: self.rounds,
            alpha: self.alpha(),
            arms: self
                .arms
                .iter()
                .rev()
                .map(|(clocks, arm)| ArmSummary {
                    clocks: *clocks,
                    lessons: arm.lessons(),
                    mean_reward: arm.mean_reward(),
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bandit::space::SpaceSettings;
    use crate::gpu::{MemoryLevel, SupportedClocks};
    use crate::units::Mhz;

    const CONTEXT: [f64; 7] = [0.0; 7];

    fn space() -> ActionSpace {
        let level = MemoryLevel { memory: Mhz(1593), core: (2..=14).map(|k| Mhz(100 * k)).collect() };
        let supported = SupportedClocks::new(vec![level]).unwrap();
        let settings = SpaceSettings {
            min_core: Mhz(200),
            step: Mhz(100),
            memory: Vec::new(),
            retry_after: Seconds(600.0),
        };
        ActionSpace::new(&supported, &settings)
    }

    fn settings() -> LinUcbSettings {
        LinUcbSettings {
            initial_alpha: 1.0,
            alpha_decay_rate: 0.02,
            min_alpha: 0.1,
            lambda_reg: 1.0,
            dwell: Seconds(0.0),
            convergence_window: 100,
            convergence_top_k: 3,
            convergence_threshold: 0.6,
        }
    }

    fn choose(policy: &mut LinUcb, space: &ActionSpace, now: f64) -> Choice {
        policy.choose(View { now: Time(now), context: &CONTEXT, space })
    }

    #[test]
    fn first_sweep_goes_from_the_top_down_and_once() {
        let (mut policy, space) = (LinUcb::new(settings()), space());
        let mut seen = Vec::new();
        for k in 0..space.arms().len() {
            let choice = choose(&mut policy, &space, f64::from(u32::try_from(k).unwrap()));
            assert_eq!(choice.reason, Reason::Sweep);
            let clocks = choice.target.clocks().unwrap();
            policy.learn(clocks, &CONTEXT, 0.0).unwrap();
            seen.push(clocks);
        }
        assert_eq!(seen, space.arms());
        assert_eq!(choose(&mut policy, &space, 99.0).reason, Reason::Ucb);
    }

    #[test]
    fn interrupted_sweep_step_is_taken_again() {
        let (mut policy, space) = (LinUcb::new(settings()), space());
        let first = choose(&mut policy, &space, 0.0).target;
        policy.interrupt();
        assert_eq!(choose(&mut policy, &space, 1.0).target, first);
    }

    #[test]
    fn sweep_continues_where_a_saved_model_stopped() {
        let (mut policy, space) = (LinUcb::new(settings()), space());
        for k in 0..5 {
            let clocks = choose(&mut policy, &space, f64::from(k)).target.clocks().unwrap();
            policy.learn(clocks, &CONTEXT, 0.0).unwrap();
        }
        let saved = serde_json::to_string(&policy.swept).unwrap();
        let mut restarted = LinUcb::new(settings());
        restarted.swept = serde_json::from_str(&saved).unwrap();
        assert_eq!(choose(&mut restarted, &space, 0.0).target, Target::Lock(space.arms()[5]));
    }

    #[test]
    fn clock_is_held_for_its_dwell_unless_it_is_taken_away() {
        let mut space = space();
        let mut policy = LinUcb::new(LinUcbSettings { dwell: Seconds(0.8), ..settings() });
        let first = choose(&mut policy, &space, 0.0).target;
        assert_eq!(choose(&mut policy, &space, 0.3).reason, Reason::Dwell);
        assert_eq!(choose(&mut policy, &space, 0.6).target, first);
        assert_ne!(choose(&mut policy, &space, 0.9).target, first);
        let second = choose(&mut policy, &space, 0.95).target.clocks().unwrap();
        space.fail(second, "does not hold".into(), Time(1.0));
        assert_ne!(choose(&mut policy, &space, 1.0).target, Target::Lock(second));
    }

    #[test]
    fn policy_finds_the_best_clock_of_a_noiseless_bowl_and_converges() {
        let (mut policy, space) = (LinUcb::new(settings()), space());
        let best = Mhz(900);
        for k in 0..600_u32 {
            let clocks = choose(&mut policy, &space, f64::from(k)).target.clocks().unwrap();
            let distance = (clocks.core.as_f64() - best.as_f64()) / 1000.0;
            policy.learn(clocks, &CONTEXT, -4.0 * distance * distance).unwrap();
        }
        let summary = policy.summary();
        assert!(summary.converged);
        assert_eq!(summary.phase, Phase::Exploitation);
        assert_eq!(choose(&mut policy, &space, 600.0).target, Target::Lock(Clocks::core_only(best)));
        assert_eq!(summary.best(3).unwrap().clocks.core, best);
    }

    #[test]
    fn exploration_rate_decays_to_its_floor() {
        let mut policy = LinUcb::new(settings());
        approx::assert_relative_eq!(policy.alpha(), 1.0);
        policy.rounds = 50;
        approx::assert_relative_eq!(policy.alpha(), (-0.02_f64 * 50.0).exp(), max_relative = 1e-12);
        policy.rounds = 100_000;
        approx::assert_relative_eq!(policy.alpha(), 0.1);
    }

    #[test]
    fn nothing_allowed_means_driver_default() {
        let (mut policy, mut space) = (LinUcb::new(settings()), space());
        space.set_floor(Some(Mhz(5000)));
        let choice = choose(&mut policy, &space, 0.0);
        assert_eq!((choice.target, choice.reason), (Target::Default, Reason::NothingAllowed));
    }
}
