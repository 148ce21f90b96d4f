//! Who has the clocks in a round: the modes in their order.

use super::step::{Controller, Standing};
use super::{Mode, Round};
use crate::bandit::{Phase, Policy, View};
use crate::units::{Target, Time};

impl Controller {
    /// What whoever has the clocks wants, `None` to leave them as they are. The round is told.
    pub(super) fn decide(&mut self, round: &mut Round, standing: &Standing, now: Time) -> Option<Target> {
        let default = Some(Target::Default);
        // The first that applies has the clocks. Where none has a mode, the mode is the policy's.
        let ladder = [
            // Nobody: what runs is recorded only.
            (self.settings.data_collection, Some(Mode::DataCollection), None),
            // The driver, after a fault.
            (self.clocks.hands_off(now), Some(Mode::Fault), default),
            // The driver, for a control slot of the holdout experiment.
            (standing.control_slot, Some(Mode::Holdout), default),
            (self.is_parked(), Some(Mode::Idle), Some(self.idle.target())),
            // There is no work to choose a clock for: the parker has them wake, or they stay.
            (!standing.work, None, standing.by_parker),
            // The driver, while a latency limit is broken.
            (self.learned.floor.is_lifted(), Some(Mode::SloGuard), default),
        ];
        let first = ladder.into_iter().find(|(applies, ..)| *applies);
        let claim = first.map(|(_, mode, command)| (mode, command)).or_else(|| {
            // Whether the baseline is due is asked of rounds that are left to the policy: asking counts them.
            let due = self.learned.policy.wants_rewards()
                && self.learned.schedule.wants_default(standing.support, round.window.elapsed);
            due.then_some((Some(Mode::Baseline), default))
        });
        if matches!(claim, Some((Some(Mode::Holdout | Mode::SloGuard | Mode::Baseline), _))) {
            self.learned.policy.interrupt();
        }
        let (mode, command) = claim.unwrap_or_else(|| {
            let view = View { now, context: &round.scaled, space: &self.space };
            (None, Some(round.choice.insert(self.learned.policy.choose(view)).target))
        });
        let mode = mode.unwrap_or_else(|| self.mode_of_policy());
        (self.mode, round.mode) = (mode, mode);
        round.command = command.unwrap_or(round.command);
        let summary = self.learned.policy.summary();
        let ran = summary.arms.iter().find(|arm| round.ran_at == Some(Target::Lock(arm.clocks)));
        round.lessons_at_clock = ran.map_or(0, |arm| arm.lessons);
        round.alpha = summary.alpha;
        round.arms_allowed = self.space.allowed(now).count();
        round.arms_out = self.space.arms().len() - round.arms_allowed;
        command
    }

    fn mode_of_policy(&self) -> Mode {
        // Only a policy that learns from rewards waits for a baseline.
        if self.learned.policy.wants_rewards() && !self.learned.schedule.first_done() {
            return Mode::Baseline;
        }
        match self.learned.policy.phase() {
            Phase::Exploration => Mode::Exploration,
            Phase::Exploitation => Mode::Exploitation,
        }
    }
}
