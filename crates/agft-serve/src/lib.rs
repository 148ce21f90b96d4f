//! `agft serve`: inference servers as configuration.
//!
//! An instance is one server process with what belongs to it. Files describe instances ([`files`], [`spec`]);
//! what `apply` gave stands over them ([`catalog`]). The supervisor starts and watches them ([`supervise`]).
//! People and programs see and change them over HTTP ([`api`], [`client`]). It has no right to lock clocks:
//! the daemon, another process, does that, and is told which instances work ([`work`]).

pub mod api;
pub mod catalog;
pub mod cli;
pub mod client;
pub mod files;
pub mod fleet;
mod http;
mod ollama;
pub mod process;
pub mod run;
pub mod settings;
pub mod spec;
pub mod supervise;
mod text;
pub mod units;
pub mod work;
