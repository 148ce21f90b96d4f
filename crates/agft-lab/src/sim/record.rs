//! What a run left behind, and the figures of any span of it.

use agft::reward::slo::Limited;
use agft::stats::nearest_rank;
use agft::units::{Joules, Mhz, Seconds, Time, Watts};

use super::board::{Raise, Usage};
use super::run::DRAIN;
use super::world::World;

/// The world at the end of a tick.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TickRecord {
    /// When.
    pub at: Time,
    /// Energy since time zero, free of measuring errors.
    pub energy: Joules,
    /// Tokens generated since time zero.
    pub tokens: f64,
    /// The core clock asked for: the lock, or the highest that the board reaches without one.
    pub core: Mhz,
    /// The memory clock asked for; `None` leaves it to the driver.
    pub memory: Option<Mhz>,
    /// Is any request running or waiting?
    pub busy: bool,
}

impl TickRecord {
    pub(super) fn of(world: &World) -> Self {
        let (running, waiting) = world.in_flight();
        let locks = world.locks();
        let reached = world.gpu().core_reached;
        Self {
            at: world.now(),
            energy: world.true_energy(),
            tokens: world.signals().generation_tokens.unwrap_or(0.0),
            core: locks.core.map_or(reached, |(_, max)| max.min(reached)),
            memory: locks.memory.map(|(_, max)| max),
            busy: running + waiting > 0,
        }
    }
}

/// One answered request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Served {
    /// When it reached the server.
    pub arrival: Time,
    /// Time to first token.
    pub ttft: Seconds,
    /// Mean time per output token after the first; `None` with one output token.
    pub tpot: Option<Seconds>,
    /// End-to-end time.
    pub e2e: Seconds,
}

/// A round in which the controller saw a limit broken, and in the round before had not.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Alarm {
    /// When.
    pub at: Time,
    /// Which limit.
    pub limit: Limited,
}

/// Everything that scoring needs to know of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunRecord {
    /// Its length; latencies are those of the requests that arrived before.
    pub seconds: Seconds,
    /// One entry per tick, from time zero to the first one at or after the end.
    pub ticks: Vec<TickRecord>,
    /// Requests that arrived before the end and were answered, in order of their end.
    pub requests: Vec<Served>,
    /// Arrivals of those that were not answered, although waited for until `waited_until`.
    pub unfinished: Vec<Time>,
    /// When the waiting for answers ended.
    pub waited_until: Time,
    /// Requests that could never fit the KV cache.
    pub rejected: usize,
    /// When the core clock's lock was changed.
    pub clock_changes: Vec<Time>,
    /// What the board did while idle and at lowered clocks, up to the end.
    pub usage: Usage,
    /// The times at which a clock was raised.
    pub raises: Vec<Raise>,
    /// Closed rounds of the policy.
    pub rounds: usize,
    /// The controller's alarms of its limits; `None` if none was in charge.
    pub alarms: Option<Vec<Alarm>>,
}

/// Limits that a request may break.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RequestLimits {
    /// Longest time to first token.
    pub ttft: Seconds,
    /// Longest mean time per output token.
    pub tpot: Seconds,
}

/// Mean and upper percentiles of a latency.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LatencyFigures {
    /// Mean.
    pub mean: f64,
    /// 95th percentile, nearest rank.
    pub p95: f64,
    /// 99th percentile, nearest rank.
    pub p99: f64,
}

impl LatencyFigures {
    /// Figures of these values; zeros without any.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |percent| nearest_rank(&values, percent).unwrap_or(0.0);
        #[expect(clippy::cast_precision_loss, reason = "a number of requests")]
        let count = values.len().max(1) as f64;
        Self { mean: values.iter().sum::<f64>() / count, p95: at(95), p99: at(99) }
    }
}

/// What a span of a run came to. Energy and tokens are the span's, latencies those of the requests that arrived in it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    /// Energy of the board.
    pub energy: Joules,
    /// Mean power.
    pub power: Watts,
    /// Tokens generated.
    pub tokens: f64,
    /// Requests that arrived and were answered.
    pub requests: usize,
    /// Requests that arrived and were still in the server a minute after the end of the run.
    pub unfinished: usize,
    /// Time to first token, in seconds.
    pub ttft: LatencyFigures,
    /// Time per output token, in seconds.
    pub tpot: LatencyFigures,
    /// End-to-end time, in seconds; unfinished requests count with the time they have waited.
    pub e2e: LatencyFigures,
}

impl Figures {
    /// Energy per token.
    #[must_use]
    pub fn joules_per_token(&self) -> f64 {
        self.energy.0 / self.tokens.max(1.0)
    }
}

impl RunRecord {
    pub(super) fn new(
        world: &World,
        seconds: Seconds,
        ticks: Vec<TickRecord>,
        clock_changes: Vec<Time>,
        usage: Usage,
        rounds: usize,
        alarms: Option<Vec<Alarm>>,
    ) -> Self {
        let in_time = |arrival: Time| arrival.0 < seconds.0;
        let served = world.finished().iter().filter(|done| in_time(done.request.arrival));
        Self {
            seconds,
            ticks,
            requests: served
                .map(|done| Served {
                    arrival: done.request.arrival,
                    ttft: done.ttft(),
                    tpot: done.tpot(),
                    e2e: done.e2e(),
                })
                .collect(),
            unfinished: world.arrivals_in_flight().filter(|arrival| in_time(*arrival)).collect(),
            waited_until: world.now(),
            rejected: world.rejected().iter().filter(|request| in_time(request.arrival)).count(),
            clock_changes,
            usage,
            alarms,
            raises: world.raises().iter().copied().filter(|raise| in_time(raise.asked)).collect(),
            rounds,
        }
    }

    /// Energy and tokens up to a moment, straight between ticks.
    fn totals(&self, at: f64) -> (f64, f64) {
        let after = self.ticks.partition_point(|tick| tick.at.0 < at);
        match (after.checked_sub(1).and_then(|before| self.ticks.get(before)), self.ticks.get(after)) {
            (Some(a), Some(b)) => {
                let share = (at - a.at.0) / (b.at.0 - a.at.0);
                let between = |a: f64, b: f64| a + share * (b - a);
                (between(a.energy.0, b.energy.0), between(a.tokens, b.tokens))
            }
            (None, Some(only)) | (Some(only), None) => (only.energy.0, only.tokens),
            (None, None) => (0.0, 0.0),
        }
    }

    /// Figures of the whole run.
    #[must_use]
    pub fn whole(&self) -> Figures {
        self.between(0.0, self.seconds.0)
    }

    /// Figures of its last third: how a policy does once the first learning is behind it.
    #[must_use]
    pub fn last_third(&self) -> Figures {
        self.between(self.seconds.0 * 2.0 / 3.0, self.seconds.0)
    }

    /// Figures of the span from `from` to `to`, in seconds since the start.
    #[must_use]
    pub fn between(&self, from: f64, to: f64) -> Figures {
        let ((energy_before, tokens_before), (energy_after, tokens_after)) =
            (self.totals(from), self.totals(to));
        let span = from..to;
        let served: Vec<&Served> =
            self.requests.iter().filter(|request| span.contains(&request.arrival.0)).collect();
        let waiting: Vec<f64> = self
            .unfinished
            .iter()
            .filter(|arrival| span.contains(&arrival.0))
            .map(|arrival| self.waited_until.since(*arrival).0)
            .collect();
        let energy = energy_after - energy_before;
        Figures {
            energy: Joules(energy),
            power: Watts(energy / (to - from).max(f64::EPSILON)),
            tokens: tokens_after - tokens_before,
            requests: served.len(),
            unfinished: waiting.len(),
            ttft: LatencyFigures::of(served.iter().map(|request| request.ttft.0).collect()),
            tpot: LatencyFigures::of(
                served.iter().filter_map(|request| request.tpot).map(|tpot| tpot.0).collect(),
            ),
            e2e: LatencyFigures::of(served.iter().map(|request| request.e2e.0).chain(waiting).collect()),
        }
    }

    /// Share of the run's requests that broke a limit; one that was never answered did.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "numbers of requests")]
    pub fn share_over(&self, limits: RequestLimits) -> f64 {
        let over = |request: &&Served| {
            request.ttft.0 > limits.ttft.0 || request.tpot.is_some_and(|tpot| tpot.0 > limits.tpot.0)
        };
        let broken = self.requests.iter().filter(over).count() + self.unfinished.len();
        broken as f64 / (self.requests.len() + self.unfinished.len()).max(1) as f64
    }
}

/// Has everything that arrived before `end` been answered, or waited for long enough?
pub(super) fn is_over(world: &World, end: f64) -> bool {
    let newer_only = world.oldest_in_flight().is_none_or(|arrival| arrival.0 >= end);
    newer_only || world.now().0 >= end + DRAIN
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tick(at: f64, joules: f64, tokens: f64) -> TickRecord {
        TickRecord { at: Time(at), energy: Joules(joules), tokens, core: Mhz(1000), memory: None, busy: true }
    }

    fn served(arrival: f64, ttft: f64, tpot: Option<f64>, e2e: f64) -> Served {
        Served { arrival: Time(arrival), ttft: Seconds(ttft), tpot: tpot.map(Seconds), e2e: Seconds(e2e) }
    }

    /// Nine seconds at 100 W, then 200 W from 6 s on.
    fn record() -> RunRecord {
        RunRecord {
            seconds: Seconds(9.0),
            ticks: vec![tick(0.0, 0.0, 0.0), tick(5.0, 500.0, 50.0), tick(10.0, 1400.0, 150.0)],
            requests: vec![
                served(1.0, 0.1, Some(0.01), 1.0),
                served(2.0, 0.2, None, 2.0),
                served(7.0, 0.6, Some(0.03), 3.0),
            ],
            unfinished: vec![Time(8.0)],
            waited_until: Time(68.0),
            rejected: 0,
            clock_changes: Vec::new(),
            usage: Usage::default(),
            raises: Vec::new(),
            rounds: 0,
            alarms: None,
        }
    }

    #[test]
    fn figures_of_a_span_count_its_energy_and_its_arrivals() {
        let whole = record().whole();
        // Four fifths of the second interval's 900 J and 100 tokens.
        assert_eq!((whole.energy, whole.tokens), (Joules(500.0 + 720.0), 130.0));
        approx::assert_relative_eq!(whole.power.0, 1220.0 / 9.0);
        assert_eq!((whole.requests, whole.unfinished), (3, 1));
        approx::assert_relative_eq!(whole.tpot.mean, 0.02);
        approx::assert_relative_eq!(whole.ttft.mean, 0.3, max_relative = 1e-12);
        // The unanswered request has waited for a minute.
        approx::assert_relative_eq!(whole.e2e.mean, (1.0 + 2.0 + 3.0 + 60.0) / 4.0);
        let third = record().last_third();
        assert_eq!((third.requests, third.unfinished), (1, 1));
        approx::assert_relative_eq!(third.energy.0, 1220.0 - (500.0 + 180.0));
    }

    #[test]
    fn percentiles_are_nearest_ranks() {
        let hundred = LatencyFigures::of((1..=100).rev().map(f64::from).collect());
        assert_eq!(hundred, LatencyFigures { mean: 50.5, p95: 95.0, p99: 99.0 });
        let three = LatencyFigures::of(vec![3.0, 1.0, 2.0]);
        assert_eq!(three, LatencyFigures { mean: 2.0, p95: 3.0, p99: 3.0 });
        assert_eq!(LatencyFigures::of(Vec::new()), LatencyFigures::default());
    }

    #[test]
    fn request_over_either_limit_or_without_an_answer_counts_as_over() {
        let over =
            |ttft, tpot| record().share_over(RequestLimits { ttft: Seconds(ttft), tpot: Seconds(tpot) });
        approx::assert_relative_eq!(over(1.0, 1.0), 0.25);
        approx::assert_relative_eq!(over(0.5, 1.0), 0.5);
        approx::assert_relative_eq!(over(0.15, 0.005), 1.0);
    }
}
