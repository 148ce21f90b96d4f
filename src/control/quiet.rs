//! Whether nothing speaks for work, so that an engine to which a scrape is work is left alone.
//!
//! llama-server counts a scrape as use: it resets the timer after which an idle model is unloaded, and wakes one that
//! is. So its page is read until it shows no work; after that connections and GPUs have to tell of work first.

use super::Observation;
use crate::metrics::{Signal, Signals};
use crate::units::{Seconds, Time};

/// GPUs have to be without work for so long. The driver's utilization is a mean over up to a second.
const STILL: Seconds = Seconds(2.0);
/// Largest utilization, in percent, of a GPU without work: displays and drivers take some.
const IDLE_PERCENT: f64 = 3.0;

/// What spoke for work last.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Quiet {
    /// Connections and requests that were heard by the time of the last page that shows no work.
    heard: Option<u64>,
    /// The last page shows no work.
    at_rest: bool,
    /// Since when all GPUs are without work.
    still_since: Option<Time>,
    /// So many of the next pages may be ones for which the engine was not asked: they show nothing.
    unread: u32,
}

/// Pages that may have been on their way when it was no longer quiet.
const ON_THEIR_WAY: u32 = 2;

impl Quiet {
    /// Takes in what was seen; true if nothing speaks for work, so that the page need not be read.
    pub(crate) fn look(&mut self, seen: &Observation) -> bool {
        let heard = seen.connections.map(|heard| heard.opened_total + heard.requests_total);
        if let Some(page) = seen.scrape.whole() {
            if self.unread == 0 {
                self.at_rest = is_at_rest(&page.signals);
                self.heard = heard;
            }
            self.unread = self.unread.saturating_sub(1);
        }
        let mut readings = seen.gpus.iter().map(|gpu| gpu.reading.and_then(|now| now.utilization_percent));
        let still =
            !seen.gpus.is_empty() && readings.all(|busy| busy.is_some_and(|busy| busy <= IDLE_PERCENT));
        self.still_since = self.still_since.or(Some(seen.now)).filter(|_| still);
        let still = self.still_since.is_some_and(|since| seen.now.since(since) >= STILL);
        // Where connections are not heard, the GPUs alone tell.
        let quiet = self.at_rest && still && heard == self.heard && seen.working == 0;
        if quiet {
            self.unread = ON_THEIR_WAY;
        }
        quiet
    }
}

/// Does the page show that nothing runs and nothing waits?
fn is_at_rest(signals: &Signals) -> bool {
    signals.has(Signal::Running) && signals.running == Some(0.0) && signals.waiting.unwrap_or(0.0) == 0.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{GpuTick, Scrape};
    use crate::gpu::GpuReading;
    use crate::metrics::Snapshot;
    use crate::park::source::Connections;

    fn seen(at: f64, running: Option<f64>, busy: Option<f64>, requests: Option<u64>) -> Observation {
        let page = |running| Snapshot {
            at: Time(at),
            latency: Seconds(0.0),
            signals: Signals { running: Some(running), ..Signals::default() },
            refused: Vec::new(),
            engine: None,
        };
        let reading = GpuReading { utilization_percent: busy, ..GpuReading::default() };
        Observation {
            now: Time(at),
            scrape: running.map_or(Scrape::Pending, |running| Scrape::Page(Box::new(page(running)))),
            gpus: vec![GpuTick { reading: Some(reading), read_at: Some(Time(at)), energy: Vec::new() }],
            outcomes: Vec::new(),
            orders: Vec::new(),
            connections: requests.map(|requests_total| Connections {
                open: 1,
                opened_total: 1,
                requests_total,
            }),
            working: 0,
        }
    }

    #[test]
    fn page_at_rest_beside_still_gpus_is_quiet_until_a_request_is_heard() {
        let mut quiet = Quiet::default();
        assert!(!quiet.look(&seen(0.0, Some(0.0), Some(0.0), Some(5))));
        assert!(!quiet.look(&seen(1.0, Some(0.0), Some(0.0), Some(5))));
        assert!(quiet.look(&seen(2.1, Some(0.0), Some(1.0), Some(5))));
        // A request: the page is read again, whatever the GPUs show.
        assert!(!quiet.look(&seen(2.4, None, Some(0.0), Some(6))));
        // Pages for which the engine was not asked: they do not make up for the request.
        assert!(!quiet.look(&seen(2.5, Some(0.0), Some(0.0), Some(6))));
        assert!(!quiet.look(&seen(2.7, Some(0.0), Some(0.0), Some(6))));
        assert!(!quiet.look(&seen(3.0, Some(1.0), Some(0.0), Some(6))));
        assert!(quiet.look(&seen(9.3, Some(0.0), Some(0.0), Some(6))));
    }

    #[test]
    fn gpu_that_works_speaks_for_work_where_no_connection_is_heard() {
        let mut quiet = Quiet::default();
        for second in 0..3 {
            quiet.look(&seen(f64::from(second), Some(0.0), Some(0.0), None));
        }
        assert!(quiet.look(&seen(3.0, None, Some(0.0), None)));
        assert!(!quiet.look(&seen(3.3, None, Some(40.0), None)));
        assert!(!quiet.look(&seen(4.0, None, Some(0.0), None)), "for two seconds at least");
    }

    #[test]
    fn what_is_not_known_is_never_quiet() {
        for (running, busy) in [(None, Some(0.0)), (Some(0.0), None)] {
            let mut quiet = Quiet::default();
            assert!((0..20).all(|at| !quiet.look(&seen(f64::from(at), running, busy, Some(1)))));
        }
    }
}
