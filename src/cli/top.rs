//! `agft top`: the view of a running agft, over its control socket.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use clap::Args;

use super::screen::{self, News, ScreenError, possible, show};
use super::talk::{Talk, TalkError, Which, fail, run_talk, socket_dir, talk};
use super::{Cli, Exit};
use crate::control::Order;
use crate::export::protocol::{Directed, Request};
use crate::signals::Signals;
use crate::top::Model;
use crate::units::Seconds;

/// Between tries to reach an agft that has ended: a restart takes a second or two.
const RETRY: Duration = Duration::from_secs(1);
/// Time that a view has to end by itself after a signal.
const PATIENCE: Duration = Duration::from_secs(1);

/// Options of `top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Which agft
    #[command(flatten)]
    pub which: Which,
}

/// Runs the view until the user or a signal ends it.
pub(crate) fn run(args: &TopArgs, cli: &Cli) -> Exit {
    let dir = match socket_dir(cli) {
        Ok(dir) => dir,
        Err(exit) => return exit,
    };
    if let Err(error) = possible() {
        return failed(&error);
    }
    // Whom there is nothing to show of is told so on a whole terminal.
    let status = Request::Status { server: args.which.server.clone() };
    let first = run_talk(&dir, &args.which).and_then(|mut talk| talk.ask(&status).map(|_| talk));
    let first = match first {
        Ok(talk) => talk,
        Err(error) => return fail(&error),
    };
    match view(first, dir, &args.which) {
        Ok(()) => Exit::Ok,
        Err(error) => failed(&error),
    }
}

/// Says why there is no view.
pub(super) fn failed(error: &ScreenError) -> Exit {
    complain!("agft: {error}");
    Exit::Failure
}

fn view(first: Talk, dir: PathBuf, which: &Which) -> Result<(), ScreenError> {
    let (sender, news) = channel();
    end_on_signal(sender.clone())?;
    let (follow_dir, follow_sender) = (dir.clone(), sender.clone());
    // By its process id alone: the view shows which servers there are, and waits for one that is not there.
    let followed = Which { pid: which.pid, server: None };
    spawn("agft-top-watch", move || follow(first, &follow_dir, &followed, &follow_sender))?;
    let mut model = Model::default();
    model.choose(which.server.clone());
    show(&mut model, &news, |order, model| {
        let (dir, sender) = (dir.clone(), sender.clone());
        let which = Which { pid: model.pid(), server: None };
        let told = sender.clone();
        let asked = spawn("agft-top-order", move || {
            let _ = sender.send(News::Tell(carry_out(order, &dir, &which)));
        });
        if let Err(error) = asked {
            let _ = told.send(News::Tell(format!("not asked: {error}")));
        }
    })
}

fn spawn(name: &str, what: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.into()).spawn(what).map(drop)
}

/// Has the view end on a signal. The handlers are there when this returns: no signal leaves the terminal as it is.
fn end_on_signal(news: Sender<News>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let mut signals = runtime.block_on(async { Signals::install() })?;
    spawn("agft-top-signal", move || {
        runtime.block_on(signals.wait());
        let _ = news.send(News::End);
        // The view looks at its news many times a second; one that is stuck in its terminal must not outlive the signal.
        thread::sleep(PATIENCE);
        screen::abandon();
    })
}

/// Passes on what the agft says, and when it ends waits for it or its successor; ends with the view.
fn follow(first: Talk, dir: &Path, which: &Which, news: &Sender<News>) {
    let mut next = Some(first);
    loop {
        let ended = match next.take().map_or_else(|| run_talk(dir, which), Ok) {
            Ok(talk) => listen(talk, news),
            Err(error) => Err(error),
        };
        let why = match ended {
            Ok(true) => "agft has ended".into(),
            Ok(false) => return,
            Err(error) => error.to_string(),
        };
        if news.send(News::Lost(why)).is_err() {
            return;
        }
        thread::sleep(RETRY);
    }
}

/// Passes on one talk to its end; `false` if nobody hears it any more.
fn listen(mut talk: Talk, news: &Sender<News>) -> Result<bool, TalkError> {
    // The state first: it says whose histories there are.
    let host = talk.ask(&Request::Status { server: None })?;
    let names: Vec<String> = host.servers.iter().map(|state| state.name.clone()).collect();
    if news.send(News::Host(Box::new(host))).is_err() {
        return Ok(false);
    }
    for name in names {
        let history = talk.history(&name)?;
        if news.send(News::History(name, history)).is_err() {
            return Ok(false);
        }
    }
    talk.say(&Request::Watch { every_s: Seconds(1.0), server: None })?;
    while let Some(host) = talk.hear()? {
        if news.send(News::Host(Box::new(host))).is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn carry_out(directed: Directed, dir: &Path, which: &Which) -> String {
    let done = match directed.order {
        Order::Pause => "paused: default clocks, nothing learned; p resumes",
        Order::Resume => "resumed",
    };
    let request = Request::order(directed);
    match talk(dir, which).and_then(|mut talk| talk.ask(&request)) {
        Ok(_) => done.into(),
        Err(error) => format!("not done: {error}"),
    }
}
