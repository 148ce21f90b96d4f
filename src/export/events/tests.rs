//! Streams over real connections, and their pace on a clock of the tests.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use super::*;
use crate::export::testing::{Page, Stage};
use crate::view::{History, State, testing};

fn open(page: &Page, more: &str) -> BufReader<TcpStream> {
    open_at(page, "/events", more)
}

fn open_at(page: &Page, path: &str, more: &str) -> BufReader<TcpStream> {
    let mut stream = page.connect();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    BufReader::new(stream)
}

/// Lines up to the first that begins so.
fn until(stream: &mut BufReader<TcpStream>, wanted: &str) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        assert!(stream.read_line(&mut line).unwrap() > 0, "{wanted:?} does not come: {lines:#?}");
        lines.push(line.trim_end().to_owned());
        if line.starts_with(wanted) {
            return lines;
        }
    }
}

fn data<T: serde::de::DeserializeOwned>(stream: &mut BufReader<TcpStream>, event: &str) -> T {
    until(stream, &format!("event: {event}"));
    let lines = until(stream, "data: ");
    serde_json::from_str(lines.last().unwrap().strip_prefix("data: ").unwrap()).unwrap()
}

/// The one server of the next state.
fn state(stream: &mut BufReader<TcpStream>) -> State {
    let mut host: HostState = data(stream, "state");
    assert_eq!(host.servers.len(), 1);
    host.servers.remove(0)
}

fn at(second: f64) -> State {
    State { at_unix_s: second, ..testing::state() }
}

#[test]
fn state_is_given_as_json() {
    let page = Page::serve();
    let answer = page.get("/api/state", "localhost");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-type: application/json"), "{head}");
    let one = testing::of(vec![testing::state()], None);
    assert_eq!(serde_json::from_str::<HostState>(body).unwrap(), one);
}

#[test]
fn stream_begins_with_history_and_state_and_follows() {
    let mut page = Page::serve();
    let mut stream = open(&page, "");
    let head = until(&mut stream, "retry: ").join("\n");
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-type: text/event-stream"), "{head}");
    let history: Vec<Point> = data(&mut stream, "history");
    assert_eq!(history, [Point::of(&testing::state())]);
    assert_eq!(state(&mut stream), testing::state());
    page.publish(at(1.7e9 + 61.0));
    assert_eq!(state(&mut stream), at(1.7e9 + 61.0));
    // With the run the stream ends, in good order.
    page.end_run();
    until(&mut stream, "0");
}

#[test]
fn streams_are_limited_and_metrics_are_served_beside_them() {
    let page = Page::serve();
    let mut streams: Vec<_> = (0..STREAMS).map(|_| open(&page, "")).collect();
    for stream in &mut streams {
        state(stream);
    }
    let answer = page.get("/events", "localhost");
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 10"), "{answer}");
    assert!(answer.contains("16 pages are open already"), "{answer}");
    for path in ["/metrics", "/api/state", "/"] {
        assert!(page.get(path, "localhost").starts_with("HTTP/1.1 200"), "{path}");
    }
    // Whoever goes makes place.
    streams.pop();
    let begun = std::time::Instant::now();
    loop {
        let mut stream = open(&page, "");
        if until(&mut stream, "HTTP/1.1").concat().starts_with("HTTP/1.1 200") {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "the place is not given back");
        // What is written shows that nobody reads.
        page.publish(testing::state());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn clients_that_never_read_hold_up_nobody() {
    let page = Page::serve();
    let _deaf: Vec<_> = (0..STREAMS - 1).map(|_| open(&page, "")).collect();
    let mut stream = open(&page, "");
    state(&mut stream);
    for second in 0..2000 {
        page.publish(at(f64::from(second)));
    }
    // The latest of them, not the next: nothing is kept for whoever is slow. One message may be of the midst of them.
    let next = state(&mut stream);
    let latest = if next == at(1999.0) { next } else { state(&mut stream) };
    assert_eq!(latest, at(1999.0));
    assert!(page.get("/metrics", "localhost").starts_with("HTTP/1.1 200"));
}

#[test]
fn pages_of_other_sites_get_no_stream() {
    let page = Page::serve();
    for (site, status) in [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)] {
        let mut stream = open(&page, &format!("Sec-Fetch-Site: {site}\r\n"));
        let first = until(&mut stream, "HTTP/1.1").concat();
        assert!(first.starts_with(&format!("HTTP/1.1 {status}")), "{site}: {first}");
    }
}

fn stream(stage: &Stage) -> Stream {
    let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
    let latest = stage.published.latest_or_first(None).unwrap();
    Stream::new(stage.published.clone(), latest, place)
}

/// The names of a message's events, and how many points it brings.
fn contents(message: &str) -> (Vec<&str>, usize) {
    let events = message.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    let points = message.lines().find_map(|line| line.strip_prefix("data: ["));
    (events, points.map_or(0, |points| points.matches("at_unix_s").count()))
}

#[tokio::test(start_paused = true)]
async fn each_point_is_sent_once_and_no_message_comes_early() {
    let stage = Stage::of_one();
    let mut stream = stream(&stage);
    let first = stream.message().await.unwrap();
    assert!(first.starts_with("retry: "), "{first}");
    assert_eq!(contents(&first), (vec!["history", "state"], 1));
    let mut history = History::clone(&stage.loops[0].history.borrow());
    for (second, new) in [(61.0, 1_u32), (62.0, 3), (65.0, 0)] {
        let begun = Instant::now();
        for k in 0..new {
            history.push(&at(1.7e9 + second + f64::from(k)));
        }
        stage.loops[0].history.send_replace(Arc::new(history.clone()));
        stage.publish(at(1.7e9 + second));
        let message = stream.message().await.unwrap();
        assert_eq!(contents(&message), (vec!["points", "state"], usize::try_from(new).unwrap()));
        assert_eq!(begun.elapsed(), EVERY);
    }
    // A clock that was set back: the points are new all the same.
    history.push(&at(10.0));
    stage.loops[0].history.send_replace(Arc::new(history));
    stage.publish(at(10.0));
    assert_eq!(contents(&stream.message().await.unwrap()).1, 1);
}

#[tokio::test(start_paused = true)]
async fn empty_history_is_followed_by_its_first_points() {
    let stage = Stage::of_one();
    stage.loops[0].history.send_replace(Arc::new(History::default()));
    let mut stream = stream(&stage);
    assert_eq!(contents(&stream.message().await.unwrap()), (vec!["history", "state"], 0));
    let mut history = History::default();
    history.push(&at(5.0));
    stage.loops[0].history.send_replace(Arc::new(history));
    stage.publish(at(5.0));
    assert_eq!(contents(&stream.message().await.unwrap()), (vec!["points", "state"], 1));
}

#[tokio::test(start_paused = true)]
async fn quiet_stream_shows_that_it_lives_and_ends_in_time() {
    let stage = Stage::of_one();
    let mut stream = stream(&stage);
    let begun = Instant::now();
    assert!(stream.message().await.is_some());
    let mut comments = 0;
    while let Some(message) = stream.message().await {
        assert_eq!(message, ": still here\n\n");
        comments += 1;
    }
    let lasted = begun.elapsed();
    assert_eq!(comments, LENGTH.as_secs() / QUIET.as_secs());
    assert!(lasted >= LENGTH && lasted <= LENGTH + QUIET + EVERY, "{lasted:?}");
    assert!(lasted < crate::export::http::CONNECTION_TIME, "{lasted:?}");
}

#[test]
fn a_stream_has_the_points_of_the_server_that_it_names_and_the_state_of_all() {
    let mut page = Page::of(Stage::of_two());
    let mut stream = open_at(&page, "/events?server=code", "");
    let history: Vec<Point> = data(&mut stream, "history");
    assert_eq!(history, [Point::of(&testing::host().servers[1])]);
    assert_eq!(data::<HostState>(&mut stream, "state"), testing::host());
    // What the others do is told too.
    page.publish(at(1.7e9 + 61.0));
    let next: HostState = data(&mut stream, "state");
    assert_eq!(next.servers[0], at(1.7e9 + 61.0));
    let answer = page.get("/api/state?server=code", "localhost");
    let one: HostState = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(one, testing::of(testing::host().servers.split_off(1), None));
    for path in ["/api/state?server=chta", "/events?server=chta"] {
        let answer = page.get(path, "localhost");
        assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("there is: chat, code"), "{answer}");
    }
    // The stream ends with its server, and where that is no more shown.
    let mut first = open_at(&page, "/events?server=chat", "");
    page.stage.loops.truncate(1);
    until(&mut stream, "0");
    data::<HostState>(&mut first, "state");
    page.stage.published.remove("chat");
    until(&mut first, "0");
}

#[test]
fn without_a_server_the_state_is_streamed_until_one_comes() {
    let page = Page::of(Stage::of(testing::of(Vec::new(), Some(testing::park_state()))));
    let mut stream = open(&page, "");
    assert_eq!(data::<Vec<Point>>(&mut stream, "history"), []);
    assert_eq!(data::<HostState>(&mut stream, "state").park, Some(testing::park_state()));
    let other = Stage::of_one();
    page.stage.published.add("chat", other.latest(0));
    until(&mut stream, "0");
}
