//! What agft leaves on disk stays under a stated size, however long it runs (docs/files.md).
#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

use std::fs;

use agft::config::{Config, PolicyKind};
use agft::control::Controller;
use agft::store::rounds::files_of;
use agft::store::{Identity, RoundLimits, RoundRecord, RoundWriter, raw};
use agft::units::{Seconds, Time};
use agft_lab::policy::controller;
use agft_lab::sim::run::{Driver, RunSpec, run};
use agft_lab::sim::{Pattern, World, WorldSpec};
use jiff::Timestamp;

/// No model file is larger, with every clock that a board supports as an arm.
const MODEL_BOUND: usize = 512 << 10;
const TICK: f64 = 0.3;

fn identity() -> Identity {
    Identity {
        gpu_name: "NVIDIA H200".into(),
        gpu_uuids: vec!["GPU-1".into()],
        feature_names: agft::features::NAMES.iter().map(|name| (*name).to_owned()).collect(),
        policy: "linucb".into(),
        model_version: 1,
        engine_model: None,
    }
}

fn file_size(controller: &Controller) -> usize {
    raw::model_file(&identity(), &controller.learned().model()).expect("a model").len()
}

/// Runs so many rounds in virtual time, over loads that change; gives the model's sizes at ten moments.
fn sizes_over(policy: PolicyKind, rounds: u32) -> Vec<usize> {
    let mut config = Config::default();
    // As many arms, refinements, prunings and forgettings as there can be.
    config.linucb.coarse_step_mhz = agft::units::Mhz(15);
    config.control.refinement_start_threshold = 30;
    let patterns = [Pattern::PhaseShift, Pattern::Bursty, Pattern::OnOff, Pattern::Steady, Pattern::Light];
    let first = WorldSpec::named("a40", "3b", Pattern::Steady, None).expect("a world");
    let clocks = World::new(first, 1).expect("a world").supported_clocks().expect("clocks");
    let mut controller = controller(&config, &clocks, policy, 1);
    let mut seen = 0;
    let sizes = (0..10_u32)
        .map(|part| {
            let pattern = patterns[part as usize % patterns.len()];
            let world = WorldSpec::named("a40", "3b", pattern, None).expect("a world");
            let seconds = Seconds(TICK * f64::from(rounds) / 10.0);
            let spec = RunSpec { world, seed: u64::from(part), seconds, tick: Seconds(TICK) };
            run(&spec, Driver::Controller(&mut controller), |_| seen += 1).expect("a run");
            file_size(&controller)
        })
        .collect();
    assert!(seen + seen / 20 >= rounds, "{seen} rounds of {rounds}");
    sizes
}

fn model_stays_small(rounds: u32) {
    for policy in [PolicyKind::Structured, PolicyKind::LinUcb] {
        let sizes = sizes_over(policy, rounds);
        eprintln!("{policy}, {rounds} rounds: bytes of the model file after each tenth {sizes:?}");
        assert!(sizes.iter().all(|size| *size <= MODEL_BOUND), "{sizes:?}");
    }
}

#[test]
fn model_file_stays_under_its_bound() {
    model_stays_small(10_000);
}

#[test]
#[ignore = "minutes: cargo test --release --test growth -- --ignored --nocapture"]
fn model_file_stays_under_its_bound_over_a_hundred_thousand_rounds() {
    model_stays_small(100_000);
}

#[test]
fn record_of_a_hundred_thousand_rounds_stays_under_its_bound() {
    let dir = tempfile::tempdir().expect("a directory");
    let limits = RoundLimits { max_file_bytes: 1 << 20, max_files: 3, ..RoundLimits::default() };
    let mut writer = RoundWriter::open(dir.path(), limits, Time(0.0)).expect("a writer");
    let mut largest = 0;
    for round in 1..=100_000_u32 {
        let at = Timestamp::from_second(1_790_000_000 + i64::from(round)).expect("a time");
        writer.append(&RoundRecord::new(u64::from(round), at), Time(TICK * f64::from(round)));
        if round % 1000 == 0 {
            let files = files_of(dir.path()).expect("files");
            let bytes: u64 = files.iter().map(|file| fs::metadata(file).expect("a file").len()).sum();
            largest = largest.max(bytes);
            assert!(files.len() <= 3 && bytes <= 3 << 20, "{bytes} bytes in {} files", files.len());
        }
    }
    assert_eq!(writer.close().expect("all written").written, 100_000);
    assert!(largest > 2 << 20, "it never filled: {largest}");
}
