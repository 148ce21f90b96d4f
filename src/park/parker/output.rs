//! What a parker wants done, and what it has to tell.

use crate::park::levers::Order;
use crate::park::source::WakeSource;
use crate::park::wake::Running;
use crate::units::{Clocks, Seconds, Target};

/// What shall be done with the clocks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Command {
    /// Parked: run at this. In a trial that may be the driver's clocks.
    Park(Target),
    /// Not parked any more.
    Wake,
}

/// Something worth telling.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Parked at these clocks after so long without work.
    Parked(Clocks, Seconds),
    /// Parked at these clocks for heat, degrees Celsius.
    TooHot(Clocks, f64),
    /// Cool again, and idle: stays parked.
    Cooled,
    /// Work is back, after so long parked.
    Woken(WakeSource, Seconds),
    /// The running clocks have left the parked ones, so long after a wake.
    ClocksBack(Seconds, Running),
    /// Work runs at the parked clocks though they were given back.
    ClocksStuck(Running),
    /// Giving them back again and again did not help.
    GivenUp,
    /// A trial changes the clocks.
    Trial(Order),
    /// What each clock knob saves is known now.
    Measured,
    /// Neither energy nor power can be read: no trial.
    NotMeasurable,
}

/// What a sample leads to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Output {
    /// What to do with the clocks; `None` leaves them.
    pub command: Option<Command>,
    /// They have to be given back once more.
    pub(crate) reset_again: bool,
    /// What happened.
    pub events: Vec<Event>,
}

/// What became of a way to park that the driver refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It was none of ours.
    NotOurs,
    /// There are other ways: parked GPUs are to run at [`Parker::target`](super::Parker::target).
    OthersLeft,
    /// There is no other way.
    NoneLeft,
}
