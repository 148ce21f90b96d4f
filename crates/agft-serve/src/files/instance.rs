//! An entry of an instance file becomes an [`Instance`]. No I/O.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use url::Url;

use super::section::{Item, Report, Section};
use super::yaml::{Node, Value};
use super::{Surroundings, gpus, ollama};
use crate::spec::{Hook, Instance, Log, OnDemand, Probe, Ready, Restart, RestartPolicy, Stop};
use crate::text::is_harmful;

/// The keys of an entry, and those of its sections, in the order of the documentation.
pub(super) const KEYS: &[&str] = &[
    "name",
    "enabled",
    "command",
    "env",
    "working_directory",
    "user",
    "gpus",
    "ready",
    "restart",
    "stop",
    "hooks",
    "log",
    "on_demand",
    "metrics_url",
    "type",
    "post_launch_hooks",
    "model",
    "ollama_host",
    "options",
    "cuda_visible_devices",
];
pub(super) const READY: &[&str] = &["http", "port", "timeout_s", "hung_after_s"];
pub(super) const RESTART: &[&str] = &["policy", "first_s", "longest_s", "crash_loop_after", "stable_after_s"];
pub(super) const STOP: &[&str] = &["signal", "grace_s"];
pub(super) const HOOK: &[&str] = &["name", "enabled", "command", "hooks", "post_launch_hooks"];
pub(super) const LOG: &[&str] = &["file", "max_mib", "keep"];
pub(super) const ON_DEMAND: &[&str] = &["listen", "private_port", "stop_after_idle_s"];

/// Stands for the private port.
pub(super) const PORT: &str = "{port}";

/// Longest name, in bytes: a log file and a unit file are called by it.
const LONGEST_NAME: usize = 80;
const DAY_S: f64 = 86_400.0;
const YEAR_S: f64 = 365.0 * DAY_S;

/// The name of the entry `node`, if it has a usable one.
pub(super) fn name_of(node: &Node) -> Option<String> {
    let Value::Map(entries) = &node.value else { return None };
    entries.iter().find(|(key, _)| key == "name").and_then(|(_, value)| match &value.value {
        Value::Scalar { text, .. } if is_name(text) => Some(text.clone()),
        _ => None,
    })
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= LONGEST_NAME
        && name.trim() == name
        && !name.starts_with(['.', '-'])
        && !name.contains(|c| c == '/' || is_harmful(c))
}

/// Reads one entry. What is wrong goes to the report; the result counts only if nothing is.
pub(super) fn read(report: &Report, node: Node, around: &Surroundings) -> Option<Instance> {
    let mut section = Section::open(report, "", node, KEYS)?;
    let name = read_name(&mut section);
    let enabled = section.take("enabled").and_then(|item| item.bool()).unwrap_or(true);
    let mut env = section.take("env").map(read_env).unwrap_or_default();
    let special = ollama::read(report, &mut section, &mut env, around);
    let command = match section.take("command") {
        Some(item) => read_command(&item),
        None if special.is_some() => Some(vec!["ollama".to_owned(), "serve".to_owned()]),
        None => {
            section.missing("command", COMMAND);
            None
        }
    };
    let ready = section.take("ready").and_then(read_ready);
    let mut hooks = section.take_either("hooks", "post_launch_hooks").map(read_hooks).unwrap_or_default();
    let (ready, preload) = match special {
        Some(ollama) => (ready.or(Some(ollama.ready)), ollama.preload),
        None => (ready, None),
    };
    hooks.extend(preload);
    let path = |item: Option<Item<'_>>| item.and_then(|item| absolute(&item));
    let instance = Instance {
        gpus: gpus::of_instance(report, section.take("gpus"), &mut env, &around.cuda),
        name: name.unwrap_or_default(),
        enabled,
        command: command.unwrap_or_default(),
        env,
        working_directory: path(section.take("working_directory")),
        user: section.take("user").and_then(|item| item.text("a user name")),
        ready,
        restart: read_restart(section.take("restart")),
        stop: read_stop(section.take("stop")),
        hooks,
        log: read_log(section.take("log")),
        on_demand: section.take("on_demand").and_then(read_on_demand),
        metrics_url: section.take("metrics_url").and_then(|item| http_url(&item)),
    };
    check_port(report, &instance);
    Some(instance)
}

fn read_name(section: &mut Section<'_>) -> Option<String> {
    const RULE: &str = "1 to 80 bytes without / and control characters, not beginning with . or -";
    let Some(item) = section.take("name") else {
        section.missing("name", RULE);
        return None;
    };
    let name = item.text(RULE)?;
    if !is_name(&name) {
        item.wrong(RULE, None);
        return None;
    }
    Some(name)
}

/// The private port is of use only where somebody is told of it, and known only with `on_demand`.
fn check_port(report: &Report, instance: &Instance) {
    let uses = |text: &Option<String>| text.as_ref().is_some_and(|text| text.contains(PORT));
    match &instance.on_demand {
        None => {
            let ready = instance.ready.as_ref();
            let http =
                ready.is_some_and(|ready| matches!(&ready.probe, Probe::Http(url) if url.contains(PORT)));
            let port = ready.is_some_and(|ready| ready.probe == Probe::Port(0));
            let keys =
                [("metrics_url", uses(&instance.metrics_url)), ("ready.http", http), ("ready.port", port)];
            for (key, _) in keys.into_iter().filter(|(_, used)| *used) {
                let rule = "names the private port, which there is only with on_demand".to_owned();
                report.problem(0, key, rule, Some("write the server's port".into()));
            }
        }
        Some(on_demand) => {
            let told = instance.command.iter().any(|word| word.contains(PORT));
            if on_demand.private_port.is_none() && !told && !instance.command.is_empty() {
                let rule = format!(
                    "does not have {PORT}, must have it: on_demand chooses a free port for the server"
                );
                let remedy =
                    format!("write --port {PORT}, or set on_demand.private_port to the port it listens at");
                report.problem(0, "command", rule, Some(remedy));
            }
            if on_demand.private_port == Some(on_demand.listen.port()) {
                let rule = "is the port of on_demand.listen, must be another".to_owned();
                report.problem(0, "on_demand.private_port", rule, None);
            }
        }
    }
}

const COMMAND: &str = "a program and its arguments, as a list or as one line";

/// A list of words, or a line that is split as a shell splits it, without anything else that a shell does.
fn read_command(item: &Item<'_>) -> Option<Vec<String>> {
    let words = match &item.node.value {
        Value::List(nodes) => {
            let words: Vec<Option<String>> = nodes
                .iter()
                .enumerate()
                .map(|(k, node)| {
                    let key = format!("{}[{}]", item.key, k + 1);
                    Item { report: item.report, key, node: node.clone() }.written("a word")
                })
                .collect();
            words.into_iter().collect::<Option<Vec<_>>>()?
        }
        _ => {
            let line = item.written(COMMAND)?;
            let Some(words) = shlex::split(&line) else {
                item.wrong("a line with each quote closed and no \\ at its end", None);
                return None;
            };
            for shell in words.iter().filter(|word| is_shell(word)) {
                let key = &item.key;
                item.report.note(format!("{key}: {shell} is passed on as it is: no shell reads the command"));
            }
            words
        }
    };
    if words.first().is_none_or(|program| program.trim().is_empty()) {
        item.wrong(COMMAND, None);
        return None;
    }
    Some(words)
}

fn is_shell(word: &str) -> bool {
    matches!(word, "|" | "||" | "&" | "&&" | ";" | ">" | ">>" | "<" | "2>&1") || word.starts_with("$(") || {
        let name = word.strip_prefix('$').unwrap_or_default();
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '{')
    }
}

fn read_env(item: Item<'_>) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    for (name, item) in item.entries("a mapping of names to values") {
        if name.is_empty() || name.contains(['=', '\0']) {
            item.wrong("under a name that is not empty and has no =", None);
        } else if let Some(value) = item.written("text, a number or a truth value") {
            env.insert(name, value);
        }
    }
    env
}

fn absolute(item: &Item<'_>) -> Option<PathBuf> {
    let path = item.text("an absolute path")?;
    if !Path::new(&path).is_absolute() {
        let home = path.starts_with('~').then(|| "no shell reads it: write the directory for ~".to_owned());
        item.wrong("an absolute path", home);
        return None;
    }
    Some(path.into())
}

fn http_url(item: &Item<'_>) -> Option<String> {
    const RULE: &str = "an address like http://127.0.0.1:8080/health";
    let text = item.text(RULE)?;
    match Url::parse(&text.replace(PORT, "1")) {
        Ok(url) if url.scheme() == "http" && url.has_host() => Some(text),
        Ok(url) if url.scheme() == "https" => {
            item.wrong(
                RULE,
                Some("give the server's address on this machine: it is asked without TLS".into()),
            );
            None
        }
        _ => {
            item.wrong(RULE, None);
            None
        }
    }
}

/// Longest time to load a model where nothing is said.
pub(super) const READY_TIMEOUT: Duration = Duration::from_secs(600);

fn read_ready(item: Item<'_>) -> Option<Ready> {
    let line = item.node.line;
    let report = item.report;
    let mut section = item.section(READY)?;
    let http = section.take("http");
    let port = section.take("port");
    let timeout =
        section.take("timeout_s").and_then(|item| item.seconds(1.0, DAY_S)).unwrap_or(READY_TIMEOUT);
    let hung_after = section.take("hung_after_s").and_then(|item| item.seconds(1.0, DAY_S));
    let probe = match (http, port) {
        (Some(http), None) => http_url(&http).map(Probe::Http),
        (None, Some(port)) if matches!(&port.node.value, Value::Scalar { text, .. } if text == PORT) => {
            Some(Probe::Port(0))
        }
        (None, Some(port)) => {
            port.whole(1, 65_535).and_then(|port| u16::try_from(port).ok()).map(Probe::Port)
        }
        (given, _) => {
            let rule = if given.is_some() { "has http and port" } else { "has neither http nor port" };
            report.problem(line, "ready", format!("{rule}, must have one of them"), None);
            None
        }
    };
    probe.map(|probe| Ready { probe, timeout, hung_after })
}

fn read_restart(item: Option<Item<'_>>) -> Restart {
    let mut restart = Restart {
        policy: RestartPolicy::Always,
        first: Duration::from_secs(1),
        longest: Duration::from_secs(60),
        crash_loop_after: 5,
        stable_after: Duration::from_secs(60),
    };
    let Some(mut section) = item.and_then(|item| item.section(RESTART)) else { return restart };
    if let Some(item) = section.take("policy") {
        const RULE: &str = "always, on-failure or never";
        match item.text(RULE).as_deref() {
            Some("always") => restart.policy = RestartPolicy::Always,
            Some("on-failure") => restart.policy = RestartPolicy::OnFailure,
            Some("never") => restart.policy = RestartPolicy::Never,
            Some(other) => {
                let likely = other.eq_ignore_ascii_case("on_failure").then(|| "write on-failure".into());
                item.wrong(RULE, likely);
            }
            None => {}
        }
    }
    let mut seconds = |key, least, value: &mut Duration| {
        if let Some(read) = section.take(key).and_then(|item| item.seconds(least, DAY_S)) {
            *value = read;
        }
    };
    seconds("first_s", 0.1, &mut restart.first);
    seconds("longest_s", 0.1, &mut restart.longest);
    seconds("stable_after_s", 0.0, &mut restart.stable_after);
    if let Some(count) = section.take("crash_loop_after").and_then(|item| item.whole(1, 1000)) {
        restart.crash_loop_after = count;
    }
    // Only the first pause is given: the other's default gives way.
    restart.longest = restart.longest.max(restart.first);
    restart
}

const SIGNALS: [(&str, Signal); 7] = [
    ("TERM", Signal::TERM),
    ("INT", Signal::INT),
    ("QUIT", Signal::QUIT),
    ("HUP", Signal::HUP),
    ("USR1", Signal::USR1),
    ("USR2", Signal::USR2),
    ("KILL", Signal::KILL),
];

fn read_stop(item: Option<Item<'_>>) -> Stop {
    let mut stop = Stop { signal: Signal::TERM.as_raw(), grace: Duration::from_secs(30) };
    let Some(mut section) = item.and_then(|item| item.section(STOP)) else { return stop };
    if let Some(item) = section.take("signal") {
        const RULE: &str = "TERM, INT, QUIT, HUP, USR1, USR2 or KILL";
        let name = item.text(RULE).map(|name| name.to_ascii_uppercase());
        let known = name.as_deref().and_then(|name| {
            let name = name.strip_prefix("SIG").unwrap_or(name);
            SIGNALS.iter().find(|(known, _)| *known == name)
        });
        match known {
            Some((_, signal)) => stop.signal = signal.as_raw(),
            None if name.is_some() => item.wrong(RULE, None),
            None => {}
        }
    }
    if let Some(grace) = section.take("grace_s").and_then(|item| item.seconds(0.0, DAY_S)) {
        stop.grace = grace;
    }
    stop
}

fn read_hooks(item: Item<'_>) -> Vec<Hook> {
    item.list("a list of hooks")
        .into_iter()
        .filter_map(|item| {
            let mut section = item.section(HOOK)?;
            let name = section.take("name").and_then(|item| item.text("a name"));
            let enabled = section.take("enabled").and_then(|item| item.bool()).unwrap_or(true);
            let command = match section.take("command") {
                Some(item) => read_command(&item),
                None => {
                    section.missing("command", COMMAND);
                    None
                }
            };
            let hooks = section.take_either("hooks", "post_launch_hooks").map(read_hooks).unwrap_or_default();
            let command = command?;
            let name = name.or_else(|| command.first().cloned()).unwrap_or_default();
            Some(Hook { name, enabled, command, hooks })
        })
        .collect()
}

fn read_log(item: Option<Item<'_>>) -> Log {
    let mut log = Log { file: None, max_bytes: 64 << 20, keep: 3 };
    let Some(mut section) = item.and_then(|item| item.section(LOG)) else { return log };
    log.file = section.take("file").and_then(|item| absolute(&item));
    if let Some(mib) = section.take("max_mib").and_then(|item| item.whole(1, 1 << 20)) {
        log.max_bytes = u64::from(mib) << 20;
    }
    if let Some(keep) = section.take("keep").and_then(|item| item.whole(0, 100)) {
        log.keep = keep;
    }
    log
}

fn read_on_demand(item: Item<'_>) -> Option<OnDemand> {
    const LISTEN: &str = "an address and a port, like 127.0.0.1:8080";
    let mut section = item.section(ON_DEMAND)?;
    let listen = match section.take("listen") {
        Some(item) => item.text(LISTEN).and_then(|text| {
            let read = text.parse::<SocketAddr>().ok().filter(|address| address.port() > 0);
            if read.is_none() {
                item.wrong(LISTEN, None);
            }
            read
        }),
        None => {
            section.missing("listen", LISTEN);
            None
        }
    };
    let private_port = section
        .take("private_port")
        .and_then(|item| item.whole(1, 65_535))
        .and_then(|port| u16::try_from(port).ok());
    let idle = section.take("stop_after_idle_s").and_then(|item| item.seconds(1.0, YEAR_S));
    Some(OnDemand {
        listen: listen?,
        private_port,
        stop_after_idle: idle.unwrap_or(Duration::from_secs(600)),
    })
}
