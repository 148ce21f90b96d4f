//! SIGHUP: the file is read again, and the guardian never lets go.
//!
//! Of a good file the section `park` takes effect at once, as the command line of the
//! start has it, but for what a run is built upon: which GPUs, the period that the watch goes by, and the port of the
//! metrics. That is named, and waits for a restart. GPUs whose constants change have their clocks given back first; what
//! was learned of gaps, and the books, stay.

use super::Surroundings;
use super::activity::Ports;
use super::hooks::FanHooks;
use super::levels::levels;
use super::setup::{self, SetupError};
use crate::config::{Config, Lever, Park};
use crate::daemon::reload::differences;
use crate::gpu::{GpuInfo, SupportedClocks};
use crate::park::fans::FanRule;

/// A GPU, as far as a change of the configuration has to know it.
#[derive(Debug, Clone)]
pub(crate) struct Parkable {
    /// Who it is.
    pub info: GpuInfo,
    /// The clocks that it has.
    pub clocks: SupportedClocks,
    /// It is parked by performance state.
    pub(crate) by_state: bool,
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
        metrics_listen: old.park.metrics_listen,
        pstate: old.park.pstate,
        ..new.park.clone()
    };
    merged.park.active_poll_ms = old.park.active_poll_ms;
    merged
}

/// All that can fail, made before anything changes.
struct Prepared {
    ports: Option<Option<Ports>>,
    hooks: Option<Option<FanHooks>>,
}

impl Prepared {
    fn new(old: &Park, new: &Park, gpus: &[Parkable]) -> Result<Self, SetupError> {
        gpus.iter().try_for_each(|gpu| can_be_parked_so(old, new, gpu))?;
        let watches = |park: &Park| (park.ports.clone(), park.sources.clone());
        let fans = |park: &Park| (park.fan_on.clone(), park.fan_off.clone(), park.fan_timeout_s);
        Ok(Self {
            ports: if watches(old) == watches(new) { None } else { Some(setup::ports(new)?) },
            hooks: if fans(old) == fans(new) { None } else { Some(setup::fan_hooks(new)?) },
        })
    }
}

fn can_be_parked_so(old: &Park, new: &Park, gpu: &Parkable) -> Result<(), SetupError> {
    // The guardian of this run was told of the GPUs whose state is forced.
    if new.lever != old.lever && (gpu.by_state || new.lever == Lever::Pstate) {
        return Err(SetupError::Pstate { gpu: gpu.info.to_string() });
    }
    levels(new, &gpu.info, &gpu.clocks, gpu.by_state).map(drop)
}

impl Surroundings {
    /// What of a configuration takes effect now, for the groups to take it up; `None` if nothing does. Says so in the log.
    ///
    /// `alone`: no server is served here, and what else is in the file is said here, too.
    pub(in crate::daemon) fn take_up(&mut self, wanted: &Config, alone: bool) -> Option<Config> {
        let config = merge(&self.config, wanted);
        let ours = |(key, _): &(String, String)| key.starts_with("park.") || alone && ours(key);
        for (key, change) in differences(&config, wanted).into_iter().filter(ours) {
            tracing::warn!(key, change, "takes effect with the next start");
        }
        let changes = differences(&self.config, &config);
        if changes.is_empty() {
            if alone {
                tracing::info!("configuration reloaded: nothing takes effect now");
            }
            return None;
        }
        let (old, new) = (&self.config.park, &config.park);
        let prepared = match Prepared::new(old, new, &self.gpus) {
            Ok(prepared) => prepared,
            Err(error) => {
                tracing::error!(%error, "configuration not reloaded: the old one stays");
                return None;
            }
        };
        if let Some(ports) = prepared.ports {
            self.ports = ports;
        }
        if prepared.hooks.is_some() || new.fan_off_after_s != old.fan_off_after_s {
            // The old programs switch on what they switched off.
            if let (Some(command), Some(hooks)) = (self.fans.end(), &self.hooks) {
                hooks.ask(command);
            }
            self.fans = FanRule::new(new.fan_off_after_s);
        }
        if let Some(hooks) = prepared.hooks {
            // A program that still runs is waited for, but not by the loop.
            if let Some(old) = std::mem::replace(&mut self.hooks, hooks) {
                let waits = std::thread::Builder::new().name("agft-fans-end".into());
                if let Err(error) = waits.spawn(move || drop(old)) {
                    tracing::warn!(%error, "the loop waited for the fans");
                }
            }
        }
        for (key, change) in changes {
            tracing::info!(key, change, "takes effect now");
        }
        self.config = config.clone();
        Some(config)
    }
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
        new.park.timeout_s = Seconds(5.0);
        new.control.seed = 7;
        new.gpu.runtime_dir = Some("/elsewhere".into());
        let merged = merge(&old, &new);
        let names = |a, b| differences(a, b).into_iter().map(|(key, _)| key);
        assert_eq!(names(&old, &merged).collect::<Vec<_>>(), ["park.timeout_s"]);
        let waits: Vec<_> = names(&merged, &new).filter(|key| ours(key)).collect();
        assert_eq!(waits, ["gpu.runtime_dir", "park.active_poll_ms", "park.gpus", "park.metrics_listen"]);
    }
}
