//! The command line: what was typed, and which function does it.

#[macro_use]
pub mod say;

pub(crate) mod check;
pub mod companion;
mod describe;
mod discover;
pub(crate) mod generate;
pub(crate) mod gpus;
mod guardian;
pub mod lab;
pub mod logging;
pub(crate) mod model;
pub(crate) mod park;
pub(crate) mod release;
pub(crate) mod replay;
pub(crate) mod report;
pub(crate) mod run;
pub mod screen;
pub(crate) mod status;
pub(crate) mod talk;
pub(crate) mod top;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::config::{Config, ConfigError, Listen, Loaded, LogLevel};
use crate::control::Order;
use crate::gpu::GpuError;

/// How the program ends; documented in `--help` and the README.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Everything went well.
    Ok = 0,
    /// Something failed while running.
    Failure = 1,
    /// The configuration is bad (`EX_USAGE` of sysexits).
    Config = 64,
    /// Another agft controls the GPU (`EX_UNAVAILABLE`).
    InUse = 69,
    /// A part of agft hung, for example in a driver call (`EX_SOFTWARE`).
    Stuck = 70,
    /// Not permitted to lock clocks (`EX_NOPERM`).
    NotPermitted = 77,
}

const _: () = assert!(Exit::Stuck as u8 == crate::daemon::watch::STUCK_STATUS);

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The configuration of an installed package.
const PACKAGED: &str = "/etc/agft/config.yaml";

const AFTER_HELP: &str = "\
Exit codes: 0 success, 1 runtime failure, 2 usage, 64 bad configuration, 69 GPU in use by another agft,
70 a part hung, for example in a driver call, 77 not permitted to lock clocks.
Clocks are given back when agft ends, however it ends; `agft release` gives them back by hand.
SIGHUP has a daemon read its configuration again; in a terminal it ends the run.";

/// Makes LLM inference servers spend less GPU energy for the same service.
///
/// Without a subcommand agft runs as a daemon beside the server: it scrapes its metrics, learns which GPU clocks the
/// load of the moment needs, and locks them.
#[derive(Debug, Parser)]
#[command(name = "agft", version, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Cli {
    /// Configuration file; /etc/agft/config.yaml where this is not given and the default is not there
    #[arg(long, value_name = "FILE", default_value = "config/config.yaml", global = true)]
    pub config: PathBuf,

    /// Was `--config` given? A simulation takes the built-in defaults unless it was.
    #[arg(skip)]
    pub config_given: bool,

    /// Measure and record only; never touch a clock
    #[arg(long)]
    pub data_collection_mode: bool,

    /// Put the saved model aside and start afresh
    #[arg(long)]
    pub(crate) reset_model: bool,

    /// Decide and log, but write no clock
    #[arg(long)]
    pub dry_run: bool,

    /// Where the metrics page is: ADDRESS:PORT or off (overrides observe.metrics_listen)
    #[arg(long, value_name = "ADDR:PORT|off")]
    pub(crate) metrics_listen: Option<Listen>,

    /// Lowest level that is logged to the console (overrides logging.console_level)
    #[arg(long, value_name = "LEVEL", ignore_case = true, global = true)]
    pub log_level: Option<LogLevel>,

    /// Form of the console log
    #[arg(long, value_name = "FORM", default_value = "text", global = true)]
    pub log_format: LogFormat,

    /// Panic at this tick: tests see the clocks given back on that way out too
    #[arg(long, value_name = "N", hide = true)]
    pub panic_at_tick: Option<u64>,

    /// Block at this tick, for the same reason
    #[arg(long, value_name = "N", hide = true)]
    pub stall_at_tick: Option<u64>,

    /// What to do instead of running the daemon
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Form of the console log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For humans.
    Text,
    /// One JSON object a line.
    Json,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the real loop for about a minute on a simulated server and GPU, and show what it saves
    Demo(lab::DemoArgs),
    /// Compare policies on simulated servers and GPUs, in virtual time
    Simulate(Box<lab::SimulateArgs>),
    /// Run inference servers as configuration: start, watch, stop and restart them
    #[command(disable_help_flag = true)]
    Serve(companion::Handed),
    /// See and change the inference servers that `agft serve` runs
    #[command(disable_help_flag = true)]
    Instances(companion::Handed),
    /// Run as a daemon that parks GPUs while nobody uses them; needs no inference server
    Park(park::ParkArgs),
    /// Is everything in place? One line per question; changes nothing
    Check(check::CheckArgs),
    /// Check a configuration file and list every problem in it
    CheckConfig {
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// What the agft that runs here does, and what came of it
    Status(status::StatusArgs),
    /// Watch the agft that runs here in the terminal: clocks, power, latency, arms, news
    Top(top::TopArgs),
    /// Have the agft that runs here leave the clocks to the driver, and learn nothing, until `agft resume`
    Pause(talk::Which),
    /// Have a paused agft go on
    Resume(talk::Which),
    /// What was learned: show it, export it, put it aside
    Model(model::ModelArgs),
    /// Report on a run, from its directory
    Report(report::ReportArgs),
    /// Repeat a run from its record, bit for bit, or ask what other settings would have done
    Replay(replay::ReplayArgs),
    /// Two runs side by side
    Compare(report::CompareArgs),
    /// Give all clocks back to the driver now
    Release(ReleaseArgs),
    /// Watch over the clocks of a running agft, which starts this itself
    #[command(hide = true)]
    Guardian(crate::guardian::process::Ward),
    /// Print completions for a shell: bash, zsh, fish, elvish, powershell
    Completions(generate::CompletionsArgs),
    /// Write the man pages to a directory: for packages
    #[command(hide = true)]
    ManPages(generate::ManPagesArgs),
    /// List the GPUs with their clocks, power and what of it can be controlled
    Gpus(gpus::GpusArgs),
}

/// Options of `release`.
#[derive(Debug, Args)]
pub struct ReleaseArgs {
    /// Every GPU of the machine, not only those of the configuration
    #[arg(long)]
    pub all: bool,

    /// Only what a dead agft left locked, by its journal: for ExecStopPost of a service
    #[arg(long, conflicts_with = "all")]
    pub journal: bool,
}

/// Runs what the command line asks for.
pub fn main() -> ExitCode {
    let cli = parse();
    let exit = match &cli.command {
        None => run::run(&cli),
        Some(Command::Demo(_) | Command::Simulate(_)) => companion::run(companion::LAB),
        Some(Command::Serve(_) | Command::Instances(_)) => companion::run(companion::SERVE),
        Some(Command::Park(args)) => park::run(args, &cli),
        Some(Command::Check(args)) if args.discover => discover::run(),
        Some(Command::Check(_)) => check::run(&cli),
        Some(Command::CheckConfig { file }) => check::run_config(file),
        Some(Command::Release(args)) => release::run(args, &cli),
        Some(Command::Gpus(args)) => gpus::run(args),
        Some(Command::Status(args)) => status::status(args, &cli),
        Some(Command::Top(args)) => top::run(args, &cli),
        Some(Command::Pause(which)) => status::order(Order::Pause, which, &cli),
        Some(Command::Resume(which)) => status::order(Order::Resume, which, &cli),
        Some(Command::Report(args)) => report::report(args),
        Some(Command::Replay(args)) => replay::run(args),
        Some(Command::Compare(args)) => report::compare(args),
        Some(Command::Model(args)) => model::run(args, &cli),
        Some(Command::Completions(args)) => generate::completions(args),
        Some(Command::ManPages(args)) => generate::man_pages(args),
        Some(Command::Guardian(args)) => guardian::run(args, &cli),
    };
    exit.into()
}

/// The command line; ends the program if it makes no sense.
pub fn parse() -> Cli {
    let matches = Cli::command().get_matches();
    let mut cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    // A global argument is found where it was typed: before the subcommand or after it.
    let typed = |matches: &clap::ArgMatches| {
        matches.value_source("config").is_some_and(|source| source == ValueSource::CommandLine)
    };
    cli.config_given = typed(&matches) || matches.subcommand().is_some_and(|(_, matches)| typed(matches));
    if !cli.config_given && !cli.config.exists() && Path::new(PACKAGED).exists() {
        cli.config = PACKAGED.into();
    }
    cli
}

/// Loads the configuration that is to be obeyed; warnings and problems go to standard error.
fn load_config(cli: &Cli) -> Result<Config, Exit> {
    take_config(cli, Config::load_trusted(&cli.config))
}

/// A configuration that was read; warnings and problems go to standard error.
/// Errors: The exit code, if the configuration cannot be used.
pub fn take_config(cli: &Cli, loaded: Result<Loaded, ConfigError>) -> Result<Config, Exit> {
    match loaded {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                complain!("agft: {}: warning: {warning}", cli.config.display());
            }
            Ok(loaded.config)
        }
        Err(error) => Err(report_config_error(&error)),
    }
}

fn report_config_error(error: &ConfigError) -> Exit {
    // Several problems are several lines; each names its key and value through `text`.
    for line in format!("agft: {error}").lines() {
        complain!("{line}");
    }
    Exit::Config
}

/// The exit code of a failed GPU call, after saying what failed.
fn report_gpu_error(error: &GpuError) -> Exit {
    complain!("agft: {error}");
    exit_of(error)
}

/// The exit code of a failed GPU call.
pub(crate) fn exit_of(error: &GpuError) -> Exit {
    match error {
        GpuError::NoPermission { .. } => Exit::NotPermitted,
        _ => Exit::Failure,
    }
}
