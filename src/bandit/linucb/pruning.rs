//! Which clocks are out, since when and why, and which of them is on trial to come back.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::bandit::PrunedArm;
use crate::bandit::prune::Cause;
use crate::units::Clocks;

/// Records kept; the oldest go first.
const RECORDS: usize = 64;
/// Rounds after which a clock that was given up is tried again. Doubles each time it is given up again.
const RETRIAL_AFTER: u64 = 1000;
/// Doublings at most.
const DOUBLINGS: u32 = 6;

/// One clock that was given up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct PruneRecord {
    /// Round in which it was.
    pub round: u64,
    /// The clocks.
    pub clocks: Clocks,
    /// Lessons learned at them until then.
    pub lessons: u64,
    /// Mean reward over the latest of these; `None` if there were none.
    pub mean_reward: Option<f64>,
    /// Why.
    pub cause: Cause,
    /// Round in which they came back, if they did.
    pub returned: Option<u64>,
}

/// A clock that is out, or was once.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Entry {
    /// Round since which it is out.
    since: u64,
    /// How often it was given up.
    times: u32,
    out: bool,
}

/// A clock brought back to be measured anew.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Trial {
    pub(super) clocks: Clocks,
    /// How often it was chosen so far.
    pub(super) picks: usize,
}

/// The state of pruning.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Pruning {
    entries: BTreeMap<Clocks, Entry>,
    /// Oldest first.
    records: VecDeque<PruneRecord>,
    /// Round of the last comparison by cost.
    pub(super) last_check: Option<u64>,
    pub(super) trial: Option<Trial>,
    /// Clocks given up for what was measured at them, ever.
    pub(super) direct: u64,
    /// Clocks given up with others, ever.
    pub(super) cascaded: u64,
}

impl Pruning {
    pub(super) fn is_out(&self, clocks: Clocks) -> bool {
        self.entries.get(&clocks).is_some_and(|entry| entry.out)
    }

    /// The clocks that are out, highest first.
    pub(super) fn out(&self) -> impl Iterator<Item = PrunedArm> + '_ {
        self.entries.iter().rev().filter(|(_, entry)| entry.out).map(|(&clocks, entry)| {
            let record = self.records.iter().rev().find(|record| record.clocks == clocks);
            PrunedArm { clocks, round: entry.since, cause: record.map(|record| record.cause) }
        })
    }

    /// Latest events, oldest first.
    #[cfg(test)]
    pub(super) fn records(&self) -> impl Iterator<Item = &PruneRecord> {
        self.records.iter()
    }

    pub(super) fn give_up(&mut self, record: PruneRecord) {
        match record.cause {
            Cause::Extreme { .. } | Cause::Cost { .. } => self.direct += 1,
            Cause::Cascade { .. } | Cause::Descent { .. } => self.cascaded += 1,
        }
        let times = self.entries.get(&record.clocks).map_or(0, |entry| entry.times);
        let entry = Entry { since: record.round, times: times.saturating_add(1), out: true };
        self.entries.insert(record.clocks, entry);
        self.records.push_back(record);
        if self.records.len() > RECORDS {
            self.records.pop_front();
        }
    }

    /// The clocks among `candidates` whose time has come; of several the nearest to `best`.
    pub(super) fn due(&self, candidates: &[Clocks], best: Clocks, round: u64) -> Option<Clocks> {
        let is_due = |clocks: &Clocks| {
            self.entries.get(clocks).is_some_and(|entry| {
                let wait = RETRIAL_AFTER << entry.times.saturating_sub(1).min(DOUBLINGS);
                entry.out && round.saturating_sub(entry.since) >= wait
            })
        };
        let distance = |clocks: &Clocks| {
            let memory = |clocks: &Clocks| clocks.memory.map_or(0, |memory| memory.0);
            (clocks.core.abs_diff(best.core), memory(clocks).abs_diff(memory(&best)))
        };
        candidates.iter().copied().filter(is_due).min_by_key(distance)
    }

    /// Puts a clock on trial.
    pub(super) fn try_again(&mut self, clocks: Clocks, round: u64) {
        if let Some(entry) = self.entries.get_mut(&clocks) {
            entry.out = false;
        }
        self.note_return(clocks, round);
        self.trial = Some(Trial { clocks, picks: 0 });
    }

    /// Ends a trial that came to nothing: the clock waits once more.
    pub(super) fn postpone(&mut self, clocks: Clocks, round: u64) {
        self.trial = None;
        if let Some(entry) = self.entries.get_mut(&clocks) {
            *entry = Entry { since: round, out: true, ..*entry };
        }
    }

    /// Everything changed: all clocks come back.
    pub(super) fn pardon(&mut self, round: u64) {
        let back: Vec<Clocks> = self.out().map(|arm| arm.clocks).collect();
        for clocks in back {
            self.note_return(clocks, round);
        }
        self.entries.clear();
        self.trial = None;
    }

    fn note_return(&mut self, clocks: Clocks, round: u64) {
        if let Some(record) = self.records.iter_mut().rev().find(|record| record.clocks == clocks) {
            record.returned = Some(round);
        }
    }

    /// Is everything possible? A model file could say otherwise.
    pub(super) fn is_sound(&self, rounds: u64, arms: usize) -> bool {
        self.entries.len() <= arms
            && self.entries.values().all(|entry| entry.since <= rounds && entry.times > 0)
            && self.last_check.is_none_or(|round| round <= rounds)
            && self.direct.max(self.cascaded) <= rounds.saturating_mul(arms as u64)
            && self.records.len() <= RECORDS
            && self.records.iter().all(|record| {
                record.round <= rounds
                    && record.returned.is_none_or(|round| (record.round..=rounds).contains(&round))
                    && record.mean_reward.is_none_or(f64::is_finite)
                    && cause_is_sound(&record.cause)
            })
            && self.trial.is_none_or(|trial| self.entries.get(&trial.clocks).is_some_and(|entry| !entry.out))
    }
}

fn cause_is_sound(cause: &Cause) -> bool {
    match cause {
        Cause::Extreme { threshold } => threshold.is_finite(),
        Cause::Cost { gap, threshold, deviation, multiplier, .. } => {
            [gap, threshold, deviation, multiplier].into_iter().all(|value| value.is_finite())
        }
        Cause::Cascade { .. } | Cause::Descent { .. } => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Mhz;

    fn core(mhz: u32) -> Clocks {
        Clocks::core_only(Mhz(mhz))
    }

    fn record(mhz: u32, round: u64) -> PruneRecord {
        PruneRecord {
            round,
            clocks: core(mhz),
            lessons: 3,
            mean_reward: Some(-1.5),
            cause: Cause::Extreme { threshold: -1.2 },
            returned: None,
        }
    }

    #[test]
    fn clock_waits_twice_as_long_each_time_it_is_given_up() {
        let mut pruning = Pruning::default();
        pruning.give_up(record(300, 10));
        let due = |pruning: &Pruning, round| pruning.due(&[core(300)], core(900), round);
        assert_eq!(due(&pruning, 10 + RETRIAL_AFTER - 1), None);
        assert_eq!(due(&pruning, 10 + RETRIAL_AFTER), Some(core(300)));
        pruning.try_again(core(300), 2000);
        assert!(!pruning.is_out(core(300)));
        pruning.give_up(record(300, 2010));
        assert_eq!(due(&pruning, 2010 + 2 * RETRIAL_AFTER - 1), None);
        assert_eq!(due(&pruning, 2010 + 2 * RETRIAL_AFTER), Some(core(300)));
        let returned: Vec<_> = pruning.records().map(|record| record.returned).collect();
        assert_eq!(returned, [Some(2000), None]);
    }

    #[test]
    fn nearest_to_the_best_comes_back_first() {
        let mut pruning = Pruning::default();
        for mhz in [300, 600, 1400] {
            pruning.give_up(record(mhz, 0));
        }
        let out: Vec<Clocks> = pruning.out().map(|arm| arm.clocks).collect();
        assert_eq!(out, [1400, 600, 300].map(core));
        assert_eq!(pruning.due(&out, core(900), RETRIAL_AFTER), Some(core(600)));
        assert_eq!(pruning.due(&[core(300)], core(900), RETRIAL_AFTER), Some(core(300)));
    }

    #[test]
    fn records_are_bounded_and_a_pardon_brings_everything_back() {
        let mut pruning = Pruning::default();
        for round in 0..200 {
            pruning.give_up(record(300 + u32::try_from(round % 10).unwrap(), round));
        }
        assert_eq!((pruning.records().count(), pruning.direct), (RECORDS, 200));
        assert_eq!(pruning.out().count(), 10);
        pruning.pardon(200);
        assert_eq!(pruning.out().count(), 0);
        assert!(pruning.is_sound(200, 10));
    }
}
