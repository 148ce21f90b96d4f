//! `agft simulate`: policies against each other on simulated servers, in virtual time.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::experiment::{CellResult, Experiment};
use crate::grid::{GivenTrace, Load, Source, Suite};
use crate::parking;
use crate::parking::policy::ParkPolicy;
use crate::policy::PolicySpec;
use crate::savings::{self, Trial};
use crate::sim::{Kind, calibration, outages, parse_trace};
use crate::{plots, report, table};
use agft::cli::lab::{DEFAULT_RULES, Format, SimulateArgs};
use agft::cli::{Cli, Exit, say, take_config};
use agft::complain;
use agft::config::{Config, unjudged};
use agft::units::Seconds;

/// Runs the simulation.
#[must_use]
pub fn run(args: &SimulateArgs, cli: &Cli) -> Exit {
    if args.calibration {
        return match calibration::calibrate() {
            Ok(table) => print(&table.to_string()),
            Err(error) => fail(&error.to_string()),
        };
    }
    let config = match cli.config_given.then(|| take_config(cli, Config::load(&cli.config))) {
        None => Config::default(),
        Some(Ok(config)) => config,
        Some(Err(exit)) => return exit,
    };
    let experiment = match plan(args, config) {
        Ok(experiment) => experiment,
        Err(problems) => {
            problems.iter().for_each(|problem| complain!("agft: simulate: {problem}"));
            return Exit::Config;
        }
    };
    if !args.parking.is_empty() {
        let trial = match plan_parking(args, experiment) {
            Ok(trial) => trial,
            Err(problems) => {
                problems.iter().for_each(|problem| complain!("agft: simulate: {problem}"));
                return Exit::Config;
            }
        };
        return match compare_parking(args, &trial) {
            Ok(text) => print(&text),
            Err(error) => fail(&format!("{error:#}")),
        };
    }
    if let Some(share) = args.savings {
        return match try_savings(args, experiment, share) {
            Ok(text) => print(&text),
            Err(error) => fail(&format!("{error:#}")),
        };
    }
    match simulate(args, &experiment) {
        Ok(text) => print(&text),
        Err(error) => fail(&format!("{error:#}")),
    }
}

fn print(text: &str) -> Exit {
    // A reader that has gone, such as `head`, is no error.
    say::print(text);
    Exit::Ok
}

fn fail(error: &str) -> Exit {
    complain!("agft: simulate: {error}");
    Exit::Failure
}

/// What the arguments ask for, or everything that is wrong with them.
fn plan(args: &SimulateArgs, mut config: Config) -> Result<Experiment, Vec<String>> {
    let mut problems = Problems(Vec::new());
    let control = &mut config.control;
    if let Some(objective) = args.objective {
        control.objective = objective.into();
    }
    for (name, given, limit) in [
        ("--ttft-limit", args.ttft_limit, &mut control.ttft_limit),
        ("--tpot-limit", args.tpot_limit, &mut control.tpot_limit),
    ] {
        if let Some(seconds) = given {
            if seconds.is_finite() && seconds > 0.0 {
                *limit = Seconds(seconds);
            } else {
                problems.add(format!("{name} {seconds}: give seconds above 0"));
            }
        }
    }
    if let Some(percent) = args.max_slowdown {
        if (0.0..=500.0).contains(&percent) {
            control.max_slowdown_percent = Some(percent);
        } else {
            problems.add(format!("--max-slowdown {percent}: give percent from 0 to 500"));
        }
    }
    let faults = args.faults.unwrap_or(0.0);
    if args.faults.is_some() && !(outages::SHORTEST..=outages::MOST).contains(&faults) {
        problems.add(format!(
            "--faults {faults}: give seconds of every 600, from {} to {}",
            outages::SHORTEST,
            outages::MOST
        ));
    }
    if let Some(share) = args.utilization
        && !(share.is_finite() && share > 0.0 && share <= 5.0)
    {
        problems.add(format!("--utilization {share}: give a share above 0 and at most 5, such as 0.3"));
    }
    let mut policies: Vec<PolicySpec> = Vec::new();
    for name in &args.policy {
        if let Some(policy) = problems.keep(name.parse())
            && !policies.contains(&policy)
        {
            policies.push(policy);
        }
    }
    let mut engines: Vec<&'static Kind> = Vec::new();
    for kind in args.engine.iter().filter_map(|name| problems.keep(Kind::named(name))).flatten() {
        if !engines.contains(&kind) {
            engines.push(kind);
        }
    }
    // What the daemon refuses a server of this engine for.
    for kind in &engines {
        for vain in unjudged(kind.profile, &config.control) {
            problems.add(format!("{}, or leave this engine out of --engine", vain.of(kind.name())));
        }
    }
    let seeds = problems.keep(seeds(&args.seeds)).unwrap_or_default();
    let loads =
        if args.parking.is_empty() { loads(args, &mut problems) } else { parking_loads(args, &mut problems) };
    for load in &loads {
        if let Err(error) = load.stage(1.0, 1) {
            problems.add(format!("{load}: {error}"));
        }
    }
    if problems.0.is_empty() && loads.is_empty() {
        problems.add("no load of the suite is selected; leave out --suite to run any combination".to_owned());
    }
    if !problems.0.is_empty() {
        problems.0.dedup();
        return Err(problems.0);
    }
    Ok(Experiment {
        loads,
        seeds,
        policies,
        engines,
        seconds: f64::from(args.seconds),
        config,
        faults: Seconds(faults),
        holdout: args.holdout,
    })
}

/// Collects what is wrong, so that all of it can be told at once.
struct Problems(Vec<String>);

impl Problems {
    fn add(&mut self, problem: String) {
        self.0.push(problem);
    }

    fn keep<T, E: std::fmt::Display>(&mut self, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.add(error.to_string())).ok()
    }
}

/// A list of numbers and ranges.
fn seeds(text: &str) -> Result<Vec<u64>, String> {
    const MOST: u64 = 1000;
    let bad =
        || format!("--seeds `{text}`: give numbers and ranges, such as 1-5 or 1,2,7; at most {MOST} seeds");
    let mut seeds = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u64, u64) =
            (first.trim().parse().map_err(|_| bad())?, last.trim().parse().map_err(|_| bad())?);
        if last < first || last - first >= MOST {
            return Err(bad());
        }
        for seed in first..=last {
            if !seeds.contains(&seed) {
                seeds.push(seed);
            }
        }
    }
    if seeds.len() as u64 > MOST { Err(bad()) } else { Ok(seeds) }
}

fn loads(args: &SimulateArgs, problems: &mut Problems) -> Vec<Load> {
    let mut sources: Vec<Source> =
        args.workload.iter().filter_map(|name| problems.keep(name.parse())).collect();
    if let Some(file) = &args.trace {
        sources.extend(problems.keep(given_trace(file, &args.trace_speed)));
    }
    let selected = !(args.gpu.is_empty() && args.model.is_empty() && sources.is_empty());
    let wanted = |names: &[String], key: &str| {
        names.is_empty() || names.iter().any(|name| name.eq_ignore_ascii_case(key))
    };
    let mut loads = if args.suite.is_some() || (!selected && problems.0.is_empty()) {
        let name = args.suite.as_deref().unwrap_or("standard");
        let suite = problems.keep(name.parse::<Suite>().and_then(Suite::loads)).unwrap_or_default();
        check_names(args, problems);
        suite
            .into_iter()
            .filter(|load| {
                wanted(&args.gpu, load.gpu.key)
                    && wanted(&args.model, load.model.key)
                    && (sources.is_empty() || sources.contains(&load.source))
            })
            .collect()
    } else {
        let or = |names: &[String], name: &str| {
            if names.is_empty() { vec![name.to_owned()] } else { names.to_vec() }
        };
        if sources.is_empty() && args.workload.is_empty() && args.trace.is_none() {
            sources.push(Source::Pattern(crate::sim::Pattern::Steady));
        }
        check_names(args, problems);
        let (gpus, models) = (or(&args.gpu, "a100"), or(&args.model, "8b"));
        let mut loads = Vec::new();
        for gpu in &gpus {
            for model in &models {
                loads
                    .extend(sources.iter().filter_map(|source| Load::named(gpu, model, source.clone()).ok()));
            }
        }
        loads
    };
    for load in &mut loads {
        load.utilization = args.utilization;
    }
    loads
}

/// Those of [`parking::loads`] that are named; any others that are.
fn parking_loads(args: &SimulateArgs, problems: &mut Problems) -> Vec<Load> {
    if args.suite.is_some() || args.trace.is_some() {
        return loads(args, problems);
    }
    let wanted = |names: &[String], key: &str| {
        names.is_empty() || names.iter().any(|name| name.eq_ignore_ascii_case(key))
    };
    let mut chosen: Vec<Load> = problems
        .keep(parking::loads())
        .unwrap_or_default()
        .into_iter()
        .filter(|load| {
            wanted(&args.gpu, load.gpu.key)
                && wanted(&args.model, load.model.key)
                && wanted(&args.workload, &load.source.to_string())
        })
        .collect();
    if chosen.is_empty() {
        return loads(args, problems);
    }
    for load in &mut chosen {
        load.utilization = args.utilization.or(load.utilization);
    }
    chosen
}

fn plan_parking(args: &SimulateArgs, experiment: Experiment) -> Result<parking::Trial, Vec<String>> {
    let mut problems = Problems(Vec::new());
    let named = args.parking.iter().flat_map(|name| {
        if name == DEFAULT_RULES { ParkPolicy::DEFAULT.split(',') } else { name.split(',') }
    });
    let policies: Vec<ParkPolicy> = named.filter_map(|name| problems.keep(name.parse())).collect();
    for share in &args.own_connections {
        if !(0.0..=1.0).contains(share) {
            problems.add(format!("--own-connections {share}: give shares from 0 to 1, such as 1,0"));
        }
    }
    if args.format == Format::Csv {
        problems.add("--format csv: --parking gives a table or json".to_owned());
    }
    let Experiment { loads, seeds, seconds, config, .. } = experiment;
    let fresh_connections = args.own_connections.clone();
    let trial = parking::Trial { loads, seeds, fresh_connections, policies, seconds, config };
    if problems.0.is_empty() { Ok(trial) } else { Err(problems.0) }
}

fn compare_parking(args: &SimulateArgs, trial: &parking::Trial) -> anyhow::Result<String> {
    create_out(args)?;
    let bar = progress_bar(trial.pieces());
    let outcomes = trial.run(args.jobs.map_or(0, usize::from), || bar.inc(1))?;
    bar.finish_and_clear();
    let (table, json) =
        (parking::report::table(trial, &outcomes), parking::report::json(trial, &outcomes)? + "\n");
    if let Some(directory) = &args.out {
        write(directory, "parking.txt", &table)?;
        write(directory, "parking.json", &json)?;
    }
    Ok(if args.format == Format::Json { json } else { table })
}

fn check_names(args: &SimulateArgs, problems: &mut Problems) {
    for gpu in &args.gpu {
        problems.keep(crate::sim::GpuPreset::named(gpu));
    }
    for model in &args.model {
        problems.keep(crate::sim::ModelPreset::named(model));
    }
}

fn given_trace(file: &Path, speed: &str) -> Result<Source, String> {
    let speed = match speed {
        "auto" => None,
        text => match text.parse::<f64>() {
            Ok(speed) if speed.is_finite() && speed > 0.0 => Some(speed),
            _ => return Err(format!("--trace-speed `{text}`: give a number above 0, or auto")),
        },
    };
    let shown = file.display();
    let text =
        std::fs::read_to_string(file).map_err(|error| format!("--trace {shown}: cannot be read: {error}"))?;
    let requests = parse_trace(&text, 1.0).map_err(|error| format!("--trace {shown}: {error}"))?;
    let name = file.file_stem().map_or_else(|| shown.to_string(), |stem| stem.to_string_lossy().into_owned());
    Ok(Source::Given(Arc::new(GivenTrace { name, requests, speed })))
}

fn try_savings(args: &SimulateArgs, experiment: Experiment, share: f64) -> anyhow::Result<String> {
    anyhow::ensure!((0.02..=0.5).contains(&share), "--savings {share}: give a share from 0.02 to 0.5");
    let Experiment { loads, seeds, seconds, mut config, .. } = experiment;
    config.holdout.share = share;
    let trial = Trial { loads, seeds, seconds, config };
    let bar = progress_bar(trial.pieces());
    let told = trial.run(args.jobs.map_or(0, usize::from), || bar.inc(1))?;
    bar.finish_and_clear();
    Ok(savings::table(&told))
}

fn simulate(args: &SimulateArgs, experiment: &Experiment) -> anyhow::Result<String> {
    create_out(args)?;
    let bar = progress_bar(experiment.pieces());
    let cells = experiment.run(args.jobs.map_or(0, usize::from), || bar.inc(1))?;
    bar.finish_and_clear();
    if let Some(directory) = &args.out {
        write_all(directory, experiment, &cells)?;
    }
    Ok(match args.format {
        Format::Table => table::render(experiment, &cells),
        Format::Csv => report::csv(&cells)?,
        Format::Json => report::json(experiment, &cells)? + "\n",
    })
}

/// Before the work, so that a bad directory costs nothing.
fn create_out(args: &SimulateArgs) -> anyhow::Result<()> {
    let Some(directory) = &args.out else { return Ok(()) };
    std::fs::create_dir_all(directory).with_context(|| format!("cannot create --out {}", directory.display()))
}

fn write(directory: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let path = directory.join(name);
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn write_all(directory: &Path, experiment: &Experiment, cells: &[CellResult]) -> anyhow::Result<()> {
    write(directory, "results.json", &(report::json(experiment, cells)? + "\n"))?;
    write(directory, "results.csv", &report::csv(cells)?)?;
    write(directory, "table.txt", &table::render(experiment, cells))?;
    plots::draw(directory, experiment, cells)?;
    Ok(())
}

/// On standard error, and only if that is a terminal.
fn progress_bar(pieces: usize) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(u64::try_from(pieces).ok(), target);
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len}  {elapsed} elapsed, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_lists_and_ranges_without_repetition() {
        assert_eq!(seeds("1-3,2,7").unwrap(), [1, 2, 3, 7]);
        for wrong in ["", "a", "5-1", "1-99999", "1,,2", "-3"] {
            assert!(seeds(wrong).unwrap_err().starts_with(&format!("--seeds `{wrong}`: give")), "{wrong}");
        }
    }
}
