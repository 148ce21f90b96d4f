//! The inference engine: continuous batching with chunked prefill and paged KV cache, as vLLM V1 schedules.
//!
//! One step: [`Engine::schedule`] gives running requests their tokens first (one per decode, the rest of the step's
//! budget to unfinished prompts), preempts the youngest where the KV cache is full, then admits waiting requests in
//! order of arrival. [`Engine::complete`] hands out the tokens and only then renews the statistics, so the page is
//! always one step old, and a prompt appears on it in one lump when its last chunk is done.
//!
//! Simplification: cached prefix blocks are counted per request, not shared between concurrent ones.

use std::collections::VecDeque;

use super::kinds::Kind;
use super::physics::Batch;
use super::stats::Stats;
use super::workload::Request;
use agft::units::{Seconds, Time};

/// How the engine is set up. The defaults are vLLM's where it has one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EngineSettings {
    /// Most tokens in one step.
    pub max_step_tokens: u32,
    /// Most requests in the running batch.
    pub max_running: usize,
    /// Tokens per KV-cache block.
    pub block_tokens: u32,
    /// KV-cache blocks; `None`: what the GPU's memory leaves beside the weights.
    pub kv_blocks: Option<u32>,
    /// Share of the GPU's memory that the engine takes.
    pub memory_share: f64,
    /// Host time per step in which the GPU waits ...
    pub host_per_step: Seconds,
    /// ... and more of it per running request.
    pub host_per_request: Seconds,
    /// Standard deviation of the logarithm of a step's duration around the model's.
    pub step_jitter: f64,
    /// Unix time that the page gives as the process's start.
    pub process_start: f64,
    /// Whose page it shows. The steps are those of vLLM whatever the kind.
    pub kind: &'static Kind,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            max_step_tokens: 2048,
            max_running: 256,
            block_tokens: 16,
            kv_blocks: None,
            memory_share: 0.9,
            host_per_step: Seconds(0.0015),
            host_per_request: Seconds(5e-6),
            step_jitter: 0.02,
            process_start: 1.75e9,
            kind: Kind::usual(),
        }
    }
}

/// What became of a request: the truth behind the page's histograms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FinishedRequest {
    /// The request.
    pub request: Request,
    /// When it left the queue for the first time.
    pub admitted: Time,
    /// When its first token came.
    pub first_token: Time,
    /// When its last token came.
    pub finished: Time,
    /// How often it was preempted.
    pub preemptions: u32,
}

impl FinishedRequest {
    /// Time to first token.
    #[must_use]
    pub fn ttft(&self) -> Seconds {
        self.first_token.since(self.request.arrival)
    }

    /// Mean time per output token after the first; `None` with one output token.
    #[must_use]
    pub fn tpot(&self) -> Option<Seconds> {
        let later_tokens = self.request.output_tokens.checked_sub(1).filter(|n| *n > 0)?;
        Some(Seconds(self.finished.since(self.first_token).0 / f64::from(later_tokens)))
    }

    /// End-to-end time.
    #[must_use]
    pub fn e2e(&self) -> Seconds {
        self.finished.since(self.request.arrival)
    }
}

/// A request inside the engine.
#[derive(Debug, Clone, Copy)]
struct Active {
    request: Request,
    /// Prefix tokens that need no computing.
    cached: u32,
    /// Tokens whose KV entries exist.
    computed: u32,
    generated: u32,
    blocks: u32,
    /// Tokens in the step under way.
    scheduled: u32,
    admitted: Option<Time>,
    first_token: Option<Time>,
    last_token: Time,
    preemptions: u32,
}

impl Active {
    /// Tokens that must have KV entries before the next token can come.
    fn known(&self) -> u32 {
        self.request.prompt_tokens + self.generated
    }
}

/// The engine's state.
#[derive(Debug)]
pub(super) struct Engine {
    settings: EngineSettings,
    kv_blocks: u32,
    free_blocks: u32,
    running: Vec<Active>,
    waiting: VecDeque<Active>,
    /// Since the last page: they become visible with the next one.
    preempted: u32,
    queried: f64,
    hit: f64,
    pub(super) stats: Stats,
    pub(super) finished: Vec<FinishedRequest>,
    /// Requests too long for the KV cache, refused at once as the API server does.
    pub(super) rejected: Vec<Request>,
}

impl Engine {
    pub(super) fn new(settings: EngineSettings, kv_blocks: u32) -> Self {
        Self {
            settings,
            kv_blocks,
            free_blocks: kv_blocks,
            running: Vec::with_capacity(settings.max_running),
            waiting: VecDeque::new(),
            preempted: 0,
            queried: 0.0,
            hit: 0.0,
            stats: Stats::new(settings.process_start, settings.kind),
            finished: Vec::new(),
            rejected: Vec::new(),
        }
    }

    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Arrival of the oldest request that is running or waiting.
    pub(super) fn oldest_arrival(&self) -> Option<Time> {
        self.arrivals().min_by(|a, b| a.0.total_cmp(&b.0))
    }

    /// Arrivals of all requests that are running or waiting.
    pub(super) fn arrivals(&self) -> impl Iterator<Item = Time> + '_ {
        self.running.iter().chain(&self.waiting).map(|active| active.request.arrival)
    }

    /// Queues a request, or rejects it if it can never fit.
    pub(super) fn submit(&mut self, mut request: Request) {
        let block = self.settings.block_tokens;
        request.prompt_tokens = request.prompt_tokens.max(1);
        request.output_tokens = request.output_tokens.max(1);
        if request.prompt_tokens.saturating_add(request.output_tokens).div_ceil(block) > self.kv_blocks {
            self.rejected.push(request);
            return;
        }
        // Whole blocks only, and the last prompt token is always computed: it yields the first output token.
        let cached = request.cached_tokens.min(request.prompt_tokens - 1) / block * block;
        self.waiting.push_back(Active {
            request,
            cached,
            computed: 0,
            generated: 0,
            blocks: 0,
            scheduled: 0,
            admitted: None,
            first_token: None,
            last_token: request.arrival,
            preemptions: 0,
        });
    }

    /// Plans the next step; `None` if there is nothing to do.
    pub(super) fn schedule(&mut self, now: Time) -> Option<Batch> {
        let mut budget = self.settings.max_step_tokens;
        let preempted_before = self.preempted;
        let mut index = 0;
        while index < self.running.len() && budget > 0 {
            if self.extend_running(index, &mut budget) {
                index += 1;
            } else {
                break;
            }
        }
        // Requests beyond `index` keep their place but do nothing in this step.
        for idle in self.running.get_mut(index..).unwrap_or_default() {
            idle.scheduled = 0;
        }
        if self.preempted == preempted_before {
            self.admit(now, &mut budget);
        }
        let batch = self.batch();
        (batch.prefill_tokens + batch.decode_seqs > 0.0).then_some(batch)
    }

    /// Gives the running request its tokens, preempting the youngest until there is room. `false`: it was the
    /// youngest itself.
    fn extend_running(&mut self, index: usize, budget: &mut u32) -> bool {
        let block = self.settings.block_tokens;
        loop {
            let Some(active) = self.running.get_mut(index) else { return false };
            let tokens = (active.known() - active.computed).min(*budget);
            let more = (active.computed + tokens).div_ceil(block).saturating_sub(active.blocks);
            if more <= self.free_blocks {
                active.blocks += more;
                active.scheduled = tokens;
                self.free_blocks -= more;
                *budget -= tokens;
                return true;
            }
            let Some(mut youngest) = self.running.pop() else { return false };
            self.free_blocks += youngest.blocks;
            youngest.blocks = 0;
            youngest.computed = 0;
            youngest.scheduled = 0;
            youngest.preemptions += 1;
            self.preempted += 1;
            self.waiting.push_front(youngest);
        }
    }

    fn admit(&mut self, now: Time, budget: &mut u32) {
        let block = self.settings.block_tokens;
        while *budget > 0
            && self.running.len() < self.settings.max_running
            && let Some(next) = self.waiting.front()
        {
            let tokens = (next.known() - next.cached).min(*budget);
            let blocks = (next.cached + tokens).div_ceil(block);
            if blocks > self.free_blocks {
                break;
            }
            let Some(mut active) = self.waiting.pop_front() else { break };
            if active.admitted.is_none() {
                active.admitted = Some(now);
                self.queried += f64::from(active.request.prompt_tokens);
                self.hit += f64::from(active.cached);
            }
            active.computed = active.cached;
            active.blocks = blocks;
            active.scheduled = tokens;
            self.free_blocks -= blocks;
            *budget -= tokens;
            self.running.push(active);
        }
    }

    /// The step's work.
    fn batch(&self) -> Batch {
        let (mut prefill, mut decodes, mut context, mut pairs) = (0u32, 0u32, 0u64, 0.0);
        for active in &self.running {
            if active.scheduled == 0 {
                continue;
            }
            let after = active.computed + active.scheduled;
            context += u64::from(after);
            if active.scheduled == 1 && active.generated > 0 {
                decodes += 1;
            } else {
                prefill += active.scheduled;
                pairs +=
                    f64::from(active.scheduled) * f64::midpoint(f64::from(active.computed), f64::from(after));
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "bounded by the KV cache, far below 2^53 tokens")]
        let context_tokens = context as f64;
        Batch {
            prefill_tokens: f64::from(prefill),
            prefill_pairs: pairs,
            decode_seqs: f64::from(decodes),
            context_tokens,
        }
    }

    /// Ends the step: tokens come out, finished requests leave, the page is renewed.
    pub(super) fn complete(&mut self, now: Time) {
        let prompt = self.running.iter().any(|active| active.scheduled > 0 && active.generated == 0);
        let outputs = self.hand_out_tokens(now);
        self.retire(now);
        let stats = &mut self.stats;
        // A step without any output, a prompt's middle chunk alone, is not observed: vLLM has no iteration to record.
        if outputs > 0.0 {
            stats.step_tokens.observe(outputs);
        }
        stats.preemptions += f64::from(std::mem::take(&mut self.preempted));
        stats.prefix_queries += std::mem::take(&mut self.queried);
        stats.prefix_hits += std::mem::take(&mut self.hit);
        stats.running = count(self.running.len());
        stats.waiting = count(self.waiting.len());
        stats.kv_usage = f64::from(self.kv_blocks - self.free_blocks) / f64::from(self.kv_blocks);
        stats.step_ended(now, prompt);
    }

    /// One token for every request whose tokens are all computed; returns prompt and output tokens of the step as
    /// the page counts them.
    fn hand_out_tokens(&mut self, now: Time) -> f64 {
        let stats = &mut self.stats;
        let (mut prompts, mut outputs) = (0.0, 0u32);
        // Most requests got their last token at the same moment: count equal latencies and observe them at once.
        let (mut itl, mut repeats) = (0.0, 0);
        for active in &mut self.running {
            active.computed += std::mem::take(&mut active.scheduled);
            if active.computed < active.known() {
                continue;
            }
            active.generated += 1;
            outputs += 1;
            if active.first_token.is_some() {
                let latency = now.since(active.last_token).0;
                if latency.to_bits() != f64::to_bits(itl) {
                    stats.itl.observe_n(itl, repeats);
                    (itl, repeats) = (latency, 0);
                }
                repeats += 1;
            } else {
                active.first_token = Some(now);
                if !stats.ttft_at_end() {
                    stats.ttft.observe(now.since(active.request.arrival).0);
                }
                prompts += f64::from(active.request.prompt_tokens);
                stats.cached_tokens += f64::from(active.cached);
            }
            active.last_token = now;
        }
        stats.itl.observe_n(itl, repeats);
        stats.prompt_tokens += prompts;
        stats.generation_tokens += f64::from(outputs);
        prompts + f64::from(outputs)
    }

    fn retire(&mut self, now: Time) {
        let Self { running, stats, finished, free_blocks, .. } = self;
        running.retain(|active| {
            if active.generated < active.request.output_tokens {
                return true;
            }
            *free_blocks += active.blocks;
            let done = FinishedRequest {
                request: active.request,
                admitted: active.admitted.unwrap_or(now),
                first_token: active.first_token.unwrap_or(now),
                finished: now,
                preemptions: active.preemptions,
            };
            stats.finished += 1.0;
            stats.e2e.observe(done.e2e().0);
            if stats.ttft_at_end() {
                stats.ttft.observe(done.ttft().0);
            }
            let (first, later) =
                (done.first_token.since(done.admitted).0, done.finished.since(done.first_token).0);
            stats.observe_tpot(first, later, done.request.output_tokens);
            stats.queue_time.observe(done.admitted.since(done.request.arrival).0);
            stats.prefill_time.observe(done.first_token.since(done.admitted).0);
            stats.decode_time.observe(done.finished.since(done.first_token).0);
            stats.inference_time.observe(done.finished.since(done.admitted).0);
            stats.request_prompt.observe(f64::from(done.request.prompt_tokens));
            stats.request_generation.observe(f64::from(done.request.output_tokens));
            stats.request_computed.observe(f64::from(done.request.prompt_tokens - active.cached));
            stats.request_preemptions.observe(f64::from(done.preemptions));
            finished.push(done);
            false
        });
    }
}

#[expect(clippy::cast_precision_loss, reason = "numbers of requests")]
fn count(n: usize) -> f64 {
    n as f64
}
