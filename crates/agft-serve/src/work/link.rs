//! The link to the daemons of this machine: says to each, over its control socket, what the instances do.
//!
//! Said at each change, and every few seconds, as a daemon forgets what it was told when it hears nothing
//! more or the connection ends. Without a daemon all else goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agft_common::instances::{MAX_GPUS, MAX_INSTANCES, MAX_REQUEST, MAX_SELECTOR, socket_pid};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::InstanceState;
use crate::spec::Gpus;
use crate::supervise::InstanceStatus;

/// Where the daemon of the machine has its socket.
pub const DAEMON_DIR: &str = "/run/agft";
/// So often the same is said again, and new daemons are looked for.
const PACE: Duration = Duration::from_secs(3);
/// A daemon that takes longer to take a line or to answer is left.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer, in bytes.
const LONGEST_ANSWER: u64 = 1 << 20;

/// The daemons that listen, by process id.
#[derive(Debug, Clone)]
pub struct Daemons(watch::Receiver<BTreeSet<u32>>);

impl Daemons {
    /// Nobody, for ever.
    #[must_use]
    pub fn none() -> Self {
        Self(watch::channel(BTreeSet::new()).1)
    }

    /// Their process ids now.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        self.0.borrow().iter().copied().collect()
    }
}

/// Why a daemon is not told.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Late(#[from] tokio::time::error::Elapsed),
    #[error("it does not take what it is told: {0}")]
    Refused(String),
    #[error("what answers there is no agft of this version: {0}")]
    Nonsense(serde_json::Error),
}

impl LinkError {
    /// Is this the end of a daemon, and not something for an operator to see to?
    fn is_end(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
        let kinds = [BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof];
        matches!(self, Self::Io(error) if kinds.contains(&error.kind()))
    }
}

#[derive(Serialize)]
struct Request<'i> {
    cmd: &'static str,
    instances: &'i [Told],
}

#[derive(Serialize)]
struct Told {
    name: String,
    gpus: Vec<String>,
    state: InstanceState,
}

#[derive(Deserialize)]
struct Answer {
    ok: bool,
    #[serde(default)]
    unknown: BTreeSet<String>,
    #[serde(default)]
    error: String,
}

fn gpus_of(gpus: &Gpus) -> Vec<String> {
    match gpus {
        Gpus::All => vec!["all".into()],
        Gpus::None => Vec::new(),
        Gpus::Indices(list) => list.iter().map(u32::to_string).collect(),
        Gpus::CudaIndices(list) => list.iter().map(|index| format!("cuda:{index}")).collect(),
        Gpus::Uuids(list) => list.iter().filter(|uuid| uuid.len() <= MAX_SELECTOR).cloned().collect(),
    }
}

/// The line that says what instances do, of those that use a GPU; those that work first, where there are too
/// many.
fn line(statuses: &[InstanceStatus]) -> String {
    let told = |status: &InstanceStatus| Told {
        name: status.name.chars().map(|c| if c.is_control() { '?' } else { c }).collect(),
        gpus: gpus_of(&status.gpus).into_iter().take(MAX_GPUS).collect(),
        state: status.work,
    };
    let with_gpu = statuses.iter().filter(|status| status.gpus != Gpus::None);
    let mut all: Vec<Told> = with_gpu.map(told).collect();
    if all.len() > MAX_INSTANCES {
        all.sort_by_key(|told| told.state != InstanceState::Working);
        all.truncate(MAX_INSTANCES);
    }
    loop {
        let request = Request { cmd: "instances", instances: &all };
        // Words and numbers: they can always be written.
        let mut line = serde_json::to_string(&request).unwrap_or_default();
        line.push('\n');
        if line.len() <= MAX_REQUEST {
            return line;
        }
        all.sort_by_key(|told| told.state != InstanceState::Working);
        all.truncate(all.len() * 3 / 4);
    }
}

/// Tells the daemons with sockets in this directory until the instances are no more.
pub fn start(dir: PathBuf, statuses: watch::Receiver<Vec<InstanceStatus>>) -> Daemons {
    let (listening, daemons) = watch::channel(BTreeSet::new());
    tokio::spawn(look_for_daemons(dir, statuses, listening));
    Daemons(daemons)
}

/// The control sockets in a directory, by process id.
fn sockets(dir: &Path) -> BTreeMap<u32, PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return BTreeMap::new() };
    entries.flatten().map(|entry| entry.path()).filter_map(|path| Some((socket_pid(&path)?, path))).collect()
}

async fn look_for_daemons(
    dir: PathBuf,
    statuses: watch::Receiver<Vec<InstanceStatus>>,
    listening: watch::Sender<BTreeSet<u32>>,
) {
    let mut links: JoinSet<(u32, LinkError)> = JoinSet::new();
    let mut running: BTreeMap<u32, AbortHandle> = BTreeMap::new();
    // What was said of a daemon is not said again with each try.
    let mut complaints: BTreeMap<u32, String> = BTreeMap::new();
    while statuses.has_changed().is_ok() {
        let found = sockets(&dir);
        running.retain(|_, link| !link.is_finished());
        complaints.retain(|pid, _| found.contains_key(pid));
        for (pid, path) in found {
            let (statuses, listening) = (statuses.clone(), listening.clone());
            running.entry(pid).or_insert_with(|| {
                links.spawn(async move { (pid, tell(pid, &path, statuses, &listening).await) })
            });
        }
        let pause = sleep(PACE);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                Some(ended) = links.join_next() => {
                    let Ok((pid, error)) = ended else { continue };
                    let text = error.to_string();
                    if error.is_end() {
                        tracing::debug!(pid, error = text, "agft is not told of work");
                    } else if complaints.get(&pid) != Some(&text) {
                        tracing::warn!(pid, error = text, "agft is not told of work; it is tried again");
                        complaints.insert(pid, text);
                    }
                }
            }
        }
    }
}

/// A daemon that listens, until this is dropped.
struct Listening<'s> {
    pid: u32,
    listening: &'s watch::Sender<BTreeSet<u32>>,
}

impl<'s> Listening<'s> {
    fn new(pid: u32, listening: &'s watch::Sender<BTreeSet<u32>>) -> Self {
        tracing::info!(pid, "agft listens: it is told which instances work");
        listening.send_if_modified(|pids| pids.insert(pid));
        Self { pid, listening }
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.listening.send_if_modified(|pids| pids.remove(&self.pid));
    }
}

/// Tells one daemon; returns why that came to an end.
async fn tell(
    pid: u32,
    path: &Path,
    mut statuses: watch::Receiver<Vec<InstanceStatus>>,
    listening: &watch::Sender<BTreeSet<u32>>,
) -> LinkError {
    let told = async {
        let stream = timeout(PATIENCE, UnixStream::connect(path)).await??;
        let (answers, mut to) = stream.into_split();
        let mut answers = BufReader::new(answers);
        let mut listens = None;
        let mut unknown = BTreeSet::new();
        loop {
            let line = line(&statuses.borrow_and_update());
            timeout(PATIENCE, to.write_all(line.as_bytes())).await??;
            let answer = timeout(PATIENCE, hear(&mut answers)).await??;
            let answer: Answer = serde_json::from_str(&answer).map_err(LinkError::Nonsense)?;
            if !answer.ok {
                return Err(LinkError::Refused(answer.error));
            }
            if answer.unknown != unknown {
                unknown = answer.unknown;
                if !unknown.is_empty() {
                    tracing::warn!(pid, gpus = ?unknown, "agft knows no such GPUs: work on them holds none");
                }
            }
            listens.get_or_insert_with(|| Listening::new(pid, listening));
            let pause = sleep(PACE);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    changed = statuses.changed() => {
                        changed.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
                        if self::line(&statuses.borrow_and_update()) != line {
                            break;
                        }
                    }
                    // It has nothing to say now: this is its end.
                    _ = answers.fill_buf() => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                }
            }
        }
    };
    let told: Result<std::convert::Infallible, LinkError> = told.await;
    match told {
        Err(error) => error,
        Ok(never) => match never {},
    }
}

async fn hear(answers: &mut BufReader<OwnedReadHalf>) -> io::Result<String> {
    let mut line = String::new();
    if answers.take(LONGEST_ANSWER).read_line(&mut line).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use serde_json::Value;
    use tokio::net::UnixListener;

    use super::*;
    use crate::supervise::State;

    fn status(name: &str, gpus: Gpus, work: InstanceState) -> InstanceStatus {
        InstanceStatus {
            name: name.into(),
            enabled: true,
            state: State::Ready,
            since: SystemTime::UNIX_EPOCH,
            pid: Some(1),
            restarts: 0,
            gpus,
            last_exit: None,
            problem: None,
            connections: None,
            metrics_url: None,
            work,
        }
    }

    #[test]
    fn the_line_names_gpus_as_the_daemon_reads_them() {
        let line = line(&[
            status("a", Gpus::Indices(vec![0, 1]), InstanceState::Working),
            status("b\n", Gpus::CudaIndices(vec![1]), InstanceState::Idle),
            status(
                "c",
                Gpus::Uuids(vec!["GPU-1".into(), format!("GPU-{}", "1".repeat(99))]),
                InstanceState::Sleeping,
            ),
            status("d", Gpus::All, InstanceState::Unknown),
            status("e", Gpus::None, InstanceState::Working),
        ]);
        let wanted = r#"{"cmd":"instances","instances":[{"name":"a","gpus":["0","1"],"state":"working"},{"name":"b?","gpus":["cuda:1"],"state":"idle"},{"name":"c","gpus":["GPU-1"],"state":"sleeping"},{"name":"d","gpus":["all"],"state":"unknown"}]}"#;
        assert_eq!(line, format!("{wanted}\n"));
    }

    #[test]
    fn too_many_instances_are_cut_to_those_that_work() {
        let gpus = || Gpus::Uuids((0..64).map(|k| format!("GPU-{k:060}")).collect());
        let of = |k: usize| {
            let work = if k % 100 == 99 { InstanceState::Working } else { InstanceState::Idle };
            status(&format!("{k:080}"), gpus(), work)
        };
        let all: Vec<InstanceStatus> = (0..400).map(of).collect();
        let line = line(&all);
        assert!(line.len() <= MAX_REQUEST);
        let told: Value = serde_json::from_str(&line).unwrap();
        let told = told["instances"].as_array().unwrap();
        let working = told.iter().filter(|one| one["state"] == "working").count();
        assert!(working == 4 && told.len() > 4, "{working} of {}", told.len());
    }

    /// Takes the next line of a talk, and answers it.
    async fn take(talk: &mut BufReader<UnixStream>, answer: &str) -> Value {
        let mut line = String::new();
        talk.read_line(&mut line).await.unwrap();
        talk.get_mut().write_all(format!("{answer}\n").as_bytes()).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    const TAKEN: &str = r#"{"ok":true,"known":[],"unknown":[]}"#;

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_comes_is_told_and_what_changes_is_said_at_once_and_again() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("agft-7.sock"), "no socket").unwrap();
        let now = |work| vec![status("a", Gpus::All, work)];
        let (tell, statuses) = watch::channel(now(InstanceState::Idle));
        let mut daemons = start(dir.path().to_owned(), statuses);
        sleep(2 * PACE).await;
        assert!(daemons.pids().is_empty());
        let listener = UnixListener::bind(dir.path().join("agft-4711.sock")).unwrap();
        let mut talk = BufReader::new(listener.accept().await.unwrap().0);
        assert_eq!(take(&mut talk, TAKEN).await["instances"][0]["state"], "idle");
        daemons.0.wait_for(|pids| pids.contains(&4711)).await.unwrap();
        // Nothing new: the same again.
        assert_eq!(take(&mut talk, TAKEN).await["instances"][0]["state"], "idle");
        let begun = tokio::time::Instant::now();
        tell.send_replace(now(InstanceState::Working));
        assert_eq!(take(&mut talk, TAKEN).await["instances"][0]["state"], "working");
        assert!(begun.elapsed() < PACE, "{:?}", begun.elapsed());
        drop(talk);
        daemons.0.wait_for(BTreeSet::is_empty).await.unwrap();
        // One that refuses does not listen.
        let mut talk = BufReader::new(listener.accept().await.unwrap().0);
        assert_eq!(take(&mut talk, r#"{"ok":false,"error":"no"}"#).await["instances"][0]["state"], "working");
        let mut talk = BufReader::new(listener.accept().await.unwrap().0);
        assert!(daemons.pids().is_empty());
        take(&mut talk, TAKEN).await;
        daemons.0.wait_for(|pids| pids.contains(&4711)).await.unwrap();
    }
}
