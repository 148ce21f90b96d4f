//! Who listens at a port: what an operator should know of it before counting its connections.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use super::snapshot::Tables;

/// One line for each port at which nobody listens, or several servers do; nothing where all is as expected.
pub fn notes_on_servers(ports: &[u16]) -> Vec<String> {
    Tables::new(None).map(|mut tables| notes(&mut tables, ports)).unwrap_or_default()
}

/// As [`notes_on_servers`], for the namespaces of these tables.
pub(super) fn notes(tables: &mut Tables, ports: &[u16]) -> Vec<String> {
    let listeners = tables.listeners(ports, Instant::now());
    listeners.iter().filter_map(|(port, sockets)| note(*port, sockets)).collect()
}

/// What there is to say of a port with these sockets, each with its namespace and address. Pure.
fn note(port: u16, sockets: &[(u32, IpAddr)]) -> Option<String> {
    if sockets.is_empty() {
        return Some(format!(
            "nobody listens at port {port} now, as far as agft can see; connections count from when a server does"
        ));
    }
    let namespaces: BTreeSet<u32> = sockets.iter().map(|(netns, _)| *netns).collect();
    if namespaces.len() > 1 {
        let number = namespaces.len();
        return Some(format!(
            "several servers listen at port {port}, in {number} network namespaces; connections to all of them count \
             together"
        ));
    }
    // One server may well have a socket of each family.
    let mut families = BTreeMap::<bool, usize>::new();
    for (_, address) in sockets {
        *families.entry(address.is_ipv4()).or_default() += 1;
    }
    let most = families.into_values().max().filter(|most| *most > 1)?;
    Some(format!(
        "{most} sockets share port {port}, of one server or several; connections to all of them count together"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_unusual_is_told() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let (any, any_v6, local) = (ip("0.0.0.0"), ip("::"), ip("127.0.0.1"));
        for usual in
            [vec![(1, any)], vec![(1, any_v6)], vec![(1, any), (1, any_v6)], vec![(1, local), (1, ip("::1"))]]
        {
            assert_eq!(note(8000, &usual), None, "{usual:?}");
        }
        let said = |sockets: &[(u32, IpAddr)]| note(8000, sockets).expect("a line");
        assert!(said(&[]).starts_with("nobody listens at port 8000 now"));
        assert!(said(&[(1, any), (2, any)]).contains("port 8000, in 2 network namespaces"));
        assert!(said(&[(1, any), (1, any), (1, any_v6)]).starts_with("2 sockets share port 8000,"));
        assert!(said(&[(1, local), (1, any)]).starts_with("2 sockets share port 8000,"));
    }
}
