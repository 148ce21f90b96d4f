//! One stretch of a run: what it began from, and what each step was shown and made of it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::bandit::Choice;
use crate::control::{
    ClockOutcome, Connections, Controller, GpuTick, Mode, Observation, Order, Output, Scrape, v3,
};
use crate::gpu::SupportedClocks;
use crate::store::steps::{self, End, Kind, STEPS_VERSION, SegmentReader, StepsError};
use crate::units::{Seconds, Target, Time, Watts};

/// Why a segment begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The run began.
    Start,
    /// The configuration was read again.
    Reload,
    /// The segment before it was full. It goes on where that one ends.
    Size,
    /// Steps before it were lost: the disk did not keep up.
    Gap,
}

/// Who recorded a segment, and under what circumstances. What it takes to build a controller with other settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// The version that recorded it.
    pub agft_version: String,
    /// Number of the segment in its run, from 1.
    pub number: u64,
    /// Why it begins.
    pub cause: Cause,
    /// When it begins, Unix seconds.
    pub unix_time: f64,
    /// The same moment by the run's own clock.
    pub at: Time,
    /// The configuration in force, as a file.
    pub config: String,
    /// What the GPUs support.
    pub clocks: SupportedClocks,
    /// How many there are.
    pub gpus: usize,
    /// Commands were not carried out.
    pub dry_run: bool,
}

/// What a step made of what it was shown. Compared by its bytes: two numbers are the same if their bits are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Made {
    /// What the controller was doing after it.
    pub mode: Mode,
    /// Its command.
    pub command: Option<Target>,
    /// What it had asked for last, this step included.
    pub asked: Target,
    /// Why it wanted the clocks reset.
    pub reset: Option<String>,
    /// What it had to say.
    pub events: Vec<String>,
    /// The round that it closed.
    pub round: Option<MadeRound>,
}

/// The round of a [`Made`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MadeRound {
    /// Its number.
    pub number: u64,
    /// What the window belongs to.
    pub ran_at: Option<Target>,
    /// Power of the window.
    pub power: Option<Watts>,
    /// Time per output token.
    pub delay: Option<Seconds>,
    /// Power expected at default clocks.
    pub baseline_power: Option<Watts>,
    /// Reward.
    pub reward: Option<f64>,
    /// Was it learned from?
    pub learned: bool,
    /// The policy's choice.
    pub choice: Option<Choice>,
    /// What the loop wanted.
    pub command: Target,
}

/// Largest relative difference of two scores that linear algebra can make: OpenBLAS adds up in another order on
/// another kind of processor.
const LAST_DIGITS: f64 = 1e-9;

impl Made {
    /// Takes over the scores of the round from `recorded`, where they differ by no more than rounding; says whether one did.
    pub(super) fn take_last_digits(&mut self, recorded: &Self) -> bool {
        let choice = |made: &Self| made.round.and_then(|round| round.choice);
        let (Some(now), Some(then)) = (choice(self), choice(recorded)) else { return false };
        let near = |now: Option<f64>, then: Option<f64>| match (now, then) {
            (Some(now), Some(then)) if (now - then).abs() <= LAST_DIGITS * then.abs().max(1.0) => Some(then),
            _ => now,
        };
        let rounded =
            Choice { score: near(now.score, then.score), width: near(now.width, then.width), ..now };
        if let Some(round) = &mut self.round {
            round.choice = Some(rounded);
        }
        rounded != now
    }

    /// What `controller` has just made.
    #[must_use]
    pub fn of(output: &Output, controller: &Controller) -> Self {
        let round = output.round.as_ref().map(|round| MadeRound {
            number: round.number,
            ran_at: round.ran_at,
            power: round.power,
            delay: round.cost.map(|cost| cost.delay),
            baseline_power: round.baseline.map(|cost| cost.power),
            reward: round.reward,
            learned: round.learned,
            choice: round.choice,
            command: round.command,
        });
        Self {
            mode: controller.mode(),
            command: output.command,
            asked: controller.asked(),
            reset: output.reset.clone(),
            events: output.events.iter().map(|event| format!("{event:?}")).collect(),
            round,
        }
    }
}

/// One step of a record.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    /// What it was shown.
    pub seen: Observation,
    /// What it made of it.
    pub made: Made,
}

/// The form in the file: the page comes last, where it lines up with the page of the step before (see `store::steps`).
#[derive(Deserialize)]
struct Stored {
    now: Time,
    gpus: Vec<GpuTick>,
    outcomes: Vec<ClockOutcome>,
    orders: Vec<Order>,
    connections: Option<Connections>,
    working: u32,
    made: Made,
    scrape: Scrape,
}

/// The same in version 3, in which nobody told of instances.
#[derive(Deserialize)]
struct StoredV3 {
    now: Time,
    gpus: Vec<GpuTick>,
    outcomes: Vec<ClockOutcome>,
    orders: Vec<Order>,
    connections: Option<Connections>,
    made: Made,
    scrape: Scrape,
}

impl From<StoredV3> for Recorded {
    fn from(v3: StoredV3) -> Self {
        let StoredV3 { now, gpus, outcomes, orders, connections, made, scrape } = v3;
        Self { seen: Observation { now, scrape, gpus, outcomes, orders, connections, working: 0 }, made }
    }
}

impl Serialize for Recorded {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Observation { now, scrape, gpus, outcomes, orders, connections, working } = &self.seen;
        (now, gpus, outcomes, orders, connections, working, &self.made, scrape).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Recorded {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Stored { now, gpus, outcomes, orders, connections, working, made, scrape } =
            Stored::deserialize(deserializer)?;
        Ok(Self { seen: Observation { now, scrape, gpus, outcomes, orders, connections, working }, made })
    }
}

/// A segment, being read.
#[derive(Debug)]
pub struct Segment<R = BufReader<File>> {
    /// Who recorded it.
    pub head: Head,
    /// What its steps begin from.
    pub controller: Controller,
    reader: SegmentReader<R>,
    steps: VecDeque<Vec<u8>>,
}

impl Segment {
    /// Opens a file; `None` if it breaks off before its first step could be made.
    ///
    /// # Errors
    /// [`StepsError`]
    pub fn open(path: &Path) -> Result<Option<Self>, StepsError> {
        Self::read(SegmentReader::open(path)?)
    }
}

impl<R: std::io::Read> Segment<R> {
    /// Reads from anything.
    ///
    /// # Errors
    /// [`StepsError`]
    pub fn read(mut reader: SegmentReader<R>) -> Result<Option<Self>, StepsError> {
        let path = reader.path().to_owned();
        let misplaced =
            |frame, detail: &str| StepsError::Damaged { path: path.clone(), frame, detail: detail.into() };
        let head = match reader.next_frame()? {
            Some((Kind::Head, head)) => head,
            Some(_) => return Err(misplaced(0, "it is no head")),
            None => return Ok(None),
        };
        // The version first: the rest may be another one's.
        let value: serde_json::Value =
            serde_json::from_slice(&head).map_err(|error| misplaced(0, &error.to_string()))?;
        let recorder =
            value.get("agft_version").and_then(|version| version.as_str()).unwrap_or("?").to_owned();
        let content = |what, detail: String| StepsError::Content {
            path: path.clone(),
            recorder: recorder.clone(),
            what,
            detail,
        };
        let head: Head = serde_json::from_value(value).map_err(|error| content("head", error.to_string()))?;
        if steps::number_of(&path).is_some_and(|number| number != head.number) {
            return Err(misplaced(0, &format!("it says that it is segment {}", head.number)));
        }
        let snapshot = match reader.next_frame()? {
            Some((Kind::Snapshot, snapshot)) => snapshot,
            Some(_) => return Err(misplaced(1, "it is no snapshot")),
            None => return Ok(None),
        };
        let controller: Result<Controller, String> = match reader.version() {
            v3::VERSION => steps::unpack::<v3::Controller>(&snapshot).map(Into::into),
            _ => steps::unpack(&snapshot),
        };
        let controller = controller.map_err(|why| content("snapshot", why))?;
        if !controller.is_sound() {
            return Err(content("snapshot", "it does not hold together".into()));
        }
        Ok(Some(Self { head, controller, reader, steps: VecDeque::new() }))
    }

    /// The next step; `None` at the end, see [`Self::end`].
    ///
    /// # Errors
    /// [`StepsError`]
    pub fn next_step(&mut self) -> Result<Option<Recorded>, StepsError> {
        while self.steps.is_empty() {
            match self.reader.next_batch()? {
                Some(batch) => self.steps = batch.into(),
                None => return Ok(None),
            }
        }
        let Some(step) = self.steps.pop_front() else { return Ok(None) };
        let step = match self.reader.version() {
            v3::VERSION => steps::unpack::<StoredV3>(&step).map(Into::into),
            _ => steps::unpack(&step),
        };
        let step = step.map_err(|detail| StepsError::Content {
            path: self.reader.path().to_owned(),
            recorder: self.head.agft_version.clone(),
            what: "step",
            detail,
        })?;
        Ok(Some(step))
    }

    /// Was its snapshot converted from that of an earlier version?
    #[must_use]
    pub fn is_converted(&self) -> bool {
        self.reader.version() != STEPS_VERSION
    }

    /// How it ends, once the last step was read.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        self.reader.end()
    }
}
