//! Makes, changes and shows state files of the NVML mock from scripts.

use std::io::{BufWriter, ErrorKind, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use nvidia_ml::{GpuConfig, Injection, MockConfig, MockState, exported_calls};

/// Make, change and show mocked NVIDIA GPUs.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a state file
    Create {
        /// a100, h100, h200, a6000 or rtx3090
        #[arg(long, default_value = "a100")]
        preset: String,
        /// How many of them
        #[arg(long, default_value_t = 1)]
        gpus: usize,
        /// A machine as JSON, as `show --config` prints it, in place of a preset
        #[arg(long, conflicts_with_all = ["preset", "gpus"])]
        config: Option<PathBuf>,
        /// State file to make
        file: PathBuf,
    },
    /// Set the share of the time a kernel runs on a GPU
    Load {
        /// State file
        file: PathBuf,
        /// GPU index
        gpu: usize,
        /// 0 to 1
        load: f64,
    },
    /// Set a GPU's temperature in degrees Celsius
    Temperature {
        /// State file
        file: PathBuf,
        /// GPU index
        gpu: usize,
        /// Degrees Celsius
        celsius: u32,
    },
    /// Set the event (throttle) reason bits that a GPU reports beside its own
    Reasons {
        /// State file
        file: PathBuf,
        /// GPU index
        gpu: usize,
        /// Bits, decimal
        bits: u64,
    },
    /// Take a GPU off the bus, or put it back
    Lost {
        /// State file
        file: PathBuf,
        /// GPU index
        gpu: usize,
        /// true or false
        #[arg(action = clap::ArgAction::Set)]
        lost: bool,
    },
    /// Let a GPU's clocks stay where they are whatever the driver is asked, or follow again
    Stuck {
        /// State file
        file: PathBuf,
        /// GPU index
        gpu: usize,
        /// true or false
        #[arg(action = clap::ArgAction::Set)]
        stuck: bool,
    },
    /// Set the processes that have a context on a GPU; none without ids
    Processes {
        /// State file
        file: PathBuf,
        /// GPU index
        gpu: usize,
        /// Process ids
        pids: Vec<u32>,
    },
    /// Let a function fail, or take longer
    Inject {
        /// State file
        file: PathBuf,
        /// NVML's name of the function
        call: String,
        /// NVML code to return; without it the function only takes longer
        #[arg(long)]
        code: Option<u32>,
        /// What a sensor says: milliwatts, millijoules, percent, degrees Celsius
        #[arg(long, conflicts_with_all = ["code", "delay_ms"])]
        value: Option<u64>,
        /// Time to wait first, in milliseconds
        #[arg(long, default_value_t = 0)]
        delay_ms: u64,
        /// How often; without it, until cleared
        #[arg(long)]
        times: Option<u64>,
        /// Calls to let through first
        #[arg(long, default_value_t = 0)]
        after: u64,
        /// Only on this GPU
        #[arg(long)]
        gpu: Option<u32>,
    },
    /// Clear all injections
    Clear {
        /// State file
        file: PathBuf,
    },
    /// Print every clock write so far
    History {
        /// State file
        file: PathBuf,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Print the GPUs as they are now
    Show {
        /// State file
        file: PathBuf,
        /// A JSON array
        #[arg(long)]
        json: bool,
        /// The machine's configuration as JSON, in place of its state
        #[arg(long, conflicts_with = "json")]
        config: bool,
    },
    /// Print the functions that can be injected
    Calls,
}

fn main() -> Result<()> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    match run(Arguments::parse().command, &mut out).and_then(|()| Ok(out.flush()?)) {
        // Whoever reads us has seen enough.
        Err(error)
            if error
                .downcast_ref::<std::io::Error>()
                .is_some_and(|io| io.kind() == ErrorKind::BrokenPipe) =>
        {
            Ok(())
        }
        result => result,
    }
}

fn run(command: Command, out: &mut impl Write) -> Result<()> {
    match command {
        Command::Create { preset, gpus, config, file } => {
            let config = match config {
                Some(path) => {
                    let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
                    serde_json::from_slice(&text).with_context(|| path.display().to_string())?
                }
                None => {
                    let gpu = GpuConfig::preset(&preset)
                        .with_context(|| format!("no preset {preset}: a100, h100, h200, a6000, rtx3090"))?;
                    MockConfig::uniform(&gpu, gpus)
                }
            };
            MockState::create(&file, &config)?;
        }
        Command::Load { file, gpu, load } => MockState::open(&file)?.set_load(gpu, load)?,
        Command::Temperature { file, gpu, celsius } => {
            MockState::open(&file)?.set_temperature(gpu, celsius)?;
        }
        Command::Reasons { file, gpu, bits } => MockState::open(&file)?.set_event_reasons(gpu, bits)?,
        Command::Lost { file, gpu, lost } => MockState::open(&file)?.set_lost(gpu, lost)?,
        Command::Stuck { file, gpu, stuck } => MockState::open(&file)?.set_stuck(gpu, stuck)?,
        Command::Processes { file, gpu, pids } => {
            let processes: Vec<_> = pids.into_iter().map(|pid| (pid, 1 << 30)).collect();
            MockState::open(&file)?.set_processes(gpu, &processes)?;
        }
        Command::Inject { file, call, code, value, delay_ms, times, after, gpu } => {
            let delay = Duration::from_millis(delay_ms);
            MockState::open(&file)?.inject(&Injection { call, gpu, code, value, delay, after, times })?;
        }
        Command::Clear { file } => MockState::open(&file)?.clear_injections(),
        Command::History { file, json } => history(&MockState::open(&file)?, json, out)?,
        Command::Show { file, json, config } => show(&MockState::open(&file)?, json, config, out)?,
        Command::Calls => {
            for call in exported_calls() {
                writeln!(out, "{call}")?;
            }
        }
    }
    Ok(())
}

fn history(state: &MockState, json: bool, out: &mut impl Write) -> Result<()> {
    for write in state.history() {
        if json {
            writeln!(out, "{}", serde_json::to_string(&write)?)?;
        } else {
            let [low, high] = write.args;
            let seconds = Duration::from_nanos(write.at_ns).as_secs_f64();
            writeln!(
                out,
                "{:>6} {seconds:.6} s  pid {:<7} GPU {}  {}({low}, {high}) -> {}",
                write.seq, write.pid, write.gpu, write.call, write.code
            )?;
        }
    }
    Ok(())
}

fn show(state: &MockState, json: bool, config: bool, out: &mut impl Write) -> Result<()> {
    if config {
        writeln!(out, "{}", serde_json::to_string_pretty(state.config())?)?;
        return Ok(());
    }
    let gpus = (0..state.gpu_count()).map(|gpu| state.snapshot(gpu)).collect::<Result<Vec<_>, _>>()?;
    if json {
        writeln!(out, "{}", serde_json::to_string(&gpus)?)?;
        return Ok(());
    }
    let bounds = |lock: Option<nvidia_ml::Range>| {
        lock.map_or("none".to_owned(), |lock| format!("{}-{} MHz", lock.min, lock.max))
    };
    for (index, gpu) in gpus.iter().enumerate() {
        writeln!(
            out,
            "GPU {index} ({}): {} / {} MHz, locks {} / {}, load {:.2}, {:.1} W, {} mJ, {} C{}",
            gpu.name,
            gpu.core_mhz,
            gpu.memory_mhz,
            bounds(gpu.locks.core),
            bounds(gpu.locks.memory),
            gpu.load,
            gpu.power_w,
            gpu.energy_mj,
            gpu.temperature_c,
            if gpu.lost { ", lost" } else { "" }
        )?;
    }
    Ok(())
}
