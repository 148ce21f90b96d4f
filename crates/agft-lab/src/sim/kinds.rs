//! Kinds of engines: whose page the simulated server shows, and how that page tells of the same world.
//!
//! vLLM's page is written in [`page`](super::page). That of another engine is its recorded page, of which the
//! families are kept that its profile names, with the simulated values in them
//! ([`template`](super::template)): names, labels, types, units and buckets are the engine's own.

use std::sync::LazyLock;

use super::SimError;
use super::stats::{LATENCY, PER_TOKEN, STEP_TOKENS, TTFT};
use super::template::Template;
use agft::engine::{self, Profile};
use agft::metrics::Signal;

/// An engine whose page can be simulated.
#[derive(Debug)]
pub struct Kind {
    /// How agft reads it.
    pub profile: &'static Profile,
    pub(super) habits: Habits,
    /// `None`: vLLM's.
    pub(super) template: Option<Template>,
}

/// What a page's names do not say: when its numbers move, and what is in them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Habits {
    /// Counted when a request ends; what is not named here at once.
    pub(super) at_end: &'static [Signal],
    /// Are prompt tokens found in the cache left out of the prompt tokens?
    pub(super) computed_prompts: bool,
    /// Is the time of the prompt in the time per token of a request?
    pub(super) prompt_in_tpot: bool,
    /// Levels are renewed every so many steps, with every prompt, and [`IDLE_RENEWAL_S`] after the last
    /// renewal where nothing runs.
    pub(super) levels_every: u32,
    /// Significant digits of a number; `None`: all.
    pub(super) digits: Option<usize>,
}

/// See [`Habits::levels_every`].
pub(super) const IDLE_RENEWAL_S: f64 = 30.0;

impl Habits {
    const VLLM: Self =
        Self { at_end: &[], computed_prompts: false, prompt_in_tpot: false, levels_every: 1, digits: None };
}

/// An engine's page as recorded.
struct Recorded {
    engine: &'static str,
    page: &'static str,
    habits: Habits,
}

macro_rules! stored {
    ($name:literal) => {
        include_str!(concat!("../../../../tests/data/metrics/", $name, ".txt"))
    };
}

const TOKENS_AT_END: &[Signal] = &[Signal::PromptTokens, Signal::GenerationTokens];

const RECORDED: &[Recorded] = &[
    Recorded {
        engine: "SGLang",
        page: stored!("sglang-0.5.23-from-its-metrics-classes"),
        // Its --decode-log-interval.
        habits: Habits { levels_every: 40, ..Habits::VLLM },
    },
    Recorded {
        engine: "llama.cpp",
        page: stored!("llama.cpp-0.3.36-under-load"),
        habits: Habits {
            at_end: &[Signal::GenerationTokens],
            computed_prompts: true,
            // A C++ stream's, of counters too.
            digits: Some(6),
            ..Habits::VLLM
        },
    },
    Recorded {
        engine: "TensorRT-LLM",
        page: stored!("tensorrt-llm-made-of-names"),
        habits: Habits {
            at_end: &[Signal::PromptTokens, Signal::GenerationTokens, Signal::Ttft],
            ..Habits::VLLM
        },
    },
    Recorded {
        engine: "Triton",
        page: stored!("triton-made-of-names"),
        habits: Habits { at_end: TOKENS_AT_END, ..Habits::VLLM },
    },
    Recorded {
        engine: "LMDeploy",
        page: stored!("lmdeploy-0.18.0-from-its-metrics-classes"),
        habits: Habits { at_end: &[Signal::PrefixHits], ..Habits::VLLM },
    },
    Recorded {
        engine: "TGI",
        page: stored!("tgi-made-of-names"),
        habits: Habits { at_end: TOKENS_AT_END, prompt_in_tpot: true, ..Habits::VLLM },
    },
    Recorded { engine: "Dynamo", page: stored!("dynamo-made-of-names"), habits: Habits::VLLM },
];

impl Kind {
    /// vLLM.
    #[must_use]
    pub fn usual() -> &'static Self {
        static USUAL: LazyLock<Kind> =
            LazyLock::new(|| Kind { profile: engine::usual(), habits: Habits::VLLM, template: None });
        &USUAL
    }

    /// Every kind, vLLM first. A recorded page that the profile cannot read would be missing; a test reads
    /// each.
    pub fn all() -> impl Iterator<Item = &'static Self> {
        static OTHERS: LazyLock<Vec<Kind>> = LazyLock::new(|| {
            let kind = |recorded: &Recorded| {
                let profile = engine::named(recorded.engine)?;
                let template = Some(Template::new(profile, recorded.page)?);
                Some(Kind { profile, habits: recorded.habits, template })
            };
            RECORDED.iter().filter_map(kind).collect()
        });
        std::iter::once(Self::usual()).chain(OTHERS.iter())
    }

    /// The kinds of a name in upper or lower case: one, or with `all` every one.
    ///
    /// # Errors
    /// [`SimError::UnknownName`]
    pub fn named(name: &str) -> Result<Vec<&'static Self>, SimError> {
        let is_all = name.eq_ignore_ascii_case("all");
        let kinds: Vec<_> =
            Self::all().filter(|kind| is_all || kind.name().eq_ignore_ascii_case(name)).collect();
        if kinds.is_empty() {
            let known: Vec<_> = std::iter::once("all").chain(Self::all().map(Self::name)).collect();
            let (given, known) = (name.to_owned(), known.join(", "));
            return Err(SimError::UnknownName { kind: "engine", given, known });
        }
        Ok(kinds)
    }

    /// The name of its profile.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.profile.name()
    }

    /// The bucket bounds of a histogram: those of the page, else vLLM's.
    pub(super) fn bounds(&self, signal: Signal) -> &'static [f64] {
        self.template.as_ref().and_then(|template| template.bounds(signal)).unwrap_or(match signal {
            Signal::Ttft => TTFT,
            Signal::StepTokens => STEP_TOKENS,
            Signal::E2e => LATENCY,
            _ => PER_TOKEN,
        })
    }
}

/// A name is one kind.
impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        self.profile == other.profile
    }
}

#[cfg(test)]
mod tests;
