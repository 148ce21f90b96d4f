//! `agft serve`: inference servers as configuration.
//!
//! An instance is one server process with what belongs to it. Files describe instances ([`spec`]). The supervisor starts
//! and watches them ([`supervise`]). It has no right to lock clocks: the daemon, another process, does that.

pub mod process;
pub mod spec;
pub mod supervise;
