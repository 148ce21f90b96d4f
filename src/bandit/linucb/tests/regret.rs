//! Seeded regret against the known best arm.

use super::*;

/// Mean regret per round over the last `tail` of `rounds` rounds, and that of choosing at random.
fn regret(
    settings: LinUcbSettings,
    space: &ActionSpace,
    rounds: usize,
    tail: usize,
    seed: u64,
    expected: impl Fn(Clocks, &[f64; 7]) -> f64,
    noise: f64,
) -> (f64, f64) {
    let mut dice = Dice(seed);
    let mut policy = LinUcb::new(settings);
    let (mut ours, mut random) = (0.0, 0.0);
    for round in 0..rounds {
        let context: [f64; 7] = std::array::from_fn(|_| dice.normal().clamp(-3.0, 3.0));
        let view = View { now: Time(0.0), context: &context, space };
        let clocks = policy.choose(view).target.clocks().unwrap();
        let reward = expected(clocks, &context) + noise * dice.normal();
        policy.learn(clocks, &context, reward).unwrap();
        if round >= rounds - tail {
            let all: Vec<f64> = space.arms().iter().map(|arm| expected(*arm, &context)).collect();
            let best = all.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            ours += best - expected(clocks, &context);
            random += best - all.iter().sum::<f64>() / all.len() as f64;
        }
    }
    (ours / tail as f64, random / tail as f64)
}

#[test]
fn regret_vanishes_where_the_best_arm_depends_on_the_context() {
    let space = space_of((1..=6).map(|k| STEP * k), &[]);
    let mut dice = Dice(1);
    let theta: BTreeMap<Clocks, [f64; 8]> =
        space.arms().iter().map(|arm| (*arm, std::array::from_fn(|_| 0.5 * dice.normal()))).collect();
    let expected = |clocks: Clocks, x: &[f64; 7]| {
        let theta = theta[&clocks];
        theta[0] + x.iter().zip(&theta[1..]).map(|(x, theta)| x * theta).sum::<f64>()
    };
    for seed in 10..13 {
        let (ours, random) = regret(unpruned(), &space, 3000, 500, seed, expected, 0.3);
        assert!(ours < 0.02 * random, "seed {seed}: {ours} of {random}");
    }
}

#[test]
fn regret_is_small_on_a_card_with_all_rules_at_work() {
    let space = space_of((210..=1410).step_by(15), &[]);
    // The best clock moves with the first feature, the level of all with the second.
    let expected = |clocks: Clocks, x: &[f64; 7]| {
        let off = (clocks.core.as_f64() - 900.0 - 60.0 * x[0]) / 1000.0;
        0.4 - 4.0 * off * off + 0.1 * x[1]
    };
    for seed in 20..23 {
        let (ours, random) = regret(
            LinUcbSettings { dwell: Seconds(0.0), ..LinUcbSettings::default() },
            &space,
            3000,
            500,
            seed,
            expected,
            0.3,
        );
        assert!(ours < 0.05 * random, "seed {seed}: {ours} of {random}");
    }
}
