use std::fs;

use super::*;
use crate::store::rounds::{RoundReader, files_of};
use crate::store::testing::{Tmpfs, at};

/// Every round in the files of a run, oldest first; a bad line fails the test.
fn rounds_in(dir: &Path) -> Vec<u64> {
    let files = files_of(dir).unwrap();
    files
        .iter()
        .flat_map(|path| RoundReader::open(path).unwrap())
        .map(|record| record.unwrap().round)
        .collect()
}

fn append(writer: &mut RoundWriter, rounds: std::ops::Range<u64>, now: f64) {
    for round in rounds {
        writer.append(&RoundRecord::new(round, at(0)), Time(now));
    }
}

fn line_bytes() -> u64 {
    serde_json::to_vec(&RoundRecord::new(1000, at(0))).unwrap().len() as u64 + 1
}

#[test]
fn rounds_reach_the_file_when_the_second_is_over_or_enough_are_waiting_and_at_close() {
    let dir = tempfile::tempdir().unwrap();
    let limits = RoundLimits { flush_lines: 5, ..RoundLimits::default() };
    let mut writer = RoundWriter::open(dir.path(), limits, Time(10.0)).unwrap();
    append(&mut writer, 1..4, 10.5);
    assert!(rounds_in(dir.path()).is_empty());
    append(&mut writer, 4..6, 10.6);
    assert_eq!(rounds_in(dir.path()), [1, 2, 3, 4, 5]);
    append(&mut writer, 6..7, 11.5);
    writer.flush_if_due(Time(11.59));
    assert_eq!(writer.stats(), RoundStats { written: 5, pending: 1, ..RoundStats::default() });
    writer.flush_if_due(Time(11.6));
    assert_eq!(rounds_in(dir.path()), [1, 2, 3, 4, 5, 6]);
    append(&mut writer, 7..8, 11.7);
    assert_eq!(writer.close().unwrap(), RoundStats { written: 7, ..RoundStats::default() });
    assert_eq!(rounds_in(dir.path()), [1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn a_writer_that_is_dropped_writes_what_was_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = RoundWriter::open(dir.path(), RoundLimits::default(), Time(0.0)).unwrap();
    append(&mut writer, 1..3, 0.0);
    drop(writer);
    assert_eq!(rounds_in(dir.path()), [1, 2]);
}

#[test]
fn files_stay_within_their_size_and_number_and_the_oldest_rounds_go() {
    let dir = tempfile::tempdir().unwrap();
    let max_file_bytes = 4 * line_bytes() + 1;
    let limits = RoundLimits { max_file_bytes, max_files: 3, flush_lines: 1, ..RoundLimits::default() };
    let mut writer = RoundWriter::open(dir.path(), limits, Time(0.0)).unwrap();
    append(&mut writer, 1000..1023, 0.0);
    assert_eq!(writer.close().unwrap().written, 23);
    let files = files_of(dir.path()).unwrap();
    assert_eq!(files.len(), 3);
    for file in &files {
        assert!(file.metadata().unwrap().len() <= max_file_bytes);
    }
    // 23 = 5 full files and 3 rounds; two full files stay beside the last.
    assert_eq!(rounds_in(dir.path()), (1012..1023).collect::<Vec<_>>());
}

#[test]
fn one_large_batch_is_spread_over_files_and_one_file_may_be_all_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let limits = RoundLimits { max_file_bytes: 4 * line_bytes(), max_files: 1, ..RoundLimits::default() };
    let mut writer = RoundWriter::open(dir.path(), limits, Time(0.0)).unwrap();
    append(&mut writer, 1000..1010, 0.0);
    writer.close().unwrap();
    assert_eq!(rounds_in(dir.path()), [1008, 1009]);
}

#[test]
fn a_file_smaller_than_one_line_holds_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let limits = RoundLimits { max_file_bytes: 10, max_files: 2, ..RoundLimits::default() };
    let mut writer = RoundWriter::open(dir.path(), limits, Time(0.0)).unwrap();
    append(&mut writer, 1000..1005, 0.0);
    writer.close().unwrap();
    assert_eq!(rounds_in(dir.path()), [1003, 1004]);
}

#[test]
fn a_last_line_torn_by_a_crash_is_cut_off_and_one_that_only_lacks_its_newline_is_kept() {
    let whole = serde_json::to_string(&RoundRecord::new(1, at(0))).unwrap();
    for (tail, want) in
        [("{\"round\": 2, \"times", vec![1, 9]), (whole.as_str(), vec![1, 1, 9]), ("", vec![1, 9])]
    {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE_NAME), format!("{whole}\n{tail}")).unwrap();
        let mut writer = RoundWriter::open(dir.path(), RoundLimits::default(), Time(0.0)).unwrap();
        append(&mut writer, 9..10, 0.0);
        writer.close().unwrap();
        assert_eq!(rounds_in(dir.path()), want, "after {tail:?}");
    }
}

#[test]
fn a_device_that_is_always_full_costs_nothing_but_memory() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = RoundWriter::open(dir.path(), RoundLimits::default(), Time(0.0)).unwrap();
    let healthy = std::mem::replace(
        &mut writer.file,
        LineFile::new(File::options().write(true).open("/dev/full").unwrap(), 0),
    );
    append(&mut writer, 1..200, 0.5);
    let tried = RoundStats { pending: 199, errors: 1, failing: true, ..RoundStats::default() };
    assert_eq!(writer.stats(), tried, "tried once; while it fails only the interval counts");
    writer.flush_if_due(Time(1.5));
    writer.flush_if_due(Time(2.0));
    assert_eq!(writer.stats().errors, 2);
    writer.file = healthy;
    writer.flush_if_due(Time(2.5));
    assert_eq!(writer.stats(), RoundStats { written: 199, errors: 2, ..RoundStats::default() });
    assert_eq!(rounds_in(dir.path()), (1..200).collect::<Vec<_>>());
}

#[test]
fn rounds_that_wait_too_long_are_given_up_oldest_first_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = RoundWriter::open(dir.path(), RoundLimits::default(), Time(0.0)).unwrap();
    let healthy = std::mem::replace(
        &mut writer.file,
        LineFile::new(File::options().write(true).open("/dev/full").unwrap(), 0),
    );
    let all = MAX_PENDING_BYTES as u64 / line_bytes() + 100;
    append(&mut writer, 1000..1000 + all, 0.0);
    let stats = writer.stats();
    assert!(stats.lost > 0 && writer.pending.len() <= MAX_PENDING_BYTES);
    assert_eq!(stats.lost + stats.pending, all);
    writer.file = healthy;
    assert_eq!(writer.close().unwrap().written, stats.pending);
    assert_eq!(rounds_in(dir.path()).first(), Some(&(1000 + stats.lost)));
}

#[test]
fn a_rotation_that_fails_at_any_step_is_taken_up_again_and_costs_no_other_file() {
    let mut failures = 0;
    for steps in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let limits = RoundLimits { max_file_bytes: 2 * line_bytes(), max_files: 4, ..RoundLimits::default() };
        let mut writer = RoundWriter::open(dir.path(), limits, Time(0.0)).unwrap();
        append(&mut writer, 1000..1008, 0.0);
        writer.flush(Time(0.0));
        // Four full files; this one displaces the oldest, and only that.
        append(&mut writer, 1008..1009, 0.0);
        let mut failed = false;
        for _ in 0..3 {
            writer.dir.fuse.allow(steps);
            writer.flush(Time(0.0));
            failed |= writer.stats().failing;
        }
        writer.dir.fuse.mend();
        writer.flush(Time(0.0));
        assert!(!writer.stats().failing, "after {steps} steps");
        assert_eq!(rounds_in(dir.path()), (1002..1009).collect::<Vec<_>>(), "after {steps} steps");
        if !failed {
            break;
        }
        failures += 1;
    }
    assert!(failures >= 8, "look and rename thrice, open, append: {failures} failed");
}

#[test]
fn on_a_disk_that_fills_up_every_line_is_whole_and_the_rest_follows_when_there_is_room() {
    let Some(disk) = Tmpfs::mount("size=64k") else { return };
    let mut writer = RoundWriter::open(disk.path(), RoundLimits::default(), Time(0.0)).unwrap();
    append(&mut writer, 1000..1200, 0.0);
    writer.flush(Time(0.0));
    let stats = writer.stats();
    assert!(stats.failing && stats.written > 0 && stats.pending > 0, "{stats:?}");
    assert_eq!(rounds_in(disk.path()), (1000..1000 + stats.written).collect::<Vec<_>>());
    disk.remount("size=1m");
    writer.flush(Time(1.0));
    assert_eq!(rounds_in(disk.path()), (1000..1200).collect::<Vec<_>>());
}
