//! Version 1 of a model's contents, and of what was learned in steps of version 3.

use serde::Deserialize;

use super::{Floor, Learned};
use crate::bandit::{Learner, learner};
use crate::units::Time;

/// A model as version 1 has it.
pub(crate) type Model = Learned<learner::v1::Durable, Option<f64>>;

impl From<Model> for super::Model {
    fn from(v1: Model) -> Self {
        let floor = v1.floor;
        v1.map(Into::into, |_| floor)
    }
}

/// The floor in a snapshot of a run.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct SloFloor {
    floor_mhz: Option<f64>,
    _running: (Option<Time>, Option<Time>),
}

/// What was learned, in a snapshot of a run.
pub(crate) type InRun = Learned<learner::v1::Learner, SloFloor>;

impl From<InRun> for Learned<Learner, Floor> {
    fn from(v1: InRun) -> Self {
        v1.map(Into::into, |floor| Floor::left_at(floor.floor_mhz))
    }
}
