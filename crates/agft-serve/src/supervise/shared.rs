//! What all instances of a supervisor share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use tokio::sync::{broadcast, watch};

use super::record::Record;
use super::{InstanceEvent, InstanceStatus, Settings, What};
use crate::process::cgroup::{Group, Subtree};
use crate::process::file_name;
use crate::process::log::Place;
use crate::spec::Instance;

#[derive(Debug)]
pub(super) struct Shared {
    settings: Settings,
    record: Record,
    subtree: Option<Subtree>,
    statuses: watch::Sender<Vec<InstanceStatus>>,
    events: broadcast::Sender<InstanceEvent>,
    /// Set once there is no time left to ask processes to end.
    kill: watch::Sender<bool>,
    starts: AtomicU64,
}

impl Shared {
    pub(super) fn new(settings: Settings, record: Record, subtree: Option<Subtree>) -> Self {
        Self {
            settings,
            record,
            subtree,
            statuses: watch::Sender::default(),
            events: broadcast::Sender::new(256),
            kill: watch::Sender::default(),
            starts: AtomicU64::new(0),
        }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    pub(super) fn statuses(&self) -> &watch::Sender<Vec<InstanceStatus>> {
        &self.statuses
    }

    pub(super) fn events(&self) -> &broadcast::Sender<InstanceEvent> {
        &self.events
    }

    pub(super) fn kill(&self) -> watch::Receiver<bool> {
        self.kill.subscribe()
    }

    /// No process is asked to end from now on: it is killed.
    pub(super) fn kill_now(&self) {
        self.kill.send_replace(true);
    }

    /// Counts the starts of all instances, for their order.
    pub(super) fn count_start(&self) -> u64 {
        self.starts.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The control group of an instance; none where the supervisor may make none.
    pub(super) fn group(&self, instance: &str) -> Option<Group> {
        let made = self.subtree.as_ref()?.group(&self.record.owner(), instance);
        made.inspect_err(
            |error| tracing::warn!(instance, %error, "no control group: descendants are told by their mark"),
        )
        .ok()
    }

    pub(super) fn log_place(&self, spec: &Instance) -> Place {
        let file = spec.log.file.clone();
        let file =
            file.unwrap_or_else(|| self.settings.log_dir.join(format!("{}.log", file_name(&spec.name))));
        Place { file, max_bytes: spec.log.max_bytes, keep: spec.log.keep }
    }

    /// Tells an event to whoever listens, and to the log.
    pub(super) fn tell(&self, instance: &str, what: What) {
        match &what {
            What::Started { .. } | What::Ready { .. } | What::Idle | What::Stopped { .. } => {
                tracing::info!(instance, "{what}");
            }
            _ => tracing::warn!(instance, "{what}"),
        }
        // An error means that nobody listens.
        let _ =
            self.events.send(InstanceEvent { at: SystemTime::now(), instance: instance.to_owned(), what });
    }

    /// Takes the place of the status of the same name.
    pub(super) fn publish(&self, status: InstanceStatus) {
        self.statuses.send_if_modified(|all| match all.iter_mut().find(|other| other.name == status.name) {
            Some(same) if *same == status => false,
            Some(old) => {
                *old = status;
                true
            }
            None => {
                all.push(status);
                true
            }
        });
    }
}
