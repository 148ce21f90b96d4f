//! Comparing the books with the kernel's table.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::time::{Duration, Instant};

use super::{FRESH, Worker, counts};
use crate::connections::kernel::News;
use crate::connections::ledger::{Connection, Correction, Snapshot};
use crate::connections::{Event, Kind};

/// How soon what a snapshot left open is looked at again.
const SETTLE: Duration = Duration::from_millis(100);

impl Worker {
    pub(super) fn read_table_or_say(&mut self) {
        match self.read_table() {
            Ok(()) => drop(self.seldom.over("table")),
            Err(error) => {
                self.next_reading = Instant::now() + self.period();
                let trouble = format!("the kernel's table of sockets cannot be read: {error}");
                self.warn("table", format!("{trouble}; what is known of them may be old"));
                self.lock().trouble = Some(trouble);
            }
        }
    }

    fn period(&self) -> Duration {
        if self.kernel.is_some() { self.settings.resync_every } else { self.settings.poll_every }
    }

    /// Compares the books with the kernel's table.
    pub(super) fn read_table(&mut self) -> io::Result<()> {
        // Losses until here are made up for by what is read now, those noticed afterwards by another reading.
        self.note_losses();
        let before = self.drain();
        self.take(&before);
        let begun = Instant::now();
        self.chosen = self.tables.chosen();
        let mut snapshots = self.tables.read(&self.settings.ports, begun)?;
        let blind = self.blind(&snapshots)?;
        // What happened meanwhile may or may not be in the snapshot; its events, applied afterwards, settle it.
        let meanwhile = self.drain();
        let excused = std::mem::take(&mut self.excused);
        let lost = self.note_losses();
        let on_their_way: HashSet<Connection> = meanwhile
            .iter()
            .filter_map(|news| match news {
                News::Changed(connection, _) => Some(*connection),
                News::Sent(..) => None,
            })
            .collect();
        let fresh = self.fresh.iter().filter(|(then, _)| begun.duration_since(*then) <= FRESH);
        let moving: HashSet<Connection> =
            fresh.map(|(_, connection)| *connection).chain(on_their_way.iter().copied()).collect();

        let (mut told, mut differences, mut unsettled) = (Vec::new(), 0, lost);
        let mut forgotten = self.ignored.expire(begun);
        let polling = self.kernel.is_none();
        for (port, book) in &mut self.ledgers {
            let mut snapshot = snapshots.remove(port).unwrap_or_default();
            snapshot.open.retain(|connection| counts(&self.settings, self.chosen, connection));
            forgotten.extend(self.ignored.keep_open(&snapshot, *port, &moving));
            snapshot.open.retain(|connection| !self.ignored.sees_open(connection));
            let correction = book.ledger.resync(&snapshot, &moving);
            told.extend(as_events(&correction, book.ledger.open_now()));
            let settles =
                |one: &Connection| on_their_way.contains(one) || on_their_way.contains(&one.somewhere());
            unsettled |= !correction.unsettled.iter().all(settles);
            book.ledger.totals.resyncs += 1;
            // What is found at the start, or by polling, is no mistake.
            if !polling && book.ledger.totals.resyncs > 1 {
                book.ledger.totals.corrected += correction.count() as u64;
                differences += correction.count();
            }
        }
        for client in forgotten {
            self.tell_kernel_to_ignore(client, false);
        }
        self.next_reading = begun + if unsettled { SETTLE.min(self.period()) } else { self.period() };
        self.lock().trouble = blind;
        self.publish();
        self.tell(told);
        self.take(&meanwhile);
        if !polling {
            self.judge(differences, excused || lost);
        }
        Ok(())
    }

    /// What the reading could not see, if it matters.
    /// Errors: Nothing else tells of the chosen namespace.
    fn blind(&self, snapshots: &BTreeMap<u16, Snapshot>) -> io::Result<Option<String>> {
        let Some(chosen) = self.chosen else { return Ok(None) };
        if snapshots.values().all(|snapshot| snapshot.complete) {
            return Ok(None);
        }
        let why = format!(
            "no process in network namespace {chosen} can be looked at; run as root with all capabilities, or grant \
             CAP_SYS_PTRACE"
        );
        if self.kernel.is_none() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        Ok(Some(format!("{why}; its connections are known from events alone")))
    }
}

/// A correction as events: opened ones first, so that none says 0 unless it is so.
fn as_events(correction: &Correction, open_after: u32) -> Vec<Event> {
    let at = Instant::now();
    let (opened, closed) = (&correction.opened, &correction.closed);
    let before = (u64::from(open_after) + closed.len() as u64).saturating_sub(opened.len() as u64);
    let mut open = u32::try_from(before).unwrap_or(u32::MAX);
    let opened = opened.iter().map(|connection| (Kind::Opened, connection));
    let closed = closed.iter().map(|connection| (Kind::Closed, connection));
    let events = opened.chain(closed).map(|(kind, connection)| {
        open = if kind == Kind::Closed { open.saturating_sub(1) } else { open.saturating_add(1) };
        Event { at, port: connection.local.port(), client: connection.remote, kind, open_now: open }
    });
    events.collect()
}
