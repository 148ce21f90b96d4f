//! vLLM, from 0.6 (V0) to 0.32 (V1).
//!
//! It renames its families every few releases and for a while shows old and new side by side. Gateways put a prefix of
//! theirs before its own, or another one in its place.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use super::Engine;
use super::table::Appears::{AtStart, Perhaps, WithFinished, WithTokens};
use super::table::{Family, Row};
use crate::metrics::Signal;
use crate::metrics::page::Text;
use crate::metrics::signals::Kind;

/// Every signal and its names, in the order of [`Signal`].
///
/// V0 creates its latency histograms with the first request. 0.6 shows prefix reuse as a gauge only
/// (`gpu_prefix_cache_hit_rate`, an average since the start). There is no counter to take a window from, so
/// `PrefixQueries` and `PrefixHits` are absent there.
#[rustfmt::skip]
static TABLE: [Row; 15] = [
    Row::new(Signal::Running, WithTokens, &["num_requests_running"]),
    Row::new(Signal::Waiting, WithTokens, &["num_requests_waiting"]),
    // Both a fraction despite the name. 0.9 to 0.11 show both.
    Row::new(Signal::KvUsage, WithTokens, &["kv_cache_usage_perc", "gpu_cache_usage_perc"]),
    Row::new(Signal::PromptTokens, AtStart, &["prompt_tokens_total", "prompt_tokens"]),
    Row::new(Signal::GenerationTokens, AtStart, &["generation_tokens_total", "generation_tokens"]),
    // In tokens. `external_` and `mm_` caches are others.
    Row::new(Signal::PrefixQueries, AtStart,
        &["prefix_cache_queries_total", "prefix_cache_queries", "gpu_prefix_cache_queries_total", "gpu_prefix_cache_queries"]),
    Row::new(Signal::PrefixHits, AtStart,
        &["prefix_cache_hits_total", "prefix_cache_hits", "gpu_prefix_cache_hits_total", "gpu_prefix_cache_hits"]),
    Row::new(Signal::Preemptions, AtStart, &["num_preemptions_total", "num_preemptions"]),
    // One series per finish reason.
    Row::new(Signal::Finished, WithFinished, &["request_success_total", "request_success"]),
    // A histogram despite the name.
    Row::new(Signal::StepTokens, WithTokens, &["iteration_tokens_total", "iteration_tokens"]),
    Row::new(Signal::Ttft, WithTokens, &["time_to_first_token_seconds"]),
    // Renamed in 0.11, the old name hidden from 0.12 on. Both are per token.
    Row::new(Signal::Itl, WithTokens, &["inter_token_latency_seconds", "time_per_output_token_seconds"]),
    // Per finished request, so not weighted by tokens.
    Row::new(Signal::RequestTpot, Perhaps, &["request_time_per_output_token_seconds"]),
    Row::new(Signal::E2e, WithFinished, &["e2e_request_latency_seconds"]),
    // The Python client's own metric: is missing with V0 and with several API servers.
    Row::new(Signal::ProcessStart, Perhaps, &["process_start_time_seconds"]),
];

/// vLLM's own prefix. Gateways and frameworks put theirs before it, or write `_` for the colon.
const VLLM: &str = "vllm";

/// Engines that have some of vLLM's names with another meaning, or beside others that agft does not know. Each is a
/// whole word of the prefix.
const OTHER_ENGINES: [&str; 6] = ["sglang", "llamacpp", "lmdeploy", "tgi", "trtllm", "nv"];

/// What has to be behind a prefix that does not name vLLM: no other kind of service has all of these.
const TELLING: [Signal; 3] = [Signal::Running, Signal::Waiting, Signal::GenerationTokens];

/// vLLM's profile.
#[derive(Debug)]
pub struct Vllm;

impl Engine for Vllm {
    fn name(&self) -> &'static str {
        "vLLM"
    }

    fn prefixes(&self) -> &'static [&'static str] {
        &["vllm:", "vllm_"]
    }

    fn table(&self) -> &'static [Row] {
        &TABLE
    }

    fn prefix<'a>(&self, page: Text<'a>) -> Option<&'a str> {
        find_prefix(page.names())
    }

    fn dialect(&self, seen: &[Family], engine_label: bool) -> &'static str {
        Dialect::of(seen, engine_label).text()
    }

    fn remedy(&self) -> &'static str {
        "does it run without --disable-log-stats?"
    }
}

/// Which generation of names a page speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// The V0 engine, to 0.8: no `engine` label.
    V0,
    /// V1 to 0.9: `engine` label, `gpu_...` names only.
    V1Old,
    /// V1, 0.9 to 0.12: current names with the deprecated ones beside them.
    V1Both,
    /// V1 since 0.12: current names only.
    V1,
}

impl Dialect {
    fn of(seen: &[Family], engine_label: bool) -> Self {
        // Only the renamed families tell old from new.
        let renamed = |signal| matches!(signal, Signal::KvUsage | Signal::PrefixQueries | Signal::Itl);
        let families = || seen.iter().filter(|family| renamed(family.signal));
        match (engine_label, families().any(is_old), families().any(|family| !is_old(family))) {
            (false, _, _) => Self::V0,
            (true, true, false) => Self::V1Old,
            (true, true, true) => Self::V1Both,
            (true, false, _) => Self::V1,
        }
    }

    /// For people.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::V0 => "V0 engine (0.8 or earlier)",
            Self::V1Old => "V1 engine, old names (0.8 to 0.9)",
            Self::V1Both => "V1 engine, current and deprecated names (0.9 to 0.12)",
            Self::V1 => "V1 engine, current names (0.12 or later)",
        }
    }
}

/// Whether this is a name that newer versions have given up.
fn is_old(family: &Family) -> bool {
    family.name.starts_with("gpu_") || family.name == "time_per_output_token_seconds"
}

/// The prefix of a page with these sample names, of all that stand before names of the table the one with the most
/// signals, the first of several; a prefix of vLLM's alone counts too, with names that agft does not know behind it.
/// `None` if this is no page of vLLM.
fn find_prefix<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
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
    families().filter(|family| family.signal != Signal::ProcessStart).filter_map(move |family| {
        let bare = match family.signal.kind() {
            Kind::Histogram => name.strip_suffix("_sum")?,
            Kind::Sum | Kind::Level | Kind::Share | Kind::Instant => name,
        };
        let prefix = bare.strip_suffix(family.name)?;
        (prefix.is_empty() || prefix.ends_with([':', '_'])).then_some((prefix, family.signal))
    })
}

/// Every name of the table.
fn families() -> impl Iterator<Item = Family> {
    TABLE.iter().flat_map(Row::families)
}

#[cfg(test)]
mod tests {
    use super::super::table::{Part, of_page};
    use super::*;
    use crate::metrics::signals::Slot;
    use crate::metrics::{Histogram, Signals};

    /// What a sample name without prefix is to vLLM.
    fn look_up(name: &str) -> Vec<(Family, Part)> {
        of_page(&TABLE, name, "").collect()
    }

    #[test]
    fn table_is_in_the_order_of_the_signals() {
        assert!(TABLE.iter().map(|row| row.signal).eq(Signal::all()));
    }

    #[test]
    fn every_signal_has_a_slot_of_the_shape_its_row_says() {
        let mut signals = Signals::default();
        for row in &TABLE {
            assert!(!signals.has(row.signal));
            match (row.signal.kind(), signals.slot(row.signal)) {
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
            assert_eq!(look_up(name), [], "{name}");
        }
    }

    #[test]
    fn every_name_of_the_table_is_found_as_itself() {
        for family in families() {
            let parts: &[(Part, &str)] = match family.signal.kind() {
                Kind::Histogram => &[(Part::Bucket, "_bucket"), (Part::Sum, "_sum"), (Part::Count, "_count")],
                Kind::Sum | Kind::Level | Kind::Share | Kind::Instant => &[(Part::Value, "")],
            };
            for &(part, suffix) in parts {
                let name = format!("{}{suffix}", family.name);
                assert_eq!(look_up(&name), [(family, part)], "{name}");
            }
        }
    }

    #[test]
    fn prefix_is_found_and_a_vllm_of_another_service_is_not() {
        let page = |prefix: &str| {
            let names = families().flat_map(|family| match family.signal.kind() {
                Kind::Histogram => vec![format!("{}_sum", family.name), format!("{}_count", family.name)],
                _ => vec![family.name.to_owned()],
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
