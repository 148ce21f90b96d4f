//! Who calls without ever bringing work: health checks and scrapers, which would wake a GPU for nothing all day.
//!
//! A call that comes while there is no work is judged: work within [`BRINGS_WITHIN`] speaks for the caller, and none
//! against. After [`VAIN`] calls in a row that brought none, its calls count for nothing, until work follows one of them.
//! Who is known by address is not told apart further: behind a proxy, all callers are one, and one of them with work is
//! enough.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use crate::units::{Seconds, Time};

/// Work that a call brings is seen within this.
pub(crate) const BRINGS_WITHIN: Seconds = Seconds(3.0);
/// So many calls in a row without work, and a caller is not listened to.
pub(crate) const VAIN: u32 = 5;
/// Callers that are remembered.
const MOST: usize = 256;

/// What is known of who calls.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Callers {
    known: BTreeMap<IpAddr, Caller>,
    /// Calls that are not judged yet, oldest first; of each caller the first.
    open: VecDeque<(Time, IpAddr)>,
    worked_at: Option<Time>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Caller {
    vain: u32,
    called: Time,
}

impl Callers {
    /// Somebody calls: does it count?
    pub(crate) fn called(&mut self, who: IpAddr, now: Time) -> bool {
        self.judge(now);
        // While there is work anyway, a call says nothing about the caller.
        let idle = self.worked_at.is_none_or(|at| now.since(at) > BRINGS_WITHIN);
        if !self.known.contains_key(&who) && self.known.len() >= MOST {
            self.forget_one();
        }
        let caller = self.known.entry(who).or_insert(Caller { vain: 0, called: now });
        caller.called = now;
        let counts = caller.vain < VAIN;
        if idle && !self.open.iter().any(|(_, other)| *other == who) {
            self.open.push_back((now, who));
        }
        counts
    }

    pub(crate) fn worked(&mut self, now: Time) {
        self.judge(now);
        self.worked_at = Some(now);
        for (_, who) in self.open.drain(..) {
            if let Some(caller) = self.known.get_mut(&who) {
                caller.vain = 0;
            }
        }
    }

    /// Callers that are not listened to.
    pub(crate) fn unheard(&self) -> usize {
        self.known.values().filter(|caller| caller.vain >= VAIN).count()
    }

    fn judge(&mut self, now: Time) {
        while let Some((at, who)) = self.open.front().copied()
            && now.since(at) > BRINGS_WITHIN
        {
            self.open.pop_front();
            if let Some(caller) = self.known.get_mut(&who) {
                caller.vain = caller.vain.saturating_add(1);
            }
        }
    }

    fn forget_one(&mut self) {
        let oldest = self.known.iter().min_by(|(_, a), (_, b)| a.called.0.total_cmp(&b.called.0));
        if let Some(oldest) = oldest.map(|(who, _)| *who) {
            self.known.remove(&oldest);
            self.open.retain(|(_, who)| *who != oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECKER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const USER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    #[test]
    fn caller_who_never_brings_work_is_heard_five_times() {
        let mut callers = Callers::default();
        let heard: Vec<bool> = (0..8).map(|k| callers.called(CHECKER, Time(10.0 * f64::from(k)))).collect();
        assert_eq!(heard, [true, true, true, true, true, false, false, false]);
        assert_eq!(callers.unheard(), 1);
        assert!(callers.called(USER, Time(80.0)));
    }

    #[test]
    fn one_whose_call_was_followed_by_work_is_heard_again() {
        let mut callers = Callers::default();
        let calls = (0..8).filter(|k| callers.called(CHECKER, Time(10.0 * f64::from(*k))));
        assert_eq!(calls.count(), 5);
        assert!(!callers.called(CHECKER, Time(100.0)));
        callers.worked(Time(101.0));
        assert!(callers.called(CHECKER, Time(110.0)));
    }

    #[test]
    fn calls_during_work_say_nothing() {
        let mut callers = Callers::default();
        for k in 0..100 {
            callers.worked(Time(f64::from(k)));
            assert!(callers.called(CHECKER, Time(f64::from(k) + 0.5)));
        }
        // And are not held against the caller when the work ends.
        assert!(callers.called(CHECKER, Time(104.0)));
    }

    #[test]
    fn burst_of_calls_is_one() {
        let mut callers = Callers::default();
        assert!((0..50).all(|k| callers.called(USER, Time(0.01 * f64::from(k)))));
        assert!(callers.called(USER, Time(10.0)));
    }

    #[test]
    fn a_flood_of_addresses_does_not_fill_the_memory() {
        let mut callers = Callers::default();
        for k in 0..10_000_u32 {
            let who = IpAddr::V4(std::net::Ipv4Addr::from(k));
            assert!(callers.called(who, Time(f64::from(k))));
        }
        assert!(callers.known.len() <= MOST && callers.open.len() <= MOST);
    }
}
