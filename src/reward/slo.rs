//! The latency limits: are they kept, over the last half minute and right now?

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::metrics::Histogram;
use crate::metrics::window::Window;
use crate::units::{Seconds, Time};

/// Which statistic of a latency a limit is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Statistic {
    /// The mean.
    #[default]
    Mean,
    /// The 95th percentile.
    P95,
    /// The 99th percentile.
    P99,
}

impl Statistic {
    /// The statistic of a histogram as an interval: exact for the mean, the bucket's bounds for a percentile (vLLM's
    /// inter-token buckets start at 10 and 25 ms: a percentile inside one is not known any better).
    fn of(self, histogram: &Histogram) -> Option<(f64, f64)> {
        match self {
            Self::Mean => histogram.mean().map(|mean| (mean, mean)),
            Self::P95 => histogram.quantile_bounds(0.95),
            Self::P99 => histogram.quantile_bounds(0.99),
        }
    }
}

/// The limits an operator states.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Limit on the time to first token.
    pub ttft: Seconds,
    /// Limit on the time per output token.
    pub tpot: Seconds,
    /// The statistic both are about.
    pub statistic: Statistic,
    /// Length of the sliding window.
    pub window: Seconds,
}

/// Which limit was broken, and by how much.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Violation {
    /// `ttft` or `tpot`.
    pub limit: Limited,
    /// What was measured.
    pub measured: Seconds,
    /// What was allowed.
    pub allowed: Seconds,
}

/// The two limited latencies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Limited {
    /// Time to first token.
    Ttft,
    /// Time per output token.
    Tpot,
}

impl Limited {
    /// Samples that the short window needs to count.
    fn least_samples(self) -> f64 {
        match self {
            Self::Ttft => 2.0,
            Self::Tpot => 16.0,
        }
    }
}

impl std::fmt::Display for Limited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ttft => "TTFT",
            Self::Tpot => "TPOT",
        })
    }
}

/// The one that exceeds what is allowed by the largest factor.
pub fn worst(violations: impl Iterator<Item = Violation>) -> Option<Violation> {
    violations.max_by(|a, b| (a.measured.0 / a.allowed.0).total_cmp(&(b.measured.0 / b.allowed.0)))
}

/// Length of the short window: a limit broken right now is acted on before it shows in the long one.
const SHORT: Seconds = Seconds(2.0);

/// Latencies of the recent windows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyWatch {
    recent: VecDeque<(Time, Option<Histogram>, Option<Histogram>)>,
}

impl LatencyWatch {
    /// Takes a window that ended at `window.end`.
    pub fn push(&mut self, window: &Window, limits: &Limits) {
        let tpot = window.itl.clone().or_else(|| window.request_tpot.clone());
        self.recent.push_back((window.end, window.ttft.clone(), tpot));
        while self.recent.front().is_some_and(|(at, ..)| window.end.since(*at) > limits.window) {
            self.recent.pop_front();
        }
    }

    /// The worst broken limit, if any; `now` is the end of the last window.
    ///
    /// Broken means certainly so: a percentile whose bucket holds the limit is not broken. No samples, no violation.
    #[must_use]
    pub fn violation(&self, limits: &Limits, now: Time) -> Option<Violation> {
        let spans = [limits.window, Seconds(SHORT.0.min(limits.window.0))];
        let candidates = [(Limited::Ttft, limits.ttft), (Limited::Tpot, limits.tpot)];
        let each =
            candidates.into_iter().flat_map(|(limit, allowed)| spans.map(|span| (limit, allowed, span)));
        worst(each.filter_map(|(limit, allowed, span)| {
            let pooled = self.pooled(limit, now - span)?;
            // One slow step is no statistic: it shows in the long window, if there are no others.
            let few = span < limits.window && pooled.count < limit.least_samples();
            let (lower, _) = limits.statistic.of(&pooled).filter(|_| !few)?;
            (lower > allowed.0).then_some(Violation { limit, measured: Seconds(lower), allowed })
        }))
    }

    /// If `limit` took `longer` than it did of late, would it still be kept? Without samples nothing speaks against it.
    #[must_use]
    pub fn leaves(&self, limit: Limited, longer: Seconds, limits: &Limits, now: Time) -> bool {
        let allowed = match limit {
            Limited::Ttft => limits.ttft,
            Limited::Tpot => limits.tpot,
        };
        let lower = self.pooled(limit, now - limits.window).and_then(|pooled| limits.statistic.of(&pooled));
        lower.is_none_or(|(lower, _)| lower + longer.0 <= allowed.0)
    }

    fn pooled(&self, limit: Limited, from: Time) -> Option<Histogram> {
        let mut pooled: Option<Histogram> = None;
        for (at, ttft, tpot) in &self.recent {
            let part = match limit {
                Limited::Ttft => ttft,
                Limited::Tpot => tpot,
            };
            let Some(part) = part.as_ref().filter(|_| *at > from) else { continue };
            match &mut pooled {
                Some(sum) => sum.add(part),
                None => pooled = Some(part.clone()),
            }
        }
        pooled.filter(|histogram| histogram.count > 0.0)
    }

    /// Forgets: after an outage or a restart of the engine.
    pub fn clear(&mut self) {
        self.recent.clear();
    }
}

/// Moments of the run at hand.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Running {
    /// Next moment at which the floor may sink.
    relax_at: Option<Time>,
    /// While a limit is broken, and a little longer, the clocks stay at the driver's default.
    lifted_until: Option<Time>,
}

/// The lowest core clock that the limits allow: goes up at once, comes down slowly. The clock outlives the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SloFloor {
    floor_mhz: Option<f64>,
    running: Running,
}

/// How long the clocks stay up after a limit was last seen broken.
const LIFT: Seconds = Seconds(5.0);
/// The floor sinks by one step every so often.
const RELAX_EVERY: Seconds = Seconds(60.0);

impl SloFloor {
    /// A floor that an earlier run has left, in MHz.
    #[must_use]
    pub fn left_at(floor_mhz: Option<f64>) -> Self {
        Self { floor_mhz, running: Running::default() }
    }

    /// A limit is broken while `running_mhz` was asked for (`None`: driver default, where more cannot be done).
    pub fn violated(&mut self, running_mhz: Option<f64>, step_mhz: f64, now: Time) {
        if let Some(clock) = running_mhz {
            let above = clock + step_mhz;
            self.floor_mhz = Some(self.floor_mhz.map_or(above, |floor| floor.max(above)));
        }
        self.running.lifted_until = Some(now + LIFT);
        self.running.relax_at = Some(now + RELAX_EVERY);
    }

    /// Time passes without a violation: sinks by `step_mhz` a minute until below `lowest_mhz`, then is gone.
    pub fn relax(&mut self, step_mhz: f64, lowest_mhz: f64, now: Time) {
        let Some(floor) = self.floor_mhz else { return };
        let due = *self.running.relax_at.get_or_insert(now + RELAX_EVERY);
        if now >= due {
            let lower = floor - step_mhz;
            self.floor_mhz = (lower > lowest_mhz).then_some(lower);
            self.running.relax_at = Some(now + RELAX_EVERY);
        }
    }

    /// Must the clocks be at the driver's default now?
    #[must_use]
    pub fn is_lifted(&self, now: Time) -> bool {
        self.running.lifted_until.is_some_and(|until| now < until)
    }

    /// The floor in MHz.
    #[must_use]
    pub fn floor_mhz(&self) -> Option<f64> {
        self.floor_mhz
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Signals, Snapshot};

    const LIMITS: Limits =
        Limits { ttft: Seconds(1.0), tpot: Seconds(0.05), statistic: Statistic::Mean, window: Seconds(30.0) };

    /// A window of 0.3 s ending at `end` in which `count` tokens came `itl` apart.
    fn window(end: f64, itl: f64, count: f64) -> Window {
        let snapshot = |at: f64, n: f64| Snapshot {
            at: Time(at),
            latency: Seconds(0.0),
            refused: Vec::new(),
            engine: None,
            signals: Signals {
                itl: Some(Histogram {
                    sum: itl * n,
                    count: n,
                    buckets: [0.01, 0.025, 0.05, 0.1]
                        .map(|le| (le, if itl <= le { n } else { 0.0 }))
                        .to_vec(),
                }),
                ..Signals::default()
            },
        };
        Window::between(&snapshot(end - 0.3, 0.0), &snapshot(end, count)).unwrap()
    }

    fn watch(itls: impl IntoIterator<Item = f64>, limits: &Limits) -> (LatencyWatch, Time) {
        let mut watch = LatencyWatch::default();
        let mut end = 0.0;
        for itl in itls {
            end += 0.3;
            watch.push(&window(end, itl, 100.0), limits);
        }
        (watch, Time(end))
    }

    #[test]
    fn kept_limit_is_no_violation_and_neither_is_silence() {
        let (kept, now) = watch([0.03; 50], &LIMITS);
        assert_eq!(kept.violation(&LIMITS, now), None);
        assert_eq!(LatencyWatch::default().violation(&LIMITS, Time(1.0)), None);
    }

    #[test]
    fn fresh_violation_is_seen_before_the_long_window_shows_it() {
        let (broken, now) = watch(std::iter::repeat_n(0.01, 90).chain([0.08; 7]), &LIMITS);
        let violation = broken.violation(&LIMITS, now).unwrap();
        assert_eq!(violation.limit, Limited::Tpot);
        assert!(violation.measured.0 > 0.05);
    }

    #[test]
    fn single_slow_step_of_a_few_requests_is_no_violation_yet() {
        let mut watch = LatencyWatch::default();
        for k in 1..=90 {
            watch.push(&window(0.3 * f64::from(k), 0.01, 100.0), &LIMITS);
        }
        watch.push(&window(30.0, 0.9, 8.0), &LIMITS);
        assert_eq!(watch.violation(&LIMITS, Time(30.0)), None);
        watch.push(&window(30.3, 0.9, 8.0), &LIMITS);
        assert!(watch.violation(&LIMITS, Time(30.3)).is_some());
    }

    #[test]
    fn percentile_inside_the_limits_bucket_is_not_called_broken() {
        let limits = Limits { tpot: Seconds(0.03), statistic: Statistic::P95, ..LIMITS };
        let (unsure, now) = watch([0.04; 50], &limits);
        assert_eq!(unsure.violation(&limits, now), None);
        let (broken, now) = watch([0.08; 50], &limits);
        assert_eq!(broken.violation(&limits, now).unwrap().measured, Seconds(0.05));
    }

    #[test]
    fn floor_rises_at_once_and_sinks_slowly() {
        let mut floor = SloFloor::default();
        floor.violated(Some(900.0), 90.0, Time(0.0));
        assert!(floor.is_lifted(Time(1.0)));
        assert_eq!(floor.floor_mhz(), Some(990.0));
        floor.violated(Some(600.0), 90.0, Time(2.0));
        assert_eq!(floor.floor_mhz(), Some(990.0));
        assert!(!floor.is_lifted(Time(7.5)));
        floor.relax(90.0, 210.0, Time(61.0));
        assert_eq!(floor.floor_mhz(), Some(990.0));
        floor.relax(90.0, 210.0, Time(62.0));
        assert_eq!(floor.floor_mhz(), Some(900.0));
    }

    #[test]
    fn violation_at_default_clocks_sets_no_floor() {
        let mut floor = SloFloor::default();
        floor.violated(None, 90.0, Time(0.0));
        assert_eq!(floor.floor_mhz(), None);
        assert!(floor.is_lifted(Time(0.1)));
    }
}
