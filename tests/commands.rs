//! Subcommands and flags of the real program: what they print, how they end, and that they leave the clocks alone.
#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod support;

use agft::gpu::nvml::NvmlHost;
use agft::gpu::{GpuClocks, GpuSelector};
use agft::units::Mhz;
use nvidia_ml::{GpuConfig, MockConfig};
use serde_json::Value;
use support::MockNvml;
use support::daemon::Bench;
use support::engine::Behaviour;
use support::eventually;

/// Whether this process may lock clocks on a real driver, which `check` asks the kernel.
fn may_lock() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("the kernel's word");
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("capabilities");
    u64::from_str_radix(mask.trim(), 16).expect("a mask") & (1 << 21) != 0
}

fn lock(mock: &MockNvml, gpu: u32) {
    let host = NvmlHost::open_with(&mock.library()).expect("the mock initialises");
    let mut clocks = host.clocks(&GpuSelector::Index(gpu)).expect("a GPU of this machine");
    clocks.lock_core(Mhz(300), Mhz(300)).expect("core lock");
}

/// Runs the daemon in a mode that must not touch clocks, under load and then idle, and gives its log.
fn hands_off(flag: &str) -> (Bench, String) {
    let bench = Bench::new();
    bench.engine.set_load(0.6);
    let mut daemon = bench.start(&[flag]);
    for wanted in [20, 30] {
        let rounds = eventually(|| bench.engine.served(), |served| *served >= wanted);
        assert!(rounds >= wanted, "{}", daemon.tail());
        bench.engine.set_load(0.0);
    }
    daemon.stop();
    assert_eq!(bench.mock.history(), [], "{flag}: clock writes");
    assert!(bench.rounds().len() >= 20, "{flag}: {} rounds", bench.rounds().len());
    let log = daemon.log();
    (bench, log)
}

#[test]
fn data_collection_records_rounds_and_writes_no_clock() {
    let (bench, log) = hands_off("--data-collection-mode");
    let methods: Vec<_> = bench.rounds().into_iter().map(|round| round.action_selection_method).collect();
    assert!(methods.iter().all(|method| method.as_deref() == Some("DATA_COLLECTION")), "{methods:?}");
    assert!(!log.contains("clocks change") && !log.contains("clocks would change"), "{log}");
}

#[test]
fn data_collection_in_the_configuration_is_the_same_as_the_flag() {
    let bench = Bench::new().set("control.data_collection_mode", "true");
    bench.engine.set_load(0.6);
    let mut daemon = bench.start(&[]);
    assert!(eventually(|| bench.engine.served(), |served| *served >= 10) >= 10, "{}", daemon.tail());
    daemon.stop();
    assert_eq!(bench.mock.history(), []);
}

#[test]
fn dry_run_decides_and_records_but_writes_no_clock_and_no_model() {
    let (bench, log) = hands_off("--dry-run");
    assert!(log.contains("clocks would change (dry run)"), "{log}");
    assert!(bench.rounds().iter().any(|round| round.decision_reason.as_deref() == Some("sweep")));
    assert_eq!(bench.model_files(), Vec::<String>::new());
}

#[test]
fn modes_without_writes_need_no_permission() {
    for flag in ["--dry-run", "--data-collection-mode"] {
        let bench = Bench::new();
        let mut command = bench.command(&[flag]);
        command.env(nvidia_ml::NO_PERMISSION_VARIABLE, "1");
        let mut daemon = support::daemon::Daemon::start(command);
        assert!(eventually(|| bench.engine.served(), |served| *served >= 5) >= 5, "{}", daemon.tail());
        daemon.stop();
    }
}

#[test]
fn release_gives_back_what_others_left_locked() {
    let bench = Bench::with(&MockConfig::uniform(&GpuConfig::a6000(), 2)).set("gpu.device_id", "1");
    lock(&bench.mock, 0);
    lock(&bench.mock, 1);
    let released = bench.run(&["release"]);
    assert_eq!(released.code, Some(0), "{released:?}");
    assert!(released.out.contains("GPU 1 (NVIDIA RTX A6000): clocks given back"), "{released:?}");
    let locked = |gpu| bench.mock.locks(gpu).expect("a GPU").core.is_some();
    assert_eq!((locked(0), locked(1)), (true, false), "only the configured GPU");
    let released = bench.run(&["release", "--all"]);
    assert_eq!(released.code, Some(0), "{released:?}");
    assert!(bench.is_free());
}

#[test]
fn release_works_without_a_configuration() {
    let bench = Bench::new();
    lock(&bench.mock, 0);
    let released = bench.run(&["release", "--config", "no-such-file.yaml"]);
    assert_eq!(released.code, Some(0), "{released:?}");
    assert!(bench.is_free());
}

#[test]
fn gpus_as_json_have_identity_readings_and_clocks() {
    let bench = Bench::with(&MockConfig::new(vec![GpuConfig::a100(), GpuConfig::a6000()]));
    let listed = bench.run(&["gpus", "--json"]);
    assert_eq!(listed.code, Some(0), "{listed:?}");
    let gpus: Value = serde_json::from_str(&listed.out).expect("JSON");
    assert_eq!(gpus.as_array().map(Vec::len), Some(2));
    for (gpu, wanted) in gpus.as_array().into_iter().flatten().zip(&bench.mock.config().gpus) {
        assert_eq!((&gpu["name"], &gpu["uuid"]), (&wanted.name.clone().into(), &wanted.uuid.clone().into()));
        assert_eq!(gpu["driver_version"], "580.95.05");
        assert!(gpu["reading"]["power"].as_f64() > Some(0.0), "{gpu}");
        assert!(gpu["energy_counter_mj"].as_u64() > Some(0), "{gpu}");
        let levels = gpu["supported_clocks"]["levels"].as_array().map(Vec::len);
        assert_eq!(levels, Some(wanted.levels.len()), "{gpu}");
        let controllable = &gpu["controllable"];
        assert_eq!(
            (&controllable["core_clock"], &controllable["energy_counter"]),
            (&true.into(), &true.into())
        );
        assert_eq!(controllable["memory_clock"], wanted.levels.len() > 1);
    }
    assert_eq!(bench.mock.history(), []);
}

#[test]
fn gpus_for_humans_name_each_gpu_and_its_clocks() {
    let bench = Bench::with(&MockConfig::new(vec![GpuConfig::a100(), GpuConfig::a6000()]));
    let listed = bench.run(&["gpus"]);
    for text in ["GPU 0 (NVIDIA A100-SXM4-80GB)", "GPU 1 (NVIDIA RTX A6000)", "210 MHz to 1410 MHz"] {
        assert!(listed.out.contains(text), "no {text:?} in {}", listed.out);
    }
}

#[test]
fn check_beside_a_live_server_finds_everything_in_place() {
    let bench = Bench::new();
    bench.engine.set_load(0.6);
    let checked = bench.run(&["check"]);
    let bad: Vec<&str> = checked.out.lines().filter(|line| line.starts_with("FAIL")).collect();
    if may_lock() {
        assert_eq!((checked.code, bad), (Some(0), vec![]), "{checked:?}");
    } else {
        assert_eq!(checked.code, Some(77), "{checked:?}");
        assert!(bad.len() == 1 && bad[0].contains("CAP_SYS_ADMIN"), "{checked:?}");
    }
    for what in ["configuration", "driver", "GPU 0", "model.save_dir", "experiment.dir", "endpoint", "engine"]
    {
        assert!(checked.out.contains(&format!("ok    {what}: ")), "no {what} in {}", checked.out);
    }
    assert_eq!(bench.mock.history(), [], "check writes no clock");
    assert_eq!(bench.model_files(), Vec::<String>::new(), "check makes no directory");
}

#[test]
fn check_names_each_trouble_of_the_endpoint_and_fails() {
    for (behaviour, wanted) in [
        (Behaviour::Refuse, "connection refused"),
        (Behaviour::Hang, "no complete answer within"),
        (Behaviour::Status500, "HTTP status 500"),
        (Behaviour::Empty, "the page is empty"),
        (Behaviour::Html, "the page is HTML"),
        (Behaviour::Huge, "larger than"),
        (Behaviour::Poison("NaN"), "NaN is not a finite number"),
        (Behaviour::Truncated, "broke off"),
        (Behaviour::NotUtf8, "not UTF-8"),
    ] {
        let bench = Bench::new();
        bench.engine.behave(behaviour);
        std::thread::sleep(std::time::Duration::from_millis(10));
        let checked = bench.run(&["check"]);
        let bad: Vec<&str> = checked.out.lines().skip_while(|line| !line.starts_with("FAIL")).collect();
        assert!(checked.code != Some(0) && bad.join("\n").contains(wanted), "{behaviour:?}: {checked:?}");
        assert_eq!(bench.mock.history(), []);
    }
}

#[test]
fn check_names_a_missing_gpu_and_goes_on_with_the_rest() {
    let bench = Bench::new().set("gpu.device_id", "5");
    let checked = bench.run(&["check"]);
    assert_ne!(checked.code, Some(0));
    assert!(checked.out.contains("FAIL  GPU 5: no GPU 5; present: 0 (GPU-"), "{checked:?}");
    assert!(checked.out.contains("ok    endpoint"), "{checked:?}");
}

#[test]
fn demo_needs_no_gpu_and_gives_its_clocks_back() {
    let bench = Bench::new();
    let shown = bench.run(&["demo", "--seconds", "5", "--json"]);
    assert_eq!(shown.code, Some(0), "{shown:?}");
    let report: Value = serde_json::from_str(&shown.out).expect("JSON");
    assert_eq!((&report["clocks_given_back"], report["seconds"].as_f64()), (&true.into(), Some(5.0)));
    assert!(report["rounds"].as_u64() >= Some(5), "{report}");
    for run in ["default_clocks", "agft"] {
        assert!(report[run]["energy_j"].as_f64() > Some(0.0), "{report}");
        assert!(report[run]["generated_tokens"].as_f64() > Some(0.0), "{report}");
    }
    assert_eq!(bench.mock.call_count("nvmlInit_v2").ok(), Some(0), "the demo leaves real GPUs alone");
}

#[test]
fn usage_error_has_its_own_exit_code_and_help_explains_the_codes() {
    let bench = Bench::new();
    for arguments in
        [&["--no-such-flag"][..], &["no-such-command"], &["demo", "--seconds", "1"], &["check-config"]]
    {
        assert_eq!(bench.run(arguments).code, Some(2), "{arguments:?}");
    }
    let help = bench.run(&["--help"]);
    assert_eq!(help.code, Some(0));
    for code in ["64 bad configuration", "69 GPU in use", "70 a part hung", "77 not permitted"] {
        assert!(help.out.contains(code), "{}", help.out);
    }
    let version = bench.run(&["--version"]);
    assert_eq!(version.out, format!("agft {}\n", env!("CARGO_PKG_VERSION")));
}

/// Both ends of a command's talk are gone before it starts: as after `agft ... 2>&1 | true`.
#[test]
fn command_that_nobody_listens_to_does_its_work_and_does_not_panic() {
    let bench = Bench::with(&MockConfig::uniform(&GpuConfig::a6000(), 2)).set("gpu.device_id", "[0, 1]");
    lock(&bench.mock, 0);
    lock(&bench.mock, 1);
    let deaf = |arguments: &[&str]| {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = bench.command(arguments);
        command.stdout(writer.try_clone().expect("a copy")).stderr(writer);
        command.status().expect("it runs").code()
    };
    assert_eq!(deaf(&["release"]), Some(0));
    assert!(bench.is_free(), "both GPUs");
    for arguments in [
        &["check"][..],
        &["gpus"],
        &["gpus", "--json"],
        &["check-config", "no-such-file.yaml"],
        &["status"],
        &["model", "show"],
        &["completions", "bash"],
        &["report", "nowhere"],
        &["simulate", "--policy", "nobody"],
    ] {
        // 101 is a panic, `None` a signal.
        assert!(deaf(arguments).is_some_and(|code| code != 101), "{arguments:?}: {:?}", deaf(arguments));
    }
}
