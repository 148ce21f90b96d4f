//! The fans of the machine: off when every GPU has been parked for long, on before that.

use crate::units::{Seconds, Time};

/// What is to be done about the fans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FanCommand {
    On,
    Off,
}

/// Decides on the fans. At first they are as the machine has them, which counts as on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct FanRule {
    off_after: Seconds,
    parked_since: Option<Time>,
    off: bool,
}

impl FanRule {
    /// Off after all GPUs have been parked for so long.
    pub(crate) fn new(off_after: Seconds) -> Self {
        Self { off_after, parked_since: None, off: false }
    }

    /// `quiet`: every GPU is parked, and none of them for heat. Says what has to change.
    pub(crate) fn step(&mut self, quiet: bool, now: Time) -> Option<FanCommand> {
        if !quiet {
            self.parked_since = None;
            return std::mem::take(&mut self.off).then_some(FanCommand::On);
        }
        let since = *self.parked_since.get_or_insert(now);
        let due = !self.off && now.since(since) >= self.off_after;
        self.off |= due;
        due.then_some(FanCommand::Off)
    }

    /// The run ends: whoever switched them off switches them on.
    pub(crate) fn end(&mut self) -> Option<FanCommand> {
        std::mem::take(&mut self.off).then_some(FanCommand::On)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fans_go_off_once_after_the_whole_time_and_on_at_the_first_sign() {
        let mut rule = FanRule::new(Seconds(900.0));
        assert_eq!(rule.step(true, Time(0.0)), None);
        assert_eq!(rule.step(true, Time(899.0)), None);
        assert_eq!(rule.step(false, Time(899.5)), None);
        assert_eq!(rule.step(true, Time(900.0)), None);
        assert_eq!(rule.step(true, Time(1800.0)), Some(FanCommand::Off));
        assert_eq!(rule.step(true, Time(5000.0)), None);
        assert_eq!(rule.step(false, Time(5001.0)), Some(FanCommand::On));
        assert_eq!((rule.step(false, Time(5002.0)), rule.end()), (None, None));
    }

    #[test]
    fn run_that_ends_with_fans_off_switches_them_on() {
        let mut rule = FanRule::new(Seconds(0.0));
        assert_eq!(rule.step(true, Time(0.0)), Some(FanCommand::Off));
        assert_eq!((rule.end(), rule.end()), (Some(FanCommand::On), None));
    }
}
