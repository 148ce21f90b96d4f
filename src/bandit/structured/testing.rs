//! Lessons for tests.

use super::window::Lesson;
use crate::units::{Seconds, Target, Watts};

/// Two seconds at default clocks: 100 steps, ten requests in the engine.
pub(super) fn lesson() -> Lesson {
    Lesson {
        at: 0.0,
        seconds: 2.0,
        steps: 100.0,
        delay: Some(Seconds(0.02)),
        power: Some(Watts(300.0)),
        prefill: 2000.0,
        decode: 1000.0,
        finished: 4.0,
        arrived: 4.0,
        in_flight: 10.0,
        clock: 1400.0,
        target: Target::Default,
        capped: 0.0,
        busy: 0.9,
        busy_measured: true,
    }
}
