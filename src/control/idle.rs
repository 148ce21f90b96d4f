//! When to park and when to wake.
//!
//! An empty page is no proof of idleness: it is one engine step old, and during a long step everything on it reads 0.
//! So parking takes several empty windows *and* a GPU that does nothing, and waking looks at the GPU ten times a
//! second as well as at the page.

use serde::{Deserialize, Serialize};

use super::event::WakeSource;
use crate::units::{Clocks, Seconds, Time, Watts};

/// Constants of idle handling.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct IdleSettings {
    /// Empty windows before parking.
    pub after_windows: u32,
    /// Clock while parked.
    pub clocks: Clocks,
    /// Power above this multiple of the parked level is work.
    pub wake_power_ratio: f64,
}

/// Above this utilisation the GPU does work, whatever the page says.
const QUIET_UTILIZATION_PERCENT: f64 = 10.0;
/// Power above this multiple of the quietest unparked power seen is work.
const QUIET_POWER_RATIO: f64 = 1.4;
/// A sensor's flicker is no work.
const WAKE_MARGIN: Watts = Watts(3.0);
/// Time for power to sink after parking before its level counts: a second-long average takes that long.
const LEVEL_SETTLE: Seconds = Seconds(0.3);

/// What the GPUs of the engine show together.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Activity {
    /// Sum of board powers.
    pub power: Option<Watts>,
    /// Highest utilisation, percent.
    pub utilization_percent: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Parked {
    since: Time,
    /// Lowest power seen since parking.
    level: Option<Watts>,
}

/// Decides between parked and serving.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct IdleWatch {
    empty_windows: u32,
    parked: Option<Parked>,
    /// Lowest power seen in an empty window while not parked.
    quiet_power: Option<Watts>,
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

impl Activity {
    /// Does no sensor tell whether the GPUs work?
    #[must_use]
    pub fn is_unseen(self) -> bool {
        self.power.is_none() && self.utilization_percent.is_none()
    }
}

impl IdleWatch {
    /// A window has closed with or without work on the page.
    pub fn on_window(
        &mut self,
        work: bool,
        activity: Activity,
        settings: Option<&IdleSettings>,
        now: Time,
    ) -> Verdict {
        let Some(settings) = settings else {
            return if work { Verdict::Serve } else { Verdict::Empty };
        };
        if work {
            self.empty_windows = 0;
            return match self.parked.take() {
                Some(parked) => Verdict::Wake(WakeSource::Page, now.since(parked.since)),
                None => Verdict::Serve,
            };
        }
        if let Some(parked) = self.parked.filter(|_| activity.is_unseen()) {
            // An empty page alone is no proof, and a parked GPU that works unseen would crawl.
            self.interrupt();
            return Verdict::Wake(WakeSource::Unseen, now.since(parked.since));
        }
        if self.parked.is_some() {
            return match self.on_activity(activity, settings, now) {
                Some((source, span)) => Verdict::Wake(source, span),
                None => Verdict::Stay,
            };
        }
        let quiet = self.is_quiet(activity);
        if quiet && let Some(power) = activity.power {
            let lowest = self.quiet_power.map_or(power.0, |seen| seen.0.min(power.0));
            self.quiet_power = Some(Watts(lowest));
        }
        self.empty_windows = if quiet { self.empty_windows + 1 } else { 0 };
        if self.empty_windows < settings.after_windows {
            return Verdict::Empty;
        }
        self.parked = Some(Parked { since: now, level: None });
        self.empty_windows = 0;
        Verdict::Park
    }

    /// The GPUs were looked at while parked: is there work? Ends the spell if so.
    pub fn on_activity(
        &mut self,
        activity: Activity,
        settings: &IdleSettings,
        now: Time,
    ) -> Option<(WakeSource, Seconds)> {
        let parked = self.parked.as_mut()?;
        let span = now.since(parked.since);
        let mut source = None;
        if let Some(power) = activity.power.filter(|_| span >= LEVEL_SETTLE) {
            let level = parked.level.map_or(power.0, |level| level.0.min(power.0));
            parked.level = Some(Watts(level));
            if power.0 > settings.wake_power_ratio * level && power.0 > level + WAKE_MARGIN.0 {
                source = Some(WakeSource::Power { power, parked: Watts(level) });
            }
        }
        if let Some(percent) = activity.utilization_percent.filter(|p| *p > QUIET_UTILIZATION_PERCENT) {
            source.get_or_insert(WakeSource::Utilization { percent });
        }
        let source = source?;
        self.parked = None;
        self.empty_windows = 0;
        Some((source, span))
    }

    fn is_quiet(&self, activity: Activity) -> bool {
        let by_utilization = activity.utilization_percent.is_none_or(|p| p <= QUIET_UTILIZATION_PERCENT);
        let by_power = match (activity.power, self.quiet_power) {
            (Some(power), Some(quiet)) => power.0 <= QUIET_POWER_RATIO * quiet.0,
            _ => true,
        };
        by_utilization && by_power && !activity.is_unseen()
    }

    /// Parked now?
    #[must_use]
    pub fn is_parked(&self) -> bool {
        self.parked.is_some()
    }

    /// Something else took the clocks over (outage, restart): not parked, nothing counted.
    pub fn interrupt(&mut self) {
        self.parked = None;
        self.empty_windows = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Mhz;

    const SETTINGS: IdleSettings = IdleSettings {
        after_windows: 3,
        clocks: Clocks { core: Mhz(210), memory: None },
        wake_power_ratio: 1.12,
    };

    fn activity(power: f64, utilization: f64) -> Activity {
        Activity { power: Some(Watts(power)), utilization_percent: Some(utilization) }
    }

    fn empty(watch: &mut IdleWatch, power: f64, utilization: f64, now: f64) -> Verdict {
        watch.on_window(false, activity(power, utilization), Some(&SETTINGS), Time(now))
    }

    fn parked() -> IdleWatch {
        let mut watch = IdleWatch::default();
        for k in 0..3 {
            empty(&mut watch, 80.0, 0.0, 0.3 * f64::from(k));
        }
        assert!(watch.is_parked());
        watch
    }

    #[test]
    fn third_empty_window_parks() {
        let mut watch = IdleWatch::default();
        assert_eq!(empty(&mut watch, 80.0, 0.0, 0.0), Verdict::Empty);
        assert_eq!(empty(&mut watch, 80.0, 0.0, 0.3), Verdict::Empty);
        assert_eq!(empty(&mut watch, 80.0, 0.0, 0.6), Verdict::Park);
        assert_eq!(empty(&mut watch, 60.0, 0.0, 1.2), Verdict::Stay);
    }

    #[test]
    fn empty_page_with_a_busy_gpu_never_parks() {
        let mut watch = IdleWatch::default();
        for k in 0..100 {
            assert_eq!(empty(&mut watch, 300.0, 100.0, 0.3 * f64::from(k)), Verdict::Empty);
        }
    }

    #[test]
    fn power_alone_gives_a_busy_gpu_away_once_quiet_power_is_known() {
        let mut watch = parked();
        watch.on_window(true, activity(300.0, 100.0), Some(&SETTINGS), Time(5.0));
        for k in 0..50 {
            let look = Activity { power: Some(Watts(250.0)), utilization_percent: None };
            let verdict = watch.on_window(false, look, Some(&SETTINGS), Time(6.0 + 0.3 * f64::from(k)));
            assert_eq!(verdict, Verdict::Empty);
        }
    }

    #[test]
    fn rising_power_wakes_and_falling_power_does_not() {
        let mut watch = parked();
        for (k, power) in [80.0, 75.0, 70.0, 66.0, 64.0, 64.5, 65.0].into_iter().enumerate() {
            let now = Time(1.0 + 0.1 * f64::from(u32::try_from(k).unwrap()));
            assert_eq!(watch.on_activity(activity(power, 0.0), &SETTINGS, now), None);
        }
        let woken = watch.on_activity(activity(90.0, 0.0), &SETTINGS, Time(2.0));
        assert!(matches!(woken, Some((WakeSource::Power { .. }, span)) if (span.0 - 1.4).abs() < 1e-9));
        assert!(!watch.is_parked());
    }

    #[test]
    fn utilisation_wakes_even_while_power_is_still_sinking() {
        let mut watch = parked();
        assert_eq!(watch.on_activity(activity(300.0, 0.0), &SETTINGS, Time(0.7)), None);
        let woken = watch.on_activity(activity(300.0, 60.0), &SETTINGS, Time(0.8));
        assert!(matches!(woken, Some((WakeSource::Utilization { percent: 60.0 }, _))), "{woken:?}");
    }

    #[test]
    fn gpu_that_cannot_be_seen_is_never_parked_and_wakes_if_it_is() {
        let mut watch = parked();
        let blind = Activity::default();
        let verdict = watch.on_window(false, blind, Some(&SETTINGS), Time(1.6));
        assert_eq!(verdict, Verdict::Wake(WakeSource::Unseen, Seconds(1.0)));
        for k in 0..20 {
            let verdict = watch.on_window(false, blind, Some(&SETTINGS), Time(2.0 + f64::from(k)));
            assert_eq!(verdict, Verdict::Empty);
        }
    }

    #[test]
    fn work_on_the_page_wakes() {
        let mut watch = parked();
        let verdict = watch.on_window(true, activity(60.0, 0.0), Some(&SETTINGS), Time(1.6));
        assert_eq!(verdict, Verdict::Wake(WakeSource::Page, Seconds(1.0)));
    }

    #[test]
    fn without_settings_nothing_is_ever_parked() {
        let mut watch = IdleWatch::default();
        for k in 0..20 {
            let verdict = watch.on_window(false, activity(50.0, 0.0), None, Time(f64::from(k)));
            assert_eq!(verdict, Verdict::Empty);
        }
    }
}
