//! One GPU of a parking run: what it is asked and when, what its rule makes of that, and what becomes of it.

use crate::daemon::actuator::Actuator;
use crate::daemon::watch::Pulse;
use crate::gpu::{GpuError, GpuInfo, GpuSensors, SupportedClocks};
use crate::park::books::Books;
use crate::park::levers::{LeverBook, Levers, TrialTimes};
use crate::park::price::WakePrice;
use crate::park::rule::{Decision, Observation, ParkRule, Settings, State};
use crate::park::source::WakeSource;
use crate::park::wake::{Running, Verdict, WakeCheck};
use crate::seldom::Seldom;
use crate::units::{Clocks, Joules, Mhz, Millijoules, Seconds, Target, Time};
use crate::view::{ParkStanding, ParkedGpu};

use super::activity::Connections;
use super::levels::Levels;
use super::lowering::Lowering;

mod clocks;

/// Between two looks at the temperature of a GPU that is not parked, and at its power while it is quiet.
const SLOW: Seconds = Seconds(1.0);
/// Between two looks at the power of a GPU at work.
const BUSY: Seconds = Seconds(5.0);
/// Between two looks at the utilisation while a trial lasts, at most.
const TRIAL_LOOK: Seconds = Seconds(0.2);
/// Time from work until the driver's own averaging shows it.
const AVERAGED: Seconds = Seconds(0.1);
/// Between two looks at the temperature of a parked GPU.
const SLOW_PARKED: Seconds = Seconds(5.0);
/// Work that comes so soon after a connection was that client's.
const CONNECTED: Seconds = Seconds(1.0);
/// A look that is due so soon is made now.
const SLACK: Seconds = Seconds(0.002);

/// Periods of looks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Periods {
    /// Not parked.
    pub active: Seconds,
    /// Parked.
    pub parked: Seconds,
}

/// Up to when time with the clocks down is on the books.
#[derive(Debug, Clone, Copy)]
struct Booked {
    until: Time,
    /// It is down for heat: work may be there, and nothing is said to be saved.
    hot: bool,
    /// The energy counter then, where there is one.
    counter: Option<Millijoules>,
}

/// A GPU, and all that is known of it.
pub struct Member {
    sensors: Box<dyn GpuSensors>,
    info: GpuInfo,
    /// Without one, in a dry run, nothing is ever written.
    pub(super) actuator: Option<Actuator>,
    rule: ParkRule,
    settings: Settings,
    levels: Levels,
    lowering: Lowering,
    price: WakePrice,
    /// Work had waited so long when it was noticed.
    unnoticed: Seconds,
    periods: Periods,
    pub(super) books: Books,
    utilization: Option<f64>,
    temperature: Option<f64>,
    utilization_due: Time,
    temperature_due: Time,
    power_due: Time,
    busy_due: Time,
    check: Option<WakeCheck>,
    booked: Option<Booked>,
    in_force: Option<Clocks>,
    paused: bool,
    standing: (ParkStanding, Time),
    seldom: Seldom<Time>,
}

impl Member {
    /// At its driver's clocks, with nothing seen yet.
    #[must_use]
    pub fn new(
        sensors: Box<dyn GpuSensors>,
        actuator: Option<Actuator>,
        settings: Settings,
        levels: Levels,
        periods: Periods,
        now: Time,
    ) -> Self {
        Self {
            info: sensors.info().clone(),
            sensors,
            actuator,
            rule: ParkRule::new(settings),
            settings,
            lowering: Lowering::new(
                Levers::new(levels.levers.clone(), LeverBook::default(), levels.top),
                levels.simplest,
            ),
            levels,
            price: WakePrice::default(),
            unnoticed: Seconds(0.0),
            periods,
            books: Books::default(),
            utilization: None,
            temperature: None,
            utilization_due: now,
            temperature_due: now,
            power_due: now,
            busy_due: now,
            check: None,
            booked: None,
            in_force: None,
            paused: false,
            standing: (ParkStanding::Serving, now),
            seldom: Seldom::default(),
        }
    }

    /// With what an earlier run has measured of its levers, and times for the trials of this one.
    #[must_use]
    pub fn with_known(mut self, book: LeverBook, times: TrialTimes) -> Self {
        let levers = Levers::new(self.levels.levers.clone(), book, self.levels.top).with_times(times);
        self.lowering = Lowering::new(levers, self.levels.simplest);
        self
    }

    /// What a trial found, once: to be kept for the next run.
    #[must_use]
    pub fn take_news(&mut self) -> Option<LeverBook> {
        self.lowering.take_news()
    }

    /// All that is known of its levers, if anything is, and if it was measured here.
    #[must_use]
    pub fn measured(&self) -> Option<LeverBook> {
        let book = self.lowering.levers().book();
        (self.actuator.is_some() && !book.levers.is_empty()).then(|| book.clone())
    }

    /// Is it parked by performance state?
    #[must_use]
    pub fn is_by_state(&self) -> bool {
        self.levels.by_state
    }

    /// Who it is.
    #[must_use]
    pub fn info(&self) -> &GpuInfo {
        &self.info
    }

    /// Marked while its clocks are written.
    #[must_use]
    pub fn clock_pulse(&self) -> Option<Pulse> {
        self.actuator.as_ref().map(Actuator::pulse)
    }

    /// What another thread calls when its clocks were given back without it.
    #[must_use]
    pub fn disturber(&self) -> Option<Box<dyn Fn(String) + Send>> {
        self.actuator.as_ref().map(Actuator::disturber)
    }

    pub(super) fn command(&self, target: Target) {
        if let Some(actuator) = &self.actuator {
            actuator.command(target);
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.rule.state()
    }

    /// Does it have to be looked at by the GPU's own sensors before `time`?
    #[must_use]
    pub fn due(&self) -> Time {
        let mut due = Time(f64::INFINITY);
        if self.paused {
            return due;
        }
        let mut by = |time: Time| due = if time < due { time } else { due };
        if self.settings.utilization_threshold_percent.is_some() || self.check.is_some() {
            by(self.utilization_due);
        }
        if self.settings.hot.is_some() {
            by(self.temperature_due);
        }
        if let Some(trial) = self.trial_due() {
            by(trial);
        }
        due
    }

    /// Asks one sensor: `None` where it is missing or fails for the moment.
    fn ask<T>(
        &mut self,
        question: impl FnOnce(&(dyn GpuSensors + 'static)) -> Result<T, GpuError>,
    ) -> Result<Option<T>, GpuError> {
        self.books.calls += 1;
        self.books.calls_parked += u64::from(matches!(self.rule.state(), State::Parked { .. }));
        match question(self.sensors.as_ref()) {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if error.ends_sampling() => Err(error),
            Err(error) => {
                tracing::debug!(gpu = %self.info, %error, "no answer");
                Ok(None)
            }
        }
    }

    /// Gives the clocks back and leaves them alone until [`resume`](Self::resume).
    ///
    /// # Errors
    /// [`GpuError`] after which the GPU cannot be controlled.
    pub fn pause(&mut self, now: Time) -> Result<(), GpuError> {
        self.paused = true;
        // Not read from now on.
        (self.utilization, self.temperature) = (None, None);
        self.let_go(now)
    }

    /// Goes on as at the start.
    pub fn resume(&mut self, now: Time) {
        if std::mem::take(&mut self.paused) {
            (self.utilization, self.temperature) = (None, None);
            (self.utilization_due, self.temperature_due) = (now, now);
        }
    }

    /// Clocks back, and nothing believed of what they were.
    fn let_go(&mut self, now: Time) -> Result<(), GpuError> {
        self.command(Target::Default);
        self.book(now)?;
        self.lowering.end(now);
        self.booked = None;
        self.books.end_spell();
        self.check = None;
        self.rule.ask_again();
        Ok(())
    }

    /// Other constants from now on, with the clocks given back: as after a restart, but for the books. Those that are as
    /// they were change nothing.
    ///
    /// # Errors
    /// [`GpuError`] after which the GPU cannot be controlled.
    pub fn reconfigure(
        &mut self,
        settings: Settings,
        levels: Levels,
        periods: Periods,
        now: Time,
    ) -> Result<(), GpuError> {
        self.periods = periods;
        if settings != self.settings || levels != self.levels {
            self.let_go(now)?;
            self.rule.configure(settings);
            (self.utilization, self.temperature) = (None, None);
            self.lowering.set_list(&levels.levers, levels.simplest, levels.top);
            (self.settings, self.levels) = (settings, levels);
            (self.utilization_due, self.temperature_due) = (now, now);
        }
        Ok(())
    }

    /// The clocks that there are.
    ///
    /// # Errors
    /// [`GpuError`] if the driver does not say.
    pub fn supported_clocks(&self) -> Result<SupportedClocks, GpuError> {
        self.sensors.supported_clocks()
    }

    /// Where it stands, for operators, and which lock is in force.
    #[must_use]
    pub fn standing(&mut self, now: Time) -> (ParkStanding, Option<Clocks>) {
        let standing = match self.rule.state() {
            _ if self.paused => ParkStanding::Paused,
            State::Serving => ParkStanding::Serving,
            State::Quiet { .. } => ParkStanding::Quiet,
            State::Parked { .. } => ParkStanding::Parked,
            State::Hot => ParkStanding::Hot,
        };
        if standing != self.standing.0 {
            self.standing = (standing, now);
        }
        (standing, self.in_force)
    }

    /// All that operators see; asks no sensor.
    #[must_use]
    pub fn shown(&self, now: Time, unix_s: f64) -> ParkedGpu {
        let mut books = self.books.clone();
        if let Some(booked) = self.booked {
            // Not on the books yet, as that would ask for the energy.
            let open = if self.lowering.is_released() { 0.0 } else { now.since(booked.until).0 };
            *(if booked.hot { &mut books.hot_s } else { &mut books.parked_s }) += open;
        }
        let lever = self.lowering.shown(self.rule.state().is_down(), self.price.busy());
        let levers = self.lowering.levers();
        ParkedGpu {
            index: self.info.index,
            uuid: self.info.uuid.clone(),
            name: self.info.name.clone(),
            state: self.standing.0,
            since_unix_s: unix_s - now.since(self.standing.1).0,
            parked_clocks: lever.clocks,
            lever: lever.kind.name().to_owned(),
            trying: levers.is_trying(),
            levers: levers.book().clone(),
            wake_cost_j: self.prices().wake.map(|cost| cost.0),
            in_force: self.in_force,
            not_given_back: self.actuator.as_ref().is_some_and(Actuator::is_not_given_back),
            utilization_percent: self.utilization,
            temperature_c: self.temperature,
            idle_power_w: books.idle_power().map(|power| power.0),
            parked_power_w: books.parked_power().map(|power| power.0),
            saved_about_j: books.saved_about().map(|saved| saved.0),
            saved: books.saved(),
            books,
        }
    }

    /// Looks at what is due, decides, and acts.
    ///
    /// # Errors
    /// [`GpuError`] after which the GPU cannot be controlled.
    pub fn turn(&mut self, connections: Connections, now: Time) -> Result<(), GpuError> {
        self.hear(now)?;
        if self.paused {
            return Ok(());
        }
        let due = |at: Time| at <= now + SLACK;
        let looks = due(self.utilization_due);
        if looks {
            let down = self.rule.state().is_down();
            if self.settings.utilization_threshold_percent.is_some() || self.check.is_some() {
                self.utilization = self.ask(GpuSensors::utilization)?;
            } else {
                self.utilization = None;
            }
            let period = match down {
                true if self.lowering.levers().is_trying() => {
                    Seconds(self.periods.parked.0.min(TRIAL_LOOK.0))
                }
                true => self.periods.parked,
                false => self.periods.active,
            };
            self.utilization_due = now + period;
        }
        if self.settings.hot.is_some() && due(self.temperature_due) {
            self.temperature = self.ask(GpuSensors::temperature)?;
            let idle = matches!(self.rule.state(), State::Parked { .. });
            self.temperature_due = now + if idle { SLOW_PARKED } else { SLOW };
        }
        let seen = Observation {
            now,
            utilization_percent: self.utilization,
            temperature_c: self.temperature,
            open_connections: connections.open,
            last_connection: connections.last_opened,
        };
        let was_hot = self.rule.state() == State::Hot;
        let decision = self.rule.step(&seen, self.prices());
        if was_hot && matches!(self.rule.state(), State::Parked { .. }) {
            tracing::info!(gpu = %self.info, temperature_c = self.temperature, "cool again, and idle: stays parked");
            self.lowering.cooled(now);
            self.open_account(false, now)?;
        }
        // Connections come before the work that they bring: one that was not seen was missed.
        let nobody = connections.open == Some(0)
            && connections.last_opened.is_none_or(|opened| now.since(opened) > CONNECTED);
        let missed = self.settings.connections.is_some() && nobody && !was_hot;
        self.carry_out(decision, missed, now)?;
        if looks {
            self.verify(now)?;
            self.sample_idle_power(now)?;
            self.sample_busy_power(connections, now)?;
        }
        self.try_levers(now)
    }

    fn carry_out(&mut self, decision: Decision, missed: bool, now: Time) -> Result<(), GpuError> {
        match decision {
            Decision::Stay => return Ok(()),
            Decision::Park(idle) => {
                tracing::info!(gpu = %self.info, idle_s = idle.0, clocks = %self.parks_at(), "parked");
                self.park(false, now)?;
            }
            Decision::Cool { temperature_c } => {
                self.books.hot_spells += 1;
                if let Some(times) = self.seldom.may_say("hot", now) {
                    let clocks = self.parks_at();
                    tracing::warn!(
                        gpu = %self.info, temperature_c, %clocks, not_said_before = times, "too hot: parked"
                    );
                }
                self.park(true, now)?;
            }
            Decision::Wake(source) => {
                // First of all: work waits for it.
                self.command(self.levels.awake);
                self.book(now)?;
                let by_work = matches!(source, WakeSource::Utilization { .. });
                self.unnoticed =
                    if by_work { Seconds(self.periods.parked.0 / 2.0 + AVERAGED.0) } else { Seconds(0.0) };
                // In a trial the clocks may be the driver's already: nothing was parked, and nothing is to come back.
                let released = self.lowering.is_released();
                self.books.woken(source.name(), missed && by_work && !released);
                self.lowering.end(now);
                let parked_s = self.books.parked_s;
                self.booked = None;
                tracing::info!(gpu = %self.info, by = %source, parked_s_in_all = parked_s, "woken");
                let check = || WakeCheck::new(self.lowering.lever().lowered(), self.levels.top, now);
                self.check = (self.actuator.is_some() && !released).then(check);
                self.utilization_due = now + self.periods.active;
            }
        }
        Ok(())
    }

    fn park(&mut self, hot: bool, now: Time) -> Result<(), GpuError> {
        self.check = None;
        self.book(now)?;
        // Nothing is written if that is in force already.
        let target = self.lowering.park(hot, self.price.busy(), now);
        self.command(target);
        if self.booked.is_none() {
            self.books.parked();
        }
        self.open_account(hot, now)?;
        self.utilization_due = now + self.periods.parked;
        Ok(())
    }

    /// Books what is open, and begins anew.
    fn open_account(&mut self, hot: bool, now: Time) -> Result<(), GpuError> {
        self.book(now)?;
        let counter = if hot { None } else { self.ask(GpuSensors::energy)? };
        self.booked = Some(Booked { until: now, hot, counter });
        Ok(())
    }

    /// Is the wake seen in the running clocks?
    fn verify(&mut self, now: Time) -> Result<(), GpuError> {
        let Some(mut check) = self.check else { return Ok(()) };
        // Where that cannot be seen, clocks that stay down are no reason for an alarm.
        let busy = self
            .utilization
            .is_some_and(|percent| percent > self.settings.utilization_threshold_percent.unwrap_or(0.0));
        if check.waits_for_work() && !busy {
            check.still_idle(now);
            self.check = Some(check);
            return Ok(());
        }
        let running @ Running { core, memory } = self.running()?;
        let verdict = check.look(running, busy, now);
        self.check = Some(check);
        match verdict {
            Verdict::Wait | Verdict::Idle => {}
            Verdict::NotSeen => self.check = None,
            Verdict::Back(took) => {
                self.check = None;
                self.books.clocks_back(took, self.settings.gap.wake_limit);
                self.rule.woke(took);
                self.lowering.woke(took);
                self.price.woke(Seconds(took.0 + self.unnoticed.0));
                let clock = |clock: Option<Mhz>| clock.map(|clock| clock.0);
                tracing::info!(
                    gpu = %self.info, took_s = took.0, core_mhz = clock(core), memory_mhz = clock(memory),
                    "clocks are back"
                );
            }
            Verdict::ResetAgain => {
                self.books.reset_again();
                if let Some(times) = self.seldom.may_say("reset again", now) {
                    tracing::error!(
                        gpu = %self.info,
                        core_mhz = core.map(|clock| clock.0),
                        memory_mhz = memory.map(|clock| clock.0),
                        not_said_before = times,
                        "work runs at the parked clock though the clocks were given back: reset again"
                    );
                }
                if let Some(disturb) = self.disturber() {
                    disturb("work runs at the parked clock".into());
                }
            }
            Verdict::GiveUp => {
                self.check = None;
                self.rule.woke(Seconds(f64::INFINITY));
                if let Some(times) = self.seldom.may_say("given up", now) {
                    tracing::error!(
                        gpu = %self.info, not_said_before = times,
                        "the clocks do not come back; is another program locking them? see `nvidia-smi -q -d CLOCK`"
                    );
                }
            }
        }
        Ok(())
    }

    fn sample_idle_power(&mut self, now: Time) -> Result<(), GpuError> {
        // Power is a mean over a second on many boards: only then it is that of the quiet GPU.
        let State::Quiet { since } = self.rule.state() else {
            if self.booked.is_none() {
                self.books.end_spell();
            }
            return Ok(());
        };
        if now.since(since) < SLOW || now < self.power_due {
            return Ok(());
        }
        self.power_due = now + SLOW;
        if let Some(power) = self.ask(GpuSensors::power)? {
            self.books.quiet_power(power);
        }
        Ok(())
    }

    /// Books the parked time up to now.
    ///
    /// # Errors
    /// [`GpuError`] after which the GPU cannot be controlled.
    pub fn book(&mut self, now: Time) -> Result<(), GpuError> {
        let Some(booked) = self.booked else { return Ok(()) };
        let span = now.since(booked.until);
        if span.0 <= 0.0 {
            return Ok(());
        }
        let mut counter = None;
        if self.lowering.is_released() {
            // Parked in name only, and no part of what parking saves. The account goes on when the clocks are down again.
        } else if booked.hot {
            self.books.hot_s += span.0;
        } else {
            let energy = match booked.counter {
                // The clocks of a dry run are not the parked ones: what the board draws says nothing.
                _ if self.actuator.is_none() => None,
                Some(before) => {
                    counter = self.ask(GpuSensors::energy)?;
                    counter.and_then(|counter| counter.since(before))
                }
                // No counter: the power of this moment stands for the span.
                None => self.ask(GpuSensors::power)?.map(|power| Joules(power.0 * span.0)),
            };
            self.books.parked_span(span, energy);
        }
        self.booked = Some(Booked { until: now, counter, ..booked });
        Ok(())
    }
}
