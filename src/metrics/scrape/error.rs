//! Why a scrape failed: the fact, and the remedy.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use reqwest::Url;

use super::super::page::PageError;
use crate::units::Seconds;

/// Why there is no page. `Display` states the fact and the remedy; no variant holds the token or the URL's query.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ScrapeError {
    /// The URL of the settings cannot be scraped. It is not quoted, as it may hold a password.
    #[error("the metrics URL cannot be used: {reason}; it should look like http://localhost:8000/metrics")]
    BadUrl {
        /// What is wrong with it.
        reason: String,
    },
    /// A time-out of the settings is no span of time.
    #[error("the {what} of the metrics scrape is {span}; it must be more than 0")]
    BadTimeout {
        /// Which one.
        what: &'static str,
        /// Its value.
        span: Seconds,
    },
    /// The token file cannot be used.
    #[error("bearer_token_file {}: {reason}", path.display())]
    BadToken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file of extra certificates cannot be used.
    #[error("ca_file {}: {reason}; it must hold PEM certificates (BEGIN CERTIFICATE)", path.display())]
    BadCaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The TLS client cannot be set up.
    #[error("TLS cannot be set up: {reason}; install the system's ca-certificates or set ca_file")]
    NoTls {
        /// What is wrong.
        reason: String,
    },
    /// Nothing listens there.
    #[error("{url}: connection refused; is the server running, and is the port right?")]
    Refused {
        /// The page.
        url: String,
    },
    /// No connection in time.
    #[error("{url}: no connection within {after}; is the host right, and does a firewall let agft through?")]
    ConnectTimeout {
        /// The page.
        url: String,
        /// The connect time-out.
        after: Seconds,
    },
    /// The host is unknown or cannot be reached.
    #[error("{url}: cannot be reached ({reason}); check the host name and the network")]
    Unreachable {
        /// The page.
        url: String,
        /// The system's words.
        reason: String,
    },
    /// The TLS handshake failed.
    #[error(
        "{url}: TLS failed ({reason}); for a private certificate authority set ca_file, for a server without TLS use \
         http://"
    )]
    Tls {
        /// The page.
        url: String,
        /// What the TLS client says.
        reason: String,
    },
    /// No complete page in time.
    #[error(
        "{url}: no complete answer within {after}; the server is overloaded or stuck, or the time-out too short"
    )]
    Timeout {
        /// The page.
        url: String,
        /// The whole time-out.
        after: Seconds,
    },
    /// The connection broke, or what came was no HTTP.
    #[error(
        "{url}: the exchange broke off ({reason}); is this an HTTP server, and does a proxy cut it short?"
    )]
    Broken {
        /// The page.
        url: String,
        /// What the HTTP client says.
        reason: String,
    },
    /// An answer that is no success.
    #[error("{url}: HTTP status {status}; {}", remedy_for(*status))]
    Status {
        /// The page.
        url: String,
        /// The status code.
        status: u16,
    },
    /// A redirect to another server, or too many on the same one.
    #[error("{url}: redirected to {to}, which is not followed; if that is the right page, set it as the URL")]
    Redirect {
        /// The page.
        url: String,
        /// Where to, without its query.
        to: String,
    },
    /// The body is compressed although agft did not ask for that.
    #[error(
        "{url}: the page comes {encoding}-encoded unasked; scrape the server itself instead of this proxy"
    )]
    Encoded {
        /// The page.
        url: String,
        /// The content encoding.
        encoding: String,
    },
    /// The engine sleeps, and what it last said is not known.
    #[error("{url}: the engine sleeps; its page is read as soon as it wakes")]
    Asleep {
        /// The page.
        url: String,
    },
    /// The body is not a metrics page.
    #[error("{url}: {source}")]
    Page {
        /// The page.
        url: String,
        /// What is wrong with it.
        source: PageError,
    },
}

impl ScrapeError {
    /// What a failure of the HTTP client means.
    pub(super) fn of(error: &reqwest::Error, url: &Url, connect_timeout: Seconds) -> Self {
        let tls = url.scheme() == "https";
        let (url, reason) = (shown(url), root_cause(error));
        match io_kind(error) {
            Some(io::ErrorKind::ConnectionRefused) => Self::Refused { url },
            // The TLS client's own errors; a plain server on the port ends the handshake early.
            Some(io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) if tls && error.is_connect() => {
                Self::Tls { url, reason }
            }
            _ if error.is_connect() && error.is_timeout() => {
                Self::ConnectTimeout { url, after: connect_timeout }
            }
            _ if error.is_connect() => Self::Unreachable { url, reason },
            _ => Self::Broken { url, reason },
        }
    }
}

/// The innermost message of an error: the outer ones only say that a request failed, and with which URL.
pub(super) fn root_cause(error: &reqwest::Error) -> String {
    causes(error).last().map_or_else(|| "unknown cause".to_owned(), ToString::to_string)
}

/// The URL without its query, which may hold a key.
pub(super) fn shown(url: &Url) -> String {
    let mut shown = url.clone();
    shown.set_query(None);
    shown.set_fragment(None);
    // Both refuse only URLs that cannot have them.
    let _ = (shown.set_username(""), shown.set_password(None));
    shown.to_string()
}

fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |cause| (*cause).source())
}

/// The kind of the innermost I/O error. `source` passes over an I/O error wrapped in another, as the TLS connector
/// does it.
fn io_kind(error: &reqwest::Error) -> Option<io::ErrorKind> {
    let mut inner = causes(error).find_map(|cause| cause.downcast_ref::<io::Error>())?;
    while let Some(wrapped) = inner.get_ref().and_then(|wrapped| wrapped.downcast_ref::<io::Error>()) {
        inner = wrapped;
    }
    Some(inner.kind())
}

fn remedy_for(status: u16) -> &'static str {
    match status {
        401 | 403 => "the server wants a token: set bearer_token_file to a file that holds a valid one",
        404 | 405 => "the page is not there: the URL should end in /metrics",
        429 => "the server limits how often it is asked: scrape it directly, or less often",
        500..=599 => "the server or a proxy before it is failing: see its log",
        _ => "check that the URL is the server's /metrics",
    }
}
