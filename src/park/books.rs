//! What parking came to, for one GPU or for GPUs that are parked together.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::power::SpellPower;
use crate::stats::{Durations, quantile_975};
use crate::units::{Joules, Seconds, Watts};

/// Fewer spells, of either kind, give no interval.
pub(crate) const FEWEST_SPELLS: u64 = 3;

/// Sums since the books were begun.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Books {
    /// Time parked, seconds.
    pub parked_s: f64,
    /// Times parked.
    pub spells: u64,
    /// Wakes by the name of what showed the work.
    pub wakes: BTreeMap<String, u64>,
    /// From the decision to wake until the running clocks were seen to be back.
    pub(crate) wake_latency: Durations,
    /// Wakes that took longer than they may.
    pub(crate) late_wakes: u64,
    /// Work found at parked clocks: by a lesser source than the one that should have told of it, or after a wake that did
    /// not bring the clocks back.
    pub missed_wakes: u64,
    /// Times parked for heat.
    pub(crate) hot_spells: u64,
    /// Time parked for heat, seconds: not part of `parked_s`.
    pub(crate) hot_s: f64,
    /// Calls of the driver for sensors.
    pub calls: u64,
    /// Of these, calls while parked.
    pub(crate) calls_parked: u64,
    /// Parked spells that are over: seconds as weight.
    parked: SpellPower,
    /// Quiet spells that are over: each counts once.
    quiet: SpellPower,
    /// The parked spell under way: measured seconds, joules.
    open_parked: (f64, f64),
    /// The quiet spell under way: samples, sum of watts.
    open_quiet: (f64, f64),
}

/// A difference in energy with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Estimate {
    /// The estimate.
    pub joules: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

impl Books {
    /// Clocks went down.
    pub(crate) fn parked(&mut self) {
        self.end_spell();
        self.spells += 1;
    }

    /// A part of a parked time is over; `energy` is what the board used in it, where that can be measured.
    pub(crate) fn parked_span(&mut self, span: Seconds, energy: Option<Joules>) {
        self.parked_s += span.0;
        if let Some(energy) = energy {
            self.open_parked.0 += span.0;
            self.open_parked.1 += energy.0;
        }
    }

    /// Clocks were given back since `by` showed work; `missed` if something better should have told of it before.
    pub(crate) fn woken(&mut self, by: &str, missed: bool) {
        match self.wakes.get_mut(by) {
            Some(wakes) => *wakes += 1,
            None => drop(self.wakes.insert(by.to_owned(), 1)),
        }
        self.missed_wakes += u64::from(missed);
        self.end_spell();
    }

    /// The running clocks were seen to be back, for which a wake has `limit`.
    pub(crate) fn clocks_back(&mut self, took: Seconds, limit: Seconds) {
        self.wake_latency.add(took);
        self.late_wakes += u64::from(took > limit);
    }

    /// Work ran at the parked clocks though they had been given back.
    pub(crate) fn reset_again(&mut self) {
        self.missed_wakes += 1;
    }

    /// A sample of board power while quiet and not parked.
    pub(crate) fn quiet_power(&mut self, power: Watts) {
        self.open_quiet.0 += 1.0;
        self.open_quiet.1 += power.0;
    }

    /// A spell, quiet or parked, is over. Without one under way nothing happens.
    pub(crate) fn end_spell(&mut self) {
        (self.parked, self.open_parked) = (self.parked_so_far(), (0.0, 0.0));
        (self.quiet, self.open_quiet) = (self.quiet_so_far(), (0.0, 0.0));
    }

    /// With the spell under way.
    fn parked_so_far(&self) -> SpellPower {
        self.parked.with(self.open_parked.0, self.open_parked.1)
    }

    fn quiet_so_far(&self) -> SpellPower {
        self.quiet.with(f64::from(u8::from(self.open_quiet.0 > 0.0)), self.open_quiet.1 / self.open_quiet.0)
    }

    /// Mean board power of quiet spells.
    pub(crate) fn idle_power(&self) -> Option<Watts> {
        self.quiet_so_far().mean()
    }

    /// Mean board power while parked: energy over time.
    pub(crate) fn parked_power(&self) -> Option<Watts> {
        self.parked_so_far().mean()
    }

    /// Energy used while parked, as far as measured.
    pub(crate) fn parked_energy(&self) -> Option<Joules> {
        let parked = self.parked_so_far();
        (parked.spells() > 0).then(|| Joules(parked.energy()))
    }

    /// Power that parking saves.
    pub(crate) fn saving(&self) -> Option<Watts> {
        Some(Watts(self.idle_power()?.0 - self.parked_power()?.0))
    }

    /// What the measured parked time would have cost at the mean idle power, less what it did cost; without an interval.
    pub(crate) fn saved_about(&self) -> Option<Joules> {
        Some(Joules(self.saving()?.0 * self.parked_so_far().weight()))
    }

    /// The same with its 95 % interval; `None` while there are fewer than [`FEWEST_SPELLS`] of either kind, or one spell
    /// is nearly all of the time.
    pub(crate) fn saved(&self) -> Option<Estimate> {
        let (quiet, parked) = (self.quiet_so_far(), self.parked_so_far());
        let Joules(joules) = self.saved_about()?;
        let (idle, down) = (quiet.known(FEWEST_SPELLS)?, parked.known(FEWEST_SPELLS)?);
        let variance = idle.variance + down.variance;
        // Welch and Satterthwaite.
        let degrees =
            variance.powi(2) / (idle.variance.powi(2) / idle.degrees + down.variance.powi(2) / down.degrees);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "rounded down; not a number is 0"
        )]
        let half = quantile_975((degrees as u64).max(1)) * variance.sqrt() * parked.weight();
        Some(Estimate { joules, low: joules - half, high: joules + half })
    }

    /// Sensor calls a minute while parked.
    #[expect(clippy::cast_precision_loss, reason = "calls of a run are far below 2^53")]
    pub(crate) fn calls_per_parked_minute(&self) -> Option<f64> {
        (self.parked_s >= 1.0).then(|| self.calls_parked as f64 * 60.0 / self.parked_s)
    }
}

/// One line for the log; what is not known is left out.
impl fmt::Display for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "parked {:.1} s in {} spells", self.parked_s, self.spells)?;
        for (source, wakes) in &self.wakes {
            write!(f, ", {wakes} woken by {source}")?;
        }
        if self.hot_spells > 0 {
            write!(f, ", {} times too hot for {:.1} s", self.hot_spells, self.hot_s)?;
        }
        if let (Some(mean), Some(max)) = (self.wake_latency.mean(), self.wake_latency.max()) {
            write!(f, ", wake {:.2} s mean {:.2} s max", mean.0, max.0)?;
        }
        if self.late_wakes > 0 {
            write!(f, ", {} late", self.late_wakes)?;
        }
        if self.missed_wakes > 0 {
            write!(f, ", {} missed", self.missed_wakes)?;
        }
        if let Some(power) = self.idle_power() {
            write!(f, ", idle {power}")?;
        }
        if let (Some(power), Some(energy)) = (self.parked_power(), self.parked_energy()) {
            write!(f, ", parked {power}, {energy}")?;
        }
        match (self.saved(), self.saved_about()) {
            (Some(Estimate { joules, low, high }), _) => {
                write!(f, ", saved {joules:.1} J (95 %: {low:.1} to {high:.1} J)")
            }
            (None, Some(about)) => write!(f, ", saved about {about} (too few spells for an interval)"),
            (None, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quiet(books: &mut Books, watts: &[f64]) {
        watts.iter().for_each(|watts| books.quiet_power(Watts(*watts)));
    }

    fn park(books: &mut Books, seconds: f64, watts: f64) {
        books.parked();
        books.parked_span(Seconds(seconds), Some(Joules(seconds * watts)));
    }

    #[test]
    fn saving_is_idle_power_less_parked_power_over_the_measured_time() {
        let mut books = Books::default();
        assert_eq!((books.saved_about(), books.saving()), (None, None));
        quiet(&mut books, &[78.0, 82.0]);
        park(&mut books, 100.0, 50.0);
        // Nobody measured this one: it is parked time, and saves nothing that could be told.
        books.parked_span(Seconds(50.0), None);
        assert!((books.parked_s - 150.0).abs() < 1e-9);
        assert_eq!(books.saved_about(), Some(Joules((80.0 - 50.0) * 100.0)));
        assert_eq!(books.saved(), None, "one spell of each kind");
    }

    #[test]
    fn quiet_spell_counts_once_however_many_samples_it_has() {
        let mut books = Books::default();
        quiet(&mut books, &[100.0; 50]);
        books.end_spell();
        books.end_spell();
        quiet(&mut books, &[80.0]);
        assert_eq!(books.idle_power(), Some(Watts(90.0)));
    }

    #[test]
    fn interval_needs_three_spells_of_each_kind_and_counts_the_one_under_way() {
        let mut books = Books::default();
        for (watts, seconds) in [(78.0, 100.0), (80.0, 300.0), (82.0, 200.0)] {
            assert_eq!(books.saved(), None);
            quiet(&mut books, &[watts]);
            park(&mut books, seconds, 50.0);
        }
        let saved = books.saved().unwrap();
        // The parked power is the same in all: the error is that of three quiet means, standard deviation 2 W.
        let half = 4.302_653 * 2.0 / 3.0_f64.sqrt() * 600.0;
        approx::assert_relative_eq!(saved.joules, 30.0 * 600.0, max_relative = 1e-9);
        approx::assert_relative_eq!(saved.high - saved.joules, half, max_relative = 1e-5);
        approx::assert_relative_eq!(saved.joules - saved.low, half, max_relative = 1e-5);
    }

    #[test]
    fn wakes_are_counted_by_source_late_ones_by_the_limit_and_missed_ones_apart() {
        let mut books = Books::default();
        for (source, missed, took) in
            [("connections", false, 0.02), ("utilization", true, 1.4), ("page", false, 1.0)]
        {
            books.parked();
            books.woken(source, missed);
            books.clocks_back(Seconds(took), Seconds(1.0));
        }
        books.reset_again();
        let wakes: Vec<_> = books.wakes.iter().map(|(by, wakes)| (by.as_str(), *wakes)).collect();
        assert_eq!(wakes, [("connections", 1), ("page", 1), ("utilization", 1)]);
        assert_eq!(
            (books.spells, books.late_wakes, books.missed_wakes, books.wake_latency.count),
            (3, 1, 2, 3)
        );
    }

    #[test]
    fn line_has_every_sum_that_is_known() {
        let mut books = Books::default();
        assert_eq!(books.to_string(), "parked 0.0 s in 0 spells");
        quiet(&mut books, &[80.0]);
        park(&mut books, 10.0, 50.0);
        books.woken("connections", false);
        books.clocks_back(Seconds(0.25), Seconds(1.0));
        assert_eq!(
            books.to_string(),
            "parked 10.0 s in 1 spells, 1 woken by connections, wake 0.25 s mean 0.25 s max, idle 80.0 W, parked \
             50.0 W, 500.0 J, saved about 300.0 J (too few spells for an interval)"
        );
        for _ in 0..2 {
            quiet(&mut books, &[80.0]);
            park(&mut books, 10.0, 50.0);
        }
        assert!(books.to_string().ends_with("saved 900.0 J (95 %: 900.0 to 900.0 J)"), "{books}");
    }

    #[test]
    fn books_are_the_same_after_they_were_written_and_read() {
        let mut books = Books::default();
        quiet(&mut books, &[80.0, 81.0]);
        park(&mut books, 10.0, 50.0);
        books.woken("connections", true);
        books.clocks_back(Seconds(7.0), Seconds(1.0));
        quiet(&mut books, &[80.3]);
        let text = serde_json::to_string(&books).unwrap();
        assert_eq!(serde_json::from_str::<Books>(&text).unwrap(), books);
        assert_eq!(serde_json::from_str::<Books>("{}").unwrap(), Books::default());
    }
}
