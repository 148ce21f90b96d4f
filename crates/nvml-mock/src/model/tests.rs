use super::*;
use crate::config::Level;

const MS: Ns = 1_000_000;
/// A tick boundary of 20 ms, long after the start of the clock.
const START: Ns = 1_000_000 * 20 * MS;

/// Whole numbers to calculate with: 100 to 1000 MHz, settles in 30 ms, ticks of 20 ms.
fn board() -> GpuConfig {
    GpuConfig {
        levels: vec![Level::stepped(2000, 100, 1000, 100), Level::stepped(500, 100, 300, 100)],
        idle_min_w: 40.0,
        idle_max_w: 60.0,
        busy_w: 260.0,
        memory_idle_w: 20.0,
        memory_busy_w: 40.0,
        settle_ms: 30,
        ..GpuConfig::a100()
    }
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0)
}

fn change(state: &mut GpuState, config: &GpuConfig, at: Ns, change: impl FnOnce(&mut GpuState)) {
    state.advance(config, at);
    change(state);
    state.retarget(config);
}

fn range(min: u32, max: u32) -> Option<Range> {
    Some(Range { min, max })
}

#[test]
fn power_at_the_corners_is_what_the_configuration_says() {
    let board = board();
    assert!(close(board.power(100, 2000, 0.0), 40.0));
    assert!(close(board.power(1000, 2000, 0.0), 60.0));
    assert!(close(board.power(1000, 2000, 1.0), 260.0));
    assert!(close(board.power(100, 500, 0.0), 40.0 - 20.0 * 0.75));
    assert!(close(board.power(1000, 500, 1.0), 260.0 - (20.0 + 40.0) * 0.75));
}

#[test]
fn switching_is_proportional_to_the_clock_below_the_knee_and_steeper_above() {
    let board = board();
    assert!(close(board.switching(500) / board.switching(100), 5.0));
    // Half-way between the knee and the top the voltage has made half of its rise.
    let middle = GpuConfig { levels: vec![Level { memory_mhz: 1, core_mhz: vec![1000, 790] }], ..board };
    assert!(close(middle.switching(790), 0.79 * (1.10_f64 / 1.20).powi(2)));
}

#[test]
fn power_grows_with_clock_and_with_load() {
    for gpu in ["a100", "h100", "h200", "a6000", "rtx3090"] {
        let gpu = GpuConfig::preset(gpu).expect("a preset");
        let memory = gpu.max_memory();
        for pair in gpu.core_clocks(memory).windows(2) {
            for load in [0.0, 0.3, 1.0] {
                assert!(gpu.power(pair[0], memory, load) > gpu.power(pair[1], memory, load));
            }
            assert!(gpu.power(pair[0], memory, 0.6) > gpu.power(pair[0], memory, 0.5));
        }
        assert!(gpu.power(gpu.max_core(), memory, 1.0) <= gpu.tdp_w);
    }
}

#[test]
fn busy_gpu_runs_at_the_highest_clock_not_above_the_lock() {
    let board = board();
    let clocks = || board.core_clocks(2000).iter().copied();
    for (lock, wanted) in [(range(100, 750), 700), (range(700, 700), 700), (range(1, 50), 100), (None, 1000)]
    {
        assert_eq!(board.target(clocks(), lock, true), wanted, "{lock:?}");
    }
    assert_eq!(board.target(clocks(), range(1500, 9000), true), 1000);
}

#[test]
fn idle_gpu_runs_at_the_lowest_clock_not_below_the_lock() {
    let board = board();
    let clocks = || board.core_clocks(2000).iter().copied();
    for (lock, wanted) in
        [(range(250, 700), 300), (range(1, 700), 100), (range(750, 780), 700), (range(1500, 9000), 1000)]
    {
        assert_eq!(board.target(clocks(), lock, false), wanted, "{lock:?}");
    }
}

#[test]
fn idle_gpu_without_a_lock_stays_or_falls_as_configured() {
    let falls = GpuConfig { idle: IdleClocks::FallToMin, ..board() };
    assert_eq!(GpuState::new(&board(), START).clocks(START), (1000, 2000));
    assert_eq!(GpuState::new(&falls, START).clocks(START), (100, 500));
}

#[test]
fn memory_clock_bounds_the_core_clock_that_goes_with_it() {
    let board = board();
    let mut state = GpuState::new(&board, START);
    change(&mut state, &board, START, |state| (state.load, state.memory_lock) = (1.0, range(500, 500)));
    assert_eq!(state.clocks(START + 30 * MS), (300, 500));
}

#[test]
fn clamp_bounds_every_request_and_the_unlocked_clock() {
    let board = GpuConfig { core_clamp_mhz: Some(850), ..board() };
    let mut state = GpuState::new(&board, START);
    assert_eq!(state.clocks(START).0, 800);
    change(&mut state, &board, START, |state| (state.load, state.core_lock) = (1.0, range(900, 1000)));
    assert_eq!(state.clocks(START + 30 * MS).0, 800);
}

#[test]
fn energy_is_the_old_power_until_the_clock_has_settled_and_the_new_one_after() {
    let board = board();
    let mut state = GpuState::new(&board, START);
    change(&mut state, &board, START, |state| (state.load, state.core_lock) = (1.0, range(500, 500)));
    let before = state.energy_mj;
    state.advance(&board, START + 100 * MS);
    let wanted = 260.0 * 30.0 + board.power(500, 2000, 1.0) * 70.0;
    assert!(close(state.energy_mj - before, wanted), "{} mJ is {wanted} mJ", state.energy_mj - before);
}

#[test]
fn energy_is_the_same_however_often_it_is_looked_at() {
    let board = board();
    let mut once = GpuState::new(&board, START);
    change(&mut once, &board, START, |state| state.core_lock = range(100, 100));
    let mut often = once;
    once.advance(&board, START + 1000 * MS);
    (1..=1000).for_each(|ms| often.advance(&board, START + ms * MS));
    assert!(close(once.energy_mj, often.energy_mj));
    assert!(close(once.mean_w, often.mean_w));
}

#[test]
fn lock_taken_back_before_it_settled_never_shows() {
    let board = board();
    let mut state = GpuState::new(&board, START);
    change(&mut state, &board, START, |state| state.core_lock = range(100, 100));
    change(&mut state, &board, START + 10 * MS, |state| state.core_lock = None);
    for ms in [10, 29, 30, 40, 100] {
        assert_eq!(state.clocks(START + ms * MS).0, 1000);
    }
}

#[test]
fn energy_counter_stands_still_within_a_tick_whatever_happens_in_it() {
    let board = board();
    let mut state = GpuState::new(&board, START);
    let shown = state.energy_counter(&board, START + 20 * MS);
    assert_eq!(shown, whole(state.energy_mj + 60.0 * 20.0));
    change(&mut state, &board, START + 25 * MS, |state| state.load = 1.0);
    change(&mut state, &board, START + 30 * MS, |state| state.load = 0.5);
    for ms in [30, 35, 39] {
        assert_eq!(state.energy_counter(&board, START + ms * MS), shown);
    }
    let next = state.energy_counter(&board, START + 40 * MS);
    let half = board.power(1000, 2000, 0.5);
    assert!((next - shown).abs_diff(whole(60.0 * 5.0 + 260.0 * 5.0 + half * 10.0)) <= 1);
}

#[test]
fn instant_sensor_shows_the_power_at_the_start_of_its_tick() {
    let board = board();
    let mut state = GpuState::new(&board, START);
    change(&mut state, &board, START + 5 * MS, |state| state.load = 1.0);
    assert!(close(state.power_instant(&board, START + 19 * MS), 60.0));
    assert!(close(state.power_instant(&board, START + 20 * MS), 260.0));
}

#[test]
fn averaging_sensor_has_made_all_but_1_over_e_of_a_step_after_its_time_constant() {
    let board = GpuConfig { power_average_ms: 500, ..board() };
    let mut state = GpuState::new(&board, START);
    change(&mut state, &board, START, |state| state.load = 1.0);
    let shown = state.power_usage(&board, START + 500 * MS);
    assert!(close(shown, 260.0 - (260.0 - 60.0) * (-1.0_f64).exp()), "{shown} W");
}

#[test]
fn event_reasons_say_idle_and_locked_beside_what_is_set() {
    let board = board();
    let mut state = GpuState::new(&board, START);
    assert_eq!(state.event_reasons(&board, START), REASON_IDLE);
    change(&mut state, &board, START, |state| {
        (state.load, state.core_lock, state.reasons) = (0.5, range(500, 500), 0x40);
    });
    assert_eq!(state.event_reasons(&board, START + 30 * MS), REASON_CLOCKS_SETTING | 0x40);
}

#[test]
fn state_survives_the_way_through_the_words_of_the_file() {
    let mut state = GpuState::new(&board(), START);
    (state.core_lock, state.load, state.lost) = (range(0, u32::MAX), 0.3, true);
    assert_eq!(GpuState::from_words(state.to_words()), state);
}
