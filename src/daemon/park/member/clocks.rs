//! What a GPU's lock came to, and the trial of its levers.

use super::{BUSY, Connections, Member};
use crate::control::ClockOutcome;
use crate::gpu::{GpuError, GpuSensors, Refusal};
use crate::park::gap::Prices;
use crate::park::levers::Order;
use crate::park::rule::State;
use crate::park::wake::Running;
use crate::units::{Clocks, Joules, Target, Time};

impl Member {
    /// What the rule reckons with.
    pub(super) fn prices(&self) -> Prices {
        let saving = self.lowering.levers().saving(self.price.busy());
        Prices { saving: saving.or_else(|| self.books.saving()), wake: self.price.joules() }
    }

    /// The clocks at which it would be parked now.
    pub(super) fn parks_at(&self) -> Clocks {
        self.lowering.shown(false, self.price.busy()).clocks
    }

    /// The running clocks, as far as they are lowered.
    pub(super) fn running(&mut self) -> Result<Running, GpuError> {
        let lowered = self.lowering.lever().lowered();
        let core = match lowered.core {
            Some(_) => self.ask(GpuSensors::core_clock)?,
            None => None,
        };
        let memory = match lowered.memory {
            Some(_) => self.ask(GpuSensors::memory_clock)?,
            None => None,
        };
        Ok(Running { core, memory })
    }

    /// When a trial wants a look; a dry run tries nothing.
    pub(super) fn trial_due(&self) -> Option<Time> {
        self.actuator.as_ref()?;
        self.lowering.due().filter(|_| matches!(self.rule.state(), State::Parked { .. }))
    }

    /// Goes on with the trial of the levers, if it is time to.
    pub(super) fn try_levers(&mut self, now: Time) -> Result<(), GpuError> {
        if self.trial_due().is_none_or(|due| due > now) {
            return Ok(());
        }
        let timing = self.lowering.levers().is_timing();
        let running = if timing { self.running()? } else { Running::default() };
        let (mut energy, mut counter) = (Joules(0.0), None);
        if !timing {
            counter = self.ask(GpuSensors::energy)?;
            let before = self.lowering.looked();
            let counted = before.and_then(|before| counter?.since(before.counter?));
            energy = match (counted, before) {
                (Some(counted), _) => counted,
                // No counter: the power of this moment stands for the span.
                (None, Some(before)) if counter.is_none() => match self.ask(GpuSensors::power)? {
                    Some(power) => Joules(power.0 * now.since(before.at).0),
                    None => {
                        tracing::info!(gpu = %self.info, "neither energy nor power can be read: no lever is tried out");
                        self.lowering.give_up();
                        return self.change_clocks_back(now);
                    }
                },
                // The beginning of a measurement.
                _ => Joules(0.0),
            };
        }
        let was_trying = self.lowering.levers().is_trying();
        let order = self.lowering.on_look(energy, running, counter, self.price.busy(), now);
        if let Some(order) = order {
            self.change_clocks(order, now)?;
        }
        if was_trying && !self.lowering.levers().is_trying() {
            let (book, lever) = (self.lowering.levers().book(), self.lowering.lever());
            tracing::info!(gpu = %self.info, lever = lever.kind.name(), clocks = %lever.clocks, "{book}");
        }
        Ok(())
    }

    /// What is open is booked at the old clocks, and goes on at the new ones.
    fn change_clocks(&mut self, order: Order, now: Time) -> Result<(), GpuError> {
        self.book(now)?;
        let target = self.lowering.apply(order);
        self.command(target);
        tracing::debug!(gpu = %self.info, ?order, "trial of the levers");
        self.open_account(false, now)
    }

    fn change_clocks_back(&mut self, now: Time) -> Result<(), GpuError> {
        let order = Order::Lock(self.lowering.lever().clocks);
        self.change_clocks(order, now)
    }

    /// Power at work, now and then: what a wake costs goes by it.
    pub(super) fn sample_busy_power(&mut self, connections: Connections, now: Time) -> Result<(), GpuError> {
        let works = match self.settings.utilization_threshold_percent {
            Some(threshold) => self.utilization.is_some_and(|percent| percent > threshold),
            None => connections.open.is_some_and(|open| open > 0),
        };
        let serves = self.rule.state() == State::Serving && self.check.is_none();
        if !works || !serves || now < self.busy_due {
            return Ok(());
        }
        self.busy_due = now + BUSY;
        if let Some(power) = self.ask(GpuSensors::power)? {
            self.price.worked(power);
        }
        Ok(())
    }

    /// What became of earlier commands.
    pub(super) fn hear(&mut self, now: Time) -> Result<(), GpuError> {
        let Some(actuator) = &self.actuator else { return Ok(()) };
        let (failure, outcomes) = (actuator.take_failure(), actuator.outcomes());
        if let Some(error) = failure {
            return Err(error);
        }
        for outcome in outcomes {
            self.in_force = match &outcome {
                ClockOutcome::InForce { target: Target::Lock(clocks), .. } => Some(*clocks),
                _ => None,
            };
            match outcome {
                ClockOutcome::InForce { target, .. } => {
                    tracing::debug!(gpu = %self.info, clocks = %target, "in force");
                }
                ClockOutcome::Refused { target, recovery, why, .. } => {
                    self.hear_refusal(target, recovery, &why, now)?;
                }
            }
        }
        Ok(())
    }

    fn hear_refusal(
        &mut self,
        target: Target,
        recovery: Refusal,
        why: &str,
        now: Time,
    ) -> Result<(), GpuError> {
        let down = self.rule.state().is_down();
        if let (Target::Lock(clocks), Refusal::DropArm) = (target, recovery) {
            // The clocks are the driver's since.
            if self.lowering.refuse(clocks, self.price.busy()) {
                let lever = self.lowering.lever();
                tracing::warn!(
                    gpu = %self.info, why, refused = %clocks, instead = lever.kind.name(),
                    "this board is not parked so: the driver does not take the lock"
                );
                if down {
                    self.command(self.lowering.target());
                }
                return Ok(());
            }
            if clocks.memory.is_some() {
                tracing::error!(gpu = %self.info, why, "park.lever asks for a lock that this board does not have");
                let call = "nvmlDeviceSetMemoryLockedClocks";
                return Err(GpuError::NotSupported { gpu: self.info.to_string(), call });
            }
        }
        if down {
            if let Some(times) = self.seldom.may_say("not parked", now) {
                let gpu = &self.info;
                tracing::warn!(%gpu, why, not_said_before = times, "not parked: the clocks are the driver's");
            }
            self.book(now)?;
            self.booked = None;
            self.lowering.end(now);
            self.rule.refused(now);
        } else if let Some(times) = self.seldom.may_say("given back", now) {
            tracing::warn!(gpu = %self.info, why, not_said_before = times, "clocks given back");
        }
        Ok(())
    }
}
