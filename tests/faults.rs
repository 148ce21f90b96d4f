//! Faults of the driver, the GPUs, other people and the disk: each meets the reaction that `docs/faults.md` names.
#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod support;

use std::fs;
use std::time::{Duration, Instant};

use agft::faults::Reaction;
use agft::gpu::nvml::NvmlHost;
use agft::gpu::{GpuClocks, GpuSelector, GpuSensors, Refusal};
use agft::units::Mhz;
use nvidia_ml::{GpuConfig, Injection, MockConfig, exported_calls};
use support::daemon::{Bench, Daemon};
use support::disk::{Disk, Trouble};
use support::{MockNvml, eventually};

const SET_CORE: &str = "nvmlDeviceSetGpuLockedClocks";
const ENERGY: &str = "nvmlDeviceGetTotalEnergyConsumption";
const MISMATCH: u32 = 18;
const NOT_READY: u32 = 27;

/// Every error code of NVML, some that it does not have, and what a clock call that fails so leads to.
fn codes() -> impl Iterator<Item = (u32, Option<Refusal>)> {
    (1..=30).chain([99, 999]).map(|code| {
        let refusal = match code {
            2 | 24 => Some(Refusal::DropArm),
            3 | 13 | 18 | 22 | 25 | 26 => None,
            _ => Some(Refusal::Pause),
        };
        (code, refusal)
    })
}

#[test]
fn every_code_of_a_clock_call_has_its_reaction() {
    let mock = MockNvml::new(&MockConfig::new(vec![GpuConfig::a6000()]));
    let host = NvmlHost::open_with(&mock.library()).expect("the mock initialises");
    let mut clocks = host.clocks(&GpuSelector::Index(0)).expect("GPU 0");
    for (code, wanted) in codes() {
        for call in exported_calls().filter(|call| call.contains("LockedClocks")) {
            mock.inject(&Injection::error(call, code)).expect("a free slot");
            let error = match call {
                SET_CORE => clocks.lock_core(Mhz(210), Mhz(900)),
                "nvmlDeviceResetGpuLockedClocks" => clocks.reset_core(),
                "nvmlDeviceSetMemoryLockedClocks" => clocks.lock_memory(Mhz(810), Mhz(810)),
                _ => clocks.reset_memory(),
            };
            mock.clear_injections();
            let error = error.expect_err("an armed error");
            assert_eq!(error.refusal(), wanted, "{call}: {code}: {error}");
        }
    }
}

#[test]
fn every_code_of_a_sensor_call_is_a_gap_or_the_end_and_never_a_wrong_value() {
    let mock = MockNvml::new(&MockConfig::default());
    let host = NvmlHost::open_with(&mock.library()).expect("the mock initialises");
    let sensors = host.sensors(&GpuSelector::Index(0)).expect("GPU 0");
    let sound = sensors.reading().expect("a reading");
    for (code, refusal) in codes() {
        let missing = [2, 3, 4, 13, 22, 24, 25, 26].contains(&code);
        for call in exported_calls().filter(|call| call.starts_with("nvmlDeviceGet")) {
            mock.inject(&Injection::error(call, code)).expect("a free slot");
            let (reading, energy) = (sensors.reading(), sensors.energy());
            mock.clear_injections();
            match reading {
                Ok(reading) => {
                    for (now, then) in
                        [(reading.core_clock, sound.core_clock), (reading.memory_clock, sound.memory_clock)]
                    {
                        assert!(now.is_none() || now == then, "{call}: {code}: {reading:?}");
                    }
                    assert!(reading.power.is_none_or(|power| power.0 > 10.0), "{call}: {code}: {reading:?}");
                }
                Err(error) => {
                    assert!(!missing && refusal.is_none(), "{call}: {code}: {error}");
                    assert!(error.ends_sampling(), "{call}: {code}: {error}");
                    assert_eq!(error.fault().reaction(), Reaction::End);
                }
            }
            if call == ENERGY {
                let error = energy.expect_err("an armed error");
                assert_eq!(error.ends_sampling(), !missing && refusal.is_none(), "{code}: {error}");
            }
        }
    }
}

#[test]
fn mig_is_refused_with_the_remedy() {
    let bench = Bench::with(&MockConfig::new(vec![GpuConfig { mig: Some(true), ..GpuConfig::a100() }]));
    for arguments in [&[][..], &["check"]] {
        let done = bench.run(arguments);
        assert_eq!(done.code, Some(1), "{done:?}");
        let said = format!("{}{}", done.out, done.err);
        assert!(said.contains("MIG enabled") && said.contains("nvidia-smi -i 0 -mig 0"), "{done:?}");
    }
    assert_eq!(bench.mock.history(), []);
    let mut daemon = bench.start(&["--data-collection-mode"]);
    daemon.wait_for_log("mode=\"DATA_COLLECTION\"");
    daemon.stop();
}

#[test]
fn persistence_mode_off_is_said_with_the_remedy() {
    let bench = Bench::with(&MockConfig::new(vec![GpuConfig { persistence: false, ..GpuConfig::a100() }]));
    let mut daemon = bench.serve(&[]);
    assert!(daemon.log().contains("persistence mode is off"), "{}", daemon.tail());
    assert!(daemon.log().contains("nvidia-smi -i 0 -pm 1"), "{}", daemon.tail());
    daemon.stop();
    let done = bench.run(&["check"]);
    assert!(done.out.contains("note  GPU 0: persistence mode is off"), "{done:?}");
}

#[test]
fn driver_of_another_version_is_refused_with_the_remedy() {
    let bench = Bench::new();
    bench.mock.inject(&Injection::error("nvmlInitWithFlags", MISMATCH)).expect("a free slot");
    bench.mock.inject(&Injection::error("nvmlInit_v2", MISMATCH)).expect("a free slot");
    let done = bench.run(&[]);
    assert_eq!(done.code, Some(1), "{done:?}");
    assert!(done.err.contains("different versions; reboot, or reload the module"), "{done:?}");
}

#[test]
fn driver_upgraded_under_the_run_ends_it_with_the_remedy() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    bench.mock.inject(&Injection::error(ENERGY, MISMATCH)).expect("a free slot");
    assert_eq!(daemon.wait().code(), Some(1), "{}", daemon.tail());
    assert!(daemon.log().contains("different versions; reboot"), "{}", daemon.tail());
    bench.assert_given_back(daemon.pid());
}

#[test]
fn gpu_of_several_that_is_lost_frees_the_others_and_is_waited_out() {
    let bench = Bench::with(&MockConfig::uniform(&GpuConfig::a100(), 3)).set("gpu.device_id", "[0, 1, 2]");
    let mut daemon = bench.serve(&[]);
    bench.mock.set_lost(1, true).expect("GPU 1");
    daemon.wait_for_log("the GPU is lost");
    for gpu in [0, 2] {
        let lock = || bench.mock.locks(gpu).expect("a GPU").core;
        assert_eq!(eventually(lock, Option::is_none), None, "{}", daemon.tail());
    }
    assert!(daemon.is_running(), "{}", daemon.tail());
    bench.mock.set_lost(1, false).expect("GPU 1");
    bench.wait_for_release(&daemon);
    bench.wait_for_lock(&daemon);
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn gpu_that_needs_a_reset_is_waited_out_with_the_remedy() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    bench.mock.inject(&Injection::error(ENERGY, 16)).expect("a free slot");
    daemon.wait_for_log("nvidia-smi --gpu-reset");
    bench.wait_for_release(&daemon);
    bench.mock.clear_injections();
    bench.wait_for_lock(&daemon);
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn suspended_gpu_costs_a_pause() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    bench.mock.inject(&Injection::error(SET_CORE, NOT_READY).times(1)).expect("a free slot");
    daemon.wait_for_log("suspended or not ready");
    bench.wait_for_release(&daemon);
    bench.wait_for_lock(&daemon);
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

/// Somebody with nvidia-smi holds GPU 0 at a clock that no arm has, until the daemon says `times` times that it saw it.
fn meddle(bench: &Bench, daemon: &Daemon, times: usize) {
    let host = NvmlHost::open_with(&bench.mock.library()).expect("the mock initialises");
    let mut stranger = host.clocks(&GpuSelector::Index(0)).expect("GPU 0");
    let said = || daemon.log().matches("somebody else changed the clocks").count();
    let seen = || {
        let seen = said();
        if seen < times && bench.lock().is_some_and(|core| core != 630) {
            stranger.lock_core(Mhz(210), Mhz(630)).expect("core lock");
            std::thread::sleep(Duration::from_millis(100));
        }
        seen
    };
    assert!(eventually(seen, |seen| *seen >= times) >= times, "{}", daemon.tail());
}

#[test]
fn clocks_changed_by_somebody_else_are_reported_and_then_left_alone() {
    let bench = Bench::new().set("gpu.settle_time_s", "0.05");
    let mut daemon = bench.serve(&[]);
    daemon.wait_for_lessons(30);
    for times in 1..=3 {
        bench.wait_for_lock(&daemon);
        meddle(&bench, &daemon, times);
        bench.wait_for_release(&daemon);
    }
    assert!(daemon.log().contains("times=3 hands_off_s=600"), "{}", daemon.tail());
    // What they set now stays.
    let host = NvmlHost::open_with(&bench.mock.library()).expect("the mock initialises");
    let mut stranger = host.clocks(&GpuSelector::Index(0)).expect("GPU 0");
    stranger.lock_core(Mhz(210), Mhz(630)).expect("core lock");
    let before = bench.mock.history().len();
    daemon.wait_for_log("mode=\"FAULT\"");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(bench.mock.history().len(), before, "{}", daemon.tail());
    stranger.reset_core().expect("core reset");
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn reset_of_the_gpu_under_the_run_is_seen_and_the_loop_goes_on() {
    let bench = Bench::new().set("gpu.settle_time_s", "0.05");
    let mut daemon = bench.serve(&[]);
    daemon.wait_for_lessons(30);
    // While clocks are still tried out, the next lock may come before the loss of the last one is seen.
    let seen = || {
        let seen = daemon.log().contains("or the driver was reset");
        if !seen {
            bench.mock.reload_driver(0).expect("GPU 0");
            std::thread::sleep(Duration::from_millis(300));
        }
        seen
    };
    assert!(eventually(seen, |seen| *seen), "{}", daemon.tail());
    bench.wait_for_lock(&daemon);
    daemon.wait_for_lessons(2);
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn work_that_runs_at_the_idle_clock_raises_an_alarm_and_is_reset() {
    let bench = Bench::new().set("gpu.settle_time_s", "0.05");
    let mut daemon = bench.start(&[]);
    daemon.wait_for_log("idle: parked");
    assert!(eventually(|| bench.lock(), |lock| *lock == Some(210)).is_some(), "{}", daemon.tail());
    std::thread::sleep(Duration::from_millis(100));
    // The driver says yes to everything from now on and does nothing.
    bench.mock.set_stuck(0, true).expect("GPU 0");
    bench.engine.set_load(0.6);
    daemon.wait_for_log("work runs at the idle clock");
    let resets =
        |bench: &Bench| bench.mock.history().iter().filter(|write| write.call.contains("ResetGpu")).count();
    let before = resets(&bench);
    assert!(eventually(|| resets(&bench), |count| *count > before) > before, "{}", daemon.tail());
    bench.mock.set_stuck(0, false).expect("GPU 0");
    bench.wait_for_lock(&daemon);
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

/// A bench whose models, rounds and logs lie on disks of their own, if that can be had here.
fn with_disks() -> Option<(Bench, [Disk; 3])> {
    let bench = Bench::new().set("logging.detailed_round_logging", "true").set("logging.file_level", "debug");
    let disks = ["models", "runs", "logs"].map(|name| Disk::new(bench.path(name), 4));
    if disks.iter().all(Disk::is_mounted) {
        return Some((bench, disks));
    }
    eprintln!("not tested: no file system can be mounted here");
    None
}

fn disk_trouble(trouble: Trouble) {
    let Some((bench, disks)) = with_disks() else { return };
    let mut daemon = bench.serve(&[]);
    daemon.wait_for_lessons(3);
    let failed = disks.each_ref().map(|disk| disk.fail(trouble));
    // A disk with files open for writing cannot be made read-only by hand: then the models' alone is.
    assert!(eventually(|| failed[0] || disks[0].fail(trouble), |failed| *failed));
    daemon.wait_for_log("state not saved");
    if failed[1] {
        daemon.wait_for_log("rounds are not written");
    }
    // It goes on as if nothing had happened.
    daemon.wait_for_lessons(10);
    bench.wait_for_lock(&daemon);
    disks.iter().for_each(Disk::mend);
    let known = if failed[1] { "rounds are written again" } else { "mode=" };
    daemon.wait_for_log(known);
    let log = || {
        let dir =
            fs::read_dir(bench.path("logs")).expect("the logs").flatten().find(|entry| entry.path().is_dir());
        let file = dir.map(|dir| dir.path().join("agft.log"));
        file.and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default()
    };
    assert!(eventually(log, |log| log.contains(known)).contains(known));
    daemon.stop();
    bench.assert_given_back(daemon.pid());
    // Every round of the run is there, and the model loads.
    let numbers: Vec<u64> = bench.rounds().iter().map(|round| round.round).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    let mut next = bench.serve(&[]);
    assert!(next.log().contains("model loaded"), "{}", next.tail());
    assert!(!next.log().contains("was not loaded"), "{}", next.tail());
    next.stop();
}

#[test]
fn full_disk_costs_saves_and_not_the_run() {
    disk_trouble(Trouble::Full);
}

#[test]
fn read_only_disk_costs_saves_and_not_the_run() {
    disk_trouble(Trouble::ReadOnly);
}

#[test]
fn stopped_guardian_of_a_dead_agft_does_not_keep_the_next_one_out() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    let guardian = bench.guardian().expect("a guardian");
    rustix::process::kill_process(guardian, rustix::process::Signal::STOP).expect("the guardian is there");
    daemon.signal(rustix::process::Signal::KILL);
    daemon.wait();
    let start = Instant::now();
    let mut next = bench.start(&[]);
    next.wait_for_log("the guardian of a dead agft did not end: killed");
    bench.wait_for_lock(&next);
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    next.stop();
    bench.assert_given_back(next.pid());
}
