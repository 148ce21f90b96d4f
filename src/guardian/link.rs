//! The controller's side: starts a guardian, talks to it, and ends it.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{BEAT, FromGuardian, SILENCE, ToGuardian};
use crate::units::Seconds;

/// NVML on a real driver without persistence mode takes seconds to start.
const START: Duration = Duration::from_secs(60);
/// A guardian that does not take a line for so long is of no use.
const SEND: Duration = Duration::from_millis(200);

/// Whom to start.
#[derive(Debug, Clone)]
pub(crate) struct GuardianSpec {
    /// UUIDs of the GPUs.
    pub gpus: Vec<String>,
    /// Of these, the GPUs whose performance state is forced.
    pub forced: Vec<String>,
    /// Directory of locks and journals.
    pub runtime_dir: PathBuf,
    /// Configuration file, for the lock files.
    pub config: PathBuf,
    /// Silence of the controller after which the guardian acts.
    pub silence: Duration,
    pub(crate) json_log: bool,
}

impl GuardianSpec {
    /// How long a controller with ticks `period` apart may be silent.
    pub(crate) fn silence(period: Seconds) -> Duration {
        Duration::from_secs_f64(5.0 * period.0).max(SILENCE)
    }
}

/// Why there is no guardian.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("the guardian cannot be started: {0}")]
    System(#[from] io::Error),
    #[error("the guardian cannot start: {0}")]
    Refused(String),
    #[error("the guardian does not answer")]
    NoAnswer,
}

/// A guardian, and the lines that come from it.
struct Live {
    child: Child,
    writing: UnixStream,
}

/// The way to the guardian; may be without one for a while. Shared by the threads that lock and that watch.
#[derive(Clone)]
pub(crate) struct Link {
    ends: Arc<Mutex<Ends>>,
}

#[derive(Default)]
struct Ends {
    live: Option<Live>,
    /// What every guardian has to know from its first moment: GPUs on which something is or may be locked.
    held: BTreeSet<String>,
}

impl Ends {
    fn send(&mut self, message: &ToGuardian) -> bool {
        let Ok(mut line) = serde_json::to_vec(message) else { return false };
        line.push(b'\n');
        let sent = self.live.as_mut().is_some_and(|live| live.writing.write_all(&line).is_ok());
        if !sent {
            self.drop_guardian();
        }
        sent
    }

    fn drop_guardian(&mut self) {
        if let Some(live) = self.live.take() {
            end(live);
        }
    }
}

impl Link {
    /// A way to nobody yet.
    pub(crate) fn new() -> Self {
        Self { ends: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Ends> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a guardian and waits until it is ready; gives the lines that it will send.
    pub(crate) fn start(&self, spec: &GuardianSpec) -> Result<Answers, LinkError> {
        self.drop_guardian();
        let (ours, theirs) = UnixStream::pair()?;
        // This very executable, even if its file has been replaced or removed since.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("agft").arg("guardian").arg("--config").arg(&spec.config);
        command.arg("--controller").arg(std::process::id().to_string());
        command.arg("--runtime-dir").arg(std::path::absolute(&spec.runtime_dir)?);
        command.arg("--silence-ms").arg(spec.silence.as_millis().to_string());
        if spec.json_log {
            command.args(["--log-format", "json"]);
        }
        for gpu in &spec.gpus {
            command.arg("--gpu").arg(gpu);
        }
        for gpu in &spec.forced {
            command.arg("--forced-gpu").arg(gpu);
        }
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
        // The service manager's socket is the controller's alone.
        command.env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC").env_remove("WATCHDOG_PID");
        let child = command.spawn()?;
        // It holds the other end of the socket.
        drop(command);
        ours.set_write_timeout(Some(SEND))?;
        ours.set_read_timeout(Some(START))?;
        let mut answers = Answers { lines: BufReader::new(ours.try_clone()?), partial: String::new() };
        let mut live = Live { child, writing: ours };
        match answers.next() {
            Some(Some(FromGuardian::Ready)) => {
                answers.lines.get_ref().set_read_timeout(Some(BEAT))?;
                let mut ends = self.lock();
                ends.live = Some(live);
                for gpu in ends.held.clone() {
                    if !ends.send(&ToGuardian::Hold(gpu)) {
                        return Err(LinkError::NoAnswer);
                    }
                }
                Ok(answers)
            }
            answer => {
                let _ = live.child.kill();
                let _ = live.child.wait();
                Err(match answer {
                    Some(Some(FromGuardian::CannotStart(why))) => LinkError::Refused(why),
                    _ => LinkError::NoAnswer,
                })
            }
        }
    }

    /// Sends a line; `false` if there is no guardian to take it.
    pub(crate) fn send(&self, message: &ToGuardian) -> bool {
        let mut ends = self.lock();
        match message {
            ToGuardian::Hold(gpu) => drop(ends.held.insert(gpu.clone())),
            ToGuardian::Free(gpu) => drop(ends.held.remove(gpu)),
            ToGuardian::Beat | ToGuardian::Stuck(_) | ToGuardian::StuckGpus { .. } | ToGuardian::Goodbye => {}
        }
        ends.send(message)
    }

    /// Is nothing locked, as far as was said?
    pub(crate) fn holds_nothing(&self) -> bool {
        self.lock().held.is_empty()
    }

    /// Ends a guardian that is of no use any more, or ended already.
    pub(crate) fn drop_guardian(&self) {
        self.lock().drop_guardian();
    }

    /// The controller ends with nothing locked. The guardian ends by itself: nobody waits for it.
    pub(crate) fn goodbye(&self) {
        let _ = self.send(&ToGuardian::Goodbye);
    }
}

impl Default for Link {
    fn default() -> Self {
        Self::new()
    }
}

/// It answers no more: a stopped process must not wake up later and act.
fn end(mut live: Live) {
    let _ = live.child.kill();
    // After SIGKILL only a driver call can keep it; a thread of its own waits for that.
    let reaper = std::thread::Builder::new().name("agft-reaper".into());
    let _ = reaper.spawn(move || live.child.wait());
}

/// What the guardian says.
pub(crate) struct Answers {
    lines: BufReader<UnixStream>,
    partial: String,
}

impl Answers {
    /// The next message; `Some(None)` if none came within the time set, `None` if the guardian is gone.
    pub(crate) fn next(&mut self) -> Option<Option<FromGuardian>> {
        match self.lines.read_line(&mut self.partial) {
            Ok(0) => None,
            Ok(_) => {
                let message = serde_json::from_str(self.partial.trim_end());
                self.partial.clear();
                match message {
                    Ok(message) => Some(Some(message)),
                    Err(_) => None,
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Some(None)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Some(None),
            Err(_) => None,
        }
    }
}
