//! The policy in charge, as models of version 1 and steps of version 3 hold it.

use serde::Deserialize;

use super::Running;
use crate::bandit::linucb::{self, LinUcb};
use crate::bandit::structured;

/// What a model file holds.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Durable {
    structured: Option<structured::v1::Durable>,
    linucb: linucb::Durable,
    handed_over: Option<f64>,
}

impl From<Durable> for super::Durable {
    fn from(v1: Durable) -> Self {
        Self {
            structured: v1.structured.map(Into::into),
            linucb: v1.linucb,
            handed_over: v1.handed_over,
            judge: None,
        }
    }
}

/// What a snapshot of a run holds.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Learner {
    structured: Option<Box<structured::v1::Structured>>,
    linucb: LinUcb,
    handed_over: Option<f64>,
    running: Running,
}

impl From<Learner> for super::Learner {
    fn from(v1: Learner) -> Self {
        Self {
            structured: v1.structured.map(|structured| Box::new((*structured).into())),
            linucb: v1.linucb,
            handed_over: v1.handed_over,
            judge: None,
            running: v1.running,
        }
    }
}
