//! The one table of metric names: which signal is called what, from vLLM 0.6 (V0) to 0.32 (V1).
//!
//! vLLM renames its families every few releases and for a while shows old and new side by side. A signal is therefore
//! a list of names in order of preference; the first one present on the page is read and the others are left alone,
//! because adding them would count everything twice. Names are compared whole: `prompt_tokens_total` has neighbours
//! (`prompt_tokens_cached_total`, `prompt_tokens_by_source_total`, `..._created`) that mean something else.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Histogram, Signals};

/// One thing agft reads from the page; each is a field of [`Signals`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each variant is documented at the field of the same name in `Signals`")]
pub enum Signal {
    Running,
    Waiting,
    KvUsage,
    PromptTokens,
    GenerationTokens,
    PrefixQueries,
    PrefixHits,
    Preemptions,
    Finished,
    StepTokens,
    Ttft,
    Itl,
    RequestTpot,
    E2e,
    ProcessStart,
}

/// How the series of one name (one per engine, API server, model or reason) become one value.
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
    /// `_bucket`, `_sum` and `_count`: each added, buckets by their bound.
    Histogram,
}

/// When a server shows a signal that it has.
///
/// V0 creates its latency histograms with the first request, and a server with several API processes its gauges:
/// until then absence says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appears {
    /// On the very first page.
    AtStart,
    /// Once tokens were generated.
    WithTokens,
    /// Once a request has finished.
    WithFinished,
    /// Perhaps never: agft has another way to know.
    Perhaps,
}

/// A row of [`TABLE`].
#[derive(Debug)]
pub struct Row {
    /// What the row is about.
    pub signal: Signal,
    /// How its series are combined.
    pub kind: Kind,
    /// From when on its absence means something.
    pub appears: Appears,
    /// Metric names without the `vllm:` prefix, the preferred one first.
    pub names: &'static [&'static str],
}

/// Every signal and its names, in the order of [`Signals`].
///
/// 0.6 shows prefix reuse as a gauge only (`gpu_prefix_cache_hit_rate`, an average since the start). There is no
/// counter to take a window from, so `PrefixQueries` and `PrefixHits` are absent there.
#[rustfmt::skip]
pub const TABLE: [Row; 15] = {
    use Appears::{AtStart, Perhaps, WithFinished, WithTokens};
    use Kind::{Instant, Level, Share, Sum};
    const fn row(signal: Signal, kind: Kind, appears: Appears, names: &'static [&'static str]) -> Row {
        Row { signal, kind, appears, names }
    }
    [
        row(Signal::Running, Level, WithTokens, &["num_requests_running"]),
        row(Signal::Waiting, Level, WithTokens, &["num_requests_waiting"]),
        // Both a fraction despite the name. 0.9 to 0.11 show both.
        row(Signal::KvUsage, Share, WithTokens, &["kv_cache_usage_perc", "gpu_cache_usage_perc"]),
        row(Signal::PromptTokens, Sum, AtStart, &["prompt_tokens_total", "prompt_tokens"]),
        row(Signal::GenerationTokens, Sum, AtStart, &["generation_tokens_total", "generation_tokens"]),
        // In tokens. `external_` and `mm_` caches are others.
        row(Signal::PrefixQueries, Sum, AtStart,
            &["prefix_cache_queries_total", "prefix_cache_queries", "gpu_prefix_cache_queries_total", "gpu_prefix_cache_queries"]),
        row(Signal::PrefixHits, Sum, AtStart,
            &["prefix_cache_hits_total", "prefix_cache_hits", "gpu_prefix_cache_hits_total", "gpu_prefix_cache_hits"]),
        row(Signal::Preemptions, Sum, AtStart, &["num_preemptions_total", "num_preemptions"]),
        // One series per finish reason.
        row(Signal::Finished, Sum, WithFinished, &["request_success_total", "request_success"]),
        // A histogram despite the name.
        row(Signal::StepTokens, Kind::Histogram, WithTokens, &["iteration_tokens_total", "iteration_tokens"]),
        row(Signal::Ttft, Kind::Histogram, WithTokens, &["time_to_first_token_seconds"]),
        // Renamed in 0.11, the old name hidden from 0.12 on. Both are per token.
        row(Signal::Itl, Kind::Histogram, WithTokens, &["inter_token_latency_seconds", "time_per_output_token_seconds"]),
        // Per finished request, so not weighted by tokens.
        row(Signal::RequestTpot, Kind::Histogram, Perhaps, &["request_time_per_output_token_seconds"]),
        row(Signal::E2e, Kind::Histogram, WithFinished, &["e2e_request_latency_seconds"]),
        // The Python client's own metric: has no prefix, and is missing with V0 and with several API servers.
        row(Signal::ProcessStart, Instant, Perhaps, &[PROCESS_START]),
    ]
};

/// The one name without a prefix.
const PROCESS_START: &str = "process_start_time_seconds";

/// vLLM's own prefix. Gateways and frameworks put theirs before it, or write `_` for the colon.
const VLLM: &str = "vllm";

/// Engines that have some of vLLM's names with another meaning, or beside others that agft does not know. Each is a
/// whole word of the prefix.
const OTHER_ENGINES: [&str; 6] = ["sglang", "llamacpp", "lmdeploy", "tgi", "trtllm", "nv"];

/// What has to be behind a prefix that does not name vLLM: no other kind of service has all of these.
const TELLING: [Signal; 3] = [Signal::Running, Signal::Waiting, Signal::GenerationTokens];

/// A name of the table: row and position in its list of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Family {
    row: usize,
    name: usize,
}

impl Family {
    /// Every name of the table, those of one signal together and the preferred one first.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        TABLE
            .iter()
            .enumerate()
            .flat_map(|(row, entry)| (0..entry.names.len()).map(move |name| Self { row, name }))
    }

    pub(super) fn signal(self) -> Signal {
        TABLE[self.row].signal
    }

    pub(super) fn kind(self) -> Kind {
        TABLE[self.row].kind
    }

    /// Whether this is a name that newer versions have given up.
    pub(super) fn is_old(self) -> bool {
        let name = self.name();
        name.starts_with("gpu_") || name == "time_per_output_token_seconds"
    }

    /// The name without prefix.
    pub(super) fn name(self) -> &'static str {
        TABLE[self.row].names[self.name]
    }
}

/// Which number of a family a sample is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The number itself (counter, gauge).
    Value,
    /// `_bucket` of a histogram.
    Bucket,
    /// `_sum` of a histogram.
    Sum,
    /// `_count` of a histogram.
    Count,
}

impl Part {
    /// What a histogram's sample name ends in.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::Value => "",
            Self::Bucket => "_bucket",
            Self::Sum => "_sum",
            Self::Count => "_count",
        }
    }
}

/// The prefix of a page with these sample names, of all that stand before names of the table the one with the most
/// signals, the first of several; a prefix of vLLM's alone counts too, with names that agft does not know behind it.
/// `None` if this is no page of vLLM.
pub(super) fn find_prefix<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Keyed by prefix: how many were met before it, and the signals behind it.
    let mut found: HashMap<&'a str, (usize, BTreeSet<Signal>)> = HashMap::new();
    for name in names {
        let vllm = name.split_once(':').filter(|(before, _)| before.ends_with(VLLM));
        let bare = vllm.and_then(|(before, _)| name.get(..=before.len())).map(|prefix| (prefix, None));
        let read = readings(name).map(|(prefix, signal)| (prefix, Some(signal)));
        for (prefix, signal) in bare.into_iter().chain(read) {
            let next = found.len();
            found.entry(prefix).or_insert_with(|| (next, BTreeSet::new())).1.extend(signal);
        }
    }
    let is_vllm = |prefix: &str, signals: &BTreeSet<Signal>| {
        let named = prefix.trim_end_matches([':', '_']).ends_with(VLLM);
        let other = prefix.split([':', '_']).any(|word| OTHER_ENGINES.contains(&word));
        named || (!other && TELLING.iter().all(|signal| signals.contains(signal)))
    };
    let pages = found.into_iter().filter(|(prefix, (_, signals))| is_vllm(prefix, signals));
    pages.max_by_key(|(_, (met, signals))| (signals.len(), Reverse(*met))).map(|(prefix, _)| prefix)
}

/// Every way to read a sample name as a prefix and a name of the table. A prefix ends in `:` or `_`, or is none.
fn readings(name: &str) -> impl Iterator<Item = (&str, Signal)> {
    Family::all().filter(|family| family.signal() != Signal::ProcessStart).filter_map(move |family| {
        let bare = match family.kind() {
            Kind::Histogram => name.strip_suffix(Part::Sum.suffix())?,
            Kind::Sum | Kind::Level | Kind::Share | Kind::Instant => name,
        };
        let prefix = bare.strip_suffix(family.name())?;
        (prefix.is_empty() || prefix.ends_with([':', '_'])).then_some((prefix, family.signal()))
    })
}

/// The family and part that a sample name belongs to on a page with this prefix.
pub(super) fn of_page(name: &str, prefix: &str) -> Option<(Family, Part)> {
    if name == PROCESS_START { look_up(name) } else { look_up(name.strip_prefix(prefix)?) }
}

/// The family and part that a sample name without prefix belongs to.
pub(super) fn look_up(name: &str) -> Option<(Family, Part)> {
    Family::all().find_map(|family| {
        let rest = name.strip_prefix(family.name())?;
        let part = match (family.kind(), rest) {
            (Kind::Histogram, "_bucket") => Part::Bucket,
            (Kind::Histogram, "_sum") => Part::Sum,
            (Kind::Histogram, "_count") => Part::Count,
            (Kind::Sum | Kind::Level | Kind::Share | Kind::Instant, "") => Part::Value,
            _ => return None,
        };
        Some((family, part))
    })
}

impl Signal {
    /// Every signal, in the order of [`Signals`].
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.signal)
    }

    /// The signal's row of the table.
    pub(super) fn row(self) -> &'static Row {
        // The table is in the order of the enum; a test holds it to that.
        &TABLE[self as usize]
    }

    /// Its current metric name, for messages.
    #[must_use]
    pub fn metric(self) -> String {
        let name = self.row().names[0];
        if self == Self::ProcessStart { name.to_owned() } else { format!("vllm:{name}") }
    }

    /// Whether agft can learn nothing without it: the load, what it yields and how long a token takes.
    #[must_use]
    pub fn is_essential(self) -> bool {
        match self {
            Self::Running | Self::Waiting | Self::PromptTokens | Self::GenerationTokens | Self::Itl => true,
            Self::KvUsage
            | Self::PrefixQueries
            | Self::PrefixHits
            | Self::Preemptions
            | Self::Finished
            | Self::StepTokens
            | Self::Ttft
            | Self::RequestTpot
            | Self::E2e
            | Self::ProcessStart => false,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running requests",
            Self::Waiting => "waiting requests",
            Self::KvUsage => "KV cache usage",
            Self::PromptTokens => "prompt tokens",
            Self::GenerationTokens => "generated tokens",
            Self::PrefixQueries => "prefix cache queries",
            Self::PrefixHits => "prefix cache hits",
            Self::Preemptions => "preemptions",
            Self::Finished => "finished requests",
            Self::StepTokens => "tokens per step",
            Self::Ttft => "time to first token",
            Self::Itl => "inter-token latency",
            Self::RequestTpot => "time per output token of requests",
            Self::E2e => "request latency",
            Self::ProcessStart => "process start",
        })
    }
}

/// The place of a signal in [`Signals`].
pub(super) enum Slot<'a> {
    /// A single number.
    Number(&'a mut Option<f64>),
    /// A histogram.
    Histogram(&'a mut Option<Histogram>),
}

impl Signals {
    pub(super) fn slot(&mut self, signal: Signal) -> Slot<'_> {
        match signal {
            Signal::Running => Slot::Number(&mut self.running),
            Signal::Waiting => Slot::Number(&mut self.waiting),
            Signal::KvUsage => Slot::Number(&mut self.kv_usage),
            Signal::PromptTokens => Slot::Number(&mut self.prompt_tokens),
            Signal::GenerationTokens => Slot::Number(&mut self.generation_tokens),
            Signal::PrefixQueries => Slot::Number(&mut self.prefix_queries),
            Signal::PrefixHits => Slot::Number(&mut self.prefix_hits),
            Signal::Preemptions => Slot::Number(&mut self.preemptions),
            Signal::Finished => Slot::Number(&mut self.finished),
            Signal::StepTokens => Slot::Histogram(&mut self.step_tokens),
            Signal::Ttft => Slot::Histogram(&mut self.ttft),
            Signal::Itl => Slot::Histogram(&mut self.itl),
            Signal::RequestTpot => Slot::Histogram(&mut self.request_tpot),
            Signal::E2e => Slot::Histogram(&mut self.e2e),
            Signal::ProcessStart => Slot::Number(&mut self.process_start),
        }
    }

    /// Whether the page had this signal, readable.
    #[must_use]
    pub fn has(&self, signal: Signal) -> bool {
        match signal {
            Signal::Running => self.running.is_some(),
            Signal::Waiting => self.waiting.is_some(),
            Signal::KvUsage => self.kv_usage.is_some(),
            Signal::PromptTokens => self.prompt_tokens.is_some(),
            Signal::GenerationTokens => self.generation_tokens.is_some(),
            Signal::PrefixQueries => self.prefix_queries.is_some(),
            Signal::PrefixHits => self.prefix_hits.is_some(),
            Signal::Preemptions => self.preemptions.is_some(),
            Signal::Finished => self.finished.is_some(),
            Signal::StepTokens => self.step_tokens.is_some(),
            Signal::Ttft => self.ttft.is_some(),
            Signal::Itl => self.itl.is_some(),
            Signal::RequestTpot => self.request_tpot.is_some(),
            Signal::E2e => self.e2e.is_some(),
            Signal::ProcessStart => self.process_start.is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_in_the_order_of_the_signals() {
        for signal in Signal::all() {
            assert_eq!(signal.row().signal, signal);
        }
    }

    #[test]
    fn every_signal_has_a_slot_of_the_shape_its_row_says() {
        let mut signals = Signals::default();
        for row in &TABLE {
            assert!(!signals.has(row.signal));
            match (row.kind, signals.slot(row.signal)) {
                (Kind::Histogram, Slot::Histogram(slot)) => *slot = Some(Histogram::default()),
                (Kind::Sum | Kind::Level | Kind::Share | Kind::Instant, Slot::Number(slot)) => {
                    *slot = Some(0.0);
                }
                (kind, _) => panic!("{}: the slot is not a {kind:?}", row.signal),
            }
            assert!(signals.has(row.signal), "{}: filled the slot of another signal", row.signal);
        }
    }

    #[test]
    fn names_that_only_look_alike_are_not_taken() {
        for name in [
            "prompt_tokens_by_source_total",
            "prompt_tokens_cached_total",
            "prompt_tokens_created",
            "external_prefix_cache_hits_total",
            "mm_cache_queries_total",
            "num_requests_waiting_by_reason",
            "iteration_tokens_total",
            "iteration_tokens_total_created",
            "gpu_prefix_cache_hit_rate",
            "request_prompt_tokens_sum",
            "generation_tokens_total_sum",
            "",
        ] {
            assert_eq!(look_up(name), None, "{name}");
        }
    }

    #[test]
    fn every_name_of_the_table_is_found_as_itself() {
        for family in Family::all() {
            let parts: &[Part] = match family.kind() {
                Kind::Histogram => &[Part::Bucket, Part::Sum, Part::Count],
                Kind::Sum | Kind::Level | Kind::Share | Kind::Instant => &[Part::Value],
            };
            for &part in parts {
                let name = format!("{}{}", family.name(), part.suffix());
                assert_eq!(look_up(&name), Some((family, part)), "{name}");
            }
        }
    }

    #[test]
    fn prefix_is_found_and_a_vllm_of_another_service_is_not() {
        let page = |prefix: &str| {
            let names = Family::all().flat_map(|family| match family.kind() {
                Kind::Histogram => vec![format!("{}_sum", family.name()), format!("{}_count", family.name())],
                _ => vec![family.name().to_owned()],
            });
            names.map(|name| format!("{prefix}{name}")).collect::<Vec<_>>()
        };
        for prefix in ["vllm:", "kserve_vllm:", "ray_vllm:", "ray_vllm_", "vllm_", "acme_gw:", "acme_", ""] {
            assert_eq!(find_prefix(page(prefix).iter().map(String::as_str)), Some(prefix));
        }
        assert_eq!(find_prefix(page("sglang:").iter().map(String::as_str)), None);
        let one = |name| find_prefix(std::iter::once(name));
        assert_eq!(one("vllm:num_requests_running"), Some("vllm:"));
        assert_eq!(one("vllm:of_tomorrow"), Some("vllm:"));
        assert_eq!(one("vllm:request_prompt_tokens_total"), Some("vllm:"));
        for other in ["num_requests_running", "acme:prompt_tokens_total", "process_start_time_seconds", ""] {
            assert_eq!(one(other), None, "{other}");
        }
    }

    #[test]
    fn prefix_with_the_most_signals_is_the_page_s_and_of_equal_ones_the_first() {
        let copy = ["a_vllm:num_requests_running", "vllm:num_requests_running", "vllm:num_requests_waiting"];
        assert_eq!(find_prefix(copy.into_iter()), Some("vllm:"));
        assert_eq!(find_prefix(copy.into_iter().take(2)), Some("a_vllm:"));
    }
}
