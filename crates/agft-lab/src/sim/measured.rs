//! What one engine step costs by measured points alone: no roofline and no f V(f)^2 between the clocks.
//!
//! A sweep of a board at one activity (decode with few or many sequences, prefill) gives time per token and
//! board power at some core clocks. Between two measured clocks both are straight in the logarithms; the
//! offered clocks lie within all sweeps of the board, so that nothing is said beyond them. A step costs
//!
//! ```text
//! t = T_prefill r_prefill(f) + T_decode r_decode(f)     P = mean of P_prefill(f) and P_decode(f) by time
//! ```
//!
//! with r(f) the measured time over the measured time at the highest clock, P(f) the measured watts, and T
//! the time at the highest clock, which follows from the size of model and batch as in [`super::physics`].
//! The engine's host time is in the measured times, so it is part of T and has no power of its own.
//!
//! Not every board has every sweep. `tables` borrows what is missing from another board; docs/simulate.md
//! tells of each what is measured and what is assumed.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::calibration::{Point, sweeps};
use super::physics::{StepCost, Work};
use agft::units::{Clocks, Mhz};

/// A board whose sweeps are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sweeps {
    /// GeForce RTX 3090.
    Rtx3090,
    /// GeForce RTX 4090.
    Rtx4090,
    /// GeForce RTX 5090.
    Rtx5090,
    /// RTX PRO 6000 Blackwell.
    RtxPro6000,
}

/// How far a board is from the measured one: what the held-out suite shifts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tilt {
    /// Exponent on the relative time of prefill.
    pub prefill: f64,
    /// Exponent on the relative time of decode.
    pub decode: f64,
    /// Exponent on the power relative to that at the highest clock.
    pub power: f64,
    /// Factor on all power.
    pub watts: f64,
}

impl Tilt {
    /// The measured board itself.
    pub const NONE: Self = Self { prefill: 1.0, decode: 1.0, power: 1.0, watts: 1.0 };
}

/// The physics of a measured board.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Whose points.
    pub sweeps: Sweeps,
    /// How they are shifted.
    pub tilt: Tilt,
}

impl Measured {
    /// The board as it was measured.
    #[must_use]
    pub const fn of(sweeps: Sweeps) -> Self {
        Self { sweeps, tilt: Tilt::NONE }
    }

    /// Time and power of a step whose parts take `prefill_s` and `decode_s` seconds at the highest clocks.
    #[must_use]
    pub(super) fn step(&self, work: &Work, clocks: Clocks, prefill_s: f64, decode_s: f64) -> StepCost {
        let table = self.sweeps.table();
        let gpu_s = (prefill_s + decode_s).max(f64::MIN_POSITIVE);
        let with_host = 1.0 + work.host / gpu_s;
        let (mut seconds, mut joules) = (0.0, 0.0);
        for (part_s, activity, exponent) in [
            (prefill_s, Activity::Prefill, self.tilt.prefill),
            (decode_s, Activity::Decode(work.decode_seqs), self.tilt.decode),
        ] {
            if part_s > 0.0 {
                let (here, top) = (table.at(activity, clocks), table.at(activity, table.fastest()));
                let time = part_s * with_host * (exponent * (here.time - top.time)).exp();
                let watts = self.tilt.watts * (top.watts + self.tilt.power * (here.watts - top.watts)).exp();
                seconds += time;
                joules += watts * time;
            }
        }
        StepCost { seconds, watts: joules / seconds.max(f64::MIN_POSITIVE) }
    }
}

/// What the board does.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Activity {
    Prefill,
    /// With so many sequences.
    Decode(f64),
}

/// Logarithms of a core clock in MHz, of the time per token in seconds and of the board power in watts.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Knot {
    clock: f64,
    time: f64,
    watts: f64,
}

impl Knot {
    /// `share` of the way from one to the other.
    fn between(a: Self, b: Self, share: f64) -> Self {
        let mix = |a: f64, b: f64| a + share * (b - a);
        Self { clock: mix(a.clock, b.clock), time: mix(a.time, b.time), watts: mix(a.watts, b.watts) }
    }
}

/// One activity against the core clock, ascending, each clock once.
#[derive(Debug, Clone, PartialEq, Default)]
struct Curve(Vec<Knot>);

impl Curve {
    /// Through these points, in any order; of those at the same clock the mean.
    #[expect(clippy::cast_precision_loss, reason = "a few points")]
    fn through(mut knots: Vec<Knot>) -> Self {
        knots.sort_by(|a, b| a.clock.total_cmp(&b.clock));
        let mean = |same: &[Knot]| {
            let of = |pick: fn(&Knot) -> f64| same.iter().map(pick).sum::<f64>() / same.len() as f64;
            Knot { clock: of(|k| k.clock), time: of(|k| k.time), watts: of(|k| k.watts) }
        };
        Self(knots.chunk_by(|a, b| (a.clock - b.clock).abs() < 1e-9).map(mean).collect())
    }

    fn first(&self) -> Knot {
        self.0.first().copied().unwrap_or_default()
    }

    fn last(&self) -> Knot {
        self.0.last().copied().unwrap_or_default()
    }

    /// Straight between the knots, level beyond them.
    fn at(&self, clock: f64) -> Knot {
        let after = self.0.partition_point(|knot| knot.clock < clock);
        match (after.checked_sub(1).and_then(|before| self.0.get(before)), self.0.get(after)) {
            (Some(a), Some(b)) => Knot::between(*a, *b, (clock - a.clock) / (b.clock - a.clock)),
            (Some(only), None) | (None, Some(only)) => *only,
            (None, None) => Knot::default(),
        }
    }

    /// The clock at which the board draws this much, as far as power rises towards the highest clock.
    fn clock_at(&self, watts: f64) -> f64 {
        let mut rising: Vec<(f64, f64)> = Vec::new();
        for knot in self.0.iter().filter(|knot| knot.watts <= self.last().watts) {
            if rising.last().is_none_or(|(highest, _)| knot.watts > *highest) {
                rising.push((knot.watts, knot.clock));
            }
        }
        let after = rising.partition_point(|(drawn, _)| *drawn < watts);
        match (after.checked_sub(1).and_then(|before| rising.get(before)), rising.get(after)) {
            (Some(a), Some(b)) => a.1 + (b.1 - a.1) * (watts - a.0) / (b.0 - a.0),
            (Some(only), None) | (None, Some(only)) => only.1,
            (None, None) => 0.0,
        }
    }

    /// The same curve moved so that its highest clock lies at this knot.
    fn moved_to(&self, top: Knot) -> Self {
        let own = self.last();
        let moved = self.0.iter().map(|knot| Knot {
            clock: knot.clock + top.clock - own.clock,
            time: knot.time + top.time - own.time,
            watts: knot.watts + top.watts - own.watts,
        });
        Self(moved.collect())
    }

    /// Goes on below its lowest clock as `like` does there.
    fn continued(mut self, like: &Self) -> Self {
        let lowest = self.first();
        let there = like.at(lowest.clock);
        let below = like.0.iter().filter(|knot| knot.clock < lowest.clock - 1e-9).map(|knot| Knot {
            clock: knot.clock,
            time: knot.time + lowest.time - there.time,
            watts: knot.watts + lowest.watts - there.watts,
        });
        let mut knots: Vec<Knot> = below.collect();
        knots.append(&mut self.0);
        Self(knots)
    }
}

/// A board's curves at one memory clock.
#[derive(Debug, Clone, PartialEq)]
struct Level {
    memory: Option<Mhz>,
    prefill: Curve,
    few: Curve,
    many: Curve,
}

/// A board's curves.
#[derive(Debug, Clone, PartialEq)]
struct Table {
    /// The highest clock that is offered.
    top: Mhz,
    /// Sequences at which `Level::many` was measured; `few` is one.
    many: f64,
    /// Highest memory clock first.
    levels: Vec<Level>,
}

impl Table {
    fn fastest(&self) -> Clocks {
        Clocks { core: self.top, memory: self.levels.first().and_then(|level| level.memory) }
    }

    /// Time and power at these clocks; between few and many sequences, straight in the logarithm of their
    /// number.
    fn at(&self, activity: Activity, clocks: Clocks) -> Knot {
        let own = self.levels.iter().find(|level| level.memory.is_some() && level.memory == clocks.memory);
        let Some(level) = own.or(self.levels.first()) else { return Knot::default() };
        let clock = clocks.core.as_f64().ln();
        match activity {
            Activity::Prefill => level.prefill.at(clock),
            Activity::Decode(seqs) => {
                let share = (seqs.max(1.0).ln() / self.many.ln()).clamp(0.0, 1.0);
                Knot::between(level.few.at(clock), level.many.at(clock), share)
            }
        }
    }
}

/// Read once; a test holds that they are whole.
static TABLES: LazyLock<[Table; 4]> = LazyLock::new(tables);

impl Sweeps {
    fn table(self) -> &'static Table {
        &TABLES[self as usize]
    }
}

/// Where a sweep is found in the file: board, workload, engine, model.
type Key = [&'static str; 4];

const LLAMA_27B: &str = "Qwen3.6-27B Q3_K_XL";
const VLLM_27B: &str = "Dense Qwen3.6-27B-AWQ-INT4";
const GEMMA: &str = "Gemma-4-31B AutoRound";
// Dense models only, as the simulated ones are.
const PREFILL_3090: Key = ["rtx3090", "prefill", "llama.cpp", LLAMA_27B];
const DECODE_3090: Key = ["rtx3090", "decode-single", "llama.cpp", LLAMA_27B];
const SINGLE_4090: Key = ["rtx4090", "decode-single", "llama.cpp", LLAMA_27B];
const FOUR_4090: Key = ["rtx4090", "decode-concurrent-4", "llama.cpp", LLAMA_27B];
const PREFILL_5090: Key = ["rtx5090", "prefill", "", "Qwen3.6"];
const SIX_5090: Key = ["rtx5090", "decode-concurrent-6", "vLLM-MTP-K3", GEMMA];
const SINGLE_PRO: Key = ["rtxpro6000", "decode-single", "vLLM", VLLM_27B];
const BATCH_PRO: Key = ["rtxpro6000", "decode-batch-32", "vLLM", VLLM_27B];

/// Highest clocks offered: the highest one that all of the board's sweeps reach; the RTX 4090's is where its
/// cap sweep ends.
pub(super) const TOP_3090: Mhz = Mhz(1680);
pub(super) const TOP_4090: Mhz = Mhz(2610);
pub(super) const TOP_5090: Mhz = Mhz(3090);
pub(super) const TOP_PRO_6000: Mhz = Mhz(2693);
/// Memory clocks with a whole sweep over the core clocks.
pub(super) const MEMORY_5090: [Mhz; 2] = [Mhz(14001), Mhz(7001)];

/// A measured point that falls short of its cap by more than this share was not bound by it.
const UNBOUND: f64 = 0.01;

/// Every measured point by its sweep.
struct Points(BTreeMap<[String; 4], Vec<Point>>);

impl Points {
    fn of(&self, key: Key) -> impl Iterator<Item = &Point> {
        self.0.get(&key.map(str::to_owned)).into_iter().flatten()
    }

    /// A sweep whose clocks are known.
    fn curve(&self, key: Key, memory: Option<Mhz>) -> Curve {
        let points = self.of(key).filter(|point| memory.is_none() || point.memory == memory);
        Curve::through(points.filter_map(|point| Some(knot(point, point.core?.as_f64().ln()))).collect())
    }

    /// A sweep over power caps whose clocks are not known: where no cap binds the board runs at `top`, and
    /// elsewhere at the clock at which the board of `like` draws the same share of its highest power.
    fn labelled(&self, key: Key, like: &Curve, top: Mhz) -> Curve {
        let binds = |point: &Point| point.cap.is_some_and(|cap| point.watts > (1.0 - UNBOUND) * cap.0);
        let top = top.as_f64().ln();
        let open: Vec<Knot> =
            self.of(key).filter(|point| !binds(point)).map(|point| knot(point, top)).collect();
        // Without an open point the highest cap is taken for one.
        let highest = self.of(key).max_by(|a, b| a.watts.total_cmp(&b.watts)).map(|point| knot(point, top));
        let open = Curve::through(if open.is_empty() { highest.into_iter().collect() } else { open });
        let highest_watts = open.last().watts;
        let label = |point: &Point| {
            let drawn = point.watts.ln() - highest_watts;
            knot(point, top + like.clock_at(like.last().watts + drawn) - like.last().clock)
        };
        let bound = self.of(key).filter(|point| binds(point)).map(label);
        Curve::through(bound.filter(|knot| knot.clock < top - 1e-9).chain(open.0).collect())
    }
}

fn knot(point: &Point, clock: f64) -> Knot {
    Knot { clock, time: -point.tokens_per_second.ln(), watts: point.watts.ln() }
}

fn tables() -> [Table; 4] {
    let points = Points(sweeps());
    let prefill = points.curve(PREFILL_3090, None);
    // The RTX 3090's prefill on a board with this top clock and this decode power there.
    let borrowed = |top: Mhz, decode: &Curve| {
        let clock = top.as_f64().ln();
        prefill.moved_to(Knot { clock, watts: decode.at(clock).watts, ..prefill.last() })
    };
    let one_level = |prefill, few, many| vec![Level { memory: None, prefill, few, many }];

    let decode_3090 = points.curve(DECODE_3090, None);
    let single_pro = points.curve(SINGLE_PRO, None);
    let batch_pro = points.curve(BATCH_PRO, None);
    let single_4090 = points.labelled(SINGLE_4090, &single_pro, TOP_4090);
    let four_4090 = points.labelled(FOUR_4090, &single_pro, TOP_4090);
    let prefill_5090 = points.labelled(PREFILL_5090, &prefill, TOP_5090);
    let prefill_5090 = {
        let like = prefill.moved_to(prefill_5090.last());
        prefill_5090.continued(&like)
    };
    let [highest, _] = MEMORY_5090;
    let six_5090 = points.curve(SIX_5090, Some(highest));
    let levels_5090 = MEMORY_5090.map(|memory| {
        let decode = points.curve(SIX_5090, Some(memory));
        // Prefill is measured at one memory clock: elsewhere as fast, its power less by what decode's is.
        let shifted = prefill_5090.0.iter().map(|knot| {
            let less = decode.at(knot.clock).watts - six_5090.at(knot.clock).watts;
            Knot { watts: knot.watts + less, ..*knot }
        });
        Level { memory: Some(memory), prefill: Curve(shifted.collect()), few: decode.clone(), many: decode }
    });
    [
        Table {
            top: TOP_3090,
            many: 2.0,
            levels: one_level(prefill.clone(), decode_3090.clone(), decode_3090),
        },
        Table {
            top: TOP_4090,
            many: 4.0,
            levels: one_level(borrowed(TOP_4090, &four_4090), single_4090, four_4090),
        },
        Table { top: TOP_5090, many: 6.0, levels: levels_5090.into() },
        Table {
            top: TOP_PRO_6000,
            many: 32.0,
            levels: one_level(borrowed(TOP_PRO_6000, &batch_pro), single_pro, batch_pro),
        },
    ]
}

#[cfg(test)]
#[path = "measured/tests.rs"]
mod tests;
