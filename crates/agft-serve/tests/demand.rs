//! Instances on demand: clients wait, and are never refused.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot be set up fails"
)]

mod support;

use std::time::Duration;

use agft_serve::supervise::{State, Supervisor};
use support::{PATIENCE, free_port, instance, kill_9, on_demand, probed, settings, until, until_ready};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LONG: Duration = Duration::from_secs(3600);

/// Asks over one new connection, and tells the pid that answers.
async fn ask(port: u16) -> u32 {
    let asked = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("refused");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("reset");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
        body.trim().parse().unwrap()
    };
    tokio::time::timeout(PATIENCE, asked).await.expect("no answer in time")
}

#[tokio::test]
async fn a_hundred_first_connections_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    // Nearly no idle time: most questions find it stopped, some while it is being stopped.
    let server = instance("a", &["--port", "{port}", "--ready-after", "5"]);
    let server = on_demand(probed(server, "{port}", PATIENCE), port, Duration::from_millis(1));
    let supervisor = Supervisor::start(settings(dir.path()), vec![server]).await.unwrap();
    assert_eq!(until(&supervisor, "a", |it| it.connections == Some(0)).await.state, State::StoppedIdle);
    let mut pids = std::collections::BTreeSet::new();
    for round in 0..100 {
        pids.insert(ask(port).await);
        if round % 2 == 0 {
            until(&supervisor, "a", |it| it.state == State::StoppedIdle).await;
        }
    }
    assert!(pids.len() >= 50, "{} processes", pids.len());
    supervisor.shut_down(PATIENCE).await;
}

#[tokio::test]
async fn many_that_come_at_once_wait_for_one_start() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    // No probe: it runs before it listens, and clients wait all the same.
    let mut server = instance("a", &["--port", "{port}", "--ready-after", "300"]);
    server.env.insert("PORT".to_owned(), "{port}".to_owned());
    server.metrics_url = Some("http://127.0.0.1:{port}/metrics".to_owned());
    let supervisor =
        Supervisor::start(settings(dir.path()), vec![on_demand(server.clone(), port, LONG)]).await.unwrap();
    until(&supervisor, "a", |it| it.connections == Some(0)).await;
    let asking: Vec<_> = (0..50).map(|_| tokio::spawn(ask(port))).collect();
    let mut pids = Vec::new();
    for asked in asking {
        pids.push(asked.await.unwrap());
    }
    let pid = until_ready(&supervisor, "a").await;
    assert!(pids.iter().all(|&it| it == pid));
    let private = std::fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    let private = private.split('\0').find_map(|entry| entry.strip_prefix("PORT=")).unwrap().to_owned();
    let status = until(&supervisor, "a", |it| it.connections == Some(0)).await;
    assert_eq!(status.metrics_url.unwrap(), format!("http://127.0.0.1:{private}/metrics"));

    // A process that ends is started again for whoever comes, by a new one after a reload too.
    kill_9(pid);
    until(&supervisor, "a", |it| it.pid != Some(pid)).await;
    let second = ask(port).await;
    assert_ne!(second, pid);
    server.env.insert("NEW".to_owned(), "1".to_owned());
    supervisor.reload(vec![on_demand(server, port, LONG)]).await.unwrap();
    // What is replaced and has no client waits for one.
    until(&supervisor, "a", |it| it.state == State::StoppedIdle).await;
    assert_ne!(ask(port).await, second);
    supervisor.shut_down(PATIENCE).await;
}

#[tokio::test]
async fn clients_that_come_while_it_is_replaced_wait_for_the_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut server = on_demand(instance("a", &["--port", "{port}", "--ignore-term"]), port, LONG);
    server.stop.grace = Duration::from_millis(500);
    let supervisor = Supervisor::start(settings(dir.path()), vec![server.clone()]).await.unwrap();
    until(&supervisor, "a", |it| it.connections == Some(0)).await;
    let first = ask(port).await;
    server.env.insert("NEW".to_owned(), "1".to_owned());
    supervisor.reload(vec![server]).await.unwrap();
    until(&supervisor, "a", |it| it.state == State::Stopping).await;
    let asking: Vec<_> = (0..10).map(|_| tokio::spawn(ask(port))).collect();
    for asked in asking {
        assert_ne!(asked.await.unwrap(), first);
    }
    supervisor.shut_down(PATIENCE).await;
}

#[tokio::test]
async fn a_client_that_stays_keeps_it_running_and_a_disabled_one_does_not_listen() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let server = on_demand(instance("a", &["--port", "{port}"]), port, Duration::from_millis(20));
    let supervisor = Supervisor::start(settings(dir.path()), vec![server]).await.unwrap();
    until(&supervisor, "a", |it| it.connections == Some(0)).await;
    let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let pid = until_ready(&supervisor, "a").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with(&format!("{pid}\n")), "{answer}");
    drop(client);
    until(&supervisor, "a", |it| it.state == State::StoppedIdle).await;

    supervisor.disable("a").await.unwrap();
    until(&supervisor, "a", |it| it.connections.is_none()).await;
    support::eventually("no longer listened at", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_err()
    })
    .await;
    supervisor.enable("a").await.unwrap();
    until(&supervisor, "a", |it| it.connections == Some(0)).await;
    ask(port).await;
    supervisor.shut_down(PATIENCE).await;
}

#[tokio::test]
async fn an_address_that_is_taken_is_told_and_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let server = on_demand(instance("a", &["--port", "{port}"]), port, LONG);
    let supervisor = Supervisor::start(settings(dir.path()), vec![server]).await.unwrap();
    let status = until(&supervisor, "a", |it| it.problem.is_some()).await;
    assert!(status.problem.unwrap().starts_with(&format!("127.0.0.1:{port} cannot be listened at: ")));
    drop(taken);
    until(&supervisor, "a", |it| it.problem.is_none() && it.connections == Some(0)).await;
    ask(port).await;
    supervisor.shut_down(PATIENCE).await;
}
