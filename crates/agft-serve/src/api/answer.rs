//! Answers that are no success.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::catalog::CatalogError;
use crate::files::Problems;

/// Why a request was not carried out.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) status: StatusCode,
    pub(super) text: String,
    /// One by one, where it is about entries.
    problems: Vec<String>,
}

impl Trouble {
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), problems: Vec::new() }
    }

    pub(super) fn not_allowed() -> Self {
        let text = "this needs the token: send `Authorization: Bearer TOKEN` (the file token in the runtime directory, \
                    or that of --token-file)";
        Self::new(StatusCode::UNAUTHORIZED, text)
    }

    pub(super) fn no_instance(name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("{name}: there is no such instance"))
    }

    /// The answer in the form that `path` has: gppm's, or ours.
    pub(super) fn at(self, path: &str) -> Response {
        if path.starts_with("/v1/") { self.into_response() } else { self.into_gppm() }
    }

    /// In gppm's form: a wrong request has the status 200 there. Not so where the client is not let in.
    pub(super) fn into_gppm(self) -> Response {
        let status = match self.status {
            StatusCode::UNAUTHORIZED | StatusCode::PAYLOAD_TOO_LARGE => self.status,
            _ => StatusCode::OK,
        };
        let mut answer = (status, Json(json!({"status": "ERROR", "message": self.text}))).into_response();
        challenge(&mut answer);
        answer
    }
}

fn challenge(answer: &mut Response) {
    if answer.status() == StatusCode::UNAUTHORIZED {
        let value = header::HeaderValue::from_static("Bearer");
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, value);
    }
}

impl IntoResponse for Trouble {
    fn into_response(self) -> Response {
        let mut body = json!({"error": self.text});
        if !self.problems.is_empty() {
            body["problems"] = self.problems.into();
        }
        let mut answer = (self.status, Json(body)).into_response();
        challenge(&mut answer);
        answer
    }
}

impl From<Problems> for Trouble {
    fn from(problems: Problems) -> Self {
        Self {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            text: problems.to_string(),
            problems: problems.0.iter().map(ToString::to_string).collect(),
        }
    }
}

impl From<CatalogError> for Trouble {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::Problems(problems) => problems.into(),
            error @ CatalogError::NotApplied { .. } => Self::new(StatusCode::NOT_FOUND, error.to_string()),
            error @ CatalogError::Write { .. } => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
            }
        }
    }
}
