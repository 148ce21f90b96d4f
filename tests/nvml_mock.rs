//! agft's NVML side, through the real nvml-wrapper, against the mocked driver library.

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use agft::gpu::host::Host;
use agft::gpu::nvml::{NvmlClocks, NvmlHost, NvmlSensors};
use agft::gpu::probe::probe;
use agft::gpu::{ClockReasons, GpuClocks, GpuError, GpuSelector, GpuSensors, Refusal};
use agft::units::{Mhz, Watts};
use nvidia_ml::{GpuConfig, Injection, Level, MockConfig, STATE_VARIABLE};
use support::MockNvml;

const SET_CORE: &str = "nvmlDeviceSetGpuLockedClocks";
const RESET_CORE: &str = "nvmlDeviceResetGpuLockedClocks";
const SET_MEMORY: &str = "nvmlDeviceSetMemoryLockedClocks";
const RESET_MEMORY: &str = "nvmlDeviceResetMemoryLockedClocks";

/// One GPU whose clocks and sensors follow at once.
fn prompt(gpu: GpuConfig) -> MockConfig {
    MockConfig::new(vec![GpuConfig { settle_ms: 0, power_tick_ms: 0, energy_tick_ms: 1, ..gpu }])
}

#[expect(clippy::expect_used, reason = "a test that cannot be set up fails")]
fn open(mock: &MockNvml) -> (NvmlSensors, NvmlClocks) {
    let host = NvmlHost::open_with(&mock.library()).expect("the mock initialises");
    let first = GpuSelector::Index(0);
    (host.sensors(&first).expect("GPU 0"), host.clocks(&first).expect("GPU 0"))
}

/// In the other process: the mock under the driver's usual name. Never a real driver.
#[expect(clippy::expect_used, reason = "a test that cannot be set up fails")]
fn mocked_host() -> NvmlHost {
    assert!(std::env::var_os(STATE_VARIABLE).is_some(), "only for a child of another test");
    NvmlHost::open().expect("the mock, by its usual name")
}

/// Asks until the answer is as wanted; the last answer after 5 s.
fn eventually<T>(ask: impl Fn() -> T, wanted: impl Fn(&T) -> bool) -> T {
    let start = Instant::now();
    loop {
        let answer = ask();
        if wanted(&answer) || start.elapsed() > Duration::from_secs(5) {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn listed_gpus_carry_index_name_uuid_driver_and_power_limit() {
    let config = MockConfig::new(vec![GpuConfig::a100(), GpuConfig::h100()]);
    let mock = MockNvml::new(&config);
    let gpus = NvmlHost::open_with(&mock.library()).and_then(|host| host.list()).expect("two GPUs");
    assert_eq!(gpus.iter().map(|gpu| gpu.index).collect::<Vec<_>>(), [0, 1]);
    for (gpu, wanted) in gpus.iter().zip(&mock.config().gpus) {
        assert_eq!((&gpu.name, &gpu.uuid), (&wanted.name, &wanted.uuid));
        assert_eq!(gpu.driver_version.as_deref(), Some("580.95.05"));
        assert_eq!(gpu.power_limit, Some(Watts(wanted.tdp_w)));
    }
}

#[test]
fn gpu_is_found_by_uuid_in_any_case_and_a_stranger_is_not() {
    let mock = MockNvml::new(&MockConfig::uniform(&GpuConfig::a100(), 2));
    let host = NvmlHost::open_with(&mock.library()).expect("the mock initialises");
    let second = mock.config().gpus[1].uuid.to_lowercase();
    let sensors = host.sensors(&GpuSelector::Uuid(second)).expect("GPU 1");
    assert_eq!(sensors.info().index, 1);
    let error = host.clocks(&GpuSelector::Index(2)).expect_err("there is no GPU 2");
    let [first, second] = [0, 1].map(|index: usize| mock.config().gpus[index].uuid.clone());
    assert_eq!(error.to_string(), format!("no GPU 2; present: 0 ({first}), 1 ({second})"));
}

#[test]
fn clock_calls_reach_the_driver_in_order_with_their_arguments() {
    let mock = MockNvml::new(&prompt(GpuConfig::a6000()));
    let (_, mut clocks) = open(&mock);
    clocks.reset_core().expect("reset");
    clocks.lock_memory(Mhz(405), Mhz(8001)).expect("memory lock");
    clocks.lock_core(Mhz(210), Mhz(1005)).expect("core lock");
    clocks.reset_core().expect("reset");
    clocks.reset_memory().expect("reset");
    let history = mock.history();
    let calls: Vec<_> = history.iter().map(|write| (write.call, write.args, write.code)).collect();
    assert_eq!(
        calls,
        [
            (RESET_CORE, [0, 0], 0),
            (SET_MEMORY, [405, 8001], 0),
            (SET_CORE, [210, 1005], 0),
            (RESET_CORE, [0, 0], 0),
            (RESET_MEMORY, [0, 0], 0),
        ]
    );
    assert!(history.iter().all(|write| write.pid == std::process::id() && write.gpu == 0));
    assert!(history.is_sorted_by_key(|write| write.at_ns));
}

#[test]
fn running_clocks_follow_the_lock_and_come_back_with_the_reset() {
    let mock = MockNvml::new(&prompt(GpuConfig::a6000()));
    let (sensors, mut clocks) = open(&mock);
    let running = || sensors.reading().map(|seen| (seen.core_clock, seen.memory_clock));
    mock.set_load(0, 0.5).expect("GPU 0");
    clocks.lock_memory(Mhz(810), Mhz(810)).expect("memory lock");
    // 1000 MHz lies between two steps of 15 MHz from 210: 990 is the one below.
    clocks.lock_core(Mhz(210), Mhz(1000)).expect("core lock");
    assert_eq!(running(), Ok((Some(Mhz(990)), Some(Mhz(810)))));
    mock.set_load(0, 0.0).expect("GPU 0");
    assert_eq!(running(), Ok((Some(Mhz(210)), Some(Mhz(810)))), "an idle GPU goes to the lower bound");
    clocks.reset_core().and_then(|()| clocks.reset_memory()).expect("resets");
    assert_eq!(running(), Ok((Some(Mhz(2100)), Some(Mhz(8001)))));
}

#[test]
fn clock_arrives_only_after_the_settle_time() {
    let gpu = GpuConfig { settle_ms: 100, ..GpuConfig::a100() };
    let mock = MockNvml::new(&MockConfig::new(vec![gpu]));
    let (sensors, mut clocks) = open(&mock);
    mock.set_load(0, 1.0).expect("GPU 0");
    clocks.lock_core(Mhz(210), Mhz(705)).expect("core lock");
    let locked_at = mock.history()[0].at_ns;
    let core = || sensors.reading().expect("a reading").core_clock;
    assert_eq!(eventually(core, |clock| *clock != Some(Mhz(1410))), Some(Mhz(705)));
    assert!(nvidia_ml::monotonic_ns() - locked_at >= 100_000_000);
}

#[test]
fn request_above_a_silent_clamp_runs_at_the_clamp() {
    let mock = MockNvml::new(&prompt(GpuConfig::h200()));
    let (sensors, mut clocks) = open(&mock);
    mock.set_load(0, 1.0).expect("GPU 0");
    clocks.lock_core(Mhz(345), Mhz(1980)).expect("core lock");
    assert_eq!(sensors.reading().expect("a reading").core_clock, Some(Mhz(1830)));
}

#[test]
fn reading_shows_what_the_board_shows() {
    let mock = MockNvml::new(&prompt(GpuConfig::a100()));
    let (sensors, mut clocks) = open(&mock);
    mock.set_load(0, 0.7).expect("GPU 0");
    mock.set_temperature(0, 61).expect("GPU 0");
    mock.set_event_reasons(0, ClockReasons::SW_POWER_CAP.0).expect("GPU 0");
    clocks.lock_core(Mhz(1005), Mhz(1005)).expect("core lock");
    let seen = sensors.reading().expect("a reading");
    assert_eq!((seen.utilization_percent, seen.temperature_c), (Some(70.0), Some(61.0)));
    assert_eq!(
        seen.reasons,
        Some(ClockReasons(ClockReasons::SW_POWER_CAP.0 | ClockReasons::CLOCKS_SETTING.0))
    );
    let board = mock.snapshot(0).expect("GPU 0").power_w;
    let power = seen.power.expect("a power sensor").0;
    assert!((power - board).abs() < 1e-3, "{power} W is {board} W to the milliwatt");
    assert_eq!(sensors.power(), Ok(Watts(power)));
}

#[test]
fn supported_clocks_are_the_boards_levels() {
    let mock = MockNvml::new(&MockConfig::new(vec![GpuConfig::a6000()]));
    let supported = open(&mock).0.supported_clocks().expect("clocks");
    assert_eq!(supported.memory().collect::<Vec<_>>(), [Mhz(8001), Mhz(810), Mhz(405)]);
    assert_eq!(
        (supported.core_min(), supported.core_max(), supported.core().len()),
        (Mhz(210), Mhz(2100), 127)
    );
    assert_eq!(supported.levels()[2].core.first(), Some(&Mhz(420)));
}

#[test]
fn board_with_more_than_128_core_clocks_shows_all_of_them() {
    let gpu = GpuConfig { levels: vec![Level::stepped(10_501, 210, 3105, 15)], ..GpuConfig::rtx3090() };
    let mock = MockNvml::new(&MockConfig::new(vec![gpu]));
    let supported = open(&mock).0.supported_clocks().expect("clocks");
    assert_eq!(supported.core().len(), (3105 - 210) / 15 + 1);
    assert_eq!((supported.core_min(), supported.core_max()), (Mhz(210), Mhz(3105)));
}

#[test]
fn energy_grows_with_load_and_falls_with_the_clock() {
    let mock = MockNvml::new(&prompt(GpuConfig::a100()));
    let (sensors, mut clocks) = open(&mock);
    // What was spent in a span, and the bounds of that span: the counter stands for up to a tick of 1 ms.
    let mut spend = |load: f64, core: u32| {
        mock.set_load(0, load).expect("GPU 0");
        clocks.lock_core(Mhz(core), Mhz(core)).expect("core lock");
        let instants = || Duration::from_nanos(nvidia_ml::monotonic_ns()).as_secs_f64();
        let (outer_start, from, inner_start) = (instants(), sensors.energy().expect("a counter"), instants());
        std::thread::sleep(Duration::from_millis(50));
        let (inner_end, to, outer_end) = (instants(), sensors.energy().expect("a counter"), instants());
        let spent = to.since(from).expect("the counter grows").0;
        (spent, inner_end - inner_start - 0.002, outer_end - outer_start + 0.002)
    };
    let mut is_power = |watts: f64, load: f64, core: u32| {
        let (spent, at_least, at_most) = spend(load, core);
        assert!((watts * at_least..watts * at_most).contains(&spent), "{spent} J at {watts} W");
    };
    is_power(80.0, 0.0, 1410);
    is_power(382.0, 1.0, 1410);
    // At half the clock the voltage is at its floor: f V^2 is 1/2 of its top value over 1.2^2.
    let floor = (210.0 / 1410.0) / 1.2_f64.powi(2);
    let half = 0.5 / 1.2_f64.powi(2);
    let idle = 54.0 + (80.0 - 54.0) * (half - floor) / (1.0 - floor);
    is_power(idle + (382.0 - 80.0 - 60.0) * half + 60.0, 1.0, 705);
}

#[test]
fn two_processes_see_the_same_gpu_and_one_history() {
    let mock = MockNvml::new(&prompt(GpuConfig::a100()));
    let (sensors, mut clocks) = open(&mock);
    mock.set_load(0, 1.0).expect("GPU 0");
    clocks.lock_core(Mhz(705), Mhz(705)).expect("core lock");
    // The other process: this test program, running only the test below.
    let other = Command::new(std::env::current_exe().expect("this test's path"))
        .args(["--exact", "other_process_locks_its_gpu", "--ignored"])
        .envs(mock.env())
        .output()
        .expect("the other process runs");
    assert!(other.status.success(), "{}", String::from_utf8_lossy(&other.stdout));
    assert_eq!(sensors.reading().expect("a reading").core_clock, Some(Mhz(1005)));
    let history = mock.history();
    assert_eq!(history.iter().map(|write| write.args).collect::<Vec<_>>(), [[705, 705], [210, 1005]]);
    assert_eq!(history[0].pid, std::process::id());
    assert_ne!(history[1].pid, history[0].pid);
    assert!(history[0].at_ns < history[1].at_ns);
}

#[test]
#[ignore = "the other process of two_processes_see_the_same_gpu_and_one_history"]
fn other_process_locks_its_gpu() {
    let host = mocked_host();
    let first = GpuSelector::Index(0);
    let running = host.sensors(&first).and_then(|sensors| sensors.reading()).expect("a reading");
    assert_eq!(running.core_clock, Some(Mhz(705)), "the first process's lock");
    host.clocks(&first).and_then(|mut clocks| clocks.lock_core(Mhz(210), Mhz(1005))).expect("core lock");
}

#[test]
fn writer_killed_at_any_moment_leaves_a_whole_state_and_no_lock_on_it() {
    let mock = MockNvml::new(&MockConfig::default());
    let mut seen = 0;
    for _ in 0..10 {
        let mut writer = Command::new(std::env::current_exe().expect("this test's path"))
            .args(["--exact", "other_process_locks_for_ever", "--ignored"])
            .envs(mock.env())
            .stdout(Stdio::null())
            .spawn()
            .expect("the writer runs");
        let written = eventually(|| mock.history_since(seen).len(), |writes| *writes > 0);
        assert!(written > 0, "the writer writes");
        writer.kill().and_then(|()| writer.wait()).expect("it dies");
        let history = mock.history();
        let last = history.last().expect("at least one write");
        let lock = mock.locks(0).expect("GPU 0").core.expect("a lock");
        assert_eq!([lock.min, lock.max], last.args, "the lock and its entry in the history appear together");
        seen = last.seq + 1;
    }
    assert!(
        mock.history()
            .windows(2)
            .all(|pair| pair[1].seq == pair[0].seq + 1 && pair[1].at_ns >= pair[0].at_ns)
    );
}

#[test]
#[ignore = "the writer of writer_killed_at_any_moment_leaves_a_whole_state_and_no_lock_on_it"]
fn other_process_locks_for_ever() {
    let host = mocked_host();
    let mut clocks = host.clocks(&GpuSelector::Index(0)).expect("GPU 0");
    for max in (1..).flat_map(|_| [705, 1005, 1410]) {
        clocks.lock_core(Mhz(210), Mhz(max)).expect("core lock");
    }
}

#[test]
fn library_without_a_state_file_is_one_private_a100() {
    let mock = MockNvml::new(&MockConfig::uniform(&GpuConfig::h100(), 2));
    std::fs::remove_file(mock.state_path()).expect("there was one");
    let gpus = NvmlHost::open_with(&mock.library()).and_then(|host| host.list()).expect("one GPU");
    assert_eq!(gpus.iter().map(|gpu| gpu.name.as_str()).collect::<Vec<_>>(), ["NVIDIA A100-SXM4-80GB"]);
}

#[test]
fn library_with_a_broken_state_file_has_no_driver() {
    let mock = MockNvml::new(&MockConfig::default());
    std::fs::remove_file(mock.state_path()).expect("there was one");
    std::fs::write(mock.state_path(), "broken").expect("another");
    assert!(matches!(NvmlHost::open_with(&mock.library()), Err(GpuError::NoDriver { .. })));
}

#[test]
fn hung_call_holds_up_its_thread_and_no_other() {
    let mock = MockNvml::new(&MockConfig::default());
    let (sensors, mut clocks) = open(&mock);
    mock.inject(&Injection::delay(SET_CORE, Duration::from_secs(3600))).expect("a free slot");
    std::thread::spawn(move || clocks.lock_core(Mhz(210), Mhz(705)));
    let hangs = || mock.call_count(SET_CORE).expect("exported");
    assert_eq!(eventually(hangs, |calls| *calls == 1), 1);
    assert_eq!(sensors.reading().expect("a reading").core_clock, Some(Mhz(1410)));
    assert_eq!(mock.history(), []);
}

#[test]
fn lock_outlives_the_handles_of_its_owner() {
    let mock = MockNvml::new(&prompt(GpuConfig::a100()));
    open(&mock).1.lock_core(Mhz(705), Mhz(705)).expect("core lock");
    assert_eq!(mock.locks(0).expect("GPU 0").core.map(|lock| (lock.min, lock.max)), Some((705, 705)));
}

#[test]
fn memory_lock_is_not_supported_on_a_board_with_one_memory_clock() {
    let mock = MockNvml::new(&MockConfig::new(vec![GpuConfig::a100()]));
    let (_, mut clocks) = open(&mock);
    for answer in [clocks.lock_memory(Mhz(1593), Mhz(1593)), clocks.reset_memory()] {
        assert!(matches!(answer, Err(GpuError::NotSupported { .. })), "{answer:?}");
    }
    assert_eq!(mock.history().iter().map(|write| write.code).collect::<Vec<_>>(), [3, 3]);
}

#[test]
fn range_whose_lower_bound_is_above_the_upper_is_refused_by_name() {
    let mock = MockNvml::new(&MockConfig::new(vec![GpuConfig::a100()]));
    let error = open(&mock).1.lock_core(Mhz(1005), Mhz(900)).expect_err("a bad range");
    assert_eq!(error.refusal(), Some(Refusal::DropArm));
    assert_eq!(
        error.to_string(),
        "GPU 0 (NVIDIA A100-SXM4-80GB): nvmlDeviceSetGpuLockedClocks: the driver refused the argument \
         1005 MHz to 900 MHz"
    );
    assert_eq!(mock.locks(0).expect("GPU 0").core, None);
}

#[test]
fn injected_codes_arrive_as_the_error_that_fits_them() {
    let mock = MockNvml::new(&MockConfig::new(vec![GpuConfig::a100()]));
    let (_, mut clocks) = open(&mock);
    let refusals = [
        (3, None),
        (4, Some(Refusal::Pause)),
        (2, Some(Refusal::DropArm)),
        (10, Some(Refusal::Pause)),
        (15, Some(Refusal::Pause)),
        (999, Some(Refusal::Pause)),
    ];
    for (code, refusal) in refusals {
        mock.inject(&Injection::error(SET_CORE, code).times(1)).expect("a free slot");
        let error = clocks.lock_core(Mhz(210), Mhz(1005)).expect_err("the injected error");
        assert_eq!(error.refusal(), refusal, "code {code}: {error}");
        clocks.lock_core(Mhz(210), Mhz(1005)).expect("it was injected once");
    }
    let codes: Vec<_> = mock.history().iter().map(|write| write.code).collect();
    assert_eq!(codes, [3, 0, 4, 0, 2, 0, 10, 0, 15, 0, 999, 0]);
}

#[test]
fn caller_without_privilege_is_told_what_to_grant() {
    let mock = MockNvml::new(&MockConfig::new(vec![GpuConfig::a100()]));
    mock.inject(&Injection::error(SET_CORE, 4)).expect("a free slot");
    let error = open(&mock).1.lock_core(Mhz(210), Mhz(1005)).expect_err("no permission");
    assert!(matches!(error, GpuError::NoPermission { .. }));
    assert!(error.to_string().ends_with("run agft as root or grant it CAP_SYS_ADMIN"), "{error}");
}

#[test]
fn sensor_that_fails_for_the_moment_is_left_out_of_the_reading() {
    let mock = MockNvml::new(&MockConfig::new(vec![GpuConfig::a100()]));
    let (sensors, _) = open(&mock);
    mock.inject(&Injection::error("nvmlDeviceGetTemperature", 999).times(1)).expect("a free slot");
    let seen = sensors.reading().expect("the other sensors");
    assert_eq!((seen.temperature_c, seen.core_clock), (None, Some(Mhz(1410))));
    assert_eq!(sensors.reading().expect("a reading").temperature_c, Some(40.0));
}

#[test]
fn reading_of_which_every_sensor_fails_is_an_error() {
    let mock = MockNvml::new(&MockConfig::new(vec![GpuConfig::a100()]));
    let (sensors, _) = open(&mock);
    for call in nvidia_ml::exported_calls().filter(|call| call.starts_with("nvmlDeviceGet")) {
        mock.inject(&Injection::error(call, 10)).expect("a free slot");
    }
    assert!(matches!(sensors.reading(), Err(GpuError::Failed { .. })));
}

#[test]
fn gpu_off_the_bus_is_lost_to_every_call_and_left_out_of_the_list() {
    let mock = MockNvml::new(&MockConfig::uniform(&GpuConfig::a100(), 2));
    let host = NvmlHost::open_with(&mock.library()).expect("the mock initialises");
    let (sensors, mut clocks) = open(&mock);
    mock.set_lost(0, true).expect("GPU 0");
    let lost = |answer: Result<(), GpuError>| matches!(answer, Err(GpuError::Lost { .. }));
    assert!(lost(sensors.reading().map(drop)));
    assert!(lost(sensors.energy().map(drop)));
    assert!(lost(sensors.supported_clocks().map(drop)));
    assert!(lost(clocks.reset_core()));
    let listed = host.list().expect("the other GPU");
    assert_eq!(listed.iter().map(|gpu| gpu.index).collect::<Vec<_>>(), [1]);
    assert!(
        lost(host.sensors(&GpuSelector::Index(0)).map(drop)),
        "asked for by index, it is lost and not unknown"
    );
}

#[test]
fn missing_library_is_named_with_its_remedy() {
    let error = NvmlHost::open_with(Path::new("/nonexistent/libnvidia-ml.so.1")).expect_err("no library");
    assert!(matches!(error, GpuError::NoLibrary { .. }));
    let text = error.to_string();
    assert!(
        text.contains("/nonexistent/libnvidia-ml.so.1") && text.contains("install the NVIDIA driver"),
        "{text}"
    );
}

#[test]
fn driver_that_is_not_loaded_is_told_from_a_missing_library() {
    let mock = MockNvml::new(&MockConfig::default());
    mock.inject(&Injection::error("nvmlInit_v2", 9)).expect("a free slot");
    let error = NvmlHost::open_with(&mock.library()).expect_err("no driver");
    assert!(matches!(error, GpuError::NoDriver { .. }), "{error}");
}

#[test]
fn library_without_the_newer_functions_lacks_sensors_and_nothing_else() {
    let mock = MockNvml::without(
        &prompt(GpuConfig::a100()),
        &[
            "nvmlDeviceGetTotalEnergyConsumption",
            "nvmlDeviceGetFieldValues",
            "nvmlDeviceGetCurrentClocksEventReasons",
            "nvmlDeviceGetTemperature",
            "nvmlDeviceGetEnforcedPowerLimit",
            "nvmlDeviceGetHandleByUUID",
            "nvmlSystemGetDriverVersion",
            "nvmlDeviceSetMemoryLockedClocks",
        ],
    );
    let (sensors, mut clocks) = open(&mock);
    assert!(matches!(sensors.energy(), Err(GpuError::NotSupported { .. })));
    assert!(matches!(clocks.lock_memory(Mhz(1593), Mhz(1593)), Err(GpuError::NotSupported { .. })));
    let seen = sensors.reading().expect("the sensors that are there");
    assert_eq!(seen.temperature_c, None);
    assert_eq!(seen.reasons, Some(ClockReasons::GPU_IDLE), "by the old name of the function");
    assert_eq!(seen.power, Some(Watts(80.0)), "by nvmlDeviceGetPowerUsage");
    assert_eq!((&sensors.info().driver_version, sensors.info().power_limit), (&None, Some(Watts(400.0))));
    clocks.lock_core(Mhz(210), Mhz(1005)).expect("core lock");
}

#[test]
fn power_falls_back_to_the_older_sensor_and_asks_the_newer_one_only_once() {
    let mock = MockNvml::new(&prompt(GpuConfig { power_instant: false, ..GpuConfig::a100() }));
    let (sensors, _) = open(&mock);
    for _ in 0..5 {
        assert_eq!(sensors.power(), Ok(Watts(80.0)));
    }
    assert_eq!(mock.call_count("nvmlDeviceGetFieldValues").expect("exported"), 1);
    assert_eq!(mock.call_count("nvmlDeviceGetPowerUsage").expect("exported"), 5);
}

#[test]
fn passing_failure_does_not_decide_which_power_sensor_is_used() {
    let mock = MockNvml::new(&prompt(GpuConfig { power_average_ms: 1000, ..GpuConfig::a100() }));
    let (sensors, _) = open(&mock);
    mock.inject(&Injection::error("nvmlDeviceGetFieldValues", 10).times(1)).expect("a free slot");
    assert!(matches!(sensors.power(), Err(GpuError::Failed { .. })));
    assert_eq!(sensors.power(), Ok(Watts(80.0)));
    assert_eq!(mock.call_count("nvmlDeviceGetPowerUsage").expect("exported"), 0);
}

#[test]
fn board_without_any_power_sensor_says_so() {
    let gpu = GpuConfig { power_instant: false, power_usage: false, ..GpuConfig::a100() };
    let mock = MockNvml::new(&prompt(gpu));
    let (sensors, _) = open(&mock);
    for _ in 0..2 {
        assert!(matches!(sensors.power(), Err(GpuError::NotSupported { .. })));
    }
    assert_eq!(sensors.reading().expect("the other sensors").power, None);
}

#[test]
fn sensors_and_clocks_go_to_threads_of_their_own() {
    let mock = MockNvml::new(&prompt(GpuConfig::a100()));
    let (sensors, mut clocks) = open(&mock);
    let reader = std::thread::spawn(move || sensors.reading().map(|seen| seen.core_clock));
    let writer = std::thread::spawn(move || clocks.reset_core());
    assert_eq!(reader.join().expect("no panic"), Ok(Some(Mhz(1410))));
    assert_eq!(writer.join().expect("no panic"), Ok(()));
}

#[test]
fn probe_finds_the_tick_of_the_energy_counter_and_writes_nothing() {
    let gpu = GpuConfig { energy_tick_ms: 100, power_tick_ms: 0, ..GpuConfig::a100() };
    let mock = MockNvml::new(&MockConfig::new(vec![gpu]));
    mock.set_load(0, 1.0).expect("GPU 0");
    let report = probe(&open(&mock).0, Duration::from_millis(550)).expect("a report");
    let energy = report.energy.expect("a counter");
    // A poll sees one change at most: on a machine that stands still for a while two ticks are seen as one.
    let ticks = report.duration_s / 0.1 + 1.0;
    assert!(energy.changes >= 1 && (energy.changes as f64) < ticks, "{energy:?}");
    assert!(energy.period_ms.is_none_or(|period| period.median > 50.0), "{energy:?}");
    assert_eq!(report.power.expect("a sensor").changes, 0, "a steady load");
    assert_eq!(mock.history(), []);
}
