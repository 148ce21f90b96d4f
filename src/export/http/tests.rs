//! The server beside clients that behave and clients that do not.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use super::*;
use crate::export::testing::Page;
use crate::view::testing;

fn serve() -> Page {
    Page::serve()
}

#[test]
fn page_shows_the_latest_state() {
    let page = serve();
    let answer = page.get("/metrics", "localhost");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
    assert!(answer.contains("\nagft_rounds_total{server=\"chat\",gpu=\"0\"} 200.0\n"), "{answer}");
    let mut state = testing::state();
    state.counts.rounds = 201;
    page.publish(state);
    assert!(
        page.get("/metrics", "localhost").contains("\nagft_rounds_total{server=\"chat\",gpu=\"0\"} 201.0\n")
    );
}

#[test]
fn foreign_host_no_host_wrong_method_and_wrong_path_are_refused() {
    let page = serve();
    assert!(page.get("/metrics", "evil.example").starts_with("HTTP/1.1 421"));
    assert!(page.ask("GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n").starts_with("HTTP/1.1 4"));
    assert!(page.get("/nothing", "localhost").starts_with("HTTP/1.1 404"));
    let post = "POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    assert!(page.ask(post).starts_with("HTTP/1.1 405"));
}

#[test]
fn huge_headers_and_noise_are_refused_and_the_next_client_is_served() {
    let page = serve();
    let huge = format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let mut stream = page.connect();
    // The server may hang up before all is sent.
    let _ = stream.write_all(huge.as_bytes());
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    let noise = page.ask("\u{1}\u{2}nonsense\r\n\r\n");
    assert!(noise.starts_with("HTTP/1.1 400"), "{noise}");
    assert!(page.get("/metrics", "localhost").starts_with("HTTP/1.1 200"));
}

#[test]
fn clients_that_never_finish_lose_their_places() {
    let page = serve();
    let begun = Instant::now();
    let mut crowd: Vec<TcpStream> = (0..3 * CONNECTIONS).map(|_| page.connect()).collect();
    for stream in &mut crowd {
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: loc");
    }
    // All places are taken; who comes now is cut off or served as soon as the slow ones are out.
    let served = loop {
        if page.get("/metrics", "localhost").starts_with("HTTP/1.1 200") {
            break begun.elapsed();
        }
        assert!(begun.elapsed() < HEADER_TIME + Duration::from_secs(10), "no place was freed");
        std::thread::sleep(Duration::from_millis(200));
    };
    assert!(served >= HEADER_TIME / 2, "the places were not taken: {served:?}");
}

#[test]
fn port_in_use_is_named_with_the_remedy() {
    let page = serve();
    let address = page.address();
    let error = Bound::new("observe.metrics_listen", address).unwrap_err();
    assert!(matches!(error, HttpError::InUse { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&address.to_string()) && text.contains("off"), "{text}");
}

#[test]
fn server_ends_with_its_handle_and_frees_the_port() {
    let page = serve();
    let address = page.address();
    let open = page.connect();
    drop(page);
    assert!(Bound::new("observe.metrics_listen", address).is_ok());
    drop(open);
}
