//! `agft demo` and `agft simulate`. Their options are defined with the rest of the command line, in `agft::cli`.

pub mod demo;
pub mod simulate;
mod tui;

use std::process::ExitCode;

use agft::cli::{Cli, Command, parse};
use clap::CommandFactory;
use clap::error::ErrorKind;

/// Runs the one of the two that the command line asks for.
#[must_use]
pub fn main() -> ExitCode {
    let cli = parse();
    match &cli.command {
        Some(Command::Demo(args)) => demo::run(args, &cli).into(),
        Some(Command::Simulate(args)) => simulate::run(args, &cli).into(),
        _ => Cli::command()
            .error(ErrorKind::InvalidSubcommand, "agft-lab has `demo` and `simulate`; the rest is agft's")
            .exit(),
    }
}
