//! Writes the run down: rounds, model, metadata. The files are written by a thread of their own, so that a slow disk
//! never delays a tick.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use jiff::Timestamp;

use super::record::record;
use super::tick::{Observer, StepFacts};
use crate::bandit::Policy;
use crate::config::Config;
use crate::control::{Controller, Event, Learned, Mode};
use crate::gpu::GpuInfo;
use crate::reward::slo::Limits;
use crate::store::{Identity, ModelMetadata, ModelStore, RoundLimits, RoundRecord, RoundWriter, RunDir, RunStart, RunSummary};
use crate::units::Time;

/// Where and how often to write.
#[derive(Debug, Clone)]
pub struct RecorderSettings {
    /// Directory of the runs.
    pub experiment_dir: PathBuf,
    /// The configuration in force, as YAML.
    pub config_snapshot: String,
    /// Where that came from.
    pub config_path: String,
    /// Bounds of the rounds' files.
    pub rounds: RoundLimits,
    /// Runs that stay on disk.
    pub keep_runs: u32,
    /// Rounds from one save of the model to the next.
    pub save_every: u64,
    /// A dry run learns nothing worth keeping.
    pub save_model: bool,
    /// The latency limits in force.
    pub limits: Option<Limits>,
}

/// What the thread is asked to do.
enum Job {
    Round(Box<RoundRecord>, Time),
    Save(Box<Learned>, Box<ModelMetadata>),
    Finish(Box<Learned>, Box<ModelMetadata>, Box<RunSummary>),
}

/// Jobs that may wait; beyond that rounds are dropped (and counted), for the disk is not keeping up.
const QUEUE: usize = 256;

/// Records a run.
pub struct Recorder {
    settings: RecorderSettings,
    jobs: SyncSender<Job>,
    thread: Option<JoinHandle<()>>,
    identity: Identity,
    driver: Option<String>,
    created_at: String,
    dropped: u64,
    totals: Totals,
}

/// Sums over the run, for its summary.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    rounds: u64,
    energy_j: f64,
    energy_s: f64,
    best_edp: Option<(f64, u32)>,
    converged_at: Option<u64>,
}

impl Recorder {
    /// Makes the run's directory and starts the thread.
    ///
    /// # Errors
    /// [`anyhow::Error`] if the directory cannot be made or the thread not be started.
    pub fn start(
        settings: RecorderSettings,
        store: ModelStore,
        identity: Identity,
        gpus: &[GpuInfo],
    ) -> anyhow::Result<Self> {
        let now = Timestamp::now();
        let run = RunDir::create(
            &settings.experiment_dir,
            &RunStart {
                prefix: "agft".into(),
                at: now,
                gpu_model: identity.gpu_name.clone(),
                config_used: settings.config_path.clone(),
                config_snapshot: settings.config_snapshot.clone(),
            },
            settings.keep_runs,
        )?;
        let rounds = RoundWriter::open(run.path(), settings.rounds, Time(0.0))?;
        tracing::info!(dir = %run.path().display(), "run directory");
        let created_at = ModelMetadata::read(&settings_dir(&store))
            .ok()
            .flatten()
            .map_or_else(|| crate::store::rfc3339(now), |metadata| metadata.created_at);
        let (jobs, queue) = sync_channel(QUEUE);
        let theirs = identity.clone();
        let thread = std::thread::Builder::new()
            .name("agft-store".into())
            .spawn(move || write(&queue, &store, &theirs, run, rounds))?;
        let driver = gpus.first().and_then(|gpu| gpu.driver_version.clone());
        Ok(Self {
            settings,
            jobs,
            thread: Some(thread),
            identity,
            driver,
            created_at,
            dropped: 0,
            totals: Totals::default(),
        })
    }

    fn send(&mut self, job: Job) {
        match self.jobs.try_send(job) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                self.dropped += 1;
                if self.dropped == 1 {
                    tracing::warn!("the disk does not keep up: rounds are not recorded");
                }
            }
            Err(TrySendError::Disconnected(_)) => {
                self.dropped += 1;
                if self.dropped == 1 {
                    tracing::error!("the recording thread has ended: nothing is recorded any more");
                }
            }
        }
    }

    fn metadata(&self, controller: &Controller, at: Timestamp) -> ModelMetadata {
        let learned = controller.learned();
        let summary = learned.policy.summary();
        let best = summary.best(3).map(|arm| arm.clocks);
        #[expect(clippy::cast_precision_loss, reason = "a count of rounds")]
        let avg_reward = (summary.rounds > 0).then(|| learned.reward_sum / summary.rounds as f64);
        ModelMetadata {
            phase: phase(controller.mode(), summary.phase).into(),
            converged: summary.converged,
            total_rounds: summary.rounds,
            avg_reward,
            best_core_mhz: best.map(|clocks| clocks.core),
            best_memory_mhz: best.and_then(|clocks| clocks.memory),
            baseline_edp: controller.baseline().map(|cost| cost.power.0 * cost.delay.0),
            created_at: self.created_at.clone(),
            updated_at: crate::store::rfc3339(at),
            algorithm: self.identity.policy.clone(),
            model_version: self.identity.model_version,
            gpu: self.identity.gpu_name.clone(),
            driver: self.driver.clone(),
            engine: Some("vLLM".into()),
        }
    }
}

/// The phase of the learner: what the loop does where that says more.
fn phase(mode: Mode, policy: crate::bandit::Phase) -> &'static str {
    match mode {
        Mode::Baseline | Mode::DataCollection | Mode::Exploration | Mode::Exploitation => mode.name(),
        Mode::Starting | Mode::SloGuard | Mode::Idle | Mode::Outage | Mode::Fault => match policy {
            crate::bandit::Phase::Exploration => Mode::Exploration.name(),
            crate::bandit::Phase::Exploitation => Mode::Exploitation.name(),
        },
    }
}

impl Observer for Recorder {
    fn step(&mut self, facts: &StepFacts<'_>) {
        let at = Timestamp::now();
        let converged = facts.output.events.iter().any(|event| matches!(event, Event::Converged { .. }));
        let Some(round) = &facts.output.round else { return };
        let line = record(facts, round, self.settings.limits.as_ref(), at);
        self.totals.take(&line, converged);
        self.send(Job::Round(Box::new(line), facts.seen.now));
        if self.settings.save_model && (round.number.is_multiple_of(self.settings.save_every) || converged) {
            let metadata = self.metadata(facts.controller, at);
            self.send(Job::Save(Box::new(facts.controller.learned().clone()), Box::new(metadata)));
        }
    }

    fn end(&mut self, controller: &Controller, _unix_time: f64) {
        let at = Timestamp::now();
        let metadata = self.metadata(controller, at);
        let summary = self.totals.summary(at);
        let learned = controller.learned().clone();
        if self.settings.save_model {
            // Waits for a place in the queue: the last state must not be dropped.
            let _ = self.jobs.send(Job::Save(Box::new(learned.clone()), Box::new(metadata.clone())));
        }
        let _ = self.jobs.send(Job::Finish(Box::new(learned), Box::new(metadata), Box::new(summary)));
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the recording thread ended in a panic");
        }
        if self.dropped > 0 {
            tracing::warn!(dropped = self.dropped, "rounds were not recorded");
        }
    }
}
