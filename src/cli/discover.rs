//! `agft check --discover`: the inference servers of this machine, and the configuration that would follow.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Exit, report_gpu_error};
use crate::discover::procfs::Procfs;
use crate::discover::{DiscoverError, Discovery, Found, Look, RIGHTS, Rest};
use crate::engine::{self, Profile};
use crate::gpu::host::{self, Host};
use crate::text;

/// Looks and prints.
pub(super) fn run() -> Exit {
    let host = match host::open() {
        Ok(host) => host,
        Err(error) => return report_gpu_error(&error),
    };
    let look = Discovery::new(Procfs::default()).and_then(|mut discovery| discovery.look(host));
    match look {
        Ok(look) => {
            super::say::print(&shown(&look, &labels(host)));
            Exit::Ok
        }
        Err(DiscoverError::Gpu(error)) => report_gpu_error(&error),
        Err(error) => {
            complain!("agft: {error}");
            Exit::Failure
        }
    }
}

/// `GPU 0 (NVIDIA A100-SXM4-80GB)` of each UUID.
fn labels(host: &dyn Host) -> BTreeMap<String, String> {
    let gpus = host.list().unwrap_or_default();
    gpus.into_iter().map(|gpu| (gpu.uuid.clone(), text::line(&gpu.to_string()).into_owned())).collect()
}

fn shown(look: &Look, labels: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    look.found.iter().for_each(|found| server(&mut out, found, labels));
    look.rest.iter().for_each(|rest| other(&mut out, rest, labels));
    if !look.unknown.is_empty() {
        let (pids, why) = (numbers(&look.unknown), look.why_unknown());
        put(&mut out, &format!("note  processes {pids} use a GPU and are not known here: {why}"));
    }
    if look.found.is_empty() {
        put(&mut out, "note  no inference server found");
    }
    if !look.found.is_empty() {
        put(&mut out, "\nThe configuration that would follow:\n\nservers:");
        look.found.iter().for_each(|found| entry(&mut out, found));
    }
    out
}

fn server(out: &mut String, found: &Found, labels: &BTreeMap<String, String>) {
    let Found { name, engine, metrics_url, pids, .. } = found;
    put(out, &format!("ok    {name}: {engine}"));
    if let Some(model) = &found.model {
        put(out, &format!("      model: {}", text::line(model)));
    }
    put(out, &format!("      metrics: {metrics_url}"));
    for uuid in &found.gpus {
        let shared = if found.shared.contains(uuid) { ", shared with other processes" } else { "" };
        put(out, &format!("      {}, {uuid}{shared}", label(labels, uuid)));
    }
    put(out, &format!("      processes: {}", numbers(pids)));
}

fn other(out: &mut String, rest: &Rest, labels: &BTreeMap<String, String>) {
    let Rest { candidate, answers } = rest;
    let gpus: Vec<&str> = candidate.gpus.iter().map(|uuid| label(labels, uuid)).collect();
    let (name, gpus, pids) = (text::line(&candidate.name), gpus.join(", "), numbers(&candidate.pids));
    put(out, &format!("note  {name} on {gpus}: no server recognised; processes: {pids}"));
    if candidate.hidden {
        put(out, &format!("      {RIGHTS}"));
    } else if answers.is_empty() {
        put(out, "      listens nowhere");
    }
    for (address, answer) in answers {
        put(out, &format!("      {address}: {}", text::line(answer)));
    }
}

/// An entry of `servers:`.
fn entry(out: &mut String, found: &Found) {
    for uuid in &found.shared {
        put(out, &format!("  # {uuid} is shared with other processes: one clock serves them all"));
    }
    // What YAML takes for a number or a word of its own is quoted.
    let words = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"];
    let plain =
        found.name.starts_with(|c: char| c.is_ascii_alphabetic()) && !words.contains(&found.name.as_str());
    let name = if plain { found.name.clone() } else { format!("{:?}", found.name) };
    put(out, &format!("  - name: {name}"));
    put(out, &format!("    metrics_url: {}", found.metrics_url));
    // Named, it is asked whether it sleeps before its first page is.
    if engine::named(&found.engine).is_some_and(Profile::scrape_is_work) {
        put(out, &format!("    engine: {}", found.engine));
    }
    put(out, &format!("    gpus: [{}]", found.gpus.join(", ")));
}

fn label<'a>(labels: &'a BTreeMap<String, String>, uuid: &'a str) -> &'a str {
    labels.get(uuid).map_or(uuid, String::as_str)
}

fn numbers<'a>(pids: impl IntoIterator<Item = &'a u32>) -> String {
    pids.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn put(out: &mut String, line: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{line}");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::discover::candidates::Candidate;

    #[test]
    fn what_was_looked_at_is_told_with_what_came_of_it() {
        let candidate = |name: &str, pid, hidden| Candidate {
            name: name.to_owned(),
            top: pid,
            pids: BTreeSet::from([pid]),
            gpus: BTreeSet::from(["GPU-a".to_owned(), "GPU-b".to_owned()]),
            addresses: Vec::new(),
            hidden,
        };
        let answer = ("127.0.0.1:9000".parse().expect("an address"), "/metrics says HTTP 404".to_owned());
        let rest = vec![
            Rest { candidate: candidate("train\u{1b}[2J.py", 3000, false), answers: vec![answer] },
            Rest { candidate: candidate("Xorg", 5, false), answers: Vec::new() },
            Rest { candidate: candidate("python3", 6, true), answers: Vec::new() },
        ];
        let look = Look { found: Vec::new(), rest, unknown: BTreeSet::from([7, 8]), has_host_pids: false };
        let why = look.why_unknown();
        let labels = BTreeMap::from([("GPU-a".to_owned(), "GPU 0 (X)".to_owned())]);
        let wanted = format!(
            "note  train\\u001b[2J.py on GPU 0 (X), GPU-b: no server recognised; processes: 3000\n      \
             127.0.0.1:9000: /metrics says HTTP 404\n\
             note  Xorg on GPU 0 (X), GPU-b: no server recognised; processes: 5\n      listens nowhere\n\
             note  python3 on GPU 0 (X), GPU-b: no server recognised; processes: 6\n      {RIGHTS}\n\
             note  processes 7, 8 use a GPU and are not known here: {why}\n\
             note  no inference server found\n"
        );
        assert_eq!(shown(&look, &labels), wanted);
    }

    #[test]
    fn names_that_yaml_takes_for_something_else_are_quoted() {
        for (name, written) in
            [("qwen2-7b", "qwen2-7b"), ("7b", "\"7b\""), ("1e5", "\"1e5\""), ("on", "\"on\"")]
        {
            let found = Found {
                name: name.to_owned(),
                engine: "vLLM".to_owned(),
                model: None,
                metrics_url: "http://127.0.0.1:8000/metrics".to_owned(),
                gpus: vec!["GPU-a".to_owned(), "GPU-b".to_owned()],
                shared: Vec::new(),
                pids: vec![1],
                process: (1, 1),
            };
            let mut out = String::new();
            entry(&mut out, &found);
            let rest = "    metrics_url: http://127.0.0.1:8000/metrics\n    gpus: [GPU-a, GPU-b]\n";
            assert_eq!(out, format!("  - name: {written}\n{rest}"));
        }
    }
}
