//! Every kind's page is read as the engine's, and tells what happened in the world.

use approx::{assert_relative_eq, relative_eq};
use proptest::prelude::*;

use super::super::{Arrivals, FinishedRequest, Pattern, Request, World, WorldSpec};
use super::*;
use agft::metrics::page::Page;
use agft::metrics::{Histogram, Signals};
use agft::units::Time;

#[test]
fn every_profile_has_a_kind_and_the_message_for_a_wrong_name_has_each() {
    let names: Vec<&str> = Kind::all().map(Kind::name).collect();
    for profile in engine::built_in() {
        assert!(names.contains(&profile.name()), "no recorded page of {}", profile.name());
    }
    let told = Kind::named("nothing").unwrap_err().to_string();
    assert_eq!(told, format!("unknown engine `nothing`; known: all, {}", names.join(", ")));
    assert_eq!(Kind::named("LLAMA.CPP").unwrap()[0].name(), "llama.cpp");
    assert_eq!(Kind::named("all").unwrap().len(), names.len());
}

#[test]
fn what_is_counted_when_a_request_ends_is_what_the_profile_tells_people() {
    for kind in Kind::all() {
        for row in kind.profile.table() {
            let told = row.note.contains("counted when a request ends");
            let counted = kind.habits.at_end.contains(&row.signal);
            assert_eq!(counted, told, "{}: {}", kind.name(), row.signal.key());
        }
    }
}

#[test]
fn page_keeps_the_lines_that_its_profile_reads_with_their_labels() {
    for (kind, recorded) in Kind::all().skip(1).zip(RECORDED) {
        let simulated = world(kind, Pattern::Steady, 1).page();
        let series = |page: &str| -> Vec<String> {
            let lines = page.lines().filter(|line| !line.starts_with('#'));
            lines.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
        };
        let (kept, all) = (series(&simulated), series(recorded.page));
        assert!(kept.iter().all(|line| all.contains(line)), "{}", kind.name());
        for signal in Signal::all() {
            let (kept, all) = (parse(&simulated).signals, parse(recorded.page).signals);
            assert_eq!(kept.has(signal), all.has(signal), "{}: {}", kind.name(), signal.key());
        }
    }
}

fn spec(kind: &'static Kind, pattern: Pattern) -> WorldSpec {
    let mut spec = WorldSpec::named("a100", "8b", pattern, None).unwrap();
    spec.engine.kind = kind;
    spec
}

fn world(kind: &'static Kind, pattern: Pattern, seed: u64) -> World {
    World::new(spec(kind, pattern), seed).unwrap()
}

fn parse(page: &str) -> Page {
    let page = Page::parse(page.as_bytes(), None).unwrap();
    assert_eq!(page.refused, [], "{}", page.engine.name());
    page
}

/// Within what six significant digits leave.
fn same(told: Option<f64>, true_value: f64) -> bool {
    told.is_some_and(|told| relative_eq!(told, true_value, max_relative = 1e-5, epsilon = 1e-9))
}

fn sum_of(requests: &[FinishedRequest], of: impl Fn(&FinishedRequest) -> f64) -> f64 {
    requests.iter().map(of).sum()
}

/// A histogram of these values.
fn holds(told: &Histogram, values: &[f64]) -> bool {
    let up_to = |bound: f64| values.iter().filter(|value| **value <= bound).count() as f64;
    same(Some(told.sum), values.iter().sum())
        && same(Some(told.count), values.len() as f64)
        && told.buckets.iter().all(|(bound, count)| relative_eq!(*count, up_to(*bound)))
}

/// What a page of this kind has to say of a world of which vLLM's page says `vllm`.
fn check(kind: &Kind, told: &Signals, vllm: &Signals, finished: &[FinishedRequest]) {
    let (name, ended) = (kind.name(), |signal| kind.habits.at_end.contains(&signal));
    let prompts = sum_of(finished, |done| f64::from(done.request.prompt_tokens));
    let outputs = sum_of(finished, |done| f64::from(done.request.output_tokens));
    if kind.habits.levels_every == 1 {
        assert!(same(told.running, vllm.running.unwrap()) && same(told.waiting, vllm.waiting.unwrap()));
        assert!(told.kv_usage.is_none() || same(told.kv_usage, vllm.kv_usage.unwrap()), "{name}");
    }
    let expected = if ended(Signal::GenerationTokens) { outputs } else { vllm.generation_tokens.unwrap() };
    assert!(same(told.generation_tokens, expected), "{name}: {told:?}");
    let prompt = told.prompt_tokens.unwrap();
    if kind.habits.computed_prompts {
        let all = vllm.prompt_tokens.unwrap();
        let least = all - vllm.prefix_hits.unwrap();
        assert!(prompt <= all * (1.0 + 1e-5) && prompt >= least * (1.0 - 1e-5), "{name}: {prompt} of {all}");
    } else {
        let expected = if ended(Signal::PromptTokens) { prompts } else { vllm.prompt_tokens.unwrap() };
        assert!(same(Some(prompt), expected), "{name}: {told:?}");
    }
    if let Some(hits) = told.prefix_hits {
        assert!(hits <= vllm.prefix_hits.unwrap() + 1e-6, "{name}: {hits}");
        assert!(hits <= told.prefix_queries.unwrap(), "{name}: {hits}");
    }
    assert!(told.finished.is_none() || same(told.finished, finished.len() as f64), "{name}: {told:?}");
    let values = |of: fn(&FinishedRequest) -> f64| finished.iter().map(of).collect::<Vec<f64>>();
    if let Some(e2e) = &told.e2e {
        assert!(holds(e2e, &values(|done| done.e2e().0)), "{name}: {e2e:?}");
    }
    match &told.ttft {
        Some(ttft) if ended(Signal::Ttft) => {
            assert!(holds(ttft, &values(|done| done.ttft().0)), "{name}: {ttft:?}");
        }
        Some(ttft) => {
            let of_vllm = vllm.ttft.as_ref().unwrap();
            assert!(same(Some(ttft.sum), of_vllm.sum) && same(Some(ttft.count), of_vllm.count), "{name}");
        }
        None => {}
    }
    if let Some(tpot) = &told.request_tpot {
        let whole = |done: &FinishedRequest| {
            done.finished.since(done.admitted).0 / f64::from(done.request.output_tokens)
        };
        let later = |done: &FinishedRequest| done.tpot().map_or(0.0, |tpot| tpot.0);
        let values = values(if kind.habits.prompt_in_tpot { whole } else { later });
        assert!(holds(tpot, &values), "{name}: {tpot:?}");
    }
    match &told.itl {
        Some(itl) if ended(Signal::GenerationTokens) => {
            let decoding = sum_of(finished, |done| done.finished.since(done.first_token).0);
            assert!(same(Some(itl.sum), decoding) && same(Some(itl.count), outputs), "{name}: {itl:?}");
        }
        Some(itl) => {
            let of_vllm = vllm.itl.as_ref().unwrap();
            assert!(same(Some(itl.sum), of_vllm.sum) && same(Some(itl.count), of_vllm.count), "{name}");
        }
        None => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn page_is_its_engine_s_and_tells_what_happened(
        pattern in prop::sample::select(Pattern::ALL.to_vec()), seed: u64, until in 0.0..60.0,
    ) {
        let mut truth = world(Kind::usual(), pattern, seed);
        truth.advance(Time(until));
        for kind in Kind::all() {
            let mut world = world(kind, pattern, seed);
            world.advance(Time(until));
            prop_assert_eq!(world.finished(), truth.finished(), "what is shown changes nothing");
            let page = parse(&world.page());
            prop_assert_eq!(page.engine.name(), kind.name());
            let untold = Signal::all().filter(|signal| kind.profile.row(*signal).is_none());
            for signal in untold {
                prop_assert!(!page.signals.has(signal), "{} tells {}", kind.name(), signal.key());
            }
            check(kind, &page.signals, &truth.signals(), truth.finished());
        }
    }
}

#[test]
fn levels_that_are_renewed_seldom_stay_when_the_last_request_has_ended() {
    let request = Request { arrival: Time(1.0), prompt_tokens: 100, output_tokens: 61, cached_tokens: 0 };
    let kind = Kind::named("sglang").unwrap()[0];
    let spec = WorldSpec { arrivals: Arrivals::Listed(vec![request]), ..spec(kind, Pattern::Light) };
    let mut world = World::new(spec, 1).unwrap();
    let mut running = |at: f64| {
        world.advance(Time(at));
        parse(&world.page()).signals.running
    };
    for (at, told) in [(0.5, 0.0), (10.0, 1.0), (29.0, 1.0), (40.0, 0.0)] {
        assert_relative_eq!(running(at).unwrap(), told);
    }
}

#[test]
fn numbers_have_the_digits_of_their_engine() {
    let kind = Kind::named("llama.cpp").unwrap()[0];
    let template = kind.template.as_ref().unwrap();
    let told = |digits| parse(&template.render(digits, |_| 1_234_567.8)).signals.generation_tokens.unwrap();
    assert_relative_eq!(told(None), 1_234_567.8);
    assert_relative_eq!(told(Some(6)), 1_234_570.0);
}
