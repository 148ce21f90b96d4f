//! Text from outside that would steer a terminal, forge a line or turn text around: nowhere is it passed on as it is.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use nvidia_ml::MockConfig;
use support::daemon::Bench;
use support::engine::Behaviour;

/// As a label of a metrics page: a new line is written as two characters there.
const LABEL: &str =
    "m\u{1b}[2J\u{1b}]0;pwned\u{7}\\n2026-01-01T00:00:00Z ERROR forged\u{202e}\u{9b}\u{2066}\u{200b}";
const BODY: &str =
    "\u{1b}[2J\u{1b}]0;pwned\u{7}\r2026-01-01T00:00:00Z ERROR forged \u{202e}\u{2028}\u{feff}\n";
const NAME: &str = "run\u{1b}[2J\n2026-01-01T00:00:00Z ERROR forged\u{202e}<b>|";

#[track_caller]
fn harmless(what: &str, text: &str) {
    let harmful = |c: char| c != '\n' && agft::text::is_harmful(c);
    assert!(!text.contains(harmful), "{what}: {:?}", text.matches(harmful).collect::<Vec<_>>());
    assert!(!text.lines().any(|line| line.starts_with("2026-01-01T")), "{what}: a forged line in {text}");
}

#[test]
fn check_shows_a_hostile_label_and_a_hostile_page_on_one_line() {
    let bench = Bench::new();
    bench.engine.behave(Behaviour::Named(LABEL));
    let checked = bench.run(&["check"]);
    harmless("check", &format!("{}{}", checked.out, checked.err));
    assert!(checked.out.contains("models: m\\u001b[2J\\u001b]0;pwned\\u0007\\n2026"), "{}", checked.out);
    bench.engine.behave(Behaviour::Body(BODY));
    let checked = bench.run(&["check"]);
    harmless("check of a page that is none", &format!("{}{}", checked.out, checked.err));
    assert_eq!(checked.code, Some(1));
}

#[test]
fn nothing_hostile_reaches_status_page_log_or_report() {
    let mut machine = MockConfig::default();
    machine.gpus[0].name = "GPU \u{1b}[2J\n2026-01-01T ERROR\u{202e}".to_owned();
    let bench = Bench::with(&machine).set("observe.metrics_listen", "127.0.0.1:0");
    harmless("gpus", &bench.run(&["gpus"]).out);
    bench.engine.behave(Behaviour::Named(LABEL));
    let mut daemon = bench.serve(&[]);
    daemon.wait_for_lessons(3);
    bench.engine.behave(Behaviour::Body(BODY));
    daemon.wait_for_log("metrics endpoint out");
    for arguments in
        [&["status"][..], &["status", "--json"], &["model", "show"], &["model", "show", "--json"]]
    {
        let shown = bench.run(arguments);
        assert_eq!(shown.code, Some(0), "{arguments:?}: {}", shown.err);
        harmless(&arguments.join(" "), &format!("{}{}", shown.out, shown.err));
    }
    daemon.stop();
    harmless("console", &daemon.log());
    let mut logs = 0;
    for gpu in std::fs::read_dir(bench.path("logs")).unwrap() {
        for file in std::fs::read_dir(gpu.unwrap().path()).unwrap() {
            harmless("log file", &std::fs::read_to_string(file.unwrap().path()).unwrap());
            logs += 1;
        }
    }
    assert!(logs > 0);
    let hostile = bench.path(NAME);
    std::fs::rename(bench.runs().pop().unwrap(), &hostile).unwrap();
    let hostile = hostile.to_str().unwrap();
    for form in ["html", "md", "json"] {
        let report = bench.run(&["report", hostile, "--format", form]);
        assert_eq!(report.code, Some(0), "{form}: {}", report.err);
        harmless(form, &format!("{}{}", report.out, report.err));
    }
    harmless("compare", &bench.run(&["compare", hostile, hostile]).out);
    let missing = bench.run(&["report", &format!("{hostile}.none")]);
    assert_eq!(missing.code, Some(1));
    harmless("report of nothing", &missing.err);
    harmless("replay", &bench.run(&["replay", hostile]).err);
}
