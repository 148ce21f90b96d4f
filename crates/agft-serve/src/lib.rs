//! `agft serve`: inference servers as configuration.
//!
//! An instance is one server process with what belongs to it. Files describe instances ([`files`], [`spec`]). The
//! supervisor starts and watches them. It has no right to lock clocks: the daemon, another process, does that.

pub mod files;
pub mod spec;
mod text;
