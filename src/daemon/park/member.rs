//! One GPU of a parking run: what it is asked and when, what its rule makes of that, and what becomes of it.

use crate::control::ClockOutcome;
use crate::daemon::actuator::Actuator;
use crate::daemon::watch::Pulse;
use crate::gpu::{GpuError, GpuInfo, GpuSensors, Refusal, SupportedClocks};
use crate::park::books::Books;
use crate::park::levers::{LeverBook, Levers, TrialTimes};
use crate::park::parker::{Command, Event, Refused};
use crate::park::sample::{Sensor, Sensors};
use crate::park::source::Connections;
use crate::park::wake::Running;
use crate::park::{Parker, Sample, Settings, State};
use crate::reward::energy::EnergyPoint;
use crate::seldom::Seldom;
use crate::units::{Clocks, Mhz, Millijoules, Target, Time};
use crate::view::{ParkStanding, ParkedGpu};

use super::levels::Levels;

/// A parker may want to know more at once, so often in a row at most.
const ROUNDS: usize = 6;

/// A GPU, and all that is known of it.
pub struct Member {
    sensors: Box<dyn GpuSensors>,
    info: GpuInfo,
    /// Without one, in a dry run, nothing is ever written.
    pub(super) actuator: Option<Actuator>,
    parker: Parker,
    settings: Settings,
    levels: Levels,
    utilization: Option<f64>,
    temperature: Option<f64>,
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
        now: Time,
    ) -> Self {
        let settings = Settings { dry_run: actuator.is_none(), ..settings };
        let levers = Levers::new(levels.levers.clone(), LeverBook::default(), levels.top);
        Self {
            info: sensors.info().clone(),
            sensors,
            actuator,
            parker: Parker::new(Some(settings), levers, now),
            settings,
            levels,
            utilization: None,
            temperature: None,
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
        self.parker.set_levers(levers);
        self
    }

    /// What a trial found, once: to be kept for the next run.
    #[must_use]
    pub fn take_news(&mut self) -> Option<LeverBook> {
        self.parker.take_news()
    }

    /// All that is known of its levers, if anything is, and if it was measured here.
    #[must_use]
    pub fn measured(&self) -> Option<LeverBook> {
        let book = self.parker.levers().book();
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
        self.parker.state()
    }

    /// What its parking came to.
    #[must_use]
    pub fn books(&self) -> &Books {
        self.parker.books()
    }

    /// Does it have to be looked at by the GPU's own sensors before `time`?
    #[must_use]
    pub fn due(&self) -> Time {
        if self.paused { Time(f64::INFINITY) } else { self.parker.due() }
    }

    /// Asks one sensor: `None` where it is missing or fails for the moment.
    fn ask<T>(
        &self,
        question: impl FnOnce(&(dyn GpuSensors + 'static)) -> Result<T, GpuError>,
    ) -> Result<Option<T>, GpuError> {
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
            self.parker.begin_anew(now);
        }
    }

    /// Clocks back, and nothing believed of what they were.
    fn let_go(&mut self, now: Time) -> Result<(), GpuError> {
        self.command(Target::Default);
        self.parker.begin_anew(now);
        self.account(now)
    }

    /// Other constants from now on, with the clocks given back: as after a restart, but for the books. Those that are as
    /// they were change nothing.
    ///
    /// # Errors
    /// [`GpuError`] after which the GPU cannot be controlled.
    pub fn reconfigure(&mut self, settings: Settings, levels: Levels, now: Time) -> Result<(), GpuError> {
        let settings = Settings { dry_run: self.actuator.is_none(), ..settings };
        if settings != self.settings || levels != self.levels {
            self.let_go(now)?;
            (self.utilization, self.temperature) = (None, None);
            self.parker.configure(settings, &levels.levers, levels.top);
            (self.settings, self.levels) = (settings, levels);
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
        let standing = match self.parker.state() {
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
        let books = self.parker.books_at(now);
        let lever = self.parker.lever().unwrap_or(self.levels.simplest);
        let levers = self.parker.levers();
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
            wake_cost_j: self.parker.prices().wake.map(|cost| cost.0),
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

    /// Asks what is due, has it decided upon, and acts.
    ///
    /// # Errors
    /// [`GpuError`] after which the GPU cannot be controlled.
    pub fn turn(&mut self, connections: Option<Connections>, now: Time) -> Result<(), GpuError> {
        self.hear(now)?;
        if self.paused {
            return Ok(());
        }
        let mut wanted = self.parker.wants(now);
        for _ in 0..ROUNDS {
            let sample = Sample { connections, ..self.sample(wanted, now)? };
            let output = self.parker.observe(&sample);
            if let Some(command) = output.command {
                self.command(match command {
                    Command::Park(target) => target,
                    Command::Wake => self.levels.awake,
                });
            }
            if output.reset_again
                && let Some(disturb) = self.disturber()
            {
                disturb("work runs at the parked clock".into());
            }
            for event in &output.events {
                self.tell(event, now);
            }
            wanted = self.parker.wants(now);
            if wanted == Sensors::NONE {
                break;
            }
        }
        if !self.parker.reads_utilization() {
            self.utilization = None;
        }
        Ok(())
    }

    /// Has the parked time up to now in the books.
    ///
    /// # Errors
    /// [`GpuError`] after which the GPU cannot be controlled.
    pub fn book(&mut self, now: Time) -> Result<(), GpuError> {
        self.parker.settle();
        self.account(now)
    }

    /// Reads what the books want, and decides nothing.
    fn account(&mut self, now: Time) -> Result<(), GpuError> {
        let of_books = |wanted: Sensors| {
            let energy = Sensors::NONE.with(Sensor::Energy, wanted.has(Sensor::Energy));
            energy.with(Sensor::Power, wanted.has(Sensor::Power))
        };
        for _ in 0..ROUNDS {
            let wanted = of_books(self.parker.wants(now));
            if wanted == Sensors::NONE {
                break;
            }
            let sample = self.sample(wanted, now)?;
            self.parker.account(&sample);
        }
        Ok(())
    }

    /// Asks these sensors; what is not asked has its last value, as far as it is kept.
    fn sample(&mut self, wanted: Sensors, now: Time) -> Result<Sample, GpuError> {
        let mut sample = Sample { read: wanted, ..Sample::at(now) };
        if wanted.has(Sensor::Utilization) {
            self.utilization = self.ask(GpuSensors::utilization)?;
        }
        if wanted.has(Sensor::Temperature) {
            self.temperature = self.ask(GpuSensors::temperature)?;
        }
        if wanted.has(Sensor::Power) {
            sample.activity.power = self.ask(GpuSensors::power)?;
        }
        if wanted.has(Sensor::Energy) {
            let total = self.ask(GpuSensors::energy)?.and_then(|counter| counter.since(Millijoules(0)));
            sample.energy = total.map(|total| EnergyPoint { at: now, total });
        }
        if wanted.has(Sensor::CoreClock) {
            sample.running.core = self.ask(GpuSensors::core_clock)?;
        }
        if wanted.has(Sensor::MemoryClock) {
            sample.running.memory = self.ask(GpuSensors::memory_clock)?;
        }
        sample.activity.utilization_percent = self.utilization;
        sample.temperature_c = self.temperature;
        Ok(sample)
    }

    /// What happened, for the log.
    fn tell(&mut self, event: &Event, now: Time) {
        let gpu = &self.info;
        let clock = |clock: Option<Mhz>| clock.map(|clock| clock.0);
        match event {
            Event::Parked(clocks, idle) => tracing::info!(%gpu, idle_s = idle.0, %clocks, "parked"),
            Event::TooHot(clocks, temperature_c) => {
                if let Some(times) = self.seldom.may_say("hot", now) {
                    tracing::warn!(%gpu, temperature_c, %clocks, not_said_before = times, "too hot: parked");
                }
            }
            Event::Cooled => {
                tracing::info!(%gpu, temperature_c = self.temperature, "cool again, and idle: stays parked");
            }
            Event::Woken(by, _) => {
                let parked_s = self.parker.books_at(now).parked_s;
                tracing::info!(%gpu, %by, parked_s_in_all = parked_s, "woken");
            }
            Event::ClocksBack(took, Running { core, memory }) => {
                let (core_mhz, memory_mhz) = (clock(*core), clock(*memory));
                tracing::info!(%gpu, took_s = took.0, core_mhz, memory_mhz, "clocks are back");
            }
            Event::ClocksStuck(Running { core, memory }) => {
                if let Some(times) = self.seldom.may_say("reset again", now) {
                    tracing::error!(
                        %gpu, core_mhz = clock(*core), memory_mhz = clock(*memory), not_said_before = times,
                        "work runs at the parked clock though the clocks were given back: reset again"
                    );
                }
            }
            Event::GivenUp => {
                if let Some(times) = self.seldom.may_say("given up", now) {
                    tracing::error!(
                        %gpu, not_said_before = times,
                        "the clocks do not come back; is another program locking them? see `nvidia-smi -q -d CLOCK`"
                    );
                }
            }
            Event::Trial(order) => tracing::debug!(%gpu, ?order, "trial of the levers"),
            Event::Measured => {
                let (book, lever) = (self.parker.levers().book(), self.parker.lever());
                let lever = lever.unwrap_or(self.levels.simplest);
                tracing::info!(%gpu, lever = lever.kind.name(), clocks = %lever.clocks, "{book}");
            }
            Event::NotMeasurable => {
                tracing::info!(%gpu, "neither energy nor power can be read: no lever is tried out");
            }
        }
    }

    /// What became of earlier commands.
    fn hear(&mut self, now: Time) -> Result<(), GpuError> {
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
        // The clocks are the driver's since.
        let down = self.parker.state().is_down();
        if let (Target::Lock(clocks), Refusal::DropArm) = (target, recovery) {
            match self.parker.refuse(clocks, now) {
                Refused::OthersLeft => {
                    let lever = self.parker.lever().unwrap_or(self.levels.simplest);
                    tracing::warn!(
                        gpu = %self.info, why, refused = %clocks, instead = lever.kind.name(),
                        "this board is not parked so: the driver does not take the lock"
                    );
                    if down {
                        self.command(self.parker.target());
                    }
                    return self.account(now);
                }
                Refused::NoneLeft | Refused::NotOurs if clocks.memory.is_some() => {
                    tracing::error!(gpu = %self.info, why, "park.lever asks for a lock that this board does not have");
                    let call = "nvmlDeviceSetMemoryLockedClocks";
                    return Err(GpuError::NotSupported { gpu: self.info.to_string(), call });
                }
                Refused::NoneLeft | Refused::NotOurs => {}
            }
        }
        if down {
            if let Some(times) = self.seldom.may_say("not parked", now) {
                let gpu = &self.info;
                tracing::warn!(%gpu, why, not_said_before = times, "not parked: the clocks are the driver's");
            }
            self.parker.hold_off(now);
            return self.account(now);
        }
        if let Some(times) = self.seldom.may_say("given back", now) {
            tracing::warn!(gpu = %self.info, why, not_said_before = times, "clocks given back");
        }
        Ok(())
    }
}
