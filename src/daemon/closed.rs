//! Servers that have no group: when each of them is opened, or tried again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::config::Server;
use crate::open::join::name;

/// A group that ended is opened again after so long, after twice as long if that fails ...
const REOPEN_AFTER: Duration = Duration::from_secs(5);
/// ... and after so long at most.
const REOPEN_AFTER_MOST: Duration = Duration::from_secs(60);
/// A server that was found is opened after so long: what was on its GPUs before has given their clocks back.
const OPEN_AFTER: Duration = Duration::from_millis(400);
/// Closed so long after the last time, it is no row.
const WELL_AFTER: Duration = Duration::from_secs(120);

/// The servers of each group that has ended or could not be opened, and when they are tried again.
#[derive(Default)]
pub(super) struct Closed {
    waiting: Vec<(Instant, Vec<Server>)>,
    /// By name: when it was closed last, and how often in a row.
    times: BTreeMap<String, (Instant, u32)>,
}

impl Closed {
    /// Those of a group that has ended, or could not be opened.
    pub(super) fn push(&mut self, servers: Vec<Server>) {
        let (now, name) = (Instant::now(), name(&servers));
        let before = self.times.get(&name).filter(|(at, _)| now.duration_since(*at) < WELL_AFTER);
        let times = before.map_or(0, |(_, times)| times + 1);
        self.times.insert(name, (now, times));
        let pause = REOPEN_AFTER.saturating_mul(1 << times.min(10)).min(REOPEN_AFTER_MOST);
        self.wait(now + pause, servers);
    }

    /// Those that were not there before, or are elsewhere now.
    pub(super) fn push_found(&mut self, servers: Vec<Server>) {
        self.wait(Instant::now() + OPEN_AFTER, servers);
    }

    fn wait(&mut self, until: Instant, servers: Vec<Server>) {
        let known = name(&servers);
        self.waiting.retain(|(_, waiting)| name(waiting) != known);
        self.waiting.push((until, servers));
    }

    /// Those of a group that is to be tried now, and whose name is `free`.
    pub(super) fn due(&mut self, free: impl Fn(&str) -> bool) -> Option<Vec<Server>> {
        let now = Instant::now();
        let is_due = |(due, servers): &(Instant, Vec<Server>)| *due <= now && free(&name(servers));
        let at = self.waiting.iter().position(is_due)?;
        Some(self.waiting.swap_remove(at).1)
    }
}
