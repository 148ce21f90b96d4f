//! Does the card run at the clock that was asked for?

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::gpu::{ClockReasons, GpuReading};
use crate::units::{Clocks, Mhz, Seconds, Time};

/// A GPU that is less busy than this may have sunk between two requests: a lower clock is no evidence then.
pub(super) const BUSY_PERCENT: f64 = 30.0;
/// Readings in a row that must disagree before a clock is called failed.
const MISMATCHES: u32 = 3;

/// Compares the running clock with the one asked for, once it has had time to settle and the GPU has work.
///
/// Mismatches are counted per clock across the times it is held: a clock that is held for a second at a time still
/// adds up its evidence.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ClockVerifier {
    mismatches: BTreeMap<Clocks, u32>,
    /// Clocks that this card has run at: where one of these does not hold, it is not the clock's fault.
    held: BTreeSet<Clocks>,
}

/// What one reading says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Nothing can be said: still settling, no work, no sensor.
    Unknown,
    /// It runs at the clock asked for, give or take the tolerance.
    Holds,
    /// It is held lower by power or temperature: not the clock's fault.
    Capped,
    /// It does not follow, and nothing explains it; not seen often enough to say why.
    Off(Mhz),
    /// It never followed: the card does not have this clock.
    NotHeld(Mhz),
    /// It did, and runs at this now: somebody else changed the clocks, or the driver was reset.
    Changed(Mhz),
}

impl ClockVerifier {
    /// Has this card ever run at these clocks?
    #[must_use]
    pub fn has_held(&self, clocks: Clocks) -> bool {
        self.held.contains(&clocks)
    }

    /// Judges a reading taken at `read_at` of a clock in force since `since`.
    pub fn check(
        &mut self,
        asked: Clocks,
        since: Time,
        reading: &GpuReading,
        settle: Seconds,
        tolerance: Mhz,
        read_at: Time,
    ) -> Check {
        let Some(running) = reading.core_clock else { return Check::Unknown };
        if read_at.since(since) < settle || reading.reasons().intersects(ClockReasons::GPU_IDLE) {
            return Check::Unknown;
        }
        let memory_off = match (asked.memory, reading.memory_clock) {
            (Some(asked), Some(running)) => asked.abs_diff(running) > Mhz(MEMORY_TOLERANCE.0),
            _ => false,
        };
        if running.abs_diff(asked.core) <= tolerance && !memory_off {
            self.mismatches.remove(&asked);
            self.held.insert(asked);
            return Check::Holds;
        }
        if reading.reasons().is_capped() && running <= asked.core {
            return Check::Capped;
        }
        // A lock is a range: without work the clock sinks under it.
        let resting = reading.utilization_percent.is_some_and(|percent| percent < BUSY_PERCENT);
        if resting && running < asked.core {
            return Check::Unknown;
        }
        let count = self.mismatches.entry(asked).or_default();
        *count += 1;
        if *count < MISMATCHES {
            return Check::Off(running);
        }
        self.mismatches.remove(&asked);
        if self.held.contains(&asked) { Check::Changed(running) } else { Check::NotHeld(running) }
    }
}

/// Memory clocks come in few, widely spaced levels.
const MEMORY_TOLERANCE: Mhz = Mhz(50);

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Clocks = Clocks { core: Mhz(900), memory: None };

    fn reading(core: u32, reasons: ClockReasons) -> GpuReading {
        GpuReading { core_clock: Some(Mhz(core)), reasons: Some(reasons), ..GpuReading::default() }
    }

    fn check(verifier: &mut ClockVerifier, reading: &GpuReading, now: f64) -> Check {
        verifier.check(ASKED, Time(0.0), reading, Seconds(0.5), Mhz(30), Time(now))
    }

    #[test]
    fn settling_clock_and_idle_gpu_are_not_judged() {
        let mut verifier = ClockVerifier::default();
        assert_eq!(check(&mut verifier, &reading(1410, ClockReasons::default()), 0.4), Check::Unknown);
        assert_eq!(check(&mut verifier, &reading(210, ClockReasons::GPU_IDLE), 1.0), Check::Unknown);
        assert_eq!(check(&mut verifier, &GpuReading::default(), 1.0), Check::Unknown);
    }

    #[test]
    fn clock_held_low_by_the_power_cap_is_not_a_failed_clock() {
        let mut verifier = ClockVerifier::default();
        for _ in 0..10 {
            assert_eq!(check(&mut verifier, &reading(840, ClockReasons::SW_POWER_CAP), 1.0), Check::Capped);
        }
    }

    #[test]
    fn clock_that_never_follows_fails_at_the_third_reading() {
        let mut verifier = ClockVerifier::default();
        let off = reading(1410, ClockReasons::CLOCKS_SETTING);
        assert_eq!(check(&mut verifier, &off, 1.0), Check::Off(Mhz(1410)));
        assert_eq!(check(&mut verifier, &off, 1.3), Check::Off(Mhz(1410)));
        assert_eq!(check(&mut verifier, &off, 1.6), Check::NotHeld(Mhz(1410)));
    }

    #[test]
    fn clock_that_sinks_between_requests_is_not_judged_and_one_above_the_lock_is() {
        let mut verifier = ClockVerifier::default();
        for _ in 0..10 {
            let sunk =
                GpuReading { utilization_percent: Some(10.0), ..reading(300, ClockReasons::default()) };
            assert_eq!(check(&mut verifier, &sunk, 1.0), Check::Unknown);
        }
        let above = GpuReading { utilization_percent: Some(10.0), ..reading(1410, ClockReasons::default()) };
        assert_eq!(check(&mut verifier, &above, 1.3), Check::Off(Mhz(1410)));
    }

    #[test]
    fn one_good_reading_clears_the_count() {
        let mut verifier = ClockVerifier::default();
        let off = reading(1410, ClockReasons::default());
        check(&mut verifier, &off, 1.0);
        check(&mut verifier, &off, 1.3);
        assert_eq!(check(&mut verifier, &reading(885, ClockReasons::default()), 1.6), Check::Holds);
        assert_eq!(check(&mut verifier, &off, 1.9), Check::Off(Mhz(1410)));
    }

    #[test]
    fn clock_that_held_and_does_not_any_more_was_changed_by_somebody_else() {
        let mut verifier = ClockVerifier::default();
        assert_eq!(check(&mut verifier, &reading(900, ClockReasons::default()), 1.0), Check::Holds);
        let off = reading(600, ClockReasons::CLOCKS_SETTING);
        assert_eq!(check(&mut verifier, &off, 1.3), Check::Off(Mhz(600)));
        assert_eq!(check(&mut verifier, &off, 1.6), Check::Off(Mhz(600)));
        assert_eq!(check(&mut verifier, &off, 1.9), Check::Changed(Mhz(600)));
    }
}
