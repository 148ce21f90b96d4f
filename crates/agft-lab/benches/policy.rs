//! What a decision costs: LinUCB over 128 clocks, one choice among all of them and one lesson; and the whole control step
//! with `structured` in charge.
//!
//! agft does this once per decision interval (0.3 s). Run with `cargo bench --bench policy`.

#![expect(clippy::expect_used, reason = "a benchmark that cannot be set up fails")]

use std::hint::black_box;

use agft::bandit::linucb::LinUcbSettings;
use agft::bandit::space::SpaceSettings;
use agft::bandit::{ActionSpace, LinUcb, Policy, View};
use agft::compose;
use agft::config::Config;
use agft::control::{Controller, Learned};
use agft::gpu::{MemoryLevel, SupportedClocks};
use agft::units::{Mhz, Seconds, Time};
use agft_lab::sim::run::{Driver, RunSpec, run};
use agft_lab::sim::{Pattern, World, WorldSpec};
use criterion::{Criterion, criterion_group, criterion_main};

const ARMS: u32 = 128;

/// A policy that has swept all arms and learned `lessons` at each.
fn trained(lessons: u32) -> (LinUcb, ActionSpace) {
    let level = MemoryLevel { memory: Mhz(1593), core: (1..=ARMS).map(|k| Mhz(15 * k)).collect() };
    let clocks = SupportedClocks::new(vec![level]).expect("128 clocks");
    let space = ActionSpace::new(
        &clocks,
        &SpaceSettings { min_core: Mhz(15), step: Mhz(15), memory: Vec::new(), retry_after: Seconds(600.0) },
    );
    let mut policy = LinUcb::new(LinUcbSettings { dwell: Seconds(0.0), ..LinUcbSettings::default() });
    let mut now = 0.0;
    for round in 0..lessons * ARMS {
        now += 0.3;
        let context = context(round);
        let choice = policy.choose(View { now: Time(now), context: &context, space: &space });
        let clocks = choice.target.clocks().expect("a clock");
        policy.learn(clocks, &context, -clocks.core.as_f64() / 2000.0).expect("finite");
    }
    (policy, space)
}

fn context(round: u32) -> [f64; 7] {
    std::array::from_fn(|k| (f64::from(round) * 0.7 + k as f64).sin())
}

fn select_and_update(criterion: &mut Criterion) {
    let (mut policy, space) = trained(3);
    let mut round = 0;
    criterion.bench_function("linucb, 128 arms: select + update", |bencher| {
        bencher.iter(|| {
            round += 1;
            let context = context(round);
            let now = Time(1e6 + f64::from(round));
            let choice = policy.choose(View { now, context: black_box(&context), space: &space });
            if let Some(clocks) = choice.target.clocks() {
                let _ = policy.learn(clocks, &context, 0.1);
            }
            choice
        });
    });
}

/// The whole control step, `structured` in charge: a minute of a steady load in virtual time, with and without the loop.
/// The difference is 200 steps (and the readings that the simulated sensors give for them).
fn steps_of_the_loop(criterion: &mut Criterion) {
    let world = WorldSpec::named("a100", "8b", Pattern::Steady, None).expect("known names");
    let supported = World::new(world.clone(), 1).ok().and_then(|w| w.supported_clocks()).expect("clocks");
    let spec = RunSpec { world, seed: 1, seconds: Seconds(60.0), tick: Seconds(0.3) };
    let config = Config::default();
    let mut group = criterion.benchmark_group("60 s of a steady load");
    group.bench_function("default clocks, no loop", |bencher| {
        bencher.iter(|| run(&spec, Driver::Default, |_| {}).is_ok());
    });
    group.bench_function("structured: 200 control steps", |bencher| {
        bencher.iter(|| {
            let space = ActionSpace::new(&supported, &compose::space_settings(&config, Vec::new()));
            let settings = compose::control_settings(&config, false);
            let learned = Learned::fresh(compose::learner(&config), config.metrics.baseline_measurements);
            let mut controller = Controller::new(settings, learned, space, 1, Time(0.0));
            run(&spec, Driver::Controller(&mut controller), |_| {}).is_ok()
        });
    });
    group.finish();
}

criterion_group!(benches, select_and_update, steps_of_the_loop);
criterion_main!(benches);
