//! The web page: fixed files that are part of the program, and the headers under which they are served.
//!
//! Nothing comes from anywhere else: no script, style, font or picture of another server, so it works without a network,
//! and the policy below has the browser hold it to that.

use agft_common::page::HEADERS;
use axum::Router;
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

struct File {
    path: &'static str,
    content_type: &'static str,
    text: &'static str,
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

const FILES: [File; 8] = [
    File { path: "/", content_type: "text/html; charset=utf-8", text: include_str!("page/index.html") },
    File {
        path: "/page/style.css",
        content_type: "text/css; charset=utf-8",
        text: include_str!("page/style.css"),
    },
    File { path: "/page/main.js", content_type: SCRIPT, text: include_str!("page/main.js") },
    File { path: "/page/words.js", content_type: SCRIPT, text: include_str!("page/words.js") },
    File { path: "/page/chart.js", content_type: SCRIPT, text: include_str!("page/chart.js") },
    File { path: "/page/charts.js", content_type: SCRIPT, text: include_str!("page/charts.js") },
    File { path: "/page/panels.js", content_type: SCRIPT, text: include_str!("page/panels.js") },
    File { path: "/page/servers.js", content_type: SCRIPT, text: include_str!("page/servers.js") },
];

/// The browser runs and loads only what comes from here, and sends nothing.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The routes of the page's files.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.iter().fold(Router::new(), |router, file| {
        router.route(
            file.path,
            get(move || async move { ([(header::CONTENT_TYPE, file.content_type)], file.text).into_response() }),
        )
    })
}

pub(super) async fn with_headers(mut answer: Response) -> Response {
    let headers = answer.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    answer
}

#[cfg(test)]
mod tests;
