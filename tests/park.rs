//! `agft park` without any engine: parks, wakes, and gives the clocks back, through the real program on mocked boards.
#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod support;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use nvidia_ml::{GpuConfig, Injection, MockConfig, Range};
use rustix::process::Signal;
use support::daemon::{Bench, Daemon};
use support::eventually;
use support::parking::{LOWEST, a100, core, parked, quick, wait_for_core};

const SET_CORE: &str = "nvmlDeviceSetGpuLockedClocks";
const RESET_CORE: &str = "nvmlDeviceResetGpuLockedClocks";
const UTILIZATION: &str = "nvmlDeviceGetUtilizationRates";
const NOT_SUPPORTED: u32 = 3;
const LOST: u32 = 15;
const UNKNOWN: u32 = 999;

fn load(bench: &Bench, gpu: usize, load: f64) {
    bench.mock.set_load(gpu, load).expect("a GPU of this machine");
}

#[test]
fn quiet_gpu_is_parked_and_work_wakes_it_and_the_books_say_so() {
    // Long enough to measure the idle power, which settles for a second.
    let bench = a100().set("park.timeout_s", "1.5").set("park.at_start", "false");
    let mut daemon = parked(&bench, &[]);
    let seen = bench.mock.history().len();
    std::thread::sleep(Duration::from_millis(500));
    // Parked is parked: nothing is written again.
    assert_eq!(bench.mock.history().len(), seen, "{}", daemon.tail());
    load(&bench, 0, 0.8);
    wait_for_core(&bench, &daemon, 0, None);
    daemon.wait_for_log("clocks are back");
    // As long as there is work it is not parked again.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(core(&bench, 0), None);
    load(&bench, 0, 0.0);
    wait_for_core(&bench, &daemon, 0, Some(LOWEST));
    daemon.stop();
    bench.assert_given_back(daemon.pid());
    let log = daemon.log();
    let summary = log.lines().find(|line| line.contains("SUMMARY")).expect("a summary");
    for part in ["in 2 spells", "1 woken by utilization", "idle 80.0 W", "saved about "] {
        assert!(summary.contains(part), "no {part:?} in {summary}");
    }
    assert!(!summary.contains("saved about -"), "{summary}");
}

#[test]
fn gpu_that_works_at_the_start_is_not_parked() {
    let bench = a100();
    load(&bench, 0, 0.05);
    let mut daemon = bench.start(&["park"]);
    daemon.wait_for_log("may be parked");
    std::thread::sleep(Duration::from_secs(1));
    assert!(bench.mock.history().iter().all(|write| write.call != SET_CORE), "{}", daemon.tail());
    daemon.stop();
}

#[test]
fn every_gpu_is_parked_by_itself_and_one_that_is_not_named_is_left_alone() {
    let bench = quick(&MockConfig::uniform(&GpuConfig::a100(), 4));
    load(&bench, 2, 0.5);
    let mut daemon = bench.start(&["park", "--gpus", "1,2,3"]);
    wait_for_core(&bench, &daemon, 1, Some(LOWEST));
    wait_for_core(&bench, &daemon, 3, Some(LOWEST));
    assert_eq!(core(&bench, 2), None);
    load(&bench, 3, 0.5);
    wait_for_core(&bench, &daemon, 3, None);
    assert_eq!(core(&bench, 1), Some(LOWEST));
    daemon.stop();
    assert!(bench.is_free());
    assert!(bench.mock.history().iter().all(|write| write.gpu != 0), "GPU 0 was written to");
    let other = bench.run(&["park", "--gpus", "4"]);
    assert_eq!(other.code, Some(1), "{other:?}");
    assert!(other.err.contains("no GPU 4"), "{other:?}");
}

#[test]
fn board_that_lists_no_clocks_is_named_with_the_remedy_and_the_others_are_parked() {
    let bench = quick(&MockConfig::uniform(&GpuConfig::a100(), 2));
    let unlisted = Injection::error("nvmlDeviceGetSupportedMemoryClocks", NOT_SUPPORTED).on(1);
    bench.mock.inject(&unlisted).expect("a free slot");
    let mut daemon = bench.start(&["park"]);
    wait_for_core(&bench, &daemon, 0, Some(LOWEST));
    let remedy = "the driver lists no clocks; leave it out of park.gpus";
    daemon.wait_for_log(remedy);
    daemon.stop();
    let named = bench.run(&["park", "--gpus", "1"]);
    assert_eq!(named.code, Some(1), "{named:?}");
    assert!(named.err.contains(remedy), "{named:?}");
}

#[test]
fn hot_gpu_is_parked_under_load_until_it_is_down_to_the_lower_limit() {
    let bench = a100().set("park.temperature_high_c", "80");
    load(&bench, 0, 1.0);
    bench.mock.set_temperature(0, 80).expect("GPU 0");
    let mut daemon = bench.start(&["park"]);
    daemon.wait_for_log("may be parked");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(core(&bench, 0), None, "80 is not above 80");
    bench.mock.set_temperature(0, 81).expect("GPU 0");
    wait_for_core(&bench, &daemon, 0, Some(LOWEST));
    bench.mock.set_temperature(0, 76).expect("GPU 0");
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(core(&bench, 0), Some(LOWEST), "76 is above 75");
    bench.mock.set_temperature(0, 75).expect("GPU 0");
    wait_for_core(&bench, &daemon, 0, None);
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn memory_goes_down_where_the_board_can_and_the_levers_are_obeyed() {
    let a6000 = MockConfig::new(vec![GpuConfig::a6000()]);
    let locks = |lever: &str| {
        let bench = quick(&a6000).set("park.lever", lever);
        let mut daemon = bench.start(&["park"]);
        let locks = || bench.mock.locks(0).expect("GPU 0");
        let locked = eventually(locks, |locks| locks.core.is_some());
        daemon.stop();
        bench.assert_given_back(daemon.pid());
        (locked.core, locked.memory)
    };
    let low = Some(Range { min: 405, max: 405 });
    assert_eq!(locks("auto"), (Some(LOWEST), None), "the simplest first");
    assert_eq!(locks("both"), (Some(LOWEST), low));
    assert_eq!(locks("core"), (Some(LOWEST), None));
    // All of the core clocks: the driver's choice.
    assert_eq!(locks("memory"), (Some(Range { min: 210, max: 2100 }), low));
}

#[test]
fn connection_to_a_port_wakes_and_keeps_awake_without_any_utilisation() {
    let server = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = server.local_addr().expect("its address");
    let bench = a100();
    let mut daemon = parked(&bench, &["--port", &address.port().to_string()]);
    let client = TcpStream::connect(address).expect("a connection");
    let (served, _) = server.accept().expect("its other end");
    wait_for_core(&bench, &daemon, 0, None);
    daemon.wait_for_log("by=connections (1 open)");
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(core(&bench, 0), None, "parked with an open connection\n{}", daemon.tail());
    drop((client, served));
    wait_for_core(&bench, &daemon, 0, Some(LOWEST));
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn clocks_come_back_whoever_ends_the_run() {
    let bench = quick(&MockConfig::uniform(&GpuConfig::a100(), 2));
    for signal in [Signal::TERM, Signal::INT, Signal::KILL] {
        let mut daemon = parked(&bench, &[]);
        wait_for_core(&bench, &daemon, 1, Some(LOWEST));
        let start = Instant::now();
        daemon.signal(signal);
        assert!(eventually(|| bench.is_free(), |free| *free), "{signal:?}\n{}", daemon.tail());
        assert!(start.elapsed() < Duration::from_secs(5), "{signal:?} took {:?}", start.elapsed());
        let code = daemon.wait().code();
        assert_eq!(code, (signal != Signal::KILL).then_some(0), "{signal:?}\n{}", daemon.tail());
        assert!(eventually(|| bench.journals().is_empty(), |none| *none), "{signal:?} left a journal");
    }
}

#[test]
fn crash_while_parked_gives_the_clocks_back() {
    let bench = a100();
    // About two seconds of turns: parked before the first of them is over.
    let mut daemon = Daemon::start(bench.command(&["--panic-at-tick", "60", "park"]));
    wait_for_core(&bench, &daemon, 0, Some(LOWEST));
    assert_eq!(daemon.wait().code(), Some(101), "{}", daemon.tail());
    assert!(eventually(|| bench.is_free(), |free| *free), "{}", daemon.tail());
}

#[test]
fn second_agft_on_a_parked_gpu_is_refused() {
    let bench = a100();
    let mut daemon = parked(&bench, &[]);
    for arguments in [&["park"][..], &[][..]] {
        let second = bench.run(arguments);
        assert_eq!(second.code, Some(69), "{second:?}");
        assert!(second.err.contains(&format!("pid {}", daemon.pid())), "{second:?}");
    }
    assert_eq!(core(&bench, 0), Some(LOWEST));
    daemon.stop();
}

#[test]
fn lock_that_fails_leaves_nothing_locked_and_the_run_goes_on() {
    let bench = quick(&MockConfig::new(vec![GpuConfig::a6000()]));
    // The memory clock is locked by then.
    bench.mock.inject(&Injection::error(SET_CORE, UNKNOWN)).expect("a free slot");
    let mut daemon = bench.start(&["park"]);
    daemon.wait_for_log("not parked: the clocks are the driver's");
    assert!(bench.is_free(), "{}", daemon.tail());
    assert!(daemon.is_running());
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn gpu_that_is_lost_while_parked_is_woken_and_waited_out() {
    let bench = quick(&MockConfig::uniform(&GpuConfig::a100(), 2));
    let mut daemon = parked(&bench, &[]);
    wait_for_core(&bench, &daemon, 1, Some(LOWEST));
    bench.mock.inject(&Injection::error(UTILIZATION, LOST).on(1)).expect("a free slot");
    wait_for_core(&bench, &daemon, 1, None);
    assert!(daemon.is_running(), "{}", daemon.tail());
    assert_eq!(core(&bench, 0), Some(LOWEST), "the other stays parked");
    bench.mock.clear_injections();
    wait_for_core(&bench, &daemon, 1, Some(LOWEST));
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn sensor_that_fails_for_the_moment_wakes_and_does_not_end_the_run() {
    let bench = a100();
    let mut daemon = parked(&bench, &[]);
    bench.mock.inject(&Injection::error(UTILIZATION, UNKNOWN).times(3)).expect("a free slot");
    daemon.wait_for_log("a source that does not answer");
    wait_for_core(&bench, &daemon, 0, Some(LOWEST));
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn sensor_call_that_hangs_ends_the_run_with_the_clocks_given_back() {
    let bench = a100();
    let mut daemon = parked(&bench, &[]);
    let hangs = Duration::from_secs(600);
    bench.mock.inject(&Injection::delay(UTILIZATION, hangs)).expect("a free slot");
    assert!(eventually(|| bench.is_free(), |free| *free), "{}", daemon.tail());
    assert_eq!(daemon.wait().code(), Some(70), "{}", daemon.tail());
}

#[test]
fn clocks_that_do_not_come_back_are_reset_again_with_an_alarm() {
    let bench = a100();
    let mut daemon = parked(&bench, &[]);
    // Let the running clock get there, and stay there.
    std::thread::sleep(Duration::from_millis(200));
    bench.mock.set_stuck(0, true).expect("GPU 0");
    let resets = || bench.mock.history().iter().filter(|write| write.call == RESET_CORE).count();
    let before = resets();
    load(&bench, 0, 1.0);
    daemon.wait_for_log("reset again");
    let again = eventually(resets, |resets| *resets >= before + 2);
    assert!(again >= before + 2, "{again} resets, {before} before\n{}", daemon.tail());
    bench.mock.set_stuck(0, false).expect("GPU 0");
    daemon.wait_for_log("clocks are back");
    daemon.stop();
    assert!(daemon.log().contains("1 missed"), "{}", daemon.tail());
}

#[test]
fn fan_programs_get_their_arguments_unchanged_and_run_on_changes_only() {
    let bench = a100();
    let file = bench.path("fans said");
    let script = bench.path("fan switch.sh");
    fs::write(&script, "#!/bin/sh\nprintf '%s|' \"$#\" \"$@\" >>\"$1\"\n").expect("a script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("an executable script");
    let argv = |word: &str| format!("[{script:?}, {file:?}, \"{word} $(x); *\"]");
    let bench = bench
        .set("park.fan_on", &argv("on"))
        .set("park.fan_off", &argv("off"))
        .set("park.fan_off_after_s", "0.2");
    let said = || fs::read_to_string(&file).unwrap_or_default();
    let line = |word: &str| format!("2|{}|{word} $(x); *|", file.display());
    let mut daemon = parked(&bench, &[]);
    assert_eq!(eventually(said, |said| !said.is_empty()), line("off"), "{}", daemon.tail());
    std::thread::sleep(Duration::from_millis(500));
    load(&bench, 0, 1.0);
    let both = line("off") + &line("on");
    assert_eq!(eventually(said, |said| *said == both), both, "{}", daemon.tail());
    load(&bench, 0, 0.0);
    let again = both.clone() + &line("off");
    assert_eq!(eventually(said, |said| *said == again), again, "{}", daemon.tail());
    // The run ends with fans as it found them.
    daemon.stop();
    assert_eq!(said(), again + &line("on"));
}

#[test]
fn parked_gpu_is_asked_as_seldom_as_configured() {
    let bench = a100().set("park.parked_poll_ms", "500");
    let mut daemon = parked(&bench, &[]);
    std::thread::sleep(Duration::from_millis(600));
    let calls = |call: &str| bench.mock.call_count(call).expect("a function of the library");
    let quiet = ["nvmlDeviceGetClockInfo", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetFieldValues"];
    let energy = "nvmlDeviceGetTotalEnergyConsumption";
    let before = (calls(UTILIZATION), quiet.map(calls), calls(energy));
    let start = Instant::now();
    std::thread::sleep(Duration::from_secs(2));
    let (asked, took) = (calls(UTILIZATION) - before.0, start.elapsed());
    // Two a second, and the look that was under way at either end.
    let most = took.as_millis().div_ceil(500) + 1;
    assert!(asked >= 1 && u128::from(asked) <= most, "{asked} calls in {took:?}");
    // Nothing else is asked; the energy only for a STATUS line, each 30 s.
    assert_eq!((quiet.map(calls), calls(energy)), (before.1, before.2));
    daemon.stop();
    assert!(daemon.log().contains("sensor_calls_per_parked_min="), "{}", daemon.tail());
}

#[test]
fn arguments_are_held_to_the_rules_of_the_file() {
    let bench = a100();
    let bad = bench.run(&["park", "--idle-timeout=-1"]);
    assert_eq!(bad.code, Some(64), "{bad:?}");
    assert!(bad.err.contains("park.timeout_s is -1.0, must be a number from 0 to 86400"), "{bad:?}");
    let twice = bench.run(&["park", "--gpus", "0,0"]);
    assert_eq!(twice.code, Some(64), "{twice:?}");
    assert!(bench.mock.history().is_empty());
}

#[test]
fn root_starts_no_fan_program_that_others_could_have_written() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let bench = a100();
    let script = bench.path("fans.sh");
    fs::write(&script, "#!/bin/sh\n").expect("a script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o777)).expect("an executable script");
    let bench = bench.set("park.fan_off", &format!("[{script:?}]"));
    let refused = bench.run(&["park"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused.err.contains("park.fan_off: ") && refused.err.contains("not started by root"),
        "{refused:?}"
    );
    assert!(bench.mock.history().is_empty());
}

#[test]
fn woken_gpu_is_held_to_the_wake_clock_if_one_is_set() {
    let bench = a100().set("park.wake_core_mhz", "900");
    let mut daemon = parked(&bench, &[]);
    load(&bench, 0, 1.0);
    wait_for_core(&bench, &daemon, 0, Some(Range { min: 210, max: 900 }));
    daemon.wait_for_log("clocks are back");
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn service_manager_hears_ready_alive_status_and_stopping() {
    let bench = a100();
    let path = bench.path("notify");
    let manager = UnixDatagram::bind(&path).expect("a socket");
    manager.set_read_timeout(Some(support::PATIENCE)).expect("a time-out");
    let mut command = bench.command(&["park"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000");
    let mut daemon = Daemon::start(command);
    let hear = || {
        let mut bytes = [0; 4096];
        let length = manager.recv(&mut bytes).expect("a word");
        String::from_utf8(bytes[..length].to_vec()).expect("text")
    };
    let wait_for = |wanted: &str| while !hear().contains(wanted) {};
    assert_eq!(hear(), "READY=1");
    wait_for("WATCHDOG=1");
    wait_for("STATUS=");
    wait_for("WATCHDOG=1");
    daemon.signal(Signal::TERM);
    wait_for("STOPPING=1");
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.tail());
}
