//! A supervisor that is killed leaves nothing for the next. The supervisors here are processes of their own:
//! this test program, started again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot be set up fails"
)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use agft_serve::spec::Hook;
use agft_serve::supervise::{Settings, State, Supervisor};
use support::{PATIENCE, eventually, exists, instance, noted, settings, until};

const DIRECTORY: &str = "AGFT_SERVE_TEST_DIRECTORY";
const GROUPS: &str = "AGFT_SERVE_TEST_GROUPS";

/// Not a test: the program of a supervisor, which runs until it is killed.
#[test]
#[ignore = "started by the tests here"]
fn supervisor_process() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let note = directory.join("pids");
        let kinds = ["--child", "group", "--child", "session", "--child", "daemon"];
        let all = vec![instance("a", &[&kinds[..], &["--note", note.to_str().unwrap()]].concat()), {
            let mut stubborn = instance("b", &["--ignore-term", "--spam", "--note", note.to_str().unwrap()]);
            stubborn.stop.grace = Duration::from_millis(200);
            let program = env!("CARGO_BIN_EXE_agft-fake-server");
            let command = [program, "--note", note.to_str().unwrap()].map(str::to_owned).to_vec();
            stubborn.hooks = vec![Hook { name: "h".to_owned(), enabled: true, command, hooks: vec![] }];
            stubborn
        }];
        let supervisor =
            Supervisor::start(settings_with(&directory, std::env::var_os(GROUPS).is_some()), all).await;
        let supervisor = match supervisor {
            Ok(supervisor) => supervisor,
            Err(error) => {
                std::fs::write(directory.join("error"), error.to_string()).unwrap();
                return;
            }
        };
        for name in ["a", "b"] {
            until(&supervisor, name, |it| it.state == State::Ready).await;
        }
        std::future::pending::<()>().await;
    });
}

/// Killed when the test is over, whatever way.
struct Killed(Child);

impl Killed {
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn supervisor(directory: &Path, groups: bool) -> Killed {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "supervisor_process"]).env(DIRECTORY, directory);
    if groups {
        command.env(GROUPS, "1");
    }
    Killed(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

/// Where a test fails, it leaves nothing either.
struct Swept(PathBuf);

impl Drop for Swept {
    fn drop(&mut self) {
        for pid in noted(&self.0) {
            let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if command.contains(&*self.0.to_string_lossy()) {
                support::kill_9(pid.unsigned_abs());
            }
        }
    }
}

/// A zombie whose parent is elsewhere is not ours to wait for.
fn lives(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    exists(pid) && stat.rsplit_once(") ").is_some_and(|(_, fields)| !fields.starts_with('Z'))
}

async fn until_noted(note: &Path, count: usize) {
    eventually("all processes noted", || noted(note).len() >= count).await;
}

fn settings_with(directory: &Path, control_groups: bool) -> Settings {
    Settings { control_groups, ..settings(directory) }
}

#[tokio::test]
async fn the_next_supervisor_ends_what_a_killed_one_left() {
    left_by_a_killed_one(false).await;
}

#[tokio::test]
async fn the_next_supervisor_ends_what_a_killed_one_left_in_control_groups() {
    left_by_a_killed_one(true).await;
}

async fn left_by_a_killed_one(groups: bool) {
    let dir = tempfile::tempdir().unwrap();
    let note = dir.path().join("pids");
    let _swept = Swept(note.clone());
    let mut first = supervisor(dir.path(), groups);
    // a, its three children, the daemon's child; b and its hook.
    until_noted(&note, 7).await;

    // While it lives, no other supervisor takes its directory.
    let refused = Supervisor::start(settings_with(dir.path(), groups), vec![]).await.unwrap_err().to_string();
    assert!(refused.contains("another supervisor runs with the runtime directory"), "{refused}");

    first.kill();
    let left: Vec<i32> = noted(&note).into_iter().filter(|&pid| lives(pid)).collect();
    assert!(left.len() >= 4, "the killed supervisor left too little to test with: {left:?}");

    let mut second = supervisor(dir.path(), groups);
    until_noted(&note, 14).await;
    let (old, new) = (noted(&note)[..7].to_vec(), noted(&note)[7..].to_vec());
    assert!(old.iter().all(|&pid| !lives(pid)), "of {old:?} some live");
    // A process may be there before it is written down.
    let file = dir.path().join("run/running.json");
    let state = || serde_json::from_slice::<serde_json::Value>(&std::fs::read(&file).unwrap()).unwrap();
    eventually("three written down", || state()["running"].as_object().unwrap().len() == 3).await;
    second.kill();

    // The last one ends what is left and has nothing to start. Without its file it still knows them by their
    // mark.
    let mut state = state();
    state["running"] = serde_json::json!({});
    std::fs::write(&file, state.to_string()).unwrap();
    let last = Supervisor::start(settings_with(dir.path(), groups), vec![]).await.unwrap();
    assert!(new.iter().all(|&pid| !lives(pid)), "of {new:?} some live");
    last.shut_down(PATIENCE).await;
    assert!(!dir.path().join("error").exists());
}
