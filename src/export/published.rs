//! What the groups of this process publish, for any number of readers: groups come and go while it runs.

use std::sync::Arc;

use tokio::sync::watch;

use super::Instances;
use crate::control::{Mode, Order};
use crate::park::instances::Roster;
use crate::view::{History, HostState, ParkMode, ParkStanding, ParkState, ParkedGpu, State};

/// What the loop of one server published last.
#[derive(Debug, Clone)]
pub struct Latest {
    /// The state after the latest step.
    pub state: watch::Receiver<Arc<State>>,
    /// The last minutes, once a second.
    pub history: watch::Receiver<Arc<History>>,
}

/// Who is published now.
#[derive(Debug, Clone, Default)]
struct Groups {
    servers: Vec<(String, Latest)>,
    park: Option<watch::Receiver<Arc<ParkState>>>,
}

/// Everything that is published; a clone shows the same. Whoever reads never holds up a loop.
#[derive(Debug, Clone)]
pub struct Published {
    host: Arc<HostState>,
    groups: Arc<watch::Sender<Groups>>,
    instances: Instances,
}

/// There is no such server, or none was named where there are several.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoServer {
    #[error("no server is called {name:?} here; {}", these(.names))]
    Unknown { name: String, names: Vec<String> },
    #[error("say which server; {}", these(.names))]
    Several { names: Vec<String> },
    #[error("no server is served here, GPUs are parked without one; see `agft status`")]
    Nobody,
}

fn these(names: &[String]) -> String {
    if names.is_empty() { "there is none".to_owned() } else { format!("there is: {}", names.join(", ")) }
}

impl Published {
    /// Of this process, with no group so far.
    pub fn new(host: HostState) -> Self {
        Self { host: Arc::new(host), groups: Arc::default(), instances: Instances::default() }
    }

    /// The same, where clients may tell of instances on these GPUs.
    #[must_use]
    pub(crate) fn with_gpus(self, roster: Roster) -> Self {
        Self { instances: Instances::on_machine(roster), ..self }
    }

    /// What clients tell of instances.
    pub fn instances(&self) -> &Instances {
        &self.instances
    }

    /// From now on shows this server too; in the place of the one of this name, if there is one.
    pub fn add(&self, name: &str, latest: Latest) {
        self.groups.send_modify(|groups| match groups.servers.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = latest,
            None => groups.servers.push((name.to_owned(), latest)),
        });
    }

    /// Shows this server no more.
    pub fn remove(&self, name: &str) {
        self.groups.send_modify(|groups| groups.servers.retain(|(known, _)| known != name));
    }

    /// From now on shows these GPUs without a server.
    pub(crate) fn set_park(&self, park: watch::Receiver<Arc<ParkState>>) {
        self.groups.send_modify(|groups| groups.park = Some(park));
    }

    /// The picture now.
    pub fn host(&self) -> HostState {
        let groups = self.groups.borrow();
        let servers = groups.servers.iter().map(|(_, latest)| State::clone(&latest.state.borrow())).collect();
        let park = groups.park.as_ref().map(|park| ParkState::clone(&park.borrow()));
        HostState { instances: self.instances.told(), ..HostState::clone(&self.host).with(servers, park) }
    }

    /// The picture of one server alone, or with no name of all.
    pub(crate) fn host_of(&self, server: Option<&str>) -> Result<HostState, NoServer> {
        let Some(name) = server else { return Ok(self.host()) };
        let state = State::clone(&self.latest(Some(name))?.state.borrow());
        let mut instances = self.instances.told();
        instances.retain(|told| told.is_on(|uuid| state.gpus.iter().any(|gpu| gpu.uuid == uuid)));
        Ok(HostState { instances, ..HostState::clone(&self.host).with(vec![state], None) })
    }

    /// The server of this name; without a name the only one.
    pub(crate) fn latest(&self, server: Option<&str>) -> Result<Latest, NoServer> {
        let groups = self.groups.borrow();
        let names = || groups.servers.iter().map(|(name, _)| name.clone()).collect();
        match (server, &groups.servers[..]) {
            (None, [(_, only)]) => Ok(only.clone()),
            (None, []) => Err(NoServer::Nobody),
            (None, _) => Err(NoServer::Several { names: names() }),
            (Some(name), servers) => {
                let found = servers.iter().find(|(known, _)| known == name);
                let unknown = || NoServer::Unknown { name: name.to_owned(), names: names() };
                found.map(|(_, latest)| latest.clone()).ok_or_else(unknown)
            }
        }
    }

    /// The server of this name, or else the first there is.
    pub(super) fn latest_or_first(&self, server: Option<&str>) -> Result<Option<Latest>, NoServer> {
        match server {
            Some(_) => self.latest(server).map(Some),
            None => Ok(self.groups.borrow().servers.first().map(|(_, latest)| latest.clone())),
        }
    }

    /// Is this what a server publishes that is shown now?
    pub(super) fn has(&self, latest: &Latest) -> bool {
        self.groups.borrow().servers.iter().any(|(_, known)| known.state.same_channel(&latest.state))
    }

    /// Waits until the states show that an order is carried out; `false` if no loop is there to do it.
    pub(super) async fn shows(&self, directed: &super::protocol::Directed) -> bool {
        let order = directed.order;
        let Groups { servers, park } = self.groups.borrow().clone();
        let meant = |name: &str| directed.server.as_ref().is_none_or(|server| server == name);
        let mut heard = false;
        for (_, mut latest) in servers.into_iter().filter(|(name, _)| meant(name)) {
            // One that has ended has nothing to obey, and holds up no other.
            heard |= latest.state.wait_for(|state| has_carried_out(state, order)).await.is_ok();
        }
        if let Some(mut park) = park.filter(|_| directed.server.is_none()) {
            heard |= park.wait_for(|park| is_parked_as(park, order)).await.is_ok();
        }
        heard
    }
}

fn has_carried_out(state: &State, order: Order) -> bool {
    match order {
        Order::Pause => {
            matches!(state.mode, Mode::Paused | Mode::Outage)
                && state.in_force.is_none()
                && !state.not_given_back
        }
        Order::Resume => state.mode != Mode::Paused,
    }
}

fn is_parked_as(park: &ParkState, order: Order) -> bool {
    let free =
        |gpu: &ParkedGpu| gpu.state == ParkStanding::Paused && gpu.in_force.is_none() && !gpu.not_given_back;
    match order {
        Order::Pause => park.mode == ParkMode::Paused && park.gpus.iter().all(free),
        Order::Resume => park.mode == ParkMode::Parking,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::testing::Stage;

    #[test]
    fn groups_come_and_go_while_it_is_read() {
        let stage = Stage::of_two();
        let published = stage.published.clone();
        assert_eq!(published.host(), crate::view::testing::host());
        stage.published.remove("chat");
        assert!(published.host().server("chat").is_none());
        assert_eq!(published.latest(None).unwrap().state.borrow().name, "code");
        stage.published.add("chat", stage.latest(0));
        let names: Vec<String> = published.host().servers.into_iter().map(|state| state.name).collect();
        assert_eq!(names, ["code", "chat"]);
        // One that begins anew under its name keeps its place.
        stage.published.add("code", stage.latest(1));
        assert_eq!(published.host().servers.len(), 2);
    }

    #[test]
    fn a_name_that_is_not_there_is_an_error_that_lists_those_that_are() {
        let published = Stage::of_two().published;
        let error = published.latest(Some("chta")).unwrap_err().to_string();
        assert_eq!(error, r#"no server is called "chta" here; there is: chat, code"#);
        assert_eq!(published.latest(None).unwrap_err().to_string(), "say which server; there is: chat, code");
        assert_eq!(published.host_of(Some("code")).unwrap().servers.len(), 1);
        let empty = Published::new(HostState::new(0.0, false));
        assert_eq!(empty.latest(None).unwrap_err(), NoServer::Nobody);
        assert!(empty.host_of(Some("x")).unwrap_err().to_string().ends_with("there is none"));
    }
}
