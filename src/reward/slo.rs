//! The latency limits: is the statistic of each within it, over its window?

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

impl Limits {
    /// The limit on this latency.
    #[must_use]
    pub fn of(&self, limit: Limited) -> Seconds {
        match limit {
            Limited::Ttft => self.ttft,
            Limited::Tpot => self.tpot,
        }
    }
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

/// What one page-to-page window says of latencies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Sample {
    /// End of the window.
    at: Time,
    ttft: Option<Histogram>,
    /// Time between tokens.
    between_tokens: Option<Histogram>,
    /// Time per output token of the requests that finished; `None` of an engine that does not tell.
    tpot: Option<Histogram>,
    /// Requests that arrived.
    arrived: f64,
    /// Requests that wait for their first token and that generate, at the end.
    waiting: f64,
    running: f64,
}

impl Sample {
    fn of(window: &Window) -> Self {
        Self {
            at: window.end,
            ttft: window.ttft.clone(),
            between_tokens: window.itl.clone(),
            tpot: window.request_tpot.clone(),
            arrived: window.arrivals(),
            waiting: window.at_end.waiting.unwrap_or(0.0),
            running: window.at_end.running.unwrap_or(0.0),
        }
    }
}

/// Spans over which tokens have to come too slowly, as shares of the window, before requests in flight count as slow.
const PACE_SPANS: [f64; 2] = [0.17, 0.5];

/// Latencies of the recent windows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyWatch {
    recent: VecDeque<Sample>,
}

impl LatencyWatch {
    /// Takes a window that ended at `window.end`.
    pub fn push(&mut self, window: &Window, limits: &Limits) {
        self.recent.push_back(Sample::of(window));
        while self.recent.front().is_some_and(|old| window.end.since(old.at) > limits.window) {
            self.recent.pop_front();
        }
    }

    /// The worst broken limit, if any; `now` is the end of the last window.
    ///
    /// A limit is about its statistic over its window, and about nothing else. Broken means certainly so: a percentile
    /// whose bucket holds the limit is not broken, nor is a limit that is broken only with the samples at the edge of the
    /// window, some of which are older than it. A limit on a mean counts as broken before its window shows it only
    /// where the requests in flight are certain to break it: those that have waited so long already, or whose tokens
    /// come too slowly for half of the window. No samples, no violation.
    #[must_use]
    pub fn violation(&self, limits: &Limits, now: Time) -> Option<Violation> {
        worst([Limited::Ttft, Limited::Tpot].into_iter().filter_map(|limit| {
            let allowed = limits.of(limit);
            let broken = |measured: &Seconds| *measured > allowed;
            let measured = self.measured(limit, limits, now, now - limits.window).filter(broken)?;
            let whole = self.recent.iter().find(|sample| sample.at > now - limits.window)?;
            let inside = self.measured(limit, limits, now, whole.at).unwrap_or(measured);
            let measured = Some(Seconds(measured.0.min(inside.0))).filter(broken)?;
            Some(Violation { limit, measured, allowed })
        }))
    }

    /// The largest statistic as a share of its limit; `None` without samples.
    #[must_use]
    pub fn pressure(&self, limits: &Limits, now: Time) -> Option<f64> {
        let measured = |limit| self.measured(limit, limits, now, now - limits.window);
        let share = |limit| measured(limit).map(|measured| measured.0 / limits.of(limit).0);
        [Limited::Ttft, Limited::Tpot].into_iter().filter_map(share).max_by(f64::total_cmp)
    }

    /// The statistic since `from`, or what the requests in flight are certain to make of it.
    fn measured(&self, limit: Limited, limits: &Limits, now: Time, from: Time) -> Option<Seconds> {
        let pooled = self.pooled(limit, from);
        let so_far = pooled.as_ref().and_then(|pooled| limits.statistic.of(pooled)).map(|(lower, _)| lower);
        let projected = match (limits.statistic, limit) {
            (Statistic::Mean, Limited::Ttft) => self.projected_ttft(pooled.as_ref(), now),
            (Statistic::Mean, Limited::Tpot) => self.projected_tpot(pooled.as_ref(), limits, now),
            (Statistic::P95 | Statistic::P99, _) => None,
        };
        [so_far, projected].into_iter().flatten().max_by(f64::total_cmp).map(Seconds)
    }

    /// The mean if the waiting requests had their first token now. Served in order, those that wait came last.
    fn projected_ttft(&self, pooled: Option<&Histogram>, now: Time) -> Option<f64> {
        // An engine that does not tell when first tokens come is not judged by who waits for one.
        let mut left = self.recent.back().filter(|_| self.tells_of_first_tokens())?.waiting;
        let (mut waited, mut count) = (0.0, 0.0);
        for sample in self.recent.iter().rev() {
            let here = sample.arrived.min(left);
            waited += here * now.since(sample.at).0.max(0.0);
            count += here;
            left -= here;
        }
        let (sum, samples) = pooled.map_or((0.0, 0.0), |pooled| (pooled.sum, pooled.count));
        (count > 0.0).then(|| (sum + waited) / (samples + count))
    }

    /// The mean if the requests that generate went on as tokens came of late, over the longer and the shorter span.
    fn projected_tpot(&self, pooled: Option<&Histogram>, limits: &Limits, now: Time) -> Option<f64> {
        let running = self.recent.back()?.running;
        let pace = |share: f64| {
            self.pool(now - Seconds(share * limits.window.0), |sample| sample.between_tokens.as_ref())?.mean()
        };
        let [short, long] = PACE_SPANS.map(pace);
        // An engine that tells of tokens only is judged by these.
        let pooled = pooled.filter(|_| self.tells_of_requests())?;
        Some((pooled.sum + running * short?.min(long?)) / (pooled.count + running))
    }

    fn tells_of_first_tokens(&self) -> bool {
        self.recent.iter().any(|sample| sample.ttft.is_some())
    }

    fn tells_of_requests(&self) -> bool {
        self.recent.iter().any(|sample| sample.tpot.is_some())
    }

    /// If `limit` took `longer` than it did of late, would it still be kept? Without samples nothing speaks against it.
    #[must_use]
    pub fn leaves(&self, limit: Limited, longer: Seconds, limits: &Limits, now: Time) -> bool {
        let allowed = limits.of(limit);
        let lower = self.pooled(limit, now - limits.window).and_then(|pooled| limits.statistic.of(&pooled));
        lower.is_none_or(|(lower, _)| lower + longer.0 <= allowed.0)
    }

    /// The samples that a limit is about: of requests where the engine tells of them, else of tokens.
    fn pooled(&self, limit: Limited, from: Time) -> Option<Histogram> {
        match limit {
            Limited::Ttft => self.pool(from, |sample| sample.ttft.as_ref()),
            Limited::Tpot if self.tells_of_requests() => self.pool(from, |sample| sample.tpot.as_ref()),
            Limited::Tpot => self.pool(from, |sample| sample.between_tokens.as_ref()),
        }
    }

    fn pool(&self, from: Time, part: impl Fn(&Sample) -> Option<&Histogram>) -> Option<Histogram> {
        let mut pooled: Option<Histogram> = None;
        for part in self.recent.iter().filter(|sample| sample.at > from).filter_map(part) {
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
    fn limit_is_broken_when_the_statistic_over_its_window_breaks_it_and_no_sooner() {
        // 100 windows are in its 30 s.
        for slow in [55, 56, 57, 58, 59] {
            let mean = (f64::from(slow) * 0.08 + f64::from(100 - slow) * 0.01) / 100.0;
            let is_broken = mean > LIMITS.tpot.0;
            let slow = usize::try_from(slow).unwrap();
            let (watch, now) =
                watch(std::iter::repeat_n(0.01, 100).chain(std::iter::repeat_n(0.08, slow)), &LIMITS);
            assert_eq!(watch.violation(&LIMITS, now).is_some(), is_broken, "{slow} slow windows");
        }
    }

    #[test]
    fn prefill_chunk_beside_many_requests_is_no_violation() {
        let mut watch = LatencyWatch::default();
        for k in 1..=90 {
            watch.push(&window(0.3 * f64::from(k), 0.01, 100.0), &LIMITS);
        }
        for end in [30.0, 30.3, 30.6] {
            watch.push(&window(end, 0.9, 16.0), &LIMITS);
            assert_eq!(watch.violation(&LIMITS, Time(end)), None);
        }
    }

    /// A window of 0.3 s ending at `end`: tokens `itl` apart, `finished` requests of `tpot` each, so many in flight.
    fn of_requests(end: f64, itl: f64, (finished, tpot): (f64, f64), running: f64) -> Window {
        let plain = window(end, itl, 100.0);
        let histogram = Histogram { sum: finished * tpot, count: finished, buckets: Vec::new() };
        let mut window = Window { request_tpot: Some(histogram), ..plain };
        window.at_end.running = Some(running);
        window
    }

    #[test]
    fn requests_are_judged_by_their_own_mean_and_those_in_flight_once_they_are_certain_to_break_it() {
        let mut watch = LatencyWatch::default();
        let broken_at = (1..=200).map(|k| 0.3 * f64::from(k)).find(|end| {
            // From second 30 on tokens come twice as late as allowed, while no request finishes.
            let (itl, finished) = if *end < 30.0 { (0.01, 1.0) } else { (0.1, 0.0) };
            watch.push(&of_requests(*end, itl, (finished, 0.01), 400.0), &LIMITS);
            watch.violation(&LIMITS, Time(*end)).is_some()
        });
        // Not before the mean over half of the window is above the limit, and long before the first of them ends.
        let half = 0.5 * LIMITS.window.0;
        let certain = 30.0 + half * (0.05 - 0.01) / (0.1 - 0.01);
        assert!(broken_at.is_some_and(|at| (certain - 0.3..certain + 2.0).contains(&at)), "{broken_at:?}");
    }

    #[test]
    fn waiting_requests_count_with_what_they_have_waited() {
        let broken_at = broken_by_waiting(Some(Histogram::default()));
        assert!(
            broken_at.is_some_and(|at| (at - 1.5).abs() < 0.2),
            "1 s after the window they came in: {broken_at:?}"
        );
    }

    #[test]
    fn engine_without_a_time_to_first_token_is_not_judged_by_it() {
        assert_eq!(broken_by_waiting(None), None);
    }

    /// When the limit on the time to first token is broken, if ten requests wait on.
    fn broken_by_waiting(ttft: Option<Histogram>) -> Option<f64> {
        let mut watch = LatencyWatch::default();
        (1..=60).map(|k| 0.3 * f64::from(k)).find(|end| {
            let mut window = window(*end, 0.01, 100.0);
            window.ttft.clone_from(&ttft);
            // Ten arrive in the first window, and wait.
            window.at_start.waiting = Some(if *end < 0.4 { 0.0 } else { 10.0 });
            window.at_end.waiting = Some(10.0);
            watch.push(&window, &LIMITS);
            watch.violation(&LIMITS, Time(*end)).is_some()
        })
    }

    #[test]
    fn percentile_inside_the_limits_bucket_is_not_called_broken() {
        let limits = Limits { tpot: Seconds(0.03), statistic: Statistic::P95, ..LIMITS };
        let (unsure, now) = watch([0.04; 50], &limits);
        assert_eq!(unsure.violation(&limits, now), None);
        let (broken, now) = watch([0.08; 50], &limits);
        assert_eq!(broken.violation(&limits, now).unwrap().measured, Seconds(0.05));
    }
}
