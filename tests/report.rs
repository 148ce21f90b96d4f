//! `agft report` and `agft compare` on what the real daemon wrote.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use serde_json::Value;
use support::daemon::Bench;

#[test]
fn run_of_the_daemon_becomes_page_tables_and_json_also_while_it_goes_on() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    daemon.wait_for_lessons(10);
    // The writer flushes once a second at the latest.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let run = bench.runs().pop().unwrap();
    let run = run.to_str().unwrap();
    let unfinished = bench.run(&["report", run]);
    assert_eq!(unfinished.code, Some(0), "{}", unfinished.err);
    assert!(unfinished.out.contains("it goes on, or was killed"), "{}", unfinished.out);
    daemon.stop();

    let text = bench.run(&["report", run]).out;
    assert!(!text.contains("it goes on") && text.contains("## Clocks") && text.contains(" MHz |"), "{text}");
    let html = bench.run(&["report", run, "-o", "report.html"]);
    assert_eq!((html.code, html.out.trim()), (Some(0), "report.html"), "{}", html.err);
    let page = std::fs::read_to_string(bench.path("report.html")).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains("<svg ") && page.ends_with("</html>\n"));
    let json: Value = serde_json::from_str(&bench.run(&["report", run, "--format", "json"]).out).unwrap();
    let digest = &json["digest"];
    assert_eq!(digest["rounds"], bench.rounds().len());
    // A few windows at default clocks are too few to say what they cost.
    let (served, compared) = (&digest["estimate"]["served_s"], &digest["estimate"]["compared_s"]);
    assert!(served.as_f64() > Some(0.5) && compared.as_f64() < served.as_f64(), "{digest}");
    let compared = bench.run(&["compare", run, run]);
    assert!(
        compared.out.contains("power") && compared.out.contains("+0.0 %"),
        "{}{}",
        compared.out,
        compared.err
    );
}

#[test]
fn what_is_no_run_is_refused() {
    let bench = Bench::new();
    for directory in ["nothing", "."] {
        let end = bench.run(&["report", directory]);
        assert_eq!((end.code, end.out.as_str()), (Some(1), ""), "{}", end.err);
        assert!(end.err.starts_with("agft: "), "{}", end.err);
    }
}
