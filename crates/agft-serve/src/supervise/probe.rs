//! The readiness probe: asked again and again until it is answered.

use std::net::Ipv4Addr;
use std::time::Duration;

use hyper::StatusCode;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use url::Url;

use crate::http::Ask;
use crate::spec::Probe;

/// Between two questions.
const PACE: Duration = Duration::from_millis(100);
/// A question that is not answered for so long is given up, and asked again.
const PATIENCE: Duration = Duration::from_secs(5);

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Asks for the first time after `pause`; returns once the probe is answered.
pub(super) async fn answered_after(pause: Duration, probe: Probe) {
    sleep(pause).await;
    loop {
        let asked = async {
            match &probe {
                Probe::Http(address) => get(address).await,
                Probe::Port(port) => {
                    TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).await?;
                    Ok(true)
                }
            }
        };
        match timeout(PATIENCE, asked).await {
            Ok(Ok(true)) => return,
            Ok(Ok(false)) => tracing::trace!(?probe, "answered, but not with 200"),
            Ok(Err(error)) => tracing::trace!(?probe, %error, "not answered"),
            Err(_) => tracing::trace!(?probe, "not answered in time"),
        }
        sleep(PACE).await;
    }
}

/// Whether a GET is answered with 200.
async fn get(address: &str) -> Result<bool, Failure> {
    let url = Url::parse(address)?;
    Ok(Ask::get(&url, PATIENCE).answer().await?.status() == StatusCode::OK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn only_200_is_an_answer() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let mut asked = Vec::new();
            for status in ["503 Service Unavailable", "200 OK"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut bytes = [0; 1024];
                let read = stream.read(&mut bytes).await.unwrap();
                asked.push(String::from_utf8_lossy(&bytes[..read]).into_owned());
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            asked
        });
        let probe = Probe::Http(format!("http://127.0.0.1:{port}/health?x=1"));
        answered_after(Duration::ZERO, probe).await;
        let asked = server.await.unwrap();
        assert_eq!(asked.len(), 2);
        assert!(asked[0].starts_with("GET /health?x=1 HTTP/1.1\r\n"), "{}", asked[0]);
        assert!(asked[0].contains(&format!("host: 127.0.0.1:{port}\r\n")), "{}", asked[0]);
    }
}
