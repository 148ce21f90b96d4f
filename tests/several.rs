//! One process for a host: several servers, each with GPUs of its own.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::time::{Duration, Instant};

use agft::stats::Durations;
use nvidia_ml::{GpuConfig, Injection, MockConfig};
use rustix::process::Signal;

use support::daemon::{Bench, Daemon, IDLE_MHZ};
use support::engine::Behaviour;
use support::eventually;

/// A host with eight GPUs and three servers, the first on two GPUs. The others are parked, but for the last, which works for
/// somebody unknown.
fn host() -> Bench {
    let bench = Bench::with(&MockConfig::uniform(&GpuConfig::a100(), 8));
    bench.mock.set_load(7, 0.5).unwrap();
    bench
        .server("chat", &[0, 1], "")
        .server("code", &[2], ", policy: linucb, control: {seed: 7}")
        .server("batch", &[3], ", tpot_limit: 0.5")
        .set("park.others", "true")
        .parks_soon()
}

/// The GPUs of no server that nobody uses.
const IDLE: [usize; 3] = [4, 5, 6];

fn is_at_work(bench: &Bench, gpu: usize) -> bool {
    bench.core(gpu).is_some_and(|core| core > IDLE_MHZ)
}

/// All servers at work, and a clock locked on each of their GPUs.
fn serving(bench: &Bench) -> Daemon {
    bench.servers.iter().for_each(|server| server.set_load(0.6));
    let daemon = bench.start(&[]);
    for gpu in 0..4 {
        let locked = eventually(|| is_at_work(bench, gpu), |locked| *locked);
        assert!(locked, "GPU {gpu} is not locked\n{}", daemon.tail());
    }
    for gpu in IDLE {
        let parked = eventually(|| bench.core(gpu), |core| *core == Some(IDLE_MHZ));
        assert_eq!(parked, Some(IDLE_MHZ), "GPU {gpu} is not parked\n{}", daemon.tail());
    }
    daemon
}

#[test]
fn each_server_learns_for_itself_and_all_clocks_come_back_at_the_end() {
    let bench = host();
    let mut daemon = serving(&bench);
    assert_eq!(bench.core(0), bench.core(1), "GPUs of one server have one clock");
    assert_eq!(bench.core(7), None, "it works");
    for name in ["chat", "code", "batch"] {
        let metadata = bench.path(&format!("models/{name}/model_metadata.json"));
        assert!(eventually(|| metadata.exists(), |there| *there), "{name}: no model\n{}", daemon.tail());
    }
    daemon.stop();
    assert!(bench.is_free());
    assert!(bench.journals().is_empty());
    for name in ["chat", "code", "batch"] {
        assert_eq!(std::fs::read_dir(bench.path(&format!("runs/{name}"))).unwrap().count(), 1, "{name}");
    }
}

#[test]
fn gpu_of_no_server_wakes_and_parks_for_itself() {
    let bench = host();
    let daemon = serving(&bench);
    bench.mock.set_load(5, 0.7).unwrap();
    assert_eq!(eventually(|| bench.core(5), Option::is_none), None, "{}", daemon.tail());
    assert_eq!((bench.core(4), bench.core(6)), (Some(IDLE_MHZ), Some(IDLE_MHZ)));
    bench.mock.set_load(5, 0.0).unwrap();
    let parked = eventually(|| bench.core(5), Option::is_some);
    assert_eq!(parked, Some(IDLE_MHZ), "{}", daemon.tail());
}

#[test]
fn killed_process_leaves_no_gpu_locked_for_a_second() {
    let bench = host();
    let mut daemon = serving(&bench);
    daemon.signal(Signal::KILL);
    let killed = Instant::now();
    while !bench.is_free() {
        assert!(killed.elapsed() < Duration::from_secs(1), "still locked\n{}", daemon.tail());
        std::thread::sleep(Duration::from_millis(1));
    }
    daemon.wait();
}

#[test]
fn idle_server_is_parked_while_the_others_work() {
    let bench = host();
    let daemon = serving(&bench);
    bench.servers[1].set_load(0.0);
    let parked = eventually(|| bench.core(2), |core| *core == Some(IDLE_MHZ));
    assert_eq!(parked, Some(IDLE_MHZ), "{}", daemon.tail());
    assert!(is_at_work(&bench, 0) && is_at_work(&bench, 3));
    bench.servers[1].set_load(0.6);
    let woken = eventually(|| bench.core(2), |core| *core != Some(IDLE_MHZ));
    assert_ne!(woken, Some(IDLE_MHZ), "{}", daemon.tail());
}

#[test]
fn outage_of_one_server_gives_back_its_clocks_alone() {
    let bench = host();
    let daemon = serving(&bench);
    bench.servers[0].behave(Behaviour::Hang);
    let free = eventually(|| (bench.core(0), bench.core(1)), |cores| *cores == (None, None));
    assert_eq!(free, (None, None), "{}", daemon.tail());
    bench.goes_on(2, &daemon);
    bench.goes_on(3, &daemon);
    bench.servers[0].behave(Behaviour::Serve);
    assert!(eventually(|| is_at_work(&bench, 1), |locked| *locked), "{}", daemon.tail());
}

#[test]
fn lost_gpu_takes_its_own_server_out_and_no_other() {
    let bench = host();
    let mut daemon = serving(&bench);
    bench.mock.set_lost(2, true).unwrap();
    bench.mock.set_lost(4, true).unwrap();
    bench.goes_on(3, &daemon);
    bench.goes_on(0, &daemon);
    assert!(daemon.is_running());
    daemon.signal(Signal::TERM);
    // What was locked on the lost GPU could not be given back.
    assert_eq!(daemon.wait().code(), Some(1), "{}", daemon.tail());
    assert!(bench.mock.locks(0).unwrap().core.is_none() && bench.mock.locks(3).unwrap().core.is_none());
}

#[test]
fn driver_call_that_hangs_for_one_gpu_stops_no_other_and_its_clocks_come_back() {
    let bench = host();
    let mut daemon = serving(&bench);
    let hang = Injection::delay("nvmlDeviceSetGpuLockedClocks", Duration::from_secs(20)).on(2).times(1);
    bench.mock.inject(&hang).unwrap();
    daemon.wait_for_log("stuck: the guardian gives the clocks back");
    daemon.wait_for_log("left alone; the others go on");
    assert_eq!(eventually(|| bench.core(2), Option::is_none), None, "{}", daemon.tail());
    bench.goes_on(3, &daemon);
    bench.goes_on(0, &daemon);
    assert!(daemon.is_running());
    daemon.stop();
    assert!(bench.is_free());
}

/// The 99th percentile of a server's tick lateness since its start, seconds, as a bucket's upper bound.
fn lateness_p99(bench: &Bench, server: &str) -> f64 {
    let status = bench.run(&["status", "--json", "--server", server]);
    let host: serde_json::Value = serde_json::from_str(&status.out).unwrap();
    let lateness: Durations = serde_json::from_value(host["servers"][0]["lateness"].clone()).unwrap();
    let buckets = lateness.buckets();
    let all: u64 = buckets.iter().map(|(_, count)| count).sum();
    let mut seen = 0;
    let below = |(_, count): &&(f64, u64)| {
        seen += count;
        seen * 100 >= all * 99
    };
    buckets.iter().find(below).unwrap().0
}

/// Figures of one run, for a quiet machine: `cargo test --release --test several lateness -- --ignored --nocapture`.
#[test]
#[ignore = "measures: on a machine that has other things to do it says nothing"]
fn lateness_beside_an_outage_a_lost_gpu_and_a_hung_call() {
    let bench = host().set("control.decision_interval_s", "0.3").set("vllm.outage_after_s", "1");
    let daemon = serving(&bench);
    std::thread::sleep(Duration::from_secs(30));
    let before = lateness_p99(&bench, "batch");
    bench.servers[0].behave(Behaviour::Hang);
    bench.mock.set_lost(4, true).unwrap();
    let hang = Injection::delay("nvmlDeviceSetGpuLockedClocks", Duration::from_secs(20)).on(2);
    bench.mock.inject(&hang).unwrap();
    let sensors = Injection::delay("nvmlDeviceGetUtilizationRates", Duration::from_secs(20)).on(5);
    bench.mock.inject(&sensors).unwrap();
    std::thread::sleep(Duration::from_secs(60));
    let after = lateness_p99(&bench, "batch");
    println!("tick lateness of batch, p99: {before} s in good times, {after} s beside three faults");
    assert!(after <= 0.010, "{after}\n{}", daemon.tail());
}

/// Two servers on GPU 0, one of them on GPU 1 too.
fn shared() -> Bench {
    Bench::with(&MockConfig::uniform(&GpuConfig::a100(), 2))
        .server("chat", &[0, 1], ", tpot_limit: 0.5")
        .server("code", &[0], "")
}

#[test]
fn gpu_of_two_servers_is_parked_when_both_are_idle_and_given_back_when_one_is_out() {
    let bench = shared();
    bench.servers.iter().for_each(|server| server.set_load(0.6));
    let mut daemon = bench.start(&[]);
    daemon.wait_for_log("these servers share GPUs");
    for gpu in 0..2 {
        assert!(eventually(|| is_at_work(&bench, gpu), |locked| *locked), "{}", daemon.tail());
    }
    // One of them is idle: nothing is parked.
    bench.servers[0].set_load(0.0);
    let busy_from = Instant::now();
    while busy_from.elapsed() < Duration::from_secs(3) {
        assert_ne!(bench.core(0), Some(IDLE_MHZ), "parked under load\n{}", daemon.tail());
        std::thread::sleep(Duration::from_millis(5));
    }
    bench.servers[1].set_load(0.0);
    for gpu in 0..2 {
        let parked = eventually(|| bench.core(gpu), |core| *core == Some(IDLE_MHZ));
        assert_eq!(parked, Some(IDLE_MHZ), "{}", daemon.tail());
    }
    bench.servers[0].set_load(0.6);
    let woken = eventually(|| bench.core(0), |core| *core != Some(IDLE_MHZ));
    assert_ne!(woken, Some(IDLE_MHZ), "{}", daemon.tail());
    assert!(eventually(|| is_at_work(&bench, 0), |locked| *locked), "{}", daemon.tail());
    bench.servers[1].behave(Behaviour::Hang);
    let free = eventually(|| (bench.core(0), bench.core(1)), |cores| *cores == (None, None));
    assert_eq!(free, (None, None), "{}", daemon.tail());
    bench.servers[1].behave(Behaviour::Serve);
    assert!(eventually(|| is_at_work(&bench, 1), |locked| *locked), "{}", daemon.tail());
    daemon.stop();
    assert!(bench.is_free() && bench.journals().is_empty());
    for dir in ["models", "runs"] {
        let inside: Vec<_> =
            std::fs::read_dir(bench.path(dir)).unwrap().map(|dir| dir.unwrap().file_name()).collect();
        assert_eq!(inside, ["chat+code"], "{dir}");
    }
    let run = std::fs::read_dir(bench.path("runs/chat+code")).unwrap().next().unwrap().unwrap().path();
    let replayed = bench.run(&["replay", run.to_str().unwrap()]);
    assert!(replayed.out.contains("every step came out the same, bit for bit"), "{}", replayed.out);
}

#[test]
fn servers_that_want_what_one_clock_cannot_give_both_are_refused() {
    let bench = Bench::with(&MockConfig::default()).server("chat", &[0], "").server(
        "code",
        &[0],
        ", objective: energy",
    );
    let ended = bench.run(&[]);
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    for part in ["chat", "code", "control.objective", "give both the same value"] {
        assert!(ended.err.contains(part), "{}", ended.err);
    }
    assert!(bench.mock.history().is_empty());
}

#[test]
fn reload_takes_up_the_limits_of_one_of_two_servers_on_a_gpu() {
    let mut bench = Bench::with(&MockConfig::default());
    bench.change("control.ttft_limit", "5");
    let bench = bench.server("chat", &[0], "").server("code", &[0], "");
    bench.servers.iter().for_each(|server| server.set_load(0.6));
    let daemon = bench.start(&[]);
    bench.wait_for_lock(&daemon);
    let text = std::fs::read_to_string(bench.path("config.yaml")).unwrap();
    let (head, tail) = text.split_once("{name: code,").unwrap();
    // No engine is that fast.
    let text = format!("{head}{{name: code, tpot_limit: 0.001,{tail}");
    std::fs::write(bench.path("config.yaml"), text).unwrap();
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("takes effect now sharer=\"code\" key=\"control.tpot_limit\"");
    daemon.wait_for_log("latency limit broken");
}
