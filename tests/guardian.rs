//! Clocks are borrowed, whoever dies: SIGKILL, SIGSTOP and hung driver calls, seen from outside through the mock.
#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod support;

use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use nvidia_ml::{GpuConfig, Injection, MockConfig};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use sha2::{Digest, Sha256};
use support::daemon::{Bench, Daemon, is_gone};
use support::engine::Behaviour;
use support::eventually;

/// How long after the controller's end its clocks may stay locked.
const RELEASED_WITHIN: Duration = Duration::from_secs(1);
const SET_CORE: &str = "nvmlDeviceSetGpuLockedClocks";
const RESET_CORE: &str = "nvmlDeviceResetGpuLockedClocks";
const UNKNOWN: u32 = 999;
const EVERY_CALL: [&str; 6] = [
    RESET_CORE,
    SET_CORE,
    "nvmlDeviceResetMemoryLockedClocks",
    "nvmlDeviceGetTotalEnergyConsumption",
    "nvmlDeviceGetClockInfo",
    "nvmlInit_v2",
];
/// How long after the end of a fault clocks may stay locked.
const FREED_WITHIN: Duration = Duration::from_secs(5);
/// Codes that resets are refused with: uninitialised, not supported, not permitted, driver not loaded, lost, ...
const REFUSALS: [u32; 8] = [1, 3, 4, 9, 15, 16, 18, UNKNOWN];
const HANGS: Duration = Duration::from_secs(600);

fn random(below: u64) -> u64 {
    RandomState::new().build_hasher().finish() % below
}

/// The time from `start` to the moment from which no clock is locked.
fn released_after(bench: &Bench, start: Instant) -> Duration {
    loop {
        if bench.is_free() {
            return start.elapsed();
        }
        assert!(start.elapsed() < support::PATIENCE, "clocks still locked");
        // Not oftener: on a busy machine, looking keeps others from running.
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn guardian(bench: &Bench) -> Pid {
    bench.guardian().expect("a guardian")
}

/// Another guardian than `old` watches.
fn wait_for_another_guardian(bench: &Bench, daemon: &Daemon, old: Pid) {
    daemon.wait_for_log("another guardian watches");
    assert_ne!(guardian(bench), old);
    assert!(!is_gone(guardian(bench)), "{}", daemon.tail());
}

/// Kills controller and guardian while clocks are locked: nobody is left to give them back.
fn kill_both(bench: &Bench) -> Daemon {
    let mut daemon = bench.serve(&[]);
    // Stopped first: it would notice the end of its guardian.
    daemon.freeze(bench);
    let guardian = guardian(bench);
    kill_process(guardian, Signal::KILL).expect("the guardian is there");
    daemon.signal(Signal::KILL);
    daemon.wait();
    assert!(eventually(|| is_gone(guardian), |gone| *gone));
    assert!(!bench.is_free(), "somebody gave the clocks back");
    assert_eq!(bench.journals().len(), 1);
    daemon
}

/// A fault of the driver that begins before a kill, or after it, and passes: on every reset, or on every call.
fn refuse(bench: &Bench) {
    let code = REFUSALS[usize::try_from(random(REFUSALS.len() as u64)).unwrap_or(0)];
    match random(3) {
        0 => bench.mock.set_lost(0, true).expect("GPU 0"),
        1 => bench.mock.inject(&Injection::error(RESET_CORE, code)).expect("a free slot"),
        _ => {
            for call in EVERY_CALL {
                bench.mock.inject(&Injection::error(call, code)).expect("a free slot");
            }
        }
    }
}

/// Starts, kills at some moment, and waits for the release: how long it took, and whether anything was locked. With a
/// `fault` around the kill, the time is that from its end.
fn kill_once(bench: &Bench, group: bool, fault: bool) -> (Duration, bool) {
    let mut command = bench.command(&[]);
    command.process_group(0);
    let mut daemon = Daemon::start(command);
    // A run's first lock is there after half a second: some die before, most while clocks change.
    if random(4) > 0 {
        bench.wait_for_lock(&daemon);
    }
    std::thread::sleep(Duration::from_micros(random(600_000)));
    let locked = !bench.is_free();
    let before = fault && random(2) == 0;
    if before {
        refuse(bench);
        std::thread::sleep(Duration::from_micros(random(300_000)));
    }
    let mut start = Instant::now();
    // A start that the driver refuses has ended by itself.
    if group && daemon.is_running() {
        let pid = Pid::from_raw(i32::try_from(daemon.pid()).expect("a process id")).expect("a process id");
        kill_process_group(pid, Signal::KILL).expect("the group is there");
    } else if daemon.is_running() {
        daemon.signal(Signal::KILL);
    }
    if fault {
        if !before {
            std::thread::sleep(Duration::from_micros(random(3_000)));
            refuse(bench);
        }
        std::thread::sleep(Duration::from_micros(random(3_000_000)));
        bench.mock.set_lost(0, false).expect("GPU 0");
        bench.mock.clear_injections();
        start = Instant::now();
    }
    let took = released_after(bench, start);
    daemon.wait();
    // Nobody locks again: whoever was started is gone.
    if let Some(guardian) = bench.guardian() {
        assert!(eventually(|| is_gone(guardian), |gone| *gone), "the guardian stays");
    }
    assert!(bench.is_free(), "locked after the guardian's end\n{}", daemon.tail());
    assert_eq!(bench.journals(), Vec::<std::path::PathBuf>::new());
    (took, locked)
}

#[test]
fn sigkill_of_the_controller_or_its_group_at_any_moment_releases_within_a_second() {
    let bench = Bench::new();
    bench.engine.set_load(0.6);
    for kill in 0..10 {
        let (took, _) = kill_once(&bench, kill % 2 == 1, false);
        assert!(took < RELEASED_WITHIN, "kill {kill}: {took:?}");
    }
}

/// Two servers, and a GPU of none that is parked.
fn host() -> Bench {
    let bench = Bench::with(&MockConfig::uniform(&GpuConfig::a100(), 3)).set("park.others", "true");
    let bench = bench.set("park.quiet_s", "0.3").set("park.timeout_s", "0.3");
    let bench = bench.server("chat", &[0], "").server("code", &[1], "");
    bench.servers.iter().for_each(|server| server.set_load(0.6));
    bench
}

/// `scripts/kill-test.sh` runs this; `KILLS` says how many.
#[test]
#[ignore = "minutes; scripts/kill-test.sh"]
fn many_kills() {
    let kills = std::env::var("KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(200);
    let bench = host();
    for (fault, from, limit) in
        [(false, "kill()", RELEASED_WITHIN), (true, "the end of a fault around kill()", FREED_WITHIN)]
    {
        let all: Vec<_> = (0..kills).map(|kill| kill_once(&bench, kill % 2 == 1, fault)).collect();
        let mut times: Vec<Duration> =
            all.iter().filter(|(_, locked)| *locked).map(|(took, _)| *took).collect();
        times.sort();
        let at = |percent: usize| times[(times.len() * percent).div_ceil(100).saturating_sub(1)];
        let within = all.iter().filter(|(took, _)| *took < limit).count();
        println!(
            "{kills} kills, {} of them with clocks locked, {within} free within {limit:?}; from {from} to the last reset: \
             p50 {:?}, p99 {:?}, max {:?}",
            times.len(),
            at(50),
            at(99),
            at(100)
        );
        assert_eq!(within, all.len());
    }
}

#[test]
fn sigkill_releases_every_gpu_of_the_engine() {
    let bench = Bench::with(&MockConfig::uniform(&GpuConfig::a6000(), 3))
        .set("gpu.device_id", "[0, 1, 2]")
        .set("gpu.enable_memory_frequency_control", "true");
    let mut daemon = bench.serve(&[]);
    let core_and_memory = || (0..3).all(|gpu| bench.mock.locks(gpu).expect("a GPU").memory.is_some());
    assert!(eventually(core_and_memory, |locked| *locked), "{}", daemon.tail());
    let start = Instant::now();
    daemon.signal(Signal::KILL);
    let took = released_after(&bench, start);
    assert!(took < RELEASED_WITHIN, "{took:?}");
    daemon.wait();
}

#[test]
fn guardian_tries_again_where_the_driver_refuses_at_first() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    bench.mock.inject(&Injection::error(RESET_CORE, UNKNOWN).times(8)).expect("a free slot");
    let start = Instant::now();
    daemon.signal(Signal::KILL);
    let took = released_after(&bench, start);
    assert!(took < RELEASED_WITHIN, "{took:?}");
    daemon.wait();
    daemon.wait_for_log("the controller is gone: clocks given back");
    assert!(daemon.log().contains("clocks not given back yet"), "{}", daemon.tail());
}

#[test]
fn guardian_of_a_lost_gpu_stays_until_it_is_back() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    let guardian = guardian(&bench);
    bench.mock.set_lost(0, true).expect("GPU 0");
    daemon.signal(Signal::KILL);
    daemon.wait();
    daemon.wait_for_log("the GPU is lost");
    std::thread::sleep(Duration::from_secs(3));
    kill_process(guardian, Signal::TERM).expect("the guardian is there");
    std::thread::sleep(Duration::from_millis(300));
    assert!(!is_gone(guardian), "{}", daemon.tail());
    assert_eq!(bench.journals().len(), 1, "the journal stays as long");
    bench.mock.set_lost(0, false).expect("GPU 0");
    let took = released_after(&bench, Instant::now());
    assert!(took < FREED_WITHIN, "{took:?}");
    assert!(eventually(|| is_gone(guardian), |gone| *gone), "the guardian stays");
    assert_eq!(bench.journals(), Vec::<std::path::PathBuf>::new());
}

/// Every code that a reset can fail with, for two seconds around the controller's end.
#[test]
fn guardian_frees_the_clocks_when_a_refusal_of_any_kind_passes() {
    let bench = Bench::new();
    for code in REFUSALS {
        let mut daemon = bench.serve(&[]);
        bench.mock.inject(&Injection::error(RESET_CORE, code)).expect("a free slot");
        daemon.signal(Signal::KILL);
        daemon.wait();
        std::thread::sleep(Duration::from_millis(2100));
        assert!(!bench.is_free(), "{code}");
        bench.mock.clear_injections();
        let took = released_after(&bench, Instant::now());
        assert!(took < FREED_WITHIN, "{code}: {took:?}");
        assert!(eventually(|| bench.journals(), Vec::is_empty).is_empty(), "{code}");
    }
}

#[test]
fn good_end_leaves_neither_guardian_nor_journal_and_the_guardian_wrote_nothing() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    let guardian = guardian(&bench);
    let [journal] = &bench.journals()[..] else { panic!("one journal: {:?}", bench.journals()) };
    let text = fs::read_to_string(journal).expect("the journal");
    for part in [&format!("\"pid\":{}", daemon.pid()), "\"boot_id\":\"", "\"core\":{\"min_mhz\":210,"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    daemon.stop();
    assert_eq!(bench.journals(), Vec::<std::path::PathBuf>::new());
    assert!(eventually(|| is_gone(guardian), |gone| *gone), "the guardian stays");
    let pid = u32::try_from(guardian.as_raw_nonzero().get()).expect("a process id");
    assert_eq!(bench.writes_of(pid), []);
}

#[test]
fn next_start_undoes_what_two_kills_left() {
    let bench = Bench::new();
    drop(kill_both(&bench));
    bench.engine.set_load(0.0);
    let mut daemon = bench.start(&[]);
    bench.wait_for_release(&daemon);
    daemon.wait_for_log("a dead agft left clocks locked");
    daemon.wait_for_log("action space");
    daemon.stop();
    bench.assert_given_back(daemon.pid());
    assert_eq!(bench.journals(), Vec::<std::path::PathBuf>::new());
}

/// A guardian whose controller dies before its first reset has locked nothing itself, but the clocks may be a predecessor's:
/// the journal that says so must not go before they are free.
#[test]
fn kill_before_the_first_reset_never_loses_what_a_predecessor_left() {
    let bench = Bench::new();
    drop(kill_both(&bench));
    let old = guardian(&bench);
    bench.mock.inject(&Injection::delay(RESET_CORE, Duration::from_secs(5)).times(1)).expect("a free slot");
    let mut daemon = bench.start(&[]);
    assert!(
        eventually(|| bench.guardian(), |new| new.is_some_and(|new| new != old))
            .is_some_and(|new| new != old)
    );
    // The controller's first reset is under way and will not come to pass.
    std::thread::sleep(Duration::from_millis(500));
    daemon.signal(Signal::KILL);
    daemon.wait();
    let guardian = guardian(&bench);
    assert!(eventually(|| is_gone(guardian), |gone| *gone), "the guardian stays");
    assert!(
        bench.is_free() || !bench.journals().is_empty(),
        "locked, and nothing says so\n{}",
        daemon.tail()
    );
    let done = bench.run(&["release", "--journal"]);
    assert!(bench.is_free(), "{done:?}");
}

#[test]
fn release_undoes_what_two_kills_left() {
    for arguments in [&["release", "--journal"][..], &["release"]] {
        let bench = Bench::new();
        let daemon = kill_both(&bench);
        let done = bench.run(arguments);
        assert_eq!(done.code, Some(0), "{done:?}");
        assert!(done.out.contains("given back"), "{done:?}");
        assert!(bench.is_free(), "{done:?}");
        assert_eq!(bench.journals(), Vec::<std::path::PathBuf>::new());
        if arguments.len() > 1 {
            assert!(done.out.contains(&format!("pid {}", daemon.pid())), "{done:?}");
            let again = bench.run(arguments);
            assert!(again.code == Some(0) && again.out.contains("nothing to give back"), "{again:?}");
        }
    }
}

#[test]
fn next_start_undoes_a_gpu_that_it_does_not_control_itself() {
    let bench = Bench::with(&MockConfig::uniform(&GpuConfig::a100(), 2));
    drop(kill_both(&bench));
    let bench = bench.set("gpu.device_id", "1");
    let mut daemon = bench.start(&[]);
    bench.wait_for_release(&daemon);
    daemon.wait_for_log("clocks of a dead agft given back");
    // Signals are caught from the first lock on, and that comes later.
    daemon.wait_for_log("action space");
    daemon.stop();
}

#[test]
fn release_by_journal_leaves_a_living_agft_alone() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    let writes = |bench: &Bench| {
        let history = bench.mock.history();
        history.iter().filter(|write| write.pid != daemon.pid()).count()
    };
    let done = bench.run(&["release", "--journal"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.out.contains("left alone") && done.out.contains(&daemon.pid().to_string()), "{done:?}");
    assert_eq!(writes(&bench), 0);
    daemon.stop();
}

#[test]
fn journal_of_another_boot_is_dropped_and_its_gpu_left_alone() {
    let bench = Bench::new();
    drop(kill_both(&bench));
    let journal = &bench.journals()[0];
    let text = fs::read_to_string(journal).expect("the journal");
    let line = text.lines().next().expect("a line");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("the kernel's word");
    let line = line.replace(boot.trim(), "00000000-0000-0000-0000-000000000000");
    let sum: String = Sha256::digest(&line).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(journal, format!("{line}\n{sum}\n")).expect("the journal");
    let done = bench.run(&["release", "--journal"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.out.contains("another boot"), "{done:?}");
    assert!(!bench.is_free(), "whoever locked after the restart of the machine, it was not the dead one");
    assert_eq!(bench.journals(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn damaged_journal_is_kept_for_a_human_and_counts_as_locked() {
    let bench = Bench::new();
    drop(kill_both(&bench));
    let journal = bench.journals()[0].clone();
    let half = fs::read(&journal).expect("the journal");
    fs::write(&journal, &half[..half.len() / 2]).expect("the journal");
    let done = bench.run(&["release", "--journal"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.err.contains("damaged") && done.err.contains("journal-damaged-"), "{done:?}");
    assert!(bench.is_free(), "{done:?}");
    assert!(!journal.exists());
}

#[test]
fn sigkill_of_the_guardian_brings_the_clocks_back_and_another_guardian() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    let old = guardian(&bench);
    kill_process(old, Signal::KILL).expect("the guardian is there");
    let took = released_after(&bench, Instant::now());
    assert!(took < RELEASED_WITHIN, "{took:?}");
    wait_for_another_guardian(&bench, &daemon, old);
    bench.wait_for_lock(&daemon);
    let took = {
        let start = Instant::now();
        daemon.signal(Signal::KILL);
        daemon.wait();
        released_after(&bench, start)
    };
    assert!(took < RELEASED_WITHIN, "the new guardian took {took:?}");
}

#[test]
fn sigterm_to_the_guardian_brings_the_clocks_back_and_another_guardian() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    let old = guardian(&bench);
    kill_process(old, Signal::TERM).expect("the guardian is there");
    let took = released_after(&bench, Instant::now());
    assert!(took < RELEASED_WITHIN, "{took:?}");
    wait_for_another_guardian(&bench, &daemon, old);
    assert!(daemon.log().contains("SIGTERM to the guardian"), "{}", daemon.tail());
    daemon.stop();
    assert!(bench.is_free());
}

#[test]
fn new_guardian_knows_what_was_locked_before_its_time() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    let old = guardian(&bench);
    // The controller cannot give the clocks back itself, and dies while it tries.
    bench.mock.inject(&Injection::error(RESET_CORE, UNKNOWN)).expect("a free slot");
    kill_process(old, Signal::KILL).expect("the guardian is there");
    wait_for_another_guardian(&bench, &daemon, old);
    daemon.signal(Signal::KILL);
    daemon.wait();
    assert!(!bench.is_free());
    bench.mock.clear_injections();
    let took = released_after(&bench, Instant::now());
    assert!(took < RELEASED_WITHIN, "{took:?}");
}

#[test]
fn sigterm_to_both_as_of_a_service_manager_ends_both_in_good_order() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    let guardian = guardian(&bench);
    kill_process(guardian, Signal::TERM).expect("the guardian is there");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.tail());
    for guardian in [Some(guardian), bench.guardian()].into_iter().flatten() {
        assert!(eventually(|| is_gone(guardian), |gone| *gone), "a guardian stays");
    }
    assert!(bench.is_free());
    assert_eq!(bench.journals(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn nothing_is_locked_that_cannot_be_written_down() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    fs::remove_dir_all(bench.path("run")).expect("the runtime directory");
    bench.engine.behave(Behaviour::Refuse);
    bench.wait_for_release(&daemon);
    let before = bench.mock.call_count(SET_CORE).expect("a call of the library");
    bench.engine.behave(Behaviour::Serve);
    daemon.wait_for_log("the journal of held locks failed");
    assert_eq!(bench.mock.call_count(SET_CORE).ok(), Some(before), "locked without a journal");
    daemon.stop();
    assert!(bench.is_free());
}

#[test]
fn run_whose_guardians_keep_dying_ends_with_the_clocks_given_back() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    let mut last = None;
    while daemon.is_running() {
        let guardian = bench.guardian().filter(|guardian| Some(*guardian) != last);
        if let Some(guardian) = guardian {
            // One that was started this moment may have gone by itself with its controller.
            let _ = kill_process(guardian, Signal::KILL);
            last = Some(guardian);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(daemon.wait().code(), Some(1), "{}", daemon.tail());
    assert!(daemon.log().contains("there is no guardian"), "{}", daemon.tail());
    bench.assert_given_back(daemon.pid());
}

#[test]
fn stopped_controller_loses_its_clocks_and_starts_afresh_when_it_goes_on() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    daemon.freeze(&bench);
    let took = released_after(&bench, Instant::now());
    assert!((Duration::from_secs(1)..Duration::from_secs(6)).contains(&took), "{took:?}");
    daemon.signal(Signal::CONT);
    daemon.wait_for_log("no word from the controller");
    bench.wait_for_lock(&daemon);
    daemon.stop();
    assert!(bench.is_free());
}

#[test]
fn stopped_guardian_is_replaced() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    let old = guardian(&bench);
    kill_process(old, Signal::STOP).expect("the guardian is there");
    daemon.wait_for_log("it does not answer");
    bench.wait_for_release(&daemon);
    wait_for_another_guardian(&bench, &daemon, old);
    daemon.stop();
}

/// A part hangs: the clocks come back, and the run ends with its own code and the part's name.
fn hangs(bench: &Bench, daemon: &mut Daemon, part: &str) {
    let status = daemon.wait();
    assert_eq!(status.code(), Some(70), "{}", daemon.tail());
    assert!(daemon.log().contains(&format!("{part} has not come back for")), "{}", daemon.tail());
    assert!(eventually(|| bench.is_free(), |free| *free), "{}", daemon.tail());
    assert!(eventually(|| is_gone(guardian(bench)), |gone| *gone), "the guardian stays");
}

#[test]
fn clock_call_that_hangs_ends_the_run_with_the_clocks_given_back() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    bench.mock.inject(&Injection::delay(SET_CORE, HANGS)).expect("a free slot");
    hangs(&bench, &mut daemon, "the thread that writes clocks");
    assert!(bench.model_files().contains(&"model.agft".to_owned()), "the model was not saved");
}

#[test]
fn sensor_call_that_hangs_ends_the_run_with_the_clocks_given_back() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    bench.mock.inject(&Injection::delay("nvmlDeviceGetTotalEnergyConsumption", HANGS)).expect("a free slot");
    // Two seconds until a call counts as hung, and then some for a busy machine.
    let took = released_after(&bench, Instant::now());
    println!("from the hung call to clocks given back: {took:?}");
    assert!(took < Duration::from_secs(4), "{took:?}");
    hangs(&bench, &mut daemon, "the thread that reads the GPUs");
}

#[test]
fn tick_that_hangs_ends_the_run_with_the_clocks_given_back() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&["--stall-at-tick", "60"]);
    let locked = bench.lock();
    hangs(&bench, &mut daemon, "the tick");
    assert!(locked.is_some());
}

#[test]
fn reset_that_hangs_at_the_end_is_left_to_the_guardian() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    bench.mock.inject(&Injection::delay(RESET_CORE, HANGS).times(1)).expect("a free slot");
    daemon.signal(Signal::TERM);
    hangs(&bench, &mut daemon, "the thread that writes clocks");
}

#[test]
fn second_agft_on_the_same_gpu_is_refused_and_told_who_has_it() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    let second = bench.run(&[]);
    assert_eq!(second.code, Some(69), "{second:?}");
    for part in [&format!("pid {}", daemon.pid()), "config.yaml", "gpu.device_id"] {
        assert!(second.err.contains(part), "no {part} in {second:?}");
    }
    bench.wait_for_lock(&daemon);
    daemon.stop();
    let mut next = bench.serve(&[]);
    next.stop();
}

#[test]
fn second_agft_with_another_runtime_directory_is_refused_and_release_names_the_first() {
    let mut bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    let elsewhere = bench.path("elsewhere").display().to_string();
    bench.change("gpu.runtime_dir", &elsewhere);
    let pid = format!("pid {}", daemon.pid());
    for command in [&[][..], &["release"]] {
        let second = bench.run(command);
        assert_eq!(second.code, Some(69), "{second:?}");
        assert!(second.err.contains(&pid) && second.err.contains("config.yaml"), "{second:?}");
    }
    daemon.stop();
    assert_eq!(bench.run(&["release"]).code, Some(0));
}
