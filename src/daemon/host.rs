//! The loop of the process: starts the groups, hears signals and orders for them, and ends them.
//!
//! Each group runs as a task of its own on one thread. What one waits for, no other waits for: a page that does not come, a
//! thread of its own in a driver call that hangs. A group that cannot go on is ended, its clocks are given back, and it is
//! opened again after a while; the process ends when none is left.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::{LocalBoxFuture, OptionFuture};
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinHandle, JoinSet, LocalSet};
use tracing::Instrument;

use super::closed::Closed;
use super::follow::Follow;
use super::notify::Notifier;
use super::park::{Looks, ParkGroup, Surroundings, group_name};
use super::reload::{differences, hung_up, is_of_a_server, read_again};
use super::tick::{End, Ending, Group, RunError, ToGroup};
use super::watch::{Alarm, Pulse, Watch};
use crate::config::{Config, ConfigError, Server};
use crate::control::Order;
use crate::discover::Change;
use crate::export::protocol::Directed;
use crate::gpu::GpuInfo;
use crate::open::join::name;

/// The loop shows that it goes on this often, whatever the groups do.
const ALIVE_EVERY: Duration = Duration::from_millis(200);
/// Messages that may wait for a group.
const INBOX: usize = 16;

/// Opens the group of servers, off the loop's thread; on none of these GPUs, which are of other groups.
pub(crate) type Opener =
    Rc<dyn Fn(Vec<Server>, BTreeSet<String>) -> LocalBoxFuture<'static, anyhow::Result<Group>>>;

/// GPUs that share one clock decision, and all that works for them.
pub enum AnyGroup {
    /// With a server.
    Served(Box<Group>),
    /// Without one.
    Parked(Box<ParkGroup>),
}

impl AnyGroup {
    fn name(&self) -> String {
        match self {
            Self::Served(group) => group.name.clone(),
            Self::Parked(group) => group.name(),
        }
    }

    /// What its lines in the log stand in, where there are several.
    fn span(&self) -> tracing::Span {
        match self {
            Self::Served(group) => group.span.clone(),
            Self::Parked(_) => tracing::Span::none(),
        }
    }

    /// Its servers, if it can be opened again.
    fn servers(&self) -> Vec<Server> {
        match self {
            Self::Served(group) => group.servers.clone(),
            Self::Parked(_) => Vec::new(),
        }
    }

    fn gpus(&self) -> BTreeSet<String> {
        match self {
            Self::Served(group) => group.gpus.clone(),
            Self::Parked(_) => BTreeSet::new(),
        }
    }

    async fn run(&mut self, inbox: &mut mpsc::Receiver<ToGroup>, pulse: &Pulse) -> Result<(), RunError> {
        match self {
            Self::Served(group) => group.run(inbox, pulse).await,
            Self::Parked(group) => group.run(inbox).await,
        }
    }

    fn end(self, result: &Result<(), RunError>) -> Ending {
        match self {
            Self::Served(group) => group.end(result),
            Self::Parked(group) => group.end(result),
        }
    }
}

/// Everything that a process runs.
pub struct Host {
    /// The groups.
    pub groups: Vec<AnyGroup>,
    /// Servers of each group that could not be opened.
    pub closed: Vec<Vec<Server>>,
    /// What is around the GPUs without a server, if any are parked.
    pub surroundings: Option<Surroundings>,
    /// Who tells of servers that come, move and go, if they are looked for.
    pub follow: Option<Follow>,
    /// Opens a group again that has ended; without it, it stays closed.
    pub opener: Option<Opener>,
    /// Marked by the loop.
    pub pulse: Pulse,
    /// Who watches over the loop, and over the guardian; nobody where nothing is locked.
    pub watch: Option<Watch>,
    /// Who reads the configuration again on SIGHUP.
    pub reload: Option<Rereader>,
    /// Where operators' orders come from.
    pub orders: Option<mpsc::Receiver<Directed>>,
    /// The service manager, if it listens.
    pub notifier: Option<Notifier>,
}

impl Host {
    /// One group, and nobody around it.
    pub fn alone(group: Group) -> Self {
        Self {
            groups: vec![AnyGroup::Served(Box::new(group))],
            closed: Vec::new(),
            surroundings: None,
            follow: None,
            opener: None,
            pulse: Pulse::new(),
            watch: None,
            reload: None,
            orders: None,
            notifier: None,
        }
    }
}

/// Runs until `stop` resolves or no group is left; gives all clocks back either way.
/// Errors: [`RunError`]: what ended the last group, or the process.
pub async fn drive(host: Host, stop: impl Future<Output = End>) -> Result<End, RunError> {
    LocalSet::new().run_until(host.run(stop)).await
}

/// Reads the configuration again on SIGHUP.
pub struct Rereader {
    /// SIGHUP.
    pub(crate) hangup: Signal,
    /// The file.
    pub path: PathBuf,
    /// The servers of the file are served here.
    pub serves: bool,
    /// What the command line says instead, by the same rules.
    pub arguments: Arguments,
    /// What is in force.
    pub config: Config,
}

/// What the command line makes of the file.
pub(crate) type Arguments = Box<dyn Fn(Config) -> Result<Config, ConfigError>>;

impl Rereader {
    /// What the file says now; `None`, said in the log, if it cannot be used.
    fn read(&self) -> Option<Config> {
        match (self.arguments)(read_again(&self.path)?) {
            Ok(config) => Some(config),
            Err(error) => {
                tracing::error!(%error, "configuration not reloaded: the old one stays");
                None
            }
        }
    }
}

/// A group's task, when it has ended.
type Ended = Result<(AnyGroup, Result<(), RunError>), JoinError>;

/// The groups that run, by name.
#[derive(Default)]
struct Running {
    tasks: JoinSet<(AnyGroup, Result<(), RunError>)>,
    inboxes: BTreeMap<String, Inbox>,
    /// Those that have ended and give their clocks back.
    leaving: BTreeMap<String, JoinHandle<()>>,
    /// An operator has paused everything: so are those that come.
    paused: bool,
}

/// The way to a group that runs.
struct Inbox {
    sender: mpsc::Sender<ToGroup>,
    is_served: bool,
    servers: Vec<String>,
    gpus: BTreeSet<String>,
}

impl Inbox {
    /// Returns when the group has taken it up, or has ended.
    async fn reload(&self, configs: Vec<Config>) {
        let (done, taken_up) = oneshot::channel();
        if self.sender.send(ToGroup::Reload(configs, done)).await.is_ok() {
            let _ = taken_up.await;
        }
    }
}

impl Running {
    fn start(&mut self, mut group: AnyGroup, pulse: &Pulse) {
        let (inbox, mut messages) = mpsc::channel(INBOX);
        let is_served = matches!(group, AnyGroup::Served(_));
        if self.paused {
            let _ = inbox.try_send(ToGroup::Order(Order::Pause)); // There is room for the first.
        }
        let servers = group.servers().into_iter().map(|server| server.name).collect();
        let inbox = Inbox { sender: inbox, is_served, servers, gpus: group.gpus() };
        self.inboxes.insert(group.name(), inbox);
        let (pulse, span) = (pulse.clone(), group.span());
        let run = async move {
            let result = group.run(&mut messages, &pulse).await;
            (group, result)
        };
        self.tasks.spawn_local(run.instrument(span));
    }

    /// Waits until a group has ended; for ever where none runs.
    async fn ended(&mut self) -> (AnyGroup, Result<(), RunError>) {
        let Some(ended) = self.tasks.join_next().await else { return std::future::pending().await };
        let (group, result) = joined(ended);
        self.inboxes.remove(&group.name());
        (group, result)
    }

    fn gpus(&self) -> BTreeSet<String> {
        self.inboxes.values().flat_map(|inbox| inbox.gpus.iter().cloned()).collect()
    }

    /// Has a group end, if there is one of this name, or with a server of it.
    fn close(&mut self, name: &str) {
        let is_its = |(group, inbox): &(&String, &mut Inbox)| {
            *group == name || inbox.servers.iter().any(|server| server == name)
        };
        if let Some((_, inbox)) = self.inboxes.iter_mut().find(is_its) {
            // Nobody sends to the old one any more, which ends the group, and nobody hears the new one.
            inbox.sender = mpsc::channel(1).0;
        }
    }

    /// Ends a group while others go on.
    fn leave(&mut self, name: String, ending: Ending) {
        self.leaving.retain(|_, ending| !ending.is_finished());
        self.leaving.insert(name, tokio::task::spawn_local(end_aside(ending)));
    }

    /// Does no group of this name run or give its clocks back?
    fn is_free(&self, name: &str) -> bool {
        !self.inboxes.contains_key(name) && self.leaving.get(name).is_none_or(JoinHandle::is_finished)
    }

    /// Hands an order to the group that it is for, or to every one.
    async fn order(&mut self, Directed { server, order }: Directed) {
        if server.is_none() {
            self.paused = order == Order::Pause;
        }
        let meant = |name: &String| server.as_ref().is_none_or(|server| server == name);
        for (_, inbox) in self.inboxes.iter().filter(|(name, _)| meant(name)) {
            // One that has ended by now has nothing to obey.
            let _ = inbox.sender.send(ToGroup::Order(order)).await;
        }
    }
}

/// A panic in a group is one of the process: whatever is locked is given back on the way out.
fn joined(ended: Ended) -> (AnyGroup, Result<(), RunError>) {
    match ended {
        Ok(ended) => ended,
        // No task of a group is ever aborted: a panic is the only other end.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

impl Host {
    async fn run(mut self, stop: impl Future<Output = End>) -> Result<End, RunError> {
        let mut running = Running::default();
        self.pulse.mark();
        for group in std::mem::take(&mut self.groups) {
            running.start(group, &self.pulse);
        }
        let mut endings = Vec::new();
        let result = self.supervise(&mut running, &mut endings, stop).await;
        self.pulse.rest();
        // All at once: each group is asked before any is waited for.
        running.inboxes.clear();
        let stuck = match &result {
            Err(RunError::Alarm(alarm @ Alarm::Stuck { .. })) => Some(RunError::Alarm(alarm.clone())),
            _ => None,
        };
        while let Some(ended) = running.tasks.join_next().await {
            let (group, outcome) = joined(ended);
            endings.push(group.end(&stuck.clone().map_or(outcome, Err)));
        }
        let mut released = Ok(());
        for ending in &mut endings {
            released = released.and(ending.give_back());
        }
        // Goodbye to the guardian, if all is back: what follows only writes files.
        for ending in std::mem::take(&mut running.leaving).into_values() {
            // Its panic, if any, was told.
            let _ = ending.await;
        }
        drop(self.watch.take());
        if let Some(notifier) = &self.notifier {
            notifier.stopping();
        }
        endings.into_iter().for_each(Ending::finish);
        if let Some(surroundings) = self.surroundings.take() {
            surroundings.end();
        }
        let end = result?;
        released?;
        Ok(end)
    }

    /// Until the end of the run. The endings of groups that had to go last are left to the caller.
    async fn supervise(
        &mut self,
        running: &mut Running,
        endings: &mut Vec<Ending>,
        stop: impl Future<Output = End>,
    ) -> Result<End, RunError> {
        tokio::pin!(stop);
        let mut closed = Closed::default();
        std::mem::take(&mut self.closed).into_iter().for_each(|servers| closed.push(servers));
        let mut looks = self.surroundings.as_ref().map(Surroundings::looks);
        let (mut opening, mut taking_back) = (JoinSet::new(), JoinSet::new());
        let mut alive = tokio::time::interval(ALIVE_EVERY);
        alive.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut said_alive: Option<Instant> = None;
        loop {
            tokio::select! {
                biased;
                end = &mut stop => return Ok(end),
                Some(alarm) = OptionFuture::from(self.watch.as_ref().map(Watch::alarm)) =>
                    return Err(alarm.into()),
                (group, result) = running.ended() => {
                    let (name, servers) = (group.name(), group.servers());
                    let ending = group.end(&result);
                    if running.tasks.is_empty() && self.follow.is_none() {
                        endings.push(ending);
                        return result.map(|()| End::Finished);
                    }
                    if let Err(error) = &result {
                        tracing::error!(name, %error, "left alone; the others go on");
                    }
                    let servers = self.current(servers);
                    // What is left of several, if any, goes by another name.
                    let is_gone = self::name(&servers) != name;
                    self.follow.iter().filter(|_| is_gone).for_each(|follow| follow.forget(&name));
                    running.leave(name, ending);
                    match result {
                        _ if servers.is_empty() => {}
                        Ok(()) => closed.push_found(servers),
                        Err(_) => closed.push(servers),
                    }
                }
                Some(changes) = OptionFuture::from(self.follow.as_mut().map(Follow::changed)) =>
                    self.follow_up(&changes, running, &mut closed),
                Some(()) = OptionFuture::from(self.reload.as_mut().map(|read| hung_up(&mut read.hangup))) => {
                    self.reread(running).await;
                    // Who hears of connections may be another.
                    looks = self.surroundings.as_ref().map(Surroundings::looks);
                }
                Some(Some(order)) = OptionFuture::from(self.orders.as_mut().map(mpsc::Receiver::recv)) => {
                    if let Some(surroundings) = self.surroundings.as_ref().filter(|_| order.server.is_none()) {
                        surroundings.board.pause(order.order == Order::Pause);
                    }
                    running.order(order).await;
                }
                () = due(self.surroundings.as_ref(), looks.as_mut()) => {
                    if let (Some(surroundings), Some(looks)) = (&mut self.surroundings, &mut looks) {
                        surroundings.look(looks);
                    }
                }
                _ = alive.tick() => {
                    self.pulse.mark();
                    if let Some(notifier) = &self.notifier
                        && let Some(every) = notifier.alive_every()
                        && said_alive.is_none_or(|at| at.elapsed() >= every)
                    {
                        said_alive = Some(Instant::now());
                        notifier.alive();
                    }
                    // One after the other: two of them may be on the same GPU.
                    if let Some(opener) = self.opener.clone().filter(|_| opening.is_empty())
                        && let Some(servers) = closed.due(|name| running.is_free(name))
                        && let servers = self.current(servers)
                        && !servers.is_empty()
                    {
                        let taken = running.gpus();
                        opening.spawn_local(async move { (opener(servers.clone(), taken).await, servers) });
                    }
                    if let (Some(surroundings), Some(follow)) = (&mut self.surroundings, &self.follow)
                        && let Some((gpu, opened)) = surroundings
                            .take_back(|gpu| !follow.serves(gpu) && running.is_free(&group_name(gpu)))
                    {
                        taking_back.spawn_local(async move { (opened.await, gpu) });
                    }
                }
                Some(Ok((opened, servers))) = opening.join_next() =>
                    self.opened(opened, servers, running, &mut closed),
                Some(Ok((opened, gpu))) = taking_back.join_next() => self.taken_back(opened, &gpu, running),
            }
        }
    }

    /// These servers as they are now, without those that are not there any more.
    fn current(&self, servers: Vec<Server>) -> Vec<Server> {
        match &self.follow {
            Some(follow) => servers.into_iter().filter_map(|server| follow.current(server)).collect(),
            None => servers,
        }
    }

    /// The group of these servers was opened, or could not be.
    fn opened(
        &self,
        opened: anyhow::Result<Group>,
        servers: Vec<Server>,
        running: &mut Running,
        closed: &mut Closed,
    ) {
        let name = name(&servers);
        let places = |servers: &[Server]| -> Vec<_> {
            let place = |server: &Server| {
                (server.config.vllm.prometheus_url.clone(), server.config.gpu.device_id.clone())
            };
            servers.iter().map(place).collect()
        };
        let current = self.current(servers.clone());
        match opened {
            Ok(group) if places(&current) == places(&servers) => {
                tracing::info!(server = name, "opened");
                running.start(AnyGroup::Served(Box::new(group)), &self.pulse);
            }
            Ok(group) => {
                // One has gone, or moved on, meanwhile.
                running.leave(name, group.end(&Ok(())));
                for gone in servers.iter().filter(|server| !current.iter().any(|now| now.name == server.name))
                {
                    self.follow.iter().for_each(|follow| follow.forget(&gone.name));
                }
                if !current.is_empty() {
                    closed.push_found(current);
                }
            }
            Err(error) if !current.is_empty() => {
                let error = format!("{error:#}");
                tracing::warn!(server = name, error, "this server stays left alone");
                closed.push(current);
            }
            Err(_) => {}
        }
    }

    /// A GPU whose server has gone was opened to be parked, or could not be.
    fn taken_back(&mut self, opened: anyhow::Result<ParkGroup>, gpu: &GpuInfo, running: &mut Running) {
        let Some(surroundings) = &mut self.surroundings else { return };
        let is_served = self.follow.as_ref().is_some_and(|follow| follow.serves(gpu));
        surroundings.taken_back(gpu, opened.is_ok() && !is_served);
        match opened {
            Ok(group) if is_served => running.leave(group.name(), group.end(&Ok(()))),
            Ok(group) => running.start(AnyGroup::Parked(Box::new(group)), &self.pulse),
            Err(error) => tracing::warn!(%gpu, error = format!("{error:#}"), "not parked for now"),
        }
    }

    /// Servers have come, moved or gone.
    fn follow_up(&mut self, changes: &[Change], running: &mut Running, closed: &mut Closed) {
        let Some(follow) = &self.follow else { return };
        if let Some(surroundings) = &mut self.surroundings {
            let parked = surroundings.yield_to(|gpu| follow.serves(gpu));
            parked.iter().for_each(|name| running.close(name));
        }
        for change in changes {
            match change {
                Change::Came(_) => {
                    follow.came(change).into_iter().for_each(|server| closed.push_found(vec![server]));
                }
                // Where it runs, it is opened anew when it has ended.
                Change::Moved { now, .. } => running.close(&now.name),
                Change::Went(found) => {
                    running.close(&found.name);
                    follow.forget(&found.name);
                }
            }
        }
    }

    /// Reads the file, and hands each group what it says of it.
    async fn reread(&mut self, running: &Running) {
        let Some(reload) = &mut self.reload else { return };
        self.notifier.iter().for_each(Notifier::reloading);
        if let Some(wanted) = reload.read() {
            if reload.serves {
                let servers =
                    self.follow.as_mut().map_or_else(|| wanted.servers(), |follow| follow.reread(&wanted));
                reread_servers(&reload.config, &wanted, servers, running).await;
            }
            if let Some(surroundings) = &mut self.surroundings
                && let Some(config) = surroundings.take_up(&wanted, !reload.serves)
            {
                for inbox in running.inboxes.values().filter(|inbox| !inbox.is_served) {
                    inbox.reload(vec![config.clone()]).await;
                }
                if !reload.serves {
                    tracing::info!(file = %reload.path.display(), "configuration reloaded");
                }
            }
            reload.config = wanted;
        }
        self.notifier.iter().for_each(Notifier::ready);
    }
}

async fn reread_servers(old: &Config, wanted: &Config, servers: Vec<Server>, running: &Running) {
    if !old.servers.is_one() || !wanted.servers.is_one() {
        let ours = |(key, _): &(String, String)| !is_of_a_server(key) && !key.starts_with("park.");
        for (key, change) in differences(old, wanted).into_iter().filter(ours) {
            tracing::warn!(key, change, "takes effect with the next start");
        }
    }
    let named = |name: &String| servers.iter().find(|server| server.name == *name);
    let served = || running.inboxes.values().filter(|inbox| inbox.is_served);
    for inbox in served() {
        for name in inbox.servers.iter().filter(|name| named(name).is_none()) {
            tracing::warn!(server = name, "not in the file any more: it goes with the next start");
        }
        // What is left of several servers on the same GPUs waits, too.
        let configs = inbox.servers.iter().map(|name| named(name).map(|server| server.config.clone()));
        if let Some(configs) = configs.collect() {
            inbox.reload(configs).await;
        }
    }
    for server in servers.iter().filter(|server| !served().any(|inbox| inbox.servers.contains(&server.name)))
    {
        tracing::warn!(server = server.name, "new in the file: it comes with the next start");
    }
}

/// Ends a group while others go on: the driver is waited for on a thread of its own.
async fn end_aside(mut ending: Ending) {
    if let Some(release) = ending.take_release() {
        let released = tokio::task::spawn_blocking(move || release.shutdown()).await;
        if let Ok(Err(error)) = released {
            tracing::error!(%error, "clocks could not be given back; run `agft release`");
        }
    }
    ending.finish();
}

async fn due(surroundings: Option<&Surroundings>, looks: Option<&mut Looks>) {
    match (surroundings, looks) {
        (Some(surroundings), Some(looks)) => surroundings.due(looks).await,
        _ => std::future::pending().await,
    }
}
