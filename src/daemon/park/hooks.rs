//! Runs the fan programs: no shell, one at a time, killed when they take too long, and never waited for by the loop.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::aside::Aside;
use crate::park::fans::FanCommand;
use crate::seldom::Seldom;

const LOOK: Duration = Duration::from_millis(20);

/// The programs, each with its arguments; empty for none.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    /// Switches fans on.
    pub on: Vec<String>,
    /// Switches fans off.
    pub off: Vec<String>,
    /// Time that one may take.
    pub timeout: Duration,
}

/// Who runs them.
pub(crate) type FanHooks = Aside<FanCommand>;

/// Begins to run them when asked to.
pub(super) fn spawn(programs: Programs) -> std::io::Result<FanHooks> {
    FanHooks::spawn("agft-fans", move |orders| serve(&programs, &orders))
}

fn serve(programs: &Programs, orders: &Receiver<FanCommand>) {
    let mut seldom = Seldom::default();
    while let Ok(command) = orders.recv() {
        let (name, argv) = match command {
            FanCommand::On => ("fan_on", &programs.on),
            FanCommand::Off => ("fan_off", &programs.off),
        };
        let Some((program, arguments)) = argv.split_first() else { continue };
        let why = match run(program, arguments, programs.timeout) {
            Ok(Some(status)) if status.success() => {
                tracing::info!(program, "{name} done");
                continue;
            }
            Ok(Some(status)) => format!("{name} failed: {status}"),
            Ok(None) => {
                let timeout_s = programs.timeout.as_secs_f64();
                format!("{name} took more than {timeout_s} s and was killed (park.fan_timeout_s)")
            }
            Err(error) => format!("{name} cannot be run: {error}; see park.{name}"),
        };
        if let Some(times) = seldom.may_say(name, Instant::now()) {
            tracing::warn!(program, not_said_before = times, "{why}");
        }
    }
}

/// How the program ended; `None` if it had to be killed.
fn run(program: &str, arguments: &[String], timeout: Duration) -> std::io::Result<Option<ExitStatus>> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // A group of its own: what it started ends with it. The service manager's socket is not its business.
    command.process_group(0).current_dir("/");
    command.env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC").env_remove("WATCHDOG_PID");
    let mut child = command.spawn()?;
    let until = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= until {
            end(&mut child)?;
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
}

fn end(child: &mut Child) -> std::io::Result<()> {
    if kill_process_group(Pid::from_child(child), Signal::KILL).is_err() {
        child.kill()?;
    }
    child.wait().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_gets_its_arguments_as_they_are_and_is_killed_when_it_hangs() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a b; $(x)");
        let name = file.to_str().unwrap().to_owned();
        let long = Duration::from_secs(20);
        assert!(run("/usr/bin/touch", std::slice::from_ref(&name), long).unwrap().unwrap().success());
        assert!(file.exists());
        assert!(!run("/bin/false", &[], long).unwrap().unwrap().success());
        assert!(run("/bin/sleep", &["60".into()], Duration::from_millis(50)).unwrap().is_none());
        assert!(run("/does/not/exist", &[], long).is_err());
    }
}
