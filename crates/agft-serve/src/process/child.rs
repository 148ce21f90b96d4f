//! A process of ours: from its start to the moment it was waited for.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, geteuid, kill_process_group, pidfd_open, setsid, waitid,
};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe::Receiver;

use super::cgroup::Group;
use super::user::{self, Account};
use super::{Exit, reap, tree};

/// What is to be started.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub(crate) command: Vec<String>,
    /// Over the supervisor's own environment.
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) directory: Option<PathBuf>,
    pub(crate) user: Option<String>,
    /// The value of [`tree::MARK`].
    pub(crate) mark: String,
    pub(crate) group: Option<Group>,
}

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error("its command is empty: name a program")]
    Empty,
    #[error("user {0:?} does not exist on this host: create it, or name another")]
    NoSuchUser(String),
    #[error("user {name:?} cannot be looked up: {source}")]
    Lookup { name: String, source: io::Error },
    #[error("working directory {} cannot be entered: create it, or name another", .0.display())]
    NoDirectory(PathBuf),
    #[error("{program} cannot be started: {source}{}", hint(source))]
    Start { program: String, source: io::Error },
    #[error("the start was cut short: {0}")]
    Cut(#[from] tokio::task::JoinError),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; give the whole path, or a program that PATH leads to",
        io::ErrorKind::PermissionDenied => {
            "; it must be executable for the user that it runs as, and only root can change the user"
        }
        _ => "",
    }
}

/// The output of a process, to be drained.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) stdout: Receiver,
    pub(crate) stderr: Receiver,
}

/// A process that was started and not yet waited for. While it is so, its pid means no other process.
#[derive(Debug)]
pub(crate) struct Child {
    pid: Pid,
    handle: AsyncFd<OwnedFd>,
    waited: bool,
}

impl Launch {
    /// Starts it as the leader of a session and process group of its own.
    pub(crate) async fn start(self) -> Result<(Child, Output), LaunchError> {
        // A program or directory on a hung mount blocks a thread of its own.
        tokio::task::spawn_blocking(|| self.start_blocking()).await?
    }

    fn start_blocking(self) -> Result<(Child, Output), LaunchError> {
        let (program, arguments) = self.command.split_first().ok_or(LaunchError::Empty)?;
        let account = self.user.as_deref().map(account).transpose()?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(account) = &account {
            command.env("HOME", &account.home).env("SHELL", &account.shell);
            command.env("USER", &account.name).env("LOGNAME", &account.name);
        }
        command.envs(&self.env).env(tree::MARK, &self.mark);
        if let Some(directory) = &self.directory {
            enter(directory)?;
            command.current_dir(directory);
        }
        // Whoever is that user already may not set its groups, and need not.
        let account = account.filter(|account| account.uid != geteuid());
        let door = self.group.as_ref().and_then(|group| group.door().ok());
        prepare(&mut command, door.map(OwnedFd::from), account);

        let failed = |source: io::Error| LaunchError::Start { program: program.clone(), source };
        let starting = reap::Starting::new();
        let mut started = command.spawn().map_err(failed)?;
        let (stdout, stderr) = (started.stdout.take(), started.stderr.take());
        let opened = Child::open(&started);
        let child = match opened {
            Ok(child) => child,
            Err(error) => {
                let _ = started.kill();
                let _ = started.wait();
                return Err(failed(error));
            }
        };
        starting.started(child.pid);
        let (Some(stdout), Some(stderr)) = (stdout, stderr) else {
            return Err(failed(io::Error::from(io::ErrorKind::BrokenPipe)));
        };
        let output = || -> io::Result<Output> {
            Ok(Output {
                stdout: Receiver::from_owned_fd(stdout.into())?,
                stderr: Receiver::from_owned_fd(stderr.into())?,
            })
        };
        Ok((child, output().map_err(failed)?))
    }
}

fn account(name: &str) -> Result<Account, LaunchError> {
    match user::find(name) {
        Ok(Some(account)) => Ok(account),
        Ok(None) => Err(LaunchError::NoSuchUser(name.to_owned())),
        Err(source) => Err(LaunchError::Lookup { name: name.to_owned(), source }),
    }
}

fn enter(directory: &Path) -> Result<(), LaunchError> {
    // Looked at first, as a failed start does not tell a missing directory from a missing program.
    if directory.is_dir() { Ok(()) } else { Err(LaunchError::NoDirectory(directory.to_owned())) }
}

/// What the child does between fork and exec.
#[expect(
    unsafe_code,
    reason = "a closure between fork and exec may do system calls alone, and these do nothing else"
)]
fn prepare(command: &mut Command, door: Option<OwnedFd>, account: Option<Account>) {
    let in_child = move || {
        setsid()?;
        if let Some(door) = &door {
            // Outside of its control group it is still found by its mark.
            let _ = rustix::io::write(door, b"0");
        }
        if let Some(account) = &account {
            let (uid, gid) = (account.uid, account.gid);
            // Groups first: without root they can no longer be set.
            set_thread_groups(&account.groups)?;
            set_thread_res_gid(gid, gid, gid)?;
            set_thread_res_uid(uid, uid, uid)?;
        }
        Ok(())
    };
    // SAFETY: the closure neither allocates nor locks: it makes system calls on values that were made before
    // the fork.
    unsafe { command.pre_exec(in_child) };
}

impl Child {
    #[expect(unsafe_code, reason = "the runtime takes descriptors of any type, and asks for a promise")]
    fn open(started: &std::process::Child) -> io::Result<Self> {
        let pid = Pid::from_child(started);
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        // SAFETY: an `OwnedFd` has one descriptor, open as long as itself, and it is not taken out again.
        let handle = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE)? };
        Ok(Self { pid, handle, waited: false })
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Tells how it ended, once it has. It stays a zombie, and its pid its own, until [`Child::wait`].
    pub(crate) async fn ended(&self) -> Exit {
        self.look(WaitIdOptions::NOWAIT).await
    }

    /// Sends a signal to its process group: no other group can have its number before it was waited for.
    pub(crate) fn signal(&self, signal: Signal) {
        match kill_process_group(self.pid, signal) {
            // No group: all of it has ended.
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => tracing::warn!(pid = self.pid.as_raw_pid(), %error, "a signal could not be sent"),
        }
    }

    /// Waits for it once it has ended, and tells how.
    pub(crate) async fn wait(mut self) -> Exit {
        let exit = self.look(WaitIdOptions::empty()).await;
        self.waited = true;
        exit
    }

    async fn look(&self, options: WaitIdOptions) -> Exit {
        loop {
            // An error comes with the end of the runtime only.
            let _ = self.handle.readable().await;
            let look = options | WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            match waitid(WaitId::PidFd(self.handle.as_fd()), look) {
                Ok(Some(status)) => {
                    let signal = status.terminating_signal().map(Exit::Signal);
                    return signal.or(status.exit_status().map(Exit::Status)).unwrap_or(Exit::Status(-1));
                }
                Ok(None) | Err(Errno::INTR) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(error) => {
                    // Somebody else waited for it: a defect, and no reason to wait for ever.
                    tracing::error!(pid = self.pid.as_raw_pid(), %error, "how a process ended is not known");
                    return Exit::Status(-1);
                }
            }
        }
    }
}

impl Drop for Child {
    /// Whoever drops it unwaited leaves nothing running: the rest is done as with an orphan.
    fn drop(&mut self) {
        if !self.waited {
            self.signal(Signal::KILL);
        }
        reap::no_longer_awaited(self.pid);
    }
}
