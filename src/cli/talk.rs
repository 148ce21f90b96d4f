//! A talk with the agfts that run on this machine.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agft_common::instances::socket_pid;
use clap::Args;

use super::{Cli, Exit, load_config};
use crate::config::Config;
use crate::export::protocol::{Answer, Request};
use crate::export::socket::sockets;
use crate::guardian::undo::runtime_dir;
use crate::text;
use crate::view::{History, HostState, State};

/// Longest answer: a state with every clock of a card is some ten kilobytes.
const MAX_ANSWER: u64 = 8 << 20;
/// An answer comes within this.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// Which of several agfts, and of their servers, is meant.
#[derive(Debug, Args)]
pub struct Which {
    /// Process id of the agft that is meant, if several run
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,

    /// Name of the server that is meant, if it has several
    #[arg(long, value_name = "NAME")]
    pub server: Option<String>,
}

/// Why an agft could not be talked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TalkError {
    #[error("no agft runs here (no socket answers in {})", .dir.display())]
    Nobody { dir: PathBuf },
    #[error("several agfts run here: say which with --pid ({})", .pids.join(", "))]
    Several { pids: Vec<String> },
    #[error("{}: not permitted; run this as root, as agft's user, or as a member of the socket's group", .0.display())]
    NotPermitted(PathBuf),
    #[error("{}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: what answers there is no agft of this version ({why})", .path.display())]
    Nonsense { path: PathBuf, why: String },
    #[error("several servers run here: say which with --server ({})", .names.join(", "))]
    Servers { names: Vec<String> },
    #[error("agft park (pid {pid}) has none of this; see `agft status --pid {pid}`")]
    Parks { pid: u32 },
    #[error("{0}")]
    Refused(String),
}

/// An open talk with one agft.
pub(super) struct Talk {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Talk {
    fn open(path: &Path) -> Result<Option<Self>, TalkError> {
        let stream = match UnixStream::connect(path) {
            Ok(stream) => stream,
            // Of the dead, or gone since the directory was read.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) =>
            {
                return Ok(None);
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(TalkError::NotPermitted(path.to_owned()));
            }
            Err(source) => return Err(TalkError::Io { path: path.to_owned(), source }),
        };
        let times =
            stream.set_read_timeout(Some(ANSWER_TIME)).and(stream.set_write_timeout(Some(ANSWER_TIME)));
        times.map_err(|source| TalkError::Io { path: path.to_owned(), source })?;
        Ok(Some(Self { path: path.to_owned(), stream: BufReader::new(stream) }))
    }

    /// Process id of the agft, by the name of its socket.
    pub(super) fn pid(&self) -> Option<String> {
        self.path.file_stem()?.to_str()?.strip_prefix("agft-").map(str::to_owned)
    }

    fn io(&self, source: io::Error) -> TalkError {
        TalkError::Io { path: self.path.clone(), source }
    }

    pub(super) fn say(&mut self, request: &Request) -> Result<(), TalkError> {
        let line = serde_json::to_string(request).map_err(|error| self.io(error.into()))?;
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes()).map_err(|error| self.io(error))
    }

    /// The next answer; `None` at the end of the talk.
    fn answer(&mut self) -> Result<Option<Answer>, TalkError> {
        let mut line = String::new();
        let read = (&mut self.stream).take(MAX_ANSWER).read_line(&mut line);
        if read.map_err(|error| self.io(error))? == 0 {
            return Ok(None);
        }
        match text::from_json(&line) {
            Ok(Answer::Error { error, .. }) => Err(TalkError::Refused(error)),
            Ok(answer) => Ok(Some(answer)),
            Err(error) => Err(self.nonsense(error.to_string())),
        }
    }

    fn nonsense(&self, why: String) -> TalkError {
        TalkError::Nonsense { path: self.path.clone(), why }
    }

    /// The next state; `None` at the end of the talk.
    pub(super) fn hear(&mut self) -> Result<Option<HostState>, TalkError> {
        match self.answer()? {
            None => Ok(None),
            Some(Answer::State { state, .. }) => Ok(Some(*state)),
            Some(_) => Err(self.nonsense("a history, though it was not asked for one".into())),
        }
    }

    /// The last minutes of a server.
    pub(super) fn history(&mut self, server: &str) -> Result<History, TalkError> {
        self.say(&Request::History { server: Some(server.to_owned()) })?;
        match self.answer()? {
            None => Err(TalkError::Refused("agft ended before it answered".into())),
            Some(Answer::History { history, .. }) => Ok(history),
            Some(_) => Err(self.nonsense("a state, though it was asked for its history".into())),
        }
    }

    pub(super) fn ask(&mut self, request: &Request) -> Result<HostState, TalkError> {
        self.say(request)?;
        let end = || TalkError::Refused("agft ended before it answered".into());
        self.hear()?.ok_or_else(end)
    }

    /// The state of the server that is meant, or of the only one.
    pub(super) fn ask_server(&mut self, which: &Which) -> Result<State, TalkError> {
        let mut host = self.ask(&Request::Status { server: which.server.clone() })?;
        match (host.servers.pop(), host.servers.is_empty()) {
            (Some(state), true) => Ok(state),
            (None, _) => Err(TalkError::Parks { pid: host.pid }),
            (Some(last), false) => {
                let names = host.servers.into_iter().chain([last]).map(|state| state.name);
                Err(TalkError::Servers { names: names.collect() })
            }
        }
    }
}

/// The agfts that run, or the one that is meant.
pub(super) fn talks(dir: &Path, which: &Which) -> Result<Vec<Talk>, TalkError> {
    let meant = |path: &PathBuf| which.pid.is_none_or(|pid| socket_pid(path) == Some(pid));
    let mut open = Vec::new();
    for path in sockets(dir).iter().filter(|path| meant(path)) {
        open.extend(Talk::open(path)?);
    }
    if open.len() > 1
        && let Some(server) = &which.server
    {
        // Those that have it; if none has, what they say of it.
        let status = Request::Status { server: Some(server.clone()) };
        keep(&mut open, |talk| talk.ask(&status).is_ok());
    }
    if open.is_empty() { Err(TalkError::Nobody { dir: dir.to_owned() }) } else { Ok(open) }
}

/// The one agft that runs, or that is meant.
pub(super) fn talk(dir: &Path, which: &Which) -> Result<Talk, TalkError> {
    only(talks(dir, which)?)
}

/// The one agft that serves a server, or that is meant: one that only parks GPUs is passed over.
pub(super) fn run_talk(dir: &Path, which: &Which) -> Result<Talk, TalkError> {
    let mut open = talks(dir, which)?;
    let status = Request::Status { server: None };
    keep(&mut open, |talk| talk.ask(&status).is_ok_and(|host| !host.servers.is_empty()));
    only(open)
}

/// Of several, keeps those that are wanted, unless none is.
fn keep(open: &mut Vec<Talk>, wanted: impl Fn(&mut Talk) -> bool) {
    if open.len() > 1 {
        let mut are_wanted: Vec<bool> = open.iter_mut().map(wanted).collect();
        if are_wanted.contains(&true) {
            are_wanted.reverse();
            open.retain(|_| are_wanted.pop().unwrap_or(false));
        }
    }
}

fn only(mut open: Vec<Talk>) -> Result<Talk, TalkError> {
    match (open.pop(), open.is_empty()) {
        (Some(talk), true) => Ok(talk),
        (last, _) => {
            Err(TalkError::Several { pids: open.iter().chain(last.iter()).filter_map(Talk::pid).collect() })
        }
    }
}

/// Where the agfts of this configuration listen; without a configuration, where they do by default.
pub(super) fn socket_dir(cli: &Cli) -> Result<PathBuf, Exit> {
    let config = if cli.config.exists() { load_config(cli)? } else { Config::default() };
    Ok(runtime_dir(&config))
}

/// Says why there was no talk, and what that makes of the program's end.
pub(super) fn fail(error: &TalkError) -> Exit {
    complain!("agft: {error}");
    match error {
        TalkError::NotPermitted(_) => Exit::NotPermitted,
        _ => Exit::Failure,
    }
}
