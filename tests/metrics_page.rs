//! agft's own metrics page, from the real program: to a plain client, to a real Prometheus, and where it cannot be.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use support::daemon::Bench;
use support::engine::Behaviour;
use support::{eventually, get, value};

/// A series of the one server on its one GPU, with these labels more.
fn of_server(page: &str, name: &str, more: &str) -> Option<f64> {
    value(page, &format!(r#"{name}{{server="server",gpu="0"{more}}}"#))
}

#[test]
fn page_follows_the_loop_and_ends_with_it() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&["--metrics-listen", "127.0.0.1:0"]);
    let address = daemon.page_address();
    let locked = |page: &Option<String>| {
        page.as_ref().is_some_and(|page| {
            of_server(page, "agft_clocks_locked", "") == Some(1.0)
                && of_server(page, "agft_lessons_total", "") > Some(3.0)
        })
    };
    let page = eventually(|| get(&address, "/metrics"), locked).unwrap();
    assert!(locked(&Some(page.clone())), "{page}");
    assert!(of_server(&page, "agft_gpu_energy_joules_total", "") > Some(0.0), "{page}");
    assert!(of_server(&page, "agft_tokens_total", r#",kind="generated""#) > Some(0.0), "{page}");
    let asked = of_server(&page, "agft_asked_core_clock_hertz", "").unwrap();
    assert!((500e6..=1410e6).contains(&asked), "{asked}");
    let modes = page.lines().filter(|line| line.starts_with("agft_mode{") && line.ends_with(" 1.0")).count();
    assert_eq!(modes, 1, "{page}");
    daemon.stop();
    assert!(get(&address, "/metrics").is_none());
}

#[test]
fn outage_leaves_no_reading_of_the_engine_on_the_page() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&["--metrics-listen", "127.0.0.1:0"]);
    let address = daemon.page_address();
    let readings = || {
        let page = get(&address, "/metrics").unwrap();
        let running = r#",state="running""#;
        [("agft_requests", running), ("agft_kv_cache_usage_ratio", ""), ("agft_edp_joule_seconds", "")]
            .map(|(name, more)| of_server(&page, name, more))
    };
    assert!(eventually(readings, |all| all.iter().all(Option::is_some)).iter().all(Option::is_some));
    bench.engine.behave(Behaviour::Refuse);
    assert_eq!(eventually(readings, |all| all.iter().all(Option::is_none)), [None; 3]);
    let page = get(&address, "/metrics").unwrap();
    assert_eq!(of_server(&page, "agft_mode", r#",mode="OUTAGE""#), Some(1.0), "{page}");
    assert!(of_server(&page, "agft_gpu_power_watts", "").is_some(), "the GPU still answers: {page}");
    bench.engine.behave(Behaviour::Serve);
    assert!(eventually(readings, |all| all[0].is_some())[0].is_some(), "{}", daemon.tail());
    daemon.stop();
}

#[test]
fn port_that_is_taken_is_an_error_before_any_clock_is_touched() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let bench = Bench::new().set("observe.metrics_listen", &format!("\"{address}\""));
    let end = bench.run(&[]);
    assert_eq!(end.code, Some(1), "{}", end.err);
    let said = end.err.lines().last().unwrap();
    assert!(said.contains(&address.to_string()) && said.contains("in use") && said.contains("off"), "{said}");
    assert!(bench.mock.history().is_empty());
}

#[test]
fn crowd_of_bad_clients_does_not_delay_the_loop() {
    let bench = Bench::new();
    let mut daemon = bench.serve(&["--metrics-listen", "127.0.0.1:0"]);
    let address = daemon.page_address();
    let before = of_server(&get(&address, "/metrics").unwrap(), "agft_rounds_total", "").unwrap();
    let mut crowd = Vec::new();
    for k in 0..1000 {
        let Ok(mut stream) = TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(5))
        else {
            break;
        };
        let _ = stream.write_all(if k % 2 == 0 { b"GET /metr" } else { b"\0\0\0\0" });
        crowd.push(stream);
    }
    let lessons = daemon.lessons();
    daemon.wait_for_lessons(3);
    assert!(daemon.lessons() > lessons);
    drop(crowd);
    let page = eventually(|| get(&address, "/metrics"), Option::is_some).unwrap();
    let (steps, late) = (
        of_server(&page, "agft_tick_lateness_seconds_count", "").unwrap(),
        value(&page, r#"agft_tick_lateness_seconds_bucket{le="0.1",server="server",gpu="0"}"#).unwrap(),
    );
    assert!(of_server(&page, "agft_rounds_total", "").unwrap() > before);
    // On a machine with other work some ticks are late whatever happens here.
    assert!(late > 0.8 * steps, "{late} of {steps} ticks in time");
    daemon.stop();
}

#[test]
fn prometheus_scrapes_it_and_answers_questions_about_it() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let bench = Bench::new();
    let mut daemon = bench.serve(&["--metrics-listen", "127.0.0.1:0"]);
    let target = daemon.page_address();
    let config = bench.path("prometheus.yml");
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/prometheus/agft.rules.yml");
    let text = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{rules:?}]\n\
         scrape_configs: [{{job_name: agft, static_configs: [{{targets: [\"{target}\"]}}]}}]\n"
    );
    std::fs::write(&config, text).unwrap();
    let server = Command::new("prometheus")
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", bench.path("tsdb").display()))
        .arg(format!("--web.listen-address={free}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut server) = server else {
        eprintln!("skipped: no prometheus here (Debian: prometheus)");
        return;
    };
    let ask = |query: &str| -> Option<f64> {
        let answer = get(free, &format!("/api/v1/query?query={query}"))?;
        // The answer may come in chunks: the JSON is between the outermost braces.
        let json = &answer[answer.find('{')?..=answer.rfind('}')?];
        let json: serde_json::Value = serde_json::from_str(json).ok()?;
        json["data"]["result"][0]["value"][1].as_str()?.parse().ok()
    };
    let rounds = eventually(|| ask("agft_rounds_total"), |rounds| *rounds > Some(20.0));
    let up = ask("up");
    let rate = eventually(|| ask("rate(agft_steps_total%5B10s%5D)"), |rate| *rate > Some(1.0));
    let watts = ask("sum(agft_gpu_power_watts)");
    let typed = get(free, "/api/v1/metadata?metric=agft_gpu_energy_joules_total").unwrap_or_default()
        + &get(free, "/api/v1/metadata?metric=agft_gpu_energy_joules").unwrap_or_default();
    let _ = server.kill();
    let _ = server.wait();
    assert!(rounds > Some(20.0), "{rounds:?}\n{}", daemon.tail());
    assert_eq!(up, Some(1.0));
    assert!(rate > Some(1.0) && watts > Some(10.0), "{rate:?} {watts:?}");
    assert!(typed.contains("\"counter\""), "{typed}");
    daemon.stop();
}

#[test]
fn rules_and_dashboard_name_only_metrics_that_there_are() {
    let root = env!("CARGO_MANIFEST_DIR");
    let read =
        |path: &str| std::fs::read_to_string(format!("{root}/{path}")).expect("a file of the repository");
    let documented = read("docs/metrics.md");
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    for path in ["deploy/prometheus/agft.rules.yml", "deploy/grafana/agft.json"] {
        for name in read(path).split(word).filter(|name| name.starts_with("agft_")) {
            let family = name.strip_suffix("_bucket").unwrap_or(name);
            assert!(documented.contains(&format!("`{family}`")), "{path}: {name}");
        }
    }
    let _: serde_json::Value = serde_json::from_str(&read("deploy/grafana/agft.json")).unwrap();
    for arguments in [["check", "rules", "agft.rules.yml"], ["test", "rules", "agft.rules.test.yml"]] {
        let promtool = Command::new("promtool")
            .args(arguments)
            .current_dir(format!("{root}/deploy/prometheus"))
            .output();
        let Ok(promtool) = promtool else {
            eprintln!("skipped: no promtool here (Debian: prometheus)");
            return;
        };
        assert!(promtool.status.success(), "{}", String::from_utf8_lossy(&promtool.stderr));
    }
}
