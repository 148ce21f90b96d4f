//! Which part may use which: what DESIGN.md draws, held against the imports.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot read the sources fails")]

use std::fs;
use std::path::{Path, PathBuf};

/// Decides, and does no I/O: time and randomness are parameters.
const PURE: [&str; 18] = [
    "units.rs",
    "text.rs",
    "faults.rs",
    "stats",
    "features",
    "reward",
    "bandit",
    "holdout",
    "control",
    "park",
    "compose",
    "discover/behind.rs",
    "discover/candidates.rs",
    "discover/facts.rs",
    "discover/follow.rs",
    "discover/page.rs",
    "discover/servers.rs",
    "discover/tree.rs",
];
/// What a decision must not touch.
const OUTSIDE: [&str; 9] = [
    "std::fs",
    "std::thread",
    "std::process",
    "std::net::Tcp",
    "std::net::Udp",
    "Instant::now",
    "SystemTime",
    "Timestamp::now",
    "tokio::",
];
/// Below the decisions: they know nothing of what is done with them.
const BELOW: [&str; 3] = ["gpu", "engine", "metrics"];
/// Beside the daemon: what shows, keeps and repeats runs without it.
const BESIDE: [&str; 10] =
    ["config", "connections", "discover", "store", "guardian", "view", "export", "top", "report", "replay"];
/// The simulator and the experiments, a package of their own.
const LAB: &str = "../crates/agft-lab/src";

/// The sources below a folder or file of `src`, with the code of each but for comments and tests.
fn code(place: &str) -> Vec<(PathBuf, String)> {
    let mut todo = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(place)];
    let mut found = Vec::new();
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        let of_tests = ["tests.rs", "testing.rs", "laws.rs", "gold.rs"].contains(&name)
            || path.components().any(|part| part.as_os_str() == "tests");
        if of_tests || !name.ends_with(".rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let product = text.split("#[cfg(test)]\nmod ").next().expect("the part before the tests");
        let lines = product.lines().filter(|line| !line.trim_start().starts_with("//"));
        found.push((path.clone(), lines.collect::<Vec<_>>().join("\n")));
    }
    assert!(!found.is_empty(), "src/{place} has no code: the picture is of another time");
    found
}

/// Every use of a forbidden word below these places.
fn uses(places: &[&str], forbidden: &[String]) -> Vec<String> {
    let of_place = |place: &&str| {
        let hits = |(path, text): (PathBuf, String)| {
            let words: Vec<&String> = forbidden.iter().filter(|word| text.contains(word.as_str())).collect();
            (!words.is_empty()).then(|| format!("{}: {words:?}", path.display()))
        };
        code(place).into_iter().filter_map(hits).collect::<Vec<_>>()
    };
    places.iter().flat_map(of_place).collect()
}

fn modules(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| format!("crate::{}", name.trim_end_matches(".rs"))).collect()
}

#[test]
fn what_decides_touches_neither_the_world_nor_the_shells() {
    let shells = [
        "daemon", "open", "cli", "signals", "store", "guardian", "view", "export", "top", "report", "replay",
    ];
    let mut forbidden = modules(&shells);
    forbidden.extend(modules(&["connections"]));
    forbidden.extend(OUTSIDE.map(str::to_owned));
    assert_eq!(uses(&PURE, &forbidden), Vec::<String>::new());
}

#[test]
fn decisions_do_not_read_the_configuration() {
    let deciding: Vec<&str> = PURE.into_iter().filter(|place| *place != "compose").collect();
    assert_eq!(uses(&deciding, &modules(&["config", "compose"])), Vec::<String>::new());
}

#[test]
fn gpus_and_pages_know_nothing_of_decisions() {
    let above =
        ["bandit", "control", "holdout", "reward", "features", "park", "config", "compose", "daemon", "cli"];
    assert_eq!(uses(&BELOW, &modules(&above)), Vec::<String>::new());
}

#[test]
fn a_vendors_library_is_named_below_the_seam_alone() {
    let above =
        ["cli", "daemon", "open", "guardian", "store", "view", "export", "top", "report", "replay", LAB];
    assert_eq!(uses(&above, &["nvml::", "nvapi::", "Nvml"].map(str::to_owned)), Vec::<String>::new());
    assert_eq!(uses(&PURE, &["nvml::", "nvapi::", "Nvml"].map(str::to_owned)), Vec::<String>::new());
}

#[test]
fn nobody_but_the_command_line_uses_the_daemon() {
    assert_eq!(uses(&BESIDE, &modules(&["daemon", "open", "cli"])), Vec::<String>::new());
    let of_agft = ["daemon", "open", "cli"].map(|name| format!("agft::{name}"));
    let mut hits = uses(&[LAB], &of_agft);
    hits.retain(|hit| !hit.contains("/agft-lab/src/cli/"));
    assert_eq!(hits, Vec::<String>::new());
    assert_eq!(uses(&["daemon", "open"], &modules(&["cli"])), Vec::<String>::new());
}

#[test]
fn the_product_does_without_the_lab_and_the_simulator_without_the_experiments() {
    assert_eq!(uses(&[""], &["agft_lab".to_owned()]), Vec::<String>::new());
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let manifest = fs::read_to_string(manifest).unwrap();
    assert!(!manifest.lines().any(|line| line.starts_with("agft-lab")), "it is no dependency");
    let simulator = code(&format!("{LAB}/sim")).into_iter();
    let up = simulator.filter(|(_, text)| text.replace("crate::sim", "").contains("crate::"));
    assert_eq!(up.map(|(path, _)| path).collect::<Vec<_>>(), Vec::<PathBuf>::new());
}
