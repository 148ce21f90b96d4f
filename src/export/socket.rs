//! The control socket: `<gpu.runtime_dir>/agft-<pid>.sock`, for root, the daemon's own user, and the socket's group.
//!
//! The file's mode (0660) keeps others out; who connects is asked of the kernel all the same. Orders go to the loop over a
//! short queue, as part of what the next step sees; nothing here touches a clock.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agft_common::instances::{socket_name, socket_pid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::Published;
use super::instances::Teller;
use super::protocol::{Answer, Directed, MAX_REQUEST, Request};
use super::serving::{Serving, taken};
use crate::control::Order;
use crate::park::instances::{Instance, MAX_CLIENTS};
use crate::view::History;

/// Connections at once. Clients that tell of instances keep their places, and are few. One more cuts off the client that has been silent the longest, or else the one that asked the
/// longest ago and only watches: neither keeps an order out. If all are being answered, it is told to try again.
const CONNECTIONS: usize = 32;
/// A client that says nothing for this long after it connected, or after an answer, is cut off.
const PATIENCE: Duration = Duration::from_secs(10);
/// A client that connected, or was answered, so short a time ago is about to speak.
const ABOUT_TO_SPEAK: Duration = Duration::from_secs(1);
/// A client that does not take its answer within this is cut off.
const WRITE_TIME: Duration = Duration::from_secs(5);
/// An order is carried out within this, or the answer says that it is not yet.
const ORDER_TIME: Duration = Duration::from_secs(5);
/// Orders that may wait for the loop.
const QUEUE: usize = 8;
/// Owner and group.
const MODE: u32 = 0o660;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
#[error("the control socket {path} cannot be made")]
pub(crate) struct SocketError {
    path: PathBuf,
    source: io::Error,
}

/// Is this the name of a control socket?
fn is_socket(path: &Path) -> bool {
    socket_pid(path).is_some()
        && path.symlink_metadata().is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// The control sockets in a directory, those of the dead among them.
pub(crate) fn sockets(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut found: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| is_socket(path)).collect();
    found.sort();
    found
}

/// Removes the sockets of the dead: those that nobody listens on, which a refused connection proves.
fn sweep(dir: &Path) {
    for path in sockets(dir) {
        let dead = std::os::unix::net::UnixStream::connect(&path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        if dead && fs::remove_file(&path).is_ok() {
            tracing::debug!(socket = %path.display(), "socket of a dead agft removed");
        }
    }
}

/// A running server; it ends, and its file goes, when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    path: PathBuf,
    _serving: Serving,
}

impl Server {
    /// Starts serving in `dir`; the receiver has the operators' orders.
    pub(crate) fn start(
        dir: &Path,
        published: Published,
    ) -> Result<(Self, mpsc::Receiver<Directed>), SocketError> {
        sweep(dir);
        let path = dir.join(socket_name(std::process::id()));
        let failed = |source| SocketError { path: path.clone(), source };
        // One that is there has this process's own id: it is of the dead, whatever it answers.
        if is_socket(&path) {
            fs::remove_file(&path).map_err(failed)?;
        }
        let listener = StdListener::bind(&path).map_err(failed)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(MODE)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let metadata = path.metadata().map_err(failed)?;
        let allowed = Allowed { uid: metadata.uid(), gid: metadata.gid() };
        let (orders, received) = mpsc::channel(QUEUE);
        let served = accept(listener, allowed, published, orders);
        let serving = Serving::start("agft-socket", "the control socket", served).map_err(failed)?;
        Ok((Self { _serving: serving, path }, received))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Who may ask.
#[derive(Debug, Clone, Copy)]
struct Allowed {
    uid: u32,
    gid: u32,
}

impl Allowed {
    fn allow(self, uid: u32, gid: u32, groups: &[u32]) -> bool {
        uid == 0 || uid == self.uid || gid == self.gid || groups.contains(&self.gid)
    }

    fn allows(self, stream: &UnixStream) -> bool {
        let Ok(peer) = stream.peer_cred() else { return false };
        let groups = peer.pid().map(groups_of).unwrap_or_default();
        self.allow(peer.uid(), peer.gid(), &groups)
    }
}

/// The supplementary groups of a process.
fn groups_of(pid: i32) -> Vec<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    groups.split_whitespace().filter_map(|group| group.parse().ok()).collect()
}

/// Takes connections; returns only if that is no longer possible.
async fn accept(
    listener: StdListener,
    allowed: Allowed,
    published: Published,
    orders: mpsc::Sender<Directed>,
) -> io::Error {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    let places = Arc::new(Mutex::new(Places::default()));
    for number in 0.. {
        let Some(stream) = taken(listener.accept().await).await else { continue };
        let has_place = lock(&places).make_room();
        let place = Place { places: Arc::clone(&places), number };
        let mut client =
            Client { stream, published: published.clone(), orders: orders.clone(), place, teller: None };
        let task = tokio::spawn(async move {
            if !allowed.allows(&client.stream) {
                client.say(&Answer::error("not permitted: root, agft's own user and its group may")).await;
            } else if has_place {
                client.serve().await;
            } else {
                client
                    .say(&Answer::error("every place is taken by a client that is being served; try again"))
                    .await;
            }
        });
        if has_place {
            lock(&places).0.insert(number, (Doing::Silent, Instant::now(), task.abort_handle()));
        }
    }
    io::Error::other("more connections than can be counted")
}

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// Nothing: it has not spoken since it connected, or since it was answered.
    Silent,
    /// It hears one state after the other.
    Watching,
    /// Nothing for now, and what it told of instances holds.
    Telling,
    Waiting,
}

/// The clients that are connected, by number: what each does, since when, and its task.
#[derive(Default)]
struct Places(BTreeMap<u64, (Doing, Instant, AbortHandle)>);

impl Places {
    /// Is there a place? If need be, a client that waits for nothing loses its own.
    fn make_room(&mut self) -> bool {
        if self.0.len() < CONNECTIONS {
            return true;
        }
        let idle = self.0.iter().filter(|(_, (doing, ..))| matches!(doing, Doing::Silent | Doing::Watching));
        let first = idle.min_by_key(|(_, (doing, since, _))| {
            let is_silent = *doing == Doing::Silent && since.elapsed() >= ABOUT_TO_SPEAK;
            (!is_silent, *since)
        });
        let Some(number) = first.map(|(number, _)| *number) else { return false };
        if let Some((_, _, task)) = self.0.remove(&number) {
            task.abort();
        }
        true
    }
}

/// One client's place, until it is dropped.
struct Place {
    places: Arc<Mutex<Places>>,
    number: u64,
}

impl Place {
    fn set(&self, now: Doing) {
        if let Some((doing, since, _)) = lock(&self.places).0.get_mut(&self.number) {
            (*doing, *since) = (now, Instant::now());
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.places).0.remove(&self.number);
    }
}

fn lock(places: &Mutex<Places>) -> MutexGuard<'_, Places> {
    places.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Client {
    stream: UnixStream,
    published: Published,
    orders: mpsc::Sender<Directed>,
    place: Place,
    /// Once it has told of instances.
    teller: Option<Teller>,
}

impl Client {
    /// Answers requests until the client hangs up, is silent, or says something that is no request.
    async fn serve(&mut self) {
        let mut heard: Vec<u8> = Vec::new();
        loop {
            self.place.set(if self.teller.is_some() { Doing::Telling } else { Doing::Silent });
            let Some(line) = self.line(&mut heard).await else { return };
            self.place.set(Doing::Waiting);
            let request: Request = match serde_json::from_slice(&line) {
                Ok(request) => request,
                Err(error) => {
                    self.say(&Answer::error(format!("not a request: {error}"))).await;
                    return;
                }
            };
            let go_on = match request {
                Request::Watch { every_s, server } => {
                    self.watch(every_s.0, server.as_deref()).await;
                    false
                }
                Request::History { server } => self.say_history(server.as_deref()).await,
                Request::Status { server } => self.say_state(server.as_deref()).await,
                Request::Instances { instances } => self.take_instances(instances).await,
                Request::Pause { server } => self.carry_out(Directed { server, order: Order::Pause }).await,
                Request::Resume { server } => self.carry_out(Directed { server, order: Order::Resume }).await,
            };
            if !go_on {
                return;
            }
        }
    }

    /// The next line, without its end; `None` at the end of the talk.
    async fn line(&mut self, heard: &mut Vec<u8>) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = heard.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = heard.drain(..=end).collect();
                line.pop();
                return Some(line);
            }
            if heard.len() >= MAX_REQUEST {
                self.say(&Answer::error(format!("a request is a line of at most {MAX_REQUEST} bytes"))).await;
                return None;
            }
            let mut some = [0; 1024];
            let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut some)).await;
            match read {
                Ok(Ok(count)) if count > 0 => heard.extend_from_slice(some.get(..count)?),
                _ => return None,
            }
        }
    }

    /// Says whether the client took it.
    async fn say(&mut self, answer: &Answer) -> bool {
        let Ok(mut line) = crate::text::json(answer) else { return false };
        line.push('\n');
        matches!(tokio::time::timeout(WRITE_TIME, self.stream.write_all(line.as_bytes())).await, Ok(Ok(())))
    }

    async fn say_state(&mut self, server: Option<&str>) -> bool {
        let answer = match self.published.host_of(server) {
            Ok(state) => Answer::state(state),
            Err(error) => Answer::error(error.to_string()),
        };
        self.say(&answer).await
    }

    async fn say_history(&mut self, server: Option<&str>) -> bool {
        let answer = match self.published.latest(server) {
            Ok(latest) => Answer::History { ok: true, history: History::clone(&latest.history.borrow()) },
            Err(error) => Answer::error(error.to_string()),
        };
        self.say(&answer).await
    }

    /// Takes what it tells of instances, in the place of what it told before.
    async fn take_instances(&mut self, instances: Vec<Instance>) -> bool {
        let told = self.published.instances();
        let found = match told.roster().place(instances) {
            Ok(found) => found,
            Err(why) => {
                self.say(&Answer::error(why)).await;
                return false;
            }
        };
        let answer = Answer::Instances { ok: true, known: found.known(), unknown: found.unknown.clone() };
        if !self.teller.get_or_insert_with(|| told.teller()).say(found) {
            let why =
                format!("{MAX_CLIENTS} clients tell of instances already: end one of them, or try again");
            self.say(&Answer::error(why)).await;
            return false;
        }
        self.say(&answer).await
    }

    async fn watch(&mut self, every_s: f64, server: Option<&str>) {
        // What is not a number asks for nothing in particular.
        let every = if every_s.is_finite() { every_s.clamp(0.1, 3600.0) } else { 1.0 };
        self.place.set(Doing::Watching);
        let mut ticks = tokio::time::interval(Duration::from_secs_f64(every));
        let mut rest = [0; 64];
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    if !self.say_state(server).await {
                        return;
                    }
                }
                // Whatever the client says now ends it.
                _ = self.stream.read(&mut rest) => return,
            }
        }
    }

    /// Hands an order to the loop and waits until the state shows it.
    async fn carry_out(&mut self, directed: Directed) -> bool {
        let server = directed.server.as_deref();
        if let Some(Err(error)) = server.map(|server| self.published.latest(Some(server))) {
            return self.say(&Answer::error(error.to_string())).await;
        }
        if self.orders.try_send(directed.clone()).is_err() {
            return self.say(&Answer::error("too many orders at once, or agft is ending; try again")).await;
        }
        let carried_out =
            tokio::time::timeout(ORDER_TIME, self.published.shows(&directed)).await.unwrap_or(false);
        if carried_out {
            return self.say_state(server).await;
        }
        self.say(&Answer::error("the loop has the order but has not carried it out yet")).await
    }
}

#[cfg(test)]
mod tests;
