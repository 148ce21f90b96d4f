//! Whose page it is: by the names on it.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use super::Profile;
use super::table::{Name, Row};
use crate::metrics::Signal;
use crate::metrics::page::Text;
use crate::metrics::signals::Kind;

/// How the page of an engine is recognised.
#[derive(Debug, Default)]
pub(super) struct Recognise {
    /// What stands before its metric names, the usual one first.
    pub(super) prefixes: Vec<String>,
    /// Whole names one of which is on every page of it; empty: any name with a prefix tells.
    pub(super) names: Vec<String>,
    /// Gateways and frameworks put a prefix of theirs before its own, or another one in its place.
    pub(super) renamed: Option<Renamed>,
}

/// How a page is recognised whose prefix is not the engine's own.
#[derive(Debug)]
pub(super) struct Renamed {
    /// A prefix that ends in this word, before `:` and `_`, is its own whatever stands before the word.
    pub(super) word: String,
    /// What has to be behind any other prefix: no other kind of service has all of these.
    pub(super) signals: Vec<Signal>,
    /// Words of a prefix that tell another engine, which has some of these names with another meaning.
    pub(super) never: Vec<String>,
}

impl Profile {
    /// The prefix that its metrics have on this page; `None` if the page is not one of this engine.
    #[must_use]
    pub fn prefix<'a>(&self, page: Text<'a>) -> Option<&'a str> {
        let Recognise { prefixes, names, renamed } = &self.recognise;
        if let Some(renamed) = renamed {
            return renamed.find_prefix(&self.table, page.names());
        }
        if !names.is_empty() && !page.names().any(|name| names.iter().any(|telling| telling == name)) {
            return None;
        }
        page.names().find_map(|name| {
            let prefix = prefixes.iter().find(|prefix| name.starts_with(prefix.as_str()))?;
            name.get(..prefix.len())
        })
    }

    /// The signals whose names are on a page, whatever stands before them.
    pub(super) fn alike(&self, page: Text<'_>) -> Vec<Signal> {
        let found: BTreeSet<Signal> =
            page.names().flat_map(|name| readings(&self.table, name)).map(|(_, signal)| signal).collect();
        found.into_iter().collect()
    }
}

impl Renamed {
    /// The prefix of a page with these sample names, of all that stand before names of the table the one with
    /// the most signals, the first of several; a prefix of the engine's alone counts too, with names that
    /// agft does not know behind it. `None` if this is no page of the engine.
    fn find_prefix<'a>(&self, table: &[Row], names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
        // Keyed by prefix: how many were met before it, and the signals behind it.
        let mut found: HashMap<&'a str, (usize, BTreeSet<Signal>)> = HashMap::new();
        for name in names {
            let own = name.split_once(':').filter(|(before, _)| before.ends_with(self.word.as_str()));
            let bare = own.and_then(|(before, _)| name.get(..=before.len())).map(|prefix| (prefix, None));
            let read = readings(table, name).map(|(prefix, signal)| (prefix, Some(signal)));
            for (prefix, signal) in bare.into_iter().chain(read) {
                let next = found.len();
                found.entry(prefix).or_insert_with(|| (next, BTreeSet::new())).1.extend(signal);
            }
        }
        let is_own = |prefix: &str, signals: &BTreeSet<Signal>| {
            let named = prefix.trim_end_matches([':', '_']).ends_with(self.word.as_str());
            let other = prefix.split([':', '_']).any(|word| self.never.iter().any(|never| never == word));
            named || (!other && self.signals.iter().all(|signal| signals.contains(signal)))
        };
        let pages = found.into_iter().filter(|(prefix, (_, signals))| is_own(prefix, signals));
        pages.max_by_key(|(_, (met, signals))| (signals.len(), Reverse(*met))).map(|(prefix, _)| prefix)
    }
}

/// Every way to read a sample name as a prefix and a name of the table. A prefix ends in `:` or `_`; it may
/// be empty.
fn readings<'a>(table: &[Row], name: &'a str) -> impl Iterator<Item = (&'a str, Signal)> {
    let rows = table.iter().filter(|row| row.signal != Signal::ProcessStart);
    rows.flat_map(|row| {
        let sum = row.ratio.as_ref().map(|(sum, _)| (sum, false));
        let is_histogram = row.signal.kind() == Kind::Histogram;
        let names = row.names.iter().map(move |name| (name, is_histogram));
        names.chain(sum).map(|(name, has_parts)| (row.signal, name, has_parts))
    })
    .filter_map(move |(signal, of_row, has_parts): (Signal, &Name, bool)| {
        let bare = if has_parts { name.strip_suffix("_sum")? } else { name };
        let prefix = bare.strip_suffix(of_row.name.as_str())?;
        (prefix.is_empty() || prefix.ends_with([':', '_'])).then_some((prefix, signal))
    })
}

#[cfg(test)]
mod tests {
    use super::super::table::{Family, Part, of_page};
    use super::*;
    use crate::engine::usual as vllm;

    fn find_prefix<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
        vllm().recognise.renamed.as_ref().unwrap().find_prefix(&vllm().table, names)
    }

    fn families() -> impl Iterator<Item = Family> {
        vllm().table.iter().flat_map(Row::families)
    }

    /// What a sample name without prefix is to vLLM.
    fn look_up(name: &str) -> Vec<(Family, Part)> {
        of_page(vllm(), name, "").map(|reading| (reading.family, reading.part)).collect()
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
