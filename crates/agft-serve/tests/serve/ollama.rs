//! `type: ollama` against a server that answers as Ollama does.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc;
use std::time::Duration;

use crate::support::Serve;

#[test]
fn its_model_is_loaded_once_it_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (told, requests) = mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut bytes = Vec::new();
            let mut buffer = [0; 4096];
            // All that this client sends fits: head and body, told by its length.
            while let Ok(read) = stream.read(&mut buffer) {
                bytes.extend_from_slice(&buffer[..read]);
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let length =
                    text.to_ascii_lowercase().split_once("content-length: ").and_then(|(_, rest)| {
                        rest.split("\r\n").next().and_then(|length| length.parse::<usize>().ok())
                    });
                let body = text.split_once("\r\n\r\n").map(|(_, body)| body.len());
                if read == 0 || body.is_some_and(|body| body >= length.unwrap_or(0)) {
                    break;
                }
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}");
            let _ = told.send(String::from_utf8_lossy(&bytes).into_owned());
        }
    });
    let text = format!(
        "- name: ollama\n  type: ollama\n  command: sleep 1000\n  ollama_host: {address}\n  model: m:8b\n  options: {{num_ctx: 4096}}\n"
    );
    let serve = Serve::start(&[("a.yaml", &text)]);
    serve.in_state("ollama", "ready");
    let load = loop {
        let request = requests.recv_timeout(Duration::from_secs(60)).unwrap();
        if request.starts_with("POST /api/generate ") {
            break request;
        }
    };
    let (_, body) = load.split_once("\r\n\r\n").unwrap();
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    let want =
        serde_json::json!({"model": "m:8b", "options": {"num_ctx": 4096}, "keep_alive": -1, "stream": false});
    assert_eq!(body, want);
}
