//! The state as JSON: once, or once a second as server-sent events.
//!
//! A stream holds no queue. When its client can take more, it is given the state of that moment, so a client that reads
//! slowly or never costs one place and one message, and what it missed is in the history that the next one brings.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, State as Shared};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};
use url::form_urlencoded;

use super::{Latest, NoServer, Published};
use crate::text;
use crate::view::{HostState, Point};

/// Streams at once; the remaining connections are for metrics.
pub(super) const STREAMS: usize = 16;
/// Least time from one message to the next.
const EVERY: Duration = Duration::from_secs(1);
/// Without news for this long, a comment shows that the connection lives.
const QUIET: Duration = Duration::from_secs(15);
/// A stream ends in good order before its connection is cut; browsers then open the next by themselves.
const LENGTH: Duration = Duration::from_secs(240);
/// How long browsers wait before they open the next, in milliseconds.
const RETRY_MS: u32 = 1000;

/// What is served, and the places for streams.
#[derive(Debug, Clone)]
pub(super) struct Live {
    pub(super) published: Published,
    places: Arc<Semaphore>,
}

impl Live {
    pub(super) fn new(published: Published) -> Self {
        Self { published, places: Arc::new(Semaphore::new(STREAMS)) }
    }
}

/// The server that a request names: `?server=NAME`.
fn named(query: Option<&str>) -> Option<String> {
    let mut pairs = form_urlencoded::parse(query?.as_bytes());
    pairs.find(|(key, _)| key == "server").map(|(_, name)| name.into_owned())
}

fn not_found(error: &NoServer) -> Response {
    (StatusCode::NOT_FOUND, format!("agft: {error}\n")).into_response()
}

/// `GET /api/state`: everything, or one server alone.
pub(super) async fn state(Shared(live): Shared<Live>, RawQuery(query): RawQuery) -> Response {
    let host = match live.published.host_of(named(query.as_deref()).as_deref()) {
        Ok(host) => host,
        Err(error) => return not_found(&error),
    };
    match text::json(&host) {
        Ok(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// `GET /events`: `history`, then `state` and `points` once a second. The points are those of one server, by default the
/// first; the state is that of all.
pub(super) async fn events(
    Shared(live): Shared<Live>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    // Pages of other sites cannot read the stream, but could take the places.
    if headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site" || site == "same-site") {
        return (StatusCode::FORBIDDEN, "agft: not for pages of other sites\n").into_response();
    }
    let latest = match live.published.latest_or_first(named(query.as_deref()).as_deref()) {
        Ok(latest) => latest,
        Err(error) => return not_found(&error),
    };
    let Ok(place) = Arc::clone(&live.places).try_acquire_owned() else {
        let text =
            format!("agft: {STREAMS} pages are open already; close one, or read /api/state or /metrics\n");
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "10")], text).into_response();
    };
    let stream = Stream::new(live.published, latest, place);
    let messages = futures_util::stream::unfold(stream, |mut stream| async move {
        let message = stream.message().await?;
        Some((Ok::<_, Infallible>(message), stream))
    });
    // Proxies that gather answers before they pass them on are asked not to.
    let headers = [(header::CONTENT_TYPE.as_str(), "text/event-stream"), ("x-accel-buffering", "no")];
    (headers, Body::from_stream(messages)).into_response()
}

struct Stream {
    published: Published,
    /// The server whose points are sent; `None` where there is none.
    latest: Option<Latest>,
    /// What the client has; `None` before the first message.
    sent: Option<HostState>,
    /// Time of the newest point that it has.
    shown_until_unix_s: f64,
    /// When the next message may go, and when a comment has to.
    next: Instant,
    quiet_until: Instant,
    end: Instant,
    _place: OwnedSemaphorePermit,
}

impl Stream {
    fn new(published: Published, latest: Option<Latest>, place: OwnedSemaphorePermit) -> Self {
        let now = Instant::now();
        Self {
            published,
            latest,
            sent: None,
            shown_until_unix_s: f64::NEG_INFINITY,
            next: now,
            quiet_until: now,
            end: now + LENGTH,
            _place: place,
        }
    }

    /// Has the server gone whose points are sent, or has one come where there was none?
    fn is_over(&self) -> bool {
        match &self.latest {
            Some(latest) => latest.state.has_changed().is_err() || !self.published.has(latest),
            None => matches!(self.published.latest_or_first(None), Ok(Some(_))),
        }
    }

    /// The next message; `None` at the end of the stream, or of the run.
    async fn message(&mut self) -> Option<String> {
        let host = loop {
            sleep_until(self.next).await;
            let now = Instant::now();
            self.next = now + EVERY;
            let host = self.published.host();
            if self.sent.is_none() {
                break host;
            }
            if self.is_over() {
                return None;
            }
            let is_news = self.sent.as_ref() != Some(&host);
            if !is_news && now >= self.quiet_until {
                self.quiet_until = now + QUIET;
                return Some(": still here\n\n".into());
            }
            if now >= self.end {
                return None;
            }
            if is_news {
                break host;
            }
        };
        self.quiet_until = Instant::now() + QUIET;
        let first = self.sent.is_none();
        let history = self.latest.as_ref().map(|latest| Arc::clone(&latest.history.borrow()));
        // From the newest back to the one that was sent last: also right where the wall clock was set back.
        let all = history.iter().flat_map(|history| history.points().rev());
        #[expect(clippy::float_cmp, reason = "the very point that was sent")]
        let new = all.take_while(|point| first || point.at_unix_s != self.shown_until_unix_s);
        let mut points: Vec<&Point> = new.collect();
        points.reverse();
        if let Some(newest) = points.last() {
            self.shown_until_unix_s = newest.at_unix_s;
        }
        let mut text = if first { format!("retry: {RETRY_MS}\n\n") } else { String::new() };
        text += &event(if first { "history" } else { "points" }, &points)?;
        text += &event("state", &host)?;
        self.sent = Some(host);
        Some(text)
    }
}

/// One server-sent event; JSON has no line breaks of its own.
fn event(name: &str, data: &impl Serialize) -> Option<String> {
    let json = text::json(data).ok()?;
    Some(format!("event: {name}\ndata: {json}\n\n"))
}

#[cfg(test)]
mod tests;
