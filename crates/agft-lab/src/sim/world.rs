//! The whole simulated machine, moved from event to event: end of a step, landing of a clock change, arrival.

use super::SimError;
use super::arrivals::{Arrivals, Source};
use super::board::{Board, Locks, Raise, Refusal, Running, Usage};
use super::capacity::kv_blocks;
use super::dice::Dice;
use super::engine::{Engine, EngineSettings, FinishedRequest};
use super::front::{Front, FrontEnd};
use super::kinds::Kind;
use super::page;
use super::patterns::Pattern;
use super::physics::{GpuPreset, ModelPreset, Work};
use super::workload::{Request, Workload};
use agft::control::Connections;
use agft::gpu::{GpuReading, SupportedClocks};
use agft::metrics::Signals;
use agft::units::{Joules, Mhz, Millijoules, Seconds, Time, Watts};

/// What is simulated.
#[derive(Debug, Clone)]
pub struct WorldSpec {
    /// The GPU.
    pub gpu: GpuPreset,
    /// The model that it serves.
    pub model: ModelPreset,
    /// The engine's set-up.
    pub engine: EngineSettings,
    /// The load.
    pub arrivals: Arrivals,
    /// What lies before the engine.
    pub front: FrontEnd,
}

impl WorldSpec {
    /// A server by the keys of its presets under an endless load, sized to `utilization` of its capacity at default
    /// clocks (`None`: what the pattern stands for).
    ///
    /// # Errors
    /// [`SimError`] for an unknown key and for a model that does not fit.
    pub fn named(
        gpu: &str,
        model: &str,
        pattern: Pattern,
        utilization: Option<f64>,
    ) -> Result<Self, SimError> {
        let (gpu, model, engine) =
            (GpuPreset::named(gpu)?, ModelPreset::named(model)?, EngineSettings::default());
        let share = utilization.unwrap_or_else(|| pattern.utilization());
        let load = Workload::sized(pattern, &gpu, &model, &engine, share)?;
        Ok(Self { gpu, model, engine, arrivals: Arrivals::Open(load), front: FrontEnd::default() })
    }
}

/// A clock call as the driver got it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockCall {
    /// Core lock to a range.
    LockCore(Mhz, Mhz),
    /// Memory lock to a range.
    LockMemory(Mhz, Mhz),
    /// Core clock back to the driver.
    ResetCore,
    /// Memory clock back to the driver.
    ResetMemory,
}

/// One entry of the write history.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClockWrite {
    /// When.
    pub at: Time,
    /// What.
    pub call: ClockCall,
    /// Whether the driver took it.
    pub accepted: bool,
}

/// The step under way.
#[derive(Debug, Clone, Copy)]
struct Step {
    work: Work,
    stretch: f64,
    /// Share of the step still to do at `since`.
    left: f64,
    since: Time,
    running: Running,
}

impl Step {
    fn end(&self) -> Time {
        self.since + Seconds(self.left * self.running.cost.seconds)
    }
}

/// A server and its GPU.
#[derive(Debug)]
pub struct World {
    model: ModelPreset,
    settings: EngineSettings,
    engine: Engine,
    board: Board,
    source: Source,
    front: Front,
    step: Option<Step>,
    idle_since: Time,
    now: Time,
    jitter: Dice,
    /// Requests whose end the clients know of: answered ones, refused ones.
    told: (usize, usize),
    writes: Vec<ClockWrite>,
    page_model: String,
    kv_blocks: u32,
}

impl World {
    /// A fresh server at time zero, its engine idle, its GPU at default clocks.
    ///
    /// # Errors
    /// [`SimError`] if the model does not fit the GPU or a setting makes no sense.
    pub fn new(spec: WorldSpec, seed: u64) -> Result<Self, SimError> {
        let settings = spec.engine;
        check(&settings)?;
        let kv_blocks = kv_blocks(&spec.gpu, &spec.model, &settings)?;
        Ok(Self {
            engine: Engine::new(settings, kv_blocks),
            board: Board::new(spec.gpu, seed),
            source: Source::new(spec.arrivals, seed),
            front: Front::new(spec.front, seed),
            step: None,
            idle_since: Time(0.0),
            now: Time(0.0),
            jitter: Dice::new(seed, "jitter"),
            told: (0, 0),
            writes: Vec::new(),
            page_model: spec.model.name.to_owned(),
            model: spec.model,
            settings,
            kv_blocks,
        })
    }

    /// Moves the world to `to`; does nothing if it is there already.
    pub fn advance(&mut self, to: Time) {
        while let Some(event) = self.next_event().filter(|event| *event <= to) {
            self.elapse(event);
            self.handle();
        }
        if to > self.now {
            self.elapse(to);
        }
        // Requests reach the server whatever the engine does. Clients that wait for answers draw their requests from the
        // dice of their pauses, at the end of a step: earlier, the same seed would give another run.
        if self.step.is_none() || !self.source.waits_for_answers() {
            self.receive();
        }
    }

    /// Everything that has arrived by now.
    fn receive(&mut self) {
        while self.source.next_arrival().is_some_and(|arrival| arrival <= self.now)
            && let Some(request) = self.source.take()
        {
            self.front.receive(request);
        }
    }

    fn elapse(&mut self, to: Time) {
        self.board.elapse(to);
        self.now = Time(self.now.0.max(to.0));
    }

    /// The next moment at which anything changes.
    fn next_event(&self) -> Option<Time> {
        let work = match &self.step {
            Some(step) => Some(step.end()),
            None => earlier(self.next_submission(), self.self_parking()),
        };
        earlier(work, self.board.next_change()).map(|event| Time(event.0.max(self.now.0)))
    }

    /// When the engine has the next request, as far as is known now.
    fn next_submission(&self) -> Option<Time> {
        let coming = self.source.next_arrival().map(|arrival| arrival + self.front.delay());
        earlier(self.front.next_due(), coming)
    }

    /// When the idle board lowers its own clocks.
    fn self_parking(&self) -> Option<Time> {
        let after = self.board.preset.parks_itself_after?;
        (!self.board.is_parked()).then_some(self.idle_since + after)
    }

    /// Everything that is due now, clock changes first.
    fn handle(&mut self) {
        let now = self.now;
        if self.board.land_changes(now)
            && let Some(step) = &mut self.step
        {
            let done = now.since(step.since).0 / step.running.cost.seconds;
            step.left = (step.left - done).max(0.0);
            step.since = now;
            step.running = self.board.run(&step.work, step.stretch);
        }
        if self.step.is_some_and(|step| step.end() <= now) {
            self.finish_step();
        }
        if self.step.is_none() {
            self.start_step();
        }
    }

    fn finish_step(&mut self) {
        self.step = None;
        self.engine.complete(self.now);
        self.tell_clients();
    }

    fn tell_clients(&mut self) {
        let Engine { finished, rejected, .. } = &self.engine;
        let answered = finished.get(self.told.0..).unwrap_or_default().iter().map(|done| &done.request);
        let refused = rejected.get(self.told.1..).unwrap_or_default();
        let mut ended = 0;
        for request in answered.chain(refused) {
            self.front.ended(request);
            ended += 1;
        }
        self.told = (finished.len(), rejected.len());
        self.source.answered(self.now, ended);
    }

    fn start_step(&mut self) {
        self.receive();
        while let Some(request) = self.front.take_due(self.now) {
            self.engine.submit(request);
        }
        self.tell_clients();
        let Some(batch) = self.engine.schedule(self.now) else {
            if self.board.is_running() {
                self.board.stop();
                self.idle_since = self.now;
            }
            if self.self_parking().is_some_and(|at| at <= self.now) {
                self.board.park_itself(self.now, true);
            }
            return;
        };
        self.board.park_itself(self.now, false);
        #[expect(clippy::cast_precision_loss, reason = "number of requests in a batch")]
        let requests = self.engine.running() as f64;
        let host = self.settings.host_per_step.0 + self.settings.host_per_request.0 * requests;
        let work = Work::of(&batch, &self.model, host);
        let stretch = (self.settings.step_jitter * self.jitter.normal()).exp();
        let running = self.board.run(&work, stretch);
        self.step = Some(Step { work, stretch, left: 1.0, since: self.now, running });
    }

    /// Where the world is.
    #[must_use]
    pub fn now(&self) -> Time {
        self.now
    }

    // --- the engine's side ---

    /// The content of vLLM's metrics page, without the text.
    #[must_use]
    pub fn signals(&self) -> Signals {
        self.engine.stats.signals()
    }

    /// Whose page it shows.
    #[must_use]
    pub fn kind(&self) -> &'static Kind {
        self.settings.kind
    }

    /// The metrics page's text.
    #[must_use]
    pub fn page(&self) -> String {
        let stats = &self.engine.stats;
        if let Some(template) = &self.kind().template {
            return template.render(self.kind().habits.digits, |source| stats.number(source, self.now));
        }
        page::render(stats, &self.page_model, self.kv_blocks, self.settings.block_tokens, self.now)
    }

    /// Requests that have ended, in order of their end: the truth, for scoring.
    #[must_use]
    pub fn finished(&self) -> &[FinishedRequest] {
        &self.engine.finished
    }

    /// Requests that were refused because they could never fit the KV cache.
    #[must_use]
    pub fn rejected(&self) -> &[Request] {
        &self.engine.rejected
    }

    /// Arrival of the oldest request that is in the engine.
    #[must_use]
    pub fn oldest_in_flight(&self) -> Option<Time> {
        self.engine.oldest_arrival()
    }

    /// Arrivals of the requests that are in the engine, running ones first.
    pub fn arrivals_in_flight(&self) -> impl Iterator<Item = Time> + '_ {
        self.engine.arrivals()
    }

    /// Requests that are running and waiting at this very moment; the page is a step older.
    #[must_use]
    pub fn in_flight(&self) -> (usize, usize) {
        (self.engine.running(), self.engine.waiting())
    }

    // --- the front end's side ---

    /// The connections to the server.
    #[must_use]
    pub fn connections(&self) -> Connections {
        self.front.connections()
    }

    /// Does the metrics page answer at this moment?
    #[must_use]
    pub fn page_answers(&self) -> bool {
        self.front.page_answers(self.now)
    }

    /// When the first byte of the next request arrives, as far as is known now.
    #[must_use]
    pub fn next_request(&self) -> Option<Time> {
        self.source.next_arrival()
    }

    // --- the GPU's side ---

    /// What the GPU is.
    #[must_use]
    pub fn gpu(&self) -> &GpuPreset {
        &self.board.preset
    }

    /// Energy since time zero, free of measuring errors.
    #[must_use]
    pub fn true_energy(&self) -> Joules {
        Joules(self.board.true_joules())
    }

    /// What the board did while nothing ran, and at lowered clocks.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.board.usage
    }

    /// Every time the clocks were raised.
    #[must_use]
    pub fn raises(&self) -> &[Raise] {
        &self.board.raises
    }

    /// The energy counter as the driver shows it.
    #[must_use]
    pub fn energy_counter(&self) -> Millijoules {
        self.board.energy_counter()
    }

    /// The power sensor.
    #[must_use]
    pub fn power(&self) -> Watts {
        self.board.power_reading()
    }

    /// All sensors.
    #[must_use]
    pub fn reading(&self) -> GpuReading {
        self.board.reading()
    }

    /// The clocks the driver offers.
    #[must_use]
    pub fn supported_clocks(&self) -> Option<SupportedClocks> {
        self.board.supported()
    }

    /// The power cap in force.
    #[must_use]
    pub fn power_cap(&self) -> Watts {
        self.board.power_cap
    }

    /// Sets the power cap, from the next step on.
    pub fn set_power_cap(&mut self, cap: Watts) {
        self.board.power_cap = cap;
    }

    /// The locks in force.
    #[must_use]
    pub fn locks(&self) -> Locks {
        self.board.locks
    }

    /// Every clock call so far.
    #[must_use]
    pub fn writes(&self) -> &[ClockWrite] {
        &self.writes
    }

    /// One clock call, as from the driver; takes effect after the board's settle time.
    pub(super) fn write_clocks(&mut self, call: ClockCall) -> Result<(), Refusal> {
        let now = self.now;
        let outcome = match call {
            ClockCall::LockCore(min, max) => self.board.lock_core(now, min, max),
            ClockCall::LockMemory(min, max) => self.board.lock_memory(now, min, max),
            ClockCall::ResetCore => {
                self.board.reset_core(now);
                Ok(())
            }
            ClockCall::ResetMemory => self.board.reset_memory(now),
        };
        self.note_write(call, outcome.is_ok());
        outcome
    }

    /// Enters a call into the history.
    pub(super) fn note_write(&mut self, call: ClockCall, accepted: bool) {
        self.writes.push(ClockWrite { at: self.now, call, accepted });
    }
}

fn earlier(a: Option<Time>, b: Option<Time>) -> Option<Time> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if a <= b { a } else { b }),
        (a, b) => a.or(b),
    }
}

fn check(settings: &EngineSettings) -> Result<(), SimError> {
    let bad = |name, value: String, rule| Err(SimError::BadSetting { name, value, rule });
    if settings.max_step_tokens == 0 {
        return bad("max_step_tokens", "0".into(), "at least 1");
    }
    if settings.max_running == 0 {
        return bad("max_running", "0".into(), "at least 1");
    }
    if settings.block_tokens == 0 {
        return bad("block_tokens", "0".into(), "at least 1");
    }
    if !(0.0..=1.0).contains(&settings.memory_share) {
        return bad("memory_share", settings.memory_share.to_string(), "between 0 and 1");
    }
    Ok(())
}
