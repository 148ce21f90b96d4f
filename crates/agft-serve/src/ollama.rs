//! The hook of `type: ollama`: has the server load a model, so that the first request does not wait for it.

use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};
use url::Url;

use crate::cli::PreloadArgs;
use crate::http::{Ask, HttpError};
use crate::text::shown;

/// Between two questions whether the server is there.
const PACE: Duration = Duration::from_millis(500);
/// A server that is not there after this long will not be.
const START: Duration = Duration::from_secs(120);
/// Loading a model from a slow disk takes minutes.
const LOAD: Duration = Duration::from_secs(1800);

/// Why the model is not loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PreloadError {
    #[error("--options is no JSON object: {0}")]
    Options(String),
    #[error("{0}: no address for requests")]
    Address(Url),
    #[error("Ollama is not there: {0}")]
    Absent(HttpError),
    #[error("the model is not loaded: {0}")]
    Load(#[from] HttpError),
    #[error("the model is not loaded: {url} answered {status}: {text}")]
    Refused {
        /// What was asked.
        url: Url,
        /// The status.
        status: u16,
        /// The beginning of the answer.
        text: String,
    },
}

/// Waits for the server and has it load the model, for good.
///
/// # Errors
/// [`PreloadError`]
pub(crate) async fn preload(args: &PreloadArgs) -> Result<(), PreloadError> {
    let options = match serde_json::from_str(&args.options) {
        Ok(options @ Value::Object(_)) => options,
        Ok(other) => return Err(PreloadError::Options(shown(&other.to_string()).into_owned())),
        Err(error) => return Err(PreloadError::Options(error.to_string())),
    };
    let url = args.server.join("/api/generate").map_err(|_| PreloadError::Address(args.server.clone()))?;
    let version = args.server.join("/api/version").map_err(|_| PreloadError::Address(args.server.clone()))?;
    let begun = tokio::time::Instant::now();
    loop {
        match Ask::get(&version, Duration::from_secs(5)).whole(1 << 16).await {
            Ok((status, _)) if status.is_success() => break,
            Ok(_) => {}
            Err(error) if begun.elapsed() > START => return Err(PreloadError::Absent(error)),
            Err(_) => {}
        }
        tokio::time::sleep(PACE).await;
    }
    // Without a prompt the model is only loaded; -1 keeps it.
    let body = json!({"model": args.model, "options": options, "keep_alive": -1, "stream": false});
    let ask = Ask {
        method: Method::POST,
        url: &url,
        authorization: None,
        body: Some(("application/json", body.to_string().into_bytes())),
        within: LOAD,
    };
    let (status, body) = ask.whole(1 << 16).await?;
    if status.is_success() {
        return Ok(());
    }
    let text = shown(&String::from_utf8_lossy(&body)).into_owned();
    Err(PreloadError::Refused { url, status: status.as_u16(), text })
}
