//! Runs of the simulator, recorded and repeated; the estimate for other clocks, against what the simulator shows.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "replay/estimate.rs"]
mod estimate;

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use proptest::prelude::*;

use agft::config::{Config, PolicyKind};
use agft::control::{ClockOutcome, Controller, Observation, Order, Output, Scrape};
use agft::gpu::{Refusal, SupportedClocks};
use agft::replay::other::{Settings, other};
use agft::replay::same::same;
use agft::replay::{Cause, Head, Made, Recorded, ReplayError};
use agft::store::{RunDir, RunInfo, StepLimits, StepWriter};
use agft::units::{Seconds, Target, Time};
use agft_lab::policy::controller;
use agft_lab::sim::run::{Driver, Onlooker, RunSpec, run};
use agft_lab::sim::{Pattern, World, WorldSpec};

/// Changes the observation of a step.
type Forge = Box<dyn FnMut(u64, &mut Observation)>;

/// Writes what a run is shown, as the daemon does; segments end where the writer says so.
struct Tape {
    _base: tempfile::TempDir,
    run: RunDir,
    writer: StepWriter,
    head: Head,
    /// Changes what is shown, before it is written: what the run did not see.
    forge: Option<Forge>,
    steps: u64,
}

impl Tape {
    fn new(config: &Config, clocks: &SupportedClocks, controller: &Controller, segment: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let info = RunInfo {
            gpu_model: "simulated".into(),
            config_used: serde_json::Value::Null,
            config_snapshot: String::new(),
        };
        let run = RunDir::create(dir.path(), "agft", info, Timestamp::UNIX_EPOCH).unwrap();
        let limits = StepLimits { segment_bytes: segment, total_bytes: u64::MAX };
        let writer = run.steps(limits).unwrap();
        let head = Head {
            agft_version: env!("CARGO_PKG_VERSION").into(),
            number: 0,
            cause: Cause::Start,
            unix_time: 0.0,
            at: Time(0.0),
            config: config.to_yaml(),
            clocks: clocks.clone(),
            gpus: 1,
            dry_run: false,
        };
        let mut tape = Self { _base: dir, run, writer, head, forge: None, steps: 0 };
        tape.begin(Cause::Start, controller, Time(0.0));
        tape
    }

    fn begin(&mut self, cause: Cause, controller: &Controller, at: Time) {
        let head = Head { number: self.writer.next_number(), cause, at, ..self.head.clone() };
        self.writer.begin(&head, controller).unwrap();
    }

    /// Closes it; gives the run's directory.
    fn close(&mut self) -> PathBuf {
        self.writer.close().unwrap();
        self.run.path().to_owned()
    }
}

impl Onlooker for Tape {
    fn look(&mut self, seen: &Observation, output: &Output, controller: &Controller) {
        self.steps += 1;
        let mut step = Recorded { seen: seen.clone(), made: Made::of(output, controller) };
        if let Some(forge) = &mut self.forge {
            forge(self.steps, &mut step.seen);
        }
        if self.writer.step(&step).unwrap() {
            self.begin(Cause::Size, controller, seen.now);
        }
    }
}

fn world(pattern: Pattern) -> (WorldSpec, SupportedClocks) {
    let world = WorldSpec::named("a6000", "3b", pattern, None).unwrap();
    let clocks = World::new(world.clone(), 1).unwrap().supported_clocks().unwrap();
    (world, clocks)
}

/// Ten minutes of a policy, recorded in segments of that many bytes.
fn recorded(
    policy: PolicyKind,
    pattern: Pattern,
    seconds: f64,
    segment: u64,
    limits: bool,
) -> (Tape, PathBuf) {
    let (world, clocks) = world(pattern);
    let mut config = Config::default();
    if limits {
        config.control.tpot_limit = Seconds(0.02);
        config.control.ignore_slo = false;
    }
    let mut controller = controller(&config, &clocks, policy, 1);
    config.control.policy = policy;
    let mut tape = Tape::new(&config, &clocks, &controller, segment);
    let spec = RunSpec { world, seed: 3, seconds: Seconds(seconds), tick: Seconds(0.3) };
    run(&spec, Driver::Watched(&mut controller, &mut tape), |_| {}).unwrap();
    let dir = tape.close();
    (tape, dir)
}

#[test]
fn ten_minutes_of_either_policy_come_out_the_same_over_many_segments() {
    for (policy, pattern, limits) in [
        (PolicyKind::Structured, Pattern::PhaseShift, false),
        (PolicyKind::LinUcb, Pattern::OnOff, false),
        (PolicyKind::Structured, Pattern::Bursty, true),
    ] {
        let (tape, dir) = recorded(policy, pattern, 600.0, 200_000, limits);
        let same = same(&dir).unwrap();
        assert_eq!(same.first_difference, None, "{policy} {pattern:?}");
        assert!(same.is_same() && same.notes.is_empty(), "{same:?}");
        assert_eq!(same.steps, tape.steps);
        assert!(same.segments >= 3, "segments begin in the middle of things: {}", same.segments);
        assert!(same.decisions > 500 && same.commands > 10, "{same:?}");
        let bytes: u64 =
            dir.join("steps").read_dir().unwrap().map(|f| f.unwrap().metadata().unwrap().len()).sum();
        println!("{policy} {pattern:?}: {} steps, {bytes} bytes", same.steps);
    }
}

#[test]
fn an_altered_observation_is_found_where_it_is() {
    let (world, clocks) = world(Pattern::Steady);
    let config = Config::default();
    let mut controller = controller(&config, &clocks, PolicyKind::Structured, 1);
    let mut tape = Tape::new(&config, &clocks, &controller, u64::MAX);
    tape.forge = Some(Box::new(|step, seen| {
        if let (150, Some(gpu)) = (step, seen.gpus.first_mut()) {
            // The last bit of one energy reading.
            let point = gpu.energy.last_mut().unwrap();
            point.total.0 = f64::from_bits(point.total.0.to_bits() ^ (1 << 20));
        }
    }));
    let spec = RunSpec { world, seed: 3, seconds: Seconds(60.0), tick: Seconds(0.3) };
    run(&spec, Driver::Watched(&mut controller, &mut tape), |_| {}).unwrap();
    let same = same(&tape.close()).unwrap();
    assert!(!same.is_same());
    let difference = same.first_difference.unwrap();
    assert!((150..=152).contains(&difference.step), "{difference:?}");
    assert_ne!(difference.recorded, difference.replayed);
}

/// Everything that can be shown at once, to a controller and to its copy from a snapshot.
fn story(step: u64, seen: &mut Observation) {
    let target = |core| Target::Lock(agft::units::Clocks::core_only(agft::units::Mhz(core)));
    match step {
        100 => seen.orders = vec![Order::Pause],
        140 => seen.orders = vec![Order::Resume],
        200..240 => seen.scrape = Scrape::Failed("connection refused".into()),
        300 => seen.outcomes.push(ClockOutcome::Refused {
            target: target(1200),
            at: seen.now,
            recovery: Refusal::DropArm,
            why: "not supported".into(),
        }),
        350 => seen.outcomes.push(ClockOutcome::Refused {
            target: target(900),
            at: seen.now,
            recovery: Refusal::Pause,
            why: "timeout".into(),
        }),
        400..410 => seen.gpus[0].reading = None,
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Wherever a snapshot is taken, what it is read back to goes on as the controller does: outages, pauses and refusals
    /// included.
    #[test]
    fn snapshot_of_any_moment_goes_on_as_its_controller(at in 1_u64..600, linucb in any::<bool>()) {
        struct Twin { at: u64, step: u64, twin: Option<Controller> }
        impl Onlooker for Twin {
            fn look(&mut self, _: &Observation, _: &Output, _: &Controller) {}
        }
        let (world, clocks) = world(Pattern::Bursty);
        let policy = if linucb { PolicyKind::LinUcb } else { PolicyKind::Structured };
        let mut config = Config::default();
        config.control.ignore_slo = false;
        config.control.ttft_limit = Seconds(0.2);
        let first = controller(&config, &clocks, policy, 1);
        // The pages of an undisturbed run, told with the story to two controllers.
        struct Pages(Vec<Observation>);
        impl Onlooker for Pages {
            fn look(&mut self, seen: &Observation, _: &Output, _: &Controller) { self.0.push(seen.clone()); }
        }
        let mut pages = Pages(Vec::new());
        let spec = RunSpec { world, seed: 5, seconds: Seconds(210.0), tick: Seconds(0.3) };
        run(&spec, Driver::Watched(&mut first.clone(), &mut pages), |_| {}).unwrap();
        let mut teller = Twin { at, step: 0, twin: None };
        let mut controller = first;
        for mut seen in pages.0 {
            teller.step += 1;
            story(teller.step, &mut seen);
            let output = controller.step(&seen);
            if let Some(twin) = &mut teller.twin {
                let again = twin.step(&seen);
                let (a, b) = (Made::of(&output, &controller), Made::of(&again, twin));
                let (a, b) = (agft::store::steps::pack(&a), agft::store::steps::pack(&b));
                prop_assert_eq!(a, b, "step {}", teller.step);
            }
            if teller.step == teller.at {
                let bytes = agft::store::steps::pack(&controller).unwrap();
                let twin = agft::replay::segment::state(&bytes).unwrap();
                prop_assert_eq!(agft::store::steps::pack(&twin).unwrap(), bytes);
                teller.twin = Some(twin);
            }
        }
        let twin = teller.twin.unwrap();
        prop_assert_eq!(
            agft::store::steps::pack(&twin).unwrap(),
            agft::store::steps::pack(&controller).unwrap(),
            "and ends in the same state"
        );
    }
}

fn first_segment(dir: &Path) -> PathBuf {
    dir.join("steps/000001.agft-steps")
}

#[test]
fn torn_missing_and_damaged_segments_are_told_as_such() {
    let (_tape, dir) = recorded(PolicyKind::LinUcb, Pattern::Steady, 180.0, 60_000, false);
    let segments = agft::store::steps::segments_of(&dir).unwrap();
    assert!(segments.len() >= 3);
    let last = segments.last().unwrap();
    let whole = same(&dir).unwrap();
    let bytes = std::fs::read(last).unwrap();
    std::fs::write(last, &bytes[..bytes.len() - 100]).unwrap();
    let torn = same(&dir).unwrap();
    assert!(torn.is_same() && torn.steps < whole.steps, "{torn:?}");
    assert!(torn.notes[0].contains("cut off"), "{torn:?}");
    std::fs::write(last, &bytes).unwrap();

    std::fs::remove_file(first_segment(&dir)).unwrap();
    let later = same(&dir).unwrap();
    assert!(later.is_same() && later.notes[0].contains("are gone"), "{later:?}");

    let second = &segments[1];
    let mut bytes = std::fs::read(second).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 4;
    std::fs::write(second, &bytes).unwrap();
    let text = match same(&dir) {
        Ok(same) => {
            assert!(!same.is_same());
            same.damage.unwrap()
        }
        Err(error) => error.to_string(),
    };
    assert!(text.contains("000002.agft-steps") && text.contains("damaged"), "{text}");
}

#[test]
fn same_settings_choose_the_same_and_others_are_compared() {
    let (_tape, dir) = recorded(PolicyKind::Structured, Pattern::Steady, 300.0, u64::MAX, false);
    let linucb = other(&dir, &Settings::new(Some("linucb"), &[]).unwrap()).unwrap();
    assert!(linucb.rounds > 500 && linucb.same_clock < linucb.rounds, "{linucb:?}");
    assert_eq!(linucb.clocks.iter().map(|clock| clock.recorded).sum::<u64>(), linucb.rounds);
    assert_eq!(linucb.clocks.iter().map(|clock| clock.other).sum::<u64>(), linucb.rounds);

    let floor = Settings::new(None, &["gpu.min_frequency=1500".into()]).unwrap();
    let floored = other(&dir, &floor).unwrap();
    let low = floored.clocks.iter().filter(|clock| clock.core.is_some_and(|core| core.0 < 1500));
    assert_eq!(low.map(|clock| clock.other).sum::<u64>(), 0, "{floored:?}");

    for (set, says) in [("gpu.min_frequncy=1", "gpu.min_frequency"), ("control.policy=best", "structured")] {
        let settings = Settings::new(None, &[set.to_owned()]).unwrap();
        let error = other(&dir, &settings).unwrap_err();
        assert!(matches!(error, ReplayError::Config(_)) && error.to_string().contains(says), "{error}");
    }
    assert!(matches!(Settings::new(None, &["policy".into()]), Err(ReplayError::Set { .. })));
}
