//! One GPU by its own sensors and the connections to what it serves: from what was seen to parking and waking.

use super::gap::{GapDecision, GapRule, GapSettings, GapState, Prices, Sight};
use super::source::{CountedConnections, WakeSource};
use crate::units::{Seconds, Time};

/// Temperatures that park a GPU whatever it does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HotAt {
    /// Above this it is parked, degrees Celsius ...
    pub high_c: f64,
    /// ... until it is at or below this.
    pub low_c: f64,
}

/// Constants of parking.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// How gaps are waited out.
    pub gap: GapSettings,
    /// Utilisation above this is work, percent; `None` if utilisation is no source.
    pub utilization_threshold_percent: Option<f64>,
    /// Connections are a source, and what counts of them.
    pub connections: Option<CountedConnections>,
    /// Protection against heat, if wanted.
    pub hot: Option<HotAt>,
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
    /// When a connection was last opened or used, as far as known: it may be closed again.
    pub last_connection: Option<Time>,
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

/// Decides for one GPU.
#[derive(Debug, Clone, PartialEq)]
pub struct ParkRule {
    settings: Settings,
    gaps: GapRule,
    hot: bool,
    seen_at: Option<Time>,
}

impl ParkRule {
    /// Of a GPU that is at its driver's clocks.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, gaps: GapRule::new(&settings.gap), hot: false, seen_at: None }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> State {
        match self.gaps.state() {
            _ if self.hot => State::Hot,
            GapState::Serving => State::Serving,
            GapState::Quiet { since } => State::Quiet { since },
            GapState::Parked { idle_since, .. } => State::Parked { idle_since },
        }
    }

    /// Which source says, or cannot rule out, that there is work? Asked of those that count; `previous` is the last look.
    fn work(&self, seen: &Observation, previous: Option<Time>) -> Option<WakeSource> {
        let mut unseen =
            self.settings.utilization_threshold_percent.is_none() && self.settings.connections.is_none();
        if let Some(threshold) = self.settings.utilization_threshold_percent {
            match seen.utilization_percent {
                // Not a number is not quiet.
                Some(percent) if percent <= threshold => {}
                Some(percent) => return Some(WakeSource::Utilization { percent }),
                None => unseen = true,
            }
        }
        if let Some(counted) = self.settings.connections {
            let fresh =
                previous.is_some_and(|previous| seen.last_connection.is_some_and(|opened| opened > previous));
            match seen.open_connections {
                Some(0) if !fresh => {}
                Some(_) if !fresh && counted == CountedConnections::Recent => {}
                Some(open) => return Some(WakeSource::Connections { open }),
                None => unseen = true,
            }
        }
        unseen.then_some(WakeSource::Unseen)
    }

    /// Does this show the work itself? A connection does not, where the GPU would show it.
    fn is_proof(&self, work: WakeSource) -> bool {
        match work {
            WakeSource::Unseen => false,
            WakeSource::Connections { .. } => self.settings.utilization_threshold_percent.is_none(),
            WakeSource::Page | WakeSource::Power { .. } | WakeSource::Utilization { .. } => true,
        }
    }

    fn is_hot(&self, seen: &Observation) -> Option<f64> {
        // Where the sensor fails the board protects itself.
        let (limits, temperature) = (self.settings.hot?, seen.temperature_c?);
        let limit = if self.hot { limits.low_c } else { limits.high_c };
        (temperature > limit).then_some(temperature)
    }

    /// Something was seen.
    pub fn step(&mut self, seen: &Observation, prices: Prices) -> Decision {
        let previous = self.seen_at.replace(seen.now);
        let work = self.work(seen, previous);
        let held_off = self.gaps.is_held_off(seen.now);
        if let Some(temperature_c) = self.is_hot(seen).filter(|_| self.hot || !held_off) {
            if self.hot {
                return Decision::Stay;
            }
            self.gaps.interrupt();
            self.hot = true;
            return Decision::Cool { temperature_c };
        }
        if std::mem::take(&mut self.hot) {
            return match work {
                Some(work) => Decision::Wake(work),
                None => {
                    self.gaps.parked_already(seen.now);
                    Decision::Stay
                }
            };
        }
        let proof = work.is_some_and(|work| self.is_proof(work));
        let sight = Sight { now: seen.now, idle_since: seen.now, work, proof, hold: false };
        match self.gaps.step(&sight, &self.settings.gap, prices) {
            GapDecision::Stay => Decision::Stay,
            GapDecision::Park(idle) => Decision::Park(idle),
            GapDecision::Wake(source, _) => Decision::Wake(source),
        }
    }

    /// The clocks did not go down, or came back without our doing: not parked, and not again for a while.
    pub fn refused(&mut self, now: Time) {
        self.hot = false;
        self.gaps.refused(now);
    }

    /// The lock has to be asked for once more, another one: parked no more, and free to park at the next look.
    pub fn ask_again(&mut self) {
        self.hot = false;
        self.gaps.ask_again();
    }

    /// Other constants from now on. What was learned of gaps and wakes stays.
    pub fn configure(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// A wake took so long until the clocks were back.
    pub fn woke(&mut self, took: Seconds) {
        self.gaps.woke(took, &self.settings.gap);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::park::gap::Wait;
    use crate::units::{Joules, Watts};

    pub(crate) const SETTINGS: Settings = Settings {
        gap: GapSettings {
            wait: Wait::Timeout(Seconds(60.0)),
            quiet: Seconds(3.0),
            at_start: false,
            wake_limit: Seconds(1.0),
        },
        utilization_threshold_percent: Some(0.0),
        connections: None,
        hot: Some(HotAt { high_c: 80.0, low_c: 75.0 }),
    };

    fn at_start() -> Settings {
        Settings { gap: GapSettings { at_start: true, ..SETTINGS.gap }, ..SETTINGS }
    }

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
        rule.step(&seen, Prices::default())
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
        let settings = Settings {
            utilization_threshold_percent: None,
            connections: Some(CountedConnections::Open),
            ..SETTINGS
        };
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
    fn open_connection_that_nobody_uses_is_no_work_where_only_recent_ones_count() {
        let recent = Some(CountedConnections::Recent);
        let settings = Settings { utilization_threshold_percent: None, connections: recent, ..SETTINGS };
        let mut rule = ParkRule::new(settings);
        step(&mut rule, connected(0.0, 4));
        assert_eq!(step(&mut rule, connected(60.0, 4)), Decision::Park(Seconds(60.0)));
        let used = Observation { last_connection: Some(Time(69.5)), ..connected(70.0, 4) };
        assert_eq!(step(&mut rule, used), Decision::Wake(WakeSource::Connections { open: 4 }));
    }

    #[test]
    fn gpu_that_has_not_worked_yet_is_parked_after_the_quiet_time_and_a_busy_one_is_not() {
        let mut rule = ParkRule::new(at_start());
        assert_eq!(step(&mut rule, seen(0.0, 0.0)), Decision::Stay);
        assert_eq!(step(&mut rule, seen(3.0, 0.0)), Decision::Park(Seconds(3.0)));
        let mut busy = ParkRule::new(at_start());
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
        let mut rule = ParkRule::new(at_start());
        step(&mut rule, seen(0.0, 0.0));
        step(&mut rule, seen(3.0, 0.0));
        assert_eq!(step(&mut rule, blind(4.0)), Decision::Wake(WakeSource::Unseen));
    }

    #[test]
    fn connection_that_brings_no_work_to_the_gpu_wakes_it_and_it_parks_after_the_quiet_time_again() {
        let both = |now, open| Observation { open_connections: Some(open), ..seen(now, 0.0) };
        let settings = Settings { connections: Some(CountedConnections::Open), ..SETTINGS };
        let mut rule = ParkRule::new(settings);
        step(&mut rule, Observation { open_connections: Some(1), ..seen(0.0, 50.0) });
        step(&mut rule, both(1.0, 0));
        assert_eq!(step(&mut rule, both(61.0, 0)), Decision::Park(Seconds(60.0)));
        assert!(matches!(
            step(&mut rule, both(70.0, 1)),
            Decision::Wake(WakeSource::Connections { open: 1 })
        ));
        step(&mut rule, both(70.5, 0));
        assert_eq!(step(&mut rule, both(73.5, 0)), Decision::Park(Seconds(3.0)));
        // One that does is work like any other.
        step(&mut rule, both(80.0, 1));
        step(&mut rule, Observation { open_connections: Some(1), ..seen(81.0, 9.0) });
        step(&mut rule, both(82.0, 0));
        assert_eq!(step(&mut rule, both(141.9, 0)), Decision::Stay);
        assert_eq!(step(&mut rule, both(142.0, 0)), Decision::Park(Seconds(60.0)));
    }

    #[test]
    fn refused_lock_is_not_asked_for_again_for_a_while() {
        let mut rule = ParkRule::new(at_start());
        step(&mut rule, seen(0.0, 0.0));
        assert_eq!(step(&mut rule, seen(3.0, 0.0)), Decision::Park(Seconds(3.0)));
        rule.refused(Time(3.0));
        let until = 3.0 + crate::park::gap::REFUSED.0;
        for now in 4..63 {
            assert_eq!(step(&mut rule, seen(f64::from(now), 0.0)), Decision::Stay);
        }
        assert!(matches!(step(&mut rule, seen(until, 0.0)), Decision::Park(_)));
    }

    #[test]
    fn ski_rental_waits_break_even_beyond_the_quiet_time_once_the_saving_is_known() {
        let wait = |wake| Wait::SkiRental { wake, unmeasured: Seconds(60.0) };
        let settings = |wake| Settings { gap: GapSettings { wait: wait(wake), ..SETTINGS.gap }, ..SETTINGS };
        let measured = Prices { saving: Some(Watts(10.0)), wake: Some(Joules(100.0)) };
        // What is configured goes before what is measured.
        for (configured, wait) in [(None, 10.0), (Some(Joules(100.0)), 10.0), (Some(Joules(50.0)), 5.0)] {
            let mut rule = ParkRule::new(settings(configured));
            rule.step(&seen(0.0, 5.0), measured);
            rule.step(&seen(1.0, 0.0), measured);
            assert_eq!(rule.step(&seen(3.9 + wait, 0.0), measured), Decision::Stay);
            assert_eq!(rule.step(&seen(4.0 + wait, 0.0), measured), Decision::Park(Seconds(3.0 + wait)));
        }
        let mut unmeasured = ParkRule::new(settings(Some(Joules(100.0))));
        step(&mut unmeasured, seen(0.0, 5.0));
        step(&mut unmeasured, seen(1.0, 0.0));
        assert_eq!(step(&mut unmeasured, seen(60.0, 0.0)), Decision::Stay);
        assert_eq!(step(&mut unmeasured, seen(61.0, 0.0)), Decision::Park(Seconds(60.0)));
    }
}
