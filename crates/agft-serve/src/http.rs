//! HTTP requests to servers on this machine: a metrics page, Ollama, the API.

use std::io;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use url::Url;

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error("{0} has no host")]
    NoHost(Url),
    #[error("{url}: {source}")]
    Connect { url: Url, source: io::Error },
    #[error("{url}: {source}")]
    Talk { url: Url, source: hyper::Error },
    #[error("{0}: is no request")]
    Request(#[from] hyper::http::Error),
    #[error("{url}: no answer within {} s", .within.as_secs_f64())]
    Late { url: Url, within: Duration },
    #[error("{url}: the answer could not be read: {why}")]
    Body { url: Url, why: String },
}

/// One request; each has a connection of its own.
#[derive(Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) method: Method,
    pub(crate) url: &'a Url,
    /// `Authorization`.
    pub(crate) authorization: Option<&'a str>,
    /// Content type and content.
    pub(crate) body: Option<(&'static str, Vec<u8>)>,
    /// Until the head of the answer is there.
    pub(crate) within: Duration,
}

impl<'a> Ask<'a> {
    /// A GET.
    pub(crate) fn get(url: &'a Url, within: Duration) -> Self {
        Self { method: Method::GET, url, authorization: None, body: None, within }
    }

    /// The head of the answer; its body comes as it is sent.
    pub(crate) async fn answer(self) -> Result<Response<Incoming>, HttpError> {
        let (url, within) = (self.url.clone(), self.within);
        tokio::time::timeout(within, self.talk()).await.map_err(|_| HttpError::Late { url, within })?
    }

    /// Status and body, of which `most` bytes are taken.
    pub(crate) async fn whole(self, most: usize) -> Result<(StatusCode, Bytes), HttpError> {
        let (url, within) = (self.url.clone(), self.within);
        let answer = self.answer().await?;
        let status = answer.status();
        let body = tokio::time::timeout(within, Limited::new(answer.into_body(), most).collect()).await;
        let body = body.map_err(|_| HttpError::Late { url: url.clone(), within })?;
        let body = body.map_err(|why| HttpError::Body { url, why: why.to_string() })?;
        Ok((status, body.to_bytes()))
    }

    async fn talk(self) -> Result<Response<Incoming>, HttpError> {
        let url = self.url;
        let host = url.host_str().ok_or_else(|| HttpError::NoHost(url.clone()))?;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let connected = TcpStream::connect((bare, url.port_or_known_default().unwrap_or(80))).await;
        let stream = connected.map_err(|source| HttpError::Connect { url: url.clone(), source })?;
        let talk = |source| HttpError::Talk { url: url.clone(), source };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(talk)?;
        // Ends when the answer was read, or is no longer wanted.
        tokio::spawn(connection);
        let path = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let mut request = Request::builder().method(self.method).uri(path).header(HOST, authority);
        if let Some(value) = self.authorization {
            let mut value = HeaderValue::from_str(value).map_err(hyper::http::Error::from)?;
            value.set_sensitive(true);
            request = request.header("authorization", value);
        }
        let body = match self.body {
            Some((content_type, body)) => {
                request = request.header(CONTENT_TYPE, content_type);
                body
            }
            None => Vec::new(),
        };
        let request = request.body(Full::new(Bytes::from(body)))?;
        sender.send_request(request).await.map_err(talk)
    }
}
