//! Gauges that stay high after all requests were aborted: by the page requests run, and nothing happens.

use serde::{Deserialize, Serialize};

use super::event::Event;
use super::load::{has_progress, has_work};
use crate::metrics::window::Window;
use crate::park::sample::Activity;
use crate::units::{Seconds, Time};

/// For so long no counter and no gauge moves and every GPU is idle before gauges are not believed. Longer
/// than any pause of a working engine: its GPUs work in every step.
pub const STALE_AFTER: Seconds = Seconds(30.0);
/// Above this utilisation, in percent, a GPU works.
const IDLE_PERCENT: f64 = 10.0;

/// Whether the page's gauges can be believed when they speak of work.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct GaugeTrust {
    /// Since when they have been the only sign of work.
    alone_since: Option<Time>,
    /// That was for too long.
    stale: bool,
}

impl GaugeTrust {
    /// Does the window show work? An event says once that the gauges are stale.
    ///
    /// GPUs whose utilisation is not known may work: then the gauges are believed.
    pub(super) fn sees_work(&mut self, window: &Window, gpus: Activity, events: &mut Vec<Event>) -> bool {
        let idle = gpus.utilization_percent.is_some_and(|percent| percent <= IDLE_PERCENT);
        let (before, after) = (window.at_start, window.at_end);
        let moved = has_progress(window)
            || window.finished.is_some_and(|finished| finished > 0.0)
            || window.engine_steps().is_some_and(|steps| steps > 0.0)
            || (before.running, before.waiting) != (after.running, after.waiting);
        if !idle || moved || !has_work(window) {
            *self = Self::default();
            return has_work(window);
        }
        let since = *self.alone_since.get_or_insert(window.start);
        if !self.stale && window.end.since(since) >= STALE_AFTER {
            self.stale = true;
            let (running, waiting) = (after.running.unwrap_or(0.0), after.waiting.unwrap_or(0.0));
            events.push(Event::StaleGauges { running, waiting });
        }
        !self.stale
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Signals, Snapshot};

    fn page(at: f64, running: f64, tokens: f64) -> Snapshot {
        let signals = Signals {
            running: Some(running),
            waiting: Some(3.0),
            generation_tokens: Some(tokens),
            ..Signals::default()
        };
        Snapshot { at: Time(at), latency: Seconds(0.0), signals, refused: vec![], engine: None }
    }

    fn gpus(percent: f64) -> Activity {
        Activity { power: None, utilization_percent: Some(percent) }
    }

    /// Windows of a second each with these pages and this activity: when work was seen, and when it was said.
    fn watch(trust: &mut GaugeTrust, seconds: u32, gpus: Activity) -> (Vec<bool>, usize) {
        let mut said = Vec::new();
        let seen = (0..seconds).map(|second| {
            let at = f64::from(second);
            let window = Window::between(&page(at, 8.0, 5.0), &page(at + 1.0, 8.0, 5.0)).unwrap();
            trust.sees_work(&window, gpus, &mut said)
        });
        (seen.collect(), said.len())
    }

    #[test]
    fn gauges_that_nothing_confirms_are_stale_after_a_while_and_it_is_said_once() {
        let (work, said) = watch(&mut GaugeTrust::default(), 90, gpus(0.0));
        let believed = work.iter().filter(|work| **work).count();
        assert_eq!((believed, said), (29, 1), "the window that ends at 30 s is the first of no work");
        assert!(work.is_sorted_by(|a, b| a >= b));
    }

    #[test]
    fn gpus_that_work_or_do_not_tell_confirm_the_gauges() {
        for activity in [gpus(60.0), Activity::default()] {
            let (work, said) = watch(&mut GaugeTrust::default(), 90, activity);
            assert!(work.iter().all(|work| *work) && said == 0);
        }
    }

    #[test]
    fn anything_that_moves_is_work_again_at_once() {
        let moves: [(f64, f64, f64); 3] = [(8.0, 6.0, 0.0), (7.0, 5.0, 0.0), (8.0, 5.0, 50.0)];
        for (running, tokens, percent) in moves {
            let mut trust = GaugeTrust::default();
            watch(&mut trust, 40, gpus(0.0));
            let window = Window::between(&page(50.0, 8.0, 5.0), &page(51.0, running, tokens)).unwrap();
            let mut said = Vec::new();
            assert!(trust.sees_work(&window, gpus(percent), &mut said) && said.is_empty());
        }
    }
}
