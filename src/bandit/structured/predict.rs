//! What a clock will lead to once the batch has settled: step time, busy share, power, and the objective.
//!
//! Within a window the tokens per step are given. At another clock they are not: slower steps let more tokens
//! arrive per step, which makes steps slower still. With the arrival rates `λp`, `λd` per busy second, tokens
//! per step are `λ t`, hence `t = A / (1 - χ)` with `χ = B λp + C λd` (A, B, C: the [`Brackets`]). Judging a
//! lower clock by the few seconds after the change would leave this out and always find it too good.

use ndarray::ArrayView1;

use serde::{Deserialize, Serialize};

use super::context::Load;
use super::model::{Drawn, Model};
use super::power::{Mix, watts};
use super::scales::Scales;
use super::step_time::Brackets;
use crate::reward::Objective;
use crate::units::{Seconds, Watts};

/// Below this much slack `1 - χ` the step time grows linearly.
const LEAST_SLACK: f64 = 0.06;
/// Largest factor by which work may crowd around a token: beyond it, few tokens make an uncertain mean.
const MOST_CROWDING: f64 = 1.5;
/// With less load than this there is nothing that could crowd.
const LEAST_CHI: f64 = 0.02;
/// Rounds that bring busy share and step time into agreement.
const ROUNDS: usize = 4;

/// What a clock leads to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Steady {
    /// Time per engine step, that is per output token.
    pub step: Seconds,
    /// Share of the time in which the engine works.
    pub busy: f64,
    /// Mean power.
    pub power: Watts,
    /// Tokens per second over those of the present: less than 1 where slow answers keep clients from asking.
    pub rate: f64,
}

impl Steady {
    /// `ln P/λ + w ln t`, energy per token and time per token, `w` being the objective's times `weight`.
    #[must_use]
    pub(super) fn objective(&self, objective: Objective, weight: f64) -> f64 {
        (self.power.0 / self.rate).ln() + weight * objective.delay_weight() * self.step.0.ln()
    }
}

/// A clock against driver-default clocks at the same load.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Outlook {
    /// The clock, MHz.
    pub clock: f64,
    /// Predicted objective less default's: negative is better than default.
    pub gain: f64,
    /// Standard deviation of that difference over the posterior.
    pub sd: f64,
    /// Predicted `ln(t / t(default))`.
    pub slowdown: f64,
    /// Its standard deviation.
    pub slowdown_sd: f64,
    /// What the clock leads to.
    pub steady: Steady,
}

/// What clocks are compared for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Aim {
    /// What is to be small.
    pub objective: Objective,
    /// Delay weighs so many times what the objective says.
    pub weight: f64,
    /// Of the mean time per output token.
    pub limit: Option<Seconds>,
}

/// One set of coefficients, the mean or a draw, at one load.
#[derive(Debug, Clone)]
struct Coefficients<'a> {
    time: ArrayView1<'a, f64>,
    power: ArrayView1<'a, f64>,
    /// Step time at the clock at which the load was seen.
    step_seen: f64,
    /// The same, from the steps that were seen there: what clients had to wait for.
    round_trip: f64,
    /// How much denser the work is around a token than in the mean (see [`crowding`]).
    crowding: f64,
}

/// Predictions at one load.
#[derive(Debug, Clone)]
pub(super) struct Predictor<'a> {
    scales: Scales,
    load: Load,
    mean: Coefficients<'a>,
    draws: Vec<Coefficients<'a>>,
}

impl<'a> Predictor<'a> {
    /// Predictions of `model` at `load`; `draws` are from its posterior and give the spread.
    #[must_use]
    pub(super) fn new(model: &'a Model, load: Load, draws: &'a [Drawn]) -> Self {
        let scales = *model.scales();
        let coefficients = |time: ArrayView1<'a, f64>, power: ArrayView1<'a, f64>| {
            let seen = Brackets::at(time, &scales, load.clock);
            let step_seen = settled(seen, load.prefill / load.busy, load.decode / load.busy);
            // As the steps were filled then; the settled time is too sure of itself near saturation.
            let round_trip = seen.time(load.prefill / load.steps, load.decode / load.steps);
            Coefficients { crowding: crowding(seen, &load), time, power, step_seen, round_trip }
        };
        let mean = coefficients(model.time().mean(), model.power().mean());
        let draws = draws.iter().map(|drawn| coefficients(drawn.time.view(), drawn.power.view())).collect();
        Self { scales, load, mean, draws }
    }

    /// What `clock` (MHz) most likely leads to.
    #[must_use]
    pub(super) fn steady(&self, clock: f64) -> Steady {
        self.steady_of(&self.mean, clock)
    }

    /// Every clock of `clocks` against `default`, all in MHz, each with the probability, over the posterior,
    /// that its mean time per output token exceeds the limit; 0 without a limit.
    #[must_use]
    pub(super) fn outlooks(&self, clocks: &[f64], default: f64, aim: Aim) -> Vec<(Outlook, f64)> {
        let objective = |steady: &Steady| steady.objective(aim.objective, aim.weight);
        let at_default = self.steady(default);
        let default_draws: Vec<Steady> =
            self.draws.iter().map(|draw| self.steady_of(draw, default)).collect();
        clocks
            .iter()
            .map(|&clock| {
                let steady = self.steady(clock);
                let (mut gain, mut slowdown, mut above) = (Spread::default(), Spread::default(), 0.0);
                for (draw, reference) in self.draws.iter().zip(&default_draws) {
                    let there = self.steady_of(draw, clock);
                    gain.push(objective(&there) - objective(reference));
                    slowdown.push((there.step.0 / reference.step.0).ln());
                    above += f64::from(aim.limit.is_some_and(|limit| there.step > limit));
                }
                // As if half a draw more were above, and half a draw not: never quite sure.
                let risk = aim.limit.map_or(0.0, |_| (above + 0.5) / (gain.count + 1.0));
                let outlook = Outlook {
                    clock,
                    gain: objective(&steady) - objective(&at_default),
                    sd: gain.sd(),
                    slowdown: (steady.step.0 / at_default.step.0).ln(),
                    slowdown_sd: slowdown.sd(),
                    steady,
                };
                (outlook, risk)
            })
            .collect()
    }

    /// Step time at which rates (per busy second) and steps agree: `t (1 - χ λ(t)) = A`, where clients that
    /// wait for answers bring `λ(t) = 1 / (1 - c + c t/t₀)` of what they brought at `t₀`; a quadratic
    /// equation in `t`.
    fn settled(&self, of: &Coefficients<'_>, brackets: Brackets, prefill: f64, decode: f64) -> f64 {
        let closed = self.load.closed;
        if closed <= 0.0 {
            return settled(brackets, prefill, decode);
        }
        let chi = brackets.prefill * prefill + brackets.decode * decode;
        let square = closed / of.round_trip;
        let linear = 1.0 - closed - chi - brackets.step * square;
        let constant = brackets.step * (1.0 - closed);
        ((linear * linear + 4.0 * square * constant).sqrt() - linear) / (2.0 * square)
    }

    fn steady_of(&self, of: &Coefficients<'_>, clock: f64) -> Steady {
        let Load { prefill, decode, busy: busy_seen, closed, .. } = self.load;
        let brackets = Brackets::at(of.time, &self.scales, clock);
        // The empty spells of a Poisson stream: the share of time without work falls exponentially with the
        // work.
        let emptiness = -(1.0 - busy_seen).ln();
        let (mut busy, mut step) = (busy_seen, of.step_seen);
        for _ in 0..ROUNDS {
            step = self.settled(of, brackets, prefill / busy, decode / busy);
            busy = 1.0 - (-emptiness * step / of.step_seen).exp();
        }
        let rate = 1.0 / (1.0 - closed + closed * step / of.round_trip);
        let (prefill, decode) = (rate * prefill / busy, rate * decode / busy);
        let (per_prefill, per_decode) = (prefill * step, decode * step);
        let mix =
            Mix { busy, prefill_share: brackets.prefill_share(per_prefill, per_decode), decode: per_decode };
        // What the tokens meet with, not what the mean step takes.
        let step = settled(brackets, of.crowding * prefill, of.crowding * decode);
        Steady { step: Seconds(step), busy, rate, power: watts(of.power, &self.scales, clock, mix) }
    }
}

/// How much denser the arrivals are around a token than in the mean, at least 1.
///
/// Requests come in clumps, and most tokens are generated within them: they meet with a longer time per token
/// than a step at the mean load takes. The factor on the rates is the one at which the model gives what the
/// tokens met with.
fn crowding(seen: Brackets, load: &Load) -> f64 {
    let chi = (seen.prefill * load.prefill + seen.decode * load.decode) / load.busy;
    let needed = load.delay.map_or(1.0, |delay| (1.0 - seen.step / delay.0) / chi.max(LEAST_CHI));
    if needed.is_finite() { needed.clamp(1.0, MOST_CROWDING) } else { 1.0 }
}

/// `A / (1 - χ)` for rates per busy second.
fn settled(brackets: Brackets, prefill: f64, decode: f64) -> f64 {
    brackets.step / slack(brackets.prefill * prefill + brackets.decode * decode)
}

/// `1 - χ`, continued above zero so that its inverse goes on in a straight line: overload has to look
/// terrible, not undefined.
fn slack(chi: f64) -> f64 {
    let slack = 1.0 - chi;
    if slack >= LEAST_SLACK { slack } else { LEAST_SLACK.powi(2) / (2.0 * LEAST_SLACK - slack) }
}

/// Running mean and variance (Welford, *Technometrics* 4, 1962).
#[derive(Debug, Clone, Copy, Default)]
struct Spread {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Spread {
    fn push(&mut self, value: f64) {
        self.count += 1.0;
        let off = value - self.mean;
        self.mean += off / self.count;
        self.squares += off * (value - self.mean);
    }

    fn sd(&self) -> f64 {
        if self.count < 2.0 { 0.0 } else { (self.squares / (self.count - 1.0)).sqrt() }
    }
}
