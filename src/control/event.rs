//! What a step has to say, as data: the shell turns it into log lines, tests compare it.

use crate::gpu::ClockReasons;
use crate::metrics::health;
use crate::park::levers::LeverBook;
use crate::park::source::WakeSource;
use crate::reward::floor::Cause;
use crate::reward::slo::Violation;
use crate::units::{Clocks, Mhz, Seconds, Target};

/// Something worth telling.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The endpoint's state changed.
    Health(health::Event),
    /// The engine restarted or its counters cannot be compared: the window is void.
    Discontinuity(String),
    /// Values on the page were refused.
    Refused(Vec<String>),
    /// The page says that requests run, and for long nothing happened: that is not taken for work any more.
    StaleGauges {
        /// Requests that it says run.
        running: f64,
        /// Requests that it says wait.
        waiting: f64,
    },
    /// The first baseline is complete.
    BaselineDone {
        /// Windows it took.
        windows: u64,
    },
    /// A latency limit is broken; the clocks go up.
    LimitBroken {
        /// Which, and by how much.
        violation: Violation,
        /// What ran.
        running: Target,
        /// The floor from now on.
        floor: Option<Mhz>,
        /// What breaks it, as far as is known.
        cause: Cause,
    },
    /// Driver-default clocks break the limit for a whole window as well: no clock can keep it under this load.
    LimitOutOfReach {
        /// Which, and by how much.
        violation: Violation,
    },
    /// The limit is kept again.
    LimitKept,
    /// An operator paused the loop.
    Paused,
    /// An operator had it go on.
    Resumed,
    /// No work: the idle clock is asked for.
    Parked {
        /// The idle clock.
        clocks: Clocks,
    },
    /// Too hot (`idle.temperature_high_c`): the clocks go down, work or not.
    TooHot {
        /// Those of idleness.
        clocks: Clocks,
        /// Of the hottest GPU, degrees Celsius.
        temperature_c: f64,
    },
    /// Cool again, and idle: the clocks stay down.
    Cooled,
    /// What each lever of a parked GPU saves is known now.
    LeversMeasured(Box<LeverBook>),
    /// Work is back.
    Woken {
        /// What showed it.
        by: WakeSource,
        /// Time spent parked.
        parked: Seconds,
    },
    /// The card does not run at the clock asked for, and nothing explains it.
    ClockNotHeld {
        /// What was asked.
        asked: Clocks,
        /// What runs.
        running: Mhz,
        /// GPU, as its place in the group.
        member: usize,
    },
    /// A clock that held does not hold any more: somebody else changed it, or the driver was reset. The
    /// clocks are given back for a while.
    ClocksChanged {
        /// What was asked.
        asked: Clocks,
        /// What runs.
        running: Mhz,
        /// GPU, as its place in the group.
        member: usize,
        /// How often this was seen of late.
        times: usize,
        /// For how long no clock is touched.
        hands_off: Seconds,
    },
    /// Awake and at work, a GPU still runs at the idle clock: it is reset once more.
    StuckAtIdleClock {
        /// What runs.
        running: Mhz,
        /// GPU, as its place in the group.
        member: usize,
    },
    /// Under load a GPU runs far below what is asked of it, or below its default clocks, whatever is asked.
    ClockHeldLow {
        /// What runs.
        running: Mhz,
        /// What was to be expected.
        expected: Mhz,
        /// What the driver says of it.
        reasons: ClockReasons,
        /// GPU, as its place in the group.
        member: usize,
    },
    /// The driver refused a clock.
    ClockRefused {
        /// What was asked.
        target: Target,
        /// Its words.
        why: String,
    },
    /// A failed clock may be tried again.
    ArmOut {
        /// The clock.
        clocks: Clocks,
        /// For how long it stays out.
        retry_in: Seconds,
    },
    /// The policy's choices have settled.
    Converged {
        /// The clock it prefers.
        best: Option<Clocks>,
        /// Training samples it took.
        rounds: u64,
    },
    /// The policy is unsure again, and has been for as long as settling takes.
    Unsettled {
        /// Training samples learned so far.
        rounds: u64,
    },
}
