//! When to park and when to wake.
//!
//! An empty page is no proof of idleness: it is one engine step old, and during a long step everything on it reads 0.
//! So parking takes an empty page *and* a GPU that does nothing *and* clients that ask for nothing, each as far as it is a
//! source; and waking looks at GPU and clients many times a second as well as at the page. How long a gap is waited out
//! is [`GapRule`]'s business.

use serde::{Deserialize, Serialize};

use super::Connections;
use crate::park::gap::{GapDecision, GapRule, GapSettings, GapState, Prices, Sight};
use crate::park::source::{CountedConnections, WakeSource};
use crate::units::{Clocks, Seconds, Time, Watts};

/// Constants of idle handling.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct IdleSettings {
    /// How gaps are waited out.
    pub gap: GapSettings,
    /// Clock while parked.
    pub clocks: Clocks,
    /// Power above this multiple of the parked level is work.
    pub wake_power_ratio: f64,
    /// The GPU's sensors are a source: what they do not show to be quiet is not parked.
    pub utilization: bool,
    /// The 99th percentile of the time to first token is not to rise by more than this share for wakes.
    pub max_ttft_rise: f64,
    /// Connections to the engine are a source, and what counts of them.
    pub connections: Option<CountedConnections>,
}

/// Above this utilisation the GPU does work, whatever the page says.
const QUIET_UTILIZATION_PERCENT: f64 = 10.0;
/// Power above this multiple of the quietest unparked power seen is work.
const QUIET_POWER_RATIO: f64 = 1.4;
/// Energy over the whole window at no more than this multiple of it is none.
const QUIET_COUNTER_RATIO: f64 = 1.1;
/// A sensor's flicker is no work.
const WAKE_MARGIN: Watts = Watts(3.0);
/// Time for power to sink after parking before its level counts: a second-long average takes that long.
const LEVEL_SETTLE: Seconds = Seconds(0.3);
/// After a wake power may be that of the parked clocks for so long, on sensors that average it.
const POWER_RISES: Seconds = Seconds(1.5);
/// A client that asks has its work on the page, or never, after this.
const ASKED: Seconds = Seconds(1.0);
/// So many engine steps without work on the page before it is believed: the page is one step old.
const QUIET_STEPS: f64 = 3.0;

/// What the GPUs of the engine show together.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Activity {
    /// Sum of board powers.
    pub power: Option<Watts>,
    /// Highest utilisation, percent.
    pub utilization_percent: Option<f64>,
}

/// What was seen at one moment, beside the page.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Look {
    /// Of the GPUs.
    pub activity: Activity,
    /// Of the clients.
    pub connections: Option<Connections>,
    /// Mean power of the GPUs in the window, by their energy counters, where they have them.
    pub window_power: Option<Watts>,
}

/// Decides between parked and serving.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IdleWatch {
    gaps: Option<GapRule>,
    /// Lowest power seen since parking ...
    level: Option<Watts>,
    /// ... or since this.
    level_from: Option<Time>,
    /// Lowest power seen in an empty window while not parked.
    quiet_power: Option<Watts>,
    /// Not parked since, if it ever was.
    up_since: Option<Time>,
    /// The connections at the last look.
    seen: Option<Connections>,
    /// When a client was last seen to ask.
    asked_at: Option<Time>,
    worked_at: Option<Time>,
    /// Length of the engine's steps when it last worked.
    step_time: Option<Seconds>,
}

/// What a window means for idleness.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    /// There is work.
    Serve,
    /// No work on the page, but not parked (yet).
    Empty,
    /// Park now.
    Park,
    /// Stay parked.
    Stay,
    /// Work is back after this long.
    Wake(WakeSource, Seconds),
}

/// What the page says of a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PageSight {
    /// Begin of the window.
    pub start: Time,
    /// There was work in it, or is.
    pub work: bool,
    /// Length of the engine's steps in it, where there were any.
    pub step_time: Option<Seconds>,
}

impl Activity {
    /// Does no sensor tell whether the GPUs work?
    #[must_use]
    pub fn is_unseen(self) -> bool {
        self.power.is_none() && self.utilization_percent.is_none()
    }
}

impl IdleWatch {
    /// Nothing seen yet; without settings nothing is ever parked.
    #[must_use]
    pub fn new(settings: Option<&IdleSettings>) -> Self {
        Self {
            gaps: settings.map(|settings| GapRule::new(&settings.gap)),
            level: None,
            level_from: None,
            quiet_power: None,
            up_since: None,
            seen: None,
            asked_at: None,
            worked_at: None,
            step_time: None,
        }
    }

    /// A window has closed. `may_park` holds parking back, and nothing else, where it is false.
    pub fn on_window(
        &mut self,
        page: PageSight,
        look: &Look,
        settings: Option<&IdleSettings>,
        prices: Prices,
        may_park: bool,
        now: Time,
    ) -> Verdict {
        if page.work {
            self.worked_at = Some(now);
            self.step_time = page.step_time.or(self.step_time);
        }
        let Some((settings, mut gaps)) = settings.zip(self.gaps.take()) else {
            return if page.work { Verdict::Serve } else { Verdict::Empty };
        };
        let parked = gaps.is_parked();
        let asked = self.asked(look, settings, now);
        let (work, proof) = if page.work {
            (Some(WakeSource::Page), true)
        } else if parked {
            (asked.or_else(|| self.busy(look, settings, &gaps, now)), false)
        } else if !self.is_quiet(look, settings) {
            // Not known to be quiet is not idle.
            (Some(WakeSource::Unseen), false)
        } else {
            (asked.filter(|_| settings.connections == Some(CountedConnections::Open)), false)
        };
        let risen = self.up_since.is_none_or(|at| now.since(at) >= POWER_RISES);
        if work.is_none()
            && !parked
            && risen
            && let Some(power) = look.activity.power
        {
            let lowest = self.quiet_power.map_or(power.0, |seen| seen.0.min(power.0));
            self.quiet_power = Some(Watts(lowest));
        }
        let proof = proof || work.is_some_and(|work| is_proof(&work));
        let sight =
            Sight { now, idle_since: page.start, work, proof, hold: !may_park || self.is_uncertain(now) };
        let decision = gaps.step(&sight, &settings.gap, prices);
        let parked = gaps.is_parked();
        self.gaps = Some(gaps);
        match decision {
            GapDecision::Park(_) => {
                (self.level, self.level_from) = (None, None);
                Verdict::Park
            }
            GapDecision::Wake(source, span) => {
                self.up_since = Some(now);
                Verdict::Wake(source, span)
            }
            GapDecision::Stay if parked => Verdict::Stay,
            GapDecision::Stay if page.work => Verdict::Serve,
            GapDecision::Stay => Verdict::Empty,
        }
    }

    /// GPUs and clients were looked at between windows: does that end a parked spell?
    pub fn on_look(
        &mut self,
        look: &Look,
        settings: &IdleSettings,
        now: Time,
    ) -> Option<(WakeSource, Seconds)> {
        let asked = self.asked(look, settings, now);
        let mut gaps = self.gaps.take()?;
        let work = if gaps.is_parked() {
            asked.or_else(|| self.busy(look, settings, &gaps, now)).filter(|work| *work != WakeSource::Unseen)
        } else {
            None
        };
        let decision = work.map(|work| {
            let sight = Sight { now, idle_since: now, work: Some(work), proof: is_proof(&work), hold: false };
            gaps.step(&sight, &settings.gap, Prices::default())
        });
        self.gaps = Some(gaps);
        match decision? {
            GapDecision::Wake(source, span) => {
                self.up_since = Some(now);
                Some((source, span))
            }
            GapDecision::Stay | GapDecision::Park(_) => None,
        }
    }

    /// Has a client asked since the last look, or does one that is connected count as asking?
    fn asked(&mut self, look: &Look, settings: &IdleSettings, now: Time) -> Option<WakeSource> {
        let counted = settings.connections?;
        let Some(connections) = look.connections else {
            self.seen = None;
            return (!settings.utilization).then_some(WakeSource::Unseen);
        };
        let fresh = self.seen.replace(connections).is_some_and(|before| {
            connections.opened_total > before.opened_total
                || connections.requests_total > before.requests_total
        });
        if fresh {
            self.asked_at = Some(now);
        }
        let counts = fresh || (counted == CountedConnections::Open && connections.open > 0);
        counts.then_some(WakeSource::Connections { open: connections.open })
    }

    /// Do the sensors of the parked GPUs show work?
    fn busy(
        &mut self,
        look: &Look,
        settings: &IdleSettings,
        gaps: &GapRule,
        now: Time,
    ) -> Option<WakeSource> {
        if !settings.utilization {
            return None;
        }
        let activity = look.activity;
        let GapState::Parked { parked_since, .. } = gaps.state() else { return None };
        if activity.is_unseen() {
            // An empty page alone is no proof, and a parked GPU that works unseen would crawl.
            return Some(WakeSource::Unseen);
        }
        if let Some(power) =
            activity.power.filter(|_| now >= self.level_from.unwrap_or(parked_since + LEVEL_SETTLE))
        {
            let level = self.level.map_or(power.0, |level| level.0.min(power.0));
            self.level = Some(Watts(level));
            if power.0 > settings.wake_power_ratio * level && power.0 > level + WAKE_MARGIN.0 {
                return Some(WakeSource::Power { power, parked: Watts(level) });
            }
        }
        let percent = activity.utilization_percent.filter(|percent| *percent > QUIET_UTILIZATION_PERCENT)?;
        Some(WakeSource::Utilization { percent })
    }

    fn is_quiet(&self, look: &Look, settings: &IdleSettings) -> bool {
        let activity = look.activity;
        if !settings.utilization {
            return true;
        }
        // Sensors average over up to a second, in which a gap may be over; the counter does not.
        let by_counter = look.window_power.zip(self.quiet_power);
        if by_counter.is_some_and(|(power, quiet)| power.0 <= QUIET_COUNTER_RATIO * quiet.0) {
            return true;
        }
        let by_utilization = activity.utilization_percent.is_none_or(|p| p <= QUIET_UTILIZATION_PERCENT);
        let by_power = match (activity.power, self.quiet_power) {
            (Some(power), Some(quiet)) => power.0 <= QUIET_POWER_RATIO * quiet.0,
            _ => true,
        };
        by_utilization && by_power && !activity.is_unseen()
    }

    /// May there be work that nobody can see yet: on its way to the engine, or in a step that is not over?
    fn is_uncertain(&self, now: Time) -> bool {
        let asked = self.asked_at.is_some_and(|at| now.since(at) < ASKED);
        let stepping = self
            .worked_at
            .zip(self.step_time)
            .is_some_and(|(at, step)| now.since(at) < Seconds(QUIET_STEPS * step.0));
        asked || stepping
    }

    /// Parked now?
    #[must_use]
    pub fn is_parked(&self) -> bool {
        self.gaps.as_ref().is_some_and(GapRule::is_parked)
    }

    /// The clocks of the parked GPU were changed: its power says nothing for a while.
    pub fn disturbed(&mut self, now: Time) {
        (self.level, self.level_from) = (None, Some(now + POWER_RISES));
    }

    /// When work was last seen on the page.
    #[must_use]
    pub fn worked_at(&self) -> Option<Time> {
        self.worked_at
    }

    /// The gap under way, and what was learned of earlier ones.
    #[must_use]
    pub fn gaps(&self) -> Option<&GapRule> {
        self.gaps.as_ref()
    }

    /// A wake took so long until the clocks were back.
    pub fn woke(&mut self, took: Seconds, settings: &IdleSettings) {
        if let Some(gaps) = &mut self.gaps {
            gaps.woke(took, &settings.gap);
        }
    }

    /// Something else took the clocks over (outage, restart): not parked, nothing counted.
    pub fn interrupt(&mut self, now: Time) {
        if let Some(gaps) = &mut self.gaps {
            if gaps.is_parked() {
                self.up_since = Some(now);
            }
            gaps.interrupt();
        }
    }
}

/// Is this the work itself, and not just somebody who may want some?
fn is_proof(work: &WakeSource) -> bool {
    !matches!(work, WakeSource::Connections { .. } | WakeSource::Unseen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::park::gap::Wait;
    use crate::units::{Joules, Mhz};

    const SETTINGS: IdleSettings = IdleSettings {
        gap: GapSettings {
            wait: Wait::SkiRental { wake: None, unmeasured: Seconds(0.75) },
            quiet: Seconds(0.75),
            at_start: true,
            wake_limit: Seconds(1.0),
        },
        clocks: Clocks { core: Mhz(210), memory: None },
        wake_power_ratio: 1.12,
        utilization: true,
        max_ttft_rise: 0.05,
        connections: Some(CountedConnections::Recent),
    };
    const TICK: Seconds = Seconds(0.3);
    /// Of a window that ends at 0.
    const WORK: PageSight = PageSight { start: Time(-TICK.0), work: true, step_time: Some(Seconds(0.02)) };
    const EMPTY: PageSight = PageSight { start: Time(-TICK.0), work: false, step_time: None };

    fn ending(page: PageSight, now: Time) -> PageSight {
        PageSight { start: now - TICK, ..page }
    }

    fn look(power: f64, utilization: f64) -> Look {
        let activity = Activity { power: Some(Watts(power)), utilization_percent: Some(utilization) };
        Look { activity, connections: None, window_power: None }
    }

    fn asked(requests_total: u64) -> Look {
        let connections = Connections { open: 4, opened_total: 9, requests_total };
        Look { connections: Some(connections), ..look(60.0, 0.0) }
    }

    fn window(watch: &mut IdleWatch, page: PageSight, look: Look, now: f64) -> Verdict {
        watch.on_window(ending(page, Time(now)), &look, Some(&SETTINGS), Prices::default(), true, Time(now))
    }

    fn empty(watch: &mut IdleWatch, power: f64, utilization: f64, now: f64) -> Verdict {
        window(watch, EMPTY, look(power, utilization), now)
    }

    fn watch() -> IdleWatch {
        IdleWatch::new(Some(&SETTINGS))
    }

    fn parked() -> IdleWatch {
        let mut watch = watch();
        for k in 0..3 {
            window(
                &mut watch,
                EMPTY,
                Look { connections: asked(5).connections, ..look(80.0, 0.0) },
                0.3 * f64::from(k),
            );
        }
        assert!(watch.is_parked());
        watch
    }

    #[test]
    fn third_empty_window_parks() {
        let mut watch = watch();
        assert_eq!(empty(&mut watch, 80.0, 0.0, 0.0), Verdict::Empty);
        assert_eq!(empty(&mut watch, 80.0, 0.0, 0.3), Verdict::Empty);
        assert_eq!(empty(&mut watch, 80.0, 0.0, 0.6), Verdict::Park);
        assert_eq!(empty(&mut watch, 60.0, 0.0, 1.2), Verdict::Stay);
    }

    #[test]
    fn empty_page_with_a_busy_gpu_never_parks() {
        let mut watch = watch();
        for k in 0..100 {
            assert_eq!(empty(&mut watch, 300.0, 100.0, 0.3 * f64::from(k)), Verdict::Empty);
        }
    }

    #[test]
    fn power_alone_gives_a_busy_gpu_away_once_quiet_power_is_known() {
        let mut watch = parked();
        window(&mut watch, WORK, look(300.0, 100.0), 5.0);
        for k in 0..50 {
            let activity = Activity { power: Some(Watts(250.0)), utilization_percent: None };
            let look = Look { activity, connections: None, window_power: None };
            assert_eq!(window(&mut watch, EMPTY, look, 6.0 + 0.3 * f64::from(k)), Verdict::Empty);
        }
    }

    #[test]
    fn rising_power_wakes_and_falling_power_does_not() {
        let mut watch = parked();
        for (k, power) in [80.0, 75.0, 70.0, 66.0, 64.0, 64.5, 65.0].into_iter().enumerate() {
            let now = Time(1.0 + 0.1 * f64::from(u32::try_from(k).unwrap()));
            assert_eq!(watch.on_look(&look(power, 0.0), &SETTINGS, now), None);
        }
        let woken = watch.on_look(&look(90.0, 0.0), &SETTINGS, Time(2.0));
        assert!(matches!(woken, Some((WakeSource::Power { .. }, span)) if (span.0 - 1.4).abs() < 1e-9));
        assert!(!watch.is_parked());
    }

    #[test]
    fn utilisation_wakes_even_while_power_is_still_sinking() {
        let mut watch = parked();
        assert_eq!(watch.on_look(&look(300.0, 0.0), &SETTINGS, Time(0.7)), None);
        let woken = watch.on_look(&look(300.0, 60.0), &SETTINGS, Time(0.8));
        assert!(matches!(woken, Some((WakeSource::Utilization { percent: 60.0 }, _))), "{woken:?}");
    }

    #[test]
    fn gpu_that_cannot_be_seen_is_never_parked_and_wakes_if_it_is() {
        let mut watch = parked();
        let blind = Look::default();
        let verdict = window(&mut watch, EMPTY, blind, 1.6);
        assert_eq!(verdict, Verdict::Wake(WakeSource::Unseen, Seconds(1.0)));
        for k in 0..20 {
            assert_eq!(window(&mut watch, EMPTY, blind, 2.0 + f64::from(k)), Verdict::Empty);
        }
    }

    #[test]
    fn work_on_the_page_wakes() {
        let mut watch = parked();
        let verdict = window(&mut watch, WORK, look(60.0, 0.0), 1.6);
        assert_eq!(verdict, Verdict::Wake(WakeSource::Page, Seconds(1.0)));
    }

    #[test]
    fn request_over_an_open_connection_wakes_at_once_and_what_brings_no_work_is_parked_again_soon() {
        let mut watch = parked();
        assert_eq!(watch.on_look(&asked(5), &SETTINGS, Time(5.0)), None);
        let woken = watch.on_look(&asked(6), &SETTINGS, Time(6.0));
        assert!(matches!(woken, Some((WakeSource::Connections { open: 4 }, _))), "{woken:?}");
        // The work may be under way to the engine for a second.
        for k in 1..=3 {
            assert_eq!(window(&mut watch, EMPTY, asked(6), 6.0 + 0.3 * f64::from(k)), Verdict::Empty, "{k}");
        }
        // Not even the fixed minute would be waited for again: there was no work.
        assert_eq!(window(&mut watch, EMPTY, asked(6), 7.2), Verdict::Park);
    }

    #[test]
    fn open_connections_hold_the_clocks_up_only_where_they_count() {
        let counted = IdleSettings { connections: Some(CountedConnections::Open), ..SETTINGS };
        for (settings, parks) in [(SETTINGS, true), (counted, false)] {
            let mut watch = IdleWatch::new(Some(&settings));
            for k in 0..50 {
                let now = Time(0.3 * f64::from(k));
                watch.on_window(ending(EMPTY, now), &asked(5), Some(&settings), Prices::default(), true, now);
            }
            assert_eq!(watch.is_parked(), parks);
        }
    }

    #[test]
    fn connections_that_are_not_known_are_no_work_where_the_gpu_is_seen_and_cannot_be_ruled_out_where_not() {
        let alone = IdleSettings { utilization: false, ..SETTINGS };
        for (settings, parks) in [(SETTINGS, true), (alone, false)] {
            let mut watch = IdleWatch::new(Some(&settings));
            for k in 0..50 {
                let now = Time(0.3 * f64::from(k));
                watch.on_window(
                    ending(EMPTY, now),
                    &look(60.0, 0.0),
                    Some(&settings),
                    Prices::default(),
                    true,
                    now,
                );
                watch.on_look(&look(60.0, 0.0), &settings, now + Seconds(0.1));
            }
            assert_eq!(watch.is_parked(), parks);
        }
    }

    #[test]
    fn long_steps_are_waited_out() {
        let mut watch = watch();
        let slow = PageSight { step_time: Some(Seconds(2.0)), ..WORK };
        window(&mut watch, slow, look(80.0, 0.0), 0.0);
        let first = (1..100)
            .map(|k| 0.3 * f64::from(k))
            .find(|now| empty(&mut watch, 80.0, 0.0, *now) == Verdict::Park);
        assert!(first.is_some_and(|first| (6.0..6.31).contains(&first)), "{first:?}");
    }

    #[test]
    fn gap_is_waited_out_until_parking_pays() {
        let prices = Prices { saving: Some(Watts(20.0)), wake: Some(Joules(60.0)) };
        let mut watch = watch();
        let mut step = |page, now| {
            let page = ending(page, Time(now));
            watch.on_window(page, &look(80.0, 0.0), Some(&SETTINGS), prices, true, Time(now))
        };
        step(WORK, 0.0);
        let first = (1..100).map(|k| 0.3 * f64::from(k)).find(|now| step(EMPTY, *now) == Verdict::Park);
        // 60 J / 20 W beyond the quiet time, which begins with the first empty window, at 0.
        let waited = 0.75 + 60.0 / 20.0;
        assert!(first.is_some_and(|first| (waited..waited + 0.3).contains(&first)), "{first:?}");
    }

    #[test]
    fn parking_is_held_back_while_a_wake_cannot_be_afforded() {
        let mut watch = watch();
        for k in 0..50 {
            let now = Time(0.3 * f64::from(k));
            watch.on_window(
                ending(EMPTY, now),
                &look(80.0, 0.0),
                Some(&SETTINGS),
                Prices::default(),
                k >= 40,
                now,
            );
            assert_eq!(watch.is_parked(), k >= 40, "{k}");
        }
    }

    #[test]
    fn without_settings_nothing_is_ever_parked() {
        let mut watch = IdleWatch::new(None);
        for k in 0..20 {
            let now = Time(f64::from(k));
            let verdict = watch.on_window(EMPTY, &look(50.0, 0.0), None, Prices::default(), true, now);
            assert_eq!(verdict, Verdict::Empty);
        }
    }
}
