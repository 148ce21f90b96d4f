//! `servers:`: several inference servers in one file.
//!
//! Each entry is read over the sections of the file, which are its defaults, and becomes a whole [`Config`] of one
//! server. So the code that serves one server asks one configuration, whichever form the file has.

use std::collections::BTreeSet;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::choices::EngineKind;
use super::error::Problem;
use super::reader::Reader;
use super::rule::{engine, server_name};
use super::yaml::{Node, shown};
use super::{Config, check};
use crate::gpu::GpuSelector;

/// Name of the one server of the short form.
pub const ONE: &str = "server";

/// Keys that stand at the top of an entry, and which key of which section each is.
pub(super) const SHORT_KEYS: [(&str, &str, &str); 12] = [
    ("metrics_url", "vllm", "prometheus_url"),
    ("bearer_token_file", "vllm", "bearer_token_file"),
    ("tls_ca_file", "vllm", "tls_ca_file"),
    ("model_name", "vllm", "model_name"),
    ("gpus", "gpu", "device_id"),
    ("policy", "control", "policy"),
    ("objective", "control", "objective"),
    ("ttft_limit", "control", "ttft_limit"),
    ("tpot_limit", "control", "tpot_limit"),
    ("max_slowdown_percent", "control", "max_slowdown_percent"),
    ("slo_statistic", "control", "slo_statistic"),
    ("ignore_slo", "control", "ignore_slo"),
];

/// Sections that an entry may have. The others are of the whole process.
pub(crate) const SECTIONS: [&str; 7] = ["vllm", "gpu", "control", "idle", "holdout", "linucb", "metrics"];

/// Which servers there are.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Servers {
    /// The one that the sections of the file describe.
    #[default]
    One,
    /// Those of the list.
    List(Vec<Server>),
    /// Those that are found on this machine.
    Auto,
}

impl Servers {
    /// Is it the short form?
    pub(crate) fn is_one(&self) -> bool {
        *self == Self::One
    }
}

impl Serialize for Servers {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::One => to.serialize_none(),
            Self::Auto => to.serialize_str("auto"),
            Self::List(servers) => servers.serialize(to),
        }
    }
}

/// One entry of `servers`.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// Its name: in views, labels, and of its directories.
    pub name: String,
    /// What it runs.
    pub engine: EngineKind,
    /// The file's configuration with what the entry says instead.
    pub config: Config,
}

impl Server {
    /// Are its GPUs those on which it is found?
    pub(crate) fn is_auto(&self) -> bool {
        self.config.gpu.device_id.is_empty()
    }
}

impl Serialize for Server {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Config { vllm, gpu, control, idle, holdout, linucb, metrics, .. } = &self.config;
        let mut entry = to.serialize_struct("Server", 2 + SECTIONS.len())?;
        entry.serialize_field("name", &self.name)?;
        entry.serialize_field("engine", &self.engine)?;
        entry.serialize_field("vllm", vllm)?;
        entry.serialize_field("gpu", gpu)?;
        entry.serialize_field("control", control)?;
        entry.serialize_field("idle", idle)?;
        entry.serialize_field("holdout", holdout)?;
        entry.serialize_field("linucb", linucb)?;
        entry.serialize_field("metrics", metrics)?;
        entry.end()
    }
}

/// Reads `servers`, with `config` as what the rest of the file says; the problems of its entries too.
/// `windows` is its `idle.after_windows`, which each server counts by decisions of its own.
pub(super) fn read(
    node: Node,
    config: &Config,
    windows: Option<u32>,
    text: &str,
) -> (Servers, Vec<Problem>, Vec<super::Warning>) {
    let wrong = |value: &Node| {
        let must_be = "auto, or a list of servers, each a mapping with a name and a metrics_url, not empty";
        vec![Problem::Value {
            key: "servers".into(),
            value: value.to_string(),
            must_be: must_be.into(),
            remedy: None,
        }]
    };
    let nodes = match node {
        Node::Text(text) if text.eq_ignore_ascii_case("auto") => return (Servers::Auto, vec![], vec![]),
        Node::List(nodes) if !nodes.is_empty() => nodes,
        other => return (Servers::One, wrong(&other), vec![]),
    };
    let (mut servers, mut problems, mut warnings) = (Vec::new(), Vec::new(), Vec::new());
    let mut names = BTreeSet::new();
    for (at, node) in nodes.into_iter().enumerate() {
        let Node::Map(entries) = node else {
            problems.extend(wrong(&node));
            continue;
        };
        let (server, wrongs, advice) = read_entry(entries, config, windows, text);
        let known = !server.name.is_empty();
        let place = if known { format!("servers.{}", server.name) } else { format!("servers[{}]", at + 1) };
        problems.extend(wrongs.into_iter().map(|problem| problem.within(&place)));
        warnings.extend(advice.into_iter().map(|warning| warning.within(&place)));
        if known && !names.insert(server.name.to_ascii_lowercase()) {
            problems.push(Problem::Value {
                key: format!("servers[{}].name", at + 1),
                value: server.name.clone(),
                must_be: "different from the names of the servers before it, whatever the case".into(),
                remedy: None,
            });
        }
        servers.push(server);
    }
    (Servers::List(servers), problems, warnings)
}

fn read_entry(
    entries: Vec<(String, Node)>,
    base: &Config,
    windows: Option<u32>,
    text: &str,
) -> (Server, Vec<Problem>, Vec<super::Warning>) {
    let missing = |key: &str| !entries.iter().any(|(name, _)| name == key);
    let mut absent = Vec::new();
    let mut require = |key: &str, must_be: &str| {
        absent.push(Problem::Value {
            key: key.into(),
            value: "not given".into(),
            must_be: must_be.into(),
            remedy: None,
        });
    };
    let has_vllm_url = entries.iter().any(|(name, node)| {
        let url = |(key, _): &(String, Node)| key == "prometheus_url";
        name == "vllm" && matches!(node, Node::Map(keys) if keys.iter().any(url))
    });
    if missing("name") {
        require("name", "given: it names the server's model and records");
    }
    if missing("metrics_url") && !has_vllm_url {
        require("metrics_url", "given: each server has a page of its own");
    }
    let mut reader = Reader::of_server(text, entries);
    reader.windows = windows;
    let mut own = reader.section("");
    let name = own.key("name", String::new(), &server_name());
    let engine = own.key("engine", EngineKind::Auto, &engine());
    let config = Config::read(&mut reader, base.clone(), true);
    check::relations_of_server(&config, &mut reader);
    check::advice(&config, &mut reader);
    if config.gpu.runtime_dir != base.gpu.runtime_dir {
        let value = config.gpu.runtime_dir.as_deref().map_or_else(|| "null".into(), shown);
        let must_be = "that of the file: one directory serves all servers".into();
        let key = "gpu.runtime_dir";
        reader.relation(&[key], Problem::Value { key: key.into(), value, must_be, remedy: None });
    }
    let (problems, warnings) = reader.finish();
    absent.extend(problems);
    (Server { name, engine, config }, absent, warnings)
}

impl Config {
    /// The servers, each with its name and its whole configuration; the short form has one.
    ///
    /// Each server of a list keeps its model and its records in a directory of its name. None with `servers: auto`: they
    /// have to be looked for.
    pub fn servers(&self) -> Vec<Server> {
        match &self.servers {
            Servers::One => {
                vec![Server { name: ONE.into(), engine: EngineKind::Auto, config: self.clone() }]
            }
            Servers::Auto => Vec::new(),
            Servers::List(servers) => servers.iter().map(|server| self.with_dirs(server.clone())).collect(),
        }
    }

    /// Has the machine to be asked which servers there are, or which GPUs one of them has?
    pub(crate) fn is_auto(&self) -> bool {
        self.servers == Servers::Auto || self.servers().iter().any(Server::is_auto)
    }

    /// The GPUs of all servers that are named.
    pub fn gpus(&self) -> Vec<GpuSelector> {
        self.servers().into_iter().flat_map(|server| server.config.gpu.device_id).collect()
    }

    /// The server with directories of its own below those of the file.
    pub(crate) fn with_dirs(&self, mut server: Server) -> Server {
        let below = |dir: &str| std::path::Path::new(dir).join(&server.name).to_string_lossy().into_owned();
        let (model, experiment) = (below(&self.model.save_dir), below(&self.experiment.dir));
        server.config.model = super::Model { save_dir: model, ..self.model.clone() };
        server.config.experiment = super::Experiment { dir: experiment, ..self.experiment.clone() };
        server.config.servers = Servers::One;
        server
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Seconds;

    const TWO: &str = "
control: {ttft_limit: 2.0, policy: linucb}
servers:
  - name: chat
    metrics_url: http://127.0.0.1:8000/metrics
    gpus: [0, 1]
    tpot_limit: 0.05
  - name: code
    engine: vllm
    metrics_url: http://127.0.0.1:8001/metrics
    gpus: auto
    control: {ttft_limit: 0.5, seed: 7}
    idle: {enabled: false}
";

    fn parse(text: &str) -> Config {
        Config::parse(text, "c.yaml").unwrap().config
    }

    fn complaints(text: &str) -> String {
        Config::parse(text, "c.yaml").unwrap_err().to_string()
    }

    #[test]
    fn entries_stand_over_the_sections_of_the_file() {
        let config = parse(TWO);
        let servers = config.servers();
        let [chat, code] = servers.as_slice() else { panic!("{servers:?}") };
        assert_eq!((chat.name.as_str(), code.name.as_str()), ("chat", "code"));
        assert_eq!((&chat.engine, code.engine.to_string().as_str()), (&EngineKind::Auto, "vllm"));
        let of = |server: &Server| {
            let control = &server.config.control;
            (control.ttft_limit, control.tpot_limit, control.seed, control.policy)
        };
        let file = &config.control;
        assert_eq!(of(chat), (Seconds(2.0), Seconds(0.05), file.seed, file.policy));
        assert_eq!(of(code), (Seconds(0.5), file.tpot_limit, 7, file.policy));
        assert_eq!(chat.config.gpu.device_id, [GpuSelector::Index(0), GpuSelector::Index(1)]);
        assert!(code.is_auto() && !chat.is_auto() && config.is_auto() && !code.config.idle.enabled);
        assert!(chat.config.idle.enabled);
        assert!(chat.config.model.save_dir.ends_with("models/chat"));
        assert!(code.config.experiment.dir.ends_with("experiment/code"));
        // A snapshot of the file gives the same servers.
        assert_eq!(parse(&config.to_yaml()), config);
        // And so does one with a key set.
        let set = config.with(&[("control.tpot_limit".into(), "0.9".into())], "--set").unwrap().config;
        assert_eq!(set.servers()[0].config.control.tpot_limit, Seconds(0.05));
    }

    #[test]
    fn short_form_is_one_server_with_the_directories_of_the_file() {
        let config = parse("vllm: {prometheus_url: \"http://127.0.0.1:8001/metrics\"}");
        let servers = config.servers();
        assert_eq!((servers.len(), servers[0].name.as_str()), (1, ONE));
        assert_eq!(servers[0].config, config);
        assert!(
            !config.is_auto()
                && parse("servers: auto").is_auto()
                && parse("gpu: {device_id: auto}").is_auto()
        );
        assert_eq!(parse("servers: auto").servers, Servers::Auto);
        assert_eq!(parse(&parse("servers: auto").to_yaml()).servers, Servers::Auto);
    }

    #[test]
    fn all_problems_of_all_entries_are_reported_with_their_place() {
        let text = "
servers:
  - {name: chat, metrics_url: 'ftp://x', gpus: [0, 0], tpot_limt: 1}
  - {name: Chat, metrics_url: 'http://h:1/metrics', control: {ttft_limit: soon}, logging: {dir: x}}
  - {metrics_url: 'http://h:2/metrics', objective: edp, control: {objective: edp}}
  - {name: a/b, gpu: {runtime_dir: /elsewhere}}
  - 7
";
        let said = complaints(text);
        for part in [
            "servers.chat.metrics_url",
            "servers.chat.gpus",
            "servers.chat.tpot_limt is not a known key; did you mean tpot_limit?",
            "servers[2].name",
            "servers.Chat.ttft_limit is the text \"soon\"",
            "servers.Chat.logging is not a known key",
            "servers[3].name is not given",
            "servers[3].objective is given 2 times",
            "servers[4].name",
            "servers[4].metrics_url is not given",
            "servers[4].gpu.runtime_dir",
            "servers is 7",
        ] {
            assert!(said.contains(part), "{part} not in\n{said}");
        }
        for wrong in ["servers: {}", "servers: []", "servers: 3", "servers: [x]"] {
            assert!(complaints(wrong).contains("servers is"), "{wrong}");
        }
    }

    #[test]
    fn keys_of_an_entry_bound_each_other_with_those_of_the_file() {
        let said = complaints(
            "servers: [{name: a, metrics_url: 'http://h:1/metrics', control: {decision_interval_s: 5}}]",
        );
        assert!(said.contains("servers.a.vllm.outage_after_s"), "{said}");
    }
}
