//! The thread behind a [`Watcher`](super::Watcher): takes events, reads the kernel's table, keeps the books.

mod reading;
mod source;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::sync::broadcast;

use super::ignored::Ignored;
use super::kernel::{KernelEvents, News};
use super::ledger::{Connection, Ledger};
use super::snapshot::Tables;
use super::state::Effect;
use super::{ConnectionError, Event, Kind, Published, Sabotage, SourceKind, WatchSettings, servers};
use crate::seldom::Seldom;
use source::Retry;

/// Events this fresh are not contradicted by a snapshot: the kernel tells of a change just before it makes it.
const FRESH: Duration = Duration::from_millis(50);

/// How soon after events the kernel is asked whether it lost any.
const LOSS_CHECK: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) enum Order {
    Stop,
    /// Whom to pass over, and whom to tell when that is done.
    Ignore(SocketAddr, mpsc::Sender<()>),
    /// What goes wrong, and whom to tell when it has begun.
    Sabotage(Sabotage, mpsc::Sender<()>),
}

pub(super) struct Worker {
    settings: WatchSettings,
    tables: Tables,
    chosen: Option<u32>,
    kernel: Option<KernelEvents>,
    ledgers: BTreeMap<u16, Book>,
    ignored: Ignored,
    /// Connections with an event of late, oldest first.
    fresh: VecDeque<(Instant, Connection)>,
    next_reading: Instant,
    next_loss_check: Option<Instant>,
    /// News from events since the last reading: what shows that events do come.
    heard: bool,
    /// The next reading may find differences that are no fault of the events.
    excused: bool,
    contradictions: u32,
    /// The best source there was at the start.
    best: SourceKind,
    retry: Retry,
    seldom: Seldom<Instant, String>,
    discard: bool,
    refuse_attach: bool,
    published: Arc<Mutex<Published>>,
    events: broadcast::Sender<Event>,
    orders: mpsc::Receiver<Order>,
    wake: Arc<OwnedFd>,
}

#[derive(Debug, Default)]
struct Book {
    ledger: Ledger,
    lost_by_program: u64,
}

impl Worker {
    /// Attaches, then reads the table: nothing falls in between.
    pub(super) fn new(
        settings: WatchSettings,
        events: broadcast::Sender<Event>,
        orders: mpsc::Receiver<Order>,
        wake: Arc<OwnedFd>,
    ) -> Result<Self, ConnectionError> {
        let tables = Tables::new(settings.netns.clone()).map_err(|error| {
            let remedy = "give a path like /run/netns/NAME or /proc/PID/ns/net";
            table_error(&settings, io::Error::new(error.kind(), format!("{error}; {remedy}")))
        })?;
        let (kernel, source) = Self::first_source(&settings);
        let best = source.kind();
        let published = Published { counts: BTreeMap::new(), source, trouble: None };
        let mut worker = Self {
            ledgers: settings.ports.iter().map(|port| (*port, Book::default())).collect(),
            chosen: tables.chosen(),
            tables,
            kernel,
            ignored: Ignored::default(),
            fresh: VecDeque::new(),
            next_reading: Instant::now(),
            next_loss_check: None,
            heard: false,
            excused: true,
            contradictions: 0,
            best,
            retry: Retry::new(&settings),
            seldom: Seldom::default(),
            discard: false,
            refuse_attach: false,
            published: Arc::new(Mutex::new(published)),
            events,
            orders,
            wake,
            settings,
        };
        match worker.read_table() {
            Ok(()) => {
                for note in servers::notes(&mut worker.tables, &worker.settings.ports) {
                    tracing::info!("connections: {note}");
                }
                Ok(worker)
            }
            Err(error) => Err(table_error(&worker.settings, error)),
        }
    }

    pub(super) fn published(&self) -> Arc<Mutex<Published>> {
        Arc::clone(&self.published)
    }

    pub(super) fn run(&mut self) {
        loop {
            self.wait();
            while let Ok(order) = self.orders.try_recv() {
                match order {
                    Order::Stop => return,
                    Order::Ignore(client, done) => {
                        self.ignore(client);
                        drop(done);
                    }
                    Order::Sabotage(sabotage, done) => self.sabotage(sabotage, done),
                }
            }
            let news = self.drain();
            self.take(&news);
            let now = Instant::now();
            if self.next_loss_check.is_some_and(|due| due <= now) {
                self.next_loss_check = None;
                if self.note_losses() {
                    self.next_reading = now;
                }
            }
            self.climb(now);
            self.warn_of_what_waited();
            if self.next_reading <= now {
                self.read_table_or_say();
            }
        }
    }

    /// Until there are events, an order or something to do.
    fn wait(&self) {
        let others = [self.next_loss_check, self.retry.due()].into_iter().flatten();
        let left = others.fold(self.next_reading, Instant::min).saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        let mut sources = vec![PollFd::new(&*self.wake, PollFlags::IN)];
        let rings = self.kernel.as_ref().map(KernelEvents::readable).unwrap_or_default();
        sources.extend(rings.iter().map(|ring| PollFd::new(ring, PollFlags::IN)));
        // Interrupted or not: what there is to do is looked up.
        let _ = rustix::event::poll(&mut sources, Some(&timeout));
        let _ = rustix::io::read(&*self.wake, &mut [0_u8; 8]);
    }

    fn drain(&mut self) -> Vec<News> {
        let mut news = self.kernel.as_mut().map(KernelEvents::drain).unwrap_or_default();
        news.retain(|one| !self.discard && counts(&self.settings, self.chosen, one.connection()));
        news
    }

    /// Puts news into the books and tells of them.
    fn take(&mut self, news: &[News]) {
        if news.is_empty() {
            return;
        }
        let at = Instant::now();
        while self.fresh.front().is_some_and(|(then, _)| at.duration_since(*then) > FRESH) {
            self.fresh.pop_front();
        }
        self.next_loss_check.get_or_insert(at + LOSS_CHECK);
        let mut told = Vec::with_capacity(news.len());
        for one in news {
            let kind = match one {
                News::Changed(_, Effect::Opened) => Kind::Opened,
                News::Changed(_, Effect::Closed) => Kind::Closed,
                News::Changed(_, Effect::Nothing) => continue,
                News::Sent(..) => Kind::Requested,
            };
            let connection = one.connection();
            if kind != Kind::Requested {
                self.fresh.push_back((at, *connection));
            }
            if self.passes_over(connection, kind) {
                continue;
            }
            let port = connection.local.port();
            let Some(Book { ledger, .. }) = self.ledgers.get_mut(&port) else { continue };
            let is_news = match one {
                News::Changed(_, effect) => {
                    let is_news = ledger.apply(*connection, *effect);
                    self.heard |= is_news;
                    is_news
                }
                News::Sent(_, at_ns) => ledger.request(*at_ns),
            };
            if is_news {
                told.push(Event { at, port, client: connection.remote, kind, open_now: ledger.open_now() });
            }
        }
        self.publish();
        self.tell(told);
    }

    /// Is this of a client that is ignored?
    fn passes_over(&mut self, connection: &Connection, kind: Kind) -> bool {
        match kind {
            Kind::Opened => self.ignored.sees_open(connection),
            Kind::Requested => self.ignored.hides(connection),
            Kind::Closed => {
                let ignored = self.ignored.sees_closed(connection);
                if ignored {
                    self.tell_kernel_to_ignore(connection.remote, false);
                }
                ignored
            }
        }
    }

    /// Passes over this client from now on.
    fn ignore(&mut self, client: SocketAddr) {
        // What happened before was told of rightly.
        let news = self.drain();
        self.take(&news);
        if let Some(oldest) = self.ignored.add(client, Instant::now()) {
            self.tell_kernel_to_ignore(oldest, false);
            // Its connection, if it has one, is found by the next reading.
            self.excused = true;
        }
        self.tell_kernel_to_ignore(client, true);
        for book in self.ledgers.values_mut() {
            for connection in book.ledger.strike(client) {
                self.ignored.sees_open(&connection);
            }
        }
        self.publish();
    }

    fn tell_kernel_to_ignore(&mut self, client: SocketAddr, ignore: bool) {
        let Some(kernel) = &mut self.kernel else { return };
        for port in &self.settings.ports {
            kernel.ignore(client, *port, ignore);
        }
    }

    fn tell(&self, events: Vec<Event>) {
        for event in events {
            // An error means that nobody listens.
            let _ = self.events.send(event);
        }
    }

    /// Asks for lost events; were there new ones?
    fn note_losses(&mut self) -> bool {
        let Some(kernel) = &mut self.kernel else { return false };
        let mut more = false;
        for (port, book) in &mut self.ledgers {
            let lost = kernel.lost(*port);
            let new = lost.saturating_sub(book.lost_by_program);
            book.ledger.totals.lost += new;
            book.lost_by_program = lost;
            more |= new > 0;
        }
        self.excused |= more;
        more
    }

    fn publish(&self) {
        let counts = self.ledgers.iter().map(|(port, book)| (*port, book.ledger.counts()));
        self.lock().counts = counts.collect();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Published> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sabotage(&mut self, sabotage: Sabotage, done: mpsc::Sender<()>) {
        match sabotage {
            Sabotage::Detach | Sabotage::DetachForGood => {
                self.refuse_attach = sabotage == Sabotage::DetachForGood;
                if let Some(kernel) = &mut self.kernel {
                    kernel.detach();
                }
            }
            Sabotage::Stall(time) => {
                drop(done);
                std::thread::sleep(time);
            }
            Sabotage::Discard(discard) => self.discard = discard,
            Sabotage::Mend => self.refuse_attach = false,
        }
    }
}

fn table_error(settings: &WatchSettings, error: io::Error) -> ConnectionError {
    match &settings.netns {
        Some(path) => ConnectionError::Namespace { path: path.clone(), error },
        None => ConnectionError::Table(error),
    }
}

/// Does this connection count under these settings?
fn counts(settings: &WatchSettings, chosen: Option<u32>, connection: &Connection) -> bool {
    let ip = connection.local.ip();
    settings.local_address.is_none_or(|address| address.to_canonical() == ip)
        && chosen.is_none_or(|chosen| chosen == connection.netns)
}
