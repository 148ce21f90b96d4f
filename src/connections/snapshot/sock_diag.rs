//! The kernel's own list of sockets in this network namespace, asked over netlink (`sock_diag(7)`); needs no rights.
//!
//! The kernel applies port and state: the answer is as long as the result, not as the table.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

use crate::connections::state::TcpState;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x001 | 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of `struct inet_diag_req_v2`.
const REQUEST: usize = 56;

/// Both ends of each socket in this state whose local port is `port`, IPv4 and IPv6.
pub(super) fn sockets(state: TcpState, port: u16) -> io::Result<Vec<(SocketAddr, SocketAddr)>> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    // The kernel answers at once; this only keeps a surprise from becoming a hang.
    rustix::net::sockopt::set_socket_timeout(
        &socket,
        rustix::net::sockopt::Timeout::Recv,
        Some(std::time::Duration::from_secs(2)),
    )?;
    let mut found = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    for family in [AF_INET, AF_INET6] {
        rustix::net::send(&socket, &request(family, state, port), SendFlags::empty())?;
        loop {
            let (length, _) = rustix::net::recv(&socket, buffer.as_mut_slice(), RecvFlags::empty())?;
            match read(buffer.get(..length).unwrap_or_default(), &mut found)? {
                Answer::More => {}
                Answer::Done => break,
            }
        }
    }
    Ok(found)
}

fn request(family: u8, state: TcpState, port: u16) -> Vec<u8> {
    let states = 1_u32 << state as u8;
    let mut bytes = Vec::with_capacity(HEADER + REQUEST);
    // struct nlmsghdr: length, type, flags, sequence, port ID.
    #[expect(clippy::cast_possible_truncation, reason = "72")]
    bytes.extend_from_slice(&((HEADER + REQUEST) as u32).to_ne_bytes());
    bytes.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    // struct inet_diag_req_v2: family, protocol, extensions, padding, states, then struct inet_diag_sockid.
    bytes.extend_from_slice(&[family, IPPROTO_TCP, 0, 0]);
    bytes.extend_from_slice(&states.to_ne_bytes());
    bytes.extend_from_slice(&port.to_be_bytes());
    bytes.resize(HEADER + REQUEST, 0);
    bytes
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    More,
    Done,
}

fn read(datagram: &[u8], found: &mut Vec<(SocketAddr, SocketAddr)>) -> io::Result<Answer> {
    let mut rest = datagram;
    while let Some(header) = rest.get(..HEADER) {
        let length = word(header, 0) as usize;
        let Some(message) = rest.get(HEADER..length) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a netlink message longer than its datagram",
            ));
        };
        let (kind, flags) = (half(header, 4), half(header, 6));
        if flags & NLM_F_DUMP_INTR != 0 {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "the table changed while it was listed"));
        }
        match kind {
            NLMSG_DONE => return Ok(Answer::Done),
            NLMSG_ERROR => {
                let errno = i32::from_ne_bytes(word(message, 0).to_ne_bytes());
                return Err(io::Error::from_raw_os_error(errno.saturating_neg()));
            }
            SOCK_DIAG_BY_FAMILY => found.extend(ends(message)),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(Answer::More)
}

/// `struct inet_diag_msg`: family, state, timer, retransmits, then ports and addresses in network order.
fn ends(message: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let port = |at: usize| Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?));
    let ip = |at: usize| match *message.first()? {
        AF_INET => Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(message.get(at..at + 4)?).ok()?))),
        AF_INET6 => {
            let octets = <[u8; 16]>::try_from(message.get(at..at + 16)?).ok()?;
            Some(IpAddr::V6(Ipv6Addr::from(octets)).to_canonical())
        }
        _ => None,
    };
    Some((SocketAddr::new(ip(8)?, port(4)?), SocketAddr::new(ip(24)?, port(6)?)))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn half(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|two| two.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_kernel_lists_a_connection_at_its_servers_port_and_no_other() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let server = listener.local_addr().expect("an address");
        assert_eq!(sockets(TcpState::Established, server.port()).expect("a list"), []);
        let client = std::net::TcpStream::connect(server).expect("a connection");
        let expected = [(server, client.local_addr().expect("an address"))];
        assert_eq!(sockets(TcpState::Established, server.port()).expect("a list"), expected);
        let listening = sockets(TcpState::Listen, server.port()).expect("a list");
        assert_eq!(listening, [(server, SocketAddr::from(([0, 0, 0, 0], 0)))]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = read(&bytes, &mut Vec::new());
        }

        #[test]
        fn a_header_with_any_length_is_survived(length: u32, kind in 0_u16..24, rest: Vec<u8>) {
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.extend_from_slice(&kind.to_ne_bytes());
            bytes.extend_from_slice(&rest);
            let _ = read(&bytes, &mut Vec::new());
        }
    }
}
