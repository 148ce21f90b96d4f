//! What the service manager is told: ready, alive, reloading, stopping, and one line for `systemctl status`.
//!
//! The protocol of `sd_notify(3)`: datagrams of `KEY=VALUE` lines to the socket that `NOTIFY_SOCKET` names. The watchdog
//! is fed by the tick itself, so that a loop that hangs, and a watch thread that hangs with it, is noticed from outside.
//! Nobody who listens: nothing is sent. A datagram that cannot be sent is no reason for anything.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::tick::{Observer, StepFacts};
use crate::control::{Controller, Mode};
use crate::holdout::Savings;

/// The status line is renewed this often, and with each change of mode.
const STATUS_EVERY: Duration = Duration::from_secs(10);

/// The way to the service manager.
#[derive(Debug, Clone)]
pub struct Notifier {
    socket: Arc<UnixDatagram>,
    to: SocketAddr,
    /// Time between two signs of life that the manager asks for.
    watchdog: Option<Duration>,
}

impl Notifier {
    /// As the environment says; `None` if nobody listens.
    pub(crate) fn from_env() -> Option<Self> {
        let to = address(&std::env::var_os("NOTIFY_SOCKET")?)?;
        let socket = UnixDatagram::unbound().ok()?;
        // A manager that does not read must not stop the loop.
        socket.set_nonblocking(true).ok()?;
        let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|_| ours).map(Duration::from_micros);
        Some(Self { socket: Arc::new(socket), to, watchdog })
    }

    fn send(&self, text: &str) {
        let _ = self.socket.send_to_addr(text.as_bytes(), &self.to);
    }

    /// The run is about to make its first tick, or a reload is over.
    pub(crate) fn ready(&self) {
        self.send("READY=1");
    }

    /// How often a sign of life is due, if the manager asks for any: well before it loses patience.
    pub(crate) fn alive_every(&self) -> Option<Duration> {
        self.watchdog.map(|every| every / 4)
    }

    /// A sign of life.
    pub(crate) fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// One line for `systemctl status`.
    pub(crate) fn status(&self, line: &str) {
        self.send(&format!("STATUS={line}"));
    }

    /// The run is over.
    pub(crate) fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// The configuration is read again.
    pub(crate) fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let microseconds = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
    }
}

/// A path, or with an `@` in front a name in the abstract namespace.
fn address(name: &OsStr) -> Option<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok(),
        [b'/', ..] => SocketAddr::from_pathname(name).ok(),
        _ => None,
    }
}

/// What each group does, in words: the line for `systemctl status`.
pub(crate) type StatusLines = Rc<RefCell<BTreeMap<String, String>>>;

/// Tells the service manager about a group.
pub(crate) struct NotifyObserver {
    notifier: Notifier,
    name: String,
    lines: StatusLines,
    said: Option<(Instant, Mode)>,
}

impl NotifyObserver {
    /// Of the group of this name; `lines` are those of all groups.
    pub(crate) fn new(notifier: Notifier, name: String, lines: StatusLines) -> Self {
        Self { notifier, name, lines, said: None }
    }
}

/// Tells it what each group does.
pub(super) fn say_lines(notifier: &Notifier, lines: &BTreeMap<String, String>) {
    let line = |(name, line): (&String, &String)| match lines.len() {
        1 => line.clone(),
        _ => format!("{name}: {line}"),
    };
    notifier.status(&lines.iter().map(line).collect::<Vec<_>>().join("; "));
}

impl Observer for NotifyObserver {
    fn step(&mut self, facts: &StepFacts<'_>) {
        let mode = facts.controller.mode();
        if self.said.is_none_or(|(at, said)| said != mode || at.elapsed() >= STATUS_EVERY) {
            self.said = Some((Instant::now(), mode));
            let (rounds, running) = (facts.controller.learned().rounds, facts.controller.running());
            let line = format!("{}, clocks: {running}, {rounds} rounds", mode.name());
            self.lines.borrow_mut().insert(self.name.clone(), line);
            say_lines(&self.notifier, &self.lines.borrow());
        }
    }

    fn end(&mut self, _controller: &Controller, _: &Savings) {
        self.lines.borrow_mut().remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_a_path_or_an_abstract_name() {
        assert!(address(OsStr::new("/run/systemd/notify")).unwrap().as_pathname().is_some());
        assert_eq!(address(OsStr::new("@abc")).unwrap().as_abstract_name(), Some(&b"abc"[..]));
        assert!(address(OsStr::new("vsock:2:3")).is_none());
    }
}
