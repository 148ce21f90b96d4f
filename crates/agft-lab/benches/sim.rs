//! How fast the simulator runs: virtual seconds per second of one core, and what the page costs to render.

#![expect(clippy::expect_used, reason = "a bench may end with a panic")]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

use agft::units::Time;
use agft_lab::sim::{Pattern, World, WorldSpec};

const MINUTES: u64 = 10;

fn world(gpu: &str, model: &str, pattern: Pattern) -> World {
    let spec = WorldSpec::named(gpu, model, pattern, None).expect("known presets that fit");
    World::new(spec, 1).expect("default settings")
}

/// One element is one virtual second; a control loop looks at the world every 0.3 s of them.
fn virtual_seconds(c: &mut Criterion) {
    let mut group = c.benchmark_group("virtual_seconds");
    group.sample_size(10).throughput(Throughput::Elements(60 * MINUTES));
    for (gpu, model, pattern) in [
        ("a100", "8b", Pattern::Steady),
        ("h100", "3b", Pattern::HighConcurrency),
        ("h200", "3b", Pattern::LongGeneration),
        ("rtx3090", "3b", Pattern::PrefillHeavy),
    ] {
        group.bench_function(format!("{gpu}/{model}/{pattern}"), |b| {
            b.iter_batched_ref(
                || world(gpu, model, pattern),
                |world| {
                    for tick in 1..=200 * MINUTES {
                        #[expect(clippy::cast_precision_loss, reason = "a few thousand ticks")]
                        world.advance(Time(0.3 * tick as f64));
                        std::hint::black_box((world.signals(), world.energy_counter()));
                    }
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

fn page(c: &mut Criterion) {
    let mut world = world("a100", "8b", Pattern::Steady);
    world.advance(Time(60.0));
    c.bench_function("page", |b| b.iter(|| world.page()));
}

criterion_group!(benches, virtual_seconds, page);
criterion_main!(benches);
