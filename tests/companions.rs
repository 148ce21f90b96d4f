//! `agft demo` and `agft simulate` hand over to the `agft-lab` beside the program, `agft serve` and `agft
//! instances` to `agft-serve`.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A program of this name that says what it was started with, and ends with 7.
const SCRIPT: &str = "#!/bin/sh\necho \"$0:\" \"$@\"\necho heard >&2\nexit 7\n";

/// One test at a time: a child that another test starts holds this one's file open for writing until it has
/// become its program, and a file that is open for writing cannot be run.
static ALONE: Mutex<()> = Mutex::new(());

/// agft in a directory of its own.
fn installed() -> (MutexGuard<'static, ()>, tempfile::TempDir, PathBuf) {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let agft = dir.path().join("agft");
    fs::copy(env!("CARGO_BIN_EXE_agft"), &agft).unwrap();
    (alone, dir, agft)
}

fn add(name: &str, dir: &Path) -> PathBuf {
    let program = dir.join(name);
    fs::write(&program, SCRIPT).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    program
}

fn run(agft: &Path, arguments: &[&str]) -> Output {
    Command::new(agft).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn the_program_beside_takes_over_with_the_same_arguments() {
    let (_alone, dir, agft) = installed();
    let lab = add("agft-lab", dir.path());
    for arguments in [
        &["demo", "--json", "--seconds", "5"][..],
        &[
            "--log-level",
            "debug",
            "simulate",
            "--policy",
            "default,best-fixed",
            "--parking",
            "--config",
            "a b.yaml",
        ],
    ] {
        let output = run(&agft, arguments);
        assert_eq!(output.status.code(), Some(7), "{output:?}");
        assert_eq!(text(&output.stdout), format!("{}: {}\n", lab.display(), arguments.join(" ")));
        assert_eq!(text(&output.stderr), "heard\n");
    }
    // The options are checked before, and explained without it.
    assert_eq!(run(&agft, &["demo", "--seconds", "1"]).status.code(), Some(2));
    let link = dir.path().join("linked");
    fs::create_dir(&link).unwrap();
    std::os::unix::fs::symlink(&agft, link.join("agft")).unwrap();
    assert_eq!(
        run(&link.join("agft"), &["demo"]).status.code(),
        Some(7),
        "beside the program, not beside a link to it"
    );
}

#[test]
fn the_supervisor_gets_all_that_follows_its_command_unread() {
    let (_alone, dir, agft) = installed();
    let serve = add("agft-serve", dir.path());
    for arguments in [
        &["serve"][..],
        &["serve", "--instances", "/etc/x y", "--listen", "127.0.0.1:5002", "--no-such-option"],
        &["serve", "--config", "/etc/gppmd/config.yaml", "--port=5003"],
        &["serve", "--help"],
        &["instances", "ls", "--format", "json", "--host", "h"],
        &["instances", "logs", "-f", "a b"],
        &["instances", "--help"],
    ] {
        let output = run(&agft, arguments);
        assert_eq!(output.status.code(), Some(7), "{output:?}");
        assert_eq!(text(&output.stdout), format!("{}: {}\n", serve.display(), arguments.join(" ")));
    }
    fs::remove_file(&serve).unwrap();
    let error = text(&run(&agft, &["instances", "ls"]).stderr);
    assert!(error.contains("agft-serve is not there") && error.contains("crates/agft-serve"), "{error}");
}

#[test]
fn where_it_is_missing_the_error_says_what_is_missing_and_how_to_get_it() {
    let (_alone, dir, agft) = installed();
    for command in ["demo", "simulate"] {
        let output = run(&agft, &[command]);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(error.contains(&dir.path().join("agft-lab").display().to_string()), "{error}");
        assert!(error.contains("cargo build --release") && error.contains("cargo install --path"), "{error}");
        let help = run(&agft, &[command, "--help"]);
        assert!(help.status.success() && text(&help.stdout).contains("--seconds"), "{help:?}");
    }
}

#[test]
fn root_does_not_run_what_others_could_have_written() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: not root");
        return;
    }
    let (_alone, dir, agft) = installed();
    let lab = add("agft-lab", dir.path());
    let refused = |why: &str| {
        let output = run(&agft, &["demo"]);
        let error = text(&output.stderr);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), String::new()), "{error}");
        assert!(error.contains(&format!("{} is not run as root: ", lab.display())), "{error}");
        assert!(error.contains(why), "{error}");
    };
    fs::set_permissions(&lab, Permissions::from_mode(0o777)).unwrap();
    refused("lets others write it");
    fs::set_permissions(&lab, Permissions::from_mode(0o755)).unwrap();
    chown(&lab, Some(65534), None).unwrap();
    refused("belongs to user 65534");
    // Who owns agft itself is believed: a build in a user's own directory.
    chown(&agft, Some(65534), None).unwrap();
    assert_eq!(run(&agft, &["demo"]).status.code(), Some(7));
    fs::rename(&lab, dir.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), &lab).unwrap();
    refused("symbolic link");
}
