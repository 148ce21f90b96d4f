//! The API of agft-serve: `/v1`.

use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Extension, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::answer::Trouble;
use super::guard::Trusted;
use super::{Api, MAX_BODY_BYTES};
use crate::fleet::{FleetError, Given};
use crate::process::{LogLine, Source};
use crate::spec::Gpus;
use crate::supervise::{CommandError, InstanceStatus, Reloaded, State as Phase};

/// Time that a client may take to send what it gives.
const BODY_TIME: Duration = Duration::from_secs(30);
/// Most lines of a log that are sent at once.
const MOST_LINES: usize = 10_000;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/v1/instances", get(list).post(apply))
        .route("/v1/instances/{name}", get(show).delete(remove))
        .route("/v1/instances/{name}/enable", post(enable))
        .route("/v1/instances/{name}/disable", post(disable))
        .route("/v1/instances/{name}/restart", post(restart))
        .route("/v1/instances/{name}/logs", get(logs))
        .route("/v1/reload", post(reload))
}

impl From<FleetError> for Trouble {
    fn from(error: FleetError) -> Self {
        match error {
            FleetError::Catalog(error) => error.into(),
            FleetError::Supervisor(error) => Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
        }
    }
}

impl From<CommandError> for Trouble {
    fn from(error: CommandError) -> Self {
        let status = match error {
            CommandError::NoSuchInstance(_) => StatusCode::NOT_FOUND,
            CommandError::Disabled(_) => StatusCode::CONFLICT,
        };
        Self::new(status, error.to_string())
    }
}

/// GPUs in one word, for tables.
pub(super) fn gpus_text(gpus: &Gpus) -> String {
    let numbers = |list: &[u32]| list.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    match gpus {
        Gpus::All => "all".into(),
        Gpus::None => "none".into(),
        Gpus::Indices(list) => numbers(list),
        Gpus::CudaIndices(list) => format!("{} (CUDA's order)", numbers(list)),
        Gpus::Uuids(list) => list.join(","),
    }
}

fn unix_s(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn shown(api: &Api, status: &InstanceStatus) -> Value {
    let work = api.work.of(&status.name);
    let entry = api.fleet.entry(&status.name);
    let (retry_at, failures) = match status.state {
        Phase::Backoff { until, failures } | Phase::CrashLoop { until, failures } => {
            (Some(unix_s(until)), failures)
        }
        _ => (None, 0),
    };
    json!({
        "name": status.name,
        "enabled": status.enabled,
        "state": status.state.name(),
        "since_unix_s": unix_s(status.since),
        "retry_at_unix_s": retry_at,
        "failures": failures,
        "pid": status.pid,
        "restarts": status.restarts,
        "gpus": gpus_text(&status.gpus),
        "last_exit": status.last_exit,
        "problem": status.problem,
        "connections": status.connections,
        "work": status.work.name(),
        "requests": work.and_then(|work| work.requests),
        "tokens_per_s": work.and_then(|work| work.tokens_per_s),
        "file": entry.as_ref().map(|(entry, _)| entry.place.file.display().to_string()),
        "line": entry.as_ref().map(|(entry, _)| entry.place.line),
        "applied": entry.is_some_and(|(_, applied)| applied),
    })
}

async fn list(State(api): State<Api>) -> Response {
    api.work.wanted();
    let list: Vec<Value> = api.fleet.statuses().iter().map(|status| shown(&api, status)).collect();
    Json(json!({ "instances": list, "daemons": api.fleet.daemons().pids() })).into_response()
}

async fn show(
    State(api): State<Api>,
    Extension(Trusted(trusted)): Extension<Trusted>,
    Path(name): Path<String>,
) -> Result<Response, Trouble> {
    api.work.wanted();
    let status = api.fleet.status(&name).ok_or_else(|| Trouble::no_instance(&name))?;
    let mut answer = shown(&api, &status);
    answer["entry"] = api.fleet.entry(&name).map_or(Value::Null, |(entry, _)| entry.to_json(trusted));
    Ok(Json(answer).into_response())
}

async fn state_after(api: &Api, name: &str) -> Response {
    let status = api.fleet.status(name);
    Json(status.map_or(json!({}), |status| shown(api, &status))).into_response()
}

async fn enable(State(api): State<Api>, Path(name): Path<String>) -> Result<Response, Trouble> {
    api.fleet.supervisor().enable(&name).await?;
    Ok(state_after(&api, &name).await)
}

async fn disable(State(api): State<Api>, Path(name): Path<String>) -> Result<Response, Trouble> {
    api.fleet.supervisor().disable(&name).await?;
    Ok(state_after(&api, &name).await)
}

async fn restart(State(api): State<Api>, Path(name): Path<String>) -> Result<Response, Trouble> {
    api.fleet.supervisor().restart(&name).await?;
    Ok(state_after(&api, &name).await)
}

/// What a change did.
pub(super) fn changes(done: &Reloaded) -> Value {
    json!({
        "unchanged": done.unchanged,
        "restarted": done.restarted,
        "ended": done.ended,
        "started": done.started,
    })
}

async fn reload(State(api): State<Api>) -> Result<Response, Trouble> {
    Ok(Json(changes(&api.fleet.reload().await?)).into_response())
}

async fn apply(State(api): State<Api>, request: Request<Body>) -> Result<Response, Trouble> {
    let given = given(request).await?;
    Ok(Json(changes(&api.fleet.apply(given).await?)).into_response())
}

async fn remove(State(api): State<Api>, Path(name): Path<String>) -> Result<Response, Trouble> {
    Ok(Json(changes(&api.fleet.remove(&name).await?)).into_response())
}

/// The entries that a request gives: as JSON where it says so, else as the text of an instance file.
pub(super) async fn given(request: Request<Body>) -> Result<Given, Trouble> {
    let kind = request.headers().get(header::CONTENT_TYPE).map(|kind| kind.as_bytes().to_ascii_lowercase());
    let is_json = kind.is_some_and(|kind| kind.starts_with(b"application/json"));
    let bytes = whole(request.into_body()).await?;
    if is_json {
        let json = serde_json::from_slice(&bytes).map_err(|error| {
            Trouble::new(StatusCode::BAD_REQUEST, format!("the request is not JSON: {error}"))
        })?;
        return Ok(Given::Json(json));
    }
    let text = String::from_utf8(bytes.into())
        .map_err(|_| Trouble::new(StatusCode::BAD_REQUEST, "the request is not UTF-8 text"))?;
    Ok(Given::Yaml(text))
}

pub(super) async fn whole(body: Body) -> Result<Bytes, Trouble> {
    match tokio::time::timeout(BODY_TIME, to_bytes(body, MAX_BODY_BYTES)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => {
            let text = format!("the request is cut short, or longer than {} KiB", MAX_BODY_BYTES >> 10);
            Err(Trouble::new(StatusCode::PAYLOAD_TOO_LARGE, text))
        }
        Err(_) => Err(Trouble::new(StatusCode::REQUEST_TIMEOUT, "the request did not come within 30 s")),
    }
}

#[derive(Debug, Deserialize)]
struct LogsQuery {
    lines: Option<usize>,
    #[serde(default)]
    follow: bool,
}

fn log_line(line: &LogLine) -> Value {
    let source = match line.source {
        Source::Stdout => "stdout",
        Source::Stderr => "stderr",
        Source::Hook => "hook",
    };
    json!({"at_unix_s": unix_s(line.at), "source": source, "text": &*line.text})
}

/// One JSON object a line; with `follow`, each new line as it comes.
async fn logs(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<LogsQuery>,
) -> Result<Response, Trouble> {
    let (lines, coming) = api.fleet.supervisor().log(&name, query.lines.unwrap_or(100).min(MOST_LINES))?;
    let mut text = String::new();
    for line in &lines {
        text.push_str(&log_line(line).to_string());
        text.push('\n');
    }
    let body = if query.follow {
        Body::from_stream(stream::unfold((Some(text), coming), |(first, coming)| next_lines(first, coming)))
    } else {
        Body::from(text)
    };
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

type Lines = (Option<String>, Receiver<LogLine>);

async fn next_lines(
    first: Option<String>,
    mut coming: Receiver<LogLine>,
) -> Option<(Result<String, Infallible>, Lines)> {
    if let Some(first) = first {
        return Some((Ok(first), (None, coming)));
    }
    let line = match coming.recv().await {
        Ok(line) => log_line(&line),
        // The client reads more slowly than the instance writes.
        Err(RecvError::Lagged(missed)) => json!({ "missed": missed }),
        Err(RecvError::Closed) => return None,
    };
    Some((Ok(format!("{line}\n")), (None, coming)))
}
