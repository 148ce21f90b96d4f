//! agft: scrape -> features -> reward -> policy -> clocks -> store, once per decision interval.
//!
//! ```text
//!            every tick (0.3 s)                                  only here clocks are written
//!  engine --scrape--> metrics --> features --> bandit --> control --> gpu::lease --> NVML
//!  (HTTP)             window      7-dim x      arms,       pure       reset at start,
//!                     deltas      z-scores     LinUCB      step()     on every way out
//!                        |                        ^           |
//!  NVML  --energy--------+------> reward (EDP vs baseline) ---+--> store (model, metadata, journal)
//! ```
//!
//! The middle (`features`, `reward`, `bandit`, `holdout`, `control`, `park`) is pure: no clock, no file, no socket, no thread. The shells
//! around it (`metrics::scrape`, `gpu`, `store`, `daemon`, `cli`) do the I/O. The daemon, the demo and the tests drive
//! the very same [`control`] step.

// `println!` panics where nobody reads any more (see cli/say.rs).
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

mod seldom;
pub mod stats;
pub mod text;
pub mod units;

pub mod compose;
pub mod config;

pub mod engine;
pub mod metrics;

pub mod park;

pub mod bandit;
pub mod control;
pub mod features;
pub mod holdout;
pub mod reward;

pub mod connections;
pub mod discover;
pub mod faults;
pub mod gpu;

pub mod store;

pub mod export;
pub mod replay;
mod report;
pub mod top;
pub mod view;

pub mod daemon;
pub mod guardian;
pub mod open;
pub mod signals;

pub mod cli;
