//! The tracepoint through `perf_event_open(2)`, where there is no BPF; and from one source to another and back.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use agft::connections::{Kind, Sabotage, Source, SourceKind, WatchSettings, Watcher};
use tokio::sync::broadcast::error::TryRecvError;

use crate::network::Server;
use crate::support::eventually;
use crate::{counts, kernel_events, settings, settles_at, watch};

const FORMAT: &str = "events/sock/inet_sock_set_state";

/// A directory with what is read of tracefs. Where it is not mounted, root mounts it for as long as it takes to copy that.
pub(crate) fn tracefs() -> Option<PathBuf> {
    static PLACE: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
        let usual = PathBuf::from("/sys/kernel/tracing");
        if fs::read(usual.join(FORMAT).join("format")).is_ok() {
            return Some(usual);
        }
        let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("tracefs-{}", std::process::id()));
        let (mounted, copy) = (place.join("mounted"), place.join("copy"));
        fs::create_dir_all(&mounted)
            .and_then(|()| fs::create_dir_all(copy.join(FORMAT)))
            .expect("directories");
        let run = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            command.args(arguments).arg(&mounted);
            command.output().is_ok_and(|output| output.status.success())
        };
        if !run("mount", &["-t", "tracefs", "tracefs"]) {
            eprintln!("skipped: tracefs is not mounted and cannot be");
            return None;
        }
        let copied = fs::copy(mounted.join(FORMAT).join("format"), copy.join(FORMAT).join("format"));
        assert!(run("umount", &[]), "{} stays mounted", mounted.display());
        copied.is_ok().then_some(copy)
    });
    PLACE.clone()
}

/// Settings for perf events; says why there are none.
pub(crate) fn perf(port: u16) -> Option<WatchSettings> {
    let settings = WatchSettings {
        force_source: Some(SourceKind::PerfEvents),
        tracefs: Some(tracefs()?),
        ..settings(port)
    };
    match watch(settings.clone()).source() {
        Source::PerfEvents { .. } => Some(settings),
        other => {
            eprintln!("skipped: needs perf events, and here is only {other}");
            None
        }
    }
}

#[test]
fn of_a_thousand_short_connections_from_many_cpus_hardly_one_is_merged_with_another() {
    let server = Server::start("127.0.0.1:0");
    let Some(settings) = perf(server.port()) else { return };
    let watcher = watch(settings);
    let number = 1000;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..number / 4).for_each(|_| drop(server.connect())));
        }
    });
    settles_at(&watcher, server.port(), 0);
    let end = eventually(|| counts(&watcher), |counts| counts.closed_total == number);
    // Each CPU has a ring of its own: of two connections from one client port, microseconds apart, the second may be told of
    // before the end of the first, and is then taken for the same. What is open is right all the same.
    assert!(end.opened_total > number - number / 50 && end.opened_total <= number, "{end:?}");
    assert_eq!((end.open, end.closed_total, end.lost), (0, end.opened_total, 0), "{end:?}");
}

#[test]
fn readings_of_the_table_among_perf_events_find_nothing_to_correct_and_nothing_twice() {
    let server = Server::start("127.0.0.1:0");
    let Some(settings) = perf(server.port()) else { return };
    let watcher = watch(WatchSettings { resync_every: Duration::from_millis(3), ..settings });
    let mut events = watcher.events();
    let kept: Vec<TcpStream> = (0..50).map(|_| server.connect()).collect();
    (0..300).for_each(|_| drop(server.connect()));
    settles_at(&watcher, server.port(), 50);
    let seen = counts(&watcher);
    assert_eq!((seen.opened_total, seen.closed_total, seen.corrected), (350, 300, 0), "{seen:?}");
    assert!(seen.resyncs > 1, "{seen:?}");
    drop(kept);
    settles_at(&watcher, server.port(), 0);
    let told =
        std::iter::from_fn(|| events.try_recv().ok()).filter(|event| event.kind == Kind::Opened).count();
    assert_eq!((told, events.try_recv()), (350, Err(TryRecvError::Empty)));
}

#[test]
fn rings_that_run_over_are_noticed_and_the_count_made_right() {
    let server = Server::start("127.0.0.1:0");
    let Some(settings) = perf(server.port()) else { return };
    let watcher = watch(WatchSettings { ring_bytes: 4096, ..settings });
    let before: Vec<TcpStream> = (0..20).map(|_| server.connect()).collect();
    settles_at(&watcher, server.port(), 20);
    watcher.sabotage(Sabotage::Stall(Duration::from_millis(700)));
    // A page holds some 40 events. Lost are openings and endings.
    let after: Vec<TcpStream> = (0..300).map(|_| server.connect()).collect();
    drop(before);
    settles_at(&watcher, server.port(), 300);
    let seen = eventually(|| counts(&watcher), |counts| counts.lost > 0);
    assert!(seen.lost > 0 && seen.corrected > 0, "{seen:?}");
    assert_eq!(watcher.source().kind(), SourceKind::PerfEvents, "a loss is no reason to give up");
    drop(after);
    settles_at(&watcher, server.port(), 0);
}

#[test]
fn a_chosen_namespace_is_not_watched_by_what_cannot_tell_namespaces() {
    let server = Server::start("127.0.0.1:0");
    let Some(settings) = perf(server.port()) else { return };
    let watcher = watch(WatchSettings { netns: Some("/proc/self/ns/net".into()), ..settings });
    let source = watcher.source().to_string();
    assert!(source.contains("nor perf events: they do not tell of the network namespace"), "{source}");
    let client = server.connect();
    settles_at(&watcher, server.port(), 1);
    drop(client);
}

#[test]
fn without_the_kernels_types_perf_events_are_used_and_without_tracefs_polling_each_with_its_reason() {
    let server = Server::start("127.0.0.1:0");
    let Some(settings) = perf(server.port()) else { return };
    let settings = WatchSettings { force_source: None, kernel_types: "/nowhere/vmlinux".into(), ..settings };
    let watcher = watch(settings.clone());
    let Source::PerfEvents { why } = watcher.source() else { panic!("{}", watcher.source()) };
    assert!(
        why.contains("no type information (/nowhere/vmlinux)") && why.contains("CONFIG_DEBUG_INFO_BTF"),
        "{why}"
    );
    let client = server.connect();
    settles_at(&watcher, server.port(), 1);

    let polling = watch(WatchSettings { tracefs: Some("/nowhere/tracing".into()), ..settings });
    let Source::Polling { why, .. } = polling.source() else { panic!("{}", polling.source()) };
    assert!(why.contains("no type information"), "{why}");
    assert!(
        why.contains("; nor perf events: no tracefs at /nowhere/tracing; mount it (mount -t tracefs"),
        "{why}"
    );
    drop(client);
    settles_at(&polling, server.port(), 0);
}

/// A watcher that climbs back within a moment.
fn impatient(settings: WatchSettings) -> Watcher {
    watch(WatchSettings {
        resync_every: Duration::from_millis(50),
        poll_every: Duration::from_millis(20),
        retry_after: Duration::from_millis(400),
        retry_at_most: Duration::from_millis(400),
        ..settings
    })
}

/// Connects now and then until the source is of this kind.
fn until(watcher: &Watcher, server: &Server, clients: &mut Vec<TcpStream>, kind: SourceKind) {
    let source = eventually(
        || {
            clients.push(server.connect());
            std::thread::sleep(Duration::from_millis(30));
            watcher.source()
        },
        |source| source.kind() == kind,
    );
    assert_eq!(source.kind(), kind, "{source}");
}

#[test]
fn a_source_that_was_lost_is_tried_again_and_taken_when_it_is_back() {
    let server = Server::start("127.0.0.1:0");
    let mut all: Vec<WatchSettings> = perf(server.port()).into_iter().collect();
    if kernel_events() {
        all.push(WatchSettings { tracefs: Some("/nowhere".into()), ..settings(server.port()) });
    }
    for settings in all {
        let watcher = impatient(settings);
        let best = watcher.source().kind();
        let mut clients = Vec::new();
        watcher.sabotage(Sabotage::DetachForGood);
        until(&watcher, &server, &mut clients, SourceKind::Polling);
        watcher.sabotage(Sabotage::Mend);
        until(&watcher, &server, &mut clients, best);
        // It counts as before, and from events.
        settles_at(&watcher, server.port(), u32::try_from(clients.len()).expect("few"));
        let corrected = counts(&watcher).corrected;
        drop(clients);
        settles_at(&watcher, server.port(), 0);
        let seen = counts(&watcher);
        assert_eq!((seen.corrected, seen.opened_total), (corrected, seen.closed_total));
    }
}

#[test]
fn from_bpf_the_next_best_is_perf_and_bpf_is_taken_again_after_it() {
    let server = Server::start("127.0.0.1:0");
    let Some(settings) = perf(server.port()) else { return };
    if !kernel_events() {
        return;
    }
    let watcher = impatient(WatchSettings { force_source: None, ..settings });
    assert_eq!(watcher.source().kind(), SourceKind::KernelEvents);
    let mut clients = vec![server.connect()];
    // Every event is thrown away: what is attached anew tells no more than before.
    watcher.sabotage(Sabotage::Discard(true));
    until(&watcher, &server, &mut clients, SourceKind::PerfEvents);
    watcher.sabotage(Sabotage::Discard(false));
    settles_at(&watcher, server.port(), u32::try_from(clients.len()).expect("few"));
    until(&watcher, &server, &mut clients, SourceKind::KernelEvents);
    settles_at(&watcher, server.port(), u32::try_from(clients.len()).expect("few"));
    drop(clients);
    settles_at(&watcher, server.port(), 0);
}
