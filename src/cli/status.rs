//! `agft status`, `agft pause`, `agft resume`.

use std::io::{self, Write};
use std::path::Path;

use clap::Args;

use super::talk::{TalkError, Which, fail, socket_dir, talk, talks};
use super::{Cli, Exit, describe};
use crate::control::Order;
use crate::export::protocol::{Directed, Request};
use crate::units::Seconds;
use crate::view::HostState;

/// Options of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print the state as JSON, one line each
    #[arg(long)]
    pub json: bool,

    /// Go on every second until interrupted
    #[arg(long)]
    pub watch: bool,

    /// Which agft
    #[command(flatten)]
    pub which: Which,
}

/// `agft status`.
pub(crate) fn status(args: &StatusArgs, cli: &Cli) -> Exit {
    let dir = match socket_dir(cli) {
        Ok(dir) => dir,
        Err(exit) => return exit,
    };
    match if args.watch { watch(&dir, args) } else { once(&dir, args) } {
        Ok(()) => Exit::Ok,
        Err(error) => fail(&error),
    }
}

fn once(dir: &Path, args: &StatusArgs) -> Result<(), TalkError> {
    let request = Request::Status { server: args.which.server.clone() };
    let hosts =
        talks(dir, &args.which)?.iter_mut().map(|talk| talk.ask(&request)).collect::<Result<Vec<_>, _>>()?;
    let shown: Vec<String> = hosts.iter().map(|host| shown(host, args.json)).collect();
    super::say::print(&shown.join(if args.json { "" } else { "\n" }));
    Ok(())
}

fn watch(dir: &Path, args: &StatusArgs) -> Result<(), TalkError> {
    let mut talk = talk(dir, &args.which)?;
    talk.say(&Request::Watch { every_s: Seconds(1.0), server: args.which.server.clone() })?;
    while let Some(host) = talk.hear()? {
        let clear = if args.json { "" } else { "\x1b[H\x1b[2J" };
        // A reader that is gone (`| head`) is the end, not an error.
        if write!(io::stdout(), "{clear}").is_err() || !super::say::print(&shown(&host, args.json)) {
            return Ok(());
        }
    }
    Ok(())
}

/// `agft pause` and `agft resume`.
pub(crate) fn order(order: Order, which: &Which, cli: &Cli) -> Exit {
    let request = Request::order(Directed { server: which.server.clone(), order });
    let dir = match socket_dir(cli) {
        Ok(dir) => dir,
        Err(exit) => return exit,
    };
    match talk(&dir, which).and_then(|mut talk| talk.ask(&request)) {
        Ok(host) => {
            super::say::print(&describe::after_order(&host));
            Exit::Ok
        }
        Err(error) => fail(&error),
    }
}

fn shown(host: &HostState, json: bool) -> String {
    if json { serde_json::to_string(host).unwrap_or_default() + "\n" } else { describe::host(host) }
}
