//! Tries that go on until the driver takes the clocks back: how long to wait between two, and which to speak of.

use std::time::{Duration, Instant};

/// The first pauses, so that a driver that refuses a few times costs less than a second.
const FIRST: Duration = Duration::from_millis(20);
/// For the first two seconds no pause is longer, for the first minute, and later.
const LONGEST: [(Duration, Duration); 2] = [
    (Duration::from_secs(2), Duration::from_millis(80)),
    (Duration::from_secs(60), Duration::from_millis(500)),
];
const LATER: Duration = Duration::from_secs(2);
/// The second line of the log comes after so long; each later one after twice the time.
const SAY: Duration = Duration::from_secs(1);
/// No two lines are further apart.
const SAY_AT_LEAST: Duration = Duration::from_secs(3600);

/// A row of failed tries.
#[derive(Debug, Default)]
pub(crate) struct Retries {
    since: Option<Instant>,
    pause: Duration,
    say_at: Duration,
}

/// What follows from one more failed try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed {
    /// Since the first of the row.
    pub elapsed: Duration,
    /// Until the next try.
    pub pause: Duration,
    /// Is this one to be spoken of?
    pub say: bool,
}

impl Retries {
    pub(crate) fn failed(&mut self) -> Failed {
        let elapsed = self.since.get_or_insert_with(Instant::now).elapsed();
        self.after(elapsed)
    }

    fn after(&mut self, elapsed: Duration) -> Failed {
        let longest = LONGEST.iter().find(|(until, _)| elapsed < *until).map_or(LATER, |(_, pause)| *pause);
        self.pause = (self.pause * 2).max(FIRST).min(longest);
        let say = elapsed >= self.say_at;
        if say {
            self.say_at = elapsed + elapsed.clamp(SAY, SAY_AT_LEAST);
        }
        Failed { elapsed, pause: self.pause, say }
    }

    /// A try succeeded: the next failure is the first of another row.
    pub(crate) fn succeeded(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_are_fast_at_first_and_never_further_apart_than_two_seconds() {
        let (mut retries, mut elapsed, mut said) = (Retries::default(), Duration::ZERO, 0);
        let mut in_first_second = 0;
        while elapsed < Duration::from_secs(3600) {
            let failed = retries.after(elapsed);
            assert!((FIRST..=LATER).contains(&failed.pause));
            in_first_second += u32::from(elapsed < Duration::from_secs(1));
            said += u32::from(failed.say);
            elapsed += failed.pause;
        }
        assert!(in_first_second > 10, "{in_first_second}");
        assert!((8..20).contains(&said), "{said} lines in an hour");
    }
}
