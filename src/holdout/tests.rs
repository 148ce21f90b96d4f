//! Laws of the draw and of the comparison.

use approx::assert_relative_eq;
use proptest::prelude::*;

use super::*;
use crate::stats::Dice;
use crate::units::{Seconds, Time};

fn settings(share: f64, seed: u64) -> HoldoutSettings {
    HoldoutSettings {
        share,
        block: Seconds(30.0),
        settle: Seconds(10.0),
        seed,
        width: None,
        begin_after: Seconds(0.0),
    }
}

fn cycle(settings: &HoldoutSettings, number: u64) -> Cycle {
    Cycle { number, start: Time(5.0), slots: settings.slots() }
}

fn window(power_w: f64, tpot_s: f64, tokens: f64) -> SlotWindow {
    SlotWindow {
        seconds: 20.0,
        energy_j: Some(20.0 * power_w),
        prompt_tokens: 3.0 * tokens,
        generated_tokens: tokens,
        tpot: Some((tokens * tpot_s, tokens)),
        ttft: Some((0.3 * tokens / 100.0, tokens / 100.0)),
    }
}

/// What an experiment did.
struct Seen {
    cycles: Vec<Cycle>,
    savings: Savings,
    /// Slots at default clocks.
    control: u64,
}

/// An experiment of so many slots, each with one window. `world` says power and tokens of a slot, given its
/// number and whether it is a control slot.
fn drive(settings: &HoldoutSettings, slots: u64, mut world: impl FnMut(u64, bool) -> (f64, f64)) -> Seen {
    let block = settings.block.0;
    let mut experiment = Experiment::begun(settings, Time(0.0));
    let mut seen = Seen { cycles: Vec::new(), savings: Savings::new(settings.share), control: 0 };
    for slot in 0..slots {
        let (start, end) = (slot as f64 * block, (slot + 1) as f64 * block);
        experiment.advance(settings, Time(start + 0.001), false, Seconds(0.0));
        let cycle = experiment.cycle().unwrap();
        if seen.cycles.last() != Some(&cycle) {
            seen.cycles.push(cycle);
        }
        let at =
            experiment.place(settings, Time(start + settings.settle.0 + 0.01), Time(end - 0.01)).unwrap();
        let (power, tokens) = world(slot, at.held);
        let window = window(power, 0.02, tokens);
        experiment.push(at, &window);
        seen.savings.push(at, &window, 1.7e9);
        seen.control += u64::from(at.held);
    }
    seen.savings.close(1.7e9);
    seen
}

proptest! {
    #[test]
    fn one_slot_of_each_cycle_is_control(
        share in 0.01..0.5_f64, seed in any::<u64>(), number in any::<u64>(),
    ) {
        let settings = settings(share, seed);
        let cycle = cycle(&settings, number);
        let control = (0..cycle.slots).filter(|slot| {
            settings.slot_at(&cycle, Time(5.0 + (*slot as f64 + 0.5) * 30.0)).control
        });
        prop_assert_eq!(control.count(), 1);
    }

    #[test]
    fn a_window_is_placed_in_its_slot_or_nowhere(start in 0.0..290.0_f64, length in 0.1..40.0_f64) {
        let settings = settings(0.1, 7);
        let cycle = cycle(&settings, 3);
        let place = settings.place(&cycle, Time(5.0 + start), Time(5.0 + start + length));
        let slot = ((start + length) / 30.0).floor().min(9.0);
        prop_assert_eq!(place.is_some(), start >= slot * 30.0 + 10.0);
        if let Some(at) = place {
            prop_assert!(at.cycle == 3 && (at.slot as f64 - slot).abs() < 0.5);
        }
    }

    /// However often it is asked, and whatever the load: cycles follow each other without a gap, none is
    /// shorter than the share says or longer than an hour, and an experiment without a width has one length.
    #[test]
    fn cycles_have_the_lengths_that_they_may_have(
        share in 0.02..0.5_f64, width in prop::option::of(0.0..0.2_f64), seed in any::<u64>(), wild in 0.0..0.5_f64,
    ) {
        let settings = HoldoutSettings { width, ..settings(share, seed) };
        let mut dice = Dice::new(seed);
        let seen = drive(&settings, 600, |_, control| {
            let power = if control { 250.0 } else { 200.0 };
            (power * (1.0 + wild * dice.normal()).max(0.1), 500.0)
        });
        for pair in seen.cycles.windows(2) {
            prop_assert!((settings.slots()..=settings.most_slots()).contains(&pair[1].slots));
            prop_assert!(width.is_some() || pair[1].slots == settings.slots());
            prop_assert_eq!(pair[1].number, pair[0].number + 1);
            let end = pair[0].start + settings.length(&pair[0]);
            prop_assert!((end.0 - pair[1].start.0).abs() < 1e-6);
        }
        prop_assert!(settings.most_slots() as f64 * 30.0 <= 3600.0_f64.max(30.0 * settings.slots() as f64));
    }

    #[test]
    fn nothing_that_a_file_may_say_breaks_the_books(
        windows in prop::collection::vec(
            (0..5_u64, 0..4_u64, any::<bool>(), any::<f64>(), any::<f64>(), any::<f64>(), any::<f64>()), 0..200),
    ) {
        let mut savings = Savings::new(0.1);
        let limits = HoldoutSettings { width: Some(0.02), ..settings(0.1, 1) };
        let mut experiment = Experiment::begun(&limits, Time(0.0));
        for (cycle, slot, held, seconds, energy, tokens, time) in windows {
            let window = SlotWindow {
                seconds, energy_j: Some(energy), prompt_tokens: tokens, generated_tokens: tokens,
                tpot: Some((time, tokens)), ttft: Some((tokens, time)),
            };
            savings.push(InSlot { cycle, slot, held }, &window, time);
            experiment.push(InSlot { cycle, slot, held }, &window);
            experiment.advance(&limits, Time(300.0 * cycle as f64), false, Seconds(time));
            prop_assert!((0.0..=0.5).contains(&experiment.share(&limits)));
        }
        savings.close(0.0);
        let effect = savings.state().effect;
        for change in [effect.power_w, effect.tpot_s, effect.ttft_s].into_iter().flatten() {
            prop_assert!(change.relative.is_finite() && change.relative_half_width >= 0.0);
        }
    }
}

#[test]
fn every_slot_is_drawn_equally_often() {
    let settings = settings(0.1, 12345);
    let mut counts = [0_u32; 10];
    for number in 0..20_000 {
        let cycle = cycle(&settings, number);
        for (slot, count) in counts.iter_mut().enumerate() {
            let at = Time(5.0 + (slot as f64 + 0.5) * 30.0);
            *count += u32::from(settings.slot_at(&cycle, at).control);
        }
    }
    // Binomial: 2000 expected, standard deviation 42.
    assert!(counts.iter().all(|count| count.abs_diff(2000) < 5 * 42), "{counts:?}");
}

#[test]
fn a_difference_without_noise_is_found_exactly() {
    let mut savings = Savings::new(0.25);
    for cycle in 0..8_u32 {
        // Load changes from cycle to cycle; power is 100 W more at twice the load, and 0.8 of default under
        // agft.
        let tokens = 500.0 + 100.0 * f64::from(cycle % 3);
        for slot in 0..4 {
            let held = slot == u64::from(cycle) % 4;
            let power = if held { 250.0 } else { 200.0 };
            savings.push(
                InSlot { cycle: cycle.into(), slot, held },
                &window(power, if held { 0.02 } else { 0.021 }, tokens),
                1.7e9,
            );
        }
    }
    assert_eq!(savings.state().cycles, 7, "the last is still under way");
    savings.close(1.7e9);
    let effect = savings.state().effect;
    let power = effect.power_w.unwrap();
    assert_eq!(power.cycles, 8);
    assert_relative_eq!(power.relative, -0.2, max_relative = 1e-9);
    assert_relative_eq!(power.difference(), -50.0, max_relative = 1e-9);
    assert_relative_eq!(effect.tpot_s.unwrap().relative, 0.05, max_relative = 1e-9);
    assert!(power.relative_half_width < 1e-6, "{power:?}");
    let (saved, _) = savings.state().saved_j().unwrap();
    assert_relative_eq!(saved, 50.0 * 20.0 * 3.0 * 8.0, max_relative = 1e-9);
}

#[test]
fn too_few_cycles_or_a_cycle_without_its_control_slot_say_nothing() {
    let mut savings = Savings::new(0.25);
    for cycle in 0..4 {
        for slot in 0..4 {
            savings.push(InSlot { cycle, slot, held: slot == 0 }, &window(200.0, 0.02, 100.0), 1.7e9);
        }
    }
    for slot in 0..4 {
        savings.push(InSlot { cycle: 4, slot, held: false }, &window(200.0, 0.02, 100.0), 1.7e9);
    }
    savings.close(1.7e9);
    assert_eq!((savings.state().cycles, savings.state().effect), (4, Effect::default()));
}

/// Made-up experiments with load that wanders, noise, and a known effect: the interval covers it as often as
/// it says.
#[test]
fn the_interval_covers_the_truth_as_often_as_it_says() {
    let (truth, experiments) = (-0.15, 600_u64);
    let mut covered = 0;
    let mut widths = 0.0;
    for experiment in 0..experiments {
        let mut dice = Dice::new(experiment.wrapping_mul(0x9E37_79B9).wrapping_add(17));
        let mut savings = Savings::new(0.1);
        let mut drift: f64 = 0.0;
        for cycle in 0..12 {
            let held_slot = dice.bits() % 10;
            for slot in 0..10 {
                drift = 0.9 * drift + 60.0 * dice.normal();
                let tokens = (600.0 + drift + 50.0 * dice.normal()).max(20.0);
                let held = slot == held_slot;
                // Concave in the load, as real power is; the adjustment is linear and only approximate.
                let default = 100.0 + 8.0 * tokens.sqrt() + 5.0 * dice.normal();
                let power = if held { default } else { (1.0 + truth) * default };
                savings.push(InSlot { cycle, slot, held }, &window(power, 0.02, tokens), 1.7e9);
            }
        }
        savings.close(1.7e9);
        let power = savings.state().effect.power_w.unwrap();
        covered += u64::from((power.relative - truth).abs() <= power.relative_half_width);
        widths += power.relative_half_width;
    }
    let share = covered as f64 / experiments as f64;
    // 95 % less four standard deviations of a share of 600.
    assert!(share > 0.95 - 4.0 * 0.009, "{share} of the intervals cover");
    let width = widths / experiments as f64;
    assert!(width < 0.05, "half-widths of {width}: the load was not taken out");
}

#[test]
fn days_are_kept_apart_and_bounded() {
    let mut savings = Savings::new(0.25);
    for cycle in 0..400_u64 {
        let unix_s = 1.7e9 + 86_400.0 * (cycle / 10) as f64;
        for slot in 0..4 {
            let held = slot == cycle % 4;
            savings.push(
                InSlot { cycle, slot, held },
                &window(if held { 250.0 } else { 200.0 }, 0.02, 100.0),
                unix_s,
            );
        }
    }
    let state = savings.state();
    assert_eq!((state.cycles, state.days.len()), (399, 31));
    assert!(state.days.iter().all(|day| day.day_unix_s % 86_400.0 == 0.0 && day.cycles <= 10));
    assert_relative_eq!(state.days[7].effect.power_w.unwrap().relative, -0.2, max_relative = 1e-9);
}

/// A steady load: the interval is there after five cycles, and then little is spent. A load unlike it: more
/// again.
#[test]
fn the_share_sinks_once_enough_is_known_and_rises_with_another_load() {
    let settings = HoldoutSettings {
        block: Seconds(12.0),
        settle: Seconds(4.0),
        width: Some(0.02),
        ..settings(0.05, 3)
    };
    let mut dice = Dice::new(5);
    let day = 86_400 / 12;
    let seen = drive(&settings, 2 * day, |slot, control| {
        let tokens = if slot < day { 500.0 } else { 2000.0 } + 30.0 * dice.normal();
        let default = 100.0 + 0.2 * tokens + 3.0 * dice.normal();
        (if control { default } else { 0.8 * default }, tokens)
    });
    let first: Vec<u64> = seen.cycles.iter().take(6).map(|cycle| cycle.slots).collect();
    assert_eq!(first, [20, 20, 20, 20, 20, 20]);
    let at = |hour: f64| seen.cycles.iter().rfind(|cycle| cycle.start.0 <= 3600.0 * hour).unwrap().slots;
    assert_eq!(at(23.5), 200, "a tenth of the share");
    assert_eq!(at(24.8), 20, "the load is another");
    assert_eq!(at(47.5), 200);
    assert!(seen.control < 2 * day / 50, "{} of {} slots", seen.control, 2 * day);
    let power = seen.savings.state().effect.power_w.unwrap();
    assert!((power.relative + 0.2).abs() < 0.02, "{power:?}");
}

/// The saving is one at night and another by day, and so is the share that is spent: the mean over all
/// experiments is that of the time, and the interval covers it as often as it says.
#[test]
fn a_share_that_changes_with_what_was_seen_biases_nothing() {
    let experiments = 200_u64;
    let (mut covered, mut off, mut square, mut lengths) = (0, 0.0, 0.0, 0.0);
    for experiment in 0..experiments {
        let mut dice = Dice::new(experiment.wrapping_mul(0x9E37_79B9).wrapping_add(3));
        let settings = HoldoutSettings { width: Some(0.03), ..settings(0.1, dice.bits()) };
        let mut drift = 0.0;
        let mut sums = (0.0, 0.0);
        let seen = drive(&settings, 2400, |slot, control| {
            let day = slot > 1200;
            drift = 0.9 * drift + 40.0 * dice.normal();
            let tokens = (if day { 900.0 } else { 400.0 } + drift).max(20.0);
            let default = 100.0 + 8.0 * tokens.sqrt() + 10.0 * dice.normal();
            let agft = default * if day { 0.95 } else { 0.7 };
            sums = (sums.0 + agft, sums.1 + default);
            (if control { default } else { agft }, tokens)
        });
        let power = seen.savings.state().effect.power_w.unwrap();
        let error = power.relative - (sums.0 / sums.1 - 1.0);
        covered += u64::from(error.abs() <= power.relative_half_width);
        off += error;
        square += error * error;
        lengths += 2400.0 / seen.control as f64;
    }
    let count = experiments as f64;
    assert!(lengths / count > 15.0, "the share did not change: one in {}", lengths / count);
    let deviation = (square / count).sqrt();
    assert!((off / count).abs() < 4.0 * deviation / count.sqrt() + 0.001, "{} of {deviation}", off / count);
    let share = covered as f64 / count;
    eprintln!("{share} covered, off by {} of {deviation}, one slot in {}", off / count, lengths / count);
    assert!(share > 0.95 - 4.0 * 0.0155, "{share} of the intervals cover");
}

#[test]
fn it_begins_when_the_policy_has_settled_or_has_had_long_enough() {
    let settings = HoldoutSettings { begin_after: Seconds(600.0), ..settings(0.1, 1) };
    let mut early = Experiment::default();
    early.advance(&settings, Time(100.0), false, Seconds(1.0));
    assert_eq!(early.cycle(), None);
    assert!(
        early.place(&settings, Time(98.0), Time(99.0)).is_none() && !early.is_control(&settings, Time(100.0))
    );
    let mut late = early.clone();
    early.advance(&settings, Time(101.0), true, Seconds(1.0));
    assert_eq!(early.cycle().map(|cycle| cycle.start), Some(Time(101.0)));
    // Time without work, or without a choice, does not count.
    late.advance(&settings, Time(5000.0), false, Seconds(0.0));
    assert_eq!(late.cycle(), None);
    late.advance(&settings, Time(5600.0), false, Seconds(599.0));
    assert_eq!(late.cycle().map(|cycle| cycle.start), Some(Time(5600.0)));
    let mut next = Experiment::begun(&settings, Time(7000.0));
    next.follow(&late);
    assert_eq!(next.cycle().map(|cycle| cycle.number), Some(1), "no two cycles of a run have one number");
}

#[test]
fn what_the_proof_has_cost_is_the_saving_at_default_clocks() {
    let mut savings = Savings::new(0.25);
    for cycle in 0..6_u64 {
        for slot in 0..4 {
            let held = slot == cycle % 4;
            savings.push(
                InSlot { cycle, slot, held },
                &window(if held { 250.0 } else { 200.0 }, 0.02, 100.0),
                1.7e9,
            );
        }
    }
    savings.close(1.7e9);
    assert_relative_eq!(savings.state().given_away_j().unwrap(), 50.0 * 20.0 * 6.0, max_relative = 1e-9);
    assert_eq!(SavingsState::default().given_away_j(), None);
}

#[test]
fn a_cycle_weighs_as_the_time_that_it_stands_for() {
    let mut savings = Savings::new(0.25);
    for cycle in 0..12_u64 {
        let (slots, agft) = if cycle < 6 { (4, 140.0) } else { (40, 190.0) };
        for slot in 0..slots {
            let held = slot == cycle % 4;
            let power = if held { 200.0 } else { agft };
            savings.push(InSlot { cycle, slot, held }, &window(power, 0.02, 100.0), 1.7e9);
        }
    }
    savings.close(1.7e9);
    let power = savings.state().effect.power_w.unwrap();
    assert_relative_eq!(power.agft, (4.0 * 140.0 + 40.0 * 190.0) / 44.0, max_relative = 1e-9);
    assert_relative_eq!(power.default, 200.0, max_relative = 1e-9);
    assert_eq!(power.cycles, 12);
}
