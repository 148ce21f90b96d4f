//! How long things take when levers are tried out.

use crate::units::Seconds;

/// A gap has to have lasted so long before anything is tried out in it.
pub(crate) const TRIAL_AFTER: Seconds = Seconds(1.5);

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct TrialTimes {
    /// A gap has to have lasted so long before anything is tried out in it.
    pub after: Seconds,
    /// Clocks and power have settled so long after a change.
    pub settle: Seconds,
    /// Power is measured for so long.
    pub measure: Seconds,
}

impl Default for TrialTimes {
    fn default() -> Self {
        Self { after: TRIAL_AFTER, settle: Seconds(1.0), measure: Seconds(5.0) }
    }
}

impl TrialTimes {
    /// The same in a fraction of the time: tests wait for real clocks.
    #[must_use]
    pub(crate) fn faster(self, times: f64) -> Self {
        let part = |span: Seconds| Seconds(span.0 / times);
        Self { after: part(self.after), settle: part(self.settle), measure: part(self.measure) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faster_trial_has_all_its_times_divided() {
        let (times, faster) = (TrialTimes::default(), TrialTimes::default().faster(4.0));
        for (time, faster) in
            [(times.after, faster.after), (times.settle, faster.settle), (times.measure, faster.measure)]
        {
            approx::assert_relative_eq!(faster.0, time.0 / 4.0);
        }
    }
}
