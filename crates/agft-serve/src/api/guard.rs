//! Who may ask what: the `Host` header, and the token.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::answer::Trouble;
use super::token::Token;

/// Decides about each request.
#[derive(Debug)]
pub(super) struct Guard {
    pub(super) token: Token,
    /// Names that are served beside `localhost` and addresses.
    pub(super) hosts: Vec<String>,
    /// Other machines can ask: then reading needs the token too.
    pub(super) public: bool,
}

/// Whether the client has shown the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trusted(pub(super) bool);

impl Guard {
    /// A web page in a browser on this machine can fetch from loopback under a name of its own (DNS
    /// rebinding). The browser then sends that name as `Host`. Addresses cannot be rebound.
    fn is_own(&self, host: Option<&str>) -> bool {
        let Some(host) = host else { return false };
        let name = without_port(host).to_ascii_lowercase();
        let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&name);
        bare.parse::<IpAddr>().is_ok()
            || name == "localhost"
            || self.hosts.iter().any(|own| own.eq_ignore_ascii_case(&name))
    }

    fn needs_token(&self, method: &Method, path: &str) -> bool {
        let is_page = matches!(path, "/" | "/gui");
        let reads = matches!(*method, Method::GET | Method::HEAD) && path != super::gppm::RELOAD;
        !reads || (self.public && !is_page)
    }

    fn is_trusted(&self, headers: &HeaderMap) -> bool {
        self.token.allows(headers.get(header::AUTHORIZATION).map(axum::http::HeaderValue::as_bytes))
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        // A bare IPv6 address has colons of its own.
        Some((name, _)) if name.contains(':') && !name.starts_with('[') => host,
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Lets a request through, or not.
pub(super) async fn check(
    State(guard): State<Arc<Guard>>,
    mut request: Request<Body>,
    next: Next,
) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let path = request.uri().path();
    if !guard.is_own(host) {
        let text = "this Host is not served; add its name by --allowed-host\n";
        return (StatusCode::MISDIRECTED_REQUEST, text).into_response();
    }
    let trusted = guard.is_trusted(request.headers());
    if !trusted && guard.needs_token(request.method(), path) {
        return Trouble::not_allowed().at(path);
    }
    request.extensions_mut().insert(Trusted(trusted));
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(public: bool) -> Guard {
        let dir = tempfile::tempdir().unwrap();
        let token = Token::read_or_make(&dir.path().join("t")).unwrap();
        Guard { token, hosts: vec!["GPU-Node".into()], public }
    }

    #[test]
    fn only_own_names_and_addresses_are_served() {
        let guard = guard(false);
        for own in ["127.0.0.1:5002", "localhost", "LOCALHOST:1", "[::1]:5002", "::1", "gpu-node:1"] {
            assert!(guard.is_own(Some(own)), "{own}");
        }
        for other in
            ["evil.example", "localhost.evil.example:1", "127.0.0.1.evil.example", "", ":80", "[evil]:1"]
        {
            assert!(!guard.is_own(Some(other)), "{other}");
        }
        assert!(!guard.is_own(None));
    }

    #[test]
    fn changes_need_the_token_and_reading_does_where_others_can_ask() {
        let (get, post) = (&Method::GET, &Method::POST);
        for (method, path, local, public) in [
            (get, "/", false, false),
            (get, "/gui", false, false),
            (get, "/v1/instances", false, true),
            (get, "/get_llamacpp_configs", false, true),
            (get, "/reload_llamacpp_configs", true, true),
            (post, "/v1/reload", true, true),
            (&Method::DELETE, "/v1/instances/a", true, true),
            (post, "/", true, true),
            (&Method::OPTIONS, "/v1/instances", true, true),
        ] {
            assert_eq!(guard(false).needs_token(method, path), local, "{method} {path}");
            assert_eq!(guard(true).needs_token(method, path), public, "{method} {path}");
        }
    }
}
