//! The supervisor with real processes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot be set up fails"
)]

mod support;

use std::time::{Duration, Instant};

use agft_serve::process::{Exit, Source};
use agft_serve::spec::{Hook, RestartPolicy};
use agft_serve::supervise::{CommandError, InstanceEvent, Reloaded, State, Supervisor, What};
use support::{
    PATIENCE, eventually, exists, free_port, instance, kill_9, noted, probed, settings, until, until_ready,
};
use tokio::sync::broadcast;

async fn event(events: &mut broadcast::Receiver<InstanceEvent>, so: impl Fn(&What) -> bool) -> What {
    loop {
        let event = tokio::time::timeout(PATIENCE, events.recv()).await.expect("no such event").unwrap();
        if so(&event.what) {
            return event.what;
        }
    }
}

#[tokio::test]
async fn an_instance_gets_ready_is_restarted_and_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port().to_string();
    let server = probed(instance("a", &["--port", &port, "--ready-after", "200"]), &port, PATIENCE);
    let supervisor = Supervisor::start(settings(dir.path()), vec![server]).await.unwrap();
    let mut events = supervisor.events();
    let starting = until(&supervisor, "a", |status| status.pid.is_some()).await;
    assert_eq!(starting.state, State::Starting);
    let first = until_ready(&supervisor, "a").await;
    let What::Ready { after } = event(&mut events, |what| matches!(what, What::Ready { .. })).await else {
        panic!()
    };
    assert!(after >= Duration::from_millis(200), "{after:?}");

    supervisor.restart("a").await.unwrap();
    let second = until(&supervisor, "a", |it| it.ready() && it.pid != Some(first)).await;
    assert_eq!(second.last_exit.as_deref(), Some("was ended by signal 15 (SIGTERM)"));
    assert_eq!(second.restarts, 0, "an operator's restart tells of no failure");

    supervisor.disable("a").await.unwrap();
    let disabled = until(&supervisor, "a", |it| it.state == State::Disabled).await;
    assert!(!disabled.enabled && disabled.pid.is_none());
    assert_eq!(supervisor.restart("a").await, Err(CommandError::Disabled("a".to_owned())));
    assert_eq!(supervisor.enable("b").await, Err(CommandError::NoSuchInstance("b".to_owned())));
    supervisor.enable("a").await.unwrap();
    let third = until_ready(&supervisor, "a").await;

    assert!(supervisor.shut_down(PATIENCE).await.is_empty());
    for pid in [first, second.pid.unwrap(), third] {
        assert!(!exists(pid.try_into().unwrap()));
    }
    let log = std::fs::read_to_string(dir.path().join("log/a.log")).unwrap();
    assert_eq!(log.matches("started\n").count(), 3, "{log}");
    assert_eq!(log.matches("to standard error\n").count(), 3, "{log}");
}

#[tokio::test]
async fn a_reload_touches_what_changed_alone() {
    let dir = tempfile::tempdir().unwrap();
    let all = vec![instance("a", &[]), instance("b", &[]), instance("c", &[])];
    let supervisor = Supervisor::start(settings(dir.path()), all.clone()).await.unwrap();
    let mut pids = Vec::new();
    for name in ["a", "b", "c"] {
        pids.push(until_ready(&supervisor, name).await);
    }
    let mut changed = all[1].clone();
    changed.env.insert("X".to_owned(), "1".to_owned());
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    let done = supervisor.reload(vec![instance("d", &[]), changed.clone(), all[0].clone()]).await.unwrap();
    let expected = Reloaded {
        unchanged: names(&["a"]),
        restarted: names(&["b"]),
        ended: names(&["c"]),
        started: names(&["d"]),
    };
    assert_eq!(done, expected);
    assert_eq!(until_ready(&supervisor, "a").await, pids[0]);
    until(&supervisor, "b", |it| it.ready() && it.pid != Some(pids[1])).await;
    until_ready(&supervisor, "d").await;
    assert!(!exists(pids[1].try_into().unwrap()) && !exists(pids[2].try_into().unwrap()));
    let order: Vec<_> = supervisor.statuses().borrow().iter().map(|it| it.name.clone()).collect();
    assert_eq!(order, ["d", "b", "a"]);

    // What an operator said holds while the entry stays as it is.
    supervisor.disable("b").await.unwrap();
    until(&supervisor, "b", |it| it.state == State::Disabled).await;
    assert_eq!(supervisor.reload(vec![changed]).await.unwrap().unchanged, ["b"]);
    assert_eq!(until(&supervisor, "b", |_| true).await.state, State::Disabled);
    assert!(
        supervisor
            .reload(vec![all[0].clone(), all[0].clone()])
            .await
            .unwrap_err()
            .to_string()
            .contains("\"a\"")
    );
    supervisor.shut_down(PATIENCE).await;
}

#[tokio::test]
async fn nothing_is_left_of_a_process_and_its_descendants() {
    for control_groups in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let note = dir.path().join("pids");
        let kinds = ["--child", "group", "--child", "session", "--child", "daemon", "--ignore-term"];
        let mut server = instance("a", &[&kinds[..], &["--note", note.to_str().unwrap()]].concat());
        server.stop.grace = Duration::from_millis(100);
        let settings = agft_serve::supervise::Settings { control_groups, ..settings(dir.path()) };
        let supervisor = Supervisor::start(settings, vec![server]).await.unwrap();
        let mut events = supervisor.events();
        // The server, its three children, and the child of the one that ends.
        eventually("five processes", || noted(&note).len() == 5).await;
        supervisor.disable("a").await.unwrap();
        let stopped = event(&mut events, |what| matches!(what, What::Stopped { .. })).await;
        assert_eq!(stopped, What::Stopped { exit: Exit::Signal(9) });
        for pid in noted(&note) {
            eventually("all gone, zombies too", || !exists(pid)).await;
        }
        supervisor.shut_down(PATIENCE).await;
    }
}

#[tokio::test]
async fn children_killed_from_outside_are_started_again_in_every_state() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port().to_string();
    let slow = probed(instance("slow", &[]), &port, PATIENCE);
    let mut stubborn = instance("stubborn", &["--ignore-term"]);
    stubborn.stop.grace = PATIENCE * 10;
    let all = vec![instance("ready", &[]), slow, stubborn];
    let supervisor = Supervisor::start(settings(dir.path()), all).await.unwrap();

    let ready = until_ready(&supervisor, "ready").await;
    kill_9(ready);
    let again = until(&supervisor, "ready", |it| it.ready() && it.pid != Some(ready)).await;
    assert_eq!(again.last_exit.as_deref(), Some("was ended by signal 9 (SIGKILL)"));
    assert_eq!(again.restarts, 1);

    let starting = until(&supervisor, "slow", |it| it.pid.is_some()).await;
    assert_eq!(starting.state, State::Starting);
    kill_9(starting.pid.unwrap());
    until(&supervisor, "slow", |it| {
        it.state == State::Starting && it.pid.is_some_and(|pid| Some(pid) != starting.pid)
    })
    .await;

    let stubborn = until_ready(&supervisor, "stubborn").await;
    supervisor.disable("stubborn").await.unwrap();
    until(&supervisor, "stubborn", |it| it.state == State::Stopping).await;
    kill_9(stubborn);
    until(&supervisor, "stubborn", |it| it.state == State::Disabled).await;
    supervisor.shut_down(PATIENCE).await;
}

#[tokio::test]
async fn a_process_that_always_ends_is_in_a_crash_loop_and_still_retried() {
    let dir = tempfile::tempdir().unwrap();
    let all = vec![instance("a", &["--exit-after", "0", "--status", "3"]), {
        let mut missing = instance("missing", &[]);
        missing.command = vec!["/nonexistent/program".to_owned()];
        missing
    }];
    let supervisor = Supervisor::start(settings(dir.path()), all).await.unwrap();
    let looping =
        until(&supervisor, "a", |it| matches!(it.state, State::CrashLoop { failures: 6, .. })).await;
    assert_eq!(looping.last_exit.as_deref(), Some("exited with status 3"));
    assert_eq!(looping.restarts, 5);
    let missing = until(&supervisor, "missing", |it| matches!(it.state, State::CrashLoop { .. })).await;
    assert!(missing.problem.unwrap().contains("/nonexistent/program cannot be started: No such file"));
    supervisor.shut_down(PATIENCE).await;
}

#[tokio::test]
async fn the_policy_tells_whether_it_starts_again() {
    let dir = tempfile::tempdir().unwrap();
    let with = |name: &str, options: &[&str], policy| {
        let mut instance = instance(name, options);
        instance.restart.policy = policy;
        instance
    };
    let all = vec![
        with("clean", &["--exit-after", "0"], RestartPolicy::OnFailure),
        with("never", &["--exit-after", "0", "--abort"], RestartPolicy::Never),
        with("always", &["--exit-after", "0"], RestartPolicy::Always),
    ];
    let supervisor = Supervisor::start(settings(dir.path()), all).await.unwrap();
    until(&supervisor, "clean", |it| it.state == State::Ended && it.restarts == 0).await;
    let never = until(&supervisor, "never", |it| it.state == State::Ended).await;
    assert_eq!(never.last_exit.as_deref(), Some("was ended by signal 6 (SIGABRT)"));
    until(&supervisor, "always", |it| it.restarts >= 2).await;
    supervisor.shut_down(PATIENCE).await;
}

#[tokio::test]
async fn not_ready_in_time_is_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let server = probed(instance("a", &[]), &free_port().to_string(), Duration::from_millis(300));
    let supervisor = Supervisor::start(settings(dir.path()), vec![server]).await.unwrap();
    let mut events = supervisor.events();
    event(&mut events, |what| *what == What::NotReady { within: Duration::from_millis(300) }).await;
    event(&mut events, |what| matches!(what, What::Backoff { failures: 1, .. })).await;
    until(&supervisor, "a", |it| it.restarts > 0).await;
    supervisor.shut_down(PATIENCE).await;
}

#[tokio::test]
async fn one_that_answers_no_more_is_restarted_and_one_that_answers_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (hung_after, ports) = (Duration::from_secs(2), [free_port(), free_port()]);
    let server = |name: &str, port: u16| {
        let port = port.to_string();
        let mut server = probed(instance(name, &["--port", &port]), &port, PATIENCE);
        server.ready.as_mut().unwrap().hung_after = Some(hung_after);
        server.stop.grace = Duration::from_millis(300);
        server
    };
    let all = vec![server("hangs", ports[0]), server("answers", ports[1])];
    let supervisor = Supervisor::start(settings(dir.path()), all).await.unwrap();
    let mut events = supervisor.events();
    until(&supervisor, "answers", |it| it.state == State::Ready).await;
    let ready = until(&supervisor, "hangs", |it| it.state == State::Ready).await;
    let pid = ready.pid.unwrap();
    // It lives, its port takes connections, and nobody is answered.
    let process = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::STOP).unwrap();
    event(&mut events, |what| *what == What::Hung { within: hung_after }).await;
    let again = until(&supervisor, "hangs", |it| it.state == State::Ready && it.restarts > 0).await;
    assert_ne!(again.pid, Some(pid));
    let other = until(&supervisor, "answers", |it| it.state == State::Ready).await;
    assert_eq!(other.restarts, 0);
    supervisor.shut_down(PATIENCE).await;
}

#[tokio::test]
async fn output_never_stops_an_instance_wherever_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let mut full = instance("full", &["--spam"]);
    full.log.file = Some("/dev/full".into());
    let mut kept = instance("kept", &["--spam"]);
    kept.log.max_bytes = 1 << 20;
    let supervisor = Supervisor::start(settings(dir.path()), vec![full, kept]).await.unwrap();
    for name in ["full", "kept"] {
        let (_, mut follow) = supervisor.log(name, 0).unwrap();
        let (mut out, mut err) = (0, 0);
        // 3 MiB of each, where a pipe holds 64 KiB.
        while out < 3 << 20 || err < 3 << 20 {
            match tokio::time::timeout(PATIENCE, follow.recv()).await.expect("the instance hangs") {
                Ok(line) if line.source == Source::Stdout => out += line.text.len() + 1,
                Ok(line) => err += line.text.len() + 1,
                Err(broadcast::error::RecvError::Lagged(lines)) => {
                    out += usize::try_from(lines).unwrap() * 64;
                    err += usize::try_from(lines).unwrap() * 64;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    supervisor.shut_down(PATIENCE).await;
    let size = |name: &str| std::fs::metadata(dir.path().join("log").join(name)).map(|file| file.len());
    assert!(size("kept.log.2").is_ok());
    assert!(size("kept.log.1").unwrap() <= 1 << 20 && size("kept.log.1").unwrap() > (1 << 20) - (16 << 10));
    assert!(size("kept.log.3").is_err() && size("full.log").is_err());
}

#[tokio::test]
async fn hooks_start_after_and_end_before_and_their_failure_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let order = dir.path().join("order");
    let script = |name: &str| {
        let order = order.display();
        let text = format!(
            "trap 'echo end {name} >>{order}; exit' TERM; echo start {name} >>{order}; \
             while :; do sleep 0.02; done"
        );
        ["/bin/sh", "-c", &text].map(str::to_owned).to_vec()
    };
    let hook = |name: &str, command: Vec<String>, hooks| Hook {
        name: name.to_owned(),
        enabled: true,
        command,
        hooks,
    };
    let mut server = instance("a", &[]);
    server.command = script("instance");
    let inner = hook("inner", script("inner"), vec![]);
    let mut off = hook("off", script("off"), vec![]);
    off.enabled = false;
    let missing = hook("missing", vec!["/nonexistent".to_owned()], vec![]);
    let short = hook("short", ["/bin/sh", "-c", "exit 7"].map(str::to_owned).to_vec(), vec![]);
    server.hooks = vec![hook("outer", script("outer"), vec![inner]), off, missing, short];
    let supervisor = Supervisor::start(settings(dir.path()), vec![server]).await.unwrap();
    let mut events = supervisor.events();
    let failed =
        |name: &'static str| move |what: &What| matches!(what, What::Hook { name: it, .. } if it == name);
    let missing = event(&mut events, failed("missing")).await;
    assert!(missing.to_string().contains("not started: /nonexistent"), "{missing}");
    assert_eq!(event(&mut events, failed("short")).await.to_string(), "hook short: exited with status 7");
    let pid = until_ready(&supervisor, "a").await;
    let lines = || std::fs::read_to_string(&order).unwrap_or_default();
    eventually("hooks run", || lines().lines().count() == 3).await;
    assert_eq!(until(&supervisor, "a", |_| true).await.pid, Some(pid));
    supervisor.shut_down(PATIENCE).await;
    let all = lines();
    let ends: Vec<&str> = all.lines().filter(|line| line.starts_with("end")).collect();
    assert_eq!(ends, ["end inner", "end outer", "end instance"]);
    assert!(!all.contains("off"));
}

#[tokio::test]
async fn a_shutdown_ends_in_reverse_order_and_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut stubborn = instance("stubborn", &["--ignore-term"]);
    stubborn.stop.grace = PATIENCE * 10;
    let mut all = vec![stubborn];
    let supervisor = Supervisor::start(settings(dir.path()), all.clone()).await.unwrap();
    until_ready(&supervisor, "stubborn").await;
    for name in ["b", "c"] {
        all.insert(0, instance(name, &[]));
        supervisor.reload(all.clone()).await.unwrap();
        until_ready(&supervisor, name).await;
    }
    let mut events = supervisor.events();
    let begun = Instant::now();
    assert!(supervisor.shut_down(Duration::from_secs(5)).await.is_empty());
    assert!(begun.elapsed() < PATIENCE, "the grace of one does not hold up the end");
    let mut stopped = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let What::Stopped { exit } = event.what {
            stopped.push((event.instance, exit));
        }
    }
    let expected = [("c", Exit::Signal(15)), ("b", Exit::Signal(15)), ("stubborn", Exit::Signal(9))];
    assert_eq!(stopped, expected.map(|(name, exit)| (name.to_owned(), exit)));
    assert!(supervisor.reload(vec![]).await.is_err());
}

#[tokio::test]
async fn a_process_gets_its_environment_its_directory_and_its_user() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = instance("a", &[]);
    let script = "echo \"$X|$PWD|$HOME|$(id -un)|$(id -Gn)\"; exec sleep 1000";
    server.command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    server.env.insert("X".to_owned(), "a $HOME b".to_owned());
    server.working_directory = Some("/usr".into());
    let root = rustix::process::getuid().is_root();
    server.user = root.then(|| "nobody".to_owned());
    let mut myself = instance("myself", &[]);
    let own = std::process::Command::new("id").arg("-un").output().unwrap().stdout;
    myself.user = Some(String::from_utf8(own).unwrap().trim().to_owned());
    let mut wrong = server.clone();
    wrong.name = "wrong".to_owned();
    wrong.user = Some("no-such-user".to_owned());
    let mut nowhere = server.clone();
    nowhere.name = "nowhere".to_owned();
    nowhere.working_directory = Some("/nonexistent".into());
    let supervisor =
        Supervisor::start(settings(dir.path()), vec![server, myself, wrong, nowhere]).await.unwrap();
    let (mut lines, mut follow) = supervisor.log("a", 1).unwrap();
    if lines.is_empty() {
        lines.push(tokio::time::timeout(PATIENCE, follow.recv()).await.unwrap().unwrap());
    }
    let fields: Vec<&str> = lines[0].text.split('|').collect();
    assert_eq!(fields[..2], ["a $HOME b", "/usr"]);
    if root {
        assert_eq!(fields[2..4], ["/nonexistent", "nobody"]);
        assert!(!fields[4].split(' ').any(|group| group == "root"), "{fields:?}");
    }
    until_ready(&supervisor, "myself").await;
    let wrong = until(&supervisor, "wrong", |it| it.problem.is_some()).await.problem.unwrap();
    assert!(wrong.contains("user \"no-such-user\" does not exist"), "{wrong}");
    let nowhere = until(&supervisor, "nowhere", |it| it.problem.is_some()).await.problem.unwrap();
    assert!(nowhere.contains("working directory /nonexistent"), "{nowhere}");
    supervisor.shut_down(PATIENCE).await;
}
