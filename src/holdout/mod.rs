//! Proof of savings by experiment: a switchback holdout.
//!
//! Time is cut into slots of equal length, so many to a cycle; in each cycle one slot, drawn at random, runs
//! at driver-default clocks. Every slot of a cycle has the same chance, so what differs between control and
//! treatment slots beyond chance is agft's doing: [`schedule`] draws, [`experiment`] says when it begins and
//! how long cycles are, [`cycle`] sums, [`contrast`] compares, [`savings`] keeps the books. All pure.

pub mod contrast;
pub mod cycle;
pub mod experiment;
pub mod savings;
pub mod schedule;

#[cfg(test)]
mod tests;

pub use contrast::Change;
pub use cycle::SlotWindow;
pub use experiment::Experiment;
pub use savings::{DaySavings, Effect, Savings, SavingsState};
pub use schedule::{Cycle, HoldoutSettings, InSlot};
