//! Where clients of an instance on demand connect: held until the instance is ready, then passed on.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepidle};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

/// Between two tries to reach an instance that is ready but takes no connection, or to accept one after a
/// failure.
const PACE: Duration = Duration::from_millis(50);
/// A client that vanished without a word is asked after so long.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// A socket that is listened at. Dropped, it is closed, and all connections with it.
#[derive(Debug)]
pub(super) struct Gate {
    target: watch::Sender<Option<u16>>,
    open: watch::Receiver<usize>,
    accepting: JoinHandle<()>,
}

impl Gate {
    pub(super) async fn open(listen: SocketAddr) -> io::Result<Self> {
        Ok(Self::new(TcpListener::bind(listen).await?))
    }

    fn new(listener: TcpListener) -> Self {
        let (target, targets) = watch::channel(None);
        let (count, open) = watch::channel(0);
        Self { target, open, accepting: tokio::spawn(accept(listener, targets, count)) }
    }

    /// Connections are passed on to this port of 127.0.0.1; held where none.
    pub(super) fn pass_to(&self, port: Option<u16>) {
        self.target.send_if_modified(|target| std::mem::replace(target, port) != port);
    }

    /// Connections open or held.
    pub(super) fn connections(&self) -> usize {
        *self.open.borrow()
    }

    /// Returns when [`Gate::connections`] changed since this was called last.
    pub(super) async fn changed(&mut self) {
        if self.open.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, targets: watch::Receiver<Option<u16>>, count: watch::Sender<usize>) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    // Counted before anything else can happen: an instance with a client is not idle.
                    let counted = Counted::new(&count);
                    clients.spawn(serve(client, targets.clone(), counted));
                }
                Err(error) => {
                    tracing::warn!(%error, "a client could not be accepted");
                    sleep(PACE).await;
                }
            },
            Some(_) = clients.join_next() => {}
        }
    }
}

struct Counted(watch::Sender<usize>);

impl Counted {
    fn new(count: &watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

async fn serve(mut client: TcpStream, mut targets: watch::Receiver<Option<u16>>, _counted: Counted) {
    let _ = client.set_nodelay(true);
    let _ = set_socket_keepalive(&client, true).and_then(|()| set_tcp_keepidle(&client, KEEPALIVE));
    let mut server = tokio::select! {
        Some(server) = reach(&mut targets) => server,
        () = left(&client) => return,
        else => return,
    };
    let _ = server.set_nodelay(true);
    // An error means that one side is gone: both are closed.
    let _ = copy_bidirectional(&mut client, &mut server).await;
}

/// A connection to the instance, once it takes one; none once there will be none.
async fn reach(targets: &mut watch::Receiver<Option<u16>>) -> Option<TcpStream> {
    loop {
        let port = targets.wait_for(Option::is_some).await.ok()?.unwrap_or(0);
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
            Ok(server) => return Some(server),
            // It runs but does not listen yet, or has just ended.
            Err(_) => sleep(PACE).await,
        }
    }
}

/// Returns where a client that has sent nothing closes. One that closes after its request may still want the
/// answer.
async fn left(client: &TcpStream) {
    if !matches!(client.peek(&mut [0; 1]).await, Ok(0) | Err(_)) {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn gate() -> (Gate, SocketAddr) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        (Gate::new(listener), address)
    }

    async fn until(gate: &mut Gate, connections: usize) {
        while gate.connections() != connections {
            gate.changed().await;
        }
    }

    #[tokio::test]
    async fn a_client_is_held_until_there_is_a_server() {
        let (mut gate, listen) = gate().await;
        let mut client = TcpStream::connect(listen).await.unwrap();
        client.write_all(b"question").await.unwrap();
        until(&mut gate, 1).await;
        // Named before it listens: the gate tries again.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
        gate.pass_to(Some(address.port()));
        sleep(PACE).await;
        let listener = TcpListener::bind(address).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let mut question = [0; 8];
        server.read_exact(&mut question).await.unwrap();
        server.write_all(b"answer").await.unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!((&question, answer.as_str()), (b"question", "answer"));
        until(&mut gate, 1).await;
        drop(client);
        until(&mut gate, 0).await;
    }

    #[tokio::test]
    async fn a_client_that_leaves_while_held_is_let_go() {
        let (mut gate, listen) = gate().await;
        let client = TcpStream::connect(listen).await.unwrap();
        until(&mut gate, 1).await;
        drop(client);
        until(&mut gate, 0).await;
    }

    #[tokio::test]
    async fn a_closed_gate_closes_its_clients() {
        let (mut gate, listen) = gate().await;
        let mut client = TcpStream::connect(listen).await.unwrap();
        until(&mut gate, 1).await;
        drop(gate);
        // At an end, or reset: no longer held.
        let _ = client.read(&mut [0; 1]).await;
    }
}
