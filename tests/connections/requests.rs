//! Requests over open connections, and clients that are passed over.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use agft::connections::{Event, Kind, Source, WatchSettings, Watcher};
use socket2::{Domain, Socket, Type};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;

use crate::network::Server;
use crate::support::eventually;
use crate::{all, counts, kernel_events, settings, settles_at, watch};

/// As `agft::connections` has it.
const BURST: Duration = Duration::from_millis(10);

/// A watcher that tells of requests; says why there is none.
fn watch_requests(port: u16) -> Option<Watcher> {
    if !kernel_events() {
        return None;
    }
    let watcher = watch(settings(port));
    if watcher.source() == (Source::KernelEvents { requests: true }) {
        return Some(watcher);
    }
    eprintln!("skipped: needs requests, and here is only {}", watcher.source());
    None
}

fn ask(client: &mut TcpStream) {
    client.write_all(b"?").expect("a request");
    client.read_exact(&mut [0]).expect("an answer");
}

fn next(events: &mut Receiver<Event>) -> Event {
    let event = eventually(|| events.try_recv(), |event| *event != Err(TryRecvError::Empty));
    event.expect("an event")
}

/// A client at a port of its own choice, not connected yet.
fn bound(port: u16) -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("an option");
    // Ended by a reset, the port is free again at once.
    socket.set_linger(Some(Duration::ZERO)).expect("an option");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], port)).into()).expect("a port");
    let address = socket.local_addr().expect("an address").as_socket().expect("of IP");
    (socket, address)
}

fn connected((socket, _): (Socket, SocketAddr), server: &Server) -> TcpStream {
    socket.connect(&SocketAddr::from(([127, 0, 0, 1], server.port())).into()).expect("a connection");
    socket.into()
}

#[test]
fn a_request_over_an_open_connection_is_told_with_its_client() {
    let server = Server::start("127.0.0.1:0");
    let Some(watcher) = watch_requests(server.port()) else { return };
    let mut events = watcher.events();
    let mut pool: Vec<TcpStream> = (0..3).map(|_| server.connect()).collect();
    for _ in &pool {
        assert_eq!(next(&mut events).kind, Kind::Opened);
    }
    for number in 0..9 {
        let client = &mut pool[number % 3];
        ask(client);
        let event = next(&mut events);
        assert_eq!((event.kind, event.open_now, event.port), (Kind::Requested, 3, server.port()));
        assert_eq!(event.client, client.local_addr().expect("an address"));
        std::thread::sleep(BURST);
    }
    assert_eq!((counts(&watcher).requests_total, counts(&watcher).opened_total), (9, 3));
    // An answer, an acknowledgement or an end is no request.
    drop(pool);
    for _ in 0..3 {
        assert_eq!(next(&mut events).kind, Kind::Closed);
    }
    assert_eq!(counts(&watcher).requests_total, 9);
}

#[test]
fn a_request_right_after_connecting_is_told_over_ipv4_and_ipv6() {
    for (address, to) in [("127.0.0.1:0", "127.0.0.1"), ("[::]:0", "::1"), ("[::]:0", "127.0.0.1")] {
        let Some(server) = Server::try_start(address) else { continue };
        let Some(watcher) = watch_requests(server.port()) else { return };
        let mut events = watcher.events();
        let mut client = TcpStream::connect((to, server.port())).expect("a connection");
        ask(&mut client);
        let told = [next(&mut events), next(&mut events)];
        assert_eq!(told.map(|event| event.kind), [Kind::Opened, Kind::Requested], "{to}");
        let client = client.local_addr().expect("an address");
        assert_eq!(told.map(|event| event.client), [client, client]);
    }
}

#[test]
fn a_request_that_ends_the_handshake_itself_is_told_as_an_opening() {
    let server = Server::start("127.0.0.1:0");
    let Some(watcher) = watch_requests(server.port()) else { return };
    let mut events = watcher.events();
    // Such a client's last part of the handshake waits for something to go with.
    let (socket, address) = bound(0);
    socket.set_tcp_quickack(false).expect("an option");
    let mut client = connected((socket, address), &server);
    ask(&mut client);
    assert_eq!(next(&mut events).kind, Kind::Opened);
    assert_eq!(counts(&watcher).requests_total, 0);
    ask(&mut client);
    assert_eq!(next(&mut events).kind, Kind::Requested);
}

#[test]
fn a_busy_port_tells_of_requests_once_in_ten_milliseconds_and_others_tell_nothing() {
    let (server, other) = (Server::start("127.0.0.1:0"), Server::start("127.0.0.1:0"));
    let Some(watcher) = watch_requests(server.port()) else { return };
    let mut clients: Vec<TcpStream> = (0..4).map(|_| server.connect()).collect();
    let mut elsewhere = other.connect();
    settles_at(&watcher, server.port(), 4);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(|| (0..200).for_each(|_| ask(client)));
        }
        scope.spawn(|| (0..200).for_each(|_| ask(&mut elsewhere)));
    });
    let most = u64::try_from(begin.elapsed().as_nanos() / BURST.as_nanos()).expect("some") + 1;
    let seen = eventually(|| counts(&watcher).requests_total, |requests| *requests >= 1);
    assert!((1..=most).contains(&seen), "{seen} requests told, at most {most} expected");
    let before = counts(&watcher).requests_total;
    (0..50).for_each(|_| ask(&mut elsewhere));
    assert_eq!(counts(&watcher).requests_total, before, "those to the other port");
}

#[test]
fn a_client_that_is_ignored_before_it_connects_is_never_told_of() {
    let server = Server::start("127.0.0.1:0");
    for settings in all(server.port()) {
        let watcher = watch(settings);
        let mut events = watcher.events();
        let (socket, address) = bound(0);
        watcher.ignore(address);
        let mut scraper = connected((socket, address), &server);
        ask(&mut scraper);
        // Somebody else's events come after those that must not come.
        let mut client = server.connect();
        settles_at_with(&watcher, server.port(), 1, 2);
        ask(&mut client);
        ask(&mut scraper);
        let told = next(&mut events);
        assert_eq!((told.kind, told.client), (Kind::Opened, client.local_addr().expect("an address")));
        drop(scraper);
        settles_at_with(&watcher, server.port(), 1, 1);
        drop(client);
        settles_at(&watcher, server.port(), 0);
        let seen = counts(&watcher);
        assert_eq!((seen.opened_total, seen.closed_total, seen.corrected), (1, 1, 0));
        while let Ok(event) = events.try_recv() {
            assert_ne!(event.client, address, "{event:?}");
        }
    }
}

#[test]
fn an_ignored_client_that_sends_all_the_time_does_not_hide_others() {
    let server = Server::start("127.0.0.1:0");
    let Some(watcher) = watch_requests(server.port()) else { return };
    let scraper = bound(0);
    watcher.ignore(scraper.1);
    let mut scraper = connected(scraper, &server);
    let mut client = server.connect();
    settles_at_with(&watcher, server.port(), 1, 2);
    let mut events = watcher.events();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Bounded, so that a failure is not waited for in vain.
            let begin = Instant::now();
            while !done.load(std::sync::atomic::Ordering::Relaxed)
                && begin.elapsed() < crate::support::PATIENCE
            {
                ask(&mut scraper);
            }
        });
        let told: Vec<SocketAddr> = (0..10)
            .map(|_| {
                std::thread::sleep(BURST);
                ask(&mut client);
                next(&mut events).client
            })
            .collect();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(told, [client.local_addr().expect("an address"); 10]);
    });
    assert_eq!(counts(&watcher).requests_total, 10);
}

/// As `settles_at`, where the kernel's table has more than is counted.
fn settles_at_with(watcher: &Watcher, port: u16, expected: u32, in_table: u32) {
    let read = || (counts(watcher).open, crate::established("/proc/self/net", port));
    assert_eq!(eventually(read, |both| *both == (expected, in_table)), (expected, in_table));
}

#[test]
fn a_client_ignored_while_connected_vanishes_and_its_port_counts_again_for_the_next() {
    let server = Server::start("127.0.0.1:0");
    for settings in all(server.port()) {
        let watcher = watch(WatchSettings { resync_every: Duration::from_millis(30), ..settings });
        let scraper = bound(0);
        let address = scraper.1;
        let mut scraper = connected(scraper, &server);
        settles_at(&watcher, server.port(), 1);
        let mut events = watcher.events();
        watcher.ignore(address);
        let seen = counts(&watcher);
        assert_eq!((seen.open, seen.opened_total, seen.closed_total), (0, 1, 1), "at once");
        // The table goes on having it, and does not bring it back.
        let resyncs = seen.resyncs;
        eventually(|| counts(&watcher).resyncs, |now| *now >= resyncs + 2);
        (0..3).for_each(|_| ask(&mut scraper));
        assert_eq!((counts(&watcher).open, counts(&watcher).requests_total), (0, 0));
        assert_eq!(events.try_recv(), Err(TryRecvError::Empty));
        drop(scraper);
        settles_at(&watcher, server.port(), 0);
        // By polling, that it has gone is found by the next reading.
        let resyncs = counts(&watcher).resyncs;
        eventually(|| counts(&watcher).resyncs, |now| *now >= resyncs + 2);
        let _again = connected(bound(address.port()), &server);
        settles_at(&watcher, server.port(), 1);
        assert_eq!((next(&mut events).kind, counts(&watcher).corrected), (Kind::Opened, 0));
    }
}

#[test]
fn without_requests_the_source_says_so_and_connections_are_told_all_the_same() {
    if !kernel_events() {
        return;
    }
    let server = Server::start("127.0.0.1:0");
    let watcher = watch(WatchSettings { requests: false, ..settings(server.port()) });
    assert_eq!(watcher.source(), Source::KernelEvents { requests: false });
    assert!(watcher.source().to_string().contains("requests over open connections are not seen"));
    let mut client = server.connect();
    settles_at(&watcher, server.port(), 1);
    (0..5).for_each(|_| ask(&mut client));
    drop(client);
    settles_at(&watcher, server.port(), 0);
    assert_eq!(counts(&watcher).requests_total, 0);
}

/// Nothing is asserted of the time: it is the machine's.
#[test]
fn latency_from_send_to_event_is_measured_and_printed() {
    let server = Server::start("127.0.0.1:0");
    let Some(watcher) = watch_requests(server.port()) else { return };
    let mut events = watcher.events();
    let mut client = server.connect();
    assert_eq!(next(&mut events).kind, Kind::Opened);
    let mut latencies: Vec<(Duration, Duration)> = (0..100)
        .map(|_| {
            std::thread::sleep(BURST);
            let begin = Instant::now();
            client.write_all(b"?").expect("a request");
            let event = events.blocking_recv().expect("an event");
            let times = (event.at.duration_since(begin), begin.elapsed());
            assert_eq!(event.kind, Kind::Requested);
            client.read_exact(&mut [0]).expect("an answer");
            times
        })
        .collect();
    latencies.sort_unstable();
    let show = |of: fn(&(Duration, Duration)) -> Duration| {
        let mut times: Vec<Duration> = latencies.iter().map(of).collect();
        times.sort_unstable();
        format!("p50 {:?}, p99 {:?}, max {:?}", times[50], times[98], times[99])
    };
    println!("send() to event seen: {}", show(|pair| pair.0));
    println!("send() to event received: {}", show(|pair| pair.1));
}

/// Runs of BPF programs of this process, and the time they took; the kernel counts if it is told to.
fn program_runs() -> (u64, Duration) {
    let (mut runs, mut time) = (0, 0);
    for file in std::fs::read_dir("/proc/self/fdinfo").expect("files").flatten() {
        let info = std::fs::read_to_string(file.path()).unwrap_or_default();
        let field =
            |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        runs += field("run_cnt:").unwrap_or(0);
        time += field("run_time_ns:").unwrap_or(0);
    }
    (runs, Duration::from_nanos(time))
}

#[test]
#[ignore = "a measurement: what watching costs at 10 000 segments a second, to the port and to another"]
fn cost_at_ten_thousand_segments_a_second() {
    const COUNTING: &str = "/proc/sys/kernel/bpf_stats_enabled";
    let (server, other) = (Server::start("127.0.0.1:0"), Server::start("127.0.0.1:0"));
    let Some(watcher) = watch_requests(server.port()) else { return };
    std::fs::write(COUNTING, "1").expect("root");
    let time = Duration::from_secs(5);
    for (what, server) in [("the watched port", &server), ("another port", &other)] {
        let mut client = server.connect();
        client.set_nodelay(true).expect("an option");
        let mut answers = client.try_clone().expect("a copy");
        std::thread::spawn(move || while answers.read(&mut [0; 4096]).is_ok_and(|length| length > 0) {});
        let thread = crate::network::thread_time("connections");
        let (requests, runs, begin) = (counts(&watcher).requests_total, program_runs(), Instant::now());
        let mut sent = 0_u32;
        while begin.elapsed() < time {
            client.write_all(b"?").expect("a request");
            sent += 1;
            std::thread::sleep((Duration::from_micros(100) * sent).saturating_sub(begin.elapsed()));
        }
        let elapsed = begin.elapsed();
        let thread = crate::network::thread_time("connections") - thread;
        let now = program_runs();
        let (runs, programs) = (now.0 - runs.0, now.1 - runs.1);
        let share = |part: Duration| 100.0 * part.div_duration_f64(elapsed);
        println!(
            "to {what}: {sent} segments sent in {elapsed:?}, {} told; {runs} runs of programs, {:?} each, {:.3} % of a core; \
             the watcher's thread {:.3} %",
            counts(&watcher).requests_total - requests,
            programs.div_f64(runs as f64),
            share(programs),
            share(thread),
        );
        client.shutdown(std::net::Shutdown::Both).expect("an end");
    }
    std::fs::write(COUNTING, "0").expect("root");
}
