//! Connections watched on the real kernel: real servers, real clients, and the kernel's own table to compare with.
//!
//! What needs kernel events (root, BPF) says so and is skipped where they cannot be had; everything else runs anywhere.
#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

#[path = "connections/network.rs"]
mod network;
#[path = "connections/perf.rs"]
mod perf;
#[path = "connections/requests.rs"]
mod requests;
mod support;
#[path = "connections/trouble.rs"]
mod trouble;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use agft::connections::{
    self, ConnectionError, Counts, Kind, Sabotage, Source, SourceKind, WatchSettings, Watcher,
};
use network::{Elsewhere, Server, established};
use support::eventually;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

fn settings(port: u16) -> WatchSettings {
    WatchSettings { ports: vec![port], ..WatchSettings::default() }
}

fn watch(settings: WatchSettings) -> Watcher {
    Watcher::start(settings).expect("a watcher")
}

fn polling(port: u16) -> WatchSettings {
    WatchSettings {
        force_source: Some(SourceKind::Polling),
        poll_every: Duration::from_millis(20),
        ..settings(port)
    }
}

fn counts(watcher: &Watcher) -> Counts {
    *watcher.counts().values().next().expect("a port")
}

/// Can the kernel's events be had here? Says why not.
fn kernel_events() -> bool {
    static SOURCE: LazyLock<Source> = LazyLock::new(connections::probe);
    let there = matches!(*SOURCE, Source::KernelEvents { .. });
    if !there {
        eprintln!("skipped: needs kernel events, and here is only {}", *SOURCE);
    }
    there
}

fn from_kernel(watcher: &Watcher) -> bool {
    matches!(watcher.source(), Source::KernelEvents { .. })
}

/// The settings to run a test with: polling, perf events and kernel events, as far as they can be had.
fn all(port: u16) -> Vec<WatchSettings> {
    let mut all = vec![polling(port)];
    all.extend(perf::perf(port));
    if kernel_events() {
        all.push(settings(port));
    }
    all
}

/// Waits until the watcher, this number and the kernel's table agree.
fn settles_at(watcher: &Watcher, port: u16, expected: u32) {
    let open = || counts(watcher).open;
    // The table may be long: it is asked when there is something to compare it with.
    let read = || {
        let open = eventually(open, |open| *open == expected);
        (open, established("/proc/self/net", port))
    };
    assert_eq!(eventually(read, |both| *both == (expected, expected)), (expected, expected));
}

#[test]
fn settings_that_make_no_sense_are_refused_with_what_would() {
    let refused = |settings| Watcher::start(settings).expect_err("an error");
    for ports in [vec![], vec![8000, 0], (1..100).collect()] {
        let error = refused(WatchSettings { ports, ..WatchSettings::default() });
        assert!(matches!(error, ConnectionError::Ports { .. }) && error.to_string().contains("give 1 to 64"));
    }
    let error = refused(WatchSettings { poll_every: Duration::ZERO, ..settings(8000) });
    assert_eq!(error.to_string(), "poll_every is 0: give a period above 0");
    let error = refused(WatchSettings { netns: Some("/run/netns/not-there".into()), ..settings(8000) });
    assert!(error.to_string().contains("/run/netns/not-there"), "{error}");
}

#[test]
fn a_pool_of_connections_is_counted_and_requests_over_it_change_nothing() {
    let server = Server::start("127.0.0.1:0");
    for settings in all(server.port()) {
        let watcher = watch(settings);
        let at_first = counts(&watcher);
        // Polling goes on meanwhile.
        assert_eq!(at_first, Counts { resyncs: at_first.resyncs.max(1), ..Counts::default() });
        let mut pool: Vec<TcpStream> = (0..50).map(|_| server.connect()).collect();
        settles_at(&watcher, server.port(), 50);
        for client in &mut pool {
            client.write_all(b"?").expect("a request");
            client.read_exact(&mut [0]).expect("an answer");
        }
        assert_eq!((counts(&watcher).opened_total, counts(&watcher).closed_total), (50, 0));
        pool.truncate(30);
        settles_at(&watcher, server.port(), 30);
        drop(pool);
        settles_at(&watcher, server.port(), 0);
        let end = counts(&watcher);
        assert_eq!((end.opened_total, end.closed_total, end.lost, end.corrected), (50, 50, 0, 0));
    }
}

#[test]
fn connections_open_before_the_start_are_counted_and_their_ends_too() {
    let server = Server::start("127.0.0.1:0");
    for settings in all(server.port()) {
        let pool: Vec<TcpStream> = (0..7).map(|_| server.connect()).collect();
        eventually(|| established("/proc/self/net", server.port()), |open| *open == 7);
        let watcher = watch(settings);
        assert_eq!((counts(&watcher).open, counts(&watcher).opened_total), (7, 7));
        drop(pool);
        settles_at(&watcher, server.port(), 0);
        assert_eq!((counts(&watcher).closed_total, counts(&watcher).corrected), (7, 0));
    }
}

#[test]
fn connections_that_are_reset_or_ended_by_the_client_alone_are_closed() {
    let server = Server::start_that_never_closes("127.0.0.1:0");
    for settings in all(server.port()) {
        let watcher = watch(settings);
        let (half, reset, whole) = (server.connect(), server.connect(), server.connect());
        settles_at(&watcher, server.port(), 3);
        // The server sees the end and keeps its half: CLOSE_WAIT.
        half.shutdown(std::net::Shutdown::Write).expect("an end");
        settles_at(&watcher, server.port(), 2);
        socket2::SockRef::from(&reset).set_linger(Some(Duration::ZERO)).expect("a socket option");
        drop(reset);
        settles_at(&watcher, server.port(), 1);
        drop(whole);
        settles_at(&watcher, server.port(), 0);
        assert_eq!((counts(&watcher).closed_total, counts(&watcher).corrected), (3, 0));
    }
}

#[test]
fn a_handshake_that_never_ends_and_a_refused_connection_count_for_nothing() {
    let server = Server::start("127.0.0.1:0");
    let port = server.port();
    drop(server);
    for settings in all(port) {
        let watcher = watch(settings);
        TcpStream::connect(("127.0.0.1", port)).expect_err("nobody listens");
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!((counts(&watcher).open, counts(&watcher).opened_total), (0, 0));
    }
}

#[test]
fn ipv6_ipv4_and_ipv4_mapped_into_ipv6_count_as_what_they_are() {
    let Some(server) = Server::try_start("[::]:0") else {
        eprintln!("skipped: this machine has no IPv6");
        return;
    };
    let port = server.port();
    for base in all(port) {
        let at = |address: IpAddr| watch(WatchSettings { local_address: Some(address), ..base.clone() });
        let expected: [(&str, Watcher, u32); 4] = [
            ("both", watch(base.clone()), 5),
            ("to 127.0.0.1", at(Ipv4Addr::LOCALHOST.into()), 3),
            ("to ::ffff:127.0.0.1", at(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into()), 3),
            ("to ::1", at(Ipv6Addr::LOCALHOST.into()), 2),
        ];
        let to = |address| TcpStream::connect((address, port)).expect("a connection");
        let clients = [
            to(IpAddr::from(Ipv4Addr::LOCALHOST)),
            to(Ipv4Addr::LOCALHOST.into()),
            to(Ipv4Addr::LOCALHOST.into()),
            to(Ipv6Addr::LOCALHOST.into()),
            to(Ipv6Addr::LOCALHOST.into()),
        ];
        for (what, watcher, open) in &expected {
            assert_eq!(eventually(|| watcher.open_now(), |now| now == open), *open, "{what}");
        }
        drop(clients);
        for (what, watcher, open) in &expected {
            assert_eq!(eventually(|| watcher.open_now(), |now| *now == 0), 0, "{what}");
            let end = counts(watcher);
            assert_eq!((end.opened_total, end.corrected), (u64::from(*open), 0), "{what}");
        }
    }
}

#[test]
fn several_ports_are_kept_apart_and_other_ports_are_not_seen() {
    let (first, second, other) =
        (Server::start("127.0.0.1:0"), Server::start("127.0.0.1:0"), Server::start("127.0.0.1:0"));
    for settings in all(first.port()) {
        let watcher = watch(WatchSettings { ports: vec![first.port(), second.port()], ..settings });
        let clients = [first.connect(), second.connect(), second.connect(), other.connect()];
        settles_at_each(&watcher, &[(first.port(), 1), (second.port(), 2)]);
        drop(clients);
        settles_at_each(&watcher, &[(first.port(), 0), (second.port(), 0)]);
    }
}

fn settles_at_each(watcher: &Watcher, expected: &[(u16, u32)]) {
    let read = || watcher.counts().iter().map(|(port, counts)| (*port, counts.open)).collect::<Vec<_>>();
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    assert_eq!(eventually(read, |now| *now == expected), expected);
}

#[test]
fn events_tell_of_each_change_and_end_with_the_watcher() {
    let server = Server::start("127.0.0.1:0");
    for settings in all(server.port()) {
        let watcher = watch(settings);
        let mut events = watcher.events();
        let mut next = || eventually(|| events.try_recv(), |event| *event != Err(TryRecvError::Empty));
        let (one, two) = (server.connect(), server.connect());
        for (kind, open_now) in [(Kind::Opened, 1), (Kind::Opened, 2)] {
            let event = next().expect("an event");
            assert_eq!((event.port, event.kind, event.open_now), (server.port(), kind, open_now));
            assert!(counts(&watcher).open >= open_now, "counts are never older than the events");
        }
        drop(one);
        let event = next().expect("an event");
        assert_eq!((event.kind, event.open_now), (Kind::Closed, 1));
        drop(two);
        assert_eq!(next().expect("an event").open_now, 0);
        drop(watcher);
        assert_eq!(events.blocking_recv(), Err(RecvError::Closed));
    }
}

/// Connects and disconnects `number` times, one after another. The kernel skips a BPF program while another
/// one runs on the same CPU (`bpf_prog_active`), and says so to nobody: beside other tests that happens to
/// one event in some thousand.
fn short_connections(number: u64) {
    let server = Server::start("127.0.0.1:0");
    let watcher = watch(settings(server.port()));
    for _ in 0..number {
        drop(server.connect());
    }
    settles_at(&watcher, server.port(), 0);
    let end = eventually(|| counts(&watcher), |counts| counts.closed_total == number);
    let (opened, closed) = (end.opened_total, end.closed_total);
    assert!(opened <= number && closed <= number && end.lost == 0, "{end:?}");
    let skipped = (number - opened).max(number - closed).max(end.corrected);
    assert!(skipped <= number / 200, "{end:?}");
    println!("{number} short connections: {end:?}");
}

#[test]
fn a_thousand_short_connections_are_all_seen() {
    if kernel_events() {
        short_connections(1000);
    }
}

#[test]
#[ignore = "takes a while; scripts and people run it"]
fn ten_thousand_short_connections_are_all_seen() {
    if kernel_events() {
        short_connections(10_000);
    }
}

#[test]
fn short_connections_missed_by_polling_leave_the_count_right() {
    let server = Server::start("127.0.0.1:0");
    let watcher = watch(polling(server.port()));
    let kept = server.connect();
    for _ in 0..200 {
        drop(server.connect());
    }
    settles_at(&watcher, server.port(), 1);
    drop(kept);
    settles_at(&watcher, server.port(), 0);
    let end = counts(&watcher);
    assert_eq!((end.opened_total, end.corrected), (end.closed_total, 0));
}

#[test]
fn a_ring_that_runs_over_is_noticed_and_the_count_made_right() {
    if !kernel_events() {
        return;
    }
    let server = Server::start("127.0.0.1:0");
    let watcher = watch(WatchSettings { ring_bytes: 4096, ..settings(server.port()) });
    let before: Vec<TcpStream> = (0..20).map(|_| server.connect()).collect();
    settles_at(&watcher, server.port(), 20);
    watcher.sabotage(Sabotage::Stall(Duration::from_millis(700)));
    // 4096 bytes hold 73 events. Lost are openings and endings.
    let after: Vec<TcpStream> = (0..200).map(|_| server.connect()).collect();
    drop(before);
    settles_at(&watcher, server.port(), 200);
    let seen = counts(&watcher);
    assert!(seen.lost > 0 && seen.corrected > 0, "{seen:?}");
    assert_eq!(seen.opened_total - seen.closed_total, 200);
    assert!(from_kernel(&watcher), "a loss is no reason to give up");
    drop(after);
    settles_at(&watcher, server.port(), 0);
}

#[test]
fn a_program_that_was_detached_is_noticed_and_attached_again() {
    if !kernel_events() {
        return;
    }
    let server = Server::start("127.0.0.1:0");
    let watcher =
        watch(WatchSettings { resync_every: Duration::from_millis(200), ..settings(server.port()) });
    let first = server.connect();
    settles_at(&watcher, server.port(), 1);
    watcher.sabotage(Sabotage::Detach);
    let second = server.connect();
    // Only the table can tell of the second one.
    settles_at(&watcher, server.port(), 2);
    assert_eq!(counts(&watcher).corrected, 1);
    assert!(from_kernel(&watcher));
    // From the new program: none of these needs a correction.
    let resyncs = counts(&watcher).resyncs;
    eventually(|| counts(&watcher).resyncs, |now| *now >= resyncs + 2);
    let more: Vec<TcpStream> = (0..10).map(|_| server.connect()).collect();
    settles_at(&watcher, server.port(), 12);
    drop((first, second, more));
    settles_at(&watcher, server.port(), 0);
    let end = counts(&watcher);
    assert_eq!((end.opened_total, end.closed_total, end.corrected), (12, 12, 1));
}

#[test]
fn events_that_stay_away_for_good_give_way_to_polling_which_says_why() {
    if !kernel_events() {
        return;
    }
    for sabotage in [Sabotage::DetachForGood, Sabotage::Discard(true)] {
        let server = Server::start("127.0.0.1:0");
        let watcher = watch(WatchSettings {
            resync_every: Duration::from_millis(100),
            poll_every: Duration::from_millis(20),
            ..settings(server.port())
        });
        watcher.sabotage(sabotage);
        let mut clients = Vec::new();
        let source = eventually(
            || {
                clients.push(server.connect());
                std::thread::sleep(Duration::from_millis(30));
                watcher.source()
            },
            |source| !matches!(source, Source::KernelEvents { .. }),
        );
        assert!(matches!(&source, Source::Polling { why, .. } if !why.is_empty()), "{source}");
        settles_at(&watcher, server.port(), u32::try_from(clients.len()).expect("few"));
        drop(clients);
        settles_at(&watcher, server.port(), 0);
    }
}

#[test]
fn a_server_in_another_network_namespace_is_watched_and_can_be_told_apart() {
    let Some(elsewhere) = Elsewhere::start() else { return };
    let path = elsewhere.path().into_os_string().into_string().expect("a name");
    if let Some(text) = network::as_nobody("nobody_looks_elsewhere", &path) {
        let refused = format!("network namespace {path}: no process in network namespace ");
        assert!(text.contains(&refused) && text.contains("grant CAP_SYS_PTRACE"), "{text}");
    }
    let here = Server::try_start(&format!("0.0.0.0:{}", elsewhere.port())).expect("the port is free here");
    let port = here.port();
    for base in all(port) {
        // Open before the start: found in the other namespace's table.
        let early = elsewhere.connect();
        let everywhere = watch(base.clone());
        let only_there = watch(WatchSettings { netns: Some(elsewhere.path()), ..base.clone() });
        let only_here = watch(WatchSettings { netns: Some("/proc/self/ns/net".into()), ..base });
        let late: Vec<TcpStream> = (0..4).map(|_| elsewhere.connect()).collect();
        let local = here.connect();
        let read = || (everywhere.open_now(), only_there.open_now(), only_here.open_now());
        assert_eq!(eventually(read, |now| *now == (6, 5, 1)), (6, 5, 1));
        assert_eq!(established(&elsewhere.tables(), port), 5);
        // The table of the other namespace agrees with the events: nothing is corrected by the next readings.
        drop((early, late, local));
        assert_eq!(eventually(read, |now| *now == (0, 0, 0)), (0, 0, 0));
        assert_eq!(established(&elsewhere.tables(), port), 0);
        assert_eq!(counts(&everywhere).corrected, 0);
    }
}

#[test]
fn readings_of_the_table_under_load_find_nothing_to_correct() {
    if !kernel_events() {
        return;
    }
    let server = Server::start("127.0.0.1:0");
    let watcher = watch(WatchSettings { resync_every: Duration::from_millis(3), ..settings(server.port()) });
    let kept: Vec<TcpStream> = (0..50).map(|_| server.connect()).collect();
    for _ in 0..500 {
        drop(server.connect());
    }
    settles_at(&watcher, server.port(), 50);
    let seen = counts(&watcher);
    assert_eq!((seen.opened_total, seen.closed_total, seen.corrected), (550, 500, 0), "{seen:?}");
    assert!(seen.resyncs > 1, "{seen:?}");
    drop(kept);
    settles_at(&watcher, server.port(), 0);
}

#[test]
fn without_rights_polling_is_used_says_what_is_missing_and_counts() {
    let Some(text) = network::as_nobody("nobody_watches", "") else { return };
    assert!(text.contains("CAP_BPF and CAP_PERFMON missing"), "{text}");
    assert!(text.contains("run as root, or grant CAP_BPF and CAP_PERFMON"), "{text}");
    assert!(text.contains("open: 3"), "{text}");
}

#[test]
#[ignore = "a part of another test, run by it as another user"]
fn nobody_watches() {
    let server = Server::start("127.0.0.1:0");
    let watcher = watch(settings(server.port()));
    let clients = [server.connect(), server.connect(), server.connect()];
    settles_at(&watcher, server.port(), 3);
    println!("{} {:?}", watcher.source(), counts(&watcher));
    drop(clients);
    settles_at(&watcher, server.port(), 0);
}

#[test]
#[ignore = "a part of another test, run by it with fewer rights"]
fn watches_with_what_is_left() {
    let tracefs = std::env::var_os(network::ARGUMENT).expect("where tracefs is");
    trouble::watch_with_what_is_left(tracefs.as_ref());
}

#[test]
#[ignore = "a part of another test, run by it as another user"]
fn nobody_looks_elsewhere() {
    let netns = std::env::var_os(network::ARGUMENT).map(Into::into);
    let error = Watcher::start(WatchSettings { netns, ..settings(8000) }).expect_err("an error");
    println!("{error}");
}

#[test]
#[ignore = "a part of another test, run by it in another network namespace"]
fn server_elsewhere() {
    network::serve_until_input_ends();
}

/// Nothing is asserted of the time: it is the machine's.
#[test]
fn latency_from_connect_to_event_is_measured_and_printed() {
    if !kernel_events() {
        return;
    }
    let server = Server::start("127.0.0.1:0");
    let watcher = watch(settings(server.port()));
    let mut events = watcher.events();
    let mut latencies = Vec::new();
    for _ in 0..200 {
        let begin = Instant::now();
        let client = server.connect();
        let opened = events.blocking_recv().expect("an event");
        latencies.push((opened.at.duration_since(begin), begin.elapsed()));
        assert_eq!((opened.kind, opened.open_now), (Kind::Opened, 1));
        drop(client);
        assert_eq!(events.blocking_recv().expect("an event").kind, Kind::Closed);
    }
    let show = |mut times: Vec<Duration>| {
        times.sort_unstable();
        format!("p50 {:?}, p99 {:?}, max {:?}", times[100], times[198], times[199])
    };
    println!("connect() to event seen: {}", show(latencies.iter().map(|pair| pair.0).collect()));
    println!("connect() to event received: {}", show(latencies.iter().map(|pair| pair.1).collect()));
}

#[test]
#[ignore = "a measurement: processor time of the watcher at 1000 connections a second"]
fn cost_at_a_thousand_connections_a_second() {
    let server = Server::start("127.0.0.1:0");
    for settings in all(server.port()) {
        let watcher = watch(settings);
        let (begin, before) = (Instant::now(), network::thread_time("connections"));
        let mut number = 0_u32;
        while begin.elapsed() < Duration::from_secs(5) {
            drop(server.connect());
            number += 1;
            let due = Duration::from_millis(1) * number;
            std::thread::sleep(due.saturating_sub(begin.elapsed()));
        }
        let (time, spent) = (begin.elapsed(), network::thread_time("connections") - before);
        let share = 100.0 * spent.as_secs_f64() / time.as_secs_f64();
        println!(
            "{}: {number} connections in {time:?}, {spent:?} of processor time ({share:.2} %)",
            watcher.source()
        );
        println!("{:?}", counts(&watcher));
    }
}
