use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use serde_json::json;

use super::*;
use crate::store::rounds::{RoundReader, RoundRecord, files_of};
use crate::store::testing::{ReadOnly, Tmpfs, at, names_in};

/// 2026-08-21T09:30:00Z.
const START: i64 = 1_787_304_600;

fn info() -> RunInfo {
    RunInfo {
        gpu_model: "NVIDIA H200".into(),
        config_used: json!({"control": {"ttft_limit": 2.0}}),
        config_snapshot: "control:\n  ttft_limit: 2.0  # seconds\n".into(),
    }
}

fn create(base: &Path, start: i64) -> RunDir {
    RunDir::create(base, "agft", info(), at(start)).unwrap()
}

fn metadata_of(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path.join(METADATA)).unwrap()).unwrap()
}

#[test]
fn a_run_begins_with_its_configuration_and_with_metadata_that_have_no_end() {
    let base = tempfile::tempdir().unwrap();
    let run = create(&base.path().join("experiment"), START);
    assert_eq!(run.path(), base.path().join("experiment/agft_20260821_093000"));
    assert_eq!(names_in(run.path()), [SNAPSHOT, METADATA]);
    assert_eq!(fs::read_to_string(run.path().join(SNAPSHOT)).unwrap(), info().config_snapshot);
    let metadata = metadata_of(run.path());
    assert_eq!((&metadata["end_time"], &metadata["average_power_w"]), (&Value::Null, &Value::Null));
    assert_eq!(run.path().metadata().unwrap().permissions().mode() & 0o777 & !0o750, 0);
    assert_eq!(run.path().join(METADATA).metadata().unwrap().permissions().mode() & 0o777 & !0o640, 0);
}

#[test]
fn a_finished_run_has_every_key_of_agft_with_true_values() {
    let base = tempfile::tempdir().unwrap();
    let run = create(base.path(), START);
    let path = run.path().to_owned();
    let mut summary = RunSummary { total_rounds: 300, ..RunSummary::default() };
    run.checkpoint(&summary).unwrap();
    assert_eq!(
        (&metadata_of(&path)["total_rounds"], &metadata_of(&path)["end_time"]),
        (&json!(300), &Value::Null)
    );
    summary.total_rounds = 3600;
    summary.convergence_round = Some(180);
    summary.best_edp = Some(2.5);
    summary.best_frequency = Some(Mhz(1395));
    // 300 W over the 1000 s of which there are measurements; the run took 1800 s.
    summary.total_energy = Some(Joules(300.0 * 1000.0));
    summary.energy_time = Some(Seconds(1000.0));
    run.finish(&summary, at(START + 1800)).unwrap();
    let want = json!({
        "experiment_name": "agft_20260821_093000",
        "start_time": "2026-08-21T09:30:00.000Z",
        "start_timestamp": 1_787_304_600.0,
        "end_time": "2026-08-21T10:00:00.000Z",
        "end_timestamp": 1_787_306_400.0,
        "total_rounds": 3600,
        "gpu_model": "NVIDIA H200",
        "config_used": {"control": {"ttft_limit": 2.0}},
        "convergence_round": 180,
        "best_edp_achieved": 2.5,
        "best_frequency": 1395,
        "total_energy_consumed_j": 300_000.0,
        "final_performance_summary": {},
        "duration_seconds": 1800.0,
        "duration_hours": 0.5,
        "average_power_w": 300.0,
    });
    assert_eq!(metadata_of(&path), want);
    let typed: ExperimentMetadata = serde_json::from_value(want).unwrap();
    assert_eq!(typed.summary.best_frequency, Some(Mhz(1395)));
}

#[test]
fn a_wall_clock_set_back_during_the_run_gives_no_duration() {
    let base = tempfile::tempdir().unwrap();
    let run = create(base.path(), START);
    let path = run.path().to_owned();
    run.finish(&RunSummary::default(), at(START - 60)).unwrap();
    let metadata = metadata_of(&path);
    assert_eq!(metadata["end_time"], "2026-08-21T09:29:00.000Z");
    assert_eq!((&metadata["duration_seconds"], &metadata["duration_hours"]), (&Value::Null, &Value::Null));
}

#[test]
fn runs_that_begin_in_the_same_second_get_directories_of_their_own() {
    let base = tempfile::tempdir().unwrap();
    let runs: Vec<RunDir> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..4).map(|_| scope.spawn(|| create(base.path(), START))).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    let want = ["", "_2", "_3", "_4"].map(|suffix| format!("agft_20260821_093000{suffix}"));
    assert_eq!(names_in(base.path()), want);
    for run in runs {
        assert_eq!(
            metadata_of(run.path())["experiment_name"],
            run.path().file_name().unwrap().to_str().unwrap()
        );
    }
}

#[test]
fn rounds_of_a_run_lie_in_its_directory() {
    let base = tempfile::tempdir().unwrap();
    let run = create(base.path(), START);
    let mut rounds = run.rounds(RoundLimits::default(), Time(0.0)).unwrap();
    rounds.append(&RoundRecord::new(1, at(START)), Time(0.0));
    rounds.close().unwrap();
    let files = files_of(run.path()).unwrap();
    assert_eq!(files, [run.path().join("rounds_data.jsonl")]);
    assert_eq!(RoundReader::open(&files[0]).unwrap().count(), 1);
}

#[test]
fn the_oldest_runs_go_and_this_one_and_as_many_as_are_kept_stay() {
    let base = tempfile::tempdir().unwrap();
    for n in 0..5 {
        create(base.path(), START + n);
    }
    let this = create(base.path(), START + 9);
    let removed = this.remove_old(2).unwrap();
    let name = |n: u32| format!("agft_20260821_09300{n}");
    assert_eq!(removed, [0, 1, 2].map(|n| base.path().join(name(n))));
    assert_eq!(names_in(base.path()), [name(3), name(4), name(9)]);
    assert_eq!(this.remove_old(2).unwrap(), Vec::<std::path::PathBuf>::new());
    this.remove_old(0).unwrap();
    assert_eq!(names_in(base.path()), [name(9)]);
}

#[test]
fn runs_killed_before_they_had_metadata_do_not_pile_up() {
    let base = tempfile::tempdir().unwrap();
    for n in 0..5 {
        let dir = base.path().join(format!("agft_20260821_09300{n}"));
        fs::create_dir(&dir).unwrap();
        if n % 2 == 0 {
            fs::write(dir.join(format!(".agft-{METADATA}-0123456789abcdef.tmp")), "{").unwrap();
        }
    }
    let this = create(base.path(), START + 9);
    assert_eq!(this.remove_old(1).unwrap().len(), 4);
    assert_eq!(names_in(base.path()), ["agft_20260821_093004", "agft_20260821_093009"]);
}

#[test]
fn metadata_of_a_run_go_last_so_that_one_half_removed_is_still_a_run() {
    let base = tempfile::tempdir().unwrap();
    let old = create(base.path(), START).path().to_owned();
    fs::create_dir_all(old.join("plots/deep")).unwrap();
    fs::write(old.join("plots/deep/a.svg"), "").unwrap();
    let dir = Dir::open_or_create(&old).unwrap();
    old::clear(&dir).unwrap();
    assert_eq!(names_in(&old), [METADATA]);
    drop(dir);
    assert_eq!(create(base.path(), START + 1).remove_old(0).unwrap(), [old]);
}

#[test]
fn nothing_is_removed_that_is_not_a_dead_run_of_ours() {
    let base = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let stays = |name: &str| base.path().join(name);
    // Another prefix, a renamed run, a copy under another stamp, no metadata, a link to a run, a file, a living run.
    RunDir::create(base.path(), "other", info(), at(START)).unwrap();
    fs::rename(create(base.path(), START).path(), stays("agft_keep_this")).unwrap();
    fs::rename(create(base.path(), START).path(), stays("agft_20200101_000000")).unwrap();
    fs::create_dir(stays("agft_20200101_000001")).unwrap();
    fs::write(stays("agft_20200101_000001/notes.txt"), "mine").unwrap();
    let linked = create(elsewhere.path(), START).path().to_owned();
    symlink(&linked, stays("agft_20260821_093000")).unwrap();
    fs::write(stays("agft_20200101_000002"), "").unwrap();
    let living = create(base.path(), START + 1);
    let before = names_in(base.path());

    let this = create(base.path(), START + 2);
    assert_eq!(this.remove_old(0).unwrap(), Vec::<std::path::PathBuf>::new());
    drop(living);
    assert_eq!(this.remove_old(0).unwrap(), [stays("agft_20260821_093001")]);
    let mut after = names_in(base.path());
    after.retain(|name| name != "agft_20260821_093002");
    assert_eq!(after, before.into_iter().filter(|name| name != "agft_20260821_093001").collect::<Vec<_>>());
    assert!(linked.join(METADATA).exists());
}

#[test]
fn a_link_inside_an_old_run_is_removed_and_not_followed() {
    let base = tempfile::tempdir().unwrap();
    let precious = tempfile::tempdir().unwrap();
    fs::write(precious.path().join("thesis.tex"), "x").unwrap();
    symlink(precious.path(), create(base.path(), START).path().join("notes")).unwrap();
    assert_eq!(create(base.path(), START + 1).remove_old(0).unwrap().len(), 1);
    assert!(precious.path().join("thesis.tex").exists());
}

#[test]
fn a_prefix_that_could_lead_elsewhere_is_refused() {
    let base = tempfile::tempdir().unwrap();
    for prefix in ["", "..", ".hidden", "a/b", "/etc", "a b", "ä", "x\0y"] {
        let error = RunDir::create(base.path(), prefix, info(), at(START)).unwrap_err();
        assert!(matches!(error, StoreError::BadPrefix { .. }), "{prefix:?}: {error}");
    }
    assert!(names_in(base.path()).is_empty());
}

#[test]
fn where_nothing_can_be_written_the_run_says_so_and_leaves_no_empty_directory() {
    if let Some(dir) = ReadOnly::new() {
        let error = RunDir::create(&dir.path(), "agft", info(), at(START)).unwrap_err().to_string();
        assert!(error.contains("cannot create the directory") && error.contains("agft_2026"), "{error}");
    }
    if let Some(disk) = Tmpfs::mount("size=64k") {
        fs::write(disk.path().join("ballast"), vec![0; 64 << 10]).unwrap();
        let error = RunDir::create(disk.path(), "agft", info(), at(START)).unwrap_err().to_string();
        assert!(error.contains("free space"), "{error}");
        assert_eq!(names_in(disk.path()), ["ballast"]);
    }
}
