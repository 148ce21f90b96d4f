//! What has been learned: the recent lessons and the two regressions over them.

use std::collections::VecDeque;
use std::sync::OnceLock;

use ndarray::Array1;
use serde::{Deserialize, Serialize};

use super::power::Power;
use super::scales::Scales;
use super::step_time::{Brackets, StepTime};
use super::window::Lesson;
use crate::bandit::BanditError;
use crate::stats::Dice;
use crate::units::{Seconds, Watts};

/// Most lessons kept.
const MOST_LESSONS: usize = 400;
/// Lessons older than this many forgetting times are dropped.
const OLDEST: f64 = 3.0;
/// Draws from the posterior for figures that people are shown.
const SHOWN_DRAWS: usize = 32;
/// Their seed: the same each time, so that a figure moves with what was learned and not with the dice.
const SHOWN_SEED: u64 = 95;

/// Lessons and regressions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Model {
    scales: Scales,
    lessons: VecDeque<Lesson>,
    time: StepTime,
    power: Power,
    #[serde(skip)]
    shown: ShownDraws,
}

/// Coefficients of step time and power drawn from their posteriors.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Drawn {
    /// Of the step time.
    pub time: Array1<f64>,
    /// Of the power.
    pub power: Array1<f64>,
}

/// Draws with a fixed seed, made when they are first asked for: many figures are made of one fit. They follow
/// from the fit, so two models with the same fit are equal whether they were asked or not.
#[derive(Debug, Clone, Default)]
struct ShownDraws(OnceLock<Vec<Drawn>>);

impl PartialEq for ShownDraws {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Model {
    /// A model in units of `scales` that knows nothing else.
    #[must_use]
    pub(super) fn new(scales: Scales) -> Self {
        Self {
            scales,
            lessons: VecDeque::new(),
            time: StepTime::default(),
            power: Power::default(),
            shown: ShownDraws::default(),
        }
    }

    /// Takes a lesson in and fits anew; a lesson fades with the time constant `memory` (learning time).
    ///
    /// # Errors
    /// [`BanditError`]; the regressions are then unchanged.
    pub(super) fn learn(&mut self, lesson: Lesson, memory: Seconds) -> Result<(), BanditError> {
        self.lessons.push_back(lesson);
        while self.lessons.len() > MOST_LESSONS
            || self.lessons.front().is_some_and(|oldest| lesson.at - oldest.at > OLDEST * memory.0)
        {
            self.lessons.pop_front();
        }
        let weighted = || self.lessons.iter().map(|old| (old, ((old.at - lesson.at) / memory.0).exp()));
        let time = StepTime::fit(&self.scales, weighted())?;
        let power = Power::fit(&self.scales, &time, weighted())?;
        (self.time, self.power, self.shown) = (time, power, ShownDraws::default());
        Ok(())
    }

    /// The same samples, fitted as today; without any where they do not fit.
    #[must_use]
    pub(super) fn fitted_anew(mut self, memory: Seconds) -> Self {
        let Some(last) = self.lessons.pop_back() else { return Self::new(self.scales) };
        let mut model = Self { lessons: self.lessons, ..Self::new(self.scales) };
        match model.learn(last, memory) {
            Ok(()) => model,
            Err(_) => Self::new(self.scales),
        }
    }

    /// The units.
    #[must_use]
    pub(super) fn scales(&self) -> &Scales {
        &self.scales
    }

    /// The step-time regression.
    #[must_use]
    pub(super) fn time(&self) -> &StepTime {
        &self.time
    }

    /// The power regression.
    #[must_use]
    pub(super) fn power(&self) -> &Power {
        &self.power
    }

    /// `count` draws from both posteriors.
    #[must_use]
    pub(super) fn draw(&self, count: usize, dice: &mut Dice) -> Vec<Drawn> {
        (0..count).map(|_| Drawn { time: self.time.draw(dice), power: self.power.draw(dice) }).collect()
    }

    /// The draws for figures that people are shown: the same until something is learned.
    #[must_use]
    pub(super) fn shown_draws(&self) -> &[Drawn] {
        self.shown.0.get_or_init(|| self.draw(SHOWN_DRAWS, &mut Dice::new(SHOWN_SEED)))
    }

    /// The step time that a window like this one should have had.
    #[must_use]
    pub(super) fn expected_step(&self, lesson: &Lesson) -> Seconds {
        let brackets = Brackets::at(self.time.mean(), &self.scales, lesson.clock);
        Seconds(brackets.time(lesson.prefill_per_step(), lesson.decode_per_step()))
    }

    /// The power that a window like this one should have had.
    #[must_use]
    pub(super) fn expected_power(&self, lesson: &Lesson) -> Watts {
        self.power.of(&self.scales, &self.time, lesson)
    }

    /// Is every number usable? A model file could say otherwise.
    #[must_use]
    pub(super) fn is_sound(&self) -> bool {
        self.scales.is_sound()
            && self.lessons.iter().all(Lesson::is_sound)
            && self.time.is_sound()
            && self.power.is_sound()
    }
}
