//! Servers that share a port, come and go, or are not there; missing rights; losses elsewhere; and `ss` for a witness.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use agft::connections::{Sabotage, SourceKind, WatchSettings, notes_on_servers};
use socket2::{Domain, Socket, Type};

use crate::network::{self, Elsewhere, Server, established};
use crate::perf::{self, perf};
use crate::support::eventually;
use crate::{all, counts, kernel_events, settings, settles_at, watch};

/// One of several servers at this port, or at a port of its own.
fn sharing(port: u16) -> Server {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_reuse_port(true).expect("an option");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], port)).into()).expect("the port");
    socket.listen(128).expect("a server");
    Server::from(TcpListener::from(socket))
}

#[test]
fn servers_that_share_a_port_are_counted_together_and_pointed_out() {
    let first = sharing(0);
    let port = first.port();
    assert_eq!(notes_on_servers(&[port]), Vec::<String>::new());
    let second = sharing(port);
    let notes = notes_on_servers(&[port]);
    assert_eq!(
        notes,
        [format!(
            "2 sockets share port {port}, of one server or several; connections to all of them count together"
        )]
    );
    for settings in all(port) {
        let watcher = watch(settings);
        // The kernel deals them out between the two.
        let clients: Vec<TcpStream> = (0..30).map(|_| first.connect()).collect();
        settles_at(&watcher, port, 30);
        drop(clients);
        settles_at(&watcher, port, 0);
        assert_eq!((counts(&watcher).opened_total, counts(&watcher).corrected), (30, 0));
    }
    drop((first, second));
}

#[test]
fn a_port_where_nobody_listens_is_pointed_out_and_counts_from_when_a_server_does() {
    let server = Server::start("127.0.0.1:0");
    let port = server.port();
    drop(server);
    let notes = notes_on_servers(&[port]);
    assert!(
        matches!(&notes[..], [note] if note.starts_with(&format!("nobody listens at port {port} now"))),
        "{notes:?}"
    );
    for settings in all(port) {
        let watcher = watch(settings);
        let server = Server::start(&format!("127.0.0.1:{port}"));
        let client = server.connect();
        settles_at(&watcher, port, 1);
        drop(client);
        settles_at(&watcher, port, 0);
        drop(server);
    }
}

#[test]
fn a_server_that_is_restarted_is_watched_on() {
    for (at, settings) in all(1).into_iter().enumerate() {
        let server = Server::start("127.0.0.1:0");
        let port = server.port();
        let watcher = watch(WatchSettings { ports: vec![port], ..settings });
        let clients: Vec<TcpStream> = (0..5).map(|_| server.connect()).collect();
        settles_at(&watcher, port, 5);
        // Its end resets what its clients still have open; what has ended by it stays in TIME_WAIT.
        for client in &clients {
            socket2::SockRef::from(client).set_linger(Some(Duration::ZERO)).expect("an option");
        }
        drop((server, clients));
        settles_at(&watcher, port, 0);
        let server = Server::start(&format!("127.0.0.1:{port}"));
        let clients: Vec<TcpStream> = (0..3).map(|_| server.connect()).collect();
        settles_at(&watcher, port, 3);
        drop(clients);
        settles_at(&watcher, port, 0);
        let end = counts(&watcher);
        assert!(
            end.opened_total >= 8 && end.opened_total == end.closed_total && end.corrected == 0,
            "{at}: {end:?}"
        );
    }
}

#[test]
fn at_quiet_moments_the_count_is_that_of_ss() {
    let ss = |port: u16| {
        let filter = ["-Htn", "state", "established", "sport", "=", &format!(":{port}")];
        let output = Command::new("ss").args(filter).stderr(Stdio::inherit()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).lines().count())
    };
    let server = Server::start("127.0.0.1:0");
    if ss(server.port()).is_none() {
        eprintln!("skipped: no ss here");
        return;
    }
    for settings in all(server.port()) {
        let watcher = watch(settings);
        let mut clients = Vec::new();
        for change in [7_i32, -3, 12, -16] {
            if change > 0 {
                clients.extend((0..change).map(|_| server.connect()));
            } else {
                clients.truncate(clients.len().saturating_add_signed(change as isize));
            }
            let both = || (counts(&watcher).open as usize, ss(server.port()).unwrap_or(usize::MAX));
            assert_eq!(eventually(both, |both| *both == (clients.len(), clients.len())).0, clients.len());
            assert_eq!(ss(server.port()), Some(clients.len()));
        }
    }
}

#[test]
fn losses_in_another_namespace_are_made_up_for_by_the_next_reading() {
    if !kernel_events() {
        return;
    }
    let Some(elsewhere) = Elsewhere::start() else { return };
    let port = elsewhere.port();
    let notes = notes_on_servers(&[port]);
    assert_eq!(notes, Vec::<String>::new(), "it is seen in its namespace");
    let here = Server::start(&format!("0.0.0.0:{port}"));
    let notes = notes_on_servers(&[port]);
    assert!(matches!(&notes[..], [note] if note.contains("in 2 network namespaces")), "{notes:?}");
    let watcher = watch(WatchSettings { ring_bytes: 4096, ..settings(port) });
    watcher.sabotage(Sabotage::Stall(Duration::from_millis(500)));
    let clients: Vec<TcpStream> = (0..150).map(|_| elsewhere.connect()).collect();
    let local = here.connect();
    assert_eq!(eventually(|| counts(&watcher).open, |open| *open == 151), 151);
    let seen = counts(&watcher);
    assert!(seen.lost > 0 && seen.corrected > 0, "{seen:?}");
    assert_eq!(established(&elsewhere.tables(), port), 150);
    drop((clients, local));
    assert_eq!(eventually(|| counts(&watcher).open, |open| *open == 0), 0);
}

#[test]
fn root_without_cap_bpf_is_told_so_and_gets_perf_events_and_without_cap_perfmon_polling() {
    let port = Server::start("127.0.0.1:0").port();
    if !kernel_events() || perf(port).is_none() {
        return;
    }
    let tracefs = perf::tracefs().expect("there, as perf events are");
    let bounded = |capabilities: &str| network::without(capabilities, "watches_with_what_is_left", &tracefs);
    let Some(text) = bounded("-bpf,-sys_admin") else { return };
    assert!(text.contains("perf events (tracepoint inet_sock_set_state"), "{text}");
    assert!(
        text.contains("not permitted (CAP_BPF missing); run as root, or grant CAP_BPF and CAP_PERFMON"),
        "{text}"
    );
    assert!(text.contains("open: 3"), "{text}");
    let text = bounded("-bpf,-perfmon,-sys_admin").expect("as before");
    assert!(text.contains("the socket table, every"), "{text}");
    assert!(text.contains("not permitted (CAP_BPF and CAP_PERFMON missing)"), "{text}");
    assert!(text.contains("nor perf events: not permitted (CAP_PERFMON missing)"), "{text}");
    assert!(text.contains("open: 3"), "{text}");
}

/// What [`root_without_cap_bpf_is_told_so_and_gets_perf_events_and_without_cap_perfmon_polling`] runs.
pub(crate) fn watch_with_what_is_left(tracefs: &Path) {
    let server = Server::start("127.0.0.1:0");
    let watcher = watch(WatchSettings { tracefs: Some(tracefs.into()), ..settings(server.port()) });
    let clients = [server.connect(), server.connect(), server.connect()];
    settles_at(&watcher, server.port(), 3);
    println!("{} {:?}", watcher.source(), counts(&watcher));
    assert_ne!(watcher.source().kind(), SourceKind::KernelEvents);
    drop(clients);
    settles_at(&watcher, server.port(), 0);
}
