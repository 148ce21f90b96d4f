//! Recorded requests on a simulated server: cut to what can fit, sped up to the wanted load, begun where the seed says.

use std::sync::LazyLock;

use crate::sim::capacity::{Demand, kv_blocks, requests_per_second};
use crate::sim::{EngineSettings, GpuPreset, ModelPreset, Request, SimError, parse_trace};
use agft::units::Time;

/// The two files are read once; a test holds that they are whole.
static AZURE: LazyLock<Vec<Request>> =
    LazyLock::new(|| parse_trace(include_str!("data/azure-2023-conversation.csv"), 1.0).unwrap_or_default());
static MOONCAKE: LazyLock<Vec<Request>> =
    LazyLock::new(|| parse_trace(include_str!("data/mooncake-synthetic.csv"), 1.0).unwrap_or_default());

/// 16 500 requests, 47 minutes, of the Azure conversation trace of 2023.
#[must_use]
pub fn azure() -> &'static [Request] {
    &AZURE
}

/// 3 993 requests, 17 minutes, of the synthetic Mooncake trace.
#[must_use]
pub fn mooncake() -> &'static [Request] {
    &MOONCAKE
}

/// How a trace is made to fit a server.
pub struct Fit<'a> {
    /// The GPU.
    pub gpu: &'a GpuPreset,
    /// The model.
    pub model: &'a ModelPreset,
    /// The engine.
    pub engine: &'a EngineSettings,
    /// Share of the capacity at default clocks that the whole trace shall ask for ...
    pub utilization: f64,
    /// ... unless its pace is given: this many times faster than recorded.
    pub speed: Option<f64>,
}

impl Fit<'_> {
    /// The requests of a run.
    ///
    /// A request that can never fit the KV cache is cut: its output to half the cache, then its prompt to the rest. The
    /// trace is a circle, so that it never ends before the run does; seed 1 begins at its beginning, others elsewhere.
    ///
    /// # Errors
    /// [`SimError::ModelDoesNotFit`].
    pub fn requests(&self, trace: &[Request], seconds: f64, seed: u64) -> Result<Vec<Request>, SimError> {
        let room = kv_blocks(self.gpu, self.model, self.engine)?.saturating_mul(self.engine.block_tokens);
        let trace: Vec<Request> = trace.iter().map(|request| cut(*request, room)).collect();
        let (Some(demand), Some(last)) = (Demand::of_requests(&trace), trace.last()) else {
            return Ok(Vec::new());
        };
        #[expect(clippy::cast_precision_loss, reason = "a number of requests")]
        let count = trace.len() as f64;
        // The pause from the last request to the first of the next round is a mean one.
        let length = (last.arrival.0 * count / (count - 1.0).max(1.0)).max(SHORTEST_ROUND_S);
        let speed = match self.speed {
            Some(speed) => speed,
            None => {
                let sustained = requests_per_second(self.gpu, self.model, self.engine, &demand)?;
                (self.utilization * sustained).min(MOST_PER_SECOND) * length / count
            }
        };
        #[expect(clippy::cast_precision_loss, reason = "any place in the trace will do")]
        let start = length * (GOLDEN * (seed as f64 - 1.0)).rem_euclid(1.0);
        let first = trace.partition_point(|request| request.arrival.0 < start);
        let mut requests = Vec::new();
        for round in 0_u32.. {
            let skip = if round == 0 { first } else { 0 };
            for request in trace.iter().skip(skip) {
                let at = (request.arrival.0 + f64::from(round) * length - start) / speed;
                if at >= seconds || requests.len() >= MOST_REQUESTS {
                    return Ok(requests);
                }
                requests.push(Request { arrival: Time(at), ..*request });
            }
        }
        Ok(requests)
    }
}

/// Multiples of the golden section spread evenly over a circle, however many there are.
const GOLDEN: f64 = 0.618_033_988_749_895;
/// A trace that takes less time, as one of a single request, comes round after this many seconds of its own time: how
/// often is not in it.
const SHORTEST_ROUND_S: f64 = 1.0;
/// No load is made denser for the sake of utilisation. Requests of a few tokens would come by the thousand, which no
/// server is asked for, and every one costs time and memory.
const MOST_PER_SECOND: f64 = 100.0;
/// No run has more, whatever pace is asked for.
const MOST_REQUESTS: usize = 200_000;

fn cut(mut request: Request, room: u32) -> Request {
    request.output_tokens = request.output_tokens.min(room / 2).max(1);
    request.prompt_tokens = request.prompt_tokens.min(room.saturating_sub(request.output_tokens)).max(1);
    request.cached_tokens = request.cached_tokens.min(request.prompt_tokens);
    request
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::presets::{A100, MODEL_8B};

    #[test]
    fn embedded_traces_are_whole() {
        assert_eq!((azure().len(), mooncake().len()), (16_500, 3_993));
        assert!(mooncake().iter().any(|request| request.cached_tokens > 0));
    }

    #[test]
    fn request_that_cannot_fit_is_cut_and_others_are_left_alone() {
        let request = |prompt_tokens, output_tokens, cached_tokens| Request {
            arrival: Time(1.0),
            prompt_tokens,
            output_tokens,
            cached_tokens,
        };
        assert_eq!(cut(request(700, 100, 50), 1000), request(700, 100, 50));
        assert_eq!(cut(request(5000, 100, 4000), 1000), request(900, 100, 900));
        assert_eq!(cut(request(5000, 5000, 0), 1000), request(500, 500, 0));
    }

    #[test]
    fn trace_is_a_circle_that_begins_where_the_seed_says_and_asks_for_the_wanted_load() {
        let engine = EngineSettings::default();
        let fit = Fit { gpu: &A100, model: &MODEL_8B, engine: &engine, utilization: 0.3, speed: None };
        let (one, two) =
            (fit.requests(azure(), 20_000.0, 1).unwrap(), fit.requests(azure(), 20_000.0, 2).unwrap());
        assert_eq!(one[0], Request { arrival: Time(0.0), ..azure()[0] });
        assert_ne!(one[0].prompt_tokens, two[0].prompt_tokens);
        let demand = Demand::of_requests(azure()).unwrap();
        let wanted = 0.3 * requests_per_second(&A100, &MODEL_8B, &engine, &demand).unwrap();
        let rate = |requests: &[Request]| requests.len() as f64 / 20_000.0;
        assert!((rate(&one) / wanted - 1.0).abs() < 0.1, "{} against {wanted}", rate(&one));
        assert!(one.windows(2).all(|pair| pair[0].arrival.0 <= pair[1].arrival.0));
        let tiny = [Request { arrival: Time(0.0), prompt_tokens: 1, output_tokens: 1, cached_tokens: 0 }];
        let asked = fit.requests(&tiny, 600.0, 1).unwrap().len() as f64 / 600.0;
        assert!((0.5 * MOST_PER_SECOND..=1.01 * MOST_PER_SECOND).contains(&asked), "{asked} a second");
        let paced = Fit { speed: Some(1.0), engine: &engine, gpu: &A100, model: &MODEL_8B, utilization: 0.3 };
        assert_eq!(paced.requests(&tiny, 600.0, 1).unwrap().len(), 600);
        assert_eq!(Fit { speed: Some(1e9), ..paced }.requests(&tiny, 600.0, 1).unwrap().len(), MOST_REQUESTS);
        let fast = Fit { speed: Some(1000.0), ..fit };
        assert!(fast.requests(mooncake(), 5.0, 1).unwrap().len() > mooncake().len());
    }
}
