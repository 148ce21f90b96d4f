//! The servers on the GPUs, and whether their latency limits are kept. Of several, each has a page, limits
//! and latencies of its own, and one clock serves all.

use serde::{Deserialize, Serialize};

use crate::metrics::Snapshot;
use crate::metrics::window::Window;
use crate::reward::slo::{self, LatencyWatch, Limited, Limits, Violation};
use crate::units::{Seconds, Time};

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

/// All servers of the group; mostly one, and then what is seen of the whole group is its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Servers {
    all: Vec<Sharer>,
    /// A limit was broken when they were judged last.
    broken: bool,
}

impl Servers {
    /// One server.
    pub(super) fn alone(limits: Option<Limits>, latency: LatencyWatch, broken: bool) -> Self {
        Self { all: vec![Sharer { latency, ..Sharer::new(String::new(), limits) }], broken }
    }

    /// Several instead. One that is named shares with nobody.
    pub(super) fn share(&mut self, sharers: Vec<Sharer>) {
        if sharers.len() > 1 {
            self.all = sharers;
        }
    }

    fn is_one(&self) -> bool {
        self.all.len() == 1
    }

    /// The limits of each that has some, and the latencies they are about.
    fn promises(&self) -> impl Iterator<Item = (&Limits, &LatencyWatch)> {
        self.all.iter().filter_map(|server| Some((server.limits.as_ref()?, &server.latency)))
    }

    /// The limit that is broken worst now, and whether it is news that one is or none; `None` without limits.
    pub(super) fn judge(&mut self, now: Time) -> Option<(Option<Violation>, bool)> {
        self.promises().next()?;
        let violations = self.promises().filter_map(|(limits, latency)| latency.violation(limits, now));
        let worst = slo::worst(violations);
        let was_broken = std::mem::replace(&mut self.broken, worst.is_some());
        Some((worst, worst.is_some() != was_broken))
    }

    /// The largest statistic as a share of its limit; `None` without samples.
    pub(super) fn pressure(&self, now: Time) -> Option<f64> {
        self.promises().filter_map(|(limits, latency)| latency.pressure(limits, now)).max_by(f64::total_cmp)
    }

    /// The longest of the windows that limits are judged over.
    pub(super) fn longest_window(&self) -> Seconds {
        let longest = self.promises().map(|(limits, _)| limits.window.0).max_by(f64::total_cmp);
        Seconds(longest.unwrap_or(0.0))
    }

    /// Would the limits on the time to first token be kept if it took this much longer?
    pub(super) fn can_wait(&self, longer: Seconds, now: Time) -> bool {
        self.promises().all(|(limits, latency)| latency.leaves(Limited::Ttft, longer, limits, now))
    }

    /// Takes the page of each of several. The error says whose counters began anew: of the time between
    /// nothing can be said then.
    pub(super) fn take(&mut self, pages: &[Snapshot]) -> Result<(), String> {
        let mut whole = Ok(());
        let pages = if self.is_one() { &[] } else { pages };
        for (sharer, page) in self.all.iter_mut().zip(pages) {
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

    /// A round is closed, with `whole` as the window of all: takes the latencies in each one's own.
    pub(super) fn close(&mut self, whole: &Window) {
        let one = self.is_one().then_some(whole);
        for server in &mut self.all {
            let own = server.window.take();
            if let (Some(limits), Some(window)) = (&server.limits, one.or(own.as_ref())) {
                server.latency.push(window, limits);
            }
        }
    }

    /// Nothing is news of what comes.
    pub(super) fn forget(&mut self) {
        self.forget_latencies();
        self.broken = false;
    }

    /// Holds nothing of before against the limits: after an outage or a restart of an engine.
    pub(super) fn forget_latencies(&mut self) {
        for sharer in &mut self.all {
            sharer.latency.clear();
            sharer.window = None;
        }
    }

    /// What is counted from here on begins with these pages, or where there are none with the next.
    pub(super) fn begin(&mut self, pages: &[Snapshot]) {
        for (at, sharer) in self.all.iter_mut().enumerate() {
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
    use crate::reward::slo::Statistic;

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
        let sharers: Vec<Sharer> = servers.iter().enumerate().map(sharer).collect();
        let mut watched = Servers::alone(sharers[0].limits, LatencyWatch::default(), false);
        watched.share(sharers);
        let pages = |end| servers.iter().map(|(itls, _)| page(&itls[..end])).collect::<Vec<Snapshot>>();
        watched.take(&pages(0)).unwrap();
        for end in 1..=servers[0].0.len() {
            watched.take(&pages(end)).unwrap();
            watched.close(&Window::between(&pages(end - 1)[0], &pages(end)[0]).unwrap());
        }
        watched.judge(page(servers[0].0).at).and_then(|(worst, _)| worst)
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
        let mut sharers = Servers::alone(None, LatencyWatch::default(), false);
        sharers.share(["chat", "code"].map(|name| Sharer::new(name.into(), Some(limits(0.05)))).into());
        let later = |itls: &[f64]| Snapshot { at: Time(0.6), ..page(itls) };
        sharers.take(&[page(&[0.01]), page(&[0.01])]).unwrap();
        let pages = [later(&[0.01, 0.01]), later(&[])];
        let error = sharers.take(&pages).unwrap_err();
        assert!(error.starts_with("code: the engine restarted"), "{error}");
        sharers.begin(&pages);
        sharers.take(&[page(&[0.01; 3]), page(&[0.01; 3])]).unwrap();
        assert!(sharers.all.iter().all(|sharer| sharer.window.is_some()));
    }

    #[test]
    fn one_server_shares_with_nobody() {
        let alone = Servers::alone(None, LatencyWatch::default(), false);
        let mut named = alone.clone();
        named.share(vec![Sharer::new("chat".into(), Some(limits(0.05)))]);
        assert_eq!(named, alone);
    }
}
