//! The run over time, in at most [`MOST_BINS`] bins: when it gets too long for them, they get twice as wide.

use serde::Serialize;

use super::digest::ratios;
use super::sums::Weighted;
use crate::store::RoundRecord;

/// Bins at most: more would not be told apart on a page.
pub(crate) const MOST_BINS: usize = 720;
/// Width of the bins of a short run, seconds.
const NARROWEST: f64 = 1.0;

/// One stretch of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Bin {
    /// Seconds of windows in it.
    pub seconds: f64,
    /// Running core clock, MHz.
    pub(crate) clock_mhz: Weighted,
    /// Core clock asked for, MHz.
    pub(crate) asked_mhz: Weighted,
    /// Power, W.
    pub(crate) power_w: Weighted,
    /// Prompt tokens per second.
    pub(crate) prefill_tps: Weighted,
    /// Generated tokens per second.
    pub(crate) decode_tps: Weighted,
    pub(crate) running: Weighted,
    /// Time to first token, s.
    pub(crate) ttft_s: Weighted,
    /// Time per output token, s.
    pub(crate) tpot_s: Weighted,
    /// EDP over that of default clocks, where that is known.
    pub(crate) edp_ratio: Weighted,
    /// Clocks that could be chosen.
    pub(crate) arms: Weighted,
    /// Clocks that could not.
    pub(crate) arms_out: Weighted,
    /// Seconds with a broken limit.
    pub(crate) violated_s: f64,
}

impl Bin {
    fn push(&mut self, record: &RoundRecord, seconds: f64) {
        self.seconds += seconds;
        let clock = record.read_core_mhz.or(record.gpu_frequency_mhz);
        self.clock_mhz.push(clock.map(crate::units::Mhz::as_f64), seconds);
        self.asked_mhz.push(record.asked_core_mhz.map(crate::units::Mhz::as_f64), seconds);
        self.power_w.push(record.power_w.map(|power| power.0), seconds);
        self.prefill_tps.push(record.prefill_throughput_tps, seconds);
        self.decode_tps.push(record.decode_throughput_tps, seconds);
        self.running.push(record.active_requests, seconds);
        self.ttft_s.push(record.ttft_avg, 1.0);
        self.tpot_s.push(record.tpot_avg, record.decode_throughput_tps.unwrap_or(0.0) * seconds);
        let ratio = ratios(record).map(|of| (of.energy.log + of.time.log).exp());
        self.edp_ratio.push(ratio, seconds);
        self.arms.push(record.available_frequencies_count.map(number), seconds);
        self.arms_out.push(record.pruned_frequencies_count.map(number), seconds);
        if record.slo_violation == Some(true) {
            self.violated_s += seconds;
        }
    }

    /// Takes what another bin has.
    pub(crate) fn add(&mut self, other: &Self) {
        self.seconds += other.seconds;
        self.violated_s += other.violated_s;
        self.clock_mhz.add(other.clock_mhz);
        self.asked_mhz.add(other.asked_mhz);
        self.power_w.add(other.power_w);
        self.prefill_tps.add(other.prefill_tps);
        self.decode_tps.add(other.decode_tps);
        self.running.add(other.running);
        self.ttft_s.add(other.ttft_s);
        self.tpot_s.add(other.tpot_s);
        self.edp_ratio.add(other.edp_ratio);
        self.arms.add(other.arms);
        self.arms_out.add(other.arms_out);
    }
}

#[expect(clippy::cast_precision_loss, reason = "a count of clocks")]
fn number(count: u64) -> f64 {
    count as f64
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Timeline {
    /// Begin of the first bin, Unix seconds.
    pub(crate) start_unix_s: Option<f64>,
    /// Width of each bin, seconds.
    pub(crate) width_s: f64,
    /// The bins, without gaps; those without windows are empty.
    pub(crate) bins: Vec<Bin>,
}

impl Default for Timeline {
    fn default() -> Self {
        Self { start_unix_s: None, width_s: NARROWEST, bins: Vec::new() }
    }
}

impl Timeline {
    /// Takes a round whose window was so many seconds long. One from before the first is put into the first bin: clocks
    /// are set back sometimes.
    pub(crate) fn push(&mut self, record: &RoundRecord, seconds: f64) {
        let begin = record.timestamp - seconds;
        if !begin.is_finite() {
            return;
        }
        let start = *self.start_unix_s.get_or_insert(begin);
        let after = (begin - start).max(0.0);
        // A clock that jumps by years would double for ever; what lies beyond goes into the last bin.
        while after / self.width_s >= MOST_BINS_F64 && self.width_s < WIDEST {
            self.widen();
        }
        let index = self.index(after);
        if self.bins.len() <= index {
            self.bins.resize_with(index + 1, Bin::default);
        }
        self.bins[index].push(record, seconds);
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and MOST_BINS")]
    fn index(&self, after: f64) -> usize {
        (after / self.width_s).min(MOST_BINS_F64 - 1.0) as usize
    }

    fn widen(&mut self) {
        self.width_s *= 2.0;
        self.bins = self
            .bins
            .chunks(2)
            .map(|pair| {
                let mut joined = pair[0];
                if let Some(second) = pair.get(1) {
                    joined.add(second);
                }
                joined
            })
            .collect();
    }

    /// Middle of each bin in seconds since the start, and the bin.
    pub(crate) fn points(&self) -> impl Iterator<Item = (f64, &Bin)> {
        let mut at = -0.5 * self.width_s;
        self.bins.iter().map(move |bin| {
            at += self.width_s;
            (at, bin)
        })
    }

    /// Seconds from the start to the end of the last bin.
    #[expect(clippy::cast_precision_loss, reason = "at most MOST_BINS")]
    pub(crate) fn length_s(&self) -> f64 {
        self.bins.len() as f64 * self.width_s
    }
}

const MOST_BINS_F64: f64 = 720.0;
const _: () = assert!(MOST_BINS == 720);
/// Some years.
const WIDEST: f64 = 1e6;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(at: f64) -> RoundRecord {
        let mut record = RoundRecord::new(1, jiff::Timestamp::UNIX_EPOCH);
        record.timestamp = at;
        record.power_w = Some(crate::units::Watts(100.0));
        record
    }

    proptest! {
        #[test]
        fn no_window_is_lost_however_long_the_run(steps in prop::collection::vec(-100.0..20_000.0_f64, 1..400)) {
            let mut timeline = Timeline::default();
            let mut at = 1e9;
            for step in &steps {
                at += step;
                timeline.push(&record(at), 0.3);
            }
            prop_assert!(timeline.bins.len() <= MOST_BINS);
            let seconds: f64 = timeline.bins.iter().map(|bin| bin.seconds).sum();
            approx::assert_relative_eq!(seconds, 0.3 * steps.len() as f64, max_relative = 1e-9);
            let joules: f64 = timeline.bins.iter().map(|bin| bin.power_w.total()).sum();
            approx::assert_relative_eq!(joules, 30.0 * steps.len() as f64, max_relative = 1e-9);
        }
    }

    #[test]
    fn clock_that_jumps_or_is_none_is_no_end() {
        let mut timeline = Timeline::default();
        for at in [0.0, f64::NAN, 1e300, -1e300, f64::INFINITY] {
            timeline.push(&record(at), 0.3);
        }
        assert!(timeline.bins.len() <= MOST_BINS && timeline.width_s.is_finite());
    }
}
