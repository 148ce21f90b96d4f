//! The thread behind a [`Watcher`](super::Watcher): takes events, reads the kernel's table, keeps the books.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::sync::broadcast;

use super::ignored::Ignored;
use super::kernel::{KernelEvents, News};
use super::ledger::{Connection, Correction, Ledger, Snapshot};
use super::snapshot::Tables;
use super::state::Effect;
use super::{ConnectionError, Counts, Event, Kind, Published, Sabotage, Source, WatchSettings};

/// Events this fresh are not contradicted by a snapshot: the kernel tells of a change just before it makes it.
const FRESH: Duration = Duration::from_millis(50);

/// How soon after events the kernel is asked whether it lost any.
const LOSS_CHECK: Duration = Duration::from_millis(50);

/// How soon what a snapshot left open is looked at again.
const SETTLE: Duration = Duration::from_millis(100);

/// Readings of the table in a row that contradict the events without a loss to explain it, before events are given up.
const MOST_CONTRADICTIONS: u32 = 3;

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
    said_reattached: bool,
    said_trouble: bool,
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
    resyncs: u64,
    corrected: u64,
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
        let attached = if settings.force_polling {
            Err("polling was asked for".to_owned())
        } else {
            KernelEvents::attach(&settings)
        };
        let (kernel, source) = match attached {
            Ok(kernel) => {
                let source = kernel.source();
                (Some(kernel), source)
            }
            Err(why) => (None, Source::Polling { every: settings.poll_every, why }),
        };
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
            said_reattached: false,
            said_trouble: false,
            discard: false,
            refuse_attach: false,
            published: Arc::new(Mutex::new(published)),
            events,
            orders,
            wake,
            settings,
        };
        match worker.read_table() {
            Ok(()) => Ok(worker),
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
            if self.next_reading <= now {
                self.read_table_or_say();
            }
        }
    }

    /// Until there are events, an order or something to do.
    fn wait(&self) {
        let due = self.next_loss_check.map_or(self.next_reading, |check| check.min(self.next_reading));
        let left = due.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        let mut sources = vec![PollFd::new(&*self.wake, PollFlags::IN)];
        let ring = self.kernel.as_ref().map(KernelEvents::readable);
        sources.extend(ring.as_ref().map(|ring| PollFd::new(ring, PollFlags::IN)));
        // Interrupted or not: what there is to do is looked up.
        let _ = rustix::event::poll(&mut sources, Some(&timeout));
        let _ = rustix::io::read(&*self.wake, &mut [0_u8; 8]);
    }

    fn drain(&mut self) -> Vec<News> {
        let mut news = Vec::new();
        let Some(kernel) = &mut self.kernel else { return news };
        while let Some(one) = kernel.next() {
            let (News::Changed(connection, _) | News::Sent(connection, _)) = &one;
            if !self.discard && counts(&self.settings, self.chosen, connection) {
                news.push(one);
            }
        }
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
            let (News::Changed(connection, _) | News::Sent(connection, _)) = one;
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
        let Some(kernel) = &self.kernel else { return false };
        let mut more = false;
        for (port, book) in &mut self.ledgers {
            let lost = kernel.lost(*port);
            let new = lost.saturating_sub(book.lost_by_program);
            book.ledger.add_lost(new);
            book.lost_by_program = lost;
            more |= new > 0;
        }
        self.excused |= more;
        more
    }

    fn read_table_or_say(&mut self) {
        match self.read_table() {
            Ok(()) => self.said_trouble = false,
            Err(error) => {
                self.next_reading = Instant::now() + self.period();
                let trouble = format!("the kernel's table of sockets cannot be read: {error}");
                if !std::mem::replace(&mut self.said_trouble, true) {
                    tracing::warn!("connections: {trouble}; what is known of them may be old");
                }
                self.lock().trouble = Some(trouble);
            }
        }
    }

    fn period(&self) -> Duration {
        if self.kernel.is_some() { self.settings.resync_every } else { self.settings.poll_every }
    }

    /// Compares the books with the kernel's table.
    fn read_table(&mut self) -> io::Result<()> {
        // Losses until here are made up for by what is read now, those noticed afterwards by another reading.
        self.note_losses();
        let before = self.drain();
        self.take(&before);
        let begun = Instant::now();
        self.chosen = self.tables.chosen();
        let mut snapshots = self.tables.read(&self.settings.ports, begun)?;
        let blind = self.blind(&snapshots)?;
        // What happened meanwhile may or may not be in the snapshot; its events, applied afterwards, settle it.
        let meanwhile = self.drain();
        let excused = std::mem::take(&mut self.excused);
        let lost = self.note_losses();
        let on_their_way: HashSet<Connection> = meanwhile
            .iter()
            .filter_map(|news| match news {
                News::Changed(connection, _) => Some(*connection),
                News::Sent(..) => None,
            })
            .collect();
        let fresh = self.fresh.iter().filter(|(then, _)| begun.duration_since(*then) <= FRESH);
        let moving: HashSet<Connection> =
            fresh.map(|(_, connection)| *connection).chain(on_their_way.iter().copied()).collect();

        let (mut told, mut differences, mut unsettled) = (Vec::new(), 0, lost);
        let mut forgotten = self.ignored.expire(begun);
        let polling = self.kernel.is_none();
        for (port, book) in &mut self.ledgers {
            let mut snapshot = snapshots.remove(port).unwrap_or_default();
            snapshot.open.retain(|connection| counts(&self.settings, self.chosen, connection));
            forgotten.extend(self.ignored.keep_open(&snapshot, *port, &moving));
            snapshot.open.retain(|connection| !self.ignored.sees_open(connection));
            let correction = book.ledger.resync(&snapshot, &moving);
            told.extend(as_events(&correction, book.ledger.open_now()));
            unsettled |= correction.unsettled.iter().any(|one| !on_their_way.contains(one));
            book.resyncs += 1;
            // What is found at the start, or by polling, is no mistake.
            if !polling && book.resyncs > 1 {
                book.corrected += correction.len() as u64;
                differences += correction.len();
            }
        }
        for client in forgotten {
            self.tell_kernel_to_ignore(client, false);
        }
        self.next_reading = begun + if unsettled { SETTLE.min(self.period()) } else { self.period() };
        self.lock().trouble = blind;
        self.publish();
        self.tell(told);
        self.take(&meanwhile);
        if !polling {
            self.judge(differences, excused || lost);
        }
        Ok(())
    }

    /// What the reading could not see, if it matters.
    ///
    /// # Errors
    /// Nothing else tells of the chosen namespace.
    fn blind(&self, snapshots: &BTreeMap<u16, Snapshot>) -> io::Result<Option<String>> {
        let Some(chosen) = self.chosen else { return Ok(None) };
        if snapshots.values().all(|snapshot| snapshot.complete) {
            return Ok(None);
        }
        let why = format!(
            "no process in network namespace {chosen} can be looked at; run as root with all capabilities, or grant \
             CAP_SYS_PTRACE"
        );
        if self.kernel.is_none() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        Ok(Some(format!("{why}; its connections are known from events alone")))
    }

    /// Can the events still be trusted, if a reading of the table found `differences`?
    fn judge(&mut self, differences: usize, excused: bool) {
        let heard = std::mem::take(&mut self.heard);
        if differences == 0 || excused {
            if heard && !excused {
                self.contradictions = 0;
            }
            return;
        }
        self.contradictions += 1;
        let said = "the kernel's events did not tell of every connection";
        let attached = if self.contradictions >= MOST_CONTRADICTIONS {
            Err(format!("{said}, though attached anew; is another program detaching it?"))
        } else if self.refuse_attach {
            Err("attaching was refused for a test".to_owned())
        } else {
            // The old one goes first: two would tell everything twice.
            self.kernel = None;
            KernelEvents::attach(&self.settings)
        };
        match attached {
            Ok(kernel) => {
                if !std::mem::replace(&mut self.said_reattached, true) {
                    tracing::warn!("connections: {said}; attached anew");
                }
                self.lock().source = kernel.source();
                self.kernel = Some(kernel);
                for client in self.ignored.clients().collect::<Vec<_>>() {
                    self.tell_kernel_to_ignore(client, true);
                }
                for book in self.ledgers.values_mut() {
                    book.lost_by_program = 0;
                }
                // What happened between is found by one more reading.
                self.excused = true;
                self.next_reading = Instant::now();
            }
            Err(why) => {
                let source = Source::Polling { every: self.settings.poll_every, why };
                tracing::warn!("connections: now watched through {source}");
                self.kernel = None;
                self.next_reading = Instant::now();
                self.lock().source = source;
            }
        }
    }

    fn publish(&self) {
        let counts = self.ledgers.iter().map(|(port, book)| {
            let ledger = &book.ledger;
            let counts = Counts {
                open: ledger.open_now(),
                opened_total: ledger.opened_total(),
                closed_total: ledger.closed_total(),
                requests_total: ledger.requests_total(),
                lost: ledger.lost(),
                resyncs: book.resyncs,
                corrected: book.corrected,
            };
            (*port, counts)
        });
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
    settings.families.contains(ip)
        && settings.local_address.is_none_or(|address| address.to_canonical() == ip)
        && chosen.is_none_or(|chosen| chosen == connection.netns)
}

/// A correction as events: opened ones first, so that none says 0 unless it is so.
fn as_events(correction: &Correction, open_after: u32) -> Vec<Event> {
    let at = Instant::now();
    let (opened, closed) = (&correction.opened, &correction.closed);
    let before = (u64::from(open_after) + closed.len() as u64).saturating_sub(opened.len() as u64);
    let mut open = u32::try_from(before).unwrap_or(u32::MAX);
    let opened = opened.iter().map(|connection| (Kind::Opened, connection));
    let closed = closed.iter().map(|connection| (Kind::Closed, connection));
    let events = opened.chain(closed).map(|(kind, connection)| {
        open = if kind == Kind::Closed { open.saturating_sub(1) } else { open.saturating_add(1) };
        Event { at, port: connection.local.port(), client: connection.remote, kind, open_now: open }
    });
    events.collect()
}
