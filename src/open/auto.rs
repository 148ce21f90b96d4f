//! `servers: auto` and `gpus: auto`: from what is found on the machine to servers of the configuration.

use crate::config::{Config, EngineKind, Server, Servers};
use crate::discover::procfs::Procfs;
use crate::discover::{DiscoverError, Discovery, Found, RIGHTS};
use crate::gpu::GpuSelector;
use crate::gpu::host::AnyHost;
use crate::text;

/// Looks for what a configuration leaves to be found.
pub(crate) struct Seeker {
    discovery: Discovery,
    host: AnyHost,
}

/// What one look has found.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Servers that can be served; for a `gpus: auto`, that server on its GPUs.
    pub found: Vec<Found>,
    /// What is left out: its name, and why. Each once.
    pub(crate) left_out: Vec<(String, String)>,
}

impl Seeker {
    pub(crate) fn new(host: AnyHost) -> Result<Self, DiscoverError> {
        Ok(Self { discovery: Discovery::new(Procfs::default())?, host })
    }

    /// Looks once. Blocks, for 15 s at the most.
    /// Errors: [`DiscoverError`]: nothing is known then, which is not that nothing is there.
    pub(crate) fn look(&mut self, config: &Config) -> Result<Seen, DiscoverError> {
        if config.servers == Servers::Auto { self.look_for_servers() } else { self.look_for_gpus(config) }
    }

    fn look_for_servers(&mut self) -> Result<Seen, DiscoverError> {
        let look = self.discovery.look(self.host)?;
        let mut seen = Seen::default();
        if !look.unknown.is_empty() {
            let pids: Vec<String> = look.unknown.iter().map(ToString::to_string).collect();
            let who = format!("process {}", pids.join(", "));
            seen.left_out.push((who, format!("uses a GPU and is not known here: {}", look.why_unknown())));
        }
        for rest in look.rest.iter().filter(|rest| rest.candidate.hidden) {
            let who = format!("{} (pid {})", text::line(&rest.candidate.name), rest.candidate.top);
            seen.left_out.push((who, RIGHTS.to_owned()));
        }
        for found in look.found {
            if !found.shared.is_empty() {
                let why = format!(
                    "processes of others compute on {} too: name it to have it served",
                    found.shared.join(", ")
                );
                seen.left_out.push((found.name, why));
            } else {
                seen.found.push(found);
            }
        }
        Ok(seen)
    }

    fn look_for_gpus(&mut self, config: &Config) -> Result<Seen, DiscoverError> {
        let mut seen = Seen::default();
        for (number, server) in (0..).zip(config.servers()).filter(|(_, server)| server.is_auto()) {
            let url = &server.config.vllm.prometheus_url;
            match self.discovery.gpus_of(self.host, url) {
                Ok(gpus) => seen.found.push(Found {
                    name: server.name,
                    engine: server.engine.to_string(),
                    model: None,
                    metrics_url: url.clone(),
                    gpus,
                    shared: Vec::new(),
                    pids: Vec::new(),
                    // The entry is the same, whatever process it is now.
                    process: (number, 0),
                }),
                Err(why @ (DiscoverError::Unplaced(_) | DiscoverError::Url { .. })) => {
                    seen.left_out.push((server.name, why.to_string()));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(seen)
    }
}

/// The servers of the configuration, with those that have to be looked for as they were found.
pub(crate) fn servers(config: &Config, found: &[Found]) -> Vec<Server> {
    match &config.servers {
        Servers::Auto => found.iter().map(|found| of_found(config, found)).collect(),
        _ => {
            let placed = |mut server: Server| {
                if server.is_auto() {
                    let found = found.iter().find(|found| found.name == server.name)?;
                    server.config.gpu.device_id = selectors(found);
                }
                Some(server)
            };
            config.servers().into_iter().filter_map(placed).collect()
        }
    }
}

/// The sections of the file are those of the server, but for what was found. Its page was read without a token, and
/// whoever serves it is given none.
fn of_found(config: &Config, found: &Found) -> Server {
    let mut server = config.clone();
    server.vllm.prometheus_url.clone_from(&found.metrics_url);
    (server.vllm.bearer_token_file, server.vllm.tls_ca_file) = (None, None);
    server.gpu.device_id = selectors(found);
    // Known from the start, it is asked whether it sleeps before its first page is.
    let engine = EngineKind::Named(found.engine.clone());
    config.with_dirs(Server { name: found.name.clone(), engine, config: server })
}

fn selectors(found: &Found) -> Vec<GpuSelector> {
    found.gpus.iter().cloned().map(GpuSelector::Uuid).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Seconds;

    fn found(name: &str, port: u16, gpu: &str) -> Found {
        Found {
            name: name.to_owned(),
            engine: "vLLM".to_owned(),
            model: None,
            metrics_url: format!("http://127.0.0.1:{port}/metrics"),
            gpus: vec![gpu.to_owned()],
            shared: Vec::new(),
            pids: vec![1],
            process: (1, 1),
        }
    }

    #[test]
    fn what_was_found_stands_over_the_sections_of_the_file_and_gets_no_token() {
        let text = "servers: auto\ncontrol: {ttft_limit: 2.0}\nvllm: {bearer_token_file: /etc/token}";
        let config = Config::parse(text, "c.yaml").unwrap().config;
        let servers = servers(&config, &[found("m", 1, "GPU-a"), found("n", 2, "GPU-b")]);
        let [m, n] = &servers[..] else { panic!("{servers:?}") };
        assert_eq!((m.name.as_str(), n.name.as_str()), ("m", "n"));
        let Config { vllm, gpu, control, model, .. } = &n.config;
        assert_eq!(vllm.prometheus_url, "http://127.0.0.1:2/metrics");
        assert_eq!(vllm.bearer_token_file, None);
        assert_eq!(gpu.device_id, [GpuSelector::Uuid("GPU-b".into())]);
        assert_eq!(control.ttft_limit, Seconds(2.0));
        assert!(model.save_dir.ends_with("models/n"));
    }

    #[test]
    fn entry_whose_gpus_are_looked_for_is_one_when_they_are_found() {
        let text = "servers: [{name: a, metrics_url: 'http://h:1/metrics', gpus: auto}, \
                    {name: b, metrics_url: 'http://h:2/metrics', gpus: 3}]";
        let config = Config::parse(text, "c.yaml").unwrap().config;
        let named = |found: &[Found]| {
            let servers = servers(&config, found).into_iter();
            servers.map(|server| (server.name, server.config.gpu.device_id)).collect::<Vec<_>>()
        };
        let b = ("b".to_owned(), vec![GpuSelector::Index(3)]);
        assert_eq!(named(&[]), std::slice::from_ref(&b));
        let a = ("a".to_owned(), vec![GpuSelector::Uuid("GPU-a".into())]);
        assert_eq!(named(&[found("a", 1, "GPU-a")]), [a, b]);
    }
}
