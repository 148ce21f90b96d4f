//! `agft park`: parks GPUs that nobody uses, beside any program or none.

use clap::Args;

use super::run::{Role, daemon, exit_of_run};
use super::{Cli, Exit, load_config, logging, report_config_error};
use crate::config::{Config, ConfigError, Listen, Source};
use crate::gpu::GpuSelector;
use crate::units::Seconds;

/// Options of `park`. The file's section `park` has all there is to set.
#[derive(Debug, Clone, Args)]
pub struct ParkArgs {
    /// GPUs by index or UUID, or all (overrides park.gpus)
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub gpus: Vec<String>,

    /// Park after so much time without work (overrides park.timeout_s)
    #[arg(long, value_name = "SECONDS")]
    pub(crate) idle_timeout: Option<f64>,

    /// A connection to this TCP port of the machine is work, too; may be repeated (overrides park.ports)
    #[arg(long = "port", value_name = "PORT")]
    pub ports: Vec<u16>,

    /// Decide and log, but write no clock
    #[arg(long)]
    pub dry_run: bool,

    /// Where the metrics page is: ADDRESS:PORT or off (overrides park.metrics_listen)
    #[arg(long, value_name = "ADDR:PORT|off")]
    pub metrics_listen: Option<Listen>,

    /// Try levers out in a fraction of the time: tests wait for real clocks
    #[arg(long, value_name = "TIMES", hide = true)]
    pub(crate) trial_speed: Option<f64>,
}

/// Parks until a signal or an error.
pub(crate) fn run(args: &ParkArgs, cli: &Cli) -> Exit {
    // It has no engine whose address it had to be told: it works without a file.
    let loaded =
        if cli.config_given || cli.config.exists() { load_config(cli) } else { Ok(Config::default()) };
    // Before the subcommand or after it.
    let args = &ParkArgs {
        dry_run: args.dry_run || cli.dry_run,
        metrics_listen: args.metrics_listen.or(cli.metrics_listen),
        ..args.clone()
    };
    let applied = |config| with_arguments(config, args).map_err(|error| report_config_error(&error));
    let config = match loaded.and_then(applied) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let _log = logging::start(logging::console_level(cli.log_level, &config.logging), cli.log_format, None);
    let arguments = args.clone();
    let arguments = Box::new(move |config| with_arguments(config, &arguments));
    let role = Role::Park { dry_run: args.dry_run, trial_speed: args.trial_speed, arguments };
    exit_of_run(daemon(cli, &config, role))
}

/// The configuration with what the command line says instead, by the same rules.
fn with_arguments(mut config: Config, args: &ParkArgs) -> Result<Config, ConfigError> {
    let park = &mut config.park;
    if args.gpus.iter().any(|gpu| gpu == "all") {
        park.gpus = None;
    } else if !args.gpus.is_empty() {
        let selector = |gpu: &String| match gpu.trim().parse() {
            Ok(index) => GpuSelector::Index(index),
            Err(_) => GpuSelector::Uuid(gpu.trim().to_owned()),
        };
        park.gpus = Some(args.gpus.iter().map(selector).collect());
    }
    if let Some(timeout) = args.idle_timeout {
        park.timeout_s = Seconds(timeout);
    }
    if !args.ports.is_empty() {
        park.ports.clone_from(&args.ports);
        if !park.sources.contains(&Source::Connections) {
            park.sources.push(Source::Connections);
        }
    }
    if let Some(listen) = args.metrics_listen {
        park.metrics_listen = listen;
    }
    Config::parse(&config.to_yaml(), "the file and the command line").map(|loaded| loaded.config)
}
