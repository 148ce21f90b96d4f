//! The state as JSON: once, or once a second as server-sent events.
//!
//! A stream holds no queue. When its client can take more, it is given the state of that moment, so a client that reads
//! slowly or never costs one place and one message, and what it missed is in the history that the next one brings.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};

use super::Latest;
use crate::text;
use crate::view::{Point, State};

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
    pub(super) latest: Latest,
    places: Arc<Semaphore>,
}

impl Live {
    pub(super) fn new(latest: Latest) -> Self {
        Self { latest, places: Arc::new(Semaphore::new(STREAMS)) }
    }
}

/// `GET /api/state`.
pub(super) async fn state(Shared(live): Shared<Live>) -> Response {
    let state = Arc::clone(&live.latest.state.borrow());
    json(&*state)
}

/// An answer in JSON.
pub(super) fn json(what: &impl Serialize) -> Response {
    match text::json(what) {
        Ok(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// `GET /events`: `history`, then `state` and `points` once a second.
pub(super) async fn events(Shared(live): Shared<Live>, headers: HeaderMap) -> Response {
    // Pages of other sites cannot read the stream, but could take the places.
    if headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site" || site == "same-site") {
        return (StatusCode::FORBIDDEN, "agft: not for pages of other sites\n").into_response();
    }
    let Ok(place) = Arc::clone(&live.places).try_acquire_owned() else {
        let text =
            format!("agft: {STREAMS} pages are open already; close one, or read /api/state or /metrics\n");
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "10")], text).into_response();
    };
    let stream = Stream::new(live.latest, place);
    let messages = futures_util::stream::unfold(stream, |mut stream| async move {
        let message = stream.message().await?;
        Some((Ok::<_, Infallible>(message), stream))
    });
    // Proxies that gather answers before they pass them on are asked not to.
    let headers = [(header::CONTENT_TYPE.as_str(), "text/event-stream"), ("x-accel-buffering", "no")];
    (headers, Body::from_stream(messages)).into_response()
}

/// One client's stream.
struct Stream {
    latest: Latest,
    /// Time of the newest point that the client has; `None` before the first message.
    shown_until_unix_s: Option<f64>,
    /// When the next message may go.
    next: Instant,
    end: Instant,
    _place: OwnedSemaphorePermit,
}

impl Stream {
    fn new(latest: Latest, place: OwnedSemaphorePermit) -> Self {
        let now = Instant::now();
        Self { latest, shown_until_unix_s: None, next: now, end: now + LENGTH, _place: place }
    }

    /// The next message; `None` at the end of the stream, or of the run.
    async fn message(&mut self) -> Option<String> {
        let first = self.shown_until_unix_s.is_none();
        if !first {
            sleep_until(self.next).await;
            if Instant::now() >= self.end {
                return None;
            }
            match timeout(QUIET, self.latest.state.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) => return Some(": still here\n\n".into()),
            }
        }
        self.next = Instant::now() + EVERY;
        let state: Arc<State> = Arc::clone(&self.latest.state.borrow_and_update());
        let history = Arc::clone(&self.latest.history.borrow());
        let points: Vec<&Point> = match self.shown_until_unix_s {
            None => history.points().collect(),
            Some(until) => {
                // From the newest back to the one that was sent last: also right where the wall clock was set back.
                #[expect(clippy::float_cmp, reason = "the very point that was sent")]
                let new = history.points().rev().take_while(|point| point.at_unix_s != until);
                let mut new: Vec<&Point> = new.collect();
                new.reverse();
                new
            }
        };
        if let Some(newest) = points.last() {
            self.shown_until_unix_s = Some(newest.at_unix_s);
        } else if first {
            self.shown_until_unix_s = Some(f64::NEG_INFINITY);
        }
        let mut text = if first { format!("retry: {RETRY_MS}\n\n") } else { String::new() };
        text += &event(if first { "history" } else { "points" }, &points)?;
        text += &event("state", &*state)?;
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
