//! From predictions to a clock: the start, the pessimist's choice, the deliberate deviations.

use serde::{Deserialize, Serialize};

use super::predict::Outlook;
use super::settings::StructuredSettings;

/// First step below default, as a share of its clock.
const FIRST_STEP: f64 = 0.85;
/// No clock below this share of the lowest one ever tried: one step at a time.
const STEP_DOWN: f64 = 0.82;
/// A descent this close to what was tried has arrived.
const ARRIVED: f64 = 0.985;
/// Weight of the standard deviation in the descent's optimism.
const DESCENT_OPTIMISM: f64 = 0.5;
/// Probes and descents stay out of predicted slowdowns above this factor.
const BOLDEST_SLOWDOWN: f64 = 1.6;
/// A probe may be this many times as slow as the bound allows.
const PROBE_SLOWDOWN: f64 = 2.5;
/// An expected loss, less its standard deviation, below which another policy may try a clock.
const ACCEPTABLE_LOSS: f64 = 0.0;
/// A probe nearer to the preferred clock than this share is none.
const PROBE_DISTANCE: f64 = 0.04;
/// Deviations from the preferred clock, boldest first.
const BESIDE: [f64; 4] = [0.15, 0.1, 0.05, 0.025];
/// The pessimism of a choice within a slowdown bound.
const BOUNDED_PESSIMISM: f64 = 0.1;
/// Within a slowdown bound delay counts so much less: the bound is what the user lets it cost. Where the objective is flat
/// (under a power cap, at long contexts) that is most of the energy that can be saved.
const BOUNDED_LEAN: f64 = 0.5;

/// How far the policy has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stage {
    /// Measuring at default clocks.
    Measure,
    /// Stepping down; so many windows are left for it.
    Descend(u32),
    /// At work.
    Run,
}

/// Why a clock was picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Motive {
    /// Part of the start.
    Descent,
    /// The pessimist's choice.
    Preferred,
    /// A step beside it.
    Beside,
    /// Default clocks, which slowdowns are against.
    Reference,
    /// Where an optimist would be.
    Probe,
}

/// Among which clocks to pick: their outlooks, highest clock first, the first one being default's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options<'a> {
    /// Outlooks, never empty.
    pub outlooks: &'a [Outlook],
    /// Lowest clock ever run at, MHz.
    pub lowest: f64,
    /// Largest slowdown that the preferred clock may have, as a logarithm.
    pub bound: f64,
    /// Constants.
    pub settings: &'a StructuredSettings,
}

impl Options<'_> {
    /// Index of the lowest `score` among the clocks within reach that `allow` lets pass; default if none does.
    fn best(&self, score: impl Fn(&Outlook) -> f64, allow: impl Fn(&Outlook) -> bool) -> usize {
        self.outlooks
            .iter()
            .enumerate()
            .skip(1)
            .filter(|(_, outlook)| self.is_in_reach(outlook) && allow(outlook))
            .map(|(index, outlook)| (index, score(outlook)))
            .filter(|(_, score)| *score < 0.0)
            .min_by(|a, b| a.1.total_cmp(&b.1))
            .map_or(0, |(index, _)| index)
    }

    /// Within one step of what was tried?
    fn is_in_reach(&self, outlook: &Outlook) -> bool {
        outlook.clock >= STEP_DOWN * self.lowest
    }

    /// Within one step of what was tried, and beyond the slowdown bound by `slack` at most?
    fn is_open(&self, outlook: &Outlook, slack: f64) -> bool {
        self.is_in_reach(outlook)
            // The mean: what a prediction is off by, the account of the bound takes in.
            && outlook.slowdown <= self.bound + slack
    }

    fn is_bold_but_sane(outlook: &Outlook) -> bool {
        outlook.slowdown < BOLDEST_SLOWDOWN.ln()
    }

    /// Next clock of the descent; `None` when it has arrived.
    ///
    /// The first step is taken whatever the model says: it has seen one clock only, and one window a little below default
    /// costs less than staying there for ever because nothing lower was ever seen.
    #[must_use]
    pub(super) fn descend(&self) -> Option<usize> {
        let default = self.outlooks.first()?.clock;
        if self.lowest >= ARRIVED * default {
            let first = self.nearest(FIRST_STEP * default);
            return (first > 0).then_some(first);
        }
        let wanted = self.best(|o| o.gain - DESCENT_OPTIMISM * o.sd, Self::is_bold_but_sane);
        let outlook = self.outlooks.get(wanted)?;
        (outlook.clock < ARRIVED * self.lowest).then_some(wanted)
    }

    /// The pessimist's choice; `held` stays unless there is something better by more than `hysteresis`.
    #[must_use]
    pub(super) fn preferred(&self, held: Option<f64>, hysteresis: f64) -> usize {
        // Where the slowdown is bounded, so is what a wrong choice can cost.
        let (pessimism, lean) = if self.bound.is_finite() {
            (BOUNDED_PESSIMISM, BOUNDED_LEAN)
        } else {
            (self.settings.pessimism, 0.0)
        };
        let loss = |o: &Outlook| o.gain + pessimism * o.sd;
        let score = |o: &Outlook| loss(o) - lean * o.slowdown;
        let best = self.best(score, |outlook| self.is_open(outlook, 0.0) && loss(outlook) < 0.0);
        let Some(held) = held.map(|clock| self.nearest(clock)) else { return best };
        match (self.outlooks.get(held), self.outlooks.get(best)) {
            (Some(old), Some(new))
                if (held == 0 || (self.is_open(old, hysteresis) && loss(old) < hysteresis))
                    && score(new) > score(old) - hysteresis =>
            {
                held
            }
            _ => best,
        }
    }

    /// An optimist's clock, if it is far from the preferred one and promises enough.
    #[must_use]
    pub(super) fn probe(&self, preferred: usize) -> Option<usize> {
        let score = |o: &Outlook| o.gain - o.sd;
        let most = PROBE_SLOWDOWN * self.bound;
        let probe = self.best(score, |outlook| Self::is_bold_but_sane(outlook) && outlook.slowdown < most);
        let (there, here) = (self.outlooks.get(probe)?, self.outlooks.get(preferred)?);
        let promises = score(there) < here.gain - self.settings.probe_gain;
        let far = (there.clock / here.clock - 1.0).abs() > PROBE_DISTANCE;
        (promises && far).then_some(probe)
    }

    /// A clock beside the preferred one, above or below: the farthest whose predicted cost is bearable.
    #[must_use]
    pub(super) fn beside(&self, preferred: usize, above: bool) -> Option<usize> {
        let here = self.outlooks.get(preferred)?;
        BESIDE.into_iter().find_map(|share| {
            let beside = self.nearest(here.clock * if above { 1.0 + share } else { 1.0 - share });
            let there = self.outlooks.get(beside)?;
            let bearable = (there.gain - here.gain).abs() < self.settings.deviation_cost;
            let sane = self.is_in_reach(there) && Self::is_bold_but_sane(there);
            (beside != preferred && bearable && (beside == 0 || sane)).then_some(beside)
        })
    }

    /// Index of the lowest clock down to which none is out of reach, too slow, or a loss to an optimist.
    #[must_use]
    pub(super) fn lowest_acceptable(&self) -> usize {
        let is_fine = |o: &Outlook| {
            self.is_open(o, 0.0) && Self::is_bold_but_sane(o) && o.gain - o.sd < ACCEPTABLE_LOSS
        };
        self.outlooks.iter().skip(1).take_while(|outlook| is_fine(outlook)).count()
    }

    /// The clock nearest to `clock`.
    #[must_use]
    pub(super) fn nearest(&self, clock: f64) -> usize {
        self.outlooks
            .iter()
            .enumerate()
            .min_by(|a, b| (a.1.clock - clock).abs().total_cmp(&(b.1.clock - clock).abs()))
            .map_or(0, |(index, _)| index)
    }
}
