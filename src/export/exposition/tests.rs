//! The page as its readers get it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

use super::*;
use crate::view::testing;

const DOCUMENT: &str = include_str!("../../../docs/metrics.md");

fn text() -> String {
    page(Arc::new(testing::state()), Format::Text).unwrap()
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
pub(super) fn assert_documented(file: &str, document: &str, page: &str) {
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
    let page = page(Arc::new(state), Format::Text).unwrap();
    for name in ["agft_asked_core_clock_hertz", "agft_edp", "agft_gpu_power", "agft_estimated_slowdown"] {
        assert!(!page.contains(&format!("\n{name}")), "{name}");
    }
    assert!(page.contains("\nagft_clocks_locked 1"));
}

#[test]
fn clocks_that_the_driver_does_not_take_back_are_neither_locked_nor_free() {
    let page = page(Arc::new(crate::view::State { not_given_back: true, ..testing::state() }), Format::Text)
        .unwrap();
    assert!(page.contains("\nagft_clocks_not_given_back 1") && !page.contains("\nagft_clocks_locked"));
    let mut park = testing::park_state();
    park.gpus[0].not_given_back = true;
    let page = park_page(Arc::new(park), Format::Text).unwrap();
    assert!(page.contains("\nagft_park_clocks_not_given_back{gpu=\"0\"} 1"));
    assert!(!page.contains("\nagft_park_clocks_locked"));
}

#[test]
fn values_and_labels_are_those_of_the_state() {
    let page = text();
    for line in [
        r#"agft_build_info{version="1.2.3"} 1"#,
        r#"agft_mode{mode="EXPLOITATION"} 1.0"#,
        r#"agft_mode{mode="IDLE"} 0.0"#,
        "agft_asked_core_clock_hertz 900000000.0",
        r#"agft_gpu_energy_joules_total{gpu="0"} 9000.0"#,
        r#"agft_gpu_info{gpu="0",uuid="GPU-0f1e2d3c",name="NVIDIA \"A100\""} 1.0"#,
        r#"agft_arms{status="pruned_cost"} 1.0"#,
        "agft_estimated_energy_saved_joules 2500.0",
        "agft_estimated_energy_saved_ratio 0.25",
        r#"agft_scrape_duration_seconds_bucket{le="0.0005"} 1"#,
        r#"agft_scrape_duration_seconds_bucket{le="1.0"} 2"#,
        r#"agft_scrape_duration_seconds_bucket{le="+Inf"} 3"#,
        "agft_scrape_duration_seconds_count 3",
    ] {
        assert!(page.lines().any(|found| found == line), "no {line} in\n{page}");
    }
}

#[test]
fn open_metrics_is_given_to_those_who_ask_for_it() {
    assert_eq!(Format::wanted("*/*"), Format::Text);
    let prometheus = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5";
    assert_eq!(Format::wanted(prometheus), Format::OpenMetrics);
    let page = page(Arc::new(testing::state()), Format::OpenMetrics).unwrap();
    assert!(page.ends_with("# EOF\n"));
    assert!(page.contains("# TYPE agft_build info\nagft_build_info{"), "{page}");
    assert!(page.contains("# TYPE agft_rounds counter\nagft_rounds_total 200.0"), "{page}");
    assert!(page.contains("# UNIT agft_gpu_energy_joules joules"), "{page}");
}

#[test]
fn promtool_finds_nothing_to_say_about_the_page() {
    check_with_promtool(&text());
}

/// Fails if promtool has anything to say about a page; without promtool it is not asked.
pub(super) fn check_with_promtool(page: &str) {
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
