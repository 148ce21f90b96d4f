//! What agft itself takes, with a scraper at its metrics, a status watch and an open web page, over a minute. Not run by default:
//! `cargo test --release --test overhead -- --ignored --nocapture`. With `AGFT_KEEP_RUN=DIR` the run's record stays there.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nvidia_ml::{GpuConfig, MockConfig};
use support::daemon::{Bench, Daemon};

/// User and system time of a process so far, in seconds.
fn cpu(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process");
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields: Vec<f64> =
        fields.split_whitespace().skip(1).map(|field| field.parse().unwrap_or(0.0)).collect();
    (fields[10] + fields[11]) / 100.0
}

/// Most memory that a process ever had, in MiB.
fn peak_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<f64>().unwrap() / 1024.0
}

#[test]
#[ignore = "takes a minute, and means something only for a release build on a quiet machine"]
fn overhead_with_a_scraper_a_status_watch_and_a_page_stays_small() {
    let seconds =
        std::env::var("AGFT_OVERHEAD_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60_u64);
    // The defaults in all that costs time.
    let bench = Bench::new()
        .set("control.policy", "structured")
        .set("control.decision_interval_s", "0.3")
        .set("idle.active_poll_ms", "100")
        .set("idle.parked_poll_ms", "100")
        .set("metrics.sampling_duration", "0.8")
        .set("logging.console_level", "INFO");
    for watched in [false, true] {
        let mut daemon = bench.serve(&["--metrics-listen", "127.0.0.1:0", "--log-format", "text"]);
        let address = daemon.page_address();
        let mut watch = watched.then(|| {
            let mut command = bench.command(&["status", "--watch", "--json"]);
            command.stdout(Stdio::null()).spawn().unwrap()
        });
        let page = watched.then(|| {
            let mut stream = TcpStream::connect(&address).unwrap();
            write!(stream, "GET /events HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
            // To the end of the run, which ends the stream.
            std::thread::spawn(move || {
                let lines = BufReader::new(stream).lines().map_while(Result::ok);
                lines.filter(|line| line == "event: state").count()
            })
        });
        let (begun, before) = (Instant::now(), cpu(daemon.pid()));
        let mut second = 0_u32;
        while begun.elapsed() < Duration::from_secs(seconds) {
            bench.engine.set_load([0.2, 0.6, 0.9][second as usize / 20 % 3]);
            second += 1;
            if watched {
                let mut stream = TcpStream::connect(&address).unwrap();
                let request =
                    format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
                stream.write_all(request.as_bytes()).unwrap();
                let mut page = String::new();
                stream.read_to_string(&mut page).unwrap();
                assert!(page.contains("agft_rounds_total"));
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        let took = cpu(daemon.pid()) - before;
        let share = 100.0 * took / begun.elapsed().as_secs_f64();
        let peak = peak_mib(daemon.pid());
        println!("scraper, watch and page: {watched}; CPU {share:.2} % of a core, peak RSS {peak:.1} MiB");
        if let Some(watch) = &mut watch {
            let _ = watch.kill();
            let _ = watch.wait();
        }
        daemon.stop();
        if let Some(page) = page {
            // Streams end after some minutes; a browser then opens the next.
            assert!(page.join().unwrap() as u64 >= seconds.min(200) / 2);
        }
        let mut runs = bench.runs();
        runs.sort();
        let steps = std::fs::read_dir(runs.last().unwrap().join("steps")).unwrap();
        let bytes: u64 = steps.map(|file| file.unwrap().metadata().unwrap().len()).sum();
        #[expect(clippy::cast_precision_loss, reason = "some megabytes")]
        let hourly = bytes as f64 / 1e6 / begun.elapsed().as_secs_f64() * 3600.0;
        println!("steps: {bytes} bytes, {hourly:.1} MB an hour");
        assert!(peak < 40.0, "{peak} MiB");
    }
    if let Ok(keep) = std::env::var("AGFT_KEEP_RUN") {
        let mut runs = bench.runs();
        runs.sort();
        std::fs::create_dir_all(&keep).unwrap();
        for file in std::fs::read_dir(runs.last().unwrap()).unwrap() {
            let file = file.unwrap();
            if file.file_type().unwrap().is_dir() {
                continue;
            }
            std::fs::copy(file.path(), std::path::Path::new(&keep).join(file.file_name())).unwrap();
        }
    }
}

#[test]
#[ignore = "takes a minute, and means something only for a release build on a quiet machine"]
fn eight_servers_cost_little_more_than_one() {
    let seconds =
        std::env::var("AGFT_OVERHEAD_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60_u64);
    let mut bench = Bench::with(&MockConfig::uniform(&GpuConfig::a100(), 8))
        .set("control.policy", "structured")
        .set("control.decision_interval_s", "0.3")
        .set("idle.active_poll_ms", "100")
        .set("idle.parked_poll_ms", "100")
        .set("metrics.sampling_duration", "0.8")
        .set("logging.console_level", "INFO");
    for server in 0..8 {
        bench = bench.server(&format!("server{server}"), &[server], "");
    }
    bench.servers.iter().for_each(|server| server.set_load(0.6));
    let mut daemon = Daemon::start_plain(bench.command(&["--metrics-listen", "127.0.0.1:0"]));
    let address = daemon.page_address();
    std::thread::sleep(Duration::from_secs(3));
    let (begun, before) = (Instant::now(), cpu(daemon.pid()));
    let mut second = 0_usize;
    while begun.elapsed() < Duration::from_secs(seconds) {
        for (number, server) in bench.servers.iter().enumerate() {
            server.set_load([0.2, 0.6, 0.9][(second / 20 + number) % 3]);
        }
        second += 1;
        assert!(support::get(&address, "/metrics").unwrap().contains("agft_rounds_total"));
        std::thread::sleep(Duration::from_secs(1));
    }
    let share = 100.0 * (cpu(daemon.pid()) - before) / begun.elapsed().as_secs_f64();
    let peak = peak_mib(daemon.pid());
    println!("eight servers and a scraper: CPU {share:.2} % of a core, peak RSS {peak:.1} MiB");
    daemon.stop();
    assert!(peak < 40.0, "{peak} MiB");
}

#[test]
#[ignore = "takes two minutes, and means something only on a quiet machine"]
fn parked_agft_park_costs_next_to_nothing() {
    let seconds =
        std::env::var("AGFT_OVERHEAD_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60_u64);
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port().to_string();
    for (what, arguments) in
        [("utilisation", &["park"][..]), ("utilisation and connections", &["park", "--port", &port])]
    {
        // The defaults in all that costs time.
        let bench = Bench::new().set("park.quiet_s", "0.3").set("logging.console_level", "INFO");
        let bench = bench.set("park.metrics_listen", "\"127.0.0.1:0\"");
        let mut command = bench.command(arguments);
        command.args(["--log-level", "info"]);
        let mut daemon = support::daemon::Daemon::start_plain(command);
        daemon.wait_for_log("may be parked");
        let parked = || bench.lock() == Some(210);
        assert!(support::eventually(parked, |parked| *parked), "{}", daemon.tail());
        let guardian = u32::try_from(bench.guardian().unwrap().as_raw_nonzero().get()).unwrap();
        std::thread::sleep(Duration::from_secs(2));
        let before = (cpu(daemon.pid()), cpu(guardian), bench.mock.total_calls());
        let begun = Instant::now();
        std::thread::sleep(Duration::from_secs(seconds));
        let took = begun.elapsed().as_secs_f64();
        let share = |pid, before| 100.0 * (cpu(pid) - before) / took;
        let (own, guards) = (share(daemon.pid(), before.0), share(guardian, before.1));
        #[expect(clippy::cast_precision_loss, reason = "some hundred calls")]
        let calls = (bench.mock.total_calls() - before.2) as f64 * 60.0 / took;
        println!(
            "{what}: CPU {own:.2} % of a core, the guardian's {guards:.2} %, {calls:.0} driver calls a minute, \
             peak RSS {:.1} MiB and {:.1} MiB",
            peak_mib(daemon.pid()),
            peak_mib(guardian)
        );
        daemon.stop();
    }
}

#[test]
#[ignore = "takes a minute, and means something only for a release build on a quiet machine"]
fn overhead_while_parked_is_smaller_still() {
    let mut bench = Bench::new()
        .set("control.policy", "structured")
        .set("control.decision_interval_s", "0.3")
        .set("idle.active_poll_ms", "100")
        .set("idle.parked_poll_ms", "100")
        .set("logging.console_level", "INFO");
    for sources in ["[metrics, utilization]", "[metrics, utilization, connections]"] {
        bench.change("idle.sources", sources);
        let mut daemon = bench.start(&["--log-format", "text"]);
        daemon.wait_for_log("parked");
        std::thread::sleep(Duration::from_secs(2));
        let (begun, before, calls) = (Instant::now(), cpu(daemon.pid()), bench.mock.total_calls());
        std::thread::sleep(Duration::from_secs(60));
        let share = 100.0 * (cpu(daemon.pid()) - before) / begun.elapsed().as_secs_f64();
        let calls = bench.mock.total_calls() - calls;
        println!("{sources}: {share:.2} % of a core, {calls} driver calls in a minute, parked");
        daemon.stop();
    }
}
