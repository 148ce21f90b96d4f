//! A round and a state of which everything is known, for tests.

use crate::bandit::structured::{BestAt, Chosen, LogRatio, Ratios};
use crate::bandit::{Choice, Phase, Reason};
use crate::control::{Mode, Round};
use crate::features::Context;
use crate::holdout::{InSlot, Savings, SavingsState, SlotWindow};
use crate::metrics::Histogram;
use crate::metrics::window::{Gauges, Window};
use crate::park::books::Books;
use crate::park::levers::{Known, LeverBook, LeverKind};
use crate::reward::slo::{Limits, Statistic};
use crate::reward::{Cost, DelaySource};
use crate::units::{Clocks, Joules, Mhz, Seconds, Target, Time, Watts};
use crate::view::notes::Notes;
use crate::view::state::{RoundState, fault_kinds, wake_sources};
use crate::view::{
    ArmState, ArmStatus, ConnectionsState, Counts, Estimate, GpuState, HostState, LearnerState, Load,
    ParkFigures, ParkMode, ParkStanding, ParkState, ParkedGpu, ParkingState, Source, State, Verdict,
};

/// A round of 0.3 s at 900 MHz in which 120 tokens were generated.
pub(crate) fn round() -> Round {
    let gauges = Gauges { running: Some(8.0), waiting: Some(1.0), kv_usage: Some(0.25) };
    let seconds = |sum, count| Some(Histogram { sum, count, buckets: Vec::new() });
    let window = Window {
        start: Time(1.0),
        end: Time(1.3),
        elapsed: Seconds(0.3),
        at_start: gauges,
        at_end: gauges,
        mean: gauges,
        prompt_tokens: Some(300.0),
        generation_tokens: Some(120.0),
        prefix_queries: None,
        prefix_hits: None,
        preemptions: None,
        finished: Some(2.0),
        step_tokens: None,
        ttft: seconds(0.4, 2.0),
        itl: seconds(2.4, 120.0),
        request_tpot: None,
        e2e: None,
    };
    let lock = Target::Lock(Clocks::core_only(Mhz(900)));
    Round {
        number: 7,
        at: Time(1.3),
        mode: Mode::Exploration,
        context: Context::from_window(&window, 8.0),
        window,
        scaled: [0.0; crate::features::DIMENSION],
        ran_at: Some(lock),
        read_core: Some(Mhz(900)),
        read_memory: None,
        power: Some(Watts(150.0)),
        energy: Some(Joules(45.0)),
        cost: Some(Cost { power: Watts(150.0), delay: Seconds(0.02) }),
        delay_source: Some(DelaySource::InterToken),
        baseline_support: Some(20.0),
        baseline: Some(Cost { power: Watts(200.0), delay: Seconds(0.018) }),
        reward: Some(0.18),
        learned: true,
        violation: None,
        holdout: None,
        choice: Some(Choice { target: lock, reason: Reason::Ucb, score: Some(0.2), width: Some(0.1) }),
        command: lock,
        alpha: 1.5,
        lessons_at_clock: 3,
        arms_allowed: 10,
        arms_out: 2,
    }
}

/// A picture in which everything is known.
pub(crate) fn state() -> State {
    let mut timing = crate::stats::Durations::default();
    [0.0004, 0.003, 2.0].into_iter().for_each(|seconds| timing.add(Seconds(seconds)));
    let clocks = Clocks { core: Mhz(900), memory: Some(Mhz(1215)) };
    let arm = |status: ArmStatus, core| ArmState {
        clocks: Clocks::core_only(Mhz(core)),
        status,
        why: None,
        lessons: 3,
        mean_reward: Some(0.1),
        uncertainty: Some(0.02),
    };
    let map = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), 2)).collect();
    let state = State {
        name: "chat".into(),
        at_unix_s: 1.7e9 + 60.0,
        policy: "structured".into(),
        objective: "edp".into(),
        mode: Mode::Exploitation,
        asked: Some(clocks),
        in_force: Some(clocks),
        not_given_back: false,
        floor: Some(Mhz(600)),
        limits: Some(Limits {
            ttft: Seconds(1.0),
            tpot: Seconds(0.05),
            statistic: Statistic::Mean,
            window: Seconds(30.0),
        }),
        not_judged: Vec::new(),
        delay: Some("mean time between tokens".into()),
        gpus: vec![GpuState {
            index: 0,
            uuid: "GPU-0f1e2d3c".into(),
            name: "NVIDIA \"A100\"".into(),
            core_clock: Some(Mhz(900)),
            memory_clock: Some(Mhz(1215)),
            power_w: Some(151.5),
            temperature_c: Some(50.0),
            utilization: Some(0.9),
            capped: Some(false),
            energy_j: Some(9000.0),
        }],
        load: Load {
            running: Some(8.0),
            waiting: Some(1.0),
            kv_usage: Some(0.25),
            prefill_tps: Some(1000.0),
            decode_tps: Some(400.0),
            ttft_s: Some(0.2),
            tpot_s: Some(0.02),
        },
        round: Some(RoundState {
            number: 200,
            window_s: 0.3,
            power_w: Some(150.0),
            edp_js: Some(0.9),
            default_edp_js: Some(1.1),
            reward: Some(-0.1),
            reason: Some("ucb".into()),
            violated: None,
            violated_s: None,
        }),
        learner: LearnerState {
            phase: Phase::Exploitation,
            converged: true,
            converged_round: Some(150),
            converged_unix_s: Some(1.7e9 + 45.0),
            chosen: Some(Chosen { core: Some(Mhz(900)), ratios: Some(ratios()) }),
            lessons: 150,
            exploration_rate: 0.5,
            handed_over: None,
            best: Some(clocks),
            by_load: vec![BestAt {
                share: 0.5,
                prefill_tps: 500.0,
                decode_tps: 200.0,
                core: Some(Mhz(800)),
                cost_ratio: 0.9,
                tpot_ratio: 1.04,
                ratios: Some(ratios()),
            }],
            arms: vec![arm(ArmStatus::Available, 1400), arm(ArmStatus::PrunedCost, 500)],
        },
        counts: Counts {
            steps: 210,
            rounds: 200,
            lessons: 150,
            prompt_tokens: 60_000.0,
            generated_tokens: 24_000.0,
            finished: 80.0,
            mode_s: Mode::ALL.iter().map(|mode| (mode.name().to_owned(), 6.0)).collect(),
            decisions: map(&["ucb", "greedy"]),
            clock_changes: 33,
            scrape_failures: 1,
            outages: 1,
            faults: map(&fault_kinds()),
            limit_violations: map(&["ttft", "tpot"]),
            violated_s: 0.6,
            parkings: 2,
            wakes: map(&wake_sources()),
        },
        parking: parking(),
        estimate: Estimate {
            compared_s: 50.0,
            energy_j: 7500.0,
            default_energy_j: 10_000.0,
            token_time_s: 420.0,
            default_token_time_s: 400.0,
            served_s: 55.0,
            locked_s: 40.0,
            default_energy_sd_j: 200.0,
            default_token_time_sd_s: 4.0,
            source: Some(Source::Model),
        },
        savings: savings(),
        verdict: Verdict::default(),
        notes: Notes::default(),
        scrape: timing,
        lateness: timing,
        step: timing,
    };
    State { verdict: Verdict::of(&state), ..state }
}

/// A quarter less energy, 5 % slower.
fn ratios() -> Ratios {
    let of = |ratio: f64, sd: f64| LogRatio { log: ratio.ln(), sd };
    Ratios { energy: of(0.75, 0.02), time: of(1.05, 0.01) }
}

/// A process of which everything is known: two servers, the second paused on two GPUs, and a parked GPU.
pub(crate) fn host() -> HostState {
    let mut code =
        State { name: "code".into(), mode: Mode::Paused, savings: SavingsState::default(), ..state() };
    code.gpus = [1, 2].map(|index| GpuState { index, ..code.gpus[0].clone() }).into();
    (code.asked, code.in_force) = (None, None);
    if let Some(round) = &mut code.round {
        (round.violated, round.violated_s) = (Some("tpot".into()), Some(0.061));
    }
    code.verdict = Verdict::of(&code);
    let mut park = park_state();
    park.gpus[0].index = 3;
    of(vec![state(), code], Some(park))
}

/// A process with these parts that has run for a minute.
pub(crate) fn of(servers: Vec<State>, park: Option<ParkState>) -> HostState {
    HostState { version: "1.2.3".into(), pid: 4711, ..HostState::new(1.7e9, false) }.with(servers, park)
}

/// Books of six cycles: 200 W held, 150 W under agft; 18 ms and 20 ms a token.
fn savings() -> SavingsState {
    let mut savings = Savings::new(0.02);
    for cycle in 0..7 {
        for slot in 0..3 {
            let held = slot == 1;
            let (power, tpot) = if held { (200.0, 0.018) } else { (150.0, 0.020) };
            // Some scatter between the cycles: an interval of nothing is none.
            let power = power + if cycle % 2 == 0 { 1.0 } else { -1.0 } * f64::from(u8::from(held));
            let window = SlotWindow {
                seconds: 10.0,
                energy_j: Some(10.0 * power),
                prompt_tokens: 3000.0,
                generated_tokens: 1000.0,
                tpot: Some((1000.0 * tpot, 1000.0)),
                ttft: Some((4.0, 20.0)),
            };
            savings.push(InSlot { cycle, slot, held }, &window, 1.7e9);
        }
    }
    savings.state().clone()
}

/// Three spells, two wakes, one of them late.
fn park_books() -> Books {
    let mut books = Books::default();
    for idle in [78.0, 80.0, 82.0] {
        if idle > 78.0 {
            books.woken("connections", false);
            books.clocks_back(Seconds(if idle > 80.0 { 1.2 } else { 0.03 }), Seconds(1.0));
        }
        books.quiet_power(Watts(idle));
        books.parked();
        books.parked_span(Seconds(200.0), Some(Joules(200.0 * 50.0)));
    }
    books
}

/// Parking of a learning agft, with all that can be known of it.
fn parking() -> ParkingState {
    let known =
        Known { clocks: None, parked_w: Some(50.0), wake_s: Some(0.03), longest_wake_s: 1.2, wakes: 2 };
    let levers = LeverBook {
        driver: Some("570.1".into()),
        unparked_w: Some(80.0),
        levers: [(LeverKind::Core, known)].into_iter().collect(),
    };
    ParkingState {
        lever: Some("core".into()),
        wait_s: Some(1.4),
        figures: ParkFigures::new(park_books(), Some(Joules(30.0)), levers),
    }
}

/// All levers of a board with GDDR memory.
fn park_levers() -> LeverBook {
    let known = |parked| Known {
        clocks: None,
        parked_w: Some(parked),
        wake_s: Some(0.03),
        longest_wake_s: 1.2,
        wakes: 2,
    };
    let levers = [(LeverKind::Core, 65.0), (LeverKind::Memory, 60.0), (LeverKind::Both, 50.0)];
    LeverBook {
        driver: Some("570.1".into()),
        unparked_w: Some(80.0),
        levers: levers.into_iter().map(|(kind, parked)| (kind, known(parked))).collect(),
    }
}

/// One parked GPU without a server of which everything is known.
pub(crate) fn park_state() -> ParkState {
    let mut books = park_books();
    (books.calls, books.calls_parked, books.hot_spells, books.hot_s) = (500, 74, 1, 5.0);
    let parked = Clocks { core: Mhz(210), memory: Some(Mhz(405)) };
    ParkState {
        at_unix_s: 1.7e9 + 60.5,
        mode: ParkMode::Parking,
        rule: "ski-rental".into(),
        lever: "auto".into(),
        sources: vec!["utilization".into(), "connections".into()],
        connections: Some(ConnectionsState {
            ports: vec![5001],
            source: "kernel_events".into(),
            source_detail: "kernel events".into(),
            open: Some(0),
        }),
        gpus: vec![ParkedGpu {
            index: 0,
            uuid: "GPU-0f1e2d3c".into(),
            name: "NVIDIA RTX A6000".into(),
            state: ParkStanding::Parked,
            since_unix_s: 1.7e9 - 139.5,
            parked_clocks: parked,
            lever: "both".into(),
            trying: false,
            in_force: Some(parked),
            not_given_back: false,
            utilization_percent: Some(0.0),
            temperature_c: Some(41.0),
            figures: ParkFigures::new(books, Some(Joules(30.0)), park_levers()),
        }],
    }
}
