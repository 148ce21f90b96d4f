//! Is the endpoint there, and does it say what agft needs? A state machine over scrape outcomes and instants.
//!
//! An outage is not idleness: a server that cannot be scraped may be in the middle of its heaviest batch. The caller
//! gives the clocks back on [`Event::Outage`] and keeps trying.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Signal, Signals};
use crate::engine::Profile;
use crate::engine::table::{Appears, absent};
use crate::units::{Seconds, Time};

/// How long tokens may flow before a latency histogram that is still missing is called missing: the first request's
/// first token is counted before its second one can be timed.
const GRACE: Seconds = Seconds(10.0);

/// What the endpoint is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// No good page yet, and not waited for long.
    Starting,
    /// Good pages with every signal.
    Healthy,
    /// Good pages on which signals are missing.
    Degraded,
    /// No good page for `outage_after`.
    Outage,
}

/// A change worth a log line or an action.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Signals are missing; each is named once until the next outage.
    Degraded {
        /// Those without which nothing can be learned.
        essential: Vec<Signal>,
        /// Those that only make the picture poorer.
        useful: Vec<Signal>,
    },
    /// No good page for `outage_after`. Said once.
    Outage {
        /// When the last good page came, or when the waiting began.
        since: Time,
        /// What the last attempt met.
        why: String,
    },
    /// A good page after an outage.
    Recovered {
        /// How long there was none.
        after: Seconds,
    },
}

/// The state machine. It reads no clock: every call brings its instant.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Health {
    outage_after: Seconds,
    status: Status,
    last_good: Time,
    last_failure: Option<String>,
    tokens_since: Option<Time>,
    named: BTreeSet<Signal>,
}

impl Health {
    /// Begins to wait for a page at `now`; without a good one for `outage_after`, the endpoint is out.
    #[must_use]
    pub fn new(now: Time, outage_after: Seconds) -> Self {
        Self {
            outage_after,
            status: Status::Starting,
            last_good: now,
            last_failure: None,
            tokens_since: None,
            named: BTreeSet::new(),
        }
    }

    /// What the endpoint is like since the last call.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// A good page of this engine came at `at`.
    pub fn page(&mut self, at: Time, signals: &Signals, engine: &Profile) -> Vec<Event> {
        let mut events = Vec::new();
        if self.status == Status::Outage {
            events.push(Event::Recovered { after: at.since(self.last_good) });
            self.named.clear();
            self.tokens_since = None;
        }
        self.last_good = at;
        self.last_failure = None;
        let missing = missing(engine, signals, self.tokens_flowed(at, signals));
        self.status = if missing.is_empty() { Status::Healthy } else { Status::Degraded };
        let (essential, useful): (Vec<Signal>, Vec<Signal>) =
            missing.into_iter().filter(|signal| self.named.insert(*signal)).partition(|s| s.is_essential());
        if !(essential.is_empty() && useful.is_empty()) {
            events.push(Event::Degraded { essential, useful });
        }
        events
    }

    /// A scrape failed at `now`.
    pub fn failed(&mut self, now: Time, why: impl Into<String>) -> Option<Event> {
        self.last_failure = Some(why.into());
        self.check(now)
    }

    /// Time passed, perhaps with a scrape still hanging.
    pub fn check(&mut self, now: Time) -> Option<Event> {
        if self.status == Status::Outage || now.since(self.last_good) < self.outage_after {
            return None;
        }
        self.status = Status::Outage;
        let why = self.last_failure.clone().unwrap_or_else(|| "the scrape has not been answered".to_owned());
        Some(Event::Outage { since: self.last_good, why })
    }

    /// How long tokens have been counted.
    fn tokens_flowed(&mut self, at: Time, signals: &Signals) -> Traffic {
        if signals.generation_tokens.is_none_or(|tokens| tokens <= 0.0) {
            self.tokens_since = None;
            return Traffic::None;
        }
        let since = *self.tokens_since.get_or_insert(at);
        let resting = signals.running.zip(signals.waiting).is_some_and(|(r, w)| r + w <= 0.0);
        if resting {
            Traffic::Rested
        } else if at.since(since) >= GRACE {
            Traffic::Steady
        } else {
            Traffic::Young
        }
    }
}

/// Does the page tell whether there is work? One that does not is no good page, however well it reads.
#[must_use]
pub fn tells_of_work(signals: &Signals) -> bool {
    signals.running.is_some() || signals.generation_tokens.is_some()
}

/// What the engine has been through, which decides what its page must have by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Traffic {
    /// Not a token yet.
    None,
    /// The first tokens.
    Young,
    /// Tokens for a while.
    Steady,
    /// Tokens, and now nothing runs: requests have finished.
    Rested,
}

impl Traffic {
    /// The traffic that a single page tells of.
    pub(super) fn of(signals: &Signals) -> Self {
        Health::new(Time(0.0), GRACE).tokens_flowed(Time(0.0), signals)
    }
}

/// The signals that a page of this engine should have after this much traffic, and does not.
pub(super) fn missing(engine: &Profile, signals: &Signals, traffic: Traffic) -> Vec<Signal> {
    let due = |appears| match appears {
        Appears::AtStart => true,
        Appears::WithTokens => traffic >= Traffic::Steady,
        Appears::WithFinished => traffic >= Traffic::Rested,
        Appears::Perhaps => false,
    };
    absent(engine, signals).filter(|(_, appears)| due(*appears)).map(|(signal, _)| signal).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Histogram;
    use super::*;
    use crate::engine::usual;

    fn complete() -> Signals {
        let histogram = Some(Histogram { sum: 1.0, count: 100.0, buckets: vec![] });
        Signals {
            running: Some(4.0),
            waiting: Some(0.0),
            kv_usage: Some(0.1),
            prompt_tokens: Some(500.0),
            generation_tokens: Some(100.0),
            prefix_queries: Some(500.0),
            prefix_hits: Some(0.0),
            preemptions: Some(0.0),
            finished: Some(3.0),
            step_tokens: histogram.clone(),
            ttft: histogram.clone(),
            itl: histogram.clone(),
            request_tpot: None,
            e2e: histogram,
            process_start: None,
        }
    }

    fn health() -> Health {
        Health::new(Time(0.0), Seconds(3.0))
    }

    #[test]
    fn complete_page_is_healthy_and_says_nothing() {
        let mut health = health();
        assert_eq!(health.status(), Status::Starting);
        assert_eq!(health.page(Time(0.3), &complete(), usual()), []);
        assert_eq!(health.status(), Status::Healthy);
    }

    #[test]
    fn failures_become_an_outage_only_after_the_set_time_and_are_said_once() {
        let mut health = health();
        health.page(Time(1.0), &complete(), usual());
        assert_eq!(health.failed(Time(1.3), "refused"), None);
        assert_eq!(health.failed(Time(3.9), "timed out"), None);
        assert_eq!(health.status(), Status::Healthy);
        let outage = Event::Outage { since: Time(1.0), why: "refused".into() };
        assert_eq!(health.failed(Time(4.0), "refused"), Some(outage));
        assert_eq!(health.failed(Time(4.3), "refused"), None);
        assert_eq!(health.status(), Status::Outage);
    }

    #[test]
    fn hanging_scrape_is_an_outage_too() {
        let mut health = health();
        health.page(Time(1.0), &complete(), usual());
        assert_eq!(health.check(Time(3.9)), None);
        let event = health.check(Time(4.0));
        assert!(
            matches!(event, Some(Event::Outage { since: Time(1.0), ref why }) if why.contains("not been answered"))
        );
    }

    #[test]
    fn server_that_never_answers_is_out_from_the_start() {
        let event = health().failed(Time(3.0), "refused");
        assert_eq!(event, Some(Event::Outage { since: Time(0.0), why: "refused".into() }));
    }

    #[test]
    fn good_page_ends_the_outage_and_tells_how_long_it_was() {
        let mut health = health();
        health.page(Time(1.0), &complete(), usual());
        health.failed(Time(5.0), "refused");
        assert_eq!(
            health.page(Time(61.0), &complete(), usual()),
            [Event::Recovered { after: Seconds(60.0) }]
        );
        assert_eq!(health.status(), Status::Healthy);
        assert_eq!(health.check(Time(62.0)), None);
    }

    #[test]
    fn single_good_page_starts_the_wait_anew() {
        let mut health = health();
        for at in [0.0, 2.9, 5.8, 8.7] {
            assert_eq!(health.failed(Time(at), "refused"), None);
            assert_eq!(health.page(Time(at), &complete(), usual()), []);
        }
    }

    #[test]
    fn missing_signals_are_named_once_and_sorted_by_need() {
        let mut health = health();
        let page = Signals { prefix_hits: None, prompt_tokens: None, ..complete() };
        let named =
            Event::Degraded { essential: vec![Signal::PromptTokens], useful: vec![Signal::PrefixHits] };
        assert_eq!(health.page(Time(0.3), &page, usual()), [named]);
        assert_eq!(health.page(Time(0.6), &page, usual()), []);
        assert_eq!(health.status(), Status::Degraded);
        assert_eq!(health.page(Time(0.9), &complete(), usual()), []);
        assert_eq!(health.status(), Status::Healthy);
        assert_eq!(health.page(Time(1.2), &page, usual()), []);
    }

    #[test]
    fn missing_signals_are_named_again_after_an_outage() {
        let mut health = health();
        let page = Signals { preemptions: None, ..complete() };
        let named = Event::Degraded { essential: vec![], useful: vec![Signal::Preemptions] };
        assert_eq!(health.page(Time(0.3), &page, usual()), std::slice::from_ref(&named));
        health.failed(Time(9.0), "refused");
        assert_eq!(
            health.page(Time(10.3), &page, usual()),
            [Event::Recovered { after: Seconds(10.0) }, named]
        );
    }

    #[test]
    fn latency_missing_before_the_first_token_is_not_degraded() {
        let fresh = Signals {
            running: None,
            waiting: None,
            kv_usage: None,
            generation_tokens: Some(0.0),
            finished: None,
            step_tokens: None,
            ttft: None,
            itl: None,
            e2e: None,
            ..complete()
        };
        let mut health = health();
        for at in [0.0, 100.0, 200.0] {
            assert_eq!(health.page(Time(at), &fresh, usual()), []);
        }
        assert_eq!(health.status(), Status::Healthy);
    }

    #[test]
    fn latency_missing_while_tokens_flow_is_degraded_after_the_grace() {
        let mut health = health();
        let page = Signals { itl: None, e2e: None, ..complete() };
        assert_eq!(health.page(Time(100.0), &page, usual()), []);
        assert_eq!(health.page(Time(100.0 + GRACE.0 - 0.1), &page, usual()), []);
        // Of a request that takes minutes no end-to-end latency can be known yet.
        let named = Event::Degraded { essential: vec![Signal::Itl], useful: vec![] };
        assert_eq!(health.page(Time(100.0 + GRACE.0), &page, usual()), [named]);
        let rested = Signals { running: Some(0.0), ..page };
        let named = Event::Degraded { essential: vec![], useful: vec![Signal::E2e] };
        assert_eq!(health.page(Time(101.0 + GRACE.0), &rested, usual()), [named]);
    }

    #[test]
    fn request_tpot_stands_in_for_the_inter_token_latency() {
        let page = Signals { itl: None, request_tpot: complete().itl, running: Some(0.0), ..complete() };
        assert_eq!(health().page(Time(0.3), &page, usual()), []);
    }
}
