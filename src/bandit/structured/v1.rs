//! The policy as models of version 1 and steps of version 3 hold it. Its step time could not bend: it is fitted anew.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::budget::Budget;
use super::context::Context;
use super::guard::Guard;
use super::model::Model;
use super::plan::Stage;
use super::settled::Settled;
use super::surge::Surge;
use super::window::{Joiner, Length, Lesson};
use super::{Held, Moves, Running, StructuredSettings};
use crate::reward::Objective;
use crate::stats::Dice;
use crate::units::{Clocks, Seconds};

#[derive(Debug, Clone, Deserialize)]
struct Settings {
    objective: Objective,
    max_slowdown: Option<f64>,
    tpot_limit: Option<Seconds>,
    seed: u64,
    _windows: (Length, Length, u32, u32),
    memory: Seconds,
    draws: usize,
    pessimism: f64,
    _moves: (f64, f64, u64, f64, Seconds),
}

/// What a model file holds.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Durable {
    settings: Settings,
    dice: Dice,
    stage: Stage,
    context: Context,
    first: Vec<Lesson>,
    model: Option<Model>,
    default_clock: Option<f64>,
    ceiling: Option<f64>,
    lowest: Option<f64>,
    lessons_at: BTreeMap<Clocks, u64>,
    rounds: u64,
    learning_time: f64,
    turn: u64,
    preferred: Option<f64>,
    _settled: Option<(f64, u32)>,
    _converged: bool,
    _last_default: f64,
}

impl From<Durable> for super::Durable {
    fn from(v1: Durable) -> Self {
        let Settings { objective, max_slowdown, tpot_limit, seed, memory, draws, pessimism, .. } =
            v1.settings;
        let known = StructuredSettings::default();
        Self {
            model: v1.model.map(|model| model.fitted_anew(memory)),
            settings: StructuredSettings {
                objective,
                max_slowdown,
                tpot_limit,
                seed,
                memory,
                draws,
                pessimism,
                ..known
            },
            dice: v1.dice,
            stage: v1.stage,
            context: v1.context,
            first: v1.first,
            default_clock: v1.default_clock,
            ceiling: v1.ceiling,
            lowest: v1.lowest,
            lessons_at: v1.lessons_at,
            rounds: v1.rounds,
            learning_time: v1.learning_time,
            turn: v1.turn,
            preferred: v1.preferred,
            settled: Settled::default(),
            budget: Budget::default(),
        }
    }
}

/// What a snapshot of a run holds.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Structured {
    durable: Durable,
    joiner: Joiner,
    surge: Surge,
    guard: Guard,
    held: Option<Held>,
}

impl From<Structured> for super::Structured {
    fn from(v1: Structured) -> Self {
        let Structured { durable, joiner, surge, guard, held } = v1;
        Self {
            durable: durable.into(),
            running: Running { moves: Moves::default(), joiner, surge, guard, held },
        }
    }
}
