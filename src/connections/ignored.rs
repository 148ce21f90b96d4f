//! Clients that do not count: agft's own requests for metrics are no work of the server. Pure.

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::ledger::{Connection, Snapshot};

/// Most clients that are ignored at once; the oldest gives way.
pub(super) const MOST: usize = 64;

/// A client that has not connected for so long is not waited for any more.
const WAIT: Duration = Duration::from_secs(10);

/// Clients whose connections are told to nobody.
///
/// A client is its address and port, and the system gives the port to somebody else one day: an entry ends with the first
/// connection that was seen of it.
#[derive(Debug, Default)]
pub(super) struct Ignored {
    /// Oldest first.
    entries: VecDeque<Entry>,
}

#[derive(Debug)]
struct Entry {
    client: SocketAddr,
    since: Instant,
    /// Its connection; until there is one, any of this client will do.
    connection: Option<Connection>,
}

impl Entry {
    fn hides(&self, connection: &Connection) -> bool {
        self.client == connection.remote && self.connection.is_none_or(|one| one.is_same(connection))
    }
}

impl Ignored {
    /// One more client; another one that had to give way.
    pub(super) fn add(&mut self, client: SocketAddr, since: Instant) -> Option<SocketAddr> {
        self.entries.retain(|entry| entry.client != client);
        self.entries.push_back(Entry { client, since, connection: None });
        let oldest = (self.entries.len() > MOST).then(|| self.entries.pop_front()).flatten();
        oldest.map(|entry| entry.client)
    }

    /// Everyone who is ignored.
    pub(super) fn clients(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.entries.iter().map(|entry| entry.client)
    }

    /// Is this connection, which is open, to be passed over? From now on its client stands for it alone.
    pub(super) fn sees_open(&mut self, connection: &Connection) -> bool {
        let entry = self.entries.iter_mut().find(|entry| entry.hides(connection));
        entry.is_some_and(|entry| {
            entry.connection.get_or_insert(*connection);
            true
        })
    }

    /// Is this connection to be passed over?
    pub(super) fn hides(&self, connection: &Connection) -> bool {
        self.entries.iter().any(|entry| entry.hides(connection))
    }

    /// Was the connection that has closed one of these? Its client is then forgotten.
    pub(super) fn sees_closed(&mut self, connection: &Connection) -> bool {
        let before = self.entries.len();
        self.entries.retain(|entry| !entry.hides(connection));
        self.entries.len() < before
    }

    /// Forgets those whose connection to this port the kernel's table does not have any more; who they were.
    pub(super) fn keep_open(
        &mut self,
        snapshot: &Snapshot,
        port: u16,
        moving: &HashSet<Connection>,
    ) -> Vec<SocketAddr> {
        self.forget(|entry| {
            entry.connection.as_ref().is_some_and(|connection| {
                connection.local.port() == port
                    && snapshot.covers(connection)
                    && !snapshot.open.iter().chain(moving).any(|one| one.is_same(connection))
            })
        })
    }

    /// Forgets those who never came; who they were.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<SocketAddr> {
        self.forget(|entry| entry.connection.is_none() && now.duration_since(entry.since) > WAIT)
    }

    fn forget(&mut self, gone: impl Fn(&Entry) -> bool) -> Vec<SocketAddr> {
        let forgotten = self.entries.iter().filter(|entry| gone(entry)).map(|entry| entry.client).collect();
        self.entries.retain(|entry| !gone(entry));
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn connection(local: u16, remote: u16) -> Connection {
        Connection { netns: 1, local: client(local), remote: client(remote) }
    }

    #[test]
    fn a_client_is_ignored_until_its_connection_has_closed() {
        let mut ignored = Ignored::default();
        ignored.add(client(40_000), Instant::now());
        let (its, another) = (connection(8000, 40_000), connection(8000, 40_001));
        assert!(!ignored.sees_open(&another) && ignored.sees_open(&its) && ignored.hides(&its));
        // The same client port at another port of the server is somebody else.
        assert!(!ignored.hides(&connection(8001, 40_000)));
        assert!(ignored.sees_closed(&its));
        assert!(!ignored.sees_open(&its), "the port is somebody else's now");
    }

    #[test]
    fn the_oldest_gives_way_and_nobody_is_there_twice() {
        let mut ignored = Ignored::default();
        let now = Instant::now();
        let many = 0..u16::try_from(MOST).expect("few");
        for port in many.clone().chain(many) {
            assert_eq!(ignored.add(client(1000 + port), now), None);
        }
        assert_eq!(ignored.add(client(1), now), Some(client(1000)));
        assert_eq!(ignored.clients().count(), MOST);
    }

    #[test]
    fn who_is_not_in_the_table_any_more_is_forgotten_and_who_has_not_come_yet_is_not() {
        let mut ignored = Ignored::default();
        let now = Instant::now();
        for port in [1, 2, 3, 4] {
            ignored.add(client(port), now);
        }
        let (stays, goes, moves) = (connection(8000, 1), connection(8000, 2), connection(8000, 3));
        for one in [stays, goes, moves] {
            assert!(ignored.sees_open(&one));
        }
        let snapshot = Snapshot { open: HashSet::from([stays]), complete: true, ..Snapshot::default() };
        assert_eq!(ignored.keep_open(&snapshot, 8000, &HashSet::from([moves])), [client(2)]);
        assert_eq!(ignored.clients().collect::<Vec<_>>(), [client(1), client(3), client(4)]);
        assert_eq!(ignored.expire(now + WAIT), []);
        assert_eq!(ignored.expire(now + WAIT + Duration::from_nanos(1)), [client(4)]);
    }
}
