//! What happened between two scrapes: counters and histograms as differences over true elapsed time.

use super::Snapshot;
pub use super::signals::{Gauges, Window};
use super::signals::{Signal, Slot, Value};
use crate::units::{Seconds, Time};

/// Why two scrapes do not bound a window: nothing can be said about the time between them.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Discontinuity {
    /// The engine's process is another one.
    #[error("the engine restarted: its process start moved from {from} to {to} (Unix seconds)")]
    Restarted {
        /// Process start on the earlier page.
        from: f64,
        /// On the later page.
        to: f64,
    },
    /// Most counters ran backwards together: a restart, or another server behind the same address.
    #[error("the engine restarted or was replaced: {metric} and most other counters ran backwards")]
    Backwards {
        /// The first of them.
        signal: Signal,
        /// Its metric name.
        metric: String,
    },
    /// The later scrape (or window) does not begin after the earlier one.
    #[error("scrapes out of order: {later:?} does not follow {earlier:?}")]
    OutOfOrder {
        /// Instant of the one given as earlier.
        earlier: Time,
        /// Instant of the one given as later.
        later: Time,
    },
}

impl Window {
    /// The window from one scrape to a later one, as [`Window::with_backwards`] has it.
    ///
    /// # Errors
    /// [`Discontinuity`] if the engine restarted in between, or the scrapes are not in order.
    pub fn between(earlier: &Snapshot, later: &Snapshot) -> Result<Self, Discontinuity> {
        Self::with_backwards(earlier, later).map(|(window, _)| window)
    }

    /// The window from one scrape to a later one, and the signals that it lacks because they ran backwards.
    ///
    /// A single counter that steps back is its exporter's fault and costs its own signal. If more than half of the
    /// counters that were above zero step back together, the engine is another one.
    ///
    /// # Errors
    /// [`Discontinuity`] if the engine restarted in between, or the scrapes are not in order.
    pub fn with_backwards(
        earlier: &Snapshot,
        later: &Snapshot,
    ) -> Result<(Self, Vec<Signal>), Discontinuity> {
        let elapsed = later.at.since(earlier.at);
        if !(elapsed.0 > 0.0 && elapsed.0.is_finite()) {
            return Err(Discontinuity::OutOfOrder { earlier: earlier.at, later: later.at });
        }
        let (a, b) = (&earlier.signals, &later.signals);
        if let (Some(from), Some(to)) = (a.process_start, b.process_start)
            && from.total_cmp(&to).is_ne()
        {
            return Err(Discontinuity::Restarted { from, to });
        }
        let (at_start, at_end) = (Gauges::of(a), Gauges::of(b));
        let mut window =
            Self::bare((earlier.at, later.at, elapsed), [at_start, at_end, blend(at_start, at_end, 0.5)]);
        let mut steps = Steps::default();
        for signal in Signal::all() {
            match (window.slot(signal), a.get(signal), b.get(signal)) {
                (Some(Slot::Number(slot)), Value::Number(Some(from)), Value::Number(Some(to))) => {
                    let added = to - from;
                    *slot = steps.judge(signal, from, (added >= 0.0).then_some(added));
                }
                (Some(Slot::Histogram(slot)), Value::Histogram(Some(from)), Value::Histogram(Some(to))) => {
                    *slot = steps.judge(signal, from.count.max(from.sum), to.since(from));
                }
                _ => {}
            }
        }
        match steps.backwards.first() {
            // The same process start speaks against a restart: one counter alone does not outweigh it.
            Some(&first)
                if 2 * steps.backwards.len() > steps.above_zero
                    && (a.process_start.is_none() || steps.backwards.len() > 1) =>
            {
                let metric = later.engine().metric(first);
                Err(Discontinuity::Backwards { signal: first, metric })
            }
            _ => Ok((window, steps.backwards)),
        }
    }

    /// Joins a later window to this one. A gap between the two is left out of [`Window::elapsed`] and of the means.
    ///
    /// # Errors
    /// [`Discontinuity::OutOfOrder`] if `next` begins before this window ends; this window is then unchanged.
    pub fn extend(&mut self, next: &Self) -> Result<(), Discontinuity> {
        if next.start < self.end {
            return Err(Discontinuity::OutOfOrder { earlier: self.end, later: next.start });
        }
        let elapsed = self.elapsed.0 + next.elapsed.0;
        self.mean = blend(self.mean, next.mean, next.elapsed.0 / elapsed);
        self.elapsed = Seconds(elapsed);
        self.end = next.end;
        self.at_end = next.at_end;
        for signal in Signal::all() {
            match (self.slot(signal), next.get(signal)) {
                (Some(Slot::Number(mine)), Some(Value::Number(more))) => {
                    *mine = mine.zip(more).map(|(mine, more)| mine + more);
                }
                (Some(Slot::Histogram(mine)), Some(Value::Histogram(more))) => match (mine.as_mut(), more) {
                    (Some(mine), Some(more)) => mine.add(more),
                    _ => *mine = None,
                },
                _ => {}
            }
        }
        Ok(())
    }

    /// Requests that arrived: those that finished, and those more that are there. 0 where the page counts neither.
    #[must_use]
    pub(crate) fn arrivals(&self) -> f64 {
        (self.finished.unwrap_or(0.0) + self.at_end.in_flight() - self.at_start.in_flight()).max(0.0)
    }

    /// Is it an engine that counts tokens when their request ends? It does not time single tokens then, or as
    /// llama.cpp has a mean of two counters, and counts no requests.
    #[must_use]
    pub(crate) fn counts_tokens_at_end(&self) -> bool {
        self.itl.as_ref().is_none_or(|times| times.buckets.is_empty() && self.finished.is_none())
    }

    /// Engine steps taken.
    #[must_use]
    pub fn engine_steps(&self) -> Option<f64> {
        self.step_tokens.as_ref().map(|steps| steps.count)
    }
}

impl Gauges {
    /// Requests in the engine, running or waiting.
    #[must_use]
    pub(crate) fn in_flight(&self) -> f64 {
        self.running.unwrap_or(0.0) + self.waiting.unwrap_or(0.0)
    }
}

/// The mean of two pages' levels, `share` of it the other's.
fn blend(levels: Gauges, other: Gauges, share: f64) -> Gauges {
    levels.zip(other, |a, b| a + (b - a) * share)
}

/// The differences of one pair of pages.
#[derive(Default)]
struct Steps {
    /// Counters and histograms that had counted something on the earlier page and are on both.
    above_zero: usize,
    /// Of these, those that ran backwards.
    backwards: Vec<Signal>,
}

impl Steps {
    fn judge<T>(&mut self, signal: Signal, earlier: f64, added: Option<T>) -> Option<T> {
        self.above_zero += usize::from(earlier > 0.0);
        if added.is_none() {
            self.backwards.push(signal);
        }
        added
    }
}

#[cfg(test)]
mod tests {
    use approx::assert_relative_eq;
    use proptest::prelude::*;

    use super::super::{Histogram, Signals};
    use super::*;

    /// A scrape at `at` of an engine that has generated `tokens`, 10 ms each, one per step, `running` at once.
    fn scrape(at: f64, tokens: f64, running: f64) -> Snapshot {
        Snapshot {
            at: Time(at),
            latency: Seconds(0.004),
            signals: Signals {
                running: Some(running),
                waiting: Some(0.0),
                generation_tokens: Some(tokens),
                itl: Some(Histogram { sum: tokens * 0.010, count: tokens, buckets: vec![(0.025, tokens)] }),
                step_tokens: Some(Histogram { sum: tokens, count: tokens, buckets: vec![] }),
                process_start: Some(1_700_000_000.0),
                ..Signals::default()
            },
            refused: vec![],
            engine: None,
        }
    }

    #[test]
    fn window_holds_what_was_added_over_the_true_elapsed_time() {
        let window = Window::between(&scrape(10.0, 100.0, 2.0), &scrape(10.31, 150.0, 6.0)).unwrap();
        assert_relative_eq!(window.elapsed.0, 10.31 - 10.0);
        assert_eq!(window.generation_tokens, Some(150.0 - 100.0));
        assert_eq!(window.engine_steps(), Some(50.0));
        let itl = window.itl.unwrap();
        assert_relative_eq!(itl.mean().unwrap(), 0.010, max_relative = 1e-12);
        assert_eq!(itl.quantile_bounds(0.95), Some((0.0, 0.025)));
        assert_eq!((window.at_start.running, window.at_end.running), (Some(2.0), Some(6.0)));
        assert_eq!(window.mean.running, Some((2.0 + 6.0) / 2.0));
    }

    #[test]
    fn signal_absent_on_either_page_is_absent_from_the_window() {
        let (mut early, late) = (scrape(0.0, 100.0, 1.0), scrape(1.0, 150.0, 1.0));
        early.signals.generation_tokens = None;
        early.signals.itl = None;
        let window = Window::between(&early, &late).unwrap();
        assert_eq!((window.generation_tokens, window.itl), (None, None));
        assert_eq!(window.prompt_tokens, None);
    }

    #[test]
    fn counter_that_ran_backwards_is_named() {
        let error = Window::between(&scrape(0.0, 100.0, 1.0), &scrape(1.0, 99.0, 1.0)).unwrap_err();
        assert!(
            matches!(error, Discontinuity::Backwards { signal: Signal::GenerationTokens, .. }),
            "{error}"
        );
        assert!(error.to_string().contains("vllm:generation_tokens_total"), "{error}");
    }

    #[test]
    fn single_signal_that_ran_backwards_costs_itself_and_is_named() {
        let (early, late) = (scrape(0.0, 100.0, 1.0), scrape(1.0, 150.0, 1.0));
        let whole = Window::between(&early, &late).unwrap();
        let spoil: [fn(&mut Histogram); 3] =
            [|itl| itl.count = 99.0, |itl| itl.sum = 0.9, |itl| itl.buckets[0].1 = 99.0];
        for spoil in spoil {
            let mut late = late.clone();
            spoil(late.signals.itl.as_mut().unwrap());
            let (window, backwards) = Window::with_backwards(&early, &late).unwrap();
            assert_eq!(backwards, [Signal::Itl]);
            assert_eq!(window, Window { itl: None, ..whole.clone() });
        }
        let mut late = late;
        late.signals.generation_tokens = Some(60.0);
        let (window, backwards) = Window::with_backwards(&early, &late).unwrap();
        assert_eq!(backwards, [Signal::GenerationTokens]);
        assert_eq!(window, Window { generation_tokens: None, ..whole });
    }

    #[test]
    fn changed_process_start_is_a_restart_even_if_the_counters_have_caught_up() {
        let (early, mut late) = (scrape(0.0, 100.0, 1.0), scrape(1.0, 150.0, 1.0));
        late.signals.process_start = Some(1_700_000_100.0);
        let restart = Discontinuity::Restarted { from: 1_700_000_000.0, to: 1_700_000_100.0 };
        assert_eq!(Window::between(&early, &late), Err(restart));
    }

    #[test]
    fn scrapes_in_the_wrong_order_or_at_one_instant_bound_nothing() {
        for at in [5.0, 4.0, f64::NAN] {
            let result = Window::between(&scrape(5.0, 1.0, 1.0), &scrape(at, 2.0, 1.0));
            assert!(matches!(result, Err(Discontinuity::OutOfOrder { .. })), "{result:?}");
        }
    }

    #[test]
    fn gap_between_joined_windows_counts_neither_as_time_nor_as_tokens() {
        let mut first = Window::between(&scrape(0.0, 0.0, 4.0), &scrape(1.0, 100.0, 4.0)).unwrap();
        let second = Window::between(&scrape(5.0, 900.0, 8.0), &scrape(8.0, 1200.0, 8.0)).unwrap();
        first.extend(&second).unwrap();
        assert_eq!(first.elapsed, Seconds(1.0 + 3.0));
        assert_eq!(first.generation_tokens, Some(100.0 + 300.0));
        assert_eq!(first.mean.running, Some((4.0 * 1.0 + 8.0 * 3.0) / 4.0));
        assert_eq!((first.start, first.end), (Time(0.0), Time(8.0)));
    }

    #[test]
    fn overlapping_window_is_not_joined() {
        let first = Window::between(&scrape(0.0, 0.0, 1.0), &scrape(2.0, 100.0, 1.0)).unwrap();
        let overlapping = Window::between(&scrape(1.0, 50.0, 1.0), &scrape(3.0, 150.0, 1.0)).unwrap();
        let mut joined = first.clone();
        let error = Discontinuity::OutOfOrder { earlier: Time(2.0), later: Time(1.0) };
        assert_eq!(joined.extend(&overlapping), Err(error));
        assert_eq!(joined, first);
    }

    #[test]
    fn signal_missing_in_one_of_the_joined_windows_is_missing_in_the_whole() {
        let mut first = Window::between(&scrape(0.0, 0.0, 1.0), &scrape(1.0, 100.0, 1.0)).unwrap();
        let mut second = Window::between(&scrape(1.0, 100.0, 1.0), &scrape(2.0, 200.0, 1.0)).unwrap();
        second.itl = None;
        second.generation_tokens = None;
        first.extend(&second).unwrap();
        assert_eq!((first.itl, first.generation_tokens), (None, None));
    }

    proptest! {
        #[test]
        fn joined_windows_equal_the_window_from_first_to_last_scrape(
            steps in prop::collection::vec((0.05_f64..2.0, 0_u32..1000, 0_u32..64), 2..20),
        ) {
            let (mut at, mut tokens) = (0.0, 0.0);
            let mut scrapes = vec![scrape(0.0, 0.0, 0.0)];
            for (span, added, running) in steps {
                at += span;
                tokens += f64::from(added);
                scrapes.push(scrape(at, tokens, f64::from(running)));
            }
            let windows: Vec<Window> =
                scrapes.windows(2).map(|pair| Window::between(&pair[0], &pair[1]).unwrap()).collect();
            let mut joined = windows[0].clone();
            for next in &windows[1..] {
                joined.extend(next).unwrap();
            }
            let whole = Window::between(&scrapes[0], scrapes.last().unwrap()).unwrap();
            assert_relative_eq!(joined.elapsed.0, whole.elapsed.0, max_relative = 1e-12);
            prop_assert_eq!(joined.generation_tokens, whole.generation_tokens);
            prop_assert_eq!(joined.engine_steps(), whole.engine_steps());
            prop_assert_eq!(joined.at_end, whole.at_end);
            let area: f64 = windows.iter().map(|w| w.mean.running.unwrap() * w.elapsed.0).sum();
            assert_relative_eq!(joined.mean.running.unwrap() * joined.elapsed.0, area, max_relative = 1e-9, epsilon = 1e-9);
        }
    }
}
