//! The estimate against what the simulator shows when the wanted clock is run.

use rand::{RngExt, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use super::world;
use agft::bandit::ActionSpace;
use agft::compose;
use agft::config::{Config, PolicyKind};
use agft::control::load::LoadEstimate;
use agft::control::{Controller, Learned, Observation, Output, Round};
use agft::gpu::SupportedClocks;
use agft::replay::estimate::{Interval, Row, estimate};
use agft::units::{Clocks, Mhz, Seconds, Target, Time};
use agft_lab::sim::run::{Driver, Onlooker, RunSpec, run};
use agft_lab::sim::{Pattern, WorldSpec};

/// Sets clocks drawn from a list, each for some seconds.
struct Experimenter {
    clocks: Vec<Target>,
    held: f64,
    dice: Xoshiro256PlusPlus,
    until: f64,
    now: Option<Target>,
}

impl Onlooker for Experimenter {
    fn look(&mut self, _: &Observation, _: &Output, _: &Controller) {}

    fn command(&mut self, now: Time, _: Option<Target>) -> Option<Target> {
        if now.0 < self.until {
            return None;
        }
        self.until = now.0 + self.held;
        let next = self.clocks[self.dice.random_range(0..self.clocks.len())];
        (self.now.replace(next) != Some(next)).then_some(next)
    }
}

/// A controller that records only, and takes the clocks that it finds for those of the windows.
fn onlooker(clocks: &SupportedClocks) -> Controller {
    let mut config = Config::default();
    config.control.policy = PolicyKind::LinUcb;
    config.control.data_collection_mode = true;
    let space = ActionSpace::new(clocks, &compose::space_settings(&config, Vec::new()));
    let settings = compose::control_settings(&config, true);
    Controller::new(settings, Learned::fresh(compose::learner(&config), 10), space, 1, Time(0.0))
}

/// Windows of a run with clocks drawn from a list, without those wanted.
fn windows(
    world: &WorldSpec,
    supported: &SupportedClocks,
    clocks: &[Target],
    seed: u64,
    seconds: f64,
) -> Vec<(Row, f64)> {
    let spec = RunSpec { world: world.clone(), seed, seconds: Seconds(seconds), tick: Seconds(0.3) };
    let dice = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut experimenter = Experimenter { clocks: clocks.to_vec(), held: HELD, dice, until: 0.0, now: None };
    let mut controller = onlooker(supported);
    let mut load = LoadEstimate::default();
    let mut rows = Vec::new();
    let look = |round: &Round| {
        let before = load.load;
        load.push(&round.window);
        if let (Some(before), Some(ran), Some(cost)) = (before, round.ran_at, round.cost) {
            let row = Row {
                at: round.at.0,
                load: [before.prefill_rate, before.decode_rate],
                ran,
                wanted: ran,
                outcome: cost.power.0,
            };
            // The first seconds fill an empty server.
            if round.at.0 > 10.0 && round.at.0 < seconds {
                rows.push((row, cost.delay.0));
            }
        }
    };
    run(&spec, Driver::Watched(&mut controller, &mut experimenter), look).unwrap();
    rows
}

/// Seconds for which the experimenter holds a clock: long beside the time in which requests pile up.
const HELD: f64 = 6.0;

fn lock(core: u32) -> Target {
    Target::Lock(Clocks::core_only(Mhz(core)))
}

/// How often the interval of the mean power and of the mean time per token holds what the same arrivals lead to when the
/// wanted clock is run, in so many runs.
fn coverage(runs: u64, seconds: f64) -> [u64; 2] {
    use rayon::iter::{IntoParallelIterator, ParallelIterator};
    let (world, supported) = world(Pattern::Light);
    let highest = supported.core()[0].as_f64();
    let clocks: Vec<Target> = [0.5, 0.7, 0.9].map(|share| nearest(&supported, share * highest)).to_vec();
    let target = clocks[1];
    let held: Vec<[bool; 2]> = (0..runs)
        .into_par_iter()
        .map(|seed| {
            let fixed = windows(&world, &supported, &[target], seed, seconds);
            let mixed = windows(&world, &supported, &clocks, seed, seconds);
            [0, 1].map(|k| {
                let of = |(row, delay): &(Row, f64)| if k == 0 { row.outcome } else { *delay };
                let truth = fixed.iter().map(of).sum::<f64>() / fixed.len() as f64;
                let rows: Vec<Row> = mixed
                    .iter()
                    .map(|window| Row { wanted: target, outcome: of(window), ..window.0 })
                    .collect();
                let (estimate, _) = estimate(&rows).unwrap();
                let Interval { mean, low, high } = estimate.other;
                println!("{k} {seed} {mean:.5} {low:.5} {high:.5} {truth:.5} {:.5}", estimate.recorded.mean);
                (low..=high).contains(&truth)
            })
        })
        .collect();
    [0, 1].map(|k| held.iter().map(|held| u64::from(held[k])).sum())
}

#[test]
fn interval_holds_what_the_wanted_clock_leads_to_when_it_is_run() {
    let covered = coverage(6, 600.0);
    assert!(covered.iter().all(|covered| *covered >= 5), "{covered:?} of 6");
}

#[test]
#[ignore = "some minutes: the same in figures"]
fn interval_holds_it_in_nine_of_ten_runs() {
    let covered = coverage(40, 600.0);
    assert!(covered.iter().all(|covered| *covered >= 36), "{covered:?} of 40");
}

fn nearest(supported: &SupportedClocks, core: f64) -> Target {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a clock")]
    lock(supported.nearest_core(Mhz(core as u32)).0)
}
