//! Scrapes on a schedule of its own, so that a slow page never delays a tick.
//!
//! A request starts shortly before each tick, early enough for the page to be there when the tick comes, late enough
//! that the window it closes belongs almost wholly to the clocks that ran in it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::clock::Clock;
use crate::control::Scrape;
use crate::metrics::scrape::Scraper;
use crate::metrics::{Snapshot, health};
use crate::units::{Seconds, Time};

/// Something that can be scraped.
pub trait Source: Send + 'static {
    /// One page, with instants of `clock`; the error is for humans. While it is `quiet`, nothing but the page could show
    /// work: an engine to which a scrape is work is left alone.
    fn fetch(&self, clock: Clock, quiet: bool) -> impl Future<Output = Result<Snapshot, String>> + Send;

    /// This end of the connection that the last page came over, where that is known.
    fn own_address(&self) -> Option<SocketAddr> {
        None
    }
}

/// The servers of a group, by name: all are asked at once, and one that fails fails for all.
pub struct Servers<S>(Vec<(String, S)>);

impl<S: Source + Sync> Servers<S> {
    /// Servers with these names.
    pub fn new(servers: Vec<(String, S)>) -> Self {
        Self(servers)
    }

    async fn fetch(&self, clock: Clock, quiet: bool) -> Scrape {
        if let [(_, only)] = self.0.as_slice() {
            return only
                .fetch(clock, quiet)
                .await
                .map_or_else(Scrape::Failed, |page| Scrape::Page(Box::new(page)));
        }
        let answers = join_all(self.0.iter().map(|(_, server)| server.fetch(clock, quiet))).await;
        let (mut pages, mut failures) = (Vec::new(), Vec::new());
        for ((name, _), answer) in self.0.iter().zip(answers) {
            match answer {
                Ok(mut page) if health::tells_of_work(&page.signals) => {
                    page.refused.iter_mut().for_each(|value| *value = format!("{name}: {value}"));
                    pages.push(page);
                }
                Ok(_) => failures.push(format!("{name}: the page tells of neither requests nor tokens")),
                Err(why) => failures.push(format!("{name}: {why}")),
            }
        }
        if failures.is_empty() { Scrape::Pages(pages) } else { Scrape::Failed(failures.join("; ")) }
    }

    fn own_addresses(&self) -> Vec<SocketAddr> {
        self.0.iter().filter_map(|(_, server)| server.own_address()).collect()
    }
}

impl Source for Scraper {
    async fn fetch(&self, clock: Clock, quiet: bool) -> Result<Snapshot, String> {
        self.fetch_snapshot(|| clock.now(), quiet).await.map_err(|error| error.to_string())
    }

    fn own_address(&self) -> Option<SocketAddr> {
        Scraper::own_address(self)
    }
}

/// Start of the tick schedule and its period: tick `k` is at `start + k * period`.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// Tick 0.
    pub start: Time,
    /// Between ticks.
    pub period: Seconds,
}

impl Schedule {
    /// The first tick at or after `now`.
    pub fn next(&self, now: Time) -> Time {
        let passed = (now.since(self.start).0 / self.period.0).ceil().max(0.0);
        Time(self.start.0 + passed * self.period.0)
    }
}

/// How long before its tick a request starts: the slowest recent answer and some, forgotten slowly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Lead {
    seconds: f64,
    longest: f64,
}

impl Lead {
    const SHORTEST: f64 = 0.005;
    /// Share of the lead that survives each fast answer.
    const MEMORY: f64 = 0.97;

    /// For ticks `period` apart; never more than a quarter of it.
    pub(crate) fn new(period: Seconds) -> Self {
        let longest = 0.25 * period.0;
        Self { seconds: longest.min(0.02), longest }
    }

    /// An answer took this long.
    pub(crate) fn answered_in(&mut self, latency: Seconds) {
        let wanted = 1.2 * latency.0 + 0.004;
        self.seconds =
            wanted.max(Self::MEMORY * self.seconds).clamp(Self::SHORTEST.min(self.longest), self.longest);
    }

    /// The lead now.
    pub(crate) fn get(&self) -> Seconds {
        Seconds(self.seconds)
    }
}

/// The newest answer, until it is taken.
#[derive(Default)]
struct Slot {
    answer: Mutex<Option<Scrape>>,
    own_addresses: Mutex<Vec<SocketAddr>>,
    arrived: Notify,
    /// Nothing but a page could show work.
    quiet: AtomicBool,
}

/// Handle of the scraping task; it ends when this is dropped.
pub struct Feed {
    slot: Arc<Slot>,
    task: JoinHandle<()>,
}

impl Feed {
    /// Starts scraping `servers` for the ticks of `schedule`.
    pub fn spawn<S: Source + Sync>(servers: Servers<S>, schedule: Schedule, clock: Clock) -> Self {
        let slot = Arc::new(Slot::default());
        let task = tokio::spawn(run(servers, schedule, clock, Arc::clone(&slot)));
        Self { slot, task }
    }

    /// What came since the last call.
    pub fn take(&self) -> Scrape {
        self.slot.answer.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or(Scrape::Pending)
    }

    /// Says whether nothing but a page could show work from now on.
    pub(crate) fn set_quiet(&self, quiet: bool) {
        self.slot.quiet.store(quiet, Ordering::Relaxed);
    }

    /// This end of each connection that the last pages came over, where that is known.
    pub(crate) fn own_addresses(&self) -> Vec<SocketAddr> {
        self.slot.own_addresses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the next answer.
    pub async fn arrived(&self) {
        self.slot.arrived.notified().await;
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run<S: Source + Sync>(servers: Servers<S>, schedule: Schedule, clock: Clock, slot: Arc<Slot>) {
    let mut lead = Lead::new(schedule.period);
    let mut tick = schedule.next(clock.now());
    loop {
        tokio::time::sleep_until(clock.instant(tick - lead.get())).await;
        let asked_at = clock.now();
        let scrape = servers.fetch(clock, slot.quiet.load(Ordering::Relaxed)).await;
        if let Some(latency) = scrape.latency() {
            lead.answered_in(latency);
        }
        *slot.own_addresses.lock().unwrap_or_else(PoisonError::into_inner) = servers.own_addresses();
        *slot.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(scrape);
        slot.arrived.notify_one();
        // One request per tick, however fast the answer came.
        let earliest = asked_at + Seconds(0.5 * schedule.period.0);
        let after = Time(tick.0 + 0.5 * schedule.period.0);
        tick = schedule.next(Time(earliest.0.max(after.0).max(clock.now().0)));
    }
}

/// Waits until `time` of the clock.
pub async fn sleep_until(clock: Clock, time: Time) {
    let now = clock.now();
    if time > now {
        tokio::time::sleep(Duration::from_secs_f64(time.since(now).0)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Signals;

    #[test]
    fn lead_follows_the_slowest_recent_answer_within_a_quarter_of_the_period() {
        let mut lead = Lead::new(Seconds(0.3));
        lead.answered_in(Seconds(0.03));
        approx::assert_relative_eq!(lead.get().0, 1.2 * 0.03 + 0.004, max_relative = 1e-12);
        lead.answered_in(Seconds(0.002));
        approx::assert_relative_eq!(lead.get().0, 0.97 * 0.04, max_relative = 1e-12);
        lead.answered_in(Seconds(5.0));
        approx::assert_relative_eq!(lead.get().0, 0.075, max_relative = 1e-12);
    }

    #[test]
    fn schedule_gives_the_next_multiple() {
        let schedule = Schedule { start: Time(1.0), period: Seconds(0.3) };
        approx::assert_relative_eq!(schedule.next(Time(0.0)).0, 1.0);
        approx::assert_relative_eq!(schedule.next(Time(1.35)).0, 1.6, max_relative = 1e-12);
    }

    struct Counting(Arc<Mutex<Vec<Time>>>, Duration);

    impl Source for Counting {
        async fn fetch(&self, clock: Clock, _quiet: bool) -> Result<Snapshot, String> {
            self.0.lock().unwrap().push(clock.now());
            tokio::time::sleep(self.1).await;
            Ok(Snapshot {
                at: clock.now(),
                latency: Seconds(self.1.as_secs_f64()),
                signals: Signals::default(),
                refused: Vec::new(),
                engine: None,
            })
        }
    }

    struct Server(Result<f64, &'static str>);

    impl Source for Server {
        async fn fetch(&self, clock: Clock, _quiet: bool) -> Result<Snapshot, String> {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let signals = Signals { running: Some(self.0?), ..Signals::default() };
            let (at, latency) = (clock.now(), Seconds(0.01));
            Ok(Snapshot { at, latency, signals, refused: vec!["x: NaN".into()], engine: None })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn servers_are_asked_at_once_and_one_that_fails_is_named() {
        let ask = |chat, code| {
            let servers = [("chat", Server(chat)), ("code", Server(code))];
            Servers::new(servers.map(|(name, server)| (name.to_owned(), server)).into())
        };
        let clock = Clock::start();
        let scrape = ask(Ok(1.0), Ok(2.0)).fetch(clock, false).await;
        assert!(clock.now().0 < 0.015, "one after the other");
        assert_eq!(scrape.each().len(), 2);
        let whole = scrape.whole().unwrap().into_owned();
        assert_eq!(whole.signals.running, Some(3.0));
        assert_eq!(whole.refused, ["chat: x: NaN", "code: x: NaN"]);
        let scrape = ask(Ok(1.0), Err("connection refused")).fetch(clock, false).await;
        assert_eq!(scrape, Scrape::Failed("code: connection refused".into()));
    }

    async fn requests_in(seconds: f64, latency: Duration) -> Vec<Time> {
        let clock = Clock::start();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let schedule = Schedule { start: Time(0.3), period: Seconds(0.3) };
        let servers = Servers::new(vec![("chat".into(), Counting(Arc::clone(&asked), latency))]);
        let feed = Feed::spawn(servers, schedule, clock);
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        drop(feed);
        let asked = asked.lock().unwrap();
        asked.clone()
    }

    #[tokio::test(start_paused = true)]
    async fn page_is_asked_for_once_per_tick_shortly_before_it() {
        let asked = requests_in(3.0, Duration::from_millis(5)).await;
        assert_eq!(asked.len(), 10, "{asked:?}");
        for (k, at) in asked.iter().enumerate() {
            let before = 0.3 * (k as f64 + 1.0) - at.0;
            assert!((0.004..=0.03).contains(&before), "request {k} came {before} s before its tick");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answer_slower_than_the_period_skips_ticks_instead_of_piling_up() {
        let asked = requests_in(6.0, Duration::from_millis(700)).await;
        assert!((6..=8).contains(&asked.len()), "{asked:?}");
    }
}
