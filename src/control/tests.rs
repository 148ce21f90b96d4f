//! The step in scenes: a page and a GPU made up by hand, tick by tick.

mod sharing;

use super::{
    ClockOutcome, Controller, Event, GpuTick, Learned, Mode, Observation, Order, Output, Scrape, Settings,
};
use crate::bandit::linucb::LinUcbSettings;
use crate::bandit::space::SpaceSettings;
use crate::bandit::structured::StructuredSettings;
use crate::bandit::{ActionSpace, Learner, Policy};
use crate::gpu::{ClockReasons, GpuReading, MemoryLevel, Refusal, SupportedClocks};
use crate::metrics::{Histogram, Signals, Snapshot};
use crate::park::Settings as ParkSettings;
use crate::park::levers::{Lever, LeverBook, LeverKind, Levers};
use crate::park::rule::page::SETTINGS as BESIDE_A_SERVER;
use crate::park::wake::Running;
use crate::reward::energy::EnergyPoint;
use crate::reward::slo::{Limits, Statistic};
use crate::reward::{Objective, RewardForm};
use crate::units::{Clocks, Joules, Mhz, Seconds, Target, Time, Watts};

mod heat;

const TICK: f64 = 0.3;
const TOP: Clocks = Clocks { core: Mhz(1400), memory: None };
const IDLE: Clocks = Clocks { core: Mhz(200), memory: None };

fn settings() -> Settings {
    Settings {
        holdout: None,
        outage_after: Seconds(1.0),
        settle: Seconds(0.1),
        verify_after: Seconds(0.5),
        clock_tolerance: Mhz(30),
        objective: Objective::Edp,
        reward: RewardForm::LogRatio,
        limits: None,
        idle: Some(ParkSettings { connections: None, ..BESIDE_A_SERVER }),
        data_collection: false,
        dry_run: false,
        ema_alpha: 0.4,
        floor_step: Mhz(100),
        recover_arms_below: Some(1),
    }
}

fn policy(dwell: f64) -> LinUcbSettings {
    LinUcbSettings {
        initial_alpha: 1.0,
        dwell: Seconds(dwell),
        coarse_step_mhz: Mhz(100),
        ..LinUcbSettings::default()
    }
}

/// A controller with a page and a GPU around it.
struct Scene {
    controller: Controller,
    now: f64,
    tokens: f64,
    itl_sum: f64,
    joules: f64,
    /// What the driver was told last; confirmed at once unless `refuse` says otherwise.
    asked: Target,
    outcomes: Vec<ClockOutcome>,
    refuse: Option<(Target, Refusal)>,
    /// Clock that the card runs at whatever is asked.
    stuck_at: Option<Mhz>,
    /// Event reasons of the GPU.
    reasons: ClockReasons,
    /// What the GPU's thermometer shows.
    temperature_c: f64,
    /// Time between tokens on the page.
    itl: f64,
    commands: Vec<Target>,
    orders: Vec<Order>,
}

/// What the server does during a tick.
#[derive(Clone, Copy, PartialEq)]
enum Server {
    /// Serves, and its page says so.
    Busy,
    /// Does nothing.
    Idle,
    /// Works, but its page is stale and shows nothing.
    Stuck,
    /// Does not answer.
    Down,
}

impl Scene {
    fn new(settings: Settings) -> Self {
        Self::with_dwell(settings, 0.0)
    }

    fn with_dwell(settings: Settings, dwell: f64) -> Self {
        Self::with_learner(settings, Learner::linucb(policy(dwell)))
    }

    fn with_learner(settings: Settings, learner: Learner) -> Self {
        let level = MemoryLevel { memory: Mhz(1593), core: (2..=14).map(|k| Mhz(100 * k)).collect() };
        let clocks = SupportedClocks::new(vec![level]).unwrap();
        let space = SpaceSettings {
            // Above the idle clock: a command for that one is parking and nothing else.
            min_core: Mhz(300),
            step: Mhz(100),
            memory: Vec::new(),
            retry_after: Seconds(600.0),
        };
        let learned = Learned::fresh(learner, 5);
        let idle = vec![Lever { kind: LeverKind::Core, clocks: IDLE }];
        let top = Running { core: Some(TOP.core), memory: None };
        let levers = Levers::new(idle, LeverBook::default(), top);
        let space = ActionSpace::new(&clocks, &space);
        Self {
            controller: Controller::new(settings, learned, space, 1, Time(0.0)).with_levers(levers),
            now: 0.0,
            tokens: 0.0,
            itl_sum: 0.0,
            joules: 0.0,
            asked: Target::Default,
            outcomes: Vec::new(),
            refuse: None,
            stuck_at: None,
            reasons: ClockReasons::default(),
            temperature_c: 60.0,
            itl: 0.02,
            commands: Vec::new(),
            orders: Vec::new(),
        }
    }

    fn running(&self) -> Mhz {
        self.stuck_at.unwrap_or(self.asked.clocks().map_or(Mhz(1410), |clocks| clocks.core))
    }

    fn power(&self, server: Server) -> f64 {
        let share = self.running().as_f64() / 1410.0;
        match server {
            Server::Busy | Server::Stuck | Server::Down => 100.0 + 250.0 * share.powi(2),
            Server::Idle => 50.0 + 30.0 * share,
        }
    }

    /// Sensors and counter after `seconds` more of `server`.
    fn gpu(&mut self, server: Server, seconds: f64) -> GpuTick {
        let power = self.power(server);
        let mut energy = Vec::new();
        let steps = 10;
        for k in 1..=steps {
            let part = seconds * f64::from(k) / f64::from(steps);
            let total = Joules(self.joules + power * part);
            energy.push(EnergyPoint { at: Time(self.now + part), total });
        }
        self.joules += power * seconds;
        let reading = GpuReading {
            core_clock: Some(self.running()),
            power: Some(Watts(power)),
            utilization_percent: Some(if server == Server::Idle { 0.0 } else { 95.0 }),
            reasons: Some(self.reasons),
            temperature_c: Some(self.temperature_c),
            ..GpuReading::default()
        };
        GpuTick { reading: Some(reading), read_at: Some(Time(self.now + seconds)), energy }
    }

    fn step(&mut self, gpu: GpuTick, scrape: Scrape) -> Output {
        let outcomes = std::mem::take(&mut self.outcomes);
        let seen = Observation {
            now: Time(self.now),
            scrape,
            gpus: vec![gpu],
            outcomes,
            orders: std::mem::take(&mut self.orders),
            connections: None,
            working: 0,
        };
        let output = self.controller.step(&seen);
        if let Some(target) = output.command {
            self.commands.push(target);
            let at = Time(self.now);
            match self.refuse {
                Some((refused, recovery)) if refused == target => {
                    self.asked = Target::Default;
                    let why = "the driver refused".into();
                    self.outcomes.push(ClockOutcome::Refused { target, at, recovery, why });
                }
                _ => {
                    self.asked = target;
                    self.outcomes.push(ClockOutcome::InForce { target, at });
                }
            }
        }
        output
    }

    /// One tick of `server`.
    fn tick(&mut self, server: Server) -> Output {
        let gpu = self.gpu(server, TICK);
        self.now += TICK;
        if server == Server::Busy {
            self.tokens += 300.0;
            self.itl_sum += 300.0 * self.itl;
        }
        let scrape = match server {
            Server::Down => Scrape::Failed("connection refused".into()),
            _ => Scrape::Page(Box::new(self.page(server == Server::Busy))),
        };
        self.step(gpu, scrape)
    }

    fn ticks(&mut self, server: Server, count: usize) -> Vec<Output> {
        (0..count).map(|_| self.tick(server)).collect()
    }

    fn page(&self, busy: bool) -> Snapshot {
        let histogram = |sum: f64| Some(Histogram { sum, count: self.tokens, buckets: Vec::new() });
        Snapshot {
            at: Time(self.now),
            latency: Seconds(0.005),
            refused: Vec::new(),
            engine: None,
            signals: Signals {
                running: Some(if busy { 8.0 } else { 0.0 }),
                waiting: Some(0.0),
                kv_usage: Some(0.1),
                prompt_tokens: Some(self.tokens),
                generation_tokens: Some(self.tokens),
                step_tokens: Some(Histogram {
                    sum: 2.0 * self.tokens,
                    count: self.tokens / 8.0,
                    buckets: Vec::new(),
                }),
                ttft: histogram(0.1 * self.tokens),
                itl: histogram(self.itl_sum),
                ..Signals::default()
            },
        }
    }
}

fn events(outputs: &[Output]) -> impl Iterator<Item = &Event> {
    outputs.iter().flat_map(|output| &output.events)
}

#[test]
fn baseline_is_measured_first_and_then_clocks_are_swept_from_the_top() {
    let mut scene = Scene::new(settings());
    // One page to begin with, then five windows at default clocks.
    let outputs = scene.ticks(Server::Busy, 6);
    assert!(scene.commands[..scene.commands.len() - 1].iter().all(|target| *target == Target::Default));
    assert!(events(&outputs).any(|event| matches!(event, Event::BaselineDone { windows: 5 })));
    scene.ticks(Server::Busy, 30);
    let cores: Vec<u32> =
        scene.commands.iter().filter_map(|target| target.clocks()).map(|clocks| clocks.core.0).collect();
    assert_eq!(cores[..12], (3..=14).rev().map(|k| 100 * k).collect::<Vec<u32>>());
}

#[test]
fn windows_teach_the_clock_that_ran_in_them() {
    let mut scene = Scene::new(settings());
    scene.ticks(Server::Busy, 60);
    let summary = scene.controller.learned().policy.summary();
    // Same delay, less power: the reward of a clock is ln(P_default / P_clock).
    let arm = summary.arms.iter().find(|arm| arm.clocks.core == Mhz(700)).unwrap();
    let power = |clock: f64| 100.0 + 250.0 * (clock / 1410.0_f64).powi(2);
    approx::assert_relative_eq!(arm.mean_reward, (power(1410.0) / power(700.0)).ln(), max_relative = 1e-6);
}

#[test]
fn outage_gives_the_clocks_back_and_is_never_idleness() {
    let mut scene = Scene::new(settings());
    scene.ticks(Server::Busy, 20);
    assert_ne!(scene.asked, Target::Default);
    let outputs = scene.ticks(Server::Down, 200);
    assert_eq!(scene.asked, Target::Default);
    assert_eq!(scene.controller.mode(), Mode::Outage);
    assert!(!events(&outputs).any(|event| matches!(event, Event::Parked { .. })));
    let given_back = outputs.iter().position(|output| output.command == Some(Target::Default)).unwrap();
    assert!(given_back <= 4, "took {given_back} ticks");
    scene.ticks(Server::Busy, 3);
    assert_ne!(scene.asked, Target::Default);
}

#[test]
fn empty_page_and_quiet_gpu_park_and_rising_power_wakes_between_ticks() {
    let mut scene = Scene::new(settings());
    scene.ticks(Server::Busy, 20);
    scene.ticks(Server::Idle, 5);
    assert_eq!(scene.asked, Target::Lock(IDLE));
    // Some looks at the sensors while parked, then work that the page does not show yet.
    for _ in 0..5 {
        let gpu = scene.gpu(Server::Idle, 0.1);
        scene.now += 0.1;
        assert_eq!(scene.step(gpu, Scrape::Pending).command, None);
    }
    let gpu = scene.gpu(Server::Stuck, 0.1);
    scene.now += 0.1;
    let output = scene.step(gpu, Scrape::Pending);
    assert!(output.events.iter().any(|event| matches!(event, Event::Woken { .. })), "{:?}", output.events);
    assert!(output.command.is_some_and(|target| target != Target::Lock(IDLE)));
}

#[test]
fn stale_page_over_a_busy_gpu_never_parks() {
    let mut scene = Scene::new(settings());
    scene.ticks(Server::Busy, 20);
    let outputs = scene.ticks(Server::Stuck, 100);
    assert!(!events(&outputs).any(|event| matches!(event, Event::Parked { .. })));
}

#[test]
fn refused_clock_leaves_the_space_and_the_rest_goes_on() {
    let mut scene = Scene::new(settings());
    let refused = Clocks::core_only(Mhz(1300));
    scene.refuse = Some((Target::Lock(refused), Refusal::DropArm));
    let outputs = scene.ticks(Server::Busy, 60);
    assert!(events(&outputs).any(|event| matches!(event, Event::ClockRefused { .. })));
    assert!(!scene.controller.space().is_allowed(refused, Time(scene.now)));
    assert_eq!(scene.commands.iter().filter(|target| **target == Target::Lock(refused)).count(), 1);
    assert!(scene.controller.learned().policy.summary().rounds > 30);
}

#[test]
fn passing_fault_pauses_at_default_clocks() {
    let mut scene = Scene::new(settings());
    scene.refuse = Some((Target::Lock(TOP), Refusal::Pause));
    scene.ticks(Server::Busy, 8);
    assert_eq!(scene.controller.mode(), Mode::Fault);
    scene.refuse = None;
    scene.ticks(Server::Busy, 25);
    assert_ne!(scene.asked, Target::Default);
}

#[test]
fn clock_that_the_card_does_not_follow_is_dropped_with_the_reason() {
    let mut scene = Scene::with_dwell(settings(), 0.8);
    scene.ticks(Server::Busy, 7);
    scene.stuck_at = Some(Mhz(1410));
    let outputs = scene.ticks(Server::Busy, 400);
    assert!(events(&outputs).any(|event| matches!(event, Event::ClockNotHeld { running: Mhz(1410), .. })));
    assert!(!scene.controller.space().failed().is_empty());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]
    #[test]
    fn no_reading_makes_either_policy_ask_for_a_clock_off_the_list_or_below_the_minimum(
        reads in proptest::collection::vec(proptest::option::of(0_u32..2000), 1..40),
        below in 0_u32..700,
        follow in proptest::bool::ANY,
        structured in proptest::bool::ANY,
    ) {
        let reserve = policy(0.8);
        let learner = if structured {
            Learner::structured(StructuredSettings::default(), reserve)
        } else {
            Learner::linucb(reserve)
        };
        let few = Settings { recover_arms_below: Some(20), ..settings() };
        let mut scene = Scene::with_learner(few, learner);
        for read in reads {
            for _ in 0..10 {
                // Always so far below the lock, or whatever the sensor says.
                scene.stuck_at = if follow {
                    scene.asked.clocks().map(|clocks| Mhz(clocks.core.0.saturating_sub(below)))
                } else {
                    read.map(Mhz)
                };
                scene.tick(Server::Busy);
            }
        }
        for target in &scene.commands {
            let core = target.clocks().map(|clocks| clocks.core);
            let lawful = |core: Mhz| core.0.is_multiple_of(100) && (300..=1400).contains(&core.0);
            proptest::prop_assert!(
                core.is_none_or(lawful) || *target == Target::Lock(IDLE), "{:?}", scene.commands
            );
        }
    }
}

fn trained(outputs: &[Output]) -> usize {
    outputs.iter().filter_map(|output| output.round.as_ref()).filter(|round| round.learned).count()
}

#[test]
fn neither_policy_learns_from_windows_of_a_throttled_gpu() {
    let structured = || Learner::structured(StructuredSettings::default(), policy(0.0));
    for learner in [structured(), Learner::linucb(policy(0.0))] {
        let mut scene = Scene::with_learner(settings(), learner);
        assert!(trained(&scene.ticks(Server::Busy, 80)) > 0);
        for reason in [
            ClockReasons::HW_SLOWDOWN,
            ClockReasons::SW_THERMAL,
            ClockReasons::HW_THERMAL,
            ClockReasons::HW_POWER_BRAKE,
        ] {
            scene.reasons = reason;
            let samples = scene.controller.learned().baseline.samples();
            assert_eq!(trained(&scene.ticks(Server::Busy, 80)), 0, "{reason:?}");
            assert_eq!(scene.controller.learned().baseline.samples(), samples);
        }
        scene.reasons = ClockReasons::default();
        assert!(trained(&scene.ticks(Server::Busy, 80)) > 0);
    }
}

#[test]
fn gpu_held_at_a_low_clock_raises_an_alarm_and_teaches_nothing() {
    let structured = || Learner::structured(StructuredSettings::default(), policy(0.0));
    for learner in [structured(), Learner::linucb(policy(0.0))] {
        for reasons in [ClockReasons::default(), ClockReasons::HW_POWER_BRAKE] {
            let mut scene = Scene::with_learner(settings(), learner.clone());
            (scene.stuck_at, scene.reasons) = (Some(Mhz(210)), reasons);
            let outputs = scene.ticks(Server::Busy, 200);
            let alarms = |outputs: &[Output]| {
                events(outputs).filter(|event| matches!(event, Event::ClockHeldLow { .. })).count()
            };
            assert_eq!((alarms(&outputs), trained(&outputs)), (1, 0));
            assert!(scene.controller.is_held_low());
            assert!(!events(&outputs).any(|event| matches!(event, Event::Converged { .. })));
            assert_eq!(scene.controller.learned().baseline.samples(), 0);
            (scene.stuck_at, scene.reasons) = (None, ClockReasons::default());
            let outputs = scene.ticks(Server::Busy, 200);
            assert!(trained(&outputs) > 0 && !scene.controller.is_held_low());
        }
    }
}

#[test]
fn power_cap_is_learned_from() {
    let mut scene = Scene::new(settings());
    scene.reasons = ClockReasons::SW_POWER_CAP;
    assert!(trained(&scene.ticks(Server::Busy, 80)) > 0);
}

#[test]
fn changes_by_somebody_else_pause_the_loop_and_in_the_end_keep_it_away() {
    let mut scene = Scene::with_dwell(settings(), 2.0);
    let mut hands_off = Vec::new();
    for _ in 0..4000 {
        // Half a minute of peace, then somebody holds the card at 700 MHz for a while.
        scene.stuck_at = (scene.now % 40.0 > 30.0).then_some(Mhz(700));
        let output = scene.tick(Server::Busy);
        hands_off.extend(output.events.iter().find_map(|event| match event {
            Event::ClocksChanged { hands_off, .. } => Some((scene.now, *hands_off)),
            _ => None,
        }));
        if let Some((at, span)) = hands_off.last()
            && scene.now < at + span.0
        {
            assert_eq!(scene.asked, Target::Default, "touched at {}", scene.now);
        }
    }
    let spans: Vec<f64> = hands_off.iter().map(|(_, span)| span.0).collect();
    assert_eq!(spans[..3], [5.0, 5.0, 600.0]);
    assert!(scene.controller.space().failed().is_empty(), "no clock is blamed");
}

#[test]
fn broken_limit_puts_the_clocks_up_in_the_same_tick() {
    let limits = Limits {
        ttft: Seconds(10.0),
        tpot: Seconds(0.05),
        statistic: Statistic::Mean,
        window: Seconds(30.0),
    };
    let mut scene = Scene::new(Settings { limits: Some(limits), ..settings() });
    scene.ticks(Server::Busy, 15);
    assert_ne!(scene.asked, Target::Default);
    scene.itl = 0.5;
    let output = scene.tick(Server::Busy);
    assert!(output.events.iter().any(|event| matches!(event, Event::LimitBroken { .. })));
    assert_eq!(scene.asked, Target::Default);
    assert_eq!(scene.controller.mode(), Mode::SloGuard);
    assert!(scene.controller.space().floor().is_some());
}

#[test]
fn restart_of_the_engine_voids_the_window() {
    let mut scene = Scene::new(settings());
    scene.ticks(Server::Busy, 20);
    let rounds = scene.controller.learned().rounds;
    scene.tokens = 0.0;
    scene.itl_sum = 0.0;
    let output = scene.tick(Server::Busy);
    assert!(output.events.iter().any(|event| matches!(event, Event::Discontinuity(_))));
    assert_eq!(scene.controller.learned().rounds, rounds);
    scene.tick(Server::Busy);
    assert_eq!(scene.controller.learned().rounds, rounds + 1);
}

#[test]
fn restart_of_the_engine_leaves_a_parked_gpu_parked_and_watched() {
    let mut scene = Scene::new(settings());
    scene.ticks(Server::Busy, 20);
    scene.ticks(Server::Idle, 5);
    scene.tokens = 0.0;
    scene.itl_sum = 0.0;
    let output = scene.tick(Server::Idle);
    assert!(output.events.iter().any(|event| matches!(event, Event::Discontinuity(_))));
    scene.ticks(Server::Idle, 5);
    assert_eq!(scene.asked, Target::Lock(IDLE));
    scene.tick(Server::Stuck);
    assert_eq!(scene.asked, Target::Default);
}

#[test]
fn page_that_tells_of_no_work_at_all_is_an_outage_and_never_idleness() {
    let mut scene = Scene::new(settings());
    scene.ticks(Server::Busy, 20);
    for _ in 0..10 {
        let gpu = scene.gpu(Server::Idle, TICK);
        scene.now += TICK;
        let mut page = scene.page(false);
        page.signals = Signals { kv_usage: Some(0.1), ..Signals::default() };
        page.refused = vec!["vllm:num_requests_running: NaN is not a finite number".into()];
        scene.step(gpu, Scrape::Page(Box::new(page)));
    }
    assert_eq!((scene.controller.mode(), scene.asked), (Mode::Outage, Target::Default));
    assert!(!scene.commands.contains(&Target::Lock(IDLE)));
    scene.ticks(Server::Busy, 3);
    assert!(matches!(scene.asked, Target::Lock(_)));
}

#[test]
fn data_collection_records_and_never_commands() {
    let mut scene = Scene::new(Settings { data_collection: true, ..settings() });
    let mut outputs = scene.ticks(Server::Busy, 30);
    outputs.extend(scene.ticks(Server::Idle, 30));
    outputs.extend(scene.ticks(Server::Down, 30));
    assert!(scene.commands.is_empty());
    assert!(outputs.iter().filter(|output| output.round.is_some()).count() > 50);
}

#[test]
fn dry_run_decides_but_learns_nothing_of_clocks_that_never_ran() {
    let mut scene = Scene::new(Settings { dry_run: true, ..settings() });
    for _ in 0..40 {
        scene.tick(Server::Busy);
        scene.outcomes.clear();
        scene.asked = Target::Default;
    }
    assert!(scene.commands.iter().any(|target| target.clocks().is_some()));
    assert_eq!(scene.controller.learned().policy.summary().rounds, 0);
}

#[test]
fn same_observations_give_the_same_decisions() {
    let run = || {
        let mut scene = Scene::new(settings());
        scene.ticks(Server::Busy, 80);
        scene.ticks(Server::Idle, 10);
        scene.ticks(Server::Busy, 40);
        scene.commands
    };
    assert_eq!(run(), run());
}

#[test]
fn pause_gives_the_clocks_back_at_once_and_nothing_is_learned_until_resume() {
    let mut scene = Scene::new(settings());
    (0..40).for_each(|_| drop(scene.tick(Server::Busy)));
    assert_ne!(scene.asked, Target::Default);
    let learned = scene.controller.learned().clone();
    scene.orders = vec![Order::Pause];
    let output = scene.tick(Server::Busy);
    assert_eq!((output.command, scene.controller.mode()), (Some(Target::Default), Mode::Paused));
    assert!(output.events.contains(&Event::Paused));
    let mut quiet = learned;
    quiet.policy = scene.controller.learned().policy.clone();
    for server in [Server::Busy, Server::Idle, Server::Busy, Server::Idle, Server::Idle, Server::Idle] {
        let output = scene.tick(server);
        assert_eq!((output.command, output.round.is_none()), (None, true));
        assert_eq!(scene.controller.mode(), Mode::Paused);
    }
    assert_eq!(*scene.controller.learned(), quiet);
    // Asked for twice is once.
    scene.orders = vec![Order::Pause, Order::Resume, Order::Resume];
    let output = scene.tick(Server::Busy);
    assert_eq!(output.events.iter().filter(|event| **event == Event::Resumed).count(), 1);
    (0..20).for_each(|_| drop(scene.tick(Server::Busy)));
    assert!(matches!(scene.asked, Target::Lock(_)) && !scene.controller.is_paused());
}

#[test]
fn outage_during_a_pause_ends_in_the_pause() {
    let mut scene = Scene::new(settings());
    (0..10).for_each(|_| drop(scene.tick(Server::Busy)));
    scene.orders = vec![Order::Pause];
    (0..8).for_each(|_| drop(scene.tick(Server::Down)));
    assert_eq!(scene.controller.mode(), Mode::Outage);
    (0..3).for_each(|_| drop(scene.tick(Server::Busy)));
    assert_eq!((scene.controller.mode(), scene.asked), (Mode::Paused, Target::Default));
}
