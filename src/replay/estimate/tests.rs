//! The estimate on runs made up, whose truth is known.

use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use super::*;
use crate::units::{Clocks, Mhz};

fn lock(core: u32) -> Target {
    Target::Lock(Clocks::core_only(Mhz(core)))
}

/// A run made up: loads that wander, clocks that follow the load (as a policy's do), and outcomes of both; with the mean
/// that the wanted clocks lead to.
fn made_up(seed: u64, spread: f64) -> (Vec<Row>, f64) {
    let mut dice = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut noise = move || {
        let sum: f64 = (0..12).map(|_| dice.random_range(0.0..1.0)).sum();
        sum - 6.0
    };
    let (mut load, mut held, mut rows, mut truth) = (0.0_f64, 0, Vec::new(), 0.0);
    let mut ran = lock(1200);
    for k in 0..3000_u32 {
        load = 0.98 * load + 0.2 * noise();
        if held == 0 {
            // High loads get high clocks: windows at low clocks are those of low loads.
            ran = match load + spread * noise() {
                drawn if drawn < -0.5 => lock(800),
                drawn if drawn < 0.5 => lock(1200),
                _ => lock(1600),
            };
            held = 4;
        }
        held -= 1;
        let wanted = if load > 1.0 { lock(1600) } else { lock(1200) };
        let mean = |clock: Target| {
            let f = Clock(clock).core().unwrap() / 1600.0;
            200.0 * f * f + 30.0 * load + 10.0 * load * f
        };
        truth += mean(wanted) / 3000.0;
        let outcome = mean(ran) + 15.0 * noise();
        rows.push(Row { at: 0.3 * f64::from(k), load: [0.0, load], ran, wanted, outcome });
    }
    (rows, truth)
}

#[test]
fn clocks_that_follow_the_load_do_not_mislead_the_estimate() {
    let mut covered = 0;
    let mut naive = 0;
    for seed in 0..40 {
        let (rows, truth) = made_up(seed, 1.5);
        let (estimate, support) = estimate(&rows).unwrap();
        assert!(support.overlap > 0.95 && support.effective_windows > 500.0, "{support:?}");
        covered += u32::from((estimate.other.low..=estimate.other.high).contains(&truth));
        // What a plain mean over the windows in which the wanted clock ran would say.
        let matched: Vec<f64> =
            rows.iter().filter(|row| row.ran == row.wanted).map(|row| row.outcome).collect();
        let mean = matched.iter().sum::<f64>() / count(matched.len());
        naive += u32::from((mean - truth).abs() < (estimate.other.mean - truth).abs());
        let Estimate { recorded, other, difference } = estimate;
        approx::assert_relative_eq!(difference.mean, other.mean - recorded.mean, max_relative = 1e-9);
        assert!(difference.high - difference.low < other.high - other.low, "the load is in both");
    }
    assert!(covered >= 36, "{covered} of 40");
    assert!(naive <= 10, "{naive} of 40");
}

#[test]
fn the_same_clock_is_estimated_as_what_was_measured() {
    let (rows, _) = made_up(1, 1.5);
    let rows: Vec<Row> = rows.into_iter().map(|row| Row { wanted: row.ran, ..row }).collect();
    let (estimate, _) = estimate(&rows).unwrap();
    approx::assert_relative_eq!(estimate.recorded.mean, estimate.other.mean, max_relative = 0.01);
    // One clock all the time: no shares to estimate, so to the last digits.
    let rows: Vec<Row> =
        rows.into_iter().map(|row| Row { ran: lock(900), wanted: lock(900), ..row }).collect();
    let (estimate, support) = self::estimate(&rows).unwrap();
    assert!(support.overlap >= 1.0);
    approx::assert_relative_eq!(estimate.recorded.mean, estimate.other.mean, max_relative = 1e-9);
}

#[test]
fn windows_that_cannot_tell_are_refused_with_the_reason() {
    let (rows, _) = made_up(1, 1.5);
    let refused = |rows: &[Row]| estimate(rows).unwrap_err().0;
    let few = refused(&rows[..100]);
    assert!(few.contains("100 windows") && few.contains("record for longer"), "{few}");
    let never: Vec<Row> = rows.iter().map(|row| Row { wanted: lock(600), ..*row }).collect();
    let why = refused(&never);
    assert!(
        why.contains("100 %") && why.contains("600 MHz") && why.contains("record a run in which"),
        "{why}"
    );
    // One clock all the time says nothing about another.
    let one: Vec<Row> = rows.iter().map(|row| Row { ran: lock(1600), wanted: lock(1200), ..*row }).collect();
    assert!(refused(&one).contains("(nearly) never ran"), "{}", refused(&one));
    // The wanted clock ran once, for a while.
    let once = |k: usize| if k < 300 { lock(1200) } else { lock(1600) };
    let once: Vec<Row> =
        rows.iter().enumerate().map(|(k, row)| Row { ran: once(k), wanted: lock(1200), ..*row }).collect();
    assert!(!refused(&once).is_empty());
    assert!(!refused(&[]).is_empty());
}
