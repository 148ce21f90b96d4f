//! The guardian's own side: a process that waits for the controller's end.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, chdir, getppid, kill_process, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal, setsid,
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::predecessor::claim;
use super::reset::{Gpu, Handle, reset_all};
use super::{FromGuardian, ToGuardian};
use crate::gpu::GpuError;
use crate::gpu::host::{self, AnyHost};
use crate::gpu::pstate::MayBeForced;
use crate::gpu::retry::Retries;
use crate::signals::Signals;
use crate::store::held::{Claim, ClaimError, HeldDir};

/// How long the last words of a dead controller may take to be read.
const LAST_WORDS: Duration = Duration::from_millis(50);
/// How soon a successor that asks for a GPU is heard.
const HEARS: Duration = Duration::from_millis(100);
/// Pause between two tries under a controller that still lives.
const RETRY: Duration = Duration::from_millis(20);
/// Clocks that the driver does not take back for so long are tried through a new handle, and again after so long.
const RESTART: Duration = Duration::from_secs(2);
/// Tries under a controller that still lives: its end brings the rest.
const TRIES_UNDER_CONTROLLER: u32 = 5;
/// A controller that said it is stuck is killed if it has not ended by then.
const STUCK_END: Duration = Duration::from_secs(10);

/// Options of `guardian`, by which the controller tells it all it has to know. Not for people.
#[derive(Debug, clap::Args)]
pub struct Ward {
    /// Process id of the controller
    #[arg(long)]
    pub(crate) controller: u32,
    /// UUID of a GPU to watch over
    #[arg(long = "gpu", required = true)]
    pub(crate) gpus: Vec<String>,
    /// Of these, a GPU whose performance state is forced
    #[arg(long = "forced-gpu")]
    pub(crate) forced: Vec<String>,
    /// Directory of locks and journals
    #[arg(long)]
    pub(crate) runtime_dir: PathBuf,
    /// Silence of the controller after which the clocks are given back, in milliseconds
    #[arg(long)]
    pub(crate) silence_ms: u64,
}

/// Guards until the controller's end or a signal. Standard input is the socket to the controller; `config` is
/// its configuration file, for the lock files.
pub(crate) fn run(ward: &Ward, config: &Path) -> Result<(), GuardianError> {
    // A session of its own: neither the terminal's ^C nor a kill of the controller's process group is meant for it.
    // Where it leads a group already (started by hand), there is nothing to leave.
    let _ = setsid();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(system("the runtime"))?.block_on(watch(ward, config))
}

/// Why a guardian cannot do its work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuardianError {
    #[error("{what}: {cause}")]
    System { what: &'static str, cause: io::Error },
    #[error(transparent)]
    Gpu(#[from] GpuError),
    #[error(transparent)]
    Claim(#[from] ClaimError),
    #[error("the controller (pid {0}) was gone before its guardian was ready")]
    Orphan(u32),
}

fn system(what: &'static str) -> impl Fn(io::Error) -> GuardianError {
    move |cause| GuardianError::System { what, cause }
}

async fn watch(ward: &Ward, config: &Path) -> Result<(), GuardianError> {
    let socket = socket().map_err(system("the socket to the controller"))?;
    let (reading, mut writing) = socket.into_split();
    match Guardian::new(ward, config).await {
        Ok((mut guardian, signals)) => {
            guardian.writing = Some(writing);
            guardian.say(&FromGuardian::Ready).await;
            guardian.run(BufReader::new(reading).lines(), signals).await
        }
        Err(error) => {
            let _ = send(&mut writing, &FromGuardian::CannotStart(error.to_string())).await;
            Err(error)
        }
    }
}

/// Standard input, as the socket that it is.
fn socket() -> io::Result<UnixStream> {
    let fd: OwnedFd = io::stdin().as_fd().try_clone_to_owned()?;
    let socket = std::os::unix::net::UnixStream::from(fd);
    // The peer's address can be asked of a socket only.
    socket.peer_addr()?;
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

/// A line as a message; `None` at the end.
fn parse(line: io::Result<Option<String>>) -> Option<serde_json::Result<ToGuardian>> {
    line.ok().flatten().map(|line| serde_json::from_str(&line))
}

async fn send(writing: &mut OwnedWriteHalf, message: &FromGuardian) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    writing.write_all(&line).await
}

struct Guardian {
    host: AnyHost,
    gpus: Vec<Gpu>,
    /// GPUs on which something is locked, or may be.
    held: BTreeSet<String>,
    /// The row of resets that failed under a living controller.
    refused: Retries,
    controller: Controller,
    /// The thread that started this process has ended, and with it, or soon, the controller.
    dying: tokio::signal::unix::Signal,
    writing: Option<OwnedWriteHalf>,
    dir: HeldDir,
    silence: Duration,
}

/// The process that is watched. It is the guardian's parent.
struct Controller {
    pid: Pid,
    /// None where the kernel (before 5.3) or a sandbox has no such thing: then the socket, and a look at the parent now
    /// and then, have to do.
    pidfd: Option<Arc<OwnedFd>>,
    gone: Arc<Notify>,
}

impl Controller {
    /// `None` if it is gone already.
    fn watch(pid: u32) -> io::Result<Option<Self>> {
        let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Some(Arc::new(pidfd)),
            Err(Errno::SRCH) => return Ok(None),
            Err(error) => {
                tracing::info!(%error, "no pidfd here: the socket tells of the controller's end");
                None
            }
        };
        let controller = Self { pid, pidfd, gone: Arc::new(Notify::new()) };
        // Only now: had it died before, its id could be another's by the time it was opened.
        if !controller.is_parent() {
            return Ok(None);
        }
        if let Some(pidfd) = controller.pidfd.clone() {
            let gone = Arc::clone(&controller.gone);
            // A thread waits on the descriptor: tokio has no safe way to do that for one of its own kind.
            std::thread::Builder::new().name("agft-pidfd".into()).spawn(move || {
                // Readable means dead. Nothing but a signal interrupts the wait; it is then taken up again.
                while poll(&mut [PollFd::new(&*pidfd, PollFlags::IN)], None).is_err() {}
                gone.notify_one();
            })?;
        }
        Ok(Some(controller))
    }

    fn is_parent(&self) -> bool {
        getppid() == Some(self.pid)
    }

    fn kill(&self) {
        // While it is the parent its id is no other's. It may end this very moment: no matter.
        let _ = match &self.pidfd {
            Some(pidfd) => pidfd_send_signal(pidfd, Signal::KILL),
            None if self.is_parent() => kill_process(self.pid, Signal::KILL),
            None => Ok(()),
        };
    }
}

/// Why the guardian stops waiting.
enum Why {
    Goodbye,
    Gone,
    Signal(&'static str),
}

impl Guardian {
    async fn new(ward: &Ward, config: &Path) -> Result<(Self, Signals), GuardianError> {
        let signals = Signals::install().map_err(system("signal handlers"))?;
        let dying = signal(SignalKind::user_defined1()).map_err(system("signal handlers"))?;
        // Only the earliest sign of several: where it cannot be had, the others have to do.
        if let Err(error) = set_parent_process_death_signal(Some(Signal::USR1)) {
            tracing::info!(%error, "no signal at the death of the controller's thread");
        }
        let controller = Controller::watch(ward.controller)
            .map_err(system("the thread that watches the controller"))?
            .ok_or(GuardianError::Orphan(ward.controller))?;
        let host = host::open()?;
        let dir = HeldDir::open(&ward.runtime_dir).map_err(ClaimError::from)?;
        let mut opened = Vec::new();
        for uuid in &ward.gpus {
            let forced = if ward.forced.contains(uuid) { MayBeForced::Yes } else { MayBeForced::No };
            opened.push((uuid.clone(), forced, host.clocks_to_reset(uuid, forced)?));
        }
        // A predecessor may hand its GPUs over only to one that can give their clocks back.
        let (claims, held) = claim(&dir, &ward.gpus, config).await?;
        let gpu = |((uuid, forced, clocks), claim): ((String, _, _), Claim)| {
            let pci = host.pci_name(&uuid);
            Gpu { uuid, clocks: Handle::new(clocks), forced, memory_locked: false, pci, _claim: claim }
        };
        let gpus = opened.into_iter().zip(claims).map(gpu).collect();
        // The libraries are loaded and the files open: it need not keep anybody's directory busy.
        let _ = chdir("/");
        let guardian = Self {
            host,
            gpus,
            held,
            refused: Retries::default(),
            controller,
            dying,
            writing: None,
            dir,
            silence: Duration::from_millis(ward.silence_ms),
        };
        Ok((guardian, signals))
    }

    /// Tells the controller, which may be gone.
    async fn say(&mut self, message: &FromGuardian) {
        if let Some(writing) = &mut self.writing
            && let Ok(Err(_)) | Err(_) =
                tokio::time::timeout(Duration::from_millis(200), send(writing, message)).await
        {
            self.writing = None;
        }
    }

    async fn run(
        mut self,
        lines: Lines<BufReader<OwnedReadHalf>>,
        mut signals: Signals,
    ) -> Result<(), GuardianError> {
        match self.wait(lines, &mut signals).await {
            Why::Goodbye if self.held.is_empty() => Ok(()),
            Why::Goodbye | Why::Gone => self.release_for_good(None).await,
            Why::Signal(name) => {
                // What was locked is nobody else's to give back: where the driver refuses, only SIGKILL ends it sooner.
                self.release_for_good(Some(format!("{name} to the guardian"))).await
            }
        }
    }

    async fn wait(&mut self, mut lines: Lines<BufReader<OwnedReadHalf>>, signals: &mut Signals) -> Why {
        let mut heard = Instant::now();
        let mut looked = heard;
        // Given back because of silence, and not locked since.
        let mut silent = false;
        let mut kill_at: Option<Instant> = None;
        let mut look = tokio::time::interval(self.silence / 12);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                line = lines.next_line() => match parse(line) {
                    Some(Ok(ToGuardian::Beat)) => {
                        heard = Instant::now();
                        silent = false;
                        self.say(&FromGuardian::Alive).await;
                    }
                    Some(Ok(ToGuardian::Stuck(part))) => {
                        let why = format!("the controller is stuck: {part}");
                        self.release_under_controller(&why, self.held.clone()).await;
                        kill_at.get_or_insert(Instant::now() + STUCK_END);
                    }
                    Some(Ok(ToGuardian::StuckGpus { part, gpus })) => {
                        let why = format!("a part is stuck: {part}");
                        let theirs = self.held.iter().filter(|gpu| gpus.contains(gpu)).cloned().collect();
                        self.release_under_controller(&why, theirs).await;
                    }
                    Some(Ok(ToGuardian::Goodbye)) => return Why::Goodbye,
                    Some(Ok(message)) => {
                        self.keep(message);
                        silent = false;
                    }
                    // Of another version, which cannot be: they are one executable.
                    Some(Err(error)) => tracing::warn!(%error, "message not understood"),
                    None => return Why::Gone,
                },
                _ = self.dying.recv() => {
                    self.release_under_controller("the controller is being killed", self.held.clone()).await;
                }
                name = signals.wait() => return Why::Signal(name),
                () = self.controller.gone.notified() => {
                    // What it said before it died has to be known, and has arrived. Where a fork of it holds the socket
                    // open there is no end to wait for.
                    let said = async {
                        while let Some(Ok(message)) = parse(lines.next_line().await) {
                            self.keep(message);
                        }
                    };
                    let _ = tokio::time::timeout(LAST_WORDS, said).await;
                    return Why::Gone;
                }
                now = look.tick() => {
                    if now.duration_since(looked) > self.silence / 2 {
                        // Stopped itself: the controller may have been, too.
                        heard = now;
                    }
                    looked = now;
                    if !self.controller.is_parent() {
                        self.controller.gone.notify_one();
                        continue;
                    }
                    let quiet = now.duration_since(heard);
                    if quiet >= self.silence && !silent {
                        let why = format!("no word from the controller for {:.1} s", quiet.as_secs_f64());
                        silent = self.release_under_controller(&why, self.held.clone()).await;
                    }
                    if kill_at.is_some_and(|at| now >= at) {
                        tracing::error!("the stuck controller does not end: killed");
                        self.controller.kill();
                        kill_at = Some(now + STUCK_END);
                    }
                }
            }
        }
    }

    fn keep(&mut self, message: ToGuardian) {
        match message {
            ToGuardian::Hold(gpu) => drop(self.held.insert(gpu)),
            ToGuardian::Free(gpu) => drop(self.held.remove(&gpu)),
            ToGuardian::Beat | ToGuardian::Stuck(_) | ToGuardian::StuckGpus { .. } | ToGuardian::Goodbye => {}
        }
    }

    /// Gives back these of what is held while the controller lives, and says so. The journals are the controller's:
    /// what was held stays in `held` until it says otherwise.
    async fn release_under_controller(&mut self, why: &str, gpus: BTreeSet<String>) -> bool {
        let mut failed = self.reset(&gpus);
        for _ in 1..TRIES_UNDER_CONTROLLER {
            if failed.is_empty() {
                break;
            }
            tokio::time::sleep(RETRY).await;
            failed = self.reset(&gpus);
        }
        let Some((gpu, error)) = failed.first() else {
            self.refused.succeeded();
            let gpus = gpus.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            tracing::warn!(%why, gpus, "guardian gave the clocks back");
            self.say(&FromGuardian::Released(why.to_owned())).await;
            return true;
        };
        let tried = self.refused.failed();
        if tried.say {
            let (for_s, hint) = (tried.elapsed.as_secs(), error.hint());
            tracing::error!(%why, gpu, %error, for_s, hint, "clocks not given back yet");
        }
        false
    }

    /// The controller is gone, or the guardian is asked to go: gives everything back, and tries until it is,
    /// whatever the driver says. A GPU that is gone from the machine has nothing to give back.
    ///
    /// A controller that lives (`asked`) may lock until it sees that it has no guardian, and the journals are
    /// its own. So no journal is cleared but after a reset that came after its end.
    async fn release_for_good(mut self, mut asked: Option<String>) -> Result<(), GuardianError> {
        let mut retries = Retries::default();
        let mut restart_at = RESTART;
        let start = Instant::now();
        self.hold_journalled();
        loop {
            if asked.is_some() && !self.controller.is_parent() {
                asked = None;
                self.hold_journalled();
            }
            let failed = self.reset(&self.held.clone());
            let is_back = |gpu: &String| !failed.iter().any(|(uuid, _)| uuid == gpu);
            for gpu in self.held.iter().filter(|gpu| is_back(gpu)).cloned().collect::<Vec<_>>() {
                let took_ms = start.elapsed().as_secs_f64() * 1e3;
                if let Some(why) = &asked {
                    tracing::warn!(gpu, took_ms, why, "guardian gave the clocks back");
                } else {
                    tracing::warn!(gpu, took_ms, "the controller is gone: clocks given back");
                    self.clear(&gpu);
                }
                self.held.remove(&gpu);
            }
            let Some((gpu, error)) = failed.first() else {
                match asked {
                    None => break,
                    Some(_) if !self.controller.is_parent() => continue,
                    Some(why) => {
                        self.say(&FromGuardian::Released(why)).await;
                        return Ok(());
                    }
                }
            };
            let tried = retries.failed();
            if tried.say {
                let (for_s, hint) = (tried.elapsed.as_secs(), error.hint());
                tracing::error!(gpu, %error, for_s, hint, "clocks not given back yet: the guardian goes on trying");
            }
            if tried.elapsed >= restart_at {
                restart_at = tried.elapsed + RESTART;
                // What it would say of each GPU has been said of the clocks.
                tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::default(), || {
                    self.open_again();
                });
                if self.drop_gone() {
                    continue;
                }
            }
            let until = Instant::now() + tried.pause;
            while !self.hand_over() && Instant::now() < until {
                tokio::time::sleep(tried.pause.min(HEARS)).await;
            }
        }
        for gpu in &self.gpus {
            self.clear(&gpu.uuid);
        }
        Ok(())
    }

    /// A journal may be a dead predecessor's, whose clocks the controller did not live to reset: cleared
    /// unread, it would leave them locked.
    fn hold_journalled(&mut self) {
        let journalled = self.gpus.iter().filter(|gpu| self.dir.has_journal(&gpu.uuid));
        self.held.extend(journalled.map(|gpu| gpu.uuid.clone()).collect::<Vec<_>>());
    }

    fn clear(&self, gpu: &str) {
        if let Err(error) = self.dir.clear(gpu) {
            tracing::warn!(%error, "journal stays; the next start finds nothing locked");
        }
    }

    /// The driver may have been reset, or the handle be stale: NVML is started again, and each GPU opened again that
    /// answers.
    fn open_again(&mut self) {
        // A call that is under way must not lose its library.
        if self.gpus.iter().any(|gpu| gpu.clocks.is_busy()) || self.host.restart().is_err() {
            return;
        }
        for gpu in &mut self.gpus {
            // A predecessor's journal may know of a state that the controller did not.
            let forced = match (gpu.forced, self.dir.state_may_be_forced(&gpu.uuid)) {
                (MayBeForced::Yes, _) => MayBeForced::Yes,
                (_, journalled) => journalled,
            };
            if let Ok(clocks) = self.host.clocks_to_reset(&gpu.uuid, forced) {
                gpu.clocks = Handle::new(clocks);
            }
        }
    }

    /// Leaves GPUs that a successor asks for to that one, which holds them from then on; says whether there
    /// was one.
    ///
    /// One with another runtime directory knows nothing of a forced performance state, which the journal here
    /// names.
    fn hand_over(&mut self) -> bool {
        let before = self.gpus.len();
        let (dir, held) = (&self.dir, &mut self.held);
        self.gpus.retain(|gpu| {
            let forced =
                gpu.forced != MayBeForced::No || dir.state_may_be_forced(&gpu.uuid) != MayBeForced::No;
            let asked_for = dir.is_asked_for(&gpu.uuid, !forced);
            if asked_for && held.remove(&gpu.uuid) {
                tracing::warn!(gpu = gpu.uuid, "another guardian takes the GPU, and the care for its clocks");
            }
            !asked_for
        });
        self.gpus.len() < before
    }

    /// Forgets GPUs that are gone from the machine; says whether there was one.
    fn drop_gone(&mut self) -> bool {
        let before = self.held.len();
        for gpu in &self.gpus {
            if self.held.contains(&gpu.uuid) && self.host.is_gone(&gpu.uuid, gpu.pci.as_deref()) {
                tracing::warn!(gpu = gpu.uuid, "the GPU is gone from the machine, and its lock with it");
                self.held.remove(&gpu.uuid);
            }
        }
        self.held.len() < before
    }

    /// One try on each of these GPUs; what failed, and where.
    fn reset(&mut self, gpus: &BTreeSet<String>) -> Vec<(String, GpuError)> {
        for gpu in self.gpus.iter_mut().filter(|gpu| gpus.contains(&gpu.uuid)) {
            gpu.memory_locked = self.dir.memory_is_locked(&gpu.uuid);
        }
        reset_all(self.gpus.iter().filter(|gpu| gpus.contains(&gpu.uuid)))
    }
}
