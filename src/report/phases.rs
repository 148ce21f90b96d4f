//! Stretches of similar load, found in the timeline.

use serde::Serialize;

use super::timeline::{Bin, Timeline};

/// A stretch of similar load.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Phase {
    /// Begin, seconds since the start of the run.
    pub(crate) start_s: f64,
    /// End.
    pub end_s: f64,
    /// What it was like.
    #[serde(flatten)]
    pub mean: Bin,
}

/// Tokens per second further apart than this factor are another load.
const APART: f64 = 1.6;
/// Below this many tokens per second there is no load.
const NOTHING: f64 = 1.0;
/// A load lasts at least so many bins, and so many seconds.
const SHORTEST: (usize, f64) = (3, 15.0);
/// Phases at most; of the rest, the shortest are joined to what came before them.
const MOST: usize = 24;

fn tokens(bin: &Bin) -> f64 {
    bin.prefill_tps.mean().unwrap_or(0.0) + bin.decode_tps.mean().unwrap_or(0.0)
}

fn alike(a: f64, b: f64) -> bool {
    let (low, high) = (a.min(b), a.max(b));
    high < NOTHING || (low >= NOTHING && high <= APART * low)
}

/// The phases, without gaps.
pub(super) fn phases(timeline: &Timeline) -> Vec<Phase> {
    let mut found: Vec<Phase> = Vec::new();
    let half = 0.5 * timeline.width_s;
    for (at, bin) in timeline.points() {
        let next = Phase { start_s: at - half, end_s: at + half, mean: *bin };
        match found.last_mut() {
            Some(last) if alike(tokens(&last.mean), tokens(bin)) || bin.seconds <= 0.0 => join(last, &next),
            _ => found.push(next),
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a handful of bins")]
    let shortest = SHORTEST.1.max(SHORTEST.0 as f64 * timeline.width_s);
    loop {
        let victim = (0..found.len()).min_by(|a, b| length(&found[*a]).total_cmp(&length(&found[*b])));
        let Some(victim) = victim.filter(|_| found.len() > 1) else { return found };
        if length(&found[victim]) >= shortest && found.len() <= MOST {
            return found;
        }
        merge(&mut found, victim);
    }
}

fn length(phase: &Phase) -> f64 {
    phase.end_s - phase.start_s
}

fn join(into: &mut Phase, next: &Phase) {
    into.end_s = next.end_s;
    into.mean.add(&next.mean);
}

/// Joins a phase with the neighbour that is more like it, and that one with its own other neighbour if they are alike now.
fn merge(found: &mut Vec<Phase>, victim: usize) {
    let far = |at: Option<usize>| {
        let other = at.and_then(|at| found.get(at));
        other.map_or(f64::INFINITY, |other| {
            (tokens(&other.mean).ln_1p() - tokens(&found[victim].mean).ln_1p()).abs()
        })
    };
    let before = far(victim.checked_sub(1));
    let first = if before <= far(Some(victim + 1)) { victim - 1 } else { victim };
    let second = found.remove(first + 1);
    join(&mut found[first], &second);
    for at in [first + 1, first] {
        let Some(before) = at.checked_sub(1) else { continue };
        if at < found.len() && alike(tokens(&found[before].mean), tokens(&found[at].mean)) {
            let second = found.remove(at);
            join(&mut found[before], &second);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::RoundRecord;

    fn timeline(loads: &[(u32, f64)]) -> Timeline {
        let mut timeline = Timeline::default();
        let mut at = 0.0;
        for (seconds, tps) in loads {
            for _ in 0..*seconds {
                at += 1.0;
                let mut record = RoundRecord::new(1, jiff::Timestamp::UNIX_EPOCH);
                record.timestamp = at;
                record.decode_throughput_tps = Some(*tps);
                timeline.push(&record, 1.0);
            }
        }
        timeline
    }

    #[test]
    fn each_load_is_one_phase_and_a_hiccup_is_none() {
        let found = phases(&timeline(&[(60, 100.0), (4, 500.0), (60, 110.0), (40, 0.0), (50, 1000.0)]));
        let spans: Vec<(f64, f64)> = found.iter().map(|phase| (phase.start_s, phase.end_s)).collect();
        assert_eq!(spans, [(0.0, 124.0), (124.0, 164.0), (164.0, 214.0)]);
    }

    #[test]
    fn many_changes_make_few_phases_without_gaps() {
        let loads: Vec<(u32, f64)> = (0..35).map(|k| (20, if k % 2 == 0 { 10.0 } else { 1000.0 })).collect();
        let found = phases(&timeline(&loads));
        assert!((1..=MOST).contains(&found.len()));
        assert!(found.windows(2).all(|pair| (pair[0].end_s - pair[1].start_s).abs() < 1e-9));
    }
}
