//! The same settings: does every step come out bit for bit, or but for the last digits of another processor?

use std::collections::BTreeSet;
use std::path::Path;

use serde::Serialize;

use super::ReplayError;
use super::segment::{Cause, Made, Segment};
use crate::control::Controller;
use crate::store::steps::{self, End, StepsError, segments_of};

/// What repeating a run came to.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Same {
    /// Versions of agft that recorded it.
    pub recorded_by: BTreeSet<String>,
    /// The version that repeated it.
    pub replayed_by: &'static str,
    /// Segments read.
    pub segments: u64,
    /// Steps repeated.
    pub steps: u64,
    /// Rounds that these closed.
    pub rounds: u64,
    /// Rounds in which the policy chose.
    pub decisions: u64,
    /// Clock commands.
    pub commands: u64,
    /// Steps that came out the same but for the last digits of a score.
    pub rounded: u64,
    /// Seconds that the steps span.
    pub seconds: f64,
    /// Where a replayed step first came out otherwise.
    pub first_difference: Option<Difference>,
    /// The record cannot be read from here on.
    pub damage: Option<String>,
    /// What else there is to say: where the record has holes, and how it ends.
    pub notes: Vec<String>,
}

/// A step that came out otherwise.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// Number of the segment.
    pub segment: u64,
    /// Number of the step in it, from 1; 0: the state in which the segment began.
    pub step: u64,
    /// When it was, by the run's clock (seconds).
    pub at: f64,
    /// Which part differs.
    pub part: &'static str,
    /// What was recorded.
    pub recorded: String,
    /// What came out now.
    pub replayed: String,
}

impl Same {
    /// Was all of it read, and did all of it come out the same?
    #[must_use]
    pub fn is_same(&self) -> bool {
        self.first_difference.is_none() && self.damage.is_none()
    }
}

/// Repeats every step of a run, up to the first that comes out otherwise.
///
/// # Errors
/// [`ReplayError`] if nothing can be repeated. Damage further on is part of the result.
pub fn same(run_dir: &Path) -> Result<Same, ReplayError> {
    let mut same = Same { replayed_by: env!("CARGO_PKG_VERSION"), ..Same::default() };
    let mut before: Option<(u64, Controller)> = None;
    for path in segments_of(run_dir)? {
        match segment(&path, &mut same, &mut before) {
            Ok(()) if same.first_difference.is_none() => {}
            Ok(()) => break,
            Err(error) if same.steps == 0 => return Err(error.into()),
            Err(error) => {
                same.damage = Some(error.to_string());
                break;
            }
        }
    }
    if same.steps == 0 && same.first_difference.is_none() {
        return Err(ReplayError::Empty { path: run_dir.to_owned() });
    }
    Ok(same)
}

/// Repeats one segment. `before` is the number of the one before it and the state in which it ended.
fn segment(path: &Path, same: &mut Same, before: &mut Option<(u64, Controller)>) -> Result<(), StepsError> {
    let Some(mut segment) = Segment::open(path)? else {
        same.notes.push(format!("{} breaks off before its first step", path.display()));
        return Ok(());
    };
    same.segments += 1;
    let head = segment.head.clone();
    same.recorded_by.insert(head.agft_version.clone());
    match before.take() {
        None if head.number > 1 && same.segments == 1 => {
            same.notes
                .push(format!("segments before number {} are gone (experiment.keep_steps_mb)", head.number));
        }
        // The state at the end of the one is that at the beginning of the next.
        Some((number, state))
            if number + 1 == head.number
                && head.cause == Cause::Size
                && same.rounded == 0
                && !is_same_state(&state, &segment) =>
        {
            same.first_difference = Some(Difference {
                segment: head.number,
                step: 0,
                at: head.at.0,
                part: "state",
                recorded: format!("the snapshot of segment {}", head.number),
                replayed: format!("another state at the end of segment {number}"),
            });
            return Ok(());
        }
        _ if head.cause == Cause::Gap => {
            same.notes
                .push(format!("steps were lost before segment {}: the disk did not keep up", head.number));
        }
        _ => {}
    }
    let (mut number, mut first) = (0, None);
    while let Some(step) = segment.next_step()? {
        number += 1;
        let output = segment.controller.step(&step.seen);
        let mut made = Made::of(&output, &segment.controller);
        let at = step.seen.now.0;
        let since = *first.get_or_insert(at);
        if !is_same(&step.made, &made) && made.take_last_digits(&step.made) {
            same.rounded += 1;
        }
        if !is_same(&step.made, &made) {
            let (part, recorded, replayed) = what_differs(&step.made, &made);
            same.first_difference =
                Some(Difference { segment: head.number, step: number, at, part, recorded, replayed });
            return Ok(());
        }
        same.steps += 1;
        same.rounds += u64::from(made.round.is_some());
        same.decisions += u64::from(made.round.is_some_and(|round| round.choice.is_some()));
        same.commands += u64::from(made.command.is_some());
        same.seconds += if number > 1 { at - since } else { 0.0 };
        first = Some(at);
    }
    match segment.end() {
        Some(End::Closed) => *before = Some((head.number, segment.controller)),
        Some(End::Torn) => same.notes.push(format!(
            "{} is cut off after step {number}: its writer was killed, or its disk was full; up to there it is whole",
            path.display()
        )),
        Some(End::Open) | None => same.notes.push(format!(
            "{} was not closed after step {number}: its writer is at work, or was killed",
            path.display()
        )),
    }
    Ok(())
}

/// Does a segment begin in this state? Of another version's not everything was converted: its decisions are compared, its
/// state is not.
fn is_same_state(ended: &Controller, segment: &Segment) -> bool {
    segment.is_converted() || is_same(ended, &segment.controller)
}

fn is_same<T: Serialize>(a: &T, b: &T) -> bool {
    matches!((steps::pack(a), steps::pack(b)), (Ok(a), Ok(b)) if a == b)
}

/// The first part that differs, and both sides of it.
fn what_differs(recorded: &Made, replayed: &Made) -> (&'static str, String, String) {
    fn sides<T: Serialize + std::fmt::Debug>(
        part: &'static str,
        a: &T,
        b: &T,
    ) -> Option<(&'static str, String, String)> {
        (!is_same(a, b)).then(|| (part, format!("{a:?}"), format!("{b:?}")))
    }
    sides("mode", &recorded.mode, &replayed.mode)
        .or_else(|| sides("command", &recorded.command, &replayed.command))
        .or_else(|| sides("asked", &recorded.asked, &replayed.asked))
        .or_else(|| sides("round", &recorded.round, &replayed.round))
        .or_else(|| sides("reset", &recorded.reset, &replayed.reset))
        .or_else(|| sides("events", &recorded.events, &replayed.events))
        .unwrap_or(("step", format!("{recorded:?}"), format!("{replayed:?}")))
}
