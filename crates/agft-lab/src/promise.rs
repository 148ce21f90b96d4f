//! What agft promises its operator, and whether a run kept it: how much of the energy that could be saved
//! within the allowed slowdown was saved, and what it cost in latency, in clock changes and in alarms.

use serde::Serialize;

use super::score::{Reference, Yardstick, geometric_mean};
use crate::sim::record::{Alarm, LatencyFigures, RequestLimits, RunRecord, Served};
use agft::reward::slo::{Limited, Limits, Statistic};

/// Where the best fixed clock saves less than this share of default's energy, a share of its saving means
/// nothing.
const LEAST_SAVING: f64 = 0.02;
/// Shares below this count as much in a geometric mean: one run that saves nothing would make it zero.
const LEAST_SHARE: f64 = 0.01;

/// What the operator allows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Terms {
    /// Limits that single requests are held against.
    pub limits: RequestLimits,
    /// The limits that the controller guards; `None` if it guards none.
    pub guarded: Option<Limits>,
    /// Largest slowdown of the mean TPOT against default clocks, in percent; `None` without a bound.
    pub max_slowdown_percent: Option<f64>,
}

/// The figures of one run. What is not known is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Promise {
    /// Energy saved against default clocks over that of the best fixed clock within the bound (best by the
    /// objective, end to end); `None` where that clock saves less than 2 %.
    pub share_of_fixed_saving: Option<f64>,
    /// Is the mean TPOT within the allowed slowdown? `None` without a bound.
    pub within_slowdown: Option<bool>,
    /// Mean TTFT less that at default clocks, in seconds; `None` without requests.
    pub ttft_increase_s: Option<f64>,
    /// The same in percent of the latter.
    pub ttft_increase_percent: Option<f64>,
    /// Changes of the core clock's lock per minute.
    pub clock_changes_per_min: f64,
    /// The same in the last half of the run.
    pub clock_changes_per_min_last_half: f64,
    /// Share of requests over the TTFT or TPOT limit, less that at default clocks.
    pub share_over_limits_added: f64,
    /// Times that the controller saw a limit broken; `None` for a policy that guards none.
    pub alarms: Option<usize>,
    /// Those of the alarms at which the requests in flight during the limit's window before kept the limit.
    pub false_alarms: Option<usize>,
}

impl Promise {
    /// Of a run held against `reference`.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a number of clock changes")]
    pub fn of(record: &RunRecord, reference: &Reference<'_>, terms: &Terms) -> Self {
        let (whole, default) = (record.whole(), reference.default.whole());
        let saved = |joules: f64| 1.0 - joules / default.energy.0;
        let best = reference.sweep.best(Yardstick::E2e).filter(|run| reference.sweep.keeps_bound(run));
        let possible = best.map(|run| saved(run.whole.energy.0)).filter(|share| *share >= LEAST_SAVING);
        let answered = whole.requests > 0 && default.requests > 0;
        let later = answered.then_some(whole.ttft.mean - default.ttft.mean);
        let minutes = record.seconds.0 / 60.0;
        let half = record.seconds.0 / 2.0;
        let late_changes = record.clock_changes.iter().filter(|at| at.0 > half).count();
        let slowdown = whole.tpot.mean / default.tpot.mean - 1.0;
        let alarms = terms.guarded.and_then(|limits| Some((limits, record.alarms.as_ref()?)));
        Self {
            share_of_fixed_saving: possible.map(|possible| saved(whole.energy.0) / possible),
            within_slowdown: terms
                .max_slowdown_percent
                .filter(|_| slowdown.is_finite())
                .map(|percent| slowdown <= percent / 100.0),
            ttft_increase_s: later,
            ttft_increase_percent: later
                .filter(|_| default.ttft.mean > 0.0)
                .map(|later| 100.0 * later / default.ttft.mean),
            clock_changes_per_min: record.clock_changes.len() as f64 / minutes,
            clock_changes_per_min_last_half: late_changes as f64 / (minutes / 2.0),
            share_over_limits_added: record.share_over(terms.limits)
                - reference.default.share_over(terms.limits),
            alarms: alarms.map(|(_, alarms)| alarms.len()),
            false_alarms: alarms.map(|(limits, alarms)| {
                alarms.iter().filter(|alarm| is_false(alarm, record, &limits)).count()
            }),
        }
    }
}

/// Did the requests that the limit is about keep it: those that waited for the latency in question at some time of
/// the window before the alarm? Where none of them was answered nobody knows, and the alarm stands.
fn is_false(alarm: &Alarm, record: &RunRecord, limits: &Limits) -> bool {
    let from = alarm.at.0 - limits.window.0;
    let waited = |until: fn(&Served) -> f64| {
        let requests = record.requests.iter();
        requests.filter(move |request| {
            request.arrival.0 <= alarm.at.0 && request.arrival.0 + until(request) >= from
        })
    };
    let (values, allowed): (Vec<f64>, f64) = match alarm.limit {
        Limited::Ttft => {
            (waited(|request| request.ttft.0).map(|request| request.ttft.0).collect(), limits.ttft.0)
        }
        Limited::Tpot => (
            waited(|request| request.e2e.0).filter_map(|request| Some(request.tpot?.0)).collect(),
            limits.tpot.0,
        ),
    };
    let known = !values.is_empty();
    let figures = LatencyFigures::of(values);
    let measured = match limits.statistic {
        Statistic::Mean => figures.mean,
        Statistic::P95 => figures.p95,
        Statistic::P99 => figures.p99,
    };
    known && measured <= allowed
}

/// One policy over all cells.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Kept {
    /// Share of the runs within the allowed slowdown; `None` without a bound.
    pub within_slowdown: Option<f64>,
    /// Geometric mean of the share of the best fixed clock's saving, over the runs that have one; a share
    /// below 0.01 counts as 0.01.
    pub share_of_fixed_saving: Option<f64>,
    /// The load with the smallest such mean ...
    pub worst_load: Option<String>,
    /// ... and what it is.
    pub worst_load_share: Option<f64>,
    /// All alarms.
    pub alarms: Option<usize>,
    /// All false ones.
    pub false_alarms: Option<usize>,
}

impl Kept {
    /// Of the runs of each load.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a number of runs")]
    pub fn of(loads: &[(String, Vec<&Promise>)]) -> Self {
        let all: Vec<&Promise> = loads.iter().flat_map(|(_, runs)| runs.iter().copied()).collect();
        let bound: Vec<bool> = all.iter().filter_map(|run| run.within_slowdown).collect();
        let within = bound.iter().filter(|within| **within).count();
        let worst = loads
            .iter()
            .filter_map(|(load, runs)| Some((load, share_of_fixed_saving(runs)?)))
            .min_by(|(_, a), (_, b)| a.total_cmp(b));
        Self {
            within_slowdown: (!bound.is_empty()).then(|| within as f64 / bound.len() as f64),
            share_of_fixed_saving: share_of_fixed_saving(&all),
            worst_load: worst.map(|(load, _)| load.clone()),
            worst_load_share: worst.map(|(_, share)| share),
            alarms: sum(&all, |run| run.alarms),
            false_alarms: sum(&all, |run| run.false_alarms),
        }
    }
}

/// Geometric mean over the runs that have a share.
#[must_use]
pub fn share_of_fixed_saving(runs: &[&Promise]) -> Option<f64> {
    let shares: Vec<f64> =
        runs.iter().filter_map(|run| Some(run.share_of_fixed_saving?.max(LEAST_SHARE))).collect();
    (!shares.is_empty()).then(|| geometric_mean(&shares))
}

/// Over the runs that have it; `None` if none does.
#[must_use]
pub fn sum(runs: &[&Promise], of: impl Fn(&Promise) -> Option<usize>) -> Option<usize> {
    runs.iter().filter_map(|run| of(run)).reduce(|a, b| a + b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::{StaticRun, Sweep};
    use crate::sim::Usage;
    use crate::sim::record::TickRecord;
    use agft::reward::Objective;
    use agft::units::{Clocks, Joules, Mhz, Seconds, Time};

    const LIMITS: Limits =
        Limits { ttft: Seconds(1.0), tpot: Seconds(0.05), statistic: Statistic::Mean, window: Seconds(30.0) };

    fn record(energy: f64, ttft: f64, tpot: f64, alarms: Option<Vec<Alarm>>) -> RunRecord {
        let tick = |at: f64| TickRecord {
            at: Time(at),
            energy: Joules(energy * at / 120.0),
            tokens: at,
            core: Mhz(1000),
            memory: None,
            busy: true,
        };
        let served = |at: f64| Served {
            arrival: Time(at),
            ttft: Seconds(ttft),
            tpot: Some(Seconds(tpot)),
            e2e: Seconds(1.0),
        };
        RunRecord {
            seconds: Seconds(120.0),
            ticks: vec![tick(0.0), tick(120.0)],
            requests: vec![served(10.0), served(100.0)],
            unfinished: Vec::new(),
            waited_until: Time(120.0),
            rejected: 0,
            clock_changes: [5.0, 6.0, 61.0].map(Time).into(),
            usage: Usage::default(),
            raises: Vec::new(),
            rounds: 0,
            alarms,
        }
    }

    fn of(record: &RunRecord, fixed_energy: f64, percent: Option<f64>) -> Promise {
        let default = self::record(200.0, 0.5, 0.04, None);
        let fixed = self::record(fixed_energy, 0.5, 0.043, None);
        let run = StaticRun {
            clocks: Clocks::core_only(Mhz(900)),
            whole: fixed.whole(),
            last_third: fixed.last_third(),
            slices: Vec::new(),
        };
        let sweep = Sweep { objective: Objective::Energy, slowest: None, runs: vec![run] };
        let reference = Reference { sweep: &sweep, default: &default, clairvoyant: None };
        let limits = RequestLimits { ttft: LIMITS.ttft, tpot: LIMITS.tpot };
        Promise::of(
            record,
            &reference,
            &Terms { limits, guarded: Some(LIMITS), max_slowdown_percent: percent },
        )
    }

    #[test]
    fn saving_is_held_against_the_fixed_clocks_and_only_where_that_saves() {
        let run = record(170.0, 0.6, 0.043, None);
        let share = of(&run, 160.0, None).share_of_fixed_saving.unwrap();
        approx::assert_relative_eq!(share, 0.15 / 0.2, max_relative = 1e-12);
        assert_eq!(of(&run, 197.0, None).share_of_fixed_saving, None, "1.5 % is nothing to share");
        let promise = of(&run, 160.0, None);
        approx::assert_relative_eq!(promise.ttft_increase_s.unwrap(), 0.1, max_relative = 1e-9);
        approx::assert_relative_eq!(promise.ttft_increase_percent.unwrap(), 20.0, max_relative = 1e-9);
        assert_eq!((promise.clock_changes_per_min, promise.clock_changes_per_min_last_half), (1.5, 1.0));
    }

    #[test]
    fn slowdown_counts_only_against_a_bound() {
        let run = record(170.0, 0.6, 0.0432, None);
        let within = |percent| of(&run, 160.0, percent).within_slowdown;
        assert_eq!([within(None), within(Some(7.0)), within(Some(9.0))], [None, Some(false), Some(true)]);
    }

    #[test]
    fn alarm_is_false_where_the_requests_of_its_window_kept_the_limit() {
        let alarm = |at, limit| Alarm { at: Time(at), limit };
        let alarms = vec![
            alarm(12.0, Limited::Tpot), // one request in flight, within the limit
            alarm(12.0, Limited::Ttft), // ... and over the other one
            alarm(70.0, Limited::Tpot), // nobody knows
        ];
        let promise = of(&record(170.0, 1.2, 0.04, Some(alarms)), 160.0, None);
        assert_eq!((promise.alarms, promise.false_alarms), (Some(3), Some(1)));
        let unguarded = of(&record(170.0, 1.2, 0.04, None), 160.0, None);
        assert_eq!((unguarded.alarms, unguarded.false_alarms), (None, None));
        approx::assert_relative_eq!(promise.share_over_limits_added, 1.0);
    }

    #[test]
    fn worst_load_has_the_smallest_mean_share_and_no_share_is_no_load() {
        let with = |share| {
            let promise = of(&record(170.0, 0.6, 0.043, None), 160.0, Some(10.0));
            Promise { share_of_fixed_saving: share, ..promise }
        };
        let runs = [with(Some(0.9)), with(Some(0.4)), with(None), with(Some(-0.2))];
        let loads = |a: usize, b: usize| vec![("a".into(), vec![&runs[a]]), ("b".into(), vec![&runs[b]])];
        let kept = Kept::of(&loads(0, 1));
        assert_eq!((kept.worst_load.as_deref(), kept.worst_load_share), (Some("b"), Some(0.4)));
        approx::assert_relative_eq!(kept.share_of_fixed_saving.unwrap(), 0.6, max_relative = 1e-12);
        assert_eq!(kept.within_slowdown, Some(1.0));
        assert_eq!(Kept::of(&loads(0, 2)).worst_load.as_deref(), Some("a"));
        approx::assert_relative_eq!(Kept::of(&loads(2, 3)).worst_load_share.unwrap(), 0.01);
    }
}
