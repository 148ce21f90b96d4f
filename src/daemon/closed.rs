//! Servers that have no group: when each of them is opened, or tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::config::Server;

/// A group that ended is opened again after so long, after twice as long if that fails ...
const REOPEN_AFTER: Duration = Duration::from_secs(5);
/// ... and after so long at most.
const REOPEN_AFTER_MOST: Duration = Duration::from_secs(60);
/// A server that was found is opened after so long: what was on its GPUs before has given their clocks back.
const OPEN_AFTER: Duration = Duration::from_millis(400);
/// Closed so long after the last time, it is no row.
const WELL_AFTER: Duration = Duration::from_secs(120);

/// Servers whose group has ended or could not be opened, and when each is tried again.
#[derive(Default)]
pub(super) struct Closed {
    waiting: Vec<(Instant, Server)>,
    /// By name: when it was closed last, and how often in a row.
    times: BTreeMap<String, (Instant, u32)>,
    /// Names of those that are being opened.
    pub(super) opening: BTreeSet<String>,
}

impl Closed {
    /// One whose group has ended, or could not be opened.
    pub(super) fn push(&mut self, server: Server) {
        let now = Instant::now();
        let before = self.times.get(&server.name).filter(|(at, _)| now.duration_since(*at) < WELL_AFTER);
        let times = before.map_or(0, |(_, times)| times + 1);
        self.times.insert(server.name.clone(), (now, times));
        let pause = REOPEN_AFTER.saturating_mul(1 << times.min(10)).min(REOPEN_AFTER_MOST);
        self.wait(now + pause, server);
    }

    /// One that was not there before, or is elsewhere now.
    pub(super) fn push_found(&mut self, server: Server) {
        self.wait(Instant::now() + OPEN_AFTER, server);
    }

    fn wait(&mut self, until: Instant, server: Server) {
        self.waiting.retain(|(_, waiting)| waiting.name != server.name);
        self.waiting.push((until, server));
    }

    /// One that is to be tried now, and whose name is `free`.
    pub(super) fn due(&mut self, free: impl Fn(&str) -> bool) -> Option<Server> {
        let now = Instant::now();
        let may = |server: &Server| free(&server.name) && !self.opening.contains(&server.name);
        let at = self.waiting.iter().position(|(due, server)| *due <= now && may(server))?;
        Some(self.waiting.swap_remove(at).1)
    }
}
