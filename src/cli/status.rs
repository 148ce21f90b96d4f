//! `agft status`, `agft pause`, `agft resume`: a talk with the agfts that run on this machine.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::status_park::{describe_park, describe_parking};
use super::{Cli, Exit, load_config};
use crate::config::Config;
use crate::export::protocol::{Answer, Request};
use crate::export::socket::sockets;
use crate::guardian::undo::runtime_dir;
use crate::holdout::contrast::FEWEST_CYCLES;
use crate::holdout::{Change, SavingsState};
use crate::text;
use crate::units::{Mhz, Seconds};
use crate::view::{ArmStatus, History, ParkState, State, clocks_words};

/// Longest answer: a state with every clock of a card is some ten kilobytes.
const MAX_ANSWER: u64 = 8 << 20;
/// An answer comes within this.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// Which of several agfts is meant.
#[derive(Debug, Args)]
pub struct Which {
    /// Process id of the agft that is meant, if several run
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
}

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

/// Why an agft could not be talked to.
#[derive(Debug, thiserror::Error)]
pub enum TalkError {
    /// None listens.
    #[error("no agft runs here (no socket answers in {})", .dir.display())]
    Nobody {
        /// Where they would listen.
        dir: PathBuf,
    },
    /// More than one does.
    #[error("several agfts run here: say which with --pid ({})", .pids.join(", "))]
    Several {
        /// Their process ids.
        pids: Vec<String>,
    },
    /// The socket is there but does not let us in.
    #[error("{}: not permitted; run this as root, as agft's user, or as a member of the socket's group", .0.display())]
    NotPermitted(PathBuf),
    /// The talk broke off.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What came is not what an agft says.
    #[error("{}: what answers there is no agft of this version ({why})", .path.display())]
    Nonsense {
        /// The socket.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// It is not the kind of agft that was asked for.
    #[error("agft park (pid {pid}) has none of this; see `agft status --pid {pid}`")]
    Parks {
        /// Its process id.
        pid: u32,
    },
    /// The agft refused.
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

    fn io(&self, source: io::Error) -> TalkError {
        TalkError::Io { path: self.path.clone(), source }
    }

    pub(super) fn say(&mut self, request: Request) -> Result<(), TalkError> {
        let line = serde_json::to_string(&request).map_err(|error| self.io(error.into()))?;
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

    /// The next picture; `None` at the end of the talk.
    fn picture(&mut self) -> Result<Option<Picture>, TalkError> {
        match self.answer()? {
            None => Ok(None),
            Some(Answer::State { state, .. }) => Ok(Some(Picture::Run(state))),
            Some(Answer::Park { park, .. }) => Ok(Some(Picture::Park(park))),
            Some(_) => Err(self.nonsense("a history, though it was not asked for one".into())),
        }
    }

    /// The next state of a learning agft; `None` at the end of the talk.
    pub(super) fn hear(&mut self) -> Result<Option<State>, TalkError> {
        match self.picture()? {
            None => Ok(None),
            Some(Picture::Run(state)) => Ok(Some(*state)),
            Some(Picture::Park(park)) => Err(TalkError::Parks { pid: park.pid }),
        }
    }

    /// The last minutes.
    pub(super) fn history(&mut self) -> Result<History, TalkError> {
        self.say(Request::History {})?;
        match self.answer()? {
            None => Err(TalkError::Refused("agft ended before it answered".into())),
            Some(Answer::History { history, .. }) => Ok(history),
            Some(_) => Err(self.nonsense("a state, though it was asked for its history".into())),
        }
    }

    /// One request, one picture.
    pub(super) fn ask(&mut self, request: Request) -> Result<Picture, TalkError> {
        self.say(request)?;
        let end = || TalkError::Refused("agft ended before it answered".into());
        self.picture()?.ok_or_else(end)
    }

    /// One request, one state of a learning agft.
    pub(super) fn ask_run(&mut self, request: Request) -> Result<State, TalkError> {
        match self.ask(request)? {
            Picture::Run(state) => Ok(*state),
            Picture::Park(park) => Err(TalkError::Parks { pid: park.pid }),
        }
    }
}

/// What an agft shows of itself.
pub(super) enum Picture {
    /// One that learns.
    Run(Box<State>),
    /// One that parks.
    Park(Box<ParkState>),
}

/// The agfts that run, or the one that is meant.
pub(super) fn talks(dir: &Path, which: &Which) -> Result<Vec<Talk>, TalkError> {
    let meant = |path: &PathBuf| {
        which.pid.is_none_or(|pid| {
            path.file_name().is_some_and(|name| name == format!("agft-{pid}.sock").as_str())
        })
    };
    let mut open = Vec::new();
    for path in sockets(dir).iter().filter(|path| meant(path)) {
        open.extend(Talk::open(path)?);
    }
    if open.is_empty() { Err(TalkError::Nobody { dir: dir.to_owned() }) } else { Ok(open) }
}

/// The one agft that runs, or that is meant.
pub(super) fn talk(dir: &Path, which: &Which) -> Result<Talk, TalkError> {
    only(talks(dir, which)?)
}

/// The one learning agft that runs, or that is meant: `agft park` beside it is passed over.
pub(super) fn run_talk(dir: &Path, which: &Which) -> Result<Talk, TalkError> {
    let mut open = talks(dir, which)?;
    if open.len() > 1 {
        open.retain_mut(|talk| !matches!(talk.ask(Request::Status {}), Ok(Picture::Park(_))));
    }
    if open.is_empty() { Err(TalkError::Nobody { dir: dir.to_owned() }) } else { only(open) }
}

fn only(mut open: Vec<Talk>) -> Result<Talk, TalkError> {
    match (open.pop(), open.is_empty()) {
        (Some(talk), true) => Ok(talk),
        (last, _) => {
            let pid = |talk: &Talk| talk.path.file_stem()?.to_str()?.strip_prefix("agft-").map(str::to_owned);
            Err(TalkError::Several { pids: open.iter().chain(last.iter()).filter_map(pid).collect() })
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

/// `agft status`.
#[must_use]
pub fn status(args: &StatusArgs, cli: &Cli) -> Exit {
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
    let pictures = talks(dir, &args.which)?
        .iter_mut()
        .map(|talk| talk.ask(Request::Status {}))
        .collect::<Result<Vec<_>, _>>()?;
    let shown: Vec<String> = pictures.iter().map(|picture| picture.shown(args.json)).collect();
    super::say::print(&shown.join(if args.json { "" } else { "\n" }));
    Ok(())
}

fn watch(dir: &Path, args: &StatusArgs) -> Result<(), TalkError> {
    let mut talk = talk(dir, &args.which)?;
    talk.say(Request::Watch { every_s: Seconds(1.0) })?;
    while let Some(picture) = talk.picture()? {
        let clear = if args.json { "" } else { "\x1b[H\x1b[2J" };
        // A reader that is gone (`| head`) is the end, not an error.
        if write!(io::stdout(), "{clear}").is_err() || !super::say::print(&picture.shown(args.json)) {
            return Ok(());
        }
    }
    Ok(())
}

/// `agft pause` and `agft resume`.
#[must_use]
pub fn order(request: Request, which: &Which, cli: &Cli) -> Exit {
    let dir = match socket_dir(cli) {
        Ok(dir) => dir,
        Err(exit) => return exit,
    };
    match talk(&dir, which).and_then(|mut talk| talk.ask(request)) {
        Ok(picture) => {
            say!("{}", picture.after_order());
            Exit::Ok
        }
        Err(error) => fail(&error),
    }
}

impl Picture {
    /// As `agft status` has it.
    fn shown(&self, json: bool) -> String {
        if json {
            let line = match self {
                Self::Run(state) => serde_json::to_string(state),
                Self::Park(park) => serde_json::to_string(park),
            };
            return line.unwrap_or_default() + "\n";
        }
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = match self {
            Self::Run(state) => describe(&mut text, state),
            Self::Park(park) => describe_park(&mut text, park),
        };
        text
    }

    /// What came of an order, in a line.
    fn after_order(&self) -> String {
        match self {
            Self::Run(state) => {
                let (pid, mode) = (state.pid, state.mode.name());
                let clocks = clocks_words(state.in_force, state.not_given_back);
                format!("agft (pid {pid}): {mode}, clocks: {clocks}")
            }
            Self::Park(park) => {
                let of = park.gpus.iter().map(|gpu| {
                    format!("GPU {}: {}", gpu.index, clocks_words(gpu.in_force, gpu.not_given_back))
                });
                let clocks = of.collect::<Vec<_>>().join("; ");
                format!("agft park (pid {}): {}, clocks: {clocks}", park.pid, park.mode.name())
            }
        }
    }
}

fn describe(out: &mut String, state: &State) -> std::fmt::Result {
    let number = |value: Option<f64>, digits: usize, unit: &str| {
        value.map_or("unknown".to_owned(), |value| format!("{value:.digits$}{unit}"))
    };
    let (load, learner, counts) = (&state.load, &state.learner, &state.counts);
    let minutes = (state.at_unix_s - state.started_unix_s) / 60.0;
    writeln!(out, "agft {} (pid {}), {minutes:.1} min", state.version, state.pid)?;
    writeln!(out, "  mode        {}{}", state.mode.name(), if state.dry_run { ", dry run" } else { "" })?;
    let clocks = clocks_words(state.in_force, state.not_given_back);
    writeln!(out, "  clocks      {clocks} (asked: {})", clocks_words(state.asked, false))?;
    if let Some(floor) = state.floor {
        writeln!(out, "  floor       {floor}, from a broken latency limit")?;
    }
    for gpu in &state.gpus {
        let core = gpu.core_clock.map_or("unknown".to_owned(), |clock| clock.to_string());
        let capped = if gpu.capped == Some(true) { ", held low by power or temperature" } else { "" };
        writeln!(
            out,
            "  GPU {}       {core}, {}, {} so far{capped}",
            gpu.index,
            number(gpu.power_w, 0, " W"),
            number(gpu.energy_j.map(|joules| joules / 1e3), 1, " kJ"),
        )?;
    }
    let requests = [load.running, load.waiting].map(|value| number(value, 0, ""));
    let rates = [load.prefill_tps, load.decode_tps].map(|value| number(value, 0, ""));
    writeln!(
        out,
        "  load        {} running, {} waiting; tokens/s: {} in, {} out",
        requests[0], requests[1], rates[0], rates[1]
    )?;
    let milli = |value: Option<f64>| number(value.map(|value| 1e3 * value), 1, " ms");
    let limits = state.limits.map_or("no limits".to_owned(), |limits| {
        format!("limits: {} s, {} ms", limits.ttft.0, 1e3 * limits.tpot.0)
    });
    writeln!(out, "  latency     TTFT {}, TPOT {} ({limits})", milli(load.ttft_s), milli(load.tpot_s))?;
    let converged = if learner.converged { ", converged" } else { "" };
    let best = learner.best.map_or(String::new(), |best| format!(", best so far {best}"));
    writeln!(out, "  learner     {}, {} lessons{converged}{best}", state.policy, learner.lessons)?;
    if let Some(why) = &learner.handed_over {
        writeln!(out, "              linucb stands in: {why}")?;
    }
    let open = learner.arms.iter().filter(|arm| arm.status == ArmStatus::Available).count();
    writeln!(out, "  arms        {open} of {} may be chosen", learner.arms.len())?;
    let share =
        |value: Option<f64>| value.map_or("unknown".to_owned(), |value| format!("{:+.1} %", 100.0 * value));
    writeln!(
        out,
        "  estimate    energy {} against default clocks, time per token {} ({:.0} s compared)",
        share(state.estimate.saved_share().map(|saved| -saved)),
        share(state.estimate.slowdown()),
        state.estimate.compared_s,
    )?;
    describe_parking(out, &state.parking)?;
    describe_savings(out, &state.savings)?;
    let total = |map: &std::collections::BTreeMap<String, u64>| map.values().sum::<u64>();
    writeln!(
        out,
        "  so far      {} rounds, {} clock changes, {} limits broken, {} outages, {} faults",
        counts.rounds,
        counts.clock_changes,
        total(&counts.limit_violations),
        counts.outages,
        total(&counts.faults)
    )
}

/// The holdout experiment, in one line.
fn describe_savings(out: &mut String, savings: &SavingsState) -> std::fmt::Result {
    if savings.share <= 0.0 && savings.cycles == 0 {
        return writeln!(out, "  measured    no holdout (holdout.share is 0): nothing is proved");
    }
    let Some(power) = savings.effect.power_w else {
        let (seen, needed) = (savings.cycles, FEWEST_CYCLES);
        return writeln!(out, "  measured    too early to tell: {seen} of {needed} cycles of the holdout");
    };
    let change =
        |of: Change| format!("{:+.1} % ± {:.1} %", 100.0 * of.relative, 100.0 * of.relative_half_width);
    write!(out, "  measured    energy {}", change(power))?;
    if let Some(tpot) = savings.effect.tpot_s {
        write!(out, ", time per token {}", change(tpot))?;
    }
    writeln!(out, " ({} cycles)", power.cycles)
}

/// The best clocks at other loads, for `agft model show`.
pub(super) fn load_table(out: &mut String, learner: &crate::view::LearnerState) -> std::fmt::Result {
    if learner.by_load.is_empty() {
        return Ok(());
    }
    writeln!(out, "  best by load (predicted; tokens/s in, out):")?;
    for best in &learner.by_load {
        let core = best.core.map_or("driver default".to_owned(), |core| core.to_string());
        writeln!(
            out,
            "    {:4.2} of now ({:.0}, {:.0}): {core}, cost {:+.1} %, time per token {:+.1} %",
            best.share,
            best.prefill_tps,
            best.decode_tps,
            100.0 * (best.cost_ratio - 1.0),
            100.0 * (best.tpot_ratio - 1.0)
        )?;
    }
    Ok(())
}

/// Arms as a table, for `agft model show`.
pub(super) fn arm_table(out: &mut String, learner: &crate::view::LearnerState) -> std::fmt::Result {
    writeln!(out, "  core MHz  memory MHz  lessons      mean reward  status")?;
    for arm in &learner.arms {
        let memory = arm.clocks.memory.map_or("-".to_owned(), |Mhz(memory)| memory.to_string());
        let about = arm.uncertainty.map_or(String::new(), |half| format!(" ±{half:.3}"));
        let reward = arm.mean_reward.map_or("-".to_owned(), |reward| format!("{reward:+.4}{about}"));
        let why = arm.why.as_ref().map_or(String::new(), |why| format!(" ({why})"));
        writeln!(
            out,
            "  {:>8}  {memory:>10}  {:>7}  {reward:>15}  {}{why}",
            arm.clocks.core.0,
            arm.lessons,
            arm.status.name()
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_says_unknown_where_nothing_is_known_and_never_fails() {
        let shown = |state: &State| Picture::Run(Box::new(state.clone())).shown(false);
        let mut state = crate::view::testing::state();
        let text = shown(&state);
        for part in
            ["EXPLOITATION", "900 MHz core", "floor", "energy -25.0 %", "time per token +5.0 %", "200 rounds"]
        {
            assert!(text.contains(part), "no {part} in\n{text}");
        }
        assert!(text.contains("measured    energy -25.0 % ± "), "{text}");
        state.in_force = None;
        state.savings = SavingsState { share: 0.02, cycles: 2, ..SavingsState::default() };
        assert!(shown(&state).contains("too early to tell: 2 of 5 cycles"));
        state.savings = SavingsState::default();
        assert!(shown(&state).contains("no holdout"));
        state.load = crate::view::Load::default();
        state.estimate = crate::view::Estimate::default();
        state.gpus[0].power_w = None;
        let text = shown(&state);
        assert!(text.contains("driver default") && text.contains("TTFT unknown"), "{text}");
        assert!(text.contains("energy unknown"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 110), "{text}");
    }
}
