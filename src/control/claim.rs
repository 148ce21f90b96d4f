//! Who has the clocks in a round: the modes in their order.

use super::Mode;
use super::step::Controller;
use crate::bandit::{Choice, Phase, Policy, View};
use crate::features::DIMENSION;
use crate::units::{Seconds, Target, Time};

/// Who has the clocks. The first that applies has them, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// Nobody: what runs is recorded only.
    Recording,
    /// The driver, after a fault.
    HandsOff,
    /// The driver, for a slot of the holdout experiment.
    Holdout,
    /// The parker.
    Parked,
    /// There is no work to choose a clock for: the parker has them wake, or they stay.
    NoWork,
    /// The driver, since a latency limit was just broken.
    Floor,
    /// The driver, to be compared with.
    Baseline,
    /// The policy.
    Policy,
}

impl Controller {
    pub(super) fn claim(
        &mut self,
        work: bool,
        held: bool,
        support: Option<f64>,
        elapsed: Seconds,
        now: Time,
    ) -> Claim {
        let ladder = [
            (self.settings.data_collection, Claim::Recording),
            (self.hands_off(now), Claim::HandsOff),
            (held, Claim::Holdout),
            (self.is_parked(), Claim::Parked),
            (!work, Claim::NoWork),
            (self.learned.floor.is_lifted(now), Claim::Floor),
        ];
        if let Some((_, claim)) = ladder.into_iter().find(|(applies, _)| *applies) {
            return claim;
        }
        // Whether the baseline is due is asked of rounds that are left to the policy: asking counts them.
        let due =
            self.learned.policy.wants_rewards() && self.learned.schedule.wants_default(support, elapsed);
        if due { Claim::Baseline } else { Claim::Policy }
    }

    /// What whoever has the clocks wants; `None` leaves them as they are.
    pub(super) fn decide(
        &mut self,
        claim: Claim,
        by_parker: Option<Target>,
        context: &[f64; DIMENSION],
        now: Time,
    ) -> (Mode, Option<Target>, Option<Choice>) {
        if matches!(claim, Claim::Holdout | Claim::Floor | Claim::Baseline) {
            self.learned.policy.interrupt();
        }
        let (mode, command) = match claim {
            Claim::Recording => (Mode::DataCollection, None),
            Claim::HandsOff => (Mode::Fault, Some(Target::Default)),
            Claim::Holdout => (Mode::Holdout, Some(Target::Default)),
            Claim::Parked => (Mode::Idle, Some(self.idle.target())),
            Claim::NoWork => (self.mode_of_policy(), by_parker),
            Claim::Floor => (Mode::SloGuard, Some(Target::Default)),
            Claim::Baseline => (Mode::Baseline, Some(Target::Default)),
            Claim::Policy => {
                let choice = self.learned.policy.choose(View { now, context, space: &self.space });
                return (self.mode_of_policy(), Some(choice.target), Some(choice));
            }
        };
        (mode, command, None)
    }

    fn mode_of_policy(&self) -> Mode {
        if self.settings.data_collection {
            return Mode::DataCollection;
        }
        // Only a policy that learns from rewards waits for a baseline.
        if self.learned.policy.wants_rewards() && !self.learned.schedule.first_done() {
            return Mode::Baseline;
        }
        match self.learned.policy.summary().phase {
            Phase::Exploration => Mode::Exploration,
            Phase::Exploitation => Mode::Exploitation,
        }
    }
}
