//! Nothing is left of many starts and stops. The only test of its program: it counts what the process has.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot be set up fails"
)]

mod support;

use agft_serve::spec::Hook;
use agft_serve::supervise::{State, Supervisor};
use support::{PATIENCE, children, eventually, instance, settings, until, until_ready};

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[tokio::test]
async fn nothing_is_left_of_500_starts_and_stops() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = instance("a", &["--child", "daemon"]);
    let sleeper = ["/bin/sh", "-c", "exec sleep 1000"].map(str::to_owned).to_vec();
    server.hooks = vec![Hook { name: "h".to_owned(), enabled: true, command: sleeper, hooks: vec![] }];
    let supervisor = Supervisor::start(settings(dir.path()), vec![server]).await.unwrap();
    let mut before = None;
    for round in 0..500 {
        until_ready(&supervisor, "a").await;
        supervisor.disable("a").await.unwrap();
        until(&supervisor, "a", |it| it.state == State::Disabled).await;
        if round == 10 {
            before = Some((open_files(), threads()));
        }
        supervisor.enable("a").await.unwrap();
    }
    supervisor.disable("a").await.unwrap();
    until(&supervisor, "a", |it| it.state == State::Disabled).await;
    eventually("no children and no zombies", || children() == 0).await;
    let (files, tasks) = before.unwrap();
    eventually("no open files", || open_files() <= files).await;
    assert!(threads() <= tasks + 4, "{} threads, {tasks} before", threads());
    assert!(supervisor.shut_down(PATIENCE).await.is_empty());
}
