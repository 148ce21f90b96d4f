//! `type: ollama`, as gppm's files have it: Ollama as a server, and the model that it is to have loaded.

use std::collections::BTreeMap;

use super::Surroundings;
use super::gpus::VISIBLE;
use super::instance::READY_TIMEOUT;
use super::section::{Report, Section};
use super::yaml::Value;
use crate::spec::{Hook, Probe, Ready};

/// Where Ollama listens where nothing is said.
const USUAL: &str = "127.0.0.1:11434";

/// What the type stands for, beside the command `ollama serve` and its environment.
pub(super) struct Ollama {
    pub(super) ready: Ready,
    /// Has the model loaded.
    pub(super) preload: Option<Hook>,
}

/// Reads the keys that only this type has, and puts what they say in the environment.
pub(super) fn read(
    report: &Report,
    section: &mut Section<'_>,
    env: &mut BTreeMap<String, String>,
    around: &Surroundings,
) -> Option<Ollama> {
    let is_ollama = section.take("type").is_some_and(|item| {
        const RULE: &str = "llamacpp or ollama";
        match item.text(RULE).as_deref() {
            Some("llamacpp") | None => false,
            Some("ollama") => true,
            Some(_) => {
                let remedy = "leave it out for any other server: command says what is run";
                item.wrong(RULE, Some(remedy.into()));
                false
            }
        }
    });
    let keys = ["ollama_host", "model", "options", "cuda_visible_devices"].map(|key| section.take(key));
    if !is_ollama {
        for item in keys.into_iter().flatten() {
            report.problem(
                item.node.line,
                &item.key,
                "is a key of type: ollama alone".into(),
                Some("take it out".into()),
            );
        }
        return None;
    }
    let [host, model, options, visible] = keys;
    let host = host.and_then(|item| item.text("an address and a port, like 127.0.0.1:11434"));
    let host = host.or_else(|| env.get("OLLAMA_HOST").cloned());
    if let Some(host) = &host {
        env.insert("OLLAMA_HOST".into(), host.clone());
    }
    if let Some(item) = visible {
        let list = match &item.node.value {
            Value::List(_) => {
                let words = item.list("a list of GPUs").into_iter();
                words.map(|item| item.text("a GPU")).collect::<Option<Vec<_>>>().map(|words| words.join(","))
            }
            _ => item.written("GPUs as CUDA_VISIBLE_DEVICES has them"),
        };
        if let Some(list) = list {
            env.entry(VISIBLE.into()).or_insert(list);
        }
    }
    let base = base_url(host.as_deref().unwrap_or(USUAL));
    let options = options.filter(|item| {
        let is_map = matches!(item.node.value, Value::Map(_)) || item.node.is_null();
        if !is_map {
            item.wrong("a mapping of Ollama's options", None);
        }
        is_map && !item.node.is_null()
    });
    let model = model.and_then(|item| item.text("the name of a model"));
    let preload = model.map(|model| {
        let mut command = vec![around.program.display().to_string(), "ollama-preload".into()];
        command.extend([format!("--server={base}"), format!("--model={model}")]);
        command.extend(options.map(|item| format!("--options={}", item.node.to_json())));
        Hook { name: format!("load {model}"), enabled: true, command, hooks: Vec::new() }
    });
    let ready = Ready { probe: Probe::Http(format!("{base}/")), timeout: READY_TIMEOUT, hung_after: None };
    Some(Ollama { ready, preload })
}

/// Where this machine reaches what listens at `host`, which may be no more than a port or a name.
fn base_url(host: &str) -> String {
    let host = host.trim().trim_start_matches("http://").trim_end_matches('/');
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => (name, port),
        _ => (host, "11434"),
    };
    let name = match name {
        "" | "0.0.0.0" => "127.0.0.1",
        "[::]" => "[::1]",
        name => name,
    };
    format!("http://{name}:{port}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_address_becomes_one_that_can_be_asked() {
        for (host, url) in [
            ("127.0.0.1:11434", "http://127.0.0.1:11434"),
            ("0.0.0.0", "http://127.0.0.1:11434"),
            ("http://0.0.0.0:8000/", "http://127.0.0.1:8000"),
            (":9000", "http://127.0.0.1:9000"),
            ("localhost", "http://localhost:11434"),
            ("[::]:1", "http://[::1]:1"),
        ] {
            assert_eq!(base_url(host), url);
        }
    }
}
