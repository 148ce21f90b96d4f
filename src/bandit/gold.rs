//! The learner against vectors from an independent numpy implementation (`scripts/gold/linucb.py`).

use approx::assert_abs_diff_eq;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::arm::{Arm, input};
use super::linucb::LinUcbSettings;
use super::prune::{self, Cause, Standing};
use super::refine::{self, Predicted, Series};
use super::settle::{rise, top_share};
use super::space::every;
use crate::features::{Ema, Scaler};
use crate::reward::{Cost, Objective, RewardForm, reward};
use crate::units::{Clocks, Mhz, Seconds, Watts};

const TOLERANCE: f64 = 1e-9;

/// Reads one of the files.
macro_rules! gold {
    ($name:literal) => {
        read(include_str!(concat!("../../tests/data/gold/", $name, ".json")))
    };
}

fn read<T: DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text).unwrap()
}

fn core(mhz: u32) -> Clocks {
    Clocks::core_only(Mhz(mhz))
}

fn mhz(clocks: impl IntoIterator<Item = Clocks>) -> Vec<u32> {
    clocks.into_iter().map(|clocks| clocks.core.0).collect()
}

#[test]
fn arms_learn_and_judge_as_a_plain_ridge_regression_does() {
    #[derive(Deserialize)]
    struct Case {
        lambda: f64,
        xs: Vec<[f64; 7]>,
        rewards: Vec<f64>,
        theta: Vec<f64>,
        queries: Vec<Query>,
    }
    #[derive(Deserialize)]
    struct Query {
        x: [f64; 7],
        alpha: f64,
        mean: f64,
        width: f64,
        ucb: f64,
    }
    let cases: Vec<Case> = gold!("arms");
    assert!(cases.iter().any(|case| case.xs.len() > 400), "one case is longer than the memory");
    for case in cases {
        let mut arm = Arm::new(case.lambda);
        for (x, reward) in case.xs.iter().zip(&case.rewards) {
            arm.update(input(x).view(), *reward).unwrap();
        }
        for (ours, theirs) in arm.theta().iter().zip(&case.theta) {
            assert_abs_diff_eq!(*ours, *theirs, epsilon = TOLERANCE);
        }
        for query in case.queries {
            let x = input(&query.x);
            assert_abs_diff_eq!(arm.mean(x.view()), query.mean, epsilon = TOLERANCE);
            assert_abs_diff_eq!(arm.width(x.view()), query.width, epsilon = TOLERANCE);
            let (bound, half) = arm.ucb(x.view(), query.alpha).unwrap();
            assert_abs_diff_eq!(bound, query.ucb, epsilon = TOLERANCE);
            assert_abs_diff_eq!(half, query.alpha * query.width, epsilon = TOLERANCE);
        }
    }
}

#[test]
fn exploration_rate_follows_its_formula() {
    #[derive(Deserialize)]
    struct Case {
        initial: f64,
        rate: f64,
        min: f64,
        rounds: u64,
        alpha: f64,
    }
    let cases: Vec<Case> = gold!("alphas");
    for case in cases {
        let settings = LinUcbSettings {
            initial_alpha: case.initial,
            alpha_decay_rate: case.rate,
            min_alpha: case.min,
            ..LinUcbSettings::default()
        };
        assert_abs_diff_eq!(settings.alpha(case.rounds), case.alpha, epsilon = TOLERANCE);
    }
}

#[test]
fn clocks_are_given_up_as_in_the_independent_decisions() {
    #[derive(Deserialize)]
    struct Case {
        clocks: Vec<u32>,
        costs: Vec<Vec<f64>>,
        extreme_min_samples: usize,
        extreme_threshold: f64,
        min_samples: usize,
        multiplier: f64,
        top: u32,
        fallback: u32,
        extreme: Vec<u32>,
        costly: Vec<Costly>,
        below: u32,
        best: Option<u32>,
        gone: Vec<u32>,
    }
    #[derive(Deserialize)]
    struct Costly {
        clock: u32,
        gap: f64,
        deviation: f64,
        best: u32,
    }
    let cases: Vec<Case> = gold!("pruning");
    for case in cases {
        let live: Vec<Clocks> = case.clocks.iter().copied().map(core).collect();
        let standing = |(clocks, costs): (&Clocks, &Vec<f64>)| {
            let rewards: Vec<f64> = costs.iter().map(|cost| -cost).collect();
            Standing::of(*clocks, &rewards, costs)
        };
        let standings: Vec<Standing> = live.iter().zip(&case.costs).filter_map(standing).collect();

        let extreme = prune::extreme(&standings, case.extreme_min_samples, case.extreme_threshold);
        assert_eq!(mhz(extreme.iter().map(|(clocks, _)| *clocks)), case.extreme);
        let costly = prune::costly(&standings, case.min_samples, case.multiplier);
        assert_eq!(costly.len(), case.costly.len());
        for ((clocks, cause), expected) in costly.iter().zip(&case.costly) {
            let Cause::Cost { best, gap, deviation, threshold, .. } = cause else { panic!("{cause:?}") };
            assert_eq!((*clocks, *best), (core(expected.clock), core(expected.best)));
            assert_abs_diff_eq!(*gap, expected.gap, epsilon = TOLERANCE);
            assert_abs_diff_eq!(*deviation, expected.deviation, epsilon = TOLERANCE);
            assert_abs_diff_eq!(*threshold, case.multiplier * expected.deviation, epsilon = TOLERANCE);
        }

        let below = prune::cascade_below(Some(Mhz(case.top)), Mhz(case.fallback));
        assert_eq!(below, Mhz(case.below));
        let best = case.best.map(core);
        let victims = extreme.into_iter().chain(costly).collect();
        let mut gone = prune::spare(victims, &live, best);
        for (trigger, _) in gone.clone() {
            gone.extend(prune::cascade(trigger, &live, below));
        }
        assert_eq!(mhz(prune::spare(gone, &live, best).into_iter().map(|(clocks, _)| clocks)), case.gone);
    }
}

#[test]
fn anchors_are_the_independent_ones() {
    #[derive(Deserialize)]
    struct File {
        percentiles: Vec<Percentile>,
        statistical: Vec<Statistical>,
        predictive: Vec<Predictive>,
    }
    #[derive(Deserialize)]
    struct Percentile {
        values: Vec<f64>,
        p: f64,
        percentile: f64,
    }
    #[derive(Deserialize)]
    struct Statistical {
        series: Vec<(u32, Vec<f64>)>,
        last: Option<(u32, f64)>,
        anchor: Option<u32>,
    }
    #[derive(Deserialize)]
    struct Predictive {
        predicted: Vec<Prediction>,
        anchor: Option<u32>,
    }
    #[derive(Deserialize)]
    struct Prediction {
        clock: u32,
        bound: f64,
        samples: usize,
        mean_cost: f64,
    }
    let file: File = gold!("anchors");
    for case in file.percentiles {
        let ours = crate::stats::percentile(&case.values, case.p).unwrap();
        assert_abs_diff_eq!(ours, case.percentile, epsilon = TOLERANCE);
    }
    for case in file.statistical {
        let series: Vec<Series> =
            case.series.into_iter().map(|(clock, costs)| Series { clocks: core(clock), costs }).collect();
        let last = case.last.map(|(clock, cost)| (core(clock), cost));
        assert_eq!(refine::statistical_anchor(&series, last), case.anchor.map(core));
    }
    for case in file.predictive {
        let predicted: Vec<Predicted> = case
            .predicted
            .iter()
            .map(|p| Predicted {
                clocks: core(p.clock),
                bound: p.bound,
                samples: p.samples,
                mean_cost: p.mean_cost,
            })
            .collect();
        assert_eq!(refine::predictive_anchor(&predicted), case.anchor.map(core));
    }
}

#[test]
fn coarse_lists_and_windows_have_the_independent_clocks() {
    #[derive(Deserialize)]
    struct Case {
        grid: Vec<Mhz>,
        step: Mhz,
        coarse: Vec<Mhz>,
        anchor: Mhz,
        floor: Option<Mhz>,
        window: Vec<Mhz>,
    }
    let cases: Vec<Case> = gold!("lists");
    for case in cases {
        assert_eq!(every(&case.grid, Mhz(0), case.step), case.coarse);
        assert_eq!(refine::window(&case.grid, case.anchor, case.floor), case.window);
    }
}

#[test]
fn convergence_and_degradation_are_judged_as_independently() {
    #[derive(Deserialize)]
    struct File {
        shares: Vec<Share>,
        rises: Vec<Rises>,
    }
    #[derive(Deserialize)]
    struct Share {
        choices: Vec<u32>,
        k: usize,
        share: f64,
    }
    #[derive(Deserialize)]
    struct Rises {
        values: Vec<f64>,
        half: usize,
        rise: Option<Rise>,
    }
    #[derive(Deserialize)]
    struct Rise {
        by: f64,
        deviation: f64,
    }
    let file: File = gold!("settling");
    for case in file.shares {
        assert_abs_diff_eq!(top_share(case.choices, case.k), case.share, epsilon = TOLERANCE);
    }
    for case in file.rises {
        match (rise(&case.values, case.half), case.rise) {
            (Some(ours), Some(theirs)) => {
                assert_abs_diff_eq!(ours.by, theirs.by, epsilon = TOLERANCE);
                assert_abs_diff_eq!(ours.deviation, theirs.deviation, epsilon = TOLERANCE);
            }
            (ours, theirs) => assert!(ours.is_none() && theirs.is_none()),
        }
    }
}

#[test]
fn scores_and_moving_averages_are_the_independent_ones() {
    #[derive(Deserialize)]
    struct File {
        rows: Vec<[f64; 7]>,
        scores: Vec<[f64; 7]>,
        alpha: f64,
        samples: Vec<f64>,
        emas: Vec<f64>,
    }
    let file: File = gold!("features");
    let mut scaler = Scaler::default();
    for (row, expected) in file.rows.iter().zip(&file.scores) {
        scaler.observe(row);
        for (ours, theirs) in scaler.scale(row).iter().zip(expected) {
            assert_abs_diff_eq!(*ours, *theirs, epsilon = TOLERANCE);
        }
    }
    let mut ema = Ema::new(file.alpha);
    for (sample, expected) in file.samples.iter().zip(&file.emas) {
        assert_abs_diff_eq!(ema.push(*sample), *expected, epsilon = TOLERANCE);
    }
}

#[test]
fn rewards_of_both_forms_are_the_independent_ones() {
    #[derive(Deserialize)]
    struct Case {
        power: f64,
        delay: f64,
        base_power: f64,
        base_delay: f64,
        log_ratio: f64,
        clipped: f64,
    }
    let cases: Vec<Case> = gold!("rewards");
    for case in cases {
        let cost = Cost { power: Watts(case.power), delay: Seconds(case.delay) };
        let base = Cost { power: Watts(case.base_power), delay: Seconds(case.base_delay) };
        let of = |form| reward(cost, base, Objective::Edp, form);
        assert_abs_diff_eq!(of(RewardForm::LogRatio), case.log_ratio, epsilon = TOLERANCE);
        assert_abs_diff_eq!(of(RewardForm::Clipped), case.clipped, epsilon = TOLERANCE);
    }
}
