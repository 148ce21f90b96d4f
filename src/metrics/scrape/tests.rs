//! Real HTTP against small servers on port 0 that misbehave on purpose.

use std::io::Write as _;
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::NamedTempFile;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use super::*;
use crate::engine::looked_for;
use crate::engine::testing::{page as quill_page, quill};

const PAGE: &str = include_str!("../../../tests/data/metrics/vllm-0.32.0-under-load.txt");

/// What the server does with one request.
#[derive(Clone)]
enum Reply {
    /// Answers and keeps the connection.
    Keep(Vec<u8>),
    /// Answers and closes the connection.
    Close(Vec<u8>),
    /// Answers and says nothing more, the connection open.
    Hang(Vec<u8>),
}

use Reply::{Close, Hang, Keep};

/// What the server saw: the request heads, in order, each with the number of its connection.
type Seen = Arc<Mutex<Vec<(usize, String)>>>;

fn ok(body: &str) -> Vec<u8> {
    with_head("200 OK", "", body.as_bytes())
}

fn with_head(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// A server that answers the n-th request with the n-th reply, and every further one with the last.
async fn serve(replies: Vec<Reply>) -> (String, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/metrics", listener.local_addr().unwrap());
    let seen = Seen::default();
    let record = seen.clone();
    tokio::spawn(async move {
        for connection in 0.. {
            let (socket, _) = listener.accept().await.unwrap();
            tokio::spawn(converse(socket, connection, replies.clone(), record.clone()));
        }
    });
    (url, seen)
}

async fn converse(
    mut socket: impl AsyncRead + AsyncWrite + Unpin,
    connection: usize,
    replies: Vec<Reply>,
    seen: Seen,
) {
    while let Some(head) = read_head(&mut socket).await {
        let reply = {
            let mut seen = seen.lock().unwrap();
            let reply = replies[seen.len().min(replies.len() - 1)].clone();
            seen.push((connection, head));
            reply
        };
        let (Keep(bytes) | Close(bytes) | Hang(bytes)) = &reply;
        // A client that had enough may be gone.
        let _ = socket.write_all(bytes).await;
        match reply {
            Keep(_) => {}
            Close(_) => return,
            Hang(_) => std::future::pending().await,
        }
    }
}

async fn read_head(socket: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

fn settings(url: &str) -> ScrapeSettings {
    ScrapeSettings {
        url: url.to_owned(),
        timeout: Seconds(5.0),
        connect_timeout: Seconds(5.0),
        bearer_token_file: None,
        ca_file: None,
        model_name: None,
        engine: None,
    }
}

fn scraper(url: &str) -> Scraper {
    Scraper::new(&settings(url)).unwrap()
}

fn impatient(url: &str) -> Scraper {
    Scraper::new(&ScrapeSettings { timeout: Seconds(0.5), ..settings(url) }).unwrap()
}

fn file_with(content: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(content.as_bytes()).unwrap();
    file
}

/// What a scrape of a server with this one reply fails with.
async fn failure(reply: Reply) -> ScrapeError {
    let (url, _) = serve(vec![reply]).await;
    scraper(&url).fetch_snapshot(|| Time(0.0), false).await.unwrap_err()
}

#[tokio::test]
async fn snapshot_has_the_values_of_the_page_and_the_caller_s_instants() {
    let (url, _) = serve(vec![Keep(ok(PAGE))]).await;
    let ticks = Mutex::new([Time(10.0), Time(10.25)].into_iter());
    let snapshot =
        scraper(&url).fetch_snapshot(|| ticks.lock().unwrap().next().unwrap(), false).await.unwrap();
    assert_eq!((snapshot.at, snapshot.latency), (Time(10.25), Seconds(0.25)));
    assert_eq!(snapshot.signals.generation_tokens, Some(24801.0));
}

#[tokio::test]
async fn two_scrapes_share_one_connection_and_ask_for_plain_text_only() {
    let (url, seen) = serve(vec![Keep(ok(PAGE))]).await;
    let scraper = scraper(&url);
    for _ in 0..2 {
        scraper.fetch().await.unwrap();
    }
    let seen = seen.lock().unwrap();
    assert_eq!(seen.iter().map(|(connection, _)| *connection).collect::<Vec<_>>(), [0, 0]);
    let head = seen[0].1.to_lowercase();
    assert!(head.starts_with("get /metrics http/1.1\r\n"), "{head}");
    assert!(head.contains("accept: text/plain\r\n") && head.contains("user-agent: agft/"), "{head}");
    assert!(!head.contains("accept-encoding") && !head.contains("authorization"), "{head}");
}

#[tokio::test]
async fn kept_connection_closed_between_scrapes_is_replaced_unseen() {
    let (url, seen) = serve(vec![Close(ok(PAGE)), Keep(ok(PAGE))]).await;
    let scraper = scraper(&url);
    for _ in 0..2 {
        assert_eq!(scraper.fetch().await.unwrap().body, PAGE.as_bytes());
    }
    assert_eq!(seen.lock().unwrap().iter().map(|(connection, _)| *connection).collect::<Vec<_>>(), [0, 1]);
}

#[tokio::test]
async fn kept_connection_closed_in_answer_to_a_request_is_retried_once() {
    let (url, seen) = serve(vec![Keep(ok(PAGE)), Close(vec![]), Keep(ok(PAGE))]).await;
    let scraper = scraper(&url);
    for _ in 0..2 {
        scraper.fetch().await.unwrap();
    }
    assert_eq!(seen.lock().unwrap().iter().map(|(connection, _)| *connection).collect::<Vec<_>>(), [0, 0, 1]);
}

#[tokio::test]
async fn server_that_always_hangs_up_is_asked_twice_and_no_more() {
    let (url, seen) = serve(vec![Close(vec![])]).await;
    let error = scraper(&url).fetch().await.unwrap_err();
    assert!(matches!(error, ScrapeError::Broken { .. }), "{error}");
    assert_eq!(seen.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn refused_connection_asks_whether_the_server_runs() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/metrics", listener.local_addr().unwrap());
    drop(listener);
    let error = scraper(&url).fetch().await.unwrap_err();
    assert_eq!(error, ScrapeError::Refused { url });
    assert!(error.to_string().contains("is the server running"), "{error}");
}

#[tokio::test]
async fn address_that_cannot_be_reached_is_told_apart_from_a_dead_server() {
    // The broadcast address: the kernel refuses it without a packet, with or without a network.
    let error = scraper("http://255.255.255.255:8000/metrics").fetch().await.unwrap_err();
    assert!(matches!(error, ScrapeError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn server_that_hangs_before_or_within_its_answer_times_out() {
    let half = &ok(PAGE)[..1000];
    for said in [&b""[..], b"HTTP/1.1 200", half] {
        let (url, _) = serve(vec![Hang(said.to_vec())]).await;
        let error = impatient(&url).fetch().await.unwrap_err();
        assert!(matches!(error, ScrapeError::Timeout { after: Seconds(0.5), .. }), "{error}");
    }
}

#[tokio::test]
async fn scrape_after_a_timed_out_one_works_again() {
    let (url, _) = serve(vec![Hang(vec![]), Keep(ok(PAGE))]).await;
    let scraper = impatient(&url);
    scraper.fetch().await.unwrap_err();
    scraper.fetch().await.unwrap();
}

#[tokio::test]
async fn status_other_than_success_names_its_remedy() {
    for (status, says) in [
        ("401 Unauthorized", "bearer_token_file"),
        ("403 Forbidden", "bearer_token_file"),
        ("404 Not Found", "should end in /metrics"),
        ("500 Internal Server Error", "see its log"),
        ("503 Service Unavailable", "see its log"),
    ] {
        let error = failure(Keep(with_head(status, "", PAGE.as_bytes()))).await;
        assert!(matches!(error, ScrapeError::Status { .. }) && error.to_string().contains(says), "{error}");
    }
}

#[tokio::test]
async fn body_that_is_no_metrics_page_is_told_what_it_is() {
    for (body, expected) in [
        (&b""[..], PageError::Empty),
        (b"<html><body>Welcome</body></html>", PageError::Html),
        (b"vllm:\xff\n", PageError::NotText { at: 5 }),
        (
            b"up 1\n",
            PageError::NoEngine {
                beginning: "up 1".into(),
                looked_for: looked_for(engine::all()),
                alike: String::new(),
            },
        ),
    ] {
        let error = failure(Keep(with_head("200 OK", "", body))).await;
        assert!(matches!(error, ScrapeError::Page { ref source, .. } if *source == expected), "{error}");
    }
}

#[tokio::test]
async fn ten_megabytes_are_refused_whether_announced_or_not() {
    let garbage = vec![b'x'; 10_000_000];
    let unannounced = [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", garbage.as_slice()].concat();
    for reply in [Keep(with_head("200 OK", "", &garbage)), Close(unannounced)] {
        let (url, _) = serve(vec![reply]).await;
        let error = scraper(&url).fetch().await.unwrap_err();
        assert!(matches!(error, ScrapeError::Page { source: PageError::TooLarge { .. }, .. }), "{error}");
    }
}

#[tokio::test]
async fn body_shorter_than_announced_is_an_error_not_a_page() {
    let whole = ok(PAGE);
    let error = failure(Close(whole[..whole.len() - 500].to_vec())).await;
    assert!(matches!(error, ScrapeError::Broken { .. }), "{error}");
}

#[tokio::test]
async fn chunked_body_is_put_together() {
    let mut reply = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for chunk in PAGE.as_bytes().chunks(1000) {
        reply.extend(format!("{:x}\r\n", chunk.len()).bytes());
        reply.extend(chunk);
        reply.extend(b"\r\n");
    }
    reply.extend(b"0\r\n\r\n");
    let (url, _) = serve(vec![Keep(reply)]).await;
    assert_eq!(scraper(&url).fetch().await.unwrap().body, PAGE.as_bytes());
}

#[tokio::test]
async fn answer_that_is_no_http_is_an_error() {
    let error = failure(Close(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec())).await;
    assert!(matches!(error, ScrapeError::Broken { .. }), "{error}");
}

#[tokio::test]
async fn compressed_body_is_refused_by_its_encoding() {
    let error = failure(Keep(with_head("200 OK", "Content-Encoding: gzip\r\n", b"\x1f\x8b"))).await;
    assert!(matches!(error, ScrapeError::Encoded { ref encoding, .. } if encoding == "gzip"), "{error}");
}

#[tokio::test]
async fn redirect_within_the_server_is_followed() {
    let moved = with_head("307 Temporary Redirect", "Location: /metrics/\r\n", b"");
    let (url, seen) = serve(vec![Keep(moved), Keep(ok(PAGE))]).await;
    assert_eq!(scraper(&url).fetch().await.unwrap().body, PAGE.as_bytes());
    assert!(seen.lock().unwrap()[1].1.starts_with("GET /metrics/ "));
}

#[tokio::test]
async fn redirect_to_another_server_is_not_followed_and_named_without_its_query() {
    let (elsewhere, seen) = serve(vec![Keep(ok(PAGE))]).await;
    let location = format!("Location: {elsewhere}?key=s3cret\r\n");
    let error = failure(Keep(with_head("302 Found", &location, b""))).await;
    assert!(matches!(error, ScrapeError::Redirect { ref to, .. } if *to == elsewhere), "{error}");
    assert!(seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn endless_redirect_ends() {
    let error = failure(Keep(with_head("302 Found", "Location: /metrics\r\n", b""))).await;
    assert!(matches!(error, ScrapeError::Redirect { .. }), "{error}");
}

#[tokio::test]
async fn token_is_sent_and_neither_it_nor_the_query_is_shown() {
    let token = file_with("s3cret\n");
    let (url, seen) = serve(vec![Keep(ok(PAGE)), Keep(with_head("401 Unauthorized", "", b""))]).await;
    let mut settings = settings(&format!("{url}?key=s3cret"));
    settings.bearer_token_file = Some(token.path().to_owned());
    let scraper = Scraper::new(&settings).unwrap();
    scraper.fetch().await.unwrap();
    assert!(seen.lock().unwrap()[0].1.to_lowercase().contains("authorization: bearer s3cret\r\n"));
    let error = scraper.fetch().await.unwrap_err();
    for text in [error.to_string(), format!("{error:?}"), scraper.shown_url()] {
        assert!(text.contains("/metrics") && !text.contains("s3cret"), "{text}");
    }
    let token = scraper.token.as_ref().unwrap();
    assert!(!format!("{token:?}{:?}", token.header()).contains("s3cret"));
}

#[test]
fn settings_that_cannot_work_are_refused_before_anything_is_sent() {
    let good = settings("http://localhost:8000/metrics");
    let empty = file_with("");
    for (bad, says) in [
        (ScrapeSettings { url: "localhost:8000/metrics".into(), ..good.clone() }, "scheme is \"localhost\""),
        (ScrapeSettings { url: "ftp://localhost/metrics".into(), ..good.clone() }, "scheme is \"ftp\""),
        (ScrapeSettings { url: "http://".into(), ..good.clone() }, "empty host"),
        (ScrapeSettings { url: "http://me:s3cret@localhost/".into(), ..good.clone() }, "bearer_token_file"),
        (
            ScrapeSettings { timeout: Seconds(0.0), ..good.clone() },
            "timeout of the metrics scrape is 0.000 s",
        ),
        (ScrapeSettings { connect_timeout: Seconds(f64::NAN), ..good.clone() }, "connect timeout"),
        (ScrapeSettings { bearer_token_file: Some(empty.path().into()), ..good.clone() }, "it is empty"),
        (ScrapeSettings { ca_file: Some(empty.path().into()), ..good.clone() }, "holds no certificate"),
        (ScrapeSettings { ca_file: Some("/nonexistent/ca.pem".into()), ..good }, "/nonexistent/ca.pem"),
    ] {
        let error = Scraper::new(&bad).unwrap_err().to_string();
        assert!(error.contains(says) && !error.contains("s3cret"), "{error}");
    }
}

/// A TLS server for `localhost` with a certificate of its own authority; its URL and the authority's PEM.
async fn serve_tls() -> (String, String) {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf =
        CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            if let Ok(stream) = acceptor.accept(socket).await {
                tokio::spawn(converse(stream, 0, vec![Keep(ok(PAGE))], Seen::default()));
            }
        }
    });
    (format!("https://localhost:{port}/metrics"), authority.pem())
}

#[tokio::test]
async fn private_authority_is_trusted_only_if_its_certificate_is_given() {
    let (url, authority) = serve_tls().await;
    let ca_file = file_with(&authority);
    let mut settings = settings(&url);
    settings.ca_file = Some(ca_file.path().to_owned());
    assert_eq!(Scraper::new(&settings).unwrap().fetch().await.unwrap().body, PAGE.as_bytes());

    let (_, other) = serve_tls().await;
    let ca_file = file_with(&other);
    settings.ca_file = Some(ca_file.path().to_owned());
    let error = Scraper::new(&settings).unwrap().fetch().await.unwrap_err();
    assert!(matches!(error, ScrapeError::Tls { .. }) && error.to_string().contains("set ca_file"), "{error}");
}

#[tokio::test]
async fn https_asked_of_a_plain_server_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/metrics", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    });
    let (_, authority) = serve_tls().await;
    let ca_file = file_with(&authority);
    let mut settings = settings(&url);
    settings.ca_file = Some(ca_file.path().to_owned());
    let error = Scraper::new(&settings).unwrap().fetch().await.unwrap_err();
    assert!(matches!(error, ScrapeError::Tls { .. }) && error.to_string().contains("use http://"), "{error}");
}

fn asked(seen: &Seen) -> Vec<String> {
    let path = |(_, head): &(usize, String)| head.split(' ').nth(1).unwrap().to_owned();
    seen.lock().unwrap().iter().map(path).collect()
}

#[tokio::test]
async fn engine_that_sleeps_is_asked_at_its_health_path_only_and_is_at_rest() {
    let (awake, asleep) = (Keep(ok("{\"asleep\":false}")), Keep(ok("{\"asleep\":true}")));
    let page = |tokens, running| Keep(ok(&quill_page(tokens, running)));
    let replies = vec![awake.clone(), page(100, 2), asleep.clone(), asleep, awake, page(150, 1)];
    let (url, seen) = serve(replies).await;
    let scraper = Scraper::new(&ScrapeSettings { engine: Some(quill()), ..settings(&url) }).unwrap();
    let mut told = Vec::new();
    for at in 1..=4 {
        let snapshot = scraper.fetch_snapshot(|| Time(f64::from(at)), false).await.unwrap();
        assert_eq!((snapshot.at, snapshot.engine().name()), (Time(f64::from(at)), "Quill"));
        told.push((snapshot.signals.running, snapshot.signals.generation_tokens));
    }
    let [busy, resting] = [(Some(2.0), Some(100.0)), (Some(0.0), Some(100.0))];
    assert_eq!(told, [busy, resting, resting, (Some(1.0), Some(150.0))]);
    assert_eq!(asked(&seen), ["/alive", "/metrics", "/alive", "/alive", "/alive", "/metrics"]);
}

#[tokio::test]
async fn engine_found_asleep_is_left_to_sleep() {
    let (url, seen) = serve(vec![Keep(ok("{\"asleep\":true}"))]).await;
    let scraper = Scraper::new(&ScrapeSettings { engine: Some(quill()), ..settings(&url) }).unwrap();
    let error = scraper.fetch_snapshot(|| Time(0.0), false).await.unwrap_err();
    assert_eq!(error, ScrapeError::Asleep { url });
    assert_eq!(asked(&seen), ["/alive"]);
}

#[tokio::test]
async fn engine_is_chosen_by_the_first_good_page_until_a_page_is_another_s() {
    let none = Keep(ok("up 1\n"));
    let quill = Keep(ok(&quill_page(100, 2)));
    let (url, seen) = serve(vec![none, quill, Keep(ok("awake")), Keep(ok(PAGE)), Keep(ok(PAGE))]).await;
    let scraper = scraper(&url);
    scraper.fetch_snapshot(|| Time(0.0), false).await.unwrap_err();
    let mut engines = Vec::new();
    for _ in 0..3 {
        engines.push(scraper.fetch_snapshot(|| Time(0.0), false).await.unwrap().engine().name());
    }
    assert_eq!(engines, ["Quill", "vLLM", "vLLM"]);
    assert_eq!(asked(&seen), ["/metrics", "/metrics", "/alive", "/metrics", "/metrics"]);
}

#[tokio::test]
async fn page_of_another_engine_than_the_one_set_is_refused() {
    let (url, _) = serve(vec![Keep(ok("awake")), Keep(ok(PAGE))]).await;
    let scraper = Scraper::new(&ScrapeSettings { engine: Some(quill()), ..settings(&url) }).unwrap();
    let error = scraper.fetch_snapshot(|| Time(0.0), false).await.unwrap_err();
    assert!(error.to_string().contains("one of these: Quill (quill_...)"), "{error}");
}
