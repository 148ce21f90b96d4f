//! Writes the run down: rounds, model, metadata. A thread of its own does it, so that a slow disk never delays a tick.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::record::record;
use super::steps::{StepJob, StepSink, StepTap};
use super::tick::{Observer, StepFacts};
use crate::bandit::Policy;
use crate::config::Config;
use crate::control::{Controller, Event, Mode, Model, Scrape, Settings};
use crate::gpu::GpuInfo;
use crate::holdout::Savings;
use crate::park::levers::LeverBook;
use crate::reward::slo::Limits;
use crate::seldom::Seldom;
use crate::store::{
    Expected, Identity, ModelMetadata, ModelStore, RoundLimits, RoundRecord, RoundWriter, RunDir, RunInfo,
    RunSummary, rfc3339, save_levers,
};
use crate::units::{Joules, Mhz, Seconds, Time};
use crate::view::Comparer;

/// Where and how often to write.
#[derive(Debug, Clone)]
pub(crate) struct RecorderSettings {
    /// Directory of the runs.
    pub(crate) experiment_dir: PathBuf,
    pub(crate) model_dir: PathBuf,
    /// Bounds of the rounds' files.
    pub rounds: RoundLimits,
    /// Runs that stay on disk.
    pub keep_runs: usize,
    /// Rounds from one save of the model to the next.
    pub(crate) save_every: u64,
    /// A dry run learns nothing worth keeping.
    pub(crate) save_model: bool,
    /// The latency limits in force.
    pub limits: Option<Limits>,
}

impl RecorderSettings {
    /// As the configuration says.
    pub(crate) fn new(config: &Config, save_model: bool, limits: Option<Limits>) -> Self {
        Self {
            experiment_dir: PathBuf::from(&config.experiment.dir),
            model_dir: PathBuf::from(&config.model.save_dir),
            rounds: RoundLimits {
                max_file_bytes: config.experiment.rounds_file_max_mb << 20,
                max_files: config.experiment.keep_rounds_files as usize,
                ..RoundLimits::default()
            },
            keep_runs: config.experiment.keep_runs as usize,
            save_every: config.model.save_interval,
            save_model,
            limits,
        }
    }
}

/// What the thread is asked to do.
enum Job {
    Step(StepJob),
    Round(Box<RoundRecord>, Time),
    Save(Box<Model>, Box<ModelMetadata>, Box<RunSummary>),
    Savings(Box<Savings>),
    Levers(Box<LeverBook>),
    Finish(Box<RunSummary>),
}

/// Jobs that may wait; beyond that rounds are dropped and counted: the disk is not keeping up.
const QUEUE: usize = 256;

/// Records a run.
pub(crate) struct Recorder {
    settings: RecorderSettings,
    jobs: SyncSender<Job>,
    thread: Option<JoinHandle<()>>,
    identity: Identity,
    driver: Option<String>,
    /// The engine of the last page.
    engine: Option<&'static str>,
    created_at: String,
    /// The round in which the policy converged, and when that was; of an earlier run, too.
    converged: Option<(u64, String)>,
    comparer: Comparer,
    dropped: u64,
    totals: Totals,
    /// Cycles of the holdout that were stored, or known at the start.
    stored_cycles: u64,
    steps: Option<StepTap>,
    seldom: Seldom<Instant>,
}

/// Sums over the run, for its summary.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    rounds: u64,
    energy_j: f64,
    energy_s: f64,
    converged_at: Option<u64>,
}

impl Recorder {
    /// Makes the run's directory and starts the thread.
    /// Errors: [`anyhow::Error`] if the directory cannot be made or the thread not be started.
    pub(crate) fn start(
        settings: RecorderSettings,
        config: &Config,
        store: ModelStore,
        identity: Identity,
        gpu: &GpuInfo,
        savings: &Savings,
        steps: Option<StepTap>,
    ) -> anyhow::Result<Self> {
        let now = Timestamp::now();
        let info = RunInfo {
            gpu_model: identity.gpu_name.clone(),
            config_used: serde_json::to_value(config)?,
            config_snapshot: config.to_yaml(),
        };
        let run = RunDir::create(&settings.experiment_dir, PREFIX, info, now)?;
        let rounds = run.rounds(settings.rounds, Time(0.0))?;
        tracing::info!(dir = %run.path().display(), "run directory");
        let known = ModelMetadata::read(&settings.model_dir).ok().flatten();
        let converged =
            known.as_ref().and_then(|known| known.converged_round.zip(known.converged_since.clone()));
        let created_at = known.map_or_else(|| rfc3339(now), |metadata| metadata.created_at);
        let (jobs, queue) = sync_channel(QUEUE);
        let sink = match &steps {
            Some(tap) => Some(tap.sink(run.steps(tap.limits())?)),
            None => None,
        };
        let writer = Writer {
            store,
            model_dir: settings.model_dir.clone(),
            gpu: gpu.clone(),
            identity: identity.clone(),
            run,
            rounds,
            steps: sink,
            seldom: Seldom::default(),
        };
        let keep = settings.keep_runs;
        let thread = std::thread::Builder::new().name("agft-store".into()).spawn(move || {
            if let Err(error) = writer.run.remove_old(keep) {
                tracing::warn!(%error, "old runs stay");
            }
            writer.run(&queue);
        })?;
        Ok(Self {
            settings,
            jobs,
            thread: Some(thread),
            identity,
            driver: gpu.driver_version.clone(),
            engine: None,
            created_at,
            converged,
            comparer: Comparer::default(),
            dropped: 0,
            totals: Totals::default(),
            stored_cycles: savings.state().cycles,
            steps,
            seldom: Seldom::default(),
        })
    }

    fn send(&mut self, job: Job) {
        let why = match self.jobs.try_send(job) {
            Ok(()) => return,
            Err(TrySendError::Full(_)) => "the disk does not keep up",
            Err(TrySendError::Disconnected(_)) => "the recording thread has ended",
        };
        self.dropped += 1;
        if self.dropped == 1 {
            tracing::warn!("{why}: rounds are not recorded");
        }
    }

    fn send_step(&mut self, job: StepJob) {
        if let Err(error) = self.jobs.try_send(Job::Step(job))
            && self.steps.as_mut().is_some_and(StepTap::lost)
            && matches!(error, TrySendError::Full(_))
            && let Some(times) = self.seldom.may_say("steps", Instant::now())
        {
            tracing::warn!(
                not_said_before = times,
                "the disk does not keep up: steps are lost, and their record begins anew"
            );
        }
    }

    /// The accounting of the experiment is stored when a cycle is complete.
    fn store_savings(&mut self, savings: &Savings) {
        let cycles = savings.state().cycles;
        if self.settings.save_model && cycles > self.stored_cycles {
            self.send(Job::Savings(Box::new(savings.clone())));
        }
        self.stored_cycles = cycles;
    }

    fn metadata(&self, controller: &Controller, at: Timestamp) -> ModelMetadata {
        let learned = controller.learned();
        let summary = learned.policy.summary();
        let held_low = controller.is_held_low();
        let cores: Vec<Mhz> = controller.space().arms().iter().map(|arm| arm.core).collect();
        // Whoever is in charge says what it expects; what was learned before is not what runs while a GPU is
        // held low.
        let in_charge = learned.policy.as_linucb().is_none() && !held_low;
        let structured = learned.policy.as_structured().filter(|_| in_charge);
        let converged_round = learned.converged_at.filter(|_| summary.converged && !held_low);
        let since = self.converged.as_ref().filter(|(round, _)| Some(*round) == converged_round);
        let best = summary.best(3).filter(|_| !held_low).map(|arm| arm.clocks);
        #[expect(clippy::cast_precision_loss, reason = "a count of rounds")]
        let avg_reward = (summary.rounds > 0).then(|| learned.reward_sum / summary.rounds as f64);
        ModelMetadata {
            phase: phase(controller.mode(), summary.phase).into(),
            converged: summary.converged && !held_low,
            total_rounds: summary.rounds,
            avg_reward,
            best_core_mhz: best.map(|clocks| clocks.core),
            best_memory_mhz: best.and_then(|clocks| clocks.memory),
            baseline_edp: controller.baseline().map(|cost| cost.power.0 * cost.delay.0),
            converged_round,
            converged_since: since.map(|(_, since)| since.clone()),
            chosen: structured.and_then(|policy| policy.chosen(&cores)).map(Expected::from),
            by_load: structured.map_or_else(Vec::new, |policy| {
                policy.best_by_load(&cores).iter().map(Expected::from).collect()
            }),
            created_at: self.created_at.clone(),
            updated_at: rfc3339(at),
            algorithm: self.identity.policy.clone(),
            model_version: self.identity.model_version,
            gpu: self.identity.gpu_name.clone(),
            driver: self.driver.clone(),
            engine: self.engine.map(str::to_owned),
        }
    }

    fn summary(&self, controller: &Controller) -> RunSummary {
        let policy = controller.learned().policy.summary();
        let best = policy.best(3).filter(|_| !controller.is_held_low()).copied();
        RunSummary {
            total_rounds: self.totals.rounds,
            convergence_round: self.totals.converged_at,
            best_edp: best
                .zip(controller.baseline())
                .map(|(arm, base)| base.power.0 * base.delay.0 * (-arm.mean_reward).exp()),
            best_frequency: best.map(|arm| arm.clocks.core),
            total_energy: (self.totals.energy_s > 0.0).then_some(Joules(self.totals.energy_j)),
            energy_time: (self.totals.energy_s > 0.0).then_some(Seconds(self.totals.energy_s)),
        }
    }
}

/// Run directories begin with this.
const PREFIX: &str = "agft";

/// The learner's phase; what the loop does, where that says more.
fn phase(mode: Mode, policy: crate::bandit::Phase) -> &'static str {
    match mode {
        Mode::Baseline | Mode::DataCollection | Mode::Exploration | Mode::Exploitation => mode.name(),
        Mode::Starting
        | Mode::SloGuard
        | Mode::Idle
        | Mode::Outage
        | Mode::Fault
        | Mode::Paused
        | Mode::Holdout => match policy {
            crate::bandit::Phase::Exploration => Mode::Exploration.name(),
            crate::bandit::Phase::Exploitation => Mode::Exploitation.name(),
        },
    }
}

impl Observer for Recorder {
    fn begins(&mut self, controller: &Controller, now: Time, unix_time: f64) {
        if let Some(tap) = &mut self.steps {
            let job = tap.begins(controller, now, unix_time);
            self.send_step(job);
        }
    }

    fn step(&mut self, facts: &StepFacts<'_>) {
        if let Some(tap) = &mut self.steps {
            for job in tap.step(facts) {
                self.send_step(job);
            }
        }
        if self.settings.save_model {
            for event in &facts.output.events {
                if let Event::LeversMeasured(book) = event {
                    self.send(Job::Levers(book.clone()));
                }
            }
        }
        let first = match &facts.seen.scrape {
            Scrape::Page(page) => Some(page.as_ref()),
            scrape => scrape.each().first(),
        };
        self.engine = first.map(|page| page.engine().name()).or(self.engine);
        let Some(round) = &facts.output.round else { return };
        let at = Timestamp::now();
        self.totals.rounds += 1;
        if let Some(energy) = round.energy {
            self.totals.energy_j += energy.0;
            self.totals.energy_s += round.window.elapsed.0;
        }
        self.store_savings(facts.savings);
        let converged = facts.output.events.iter().any(|event| matches!(event, Event::Converged { .. }));
        if converged {
            self.totals.converged_at = Some(round.number);
            self.converged = Some((round.number, rfc3339(at)));
        }
        let unsettled = facts.output.events.iter().any(|event| matches!(event, Event::Unsettled { .. }));
        if unsettled {
            self.totals.converged_at = None;
        }
        let against = self.comparer.take(round, facts.controller.learned());
        let line = record(facts, round, against.as_ref(), self.settings.limits.as_ref(), at);
        self.send(Job::Round(Box::new(line), facts.seen.now));
        if self.settings.save_model
            && (converged || unsettled || round.number.is_multiple_of(self.settings.save_every))
        {
            let metadata = Box::new(self.metadata(facts.controller, at));
            let summary = Box::new(self.summary(facts.controller));
            self.send(Job::Save(Box::new(facts.controller.learned().model()), metadata, summary));
        }
    }

    fn reconfigured(&mut self, config: &Config, settings: &Settings) {
        self.settings.limits = settings.limits;
        self.settings.save_every = config.model.save_interval;
        if let Some(tap) = &mut self.steps {
            tap.reconfigured(config);
        }
    }

    fn end(&mut self, controller: &Controller, savings: &Savings) {
        let summary = self.summary(controller);
        // These wait for a place in the queue: the last state must not be dropped. An error means that the thread is
        // gone, which the join below reports.
        if self.settings.save_model {
            let metadata = Box::new(self.metadata(controller, Timestamp::now()));
            let model = Box::new(controller.learned().model());
            let _ = self.jobs.send(Job::Save(model, metadata, Box::new(summary.clone())));
            let levers = controller.parking().levers();
            if !levers.book().levers.is_empty() {
                let _ = self.jobs.send(Job::Levers(Box::new(levers.book().clone())));
            }
            if savings.state().cycles > 0 {
                let _ = self.jobs.send(Job::Savings(Box::new(savings.clone())));
            }
        }
        let _ = self.jobs.send(Job::Finish(Box::new(summary)));
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the recording thread ended in a panic");
        }
        if self.dropped > 0 {
            tracing::warn!(dropped = self.dropped, "rounds were not recorded");
        }
    }
}

/// The thread's side.
struct Writer {
    store: ModelStore,
    model_dir: PathBuf,
    gpu: GpuInfo,
    identity: Identity,
    run: RunDir,
    rounds: RoundWriter,
    steps: Option<StepSink>,
    /// Saves that fail are tried again at the next, and not said each time.
    seldom: Seldom<Instant>,
}

/// Lines wait no longer than this for the disk while no round comes.
const FLUSH_AFTER: Duration = Duration::from_secs(1);

impl Writer {
    fn run(mut self, queue: &Receiver<Job>) {
        let mut now = Time(0.0);
        loop {
            match queue.recv_timeout(FLUSH_AFTER) {
                Ok(Job::Round(line, at)) => {
                    now = at;
                    self.rounds.append(&line, at);
                }
                Ok(Job::Step(job)) => {
                    if let Some(steps) = &mut self.steps {
                        steps.take(job);
                    }
                }
                Ok(Job::Save(model, metadata, summary)) => self.save(&model, &metadata, &summary),
                Ok(Job::Savings(savings)) => self.save_savings(&savings),
                Ok(Job::Levers(book)) => self.save_levers(&book),
                Ok(Job::Finish(summary)) => return self.finish(&summary),
                Err(RecvTimeoutError::Timeout) => self.rounds.flush(now),
                // The loop ended without a last word: a panic. What is buffered is written by dropping.
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn save(&mut self, model: &Model, metadata: &ModelMetadata, summary: &RunSummary) {
        let result = self
            .store
            .save(&self.identity, model, Timestamp::now())
            .and_then(|moved| {
                for rejected in moved {
                    tracing::warn!(%rejected, "model file put aside");
                }
                self.store.write_metadata(metadata)
            })
            .and_then(|()| self.run.checkpoint(summary));
        match result {
            Ok(()) => drop(self.seldom.over("state")),
            Err(error) => self.failed("state", &error, "state not saved; the next save tries again"),
        }
    }

    /// Says it, but not each time.
    fn failed(&mut self, kind: &'static str, error: &dyn std::fmt::Display, text: &str) {
        if let Some(times) = self.seldom.may_say(kind, Instant::now()) {
            tracing::error!(%error, not_said_before = times, "{text}");
        }
    }

    fn save_savings(&mut self, savings: &Savings) {
        if let Err(error) = self.store.save_savings(&self.identity, savings) {
            let text = "what the holdout has shown is not stored; the next cycle tries again";
            self.failed("savings", &error, text);
        }
    }

    fn save_levers(&mut self, book: &LeverBook) {
        if let Err(error) = save_levers(&self.model_dir, &self.gpu, self.identity.gpu_uuids.len(), book) {
            let text = "what parking saves is not stored: the next run measures it anew";
            self.failed("levers", &error, text);
        }
    }

    fn finish(mut self, summary: &RunSummary) {
        if let Some(steps) = &mut self.steps {
            steps.finish();
        }
        if let Err(error) = self.rounds.close() {
            tracing::error!(%error, "rounds not written to the end");
        }
        if let Err(error) = self.run.finish(summary, Timestamp::now()) {
            tracing::error!(%error, "run directory not finished");
        }
    }
}
