//! The supervisor as process 1, as in a container: all orphans come to it, whatever they do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot be set up fails"
)]

mod support;

use std::process::Command;

use agft_serve::supervise::Supervisor;
use support::{PATIENCE, children, eventually, instance, settings, until};

/// Not a test by itself: runs as process 1 of a namespace.
#[tokio::test]
#[ignore = "started by the test here"]
async fn as_process_1() {
    assert_eq!(std::process::id(), 1);
    let dir = tempfile::tempdir().unwrap();
    let server =
        instance("a", &["--child", "daemon", "--child", "session", "--exit-after", "20", "--status", "1"]);
    let supervisor = Supervisor::start(settings(dir.path()), vec![server]).await.unwrap();
    until(&supervisor, "a", |it| it.restarts >= 5).await;
    supervisor.disable("a").await.unwrap();
    until(&supervisor, "a", |it| it.pid.is_none()).await;
    eventually("no children and no zombies", || children() == 0).await;
    assert!(supervisor.shut_down(PATIENCE).await.is_empty());
}

#[test]
fn process_1_waits_for_all_orphans() {
    let unshare = |program: &str| {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--mount-proc", program]);
        command
    };
    if !unshare("true").output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this user may make no pid namespace");
        return;
    }
    let own = std::env::current_exe().unwrap();
    let output =
        unshare(own.to_str().unwrap()).args(["--ignored", "--exact", "as_process_1"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}
