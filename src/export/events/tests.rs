//! Streams over real connections, and their pace on a clock of the tests.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use super::*;
use crate::export::testing::{Page, published};
use crate::view::{History, testing};

fn open(page: &Page, more: &str) -> BufReader<TcpStream> {
    let mut stream = page.connect();
    let request = format!("GET /events HTTP/1.1\r\nHost: localhost\r\n{more}\r\n");
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

fn at(second: f64) -> State {
    State { at_unix_s: second, ..testing::state() }
}

#[test]
fn state_is_given_as_json() {
    let page = Page::serve();
    let answer = page.get("/api/state", "localhost");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-type: application/json"), "{head}");
    assert_eq!(serde_json::from_str::<State>(body).unwrap(), testing::state());
}

#[test]
fn stream_begins_with_history_and_state_and_follows() {
    let mut page = Page::serve();
    let mut stream = open(&page, "");
    let head = until(&mut stream, "retry: ").join("\n");
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-type: text/event-stream"), "{head}");
    let history: Vec<Point> = data(&mut stream, "history");
    assert_eq!(history, [Point::of(&testing::state())]);
    assert_eq!(data::<State>(&mut stream, "state"), testing::state());
    page.publish(at(1.7e9 + 61.0));
    let state: State = data(&mut stream, "state");
    assert_eq!(state, at(1.7e9 + 61.0));
    // With the run the stream ends, in good order.
    page.end_run();
    until(&mut stream, "0");
}

#[test]
fn streams_are_limited_and_metrics_are_served_beside_them() {
    let page = Page::serve();
    let mut streams: Vec<_> = (0..STREAMS).map(|_| open(&page, "")).collect();
    for stream in &mut streams {
        let _: State = data(stream, "state");
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
    let _: State = data(&mut stream, "state");
    for second in 0..2000 {
        page.publish(at(f64::from(second)));
    }
    let state: State = data(&mut stream, "state");
    // The latest of them, not the next: nothing is kept for whoever is slow.
    assert_eq!(state, at(1999.0));
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

fn stream(latest: &Latest) -> Stream {
    let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
    Stream::new(latest.clone(), place)
}

/// The names of a message's events, and how many points it brings.
fn contents(message: &str) -> (Vec<&str>, usize) {
    let events = message.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    let points = message.lines().find_map(|line| line.strip_prefix("data: ["));
    (events, points.map_or(0, |points| points.matches("at_unix_s").count()))
}

#[tokio::test(start_paused = true)]
async fn each_point_is_sent_once_and_no_message_comes_early() {
    let (publish, publish_history, latest) = published();
    let mut stream = stream(&latest);
    let first = stream.message().await.unwrap();
    assert!(first.starts_with("retry: "), "{first}");
    assert_eq!(contents(&first), (vec!["history", "state"], 1));
    let mut history = (**latest.history.borrow()).clone();
    for (second, new) in [(61.0, 1_u32), (62.0, 3), (65.0, 0)] {
        let begun = Instant::now();
        for k in 0..new {
            history.push(&at(1.7e9 + second + f64::from(k)));
        }
        publish_history.send_replace(Arc::new(history.clone()));
        publish.send_replace(Arc::new(at(1.7e9 + second)));
        let message = stream.message().await.unwrap();
        assert_eq!(contents(&message), (vec!["points", "state"], usize::try_from(new).unwrap()));
        assert_eq!(begun.elapsed(), EVERY);
    }
    // A clock that was set back: the points are new all the same.
    history.push(&at(10.0));
    publish_history.send_replace(Arc::new(history));
    publish.send_replace(Arc::new(at(10.0)));
    assert_eq!(contents(&stream.message().await.unwrap()).1, 1);
}

#[tokio::test(start_paused = true)]
async fn empty_history_is_followed_by_its_first_points() {
    let (publish, publish_history, latest) = published();
    publish_history.send_replace(Arc::new(History::default()));
    let mut stream = stream(&latest);
    assert_eq!(contents(&stream.message().await.unwrap()), (vec!["history", "state"], 0));
    let mut history = History::default();
    history.push(&at(5.0));
    publish_history.send_replace(Arc::new(history));
    publish.send_replace(Arc::new(at(5.0)));
    assert_eq!(contents(&stream.message().await.unwrap()), (vec!["points", "state"], 1));
}

#[tokio::test(start_paused = true)]
async fn quiet_stream_shows_that_it_lives_and_ends_in_time() {
    let (_publish, _publish_history, latest) = published();
    let mut stream = stream(&latest);
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
