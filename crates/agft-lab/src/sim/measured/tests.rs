use super::*;
use crate::sim::presets::{
    MEASURED_GPUS, MODEL_8B, RTX_PRO_6000_MEASURED, RTX3090_MEASURED, RTX5090_MEASURED,
};
use crate::sim::{Batch, GpuPreset, Physics};

const PREFILL: Batch =
    Batch { prefill_tokens: 2048.0, prefill_pairs: 2e6, decode_seqs: 0.0, context_tokens: 2048.0 };

fn decode(seqs: f64) -> Batch {
    Batch { decode_seqs: seqs, context_tokens: 500.0 * seqs, ..Batch::default() }
}

fn cost(gpu: &GpuPreset, batch: &Batch, core: u32) -> StepCost {
    gpu.step(&Work::of(batch, &MODEL_8B, 0.001), Clocks { core: Mhz(core), ..gpu.fastest() })
}

fn table_of(gpu: &GpuPreset) -> &'static Table {
    let Physics::Measured(measured) = gpu.physics else { panic!("{} is not measured", gpu.key) };
    measured.sweeps.table()
}

#[test]
fn every_curve_spans_the_offered_clocks_and_no_more_is_offered() {
    for gpu in MEASURED_GPUS {
        let table = table_of(&gpu);
        let clocks = gpu.core_clocks();
        assert_eq!(clocks.first(), Some(&table.top), "{}", gpu.key);
        assert_eq!(gpu.core_reached, table.top, "{}", gpu.key);
        if gpu.memory.len() > 1 {
            assert_eq!(gpu.memory, table.levels.iter().filter_map(|level| level.memory).collect::<Vec<_>>());
        }
        let (low, high) = (gpu.core_range.0.as_f64().ln(), gpu.core_range.1.as_f64().ln());
        for level in &table.levels {
            for curve in [&level.prefill, &level.few, &level.many] {
                assert!(curve.0.len() >= 6, "{}: {curve:?}", gpu.key);
                assert!(curve.first().clock <= low && high <= curve.last().clock + 1e-9, "{}", gpu.key);
                assert!(curve.0.windows(2).all(|pair| pair[0].clock < pair[1].clock), "{}", gpu.key);
            }
        }
    }
}

#[test]
fn a_step_passes_through_every_measured_point_in_the_offered_range() {
    let sweeps = [
        (RTX3090_MEASURED, PREFILL, PREFILL_3090, None),
        (RTX3090_MEASURED, decode(1.0), DECODE_3090, None),
        (RTX5090_MEASURED, decode(6.0), SIX_5090, Some(MEMORY_5090[0])),
        (RTX5090_MEASURED, decode(6.0), SIX_5090, Some(MEMORY_5090[1])),
        (RTX_PRO_6000_MEASURED, decode(1.0), SINGLE_PRO, None),
        (RTX_PRO_6000_MEASURED, decode(32.0), BATCH_PRO, None),
    ];
    let points = Points(super::sweeps());
    let mut held = 0;
    for (gpu, batch, key, memory) in sweeps {
        let of_sweep: Vec<&Point> =
            points.of(key).filter(|point| memory.is_none() || point.memory == memory).collect();
        let offered = |core: Mhz| gpu.core_range.0 <= core && core <= gpu.core_range.1;
        // Several points at one clock have no one value.
        let alone = |core: Mhz| of_sweep.iter().filter(|point| point.core == Some(core)).count() == 1;
        let step = |point: &Point| {
            let memory = memory.or(gpu.fastest().memory);
            gpu.step(&Work::of(&batch, &MODEL_8B, 0.001), Clocks { core: point.core.unwrap(), memory })
        };
        let known: Vec<&Point> = of_sweep
            .iter()
            .copied()
            .filter(|p| p.core.is_some_and(|core| offered(core) && alone(core)))
            .collect();
        let work_per_token = step(known[0]).seconds * known[0].tokens_per_second;
        for point in &known {
            let step = step(point);
            approx::assert_relative_eq!(step.watts, point.watts, max_relative = 1e-9);
            approx::assert_relative_eq!(
                step.seconds * point.tokens_per_second,
                work_per_token,
                max_relative = 1e-9
            );
        }
        held += known.len();
    }
    assert!(held > 40, "{held} points");
    // Between one sequence and 32, measured at neither: within what is.
    let between = cost(&RTX_PRO_6000_MEASURED, &decode(6.0), 2104);
    assert!((348.4..=447.7).contains(&between.watts), "{between:?}");
}

#[test]
fn time_falls_and_power_rises_wherever_the_points_do() {
    for gpu in MEASURED_GPUS {
        let table = table_of(&gpu);
        for memory in gpu.memory {
            for batch in [PREFILL, decode(1.0), decode(64.0)] {
                let activity = if batch.decode_seqs > 0.0 {
                    Activity::Decode(batch.decode_seqs)
                } else {
                    Activity::Prefill
                };
                let clocks = |core| Clocks { core, memory: Some(*memory) };
                let work = Work::of(&batch, &MODEL_8B, 0.001);
                for pair in gpu.core_clocks().windows(2) {
                    let [high, low] = [pair[0], pair[1]];
                    let level = table.levels.iter().find(|level| level.memory == Some(*memory));
                    let level = level.unwrap_or(&table.levels[0]);
                    let curve = match activity {
                        Activity::Prefill => &level.prefill,
                        Activity::Decode(seqs) if seqs < 2.0 => &level.few,
                        Activity::Decode(_) => &level.many,
                    };
                    // The measured points around both clocks.
                    let around = |core: Mhz| {
                        let after = curve.0.partition_point(|knot| knot.clock < core.as_f64().ln());
                        after.saturating_sub(1)..=after.min(curve.0.len() - 1)
                    };
                    let span = &curve.0[*around(low).start()..=*around(high).end()];
                    let (fast, slow) = (gpu.step(&work, clocks(high)), gpu.step(&work, clocks(low)));
                    if span.windows(2).all(|knots| knots[0].time >= knots[1].time) {
                        assert!(fast.seconds <= slow.seconds * (1.0 + 1e-12), "{} {low} {high}", gpu.key);
                    }
                    if span.windows(2).all(|knots| knots[0].watts <= knots[1].watts) {
                        assert!(fast.watts >= slow.watts * (1.0 - 1e-12), "{} {low} {high}", gpu.key);
                    }
                }
            }
        }
    }
}

#[test]
fn a_mixed_step_is_the_sum_of_its_parts_and_its_power_their_mean() {
    let mixed = Batch { prefill_tokens: 512.0, prefill_pairs: 1e5, ..decode(16.0) };
    for gpu in MEASURED_GPUS {
        let Physics::Measured(measured) = gpu.physics else { panic!() };
        let work = Work { host: 0.0, ..Work::of(&mixed, &MODEL_8B, 0.0) };
        for core in [gpu.core_range.0, gpu.core_reached] {
            let clocks = Clocks { core, ..gpu.fastest() };
            let [prefill, decode, both] =
                [(0.02, 0.0), (0.0, 0.03), (0.02, 0.03)].map(|(p, d)| measured.step(&work, clocks, p, d));
            approx::assert_relative_eq!(both.seconds, prefill.seconds + decode.seconds, max_relative = 1e-12);
            let joules = prefill.watts * prefill.seconds + decode.watts * decode.seconds;
            approx::assert_relative_eq!(both.watts * both.seconds, joules, max_relative = 1e-12);
        }
    }
}

#[test]
fn power_cap_lowers_the_clock_of_a_measured_board_until_it_is_kept() {
    for gpu in MEASURED_GPUS {
        let clocks = gpu.core_clocks();
        let work = Work::of(&decode(16.0), &MODEL_8B, 0.001);
        let cap = agft::units::Watts(0.8 * gpu.step(&work, gpu.fastest()).watts);
        let (core, cost) = gpu.step_within(&work, gpu.fastest(), cap, &clocks);
        assert!(core < gpu.core_reached && cost.watts <= cap.0, "{}: {core} {cost:?}", gpu.key);
    }
}

#[test]
fn a_tilted_board_agrees_with_the_measured_one_at_the_highest_clock_but_for_its_power() {
    let gpu = RTX3090_MEASURED;
    let tilt = Tilt { prefill: 1.2, decode: 0.8, power: 1.1, watts: 1.05 };
    let tilted = GpuPreset { physics: Physics::Measured(Measured { sweeps: Sweeps::Rtx3090, tilt }), ..gpu };
    for batch in [PREFILL, decode(4.0)] {
        let (own, other) = (cost(&gpu, &batch, 1680), cost(&tilted, &batch, 1680));
        approx::assert_relative_eq!(own.seconds, other.seconds, max_relative = 1e-12);
        approx::assert_relative_eq!(1.05 * own.watts, other.watts, max_relative = 1e-12);
        let slower = |gpu| cost(gpu, &batch, 900).seconds / cost(gpu, &batch, 1680).seconds;
        let exponent = if batch.decode_seqs > 0.0 { 0.8 } else { 1.2 };
        approx::assert_relative_eq!(slower(&gpu).powf(exponent), slower(&tilted), max_relative = 1e-9);
    }
}
