//! From a configuration to the groups that run: GPUs and pages are opened, clocks taken, threads started.
//!
//! `guarded` takes the GPUs for this process, [`group`] opens the group of a server and `park` those of GPUs without
//! one, `join` makes one group of servers that share GPUs, `auto` finds what the configuration leaves to be found.

pub(crate) mod auto;
pub mod group;
pub(crate) mod guarded;
pub(crate) mod join;
pub(crate) mod park;
