//! Parking of GPUs that nobody uses, without an engine to ask: when to park, when to wake, what it saved.
//!
//! ```text
//!             work                    work                          work
//!        +------------+         +---------------+            +----------------+
//!        v            |         v               |            v                |
//!     Serving --all sources quiet--> Quiet --waited long enough--> Parked ----+
//!        |                        |                               ^ |
//!        +------- too hot --------+---> Hot ----cool, no work-----+ |
//!                                       ^ ----cool, work--> Serving |
//!                                       +--------- too hot ---------+
//! ```
//!
//! Everything here is pure: observations and times come in, decisions and sums go out. [`gap`] is the state
//! machine; `rule` is who tells of work, and the protection against heat; `source` names who tells of work, [`instances`] is what supervisors say,
//! `ski` says how long an idle gap is waited out, [`wake`] judges whether the clocks are back, [`levers`] which clocks are lowered, `price`
//! what a wake costs, `fans` decides on the fans of the machine, `books` keeps the sums (`power` of
//! spells).

pub(crate) mod books;
pub(crate) mod callers;
pub(crate) mod fans;
mod first_tokens;
pub mod gap;
pub mod instances;
pub mod levers;
pub mod parker;
pub(crate) mod power;
pub(crate) mod price;
pub(crate) mod rule;
pub mod sample;
pub mod settings;
pub(crate) mod ski;
pub(crate) mod source;
pub(crate) mod trial;
pub mod wake;

#[cfg(test)]
mod laws;

pub use parker::Parker;
pub use rule::State;
pub use sample::Sample;
pub use settings::Settings;
