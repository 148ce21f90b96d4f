//! `agft model`: what was learned, of an agft that runs or of one that is stopped.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde::Serialize;

use super::describe::{arm_table, load_table};
use super::talk::{TalkError, Which, run_talk, socket_dir};
use super::{Cli, Exit, load_config};
use crate::bandit::Phase;
use crate::config::Config;
use crate::control::{Learned, Model};
use crate::store::{ModelStore, file, peek};
use crate::text;
use crate::view::{LearnerState, learner_state};

/// Options of `model`.
#[derive(Debug, Args)]
pub struct ModelArgs {
    #[command(subcommand)]
    command: ModelCommand,
}

/// What to do with it.
#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// Show every clock with lessons, reward and status
    Show {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Which agft
        #[command(flatten)]
        which: Which,
    },
    /// Write the same as JSON to a file
    Export {
        /// The file; `-` is standard output
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Which agft
        #[command(flatten)]
        which: Which,
    },
    /// Put the stored model of a stopped agft aside: the next start learns afresh
    Reset,
}

/// What is shown and exported.
#[derive(Debug, Serialize)]
struct Shown {
    /// Where it comes from: a running agft, or a directory.
    source: String,
    /// The policy that learns.
    policy: String,
    /// The GPU it was learned on.
    gpu: String,
    learner: LearnerState,
}

pub(crate) fn run(args: &ModelArgs, cli: &Cli) -> Exit {
    let done = match &args.command {
        ModelCommand::Show { json, which } => shown(which, cli).and_then(|shown| show(&shown, *json)),
        ModelCommand::Export { file, which } => shown(which, cli).and_then(|shown| export(&shown, file)),
        ModelCommand::Reset => reset(cli),
    };
    match done {
        Ok(()) => Exit::Ok,
        Err(Failed::Said(exit)) => exit,
        Err(Failed::Because(why)) => {
            complain!("agft: {why}");
            Exit::Failure
        }
    }
}

enum Failed {
    /// The reason was printed already.
    Said(Exit),
    Because(String),
}

impl<E: std::error::Error> From<E> for Failed {
    fn from(error: E) -> Self {
        Self::Because(error.to_string())
    }
}

fn config(cli: &Cli) -> Result<Config, Failed> {
    if cli.config.exists() { load_config(cli).map_err(Failed::Said) } else { Ok(Config::default()) }
}

/// Of the agft that runs, else of the model directory.
fn shown(which: &Which, cli: &Cli) -> Result<Shown, Failed> {
    let dir = socket_dir(cli).map_err(Failed::Said)?;
    match run_talk(&dir, which) {
        Ok(mut talk) => {
            let state = talk.ask_server(which)?;
            return Ok(Shown {
                source: format!("agft (pid {}), {}", talk.pid().unwrap_or_default(), state.name),
                policy: state.policy,
                gpu: state.gpus.first().map(|gpu| gpu.name.clone()).unwrap_or_default(),
                learner: state.learner,
            });
        }
        Err(TalkError::Nobody { .. }) if which.pid.is_none() => {}
        Err(error) => return Err(error.into()),
    }
    let dir = config(cli)?.model.save_dir;
    let Some((identity, model)) = peek::peek::<Model>(Path::new(&dir))? else {
        return Err(Failed::Because(format!("no agft runs here, and there is no model in {dir}")));
    };
    let learned = Learned::from(model);
    if !learned.is_sound() {
        return Err(Failed::Because(format!("the model in {dir} holds numbers that cannot be right")));
    }
    Ok(Shown {
        source: dir,
        policy: identity.policy,
        gpu: identity.gpu_name,
        learner: learner_state(&learned, None, crate::units::Time(0.0)),
    })
}

fn show(shown: &Shown, json: bool) -> Result<(), Failed> {
    let text = if json { serde_json::to_string_pretty(shown)? + "\n" } else { table(shown)? };
    // A reader that is gone (`| head`) is no failure.
    super::say::print(&text);
    Ok(())
}

fn table(shown: &Shown) -> Result<String, std::fmt::Error> {
    use std::fmt::Write as _;
    let learner = &shown.learner;
    let mut out = String::new();
    let [source, policy, gpu] = [&shown.source, &shown.policy, &shown.gpu].map(|text| text::whole(text));
    writeln!(out, "{source}: {policy} on {gpu}")?;
    let phase = match learner.phase {
        Phase::Exploration => "exploration",
        Phase::Exploitation => "exploitation",
    };
    let converged = if learner.converged { "converged" } else { "not converged" };
    writeln!(
        out,
        "  {phase}, {converged}, {} lessons, rate {:.3}",
        learner.lessons, learner.exploration_rate
    )?;
    if let Some(best) = learner.best {
        writeln!(out, "  best so far: {best}")?;
    }
    load_table(&mut out, learner)?;
    arm_table(&mut out, learner)?;
    Ok(out)
}

fn export(shown: &Shown, path: &Path) -> Result<(), Failed> {
    if path == Path::new("-") {
        return show(shown, true);
    }
    let text = serde_json::to_string_pretty(shown)? + "\n";
    file::write(path, text.as_bytes())?;
    say!("{}: {} clocks", path.display(), shown.learner.arms.len());
    Ok(())
}

fn reset(cli: &Cli) -> Result<(), Failed> {
    let dir = config(cli)?.model.save_dir;
    if !Path::new(&dir).is_dir() {
        return Err(Failed::Because(format!("there is no model directory {dir}")));
    }
    // Refuses while an agft holds the directory: that one would write its model again.
    let kept = ModelStore::open(Path::new(&dir))?.reset(Timestamp::now())?;
    if kept.is_empty() {
        say!("no model in {dir}: nothing to put aside");
    }
    for path in kept {
        say!("model put aside: {}", path.display());
    }
    Ok(())
}
