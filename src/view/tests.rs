//! The view beside a real controller.

use super::*;
use crate::bandit::Learner;
use crate::bandit::linucb::LinUcbSettings;
use crate::bandit::space::SpaceSettings;
use crate::control::{GpuTick, Settings};
use crate::gpu::{GpuReading, MemoryLevel, SupportedClocks};
use crate::park::source::WakeSource;
use crate::reward::energy::EnergyPoint;
use crate::reward::floor::Cause;
use crate::reward::slo::Violation;
use crate::reward::{Objective, RewardForm};
use crate::units::{Mhz, Watts};
use crate::view::testing;

fn controller() -> Controller {
    let settings = Settings {
        holdout: None,
        outage_after: Seconds(1.0),
        settle: Seconds(0.1),
        verify_after: Seconds(0.5),
        clock_tolerance: Mhz(30),
        objective: Objective::Edp,
        reward: RewardForm::LogRatio,
        limits: None,
        idle: None,
        data_collection: false,
        dry_run: false,
        ema_alpha: 0.4,
        floor_step: Mhz(100),
        recover_arms_below: None,
    };
    let core = vec![Mhz(1200), Mhz(900), Mhz(600)];
    let clocks = SupportedClocks::new(vec![MemoryLevel { memory: Mhz(1215), core }]).unwrap();
    let space =
        SpaceSettings { min_core: Mhz(600), step: Mhz(100), memory: Vec::new(), retry_after: Seconds(60.0) };
    let mut space = ActionSpace::new(&clocks, &space);
    space.fail(Clocks::core_only(Mhz(900)), "the card runs at 800 MHz instead".into(), Time(0.0));
    space.set_floor(Some(Mhz(700)));
    let learned = Learned::fresh(Learner::linucb(LinUcbSettings::default()), 3);
    Controller::new(settings, learned, space, 1, Time(0.0))
}

fn gpu() -> GpuInfo {
    GpuInfo { index: 3, name: "A card".into(), ..crate::gpu::testing::info("GPU-1") }
}

fn view(controller: &Controller) -> View {
    let about = About { name: "chat".into(), policy: "linucb".into(), objective: "edp".into(), limits: None };
    View::new(about, &[gpu()], controller, &Savings::default(), 100.0)
}

fn observation(now: f64, joules: &[f64]) -> Observation {
    let energy = joules.iter().map(|total| EnergyPoint { at: Time(now), total: Joules(*total) }).collect();
    let reading =
        GpuReading { power: Some(Watts(120.0)), core_clock: Some(Mhz(1200)), ..GpuReading::default() };
    let gpus = vec![GpuTick { reading: Some(reading), read_at: Some(Time(now)), energy }];
    Observation {
        now: Time(now),
        scrape: Scrape::Failed("no".into()),
        gpus,
        outcomes: Vec::new(),
        orders: Vec::new(),
        connections: None,
        working: 0,
    }
}

fn show(view: &mut View, controller: &Controller, seen: &Observation, output: &Output) {
    view.step(&StepFacts {
        seen,
        output,
        controller,
        savings: &Savings::default(),
        lateness: Some(Seconds(0.002)),
        took: Seconds(0.001),
        not_given_back: false,
        unix_time: 100.0 + seen.now.0,
    });
}

#[test]
fn every_arm_says_whether_it_may_be_chosen_and_why_not() {
    let controller = controller();
    let arms = view(&controller).state().learner.arms.clone();
    let of = |core: u32| arms.iter().find(|arm| arm.clocks.core == Mhz(core)).unwrap();
    assert_eq!(of(1200).status, ArmStatus::Available);
    assert_eq!(
        (of(900).status, of(900).why.as_deref()),
        (ArmStatus::Failed, Some("the card runs at 800 MHz instead"))
    );
    assert_eq!(of(600).status, ArmStatus::BelowFloor);
    assert!(of(600).why.as_ref().unwrap().contains("700 MHz"));
    assert_eq!(of(1200).mean_reward, None, "nothing learned is not a reward of 0");
}

#[test]
fn energy_of_the_run_counts_from_its_first_reading_and_never_backwards() {
    let controller = controller();
    let mut view = view(&controller);
    for (now, joules) in [(0.3, vec![1000.0]), (0.6, vec![1010.0, 1030.0]), (0.9, vec![5.0, 8.0])] {
        show(&mut view, &controller, &observation(now, &joules), &Output::default());
    }
    approx::assert_relative_eq!(view.state().gpus[0].energy_j.unwrap(), 30.0 + 3.0, max_relative = 1e-12);
    assert_eq!(view.state().gpus[0].power_w, Some(120.0));
    assert_eq!((view.state().counts.steps, view.state().counts.scrape_failures), (3, 3));
}

#[test]
fn time_belongs_to_the_mode_that_was_in_force() {
    let controller = controller();
    let mut view = view(&controller);
    for now in [0.5, 1.0, 2.0] {
        show(&mut view, &controller, &observation(now, &[]), &Output::default());
    }
    let modes = &view.state().counts.mode_s;
    approx::assert_relative_eq!(modes["STARTING"], 1.5, max_relative = 1e-12);
    approx::assert_relative_eq!(modes.values().sum::<f64>(), 1.5, max_relative = 1e-12);
    assert_eq!(modes.len(), Mode::ALL.len());
}

#[test]
fn rounds_events_and_outcomes_are_counted_once_each() {
    let controller = controller();
    let mut view = view(&controller);
    let violation = Violation { limit: Limited::Tpot, measured: Seconds(0.1), allowed: Seconds(0.05) };
    let output = Output {
        events: vec![
            Event::Discontinuity("restart".into()),
            Event::LimitBroken { violation, running: Target::Default, floor: None, cause: Cause::Load },
            Event::Woken { by: WakeSource::Page, parked: Seconds(9.0) },
            Event::LimitKept,
        ],
        round: Some(Round { violation: Some(violation), ..testing::round() }),
        command: Some(Target::Lock(Clocks::core_only(Mhz(900)))),
        ..Output::default()
    };
    let in_force = |target| ClockOutcome::InForce { target, at: Time(0.3) };
    let lock = Target::Lock(Clocks::core_only(Mhz(900)));
    let mut seen = observation(0.3, &[]);
    seen.outcomes = vec![in_force(lock), in_force(lock), in_force(Target::Default)];
    show(&mut view, &controller, &seen, &output);
    show(&mut view, &controller, &observation(0.6, &[]), &Output::default());
    let state = view.state();
    assert_eq!((state.counts.rounds, state.counts.lessons, state.counts.clock_changes), (1, 1, 2));
    assert_eq!((state.counts.faults["engine_restart"], state.counts.faults["clock_refused"]), (1, 0));
    assert_eq!((state.counts.limit_violations["tpot"], state.counts.wakes["page"]), (1, 1));
    assert_eq!(state.counts.decisions["ucb"], 1);
    approx::assert_relative_eq!(state.counts.violated_s, 0.3, max_relative = 1e-9);
    approx::assert_relative_eq!(state.counts.generated_tokens, 120.0);
    assert_eq!(state.asked, Some(Clocks::core_only(Mhz(900))));
    let round = state.round.as_ref().unwrap();
    approx::assert_relative_eq!(round.edp_js.unwrap(), 45.0 * 0.02, max_relative = 1e-12);
    assert_eq!(round.default_edp_js, None, "what default clocks cost here was never shown");
}

#[test]
fn of_a_loop_that_has_ended_nothing_is_known_of_now() {
    let controller = controller();
    let mut view = view(&controller);
    let output = Output {
        round: Some(testing::round()),
        command: Some(Target::Lock(Clocks::core_only(Mhz(900)))),
        ..Output::default()
    };
    show(&mut view, &controller, &observation(0.3, &[1.0]), &output);
    view.end();
    let state = view.state();
    assert_eq!((state.mode, state.asked, state.in_force), (Mode::Fault, None, None));
    assert_eq!((state.load, &state.round), (Load::default(), &None));
    assert_eq!(state.counts.rounds, 1, "what happened stays");
}

#[test]
fn state_survives_the_way_through_json() {
    let state = testing::state();
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<crate::view::State>(&text).unwrap(), state);
}
