//! One gap in the work after the other: waited out, parked in, and learned from.
//!
//! This is what parking with and without an engine share. Who tells of work is decided by its two users: `super::rule`
//! asks the GPU and the connections, the control loop's idle watch the engine's page, too.

use serde::{Deserialize, Serialize};

use super::ski::{SkiRental, Terms};
use super::source::WakeSource;
use crate::units::{Joules, Seconds, Time, Watts};

/// After a lock that the driver refused, none is asked for that long.
pub(super) const REFUSED: Seconds = Seconds(60.0);

/// How long a gap is waited out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Wait {
    /// A fixed time from the last work on.
    Timeout(Seconds),
    /// What `SkiRental` says, after the quiet time.
    SkiRental {
        /// What a wake costs; `None` for what was measured.
        wake: Option<Joules>,
        /// Waited while saving or cost are not known.
        unmeasured: Seconds,
    },
}

/// Constants of waiting.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GapSettings {
    /// How long a gap is waited out.
    pub wait: Wait,
    /// So long every source has to be quiet in any case.
    pub quiet: Seconds,
    /// What has not worked since the start is parked after the quiet time alone.
    pub at_start: bool,
    /// A wake may take so long.
    pub wake_limit: Seconds,
}

/// What the rule of ski rental needs to know.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Prices {
    /// The power that parking saves, where that has been measured.
    pub saving: Option<Watts>,
    /// What a wake costs, where that has been measured.
    pub wake: Option<Joules>,
}

/// What was seen at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sight {
    /// The moment.
    pub now: Time,
    /// Without work, there has been none since then at least.
    pub idle_since: Time,
    /// Who says, or cannot rule out, that there is work.
    pub work: Option<WakeSource>,
    /// The work itself is seen, and not just that somebody may want some.
    pub(crate) proof: bool,
    /// Not to be parked now, though there is no work.
    pub hold: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) enum GapState {
    /// Work is there, or may be.
    #[default]
    Serving,
    /// No source says work; not parked yet.
    Quiet { since: Time },
    Parked {
        /// Since when it has been idle.
        idle_since: Time,
        /// Since when it has been parked.
        parked_since: Time,
    },
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum GapDecision {
    Stay,
    /// Clocks down: idle for so long.
    Park(Seconds),
    /// Clocks back: parked for so long.
    Wake(WakeSource, Seconds),
}

/// A gap under way.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Gap {
    /// Park this long after its begin.
    park_after: Seconds,
    terms: Option<Terms>,
}

/// Decides when a gap is parked in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct GapRule {
    state: GapState,
    ski: SkiRental,
    gap: Option<Gap>,
    /// Work was seen since the start, or since the last wake: its end begins a gap of its own.
    proven: bool,
    not_before: Option<Time>,
}

impl GapRule {
    /// At the driver's clocks, with nothing seen yet.
    pub(crate) fn new(settings: &GapSettings) -> Self {
        Self {
            state: GapState::Serving,
            ski: SkiRental::default(),
            gap: None,
            proven: !settings.at_start,
            not_before: None,
        }
    }

    pub(crate) fn state(&self) -> GapState {
        self.state
    }

    pub(crate) fn is_parked(&self) -> bool {
        matches!(self.state, GapState::Parked { .. })
    }

    /// After the start of the gap under way, or of the next: parked this late.
    pub(crate) fn park_after(&self, settings: &GapSettings, prices: Prices) -> Seconds {
        self.gap.unwrap_or_else(|| self.begin_gap(settings, prices)).park_after
    }

    /// Is parking out of the question for a while, since the driver refused?
    pub(crate) fn is_held_off(&self, now: Time) -> bool {
        self.not_before.is_some_and(|until| now < until)
    }

    pub(crate) fn step(&mut self, seen: &Sight, settings: &GapSettings, prices: Prices) -> GapDecision {
        let now = seen.now;
        if let Some(source) = seen.work {
            let proven = self.proven;
            self.proven |= seen.proof;
            return match self.state {
                GapState::Serving => GapDecision::Stay,
                GapState::Quiet { since } => {
                    self.end_gap(now.since(since), settings);
                    self.state = GapState::Serving;
                    GapDecision::Stay
                }
                GapState::Parked { idle_since, parked_since } => {
                    self.end_gap(now.since(idle_since), settings);
                    self.state = GapState::Serving;
                    // One that was parked before it ever worked still has not.
                    self.proven = seen.proof || (proven && matches!(source, WakeSource::Unseen));
                    GapDecision::Wake(source, now.since(parked_since))
                }
            };
        }
        let since = match self.state {
            GapState::Parked { .. } => return GapDecision::Stay,
            GapState::Serving => seen.idle_since,
            GapState::Quiet { since } => since,
        };
        let gap = self.gap.unwrap_or_else(|| self.begin_gap(settings, prices));
        self.gap = Some(gap);
        let idle = now.since(since);
        if idle < gap.park_after || seen.hold || self.is_held_off(now) {
            self.state = GapState::Quiet { since };
            return GapDecision::Stay;
        }
        self.state = GapState::Parked { idle_since: since, parked_since: now };
        GapDecision::Park(idle)
    }

    fn begin_gap(&self, settings: &GapSettings, prices: Prices) -> Gap {
        let quiet = settings.quiet;
        if !self.proven {
            return Gap { park_after: quiet, terms: None };
        }
        let (wait, terms) = match settings.wait {
            Wait::Timeout(wait) => (wait, None),
            Wait::SkiRental { wake, unmeasured } => match (wake.or(prices.wake), prices.saving) {
                (Some(wake), Some(saving)) => {
                    let terms = self.ski.terms(wake, saving);
                    (Seconds(quiet.0 + terms.wait.0), Some(terms))
                }
                _ => (unmeasured, None),
            },
        };
        Gap { park_after: Seconds(wait.0.max(quiet.0)), terms }
    }

    fn end_gap(&mut self, length: Seconds, settings: &GapSettings) {
        // Pauses within the quiet time are no gaps: nobody would park in them.
        let beyond = Seconds(length.0 - settings.quiet.0);
        if let Some(Gap { terms: Some(terms), .. }) = self.gap.take()
            && beyond > Seconds(0.0)
        {
            self.ski.ended(beyond, &terms);
        }
    }

    /// The clocks are down already, for another reason, and there is no work: parked from now on.
    pub(crate) fn parked_already(&mut self, now: Time) {
        self.gap = None;
        self.state = GapState::Parked { idle_since: now, parked_since: now };
    }

    /// Something else took the clocks over: not parked, nothing counted.
    pub(crate) fn interrupt(&mut self) {
        self.state = GapState::Serving;
        self.gap = None;
    }

    /// The clocks did not go down, or came back without our doing: not parked, and not again for a while.
    pub(crate) fn refused(&mut self, now: Time) {
        self.interrupt();
        self.not_before = Some(now + REFUSED);
    }

    /// The lock has to be asked for once more, another one: parked no more, and free to park after the quiet time.
    pub(crate) fn ask_again(&mut self) {
        self.interrupt();
        self.proven = false;
    }

    /// A wake took so long until the clocks were back.
    pub(crate) fn woke(&mut self, took: Seconds, settings: &GapSettings) {
        self.ski.woke(took, settings.wake_limit);
    }
}
