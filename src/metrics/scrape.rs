//! Fetches the metrics page over HTTP: one kept-alive connection, bounded in time and size.
//!
//! The page comes from the server that agft steers, on the path of its requests. So: one connection, no second
//! attempt except over a connection that the server had closed, nothing compressed, no proxy, no foreign redirect.

mod error;
mod secret;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpInfo;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_ENCODING, LOCATION, TRANSFER_ENCODING};
use reqwest::{Certificate, Client, Response, Url, Version, redirect};

pub use error::ScrapeError;
pub use secret::{BearerToken, exposed};

use super::page::{LARGEST_PAGE, Page, PageError};
use super::{Signals, Snapshot};
use crate::engine::{self, Profile};
use crate::units::{Seconds, Time};

/// How many redirects within the same server are followed (`/metrics` to `/metrics/`).
const MOST_REDIRECTS: usize = 3;

/// Where and how to scrape.
#[derive(Debug, Clone, PartialEq)]
pub struct ScrapeSettings {
    /// The page, `http://` or `https://`.
    pub url: String,
    /// For the whole scrape, connecting included.
    pub timeout: Seconds,
    /// For connecting alone.
    pub connect_timeout: Seconds,
    /// File that holds a bearer token; read once, at start.
    pub bearer_token_file: Option<PathBuf>,
    /// PEM file with certificates to trust beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Read only the series with this `model_name`.
    pub model_name: Option<String>,
    /// The engine; `None` to see from the page.
    pub engine: Option<&'static Profile>,
}

/// A page as it came over the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawPage {
    /// The body, at most [`LARGEST_PAGE`] bytes.
    pub body: Vec<u8>,
}

/// A client for one metrics page. It needs a tokio runtime with time and I/O.
#[derive(Debug)]
pub struct Scraper {
    client: Client,
    url: Url,
    token: Option<BearerToken>,
    timeout: Duration,
    connect_timeout: Duration,
    model: Option<String>,
    /// The engine of the settings; without one, that of the last good page.
    engine: Option<&'static Profile>,
    last: Mutex<Option<Last>>,
    own_address: Mutex<Option<SocketAddr>>,
}

/// The last good page.
#[derive(Debug, Clone)]
struct Last {
    engine: &'static Profile,
    signals: Signals,
}

impl Scraper {
    /// Prepares the client; nothing is sent yet.
    ///
    /// # Errors
    /// * [`ScrapeError::BadUrl`], [`ScrapeError::BadTimeout`]
    /// * [`ScrapeError::BadToken`], [`ScrapeError::BadCaFile`] if a file cannot be used
    /// * [`ScrapeError::NoTls`] if the system has no root certificates and the URL needs them
    pub fn new(settings: &ScrapeSettings) -> Result<Self, ScrapeError> {
        let url = checked_url(&settings.url)?;
        let timeout = checked_timeout("timeout", settings.timeout)?;
        let connect_timeout = checked_timeout("connect timeout", settings.connect_timeout)?;
        let token = settings.bearer_token_file.as_deref().map(BearerToken::read).transpose()?;
        let certificates =
            settings.ca_file.as_deref().map(read_certificates).transpose()?.unwrap_or_default();
        let builder = Client::builder()
            .user_agent(concat!("agft/", env!("CARGO_PKG_VERSION")))
            .no_proxy()
            .redirect(redirect::Policy::custom(within_the_server))
            .referer(false)
            .connect_timeout(connect_timeout)
            .pool_max_idle_per_host(1);
        // Without TLS the system's certificates are not looked for: a bare container may have none.
        let builder = if url.scheme() == "https" {
            builder.tls_certs_merge(certificates)
        } else {
            builder.tls_certs_only(certificates)
        };
        let client =
            builder.build().map_err(|error| ScrapeError::NoTls { reason: error::root_cause(&error) })?;
        Ok(Self {
            client,
            url,
            token,
            timeout,
            connect_timeout,
            model: settings.model_name.clone(),
            engine: settings.engine,
            last: Mutex::default(),
            own_address: Mutex::default(),
        })
    }

    /// The URL as it may be shown: without its query.
    #[must_use]
    pub fn shown_url(&self) -> String {
        error::shown(&self.url)
    }

    /// This end of the connection that the last answer came over.
    #[must_use]
    pub fn own_address(&self) -> Option<SocketAddr> {
        *self.own_address.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches the page, whether the engine sleeps or not.
    ///
    /// # Errors
    /// Any [`ScrapeError`] of an exchange; at the latest [`ScrapeError::Timeout`] after the whole time-out.
    pub async fn fetch(&self) -> Result<RawPage, ScrapeError> {
        self.in_time(self.exchange()).await
    }

    /// Fetches and reads the page, with the instants that `now` gives before sending and after receiving.
    ///
    /// An engine that sleeps is not asked for its page, which would wake it: it works on nothing, and counts nothing. Nor is
    /// one to which a scrape is work while it is `quiet`, as nothing else speaks for work: that would keep it from sleep.
    ///
    /// # Errors
    /// As [`Scraper::fetch`], [`ScrapeError::Page`] if what came is not a metrics page of the engine, and
    /// [`ScrapeError::Asleep`] if the engine sleeps and has shown no page before.
    pub async fn fetch_snapshot(&self, now: impl Fn() -> Time, quiet: bool) -> Result<Snapshot, ScrapeError> {
        let sent = now();
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let known = self.engine.or(last.as_ref().map(|last| last.engine));
        // The first page has to be read.
        let spare = quiet && last.as_ref().is_some_and(|last| last.engine.scrape_is_work());
        let raw = self.in_time(self.exchange_unless_asleep(known, spare)).await?;
        let received = now();
        let latency = received.since(sent);
        let Some(raw) = raw else {
            let last = last.ok_or_else(|| ScrapeError::Asleep { url: self.shown_url() })?;
            let (signals, engine) = (last.signals.at_rest(), Some(last.engine));
            return Ok(Snapshot { at: received, latency, signals, refused: Vec::new(), engine });
        };
        // An engine that is not set stays until a page is no longer its own.
        let others = engine::all().filter(|other| self.engine.is_none() && Some(*other) != known);
        let page = Page::parse_among(&raw.body, self.model.as_deref(), known.into_iter().chain(others))
            .map_err(|error| self.bad_page(error))?;
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Last { engine: page.engine, signals: page.signals.clone() });
        Ok(page.into_snapshot(received, latency))
    }

    async fn in_time<T>(
        &self,
        exchange: impl Future<Output = Result<T, ScrapeError>>,
    ) -> Result<T, ScrapeError> {
        match tokio::time::timeout(self.timeout, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => Err(ScrapeError::Timeout { url: self.shown_url(), after: seconds(self.timeout) }),
        }
    }

    /// The page; `None` of an engine that sleeps or is to be spared. That it answers is asked all the same.
    async fn exchange_unless_asleep(
        &self,
        engine: Option<&Profile>,
        spare: bool,
    ) -> Result<Option<RawPage>, ScrapeError> {
        match engine {
            Some(engine) if self.is_asleep(engine).await? || spare => Ok(None),
            _ => self.exchange().await.map(Some),
        }
    }

    /// Whether the engine says, asked so that it does not wake, that it sleeps.
    async fn is_asleep(&self, engine: &Profile) -> Result<bool, ScrapeError> {
        let Some(question) = engine.sleep_question(&self.url) else { return Ok(false) };
        let mut response = self.ask(&question.url(&self.url)).await?;
        let status = response.status().as_u16();
        Ok(question.is_yes(&self.url, status, &self.body(&mut response).await?))
    }

    async fn exchange(&self) -> Result<RawPage, ScrapeError> {
        let mut response = self.ask(&self.url).await?;
        self.check_head(&response)?;
        let is_delimited = response.content_length().is_some()
            || response.headers().contains_key(TRANSFER_ENCODING)
            || response.version() >= Version::HTTP_2;
        let mut body = self.body(&mut response).await?;
        // Where HTTP itself tells the end of the body, a last line without its end is whole.
        if is_delimited && !body.is_empty() && !body.ends_with(b"\n") {
            body.push(b'\n');
        }
        Ok(RawPage { body })
    }

    async fn ask(&self, url: &Url) -> Result<Response, ScrapeError> {
        let response = match self.send(url).await {
            // The server closed the kept-alive connection just as the request went out: its right, not an outage.
            Err(error) if error.is_request() && !error.is_connect() && !error.is_timeout() => {
                self.send(url).await
            }
            outcome => outcome,
        };
        let response = response.map_err(|error| self.failed(&error))?;
        let over = response.extensions().get::<HttpInfo>().map(HttpInfo::local_addr);
        *self.own_address.lock().unwrap_or_else(PoisonError::into_inner) = over;
        Ok(response)
    }

    async fn body(&self, response: &mut Response) -> Result<Vec<u8>, ScrapeError> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.failed(&error))? {
            if body.len() + chunk.len() > LARGEST_PAGE {
                return Err(self.bad_page(PageError::TooLarge { limit: LARGEST_PAGE }));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    async fn send(&self, url: &Url) -> Result<Response, reqwest::Error> {
        let mut request = self.client.get(url.clone()).header(ACCEPT, "text/plain");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token.header());
        }
        request.send().await
    }

    /// Status and headers: whether a page follows that can be read.
    fn check_head(&self, response: &Response) -> Result<(), ScrapeError> {
        let status = response.status();
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        if status.is_redirection() {
            let target = header(LOCATION).and_then(|location| response.url().join(location).ok());
            let to = target.as_ref().map_or_else(|| "nowhere".to_owned(), error::shown);
            return Err(ScrapeError::Redirect { url: self.shown_url(), to });
        }
        if !status.is_success() {
            return Err(ScrapeError::Status { url: self.shown_url(), status: status.as_u16() });
        }
        if let Some(encoding) = header(CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
            return Err(ScrapeError::Encoded { url: self.shown_url(), encoding: encoding.to_owned() });
        }
        // Spares the transfer; a body without a length is counted as it comes.
        if response.content_length().is_some_and(|length| length > LARGEST_PAGE as u64) {
            return Err(self.bad_page(PageError::TooLarge { limit: LARGEST_PAGE }));
        }
        Ok(())
    }

    fn bad_page(&self, source: PageError) -> ScrapeError {
        ScrapeError::Page { url: self.shown_url(), source }
    }

    fn failed(&self, error: &reqwest::Error) -> ScrapeError {
        ScrapeError::of(error, &self.url, seconds(self.connect_timeout))
    }
}

/// The text of a URL as it may be shown: its query may hold a key.
#[must_use]
pub fn without_query(url: &str) -> &str {
    url.find(['?', '#']).map_or(url, |end| &url[..end])
}

/// Follows a redirect only to the same scheme, host and port: the token and the trust are the server's alone.
fn within_the_server(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let first = attempt.previous().first();
    let same_server = first.is_some_and(|first| first.origin() == attempt.url().origin());
    if same_server && attempt.previous().len() <= MOST_REDIRECTS { attempt.follow() } else { attempt.stop() }
}

fn checked_url(text: &str) -> Result<Url, ScrapeError> {
    let bad = |reason: String| ScrapeError::BadUrl { reason };
    let url = Url::parse(text).map_err(|error| bad(format!("{error}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad(format!("its scheme is {:?}", url.scheme())));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad(
            "it holds a user name or password; put a token in bearer_token_file instead".to_owned()
        ));
    }
    Ok(url)
}

fn checked_timeout(what: &'static str, span: Seconds) -> Result<Duration, ScrapeError> {
    let duration = Duration::try_from_secs_f64(span.0).ok().filter(|duration| !duration.is_zero());
    duration.ok_or(ScrapeError::BadTimeout { what, span })
}

/// A bundle of every public authority has a quarter of that.
const LARGEST_CA_FILE: usize = 1 << 20;

fn read_certificates(path: &Path) -> Result<Vec<Certificate>, ScrapeError> {
    let bad = |reason: String| ScrapeError::BadCaFile { path: path.to_owned(), reason };
    let pem = secret::read_file(path, LARGEST_CA_FILE).map_err(|error| bad(error.to_string()))?;
    if pem.len() == LARGEST_CA_FILE {
        return Err(bad(format!("it is larger than {LARGEST_CA_FILE} bytes")));
    }
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| bad(error::root_cause(&error)))?;
    if certificates.is_empty() {
        return Err(bad("it holds no certificate".to_owned()));
    }
    Ok(certificates)
}

fn seconds(duration: Duration) -> Seconds {
    Seconds(duration.as_secs_f64())
}
