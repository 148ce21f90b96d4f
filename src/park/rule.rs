//! One GPU: from what was seen of it to parking and waking.

use std::fmt;

use super::ski::{SkiRental, Terms};
use crate::units::{Joules, Seconds, Time, Watts};

/// After a lock that the driver refused, none is asked for that long.
const REFUSED: Seconds = Seconds(60.0);

/// Temperatures that park a GPU whatever it does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HotAt {
    /// Above this it is parked, degrees Celsius ...
    pub high_c: f64,
    /// ... until it is at or below this.
    pub low_c: f64,
}

/// How long a gap is waited out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Wait {
    /// A fixed time from the last work on.
    Timeout(Seconds),
    /// What [`SkiRental`] says, after the quiet time; the timeout while powers have not been measured.
    SkiRental {
        /// What a wake may cost.
        wake: Joules,
        /// Until the saving is known.
        unmeasured: Seconds,
    },
}

/// Constants of parking.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// How long a gap is waited out.
    pub wait: Wait,
    /// So long every source has to be quiet in any case.
    pub quiet: Seconds,
    /// A GPU that has not worked since the start is parked after the quiet time alone.
    pub at_start: bool,
    /// Utilisation above this is work, percent; `None` if utilisation is no source.
    pub utilization_threshold_percent: Option<f64>,
    /// Connections are a source.
    pub connections: bool,
    /// Protection against heat, if wanted.
    pub hot: Option<HotAt>,
    /// A wake may take so long.
    pub wake_limit: Seconds,
}

/// What is known of a GPU at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observation {
    /// The moment.
    pub now: Time,
    /// Utilisation, percent.
    pub utilization_percent: Option<f64>,
    /// Core temperature, degrees Celsius.
    pub temperature_c: Option<f64>,
    /// Connections that are open on the watched ports.
    pub open_connections: Option<u32>,
    /// When a connection was last opened, as far as known: it may be closed again.
    pub last_connection: Option<Time>,
}

/// What ended a gap.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum WakeSource {
    /// The GPU works.
    Utilization {
        /// Percent.
        percent: f64,
    },
    /// Somebody is connected, or was since the last look.
    Connections {
        /// So many are open.
        open: u32,
    },
    /// A source does not answer: work cannot be ruled out.
    Unseen,
}

impl WakeSource {
    /// Its name in sums.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Utilization { .. } => "utilization",
            Self::Connections { .. } => "connections",
            Self::Unseen => "unseen",
        }
    }
}

impl fmt::Display for WakeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Utilization { percent } => write!(f, "utilization {percent:.0} %"),
            Self::Connections { open } => write!(f, "connections ({open} open)"),
            Self::Unseen => f.write_str("a source that does not answer"),
        }
    }
}

/// Where a GPU stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum State {
    /// Work is there, or may be.
    Serving,
    /// No source says work; not parked yet.
    Quiet {
        /// Since when.
        since: Time,
    },
    /// Parked, since nobody uses it.
    Parked {
        /// Since when it has been idle.
        idle_since: Time,
    },
    /// Parked, since it is too hot.
    Hot,
}

impl State {
    /// Its name in the log.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Serving => "SERVING",
            Self::Quiet { .. } => "QUIET",
            Self::Parked { .. } => "PARKED",
            Self::Hot => "HOT",
        }
    }

    /// Are its clocks down?
    #[must_use]
    pub fn is_down(self) -> bool {
        matches!(self, Self::Parked { .. } | Self::Hot)
    }
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decision {
    /// Nothing.
    Stay,
    /// Clocks down: idle for so long.
    Park(Seconds),
    /// Clocks down: too hot.
    Cool {
        /// Degrees Celsius.
        temperature_c: f64,
    },
    /// Clocks back.
    Wake(WakeSource),
}

/// A gap under way.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Gap {
    /// Park this long after its begin.
    park_after: Seconds,
    /// What was agreed for it.
    terms: Option<Terms>,
}

/// Decides for one GPU.
#[derive(Debug, Clone, PartialEq)]
pub struct ParkRule {
    settings: Settings,
    state: State,
    ski: SkiRental,
    gap: Option<Gap>,
    has_worked: bool,
    not_before: Option<Time>,
    seen_at: Option<Time>,
}

impl ParkRule {
    /// Of a GPU that is at its driver's clocks.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            state: State::Serving,
            ski: SkiRental::default(),
            gap: None,
            has_worked: false,
            not_before: None,
            seen_at: None,
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// How many times the configured cost a wake is priced at.
    #[must_use]
    pub fn bar(&self) -> f64 {
        self.ski.bar()
    }

    /// Which source says, or cannot rule out, that there is work? Asked of those that count; `previous` is the last look.
    fn work(&self, seen: &Observation, previous: Option<Time>) -> Option<WakeSource> {
        let mut unseen = self.settings.utilization_threshold_percent.is_none() && !self.settings.connections;
        if let Some(threshold) = self.settings.utilization_threshold_percent {
            match seen.utilization_percent {
                // Not a number is not quiet.
                Some(percent) if percent <= threshold => {}
                Some(percent) => return Some(WakeSource::Utilization { percent }),
                None => unseen = true,
            }
        }
        if self.settings.connections {
            let fresh =
                previous.is_some_and(|previous| seen.last_connection.is_some_and(|opened| opened > previous));
            match seen.open_connections {
                Some(0) if !fresh => {}
                Some(open) => return Some(WakeSource::Connections { open }),
                None => unseen = true,
            }
        }
        unseen.then_some(WakeSource::Unseen)
    }

    fn is_hot(&self, seen: &Observation) -> Option<f64> {
        // Where the sensor fails the board protects itself.
        let (limits, temperature) = (self.settings.hot?, seen.temperature_c?);
        let limit = if self.state == State::Hot { limits.low_c } else { limits.high_c };
        (temperature > limit).then_some(temperature)
    }

    /// Something was seen. `saving` is the power that parking saves, where that has been measured.
    pub fn step(&mut self, seen: &Observation, saving: Option<Watts>) -> Decision {
        let previous = self.seen_at.replace(seen.now);
        let work = self.work(seen, previous);
        self.has_worked |= work.is_some_and(|work| work != WakeSource::Unseen);
        let held_off = self.not_before.is_some_and(|until| seen.now < until);
        if let Some(temperature_c) = self.is_hot(seen).filter(|_| self.state == State::Hot || !held_off) {
            if self.state == State::Hot {
                return Decision::Stay;
            }
            self.gap = None;
            self.state = State::Hot;
            return Decision::Cool { temperature_c };
        }
        match (self.state, work) {
            (State::Serving, Some(_)) => Decision::Stay,
            (State::Quiet { since }, Some(_)) => {
                self.end_gap(seen.now.since(since));
                self.state = State::Serving;
                Decision::Stay
            }
            (State::Parked { idle_since }, Some(work)) => {
                self.end_gap(seen.now.since(idle_since));
                self.state = State::Serving;
                Decision::Wake(work)
            }
            (State::Hot, Some(work)) => {
                self.state = State::Serving;
                Decision::Wake(work)
            }
            (State::Hot, None) => {
                self.state = State::Parked { idle_since: seen.now };
                Decision::Stay
            }
            (State::Parked { .. }, None) => Decision::Stay,
            (State::Serving, None) => {
                let gap = self.begin_gap(saving);
                self.gap = Some(gap);
                self.wait_out(seen.now, seen.now, gap)
            }
            (State::Quiet { since }, None) => {
                let gap = *self.gap.get_or_insert(Gap { park_after: self.settings.quiet, terms: None });
                self.wait_out(since, seen.now, gap)
            }
        }
    }

    fn begin_gap(&self, saving: Option<Watts>) -> Gap {
        let quiet = self.settings.quiet;
        if self.settings.at_start && !self.has_worked {
            return Gap { park_after: quiet, terms: None };
        }
        let (wait, terms) = match self.settings.wait {
            Wait::Timeout(wait) => (wait, None),
            Wait::SkiRental { wake, unmeasured } => match saving {
                None => (unmeasured, None),
                Some(saving) => {
                    let terms = self.ski.terms(wake, saving);
                    (Seconds(quiet.0 + terms.wait.0), Some(terms))
                }
            },
        };
        Gap { park_after: Seconds(wait.0.max(quiet.0)), terms }
    }

    fn wait_out(&mut self, since: Time, now: Time, gap: Gap) -> Decision {
        let idle = now.since(since);
        if idle < gap.park_after || self.not_before.is_some_and(|until| now < until) {
            self.state = State::Quiet { since };
            return Decision::Stay;
        }
        self.state = State::Parked { idle_since: since };
        Decision::Park(idle)
    }

    fn end_gap(&mut self, length: Seconds) {
        // Pauses within the quiet time are no gaps: nobody would park in them.
        let beyond = Seconds(length.0 - self.settings.quiet.0);
        if let Some(Gap { terms: Some(terms), .. }) = self.gap.take()
            && beyond > Seconds(0.0)
        {
            self.ski.ended(beyond, &terms);
        }
    }

    /// The clocks did not go down, or came back without our doing: not parked, and not again for a while.
    pub fn refused(&mut self, now: Time) {
        self.state = State::Serving;
        self.gap = None;
        self.not_before = Some(now + REFUSED);
    }

    /// The lock has to be asked for once more, another one: parked no more, and free to park at the next look.
    pub fn ask_again(&mut self) {
        self.state = State::Serving;
        self.gap = None;
        self.has_worked = false;
    }

    /// A wake took so long until the clocks were back.
    pub fn woke(&mut self, took: Seconds) {
        self.ski.woke(took, self.settings.wake_limit);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) const SETTINGS: Settings = Settings {
        wait: Wait::Timeout(Seconds(60.0)),
        quiet: Seconds(3.0),
        at_start: false,
        utilization_threshold_percent: Some(0.0),
        connections: false,
        hot: Some(HotAt { high_c: 80.0, low_c: 75.0 }),
        wake_limit: Seconds(1.0),
    };

    fn seen(now: f64, utilization: f64) -> Observation {
        Observation {
            now: Time(now),
            utilization_percent: Some(utilization),
            temperature_c: Some(40.0),
            open_connections: None,
            last_connection: None,
        }
    }

    fn at(now: f64, utilization: f64, celsius: f64) -> Observation {
        Observation { temperature_c: Some(celsius), ..seen(now, utilization) }
    }

    fn connected(now: f64, open: u32) -> Observation {
        Observation { utilization_percent: None, open_connections: Some(open), ..seen(now, 0.0) }
    }

    fn step(rule: &mut ParkRule, seen: Observation) -> Decision {
        rule.step(&seen, None)
    }

    #[test]
    fn timeout_runs_from_the_last_work_and_any_work_starts_it_anew() {
        let mut rule = ParkRule::new(SETTINGS);
        assert_eq!(step(&mut rule, seen(0.0, 50.0)), Decision::Stay);
        assert_eq!(step(&mut rule, seen(1.0, 0.0)), Decision::Stay);
        assert_eq!(step(&mut rule, seen(60.9, 0.0)), Decision::Stay);
        assert_eq!(step(&mut rule, seen(61.0, 1.0)), Decision::Stay);
        assert_eq!(rule.state(), State::Serving);
        step(&mut rule, seen(62.0, 0.0));
        assert_eq!(step(&mut rule, seen(121.9, 0.0)), Decision::Stay);
        assert_eq!(step(&mut rule, seen(122.0, 0.0)), Decision::Park(Seconds(60.0)));
        assert_eq!(step(&mut rule, seen(500.0, 0.0)), Decision::Stay);
        let work = WakeSource::Utilization { percent: 1.0 };
        assert_eq!(step(&mut rule, seen(501.0, 1.0)), Decision::Wake(work));
    }

    #[test]
    fn last_closed_connection_starts_the_timeout_and_an_open_one_cancels_it() {
        let settings = Settings { utilization_threshold_percent: None, connections: true, ..SETTINGS };
        let mut rule = ParkRule::new(settings);
        step(&mut rule, connected(0.0, 2));
        step(&mut rule, connected(10.0, 1));
        step(&mut rule, connected(20.0, 0));
        step(&mut rule, connected(70.0, 1));
        step(&mut rule, connected(75.0, 0));
        assert_eq!(step(&mut rule, connected(134.0, 0)), Decision::Stay);
        assert_eq!(step(&mut rule, connected(135.0, 0)), Decision::Park(Seconds(60.0)));
        // Opened and closed between two looks.
        let brief = Observation { last_connection: Some(Time(139.0)), ..connected(140.0, 0) };
        assert_eq!(step(&mut rule, brief), Decision::Wake(WakeSource::Connections { open: 0 }));
    }

    #[test]
    fn gpu_that_has_not_worked_yet_is_parked_after_the_quiet_time_and_a_busy_one_is_not() {
        let mut rule = ParkRule::new(Settings { at_start: true, ..SETTINGS });
        assert_eq!(step(&mut rule, seen(0.0, 0.0)), Decision::Stay);
        assert_eq!(step(&mut rule, seen(3.0, 0.0)), Decision::Park(Seconds(3.0)));
        let mut busy = ParkRule::new(Settings { at_start: true, ..SETTINGS });
        step(&mut busy, seen(0.0, 30.0));
        step(&mut busy, seen(1.0, 0.0));
        assert_eq!(step(&mut busy, seen(4.0, 0.0)), Decision::Stay);
    }

    #[test]
    fn hot_gpu_is_parked_under_load_and_stays_so_down_to_the_lower_limit() {
        let mut rule = ParkRule::new(SETTINGS);
        assert_eq!(step(&mut rule, at(0.0, 90.0, 80.0)), Decision::Stay);
        assert_eq!(step(&mut rule, at(1.0, 90.0, 81.0)), Decision::Cool { temperature_c: 81.0 });
        assert_eq!(step(&mut rule, at(2.0, 90.0, 76.0)), Decision::Stay);
        assert_eq!(rule.state(), State::Hot);
        let work = WakeSource::Utilization { percent: 90.0 };
        assert_eq!(step(&mut rule, at(3.0, 90.0, 75.0)), Decision::Wake(work));
        // Idle when it has cooled down: stays parked without another word.
        step(&mut rule, at(4.0, 90.0, 85.0));
        assert_eq!(step(&mut rule, at(5.0, 0.0, 70.0)), Decision::Stay);
        assert_eq!(rule.state(), State::Parked { idle_since: Time(5.0) });
    }

    #[test]
    fn source_that_does_not_answer_keeps_a_gpu_awake_and_wakes_it() {
        let blind = |now| Observation { utilization_percent: None, ..seen(now, 0.0) };
        let mut rule = ParkRule::new(SETTINGS);
        for now in 0..1000 {
            assert_eq!(step(&mut rule, blind(f64::from(now))), Decision::Stay);
        }
        let mut rule = ParkRule::new(Settings { at_start: true, ..SETTINGS });
        step(&mut rule, seen(0.0, 0.0));
        step(&mut rule, seen(3.0, 0.0));
        assert_eq!(step(&mut rule, blind(4.0)), Decision::Wake(WakeSource::Unseen));
    }

    #[test]
    fn refused_lock_is_not_asked_for_again_for_a_while() {
        let mut rule = ParkRule::new(Settings { at_start: true, ..SETTINGS });
        step(&mut rule, seen(0.0, 0.0));
        assert_eq!(step(&mut rule, seen(3.0, 0.0)), Decision::Park(Seconds(3.0)));
        rule.refused(Time(3.0));
        let until = 3.0 + REFUSED.0;
        for now in 4..63 {
            assert_eq!(step(&mut rule, seen(f64::from(now), 0.0)), Decision::Stay);
        }
        assert!(matches!(step(&mut rule, seen(until, 0.0)), Decision::Park(_)));
    }

    #[test]
    fn ski_rental_waits_break_even_beyond_the_quiet_time_once_the_saving_is_known() {
        let wait = Wait::SkiRental { wake: Joules(100.0), unmeasured: Seconds(60.0) };
        let mut rule = ParkRule::new(Settings { wait, ..SETTINGS });
        let saving = Some(Watts(10.0));
        rule.step(&seen(0.0, 5.0), saving);
        rule.step(&seen(1.0, 0.0), saving);
        assert_eq!(rule.step(&seen(13.9, 0.0), saving), Decision::Stay);
        assert_eq!(rule.step(&seen(14.0, 0.0), saving), Decision::Park(Seconds(13.0)));
        let mut unmeasured = ParkRule::new(Settings { wait, ..SETTINGS });
        step(&mut unmeasured, seen(0.0, 5.0));
        step(&mut unmeasured, seen(1.0, 0.0));
        assert_eq!(step(&mut unmeasured, seen(60.0, 0.0)), Decision::Stay);
        assert_eq!(step(&mut unmeasured, seen(61.0, 0.0)), Decision::Park(Seconds(60.0)));
    }
}
