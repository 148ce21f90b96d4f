//! A run in one pass over its rounds.

use std::collections::BTreeMap;

use serde::Serialize;

use super::sums::{ABSURD, Moments, Weighted};
use super::timeline::Timeline;
use crate::bandit::structured::{LogRatio, Ratios};
use crate::holdout::{InSlot, Savings, SavingsState, SlotWindow};
use crate::store::RoundRecord;
use crate::view::Estimate;

/// A pause between two rounds longer than this, in seconds and in windows, is a gap.
const GAP: (f64, f64) = (2.0, 5.0);
/// The command that leaves the clocks to the driver, as records have it.
const DEFAULT: &str = "driver default";
/// Gaps that are listed.
const GAPS_LISTED: usize = 50;
/// Clocks that are told apart: no card has more; a broken file may.
const MOST_CLOCKS: usize = 2000;

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct AtClock {
    /// Seconds at it.
    pub seconds: f64,
    /// `ln(EDP / EDP of default clocks under that load)` of its windows.
    #[serde(rename = "log_edp_ratio")]
    edp: LogEdp,
    /// Power, W.
    pub(crate) power_w: Weighted,
    /// Time per output token, s.
    pub(crate) tpot_s: Weighted,
}

/// EDP against default clocks with its 95 % interval: `0.9` is 10 % less.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Ratio {
    /// Geometric mean.
    pub mean: f64,
    /// Lower end: what the windows scatter, as if they were independent, and what is not known of default
    /// clocks.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
    /// Windows.
    pub windows: u64,
}

impl AtClock {
    /// EDP against default clocks, if any window says.
    pub(crate) fn edp_ratio(&self) -> Option<Ratio> {
        self.edp.ratio()
    }
}

/// What is known of `ln(EDP / EDP of default clocks)`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct LogEdp {
    log_ratio: Moments,
    /// Standard deviation of what is known of default clocks there.
    sd: Weighted,
}

impl LogEdp {
    fn ratio(&self) -> Option<Ratio> {
        let (mean, scatter) = (self.log_ratio.mean()?, self.log_ratio.standard_error());
        let error = scatter.map(|scatter| scatter.hypot(self.sd.mean().unwrap_or(0.0)));
        Some(Ratio {
            mean: mean.exp(),
            low: error.map(|error| (mean - 1.96 * error).exp()),
            high: error.map(|error| (mean + 1.96 * error).exp()),
            windows: self.log_ratio.count,
        })
    }
}

/// The window over default clocks, where that was known; a broken file may say anything.
pub(super) fn ratios(record: &RoundRecord) -> Option<Ratios> {
    let of = |ratio: Option<f64>, sd: Option<f64>| Some(LogRatio { log: ratio?.ln(), sd: sd? });
    let energy = of(record.energy_ratio, record.energy_ratio_sd)?;
    let time = of(record.tpot_ratio, record.tpot_ratio_sd)?;
    let usable = |ratio: &LogRatio| ratio.is_sound() && ratio.log.abs() < FARTHEST && ratio.sd < FARTHEST;
    (usable(&energy) && usable(&time)).then_some(Ratios { energy, time })
}

/// No clock is e to this many times as good or as bad as default clocks.
const FARTHEST: f64 = 10.0;

impl Serialize for LogEdp {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.ratio().serialize(to)
    }
}

/// A time without rounds: an outage, a pause, a machine that slept.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Gap {
    /// Begin, Unix seconds.
    pub(crate) start_unix_s: f64,
    /// Its length.
    pub seconds: f64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Digest {
    /// Rounds read.
    pub rounds: u64,
    pub(crate) first_round: u64,
    pub(crate) bad_lines: u64,
    /// Of these, cut off at the end of a file: what a crash or a writer at work leaves behind.
    pub(crate) torn_lines: u64,
    /// Seconds of windows.
    pub seconds: f64,
    /// Energy measured, joules.
    pub energy_j: f64,
    /// Prompt tokens.
    pub prompt_tokens: f64,
    /// Generated tokens.
    pub generated_tokens: f64,
    /// Requests finished.
    pub finished: f64,
    /// Time to first token, mean over windows.
    pub(crate) ttft_s: Weighted,
    /// Time per output token, mean over tokens.
    pub(crate) tpot_s: Weighted,
    /// The latest limit on the time to first token, s.
    pub(crate) ttft_limit_s: Option<f64>,
    /// The latest limit on the time per output token, s.
    pub(crate) tpot_limit_s: Option<f64>,
    /// Seconds in which limits were watched.
    pub(crate) watched_s: f64,
    /// Seconds in which one was broken.
    pub(crate) violated_s: f64,
    /// Seconds by state of the loop.
    pub(crate) state_s: BTreeMap<String, f64>,
    /// Decisions by reason.
    pub decisions: BTreeMap<String, u64>,
    /// Changes of the command from one round to the next.
    pub(crate) command_changes: u64,
    /// What was seen at each lock; key in MHz of the core clock.
    pub locks: BTreeMap<u32, AtClock>,
    /// The same at driver-default clocks.
    pub default_clocks: AtClock,
    /// Seconds in which the clocks changed, or it is not known what ran.
    pub mixed_s: f64,
    /// What default clocks would have cost, as far as that was known.
    pub estimate: Estimate,
    /// Times without rounds, the first fifty of them.
    pub gaps: Vec<Gap>,
    /// How many there were.
    pub(crate) gap_count: u64,
    /// The run over time.
    pub timeline: Timeline,
    /// What the holdout experiment has shown.
    pub savings: SavingsState,
    #[serde(skip)]
    books: Savings,
    #[serde(skip)]
    last: Option<(f64, Option<String>)>,
}

impl Digest {
    /// Takes a round in. A value that no window can have counts as unknown.
    pub(crate) fn push(&mut self, record: &RoundRecord) {
        let seconds = record.window_s.map_or(0.0, |seconds| seconds.0);
        let seconds = if (0.0..ABSURD).contains(&seconds) { seconds } else { 0.0 };
        let sound = |value: Option<f64>| value.filter(|value| (0.0..ABSURD).contains(value));
        if self.rounds == 0 {
            self.first_round = record.round;
        }
        self.rounds += 1;
        self.seconds += seconds;
        self.energy_j += sound(record.energy_j).unwrap_or(0.0);
        let generated = sound(record.decode_throughput_tps).unwrap_or(0.0) * seconds;
        self.prompt_tokens += sound(record.prefill_throughput_tps).unwrap_or(0.0) * seconds;
        self.generated_tokens += generated;
        self.finished += sound(record.completed_requests_delta).unwrap_or(0.0);
        self.ttft_s.push(sound(record.ttft_avg), 1.0);
        self.tpot_s.push(sound(record.tpot_avg), generated);
        self.ttft_limit_s = sound(record.ttft_limit).or(self.ttft_limit_s);
        self.tpot_limit_s = sound(record.tpot_limit).or(self.tpot_limit_s);
        if let Some(violated) = record.slo_violation {
            self.watched_s += seconds;
            self.violated_s += if violated { seconds } else { 0.0 };
        }
        let state = record.state.as_deref().or(record.learning_phase.as_deref()).unwrap_or("unknown");
        count(&mut self.state_s, state, seconds);
        if let Some(reason) = &record.decision_reason {
            count(&mut self.decisions, reason, 1);
        }
        self.at_clock(record, seconds);
        self.compare(record, seconds, generated);
        self.experiment(record, seconds, generated);
        self.gap(record, seconds);
        self.timeline.push(record, seconds);
    }

    pub(crate) fn bad_line(&mut self, torn: bool) {
        self.bad_lines += 1;
        self.torn_lines += u64::from(torn);
    }

    fn at_clock(&mut self, record: &RoundRecord, seconds: f64) {
        // Only a window that ran at one lock says how often that was tried before.
        let unlocked = self.last.as_ref().is_none_or(|(_, command)| command.as_deref() == Some(DEFAULT));
        let locked = record.frequency_exploration_count.and(record.gpu_frequency_mhz);
        let known = self.locks.len() < MOST_CLOCKS;
        let at = match locked {
            Some(clock) if known || self.locks.contains_key(&clock.0) => {
                self.locks.entry(clock.0).or_default()
            }
            None if unlocked => &mut self.default_clocks,
            _ => {
                self.mixed_s += seconds;
                return;
            }
        };
        at.seconds += seconds;
        at.power_w.push(record.power_w.map(|power| power.0), seconds);
        at.tpot_s.push(record.tpot_avg, seconds);
        if let Some(Ratios { energy, time }) = ratios(record) {
            at.edp.log_ratio.push(energy.log + time.log);
            at.edp.sd.push(Some(energy.sd.hypot(time.sd)), 1.0);
        }
    }

    fn compare(&mut self, record: &RoundRecord, seconds: f64, generated: f64) {
        let sound = |value: &f64| (0.0..ABSURD).contains(value);
        let Some(power) = record.power_w.map(|power| power.0).filter(sound) else { return };
        let token_time = record.tpot_avg.filter(sound).map_or(0.0, |tpot| tpot * generated);
        let ratios = ratios(record);
        // Of a window in which the clock changed or the GPU was parked, nothing is compared, and nothing is
        // missed.
        let locked = record.frequency_exploration_count.is_some();
        if locked || ratios.is_some() {
            self.estimate.add(locked, seconds, power, token_time, ratios.as_ref());
        }
    }

    fn experiment(&mut self, record: &RoundRecord, seconds: f64, generated_tokens: f64) {
        let (Some(cycle), Some(slot), Some(held)) =
            (record.holdout_cycle, record.holdout_slot, record.holdout)
        else {
            return;
        };
        let sound = |value: Option<f64>| value.filter(|value| (0.0..ABSURD).contains(value));
        let pair = |mean: Option<f64>, samples: Option<f64>| {
            let (mean, samples) = (sound(mean)?, sound(samples)?);
            Some((mean * samples, samples))
        };
        let window = SlotWindow {
            seconds,
            energy_j: sound(record.energy_j),
            prompt_tokens: sound(record.prefill_throughput_tps).unwrap_or(0.0) * seconds,
            generated_tokens,
            tpot: pair(record.tpot_avg, record.tpot_samples.or(Some(generated_tokens))),
            ttft: pair(record.ttft_avg, record.ttft_samples),
        };
        self.books.push(InSlot { cycle, slot, held }, &window, record.timestamp);
        self.savings.clone_from(self.books.state());
    }

    /// The last round was taken in.
    pub(crate) fn end(&mut self) {
        let at = self.last.as_ref().map_or(0.0, |(at, _)| *at);
        self.books.close(at);
        self.savings.clone_from(self.books.state());
    }

    fn gap(&mut self, record: &RoundRecord, seconds: f64) {
        if let Some((end, command)) = &self.last {
            let away = record.timestamp - seconds - end;
            if away > GAP.0.max(GAP.1 * seconds) && away.is_finite() {
                self.gap_count += 1;
                if self.gaps.len() < GAPS_LISTED {
                    self.gaps.push(Gap { start_unix_s: *end, seconds: away });
                }
            }
            self.command_changes += u64::from(*command != record.command);
        }
        self.last = Some((record.timestamp, record.command.clone()));
    }

    /// Mean power, W.
    pub(crate) fn power_w(&self) -> Option<f64> {
        let mut power = Weighted::default();
        self.timeline.bins.iter().for_each(|bin| power.add(bin.power_w));
        power.mean()
    }

    /// Joules per generated token.
    pub(crate) fn joules_per_token(&self) -> Option<f64> {
        (self.generated_tokens > 0.0 && self.energy_j > 0.0).then(|| self.energy_j / self.generated_tokens)
    }

    /// Share of the watched time in which no limit was broken.
    pub(crate) fn limits_kept(&self) -> Option<f64> {
        (self.watched_s > 0.0).then(|| 1.0 - self.violated_s / self.watched_s)
    }
}

/// Counts under a word of the record; a broken file may have any number of words.
fn count<V: std::ops::AddAssign + Default>(map: &mut BTreeMap<String, V>, word: &str, value: V) {
    const MOST_WORDS: usize = 64;
    if let Some(known) = map.get_mut(word) {
        *known += value;
    } else {
        let word = if map.len() < MOST_WORDS { word.chars().take(64).collect() } else { "other".to_owned() };
        *map.entry(word).or_default() += value;
    }
}
