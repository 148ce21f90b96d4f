//! The page's files, and what every answer tells the browser.

use super::*;
use crate::export::testing::Page;

/// Every path that is served, but for the stream.
const PATHS: [&str; 10] = [
    "/",
    "/page/style.css",
    "/page/main.js",
    "/page/words.js",
    "/page/chart.js",
    "/page/charts.js",
    "/page/panels.js",
    "/page/servers.js",
    "/api/state",
    "/metrics",
];

fn assert_headers(answer: &str) {
    let head = answer.split("\r\n\r\n").next().unwrap();
    for (name, value) in HEADERS {
        assert!(head.contains(&format!("\r\n{name}: {value}\r\n")), "{name} is missing in\n{head}");
    }
}

#[test]
fn files_are_served_whole_with_their_types() {
    let page = Page::serve();
    for file in &FILES {
        assert!(PATHS.contains(&file.path));
        let answer = page.get(file.path, "localhost");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(head.contains(&format!("\r\ncontent-type: {}\r\n", file.content_type)), "{head}");
        assert_eq!(body, file.text);
    }
}

#[test]
fn every_answer_has_the_headers_also_a_refusal() {
    let page = Page::serve();
    for path in PATHS.into_iter().chain(["/nothing"]) {
        assert_headers(&page.get(path, "127.0.0.1:9477"));
        assert_headers(&page.get(path, "evil.example"));
        assert_headers(&page.request("POST", path, "localhost"));
    }
}

#[test]
fn foreign_host_is_refused_on_every_route() {
    let page = Page::serve();
    for path in PATHS.into_iter().chain(["/events", "/nothing"]) {
        let answer = page.get(path, "evil.example");
        assert!(answer.starts_with("HTTP/1.1 421"), "{path}: {answer}");
        assert!(!answer.contains("GPU-0f1e2d3c"), "{path}: {answer}");
    }
}

#[test]
fn only_get_and_head_are_served() {
    let page = Page::serve();
    for path in PATHS.into_iter().chain(["/events"]) {
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"] {
            let answer = page.request(method, path, "localhost");
            assert!(answer.starts_with("HTTP/1.1 405"), "{method} {path}: {answer}");
            assert!(answer.contains("\r\nallow: GET,HEAD\r\n"), "{method} {path}: {answer}");
        }
        let head = page.request("HEAD", path, "localhost");
        assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{path}: {head}");
    }
}

#[test]
fn files_name_nothing_of_other_servers_and_write_no_markup() {
    for file in &FILES {
        // The names of SVG are no addresses: nothing is fetched from there.
        let text = file.text.replace("http://www.w3.org/2000/svg", "");
        for never in [
            "http:",
            "https:",
            "\"//",
            "'//",
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "srcdoc",
            " onclick=",
            " style=",
        ] {
            assert!(!text.contains(never), "{} has {never}", file.path);
        }
    }
}

#[test]
fn files_refer_only_to_what_is_served() {
    let mut seen = 0;
    for file in &FILES {
        for (before, folder) in [("src=\"", "/"), ("href=\"", "/"), (" from \"./", "/page/")] {
            for rest in file.text.split(before).skip(1) {
                let name = rest.split('"').next().unwrap();
                if name.starts_with("data:") || name.starts_with('#') {
                    continue;
                }
                let path = format!("{folder}{name}");
                assert!(PATHS.contains(&path.as_str()), "{} refers to {path}", file.path);
                seen += 1;
            }
        }
    }
    assert!(seen >= FILES.len() - 1, "{seen} references");
}
