//! How near a policy comes to the best fixed clock, over a handful of simulated loads.
//!
//! `cargo run --release --example policy_table -- [seconds] [seeds] [filter] [policy] [first seed]`
//!
//! One row per load: energy-delay product over that of the best fixed clock for the same arrivals (found afterwards, by
//! sweep), whole run and last third, and over that of driver-default clocks.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use agft::bandit::ActionSpace;
use agft::bandit::structured::Structured;
use agft::config::{Config, PolicyKind};
use agft::control::{Controller, Learned};
use agft::daemon::setup;
use agft::gpu::SupportedClocks;
use agft::sim::run::{Driver, RunResult, RunSpec, run};
use agft::sim::{Pattern, World, WorldSpec};
use agft::units::{Clocks, Mhz, Seconds, Time};

/// GPU, model, pattern.
const LOADS: [(&str, &str, Pattern); 18] = [
    ("a6000", "3b", Pattern::Steady),
    ("a6000", "3b", Pattern::PhaseShift),
    ("a100", "8b", Pattern::Steady),
    ("a100", "8b", Pattern::PhaseShift),
    ("h100", "14b", Pattern::LongContext),
    ("rtx3090", "3b", Pattern::Bursty),
    ("a40", "8b", Pattern::OnOff),
    ("a6000", "8b", Pattern::PrefillHeavy),
    ("h100", "8b", Pattern::Light),
    ("rtx5090", "8b", Pattern::Steady),
    ("h200", "14b", Pattern::HighConcurrency),
    ("l40s", "8b", Pattern::Diurnal),
    ("rtx4090", "3b", Pattern::LongGeneration),
    ("a100", "14b", Pattern::HighCacheHit),
    ("l40s", "8b", Pattern::LongContext),
    ("rtx3090", "8b", Pattern::PrefillHeavy),
    ("rtx5090", "3b", Pattern::PhaseShift),
    ("a40", "3b", Pattern::Bursty),
];

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: f64| args.get(at).map_or(Ok(default), |text| text.parse());
    let seconds = number(0, 600.0)?;
    let seeds: u64 = args.get(1).map_or(Ok(2), |text| text.parse())?;
    let filter = args.get(2).map_or("", String::as_str);
    let policy = match args.get(3).map_or("structured", String::as_str) {
        "linucb" => PolicyKind::LinUcb,
        "structured" => PolicyKind::Structured,
        other => return Err(format!("unknown policy `{other}`; known: structured, linucb").into()),
    };
    let first: u64 = args.get(4).map_or(Ok(1), |text| text.parse())?;
    let loads: Vec<_> = LOADS.iter().filter(|load| name(load).contains(filter)).collect();

    println!(
        "{:28} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6} {:>7} {:>6} {:>6}",
        "EDP ratio to best fixed",
        "tpot",
        "worst",
        "last/3",
        "e2e",
        "/dflt",
        "best",
        "oracle",
        "steps",
        "noise"
    );
    let next = AtomicUsize::new(0);
    let rows = Mutex::new(vec![None; loads.len()]);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, Into::into) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(load) = loads.get(index) else { return };
                    let row = Row::measure(load, seconds, first..first + seeds, policy);
                    if let Ok(mut rows) = rows.lock() {
                        rows[index] = Some(row.map_err(|error| error.to_string()));
                    }
                }
            });
        }
    });
    let mut all = Vec::new();
    for (load, row) in loads.iter().zip(rows.into_inner().unwrap_or_default()) {
        let Some(row) = row else { continue };
        let row = row?;
        println!("{:28} {row}", name(load));
        all.push(row);
    }
    let mean = |of: &dyn Fn(&Row) -> f64| {
        (all.iter().map(|row| of(row).ln()).sum::<f64>() / all.len().max(1) as f64).exp()
    };
    let (tpot, last, e2e) = (mean(&|r| r.tpot), mean(&|r| r.last), mean(&|r| r.e2e));
    let (default, best) = (mean(&|r| r.default), mean(&|r| r.best));
    let worst = all.iter().map(|r| r.worst).fold(0.0, f64::max);
    println!("{:28} {tpot:6.3} {worst:6.3} {last:6.3} {e2e:6.3} {default:6.3} {best:6.3}", "geometric mean");
    Ok(())
}

fn name((gpu, model, pattern): &(&str, &str, Pattern)) -> String {
    format!("{gpu}/{model} {pattern}")
}

#[derive(Clone, Default)]
struct Row {
    tpot: f64,
    worst: f64,
    last: f64,
    e2e: f64,
    default: f64,
    best: f64,
    oracle: f64,
    changes: f64,
    noise: String,
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:6.3} {:6.3} {:6.3} {:6.3} {:6.3} {:6.3} {:7.0} {:6.0} {}",
            self.tpot,
            self.worst,
            self.last,
            self.e2e,
            self.default,
            self.best,
            self.oracle,
            self.changes,
            self.noise
        )
    }
}

impl Row {
    /// Geometric means over the seeds.
    fn measure(
        (gpu, model, pattern): &(&str, &str, Pattern),
        seconds: f64,
        seeds: std::ops::Range<u64>,
        policy: PolicyKind,
    ) -> Result<Self, Failure> {
        let world = WorldSpec::named(gpu, model, *pattern, None)?;
        let (mut sums, mut row) = ([0.0; 5], Self::default());
        let count = (seeds.end - seeds.start) as f64;
        for seed in seeds {
            let spec = RunSpec {
                world: world.clone(),
                seed,
                seconds: Seconds(seconds),
                count_from: Seconds(0.0),
                tick: Seconds(0.3),
            };
            let late = RunSpec { count_from: Seconds(seconds * 2.0 / 3.0), ..spec.clone() };
            let supported = supported(&world, seed)?;
            let oracle = sweep(&spec, &supported, RunResult::edp_tpot)?;
            let oracle_e2e = sweep(&spec, &supported, RunResult::edp_e2e)?;
            let default = run(&spec, Driver::Default, |_| {})?;
            let mut controller = controller(&supported, policy, seed);
            let result = run(&spec, Driver::Controller(&mut controller), |_| {})?;
            let mut again = self::controller(&supported, policy, seed);
            let result_late = run(&late, Driver::Controller(&mut again), |_| {})?;
            let oracle_late = run(&late, Driver::Fixed(oracle.0), |_| {})?;
            let ratios = [
                result.edp_tpot() / oracle.1,
                result_late.edp_tpot() / oracle_late.edp_tpot(),
                result.edp_e2e() / oracle_e2e.1,
                result.edp_tpot() / default.edp_tpot(),
                oracle.1 / default.edp_tpot(),
            ];
            for (sum, ratio) in sums.iter_mut().zip(ratios) {
                *sum += ratio.ln() / count;
            }
            row.worst = row.worst.max(ratios[0]);
            row.oracle += oracle.0.core.as_f64() / count;
            row.changes += result.clock_changes as f64 / count;
            if let Some((time, power)) =
                controller.learned().policy.as_structured().and_then(Structured::noise)
            {
                row.noise = format!("{time:.3}/{power:.3}");
            }
        }
        [row.tpot, row.last, row.e2e, row.default, row.best] = sums.map(f64::exp);
        Ok(row)
    }
}

fn supported(world: &WorldSpec, seed: u64) -> Result<SupportedClocks, Failure> {
    World::new(world.clone(), seed)?.supported_clocks().ok_or_else(|| "no clocks".into())
}

/// The controller that the daemon would run with default settings.
fn controller(supported: &SupportedClocks, policy: PolicyKind, seed: u64) -> Controller {
    let mut config = Config::default();
    config.control.policy = policy;
    config.control.seed = seed;
    let space = ActionSpace::new(supported, &setup::space_settings(&config, Vec::new()));
    let settings = setup::control_settings(&config, supported, false);
    let learned = Learned::fresh(setup::learner(&config), config.metrics.baseline_measurements);
    Controller::new(settings, learned, space, 1, Time(0.0))
}

/// The best fixed clock and its score: every fourteenth of the range, then nearer around the best.
fn sweep(
    spec: &RunSpec,
    supported: &SupportedClocks,
    score: fn(&RunResult) -> f64,
) -> Result<(Clocks, f64), Failure> {
    let (high, low) = (supported.core_max().as_f64(), supported.core_max().as_f64() * 0.3);
    let mut tried: Vec<(Mhz, f64)> = Vec::new();
    let try_clock = |wanted: f64, tried: &mut Vec<(Mhz, f64)>| -> Result<(), Failure> {
        let away = |clock: &Mhz| (clock.as_f64() - wanted).abs();
        let nearest = supported.core().iter().copied().min_by(|a, b| away(a).total_cmp(&away(b)));
        let clock = nearest.ok_or("no clocks")?;
        if tried.iter().all(|(known, _)| *known != clock) {
            let result = run(spec, Driver::Fixed(Clocks::core_only(clock)), |_| {})?;
            tried.push((clock, score(&result)));
        }
        Ok(())
    };
    for k in 0..=14 {
        try_clock(low + (high - low) * f64::from(k) / 14.0, &mut tried)?;
    }
    let best = |tried: &[(Mhz, f64)]| tried.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1));
    for share in [0.975, 0.9875, 1.0125, 1.025] {
        let center = best(&tried).ok_or("no clock")?.0.as_f64();
        try_clock(center * share, &mut tried)?;
    }
    let (clock, score) = best(&tried).ok_or("no clock")?;
    Ok((Clocks::core_only(clock), score))
}
