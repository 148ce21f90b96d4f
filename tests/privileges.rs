//! As root beside others: what they could have written is not obeyed, what agft writes is not theirs to read or change,
//! tokens stay secret, and no shell is ever called.
#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod support;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use agft::replay::Segment;
use rustix::process::Signal;
use support::daemon::{Bench, Daemon, finish};
use support::engine::Behaviour;

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");
const NOBODY: u32 = 65534;

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: this is about root");
    }
    root
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
}

/// `agft --config FILE` with these arguments; without what a sudo around the tests would say.
fn agft(bench: &Bench, file: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agft"));
    command.envs(bench.mock.env()).env_remove("SUDO_UID").stdin(Stdio::null());
    command.arg("--config").arg(file).args(arguments);
    command
}

#[test]
fn configuration_that_a_stranger_could_have_written_is_refused_by_root_and_touches_no_clock() {
    if !is_root() {
        return;
    }
    type Change = fn(&Path);
    let cases: [(&str, Change, &str); 5] = [
        ("mode", |file| set_mode(file, 0o666), "its mode 0666 lets others write it"),
        ("group", |file| set_mode(file, 0o664), "its mode 0664 lets others write it"),
        ("owner", |file| chown(file, Some(NOBODY), None).expect("chown"), "it belongs to user 65534"),
        (
            "directory",
            |file| set_mode(file.parent().expect("a directory"), 0o777),
            "its mode 0777 lets others",
        ),
        (
            "link",
            |file| {
                let real = file.with_extension("real");
                fs::rename(file, &real).expect("a rename");
                symlink(real, file).expect("a link");
                lchown(file, Some(NOBODY), None).expect("lchown");
            },
            "it is a symbolic link",
        ),
    ];
    for (what, change, says) in cases {
        let bench = Bench::new();
        let file = bench.path("etc/config.yaml");
        fs::create_dir(bench.path("etc")).expect("a directory");
        fs::copy(bench.config(), &file).expect("a copy");
        change(&file);
        for arguments in [&[][..], &["--dry-run"], &["release"]] {
            let finished = finish(agft(&bench, &file, arguments));
            assert_eq!(finished.code, Some(64), "{what}: {finished:?}");
            assert!(
                finished.err.contains("is not obeyed by root") && finished.err.contains(says),
                "{finished:?}"
            );
        }
        let check = finish(agft(&bench, &file, &["check"]));
        assert!(check.out.contains("FAIL  configuration") && check.out.contains(says), "{what}: {check:?}");
        assert_eq!(bench.mock.history(), [], "{what}");
        // What looks only at the file, or needs no rights, does not mind.
        let mut alone = Command::new(env!("CARGO_BIN_EXE_agft"));
        alone.arg("check-config").arg(&file);
        assert_eq!(finish(alone).code, Some(0), "{what}");
        // The way out when everything else is broken stays open.
        assert_eq!(finish(agft(&bench, &file, &["release", "--all"])).code, Some(0), "{what}");
    }
}

#[test]
fn configuration_of_the_user_who_called_sudo_is_obeyed() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let file = bench.config();
    chown(&file, Some(NOBODY), Some(NOBODY)).expect("chown");
    set_mode(&file, 0o664);
    let mut release = agft(&bench, &file, &["release"]);
    release.env("SUDO_UID", NOBODY.to_string());
    let finished = finish(release);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let mut other = agft(&bench, &file, &["release"]);
    other.env("SUDO_UID", "1000");
    assert_eq!(finish(other).code, Some(64));
}

#[test]
fn configuration_that_becomes_a_strangers_is_not_reloaded_and_the_old_one_stays() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let mut daemon = bench.serve(&[]);
    let bench = bench.set("gpu.clock_tolerance_mhz", "60");
    set_mode(&bench.config(), 0o666);
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("is not obeyed by root");
    assert!(!daemon.log().contains("takes effect now"), "{}", daemon.tail());
    daemon.stop();
}

#[test]
fn runtime_directory_in_which_others_can_remove_journals_is_refused() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    fs::create_dir(bench.path("run")).expect("a directory");
    set_mode(&bench.path("run"), 0o777);
    let finished = bench.run(&[]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    for part in ["gpu.runtime_dir", "its mode 0777 lets others write it"] {
        assert!(finished.err.contains(part), "{finished:?}");
    }
    assert!(bench.is_free());
}

fn mode_of(path: &Path) -> u32 {
    path.metadata().expect("it is there").mode() & 0o7777
}

#[test]
fn right_of_others_to_write_in_a_directory_of_roots_is_taken_from_them_and_said() {
    if !is_root() {
        return;
    }
    for mode in [0o777, 0o775, 0o757] {
        let bench = Bench::new();
        let dirs = ["models", "runs", "logs", "logs/A100_SXM4_80GB"].map(|name| bench.path(name));
        for dir in &dirs {
            fs::create_dir(dir).expect("a directory");
            set_mode(dir, mode);
        }
        // What a stranger may have left there is neither waited for, nor written in, nor believed.
        assert!(
            Command::new("mkfifo").arg(dirs[0].join("model_metadata.json")).status().expect("it").success()
        );
        let log = dirs[3].join("agft.log");
        fs::write(&log, "").expect("a file");
        chown(&log, Some(NOBODY), None).expect("chown");
        let check = finish(agft(&bench, &bench.config(), &["check"]));
        for key in ["model.save_dir", "experiment.dir", "logging.dir"] {
            assert!(check.out.contains(&format!("note  {key}: others can change")), "{key}: {check:?}");
        }
        let mut daemon = bench.serve(&[]);
        daemon.stop();
        let said = daemon.log();
        for dir in &dirs {
            assert_eq!(mode_of(dir), mode & !0o022, "{}", dir.display());
            let line = said.lines().find(|line| {
                line.contains("that right was taken from them") && line.contains(&dir.display().to_string())
            });
            assert!(line.is_some(), "{}: {said}", dir.display());
        }
        assert!(said.contains("no log file in") && said.contains("it belongs to user 65534"), "{said}");
        assert_eq!(fs::read_to_string(&log).expect("the file"), "");
    }
}

#[test]
fn directory_that_others_could_exchange_is_not_used_by_root() {
    if !is_root() {
        return;
    }
    for (key, name) in [
        ("gpu.runtime_dir", "shared/run"),
        ("model.save_dir", "shared/models"),
        ("experiment.dir", "shared/deep/runs"),
    ] {
        let bench = Bench::new();
        let (shared, dir) = (bench.path("shared"), bench.path(name));
        fs::create_dir(&shared).expect("a directory");
        set_mode(&shared, 0o777);
        let bench = bench.set(key, &format!("{dir:?}"));
        bench.engine.set_load(0.6);
        let finished = bench.run(&[]);
        assert_eq!(finished.code, Some(1), "{key}: {finished:?}");
        let place = format!("{}: its mode 0777 lets others write it (`chmod go-w`", shared.display());
        for part in [key, &place, "others could put another directory in its place"] {
            assert!(finished.err.contains(part), "{key}: {finished:?}");
        }
        assert!(bench.is_free(), "{key}");
        let check = finish(agft(&bench, &bench.config(), &["check"]));
        assert!(check.out.contains(&format!("FAIL  {key}: root keeps nothing")), "{check:?}");
        // The whole way is judged, and whoever owns a directory can write it.
        set_mode(&shared, 0o755);
        chown(&shared, Some(NOBODY), None).expect("chown");
        let finished = bench.run(&[]);
        assert_eq!(finished.code, Some(1), "{key}: {finished:?}");
        assert!(finished.err.contains("it belongs to user 65534"), "{finished:?}");
        // In a directory like /tmp nobody touches what is somebody else's.
        chown(&shared, Some(0), None).expect("chown");
        set_mode(&shared, 0o1777);
        let mut daemon = bench.serve(&[]);
        daemon.stop();
        assert_eq!(mode_of(&shared), 0o1777, "{key}");
    }
}

#[test]
fn log_directory_that_others_could_exchange_costs_root_the_log_file_alone() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let shared = bench.path("shared");
    fs::create_dir(&shared).expect("a directory");
    set_mode(&shared, 0o777);
    let bench = bench.set("logging.dir", &format!("{:?}", shared.join("logs")));
    let mut daemon = bench.serve(&[]);
    daemon.stop();
    let place = format!("{}: its mode 0777 lets others write it", shared.display());
    assert!(daemon.log().contains("no log file in") && daemon.log().contains(&place), "{}", daemon.log());
    assert!(!tree(&shared).iter().any(|path| path.is_file()), "{:?}", tree(&shared));
}

#[test]
fn token_file_that_others_can_read_is_named() {
    let bench = Bench::new();
    let token = bench.path("token");
    fs::write(&token, "s3cr3t").expect("a token");
    let bench = bench.set("vllm.bearer_token_file", &format!("{token:?}"));
    for (mode, named) in [(0o644, true), (0o604, true), (0o640, false), (0o600, false)] {
        set_mode(&token, mode);
        let says = format!("bearer_token_file {}: its mode {mode:04o} lets every user", token.display());
        let mut daemon = bench.serve(&[]);
        daemon.stop();
        assert_eq!(daemon.log().contains(&says), named, "{mode:o}: {}", daemon.log());
        let check = finish(agft(&bench, &bench.config(), &["check"]));
        assert_eq!(check.out.contains("note  vllm.bearer_token_file: "), named, "{check:?}");
    }
}

#[test]
fn log_that_is_a_pipe_is_not_waited_for() {
    let bench = Bench::new();
    let dir = bench.path("logs/A100_SXM4_80GB");
    fs::create_dir_all(&dir).expect("a directory");
    let pipe = dir.join("agft.log");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    let mut daemon = bench.serve(&[]);
    daemon.wait_for_log("no log file in");
    daemon.stop();
}

/// Everything under a directory.
fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![dir.to_owned()];
    let mut next = 0;
    while let Some(path) = found.get(next).cloned() {
        next += 1;
        if path.is_dir() && !path.is_symlink() {
            found.extend(
                fs::read_dir(path).expect("a directory").map(|entry| entry.expect("an entry").path()),
            );
        }
    }
    found
}

#[test]
fn every_file_is_0640_and_every_directory_0750_whatever_the_umask() {
    let bench = Bench::new();
    let inner = bench.command(&[]);
    // The umask is the process's own; a shell around agft is the plainest way to set it.
    let mut command = Command::new("sh");
    command.args(["-c", "umask 0; exec \"$0\" \"$@\""]).arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    command.current_dir(bench.path(""));
    bench.engine.set_load(0.6);
    let mut daemon = Daemon::start(command);
    bench.wait_for_lock(&daemon);
    daemon.wait_for_lessons(2);
    let mut seen = Vec::new();
    let mut look = |when: &str| {
        for path in ["models", "runs", "logs", "run"].iter().flat_map(|dir| tree(&bench.path(dir))) {
            let Ok(metadata) = path.symlink_metadata() else { continue };
            // Whoever may write to the control socket is asked who he is at each connection.
            let allowed = match metadata.file_type() {
                kind if kind.is_dir() => 0o750,
                kind if kind.is_socket() => 0o660,
                _ => 0o640,
            };
            let mode = metadata.mode() & 0o7777;
            assert_eq!(mode, allowed, "{when}: {} is {mode:04o}", path.display());
            seen.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
    };
    look("while running");
    daemon.stop();
    look("afterwards");
    for name in ["model.agft", "model_metadata.json", "rounds_data.jsonl", "config_snapshot.yaml", "agft.log"]
    {
        assert!(seen.iter().any(|seen| seen == name), "no {name} in {seen:?}");
    }
    for suffix in [".journal", ".lock", ".guard"] {
        assert!(seen.iter().any(|seen| seen.ends_with(suffix)), "no {suffix} in {seen:?}");
    }
}

#[test]
fn token_and_query_of_the_url_are_in_no_log_and_no_file_at_any_level() {
    const TOKEN: &str = "s3cr3t-bearer-t0ken";
    const QUERY: &str = "s3cr3t-query";
    let bench = Bench::new();
    let token = bench.path("token");
    fs::write(&token, format!("{TOKEN}\n")).expect("a token");
    let url = format!("{}?key={QUERY}", bench.engine.url());
    let bench = bench
        .set("vllm.bearer_token_file", &format!("{token:?}"))
        .set("vllm.prometheus_url", &format!("{url:?}"))
        .set("logging.file_level", "TRACE")
        .set("logging.console_level", "TRACE");
    let mut command = bench.command(&["--log-level", "trace"]);
    command.env("RUST_LOG", "trace");
    let mut daemon = Daemon::start_plain(command);
    // A page that comes, then none: errors have texts of their own.
    daemon.wait_for_log("run directory");
    let before = bench.engine.served();
    let served = support::eventually(|| bench.engine.served(), |served| *served > before + 3);
    assert!(served > before + 3, "{}", daemon.tail());
    let bench = bench.set("vllm.prometheus_url", &format!("\"{url}-2\""));
    let config = bench.config();
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("takes effect now");
    bench.engine.behave(Behaviour::Status500);
    daemon.wait_for_log("metrics endpoint out");
    daemon.stop();
    assert!(fs::read_to_string(config).expect("the configuration").contains(QUERY));
    let mut texts = vec![("console".to_owned(), daemon.log())];
    for path in ["models", "runs", "logs", "run"].iter().flat_map(|dir| tree(&bench.path(dir))) {
        if agft::store::steps::number_of(&path).is_some() {
            let mut segment = Segment::open(&path).expect("a segment").expect("a whole one");
            let steps = std::iter::from_fn(|| segment.next_step().expect("a step"));
            let steps: Vec<String> = steps.map(|step| format!("{step:?}")).collect();
            texts.push((path.display().to_string(), segment.head.config + &steps.concat()));
        } else if path.is_file() {
            let bytes = fs::read(&path).expect("a file");
            texts.push((path.display().to_string(), String::from_utf8_lossy(&bytes).into_owned()));
        }
    }
    for (name, text) in &texts {
        assert!(!text.contains(TOKEN), "the token is in {name}");
        // The snapshot of the configuration has what the configuration has.
        let configured = name.ends_with("config_snapshot.yaml") || name.ends_with("experiment_metadata.json");
        let line = text.lines().find(|line| line.contains(QUERY));
        assert!(configured || line.is_none(), "the query is in {name}: {line:?}");
    }
}

/// Lines of the program proper, tests left out.
fn program_text() -> Vec<(PathBuf, String)> {
    let is_test = |path: &Path| {
        path.file_stem()
            .is_some_and(|stem| ["tests", "testing", "laws", "gold"].iter().any(|name| stem == *name))
    };
    tree(&Path::new(REPOSITORY).join("src"))
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs") && !is_test(path))
        .map(|path| {
            let text = fs::read_to_string(&path).expect("a source file");
            let end = text.find("\n#[cfg(test)]\nmod tests {").unwrap_or(text.len());
            (path, text[..end].to_owned())
        })
        .collect()
}

#[test]
fn only_programs_that_are_ever_started_are_agft_itself_and_the_fan_programs_of_park() {
    let starts: Vec<(PathBuf, String)> = program_text()
        .into_iter()
        .flat_map(|(path, text)| {
            let lines: Vec<String> = text
                .lines()
                .filter(|line| {
                    ["Command::new(", "libc::system", "libc::exec", "posix_spawn"]
                        .iter()
                        .any(|call| line.contains(call))
                })
                .map(|line| line.trim().to_owned())
                .collect();
            lines.into_iter().map(move |line| (path.clone(), line))
        })
        .collect();
    let started = |file: &str| {
        let found = starts.iter().find(|(path, _)| path.ends_with(file));
        found.map(|(_, line)| line.as_str())
    };
    assert_eq!(starts.len(), 3, "{starts:?}");
    let itself = r#"let mut command = Command::new("/proc/self/exe");"#;
    assert_eq!(started("src/guardian/link.rs"), Some(itself));
    // A program beside it, which root runs only if nobody else could have written it; see tests/companions.rs.
    let beside = "let error = Command::new(program).args(std::env::args_os().skip(1)).exec();";
    assert_eq!(started("src/cli/companion.rs"), Some(beside));
    // By the configuration alone, which root obeys only if nobody else could have written it; see tests/park.rs.
    assert_eq!(started("src/daemon/park/hooks.rs"), Some("let mut command = Command::new(program);"));
}

#[test]
fn unsafe_code_is_in_four_named_files_of_the_program() {
    // C calls that no crate has a safe form of: graphics clocks of boards with many, malloc_trim, a filter on a perf event, and
    // NVAPI.
    const NAMED: [&str; 4] = [
        "src/connections/kernel/perf.rs",
        "src/connections/memory.rs",
        "src/gpu/nvapi.rs",
        "src/gpu/nvml/raw.rs",
    ];
    let allowed = |text: &str| text.contains("expect(unsafe_code") || text.contains("allow(unsafe_code");
    let mut files: Vec<PathBuf> =
        program_text().into_iter().filter(|(_, text)| allowed(text)).map(|(path, _)| path).collect();
    files.sort();
    let named =
        files.len() == NAMED.len() && files.iter().zip(NAMED).all(|(file, name)| file.ends_with(name));
    assert!(named, "{files:?}");
}

#[test]
fn service_files_have_a_reason_beside_each_line_and_know_the_exit_codes() {
    for unit in ["agft.service", "agft-park.service"] {
        service_file_has_a_reason_beside_each_line_and_knows_the_exit_codes(unit);
    }
}

#[test]
fn service_files_say_nothing_that_systemd_does_not_know() {
    let dir = tempfile::tempdir().expect("a directory");
    for unit in ["agft.service", "agft-park.service"] {
        let text = fs::read_to_string(Path::new(REPOSITORY).join("deploy").join(unit)).expect("the unit");
        assert!(text.contains("ExecReload=/bin/kill -HUP $MAINPID"), "{unit}");
        // The program is looked for, and not installed here.
        let text = text.replace("/usr/local/bin/agft", env!("CARGO_BIN_EXE_agft"));
        let copy = dir.path().join(unit);
        fs::write(&copy, text).expect("a copy");
        let Ok(verified) = Command::new("systemd-analyze").arg("verify").arg(&copy).output() else {
            eprintln!("skipped: no systemd-analyze here (Debian: systemd)");
            return;
        };
        let said = String::from_utf8_lossy(&verified.stderr);
        // It ends with 0 whatever it does not understand, and says so.
        assert!(verified.status.success() && !said.contains(unit), "{said}");
    }
}

fn service_file_has_a_reason_beside_each_line_and_knows_the_exit_codes(unit: &str) {
    let text = fs::read_to_string(Path::new(REPOSITORY).join("deploy").join(unit)).expect("the unit");
    let (_, service) = text.split_once("[Service]\n").expect("a section");
    let (service, _) = service.split_once("[Install]").expect("a section");
    // What follows a line of the same matter shares its reason.
    let shares = [
        "RuntimeDirectoryMode",
        "StateDirectoryMode",
        "WorkingDirectory",
        "ExecStart",
        "RestartSec",
        "Restart",
    ];
    let mut explained = false;
    for line in service.lines() {
        match line.split_once('=') {
            _ if line.starts_with('#') => explained = true,
            Some((key, _)) => {
                assert!(
                    explained || shares.contains(&key) || key == "SystemCallErrorNumber",
                    "no reason in {unit}: {line}"
                );
                explained = false;
            }
            None => {}
        }
    }
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    // Only what a hand has to mend ends it for good...
    let for_good = format!("2 {}", agft::cli::Exit::Config as i32);
    assert_eq!(value("RestartPreventExitStatus"), Some(for_good.as_str()), "{unit}");
    assert_eq!(value("Restart"), Some("on-failure"), "{unit}");
    // ...each other code has a reason why it is tried again...
    let prevented = text.split_once("RestartPreventExitStatus=").expect("the line").0;
    for code in [
        agft::cli::Exit::Failure,
        agft::cli::Exit::InUse,
        agft::cli::Exit::Stuck,
        agft::cli::Exit::NotPermitted,
    ] {
        let reason = format!("\n# {} (", code as i32);
        assert!(prevented.contains(&reason), "{unit} does not say why {code:?} is tried again");
    }
    // ...and a driver that comes half a minute, or an hour, after the boot is still waited for, without haste.
    assert_eq!(value("StartLimitIntervalSec"), Some("0"), "{unit}");
    assert_eq!(value("StartLimitBurst"), None, "{unit}");
    let pause: u32 = value("RestartSec").expect("a pause").parse().expect("seconds");
    assert!((10..=30).contains(&pause), "{unit}: {pause} s");
}
