//! Are the clocks back? A parked GPU that works is slow until somebody notices, so a wake is believed only when seen.

use serde::{Deserialize, Serialize};

use crate::units::{Mhz, Seconds, Time};

/// The running clocks must have left the parked ones within this.
pub(crate) const WITHIN: Seconds = Seconds(1.0);
/// A running clock so near to the parked one counts as parked.
const TOLERANCE: Mhz = Mhz(30);
/// Resets in a row before it is left at an alarm.
const RESETS: u32 = 5;

/// Clocks at which a GPU runs or is parked; `None` where not known, or not ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Running {
    /// Core clock.
    pub core: Option<Mhz>,
    /// Memory clock.
    pub memory: Option<Mhz>,
}

/// A wake whose effect has not been seen yet.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct WakeCheck {
    parked: Running,
    woken: Time,
    reset: Time,
    resets: u32,
    idle: bool,
}

/// What a look at the clocks says about a wake.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    /// Nothing yet.
    Wait,
    /// The clocks are back, after this long.
    Back(Seconds),
    /// Down, but there is no work that would raise them: judged when there is.
    Idle,
    /// Nothing can be seen: no sensor, or nothing to tell parked clocks from others.
    NotSeen,
    /// Work runs at the parked clock: reset again, and raise an alarm.
    ResetAgain,
    /// The resets do not help.
    GiveUp,
}

impl WakeCheck {
    /// Of a GPU that was parked at these clocks until `now`. A parked clock within the tolerance of `top`, the highest,
    /// could not be told from a running one, and is not looked at.
    pub(crate) fn new(parked: Running, top: Running, now: Time) -> Self {
        let parked = told(parked, top);
        Self { parked, woken: now, reset: now, resets: 0, idle: false }
    }

    /// Does it only wait for work, so that the clocks need not be read before there is any?
    pub(crate) fn waits_for_work(&self) -> bool {
        self.idle
    }

    pub(crate) fn still_idle(&mut self, now: Time) {
        (self.woken, self.reset) = (now, now);
    }

    /// A look at the running clocks; `busy` if the GPU works, so that its clocks should be up.
    pub(crate) fn look(&mut self, running: Running, busy: bool, now: Time) -> Verdict {
        match above(running, self.parked) {
            None => return Verdict::NotSeen,
            Some(true) => return Verdict::Back(now.since(self.woken)),
            Some(false) => {}
        }
        if now.since(self.reset) < WITHIN {
            return Verdict::Wait;
        }
        if !busy {
            // Work that comes later has the whole time again.
            (self.woken, self.reset, self.idle) = (now, now, true);
            return Verdict::Idle;
        }
        self.idle = false;
        self.resets += 1;
        self.reset = now;
        if self.resets > RESETS { Verdict::GiveUp } else { Verdict::ResetAgain }
    }
}

/// Have the running clocks left the parked ones? `None` where that cannot be seen.
pub fn is_up(running: Running, parked: Running, top: Running) -> Option<bool> {
    above(running, told(parked, top))
}

/// The parked clocks that can be told from the highest.
fn told(parked: Running, top: Running) -> Running {
    let told = |parked: Option<Mhz>, top: Option<Mhz>| {
        parked.filter(|parked| top.is_some_and(|top| top.0 > parked.0 + TOLERANCE.0))
    };
    Running { core: told(parked.core, top.core), memory: told(parked.memory, top.memory) }
}

fn above(running: Running, parked: Running) -> Option<bool> {
    let up = |running: Option<Mhz>, parked: Option<Mhz>| {
        parked.map(|parked| running.map(|running| running.0 > parked.0 + TOLERANCE.0))
    };
    let mut watched =
        [up(running.core, parked.core), up(running.memory, parked.memory)].into_iter().flatten().peekable();
    watched.peek()?;
    watched.try_fold(true, |all, up| up.map(|up| all && up))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARKED: Running = Running { core: Some(Mhz(210)), memory: Some(Mhz(405)) };
    const TOP: Running = Running { core: Some(Mhz(2100)), memory: Some(Mhz(8001)) };

    fn running(core: u32, memory: u32) -> Running {
        Running { core: Some(Mhz(core)), memory: Some(Mhz(memory)) }
    }

    #[test]
    fn both_clocks_have_to_be_back() {
        let mut check = WakeCheck::new(PARKED, TOP, Time(10.0));
        assert_eq!(check.look(running(1900, 405), true, Time(10.1)), Verdict::Wait);
        assert_eq!(check.look(running(1900, 8001), true, Time(10.5)), Verdict::Back(Seconds(0.5)));
    }

    #[test]
    fn work_at_the_parked_clock_is_reset_again_each_second_and_in_the_end_given_up() {
        let mut check = WakeCheck::new(PARKED, TOP, Time(0.0));
        let mut verdicts = Vec::new();
        for tenth in 1..=65_u32 {
            let verdict = check.look(running(215, 405), true, Time(f64::from(tenth) / 10.0));
            if verdict != Verdict::Wait {
                verdicts.push((tenth, verdict));
            }
        }
        let resets = (1..=RESETS).map(|k| (10 * k, Verdict::ResetAgain));
        assert_eq!(verdicts, resets.chain([(60, Verdict::GiveUp)]).collect::<Vec<_>>());
    }

    #[test]
    fn gpu_without_work_may_stay_low_and_one_without_sensors_is_not_judged() {
        let mut check = WakeCheck::new(PARKED, TOP, Time(0.0));
        assert_eq!(check.look(running(210, 405), false, Time(50.0)), Verdict::Idle);
        assert_eq!(check.look(running(210, 405), true, Time(50.9)), Verdict::Wait);
        assert_eq!(check.look(running(2000, 8001), true, Time(51.5)), Verdict::Back(Seconds(1.5)));
        assert_eq!(check.look(Running::default(), true, Time(1.1)), Verdict::NotSeen);
        let mut one_clock = WakeCheck::new(PARKED, PARKED, Time(0.0));
        assert_eq!(one_clock.look(running(210, 405), true, Time(5.0)), Verdict::NotSeen);
    }
}
