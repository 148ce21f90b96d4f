//! The tracepoint `sock:inet_sock_set_state` as tracefs describes it, and its records. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::News;
use crate::connections::ledger::Connection;
use crate::connections::state::{TcpState, effect};

const AF_INET: u64 = 2;
const AF_INET6: u64 = 10;
const IPPROTO_TCP: u64 = 6;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Field {
    offset: usize,
    size: usize,
}

impl Field {
    fn bytes<'a>(&self, record: &'a [u8]) -> Option<&'a [u8]> {
        record.get(self.offset..self.offset.checked_add(self.size)?)
    }

    /// A number of 1 to 8 bytes, in the machine's byte order.
    fn number(&self, record: &[u8]) -> Option<u64> {
        Some(match self.bytes(record)? {
            [one] => u64::from(*one),
            bytes if bytes.len() == 2 => u64::from(u16::from_ne_bytes(bytes.try_into().ok()?)),
            bytes if bytes.len() == 4 => u64::from(u32::from_ne_bytes(bytes.try_into().ok()?)),
            bytes => u64::from_ne_bytes(bytes.try_into().ok()?),
        })
    }
}

/// The fields in use: kernels differ in where they are, and in the size of `protocol`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Format {
    /// The tracepoint's number.
    pub(super) id: u64,
    old_state: Field,
    new_state: Field,
    family: Field,
    protocol: Field,
    sport: Field,
    dport: Field,
    saddr: Field,
    daddr: Field,
    saddr_v6: Field,
    daddr_v6: Field,
}

impl Format {
    /// Reads `events/sock/inet_sock_set_state/format`.
    /// Errors: Names what is missing.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let id = text.lines().find_map(|line| line.trim().strip_prefix("ID:"));
        let id = id.and_then(|id| id.trim().parse().ok()).ok_or("it has no ID")?;
        let field = |name: &str| {
            let found = text.lines().filter_map(parse_field).find(|(found, _)| *found == name);
            found.map(|(_, field)| field).ok_or_else(|| format!("it has no field {name}"))
        };
        Ok(Self {
            id,
            old_state: field("oldstate")?,
            new_state: field("newstate")?,
            family: field("family")?,
            protocol: field("protocol")?,
            sport: field("sport")?,
            dport: field("dport")?,
            saddr: field("saddr")?,
            daddr: field("daddr")?,
            saddr_v6: field("saddr_v6")?,
            daddr_v6: field("daddr_v6")?,
        })
    }

    /// What a record tells; nothing where it is not of TCP.
    pub(super) fn decode(&self, record: &[u8]) -> Option<News> {
        let number = |field: Field| field.number(record);
        if number(self.protocol)? != IPPROTO_TCP {
            return None;
        }
        let (local, remote) = match number(self.family)? {
            AF_INET => (ipv4(self.saddr.bytes(record)?)?, ipv4(self.daddr.bytes(record)?)?),
            AF_INET6 => (ipv6(self.saddr_v6.bytes(record)?)?, ipv6(self.daddr_v6.bytes(record)?)?),
            _ => return None,
        };
        let port = |field| u16::try_from(number(field)?).ok();
        let connection = Connection {
            netns: Connection::SOMEWHERE,
            local: SocketAddr::new(local, port(self.sport)?),
            remote: SocketAddr::new(remote, port(self.dport)?),
        };
        let state = |field| TcpState::from_kernel(u8::try_from(number(field)?).ok()?);
        Some(News::Changed(connection, effect(state(self.old_state)?, state(self.new_state)?)))
    }
}

/// `field:__u16 sport; offset:24; size:2; signed:0;`, the type of any number of words, the name perhaps with `[16]`.
fn parse_field(line: &str) -> Option<(&str, Field)> {
    let mut parts = line.trim().strip_prefix("field:")?.split(';').map(str::trim);
    let name = parts.next()?.rsplit([' ', '\t', '*']).next()?;
    let name = name.split('[').next()?;
    let mut value = |key: &str| parts.next()?.strip_prefix(key)?.parse().ok();
    Some((name, Field { offset: value("offset:")?, size: value("size:")? }))
}

/// The tracepoint filter that lets through what enters or leaves ESTABLISHED at one of these ports.
pub(super) fn filter(ports: &[u16]) -> String {
    let ports: Vec<String> = ports.iter().map(|port| format!("sport == {port}")).collect();
    let established = TcpState::Established as u8;
    let states = format!("oldstate == {established} || newstate == {established}");
    if ports.is_empty() { "sport == 0".to_owned() } else { format!("({states}) && ({})", ports.join(" || ")) }
}

/// CPUs in the kernel's notation, as `0-3,8`.
pub(super) fn cpus(text: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for range in text.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        // No machine has more: a wrong text shall not fill the memory.
        all.extend((first..=last).take(1 << 16));
    }
    Some(all)
}

fn ipv4(octets: &[u8]) -> Option<IpAddr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?).into())
}

fn ipv6(octets: &[u8]) -> Option<IpAddr> {
    Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?)).to_canonical())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::connections::state::Effect;

    /// As Linux 6.18 has it.
    const NEW: &str = "name: inet_sock_set_state\nID: 2287\nformat:\n\
        \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
        \tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n\
        \tfield:const void * skaddr;\toffset:8;\tsize:8;\tsigned:0;\n\
        \tfield:int oldstate;\toffset:16;\tsize:4;\tsigned:1;\n\
        \tfield:int newstate;\toffset:20;\tsize:4;\tsigned:1;\n\
        \tfield:__u16 sport;\toffset:24;\tsize:2;\tsigned:0;\n\
        \tfield:__u16 dport;\toffset:26;\tsize:2;\tsigned:0;\n\
        \tfield:__u16 family;\toffset:28;\tsize:2;\tsigned:0;\n\
        \tfield:__u16 protocol;\toffset:30;\tsize:2;\tsigned:0;\n\
        \tfield:__u8 saddr[4];\toffset:32;\tsize:4;\tsigned:0;\n\
        \tfield:__u8 daddr[4];\toffset:36;\tsize:4;\tsigned:0;\n\
        \tfield:__u8 saddr_v6[16];\toffset:40;\tsize:16;\tsigned:0;\n\
        \tfield:__u8 daddr_v6[16];\toffset:56;\tsize:16;\tsigned:0;\n\n\
        print fmt: \"family=%s protocol=%s\", REC->family\n";

    /// As kernels before 5.6 have it: `protocol` of one byte.
    fn old() -> String {
        let new = "__u16 protocol;\toffset:30;\tsize:2";
        let text = NEW.replace(new, "__u8 protocol;\toffset:30;\tsize:1");
        assert_ne!(text, NEW);
        let moved = text.replace("saddr[4];\toffset:32", "saddr[4];\toffset:31");
        let moved = moved.replace("daddr[4];\toffset:36", "daddr[4];\toffset:35");
        moved
            .replace("saddr_v6[16];\toffset:40", "saddr_v6[16];\toffset:39")
            .replace("daddr_v6[16];\toffset:56", "daddr_v6[16];\toffset:55")
    }

    proptest! {
        #[test]
        fn a_record_is_read_by_its_format_whatever_the_kernel(
            is_old: bool, v6: bool, local: [u8; 16], remote: [u8; 16], ports: (u16, u16), old_state in 1_u8..=12,
            new_state in 1_u8..=12, protocol in prop_oneof![Just(6_u8), Just(132)],
        ) {
            let format = Format::parse(&if is_old { old() } else { NEW.to_owned() }).expect("a format");
            prop_assert_eq!(format.id, 2287);
            let shift = usize::from(is_old);
            let mut record = vec![0; 80];
            record[16] = old_state;
            record[20] = new_state;
            record[24..26].copy_from_slice(&ports.0.to_ne_bytes());
            record[26..28].copy_from_slice(&ports.1.to_ne_bytes());
            record[28] = if v6 { 10 } else { 2 };
            record[32 - shift..36 - shift].copy_from_slice(&local[..4]);
            record[36 - shift..40 - shift].copy_from_slice(&remote[..4]);
            record[40 - shift..56 - shift].copy_from_slice(&local);
            record[56 - shift..72 - shift].copy_from_slice(&remote);
            record[30] = protocol;
            let ip = |octets: [u8; 16]| {
                if v6 { ipv6(&octets) } else { ipv4(&octets[..4]) }.expect("an address")
            };
            let connection = Connection {
                netns: Connection::SOMEWHERE,
                local: SocketAddr::new(ip(local), ports.0),
                remote: SocketAddr::new(ip(remote), ports.1),
            };
            let state = |number| TcpState::from_kernel(number).expect("a state");
            let change: Effect = effect(state(old_state), state(new_state));
            let expected = (protocol == 6).then_some(News::Changed(connection, change));
            prop_assert_eq!(format.decode(&record), expected);
        }

        #[test]
        fn any_format_and_any_record_are_survived(text: String, record: Vec<u8>, offset: usize, size: usize) {
            let _ = Format::parse(&text);
            let strange = NEW.replace("offset:24", &format!("offset:{offset}")).replace("size:16", &format!("size:{size}"));
            if let Ok(format) = Format::parse(&strange) {
                let _ = format.decode(&record);
            }
            let _ = cpus(&text);
        }
    }

    #[test]
    fn what_a_format_lacks_is_named() {
        assert_eq!(Format::parse("").expect_err("nothing"), "it has no ID");
        let error = Format::parse(&NEW.replace("daddr_v6", "other")).expect_err("a field less");
        assert_eq!(error, "it has no field daddr_v6");
    }

    #[test]
    fn filters_and_lists_of_cpus_are_the_kernels() {
        assert_eq!(filter(&[80, 8000]), "(oldstate == 1 || newstate == 1) && (sport == 80 || sport == 8000)");
        assert_eq!(cpus("0-2,5\n"), Some(vec![0, 1, 2, 5]));
        assert_eq!((cpus("0"), cpus(""), cpus("a-b")), (Some(vec![0]), None, None));
    }
}
