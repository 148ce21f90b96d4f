//! Idleness: parked only if page and GPU agree, and woken by the GPU before the page shows the work.
#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::process::{Child, Command};
use std::time::Duration;

use nvidia_ml::{GpuConfig, MockConfig, Range, monotonic_ns};
use support::daemon::{Bench, Daemon, IDLE_MHZ};
use support::engine::Behaviour;
use support::eventually;

/// Time for the power to sink after parking, after which a rise counts: longer than the daemon's own.
const SUNK: Duration = Duration::from_millis(500);

fn wait_until_parked(bench: &Bench, daemon: &Daemon) {
    let lock = || bench.mock.locks(0).expect("GPU 0").core;
    let parked = Some(Range { min: IDLE_MHZ, max: IDLE_MHZ });
    assert_eq!(eventually(lock, |lock| *lock == parked), parked, "{}", daemon.tail());
}

/// Waits until the page has been scraped `pages` times more.
fn wait_for_pages(bench: &Bench, pages: u64) {
    let until = bench.engine.served() + pages;
    assert!(eventually(|| bench.engine.served(), |served| *served >= until) >= until);
}

/// Work comes to a parked GPU while the page still shows none: the time until its clocks are no longer the idle ones.
fn wake(bench: &Bench, daemon: &Daemon) -> Duration {
    let seen = bench.mock.history().len();
    let start = monotonic_ns();
    bench.mock.set_load(0, 1.0).expect("GPU 0");
    let write = || bench.mock.history().get(seen).cloned();
    let write = eventually(write, Option::is_some);
    assert!(write.is_some(), "not woken\n{}", daemon.tail());
    let write = write.expect("just seen");
    let took = Duration::from_nanos(write.at_ns - start);
    eprintln!("from work on the GPU to {} {:?}: {took:?}", write.call, write.args);
    assert!(bench.lock().is_none_or(|core| core > IDLE_MHZ), "woken into the idle clock\n{}", daemon.tail());
    took
}

/// The sensors as often as a default configuration reads them.
fn with_default_sensors(machine: &MockConfig) -> Bench {
    Bench::with(machine).set("idle.active_poll_ms", "100").set("idle.parked_poll_ms", "100")
}

#[test]
fn third_empty_window_parks_the_gpu_at_the_idle_clock() {
    let bench = Bench::new().set("idle.quiet_s", "0.125");
    let mut daemon = bench.start(&[]);
    wait_until_parked(&bench, &daemon);
    daemon.stop();
    let states: Vec<String> = bench.rounds().into_iter().filter_map(|round| round.state).collect();
    let parked = states.iter().position(|state| state == "IDLE");
    assert_eq!(parked, Some(2), "{states:?}");
    bench.assert_given_back(daemon.pid());
}

#[test]
fn work_on_a_parked_gpu_wakes_it_before_the_page_shows_any() {
    let bench = with_default_sensors(&MockConfig::default());
    let mut daemon = bench.serve(&[]);
    bench.engine.set_load(0.0);
    wait_until_parked(&bench, &daemon);
    std::thread::sleep(SUNK);
    let took = wake(&bench, &daemon);
    assert!(took < Duration::from_secs(1), "{took:?}");
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn work_that_comes_right_after_parking_wakes_as_fast() {
    let bench = with_default_sensors(&MockConfig::default());
    let mut daemon = bench.start(&[]);
    wait_until_parked(&bench, &daemon);
    let took = wake(&bench, &daemon);
    assert!(took < Duration::from_secs(1), "{took:?}");
    daemon.wait_for_log("utilisation rose: woken");
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn power_alone_wakes_a_gpu_without_a_utilisation_sensor() {
    let gpu = GpuConfig { utilization: false, ..GpuConfig::a100() };
    let bench = with_default_sensors(&MockConfig::new(vec![gpu]));
    let mut daemon = bench.start(&[]);
    wait_until_parked(&bench, &daemon);
    std::thread::sleep(SUNK);
    let took = wake(&bench, &daemon);
    assert!(took < Duration::from_secs(1), "{took:?}");
    daemon.wait_for_log("power rose: woken");
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn work_on_the_page_wakes() {
    let bench = Bench::new();
    let mut daemon = bench.start(&[]);
    wait_until_parked(&bench, &daemon);
    bench.engine.set_load(0.6);
    bench.wait_for_lock(&daemon);
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn empty_page_over_a_busy_gpu_is_never_parked() {
    let bench = Bench::new();
    bench.mock.set_load(0, 1.0).expect("GPU 0");
    let mut daemon = bench.start(&[]);
    wait_for_pages(&bench, 25);
    daemon.stop();
    assert!(bench.mock.history().iter().all(|write| write.args[1] != IDLE_MHZ), "{}", daemon.tail());
    bench.assert_given_back(daemon.pid());
}

#[test]
fn parking_that_is_switched_off_never_parks() {
    let bench = Bench::new().set("idle.enabled", "false");
    let mut daemon = bench.start(&[]);
    wait_for_pages(&bench, 15);
    daemon.stop();
    assert!(bench.mock.history().iter().all(|write| write.args[1] != IDLE_MHZ), "{}", daemon.tail());
    bench.assert_given_back(daemon.pid());
}

#[test]
fn engine_that_restarts_while_parked_is_woken_into_serving_clocks() {
    let bench = with_default_sensors(&MockConfig::default());
    let mut daemon = bench.serve(&[]);
    bench.engine.set_load(0.0);
    wait_until_parked(&bench, &daemon);
    bench.engine.restart();
    daemon.wait_for_log("engine restarted or counters reset");
    wait_for_pages(&bench, 10);
    wait_until_parked(&bench, &daemon);
    wake(&bench, &daemon);
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

/// Listens to the engine's clients too, and reads the sensors of a parked GPU once a second; `None`, said, where the
/// kernel does not tell of requests.
fn with_clients() -> Option<Bench> {
    with_clients_on(&MockConfig::default())
}

fn with_clients_on(machine: &MockConfig) -> Option<Bench> {
    let source = agft::connections::probe();
    if source != (agft::connections::Source::KernelEvents { requests: true }) {
        eprintln!("skipped: needs requests, and here is only {source}");
        return None;
    }
    Some(Bench::with(machine).set("idle.sources", "[metrics, utilization, connections]"))
}

fn client(bench: &Bench) -> TcpStream {
    let address = bench.engine.url().replace("http://", "").replace("/metrics", "");
    TcpStream::connect(address).expect("the engine")
}

fn ask(client: &mut TcpStream) {
    client.write_all(b"POST /v1/completions HTTP/1.1\r\n").expect("a request");
}

#[test]
fn request_over_a_connection_that_is_open_wakes_at_once_and_agfts_own_do_not() {
    let Some(bench) = with_clients() else { return };
    let mut daemon = bench.start(&[]);
    let mut client = client(&bench);
    wait_until_parked(&bench, &daemon);
    // Scrapes go on, over the connection that they always had.
    let seen = bench.mock.history().len();
    wait_for_pages(&bench, 30);
    assert_eq!(bench.mock.history().len(), seen, "{}", daemon.tail());
    let mut took = Vec::new();
    for _ in 0..4 {
        // What brings no work is parked again.
        wait_until_parked(&bench, &daemon);
        let seen = bench.mock.history().len();
        let start = monotonic_ns();
        ask(&mut client);
        let write = eventually(|| bench.mock.history().get(seen).cloned(), Option::is_some);
        let write = write.expect("not woken");
        took.push(Duration::from_nanos(write.at_ns - start));
    }
    eprintln!("from the request to the call that gives the clocks back: {took:?}");
    daemon.wait_for_log("a client asks: woken");
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

/// Levers are tried while the GPU is read once a second, and timed while it is read every 10 ms.
#[test]
#[ignore = "takes half a minute: a trial waits for real clocks"]
fn levers_are_measured_where_clients_are_heard() {
    let Some(bench) = with_clients_on(&MockConfig::new(vec![GpuConfig::a6000()])) else { return };
    let mut daemon = bench.start(&[]);
    daemon.wait_for_log("parking was measured");
    daemon.stop();
    let kept = std::fs::read_dir(bench.path("models")).expect("the models").flatten();
    let kept = kept.map(|entry| entry.path()).find(|path| path.to_string_lossy().contains("levers-"));
    let text = std::fs::read_to_string(kept.expect("a file of levers")).expect("readable");
    println!("{text}");
    for word in ["unparked_w", "\"core\"", "\"memory\"", "\"both\"", "wake_s"] {
        assert!(text.contains(word), "no {word} in {text}");
    }
    bench.assert_given_back(daemon.pid());
}

/// A busy loop, until dropped.
struct Spin(Child);

impl Spin {
    fn start() -> Self {
        Self(Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("a busy loop"))
    }
}

impl Drop for Spin {
    fn drop(&mut self) {
        let _ = (self.0.kill(), self.0.wait());
    }
}

/// From the request to the call that gives the clocks back, over and over, with a busy loop on each core.
#[test]
#[ignore = "takes some minutes: `cargo test --release --test idle -- --ignored --nocapture`"]
fn wakes_by_requests_in_figures() {
    let Some(bench) = with_clients() else { return };
    // Each request finds the GPU parked: that shall not be a reason to wait longer and longer.
    let bench = bench.set("idle.max_ttft_rise_percent", "1000");
    let mut daemon = bench.start(&[]);
    let mut client = client(&bench);
    for busy in [false, true] {
        let cores = if busy { std::thread::available_parallelism().map_or(1, usize::from) } else { 0 };
        let loops: Vec<Spin> = (0..cores).map(|_| Spin::start()).collect();
        let mut took: Vec<u64> = (0..100)
            .map(|_| {
                wait_until_parked(&bench, &daemon);
                let seen = bench.mock.history().len();
                let start = monotonic_ns();
                ask(&mut client);
                let write = eventually(|| bench.mock.history().get(seen).cloned(), Option::is_some);
                // Work comes of it: a client whose calls bring none would not be listened to for long.
                bench.engine.set_load(0.5);
                wait_for_pages(&bench, 4);
                bench.engine.set_load(0.0);
                write.expect("not woken").at_ns.saturating_sub(start)
            })
            .collect();
        drop(loops);
        took.sort_unstable();
        let at =
            |percent: usize| Duration::from_nanos(took[(took.len() * percent / 100).min(took.len() - 1)]);
        println!("{cores} busy loops: p50 {:?}, p99 {:?}, longest {:?}", at(50), at(99), at(100));
    }
    daemon.stop();
}

#[test]
fn health_check_that_never_brings_work_wakes_five_times_and_no_more() {
    let Some(bench) = with_clients() else { return };
    // Calls are judged after three seconds.
    let judged = Duration::from_millis(3200);
    let mut daemon = bench.start(&[]);
    let unheard = || daemon.log().contains("its calls never bring work");
    // A scrape that is lost on a busy machine is an outage, in which nobody is judged: then it takes more calls.
    let calls = (0..15).take_while(|_| {
        wait_until_parked(&bench, &daemon);
        ask(&mut client(&bench));
        std::thread::sleep(judged);
        !unheard()
    });
    assert!((5..15).contains(&calls.count()), "{}", daemon.tail());
    wait_until_parked(&bench, &daemon);
    let seen = bench.mock.history().len();
    ask(&mut client(&bench));
    wait_for_pages(&bench, 20);
    assert_eq!(bench.mock.history().len(), seen, "{}", daemon.tail());
    daemon.stop();
}

/// A page of requests that were aborted: its gauges stay, and nothing moves.
const STALE: &str = "vllm:num_requests_running{engine=\"0\"} 106\nvllm:num_requests_waiting{engine=\"0\"} 15\n\
                     vllm:prompt_tokens_total{engine=\"0\"} 3680\nvllm:generation_tokens_total{engine=\"0\"} 920\n";

#[test]
fn stale_gauges_of_aborted_requests_are_parked_over() {
    let bench = Bench::new();
    bench.engine.behave(Behaviour::Body(STALE));
    let mut daemon = bench.start(&[]);
    let parked = || bench.lock() == Some(IDLE_MHZ);
    std::thread::sleep(Duration::from_secs(20));
    assert!(!parked(), "gauges are believed for 30 s");
    let said = || daemon.log().contains("the gauges look stale");
    let found = eventually(|| parked() && said(), |found| *found);
    assert!(found, "{}", daemon.tail());
    wake(&bench, &daemon);
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}
