//! `agft demo`: the real loop, in real time, on a simulated server and GPU; then the same arrivals at default clocks.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tracing::level_filters::LevelFilter;

use super::tui::Tui;
use crate::sim::{Arrivals, Pattern, SharedWorld, SimGpu, World, WorldSpec, serve, shared};
use agft::bandit::ActionSpace;
use agft::cli::lab::DemoArgs;
use agft::cli::screen::possible;
use agft::cli::{Cli, Exit, logging, say};
use agft::compose;
use agft::config::{Config, EngineKind};
use agft::control::{Controller, Learned, Settings};
use agft::daemon::actuator::Actuator;
use agft::daemon::clock::Clock;
use agft::daemon::feed::{Feed, Schedule, Servers};
use agft::daemon::host::{Host, drive};
use agft::daemon::log::LogObserver;
use agft::daemon::sampler::Sampler;
use agft::daemon::show::{self, Show};
use agft::daemon::tick::{End, Group, Observer, StepFacts, unix_seconds};
use agft::export::guard::Hosts;
use agft::export::http;
use agft::export::{Latest, Published};
use agft::gpu::GpuSensors;
use agft::gpu::lease::ClockLease;
use agft::holdout::Savings;
use agft::metrics::scrape::Scraper;
use agft::open::group::sampler_settings;
use agft::park::levers::LeverBook;
use agft::signals::Signals;
use agft::units::{Seconds, Time};
use agft::view::{HostState, View};
use agft::{complain, say};

/// What one run cost and gave.
#[derive(Debug, Clone, Copy, Serialize)]
struct Outcome {
    energy_j: f64,
    generated_tokens: f64,
    requests_finished: usize,
    energy_per_token_j: f64,
    ttft_mean_s: f64,
    tpot_mean_s: f64,
    /// Energy times mean time per output token.
    edp_js: f64,
}

/// The result of the demo.
#[derive(Debug, Serialize)]
struct Report {
    gpu: String,
    model: String,
    /// Seconds that were run.
    seconds: f64,
    seed: u64,
    default_clocks: Outcome,
    agft: Outcome,
    /// The last third of the time alone, when the first learning is behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    default_clocks_last_third: Option<Outcome>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agft_last_third: Option<Outcome>,
    /// What the live view said at the end.
    verdict: String,
    rounds: u64,
    clock_writes: usize,
    clocks_given_back: bool,
}

/// Runs the demo.
#[must_use]
pub fn run(args: &DemoArgs, cli: &Cli) -> Exit {
    let level = match cli.log_level {
        Some(level) => logging::console_level(Some(level), &Config::default().logging),
        None => LevelFilter::WARN,
    };
    if args.tui
        && let Err(error) = possible()
    {
        complain!("agft: {error}");
        return Exit::Failure;
    }
    // Lines of a log would run across the view, which has its own news.
    let across = args.tui && std::io::IsTerminal::is_terminal(&std::io::stderr());
    let level = if across { LevelFilter::OFF } else { level };
    let _guard = logging::start(level, cli.log_format, None);
    match demo(args, cli.panic_at_tick) {
        Ok(Some(report)) => print(&report, args.json),
        Ok(None) => {
            complain!("agft: demo ended by a signal; the simulated clocks were given back");
            Exit::Failure
        }
        Err(error) => {
            complain!("agft: {error:#}");
            Exit::Failure
        }
    }
}

fn demo(args: &DemoArgs, panic_at_tick: Option<u64>) -> anyhow::Result<Option<Report>> {
    let spec = WorldSpec::named(&args.gpu, &args.model, Pattern::Steady, None)?;
    let length = f64::from(args.seconds);
    let Arrivals::Open(load) = &spec.arrivals else { anyhow::bail!("the demo's load is an open one") };
    // The same list for both runs: what one gets, the other gets at the same moment.
    let requests = load.requests(length, args.seed);
    let spec = WorldSpec { arrivals: Arrivals::Listed(requests), ..spec };

    let world = shared(World::new(spec.clone(), args.seed)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let Some(run) = runtime.block_on(live(args, panic_at_tick, &world))? else { return Ok(None) };

    let (third, (end_s, end)) = run.marks;
    let mut reference = World::new(spec, args.seed)?;
    let reference_third = third.map(|(third_s, _)| {
        reference.advance(Time(third_s));
        Mark::of(&reference)
    });
    reference.advance(Time(end_s));
    let reference_end = Mark::of(&reference);

    let world = world.lock().unwrap_or_else(PoisonError::into_inner);
    let start = Mark::default();
    Ok(Some(Report {
        gpu: reference.gpu().name.to_owned(),
        model: args.model.clone(),
        seconds: end_s.round(),
        seed: args.seed,
        default_clocks: reference_end.outcome_since(&start, &reference),
        agft: end.outcome_since(&start, &world),
        default_clocks_last_third: reference_third
            .map(|third| reference_end.outcome_since(&third, &reference)),
        agft_last_third: third.map(|(_, third)| end.outcome_since(&third, &world)),
        verdict: run.verdict,
        rounds: run.rounds,
        clock_writes: world.writes().len(),
        clocks_given_back: world.locks() == crate::sim::Locks::default(),
    }))
}

/// Counters of a world at a moment.
#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    joules: f64,
    tokens: f64,
    finished: usize,
}

impl Mark {
    fn of(world: &World) -> Self {
        Self {
            joules: world.true_energy().0,
            tokens: world.signals().generation_tokens.unwrap_or(0.0),
            finished: world.finished().len(),
        }
    }

    /// Of a world that is brought up to now; with the moment.
    fn now(world: &SharedWorld, clock: &crate::sim::Clock) -> (f64, Self) {
        let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
        world.advance(clock());
        (world.now().0, Self::of(&world))
    }

    fn outcome_since(&self, earlier: &Self, world: &World) -> Outcome {
        let requests = world.finished().get(earlier.finished..self.finished).unwrap_or(&[]);
        let mean = |values: Vec<f64>| {
            #[expect(clippy::cast_precision_loss, reason = "some thousand requests")]
            let count = values.len().max(1) as f64;
            values.iter().sum::<f64>() / count
        };
        let tpot =
            mean(requests.iter().filter_map(crate::sim::FinishedRequest::tpot).map(|tpot| tpot.0).collect());
        let energy = self.joules - earlier.joules;
        let tokens = self.tokens - earlier.tokens;
        Outcome {
            energy_j: energy,
            generated_tokens: tokens,
            requests_finished: requests.len(),
            energy_per_token_j: energy / tokens.max(1.0),
            ttft_mean_s: mean(requests.iter().map(|r| r.ttft().0).collect()),
            tpot_mean_s: tpot,
            edp_js: energy * tpot,
        }
    }
}

/// What the live run leaves behind.
struct LiveRun {
    /// Two thirds through, unless it ended before; and at the end.
    marks: (Option<(f64, Mark)>, (f64, Mark)),
    verdict: String,
    rounds: u64,
}

/// The daemon's own loop against the embedded server; `None` if a signal ended it.
async fn live(
    args: &DemoArgs,
    panic_at_tick: Option<u64>,
    world: &SharedWorld,
) -> anyhow::Result<Option<LiveRun>> {
    let clock = Clock::start();
    let world_clock: crate::sim::Clock = Arc::new(move || clock.now());
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("loopback port")?;
    let server = serve(world.clone(), world_clock.clone(), listener)?;
    let (sensors, clocks) = SimGpu::pair(world, &world_clock);

    let mut config = Config::default();
    config.vllm.prometheus_url = server.metrics_url();
    let supported = sensors.supported_clocks()?;
    // A minute is too short for the holdout experiment; the demo knows what default clocks cost from a run of its own.
    let settings = Settings { holdout: None, ..compose::control_settings(&config, false) };
    let learned = Learned::fresh(compose::learner(&config), config.metrics.baseline_measurements);
    let space = ActionSpace::new(&supported, &compose::space_settings(&config, Vec::new()));
    let lease = ClockLease::take(vec![(Box::new(clocks), supported.core_min())])?;

    let length = f64::from(args.seconds);
    let shown = Arc::new(Mutex::new(Shown { marks: [None, None], rounds: 0 }));
    let controller = Controller::new(settings, learned, space, 1, clock.now()).with_levers(compose::levers(
        &config,
        &supported,
        LeverBook::default(),
    ));
    let about = show::about(agft::config::ONE, &config, controller.settings());
    let mut gpu = sensors.info().clone();
    gpu.name += " (simulated)";
    let view = View::new(about, &[gpu], &controller, &Savings::default(), unix_seconds());
    let (show, latest) = Show::new(view);
    let published = Published::new(HostState::new(unix_seconds(), false));
    published.add(agft::config::ONE, latest.clone());
    let (mut tui, orders) = if args.tui { Some(Tui::start(published.clone())?) } else { None }.unzip();
    let display = Display {
        world: world.clone(),
        world_clock: world_clock.clone(),
        shown: Arc::clone(&shown),
        marks_at: [2.0 / 3.0 * length, length],
        bar: (!args.json && !args.tui).then(|| progress_bar(args.seconds)),
    };
    let schedule = Schedule { start: Time(0.15), period: config.control.decision_interval_s };
    let scraper = Scraper::new(&compose::scrape_settings(&config, &EngineKind::Named("vLLM".to_owned())))?;
    let group = Group {
        name: agft::config::ONE.into(),
        servers: Vec::new(),
        gpus: BTreeSet::new(),
        span: tracing::Span::none(),
        controller,
        savings: Savings::default(),
        feed: Feed::spawn(Servers::new(vec![(agft::config::ONE.into(), scraper)]), schedule, clock),
        sampler: Sampler::spawn(vec![Box::new(sensors)], sampler_settings(&config), clock)?,
        actuator: Some(Actuator::spawn(lease, clock)?),
        watch: None,
        observers: vec![Box::new(LogObserver::new(false, false)), Box::new(display), Box::new(show)],
        reload: None,
        clients: None,
        instances: published.instances().on(BTreeSet::new()),
        schedule,
        clock,
        panic_at_tick,
        stall_at_tick: None,
        quiet: agft::control::quiet::Quiet::default(),
    };
    let host = Host { orders, ..Host::alone(group) };
    let _page = args.listen.map(|address| page(address, &published)).transpose()?;
    let mut signals = Signals::install()?;
    let end = drive(host, async {
        tokio::select! {
            name = signals.wait() => End::Signal(name),
            () = agft::daemon::feed::sleep_until(clock, Time(length) + Seconds(0.35)) => End::Finished,
            () = quit(tui.as_mut()) => End::Finished,
        }
    })
    .await;
    let now = Mark::now(world, &world_clock);
    // The terminal first: whatever there is to say is said on the user's own screen.
    let viewed = tui.map_or(Ok(()), Tui::end);
    let end = end?;
    viewed?;
    server.stop().await?;
    if let Some(file) = &args.save_view {
        save_view(&published, &latest, file).with_context(|| file.display().to_string())?;
    }
    let shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
    let [third, whole] = shown.marks;
    let verdict = latest.state.borrow().verdict.clone();
    Ok(match end {
        End::Finished => Some(LiveRun {
            marks: (third, whole.unwrap_or(now)),
            verdict: format!("{} ({})", verdict.words, verdict.basis()),
            rounds: shown.rounds,
        }),
        End::Signal(_) => None,
    })
}

/// Resolves when the user ends the view; never without one.
async fn quit(tui: Option<&mut Tui>) {
    match tui {
        Some(tui) => tui.quit().await,
        None => std::future::pending().await,
    }
}

/// Writes what the view was drawn from, as the control socket's answers have it.
fn save_view(published: &Published, latest: &Latest, file: &Path) -> anyhow::Result<()> {
    let history = latest.history.borrow().clone();
    let view = serde_json::json!({ "state": published.host(), "history": *history });
    Ok(std::fs::write(file, serde_json::to_vec(&view)?)?)
}

/// Serves the run's page until this is dropped.
fn page(address: SocketAddr, published: &Published) -> anyhow::Result<http::Server> {
    let page = http::Bound::new("--listen", address)?;
    complain!("page: http://{}/", page.address());
    Ok(page.serve(published.clone(), Hosts::default())?)
}

fn progress_bar(seconds: u32) -> ProgressBar {
    let bar = ProgressBar::new(u64::from(seconds));
    let style = ProgressStyle::with_template("{bar:30} {pos:>3}/{len} s  {wide_msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// What the display has seen, shared with the end of the demo.
struct Shown {
    marks: [Option<(f64, Mark)>; 2],
    rounds: u64,
}

/// Shows progress, and takes the marks.
struct Display {
    world: SharedWorld,
    world_clock: crate::sim::Clock,
    shown: Arc<Mutex<Shown>>,
    marks_at: [f64; 2],
    bar: Option<ProgressBar>,
}

impl Observer for Display {
    fn step(&mut self, facts: &StepFacts<'_>) {
        let now = facts.seen.now.0;
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, mark) in self.marks_at.iter().zip(&mut shown.marks) {
            if mark.is_none() && now >= *at {
                *mark = Some(Mark::now(&self.world, &self.world_clock));
            }
        }
        shown.rounds = facts.controller.learned().rounds;
        let (Some(bar), Some(round)) = (&self.bar, &facts.output.round) else { return };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "seconds of a short run"
        )]
        bar.set_position(now.max(0.0) as u64);
        let power = round.power.map_or_else(|| "   - W".into(), |power| format!("{:4.0} W", power.0));
        let delay = round.cost.map_or_else(|| "-".into(), |cost| format!("{:.1} ms", 1e3 * cost.delay.0));
        bar.set_message(format!(
            "{:<12} {:<16} {power}  {:5.0} tok/s  TPOT {delay}",
            round.mode.name().to_lowercase(),
            round.command.to_string(),
            round.context.decode_throughput,
        ));
    }

    fn end(&mut self, _controller: &Controller, _: &Savings) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn print(report: &Report, json: bool) -> Exit {
    if json {
        match serde_json::to_string_pretty(report) {
            Ok(text) => drop(say::print(&(text + "\n"))),
            Err(error) => {
                complain!("agft: cannot write JSON: {error}");
                return Exit::Failure;
            }
        }
        return Exit::Ok;
    }
    say!(
        "{} serving the {} model for {} s, the same requests at default clocks and with agft (simulated)",
        report.gpu,
        report.model,
        report.seconds
    );
    say!();
    table("whole run, learning included", &report.default_clocks, &report.agft);
    if let (Some(default), Some(agft)) = (&report.default_clocks_last_third, &report.agft_last_third) {
        table("last third", default, agft);
    }
    say!("said by the live view: {}", report.verdict);
    say!(
        "{} rounds, {} clock calls; clocks {} at the end",
        report.rounds,
        report.clock_writes,
        if report.clocks_given_back { "given back" } else { "STILL LOCKED" }
    );
    Exit::Ok
}

fn table(title: &str, default: &Outcome, agft: &Outcome) {
    say!("{title:<28} {:>12} {:>12} {:>9}", "default", "agft", "change");
    let row = |name: &str, a: f64, b: f64, digits: usize| {
        let change = if a > 0.0 { format!("{:+.1} %", 100.0 * (b / a - 1.0)) } else { "-".into() };
        say!("  {name:<26} {a:>12.digits$} {b:>12.digits$} {change:>9}");
    };
    row("energy (J)", default.energy_j, agft.energy_j, 0);
    row("tokens generated", default.generated_tokens, agft.generated_tokens, 0);
    row("energy per token (J)", default.energy_per_token_j, agft.energy_per_token_j, 3);
    row("TTFT, mean (ms)", 1e3 * default.ttft_mean_s, 1e3 * agft.ttft_mean_s, 1);
    row("TPOT, mean (ms)", 1e3 * default.tpot_mean_s, 1e3 * agft.tpot_mean_s, 2);
    row("EDP (J s)", default.edp_js, agft.edp_js, 1);
    say!();
}
