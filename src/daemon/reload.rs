//! SIGHUP: the configuration is read again, and what was learned stays.
//!
//! A file with an error changes nothing. Of a good one, everything takes effect at once that the loop can take up while
//! it runs; the rest is named, and waits for a restart: which GPUs, which policy, how often a tick comes, and where files
//! are. The loop then starts as after a restart with its model: at driver-default clocks, with the new constants.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde_json::Value;
use tokio::signal::unix::Signal;

use super::clock::Clock;
use super::feed::{Feed, Schedule};
use crate::bandit::{ActionSpace, Policy};
use crate::compose;
use crate::config::{self, Config, ConfigError, Server};
use crate::control::{Controller, Learned, Settings};
use crate::gpu::SupportedClocks;
use crate::metrics::scrape::without_query;
use crate::open::group::scrapers;
use crate::open::join;
use crate::park::levers::LeverBook;

/// What a group has to know to take up a new configuration.
pub struct Reloader {
    /// What is in force, for all servers of the group together.
    pub config: Config,
    /// Each of them, with its own.
    pub servers: Vec<Server>,
    /// It is one server of several: what is of the whole process is said elsewhere.
    pub(crate) is_one_of_several: bool,
    /// The command line says so too, whatever the file says.
    pub(crate) data_collection: bool,
    /// Commands are not carried out.
    pub dry_run: bool,
    /// What the GPUs support.
    pub clocks: SupportedClocks,
    /// How many there are.
    pub gpus: usize,
    /// When ticks are.
    pub schedule: Schedule,
    /// The run's clock.
    pub clock: Clock,
}

/// What takes the place of what ran so far.
pub(crate) struct Change {
    /// The loop, with everything learned.
    pub controller: Controller,
    /// The way to the metrics page, if that changed.
    pub feed: Option<Feed>,
    /// Its constants, for those who record.
    pub settings: Settings,
    /// The configuration now in force.
    pub config: Config,
}

impl Reloader {
    /// What the file says now takes the place of what it said; `None` if everything stays as it is. Says what it does in
    /// the log. `wanted` is the configuration of each server.
    pub(crate) fn change(&mut self, wanted: &[Config], learned: &Learned) -> Option<Change> {
        let is_shared = self.servers.len() > 1;
        let (mut servers, mut applied) = (Vec::new(), Vec::new());
        for (server, wanted) in self.servers.iter().zip(wanted) {
            let mut wanted = wanted.clone();
            wanted.control.data_collection_mode |= self.data_collection;
            let merged = merge(&server.config, &wanted);
            let name = is_shared.then(|| server.name.clone());
            let ours = |(key, _): &(String, String)| !self.is_one_of_several || is_of_a_server(key);
            for (key, change) in differences(&merged, &wanted).into_iter().filter(ours) {
                tracing::warn!(sharer = name, key, change, "takes effect with the next start");
            }
            let differences = differences(&server.config, &merged).into_iter();
            applied.extend(differences.map(|(key, change)| (name.clone(), key, change)));
            servers.push(Server { config: merged, ..server.clone() });
        }
        if applied.is_empty() {
            tracing::info!("configuration reloaded: nothing takes effect now");
            return None;
        }
        let (merged, feed) = match self.join(&servers) {
            Ok(both) => both,
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(error, "configuration not reloaded: the old one stays");
                return None;
            }
        };
        for (sharer, key, change) in applied {
            tracing::info!(sharer, key, change, "takes effect now");
        }
        let mut learned = learned.clone();
        compose::configure(&mut learned.policy, &merged);
        learned.policy.interrupt();
        let memory = compose::memory_clocks(&merged, &self.clocks);
        let space = ActionSpace::new(&self.clocks, &compose::space_settings(&merged, memory));
        let mut settings = compose::control_settings(&merged, self.dry_run);
        let levers = compose::parking(&mut settings, &merged, &self.clocks, LeverBook::default());
        let controller = Controller::new(settings.clone(), learned, space, self.gpus, self.clock.now())
            .with_levers(levers)
            .with_sharers(join::sharers(&servers));
        tracing::info!(rounds = controller.learned().rounds, "configuration reloaded");
        (self.config, self.servers) = (merged.clone(), servers);
        Some(Change { controller, feed, settings, config: merged })
    }

    /// The configuration of all servers together, and the way to their pages, if that changes.
    fn join(&self, servers: &[Server]) -> anyhow::Result<(Config, Option<Feed>)> {
        for server in servers {
            // Keys bound each other: old and new ones together may contradict where each file does not.
            Config::parse(&server.config.to_yaml(), "old and new configuration together")?;
        }
        let mut joined = join::join(servers)?.context("no server")?.config;
        joined.gpu.device_id.clone_from(&self.config.gpu.device_id);
        let differs =
            |now: &Config, before: &Config| now.vllm != before.vllm || now.control != before.control;
        let moved =
            servers.iter().zip(&self.servers).any(|(now, before)| differs(&now.config, &before.config));
        let feed = match moved {
            true => Some(Feed::spawn(scrapers(servers)?, self.schedule, self.clock)),
            false => None,
        };
        Ok((joined, feed))
    }
}

/// Waits for the next SIGHUP.
pub(super) async fn hung_up(hangup: &mut Signal) {
    if hangup.recv().await.is_none() {
        std::future::pending::<()>().await;
    }
}

/// What the file says now; `None`, said in the log, if it cannot be used.
pub(super) fn read_again(path: &Path) -> Option<Config> {
    let loaded = match Config::load_trusted(path) {
        Ok(loaded) => loaded,
        Err(error) => {
            refuse(path, &error);
            return None;
        }
    };
    for warning in &loaded.warnings {
        tracing::warn!(file = %path.display(), %warning, "configuration");
    }
    Some(loaded.config)
}

/// One line in the log for each problem, with its place in the file.
fn refuse(path: &Path, error: &ConfigError) {
    const SAYS: &str = "configuration not reloaded: the old one stays";
    let file = path.display();
    let ConfigError::Invalid { problems, .. } = error else {
        // The text has the place.
        tracing::error!(%error, "{SAYS}");
        return;
    };
    let text = std::fs::read_to_string(path).unwrap_or_default();
    for problem in problems {
        let line = config::line_of(&text, problem.key());
        tracing::error!(%file, line, key = problem.key(), %problem, "{SAYS}");
    }
}

/// The new configuration, with the old values where a run cannot change them.
fn merge(old: &Config, new: &Config) -> Config {
    let mut merged = new.clone();
    let (to, from) = (&mut merged, old.clone());
    to.gpu.device_id = from.gpu.device_id;
    to.gpu.runtime_dir = from.gpu.runtime_dir;
    to.gpu.energy_poll_interval_ms = from.gpu.energy_poll_interval_ms;
    to.idle.active_poll_ms = from.idle.active_poll_ms;
    to.idle.parked_poll_ms = from.idle.parked_poll_ms;
    // Whoever listens to clients was started with these.
    to.idle.sources.clone_from(&from.idle.sources);
    to.idle.ports.clone_from(&from.idle.ports);
    to.control.decision_interval_s = from.control.decision_interval_s;
    to.control.policy = from.control.policy;
    to.control.seed = from.control.seed;
    to.control.data_collection_mode = from.control.data_collection_mode;
    to.metrics.baseline_measurements = from.metrics.baseline_measurements;
    to.model.save_dir = from.model.save_dir;
    to.experiment = from.experiment;
    // `agft park`'s alone.
    to.park = from.park;
    to.discover = from.discover;
    to.engines = from.engines;
    to.observe = from.observe;
    let detailed = to.logging.detailed_round_logging;
    to.logging = from.logging;
    to.logging.detailed_round_logging = detailed;
    merged
}

/// Does the key stand in a section that each server may have of its own?
pub(super) fn is_of_a_server(key: &str) -> bool {
    key.split_once('.').is_some_and(|(section, _)| config::SERVER_SECTIONS.contains(&section))
}

/// `section.key` of each value that differs, and from what to what.
pub(crate) fn differences(old: &Config, new: &Config) -> Vec<(String, String)> {
    let (old, new) = (keys(old), keys(new));
    let changed = old.iter().filter_map(|(key, was)| {
        let is = new.get(key)?;
        (was != is).then(|| (key.clone(), format!("{} -> {}", shown(was), shown(is))))
    });
    changed.collect()
}

/// A value as it may be logged.
fn shown(value: &Value) -> String {
    match value.as_str() {
        Some(text) if text.contains("://") => format!("{:?}", without_query(text)),
        _ => value.to_string(),
    }
}

fn keys(config: &Config) -> BTreeMap<String, Value> {
    let mut keys = BTreeMap::new();
    // A configuration is a mapping of mappings; were it not, nothing would be said of it.
    if let Ok(Value::Object(sections)) = serde_json::to_value(config) {
        for (section, entries) in sections {
            if let Value::Object(entries) = entries {
                keys.extend(entries.into_iter().map(|(key, value)| (format!("{section}.{key}"), value)));
            }
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PolicyKind;
    use crate::units::Seconds;

    #[test]
    fn what_cannot_change_while_running_keeps_its_value_and_is_named() {
        let old = Config::default();
        let mut new = Config::default();
        new.control.policy = PolicyKind::LinUcb;
        new.model.save_dir = "elsewhere".into();
        new.control.ttft_limit = Seconds(1.0);
        new.logging.detailed_round_logging = false;
        let merged = merge(&old, &new);
        let names = |a, b| differences(a, b).into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        assert_eq!(names(&merged, &new), ["control.policy", "model.save_dir"]);
        assert_eq!(names(&old, &merged), ["control.ttft_limit", "logging.detailed_round_logging"]);
        assert_eq!(differences(&old, &merged)[0].1, "2.0 -> 1.0");
    }
}
