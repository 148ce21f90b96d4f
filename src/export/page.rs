//! The web page: fixed files that are part of the program, and the headers under which they are served.
//!
//! Nothing comes from anywhere else: no script, style, font or picture of another server, so it works without a network,
//! and the policy below has the browser hold it to that.

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

/// What the browser is told with every answer: run and load only what comes from here, send nothing, be in no frame, keep
/// nothing, and let no other site's page read it.
const HEADERS: [(HeaderName, &str); 7] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

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
    for (name, value) in HEADERS {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

#[cfg(test)]
mod tests;
