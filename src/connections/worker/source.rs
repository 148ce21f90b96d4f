//! Which source is used: the best there is, a lesser one where it fails, and the better one again later.

use std::time::{Duration, Instant};

use super::Worker;
use crate::connections::kernel::KernelEvents;
use crate::connections::{Source, SourceKind, WatchSettings};

/// Readings of the table in a row that contradict the events without a loss to explain it, before events are given up.
const MOST_CONTRADICTIONS: u32 = 3;

/// When a better source is tried again. Pure.
#[derive(Debug)]
pub(super) struct Retry {
    wait: Duration,
    at_most: Duration,
    due: Option<Instant>,
}

impl Retry {
    pub(super) fn new(settings: &WatchSettings) -> Self {
        Self { wait: settings.retry_after, at_most: settings.retry_at_most, due: None }
    }

    /// When it is to be tried, if it is.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// The better source was lost, or tried in vain.
    fn failed(&mut self, now: Instant) {
        self.due = now.checked_add(self.wait);
        self.wait = self.wait.saturating_mul(2).min(self.at_most.max(self.wait));
    }

    /// The best source is back. What was waited for so far is kept: one that does not last is not tried every 30 s.
    fn done(&mut self) {
        self.due = None;
    }
}

impl Worker {
    /// The best source from the start, or none: what to poll by is then said.
    pub(super) fn first_source(settings: &WatchSettings) -> (Option<KernelEvents>, Source) {
        let best = settings.force_source.unwrap_or(SourceKind::KernelEvents);
        match KernelEvents::attach(settings, best, SourceKind::Polling) {
            Ok((kernel, source)) => (Some(kernel), source),
            Err(why) => (None, Source::Polling { every: settings.poll_every, why }),
        }
    }

    fn attach(&self, best: SourceKind, than: SourceKind) -> Result<(KernelEvents, Source), String> {
        if self.refuse_attach {
            return Err("attaching was refused for a test".to_owned());
        }
        KernelEvents::attach(&self.settings, best, than)
    }

    /// Can the events still be trusted, if a reading of the table found `differences`?
    pub(super) fn judge(&mut self, differences: usize, excused: bool) {
        let heard = std::mem::take(&mut self.heard);
        if differences == 0 || excused {
            if heard && !excused {
                self.contradictions = 0;
            }
            return;
        }
        self.contradictions += 1;
        let said = "the kernel's events did not tell of every connection";
        let now = self.lock().source.kind();
        // The old one goes first: two would tell everything twice.
        self.kernel = None;
        let again = if self.contradictions >= MOST_CONTRADICTIONS {
            Err(format!("{said}, though attached anew; is another program detaching it?"))
        } else {
            self.attach(now, next_lesser(now))
        };
        match again {
            Ok((kernel, source)) => {
                self.warn("attached anew", format!("{said}; attached anew"));
                self.take_source(Some(kernel), source);
            }
            Err(why) => self.fall(now, &why),
        }
    }

    /// Goes on with the next lesser source.
    fn fall(&mut self, from: SourceKind, why: &str) {
        let lesser = self.attach(next_lesser(from), SourceKind::Polling);
        let (kernel, source) = match lesser {
            Ok((kernel, Source::PerfEvents { .. })) => {
                (Some(kernel), Source::PerfEvents { why: why.to_owned() })
            }
            Ok((kernel, source)) => (Some(kernel), source),
            Err(_) => (None, Source::Polling { every: self.settings.poll_every, why: why.to_owned() }),
        };
        self.retry.failed(Instant::now());
        let text = format!("now watched through {source}; a better source is tried again from time to time");
        self.warn("lesser source", text);
        self.take_source(kernel, source);
    }

    /// Tries again what was lost.
    pub(super) fn climb(&mut self, now: Instant) {
        if self.retry.due().is_none_or(|due| due > now) {
            return;
        }
        match self.attach(self.best, self.lock_kind()) {
            Ok((kernel, source)) => {
                if source.kind() == self.best {
                    self.retry.done();
                } else {
                    self.retry.failed(now);
                }
                if self.seldom.over("lesser source") {
                    tracing::info!("connections: watched through {source} again");
                }
                self.take_source(Some(kernel), source);
            }
            Err(why) => {
                tracing::debug!("connections: still no better source: {why}");
                self.retry.failed(now);
            }
        }
    }

    /// Says it, but not each time.
    pub(super) fn warn(&mut self, kind: &'static str, text: String) {
        if let Some((text, times)) = self.seldom.happened(kind, text, Instant::now()) {
            say(&text, times);
        }
    }

    pub(super) fn warn_of_what_waited(&mut self) {
        while let Some((text, times)) = self.seldom.due(Instant::now()) {
            say(&text, times);
        }
    }

    fn lock_kind(&self) -> SourceKind {
        self.lock().source.kind()
    }

    fn take_source(&mut self, kernel: Option<KernelEvents>, source: Source) {
        let before = std::mem::replace(&mut self.lock().source, source);
        if before.kind() != self.lock_kind() {
            self.contradictions = 0;
        }
        // What the old one has told and nobody has taken is in the table too.
        self.kernel = kernel;
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
}

fn say(text: &str, times: u64) {
    let times = (times > 0).then_some(times);
    tracing::warn!(not_said_before = times, "connections: {text}");
}

fn next_lesser(kind: SourceKind) -> SourceKind {
    match kind {
        SourceKind::KernelEvents => SourceKind::PerfEvents,
        SourceKind::PerfEvents | SourceKind::Polling => SourceKind::Polling,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_doubles_up_to_its_bound_and_does_not_start_again() {
        let mut retry = Retry::new(&WatchSettings::default());
        assert_eq!(retry.due(), None);
        let now = Instant::now();
        let mut waited = Vec::new();
        for round in 0..7 {
            retry.failed(now);
            waited.push(retry.due().expect("a time").duration_since(now).as_secs());
            if round == 2 {
                retry.done();
                assert_eq!(retry.due(), None);
            }
        }
        assert_eq!(waited, [30, 60, 120, 240, 480, 600, 600]);
    }
}
