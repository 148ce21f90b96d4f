//! `agft release`: gives the clocks back, whoever took them.
//!
//! By default the configured GPUs are reset (all, if they have to be looked for), and those that the journals of dead
//! agfts name. With `--journal` only the
//! latter, for the service manager: it leaves an agft that runs alone, and GPUs that agft never locked.

use jiff::Timestamp;

use super::talk::{Which, socket_dir, talk};
use super::{Cli, Exit, ReleaseArgs, exit_of, load_config, report_gpu_error};
use crate::config::Config;
use crate::export::protocol::Request;
use crate::gpu::host::{self, AnyHost};
use crate::gpu::lease::give_back;
use crate::gpu::pstate::MayBeForced;
use crate::gpu::{GpuError, GpuInfo, GpuSelector};
use crate::guardian::undo::{Undone, runtime_dir, undo};
use crate::store::held::{Busy, Claim, ClaimError, HeldDir, Holder, Role, free_on_machine};
use crate::text;

/// Releases the configured GPUs, or all of them, or what the journals name.
pub(crate) fn run(args: &ReleaseArgs, cli: &Cli) -> Exit {
    // Without a readable configuration every GPU is meant: this command must work when everything else is broken.
    let config = match cli.config.exists().then(|| load_config(cli)) {
        Some(Ok(config)) => Some(config),
        None => None,
        Some(Err(_)) if args.all || args.journal => None,
        Some(Err(exit)) => return exit,
    };
    let dir = HeldDir::open(&runtime_dir(config.as_ref().unwrap_or(&Config::default())));
    let dir = match dir {
        Ok(dir) => Some(dir),
        Err(error) => {
            complain!("agft: journals of held clocks are not read: {error}");
            None
        }
    };
    if args.journal && dir.as_ref().is_some_and(HeldDir::is_clean) {
        say!("no journal of held clocks: nothing to give back");
        return Exit::Ok;
    }
    let host = match host::open() {
        Ok(host) => host,
        Err(error) => return report_gpu_error(&error),
    };
    let mut exit = if dir.is_none() && args.journal { Exit::Failure } else { Exit::Ok };
    if !args.journal {
        let selectors = config.filter(|config| !args.all && !config.is_auto()).map(|config| config.gpus());
        exit = match release(host, selectors, dir.as_ref(), cli) {
            Ok(exit) => exit,
            Err(error) => return report_gpu_error(&error),
        };
    }
    let Some(dir) = dir else { return exit };
    match undo(&dir, host, &[], Timestamp::now()) {
        Ok(undone) => {
            undone.iter().map(report).fold(exit, |worst, exit| if worst == Exit::Ok { exit } else { worst })
        }
        Err(error) => {
            complain!("agft: {error}");
            Exit::Failure
        }
    }
}

/// Resets the GPUs of the configuration, or all.
fn release(
    host: AnyHost,
    selectors: Option<Vec<GpuSelector>>,
    dir: Option<&HeldDir>,
    cli: &Cli,
) -> Result<Exit, GpuError> {
    let mut exit = Exit::Ok;
    for gpu in targets(host, selectors)? {
        // Claimed before the reset: what somebody locks after it must not lose its journal here.
        let claimed = match dir {
            Some(dir) => dir.claim_unnamed(&gpu.uuid, Role::Controller).map(Some),
            None => free_on_machine(&gpu.uuid).map(|()| None),
        };
        if let Err(error) = release_one(host, &gpu, dir) {
            complain!("agft: {error}");
            exit = exit_of(&error);
            continue;
        }
        if let (Ok(Some(_)), Some(dir)) = (&claimed, dir) {
            // Its journal, if any, is done with. One that stays is undone once more below.
            let _ = dir.clear(&gpu.uuid);
        }
        match stays_free(claimed, cli) {
            Ok(then) => say!("{gpu}: clocks given back{then}"),
            Err(why) => {
                complain!("agft: {gpu}: clocks given back, but {why}");
                exit = Exit::InUse;
            }
        }
    }
    Ok(exit)
}

fn targets(host: AnyHost, selectors: Option<Vec<GpuSelector>>) -> Result<Vec<GpuInfo>, GpuError> {
    match selectors {
        None => host.list(),
        Some(selectors) => {
            selectors.iter().map(|selector| Ok(host.sensors(selector)?.info().clone())).collect()
        }
    }
}

fn release_one(host: AnyHost, gpu: &GpuInfo, dir: Option<&HeldDir>) -> Result<(), GpuError> {
    let forced = dir.map_or(MayBeForced::Unknown, |dir| dir.state_may_be_forced(&gpu.uuid));
    let memory_locked = dir.is_some_and(|dir| dir.memory_is_locked(&gpu.uuid));
    give_back(host.clocks_to_reset(&gpu.uuid, forced)?.as_mut(), memory_locked)
}

/// What is to be said of the GPU now that its clocks are back: `Err` where somebody may lock them again.
fn stays_free(claimed: Result<Option<Claim>, ClaimError>, cli: &Cli) -> Result<String, String> {
    match claimed {
        Ok(_) => Ok(String::new()),
        Err(ClaimError::Busy(Busy { holder: Some(holder), .. })) => pause(&holder, cli),
        Err(ClaimError::Busy(_)) => Err("an agft that runs on it may lock it again; stop it".to_owned()),
        Err(ClaimError::Store(error)) => {
            Err(format!("whether an agft runs on it cannot be told: {}", text::line(&error.to_string())))
        }
    }
}

/// Pauses an agft that runs, so that it does not lock again what was given back.
fn pause(holder: &Holder, cli: &Cli) -> Result<String, String> {
    let (pid, config) = (holder.pid, holder.config.display().to_string());
    let dir = socket_dir(cli).map_err(|_| format!("agft (pid {pid}) runs on it; stop it"))?;
    let asked = talk(&dir, &Which { pid: Some(pid), server: None })
        .and_then(|mut talk| talk.ask(&Request::Pause { server: None }));
    match asked {
        Ok(_) => Ok(format!("; agft runs on it (pid {pid}) and is paused now: `agft resume` lets it go on")),
        Err(why) => Err(format!(
            "agft runs on it (pid {pid}, configuration {}) and may lock it again: it was not paused ({}); stop it, or \
             `agft --config {} pause`",
            text::line(&config),
            text::line(&why.to_string()),
            text::line(&config),
        )),
    }
}

fn report(undone: &Undone) -> Exit {
    match undone {
        Undone::GivenBack { gpu, holder } | Undone::Own { gpu, holder } => {
            let of =
                holder.as_ref().map_or_else(String::new, |holder| format!(" that pid {} had", holder.pid));
            say!("{gpu}: clocks{of} given back");
            Exit::Ok
        }
        Undone::Alive(busy) => {
            say!("left alone: {busy}");
            Exit::Ok
        }
        Undone::Dropped { gpu } => {
            say!("{gpu}: journal of another boot dropped; its locks are gone");
            Exit::Ok
        }
        Undone::PutAside { kept_as, why } => {
            complain!("agft: a journal was damaged ({why}); it is now {}", kept_as.display());
            Exit::Ok
        }
        // Where there is no such GPU, nothing of it can be locked; the journal goes with this boot.
        Undone::Failed { error: error @ GpuError::NotFound { .. }, .. } => {
            complain!("agft: {error}; the journal that names it stays");
            Exit::Ok
        }
        Undone::Failed { error, .. } => {
            complain!("agft: {error}");
            exit_of(error)
        }
    }
}
