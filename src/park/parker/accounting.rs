//! What parking comes to: time with the clocks down, and the energy used in it, as far as it is read.

use serde::{Deserialize, Serialize};

use crate::park::books::Books;
use crate::park::levers::Stretch;
use crate::park::sample::Sample;
use crate::park::source::WakeSource;
use crate::reward::energy::EnergyPoint;
use crate::units::{Joules, Time};

/// Time with the clocks down that is not in the sums yet.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Open {
    since: Time,
    /// Down for heat: work may be there, and nothing is said to be saved.
    hot: bool,
    /// The energy counter then, once it was read.
    counter: Option<EnergyPoint>,
}

/// How open time ends, once its energy was read.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) enum Closing {
    /// Work is back; should something better have told of it before?
    Woken(WakeSource, bool),
    /// Something else has the clocks.
    Interrupted,
    /// Parked for heat from now on.
    Hot,
}

/// The sums, and what is open.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Accounting {
    pub(super) sums: Books,
    open: Option<Open>,
    closing: Option<Closing>,
}

impl Accounting {
    /// With these sums, and with the clocks down from `since` on, where the counter may have been read.
    pub(super) fn parked_from(sums: Books, since: Option<Time>, counter: Option<EnergyPoint>) -> Self {
        Self { sums, open: since.map(|since| Open { since, hot: false, counter }), closing: None }
    }

    /// Are the clocks down, or was the energy until they came up not read yet?
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Would the energy counter be of use for the open time?
    pub(super) fn wants_energy(&self) -> bool {
        self.open.is_some_and(|open| !open.hot)
    }

    /// The clocks go down.
    pub(super) fn open(&mut self, hot: bool, now: Time) {
        if self.open.is_none() {
            self.sums.parked();
        }
        self.open = Some(Open { since: now, hot, counter: None });
    }

    /// Cool again, and parked on.
    pub(super) fn cooled(&mut self, now: Time) {
        self.add_rest(now, false);
        self.open = Some(Open { since: now, hot: false, counter: None });
    }

    /// The clocks come up, or the reason for which they are down changes. `Some` is to be [`closed`](Self::close) when the
    /// energy was read; what cannot be measured is closed at once.
    pub(super) fn end(&mut self, closing: Closing, measured: bool, released: bool, now: Time) {
        self.closing = Some(closing);
        if !(measured && self.wants_energy() && !released) {
            self.close(released, now);
        }
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    /// Closes what [`end`](Self::end) has left open.
    pub(super) fn close(&mut self, released: bool, now: Time) {
        let Some(closing) = self.closing.take() else { return };
        self.add_rest(now, released);
        match closing {
            Closing::Woken(by, missed) => self.sums.woken(by.name(), missed),
            Closing::Interrupted => self.sums.end_spell(),
            Closing::Hot => self.open = Some(Open { since: now, hot: true, counter: None }),
        }
    }

    /// The open time up to now, without its energy.
    fn add_rest(&mut self, now: Time, released: bool) {
        let Some(open) = self.open.take() else { return };
        let span = now.since(open.since);
        if span.0 <= 0.0 {
        } else if open.hot {
            self.sums.hot_s += span.0;
        } else if !released {
            self.sums.parked_span(span, None);
        }
    }

    /// The clocks of the parked GPUs change: what was read before belongs to the old ones.
    pub(super) fn cut(&mut self, now: Time, released: bool) {
        let Some(open) = self.open.filter(|open| open.since < now) else { return };
        self.add_rest(now, released);
        self.open = Some(Open { since: now, counter: None, ..open });
    }

    /// Takes in the energy that was read: by the counter, or where `by_power` says so by the power of this moment. Says what
    /// was used since the last time. In time that is `released` the clocks are not down.
    pub(super) fn measure(&mut self, sample: &Sample, by_power: bool, released: bool) -> Option<Stretch> {
        let open = self.open.as_mut().filter(|open| !open.hot)?;
        let (start, before) = (open.since, open.counter);
        let (end, energy) = match sample.energy {
            // It has not been read anew.
            Some(point) if point.at < start => return None,
            Some(point) => {
                open.counter = Some(point);
                // Below: the driver was loaded anew, and counts from the beginning.
                let used = before.map(|before| point.total.0 - before.total.0).filter(|used| *used >= 0.0);
                (point.at, used.map(Joules))
            }
            None if by_power => {
                open.counter = None;
                let power = sample.activity.power;
                (sample.now, power.map(|power| Joules(power.0 * sample.now.since(start).0)))
            }
            None => return None,
        };
        open.since = end;
        let span = end.since(start);
        if span.0 <= 0.0 {
            return None;
        }
        if !released {
            self.sums.parked_span(span, energy);
        }
        energy.map(|energy| Stretch { start, end, now: sample.now, energy })
    }

    /// The sums with what is open.
    pub(super) fn sums_at(&self, now: Time, released: bool) -> Books {
        let mut sums = self.sums.clone();
        match self.open.map(|open| (open.hot, now.since(open.since).0)) {
            Some((true, span)) => sums.hot_s += span,
            Some((false, span)) if !released => sums.parked_s += span,
            _ => {}
        }
        sums
    }
}
