//! Which processes belong to an instance: read from `/proc`.
//!
//! Each process of an instance carries a mark in its environment, which its descendants inherit, and is in
//! the session that its first process leads. Both hold after a parent ended and its children were taken in by
//! the supervisor.

use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The environment variable that marks all processes of an instance.
pub(crate) const MARK: &str = "AGFT_SERVE_INSTANCE";

/// What `/proc/PID/stat` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) pid: Pid,
    /// Whether it has ended and only waits for its parent.
    pub(crate) dead: bool,
    pub(crate) session: Option<Pid>,
    /// When it was started, in ticks since the host started: with the pid, this tells it from all others of
    /// this boot.
    pub(crate) start_ticks: u64,
}

impl Stat {
    /// Whether both tell of one process, not of two that had the same pid.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.pid == other.pid && self.start_ticks == other.start_ticks
    }
}

/// None where no such process is.
pub(crate) fn stat(pid: Pid) -> Option<Stat> {
    parse(pid, &std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).ok()?)
}

fn parse(pid: Pid, text: &str) -> Option<Stat> {
    // The second field is the program's name in brackets, with whatever it has in it. State is the third
    // field.
    let (_, fields) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    Some(Stat {
        pid,
        dead: matches!(*fields.first()?, "Z" | "X" | "x"),
        session: fields.get(3).and_then(|text| number(text)),
        start_ticks: fields.get(19)?.parse().ok()?,
    })
}

/// A process that just ends has -1 as its session, one of an outer namespace 0.
fn number(text: &str) -> Option<Pid> {
    text.parse().ok().filter(|&number: &i32| number > 0).and_then(Pid::from_raw)
}

/// All processes that live and that `wanted` picks, except the own one.
pub(crate) fn find(wanted: impl Fn(&Stat) -> bool) -> Vec<Stat> {
    let own = rustix::process::getpid();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| number(entry.file_name().to_str()?))
        .filter(|&pid| pid != own)
        .filter_map(stat)
        .filter(|stat| !stat.dead && wanted(stat))
        .collect()
}

/// The mark of a process; none where it has none, or its environment is not ours to read.
pub(crate) fn mark(pid: Pid) -> Option<String> {
    let environment = std::fs::read(format!("/proc/{}/environ", pid.as_raw_pid())).ok()?;
    environment.split(|&byte| byte == 0).find_map(|entry| {
        let value = entry.strip_prefix(MARK.as_bytes())?.strip_prefix(b"=")?;
        String::from_utf8(value.to_vec()).ok()
    })
}

/// Sends a signal to exactly this process, never to another that has its number by now.
pub(crate) fn signal(target: &Stat, signal: Signal) {
    let Ok(handle) = pidfd_open(target.pid, PidfdFlags::empty()) else { return };
    if stat(target.pid).is_some_and(|now| now.same(target)) {
        let _ = pidfd_send_signal(handle, signal);
    }
}

/// Kills all processes that `wanted` picks until a look finds none. False where some are left after seconds:
/// those that hang in the kernel.
pub(crate) async fn kill_all(wanted: impl Fn(&Stat) -> bool + Clone + Send + 'static) -> bool {
    for round in 0..100 {
        let wanted = wanted.clone();
        let kill = move || {
            let found = find(wanted);
            found.iter().for_each(|stat| signal(stat, Signal::KILL));
            found.is_empty()
        };
        // A look at each process of a host takes milliseconds: not on the threads that serve clients.
        if tokio::task::spawn_blocking(kill).await.unwrap_or(false) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(if round < 10 { 2 } else { 50 })).await;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_whatever_the_program_is_called() {
        let text = "7 (a) Z 1 (b) S 1 7 9 0 -1 4227148 227 0 0 0 0 0 0 0 20 0 1 0 672288 0 0\n";
        let pid = Pid::from_raw(7).unwrap();
        let expected = Stat { pid, dead: false, session: Pid::from_raw(9), start_ticks: 672_288 };
        assert_eq!(parse(pid, text), Some(expected));
        assert!(parse(pid, &text.replace(") S", ") Z")).unwrap().dead);
        assert_eq!(parse(pid, "7 (x) S 1"), None);
        assert_eq!(parse(pid, &text.replace(" 7 9 ", " -1 -1 ")).unwrap().session, None);
    }

    #[test]
    fn the_own_process_is_known_and_never_found() {
        let own = rustix::process::getpid();
        assert!(!stat(own).unwrap().dead);
        assert!(find(|found| found.pid == own).is_empty());
    }
}
