//! One GPU without a server: what it is asked and when, what its parker makes of that, and what becomes of it.

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::OptionFuture;
use tokio::sync::mpsc::Receiver;
use tokio::time::sleep;

use super::keeper::Keeper;
use super::levels::{Levels, levels};
use super::probe::{Probe, Readings};
use super::{Board, group_name};
use crate::compose;
use crate::control::{ClockOutcome, Order};
use crate::daemon::actuator::Actuator;
use crate::daemon::clock::Clock;
use crate::daemon::tick::{Ending, RunError, ToGroup, end_actuator, unix_seconds};
use crate::daemon::trust::Trusted;
use crate::daemon::watch::{GroupWatch, Wards};
use crate::gpu::{GpuError, GpuInfo, GpuSensors, Refusal, SupportedClocks};
use crate::park::levers::{LeverBook, Levers, TrialTimes};
use crate::park::parker::{Command, Event, Refused};
use crate::park::sample::{Activity, Sensor, Sensors};
use crate::park::source::Connections;
use crate::park::wake::Running;
use crate::park::{Parker, Sample, Settings, State};
use crate::reward::energy::EnergyPoint;
use crate::seldom::Seldom;
use crate::units::{Clocks, Mhz, Millijoules, Seconds, Target, Time};
use crate::view::{ParkFigures, ParkStanding, ParkedGpu};

/// Without anything due the group still looks after itself this often.
const LONGEST_SLEEP: Seconds = Seconds(1.0);
/// So soon after a command its outcome is heard.
const OUTCOME: Seconds = Seconds(0.05);
/// A parker may want to know more at once, so often in a row at most.
const ROUNDS: usize = 6;

/// What a [`ParkGroup`] is made of.
pub(crate) struct ParkParts {
    /// Who it is.
    pub info: GpuInfo,
    /// The clocks that it has.
    pub clocks: SupportedClocks,
    /// Its sensors.
    pub sensors: Box<dyn GpuSensors>,
    /// Without one, in a dry run, nothing is ever written.
    pub actuator: Option<Actuator>,
    /// Constants of parking.
    pub settings: Settings,
    /// What its two states are.
    pub levels: Levels,
    /// What an earlier run has measured.
    pub known: LeverBook,
    /// Times of trials.
    pub times: TrialTimes,
    /// What all parked GPUs of the process share.
    pub board: Rc<Board>,
    /// Who keeps what is measured; nobody in a dry run.
    pub keeper: Option<Rc<Keeper>>,
    /// Period of the STATUS lines.
    pub(crate) log_every: Seconds,
    /// Where it is watched; nowhere in a dry run.
    pub(crate) wards: Option<Wards>,
    /// The clock of the run.
    pub clock: Clock,
    /// For tests: panics at this turn.
    pub(crate) panic_at_turn: Option<u64>,
}

/// A GPU without a server: a group of its own, parked by its sensors and the connections to what it serves.
pub struct ParkGroup {
    probe: Probe,
    info: GpuInfo,
    clocks: SupportedClocks,
    actuator: Option<Actuator>,
    watch: Option<GroupWatch>,
    parker: Parker,
    settings: Settings,
    levels: Levels,
    board: Rc<Board>,
    keeper: Option<Rc<Keeper>>,
    log_every: Seconds,
    log_due: Time,
    clock: Clock,
    utilization: Option<f64>,
    temperature: Option<f64>,
    in_force: Option<Clocks>,
    paused: bool,
    standing: (ParkStanding, Time),
    state: State,
    /// A command is on its way: its outcome is soon to be heard.
    outcome_due: Option<Time>,
    number: u64,
    panic_at_turn: Option<u64>,
    seldom: Seldom<Time>,
}

impl ParkGroup {
    /// At its driver's clocks, with nothing seen yet.
    pub(crate) fn start(parts: ParkParts) -> std::io::Result<Self> {
        let ParkParts { info, clocks, sensors, actuator, levels, board, keeper, log_every, clock, .. } =
            parts;
        let settings = Settings { dry_run: actuator.is_none(), ..parts.settings };
        let levers = Levers::new(levels.levers.clone(), parts.known, levels.top).with_times(parts.times);
        let probe = Probe::spawn(move || Box::new(Trusted::new(sensors, clock)))?;
        let watch = parts.wards.as_ref().zip(actuator.as_ref()).map(|(wards, actuator)| {
            let period = settings.periods.map_or(Seconds(0.0), |periods| periods.active);
            let reads = ("the thread that reads the GPU", probe.pulse());
            wards.watch(vec![info.uuid.clone()], actuator, reads, period)
        });
        let now = clock.now();
        let parker = Parker::new(Some(settings), levers, now);
        Ok(Self {
            probe,
            info,
            clocks,
            actuator,
            watch,
            state: parker.state(),
            parker,
            settings,
            levels,
            board,
            keeper,
            log_every,
            log_due: now + log_every,
            clock,
            utilization: None,
            temperature: None,
            in_force: None,
            paused: false,
            standing: (ParkStanding::Serving, now),
            outcome_due: None,
            number: 0,
            panic_at_turn: parts.panic_at_turn,
            seldom: Seldom::default(),
        })
    }

    /// Its name among the groups of the process.
    pub(crate) fn name(&self) -> String {
        group_name(&self.info)
    }

    /// Runs until `inbox` is closed, or the GPU cannot be controlled any more.
    pub(crate) async fn run(&mut self, inbox: &mut Receiver<ToGroup>) -> Result<(), RunError> {
        let watch = self.watch.take();
        let result = tokio::select! {
            biased;
            Some(alarm) = OptionFuture::from(watch.as_ref().map(GroupWatch::alarm)) => Err(alarm.into()),
            result = self.turns(inbox) => result.map_err(RunError::from),
        };
        self.watch = watch;
        result
    }

    async fn turns(&mut self, inbox: &mut Receiver<ToGroup>) -> Result<(), GpuError> {
        let mut connections = self.board.connections();
        let mut working = self.board.working(&self.info);
        loop {
            let pause = self.pause();
            tokio::select! {
                biased;
                message = inbox.recv() => match message {
                    None => return self.last_turn().await,
                    Some(message) => self.carry_out(message).await?,
                },
                // Whoever looks at the connections lives as long as the groups.
                Ok(()) = connections.changed() => {}
                () = working.changed() => {}
                () = sleep(pause) => {}
            }
            let seen = *connections.borrow_and_update();
            self.turn(seen, working.count()).await?;
        }
    }

    /// Until the next look that is due.
    fn pause(&self) -> Duration {
        let now = self.clock.now();
        let mut next = (now + LONGEST_SLEEP).0.min(self.log_due.0);
        next = self.outcome_due.map_or(next, |due| next.min(due.0));
        if !self.paused {
            next = next.min(self.parker.due().0);
            let periods = self.settings.periods.filter(|_| self.settings.connections.is_some());
            if let Some(periods) = periods.filter(|_| !self.parker.is_parked()) {
                next = next.min((now + periods.active).0);
            }
        }
        Duration::from_secs_f64((next - now.0).max(0.0))
    }

    async fn carry_out(&mut self, message: ToGroup) -> Result<(), GpuError> {
        match message {
            ToGroup::Order(Order::Pause) => self.let_go_until_resume().await?,
            ToGroup::Order(Order::Resume) => self.resume(),
            ToGroup::Reload(configs, done) => {
                if let Some(park) = configs.first().map(|config| &config.park) {
                    match levels(park, &self.info, &self.clocks, self.levels.by_state) {
                        Ok(levels) => self.reconfigure(compose::park::of_others(park), levels).await?,
                        // What is common to all was tried before.
                        Err(error) => {
                            tracing::error!(%error, "configuration not reloaded: the old one stays");
                        }
                    }
                    self.log_every = park.log_interval_s;
                    self.log_due = self.clock.now() + self.log_every;
                }
                // Whoever waited may have gone.
                let _ = done.send(());
            }
        }
        self.outcome_due = Some(self.clock.now() + OUTCOME);
        Ok(())
    }

    async fn turn(&mut self, connections: Option<Connections>, working: u32) -> Result<(), GpuError> {
        self.number += 1;
        #[expect(clippy::panic, reason = "asked for, to test that unwinding gives the clocks back")]
        if self.panic_at_turn == Some(self.number) {
            panic!("panic asked for at turn {}", self.number);
        }
        let now = self.clock.now();
        self.outcome_due = self.outcome_due.filter(|due| *due > now);
        self.look(connections, working).await?;
        if let (Some(book), Some(keeper)) = (self.parker.take_news(), &self.keeper) {
            keeper.ask((self.info.clone(), book));
        }
        let state = self.parker.state();
        if state.name() != self.state.name() {
            tracing::debug!(gpu = %self.info, from = self.state.name(), to = state.name(), "state");
            self.outcome_due = Some(now + OUTCOME);
        }
        self.state = state;
        if now >= self.log_due {
            self.log_due = now + self.log_every;
            self.book().await?;
            tracing::info!(
                gpu = %self.info,
                connections = connections.map(|seen| seen.open),
                sensor_calls_per_parked_min = self.parker.books().calls_per_parked_minute(),
                "STATUS {}: {}",
                state.name(),
                self.parker.books()
            );
        }
        self.show();
        Ok(())
    }

    /// Clocks back; what is measured is accounted for, and kept.
    async fn last_turn(&mut self) -> Result<(), GpuError> {
        self.command(Target::Default);
        // What cannot be read any more is not accounted for.
        let _ = self.book().await;
        Ok(())
    }

    /// Begins to end the group: has the clocks given back, without waiting for it.
    #[must_use]
    pub(crate) fn end(mut self, result: &Result<(), RunError>) -> Ending {
        let release = end_actuator(self.actuator.take(), result);
        let finish = move || {
            drop(self.watch.take());
            let book = self.parker.levers().book();
            if let Some(keeper) = self.keeper.as_ref().filter(|_| !book.levers.is_empty()) {
                keeper.ask((self.info.clone(), book.clone()));
            }
            let books = self.parker.books();
            tracing::info!(
                gpu = %self.info,
                sensor_calls = books.calls,
                sensor_calls_per_parked_min = books.calls_per_parked_minute(),
                "SUMMARY {books}"
            );
            self.board.remove(self.info.index);
        };
        Ending::new(release, finish)
    }

    fn command(&self, target: Target) {
        if let Some(actuator) = &self.actuator {
            actuator.command(target);
        }
    }

    /// Gives the clocks back and leaves them alone until [`resume`](Self::resume).
    async fn let_go_until_resume(&mut self) -> Result<(), GpuError> {
        self.paused = true;
        // Not read from now on.
        (self.utilization, self.temperature) = (None, None);
        self.let_go().await
    }

    /// Goes on as at the start.
    fn resume(&mut self) {
        if std::mem::take(&mut self.paused) {
            (self.utilization, self.temperature) = (None, None);
            self.parker.begin_anew(self.clock.now());
        }
    }

    /// Clocks back, and nothing believed of what they were.
    async fn let_go(&mut self) -> Result<(), GpuError> {
        self.command(Target::Default);
        self.parker.begin_anew(self.clock.now());
        self.account().await
    }

    /// Other constants from now on, with the clocks given back: as after a restart, but for the accounting. Those that are
    /// as they were change nothing.
    async fn reconfigure(&mut self, settings: Settings, levels: Levels) -> Result<(), GpuError> {
        let settings = Settings { dry_run: self.actuator.is_none(), ..settings };
        if settings != self.settings || levels != self.levels {
            self.let_go().await?;
            (self.utilization, self.temperature) = (None, None);
            self.parker.configure(settings, &levels.levers, levels.top);
            (self.settings, self.levels) = (settings, levels);
        }
        Ok(())
    }

    /// Shows operators where it stands; asks no sensor.
    fn show(&mut self) {
        let now = self.clock.now();
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
        self.board.put(self.shown(now, unix_seconds()), self.parker.state());
    }

    fn shown(&self, now: Time, unix_s: f64) -> ParkedGpu {
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
            in_force: self.in_force,
            not_given_back: self.actuator.as_ref().is_some_and(Actuator::is_not_given_back),
            utilization_percent: self.utilization,
            temperature_c: self.temperature,
            figures: ParkFigures::new(books, self.parker.prices().wake, levers.book().clone()),
        }
    }

    /// Asks what is due, has it decided upon, and acts.
    async fn look(&mut self, connections: Option<Connections>, working: u32) -> Result<(), GpuError> {
        self.hear().await?;
        if self.paused {
            return Ok(());
        }
        let mut wanted = self.parker.wants(self.clock.now());
        for _ in 0..ROUNDS {
            let sample = Sample { connections, working, ..self.sample(wanted).await? };
            let output = self.parker.observe(&sample);
            if let Some(command) = output.command {
                self.command(match command {
                    Command::Park(target) => target,
                    Command::Wake => self.levels.awake,
                });
            }
            if output.reset_again
                && let Some(actuator) = &self.actuator
            {
                actuator.disturber()("work runs at the parked clock".into());
            }
            for event in &output.events {
                self.tell(event, sample.now);
            }
            wanted = self.parker.wants(sample.now);
            if wanted == Sensors::NONE {
                break;
            }
        }
        if !self.parker.reads_utilization() {
            self.utilization = None;
        }
        Ok(())
    }

    /// Has the parked time up to now accounted for.
    async fn book(&mut self) -> Result<(), GpuError> {
        self.parker.settle();
        self.account().await
    }

    /// Reads what the accounting wants, and decides nothing.
    async fn account(&mut self) -> Result<(), GpuError> {
        let of_accounting = |wanted: Sensors| {
            let energy = Sensors::NONE.with(Sensor::Energy, wanted.has(Sensor::Energy));
            energy.with(Sensor::Power, wanted.has(Sensor::Power))
        };
        for _ in 0..ROUNDS {
            let wanted = of_accounting(self.parker.wants(self.clock.now()));
            if wanted == Sensors::NONE {
                break;
            }
            let sample = self.sample(wanted).await?;
            self.parker.account(&sample);
        }
        Ok(())
    }

    /// Asks these sensors; what is not asked has its last value, as far as it is kept.
    async fn sample(&mut self, wanted: Sensors) -> Result<Sample, GpuError> {
        let readings = match wanted {
            Sensors::NONE => Readings::default(),
            wanted => self.probe.ask(wanted).await?,
        };
        let now = self.clock.now();
        if wanted.has(Sensor::Utilization) {
            self.utilization = readings.utilization;
        }
        if wanted.has(Sensor::Temperature) {
            self.temperature = readings.temperature;
        }
        let total = readings.energy.and_then(|counter| counter.since(Millijoules(0)));
        Ok(Sample {
            read: wanted,
            activity: Activity { power: readings.power, utilization_percent: self.utilization },
            energy: total.map(|total| EnergyPoint { at: now, total }),
            running: readings.running,
            temperature_c: self.temperature,
            ..Sample::at(now)
        })
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
    async fn hear(&mut self) -> Result<(), GpuError> {
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
                    self.hear_refusal(target, recovery, &why).await?;
                }
            }
        }
        Ok(())
    }

    async fn hear_refusal(&mut self, target: Target, recovery: Refusal, why: &str) -> Result<(), GpuError> {
        let now = self.clock.now();
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
                    return self.account().await;
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
            return self.account().await;
        }
        if let Some(times) = self.seldom.may_say("given back", now) {
            tracing::warn!(gpu = %self.info, why, not_said_before = times, "clocks given back");
        }
        Ok(())
    }
}
