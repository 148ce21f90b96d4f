//! The real program for long, at a fast tick: resident memory stays flat, files stay bounded. `scripts/soak.sh`.

mod support;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::daemon::Bench;
use support::engine::Behaviour;

/// After this the program has everything that it will ever hold.
const WARM: Duration = Duration::from_secs(300);
/// How far resident memory may move from there, kB.
const FLAT_KB: u64 = 1024;

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|value| value.parse().ok()).unwrap_or(otherwise)
}

fn rss_kb(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rss| rss.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

fn kilobytes(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else {
        return fs::metadata(path).map_or(0, |file| file.len()) >> 10;
    };
    entries.flatten().map(|entry| kilobytes(&entry.path())).sum()
}

#[test]
#[ignore = "minutes; scripts/soak.sh"]
fn memory_and_files_stay_where_they_are() {
    let length = Duration::from_secs(number("SOAK_SECONDS", 3600));
    let tick = number("SOAK_TICK_MS", 30);
    let period = format!("0.0{tick:02}");
    let bench = Bench::new()
        .set("control.decision_interval_s", &period)
        .set("control.policy", &std::env::var("SOAK_POLICY").unwrap_or_else(|_| "structured".into()))
        .set("logging.max_file_mb", "1")
        .set("logging.keep_files", "2")
        .set("experiment.rounds_file_max_mb", "1")
        .set("experiment.keep_rounds_files", "3")
        .set("experiment.keep_steps_mb", "2")
        .set("experiment.steps_file_max_mb", "1");
    let mut daemon = bench.serve(&[]);
    let guardian =
        bench.guardian().and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok()).unwrap_or(0);
    let start = Instant::now();
    let mut warm: Option<(u64, u64)> = None;
    let mut lines = Vec::new();
    let mut furthest = 0;
    for second in 1.. {
        std::thread::sleep(Duration::from_secs(1).saturating_mul(second).saturating_sub(start.elapsed()));
        // Loads, rests, restarts, outages and reloads, over and over.
        match second % 60 {
            10 => bench.engine.set_load(1.0),
            20 => bench.engine.set_load(0.0),
            26 => bench.engine.set_load(0.3),
            35 => bench.engine.restart(),
            40 => bench.engine.behave(Behaviour::Status500),
            42 => bench.engine.behave(Behaviour::Serve),
            50 => daemon.signal(Signal::HUP),
            55 => bench.engine.set_load(0.6),
            _ => {}
        }
        let now = (rss_kb(daemon.pid()), rss_kb(guardian));
        if start.elapsed() >= WARM.min(length / 2) {
            let warm = *warm.get_or_insert(now);
            furthest = furthest.max(now.0.abs_diff(warm.0));
        }
        if second % 60 == 0 || start.elapsed() >= length {
            let sizes = ["models", "runs", "logs", "run"].map(|name| kilobytes(&bench.path(name)));
            lines.push((start.elapsed().as_secs(), now, sizes));
            println!("{:?}", lines.last());
        }
        assert!(daemon.is_running(), "{}", daemon.tail());
        if start.elapsed() >= length {
            break;
        }
    }
    let end = (rss_kb(daemon.pid()), rss_kb(guardian));
    let sizes = ["models", "runs", "logs", "run"].map(|name| kilobytes(&bench.path(name)));
    let warm = warm.unwrap_or(end);
    daemon.stop();
    let rounds = daemon.log().matches(" round=").count();
    println!(
        "soak: {:.0} s, ticks of {tick} ms, {rounds} rounds; RSS controller {} kB -> {} kB (at most {furthest} kB away), \
         guardian {} kB -> {} kB; files in kB: models {}, runs {}, logs {}, run {}",
        start.elapsed().as_secs_f64(),
        warm.0,
        end.0,
        warm.1,
        end.1,
        sizes[0],
        sizes[1],
        sizes[2],
        sizes[3]
    );
    assert!(end.0.abs_diff(warm.0) <= FLAT_KB && end.1.abs_diff(warm.1) <= FLAT_KB, "{warm:?} -> {end:?}");
    let [models, runs, logs, run] = sizes;
    assert!(models < 2048 && runs < (4 + 3) * 1024 + 512 && logs < 3 * 1024 + 512 && run < 64, "{sizes:?}");
}
