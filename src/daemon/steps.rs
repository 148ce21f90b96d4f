//! What goes into each step, on its way to the disk (see [`crate::replay`]): the tick copies it, the recorder's thread
//! packs and writes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::tick::StepFacts;
use crate::config::Config;
use crate::control::Controller;
use crate::gpu::SupportedClocks;
use crate::metrics::scrape::without_query;
use crate::replay::{Cause, Head, Made, Recorded};
use crate::store::{StepLimits, StepWriter, StoreError};
use crate::units::Time;

/// What the thread says to the tick.
#[derive(Debug, Default)]
struct Signs {
    /// The segment is full: the next one needs a snapshot.
    full: AtomicBool,
    /// Nothing is written any more.
    ended: AtomicBool,
}

/// The tick's side: copies of what is to be written.
#[derive(Debug)]
pub(crate) struct StepTap {
    limits: StepLimits,
    head: Head,
    signs: Arc<Signs>,
    cause: Cause,
    /// A step did not find a place in the queue: what follows would not belong to the snapshot before it.
    lost: bool,
}

/// One thing to write.
#[derive(Debug)]
pub(crate) enum StepJob {
    Begin(Box<(Head, Controller)>),
    Step(Box<Recorded>),
}

impl StepTap {
    /// As the configuration says; `None` if steps are not to be recorded.
    pub(crate) fn new(config: &Config, clocks: &SupportedClocks, gpus: usize, dry_run: bool) -> Option<Self> {
        let total_bytes = config.experiment.keep_steps_mb << 20;
        let segment_bytes = (config.experiment.steps_file_max_mb << 20).min(total_bytes / 2);
        (total_bytes > 0).then(|| Self {
            limits: StepLimits { segment_bytes, total_bytes },
            head: Head {
                agft_version: env!("CARGO_PKG_VERSION").into(),
                number: 0,
                cause: Cause::Start,
                unix_time: 0.0,
                at: Time(0.0),
                config: told(config),
                clocks: clocks.clone(),
                gpus,
                dry_run,
            },
            signs: Arc::default(),
            cause: Cause::Start,
            lost: false,
        })
    }

    /// Bounds of what is kept.
    pub(crate) fn limits(&self) -> StepLimits {
        self.limits
    }

    /// The thread's side.
    pub(crate) fn sink(&self, writer: StepWriter) -> StepSink {
        StepSink { writer: Some(writer), signs: Arc::clone(&self.signs) }
    }

    /// Another configuration is in force.
    pub(crate) fn reconfigured(&mut self, config: &Config) {
        self.head.config = told(config);
    }

    /// The loop begins to run `controller`: at the start, and after each reload.
    pub(crate) fn begins(&mut self, controller: &Controller, now: Time, unix_time: f64) -> StepJob {
        let cause = std::mem::replace(&mut self.cause, Cause::Reload);
        self.segment(cause, controller, now, unix_time)
    }

    /// What a step gives to write, in order.
    pub(crate) fn step(&mut self, facts: &StepFacts<'_>) -> impl Iterator<Item = StepJob> + use<> {
        let mut jobs = [None, None];
        if !self.signs.ended.load(Ordering::Relaxed) {
            let lost = std::mem::take(&mut self.lost);
            if !lost {
                let made = Made::of(facts.output, facts.controller);
                jobs[0] = Some(StepJob::Step(Box::new(Recorded { seen: facts.seen.clone(), made })));
            }
            if self.signs.full.swap(false, Ordering::Relaxed) || lost {
                let cause = if lost { Cause::Gap } else { Cause::Size };
                jobs[1] = Some(self.segment(cause, facts.controller, facts.seen.now, facts.unix_time));
            }
        }
        jobs.into_iter().flatten()
    }

    /// A job found no place in the queue. Says whether that is news.
    pub(crate) fn lost(&mut self) -> bool {
        !std::mem::replace(&mut self.lost, true)
    }

    fn segment(&self, cause: Cause, controller: &Controller, at: Time, unix_time: f64) -> StepJob {
        let head = Head { cause, at, unix_time, ..self.head.clone() };
        StepJob::Begin(Box::new((head, controller.clone())))
    }
}

/// The configuration as a file, without what a URL may hide behind its question mark: a replay asks no server.
fn told(config: &Config) -> String {
    let mut config = config.clone();
    config.vllm.prometheus_url = without_query(&config.vllm.prometheus_url).to_owned();
    config.to_yaml()
}

/// The thread's side.
#[derive(Debug)]
pub(crate) struct StepSink {
    writer: Option<StepWriter>,
    signs: Arc<Signs>,
}

impl StepSink {
    /// Writes it. After an error nothing more is written: a disk that is full now would leave a record of holes.
    pub(crate) fn take(&mut self, job: StepJob) {
        let Some(writer) = &mut self.writer else { return };
        let written = match job {
            StepJob::Begin(start) => {
                let (mut head, controller) = *start;
                head.number = writer.next_number();
                writer.begin(&head, &controller)
            }
            StepJob::Step(step) => writer.step(&step).map(|full| {
                if full {
                    self.signs.full.store(true, Ordering::Relaxed);
                }
            }),
        };
        self.check(written);
    }

    /// Closes the last segment.
    pub(crate) fn finish(&mut self) {
        if let Some(writer) = &mut self.writer {
            let closed = writer.close();
            self.check(closed);
        }
    }

    fn check(&mut self, written: Result<(), StoreError>) {
        if let Err(error) = written {
            tracing::error!(%error, "steps are not recorded any more: `agft replay` will end here");
            self.signs.ended.store(true, Ordering::Relaxed);
            self.writer = None;
        }
    }
}
