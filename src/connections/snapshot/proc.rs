//! `/proc/PID/net/tcp` and `tcp6`: the connections of the network namespace a process is in. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::SplitAsciiWhitespace;

use crate::connections::state::TcpState;

/// Local end, remote end and state of each socket; lines that are none (the heading) are passed over.
pub(super) fn sockets(table: &str) -> impl Iterator<Item = (SocketAddr, SocketAddr, TcpState)> + '_ {
    lines(table).map(|(ends, _)| ends)
}

/// Address and inode of each socket that listens.
pub(crate) fn listening(table: &str) -> impl Iterator<Item = (SocketAddr, u64)> + '_ {
    lines(table).filter_map(|((local, _, state), mut rest)| {
        let inode = rest.nth(5)?.parse().ok()?;
        (state == TcpState::Listen).then_some((local, inode))
    })
}

/// Both ends and the state of each socket, and the fields after them.
fn lines(
    table: &str,
) -> impl Iterator<Item = ((SocketAddr, SocketAddr, TcpState), SplitAsciiWhitespace<'_>)> {
    table.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (local, remote) = (address(fields.nth(1)?)?, address(fields.next()?)?);
        let state = u8::from_str_radix(fields.next()?, 16).ok()?;
        Some(((local, remote, TcpState::from_kernel(state)?), fields))
    })
}

/// `0100007F:1F90`: words in the machine's byte order, the port as a number.
fn address(text: &str) -> Option<SocketAddr> {
    let (words, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(words.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match words.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for (at, place) in octets.chunks_exact_mut(4).enumerate() {
                place.copy_from_slice(&word(at)?);
            }
            IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(octets: &[u8]) -> String {
        let word = |four: &[u8]| format!("{:08X}", u32::from_ne_bytes([four[0], four[1], four[2], four[3]]));
        octets.chunks_exact(4).map(word).collect()
    }

    fn line(local: (IpAddr, u16), remote: (IpAddr, u16), state: u8) -> String {
        let end = |(ip, port): (IpAddr, u16)| match ip {
            IpAddr::V4(ip) => format!("{}:{port:04X}", words(&ip.octets())),
            IpAddr::V6(ip) => format!("{}:{port:04X}", words(&ip.octets())),
        };
        let rest =
            "00000000:00000000 00:00000000 00000000     0        0 4242 1 0000000000000000 20 4 30 10 -1";
        format!("   0: {} {} {state:02X} {rest}", end(local), end(remote))
    }

    #[test]
    fn a_table_is_read_and_its_heading_is_not() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
        let local = (IpAddr::from([127, 0, 0, 1]), 8000);
        let mapped = (IpAddr::V6(Ipv4Addr::new(10, 0, 0, 2).to_ipv6_mapped()), 50_000);
        let table = format!("{table}{}\n{}\n", line(local, mapped, 1), line(local, mapped, 10));
        let expected = (SocketAddr::from(local), SocketAddr::from(([10, 0, 0, 2], 50_000)));
        let read: Vec<_> = sockets(&table).collect();
        assert_eq!(
            read,
            [(expected.0, expected.1, TcpState::Established), (expected.0, expected.1, TcpState::Listen)]
        );
        assert_eq!(listening(&table).collect::<Vec<_>>(), [(expected.0, 4242)]);
    }

    proptest! {
        #[test]
        fn what_the_kernel_writes_is_read_back(
            local: (Ipv6Addr, u16), remote: (Ipv4Addr, u16), state in 1_u8..=12,
        ) {
            let (local, remote) = ((IpAddr::V6(local.0), local.1), (IpAddr::V4(remote.0), remote.1));
            let read: Vec<_> = sockets(&line(local, remote, state)).collect();
            let local = SocketAddr::new(local.0.to_canonical(), local.1);
            prop_assert_eq!(read, vec![(local, remote.into(), TcpState::from_kernel(state).expect("a state"))]);
        }

        #[test]
        fn any_text_is_survived(text: String) {
            let _ = (sockets(&text).count(), listening(&text).count());
        }
    }
}
