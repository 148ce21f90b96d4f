//! Sensors that answer and are wrong: believed by neither daemon, and said beforehand by `agft check`.
#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod support;

use nvidia_ml::{GpuConfig, Injection, MockConfig};
use support::daemon::Bench;
use support::{eventually, get};

const ENERGY: &str = "nvmlDeviceGetTotalEnergyConsumption";
const FIELDS: &str = "nvmlDeviceGetFieldValues";
const POWER: &str = "nvmlDeviceGetPowerUsage";
const NOT_SUPPORTED: u32 = 3;

fn says(bench: &Bench, call: &str, value: u64) {
    bench.mock.inject(&Injection::value(call, value)).expect("a free slot");
}

/// Runs under load until it has learned something with power in it, and gives the log.
fn learns(bench: &Bench) -> String {
    let mut daemon = bench.serve(&[]);
    daemon.wait_for_lessons(3);
    daemon.stop();
    let rounds = bench.rounds();
    let powers: Vec<f64> = rounds.iter().filter_map(|round| round.power_w).map(|power| power.0).collect();
    assert!(!powers.is_empty(), "{}", daemon.tail());
    assert!(powers.iter().all(|watts| (10.0..=800.0).contains(watts)), "{powers:?}");
    daemon.log()
}

fn warnings(log: &str) -> usize {
    log.lines().filter(|line| line.contains("WARN") && line.contains("not believed")).count()
}

#[test]
fn counter_that_is_always_zero_costs_no_lesson_and_check_says_so() {
    let bench = Bench::new();
    says(&bench, ENERGY, 0);
    let check = bench.run(&["check"]);
    assert!(check.out.contains("energy counter not believed: 0 mJ for"), "{}", check.out);
    assert!(check.out.contains("power samples, integrated, decides instead"), "{}", check.out);
    assert!(!check.out.contains("energy from the driver's counter"), "{}", check.out);
    let gpus = bench.run(&["gpus", "--probe", "--probe-seconds", "1"]);
    assert!(gpus.out.contains("energy counter not believed"), "{}", gpus.out);
    let log = learns(&bench);
    assert_eq!(warnings(&log), 1, "{log}");
}

#[test]
fn counter_that_moves_every_three_seconds_costs_no_lesson() {
    let slow = GpuConfig { energy_tick_ms: 3000, ..GpuConfig::a100() };
    let bench = Bench::with(&MockConfig::new(vec![slow]));
    let log = learns(&bench);
    assert_eq!(warnings(&log), 1, "{log}");
}

#[test]
fn counter_that_jumps_teaches_nothing_of_that() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    daemon.wait_for_lessons(1);
    let jump = Injection::value(ENERGY, 5_000_000_000_000).times(1);
    bench.mock.inject(&jump).expect("a free slot");
    daemon.wait_for_log("energy counter not believed");
    daemon.wait_for_lessons(3);
    daemon.stop();
    let rounds = bench.rounds();
    let mut powers = rounds.iter().filter_map(|round| round.power_w);
    assert!(powers.all(|power| power.0 <= 800.0), "{}", daemon.tail());
}

#[test]
fn power_of_four_megawatts_is_not_believed_and_the_counter_decides() {
    let bench = Bench::new();
    says(&bench, FIELDS, u64::from(u32::MAX));
    says(&bench, POWER, u64::from(u32::MAX));
    let check = bench.run(&["check"]);
    assert!(check.out.contains("power of 4294967.3 W not believed"), "{}", check.out);
    let log = learns(&bench);
    assert_eq!(warnings(&log), 1, "{log}");
}

#[test]
fn group_of_which_one_has_no_energy_has_none_and_shows_no_made_up_zero() {
    let bench = Bench::with(&MockConfig::uniform(&GpuConfig::a100(), 2)).set("gpu.device_id", "[0, 1]");
    for call in [ENERGY, FIELDS, POWER] {
        bench.mock.inject(&Injection::error(call, NOT_SUPPORTED).on(1)).expect("a free slot");
    }
    let check = bench.run(&["check"]);
    assert!(check.out.contains("and that of the whole group with it"), "{}", check.out);
    bench.engine.set_load(0.6);
    let mut daemon = bench.start(&["--metrics-listen", "127.0.0.1:0"]);
    daemon.wait_for_log("the energy of the whole group is unknown");
    let address = daemon.page_address();
    let first = r#"agft_gpu_energy_joules_total{server="server",gpu="0"}"#;
    let page = eventually(|| get(&address, "/metrics").unwrap_or_default(), |page| page.contains(first));
    assert!(page.contains(first), "{page}");
    assert!(!page.contains(r#"agft_gpu_energy_joules_total{server="server",gpu="1"}"#), "{page}");
    assert!(!page.contains(r#"agft_gpu_power_watts{server="server",gpu="1"}"#), "{page}");
    daemon.stop();
    assert!(bench.rounds().iter().all(|round| round.power_w.is_none()), "a part shown as the whole");
}

#[test]
fn absurd_values_have_no_sample() {
    let bench = Bench::new();
    says(&bench, "nvmlDeviceGetUtilizationRates", 4_000_000_000);
    says(&bench, "nvmlDeviceGetTemperature", 0);
    says(&bench, FIELDS, 0);
    says(&bench, POWER, 0);
    let mut daemon = bench.serve(&["--metrics-listen", "127.0.0.1:0"]);
    daemon.wait_for_lessons(1);
    let page = get(daemon.page_address(), "/metrics").expect("the page");
    for name in ["agft_gpu_utilization_ratio{", "agft_gpu_temperature_celsius{", "agft_gpu_power_watts{"] {
        assert!(!page.contains(name), "{page}");
    }
    daemon.stop();
    assert_eq!(warnings(&daemon.log()), 3, "{}", daemon.log());
}

#[test]
fn parked_energy_is_by_power_where_the_counter_never_moves() {
    let bench = support::parking::a100();
    says(&bench, ENERGY, 0);
    let mut daemon = support::parking::parked(&bench, &[]);
    std::thread::sleep(std::time::Duration::from_secs(3));
    daemon.stop();
    let log = daemon.log();
    let summary = log.lines().find(|line| line.contains("SUMMARY")).expect("a summary");
    assert!(summary.contains(", parked ") && !summary.contains("parked 0.0 W"), "{log}");
    assert_eq!(warnings(&log), 1, "{log}");
}
