//! What the learner promises, on simulated servers that it was not tuned on: seeds from 900 on, loads of other sizes.
#![expect(clippy::unwrap_used, reason = "a simulated server that cannot be made fails the test")]

use agft::bandit::ActionSpace;
use agft::compose;
use agft::config::Config;
use agft::control::{Controller, Learned, Settings};
use agft::park::levers::LeverBook;
use agft::units::{Clocks, Mhz, Seconds, Time};
use agft_lab::sim::record::Figures;
use agft_lab::sim::run::{Driver, RunSpec, run};
use agft_lab::sim::{Pattern, World, WorldSpec};

fn spec(world: &WorldSpec, seed: u64, seconds: f64) -> RunSpec {
    RunSpec { world: world.clone(), seed, seconds: Seconds(seconds), tick: Seconds(0.3) }
}

fn edp(figures: &Figures) -> f64 {
    figures.joules_per_token() * figures.tpot.mean
}

/// Without limits and bound: what is held against the best of all fixed clocks.
fn unbounded() -> Config {
    let mut config = Config::default();
    config.control.ignore_slo = true;
    config
}

fn fresh(config: &Config) -> Learned {
    Learned::fresh(compose::learner(config), config.metrics.baseline_measurements)
}

/// Runs the loop as the daemon would with `config` from what was `learned`.
fn serve(spec: &RunSpec, config: &Config, learned: Learned) -> (Figures, Learned) {
    let supported = World::new(spec.world.clone(), spec.seed).unwrap().supported_clocks().unwrap();
    let space = ActionSpace::new(&supported, &compose::space_settings(config, Vec::new()));
    let settings = Settings { holdout: None, ..compose::control_settings(config, false) };
    let levers = compose::levers(config, &supported, LeverBook::default()).without_trial();
    let mut controller = Controller::new(settings, learned, space, 1, Time(0.0)).with_levers(levers);
    let figures = run(spec, Driver::Controller(&mut controller), |_| {}).unwrap().whole();
    (figures, controller.learned().clone())
}

/// The least that any of a dozen fixed clocks costs.
fn best_fixed(spec: &RunSpec) -> f64 {
    let supported = World::new(spec.world.clone(), spec.seed).unwrap().supported_clocks().unwrap();
    let clocks: Vec<Mhz> = supported.core().to_vec();
    let top = supported.core_max().as_f64();
    clocks
        .iter()
        .filter(|clock| clock.as_f64() > 0.35 * top)
        .step_by((clocks.len() / 18).max(1))
        .map(|clock| edp(&run(spec, Driver::Fixed(Clocks::core_only(*clock)), |_| {}).unwrap().whole()))
        .fold(f64::INFINITY, f64::min)
}

#[test]
fn restart_with_what_was_learned_needs_no_second_learning_phase() {
    let world = WorldSpec::named("rtx4090", "3b", Pattern::LongGeneration, Some(0.3)).unwrap();
    let config = unbounded();
    let (_, learned) = serve(&spec(&world, 901, 200.0), &config, fresh(&config));
    let supported = World::new(world.clone(), 901).unwrap().supported_clocks().unwrap();
    let known = learned.policy.as_structured().unwrap().best_by_load(supported.core());
    assert!(known.len() >= 4, "{known:?}");
    for best in &known {
        // Default clocks are among the candidates, and are the highest clock.
        assert!(best.cost_ratio <= 1.0 && best.tpot_ratio >= 1.0, "{best:?}");
        assert!(best.core.is_none_or(|core| supported.core().contains(&core)), "{best:?}");
    }
    assert!(known.iter().any(|best| best.cost_ratio < 0.95), "saving is to be had here: {known:?}");
    let restart = spec(&world, 902, 30.0);
    let (again, _) = serve(&restart, &config, learned);
    let (anew, _) = serve(&restart, &config, fresh(&config));
    let best = best_fixed(&restart);
    let (warm, cold) = (edp(&again) / best, edp(&anew) / best);
    assert!(warm < 1.05, "30 s after a restart: {warm} of the best fixed clock");
    assert!(cold > warm, "a fresh start costs {cold}");
}

#[test]
fn steady_load_is_within_five_percent_of_the_best_fixed_clock_from_scratch() {
    let world = WorldSpec::named("h100", "8b", Pattern::Steady, Some(0.25)).unwrap();
    let config = unbounded();
    let whole = spec(&world, 903, 240.0);
    let (figures, _) = serve(&whole, &config, fresh(&config));
    let ratio = edp(&figures) / best_fixed(&whole);
    assert!(ratio < 1.05, "{ratio}");
}

#[test]
fn burst_is_served_no_worse_than_by_any_fixed_clock() {
    let world = WorldSpec::named("a100", "8b", Pattern::Bursty, Some(0.3)).unwrap();
    let config = unbounded();
    let whole = spec(&world, 904, 300.0);
    let (figures, _) = serve(&whole, &config, fresh(&config));
    let ratio = edp(&figures) / best_fixed(&whole);
    assert!(ratio < 1.03, "{ratio}");
}

#[test]
fn slowdown_bound_is_kept_and_still_saves_energy() {
    let world = WorldSpec::named("l40s", "8b", Pattern::Steady, Some(0.25)).unwrap();
    let mut config = Config::default();
    config.control.objective = agft::reward::Objective::Energy;
    config.control.max_slowdown_percent = Some(10.0);
    let whole = spec(&world, 905, 240.0);
    let (figures, _) = serve(&whole, &config, fresh(&config));
    let default = run(&whole, Driver::Default, |_| {}).unwrap().whole();
    let slower = figures.tpot.mean / default.tpot.mean;
    let energy = figures.energy.0 / default.energy.0;
    assert!(slower < 1.10, "{slower} times as slow as default");
    assert!(energy < 0.97, "{energy} of default's energy");
}

#[test]
fn clients_with_a_fixed_concurrency_are_served_near_the_best_fixed_clock() {
    use agft_lab::sim::{Arrivals, ClosedLoop, Shape};
    let mut world = WorldSpec::named("a100", "8b", Pattern::Steady, None).unwrap();
    world.arrivals = Arrivals::Closed(ClosedLoop { clients: 12, think: Seconds(0.0), shape: Shape::CHAT });
    let config = unbounded();
    let whole = spec(&world, 906, 240.0);
    let (figures, _) = serve(&whole, &config, fresh(&config));
    let ratio = edp(&figures) / best_fixed(&whole);
    assert!(ratio < 1.05, "{ratio}");
}
