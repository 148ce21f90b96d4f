//! The named patterns: what kinds of request a server sees, in what rhythm, at what share of its capacity.

use std::fmt;
use std::str::FromStr;

use super::workload::{Lengths, Phase, Rhythm, Shape, Workload};

/// The named patterns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// Chat at a constant rate.
    Steady,
    /// Chat in bursts.
    Bursty,
    /// Chat whose rate swings like a day, in ten minutes.
    Diurnal,
    /// Chat, then long prompts with short answers, then short prompts with long answers, then long contexts.
    PhaseShift,
    /// Very long prompts.
    LongContext,
    /// Very long answers.
    LongGeneration,
    /// Chat close to what the server can do.
    HighConcurrency,
    /// Long prompts that the prefix cache mostly knows.
    HighCacheHit,
    /// Chat for 20 s, then nothing for 10 s.
    OnOff,
    /// Now and then a request.
    Light,
    /// Long prompts, hardly any answer.
    PrefillHeavy,
}

impl Pattern {
    /// Every pattern.
    pub const ALL: [Self; 11] = [
        Self::Steady,
        Self::Bursty,
        Self::Diurnal,
        Self::PhaseShift,
        Self::LongContext,
        Self::LongGeneration,
        Self::HighConcurrency,
        Self::HighCacheHit,
        Self::OnOff,
        Self::Light,
        Self::PrefillHeavy,
    ];

    /// Its name, as `--workload` takes it.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Bursty => "bursty",
            Self::Diurnal => "diurnal",
            Self::PhaseShift => "phase-shift",
            Self::LongContext => "long-context",
            Self::LongGeneration => "long-generation",
            Self::HighConcurrency => "high-concurrency",
            Self::HighCacheHit => "high-cache-hit",
            Self::OnOff => "on-off",
            Self::Light => "light",
            Self::PrefillHeavy => "prefill-heavy",
        }
    }

    /// Share of the server's capacity at default clocks that this pattern asks for in the mean.
    ///
    /// Capacity is throughput with the batch as full as it goes; a server that keeps its latency promises runs at
    /// about a third of that.
    #[must_use]
    pub fn utilization(self) -> f64 {
        match self {
            Self::Light => 0.03,
            Self::Bursty => 0.25,
            Self::Steady | Self::Diurnal | Self::OnOff | Self::PhaseShift | Self::LongContext => 0.3,
            Self::LongGeneration | Self::HighCacheHit => 0.35,
            Self::PrefillHeavy => 0.5,
            Self::HighConcurrency => 0.7,
        }
    }

    /// The kinds of request it consists of, with the seconds of each; one kind lasts for ever.
    #[must_use]
    pub fn shapes(self) -> Vec<(f64, Shape)> {
        match self {
            Self::Steady
            | Self::Bursty
            | Self::Diurnal
            | Self::HighConcurrency
            | Self::OnOff
            | Self::Light => {
                vec![(60.0, Shape::CHAT)]
            }
            Self::PhaseShift => {
                vec![
                    (60.0, Shape::CHAT),
                    (60.0, Shape::SUMMARY),
                    (60.0, Shape::ESSAY),
                    (60.0, Shape::DOCUMENT),
                ]
            }
            Self::LongContext => vec![(60.0, Shape::DOCUMENT)],
            Self::LongGeneration => vec![(60.0, Shape::ESSAY)],
            Self::HighCacheHit => vec![(60.0, Shape::AGENT)],
            Self::PrefillHeavy => vec![(60.0, Shape::SUMMARY)],
        }
    }

    /// How its rate moves.
    #[must_use]
    pub fn rhythm(self) -> Rhythm {
        match self {
            Self::Bursty => Rhythm::Bursty { contrast: 6.0, burst_s: 8.0, calm_s: 20.0 },
            Self::Diurnal => Rhythm::Diurnal { period_s: 600.0, depth: 0.8 },
            Self::OnOff => Rhythm::OnOff { on_s: 20.0, off_s: 10.0 },
            _ => Rhythm::Steady,
        }
    }
}

impl Workload {
    /// Code completion in the rhythm of the public Azure code trace of 2023: bursts of about 40 s, then silence for a minute
    /// or more, in which hardly a request comes. To be sized.
    #[must_use]
    pub fn code() -> Self {
        Self {
            phases: vec![Phase { seconds: 60.0, rate: 0.0, shape: Shape::CODE }],
            rhythm: Rhythm::Bursty { contrast: 1000.0, burst_s: 40.0, calm_s: 80.0 },
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key())
    }
}

impl FromStr for Pattern {
    type Err = super::SimError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let wanted = name.replace('_', "-").to_ascii_lowercase();
        Self::ALL.into_iter().find(|pattern| pattern.key() == wanted).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|pattern| pattern.key()).collect();
            super::SimError::UnknownName { kind: "workload", given: name.to_owned(), known: known.join(", ") }
        })
    }
}

impl Shape {
    /// Chat: means near those of the public Azure conversation trace of 2023 (1155 prompt, 211 output tokens).
    pub const CHAT: Self = Self {
        prompt: Lengths { median: 800.0, sigma: 0.85, max: 4096 },
        output: Lengths { median: 150.0, sigma: 0.8, max: 1000 },
        hit_chance: 0.3,
        hit_share: 0.6,
    };

    /// Code completion: prompts and outputs near those of the public Azure code trace of 2023 (2048 and 28 tokens in the
    /// mean, prompts of at most 7437).
    pub const CODE: Self = Self {
        prompt: Lengths { median: 1500.0, sigma: 0.95, max: 7437 },
        output: Lengths { median: 13.0, sigma: 1.2, max: 1000 },
        hit_chance: 0.0,
        hit_share: 0.0,
    };

    /// A long prompt and a short answer.
    pub const SUMMARY: Self = Self {
        prompt: Lengths { median: 2500.0, sigma: 0.5, max: 8000 },
        output: Lengths { median: 16.0, sigma: 0.5, max: 64 },
        hit_chance: 0.0,
        hit_share: 0.0,
    };

    /// A short prompt and a long answer.
    pub const ESSAY: Self = Self {
        prompt: Lengths { median: 150.0, sigma: 0.6, max: 1000 },
        output: Lengths { median: 900.0, sigma: 0.4, max: 2500 },
        hit_chance: 0.1,
        hit_share: 0.5,
    };

    /// A whole document as prompt.
    pub const DOCUMENT: Self = Self {
        prompt: Lengths { median: 9000.0, sigma: 0.4, max: 20_000 },
        output: Lengths { median: 250.0, sigma: 0.5, max: 800 },
        hit_chance: 0.1,
        hit_share: 0.5,
    };

    /// An agent that sends its growing history again and again.
    pub const AGENT: Self = Self {
        prompt: Lengths { median: 3000.0, sigma: 0.6, max: 10_000 },
        output: Lengths { median: 150.0, sigma: 0.6, max: 800 },
        hit_chance: 0.95,
        hit_share: 0.95,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_is_found_by_its_key_and_unknown_ones_are_answered_with_the_list() {
        for pattern in Pattern::ALL {
            assert_eq!(pattern.key().parse(), Ok(pattern));
        }
        assert_eq!("Phase_Shift".parse(), Ok(Pattern::PhaseShift));
        let error = "steaddy".parse::<Pattern>().unwrap_err().to_string();
        assert!(error.starts_with("unknown workload `steaddy`; known: steady, bursty"), "{error}");
    }
}
