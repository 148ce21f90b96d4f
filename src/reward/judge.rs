//! What can be judged of an engine's latencies, by what its page tells.

use super::slo::{Limited, Limits, Statistic};
use super::{DelaySource, Objective};
use crate::engine::Profile;
use crate::engine::table::Row;
use crate::metrics::Signal;

impl Profile {
    /// Why a limit on this statistic cannot be judged; `None` if it can.
    #[must_use]
    pub fn unjudged(&self, limit: Limited, statistic: Statistic) -> Option<String> {
        let Some(row) = self.limited(limit) else {
            let why = self.cannot(of(limit)).filter(|why| !why.is_empty());
            let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
            return Some(format!("{} tells no {}{why}", self.name(), words(limit)));
        };
        let wants_percentiles = statistic != Statistic::Mean;
        (wants_percentiles && !row.has_percentiles())
            .then(|| format!("{} tells the mean of the {} only, no {statistic}", self.name(), words(limit)))
    }

    /// Why this objective cannot be pursued; `None` if it can.
    #[must_use]
    pub fn unreachable(&self, objective: Objective) -> Option<String> {
        (objective.delay_weight() > 0.0 && !self.tells_delay())
            .then(|| format!("{} tells neither a time per token nor requests and tokens", self.name()))
    }

    /// What a limit is held against.
    fn limited(&self, limit: Limited) -> Option<&Row> {
        match limit {
            Limited::Ttft => self.row(Signal::Ttft),
            Limited::Tpot => self.time_per_token(),
        }
    }
}

/// Which of the limits cannot be judged of these engines, and why.
pub(crate) fn not_judged(engines: &[&Profile], limits: &Limits) -> Vec<String> {
    let each = engines.iter().flat_map(|engine| {
        [Limited::Ttft, Limited::Tpot].map(|limit| engine.unjudged(limit, limits.statistic))
    });
    each.flatten().collect()
}

/// What the delay of a reward is, in words.
pub(crate) fn delay_words(engine: &Profile, source: DelaySource) -> &'static str {
    let is_mean_of_requests = engine.row(Signal::Itl).is_some_and(|row| !row.has_percentiles());
    match source {
        DelaySource::InterToken if !is_mean_of_requests => "mean time between tokens",
        DelaySource::InterToken | DelaySource::RequestTpot => {
            "mean time per token of the requests that ended"
        }
        DelaySource::Little => "requests in the server over tokens per second",
    }
}

/// The signal that a limit is about.
fn of(limit: Limited) -> Signal {
    match limit {
        Limited::Ttft => Signal::Ttft,
        Limited::Tpot => Signal::Itl,
    }
}

fn words(limit: Limited) -> &'static str {
    match limit {
        Limited::Ttft => "time to first token",
        Limited::Tpot => "time per output token",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::named;

    #[test]
    fn limits_are_judged_where_the_engine_tells_their_statistic() {
        let unjudged = |engine: &str, limit, statistic| named(engine).unwrap().unjudged(limit, statistic);
        for engine in ["vLLM", "SGLang", "TensorRT-LLM", "LMDeploy", "Dynamo"] {
            for (limit, statistic) in [(Limited::Ttft, Statistic::P99), (Limited::Tpot, Statistic::P95)] {
                assert_eq!(unjudged(engine, limit, statistic), None, "{engine}");
            }
        }
        assert_eq!(unjudged("llama.cpp", Limited::Tpot, Statistic::Mean), None);
        let no_percentiles = unjudged("llama.cpp", Limited::Tpot, Statistic::P95).unwrap();
        assert_eq!(no_percentiles, "llama.cpp tells the mean of the time per output token only, no p95");
        let none = unjudged("llama.cpp", Limited::Ttft, Statistic::Mean).unwrap();
        assert!(none.starts_with("llama.cpp tells no time to first token (it does not time"), "{none}");
        assert!(unjudged("Triton", Limited::Tpot, Statistic::Mean).is_some());
        assert_eq!(unjudged("TGI", Limited::Tpot, Statistic::P95), None);
    }

    #[test]
    fn objective_with_a_delay_needs_one() {
        for engine in crate::engine::all() {
            assert_eq!(engine.unreachable(Objective::Edp), None, "{}", engine.name());
        }
        let text =
            "name = \"x\"\nrecognise = { prefixes = [\"x_\"] }\nsignals = { running = { names = [\"r\"] } }";
        let few = Profile::parse(text, "x").unwrap();
        assert!(few.unreachable(Objective::Ed2p).is_some() && few.unreachable(Objective::Energy).is_none());
    }
}
