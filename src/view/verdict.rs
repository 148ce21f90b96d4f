//! What agft is worth, in one line: made here, and shown by the page, `agft top` and `agft status` alike.
//!
//! It says what is known and nothing else. What the holdout has measured comes first; before there is that,
//! what the run so far has cost over what default clocks would have cost in it; before that is known either,
//! that it is not.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::against::Source;
use super::state::State;
use crate::holdout::Change;
use crate::stats::Interval;

/// The verdict on a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Verdict {
    /// The line.
    pub words: String,
    /// Where the figures are from; `None` where there are none.
    pub source: Option<Source>,
    /// Share of the energy that is saved against default clocks, with its 95 % interval.
    pub saved: Option<Interval>,
    /// Relative rise of the time per output token.
    pub slower: Option<Interval>,
    /// Relative change of the energy-delay product.
    pub edp: Option<Interval>,
    /// What time that is about: so much of this run, or so many cycles of the holdout.
    pub span: String,
    /// Good news, bad news (more energy, or limits broken now), or neither for sure.
    pub good: Option<bool>,
}

impl Verdict {
    /// Of a server at one moment.
    #[must_use]
    pub fn of(state: &State) -> Self {
        let effect = &state.savings.effect;
        let measured = |of: &Change| Interval { value: of.relative, half_width: of.relative_half_width };
        let negative = |of: Interval| Interval { value: -of.value, ..of };
        let (saved, slower, source, span) = if let Some(power) = &effect.power_w {
            let span = format!("{} cycles", power.cycles);
            let slower = effect.tpot_s.as_ref().map(measured);
            (Some(negative(measured(power))), slower, Some(Source::Holdout), span)
        } else {
            let estimate = &state.estimate;
            let saved = estimate.saved();
            let span = duration(estimate.compared_s);
            (saved, estimate.slowdown().filter(|_| saved.is_some()), estimate.source, span)
        };
        let source = source.filter(|_| saved.is_some());
        let edp = saved.zip(slower).map(|(saved, slower)| product(negative(saved), slower));
        let broken = state.round.as_ref().is_some_and(|round| round.violated.is_some());
        let good = if broken { Some(false) } else { saved.as_ref().and_then(Interval::sign) };
        let span = if source.is_some() { span } else { String::new() };
        let mut verdict = Self { words: String::new(), source, saved, slower, edp, span, good };
        verdict.words = verdict.in_words(state);
        verdict
    }

    fn in_words(&self, state: &State) -> String {
        let mut words = match self.saved {
            None => "savings not known yet".to_owned(),
            Some(saved) => match saved.sign() {
                None => format!("energy as at default clocks, within {}", percent(reach(saved))),
                Some(true) => format!("saves {} ± {}", digits(saved.value), percent(saved.half_width)),
                Some(false) => {
                    format!("takes {} ± {} more energy", digits(-saved.value), percent(saved.half_width))
                }
            },
        };
        // Writing to a string cannot fail.
        let _ = match self.slower {
            None => Ok(()),
            Some(slower) => match slower.sign() {
                None => write!(words, ", as fast within {}", percent(reach(slower))),
                Some(true) => write!(words, ", {} slower", percent(slower.value)),
                Some(false) => write!(words, ", {} faster", percent(-slower.value)),
            },
        };
        words + ", " + &limits(state)
    }

    /// What kind of knowledge it is and over what time, for brackets.
    #[must_use]
    pub fn basis(&self) -> String {
        match self.source {
            None => "nothing to go by yet".into(),
            Some(Source::Holdout) => format!("measured, {}", self.span),
            Some(Source::Model | Source::Baseline) => format!("estimate, {}", self.span),
        }
    }
}

/// How far from nothing it may be.
fn reach(of: Interval) -> f64 {
    of.value.abs() + of.half_width
}

/// The change of a product of which both factors change.
fn product(a: Interval, b: Interval) -> Interval {
    let (of_a, of_b) = (1.0 + a.value, 1.0 + b.value);
    Interval { value: of_a * of_b - 1.0, half_width: (of_b * a.half_width).hypot(of_a * b.half_width) }
}

/// How the limits stand: what is broken now, else for how long one was.
fn limits(state: &State) -> String {
    let Some(limits) = state.limits else { return "no limits".into() };
    let round = state.round.as_ref();
    if let Some((which, round)) = round.and_then(|round| Some((round.violated.as_ref()?, round))) {
        let allowed = if which == "ttft" { limits.ttft.0 } else { limits.tpot.0 };
        let measured = round.violated_s.map_or_else(String::new, |measured| {
            format!(": {} {} of {} allowed", which.to_uppercase(), seconds(measured), seconds(allowed))
        });
        return format!("limits broken{measured}");
    }
    let judged = if state.not_judged.is_empty() { "" } else { ", as far as they are judged" };
    if state.counts.violated_s > 0.0 {
        return format!("limits kept but for {}{judged}", duration(state.counts.violated_s));
    }
    format!("limits kept{judged}")
}

/// A share in percent, without the sign of it.
fn digits(share: f64) -> String {
    let percent = 100.0 * share;
    if percent.abs() < 9.95 { format!("{percent:.1}") } else { format!("{percent:.0}") }
}

fn percent(share: f64) -> String {
    digits(share) + " %"
}

/// A latency.
fn seconds(value: f64) -> String {
    if value < 1.0 { format!("{:.0} ms", 1e3 * value) } else { format!("{value:.2} s") }
}

/// A length of time, as status and verdict say it.
pub(crate) fn duration(seconds: f64) -> String {
    match seconds.max(0.0) {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{Estimate, testing};

    fn said(state: &State) -> String {
        Verdict::of(state).words
    }

    fn without_holdout() -> State {
        State { savings: crate::holdout::SavingsState::default(), ..testing::state() }
    }

    #[test]
    fn what_was_measured_comes_first_then_the_estimate_then_nothing() {
        let mut state = testing::state();
        state.counts.violated_s = 0.0;
        let measured = Verdict::of(&state);
        assert_eq!(measured.source, Some(Source::Holdout));
        assert!(measured.words.starts_with("saves 25 ± ") && measured.words.ends_with(", limits kept"));
        assert_eq!(measured.basis(), "measured, 6 cycles");
        let edp = measured.edp.unwrap();
        assert!((edp.value - (0.75 * 20.0 / 18.0 - 1.0)).abs() < 0.01, "the same source: {edp:?}");

        let mut state = State { counts: state.counts, ..without_holdout() };
        let estimated = Verdict::of(&state);
        assert_eq!(estimated.words, "saves 25 ± 2.9 %, 5.0 % slower, limits kept");
        assert_eq!(estimated.basis(), "estimate, 50 s");
        let partly =
            State { not_judged: vec!["llama.cpp tells no time to first token".into()], ..state.clone() };
        assert!(Verdict::of(&partly).words.ends_with("limits kept, as far as they are judged"));

        state.estimate = Estimate::default();
        let unknown = Verdict::of(&state);
        assert_eq!(unknown.words, "savings not known yet, limits kept");
        assert_eq!((unknown.saved, unknown.slower, unknown.edp, unknown.good), (None, None, None, None));
    }

    #[test]
    fn an_interval_with_nothing_in_it_is_no_saving_and_a_loss_is_said() {
        let mut state = without_holdout();
        state.counts.violated_s = 0.0;
        (state.estimate.energy_j, state.estimate.token_time_s) = (9900.0, 401.0);
        let level = Verdict::of(&state);
        assert!(level.words.starts_with("energy as at default clocks, within 4.9 %, as fast within "));
        assert_eq!(level.good, None);
        (state.estimate.energy_j, state.estimate.token_time_s) = (11_000.0, 380.0);
        let loss = Verdict::of(&state);
        assert_eq!(loss.words, "takes 10 ± 4.3 % more energy, 5.0 % faster, limits kept");
        assert_eq!(loss.good, Some(false));
    }

    #[test]
    fn what_is_known_of_little_of_the_run_or_too_vaguely_is_not_known() {
        let known = without_holdout();
        let with = |change: &dyn Fn(&mut Estimate)| {
            let mut state = known.clone();
            change(&mut state.estimate);
            Verdict::of(&state).saved
        };
        assert!(with(&|_| ()).is_some());
        assert_eq!(with(&|estimate| estimate.served_s = 60.0), None, "a quarter of 40 s was not compared");
        assert_eq!(with(&|estimate| estimate.compared_s = 9.0), None);
        assert_eq!(with(&|estimate| estimate.default_energy_sd_j = 2900.0), None);
        assert_eq!(with(&|estimate| estimate.default_energy_j = 0.0), None);
    }

    #[test]
    fn limits_are_in_it() {
        let mut state = without_holdout();
        assert!(said(&state).ends_with(", limits kept but for 1 s"), "{}", said(&state));
        if let Some(round) = &mut state.round {
            (round.violated, round.violated_s) = (Some("tpot".into()), Some(0.061));
        }
        assert!(said(&state).ends_with("limits broken: TPOT 61 ms of 50 ms allowed"), "{}", said(&state));
        assert_eq!(Verdict::of(&state).good, Some(false));
        state.limits = None;
        assert!(said(&state).ends_with(", no limits"));
    }
}
