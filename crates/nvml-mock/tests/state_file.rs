//! State files: what is made, shared and refused.

use nvidia_ml::{GpuConfig, Injection, Level, MockConfig, MockError, MockState};

#[test]
fn state_file_opened_twice_is_one_machine() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("state");
    let first = MockState::create(&path, &MockConfig::uniform(&GpuConfig::h100(), 2)).expect("a state file");
    let second = MockState::open(&path).expect("the same");
    assert_eq!(second.config(), first.config());
    first.set_temperature(1, 77).expect("GPU 1");
    assert_eq!(second.snapshot(1).expect("GPU 1").temperature_c, 77);
    second.set_lost(0, true).expect("GPU 0");
    assert!(first.snapshot(0).expect("GPU 0").lost);
}

#[test]
fn state_file_made_again_leaves_the_old_one_to_those_who_have_it_open() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("state");
    let old = MockState::create(&path, &MockConfig::default()).expect("a state file");
    let new = MockState::create(&path, &MockConfig::default()).expect("another in its place");
    new.set_temperature(0, 77).expect("GPU 0");
    assert_eq!(old.snapshot(0).expect("GPU 0").temperature_c, 40);
    assert_eq!(
        std::fs::read_dir(directory.path()).expect("the directory").count(),
        1,
        "nothing is left beside it"
    );
}

#[test]
fn file_that_is_no_state_file_is_refused_by_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("state");
    let refused = |reason: &str| {
        let error = MockState::open(&path).expect_err("no state file").to_string();
        assert!(error.contains(&path.display().to_string()) && error.contains(reason), "{error}");
    };
    refused("No such file");
    std::fs::write(&path, "short").expect("a file");
    refused("too short");
    std::fs::write(&path, vec![0; 8 << 20]).expect("a file");
    refused("does not start with this version's mark");
}

#[test]
fn gpu_that_is_not_there_is_refused() {
    let state = MockState::private(&MockConfig::default()).expect("a private machine");
    assert!(matches!(state.set_load(1, 0.5), Err(MockError::NoSuchGpu(1))));
    assert!(matches!(state.snapshot(7), Err(MockError::NoSuchGpu(7))));
    assert!(matches!(state.call_count("nvmlFoo"), Err(MockError::UnknownCall(_))));
    assert!(state.inject(&Injection::error("nvmlShutdown", 1)).is_ok());
}

#[test]
fn load_outside_0_to_1_is_clamped_and_no_number_is_idle() {
    let state = MockState::private(&MockConfig::default()).expect("a private machine");
    for (set, wanted) in [(1.5, 1.0), (-0.5, 0.0), (f64::NAN, 0.0), (f64::INFINITY, 1.0), (0.25, 0.25)] {
        state.set_load(0, set).expect("GPU 0");
        assert!((state.snapshot(0).expect("GPU 0").load - wanted).abs() < f64::EPSILON, "{set}");
    }
}

#[test]
fn configuration_that_breaks_a_rule_is_refused_with_the_gpu_and_the_rule() {
    let rule = |gpu: GpuConfig| {
        let config = MockConfig::new(vec![GpuConfig::a100(), gpu]);
        MockState::private(&config).expect_err("a broken rule").to_string()
    };
    let a100 = GpuConfig::a100;
    let cases = [
        (GpuConfig { levels: vec![], ..a100() }, "at least one memory level"),
        (
            GpuConfig { levels: vec![Level { memory_mhz: 1, core_mhz: vec![] }], ..a100() },
            "a core clock in each",
        ),
        (GpuConfig { levels: vec![Level { memory_mhz: 0, core_mhz: vec![1] }], ..a100() }, "0 MHz"),
        (GpuConfig { tdp_w: f64::NAN, ..a100() }, "finite"),
        (GpuConfig { idle_min_w: 90.0, ..a100() }, "idle_min_w <= idle_max_w"),
        (GpuConfig { busy_w: 100.0, ..a100() }, "busy_w >= idle_max_w"),
        (GpuConfig { energy_tick_ms: 0, ..a100() }, "energy_tick_ms"),
    ];
    for (gpu, wanted) in cases {
        let text = rule(gpu);
        assert!(text.starts_with("GPU 1 (NVIDIA A100") && text.contains(wanted), "{text}");
    }
    assert!(MockState::private(&MockConfig::new(vec![])).is_err());
    assert!(MockState::private(&MockConfig::uniform(&a100(), 17)).is_err());
}
