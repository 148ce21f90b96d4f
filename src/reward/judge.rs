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

/// Which of the limits cannot be judged of the engines of a server, and why. Worked out when one of them changes,
/// as pages come several times a second.
#[derive(Debug, Clone, Default)]
pub(crate) struct NotJudged {
    of: Option<(Vec<&'static Profile>, Option<Limits>)>,
}

impl NotJudged {
    /// The reasons, where the engines or the limits are others than at the last look; without a page nothing is
    /// new.
    pub(crate) fn look(
        &mut self,
        engines: &[&'static Profile],
        limits: Option<Limits>,
    ) -> Option<Vec<String>> {
        if engines.is_empty() || self.of.as_ref().is_some_and(|(of, under)| of == engines && *under == limits)
        {
            return None;
        }
        self.of = Some((engines.to_vec(), limits));
        Some(limits.map(|limits| not_judged(engines, &limits)).unwrap_or_default())
    }
}

/// Which of the limits cannot be judged of these engines, and why.
#[must_use]
pub fn not_judged(engines: &[&Profile], limits: &Limits) -> Vec<String> {
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
    fn reasons_are_worked_out_once_for_an_engine_and_its_limits() {
        let limits = |statistic| Limits {
            ttft: crate::units::Seconds(2.0),
            tpot: crate::units::Seconds(0.25),
            statistic,
            window: crate::units::Seconds(30.0),
        };
        let (llama, vllm) = (named("llama.cpp").unwrap(), named("vLLM").unwrap());
        let (mean, percentile) = (Some(limits(Statistic::Mean)), Some(limits(Statistic::P95)));
        let mut look = NotJudged::default();
        for (engines, limits, reasons) in [
            (&[llama][..], mean, Some(1)),
            (&[llama], mean, None),
            (&[], mean, None),
            (&[llama], mean, None),
            (&[llama], percentile, Some(2)),
            (&[vllm, llama], percentile, Some(2)),
            (&[vllm], percentile, Some(0)),
            (&[vllm], percentile, None),
            (&[llama], None, Some(0)),
        ] {
            assert_eq!(look.look(engines, limits).map(|reasons| reasons.len()), reasons, "{limits:?}");
        }
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
