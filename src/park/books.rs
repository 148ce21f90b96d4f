//! What parking came to, for one GPU.

use std::collections::BTreeMap;
use std::fmt;

use super::source::WakeSource;
use crate::units::{Joules, Seconds, Watts};

/// Sums since the start of the run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Books {
    /// Time parked, seconds.
    pub parked: f64,
    /// Times parked.
    pub parks: u64,
    /// Wakes by the name of their source.
    pub wakes: BTreeMap<&'static str, u64>,
    /// Times parked for heat.
    pub hot: u64,
    /// Time parked for heat, seconds: not part of `parked`.
    pub hot_time: f64,
    /// Wakes after which the clocks had to be reset once more.
    pub late_wakes: u64,
    /// Time from the decision to wake until the running clocks were seen to be back.
    pub latency: Latency,
    /// Calls of the driver by this run.
    pub calls: u64,
    /// Of these, calls while parked.
    pub calls_parked: u64,
    measured_parked: f64,
    parked_energy: f64,
    quiet_power: (f64, u64),
}

/// Mean and maximum of wake latencies.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Latency {
    count: u64,
    sum: f64,
    max: f64,
}

impl Latency {
    fn add(&mut self, took: Seconds) {
        self.count += 1;
        self.sum += took.0;
        self.max = self.max.max(took.0);
    }

    /// Mean, if there was any.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "wakes of a run are far below 2^53")]
    pub fn mean(&self) -> Option<Seconds> {
        (self.count > 0).then(|| Seconds(self.sum / self.count as f64))
    }

    /// The longest, if there was any.
    #[must_use]
    pub fn max(&self) -> Option<Seconds> {
        (self.count > 0).then_some(Seconds(self.max))
    }
}

impl Books {
    /// Clocks went down.
    pub fn parked(&mut self) {
        self.parks += 1;
    }

    /// A part of a parked time is over; `energy` is what the board used in it, where that can be measured.
    pub fn parked_span(&mut self, span: Seconds, energy: Option<Joules>) {
        self.parked += span.0;
        if let Some(energy) = energy {
            self.measured_parked += span.0;
            self.parked_energy += energy.0;
        }
    }

    /// Clocks came back.
    pub fn woken(&mut self, by: &WakeSource) {
        *self.wakes.entry(by.name()).or_default() += 1;
    }

    /// The running clocks were seen to be back.
    pub fn clocks_back(&mut self, took: Seconds) {
        self.latency.add(took);
    }

    /// Board power while quiet and not parked.
    pub fn quiet_power(&mut self, power: Watts) {
        self.quiet_power.0 += power.0;
        self.quiet_power.1 += 1;
    }

    /// Mean board power while quiet and not parked.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "samples of a run are far below 2^53")]
    pub fn idle_power(&self) -> Option<Watts> {
        (self.quiet_power.1 > 0).then(|| Watts(self.quiet_power.0 / self.quiet_power.1 as f64))
    }

    /// Mean board power while parked, from the energy counter.
    #[must_use]
    pub fn parked_power(&self) -> Option<Watts> {
        (self.measured_parked > 0.0).then(|| Watts(self.parked_energy / self.measured_parked))
    }

    /// Energy used while parked, as far as measured.
    #[must_use]
    pub fn parked_energy(&self) -> Option<Joules> {
        (self.measured_parked > 0.0).then_some(Joules(self.parked_energy))
    }

    /// Power that parking saves.
    #[must_use]
    pub fn saving(&self) -> Option<Watts> {
        Some(Watts(self.idle_power()?.0 - self.parked_power()?.0))
    }

    /// Estimate of the energy saved: what the measured parked time would have cost at the mean idle power, less what it
    /// did cost. Negative where parking cost more.
    #[must_use]
    pub fn saved(&self) -> Option<Joules> {
        Some(Joules(self.saving()?.0 * self.measured_parked))
    }
}

/// One line for the log; what is not known is left out.
impl fmt::Display for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "parked {:.1} s in {} spells", self.parked, self.parks)?;
        for (source, wakes) in &self.wakes {
            write!(f, ", {wakes} woken by {source}")?;
        }
        if self.hot > 0 {
            write!(f, ", {} times too hot for {:.1} s", self.hot, self.hot_time)?;
        }
        if let (Some(mean), Some(max)) = (self.latency.mean(), self.latency.max()) {
            write!(f, ", wake {:.2} s mean {:.2} s max", mean.0, max.0)?;
        }
        if self.late_wakes > 0 {
            write!(f, ", {} late", self.late_wakes)?;
        }
        if let Some(power) = self.idle_power() {
            write!(f, ", idle {power}")?;
        }
        if let (Some(power), Some(energy)) = (self.parked_power(), self.parked_energy()) {
            write!(f, ", parked {power}, {energy}")?;
        }
        if let Some(saved) = self.saved() {
            write!(f, ", saved about {saved}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saving_is_idle_power_less_parked_power_over_the_measured_time() {
        let mut books = Books::default();
        assert_eq!((books.saved(), books.saving()), (None, None));
        books.quiet_power(Watts(78.0));
        books.quiet_power(Watts(82.0));
        books.parked();
        books.parked_span(Seconds(100.0), Some(Joules(5000.0)));
        // Nobody measured this one: it is parked time, and saves nothing that could be told.
        books.parked_span(Seconds(50.0), None);
        assert!((books.parked - 150.0).abs() < 1e-9);
        assert_eq!(books.saved(), Some(Joules((80.0 - 50.0) * 100.0)));
    }

    #[test]
    fn line_has_every_sum_that_is_known() {
        let mut books = Books::default();
        assert_eq!(books.to_string(), "parked 0.0 s in 0 spells");
        books.parked();
        books.parked_span(Seconds(10.0), Some(Joules(500.0)));
        books.quiet_power(Watts(80.0));
        books.woken(&WakeSource::Connections { open: 2 });
        books.clocks_back(Seconds(0.25));
        assert_eq!(
            books.to_string(),
            "parked 10.0 s in 1 spells, 1 woken by connections, wake 0.25 s mean 0.25 s max, idle 80.0 W, parked \
             50.0 W, 500.0 J, saved about 300.0 J"
        );
    }
}
