//! Bad input from every side: configuration, driver, rights, disks. Each gets a message that names the thing and the
//! remedy, its own exit code, and no clock is left locked.
#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use nvidia_ml::{GpuConfig, Injection, MockConfig, NO_PERMISSION_VARIABLE};
use support::daemon::{Bench, Daemon, Finished, finish};

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

/// Runs the daemon and `check-config` with this configuration file: both refuse it with the same words.
fn refused(bench: &Bench, file: &Path, texts: &[&str]) {
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_agft"));
    daemon.envs(bench.mock.env()).arg("--config").arg(file);
    let mut check = Command::new(env!("CARGO_BIN_EXE_agft"));
    check.arg("check-config").arg(file);
    let (daemon, check) = (finish(daemon), finish(check));
    for finished in [&daemon, &check] {
        assert_eq!(finished.code, Some(64), "{finished:?}");
        for text in texts {
            assert!(finished.err.contains(text), "no {text:?} in {}", finished.err);
        }
        assert!(finished.err.contains(&file.display().to_string()), "the file is named: {}", finished.err);
    }
    assert_eq!(daemon.err, check.err);
    assert_eq!(bench.mock.history(), []);
}

fn refused_text(text: &[u8], texts: &[&str]) {
    let bench = Bench::new();
    let file = bench.path("bad.yaml");
    fs::write(&file, text).expect("a file");
    refused(&bench, &file, texts);
}

/// Runs the daemon to its end, which comes by itself and with no clock left locked.
fn fails(bench: &Bench, code: i32, texts: &[&str]) -> Finished {
    fails_as(bench, bench.command(&[]), code, texts)
}

fn fails_as(bench: &Bench, command: Command, code: i32, texts: &[&str]) -> Finished {
    let finished = finish(command);
    assert_eq!(finished.code, Some(code), "{finished:?}");
    let last = finished.err.lines().last().unwrap_or_default();
    for text in texts {
        assert!(last.contains(text), "no {text:?} at the end of {}", finished.err);
    }
    assert!(!finished.err.contains("could not be given back"), "nothing was taken: {}", finished.err);
    assert!(bench.is_free());
    finished
}

#[test]
fn configuration_that_is_not_there_is_named() {
    let bench = Bench::new();
    refused(&bench, &bench.path("absent.yaml"), &["no such file; check the path"]);
}

#[test]
fn directory_in_place_of_the_configuration_is_named() {
    let bench = Bench::new();
    fs::create_dir(bench.path("directory")).expect("a directory");
    refused(&bench, &bench.path("directory"), &["is a directory, must be a file"]);
}

#[test]
fn configuration_that_cannot_be_read_is_named_with_the_reason() {
    let bench = Bench::new();
    fs::write(bench.path("file"), "").expect("a file");
    // Root may read anything: a path that leads through a file cannot be opened by anyone.
    refused(&bench, &bench.path("file/config.yaml"), &["cannot be read", "Not a directory"]);
}

#[test]
fn configuration_without_content_is_refused() {
    refused_text(b"", &["is empty; write {} to take every default"]);
    refused_text(b"# nothing but a comment\n", &["is empty"]);
}

#[test]
fn configuration_that_is_no_yaml_is_refused_with_the_place() {
    refused_text(b"gpu:\n\tdevice_id: 0\n", &["is not YAML", "line 2", "not with tabs"]);
    refused_text(b"gpu: {device_id: 0\n", &["is not YAML"]);
    refused_text(b"gpu:\n  # \xff\n", &["line 2 is not UTF-8 text"]);
}

#[test]
fn key_given_twice_is_refused_with_both_lines() {
    refused_text(
        b"gpu:\n  device_id: 0\n  device_id: 1\n",
        &["gpu.device_id is given 2 times (lines 2, 3), must be given once"],
    );
}

#[test]
fn value_of_the_wrong_type_is_refused_with_the_rule() {
    refused_text(
        b"control:\n  decision_interval_s: fast\n",
        &["control.decision_interval_s is", "fast", "must be a number from 0.02 to 10"],
    );
}

#[test]
fn unknown_key_is_refused_with_the_one_that_was_meant() {
    refused_text(
        b"gpu:\n  device_ids: 0\n",
        &["gpu.device_ids is not a known key; did you mean gpu.device_id?"],
    );
}

#[test]
fn every_problem_of_a_configuration_is_named_in_one_run() {
    refused_text(
        b"vllm: {prometheus_url: ftp://host}\ngpu: {device_id: -1, colour: red}\nmodel: {save_interval: 0}\n",
        &["vllm.prometheus_url", "gpu.device_id", "gpu.colour", "model.save_interval"],
    );
}

#[test]
fn shipped_configuration_and_agfts_own_are_accepted() {
    for (file, warns) in [("config/config.yaml", false), ("tests/config/agft-original.yaml", true)] {
        let mut check = Command::new(env!("CARGO_BIN_EXE_agft"));
        check.arg("check-config").arg(Path::new(REPOSITORY).join(file));
        let checked = finish(check);
        assert_eq!(checked.code, Some(0), "{checked:?}");
        assert!(checked.out.trim_end().ends_with(": ok"), "{checked:?}");
        assert_eq!(checked.out.contains("warning"), warns, "{checked:?}");
    }
}

#[test]
fn driver_library_that_cannot_be_loaded_is_named_with_the_remedy() {
    let bench = Bench::new();
    let place = bench.path("libraries");
    fs::create_dir(&place).expect("a directory");
    // An empty directory would do, but where a real driver is installed the loader would go on and find it.
    fs::write(place.join("libnvidia-ml.so.1"), "no library").expect("a file");
    for arguments in [&[][..], &["gpus"], &["release"], &["--dry-run"]] {
        let mut command = bench.command(arguments);
        command.env("LD_LIBRARY_PATH", &place);
        let wanted = ["management library cannot be loaded", "install the NVIDIA driver"];
        fails_as(&bench, command, 1, &wanted);
    }
    let mut check = bench.command(&["check"]);
    check.env("LD_LIBRARY_PATH", &place);
    let checked = finish(check);
    assert_eq!(checked.code, Some(1), "{checked:?}");
    assert!(checked.out.contains("FAIL  driver: the NVIDIA management library"), "{checked:?}");
}

#[test]
fn machine_without_a_driver_says_so() {
    let cache = Command::new("/sbin/ldconfig").arg("-p").output();
    if cache.is_ok_and(|cache| String::from_utf8_lossy(&cache.stdout).contains("libnvidia-ml.so.1")) {
        eprintln!("skipped: this machine has a driver");
        return;
    }
    let bench = Bench::new();
    let mut command = bench.command(&["gpus"]);
    command.env("LD_LIBRARY_PATH", bench.path("nothing"));
    fails_as(&bench, command, 1, &["management library cannot be loaded", "libnvidia-ml.so.1"]);
}

#[test]
fn missing_rights_have_their_own_exit_code_and_the_remedy() {
    let bench = Bench::new();
    for arguments in [&[][..], &["release"]] {
        let mut command = bench.command(arguments);
        command.env(NO_PERMISSION_VARIABLE, "1");
        fails_as(&bench, command, 77, &["not permitted; run agft as root or grant it CAP_SYS_ADMIN"]);
    }
}

#[test]
fn gpu_that_is_not_there_is_named_beside_those_that_are() {
    let present = ["present: 0 (GPU-", "1 (GPU-"];
    let two = MockConfig::uniform(&GpuConfig::a100(), 2);
    let bench = Bench::with(&two).set("gpu.device_id", "2");
    fails(&bench, 1, &["no GPU 2;", present[0], present[1]]);
    let uuid = "GPU-00000000-1111-2222-3333-444444444444";
    let bench = Bench::with(&two).set("gpu.device_id", uuid);
    fails(&bench, 1, &[&format!("no GPU {uuid};"), present[0], present[1]]);
    assert_eq!(bench.mock.history(), []);
}

#[test]
fn group_of_unlike_gpus_or_of_one_twice_is_refused() {
    let machine = MockConfig::new(vec![GpuConfig::a100(), GpuConfig::h100()]);
    let bench = Bench::with(&machine).set("gpu.device_id", "[0, 1]");
    fails(&bench, 1, &["GPU 0 (NVIDIA A100-SXM4-80GB)", "GPU 1 (NVIDIA H100", "must be alike"]);
    let bench = Bench::with(&machine);
    let uuid = bench.mock.config().gpus[0].uuid.clone();
    let bench = bench.set("gpu.device_id", &format!("[0, {uuid}]"));
    fails(&bench, 1, &["names GPU 0 (NVIDIA A100-SXM4-80GB) twice"]);
    assert_eq!(bench.mock.history(), []);
}

#[test]
fn gpu_whose_clocks_cannot_be_locked_is_named_with_what_works_without() {
    let machine = MockConfig::new(vec![GpuConfig { core_lock: false, ..GpuConfig::a100() }]);
    let bench = Bench::with(&machine);
    let wanted = ["GPU 0 (NVIDIA A100-SXM4-80GB)", "not supported", "--data-collection-mode"];
    fails(&bench, 1, &wanted);
}

#[test]
fn directory_that_cannot_be_written_ends_the_start_with_the_remedy() {
    for key in ["model.save_dir", "experiment.dir"] {
        let bench = Bench::new();
        fs::write(bench.path("file"), "").expect("a file");
        // Root may write anywhere: a path that leads through a file can be made by nobody.
        let dir = bench.path("file/below");
        let bench = bench.set(key, dir.to_str().expect("text"));
        fails(&bench, 1, &[key, "something that is not a directory stands in the way"]);
        let checked = bench.run(&["check"]);
        assert!(checked.code != Some(0) && checked.out.contains(&format!("FAIL  {key}: ")), "{checked:?}");
    }
}

#[test]
fn log_directory_that_cannot_be_written_costs_the_log_file_only() {
    let bench = Bench::new();
    fs::write(bench.path("file"), "").expect("a file");
    let dir = bench.path("file/below");
    let bench = bench.set("logging.dir", dir.to_str().expect("text"));
    let mut daemon: Daemon = bench.serve(&[]);
    assert!(daemon.log().contains("no log file in"), "{}", daemon.tail());
    daemon.stop();
    bench.assert_given_back(daemon.pid());
}

#[test]
fn token_file_that_cannot_be_used_is_named() {
    let bench = Bench::new();
    let file = bench.path("token");
    let bench = bench.set("vllm.bearer_token_file", file.to_str().expect("text"));
    fails(&bench, 1, &["bearer_token_file", "token", "No such file"]);
    assert_eq!(bench.mock.history(), []);
}

#[test]
fn board_that_lists_no_clocks_is_measured_and_every_command_names_what_works() {
    for call in ["nvmlDeviceGetSupportedMemoryClocks", "nvmlDeviceGetSupportedGraphicsClocks"] {
        let bench = Bench::new();
        bench.mock.inject(&Injection::error(call, 3)).expect("the mock");
        fails(&bench, 1, &["lists no clocks", "--data-collection-mode"]);
        for command in ["check", "gpus"] {
            let said = bench.run(&[command]);
            assert!(said.out.contains("--data-collection-mode"), "{said:?}");
        }
        for mode in ["--data-collection-mode", "--dry-run"] {
            bench.engine.set_load(0.6);
            let mut daemon = bench.start(&[mode]);
            daemon.wait_for_log("DEBUG agft::daemon::log: round");
            daemon.stop();
        }
        assert_eq!(bench.mock.history(), []);
    }
}
