//! Who else knows of work: connections to the services that the GPUs serve.
//!
//! The GPU's own sensors are read by [`super::member`]; what is machine-wide comes through [`ActivitySource`].

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use crate::units::Time;

/// Connections, as far as a source sees them.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Connections {
    /// Open now; `None` where that is not known.
    pub open: Option<u32>,
    /// When one was last seen to be new; it may be closed again.
    pub last_opened: Option<Time>,
}

/// A source of activity that is not a GPU.
pub trait ActivitySource {
    /// Its name in the log.
    fn name(&self) -> &'static str;

    /// What there is now. Asked every `park.active_poll_ms`; must not block, and must not touch a GPU.
    ///
    /// # Errors
    /// [`SourceError`]: nothing is known, and no GPU is parked on that.
    fn look(&mut self, now: Time) -> Result<Connections, SourceError>;
}

/// Why a source does not know.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The kernel's table cannot be read.
    #[error("{path}: cannot be read: {cause}; is /proc mounted, and may agft read it?")]
    Unreadable {
        /// The table.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

/// Connections to local ports by polling `/proc/net/tcp` and `/proc/net/tcp6`: needs no privilege, sees the network
/// namespace that agft runs in, and misses a connection that is opened and closed between two looks.
pub struct ProcNetTcp {
    tables: Vec<PathBuf>,
    ports: Vec<u16>,
    known: BTreeSet<String>,
    last_opened: Option<Time>,
}

impl ProcNetTcp {
    /// Of these local ports.
    #[must_use]
    pub fn new(ports: &[u16]) -> Self {
        Self::of_tables(vec!["/proc/net/tcp".into(), "/proc/net/tcp6".into()], ports)
    }

    fn of_tables(tables: Vec<PathBuf>, ports: &[u16]) -> Self {
        Self { tables, ports: ports.to_vec(), known: BTreeSet::new(), last_opened: None }
    }
}

impl ActivitySource for ProcNetTcp {
    fn name(&self) -> &'static str {
        "/proc/net/tcp"
    }

    fn look(&mut self, now: Time) -> Result<Connections, SourceError> {
        let mut open = BTreeSet::new();
        let mut tables = 0;
        for path in &self.tables {
            match std::fs::read_to_string(path) {
                Ok(text) => {
                    tables += 1;
                    open.extend(connections(&text, &self.ports).map(str::to_owned));
                }
                // A kernel without IPv6 has no table of it.
                Err(cause) if cause.kind() == io::ErrorKind::NotFound && tables > 0 => {}
                Err(cause) => return Err(SourceError::Unreadable { path: path.clone(), cause }),
            }
        }
        if open.iter().any(|connection| !self.known.contains(connection)) {
            self.last_opened = Some(now);
        }
        self.known = open;
        let open = u32::try_from(self.known.len()).unwrap_or(u32::MAX);
        Ok(Connections { open: Some(open), last_opened: self.last_opened })
    }
}

/// Local and remote end of each connection that is open, or opening, on one of `ports` of this side. The other end of a
/// connection within the machine has the port as its remote one, and is not counted.
fn connections<'t>(table: &'t str, ports: &[u16]) -> impl Iterator<Item = &'t str> {
    // ESTABLISHED, SYN_RECV, NEW_SYN_RECV.
    const OPEN: [&str; 3] = ["01", "03", "0C"];
    let ports = ports.to_vec();
    table.lines().skip(1).filter_map(move |line| {
        let line = line.trim_start();
        let ends = line.split_once(": ")?.1;
        let mut fields = ends.split_ascii_whitespace();
        let (local, remote, state) = (fields.next()?, fields.next()?, fields.next()?);
        let port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        // Both ends stand next to each other, with one blank between.
        let both = ends.trim_start().get(..local.len() + 1 + remote.len())?;
        (OPEN.contains(&state) && ports.contains(&port)).then_some(both)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1389 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 100 1
   1: 0100007F:1389 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 101 1
   2: 0100007F:D431 0100007F:1389 01 00000000:00000000 00:00000000 00000000     0        0 102 1
   3: 0200000A:1389 0300000A:9C40 03 00000000:00000000 01:00000063 00000000     0        0 0 1
   4: 0200000A:1389 0300000A:9C41 06 00000000:00000000 03:00000063 00000000     0        0 0 1
   5: 0200000A:1389 0300000A:9C42 08 00000000:00000000 00:00000000 00000000     0        0 103 1
   6: 0200000A:1F40 0300000A:9C43 01 00000000:00000000 00:00000000 00000000     0        0 104 1
   7: damaged
";

    #[test]
    fn open_connections_are_those_of_the_serving_side() {
        let open: Vec<&str> = connections(TABLE, &[5001]).collect();
        assert_eq!(open, ["0100007F:1389 0100007F:D431", "0200000A:1389 0300000A:9C40"]);
        assert_eq!(connections(TABLE, &[5001, 8000]).count(), 3);
        assert_eq!(connections(TABLE, &[0xD431]).count(), 1);
    }

    #[test]
    fn ipv6_and_mapped_addresses_count_alike() {
        let mapped = "\
  sl  local_address remote_address st
   0: 0000000000000000FFFF00000100007F:1389 0000000000000000FFFF00000100007F:D431 01 0
";
        assert_eq!(connections(mapped, &[5001]).count(), 1);
    }

    #[test]
    fn new_connection_is_noticed_even_if_another_was_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tcp");
        let table = |remote: &str| format!("head\n 0: 0100007F:1389 0100007F:{remote} 01 x\n");
        let mut source = ProcNetTcp::of_tables(vec![path.clone(), dir.path().join("tcp6")], &[5001]);
        let mut look = |text: String, now: f64| {
            std::fs::write(&path, text).unwrap();
            source.look(Time(now)).unwrap()
        };
        let one = |at: f64| Connections { open: Some(1), last_opened: Some(Time(at)) };
        assert_eq!(look("head\n".into(), 0.0), Connections { open: Some(0), last_opened: None });
        assert_eq!(look(table("D431"), 1.0), one(1.0));
        assert_eq!(look(table("D431"), 2.0), one(1.0));
        assert_eq!(look(table("D432"), 3.0), one(3.0));
        let missing = ProcNetTcp::of_tables(vec![dir.path().join("none")], &[5001]).look(Time(0.0));
        assert!(missing.unwrap_err().to_string().contains("none"));
    }

    #[test]
    fn connection_of_this_test_is_counted_once() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        let mut source = ProcNetTcp::new(&[port]);
        assert_eq!(source.look(Time(0.0)).unwrap().open, Some(0));
        let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (served, _) = server.accept().unwrap();
        assert_eq!(source.look(Time(1.0)).unwrap().open, Some(1));
        drop((client, served));
        assert_eq!(source.look(Time(2.0)).unwrap().open, Some(0));
    }
}
