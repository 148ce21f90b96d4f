//! What happened lately, in words: decisions with their reasons, faults, limits, wakes.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::bandit::Reason;
use crate::control::{Event, Output};
use crate::metrics::health;
use crate::reward::floor::Cause;

/// Notes that are kept; older ones go.
pub(crate) const NOTES: usize = 40;

/// What kind of thing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum NoteKind {
    /// Other clocks were asked for.
    Decision,
    /// Something went wrong.
    Fault,
    /// A latency limit broke or is kept again.
    Limit,
    /// Parked, woken, converged, paused, back again.
    Info,
}

impl NoteKind {
    /// The word that views show.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Decision => "decision",
            Self::Fault => "fault",
            Self::Limit => "limit",
            Self::Info => "info",
        }
    }
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// Serial number within the run, from 1: who looks again knows what is new.
    pub number: u64,
    /// Unix seconds.
    pub at_unix_s: f64,
    /// What kind of thing.
    pub kind: NoteKind,
    /// One line of plain words.
    pub text: String,
}

/// The latest notes, oldest first, at most [`NOTES`].
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Notes(VecDeque<Note>);

impl Notes {
    /// Takes down what a step decided and what it had to say.
    pub(super) fn take(&mut self, output: &Output, unix_s: f64) {
        for event in &output.events {
            let (kind, text) = describe(event);
            self.push(kind, text, unix_s);
        }
        if let Some(why) = &output.reset {
            self.push(NoteKind::Fault, format!("clocks given back once more: {why}"), unix_s);
        }
        if let Some(target) = output.command {
            let why = output.round.as_ref().map_or("", |round| {
                round.choice.map_or_else(|| forced(round.mode), |choice| reason_words(choice.reason))
            });
            let text = if why.is_empty() { target.to_string() } else { format!("{target}: {why}") };
            self.push(NoteKind::Decision, text, unix_s);
        }
    }

    fn push(&mut self, kind: NoteKind, text: String, at_unix_s: f64) {
        let number = self.0.back().map_or(0, |note| note.number) + 1;
        if self.0.len() == NOTES {
            self.0.pop_front();
        }
        let text = crate::text::line(&text).into_owned();
        self.0.push_back(Note { number, at_unix_s, kind, text });
    }

    /// Oldest first.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Note> + ExactSizeIterator {
        self.0.iter()
    }
}

/// Why a policy chose, in words.
pub(crate) fn reason_words(reason: Reason) -> &'static str {
    match reason {
        Reason::Dwell => "stays until it can be judged",
        Reason::Sweep => "first visit",
        Reason::Retrial => "given up earlier, measured anew",
        Reason::Ucb => "may be best, not sure yet",
        Reason::Greedy => "best for this load",
        Reason::Doubt => "lower clocks cost more than they brought lately",
        Reason::Overload => "more requests wait than lower clocks may be forgiven for",
        Reason::NothingAllowed => "no other clock may be chosen",
    }
}

/// Why clocks changed although no policy chose.
fn forced(mode: crate::control::Mode) -> &'static str {
    use crate::control::Mode;
    match mode {
        Mode::Baseline => "measures default clocks",
        Mode::SloGuard => "a latency limit broke",
        Mode::Idle => "no work",
        Mode::Outage => "the endpoint does not answer",
        Mode::Fault => "hands off after a fault",
        Mode::Paused => "paused by an operator",
        Mode::Holdout => "holdout: what default clocks cost now",
        Mode::Starting | Mode::Exploration | Mode::Exploitation | Mode::DataCollection => "",
    }
}

fn describe(event: &Event) -> (NoteKind, String) {
    use NoteKind::{Fault, Info, Limit};
    match event {
        Event::Health(health::Event::Degraded { essential, useful }) => {
            let missing: Vec<String> = essential.iter().chain(useful).map(ToString::to_string).collect();
            (Fault, format!("signals missing on the metrics page: {}", missing.join(", ")))
        }
        Event::Health(health::Event::Outage { why, .. }) => {
            (Fault, format!("metrics endpoint out, clocks given back: {why}"))
        }
        Event::Health(health::Event::Recovered { after }) => {
            (Info, format!("metrics endpoint is back after {:.1} s", after.0))
        }
        Event::Discontinuity(why) => (Fault, format!("engine restarted or counters reset: {why}")),
        Event::Refused(values) => (Fault, format!("values on the page refused: {}", values.join("; "))),
        Event::StaleGauges { running, waiting } => (
            Fault,
            format!(
                "{running} running and {waiting} waiting requests on the page look stale: taken for none"
            ),
        ),
        Event::BaselineDone { windows } => (Info, format!("default clocks measured, {windows} windows")),
        Event::LimitBroken { violation, cause, .. } => (
            Limit,
            format!(
                "{} limit broken{}: {:.0} ms, {:.0} ms allowed",
                violation.limit,
                if *cause == Cause::Load { " by load alone" } else { "" },
                1e3 * violation.measured.0,
                1e3 * violation.allowed.0
            ),
        ),
        Event::LimitOutOfReach { violation } => (
            Limit,
            format!("{} limit: default clocks break it as well, the load is the cause", violation.limit),
        ),
        Event::LimitKept => (Limit, "latency limits kept again".into()),
        Event::Paused => (Info, "paused by an operator".into()),
        Event::Resumed => (Info, "resumed by an operator".into()),
        Event::Parked { clocks } => (Info, format!("idle: parked at {clocks}")),
        Event::TooHot { clocks, temperature_c } => {
            (Fault, format!("too hot ({temperature_c:.0} degrees Celsius): parked at {clocks}"))
        }
        Event::Cooled => (Info, "cool again: parked".into()),
        Event::LeversMeasured(book) => (Info, book.to_string()),
        Event::Woken { by, parked } => (Info, format!("woken by {by} after {:.1} s", parked.0)),
        Event::ClockNotHeld { asked, running, member } => {
            (Fault, format!("GPU {member} does not follow {asked}: runs at {running}"))
        }
        Event::ClocksChanged { asked, running, member, .. } => {
            (Fault, format!("GPU {member}: somebody changed {asked} to {running}; hands off"))
        }
        Event::StuckAtIdleClock { running, member } => {
            (Fault, format!("GPU {member} works at the idle clock {running}: reset again"))
        }
        Event::ClockHeldLow { running, expected, reasons, member } => (
            Fault,
            format!(
                "GPU {member} is held at {running} instead of {expected} ({reasons}): nothing is learned"
            ),
        ),
        Event::ClockRefused { target, why } => (Fault, format!("driver refused {target}: {why}")),
        Event::ArmOut { clocks, retry_in } => {
            (Info, format!("{clocks} may not be chosen for {:.0} s", retry_in.0))
        }
        Event::Converged { best, .. } => {
            (Info, best.map_or_else(|| "converged".into(), |best| format!("converged: best is {best}")))
        }
        Event::Unsettled { .. } => (Info, "no longer converged: unsure again".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Clocks, Mhz, Target};
    use crate::view::testing;

    #[test]
    fn a_decision_is_noted_with_its_reason_and_old_notes_go() {
        let mut notes = Notes::default();
        let lock = Target::Lock(Clocks::core_only(Mhz(900)));
        let output = Output { command: Some(lock), round: Some(testing::round()), ..Output::default() };
        for second in 0..100 {
            notes.take(&output, f64::from(second));
        }
        assert_eq!(notes.iter().len(), NOTES);
        let last = notes.iter().next_back().unwrap();
        assert_eq!((last.number, last.kind, last.at_unix_s), (100, NoteKind::Decision, 99.0));
        assert!(last.text.contains("900 MHz") && last.text.contains("may be best"), "{}", last.text);
        assert_eq!(notes.iter().next().unwrap().number, 61);
    }

    #[test]
    fn a_step_without_news_leaves_no_note() {
        let mut notes = Notes::default();
        notes.take(&Output { round: Some(testing::round()), ..Output::default() }, 1.0);
        assert_eq!(notes.iter().len(), 0);
        notes.take(&Output { events: vec![Event::LimitKept], ..Output::default() }, 1.0);
        assert_eq!(notes.iter().map(|note| note.kind).collect::<Vec<_>>(), [NoteKind::Limit]);
    }
}
