//! Requests to a running agft-serve.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, Response, StatusCode};
use serde_json::Value;
use url::Url;

use super::exit_of;
use crate::api::token::{Token, TokenError};
use crate::cli::{ClientArgs, Exit};
use crate::http::{Ask, HttpError};
use crate::settings::{PORT, TOKEN, usual_runtime};

/// A reload waits for instances that end.
const PATIENCE: Duration = Duration::from_secs(600);
/// Longest answer, in bytes.
const MOST_BYTES: usize = 64 << 20;
/// Longest line of a log, in bytes.
const LONGEST_LINE: usize = 1 << 20;

/// Where the API is.
#[derive(Debug, Clone, Default)]
pub struct Server {
    /// Its host; this machine where none is given.
    pub host: Option<String>,
    /// Its port; the usual one where none is given.
    pub port: Option<u16>,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("--host: {0} is no host")]
    Host(String),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(
        "this needs the token, and no agft-serve of this user has one here; run it as the user of agft-serve, or give \
         --token-file"
    )]
    NoToken,
    #[error("{0}; is agft-serve running there? (--host, --port)")]
    Http(#[from] HttpError),
    #[error("{text}")]
    Refused { status: StatusCode, text: String },
    #[error("the answer is not that of an agft-serve; check --host and --port")]
    Stranger,
    #[error("{file}: {source}", file = .file.display())]
    File { file: PathBuf, source: io::Error },
}

impl ClientError {
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Host(_) => Exit::Usage,
            Self::NoToken | Self::Token(_) => Exit::NotAllowed,
            Self::Refused { status, .. } => exit_of(*status),
            Self::Http(_) | Self::Stranger | Self::File { .. } => Exit::Failure,
        }
    }
}

/// Asks one agft-serve.
#[derive(Debug)]
pub(super) struct Caller {
    base: Url,
    authorization: Option<String>,
}

impl Caller {
    /// `must`: without a token it makes no sense.
    pub(super) fn new(server: &Server, client: &ClientArgs, must: bool) -> Result<Self, ClientError> {
        let host = server.host.as_deref().unwrap_or("127.0.0.1");
        let bare = host.trim_matches(['[', ']']);
        let shown = if bare.contains(':') { format!("[{bare}]") } else { host.to_owned() };
        let base = Url::parse(&format!("http://{shown}:{}/", server.port.unwrap_or(PORT)));
        let base = base.map_err(|_| ClientError::Host(host.to_owned()))?;
        let token = match &client.token_file {
            Some(file) => Some(Token::read(file, false)?),
            // The token of this machine's agft-serve is told to nobody else.
            None if is_local(&base) => {
                usual_runtime().and_then(|dir| Token::read(&dir.join(TOKEN), true).ok())
            }
            None => None,
        };
        if must && token.is_none() {
            return Err(ClientError::NoToken);
        }
        Ok(Self { base, authorization: token.map(|token| token.header()) })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Vec<u8>)>,
    ) -> Result<Response<Incoming>, ClientError> {
        let url = self.base.join(path).map_err(|_| ClientError::Stranger)?;
        let authorization = self.authorization.as_deref();
        let answer = Ask { method, url: &url, authorization, body, within: PATIENCE }.answer().await?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let bytes = bytes(answer).await?;
        let text = match serde_json::from_slice::<Value>(&bytes) {
            Ok(json) => {
                let told = json.get("error").or_else(|| json.get("message")).and_then(Value::as_str);
                told.map_or_else(|| format!("answered {status}"), ToOwned::to_owned)
            }
            Err(_) => format!("answered {status}: {}", String::from_utf8_lossy(&bytes).trim()),
        };
        Err(ClientError::Refused { status, text })
    }

    /// The answer's JSON.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Vec<u8>)>,
    ) -> Result<Value, ClientError> {
        let answer = self.send(method, path, body).await?;
        serde_json::from_slice(&bytes(answer).await?).map_err(|_| ClientError::Stranger)
    }

    /// The answer's JSON, one value a line, as it comes.
    pub(super) async fn lines(&self, path: &str) -> Result<Lines, ClientError> {
        Ok(Lines { body: self.send(Method::GET, path, None).await?.into_body(), buffer: Vec::new() })
    }
}

fn is_local(base: &Url) -> bool {
    match base.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

async fn bytes(answer: Response<Incoming>) -> Result<Vec<u8>, ClientError> {
    let body = http_body_util::Limited::new(answer.into_body(), MOST_BYTES);
    let body = tokio::time::timeout(PATIENCE, body.collect()).await;
    Ok(body.map_err(|_| ClientError::Stranger)?.map_err(|_| ClientError::Stranger)?.to_bytes().to_vec())
}

/// Lines of an answer.
#[derive(Debug)]
pub(super) struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Lines {
    /// The next one; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Value>, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).map(Some).map_err(|_| ClientError::Stranger);
            }
            if self.buffer.len() > LONGEST_LINE {
                return Err(ClientError::Stranger);
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                // The supervisor ended, which ends its logs too.
                Some(Err(_)) | None => return Ok(None),
            }
        }
    }
}
