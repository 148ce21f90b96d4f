//! The web page: one file that is part of the program, and the headers under which everything is served.

use agft_common::page::HEADERS;
use axum::Router;
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::Api;

const PAGE: &str = include_str!("page.html");

/// The browser runs only what is in the page itself, and loads from here alone. The two hashes are those of
/// the page's script and style.
const POLICY: &str = "default-src 'none'; script-src 'sha256-jB5/jCs8Mtp9JzGYIAjFrRt3qnRMtFCblVeTrw80/9k='; \
    style-src 'sha256-E0l/2zxRznE7C7dr9cI1EFB6VASq6vM6JpfsD4VJnQo='; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) fn routes() -> Router<Api> {
    let page = || async { ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], PAGE).into_response() };
    Router::new().route("/", get(page)).route("/gui", get(page))
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
mod tests {
    use base64::Engine as _;
    use sha2::{Digest as _, Sha256};

    use super::*;

    fn hash_of(tag: &str) -> String {
        let (_, rest) = PAGE.split_once(&format!("<{tag}>")).unwrap();
        let (inside, _) = rest.split_once(&format!("</{tag}>")).unwrap();
        base64::engine::general_purpose::STANDARD.encode(Sha256::digest(inside))
    }

    #[test]
    fn the_policy_lets_just_this_script_and_style_run() {
        for tag in ["script", "style"] {
            let want = format!("{tag}-src 'sha256-{}'", hash_of(tag));
            assert!(POLICY.contains(&want), "write {want}");
        }
    }

    #[test]
    fn nothing_is_put_into_the_page_as_markup_or_comes_from_elsewhere() {
        for forbidden in [
            "innerHTML",
            "outerHTML",
            "insertAdjacent",
            "document.write",
            "eval(",
            "http://",
            "https://",
            " on",
        ] {
            let found = PAGE.match_indices(forbidden).find(|(at, _)| {
                forbidden != " on"
                    || PAGE[at + 3..].starts_with(|c: char| c.is_ascii_lowercase())
                        && PAGE[*at..].find("=\"").is_some_and(|end| end < 16)
            });
            assert_eq!(found, None, "{forbidden}");
        }
    }
}
