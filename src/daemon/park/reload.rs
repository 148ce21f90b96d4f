//! SIGHUP: the file is read again, and the guardian never lets go.
//!
//! A file with an error changes nothing. Of a good one the section `park` takes effect at once, as the command line of the
//! start has it, but for what a run is built upon: which GPUs, the period that the watch goes by, and the port of the
//! metrics. That is named, and waits for a restart. GPUs whose constants change have their clocks given back first; what
//! was learned of gaps, and the books, stay.

use std::path::PathBuf;

use tokio::signal::unix::Signal;

use super::ParkRun;
use super::activity::ActivitySource;
use super::hooks::FanHooks;
use super::levels::{Levels, levels};
use super::member::Member;
use super::setup::{self, SetupError};
use crate::compose;
use crate::config::{Config, ConfigError, Park, ParkLever};
use crate::daemon::reload::{differences, hung_up, read_again};
use crate::park::fans::FanRule;

/// What the command line makes of the file.
pub type Arguments = Box<dyn Fn(Config) -> Result<Config, ConfigError>>;

/// What a run has to know to take up a new configuration.
pub struct Reloader {
    /// SIGHUP.
    pub hangup: Signal,
    /// The file.
    pub path: PathBuf,
    /// What the command line says instead, by the same rules.
    pub arguments: Arguments,
    /// What is in force.
    pub config: Config,
}

impl Reloader {
    /// Waits for the next SIGHUP.
    pub async fn requested(&mut self) {
        hung_up(&mut self.hangup).await;
    }

    /// Reads the file; `None` if nothing takes effect now. Says so in the log.
    fn read(&self) -> Option<Config> {
        let file = self.path.display();
        let wanted = match (self.arguments)(read_again(&self.path)?) {
            Ok(wanted) => wanted,
            Err(error) => {
                tracing::error!(%error, "configuration not reloaded: the old one stays");
                return None;
            }
        };
        let merged = merge(&self.config, &wanted);
        for (key, change) in differences(&merged, &wanted).into_iter().filter(|(key, _)| ours(key)) {
            tracing::warn!(key, change, "takes effect with the next start");
        }
        if differences(&self.config, &merged).is_empty() {
            tracing::info!(%file, "configuration reloaded: nothing takes effect now");
            return None;
        }
        Some(merged)
    }
}

/// Keys that matter to `agft park`.
fn ours(key: &str) -> bool {
    ["park.", "logging.", "gpu.runtime_dir", "observe.allowed_hosts"].iter().any(|part| key.starts_with(part))
}

/// The old configuration with the new section `park`, as far as a run can change.
fn merge(old: &Config, new: &Config) -> Config {
    let mut merged = old.clone();
    merged.park = Park {
        gpus: old.park.gpus.clone(),
        active_poll_ms: old.park.active_poll_ms,
        metrics_listen: old.park.metrics_listen,
        pstate: old.park.pstate,
        ..new.park.clone()
    };
    merged
}

/// All that can fail, made before anything changes.
struct Prepared {
    levels: Vec<Levels>,
    sources: Option<Vec<Box<dyn ActivitySource>>>,
    hooks: Option<Option<FanHooks>>,
}

impl Prepared {
    fn new(old: &Park, new: &Park, run: &ParkRun) -> Result<Self, SetupError> {
        let clocks = run.members.iter().map(|member| wanted_levels(old, new, member));
        let watches = |park: &Park| (park.ports.clone(), park.sources.clone());
        let fans = |park: &Park| (park.fan_on.clone(), park.fan_off.clone(), park.fan_timeout_s);
        Ok(Self {
            levels: clocks.collect::<Result<_, SetupError>>()?,
            sources: if watches(old) == watches(new) { None } else { Some(setup::sources(new)?) },
            hooks: if fans(old) == fans(new) { None } else { Some(setup::fan_hooks(new)?) },
        })
    }
}

fn wanted_levels(old: &Park, new: &Park, member: &Member) -> Result<Levels, SetupError> {
    let by_state = member.is_by_state();
    // The guardian of this run was told of the GPUs whose state is forced.
    if new.lever != old.lever && (by_state || new.lever == ParkLever::Pstate) {
        return Err(SetupError::Pstate { gpu: member.info().to_string() });
    }
    levels(new, member.info(), &member.supported_clocks()?, by_state)
}

/// Reads the file and takes it up. Says whether anything changed.
///
/// # Errors
/// [`GpuError`](crate::gpu::GpuError) after which a GPU cannot be controlled.
pub(super) fn reload(run: &mut ParkRun) -> Result<bool, crate::gpu::GpuError> {
    let Some(config) = run.reload.as_ref().and_then(Reloader::read) else { return Ok(false) };
    let new = &config.park;
    let prepared = match Prepared::new(&run.park, new, run) {
        Ok(prepared) => prepared,
        Err(error) => {
            tracing::error!(%error, "configuration not reloaded: the old one stays");
            return Ok(false);
        }
    };
    run.pulse.mark();
    if let Some(sources) = prepared.sources {
        run.sources = sources;
    }
    if let Some(hooks) = prepared.hooks {
        // The old programs switch on what they switched off.
        if let (Some(command), Some(hooks)) = (run.fans.end(), &run.hooks) {
            hooks.order(command);
        }
        // A program that still runs is waited for, but not by the loop.
        if let Some(old) = std::mem::replace(&mut run.hooks, hooks) {
            let waits = std::thread::Builder::new().name("agft-fans-end".into());
            if let Err(error) = waits.spawn(move || drop(old)) {
                tracing::warn!(%error, "the loop waited for the fans");
            }
        }
    }
    if new.fan_off_after_s != run.park.fan_off_after_s {
        if let (Some(command), Some(hooks)) = (run.fans.end(), &run.hooks) {
            hooks.order(command);
        }
        run.fans = FanRule::new(new.fan_off_after_s);
    }
    run.log_every = new.log_interval_s;
    let settings = compose::park::settings(new);
    // Only now: what was prepared has taken its time.
    let now = run.clock.now();
    for (member, levels) in run.members.iter_mut().zip(prepared.levels) {
        run.pulse.mark();
        member.reconfigure(settings, levels, now)?;
    }
    run.park = config.park.clone();
    if let Some(reloader) = &mut run.reload {
        for (key, change) in differences(&reloader.config, &config) {
            tracing::info!(key, change, "takes effect now");
        }
        tracing::info!(file = %reloader.path.display(), "configuration reloaded");
        reloader.config = config;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Listen;
    use crate::units::Seconds;

    #[test]
    fn what_a_run_is_built_upon_keeps_its_value_and_is_named() {
        let old = Config::default();
        let mut new = Config::default();
        new.park.metrics_listen = Listen(None);
        new.park.active_poll_ms = 50;
        new.park.gpus = Some(Vec::new());
        new.park.idle_timeout_s = Seconds(5.0);
        new.control.seed = 7;
        new.gpu.runtime_dir = Some("/elsewhere".into());
        let merged = merge(&old, &new);
        let names = |a, b| differences(a, b).into_iter().map(|(key, _)| key);
        assert_eq!(names(&old, &merged).collect::<Vec<_>>(), ["park.idle_timeout_s"]);
        let waits: Vec<_> = names(&merged, &new).filter(|key| ours(key)).collect();
        assert_eq!(waits, ["gpu.runtime_dir", "park.active_poll_ms", "park.gpus", "park.metrics_listen"]);
    }
}
