//! Who is let in, and what hostile clients get.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;

use crate::support::{Serve, program, wait};

const FILE: &str = "- {name: a, command: sleep 1000}";

#[test]
fn changes_need_the_token_and_names_of_others_get_nothing() {
    let serve = Serve::start(&[("a.yaml", FILE)]);
    for (method, path) in [
        ("POST", "/v1/instances"),
        ("POST", "/v1/reload"),
        ("DELETE", "/v1/instances/a"),
        ("POST", "/v1/instances/a/enable"),
        ("POST", "/v1/instances/a/disable"),
        ("POST", "/v1/instances/a/restart"),
    ] {
        let answer = serve.ask(method, path);
        assert!(answer.status == 401 && answer.head.contains("www-authenticate: bearer"), "{answer:?}");
        assert!(answer.json()["error"].as_str().unwrap().contains("Bearer"));
        let wrong =
            serve.send(method, path, &["authorization: Bearer 0123456789abcdef0123456789abcdef"], b"");
        assert_eq!(wrong.status, 401, "{path}");
    }
    for path in ["/", "/v1/instances", "/get_instances"] {
        assert_eq!(serve.send("GET", path, &["host: evil.example"], b"").status, 421, "{path}");
        assert_eq!(serve.send("GET", path, &["host: localhost:1"], b"").status, 200, "{path}");
    }
    assert!(!serve.said("401") && serve.in_state("a", "ready")["pid"].is_number());
}

#[test]
fn what_is_sent_cannot_hurt_it() {
    let serve = Serve::start(&[("a.yaml", FILE)]);
    let long = "x".repeat(2 << 20);
    let answer = serve.change("POST", "/v1/instances", "", &long);
    assert!(answer.status == 413 && answer.body.contains("1024 KiB"), "{} {}", answer.status, answer.body);
    let token = serve.token();
    for request in [
        "\0\0\0\0\r\n\r\n".to_owned(),
        format!("GET /{long} HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {long}\r\n\r\n"),
        "GET /v1/instances/%ff%00/logs?lines=-1&follow=maybe HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".into(),
        "GET /v1/instances/a/logs?lines=99999999999999999999 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nconnection: close\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nhost: \u{ff}\r\nconnection: close\r\n\r\n".into(),
    ] {
        let answer = serve.raw(request.as_bytes());
        assert!(!answer.starts_with("HTTP/1.1 200"), "{}: {answer}", &request[..request.len().min(60)]);
    }
    // As many clients as it takes, none of which says anything.
    let silent: Vec<TcpStream> = (0..64).filter_map(|_| TcpStream::connect(serve.address).ok()).collect();
    let mut cut = TcpStream::connect(serve.address).unwrap();
    let _ = write!(
        cut,
        "POST /v1/instances HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\ncontent-length: 9\r\n\r\n-"
    );
    drop((silent, cut));
    // Their places are free again.
    wait("an answer", || {
        let answer = serve.raw(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        answer.starts_with("HTTP/1.1 200").then_some(())
    });
    serve.in_state("a", "ready");
    assert!(!serve.said("panicked"));
}

#[test]
fn an_address_that_others_reach_needs_a_token_also_for_reading() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let mut refused = program(dir.path());
    refused.args([
        "serve",
        "--listen",
        "0.0.0.0:0",
        "--runtime-dir",
        "/x",
        "--state-dir",
        "/x",
        "--log-dir",
        "/x",
    ]);
    let refused = refused.output().unwrap();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && text.contains("--token-file"), "{text}");

    std::fs::create_dir(dir.path().join("instances")).unwrap();
    std::fs::write(dir.path().join("instances/a.yaml"), FILE).unwrap();
    let file = dir.path().join("secret");
    std::fs::write(&file, "0123456789abcdef0123\n").unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut serve =
        Serve::start_in(Arc::clone(&dir), &["--token-file", file.to_str().unwrap(), "--listen", "0.0.0.0:0"]);
    serve.address.set_ip("127.0.0.1".parse().unwrap());
    assert_eq!(serve.ask("GET", "/v1/instances").status, 401);
    assert_eq!(serve.ask("GET", "/").status, 200);
    let with = ["authorization: Bearer 0123456789abcdef0123"];
    assert_eq!(serve.send("GET", "/v1/instances", &with, b"").status, 200);
}

#[test]
fn the_page_is_one_file_that_loads_nothing_else() {
    let serve = Serve::start(&[("a.yaml", FILE)]);
    for path in ["/", "/gui"] {
        let page = serve.ask("GET", path);
        assert_eq!(page.status, 200);
        assert!(page.head.contains("content-security-policy: default-src 'none'"), "{}", page.head);
        assert!(
            page.head.contains("frame-ancestors 'none'") && page.head.contains("nosniff"),
            "{}",
            page.head
        );
        for word in ["id=\"list\"", "PACE_MS = 5000", "textContent", "width=device-width", "light-dark("] {
            assert!(page.body.contains(word), "{word}");
        }
        assert!(!page.body.contains("src=\"") && !page.body.contains("@import"));
    }
    let api = serve.ask("GET", "/v1/instances");
    assert!(
        api.head.contains("content-type: application/json") && api.head.contains("cache-control: no-store")
    );
}
