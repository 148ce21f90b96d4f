//! `agft simulate` through the real program.
#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// Runs `agft simulate` with these arguments, separated by blanks, in a directory.
fn simulate(directory: &Path, arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agft-lab"));
    command.current_dir(directory).arg("simulate").args(arguments.split_whitespace());
    command.output().expect("the program runs")
}

fn here() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

fn number(value: &Value, pointer: &str) -> f64 {
    value.pointer(pointer).and_then(Value::as_f64).expect("a number")
}

fn close(a: f64, b: f64) {
    assert!((a / b - 1.0).abs() < 1e-9, "{a} is not {b}");
}

const SMALL: &str =
    "--gpu a100 --seconds 60 --seeds 1,2 --policy structured,default,best-fixed,clairvoyant,agft";

#[test]
fn json_has_every_cell_and_its_ratios_follow_from_its_figures() {
    let output = simulate(here().path(), &format!("{SMALL} --max-slowdown 10 --format json"));
    assert_eq!(stderr(&output), "", "no progress bar where nobody watches");
    let report: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    let cells = report["cells"].as_array().expect("cells");
    assert_eq!(cells.len(), 10);
    for seed in [1, 2] {
        let of = |policy: &str| {
            let wanted = |cell: &&Value| cell["seed"] == seed && cell["policy"] == policy;
            cells.iter().find(wanted).expect("the cell")
        };
        let (default, best) = (of("default"), of("best-fixed"));
        for cell in cells.iter().filter(|cell| cell["seed"] == seed) {
            let (energy, e2e) = (number(cell, "/energy_j"), number(cell, "/e2e/mean_s"));
            close(number(cell, "/mean_power_w"), energy / 60.0);
            close(number(cell, "/by_e2e/cost"), energy * e2e);
            let ratio = |other: &Value| number(cell, "/by_e2e/cost") / number(other, "/by_e2e/cost");
            close(number(cell, "/by_e2e/ratio_to_best_fixed"), ratio(best));
            close(number(cell, "/by_e2e/ratio_to_default"), ratio(default));
            let saved = 1.0 - energy / number(default, "/energy_j");
            assert!((number(cell, "/energy_saved") - saved).abs() < 1e-12, "{cell}");
            assert!(number(cell, "/ttft/p95_s") <= number(cell, "/ttft/p99_s"), "{cell}");
            let later = number(cell, "/ttft/mean_s") - number(default, "/ttft/mean_s");
            assert!((number(cell, "/promise/ttft_increase_s") - later).abs() < 1e-12, "{cell}");
            let share = saved / number(best, "/energy_saved");
            assert!((number(cell, "/promise/share_of_fixed_saving") - share).abs() < 1e-9, "{cell}");
            close(1.0 + number(cell, "/promise/clock_changes_per_min"), 1.0 + number(cell, "/clock_changes"));
            let slow = number(cell, "/tpot_slowdown") > 0.1;
            assert_eq!(cell["promise"]["within_slowdown"], !slow, "{cell}");
            let guards = cell["policy"] == "structured";
            assert_eq!(
                cell["promise"]["alarms"].is_null(),
                !guards,
                "no alarms of who guards no limit: {cell}"
            );
        }
        let agft = of("structured");
        let per_token = number(agft, "/energy_j") / number(agft, "/tokens");
        close(number(agft, "/by_tpot/cost"), per_token * number(agft, "/tpot/mean_s"));
        assert!(number(agft, "/clock_changes") > 0.0 && number(agft, "/rounds") > 100.0, "{agft}");
        close(number(best, "/by_e2e/ratio_to_best_fixed"), 1.0);
        close(number(best, "/by_tpot/ratio_to_best_fixed_last_third"), 1.0);
        assert!(number(of("clairvoyant"), "/by_e2e/ratio_to_best_fixed") <= 1.0 + 1e-12);
        assert_eq!(default["clock_changes"], 0);
    }
    let curve = report.pointer("/fixed_clocks/0/clocks").and_then(Value::as_array).expect("a curve");
    assert!(curve.len() >= 15, "{} fixed clocks", curve.len());
    assert_eq!(report["summary"].as_array().map(Vec::len), Some(5));
}

#[test]
fn same_seeds_give_the_same_bytes_whatever_the_number_of_jobs() {
    let run = |jobs: u32| stdout(&simulate(here().path(), &format!("{SMALL} --format csv --jobs {jobs}")));
    let one = run(1);
    assert_eq!(one, run(2));
    let header = one.lines().next().expect("a header");
    assert!(header.starts_with("gpu,model,workload,seed,policy,"), "{header}");
    assert_eq!(one.lines().count(), 11);
    assert!(one.lines().all(|line| line.split(',').count() == header.split(',').count()));
}

#[test]
fn everything_that_is_wrong_is_told_at_once_with_what_would_be_right() {
    let output = simulate(
        here().path(),
        "--gpu nope --workload never --policy magic,power-cap=lots --seeds 5-1 --utilization 0 --trace none.csv",
    );
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    let told = stderr(&output);
    for wanted in [
        "unknown GPU `nope`; known: a100, h100",
        "unknown workload `never`; known: steady, bursty",
        "unknown policy `magic`; known: structured, linucb",
        "power cap `lots`: give watts above 0",
        "--seeds `5-1`: give numbers and ranges",
        "--utilization 0: give a share above 0",
        "--trace none.csv: cannot be read: No such file",
    ] {
        assert!(told.contains(wanted), "no {wanted:?} in {told}");
    }
    let misfit = simulate(here().path(), "--gpu rtx3090 --model 14b");
    assert_eq!(misfit.status.code(), Some(64));
    assert!(stderr(&misfit).contains("choose a smaller model"), "{misfit:?}");
    assert_eq!(simulate(here().path(), "--seconds 1").status.code(), Some(2));
    let suite = simulate(here().path(), "--suite big");
    assert!(
        stderr(&suite).contains("unknown suite `big`; known: standard, held-out, changing, measured"),
        "{suite:?}"
    );
}

#[test]
fn trace_of_the_user_is_replayed_and_a_bad_one_is_refused_with_its_line() {
    let place = here();
    let rows: String = (0..50).map(|k| format!("{}.5,{},20\n", k, 200 + k)).collect();
    std::fs::write(place.path().join("mine.csv"), format!("arrival_s,prompt,output\n{rows}"))
        .expect("a file");
    let arguments = "--trace mine.csv --trace-speed 1 --seeds 1 --seconds 30 --policy default --format json";
    let report: Value = serde_json::from_str(&stdout(&simulate(place.path(), arguments))).expect("JSON");
    let cell = &report["cells"][0];
    assert_eq!((&cell["workload"], &cell["requests"]), (&"mine".into(), &30.into()));
    std::fs::write(place.path().join("mine.csv"), "arrival_s,prompt,output\n1,2,3\n2,two,3\n")
        .expect("a file");
    let refused = simulate(place.path(), arguments);
    assert_eq!(refused.status.code(), Some(64));
    assert!(stderr(&refused).contains("mine.csv: line 3: the prompt length is `two`"), "{refused:?}");
}

#[test]
fn directory_gets_table_data_and_plots() {
    let place = here();
    let arguments = "--gpu a100 --workload phase-shift --seeds 1 --seconds 60 --out results";
    let shown = stdout(&simulate(place.path(), arguments));
    let read = |name: &str| std::fs::read_to_string(place.path().join("results").join(name)).expect(name);
    assert_eq!(read("table.txt"), shown);
    assert!(shown.contains("a100/8b phase-shift") && shown.contains("all loads"), "{shown}");
    serde_json::from_str::<Value>(&read("results.json")).expect("JSON");
    assert_eq!(read("results.csv").lines().count(), 4);
    for plot in ["ratios.svg", "curve-a100-8b-phase-shift.svg", "timeline-a100-8b-phase-shift-seed-1.svg"] {
        let text = read(plot);
        assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"), "{plot}");
        assert!(text.len() > 2000, "{plot} has {} bytes", text.len());
    }
}

#[test]
fn calibration_compares_the_physics_with_measured_boards() {
    let shown = stdout(&simulate(here().path(), "--calibration"));
    assert!(shown.starts_with("gpu") && shown.contains("rtx5090"), "{shown}");
}

#[test]
fn rules_of_parking_are_compared_on_the_same_arrivals() {
    let place = here();
    let arguments =
        "--parking=none,fixed=3,clairvoyant --gpu a40 --workload code --seeds 1 --seconds 600 --out results";
    let table = stdout(&simulate(place.path(), arguments));
    let read = |name: &str| std::fs::read_to_string(place.path().join("results").join(name)).expect(name);
    assert_eq!(read("parking.txt"), table);
    let report: Value = serde_json::from_str(&read("parking.json")).expect("JSON");
    let cells = report["cells"].as_array().expect("cells");
    // Only a rule that sees connections is run for each share of them.
    let names: Vec<_> = cells.iter().map(|cell| cell["rule"].as_str().expect("a name")).collect();
    assert_eq!(names, ["none", "fixed=3", "fixed=3", "clairvoyant"]);
    let (none, fixed, best) = (&cells[0], &cells[1], &cells[3]);
    let energy = |cell: &Value| number(cell, "/energy_j");
    close(number(fixed, "/energy_saved"), 1.0 - energy(fixed) / energy(none));
    let share = (energy(none) - energy(fixed)) / (energy(none) - energy(best));
    close(number(fixed, "/share_of_clairvoyant_saving"), share);
    close(
        number(fixed, "/ttft_cost/mean"),
        number(fixed, "/ttft_s/mean") / number(none, "/ttft_s/mean") - 1.0,
    );
    close(number(fixed, "/mean_power_w"), energy(fixed) / 600.0);
    assert!((0.2..1.0).contains(&share) && number(fixed, "/wakes") >= 1.0, "{fixed}");
    for (arguments, wanted) in [
        ("--parking=always", "unknown parking rule `always`; known: none, fixed=SECONDS, staged="),
        ("--parking --own-connections 2", "--own-connections 2: give shares from 0 to 1"),
        ("--parking --format csv", "--format csv: --parking gives a table or json"),
    ] {
        let refused = simulate(place.path(), arguments);
        assert_eq!(refused.status.code(), Some(64), "{refused:?}");
        assert!(stderr(&refused).contains(wanted), "{refused:?}");
    }
}

#[test]
fn faults_and_holdout_change_what_agft_does_and_nothing_else() {
    let place = here();
    let run = |more: &str| {
        let arguments = format!(
            "--gpu rtx4090-measured --seeds 1 --seconds 600 --policy structured,default --format json {more}"
        );
        serde_json::from_str::<Value>(&stdout(&simulate(place.path(), &arguments))).expect("JSON")
    };
    std::fs::write(place.path().join("held.yaml"), "holdout: {share: 0.5, block_s: 15, settle_s: 5}\n")
        .expect("a file");
    let (plain, faulted) = (run(""), run("--faults 200"));
    let (unheld, held) = (run("--config held.yaml"), run("--config held.yaml --holdout"));
    for other in [&faulted, &unheld, &held] {
        assert_eq!(plain["cells"][1], other["cells"][1], "default clocks need no page and hold nothing out");
    }
    assert_eq!(plain["cells"], unheld["cells"], "off unless asked for");
    let saved = |report: &Value| number(report, "/cells/0/energy_saved");
    assert!(saved(&held) < 0.8 * saved(&plain), "{} against {}", saved(&held), saved(&plain));
    let rounds = |report: &Value| number(report, "/cells/0/rounds");
    assert!(rounds(&faulted) < 0.8 * rounds(&plain), "{} of {}", rounds(&faulted), rounds(&plain));
    assert_eq!((&faulted["faults_s"], &held["holdout_share"]), (&200.0.into(), &0.5.into()));
    let refused = simulate(place.path(), "--faults 2");
    assert!(stderr(&refused).contains("--faults 2: give seconds of every 600, from 5 to 540"), "{refused:?}");
}

#[test]
fn configuration_counts_only_if_it_is_named() {
    let place = here();
    std::fs::create_dir(place.path().join("config")).expect("a directory");
    std::fs::write(place.path().join("config/config.yaml"), "nonsense: true\n").expect("a file");
    let arguments = "--gpu a100 --seeds 1 --seconds 10 --policy default";
    stdout(&simulate(place.path(), arguments));
    let named = simulate(place.path(), &format!("{arguments} --config config/config.yaml"));
    assert_eq!(named.status.code(), Some(64), "{named:?}");
}
