//! The parker beside a server as steps of version 3 hold it.
//!
//! The energy of a parked spell was booked from the first reading of the counter on, and the rest of its time when the
//! spell was over; now time counts as it passes. While a trial has the clocks at the driver's, what was not booked by then
//! is lost to the sums.

use serde::Deserialize;

use super::{Accounting, Due, Parker, Rule, Woken};
use crate::park::books::Books;
use crate::park::first_tokens::FirstTokens;
use crate::park::gap::GapSettings;
use crate::park::levers::{Lever, Levers};
use crate::park::price::WakePrice;
use crate::park::rule::v3::IdleWatch;
use crate::park::settings::{Settings, Unnoticed};
use crate::park::source::CountedConnections;
use crate::park::wake::WakeCheck;
use crate::reward::energy::EnergyPoint;
use crate::units::{Clocks, Seconds, Time};

/// Constants of idle handling.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct IdleSettings {
    gap: GapSettings,
    /// Those of the first lever.
    #[expect(dead_code, reason = "the levers hold them, too")]
    clocks: Clocks,
    wake_power_ratio: f64,
    utilization: bool,
    max_ttft_rise: f64,
    connections: Option<CountedConnections>,
}

impl From<IdleSettings> for Settings {
    fn from(v3: IdleSettings) -> Self {
        // The numbers were constants of that version.
        Self {
            gap: v3.gap,
            page: true,
            utilization_threshold_percent: v3.utilization.then_some(10.0),
            wake_power_ratio: Some(v3.wake_power_ratio),
            connections: v3.connections,
            hot: None,
            busy_percent: 30.0,
            periods: None,
            unnoticed: Unnoticed { by_sensors: Seconds(0.15), by_others: Seconds(0.3) },
            max_ttft_rise: v3.max_ttft_rise,
            retries_last: false,
            dry_run: false,
        }
    }
}

/// Parking, as far as the loop knew of it.
#[derive(Debug, Deserialize)]
pub(crate) struct Parking {
    watch: IdleWatch,
    books: Books,
    levers: Levers,
    lever: Option<Lever>,
    released: bool,
    waking: Option<WakeCheck>,
    woken: Option<Woken>,
    price: WakePrice,
    idle_since: Option<Time>,
    /// The counters up to which parked time is booked.
    booked: Option<EnergyPoint>,
    /// Time of this spell that was looked at, seconds.
    looked_at_s: f64,
    first_tokens: FirstTokens,
    /// In the settings, too.
    #[expect(dead_code, reason = "the settings hold it, too")]
    max_ttft_rise: f64,
}

impl Parking {
    /// The parker of a run that began at `started`.
    pub(crate) fn with(self, settings: Option<Settings>, started: Time) -> Parker {
        let worked_at = self.watch.worked_at;
        let rule = settings.map(|settings| self.watch.with(settings));
        let parked_since = rule.as_ref().and_then(Rule::parked_since);
        let is_parked = parked_since.is_some();
        let mut sums = self.books;
        let counted_from = parked_since.map(|since| match self.booked {
            Some(counter) => {
                let rest = Seconds(counter.at.since(since).0 - self.looked_at_s);
                if rest.0 > 0.0 {
                    sums.parked_span(rest, None);
                }
                counter.at
            }
            None => since + Seconds(self.looked_at_s),
        });
        Parker {
            rule,
            accounting: Accounting::parked_from(sums, counted_from, self.booked.filter(|_| is_parked)),
            lever: self.lever.or_else(|| self.levers.best(None)),
            levers: self.levers,
            released: self.released && is_parked,
            waking: self.waking.filter(|_| !is_parked),
            woken: self.woken,
            price: self.price,
            first_tokens: self.first_tokens,
            worked_at,
            empty_since: self.idle_since,
            works: false,
            due: Due::at(started),
            blind: false,
            news: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::park::gap::{GapRule, Wait};
    use crate::park::levers::{LeverBook, LeverKind};
    use crate::park::wake::Running;
    use crate::units::{Joules, Mhz, Target};

    const GAP: GapSettings = GapSettings {
        wait: Wait::Timeout(Seconds(1.0)),
        quiet: Seconds(0.5),
        at_start: true,
        wake_limit: Seconds(0.5),
    };
    const LOW: Clocks = Clocks { core: Mhz(210), memory: None };

    fn settings() -> Settings {
        IdleSettings {
            gap: GAP,
            clocks: LOW,
            wake_power_ratio: 1.3,
            utilization: true,
            max_ttft_rise: 0.05,
            connections: None,
        }
        .into()
    }

    /// Parked or not for 10 s by now (time 30), 7 of them booked with their energy, the counter read 1 s ago.
    fn parking(parked: bool) -> Parking {
        let mut gaps = GapRule::new(&GAP);
        if parked {
            gaps.parked_already(Time(20.0));
        }
        let mut books = Books::default();
        books.parked();
        books.parked_span(Seconds(7.0), Some(Joules(70.0)));
        let lever = Lever { kind: LeverKind::Core, clocks: LOW };
        let top = Running { core: Some(Mhz(2000)), memory: None };
        Parking {
            watch: IdleWatch::of(gaps),
            books,
            levers: Levers::new(vec![lever], LeverBook::default(), top),
            lever: parked.then_some(lever),
            released: !parked,
            waking: None,
            woken: None,
            price: WakePrice::default(),
            idle_since: None,
            booked: Some(EnergyPoint { at: Time(29.0), total: Joules(500.0) }),
            looked_at_s: 7.0,
            first_tokens: FirstTokens::default(),
            max_ttft_rise: 0.05,
        }
    }

    #[test]
    fn a_spell_under_way_goes_on_and_no_time_of_it_is_lost_or_counted_twice() {
        let parker = parking(true).with(Some(settings()), Time(0.0));
        assert!(parker.is_parked());
        assert_eq!((parker.target(), parker.books().spells), (Target::Lock(LOW), 1));
        approx::assert_relative_eq!(parker.books_at(Time(30.0)).parked_s, 10.0);
    }

    #[test]
    fn what_is_not_parked_has_no_open_time() {
        let parker = parking(false).with(Some(settings()), Time(0.0));
        assert!(!parker.is_parked());
        approx::assert_relative_eq!(parker.books_at(Time(30.0)).parked_s, 7.0);
        assert_eq!(parker.target(), Target::Lock(LOW), "nothing is released that is not parked");
        assert!(!parking(true).with(None, Time(0.0)).is_parked(), "nor parked without settings");
    }
}
