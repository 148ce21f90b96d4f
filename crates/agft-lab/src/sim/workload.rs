//! Who asks what and when: seeded streams of requests in the patterns that servers see.

use super::dice::Dice;
use agft::units::Time;

/// One request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Request {
    /// When it reaches the server.
    pub arrival: Time,
    /// Prompt length, at least 1.
    pub prompt_tokens: u32,
    /// Tokens it will generate, at least 1.
    pub output_tokens: u32,
    /// Leading prompt tokens that the prefix cache holds.
    pub cached_tokens: u32,
}

/// A lognormal distribution of token counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lengths {
    /// Median.
    pub median: f64,
    /// Standard deviation of the logarithm.
    pub sigma: f64,
    /// Longest.
    pub max: u32,
}

impl Lengths {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to u32 first")]
    fn draw(&self, dice: &mut Dice) -> u32 {
        dice.lognormal(self.median, self.sigma).round().clamp(1.0, f64::from(self.max)) as u32
    }

    /// Mean of the distribution, its upper bound left aside.
    #[must_use]
    pub fn mean(&self) -> f64 {
        (self.median * (self.sigma * self.sigma / 2.0).exp()).min(f64::from(self.max))
    }
}

/// What requests look like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Prompt lengths.
    pub prompt: Lengths,
    /// Output lengths.
    pub output: Lengths,
    /// Share of requests whose prompt begins with something cached ...
    pub hit_chance: f64,
    /// ... and how much of such a prompt that is, at most; the share is uniform up to it.
    pub hit_share: f64,
}

impl Shape {
    pub(super) fn draw(&self, arrival: Time, dice: &mut Dice) -> Request {
        let prompt_tokens = self.prompt.draw(dice);
        let output_tokens = self.output.draw(dice);
        let hit = dice.uniform() < self.hit_chance;
        let share = self.hit_share * (0.5 + 0.5 * dice.uniform());
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a u32")]
        let cached_tokens = if hit { (f64::from(prompt_tokens) * share) as u32 } else { 0 };
        Request { arrival, prompt_tokens, output_tokens, cached_tokens }
    }

    /// Mean number of prompt tokens that are found in the cache.
    #[must_use]
    pub fn mean_cached(&self) -> f64 {
        self.prompt.mean() * self.hit_chance * self.hit_share * 0.75
    }
}

/// How the arrival rate moves around its mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rhythm {
    /// Poisson arrivals at a constant rate.
    Steady,
    /// Poisson arrivals whose rate jumps between a low and a high level at random moments.
    Bursty {
        /// High level over low level.
        contrast: f64,
        /// Mean length of a burst in seconds.
        burst_s: f64,
        /// Mean length of a calm spell in seconds.
        calm_s: f64,
    },
    /// A sine, lowest at time zero.
    Diurnal {
        /// Length of a day in seconds.
        period_s: f64,
        /// Amplitude as a share of the mean, 0 to 1.
        depth: f64,
    },
    /// Load for a while, then nothing at all.
    OnOff {
        /// Seconds with load.
        on_s: f64,
        /// Seconds without.
        off_s: f64,
    },
}

impl Rhythm {
    /// Highest rate over mean rate.
    fn peak(self) -> f64 {
        match self {
            Self::Steady => 1.0,
            Self::Bursty { contrast, burst_s, calm_s } => {
                contrast * (burst_s + calm_s) / (contrast * burst_s + calm_s)
            }
            Self::Diurnal { depth, .. } => 1.0 + depth,
            Self::OnOff { on_s, off_s } => (on_s + off_s) / on_s,
        }
    }
}

/// A stretch of a workload with one kind of request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Phase {
    /// Its length in seconds.
    pub seconds: f64,
    /// Mean arrivals per second.
    pub rate: f64,
    /// What they ask for.
    pub shape: Shape,
}

/// An endless stream of requests: phases in a circle, under one rhythm.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// The phases, at least one.
    pub phases: Vec<Phase>,
    /// How the rate moves within them.
    pub rhythm: Rhythm,
}

impl Workload {
    /// The phase at `t` seconds after the start.
    fn phase_at(&self, t: f64) -> Option<&Phase> {
        let circle: f64 = self.phases.iter().map(|phase| phase.seconds).sum();
        let mut within = t.rem_euclid(circle);
        for phase in &self.phases {
            if within < phase.seconds {
                return Some(phase);
            }
            within -= phase.seconds;
        }
        self.phases.first()
    }

    /// The moments within the first `seconds` at which the load changes its nature: phases, spells of a burst, the edges
    /// of a pause; of a day, whose change has no edges, every 30 s.
    #[must_use]
    pub fn turns(&self, seconds: f64, seed: u64) -> Vec<f64> {
        let mut turns = Vec::new();
        if self.phases.len() > 1 {
            let mut at = 0.0;
            for phase in self.phases.iter().cycle().take(10_000) {
                at += phase.seconds;
                turns.push(at);
            }
        }
        match self.rhythm {
            Rhythm::Steady => {}
            Rhythm::Diurnal { .. } => turns.extend((1..10_000).map(|k| 30.0 * f64::from(k))),
            Rhythm::OnOff { on_s, off_s } => {
                let circles = (0..10_000).map(|k| (on_s + off_s) * f64::from(k));
                turns.extend(circles.flat_map(|start| [start, start + on_s]));
            }
            Rhythm::Bursty { .. } => {
                let mut stream = Stream::new(self.clone(), seed);
                while stream.at < seconds && stream.next_request().is_some() {}
                turns.append(&mut stream.turns);
            }
        }
        turns.retain(|turn| *turn > 0.0 && *turn < seconds);
        turns.sort_by(f64::total_cmp);
        turns.dedup();
        turns
    }

    /// Every request of the first `seconds`.
    #[must_use]
    pub fn requests(&self, seconds: f64, seed: u64) -> Vec<Request> {
        let mut stream = Stream::new(self.clone(), seed);
        std::iter::from_fn(|| stream.next_request())
            .take_while(|request| request.arrival.0 < seconds)
            .collect()
    }
}

/// The endless stream itself: a Poisson process at the peak rate, thinned to the rate of the moment.
#[derive(Debug)]
pub(super) struct Stream {
    workload: Workload,
    dice: Dice,
    shape_dice: Dice,
    at: f64,
    peak: f64,
    /// Bursty only: is there a burst, and until when does the present spell last.
    burst: bool,
    spell_end: f64,
    /// Ends of the spells so far.
    turns: Vec<f64>,
}

impl Stream {
    pub(super) fn new(workload: Workload, seed: u64) -> Self {
        let highest = workload.phases.iter().map(|phase| phase.rate).fold(0.0, f64::max);
        Self {
            peak: highest * workload.rhythm.peak(),
            workload,
            dice: Dice::new(seed, "arrivals"),
            shape_dice: Dice::new(seed, "shapes"),
            at: 0.0,
            burst: true,
            spell_end: 0.0,
            turns: Vec::new(),
        }
    }

    /// The next request; `None` if the workload has no load at all.
    pub(super) fn next_request(&mut self) -> Option<Request> {
        if self.peak <= 0.0 || !self.peak.is_finite() {
            return None;
        }
        loop {
            self.at += self.dice.exponential(1.0 / self.peak);
            let factor = self.factor();
            let phase = *self.workload.phase_at(self.at)?;
            if self.dice.uniform() * self.peak < phase.rate * factor {
                return Some(phase.shape.draw(Time(self.at), &mut self.shape_dice));
            }
        }
    }

    /// Rate of the moment over mean rate.
    fn factor(&mut self) -> f64 {
        let at = self.at;
        match self.workload.rhythm {
            Rhythm::Steady => 1.0,
            Rhythm::Diurnal { period_s, depth } => {
                1.0 - depth * (std::f64::consts::TAU * at / period_s).cos()
            }
            Rhythm::OnOff { on_s, off_s } => {
                if at.rem_euclid(on_s + off_s) < on_s {
                    (on_s + off_s) / on_s
                } else {
                    0.0
                }
            }
            Rhythm::Bursty { contrast, burst_s, calm_s } => {
                while self.spell_end <= at {
                    self.burst = !self.burst;
                    self.spell_end += self.dice.exponential(if self.burst { burst_s } else { calm_s });
                    self.turns.push(self.spell_end);
                }
                let low = (burst_s + calm_s) / (contrast * burst_s + calm_s);
                if self.burst { contrast * low } else { low }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests per second over a long time.
    fn mean_rate(rhythm: Rhythm) -> f64 {
        let phase = Phase { seconds: 60.0, rate: 5.0, shape: Shape::CHAT };
        let seconds = 60_000.0;
        Workload { phases: vec![phase], rhythm }.requests(seconds, 7).len() as f64 / seconds
    }

    #[test]
    fn every_rhythm_keeps_the_mean_rate() {
        for rhythm in [
            Rhythm::Steady,
            Rhythm::Bursty { contrast: 6.0, burst_s: 8.0, calm_s: 20.0 },
            Rhythm::Diurnal { period_s: 600.0, depth: 0.8 },
            Rhythm::OnOff { on_s: 20.0, off_s: 10.0 },
        ] {
            let rate = mean_rate(rhythm);
            assert!((rate / 5.0 - 1.0).abs() < 0.05, "{rhythm:?}: {rate} per second");
        }
    }

    #[test]
    fn off_means_no_request_at_all() {
        let phase = Phase { seconds: 60.0, rate: 5.0, shape: Shape::CHAT };
        let load = Workload { phases: vec![phase], rhythm: Rhythm::OnOff { on_s: 20.0, off_s: 10.0 } };
        assert!(load.requests(600.0, 1).iter().all(|request| request.arrival.0.rem_euclid(30.0) < 20.0));
    }

    #[test]
    fn phases_follow_each_other_in_a_circle() {
        let one = Shape { prompt: Lengths { median: 100.0, sigma: 0.0, max: 1000 }, ..Shape::CHAT };
        let two = Shape { prompt: Lengths { median: 200.0, sigma: 0.0, max: 1000 }, ..Shape::CHAT };
        let phase = |shape, rate| Phase { seconds: 10.0, rate, shape };
        let load = Workload { phases: vec![phase(one, 20.0), phase(two, 40.0)], rhythm: Rhythm::Steady };
        for request in load.requests(100.0, 1) {
            let first = request.arrival.0.rem_euclid(20.0) < 10.0;
            assert_eq!(request.prompt_tokens, if first { 100 } else { 200 });
        }
    }

    #[test]
    fn a_load_without_requests_is_empty_not_endless() {
        let silent = Workload { phases: Vec::new(), rhythm: Rhythm::Steady };
        assert_eq!(silent.requests(10.0, 1), []);
        let zero = Phase { seconds: 10.0, rate: 0.0, shape: Shape::CHAT };
        assert_eq!(Workload { phases: vec![zero], rhythm: Rhythm::Steady }.requests(10.0, 1), []);
    }

    #[test]
    fn chat_has_the_means_of_the_azure_trace() {
        let phase = Phase { seconds: 60.0, rate: 50.0, shape: Shape::CHAT };
        let requests = Workload { phases: vec![phase], rhythm: Rhythm::Steady }.requests(1000.0, 3);
        let mean = |tokens: fn(&Request) -> u32| {
            requests.iter().map(|request| f64::from(tokens(request))).sum::<f64>() / requests.len() as f64
        };
        assert!((mean(|request| request.prompt_tokens) / 1155.0 - 1.0).abs() < 0.1);
        assert!((mean(|request| request.output_tokens) / 211.0 - 1.0).abs() < 0.1);
    }
}
