//! Proof of savings by experiment: a switchback holdout.
//!
//! Time is cut into slots of equal length, so many to a cycle; in each cycle one slot, drawn at random, runs at
//! driver-default clocks. Every slot has the same chance, so what differs between held and treated slots beyond chance
//! is agft's doing: [`schedule`] draws, [`contrast`] compares, [`savings`] keeps the books. All pure.

pub mod contrast;
pub mod savings;
pub mod schedule;

#[cfg(test)]
mod tests;

pub use contrast::Change;
pub use savings::{DaySavings, Effect, Savings, SavingsState, SlotWindow};
pub use schedule::{HoldoutSettings, InSlot};
