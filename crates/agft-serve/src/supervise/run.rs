//! One process of an instance with its hooks: from the start to the moment that nothing of it is left.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::shared::Shared;
use super::{What, port};
use crate::process::cgroup::Group;
use crate::process::child::{Child, Launch, LaunchError, Output};
use crate::process::log::{Log, Source};
use crate::process::{Exit, tree};
use crate::spec::{self, Instance, Stop};

/// What a process wrote before it ended is taken within this time, unless a process that got away holds the
/// pipe.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// An instance that runs.
#[derive(Debug)]
pub(super) struct Run {
    /// Its entry with the private port in place.
    spec: Instance,
    port: Option<u16>,
    child: Child,
    group: Option<Group>,
    /// In the order of their start.
    hooks: Vec<Hook>,
    drains: Vec<JoinHandle<()>>,
}

/// Why an instance could not be started.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error("no private port is free: {0}")]
    NoPort(std::io::Error),
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

#[derive(Debug)]
struct Hook {
    stop: oneshot::Sender<()>,
    done: JoinHandle<()>,
}

impl Run {
    pub(super) async fn start(shared: &Arc<Shared>, spec: &Instance, log: &Log) -> Result<Self, RunError> {
        let port = match &spec.on_demand {
            Some(on_demand) => {
                Some(on_demand.private_port.map_or_else(port::free, Ok).map_err(RunError::NoPort)?)
            }
            None => None,
        };
        let spec = port.map_or_else(|| spec.clone(), |port| port::fill_in(spec, port));
        let group = shared.group(&spec.name);
        let launch = launch(shared, &spec, &spec.command, group.clone());
        let (child, Output { stdout, stderr }) = match launch.start().await {
            Ok(started) => started,
            Err(error) => {
                if let Some(group) = group {
                    group.kill().await;
                }
                return Err(error.into());
            }
        };
        shared.record().started(child.pid(), &spec.name, spec.stop);
        let drains = vec![
            tokio::spawn(log.clone().drain(Source::Stdout, stdout)),
            tokio::spawn(log.clone().drain(Source::Stderr, stderr)),
        ];
        let mut run = Self { spec, port, child, group, hooks: Vec::new(), drains };
        run.start_hooks(shared, log).await;
        Ok(run)
    }

    async fn start_hooks(&mut self, shared: &Arc<Shared>, log: &Log) {
        let mut waiting: Vec<&spec::Hook> = self.spec.hooks.iter().rev().collect();
        while let Some(hook) = waiting.pop() {
            if !hook.enabled {
                continue;
            }
            match launch(shared, &self.spec, &hook.command, self.group.clone()).start().await {
                Ok((child, output)) => {
                    shared.record().started(child.pid(), &self.spec.name, self.spec.stop);
                    self.drains.push(tokio::spawn(log.clone().drain(Source::Hook, output.stdout)));
                    self.drains.push(tokio::spawn(log.clone().drain(Source::Hook, output.stderr)));
                    let (stop, stopped) = oneshot::channel();
                    let kept =
                        keep_hook(Arc::clone(shared), child, self.spec.clone(), hook.name.clone(), stopped);
                    self.hooks.push(Hook { stop, done: tokio::spawn(kept) });
                }
                Err(error) => {
                    let what = format!("not started: {error}");
                    shared.tell(&self.spec.name, What::Hook { name: hook.name.clone(), what });
                }
            }
            waiting.extend(hook.hooks.iter().rev());
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.pid().as_raw_pid().unsigned_abs()
    }

    pub(super) fn port(&self) -> Option<u16> {
        self.port
    }

    pub(super) fn spec(&self) -> &Instance {
        &self.spec
    }

    /// Tells how its process ended, once it has. The rest is still to be ended.
    pub(super) async fn ended(&self) -> Exit {
        self.child.ended().await
    }

    /// Ends the hooks, the last started first, then the process, then all that descends from it.
    pub(super) async fn end(self, shared: Arc<Shared>) -> Exit {
        for hook in self.hooks.into_iter().rev() {
            let _ = hook.stop.send(());
            let _ = hook.done.await;
        }
        end_child(&self.child, self.spec.stop, shared.kill()).await;
        // The process still has its pid, and so the session its number: what is in it is of this instance.
        let (session, mark) = (self.child.pid(), shared.record().mark(&self.spec.name));
        let ours = move |stat: &tree::Stat| {
            stat.session == Some(session) || tree::mark(stat.pid).is_some_and(|found| found == mark)
        };
        loop {
            let group_gone = match &self.group {
                Some(group) => group.kill().await,
                None => true,
            };
            if tree::kill_all(ours.clone()).await && group_gone {
                break;
            }
            tracing::error!(instance = self.spec.name, "processes cannot be ended: they hang in the kernel");
        }
        let pid = self.child.pid();
        let exit = self.child.wait().await;
        shared.record().ended(pid);
        for mut drain in self.drains {
            if timeout(LAST_WORDS, &mut drain).await.is_err() {
                drain.abort();
            }
        }
        exit
    }
}

fn launch(shared: &Shared, spec: &Instance, command: &[String], group: Option<Group>) -> Launch {
    Launch {
        command: command.to_owned(),
        env: spec.env.clone(),
        directory: spec.working_directory.clone(),
        user: spec.user.clone(),
        mark: shared.record().mark(&spec.name),
        group,
    }
}

/// Runs until the hook ended, by itself or because it was to.
async fn keep_hook(
    shared: Arc<Shared>,
    child: Child,
    spec: Instance,
    name: String,
    stop: oneshot::Receiver<()>,
) {
    tokio::select! {
        exit = child.ended() => shared.tell(&spec.name, What::Hook { name, what: exit.to_string() }),
        _ = stop => {}
    }
    end_child(&child, spec.stop, shared.kill()).await;
    let pid = child.pid();
    child.wait().await;
    shared.record().ended(pid);
}

/// Asks the process group to end, and kills it where it does not in time.
async fn end_child(child: &Child, stop: Stop, mut kill: watch::Receiver<bool>) {
    child.signal(Signal::from_named_raw(stop.signal).unwrap_or(Signal::TERM));
    tokio::select! {
        _ = child.ended() => {}
        () = sleep(stop.grace) => {}
        // The supervisor has no time left.
        _ = kill.wait_for(|kill| *kill) => {}
    }
    child.signal(Signal::KILL);
    while timeout(Duration::from_secs(10), child.ended()).await.is_err() {
        let pid = child.pid().as_raw_pid();
        tracing::error!(pid, "a killed process does not end: it hangs in the kernel, often in a driver");
    }
}
