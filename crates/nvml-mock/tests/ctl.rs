//! The script's side: nvml-mock-ctl.

use std::path::Path;
use std::process::{Command, Output};

use nvidia_ml::{MockState, Snapshot};

#[expect(clippy::expect_used, reason = "a test that cannot be set up fails")]
fn ctl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nvml-mock-ctl")).args(arguments).output().expect("it runs")
}

/// Standard output of a call that succeeds.
fn done(arguments: &[&str]) -> String {
    let output = ctl(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[expect(clippy::expect_used, reason = "a test that cannot be set up fails")]
fn snapshot(path: &Path, gpu: usize) -> Snapshot {
    MockState::open(path).and_then(|state| state.snapshot(gpu)).expect("a GPU in a state file")
}

#[test]
fn what_a_script_sets_the_library_sees() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("state");
    let file = path.to_str().expect("a plain path");
    done(&["create", "--preset", "rtx3090", "--gpus", "2", file]);
    done(&["load", file, "1", "0.7"]);
    done(&["temperature", file, "1", "66"]);
    done(&["reasons", file, "1", "64"]);
    done(&["lost", file, "0", "true"]);
    done(&["processes", file, "1", "4711", "4712"]);
    let second = snapshot(&path, 1);
    assert_eq!(
        (second.name.as_str(), second.temperature_c, second.event_reasons),
        ("NVIDIA GeForce RTX 3090", 66, 64)
    );
    assert!((second.load - 0.7).abs() < f64::EPSILON);
    assert!(snapshot(&path, 0).lost);
    let processes = |gpu| MockState::open(&path).and_then(|state| state.processes(gpu)).expect("a GPU");
    assert_eq!((processes(0), processes(1)), (vec![], vec![(4711, 1 << 30), (4712, 1 << 30)]));

    let shown: serde_json::Value = serde_json::from_str(&done(&["show", "--json", file])).expect("JSON");
    assert_eq!((shown[1]["temperature_c"].as_u64(), shown[0]["lost"].as_bool()), (Some(66), Some(true)));
    assert!(done(&["show", file]).lines().all(|line| line.contains("locks none / none")));
    assert_eq!(done(&["history", "--json", file]), "");
}

#[test]
fn machine_shown_as_configuration_can_be_made_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let [first, second, text] = ["first", "second", "text"].map(|name| directory.path().join(name));
    let [first, second, text] = [&first, &second, &text].map(|path| path.to_str().expect("a plain path"));
    done(&["create", "--preset", "h200", first]);
    std::fs::write(text, done(&["show", "--config", first])).expect("a file");
    done(&["create", "--config", text, second]);
    assert_eq!(done(&["show", "--config", second]), done(&["show", "--config", first]));
}

#[test]
fn mistakes_are_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("state");
    let file = path.to_str().expect("a plain path");
    let told = |arguments: &[&str], wanted: &str| {
        let output = ctl(arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(wanted), "{arguments:?}: {text}");
    };
    told(&["create", "--preset", "voodoo", file], "no preset voodoo: a100, h100");
    told(&["show", file], "No such file");
    done(&["create", file]);
    told(&["load", file, "4", "0.5"], "no GPU 4");
    told(&["inject", file, "nvmlFoo", "--code", "4"], "nvmlFoo is no function");
    done(&["inject", file, "nvmlInit_v2", "--code", "9", "--times", "1"]);
    done(&["clear", file]);
    assert!(done(&["calls"]).lines().any(|call| call == "nvmlDeviceSetGpuLockedClocks"));
}
