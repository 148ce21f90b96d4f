//! Laws of the draw and of the comparison.

use approx::assert_relative_eq;
use proptest::prelude::*;

use super::*;
use crate::stats::Dice;
use crate::units::{Seconds, Time};

fn settings(share: f64, seed: u64) -> HoldoutSettings {
    HoldoutSettings { share, block: Seconds(30.0), settle: Seconds(10.0), seed }
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

proptest! {
    #[test]
    fn one_slot_of_each_cycle_is_held(share in 0.01..0.5_f64, seed in any::<u64>(), cycle in 0..1000_u32) {
        let settings = settings(share, seed);
        let slots = u32::try_from(settings.slots()).unwrap();
        let held = (0..slots).filter(|slot| {
            let at = Time((f64::from(cycle * slots + slot) + 0.5) * 30.0);
            settings.slot_at(Time(0.0), at).held
        });
        prop_assert_eq!(held.count(), 1);
    }

    #[test]
    fn a_window_is_placed_in_its_slot_or_nowhere(start in 0.0..1e5_f64, length in 0.1..40.0_f64) {
        let settings = settings(0.1, 7);
        let begun = Time(5.0);
        let place = settings.place(begun, Time(5.0 + start), Time(5.0 + start + length));
        let slot = ((start + length) / 30.0).floor();
        prop_assert_eq!(place.is_some(), start >= slot * 30.0 + 10.0);
        if let Some(at) = place {
            prop_assert!(((at.cycle * 10 + at.slot) as f64 - slot).abs() < 0.5);
        }
    }

    #[test]
    fn nothing_that_a_file_may_say_breaks_the_books(
        windows in prop::collection::vec(
            (0..5_u64, 0..4_u64, any::<bool>(), any::<f64>(), any::<f64>(), any::<f64>(), any::<f64>()), 0..200),
    ) {
        let mut savings = Savings::new(0.1);
        for (cycle, slot, held, seconds, energy, tokens, time) in windows {
            let window = SlotWindow {
                seconds, energy_j: Some(energy), prompt_tokens: tokens, generated_tokens: tokens,
                tpot: Some((time, tokens)), ttft: Some((tokens, time)),
            };
            savings.push(InSlot { cycle, slot, held }, &window, time);
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
    for cycle in 0..20_000_u32 {
        for (slot, count) in counts.iter_mut().enumerate() {
            let at = Time((f64::from(cycle) * 10.0 + slot as f64 + 0.5) * 30.0);
            *count += u32::from(settings.slot_at(Time(0.0), at).held);
        }
    }
    // Binomial: 2000 expected, standard deviation 42.
    assert!(counts.iter().all(|count| count.abs_diff(2000) < 5 * 42), "{counts:?}");
}

#[test]
fn a_difference_without_noise_is_found_exactly() {
    let mut savings = Savings::new(0.25);
    for cycle in 0..8_u32 {
        // Load changes from cycle to cycle; power is 100 W more at twice the load, and 0.8 of default under agft.
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
fn too_few_cycles_or_a_cycle_without_its_held_slot_say_nothing() {
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

/// Made-up experiments with load that wanders, noise, and a known effect: the interval covers it as often as it says.
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
