//! `agft demo` and `agft simulate`: their options. Another program, `agft-lab`, carries them out, so that
//! nothing of the simulator is in the one that runs beside servers ([`companion`](super::companion)).

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::reward::Objective;

/// Options of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Print the result as JSON, and no progress
    #[arg(long)]
    pub json: bool,

    /// Watch it as `agft top` shows a daemon; q ends the demo early
    #[arg(long, conflicts_with = "json")]
    pub tui: bool,

    /// Write the last state and its history to this file, for pictures of the view
    #[arg(long, value_name = "FILE", hide = true)]
    pub save_view: Option<PathBuf>,

    /// How long to run, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = clap::value_parser!(u32).range(5..=3600))]
    pub seconds: u32,

    /// Show the run on a web page there meanwhile, for example 127.0.0.1:9477
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,

    /// The simulated GPU
    #[arg(long, default_value = "rtx4090")]
    pub gpu: String,

    /// The simulated model
    #[arg(long, default_value = "8b")]
    pub model: String,

    /// Start of the random numbers: arrivals and noise
    #[arg(long, default_value = "1")]
    pub seed: u64,
}

/// Stands for the rules that are compared where none is named.
pub const DEFAULT_RULES: &str = "default";

const AFTER_HELP: &str = "\
Without --gpu, --model, --workload or --trace a whole suite runs: `standard`, unless --suite says otherwise. With any of
them, every combination of what is named runs; what is not named is a100, 8b, steady. With --suite as well, they pick
from the suite.

The table shows EDP ratios to the best fixed clock of the same arrivals, found afterwards by sweep. CSV and JSON have
every cell with every measure, units in the field names. Prompts of a trace that can never fit the KV cache are cut to
what does; a trace shorter than the run begins again, and each seed begins elsewhere in it.";

/// Options of `simulate`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct SimulateArgs {
    /// Who sets the clocks: structured, linucb, default, best-fixed, clairvoyant, agft, power-cap=WATTS,
    /// power-cap=PERCENT%
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAMES",
        default_value = "structured,default,best-fixed"
    )]
    pub policy: Vec<String>,

    /// GPU types, such as a100,h100
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub gpu: Vec<String>,

    /// Model types: 3b, 8b, 14b
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub model: Vec<String>,

    /// Workloads, such as steady,bursty,azure
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub workload: Vec<String>,

    /// Seeds of arrivals and noise: a list and ranges, such as 1-5 or 1,2,7
    #[arg(long, value_name = "SEEDS", default_value = "1-5")]
    pub seeds: String,

    /// Length of a run in virtual seconds
    #[arg(long, default_value = "600", value_parser = clap::value_parser!(u32).range(10..=86_400))]
    pub seconds: u32,

    /// A trace to replay, CSV or JSONL with arrival, prompt and output tokens
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,

    /// How much faster than recorded: a number, or auto for the wanted share of the capacity, 100 requests a
    /// second at most; no run has more than 200000 requests
    #[arg(long, value_name = "FACTOR", default_value = "auto", requires = "trace")]
    pub trace_speed: String,

    /// Load as a share of the server's capacity at default clocks, instead of what the workload stands for
    #[arg(long, value_name = "SHARE")]
    pub utilization: Option<f64>,

    /// Suite: standard, held-out (other pairs, shifted constants), changing (loads that change while they
    /// run), measured (boards by measured points) or measured-held-out
    #[arg(long, value_name = "NAME")]
    pub suite: Option<String>,

    /// What is to be small: edp, ed2p or energy
    #[arg(long, value_name = "NAME")]
    pub objective: Option<GivenObjective>,

    /// Limit on the time to first token, in seconds (overrides control.ttft_limit)
    #[arg(long, value_name = "SECONDS")]
    pub ttft_limit: Option<f64>,

    /// Limit on the time per output token, in seconds (overrides control.tpot_limit)
    #[arg(long, value_name = "SECONDS")]
    pub tpot_limit: Option<f64>,

    /// Largest slowdown of the mean time per output token against default clocks, in percent (overrides
    /// control.max_slowdown_percent)
    #[arg(long, value_name = "PERCENT")]
    pub max_slowdown: Option<f64>,

    /// Take the metrics page away from agft for so many seconds of every 600 (5 to 540), in stretches of 5-60
    /// s by the seed; requests are served all the same
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["calibration", "savings", "parking"])]
    pub faults: Option<f64>,

    /// Leave the holdout in the runs as it is configured (holdout.share); without, it is off: minutes are too
    /// few for it
    #[arg(long, conflicts_with_all = ["calibration", "savings", "parking"])]
    pub holdout: bool,

    /// Engines whose metrics page the simulated server shows, such as vllm,llama.cpp,sglang, or all; the
    /// server itself is the same
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAMES",
        default_value = "vllm",
        conflicts_with_all = ["calibration", "savings", "parking"]
    )]
    pub engine: Vec<String>,

    /// Directory for results.json, results.csv, table.txt and the plots
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,

    /// Form of the result on standard output
    #[arg(long, value_name = "FORM", default_value = "table")]
    pub format: Format,

    /// Threads; all cores without. The result does not depend on it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub jobs: Option<u16>,

    /// Try the holdout experiment instead: this share of the time at default clocks (0.02 to 0.5), and is
    /// what it tells true?
    #[arg(long, value_name = "SHARE", conflicts_with = "calibration")]
    pub savings: Option<f64>,

    /// Compare rules of parking instead: none, fixed=SECONDS, staged=SECONDS/SECONDS, rule (agft park),
    /// engine, engine-connections, clairvoyant-core, clairvoyant. Without --suite or --trace on loads with
    /// gaps, of which --gpu and --workload pick
    #[arg(
        long,
        value_name = "RULES",
        value_delimiter = ',',
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = DEFAULT_RULES,
        conflicts_with_all = ["calibration", "savings"]
    )]
    pub parking: Vec<String>,

    /// With --parking: shares of requests that open a connection of their own; the others use one that is
    /// kept open
    #[arg(long, value_delimiter = ',', value_name = "SHARES", default_value = "1,0", requires = "parking")]
    pub own_connections: Vec<f64>,

    /// Compare the simulator's physics with measured boards instead
    #[arg(long)]
    pub calibration: bool,
}

/// Objectives of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GivenObjective {
    /// Energy times delay.
    Edp,
    /// Energy times delay squared.
    Ed2p,
    /// Energy alone.
    Energy,
}

impl From<GivenObjective> for Objective {
    fn from(given: GivenObjective) -> Self {
        match given {
            GivenObjective::Edp => Self::Edp,
            GivenObjective::Ed2p => Self::Ed2p,
            GivenObjective::Energy => Self::Energy,
        }
    }
}

/// Forms of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For humans.
    Table,
    /// One row per cell and policy.
    Csv,
    /// Everything.
    Json,
}
