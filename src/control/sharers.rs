//! Several servers on the same GPUs: each has a page, limits and latencies of its own, and one clock serves all.

use serde::{Deserialize, Serialize};

use crate::metrics::Snapshot;
use crate::metrics::window::Window;
use crate::reward::slo::{LatencyWatch, Limits};

/// One of several servers on the same GPUs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sharer {
    name: String,
    limits: Option<Limits>,
    latency: LatencyWatch,
    /// Its last page.
    page: Option<Snapshot>,
    /// What its last two pages bound, until the round is closed.
    window: Option<Window>,
}

impl Sharer {
    /// The server of this name, with its latency limits; `None` ignores them.
    #[must_use]
    pub fn new(name: String, limits: Option<Limits>) -> Self {
        Self { name, limits, latency: LatencyWatch::default(), page: None, window: None }
    }
}

/// All of them; none where the GPUs have one server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Sharers(Vec<Sharer>);

impl Sharers {
    /// One server alone shares with nobody.
    pub(super) fn new(sharers: Vec<Sharer>) -> Self {
        Self(if sharers.len() > 1 { sharers } else { Vec::new() })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The limits of each that has some, and the latencies they are about.
    pub(super) fn promises(&self) -> impl Iterator<Item = (&Limits, &LatencyWatch)> {
        self.0.iter().filter_map(|sharer| Some((sharer.limits.as_ref()?, &sharer.latency)))
    }

    /// Takes the page of each. The error says whose counters began anew: nothing can be said of the time between then.
    pub(super) fn take(&mut self, pages: &[Snapshot]) -> Result<(), String> {
        let mut whole = Ok(());
        for (sharer, page) in self.0.iter_mut().zip(pages) {
            let before = sharer.page.replace(page.clone());
            sharer.window = match before.map(|before| Window::between(&before, page)).transpose() {
                Ok(window) => window,
                Err(discontinuity) => {
                    whole = whole.and(Err(format!("{}: {discontinuity}", sharer.name)));
                    None
                }
            };
        }
        whole
    }

    /// The round is closed: what the last pages said of latencies is held against the limits.
    pub(super) fn close(&mut self) {
        for sharer in &mut self.0 {
            if let (Some(limits), Some(window)) = (&sharer.limits, sharer.window.take()) {
                sharer.latency.push(&window, limits);
            }
        }
    }

    /// Forgets latencies: after an outage or a restart of an engine.
    pub(super) fn forget_latencies(&mut self) {
        for sharer in &mut self.0 {
            sharer.latency.clear();
            sharer.window = None;
        }
    }

    /// What is counted from here on begins with other pages.
    pub(super) fn forget_pages(&mut self) {
        self.begin(&[]);
    }

    /// What is counted from here on begins with these pages.
    pub(super) fn begin(&mut self, pages: &[Snapshot]) {
        for (at, sharer) in self.0.iter_mut().enumerate() {
            sharer.page = pages.get(at).cloned();
            sharer.window = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::metrics::{Histogram, Signals};
    use crate::reward::slo::{self, Statistic, Violation};
    use crate::units::{Seconds, Time};

    fn limits(tpot: f64) -> Limits {
        Limits { ttft: Seconds(1.0), tpot: Seconds(tpot), statistic: Statistic::Mean, window: Seconds(30.0) }
    }

    /// The page at the end of `itls`: a hundred tokens every 0.3 s, so far apart.
    fn page(itls: &[f64]) -> Snapshot {
        let tokens = 100.0 * itls.len() as f64;
        Snapshot {
            at: Time(0.3 * itls.len() as f64),
            latency: Seconds(0.0),
            refused: Vec::new(),
            engine: None,
            signals: Signals {
                generation_tokens: Some(tokens),
                itl: Some(Histogram {
                    sum: itls.iter().map(|itl| 100.0 * itl).sum(),
                    count: tokens,
                    buckets: Vec::new(),
                }),
                ..Signals::default()
            },
        }
    }

    /// What a server with a limit on TPOT broke, by its own latencies alone.
    fn alone(itls: &[f64], tpot: f64) -> Option<Violation> {
        let mut watch = LatencyWatch::default();
        for end in 1..=itls.len() {
            let window = Window::between(&page(&itls[..end - 1]), &page(&itls[..end])).unwrap();
            watch.push(&window, &limits(tpot));
        }
        watch.violation(&limits(tpot), page(itls).at)
    }

    fn together(servers: &[(&[f64], f64)]) -> Option<Violation> {
        let sharer =
            |(at, (_, tpot)): (usize, &(&[f64], f64))| Sharer::new(format!("s{at}"), Some(limits(*tpot)));
        let mut sharers = Sharers(servers.iter().enumerate().map(sharer).collect());
        let length = servers[0].0.len();
        for end in 0..=length {
            let pages: Vec<Snapshot> = servers.iter().map(|(itls, _)| page(&itls[..end])).collect();
            sharers.take(&pages).unwrap();
            sharers.close();
        }
        let now = page(servers[0].0).at;
        slo::worst(sharers.promises().filter_map(|(limits, latency)| latency.violation(limits, now)))
    }

    proptest! {
        #[test]
        fn a_limit_is_broken_where_a_server_breaks_its_own_and_the_worst_is_named(
            itls in prop::collection::vec((0.01..0.1_f64, 0.01..0.1_f64), 1..40),
            (one, other) in (0.01..0.1_f64, 0.01..0.1_f64),
        ) {
            let (first, second): (Vec<f64>, Vec<f64>) = itls.into_iter().unzip();
            let each = [alone(&first, one), alone(&second, other)];
            let worst = slo::worst(each.into_iter().flatten());
            prop_assert_eq!(together(&[(&first, one), (&second, other)]), worst);
            // One server held by itself is what a server alone is.
            prop_assert_eq!(together(&[(&first, one)]), each[0]);
        }
    }

    #[test]
    fn restart_of_one_is_named_and_what_follows_begins_anew() {
        let mut sharers =
            Sharers::new(["chat", "code"].map(|name| Sharer::new(name.into(), Some(limits(0.05)))).into());
        let later = |itls: &[f64]| Snapshot { at: Time(0.6), ..page(itls) };
        sharers.take(&[page(&[0.01]), page(&[0.01])]).unwrap();
        let pages = [later(&[0.01, 0.01]), later(&[])];
        let error = sharers.take(&pages).unwrap_err();
        assert!(error.starts_with("code: the engine restarted"), "{error}");
        sharers.begin(&pages);
        sharers.take(&[page(&[0.01; 3]), page(&[0.01; 3])]).unwrap();
        assert!(sharers.0.iter().all(|sharer| sharer.window.is_some()));
    }

    #[test]
    fn one_server_shares_with_nobody() {
        assert!(Sharers::new(vec![Sharer::new("chat".into(), None)]).is_empty());
    }
}
