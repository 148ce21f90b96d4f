//! Servers whose GPUs overlap: one clock decision for all of them, as if they were one server.

use std::collections::BTreeSet;
use std::path::Path;

use crate::compose;
use crate::config::{Config, EngineKind, SERVER_SECTIONS, Server};
use crate::control::Sharer;
use crate::daemon::{clients, reload};
use crate::units::Seconds;

/// Keys of a server's sections that are its own, whoever it shares GPUs with.
const OWN: [&str; 8] = [
    "gpu.device_id",
    "control.ttft_limit",
    "control.tpot_limit",
    "control.slo_statistic",
    "control.slo_window_s",
    "control.ignore_slo",
    "control.max_slowdown_percent",
    "idle.ports",
];

/// Two servers on the same GPUs want what one clock decision cannot give both.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "servers {one} and {other} share GPUs and so one clock decision, but differ in {key} ({change}): give both the same \
     value, best in the sections of the file that are the defaults of all servers, or give each GPUs of its own"
)]
pub(crate) struct Conflict {
    one: String,
    other: String,
    key: String,
    change: String,
}

/// Which of these sets overlap, directly or through others: the places of each such set, in the order of the first.
pub(crate) fn overlapping(sets: &[BTreeSet<String>]) -> Vec<Vec<usize>> {
    let mut groups: Vec<(Vec<usize>, BTreeSet<String>)> = Vec::new();
    for (at, set) in sets.iter().enumerate() {
        let (mut places, mut all) = (vec![at], set.clone());
        groups.retain_mut(|(others, theirs)| {
            let apart = theirs.is_disjoint(set);
            if !apart {
                places.append(others);
                all.append(theirs);
            }
            apart
        });
        places.sort_unstable();
        groups.push((places, all));
    }
    let mut places: Vec<Vec<usize>> = groups.into_iter().map(|(places, _)| places).collect();
    places.sort_unstable();
    places
}

/// The one server that several on the same GPUs are to the clock decision; one alone is itself.
///
/// Its name is theirs, joined by `+`, and so are its directories. Its limits are the tightest of those that have some:
/// for views, records and what a policy foresees; what counts is each one's own ([`sharers`]).
pub(crate) fn join(servers: &[Server]) -> Result<Option<Server>, Conflict> {
    let Some((first, others)) = servers.split_first() else { return Ok(None) };
    if others.is_empty() {
        return Ok(Some(first.clone()));
    }
    for other in others {
        let shared = |(key, _): &(String, String)| {
            let section = key.split_once('.').map_or("", |(section, _)| section);
            SERVER_SECTIONS.contains(&section) && section != "vllm" && !OWN.contains(&key.as_str())
        };
        let mut differences = reload::differences(&first.config, &other.config).into_iter().filter(shared);
        if let Some((key, change)) = differences.next() {
            let (one, other) = (first.name.clone(), other.name.clone());
            return Err(Conflict { one, other, key, change });
        }
    }
    let name = name(servers);
    let engine = match others.iter().all(|other| other.engine == first.engine) {
        true => first.engine.clone(),
        false => EngineKind::Auto,
    };
    Ok(Some(Server { config: joined_config(servers, &first.config, &name), name, engine }))
}

/// Their names, joined by `+`, which no name has.
pub(crate) fn name(servers: &[Server]) -> String {
    servers.iter().map(|server| server.name.as_str()).collect::<Vec<_>>().join("+")
}

fn joined_config(servers: &[Server], first: &Config, name: &str) -> Config {
    let configs = || servers.iter().map(|server| &server.config);
    let lowest = |all: &mut dyn Iterator<Item = f64>| all.reduce(f64::min);
    let mut config = first.clone();
    let beside = |dir: &str| Path::new(dir).with_file_name(name).to_string_lossy().into_owned();
    config.model.save_dir = beside(&first.model.save_dir);
    config.experiment.dir = beside(&first.experiment.dir);
    if let Some(soonest) = lowest(&mut configs().map(|config| config.vllm.outage_after_s.0)) {
        config.vllm.outage_after_s = Seconds(soonest);
    }
    config.gpu.device_id.clear();
    for selector in configs().flat_map(|config| &config.gpu.device_id) {
        if !config.gpu.device_id.contains(selector) {
            config.gpu.device_id.push(selector.clone());
        }
    }
    let ports: BTreeSet<u16> = configs().flat_map(clients::ports).collect();
    config.idle.ports = ports.into_iter().collect();
    let limited = || configs().map(|config| &config.control).filter(|control| !control.ignore_slo);
    if let Some(one) = limited().next() {
        let control = &mut config.control;
        (control.ignore_slo, control.slo_statistic, control.slo_window_s) =
            (false, one.slo_statistic, one.slo_window_s);
        control.ttft_limit = limited().map(|of| of.ttft_limit).fold(one.ttft_limit, shorter);
        control.tpot_limit = limited().map(|of| of.tpot_limit).fold(one.tpot_limit, shorter);
        control.max_slowdown_percent = lowest(&mut limited().filter_map(|of| of.max_slowdown_percent));
    }
    config
}

fn shorter(a: Seconds, b: Seconds) -> Seconds {
    Seconds(a.0.min(b.0))
}

/// What each of the servers promises its clients.
pub(crate) fn sharers(servers: &[Server]) -> Vec<Sharer> {
    servers.iter().map(|server| Sharer::new(server.name.clone(), compose::limits(&server.config))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gpu::GpuSelector;

    fn servers(text: &str) -> Vec<Server> {
        let text = format!(
            "
model: {{save_dir: /m}}
servers:
  - {{name: chat, metrics_url: 'http://127.0.0.1:8000/metrics', gpus: [0, 1], tpot_limit: 0.05{text}}}
  - {{name: code, metrics_url: 'http://127.0.0.1:8001/metrics', gpus: 1, ttft_limit: 0.5, max_slowdown_percent: 5}}
"
        );
        Config::parse(&text, "c.yaml").unwrap().config.servers()
    }

    #[test]
    fn joined_server_has_the_gpus_ports_and_tightest_limits_of_all() {
        let servers = servers(", ttft_limit: 2.0, vllm: {outage_after_s: 2}");
        let joined = join(&servers).unwrap().unwrap();
        assert_eq!(joined.name, "chat+code");
        let config = &joined.config;
        assert_eq!(
            (config.model.save_dir.as_str(), config.vllm.outage_after_s),
            ("/m/chat+code", Seconds(1.0))
        );
        assert!(config.experiment.dir.ends_with("/chat+code"));
        assert_eq!(config.gpu.device_id, [GpuSelector::Index(0), GpuSelector::Index(1)]);
        assert_eq!(config.idle.ports, [8000, 8001]);
        let control = &config.control;
        assert_eq!((control.ttft_limit, control.tpot_limit), (Seconds(0.5), Seconds(0.05)));
        assert_eq!(control.max_slowdown_percent, Some(5.0));
        assert!(Config::parse(&config.to_yaml(), "as a file").is_ok());
    }

    #[test]
    fn limits_that_a_server_ignores_bind_no_other() {
        let servers = servers(", ignore_slo: true, ttft_limit: 0.1");
        let control = join(&servers).unwrap().unwrap().config.control;
        assert_eq!((control.ignore_slo, control.ttft_limit), (false, Seconds(0.5)));
    }

    #[test]
    fn server_alone_is_itself() {
        let servers = servers("");
        assert_eq!(join(&servers[..1]).unwrap().as_ref(), servers.first());
        assert_eq!(join(&[]), Ok(None));
    }

    #[test]
    fn what_one_clock_decision_cannot_give_both_is_refused_by_name() {
        for (more, key) in [
            (", objective: energy", "control.objective"),
            (", policy: linucb", "control.policy"),
            (", control: {decision_interval_s: 0.5}", "control.decision_interval_s"),
            (", control: {data_collection_mode: true}", "control.data_collection_mode"),
            (", gpu: {min_frequency: 600}", "gpu.min_frequency"),
            (", idle: {enabled: false}", "idle.enabled"),
            (", holdout: {share: 0.3}", "holdout.share"),
        ] {
            let error = join(&servers(more)).unwrap_err().to_string();
            for part in ["chat", "code", key, "give both the same value"] {
                assert!(error.contains(part), "{error}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_group_has_those_that_reach_each_other(
            sets in prop::collection::vec(prop::collection::btree_set(0_u8..12, 1..3), 0..8),
        ) {
            let sets: Vec<BTreeSet<String>> =
                sets.into_iter().map(|set| set.into_iter().map(|gpu| gpu.to_string()).collect()).collect();
            let groups = overlapping(&sets);
            let mut all: Vec<usize> = groups.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..sets.len()).collect::<Vec<_>>());
            prop_assert!(groups.is_sorted() && groups.iter().all(|group| group.is_sorted()));
            let group_of = |at: usize| groups.iter().position(|group| group.contains(&at));
            for (from, set) in sets.iter().enumerate() {
                // All that is reached by going from set to set.
                let mut reached = set.clone();
                for _ in &sets {
                    let met: Vec<_> = sets.iter().filter(|other| !reached.is_disjoint(other)).collect();
                    reached.extend(met.into_iter().flatten().cloned());
                }
                for (to, other) in sets.iter().enumerate() {
                    prop_assert_eq!(!reached.is_disjoint(other), group_of(from) == group_of(to));
                }
            }
        }
    }

    #[test]
    fn sets_that_meet_through_a_third_are_one_group() {
        let sets = [&["a"][..], &["c"], &["d"], &["a", "b"], &["b", "c"]];
        let sets = sets.map(|set| set.iter().map(ToString::to_string).collect());
        assert_eq!(overlapping(&sets), [vec![0, 1, 3, 4], vec![2]]);
    }
}
