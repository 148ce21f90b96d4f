//! The one clock of a run: every instant that the control code sees comes from here.

use std::time::Duration;

use tokio::time::Instant;

use crate::units::Time;

/// Monotonic time since the start of the run.
///
/// Built on tokio's clock, so that tests can pause it.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that starts now, at 0.
    pub fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// Seconds since the start.
    pub fn now(&self) -> Time {
        Time(self.origin.elapsed().as_secs_f64())
    }

    /// The instant of a time of this clock.
    pub fn instant(&self, time: Time) -> Instant {
        self.origin + Duration::from_secs_f64(time.0.max(0.0))
    }
}
