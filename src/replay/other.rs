//! Other settings, shown what the run was shown: which clocks they would have chosen, and what these would have earned.
//!
//! The other controller sees the recorded pages, readings and clocks. Its own clocks never ran: what it learns from is
//! what the recorded ones led to, and the load and the queue before each of its choices are the recorded ones.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::ReplayError;
use super::estimate::{Estimate, Row, Support, estimate};
use super::segment::{Cause, Head, Recorded, Segment};
use crate::bandit::{ActionSpace, Policy};
use crate::compose;
use crate::config::Config;
use crate::control::load::{LoadEstimate, has_work};
use crate::control::{Controller, Learned, Mode, Round};
use crate::park::levers::LeverBook;
use crate::reward::baseline::{BaselineBook, Load};
use crate::reward::{Cost, RewardForm, reward};
use crate::store::steps::segments_of;
use crate::units::{Mhz, Target, Time};

/// What the other settings would have done, beside what was done.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The policy asked.
    pub policy: String,
    /// Keys set otherwise.
    pub set: Vec<(String, String)>,
    /// Rounds in which both had a clock to choose.
    pub rounds: u64,
    /// Of these, rounds in which both chose the same.
    pub same_clock: u64,
    /// Rounds left out: parked, paused, without work, or without an answer of the endpoint, for either.
    pub rounds_left_out: u64,
    /// How often each clock was chosen.
    pub clocks: Vec<ClockCount>,
    /// Reward, in the mean over the rounds: minus the log of the energy-delay product over that of default clocks.
    pub reward: Outcome,
    /// Power, W.
    pub power_w: Outcome,
    /// Time per output token, s.
    pub tpot_s: Outcome,
    /// What else there is to say.
    pub notes: Vec<String>,
}

/// How often a clock was chosen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClockCount {
    /// Core clock; `None` for driver-default clocks.
    pub core: Option<Mhz>,
    /// Memory clock, where it was locked.
    pub memory: Option<Mhz>,
    /// By the run.
    pub recorded: u64,
    /// By the other settings.
    pub other: u64,
}

/// An estimate, or why there is none.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// The estimate.
    #[serde(flatten)]
    pub estimate: Option<Estimate>,
    /// Why the data cannot tell.
    pub refused: Option<String>,
    /// How much the data could tell.
    pub support: Support,
}

/// The settings to try.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Settings {
    /// Keys and their values, as in the configuration.
    pub set: Vec<(String, String)>,
}

impl Settings {
    /// From the command line's words.
    ///
    /// # Errors
    /// [`ReplayError::Set`] for one that is no `key=value`.
    pub fn new(policy: Option<&str>, sets: &[String]) -> Result<Self, ReplayError> {
        let pair = |given: &String| {
            let (key, value) = given.split_once('=').filter(|(key, _)| key.contains('.'))?;
            Some((key.trim().to_owned(), value.trim().to_owned()))
        };
        let set =
            sets.iter().map(|given| pair(given).ok_or_else(|| ReplayError::Set { given: given.clone() }));
        let mut set: Vec<(String, String)> = set.collect::<Result<_, _>>()?;
        set.extend(policy.map(|policy| ("control.policy".to_owned(), policy.to_owned())));
        Ok(Self { set })
    }

    /// The recorded configuration with these settings. A run that only recorded is asked what it would have chosen.
    fn config(&self, head: &Head) -> Result<Config, ReplayError> {
        let recorded = Config::parse(&head.config, "the recorded configuration")?.config;
        let mut config = recorded.with(&self.set, "the recorded configuration with --set")?.config;
        config.control.data_collection_mode = false;
        // What it would have chosen, and not what a draw would have kept from it.
        config.holdout.share = 0.0;
        Ok(config)
    }
}

/// A window that may become a row, once the baselines are known.
struct Draft {
    at: Time,
    before: Load,
    load: Load,
    cost: Cost,
    ran: Target,
    wanted: Target,
}

/// The run so far, and the other settings beside it.
struct Pair {
    config: Config,
    recorded: Controller,
    other: Controller,
    load: LoadEstimate,
    /// What the other wanted for the window that is running, and the load before it.
    wanted: Option<(Target, Load)>,
}

/// Asks other settings what they would have done with what a run was shown.
///
/// # Errors
/// [`ReplayError`]
pub fn other(run_dir: &Path, settings: &Settings) -> Result<Comparison, ReplayError> {
    let mut tally = Tally::default();
    let mut pair: Option<Pair> = None;
    let mut notes = Vec::new();
    for path in segments_of(run_dir)? {
        let Some(mut segment) = Segment::open(&path)? else { continue };
        let mut next = Pair::begin(pair.take(), &segment, settings)?;
        while let Some(step) = segment.next_step()? {
            next.step(&step, &mut tally);
        }
        if segment.head.cause == Cause::Gap {
            notes.push(format!("steps were lost before segment {}", segment.head.number));
        }
        pair = Some(next);
    }
    let Some(pair) = pair.filter(|_| tally.steps > 0) else {
        return Err(ReplayError::Empty { path: run_dir.to_owned() });
    };
    if pair.recorded.settings().data_collection {
        notes.push("the run only recorded: its clocks are those that were found, not chosen".into());
    }
    Ok(tally.comparison(&pair, settings, notes))
}

impl Pair {
    fn begin(before: Option<Self>, segment: &Segment, settings: &Settings) -> Result<Self, ReplayError> {
        let recorded = segment.controller.clone();
        if let Some(before) = before {
            if segment.head.cause == Cause::Size {
                return Ok(Self { recorded, ..before });
            }
            let config = settings.config(&segment.head)?;
            let mut learned = before.other.learned().clone();
            compose::configure(&mut learned.policy, &config);
            learned.policy.interrupt();
            return Ok(Self::new(config, recorded, learned, &segment.head));
        }
        let config = settings.config(&segment.head)?;
        let was = Config::parse(&segment.head.config, "the recorded configuration")?.config;
        // As a start with these settings would find it: what was learned, unless by another policy.
        let learned = if was.control.policy == config.control.policy {
            let mut learned = recorded.learned().clone();
            compose::configure(&mut learned.policy, &config);
            learned
        } else {
            Learned::fresh(compose::learner(&config), config.metrics.baseline_measurements)
        };
        Ok(Self::new(config, recorded, learned, &segment.head))
    }

    fn new(config: Config, recorded: Controller, learned: Learned, head: &Head) -> Self {
        let memory = compose::memory_clocks(&config, &head.clocks);
        let space = ActionSpace::new(&head.clocks, &compose::space_settings(&config, memory));
        // Its commands are not carried out: what is in force is what the record says.
        let control = compose::control_settings(&config, true);
        let levers = compose::levers(&config, &head.clocks, LeverBook::default()).without_trial();
        let other = Controller::new(control, learned, space, head.gpus, head.at).with_levers(levers);
        Self { config, recorded, other, load: LoadEstimate::default(), wanted: None }
    }

    fn step(&mut self, step: &Recorded, tally: &mut Tally) {
        tally.steps += 1;
        let recorded = self.recorded.step(&step.seen).round;
        self.other.step(&step.seen);
        let Some(round) = recorded else { return };
        let load = self.load.push(&round.window);
        let wanted = self.wanted.take();
        let chooses = |mode| {
            matches!(
                mode,
                Mode::Baseline
                    | Mode::Exploration
                    | Mode::Exploitation
                    | Mode::SloGuard
                    | Mode::Holdout
                    | Mode::DataCollection
            )
        };
        let both = chooses(self.recorded.mode()) && chooses(self.other.mode()) && has_work(&round.window);
        if !both {
            tally.left_out += 1;
            return;
        }
        // What a draw decided is no choice, and all the better for an estimate.
        if self.recorded.mode() != Mode::Holdout {
            tally.round(self.recorded.asked(), self.other.asked());
        }
        if let Some((wanted, before)) = wanted {
            tally.window(&round, wanted, before, load);
        }
        self.wanted = Some((self.other.asked(), load));
    }
}

/// What is counted on the way.
#[derive(Default)]
struct Tally {
    steps: u64,
    rounds: u64,
    same: u64,
    left_out: u64,
    clocks: BTreeMap<Target, (u64, u64)>,
    drafts: Vec<Draft>,
}

impl Tally {
    fn round(&mut self, recorded: Target, other: Target) {
        self.rounds += 1;
        self.same += u64::from(recorded == other);
        self.clocks.entry(recorded).or_default().0 += 1;
        self.clocks.entry(other).or_default().1 += 1;
    }

    fn window(&mut self, round: &Round, wanted: Target, before: Load, load: Load) {
        if let (Some(ran), Some(cost)) = (round.ran_at, round.cost) {
            self.drafts.push(Draft { at: round.at, before, load, cost, ran, wanted });
        }
    }

    fn comparison(self, pair: &Pair, settings: &Settings, mut notes: Vec<String>) -> Comparison {
        let book = &pair.recorded.learned().baseline;
        let judge = |outcome: &dyn Fn(&Draft) -> Option<f64>| {
            let row = |draft: &Draft| {
                outcome(draft).filter(|value| value.is_finite()).map(|outcome| Row {
                    at: draft.at.0,
                    load: [draft.before.prefill_rate, draft.before.decode_rate],
                    ran: draft.ran,
                    wanted: draft.wanted,
                    outcome,
                })
            };
            let rows: Vec<Row> = self.drafts.iter().filter_map(row).collect();
            match estimate(&rows) {
                Ok((estimate, support)) => Outcome { estimate: Some(estimate), refused: None, support },
                Err((why, support)) => Outcome { estimate: None, refused: Some(why), support },
            }
        };
        let objective = pair.recorded.settings().objective;
        let log_ratio = |draft: &Draft| {
            let baseline = baseline(book, draft.load)?;
            Some(reward(draft.cost, baseline, objective, RewardForm::LogRatio))
        };
        let mut earned = judge(&log_ratio);
        if book.samples() == 0 {
            earned.refused =
                Some("the run never measured driver-default clocks, against which reward is told".into());
        }
        if pair.other.learned().baseline.samples() == 0 {
            notes.push(
                "the other settings never saw a window at driver-default clocks, and kept asking for one"
                    .into(),
            );
        }
        let clocks = self.clocks.iter().map(|(target, (recorded, other))| ClockCount {
            core: target.clocks().map(|clocks| clocks.core),
            memory: target.clocks().and_then(|clocks| clocks.memory),
            recorded: *recorded,
            other: *other,
        });
        Comparison {
            policy: pair.config.control.policy.to_string(),
            set: settings.set.clone(),
            rounds: self.rounds,
            same_clock: self.same,
            rounds_left_out: self.left_out,
            clocks: clocks.rev().collect(),
            reward: earned,
            power_w: judge(&|draft| Some(draft.cost.power.0)),
            tpot_s: judge(&|draft| Some(draft.cost.delay.0)),
            notes,
        }
    }
}

fn baseline(book: &BaselineBook, load: Load) -> Option<Cost> {
    book.estimate(load).map(|baseline| baseline.cost)
}
