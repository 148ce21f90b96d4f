//! Reports of runs made up by hand, whole and broken.

use std::fmt::Write;

use super::*;
use crate::store::RoundRecord;
use crate::units::{Mhz, Seconds, Watts};

fn record(round: u64, at: f64, mhz: Option<u32>) -> RoundRecord {
    let mut record = RoundRecord::new(round, jiff::Timestamp::UNIX_EPOCH);
    let power = mhz.map_or(300.0, |mhz| 100.0 + 0.1 * f64::from(mhz));
    record.timestamp = at;
    record.window_s = Some(Seconds(0.3));
    record.gpu_frequency_mhz = Some(Mhz(mhz.unwrap_or(1410)));
    record.frequency_exploration_count = mhz.map(|_| 3);
    record.asked_core_mhz = mhz.map(Mhz);
    record.command = Some(mhz.map_or("driver default".into(), |mhz| format!("{mhz} MHz core")));
    record.power_w = Some(Watts(power));
    record.energy_j = Some(0.3 * power);
    record.tpot_avg = Some(0.02);
    record.ttft_avg = Some(0.2);
    record.decode_throughput_tps = Some(1000.0);
    record.prefill_throughput_tps = Some(3000.0);
    record.edp_raw = Some(0.3 * power * 0.02);
    record.edp_baseline = Some(0.3 * 300.0 * 0.016);
    let (energy, tpot) = if mhz.is_some() { (power / 300.0, 1.25) } else { (1.0, 1.0) };
    let sd = if mhz.is_some() { 0.02 } else { 0.0 };
    (record.energy_ratio, record.energy_ratio_sd) = (Some(energy), Some(sd));
    (record.tpot_ratio, record.tpot_ratio_sd) = (Some(tpot), Some(sd));
    record.slo_violation = Some(round.is_multiple_of(10));
    record.ttft_limit = Some(1.0);
    record.tpot_limit = Some(0.03);
    record.available_frequencies_count = Some(20);
    record.pruned_frequencies_count = Some(2);
    record.state = Some("EXPLOITATION".into());
    record.decision_reason = Some("greedy".into());
    record
}

fn lines(records: &[RoundRecord]) -> String {
    let mut text = String::new();
    for record in records {
        writeln!(text, "{}", serde_json::to_string(record).unwrap()).unwrap();
    }
    text
}

fn run() -> Vec<RoundRecord> {
    (0..200_u32)
        .map(|k| {
            let mhz = if k < 20 { None } else { Some(if k % 2 == 0 { 900 } else { 1200 }) };
            // An outage in the middle.
            let gap = if k >= 100 { 30.0 } else { 0.0 };
            record(u64::from(k) + 1, 1e9 + 0.3 * f64::from(k) + gap, mhz)
        })
        .collect()
}

fn directory(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("rounds_data.jsonl"), text).unwrap();
    dir
}

#[test]
fn digest_has_what_the_rounds_say() {
    let dir = directory(&lines(&run()));
    let report = Report::read(dir.path()).unwrap();
    let digest = &report.digest;
    assert_eq!((digest.rounds, digest.locks.len(), digest.gap_count), (200, 2, 1));
    approx::assert_relative_eq!(digest.gaps[0].seconds, 30.0, max_relative = 1e-6);
    approx::assert_relative_eq!(digest.seconds, 60.0, max_relative = 1e-9);
    approx::assert_relative_eq!(digest.locks[&900].seconds, 27.0, max_relative = 1e-9);
    approx::assert_relative_eq!(digest.default_clocks.seconds, 6.0, max_relative = 1e-9);
    approx::assert_relative_eq!(digest.limits_kept().unwrap(), 0.9, max_relative = 1e-9);
    // 20 windows at default clocks, then 190 W and 220 W in equal shares, against 300 W.
    let saved = digest.estimate.saved().unwrap();
    approx::assert_relative_eq!(saved.value, 0.9 * (1.0 - 205.0 / 300.0), max_relative = 1e-9);
    // Nine tenths of the tokens took 20 ms each in the place of 16.
    let slower = digest.estimate.slowdown().unwrap();
    approx::assert_relative_eq!(slower.value, 0.02 / (0.1 * 0.02 + 0.9 * 0.016) - 1.0, max_relative = 1e-9);
    assert!(saved.half_width > 0.01 && slower.half_width > 0.01, "{saved:?}, {slower:?}");
    let ratio = digest.locks[&900].edp_ratio().unwrap();
    approx::assert_relative_eq!(ratio.mean, 190.0 * 0.02 / (300.0 * 0.016), max_relative = 1e-9);
    assert_eq!(ratio.windows, 90);
    assert_eq!(report.phases.len(), 1);
}

#[test]
fn page_is_self_contained_and_its_text_cannot_be_markup() {
    let mut records = run();
    records[5].state = Some("<script>alert(1)</script>".into());
    let dir = directory(&lines(&records));
    let mut report = Report::read(dir.path()).unwrap();
    report.name = "<b>\"x\"".into();
    let page = html::html(&report).unwrap();
    assert!(!page.contains("<script") && !page.contains("<b>"), "{page}");
    assert!(page.contains("&lt;script&gt;"));
    let outside = page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "");
    assert!(!outside.contains("http") && !outside.contains("url(") && !outside.contains("src="));
    assert_eq!(page.matches("<svg role=\"img\"").count(), 4);
    let markdown = markdown::markdown(&report);
    assert!(markdown.contains("| 900 MHz |") && !markdown.contains("<script"), "{markdown}");
}

#[test]
fn broken_lines_are_counted_and_passed_over() {
    let whole = lines(&run());
    let torn = format!("nonsense\n{}", &whole[..whole.len() - 40]);
    let report = Report::read(directory(&torn).path()).unwrap();
    assert_eq!((report.digest.rounds, report.digest.bad_lines, report.digest.torn_lines), (199, 2, 1));
    assert!(report.notes.iter().any(|note| note.contains("2 lines")), "{:?}", report.notes);
}

#[test]
fn what_is_no_run_is_refused_with_what_to_do() {
    let empty = tempfile::tempdir().unwrap();
    let said = |dir: &Path| Report::read(dir).unwrap_err().to_string();
    assert!(said(&empty.path().join("none")).contains("experiment/agft_"));
    assert!(said(empty.path()).contains("no rounds_data.jsonl"));
    assert!(said(directory("\0\0\n{}\n").path()).contains("2 unreadable lines"));
}

#[test]
fn rounds_with_absurd_values_still_make_a_report() {
    let mut records = run();
    for (k, record) in records.iter_mut().enumerate() {
        match k % 6 {
            0 => record.window_s = Some(Seconds(-1.0)),
            1 => record.timestamp = 1e300,
            2 => record.energy_ratio = Some(0.0),
            3 => record.tpot_avg = Some(f64::MAX),
            4 => record.power_w = Some(Watts(-1e300)),
            _ => record.gpu_frequency_mhz = Some(Mhz(u32::MAX)),
        }
    }
    let report = Report::read(directory(&lines(&records)).path()).unwrap();
    assert!(html::html(&report).is_ok());
    assert!(serde_json::to_string(&report).is_ok());
}

#[test]
fn old_record_without_the_newer_fields_is_read() {
    let mut line = serde_json::to_value(record(1, 1e9, Some(900))).unwrap();
    for new in ["energy_ratio", "tpot_ratio", "state", "command"] {
        line.as_object_mut().unwrap().remove(new);
    }
    let report = Report::read(directory(&format!("{line}\n")).path()).unwrap();
    assert_eq!((report.digest.rounds, report.digest.estimate.saved()), (1, None));
    assert!(html::html(&report).is_ok());
}

#[test]
fn comparison_gives_the_difference_and_warns_of_another_load() {
    let first = Report::read(directory(&lines(&run())).path()).unwrap();
    let mut records = run();
    for record in &mut records {
        record.power_w = record.power_w.map(|power| Watts(1.1 * power.0));
        record.decode_throughput_tps = Some(2000.0);
    }
    let second = Report::read(directory(&lines(&records)).path()).unwrap();
    let text = compare::markdown(&first, &second);
    let power = text.lines().find(|line| line.contains("| power")).unwrap();
    assert!(power.contains("+10.0 %"), "{text}");
    assert!(text.contains("loads differ"), "{text}");
    assert!(!compare::markdown(&first, &first).contains("differ ("));
}

#[test]
fn the_experiment_of_the_rounds_is_evaluated_with_its_last_cycle() {
    let mut rounds = Vec::new();
    for k in 0..1200_u32 {
        let slot = u64::from(k / 50);
        let held = slot % 4 == (slot / 4) % 4;
        let mut round = record(u64::from(k) + 1, 1e9 + 0.3 * f64::from(k), (!held).then_some(900));
        (round.holdout_cycle, round.holdout_slot, round.holdout) =
            (Some(slot / 4), Some(slot % 4), Some(held));
        round.ttft_samples = Some(2.0);
        rounds.push(round);
    }
    let report = Report::read(directory(&lines(&rounds)).path()).unwrap();
    let savings = &report.digest.savings;
    assert_eq!((savings.cycles, savings.days.len()), (6, 1));
    // 190 W at 900 MHz, 300 W held.
    let expected = 190.0 / 300.0 - 1.0;
    approx::assert_relative_eq!(savings.effect.power_w.unwrap().relative, expected, max_relative = 1e-9);
    approx::assert_abs_diff_eq!(savings.effect.ttft_s.unwrap().relative, 0.0, epsilon = 1e-9);
    let text = markdown::markdown(&report);
    assert!(
        text.contains("| Energy against default clocks (measured) | -36.7 % ± 0.0 % (6 cycles) |"),
        "{text}"
    );
    assert!(text.contains("| 2001-09-09 | 6 | -36.7 %"), "{text}");
}
