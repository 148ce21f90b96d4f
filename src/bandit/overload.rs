//! A queue that grows under lowered clocks: the rule that trusts no policy and no model.
//!
//! What is lost by a queue is lost for minutes: it has to be worked off beside what goes on arriving, and in front of a full
//! KV cache it feeds itself, because preempted requests are computed again. So the clocks go to default at the first signs,
//! whatever the policy thinks, unless default clocks have such a queue too.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::metrics::window::Gauges;
use crate::units::{Seconds, Time};

/// The waiting queue is looked at over this long.
const QUEUE_SPAN: Seconds = Seconds(10.0);
/// A queue that grew by fewer requests than this is noise.
const QUEUE_GROWTH: f64 = 3.0;
/// A grown queue keeps the clocks at default for at least this long ...
const QUEUE_HOLD: Seconds = Seconds(10.0);
/// ... until it has shrunk to this share of its height, ...
const QUEUE_RELIEF: f64 = 0.5;
/// ... but no longer than this: at default clocks nothing more can be done.
const QUEUE_LONGEST: Seconds = Seconds(60.0);
/// A KV cache fuller than this preempts requests soon: a queue in front of it feeds itself.
const FULL_CACHE: f64 = 0.8;
/// So long a queue in front of a full cache is a crowd; ...
const FULL_CACHE_QUEUE: f64 = 1.0;
/// ... elsewhere it takes this share of the running requests, ...
const CROWD_SHARE: f64 = 0.5;
/// ... and at least so many.
const CROWD: f64 = 3.0;
/// What waits at default clocks, times this, is nobody's fault.
const UNAVOIDABLE: f64 = 1.5;
/// Weight of a tick in the mean of what waits at default clocks.
const UNAVOIDABLE_GAIN: f64 = 0.03;
/// A crowd over so many ticks more than without one asks for default clocks.
const CROWDED_TICKS: u32 = 8;
/// The watch on the queue.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Overload {
    queue: VecDeque<(Time, f64)>,
    /// A queue that grew: since when, and how long it was.
    since: Option<(Time, f64)>,
    /// Mean queue at default clocks.
    unavoidable: f64,
    /// Ticks with a crowd less ticks without.
    crowded: u32,
}

impl Overload {
    /// Takes a tick: the page at its end, whether requests were preempted in it, and whether the GPUs run below default
    /// clocks.
    pub(super) fn on_tick(&mut self, now: Time, page: &Gauges, preempted: bool, lowered: bool) {
        let waiting = page.waiting.unwrap_or(0.0);
        if lowered {
            let crowd = self.is_crowd(page, waiting, preempted);
            self.crowded = if crowd { self.crowded + 1 } else { self.crowded.saturating_sub(1) };
        } else {
            self.queue.clear();
            self.crowded = 0;
            self.unavoidable += UNAVOIDABLE_GAIN * (waiting - self.unavoidable);
        }
        self.queue.push_back((now, waiting));
        while self.queue.front().is_some_and(|(at, _)| now.since(*at) > QUEUE_SPAN) {
            self.queue.pop_front();
        }
        match self.since {
            Some((since, height)) => {
                let held = now.since(since);
                let relieved = held >= QUEUE_HOLD && waiting <= QUEUE_RELIEF * height;
                self.since = (!relieved && held < QUEUE_LONGEST).then_some((since, height.max(waiting)));
            }
            None if lowered && (self.crowded >= CROWDED_TICKS || self.queue_grows(now)) => {
                self.crowded = 0;
                self.since = Some((now, waiting));
                self.queue.clear();
            }
            None => {}
        }
    }

    /// Do more requests wait than the lowered clocks may be forgiven for?
    fn is_crowd(&self, page: &Gauges, waiting: f64, preempted: bool) -> bool {
        let excess = waiting - UNAVOIDABLE * self.unavoidable;
        if preempted || page.kv_usage.is_some_and(|usage| usage > FULL_CACHE) {
            excess >= FULL_CACHE_QUEUE
        } else {
            excess >= CROWD.max(CROWD_SHARE * page.running.unwrap_or(0.0))
        }
    }

    /// Did the queue grow from third to third of the span, by half its length at least?
    fn queue_grows(&self, now: Time) -> bool {
        let covered = self.queue.front().is_some_and(|(at, _)| now.since(*at).0 > 0.9 * QUEUE_SPAN.0);
        if !covered {
            return false;
        }
        let third = QUEUE_SPAN.0 / 3.0;
        let mean = |from: f64, to: f64| {
            let (sum, count) = self
                .queue
                .iter()
                .filter(|(at, _)| (from..to).contains(&now.since(*at).0))
                .fold((0.0, 0.0), |(sum, count), (_, waiting)| (sum + waiting, count + 1.0));
            if count > 0.0 { sum / count } else { 0.0 }
        };
        let (old, middle, new) = (mean(2.0 * third, 1e9), mean(third, 2.0 * third), mean(0.0, third));
        old < middle && middle < new && new - old >= QUEUE_GROWTH.max(0.5 * old)
    }

    /// Does the queue ask for driver-default clocks?
    #[must_use]
    pub(super) fn wants_default(&self) -> bool {
        self.since.is_some()
    }

    /// Something else had the clocks: what is recent is recent no more.
    pub(super) fn interrupt(&mut self) {
        self.queue.clear();
        self.since = None;
        self.crowded = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(overload: &mut Overload, waiting: impl Fn(f64) -> f64, lowered: bool, from: f64, to: f64) {
        let mut at = from;
        while at < to {
            let page = Gauges { running: Some(100.0), waiting: Some(waiting(at)), kv_usage: Some(0.2) };
            overload.on_tick(Time(at), &page, false, lowered);
            at += 0.3;
        }
    }

    #[test]
    fn queue_that_grows_for_ten_seconds_at_a_lowered_clock_asks_for_default() {
        let mut overload = Overload::default();
        feed(&mut overload, |t| t, true, 0.0, 9.0);
        assert!(!overload.wants_default());
        feed(&mut overload, |t| t, true, 9.0, 11.0);
        assert!(overload.wants_default());
        // It drains from 11 to 0 in the next 20 s: half is reached after 10 s.
        feed(&mut overload, |t| 11.0 - (t - 11.0) / 2.0, false, 11.0, 20.0);
        assert!(overload.wants_default());
        feed(&mut overload, |t| 11.0 - (t - 11.0) / 2.0, false, 20.0, 25.0);
        assert!(!overload.wants_default());
    }

    #[test]
    fn queue_that_grows_at_default_clocks_is_not_the_clocks_fault() {
        let mut overload = Overload::default();
        feed(&mut overload, |t| t, false, 0.0, 30.0);
        assert!(!overload.wants_default());
    }

    #[test]
    fn steady_or_wavering_queue_is_left_alone() {
        let mut overload = Overload::default();
        feed(&mut overload, |_| 20.0, true, 0.0, 30.0);
        feed(&mut overload, |t| 10.0 + 5.0 * t.sin(), true, 30.0, 90.0);
        assert!(!overload.wants_default());
    }

    #[test]
    fn queue_before_a_full_cache_asks_for_default_after_eight_ticks_unless_default_has_it_too() {
        let page = |waiting| Gauges { running: Some(12.0), waiting: Some(waiting), kv_usage: Some(0.95) };
        let mut overload = Overload::default();
        for tick in 0..CROWDED_TICKS {
            assert!(!overload.wants_default(), "tick {tick}");
            overload.on_tick(Time(0.3 * f64::from(tick)), &page(2.0), false, true);
        }
        assert!(overload.wants_default());
        let mut used_to_it = Overload::default();
        for tick in 0..400 {
            used_to_it.on_tick(Time(0.3 * f64::from(tick)), &page(2.0), false, tick < 200);
            let _ = used_to_it.wants_default();
        }
        for tick in 400..440 {
            used_to_it.on_tick(Time(0.3 * f64::from(tick)), &page(2.0), false, true);
        }
        assert!(!used_to_it.wants_default());
    }
}
