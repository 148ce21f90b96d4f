//! Watches connections to TCP ports at the server's side: opened, closed, open now.
//!
//! Three sources. The best one is a BPF program on the kernel's `inet_sock_set_state` tracepoint ([`Source::KernelEvents`]):
//! it tells of every connection, however short, within a fraction of a millisecond, in all network namespaces. Where it
//! cannot be had, the same tracepoint is listened to through `perf_event_open` ([`Source::PerfEvents`]), and where
//! that cannot be had, the kernel's table of sockets is polled ([`Source::Polling`]); no rights are needed for this, and connections
//! shorter than the period may be missed. In any case the kernel's table has the last word: it is read at the start and
//! from time to time, and sets the count right.
//!
//! A connection is no request: clients keep connections open between requests. Nothing is open -> nothing is asked; the
//! opposite does not follow. With kernel events a second program, on `tcp_probe`, tells of clients that send over
//! connections that are open ([`Kind::Requested`]).

mod ignored;
mod kernel;
pub(crate) mod ledger;
mod memory;
mod servers;
mod settings;
mod snapshot;
pub(crate) mod state;
mod worker;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::broadcast;

pub use servers::notes_on_servers;
pub use settings::{ConnectionError, SourceKind, WatchSettings};
pub(crate) use snapshot::listening;
use worker::{Order, Worker};

/// Events kept for a receiver that is slow; it is told how many it has missed.
const EVENTS_KEPT: usize = 4096;

/// What happened to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A client has connected.
    Opened,
    /// Either side has ended the connection.
    Closed,
    /// A client has sent something over an open connection, the first for 10 ms at this port.
    ///
    /// A request that comes with the last part of the handshake, or before it (`TCP_DEFER_ACCEPT`, TCP Fast Open), makes
    /// [`Opened`](Self::Opened) alone: an opening is to be taken for a request too.
    Requested,
}

/// A connection opened or closed, or a client sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// When agft learnt of it.
    pub at: Instant,
    /// The server's port.
    pub port: u16,
    /// The client's end.
    pub client: SocketAddr,
    /// What happened.
    pub kind: Kind,
    /// Connections to this port that are open after it.
    pub open_now: u32,
}

/// What is known of a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections open now.
    pub open: u32,
    /// Connections seen open so far, those found at the start included.
    pub opened_total: u64,
    /// Connections seen to close so far, those that came to be ignored while open included.
    pub closed_total: u64,
    /// Times that clients sent over open connections so far, anything within 10 ms counted once. Stays as it is where
    /// the source does not tell of requests.
    pub requests_total: u64,
    /// Events the kernel had no room for; each loss is followed by a reading of its table.
    pub lost: u64,
    /// Readings of the kernel's table so far.
    pub resyncs: u64,
    /// Connections that a reading had to set right. Polling has none: there readings are the source.
    pub corrected: u64,
}

/// Where the events come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// From the kernel, as they happen.
    KernelEvents {
        /// Are requests over open connections told of too?
        requests: bool,
    },
    /// From the kernel, as they happen, without the namespaces they happen in, and without requests.
    PerfEvents {
        /// Why there is nothing better, and what would help.
        why: String,
    },
    /// From comparing what the kernel's table has at regular intervals.
    Polling {
        /// The interval.
        every: Duration,
        /// Why there are no events from the kernel, and what would help.
        why: String,
    },
}

impl Source {
    /// Its kind.
    pub fn kind(&self) -> SourceKind {
        match self {
            Self::KernelEvents { .. } => SourceKind::KernelEvents,
            Self::PerfEvents { .. } => SourceKind::PerfEvents,
            Self::Polling { .. } => SourceKind::Polling,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KernelEvents { requests: true } => {
                write!(f, "kernel events (BPF on inet_sock_set_state, on tcp_probe for requests)")
            }
            Self::KernelEvents { requests: false } => write!(
                f,
                "kernel events (BPF on inet_sock_set_state); requests over open connections are not seen, as nothing \
                 could be attached to tcp_probe"
            ),
            Self::PerfEvents { why } => write!(
                f,
                "perf events (tracepoint inet_sock_set_state; requests over open connections are not seen), as BPF \
                 programs cannot be had: {why}"
            ),
            Self::Polling { every, why } => {
                let ms = every.as_millis();
                write!(f, "the socket table, every {ms} ms, as kernel events cannot be had: {why}")
            }
        }
    }
}

/// Which source [`Watcher::start`] would use here; the program is loaded and taken away again.
pub fn probe() -> Source {
    let settings = WatchSettings::default();
    match kernel::KernelEvents::attach(&settings, SourceKind::KernelEvents, SourceKind::Polling) {
        Ok((_, source)) => source,
        Err(why) => Source::Polling { every: settings.poll_every, why },
    }
}

#[derive(Debug)]
struct Published {
    counts: BTreeMap<u16, Counts>,
    source: Source,
    trouble: Option<String>,
}

/// Watches ports in a thread of its own until dropped.
#[derive(Debug)]
pub struct Watcher {
    published: Arc<Mutex<Published>>,
    events: broadcast::Sender<Event>,
    orders: mpsc::Sender<Order>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Begins to watch; connections already open are counted when this returns.
    /// Errors: [`ConnectionError`]: the settings make no sense, or not even the kernel's table can be read.
    pub fn start(settings: WatchSettings) -> Result<Self, ConnectionError> {
        settings.check()?;
        let (events, _) = broadcast::channel(EVENTS_KEPT);
        let (orders, received) = mpsc::channel();
        let wake = rustix::event::eventfd(
            0,
            rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK,
        );
        let wake = Arc::new(wake.map_err(|error| ConnectionError::Thread(error.into()))?);
        let mut worker = Worker::new(settings, events.clone(), received, Arc::clone(&wake))?;
        let published = worker.published();
        let thread = std::thread::Builder::new().name("connections".to_owned()).spawn(move || worker.run());
        let thread = Some(thread.map_err(ConnectionError::Thread)?);
        Ok(Self { published, events, orders, wake, thread })
    }

    /// Events from now on. A receiver that falls 4096 events behind is told so by the channel and goes on with newer ones;
    /// [`counts`](Self::counts) is right all the same.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// What is known of each port; never older than the last event handed out.
    pub fn counts(&self) -> BTreeMap<u16, Counts> {
        self.lock().counts.clone()
    }

    /// Passes over this client from when this returns until its connection has closed: no event tells of it, and it is
    /// not counted as open. For agft's own requests. At most 64 at once; a new one takes the place of the oldest.
    ///
    /// Said before the client connects (a socket can be bound first), nothing is told of it at all. The client is its end
    /// as the server sees it, which address translation may have changed.
    pub fn ignore(&self, client: SocketAddr) {
        let (done, wait) = mpsc::channel();
        self.order(Order::Ignore(SocketAddr::new(client.ip().to_canonical(), client.port()), done));
        // An error means that the thread has ended.
        let _ = wait.recv();
    }

    /// Connections open now, all ports together.
    pub fn open_now(&self) -> u32 {
        self.lock().counts.values().map(|counts| counts.open).sum()
    }

    /// Connections open now, at these ports together.
    pub(crate) fn open_at(&self, ports: &[u16]) -> u32 {
        let state = self.lock();
        ports.iter().filter_map(|port| state.counts.get(port)).map(|counts| counts.open).sum()
    }

    /// Where the events come from at the moment.
    pub fn source(&self) -> Source {
        self.lock().source.clone()
    }

    /// Why the last reading of the kernel's table failed, if it did: what is known may then be old.
    pub fn trouble(&self) -> Option<String> {
        self.lock().trouble.clone()
    }

    /// For tests: lets something go wrong.
    #[doc(hidden)]
    pub fn sabotage(&self, sabotage: Sabotage) {
        let (done, wait) = mpsc::channel();
        self.order(Order::Sabotage(sabotage, done));
        let _ = wait.recv();
    }

    fn order(&self, order: Order) {
        // An error means that the thread has ended.
        let _ = self.orders.send(order);
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }

    fn lock(&self) -> MutexGuard<'_, Published> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.order(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What tests let go wrong.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// The program is taken off its tracepoint behind the watcher's back.
    Detach,
    /// As that, and it cannot be attached again.
    DetachForGood,
    /// The thread does not get to run for a while, so that the ring fills up.
    Stall(Duration),
    /// Events are thrown away unseen, or not any more.
    Discard(bool),
    /// It can be attached again.
    Mend,
}
