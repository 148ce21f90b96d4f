//! What a run came to in terms of parking.

use serde::Serialize;

use crate::sim::Raise;
use crate::sim::record::{RunRecord, Served};
use agft::stats::{mean, nearest_rank};
use agft::units::Time;

/// A request that comes this much later than without parking was delayed; less is chance.
const DELAYED_S: f64 = 0.001;

/// A time in which the server has no request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gap {
    /// The last answer is out.
    pub start: Time,
    /// The first byte of the next request is there; `None`: none comes before the end.
    pub end: Option<Time>,
}

/// The gaps of a run, in order.
#[must_use]
pub fn gaps(record: &RunRecord) -> Vec<Gap> {
    let mut spans: Vec<(f64, f64)> = record
        .requests
        .iter()
        .map(|request| (request.arrival.0, request.arrival.0 + request.e2e.0))
        .collect();
    spans.extend(record.unfinished.iter().map(|arrival| (arrival.0, f64::INFINITY)));
    spans.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut gaps = Vec::new();
    let mut busy_until = 0.0_f64;
    for (arrival, answered) in spans {
        if arrival > busy_until {
            gaps.push(Gap { start: Time(busy_until), end: Some(Time(arrival)) });
        }
        busy_until = busy_until.max(answered);
    }
    if busy_until < record.seconds.0 {
        gaps.push(Gap { start: Time(busy_until), end: None });
    }
    gaps
}

/// Mean and percentiles (nearest rank).
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
}

impl Spread {
    /// Of these values; zeros without any.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |percent| nearest_rank(&values, percent).unwrap_or(0.0);
        Self { mean: mean(&values).unwrap_or(0.0), p50: at(50), p95: at(95), p99: at(99) }
    }

    /// Relative to another one, less one.
    fn over(self, other: Self) -> Self {
        let over = |a: f64, b: f64| if b > 0.0 { a / b - 1.0 } else { 0.0 };
        Self {
            mean: over(self.mean, other.mean),
            p50: over(self.p50, other.p50),
            p95: over(self.p95, other.p95),
            p99: over(self.p99, other.p99),
        }
    }
}

/// What a run came to. Shares are of the whole run unless they say otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figures {
    /// Energy.
    pub energy_j: f64,
    /// Mean power.
    pub mean_power_w: f64,
    /// Share of time in which nothing ran.
    pub idle_share: f64,
    /// Energy in that time.
    pub idle_energy_j: f64,
    /// Mean power in that time.
    pub idle_power_w: f64,
    /// Share of time in which nothing ran at lowered clocks.
    pub parked_share: f64,
    /// Time in which work ran at lowered clocks, seconds.
    pub slow_s: f64,
    /// How often the clocks were raised ...
    pub wakes: usize,
    /// ... of these, for a request that was there already.
    pub wakes_for_requests: usize,
    /// From the first byte of such a request until the driver had the clocks, mean.
    pub notice_s: f64,
    /// From then until they were in force, mean over all wakes.
    pub settle_s: f64,
    /// Answered requests.
    pub requests: usize,
    /// Unanswered ones.
    pub unfinished: usize,
    /// Times to first token, seconds.
    pub ttft_s: Spread,
    /// End-to-end times, seconds.
    pub e2e_s: Spread,
}

impl Figures {
    /// Of a run.
    #[must_use]
    pub fn of(record: &RunRecord) -> Self {
        let seconds = record.seconds.0;
        let (energy, usage) = (record.whole().energy.0, record.usage);
        let gaps = gaps(record);
        let wakes = wakes(&record.raises);
        let notices: Vec<f64> = wakes.iter().filter_map(|wake| notice(&gaps, wake.asked)).collect();
        let settles: Vec<f64> = wakes.iter().map(|wake| wake.landed.since(wake.asked).0).collect();
        Self {
            energy_j: energy,
            mean_power_w: energy / seconds,
            idle_share: usage.idle_s / seconds,
            idle_energy_j: usage.idle_j,
            idle_power_w: usage.idle_j / usage.idle_s.max(1e-9),
            parked_share: usage.idle_low_s / seconds,
            slow_s: usage.busy_low_s,
            wakes: wakes.len(),
            wakes_for_requests: notices.len(),
            notice_s: mean(&notices).unwrap_or(0.0),
            settle_s: mean(&settles).unwrap_or(0.0),
            requests: record.requests.len(),
            unfinished: record.unfinished.len(),
            ttft_s: Spread::of(record.requests.iter().map(|request| request.ttft.0).collect()),
            e2e_s: Spread::of(record.requests.iter().map(|request| request.e2e.0).collect()),
        }
    }
}

/// The memory clock and the core clock are raised by one call each: together they are one wake.
fn wakes(raises: &[Raise]) -> Vec<Raise> {
    let mut wakes: Vec<Raise> = Vec::new();
    for raise in raises {
        match wakes.last_mut() {
            Some(last) if raise.asked <= last.asked => last.landed = raise.landed,
            _ => wakes.push(*raise),
        }
    }
    wakes
}

/// How long the request that ended the gap before `asked` had been there; `None` in a gap, where there is none.
fn notice(gaps: &[Gap], asked: Time) -> Option<f64> {
    let before = gaps.partition_point(|gap| gap.start <= asked).checked_sub(1)?;
    let end = gaps.get(before)?.end?;
    (end <= asked).then(|| asked.since(end).0)
}

/// A run beside the one without parking.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Against {
    /// Share of its energy that was saved.
    pub energy_saved: f64,
    /// Share of what the clairvoyant saved.
    pub share_of_clairvoyant_saving: Option<f64>,
    /// Relative increase of times to first token.
    pub ttft_cost: Spread,
    /// Relative increase of the 99th percentile of end-to-end times.
    pub e2e_p99_cost: f64,
    /// Share of requests whose first token came more than a millisecond later.
    pub delayed_share: f64,
    /// By how much, mean of these, seconds.
    pub delay_s: f64,
    /// The longest delay, seconds.
    pub longest_delay_s: f64,
}

impl Against {
    /// Of `record`, beside the run without parking and the clairvoyant's.
    #[must_use]
    pub fn of(record: &RunRecord, never: &RunRecord, best: &RunRecord) -> Self {
        let energy = |record: &RunRecord| record.whole().energy.0;
        let (saved, possible) = (energy(never) - energy(record), energy(never) - energy(best));
        let (own, other) = (Figures::of(record), Figures::of(never));
        let delays: Vec<f64> = delays(record, never).into_iter().filter(|delay| *delay > DELAYED_S).collect();
        Self {
            energy_saved: saved / energy(never),
            share_of_clairvoyant_saving: (possible > 0.0).then(|| saved / possible),
            ttft_cost: own.ttft_s.over(other.ttft_s),
            e2e_p99_cost: own.e2e_s.over(other.e2e_s).p99,
            delayed_share: count(delays.len()) / count(record.requests.len()).max(1.0),
            delay_s: mean(&delays).unwrap_or(0.0),
            longest_delay_s: delays.iter().copied().fold(0.0, f64::max),
        }
    }
}

/// How much later than in `other` each request of both got its first token.
fn delays(record: &RunRecord, other: &RunRecord) -> Vec<f64> {
    let sorted = |record: &RunRecord| {
        let mut requests = record.requests.clone();
        let key = |request: &Served| (request.arrival.0, request.ttft.0);
        requests.sort_by(|a, b| {
            let (a, b) = (key(a), key(b));
            a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
        });
        requests
    };
    let others = sorted(other);
    let mut rest = others.iter().peekable();
    let mut delays = Vec::new();
    for own in sorted(record) {
        while rest.next_if(|other| other.arrival < own.arrival).is_some() {}
        if let Some(same) = rest.next_if(|other| other.arrival <= own.arrival) {
            delays.push(own.ttft.0 - same.ttft.0);
        }
    }
    delays
}

#[expect(clippy::cast_precision_loss, reason = "a number of requests")]
fn count(n: usize) -> f64 {
    n as f64
}
