//! The one list of signals: what agft reads from a page, whatever the engine.
//!
//! Every type with a place for each signal is made from the list at the end of this file, so that a new signal is one
//! line. The order is that of the recorded steps on disk: another line there is another format of theirs.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Histogram;
use crate::units::{Seconds, Time};

/// How several series of a signal (one per engine, API server, model or reason) become one value, and so do the pages
/// of several servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A count: added.
    Sum,
    /// A level: added. Series that differ only in `pid` are one engine's level as each front-end process last heard of
    /// it, 0 where it never did: the largest counts.
    Level,
    /// A share from 0 to 1: averaged, those that differ only in `pid` as with [`Kind::Level`]. Engines of one server
    /// have equal caches, so the plain mean is the share of all.
    Share,
    /// A point in time: the latest, so that a restart of any part shows.
    Instant,
    /// Sum, count and buckets: each added, buckets by their bound.
    Histogram,
}

impl Kind {
    /// The one value of several numbers; `None` of none.
    pub(crate) fn combine(self, numbers: &[f64]) -> Option<f64> {
        let sum: f64 = numbers.iter().sum();
        #[expect(clippy::cast_precision_loss, reason = "no more than 20000 series are let in")]
        let combined = match self {
            Self::Share => sum / numbers.len() as f64,
            Self::Instant => numbers.iter().copied().fold(0.0, f64::max),
            Self::Sum | Self::Level | Self::Histogram => sum,
        };
        (!numbers.is_empty()).then_some(combined)
    }
}

/// What a page or window has of one signal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value<'a> {
    /// Of a counter, gauge or instant.
    Number(Option<f64>),
    /// Of a histogram.
    Histogram(Option<&'a Histogram>),
}

/// The place of one signal.
#[derive(Debug)]
pub(crate) enum Slot<'a> {
    /// Of a counter, gauge or instant.
    Number(&'a mut Option<f64>),
    /// Of a histogram.
    Histogram(&'a mut Option<Histogram>),
}

impl Signals {
    /// Whether the page had this signal, readable.
    #[must_use]
    pub fn has(&self, signal: Signal) -> bool {
        !matches!(self.get(signal), Value::Number(None) | Value::Histogram(None))
    }

    /// The page of the same engine with nothing to do: the counts as they are, nothing running, waiting or cached.
    #[must_use]
    pub(crate) fn at_rest(mut self) -> Self {
        for signal in Signal::all().filter(|signal| matches!(signal.kind(), Kind::Level | Kind::Share)) {
            if let Slot::Number(Some(level)) = self.slot(signal) {
                *level = 0.0;
            }
        }
        self
    }

    /// Several servers as if they were one: combined by the rules for several series of one page ([`Kind`]). What one
    /// of them does not have is not known of all; of no servers nothing is known.
    #[must_use]
    pub fn sum(parts: &[&Self]) -> Self {
        let mut sum = Self::default();
        for signal in Signal::all() {
            let values = parts.iter().map(|part| part.get(signal));
            match sum.slot(signal) {
                Slot::Number(slot) => {
                    let numbers =
                        values.map(|value| if let Value::Number(number) = value { number } else { None });
                    *slot = numbers.collect::<Option<Vec<_>>>().and_then(|all| signal.kind().combine(&all));
                }
                Slot::Histogram(slot) => {
                    let all =
                        values.map(|value| if let Value::Histogram(found) = value { found } else { None });
                    *slot = all.collect::<Option<Vec<_>>>().and_then(Histogram::total);
                }
            }
        }
        sum
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.about().2)
    }
}

impl Signal {
    /// How its series are combined.
    #[must_use]
    pub fn kind(self) -> Kind {
        self.about().0
    }

    /// Whether agft can learn nothing without it: the load, what it yields and how long a token takes.
    #[must_use]
    pub fn is_essential(self) -> bool {
        self.about().1 == Need::Essential
    }
}

#[derive(PartialEq, Eq)]
enum Need {
    Essential,
    Useful,
}

macro_rules! signals {
    (
        gauges { $($(#[$g_doc:meta])+ $gauge:ident = $Gauge:ident: $g_kind:ident, $g_need:ident, $g_words:literal;)+ }
        counters { $($(#[$c_doc:meta])+ $count:ident = $Count:ident: $c_kind:ident, $c_need:ident, $c_words:literal;)+ }
        histograms { $($(#[$h_doc:meta])+ $hist:ident = $Hist:ident: $h_kind:ident, $h_need:ident, $h_words:literal;)+ }
        instant { $(#[$i_doc:meta])+ $instant:ident = $Instant:ident: $i_kind:ident, $i_need:ident, $i_words:literal; }
    ) => {
        /// One thing agft reads from the page; each is a field of [`Signals`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Signal {
            $($(#[$g_doc])+ $Gauge,)+
            $($(#[$c_doc])+ $Count,)+
            $($(#[$h_doc])+ $Hist,)+
            $(#[$i_doc])+ $Instant,
        }

        impl Signal {
            /// Every signal, in the order of [`Signals`].
            pub fn all() -> impl Iterator<Item = Self> {
                [$(Self::$Gauge,)+ $(Self::$Count,)+ $(Self::$Hist,)+ Self::$Instant].into_iter()
            }

            /// Its name in files: in the profile of an engine, and in records as JSON.
            #[must_use]
            pub fn key(self) -> &'static str {
                match self {
                    $(Self::$Gauge => stringify!($gauge),)+
                    $(Self::$Count => stringify!($count),)+
                    $(Self::$Hist => stringify!($hist),)+
                    Self::$Instant => stringify!($instant),
                }
            }

            fn about(self) -> (Kind, Need, &'static str) {
                match self {
                    $(Self::$Gauge => (Kind::$g_kind, Need::$g_need, $g_words),)+
                    $(Self::$Count => (Kind::$c_kind, Need::$c_need, $c_words),)+
                    $(Self::$Hist => (Kind::$h_kind, Need::$h_need, $h_words),)+
                    Self::$Instant => (Kind::$i_kind, Need::$i_need, $i_words),
                }
            }
        }

        /// One page reduced to what agft reads. `None`: the page does not have it, which is not zero.
        ///
        /// Counters are the engine's totals since its start; the page's label series are already combined ([`Kind`]).
        #[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
        pub struct Signals {
            $($(#[$g_doc])+ pub $gauge: Option<f64>,)+
            $($(#[$c_doc])+ pub $count: Option<f64>,)+
            $($(#[$h_doc])+ pub $hist: Option<Histogram>,)+
            $(#[$i_doc])+ pub $instant: Option<f64>,
        }

        impl Signals {
            pub(crate) fn get(&self, signal: Signal) -> Value<'_> {
                match signal {
                    $(Signal::$Gauge => Value::Number(self.$gauge),)+
                    $(Signal::$Count => Value::Number(self.$count),)+
                    $(Signal::$Hist => Value::Histogram(self.$hist.as_ref()),)+
                    Signal::$Instant => Value::Number(self.$instant),
                }
            }

            pub(crate) fn slot(&mut self, signal: Signal) -> Slot<'_> {
                match signal {
                    $(Signal::$Gauge => Slot::Number(&mut self.$gauge),)+
                    $(Signal::$Count => Slot::Number(&mut self.$count),)+
                    $(Signal::$Hist => Slot::Histogram(&mut self.$hist),)+
                    Signal::$Instant => Slot::Number(&mut self.$instant),
                }
            }
        }

        /// The levels of a page.
        #[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
        pub struct Gauges {
            $($(#[$g_doc])+ pub $gauge: Option<f64>,)+
        }

        impl Gauges {
            /// The levels of a page.
            #[must_use]
            pub fn of(signals: &Signals) -> Self {
                Self { $($gauge: signals.$gauge,)+ }
            }

            /// The levels that both know, joined.
            pub(super) fn zip(self, other: Self, join: impl Fn(f64, f64) -> f64) -> Self {
                Self { $($gauge: self.$gauge.zip(other.$gauge).map(|(a, b)| join(a, b)),)+ }
            }
        }

        /// The time between two scrapes, or several such spans joined.
        ///
        /// Counters and histograms hold what was added; `None` means that one of the pages did not have the signal,
        /// which is not zero.
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
            $($(#[$c_doc])+ pub $count: Option<f64>,)+
            $($(#[$h_doc])+ pub $hist: Option<Histogram>,)+
        }

        impl Window {
            /// A window of which only time and levels are known.
            pub(super) fn bare((start, end, elapsed): (Time, Time, Seconds), levels: [Gauges; 3]) -> Self {
                let [at_start, at_end, mean] = levels;
                Self { start, end, elapsed, at_start, at_end, mean, $($count: None,)+ $($hist: None,)+ }
            }

            /// `None` for what a window keeps no difference of.
            pub(super) fn get(&self, signal: Signal) -> Option<Value<'_>> {
                match signal {
                    $(Signal::$Count => Some(Value::Number(self.$count)),)+
                    $(Signal::$Hist => Some(Value::Histogram(self.$hist.as_ref())),)+
                    $(Signal::$Gauge)|+ | Signal::$Instant => None,
                }
            }

            /// `None` for what a window keeps no difference of.
            pub(super) fn slot(&mut self, signal: Signal) -> Option<Slot<'_>> {
                match signal {
                    $(Signal::$Count => Some(Slot::Number(&mut self.$count)),)+
                    $(Signal::$Hist => Some(Slot::Histogram(&mut self.$hist)),)+
                    $(Signal::$Gauge)|+ | Signal::$Instant => None,
                }
            }
        }
    };
}

signals! {
    gauges {
        /// Requests in the running batch.
        running = Running: Level, Essential, "running requests";
        /// Requests waiting for it.
        waiting = Waiting: Level, Essential, "waiting requests";
        /// Share of the KV cache in use, 0 to 1.
        kv_usage = KvUsage: Share, Useful, "KV cache usage";
    }
    counters {
        /// Prompt tokens processed (prefix hits included).
        prompt_tokens = PromptTokens: Sum, Essential, "prompt tokens";
        /// Tokens generated.
        generation_tokens = GenerationTokens: Sum, Essential, "generated tokens";
        /// Tokens looked up in the prefix cache.
        prefix_queries = PrefixQueries: Sum, Useful, "prefix cache queries";
        /// Of these, tokens found.
        prefix_hits = PrefixHits: Sum, Useful, "prefix cache hits";
        /// Requests preempted.
        preemptions = Preemptions: Sum, Useful, "preemptions";
        /// Requests finished, for any reason.
        finished = Finished: Sum, Useful, "finished requests";
    }
    histograms {
        /// Tokens per engine step; `count` is the number of steps.
        step_tokens = StepTokens: Histogram, Useful, "tokens per step";
        /// Time to first token, seconds.
        ttft = Ttft: Histogram, Useful, "time to first token";
        /// Time between tokens (TPOT per token), seconds.
        itl = Itl: Histogram, Essential, "inter-token latency";
        /// Mean time per output token of finished requests, seconds.
        request_tpot = RequestTpot: Histogram, Useful, "time per output token of requests";
        /// End-to-end latency of finished requests, seconds.
        e2e = E2e: Histogram, Useful, "request latency";
    }
    instant {
        /// When the engine's process started, Unix seconds: changes on a restart.
        process_start = ProcessStart: Instant, Useful, "process start";
    }
}

#[cfg(test)]
mod tests {
    use proptest::option;
    use proptest::prelude::*;

    use super::*;
    use crate::metrics::page::Page;

    const BOUNDS: [f64; 3] = [0.01, 0.1, 1.0];

    /// Whole numbers, so that no order of adding rounds.
    fn number() -> impl Strategy<Value = f64> {
        (0_u32..1_000_000).prop_map(f64::from)
    }

    fn histogram() -> impl Strategy<Value = Histogram> {
        (number(), prop::array::uniform4(0_u32..1000)).prop_map(|(sum, [a, b, c, rest])| {
            let up_to = [a, a + b, a + b + c].map(f64::from);
            let buckets = BOUNDS.into_iter().zip(up_to).collect();
            Histogram { sum, count: f64::from(a + b + c + rest), buckets }
        })
    }

    fn signals() -> impl Strategy<Value = Signals> {
        let each = || (number(), histogram(), option::weighted(0.9, Just(())));
        prop::collection::vec(each(), Signal::all().count()).prop_map(|all| {
            let mut signals = Signals::default();
            for (signal, (number, histogram, present)) in Signal::all().zip(all) {
                match signals.slot(signal) {
                    // A share in 64ths: their mean does not round either.
                    Slot::Number(slot) if signal.kind() == Kind::Share => {
                        *slot = present.map(|()| number % 64.0 / 64.0);
                    }
                    Slot::Number(slot) => *slot = present.map(|()| number),
                    Slot::Histogram(slot) => *slot = present.map(|()| histogram),
                }
            }
            signals
        })
    }

    /// A page of vLLM with these signals as the series of one engine.
    fn page(signals: &Signals, engine: usize) -> String {
        let vllm = crate::engine::usual();
        let mut page = String::new();
        for signal in Signal::all() {
            let name = vllm.metric(signal);
            let labels = if signal == Signal::ProcessStart { "pid=" } else { "engine=" }.to_owned()
                + &format!("\"{engine}\"");
            match signals.get(signal) {
                Value::Number(Some(number)) => page += &format!("{name}{{{labels}}} {number}\n"),
                Value::Histogram(Some(found)) => {
                    for (bound, count) in &found.buckets {
                        page += &format!("{name}_bucket{{{labels},le=\"{bound}\"}} {count}\n");
                    }
                    page += &format!(
                        "{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {}\n",
                        found.sum, found.count
                    );
                }
                Value::Number(None) | Value::Histogram(None) => {}
            }
        }
        page
    }

    proptest! {
        #[test]
        fn sum_of_one_is_itself_and_the_order_of_several_does_not_matter(
            a in signals(), b in signals(), c in signals(),
        ) {
            prop_assert_eq!(&Signals::sum(&[&a]), &a);
            let all = Signals::sum(&[&a, &b, &c]);
            for other in [[&b, &a, &c], [&c, &b, &a], [&b, &c, &a]] {
                prop_assert_eq!(&Signals::sum(&other), &all);
            }
        }

        #[test]
        fn sum_is_the_page_with_the_series_of_both_servers_but_for_what_one_lacks(a in signals(), b in signals()) {
            let both = "vllm:none 0\n".to_owned() + &page(&a, 0) + &page(&b, 1);
            let mut read = Page::parse(both.as_bytes(), None).unwrap().signals;
            for signal in Signal::all().filter(|&signal| !(a.has(signal) && b.has(signal))) {
                match read.slot(signal) {
                    Slot::Number(slot) => *slot = None,
                    Slot::Histogram(slot) => *slot = None,
                }
            }
            prop_assert_eq!(Signals::sum(&[&a, &b]), read);
        }
    }

    /// What is on the disk: bincode keeps the order, JSON the names.
    #[test]
    fn records_have_the_fields_that_they_always_had() {
        const COUNTS: &str = r#""prompt_tokens":null,"generation_tokens":null,"prefix_queries":null,"prefix_hits":null,"preemptions":null,"finished":null,"step_tokens":null,"ttft":null,"itl":null,"request_tpot":null,"e2e":null"#;
        const LEVELS: &str = r#""running":null,"waiting":null,"kv_usage":null"#;
        let signals = serde_json::to_string(&Signals::default()).unwrap();
        assert_eq!(signals, format!("{{{LEVELS},{COUNTS},\"process_start\":null}}"));
        let window = Window::bare((Time(1.0), Time(2.0), Seconds(1.0)), [Gauges::default(); 3]);
        let times = r#""start":1.0,"end":2.0,"elapsed":1.0"#;
        let levels = format!("\"at_start\":{{{LEVELS}}},\"at_end\":{{{LEVELS}}},\"mean\":{{{LEVELS}}}");
        assert_eq!(serde_json::to_string(&window).unwrap(), format!("{{{times},{levels},{COUNTS}}}"));
        let names: Vec<Signal> = Signal::all().collect();
        assert!(names.is_sorted(), "bincode keeps the place of a signal");
        let text = serde_json::to_string(&names).unwrap();
        let keys = format!("{LEVELS},{COUNTS},\"process_start\":null").replace(":null", "");
        assert_eq!(text, format!("[{keys}]"));
    }

    #[test]
    fn nothing_is_known_of_no_servers() {
        assert_eq!(Signals::sum(&[]), Signals::default());
    }

    #[test]
    fn histograms_of_servers_with_other_bounds_keep_the_common_ones() {
        let of = |buckets| {
            let itl = Some(Histogram { sum: 1.0, count: 3.0, buckets });
            Signals { itl, ..Signals::default() }
        };
        let sum = Signals::sum(&[&of(vec![(0.1, 1.0), (0.2, 2.0)]), &of(vec![(0.2, 3.0), (0.4, 3.0)])]);
        assert_eq!(sum.itl, Some(Histogram { sum: 2.0, count: 6.0, buckets: vec![(0.2, 5.0)] }));
    }
}
