//! The page as its readers get it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

use super::*;
use crate::park::instances::{GpuName, InstanceState, ToldInstance};
use crate::view::{State, testing};

const DOCUMENT: &str = include_str!("../../../docs/metrics.md");

fn page_of(host: HostState) -> String {
    page(host, Format::Text).unwrap()
}

fn page_with(state: State) -> String {
    page_of(testing::of(vec![state], None))
}

/// Of two servers and a GPU without one.
fn text() -> String {
    let gpus = vec![GpuName { index: 0, uuid: "GPU-1".into() }];
    let told = |state| ToldInstance { name: "codestral".into(), state, gpus: gpus.clone() };
    // Of two supervisors.
    let instances = vec![told(InstanceState::Working), told(InstanceState::Idle)];
    page_of(HostState { instances, ..testing::host() })
}

#[test]
fn an_instance_works_if_one_of_its_name_does() {
    assert!(text().contains("agft_instance_working{instance=\"codestral\",gpu=\"0\"} 1"), "{}", text());
}

/// Name, type, labels and help of every metric of a page.
fn families(page: &str) -> BTreeMap<String, (String, String, String)> {
    let mut labels: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for sample in page.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = sample.split_once(['{', ' ']).unwrap();
        let set = labels.entry(name).or_default();
        if sample.as_bytes()[name.len()] == b'{' {
            let inside = rest.rsplit_once('}').unwrap().0;
            set.extend(inside.split("\",").map(|pair| pair.split_once('=').unwrap().0));
        }
    }
    let mut help = BTreeMap::new();
    let mut families = BTreeMap::new();
    for line in page.lines() {
        if let Some((name, text)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            help.insert(name, text);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let sample = if kind == "histogram" { format!("{name}_count") } else { name.to_owned() };
            let labels: Vec<&str> = labels[sample.as_str()].iter().copied().collect();
            let old =
                families.insert(name.to_owned(), (kind.to_owned(), labels.join(", "), help[name].to_owned()));
            assert_eq!(old, None, "{name} twice");
        }
    }
    families
}

/// Fails unless the tables of a document have exactly the metrics of a page.
fn assert_documented(file: &str, document: &str, page: &str) {
    let mut documented = BTreeMap::new();
    for row in document.lines().filter(|line| line.starts_with("| `agft_")) {
        let cells: Vec<&str> =
            row.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let [name, kind, labels, help] = cells[..] else { panic!("{row}") };
        let old = documented.insert(name.to_owned(), (kind.to_owned(), labels.to_owned(), help.to_owned()));
        assert_eq!(old, None, "{name} is documented twice");
    }
    let found = families(page);
    let rows: Vec<String> = found
        .iter()
        .filter(|(name, family)| documented.get(*name) != Some(family))
        .map(|(name, (kind, labels, help))| format!("| `{name}` | {kind} | {labels} | {help} |"))
        .collect();
    assert!(rows.is_empty(), "{file} lacks or has otherwise:\n{}", rows.join("\n"));
    let gone: Vec<&String> = documented.keys().filter(|name| !found.contains_key(*name)).collect();
    assert!(gone.is_empty(), "{file} has metrics that are not there: {gone:?}");
}

#[test]
fn document_lists_every_metric_as_the_page_has_it() {
    assert_documented("docs/metrics.md", DOCUMENT, &text());
}

#[test]
fn unknown_has_no_sample() {
    let mut state = testing::state();
    state.asked = None;
    state.round = None;
    state.gpus[0].power_w = None;
    state.estimate = crate::view::Estimate::default();
    let page = page_with(state);
    for name in ["agft_asked_core_clock_hertz", "agft_edp", "agft_gpu_power", "agft_estimated_slowdown"] {
        assert!(!page.contains(&format!("\n{name}")), "{name}");
    }
    assert!(page.contains("\nagft_clocks_locked{server=\"chat\",gpu=\"0\"} 1"));
}

#[test]
fn clocks_that_the_driver_does_not_take_back_are_neither_locked_nor_free() {
    let page = page_with(State { not_given_back: true, ..testing::state() });
    assert!(page.contains("\nagft_clocks_not_given_back{server=\"chat\",gpu=\"0\"} 1"));
    assert!(!page.contains("\nagft_clocks_locked"));
    let mut park = testing::park_state();
    park.gpus[0].not_given_back = true;
    let page = page_of(testing::of(Vec::new(), Some(park)));
    assert!(page.contains("\nagft_clocks_not_given_back{server=\"\",gpu=\"0\"} 1"));
    assert!(page.contains("\nagft_park_clocks_not_given_back{gpu=\"0\"} 1"));
    assert!(!page.contains("clocks_locked"));
}

#[test]
fn values_and_labels_are_those_of_the_state() {
    let page = text();
    for line in [
        r#"agft_build_info{version="1.2.3"} 1"#,
        "agft_dry_run 0.0",
        r#"agft_mode{server="chat",gpu="0",mode="EXPLOITATION"} 1.0"#,
        r#"agft_mode{server="chat",gpu="0",mode="IDLE"} 0.0"#,
        r#"agft_mode{server="code",gpu="1,2",mode="PAUSED"} 1.0"#,
        r#"agft_asked_core_clock_hertz{server="chat",gpu="0"} 900000000.0"#,
        r#"agft_gpu_energy_joules_total{server="chat",gpu="0"} 9000.0"#,
        r#"agft_gpu_energy_joules_total{server="code",gpu="2"} 9000.0"#,
        r#"agft_gpu_info{server="chat",gpu="0",uuid="GPU-0f1e2d3c",name="NVIDIA \"A100\""} 1.0"#,
        r#"agft_gpu_info{server="",gpu="3",uuid="GPU-0f1e2d3c",name="NVIDIA RTX A6000"} 1.0"#,
        r#"agft_gpu_temperature_celsius{server="",gpu="3"} 41.0"#,
        r#"agft_arms{server="chat",gpu="0",status="pruned_cost"} 1.0"#,
        r#"agft_estimated_energy_saved_joules{server="chat",gpu="0"} 2500.0"#,
        r#"agft_estimated_energy_saved_ratio{server="code",gpu="1,2"} 0.25"#,
        r#"agft_scrape_duration_seconds_bucket{le="0.0005",server="chat",gpu="0"} 1"#,
        r#"agft_scrape_duration_seconds_bucket{le="1.0",server="chat",gpu="0"} 2"#,
        r#"agft_scrape_duration_seconds_bucket{le="+Inf",server="code",gpu="1,2"} 3"#,
        r#"agft_scrape_duration_seconds_count{server="chat",gpu="0"} 3"#,
    ] {
        assert!(page.lines().any(|found| found == line), "no {line} in\n{page}");
    }
}

#[test]
fn parking_has_one_set_of_families_and_the_old_names_of_gpus_without_a_server() {
    let page = text();
    for line in [
        r#"agft_park_state{server="",gpu="3",state="PARKED"} 1.0"#,
        r#"agft_park_state{server="",gpu="3",state="SERVING"} 0.0"#,
        r#"agft_parked_seconds_total{server="",gpu="3"} 600.0"#,
        r#"agft_parked_seconds_total{server="code",gpu="1,2"} 600.0"#,
        r#"agft_park_parked_seconds_total{gpu="3"} 600.0"#,
        r#"agft_wakes_total{server="",gpu="3",source="connections"} 2.0"#,
        r#"agft_park_wakes_total{gpu="3",source="connections"} 2.0"#,
        r#"agft_wake_latency_seconds_bucket{le="0.05",server="",gpu="3"} 1"#,
        r#"agft_wake_latency_seconds_bucket{le="+Inf",server="chat",gpu="0"} 2"#,
        r#"agft_park_wake_latency_seconds_bucket{le="0.05",gpu="3"} 1"#,
        r#"agft_park_wake_latency_seconds_bucket{le="+Inf",gpu="3"} 2"#,
        r#"agft_parking_saved_joules{server="",gpu="3",bound="mean"} 18000.0"#,
        r#"agft_park_saved_joules{gpu="3",bound="mean"} 18000.0"#,
        r#"agft_lever_saving_watts{server="chat",gpu="0",lever="core"} 30.0"#,
        r#"agft_park_lever_saving_watts{gpu="3",lever="core"} 15.0"#,
        r#"agft_park_lever_saving_watts{gpu="3",lever="both"} 30.0"#,
        r#"agft_park_lever_info{server="",gpu="3",lever="both"} 1.0"#,
        r#"agft_park_connections_source{source="kernel_events"} 1.0"#,
    ] {
        assert!(page.lines().any(|found| found == line), "no {line} in\n{page}");
    }
    let mut state = testing::park_state();
    state.gpus[0].figures.saved = None;
    state.connections = None;
    state.gpus[0].in_force = None;
    let page = page_of(testing::of(Vec::new(), Some(state)));
    assert!(!page.contains("agft_park_saved") && !page.contains("agft_park_open"), "{page}");
    for name in ["agft_park_core_clock_hertz{", "agft_park_memory_clock_hertz{"] {
        assert!(!page.contains(name), "{name} outlives the lock\n{page}");
    }
}

#[test]
fn everything_of_a_server_says_which_and_on_which_gpus() {
    let page = page_with(testing::state());
    let of_process = ["agft_build_info", "agft_start_time_seconds", "agft_dry_run"];
    for sample in page.lines().filter(|line| !line.starts_with('#')) {
        let named = sample.contains(r#"server="chat",gpu="0""#);
        assert_eq!(named, !of_process.iter().any(|name| sample.starts_with(name)), "{sample}");
    }
}

#[test]
fn open_metrics_is_given_to_those_who_ask_for_it() {
    assert_eq!(Format::wanted("*/*"), Format::Text);
    let prometheus = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5";
    assert_eq!(Format::wanted(prometheus), Format::OpenMetrics);
    let page = page(testing::host(), Format::OpenMetrics).unwrap();
    assert!(page.ends_with("# EOF\n"));
    assert!(page.contains("# TYPE agft_build info\nagft_build_info{"), "{page}");
    assert!(
        page.contains("# TYPE agft_rounds counter\nagft_rounds_total{server=\"chat\",gpu=\"0\"} 200.0"),
        "{page}"
    );
    assert!(page.contains("# UNIT agft_gpu_energy_joules joules"), "{page}");
}

#[test]
fn promtool_finds_nothing_to_say_about_the_page() {
    check_with_promtool(&text());
    check_with_promtool(&page_of(testing::of(Vec::new(), Some(testing::park_state()))));
}

/// Fails if promtool has anything to say about a page; without promtool it is not asked.
fn check_with_promtool(page: &str) {
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else {
        eprintln!("skipped: no promtool here (Debian: prometheus)");
        return;
    };
    promtool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let out = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && said.is_empty(), "{said}\n{page}");
}
