//! What comes and goes is said seldom: at once, and then at most once a minute for each kind, with how often it was not.
//!
//! Pure: every call brings its instant.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::units::Time;

/// Least time between two lines of one kind, in seconds.
pub(crate) const EVERY_S: f64 = 60.0;

/// An instant, of whichever clock its owner reads.
pub(crate) trait Moment: Copy {
    /// Seconds since an earlier instant.
    fn seconds_since(self, earlier: Self) -> f64;
}

impl Moment for Time {
    fn seconds_since(self, earlier: Self) -> f64 {
        self.since(earlier).0
    }
}

impl Moment for Instant {
    fn seconds_since(self, earlier: Self) -> f64 {
        self.saturating_duration_since(earlier).as_secs_f64()
    }
}

#[derive(Debug, Clone)]
struct Kind<M, E> {
    said_at: M,
    /// It goes on, as far as was said.
    open: bool,
    unsaid: u64,
    /// The latest that was not said, unless it is over.
    latest: Option<E>,
}

/// Which lines may be written. `E` is what is kept of a line that has to wait.
#[derive(Debug, Clone)]
pub(crate) struct Seldom<M, E = ()> {
    kinds: BTreeMap<&'static str, Kind<M, E>>,
}

impl<M, E> Default for Seldom<M, E> {
    fn default() -> Self {
        Self { kinds: BTreeMap::new() }
    }
}

impl<M: Moment, E> Seldom<M, E> {
    /// Something happened. What comes back is to be said now, with how often the same was not said since the last time;
    /// otherwise [`Self::due`] gives it back later.
    pub(crate) fn happened(&mut self, kind: &'static str, what: E, now: M) -> Option<(E, u64)> {
        match self.kinds.get_mut(kind) {
            None => {
                self.kinds.insert(kind, Kind { said_at: now, open: true, unsaid: 0, latest: None });
                Some((what, 0))
            }
            Some(known) if now.seconds_since(known.said_at) >= EVERY_S => {
                (known.said_at, known.open, known.latest) = (now, true, None);
                Some((what, std::mem::take(&mut known.unsaid)))
            }
            Some(known) => {
                known.unsaid += 1;
                known.latest = Some(what);
                None
            }
        }
    }

    /// What had to wait and may be said now, one kind with each call. The count does not include the one that is said.
    pub(crate) fn due(&mut self, now: M) -> Option<(E, u64)> {
        self.kinds.values_mut().find_map(|kind| {
            if now.seconds_since(kind.said_at) < EVERY_S {
                return None;
            }
            let what = kind.latest.take()?;
            (kind.said_at, kind.open) = (now, true);
            Some((what, std::mem::take(&mut kind.unsaid).saturating_sub(1)))
        })
    }

    /// It is over. May that be said? Only once for each time that the trouble was said, so that the last line is true.
    pub(crate) fn over(&mut self, kind: &'static str) -> bool {
        self.kinds.get_mut(kind).is_some_and(|kind| {
            kind.latest = None;
            std::mem::replace(&mut kind.open, false)
        })
    }
}

impl<M: Moment> Seldom<M> {
    /// May a line of this kind be written now? Then with how often it was not since the last one, if ever.
    pub(crate) fn may_say(&mut self, kind: &'static str, now: M) -> Option<Option<u64>> {
        self.happened(kind, (), now).map(|((), times)| (times > 0).then_some(times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn first_is_said_at_once_and_the_last_line_is_true() {
        let mut seldom = Seldom::default();
        assert_eq!(seldom.happened("out", 'a', Time(0.0)), Some(('a', 0)));
        assert_eq!(
            seldom.happened("late", 'x', Time(0.5)),
            Some(('x', 0)),
            "another kind has its own minute"
        );
        assert!(seldom.over("out"));
        for second in 1..5 {
            assert_eq!(seldom.happened("out", 'b', Time(f64::from(second))), None);
            assert!(!seldom.over("out"), "it was not said to be out again");
        }
        assert_eq!(seldom.happened("out", 'c', Time(10.0)), None);
        assert_eq!(seldom.due(Time(59.9)), None);
        assert_eq!(seldom.due(Time(60.0)), Some(('c', 4)), "it goes on, and has to be said");
        assert!(seldom.over("out"));
        assert_eq!(seldom.due(Time(1000.0)), None);
    }

    proptest! {
        #[test]
        fn one_line_a_minute_and_every_event_counted(
            events in prop::collection::vec((0.0..30.0_f64, 0..3_usize, any::<bool>()), 1..300),
        ) {
            const KINDS: [&str; 3] = ["a", "b", "c"];
            let mut seldom: Seldom<Time, usize> = Seldom::default();
            let (mut now, mut happened) = (0.0, [0_u64; 3]);
            let (mut said_at, mut told, mut overs) = ([const { Vec::new() }; 3], [0_u64; 3], [0_usize; 3]);
            let mut say = |said: Option<(usize, u64)>, now: f64, told: &mut [u64; 3]| {
                if let Some((kind, unsaid)) = said {
                    said_at[kind].push(now);
                    told[kind] += 1 + unsaid;
                }
                said.is_some()
            };
            for (pause, kind, ends) in events {
                now += pause;
                while say(seldom.due(Time(now)), now, &mut told) {}
                happened[kind] += 1;
                say(seldom.happened(KINDS[kind], kind, Time(now)), now, &mut told);
                overs[kind] += usize::from(ends && seldom.over(KINDS[kind]));
            }
            for kind in 0..3 {
                let left = seldom.kinds.get(KINDS[kind]).map_or(0, |kind| kind.unsaid);
                prop_assert_eq!(told[kind] + left, happened[kind]);
                prop_assert!(said_at[kind].windows(2).all(|pair| pair[1] - pair[0] >= EVERY_S - 1e-6));
                prop_assert!(overs[kind] <= said_at[kind].len());
            }
        }
    }
}
