//! A scripted engine: a vLLM metrics page over real HTTP, whose traffic, troubles and restarts a test switches at run
//! time, and whose work shows as load on the mocked GPUs.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nvidia_ml::MockState;
use socket2::{Domain, Socket, Type};

use super::MockNvml;
use super::page::{Counters, Words};

/// How long an idle accept waits before it looks at the script again.
const POLL: Duration = Duration::from_millis(2);

/// What the server does with a request for the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// Serves the page.
    Serve,
    /// Nothing listens on the port.
    Refuse,
    /// Takes the request and never answers.
    Hang,
    /// HTTP status 500.
    Status500,
    /// A body of no bytes.
    Empty,
    /// Somebody else's HTML page.
    Html,
    /// The page, with this as the model's name.
    Named(&'static str),
    /// This body.
    Body(&'static str),
    /// 10 MB of lines that are no metrics.
    Huge,
    /// The page with this in place of every value.
    Poison(&'static str),
    /// The page, announced longer than it is, and the connection closed.
    Truncated,
    /// Bytes that are not UTF-8.
    NotUtf8,
    /// Serves the page after this long.
    Slow(Duration),
    /// Takes the request and resets the connection.
    Reset,
    /// The page of another engine, as its prefix says.
    OtherNames,
    /// The page, every series on it twice.
    Duplicates,
}

/// What a test has asked for, and the engine's state.
struct Script {
    behaviour: Behaviour,
    counters: Counters,
    /// Whose page it is.
    words: Words,
    /// Does the engine sleep?
    asleep: bool,
    /// Pages served whole, and with the behaviour `Serve`.
    served: u64,
    stop: bool,
}

struct Shared {
    script: Mutex<Script>,
    changed: Condvar,
    /// The machine whose GPUs this engine runs on.
    machine: MockState,
    /// The GPUs that it works on.
    gpus: Vec<usize>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Core clock of the first GPU, which sets the pace.
    fn core_mhz(&self) -> f64 {
        self.machine.snapshot(self.gpus[0]).map_or(0.0, |gpu| f64::from(gpu.core_mhz))
    }
}

/// A running server; it ends when this is dropped.
pub(crate) struct Engine {
    shared: Arc<Shared>,
    address: SocketAddr,
    /// Bound and never listening: keeps the port ours while nothing listens on it.
    _reservation: Socket,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// An idle engine on all GPUs of the mocked machine.
    pub(crate) fn start(mock: &MockNvml) -> Self {
        Self::on(mock, &(0..mock.gpu_count()).collect::<Vec<_>>())
    }

    /// An idle engine on these GPUs.
    pub(crate) fn on(mock: &MockNvml, gpus: &[usize]) -> Self {
        let reservation = bound(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let address = reservation.local_addr().ok().and_then(|address| address.as_socket());
        let address = address.expect("an address on the loopback");
        let machine = MockState::open(&mock.state_path()).expect("the mocked machine");
        let counters = Counters::new(machine.config().gpus[0].levels[0].core_mhz[0]);
        let script = Script {
            behaviour: Behaviour::Serve,
            counters,
            words: Words::Vllm,
            asleep: false,
            served: 0,
            stop: false,
        };
        let (script, changed) = (Mutex::new(script), Condvar::new());
        let shared = Arc::new(Shared { script, changed, machine, gpus: gpus.to_vec() });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || accept(&theirs, address));
        Self { shared, address, _reservation: reservation, thread: Some(thread) }
    }

    /// The page's URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/metrics", self.address)
    }

    /// Requests arrive (`load` from 0 to 1): the page shows them and the GPUs work on them.
    pub(crate) fn set_load(&self, load: f64) {
        self.show_load(load);
        for gpu in &self.shared.gpus {
            self.shared.machine.set_load(*gpu, load).expect("a GPU of this machine");
        }
    }

    /// The page shows this load, whatever the GPUs do.
    pub(crate) fn show_load(&self, load: f64) {
        let core = self.shared.core_mhz();
        self.shared.lock().counters.set_load(load, core);
    }

    /// Answers like this from now on.
    pub(crate) fn behave(&self, behaviour: Behaviour) {
        self.shared.lock().behaviour = behaviour;
        self.shared.changed.notify_all();
    }

    /// Is another engine from now on.
    pub(crate) fn speak(&self, words: Words) {
        self.shared.lock().words = words;
    }

    /// Sleeps, or no longer does.
    pub(crate) fn sleep(&self, asleep: bool) {
        self.shared.lock().asleep = asleep;
    }

    /// A new process: every counter at 0, another start time.
    pub(crate) fn restart(&self) {
        self.shared.lock().counters.restart();
    }

    /// Counters run backwards in the same process: another server behind the same address, say.
    pub(crate) fn go_back(&self) {
        self.shared.lock().counters.go_back();
    }

    /// Good pages served so far.
    pub(crate) fn served(&self) -> u64 {
        self.shared.lock().served
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A socket on that address that does not listen. Others may bind the address too, but only one may listen.
fn bound(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("a socket option");
    socket.bind(&address.into()).expect("a port of the loopback");
    socket
}

/// Listens while the script lets it, and gives each connection a thread.
fn accept(shared: &Arc<Shared>, address: SocketAddr) {
    let mut listener: Option<TcpListener> = None;
    loop {
        let (stop, refuse) = {
            let script = shared.lock();
            (script.stop, script.behaviour == Behaviour::Refuse)
        };
        if stop {
            return;
        }
        if refuse {
            listener = None;
        } else if listener.is_none() {
            listener = listen(address).ok();
        }
        match listener.as_ref().map(TcpListener::accept) {
            Some(Ok((stream, _))) => {
                let shared = Arc::clone(shared);
                // Ends with its connection, which the client's end closes at the latest.
                std::thread::spawn(move || converse(&shared, stream));
            }
            _ => std::thread::sleep(POLL),
        }
    }
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = bound(address);
    socket.listen(16)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Answers the requests of one connection until either side has enough of it.
fn converse(shared: &Shared, mut stream: TcpStream) {
    let _ = stream.set_nonblocking(false);
    let _ = stream.set_nodelay(true);
    while let Some(path) = request(&mut stream) {
        match answer(shared, &stream, &path) {
            Some((bytes, keep)) if stream.write_all(&bytes).is_ok() && keep => {}
            _ => return,
        }
    }
}

/// Reads to the end of a request's head: the path asked for.
fn request(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return None,
            Ok(read) => head.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
        if head.ends_with(b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&head);
            return Some(head.split(' ').nth(1).unwrap_or_default().to_owned());
        }
    }
}

/// The bytes to send, and whether the connection goes on; `None` closes it at once.
fn answer(shared: &Shared, stream: &TcpStream, path: &str) -> Option<(Vec<u8>, bool)> {
    let core = shared.core_mhz();
    let mut script = shared.lock();
    if script.behaviour == Behaviour::Hang {
        let hangs = |script: &mut Script| script.behaviour == Behaviour::Hang && !script.stop;
        drop(shared.changed.wait_while(script, hangs).unwrap_or_else(PoisonError::into_inner));
        return None;
    }
    if let Behaviour::Slow(pause) = script.behaviour {
        drop(script);
        std::thread::sleep(pause);
        script = shared.lock();
    }
    script.counters.advance(core);
    if script.words == Words::LlamaCpp && path == "/props" {
        let props = format!("{{\"total_slots\":4,\"is_sleeping\":{}}}", script.asleep);
        return Some((response("200 OK", props.as_bytes(), props.len()), true));
    }
    let page = script.counters.page_of(script.words);
    Some(match script.behaviour {
        Behaviour::Serve | Behaviour::Slow(_) => {
            script.served += 1;
            (response("200 OK", page.as_bytes(), page.len()), true)
        }
        Behaviour::Refuse | Behaviour::Hang => return None,
        Behaviour::Reset => {
            drop(script);
            // Closing without a linger sends a reset in place of an end.
            let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
            return None;
        }
        Behaviour::OtherNames => {
            let page = page.replace("vllm:", "tgi:");
            (response("200 OK", page.as_bytes(), page.len()), true)
        }
        Behaviour::Duplicates => {
            let page = page.repeat(2);
            (response("200 OK", page.as_bytes(), page.len()), true)
        }
        Behaviour::Status500 => (response("500 Internal Server Error", b"oops\n", 5), true),
        Behaviour::Empty => (response("200 OK", b"", 0), true),
        Behaviour::Html => {
            let body = b"<!doctype html><html><body>Welcome to the portal</body></html>\n";
            (response("200 OK", body, body.len()), true)
        }
        Behaviour::Huge => {
            let body = b"garbage of no use to anyone 1.0\n".repeat(10 * 1024 * 1024 / 32);
            (response("200 OK", &body, body.len()), false)
        }
        Behaviour::Named(name) => {
            let page = page.replace("\"scripted\"", &format!("\"{name}\""));
            (response("200 OK", page.as_bytes(), page.len()), true)
        }
        Behaviour::Body(body) => (response("200 OK", body.as_bytes(), body.len()), true),
        Behaviour::Poison(value) => {
            let page = script.counters.page(Some(value));
            (response("200 OK", page.as_bytes(), page.len()), true)
        }
        Behaviour::Truncated => (response("200 OK", page.as_bytes(), page.len() + 1000), false),
        Behaviour::NotUtf8 => {
            let body = b"\xff\xfe\x00vllm:num_requests_running 1\n";
            (response("200 OK", body, body.len()), true)
        }
    })
}

fn response(status: &str, body: &[u8], announced: usize) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {announced}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}
