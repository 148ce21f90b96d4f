//! Which connections are open: the book behind the count. Pure.
//!
//! Connections are kept by who they are, not as a number: an event told twice, a close of a connection never seen or
//! an event that was lost can then never make the count negative or wrong for good. A snapshot of the kernel's own
//! table sets right whatever events have missed.

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;

use super::Counts;
use super::state::Effect;

/// Who a connection is: its network namespace and both ends. No two live connections share it.
///
/// A socket cookie would do as well, but `/proc/PID/net/tcp` does not have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Connection {
    /// Inode number of the network namespace.
    pub netns: u32,
    /// The server's end; IPv4 mapped into IPv6 is IPv4.
    pub local: SocketAddr,
    /// The client's end.
    pub(crate) remote: SocketAddr,
}

impl Connection {
    /// Namespace of a connection of which only both ends are known.
    pub(crate) const SOMEWHERE: u32 = 0;

    /// As it is known where only its ends are.
    #[must_use]
    pub(crate) fn somewhere(self) -> Self {
        Self { netns: Self::SOMEWHERE, ..self }
    }

    /// Are these the same connection, as far as both are known?
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let somewhere = self.netns == Self::SOMEWHERE || other.netns == Self::SOMEWHERE;
        (self.local, self.remote) == (other.local, other.remote) && (somewhere || self.netns == other.netns)
    }
}

/// What the kernel's table of sockets said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// The connections that are open.
    pub open: HashSet<Connection>,
    /// Network namespaces whose tables were read in full.
    pub namespaces: BTreeSet<u32>,
    /// Were these all the namespaces there are? Then connections in any other are gone.
    pub complete: bool,
}

impl Snapshot {
    /// Would the snapshot show this connection if it was open?
    ///
    /// One of which only the ends are known might be in a namespace that cannot be read. It is taken to be in one that can:
    /// otherwise it would be open for ever if the event of its end was lost.
    pub(crate) fn covers(&self, connection: &Connection) -> bool {
        self.complete
            || connection.netns == Connection::SOMEWHERE
            || self.namespaces.contains(&connection.netns)
    }
}

/// The open connections of one port.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger {
    open: HashSet<Connection>,
    /// Namespaces of open connections, and perhaps some more: where to look for one of which only the ends are known.
    namespaces: BTreeSet<u32>,
    last_request_ns: Option<u64>,
    /// All that is counted so far; what is open now is not kept in it.
    pub(super) totals: Counts,
}

/// Requests closer together than this count as one, nanoseconds; as in connections.bpf.c.
pub(crate) const BURST_NS: u64 = 10_000_000;

/// What a snapshot changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Correction {
    /// Open, and not known before.
    pub opened: Vec<Connection>,
    /// Known before, and not open any more.
    pub closed: Vec<Connection>,
    /// Connections on which book and snapshot disagree, left to their events.
    pub(crate) unsettled: Vec<Connection>,
}

impl Correction {
    /// How many connections were set right.
    pub(crate) fn count(&self) -> usize {
        self.opened.len() + self.closed.len()
    }
}

impl Ledger {
    /// How many connections are open.
    pub(crate) fn open_now(&self) -> u32 {
        u32::try_from(self.open.len()).unwrap_or(u32::MAX)
    }

    /// All that is known of the port.
    pub(crate) fn counts(&self) -> Counts {
        Counts { open: self.open_now(), ..self.totals }
    }

    /// Takes note of a client's sending at this time of the kernel's clock; does it begin a burst of its own?
    pub(crate) fn request(&mut self, at_ns: u64) -> bool {
        if self.last_request_ns.is_some_and(|last| at_ns < last.saturating_add(BURST_NS)) {
            return false;
        }
        self.last_request_ns = Some(at_ns);
        self.totals.requests_total += 1;
        true
    }

    /// Strikes out the open connections of this client, which were not to be counted; those it had.
    pub(crate) fn strike(&mut self, client: SocketAddr) -> Vec<Connection> {
        let struck: Vec<Connection> = self.open.iter().filter(|one| one.remote == client).copied().collect();
        for connection in &struck {
            self.apply(*connection, Effect::Closed);
        }
        struck
    }

    /// Takes an event; was it news?
    pub(crate) fn apply(&mut self, connection: Connection, effect: Effect) -> bool {
        let known = self.known(connection);
        match effect {
            Effect::Opened => {
                if let Some(known) = known.filter(|known| known.netns == Connection::SOMEWHERE) {
                    // Now it may be known where.
                    self.open.remove(&known);
                }
                if known.is_none_or(|known| known.netns == Connection::SOMEWHERE) {
                    self.open.insert(connection);
                    self.namespaces.insert(connection.netns);
                }
                self.totals.opened_total += u64::from(known.is_none());
                known.is_none()
            }
            Effect::Closed => {
                let news = known.is_some_and(|known| self.open.remove(&known));
                self.totals.closed_total += u64::from(news);
                news
            }
            Effect::Nothing => false,
        }
    }

    fn known(&self, connection: Connection) -> Option<Connection> {
        if self.open.contains(&connection) {
            return Some(connection);
        }
        if connection.netns != Connection::SOMEWHERE {
            return self.open.get(&connection.somewhere()).copied();
        }
        let mut candidates = self.namespaces.iter().map(|netns| Connection { netns: *netns, ..connection });
        candidates.find(|candidate| self.open.contains(candidate))
    }

    /// Learns from `snapshot` where the connections are of which only the ends are known.
    fn place(&mut self, snapshot: &Snapshot) {
        if !self.open.iter().any(|one| one.netns == Connection::SOMEWHERE) {
            return;
        }
        for connection in &snapshot.open {
            if !self.open.contains(connection) && self.open.remove(&connection.somewhere()) {
                self.open.insert(*connection);
            }
        }
    }

    /// Makes the book agree with `snapshot`, which holds connections of this ledger's port only.
    ///
    /// Connections in `moving` had events around the time of the snapshot, which may be older than what the book says
    /// of them: they are left to their events.
    pub(crate) fn resync(&mut self, snapshot: &Snapshot, moving: &HashSet<Connection>) -> Correction {
        self.place(snapshot);
        let moves = |one: &Connection| moving.contains(one) || moving.contains(&one.somewhere());
        let mut correction = Correction::default();
        for connection in snapshot.open.difference(&self.open) {
            if moves(connection) {
                correction.unsettled.push(*connection);
            } else {
                correction.opened.push(*connection);
            }
        }
        for connection in self.open.difference(&snapshot.open).filter(|one| snapshot.covers(one)) {
            if moves(connection) {
                correction.unsettled.push(*connection);
            } else {
                correction.closed.push(*connection);
            }
        }
        for connection in &correction.opened {
            self.apply(*connection, Effect::Opened);
        }
        for connection in &correction.closed {
            self.apply(*connection, Effect::Closed);
        }
        self.namespaces = self.open.iter().map(|one| one.netns).collect();
        correction
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{hash_set, vec};
    use proptest::prelude::*;

    use super::*;

    const NAMESPACES: u32 = 3;

    fn connection(netns: u32, client: u16) -> Connection {
        Connection {
            netns,
            local: SocketAddr::from(([127, 0, 0, 1], 8000)),
            remote: SocketAddr::from(([127, 0, 0, 1], client)),
        }
    }

    fn any_connection() -> impl Strategy<Value = Connection> {
        (1..=NAMESPACES, 1_u16..12).prop_map(|(netns, client)| connection(netns, client))
    }

    fn any_effect() -> impl Strategy<Value = Effect> {
        prop_oneof![Just(Effect::Opened), Just(Effect::Closed), Just(Effect::Nothing)]
    }

    fn any_events() -> impl Strategy<Value = Vec<(Connection, Effect)>> {
        vec((any_connection(), any_effect()), 0..80)
    }

    fn all_of(open: HashSet<Connection>) -> Snapshot {
        Snapshot { open, namespaces: (1..=NAMESPACES).collect(), complete: false }
    }

    fn after(events: &[(Connection, Effect)]) -> Ledger {
        let mut ledger = Ledger::default();
        for (connection, effect) in events {
            ledger.apply(*connection, *effect);
        }
        ledger
    }

    proptest! {
        #[test]
        fn totals_differ_by_what_is_open_whatever_is_told(
            events in any_events(),
            snapshots in vec((hash_set(any_connection(), 0..12), hash_set(any_connection(), 0..4)), 0..4),
        ) {
            let mut ledger = after(&events);
            for (open, moving) in snapshots {
                ledger.resync(&all_of(open), &moving);
                let difference = ledger.totals.opened_total.checked_sub(ledger.totals.closed_total);
                prop_assert_eq!(difference, Some(u64::from(ledger.open_now())));
            }
        }

        #[test]
        fn the_last_event_of_each_connection_decides(events in any_events()) {
            let ledger = after(&events);
            for connection in events.iter().map(|(connection, _)| connection) {
                let last = events.iter().rev().find(|(one, effect)| one == connection && *effect != Effect::Nothing);
                let open = last.is_some_and(|(_, effect)| *effect == Effect::Opened);
                prop_assert_eq!(ledger.open.contains(connection), open);
            }
        }

        #[test]
        fn requests_count_once_in_any_burst(times in vec(0..200_u64, 0..60)) {
            let mut ledger = Ledger::default();
            let counted: Vec<u64> = times.iter().map(|ms| ms * 1_000_000).filter(|at| ledger.request(*at)).collect();
            prop_assert_eq!(ledger.totals.requests_total, counted.len() as u64);
            prop_assert!(counted.windows(2).all(|pair| pair[1] >= pair[0] + BURST_NS));
            prop_assert!(times.is_empty() || !counted.is_empty());
        }

        #[test]
        fn a_client_that_is_struck_out_is_not_open_and_totals_still_fit(events in any_events(), client in 1_u16..12) {
            let mut ledger = after(&events);
            let (open, client) = (ledger.open_now(), connection(1, client).remote);
            let struck = ledger.strike(client);
            prop_assert!(ledger.open.iter().all(|one| one.remote != client));
            prop_assert_eq!(ledger.open_now() as usize + struck.len(), open as usize);
            let totals = ledger.totals;
            prop_assert_eq!(totals.opened_total - totals.closed_total, u64::from(ledger.open_now()));
        }

        #[test]
        fn an_event_told_again_changes_nothing(events in any_events()) {
            let twice: Vec<_> = events.iter().flat_map(|event| [*event, *event]).collect();
            let (once, twice) = (after(&events), after(&twice));
            prop_assert_eq!(&once.open, &twice.open);
            prop_assert_eq!(once.totals.opened_total, twice.totals.opened_total);
            prop_assert_eq!(once.totals.closed_total, twice.totals.closed_total);
        }

        /// True history, of which any part is lost; the snapshot after it sets the book right, and a second one finds
        /// nothing to do.
        #[test]
        fn a_snapshot_makes_up_for_any_lost_events(events in any_events(), kept in vec(any::<bool>(), 80)) {
            let truth = after(&events);
            let heard: Vec<_> = events.iter().zip(&kept).filter(|(_, kept)| **kept).map(|(event, _)| *event).collect();
            let mut ledger = after(&heard);
            let wrong = ledger.open.symmetric_difference(&truth.open).count();
            let correction = ledger.resync(&all_of(truth.open.clone()), &HashSet::new());
            prop_assert_eq!(correction.count(), wrong);
            prop_assert_eq!(&ledger.open, &truth.open);
            prop_assert!(ledger.resync(&all_of(truth.open.clone()), &HashSet::new()).count() == 0);
        }

        /// Ends differ from namespace to namespace here; of any part of the events, the namespace is not known.
        #[test]
        fn ends_alone_are_enough_to_count_by(
            events in any_events(), placed in vec(any::<bool>(), 80), kept in vec(any::<bool>(), 80), read in 0_usize..80,
        ) {
            let apart = |mut one: Connection| {
                one.remote.set_port(one.remote.port() + 100 * u16::try_from(one.netns).expect("few"));
                one
            };
            let events: Vec<_> = events.into_iter().map(|(one, effect)| (apart(one), effect)).collect();
            let told = |(at, (one, effect)): (usize, &(Connection, Effect))| {
                (if placed[at] { *one } else { one.somewhere() }, *effect)
            };
            let (mut ledger, mut truth) = (Ledger::default(), Ledger::default());
            for (at, event) in events.iter().enumerate() {
                let (one, effect) = told((at, event));
                prop_assert_eq!(ledger.apply(one, effect), truth.apply(event.0, event.1));
                if at == read {
                    prop_assert!(ledger.resync(&all_of(truth.open.clone()), &HashSet::new()).count() == 0);
                    prop_assert_eq!(&ledger.open, &truth.open, "it is known where");
                }
                prop_assert_eq!(ledger.open_now(), truth.open_now());
            }
            // And if some are lost, a reading makes up for it.
            let heard: Vec<_> = events.iter().enumerate().filter(|(at, _)| kept[*at]).map(told).collect();
            let mut ledger = after(&heard);
            ledger.resync(&all_of(truth.open.clone()), &HashSet::new());
            prop_assert_eq!(&ledger.open, &truth.open);
        }

        /// The kernel's table is read at any moment between the events; those around it are told before and after.
        #[test]
        fn a_snapshot_in_the_middle_of_events_does_no_harm(
            events in any_events(), taken in 0_usize..80, before in 0_usize..80,
        ) {
            let (taken, before) = (taken.min(events.len()), before.min(events.len()));
            // What was told when the snapshot was applied: more or less than the snapshot shows.
            let snapshot = all_of(after(&events[..taken]).open);
            let mut ledger = after(&events[..before]);
            let between = &events[taken.min(before)..taken.max(before)];
            let moving: HashSet<_> = between.iter().map(|(connection, _)| *connection).collect();
            let correction = ledger.resync(&snapshot, &moving);
            prop_assert!(correction.count() == 0, "{correction:?}");
            for (connection, effect) in &events[before..] {
                ledger.apply(*connection, *effect);
            }
            prop_assert_eq!(&ledger.open, &after(&events).open);
        }

        #[test]
        fn namespaces_that_were_not_read_are_left_alone_unless_none_is_missing(events in any_events()) {
            let before = after(&events);
            let mut snapshot = Snapshot { namespaces: BTreeSet::from([1]), ..Snapshot::default() };
            let mut ledger = before.clone();
            ledger.resync(&snapshot, &HashSet::new());
            let elsewhere: HashSet<_> = before.open.iter().filter(|one| one.netns != 1).copied().collect();
            prop_assert_eq!(&ledger.open, &elsewhere);
            snapshot.complete = true;
            ledger.resync(&snapshot, &HashSet::new());
            prop_assert_eq!(ledger.open_now(), 0);
        }
    }
}
