//! What happened between two scrapes: counters and histograms as differences over true elapsed time.

use serde::{Deserialize, Serialize};

use super::names::Signal;
use super::{Histogram, Signals, Snapshot};
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
    #[error("the engine restarted or was replaced: {} and most other counters ran backwards", .0.metric())]
    Backwards(Signal),
    /// The later scrape (or window) does not begin after the earlier one.
    #[error("scrapes out of order: {later:?} does not follow {earlier:?}")]
    OutOfOrder {
        /// Instant of the one given as earlier.
        earlier: Time,
        /// Instant of the one given as later.
        later: Time,
    },
}

/// The levels of a page.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Gauges {
    /// Requests in the running batch.
    pub running: Option<f64>,
    /// Requests waiting for it.
    pub waiting: Option<f64>,
    /// Share of the KV cache in use, 0 to 1.
    pub kv_usage: Option<f64>,
}

/// The time between two scrapes, or several such spans joined.
///
/// Counters and histograms hold what was added; `None` means that one of the pages did not have the signal, which is
/// not zero.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// First scrape.
    pub start: Time,
    /// Last scrape.
    pub end: Time,
    /// Time covered: `end - start` less the gaps between joined windows. Rates are per second of this.
    pub elapsed: Seconds,
    /// Levels at the start.
    pub at_start: Gauges,
    /// Levels at the end.
    pub at_end: Gauges,
    /// Levels averaged over the time covered (trapezoids between scrapes): what Little's law asks for.
    pub mean: Gauges,
    /// Prompt tokens processed.
    pub prompt_tokens: Option<f64>,
    /// Tokens generated.
    pub generation_tokens: Option<f64>,
    /// Tokens looked up in the prefix cache.
    pub prefix_queries: Option<f64>,
    /// Of these, tokens found.
    pub prefix_hits: Option<f64>,
    /// Requests preempted.
    pub preemptions: Option<f64>,
    /// Requests finished.
    pub finished: Option<f64>,
    /// Tokens per engine step.
    pub step_tokens: Option<Histogram>,
    /// Time to first token, seconds.
    pub ttft: Option<Histogram>,
    /// Time between tokens, seconds.
    pub itl: Option<Histogram>,
    /// Mean time per output token of the requests that finished, seconds.
    pub request_tpot: Option<Histogram>,
    /// End-to-end latency of the requests that finished, seconds.
    pub e2e: Option<Histogram>,
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
        let mut steps = Steps::default();
        let window = Self {
            start: earlier.at,
            end: later.at,
            elapsed,
            at_start,
            at_end,
            mean: at_start.blend(at_end, 0.5),
            prompt_tokens: steps.number(Signal::PromptTokens, a.prompt_tokens, b.prompt_tokens),
            generation_tokens: steps.number(
                Signal::GenerationTokens,
                a.generation_tokens,
                b.generation_tokens,
            ),
            prefix_queries: steps.number(Signal::PrefixQueries, a.prefix_queries, b.prefix_queries),
            prefix_hits: steps.number(Signal::PrefixHits, a.prefix_hits, b.prefix_hits),
            preemptions: steps.number(Signal::Preemptions, a.preemptions, b.preemptions),
            finished: steps.number(Signal::Finished, a.finished, b.finished),
            step_tokens: steps.histogram(Signal::StepTokens, &a.step_tokens, &b.step_tokens),
            ttft: steps.histogram(Signal::Ttft, &a.ttft, &b.ttft),
            itl: steps.histogram(Signal::Itl, &a.itl, &b.itl),
            request_tpot: steps.histogram(Signal::RequestTpot, &a.request_tpot, &b.request_tpot),
            e2e: steps.histogram(Signal::E2e, &a.e2e, &b.e2e),
        };
        match steps.backwards.first() {
            // The same process start speaks against a restart: one counter alone does not outweigh it.
            Some(&first)
                if 2 * steps.backwards.len() > steps.above_zero
                    && (a.process_start.is_none() || steps.backwards.len() > 1) =>
            {
                Err(Discontinuity::Backwards(first))
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
        self.mean = self.mean.blend(next.mean, next.elapsed.0 / elapsed);
        self.elapsed = Seconds(elapsed);
        self.end = next.end;
        self.at_end = next.at_end;
        for (mine, more) in [
            (&mut self.prompt_tokens, next.prompt_tokens),
            (&mut self.generation_tokens, next.generation_tokens),
            (&mut self.prefix_queries, next.prefix_queries),
            (&mut self.prefix_hits, next.prefix_hits),
            (&mut self.preemptions, next.preemptions),
            (&mut self.finished, next.finished),
        ] {
            *mine = mine.zip(more).map(|(mine, more)| mine + more);
        }
        for (mine, more) in [
            (&mut self.step_tokens, &next.step_tokens),
            (&mut self.ttft, &next.ttft),
            (&mut self.itl, &next.itl),
            (&mut self.request_tpot, &next.request_tpot),
            (&mut self.e2e, &next.e2e),
        ] {
            match (mine.as_mut(), more) {
                (Some(mine), Some(more)) => mine.add(more),
                _ => *mine = None,
            }
        }
        Ok(())
    }

    /// Engine steps taken.
    #[must_use]
    pub fn engine_steps(&self) -> Option<f64> {
        self.step_tokens.as_ref().map(|steps| steps.count)
    }
}

impl Gauges {
    /// The levels of a page.
    #[must_use]
    pub fn of(signals: &Signals) -> Self {
        Self { running: signals.running, waiting: signals.waiting, kv_usage: signals.kv_usage }
    }

    /// The mean of two levels, `share` of it the other's.
    fn blend(self, other: Self, share: f64) -> Self {
        let blend = |a: Option<f64>, b: Option<f64>| a.zip(b).map(|(a, b)| a + (b - a) * share);
        Self {
            running: blend(self.running, other.running),
            waiting: blend(self.waiting, other.waiting),
            kv_usage: blend(self.kv_usage, other.kv_usage),
        }
    }
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
    fn number(&mut self, signal: Signal, earlier: Option<f64>, later: Option<f64>) -> Option<f64> {
        let (earlier, later) = earlier.zip(later)?;
        let added = later - earlier;
        self.judge(signal, earlier, (added >= 0.0).then_some(added))
    }

    fn histogram(
        &mut self,
        signal: Signal,
        earlier: &Option<Histogram>,
        later: &Option<Histogram>,
    ) -> Option<Histogram> {
        let (earlier, later) = earlier.as_ref().zip(later.as_ref())?;
        self.judge(signal, earlier.count.max(earlier.sum), later.since(earlier))
    }

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
        assert_eq!(error, Discontinuity::Backwards(Signal::GenerationTokens));
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
