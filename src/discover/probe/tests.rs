//! Real sockets: what is asked, in which order, and what is not.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::super::candidates::Candidate;
use super::*;

const VLLM: &str = "vllm:num_requests_running{engine=\"0\",model_name=\"a/m\"} 0.0\n";

/// A server that answers by path, and notes the paths.
struct Server {
    at: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Answers as `script` says: status and body.
    fn start(script: fn(&str) -> (u16, String)) -> Self {
        Self::with(move |path, stream| {
            let (status, body) = script(path);
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", body.len());
            drop(stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())));
        })
    }

    fn with(answer: impl Fn(&str, &mut TcpStream) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (at, asked) = (listener.local_addr().unwrap(), Arc::default());
        let notes: Arc<Mutex<Vec<String>>> = Arc::clone(&asked);
        // Ends with the test.
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut head = [0; 2048];
                let read = stream.read(&mut head).unwrap_or(0);
                let head = String::from_utf8_lossy(&head[..read]).into_owned();
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                notes.lock().unwrap().push(path.clone());
                answer(&path, &mut stream);
            }
        });
        Self { at, asked }
    }

    fn asked(&self) -> String {
        std::mem::take(&mut *self.asked.lock().unwrap()).join(" ")
    }
}

/// A candidate that listens at these places, each address a socket of its own.
fn candidate(reach: &[SocketAddr]) -> Candidate {
    let address = |(at, socket): (&SocketAddr, u64)| Address {
        socket,
        listens: *at,
        reach: Ok(vec![*at]),
        owners: BTreeSet::from([7]),
        beside: false,
    };
    Candidate {
        name: "x".to_owned(),
        top: 7,
        pids: BTreeSet::from([7]),
        gpus: BTreeSet::from(["G0".to_owned()]),
        addresses: reach.iter().zip(1..).map(address).collect(),
        hidden: false,
    }
}

fn ask(prober: &mut Prober, candidates: &[Candidate], now: Instant) -> Vec<Answer> {
    let mut facts = Facts::default();
    facts.processes.insert(7, super::super::facts::Process::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(prober.ask(&facts, candidates, now)).into_values().collect()
}

fn ask_one(server: &Server) -> Answer {
    ask(&mut Prober::new().unwrap(), &[candidate(&[server.at])], Instant::now()).remove(0)
}

fn engine(answer: &Answer) -> (&str, &[String]) {
    match answer {
        Answer::Page(page) => (page.engine.engine.name(), &page.engine.models),
        other => panic!("{other:?}"),
    }
}

#[test]
fn health_is_asked_before_the_page() {
    let server = Server::start(|path| match path {
        "/health" => (200, String::new()),
        "/metrics" => (200, VLLM.to_owned()),
        _ => (404, String::new()),
    });
    assert_eq!(engine(&ask_one(&server)), ("vLLM", &["a/m".to_owned()][..]));
    assert_eq!(server.asked(), "/health /metrics");
}

#[test]
fn an_engine_that_a_scrape_would_wake_is_known_without_one() {
    let server = Server::start(|path| match path {
        "/health" => (200, "{\"status\":\"ok\"}".to_owned()),
        "/props" => (200, "{\"default_generation_settings\":{},\"is_sleeping\":true}".to_owned()),
        "/v1/models" => (200, "{\"data\":[{\"id\":\"tiny\"}]}".to_owned()),
        _ => (200, "llamacpp:requests_processing 0\n".to_owned()),
    });
    assert_eq!(engine(&ask_one(&server)), ("llama.cpp", &["tiny".to_owned()][..]));
    assert_eq!(server.asked(), "/health /props /v1/models");
    // One that keeps its /props to itself is left alone too.
    let closed = Server::start(|path| match path {
        "/health" => (200, "{\"status\":\"ok\"}".to_owned()),
        _ => (401, String::new()),
    });
    assert!(matches!(ask_one(&closed), Answer::Other(_)));
    assert_eq!(closed.asked(), "/health /props");
    // Another engine with such an answer has no /props.
    let other = Server::start(|path| match path {
        "/health" => (200, "{\"status\":\"healthy\"}".to_owned()),
        "/metrics" => (200, "dynamo_frontend_inflight_requests{model=\"m\"} 0\n".to_owned()),
        _ => (404, String::new()),
    });
    assert_eq!(engine(&ask_one(&other)), ("Dynamo", &["m".to_owned()][..]));
}

#[test]
fn page_at_another_path_is_found_where_the_usual_one_has_none() {
    let server = Server::start(|path| match path {
        "/health" => (200, String::new()),
        "/metrics" => (200, "[{\"iter\":1}]".to_owned()),
        "/prometheus/metrics" => (200, "trtllm_num_requests_running{model_name=\"m\"} 0\n".to_owned()),
        _ => (404, String::new()),
    });
    let answer = ask_one(&server);
    assert_eq!(engine(&answer), ("TensorRT-LLM", &["m".to_owned()][..]));
    assert!(matches!(&answer, Answer::Page(page) if page.url.ends_with("/prometheus/metrics")), "{answer:?}");
    assert_eq!(server.asked(), "/health /metrics /prometheus/metrics");
}

#[test]
fn a_server_that_starts_is_asked_again_and_one_that_is_none_is_not() {
    let starting = Server::start(|_| (503, "{\"error\":\"Loading model\"}".to_owned()));
    let other = Server::start(|_| (404, "no".to_owned()));
    let moved = Server::start(|_| (302, "elsewhere".to_owned()));
    let candidates: Vec<_> =
        [&starting, &other, &moved].map(|server| candidate(&[server.at])).into_iter().collect();
    // Three candidates, and each has its socket's number.
    let candidates: Vec<_> = candidates
        .into_iter()
        .zip(1..)
        .map(|(mut one, socket)| {
            one.addresses[0].socket = socket;
            one
        })
        .collect();
    let (mut prober, now) = (Prober::new().unwrap(), Instant::now());
    let first = ask(&mut prober, &candidates, now);
    let [Answer::NotYet(_), Answer::Other(none), Answer::Other(redirect)] = &first[..] else {
        panic!("{first:?}")
    };
    assert!(none.contains("/metrics says HTTP 404") && redirect.contains("302"), "{first:?}");
    let all = || [starting.asked(), other.asked(), moved.asked()].join(", ");
    assert_eq!(all(), "/health, /health /metrics, /health");
    assert_eq!(ask(&mut prober, &candidates, now + Duration::from_secs(5)), first);
    assert_eq!(all(), "/health, , ");
    ask(&mut prober, &candidates, now + AGAIN);
    assert_eq!(all(), "/health, /health /metrics, /health");
    // From then on the pause doubles.
    ask(&mut prober, &candidates, now + AGAIN + AGAIN);
    assert_eq!(all(), "/health, , ");
}

#[test]
fn a_page_once_found_is_not_asked_for_again_and_ends_the_search() {
    let page = Server::start(|path| (200, if path == "/metrics" { VLLM } else { "" }.to_owned()));
    let inner = Server::start(|_| (404, String::new()));
    let one = [candidate(&[page.at, inner.at])];
    let (mut prober, now) = (Prober::new().unwrap(), Instant::now());
    for expected in ["/health /metrics", ""] {
        let answers = ask(&mut prober, &one, now + Duration::from_secs(3600));
        assert!(matches!(answers[..], [Answer::Page(_), Answer::NotAsked(_)]), "{answers:?}");
        assert_eq!((page.asked().as_str(), inner.asked().as_str()), (expected, ""));
    }
    // Another socket at the same address is asked.
    let mut other = one;
    other[0].addresses[0].socket = 9;
    ask(&mut prober, &other, now);
    assert_eq!(page.asked(), "/health /metrics");
}

#[test]
fn what_does_not_speak_http_hangs_or_never_ends_is_survived() {
    let silent = Server::with(|_, _| {});
    let garbage = Server::with(|_, stream| drop(stream.write_all(b"\0\x01\x02 not http at all\r\n\r\n")));
    let endless = Server::start(|path| match path {
        "/health" => (200, "x".repeat(SMALL + 1)),
        _ => (200, String::new()),
    });
    for server in [&silent, &garbage, &endless] {
        assert!(matches!(ask_one(server), Answer::Other(_)));
        assert_eq!(server.asked(), "/health");
    }
    let hangs = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let begun = Instant::now();
    let mut both = candidate(&[hangs.local_addr().unwrap(), closed]);
    both.addresses[1].reach = Ok(vec![closed]);
    let answers = ask(&mut Prober::new().unwrap(), &[both], Instant::now());
    assert!(matches!(answers[..], [Answer::NotYet(_), Answer::Other(_)]), "{answers:?}");
    assert!(begun.elapsed() < Duration::from_secs(8));
}

#[test]
fn no_more_sockets_are_asked_than_a_look_may() {
    let server = Server::start(|_| (404, String::new()));
    let many: Vec<Candidate> = (0..9)
        .map(|at| {
            let mut one = candidate(&[server.at; 20]);
            one.addresses.iter_mut().for_each(|address| address.socket += 100 * at);
            one
        })
        .collect();
    let answers = ask(&mut Prober::new().unwrap(), &many, Instant::now());
    let asked = answers.iter().filter(|answer| matches!(answer, Answer::Other(_))).count();
    assert_eq!((answers.len(), asked), (180, MOST));
    let one = ask(&mut Prober::new().unwrap(), &many[..1], Instant::now());
    assert_eq!(one.iter().filter(|answer| matches!(answer, Answer::Other(_))).count(), MOST_OF_ONE);
}
