//! Every built-in profile on a page of its engine. `tests/data/metrics/README.md` says how each page was made.

use approx::assert_relative_eq;

use super::testing::{page, quill};
use super::*;
use crate::metrics::health::{Event, Health};
use crate::metrics::page::{Page, PageError, Text};
use crate::metrics::report::describe;
use crate::metrics::signals::Kind;
use crate::metrics::{Histogram, Signals};
use crate::units::{Seconds, Time};

macro_rules! stored {
    ($name:literal) => {
        include_str!(concat!("../../tests/data/metrics/", $name, ".txt"))
    };
}

const VLLM: &str = stored!("vllm-0.32.0-under-load");
const LLAMA: &str = stored!("llama.cpp-0.3.36-under-load");
const LLAMA_IDLE: &str = stored!("llama.cpp-0.3.36-idle-after-load");
const LLAMA_FRESH: &str = stored!("llama.cpp-0.3.36-fresh-start");

const PAGES: [(&str, &str); 8] = [
    ("vLLM", VLLM),
    ("llama.cpp", LLAMA),
    ("SGLang", stored!("sglang-0.5.23-from-its-metrics-classes")),
    ("LMDeploy", stored!("lmdeploy-0.18.0-from-its-metrics-classes")),
    ("TensorRT-LLM", stored!("tensorrt-llm-made-of-names")),
    ("Triton", stored!("triton-made-of-names")),
    ("TGI", stored!("tgi-made-of-names")),
    ("Dynamo", stored!("dynamo-made-of-names")),
];

fn stored(engine: &str) -> &'static str {
    PAGES.iter().find(|(name, _)| *name == engine).unwrap().1
}

fn engine_of(page: &str) -> Option<&'static str> {
    find(all(), Text::new(page.as_bytes()).unwrap()).map(|(engine, _)| engine.name())
}

fn parse(page: &str) -> Page {
    let page = Page::parse(page.as_bytes(), None).unwrap();
    assert_eq!(page.refused, [], "{}", page.engine.name());
    page
}

#[test]
fn built_in_files_are_good_and_say_of_every_signal_whether_it_is_told() {
    for (file, text) in FILES {
        let profile = Profile::parse(text, file).map_err(|error| error.to_string()).unwrap();
        for signal in Signal::all().filter(|_| profile.name() != "Quill") {
            let why = profile.cannot(signal);
            assert!(
                why.is_none_or(|why| !why.is_empty()),
                "{file}: {} neither told nor excused",
                signal.key()
            );
        }
    }
    assert_eq!(built_in().count(), FILES.len());
    assert_eq!(usual().name(), "vLLM");
    assert!(usual().table().iter().map(|row| row.signal).eq(Signal::all()));
}

#[test]
fn page_is_recognised_by_the_engine_whose_it_is_and_by_no_other() {
    for (engine, page) in PAGES {
        let text = Text::new(page.as_bytes()).unwrap();
        let all: Vec<&str> =
            all().filter(|engine| engine.prefix(text).is_some()).map(Profile::name).collect();
        assert_eq!(all, [engine]);
    }
    assert_eq!(engine_of(&page(1, 0)), Some("Quill"));
    assert_eq!(engine_of("up 1\n"), None);
    assert_eq!(named("VLLM").map(Profile::name), Some("vLLM"));
    assert_eq!(named("nothing"), None);
}

#[test]
fn pages_have_what_their_profiles_say_and_agft_can_learn_from_each() {
    for (engine, page) in PAGES {
        let report = describe(&parse(page));
        assert!(report.can_learn() && report.missing.is_empty(), "{engine}: {report}");
        let told: Vec<Signal> = report.present.iter().map(|found| found.signal).collect();
        let due = named(engine).unwrap().table().iter();
        for row in due.filter(|row| row.appears != table::Appears::Perhaps) {
            assert!(told.contains(&row.signal), "{engine}: {}", row.signal);
        }
    }
}

fn mean(histogram: Option<&Histogram>) -> f64 {
    histogram.unwrap().mean().unwrap()
}

#[test]
fn engines_with_the_same_traffic_tell_the_same() {
    // Tokens counted at once, and when a request ends.
    let (at_once, at_end) = ((800.0, 190.0), (600.0, 150.0));
    for (engine, (prompt, generated)) in [
        ("LMDeploy", at_once),
        ("Dynamo", at_once),
        ("SGLang", at_once),
        ("TensorRT-LLM", at_end),
        ("Triton", at_end),
        ("TGI", at_end),
    ] {
        let s = parse(stored(engine)).signals;
        let told = named(engine).unwrap();
        let (running, waiting) = if engine == "SGLang" { (5.0, 0.0) } else { (3.0, 1.0) };
        let waiting = if engine == "LMDeploy" { 2.0 } else { waiting };
        assert_eq!((s.running, s.waiting), (Some(running), Some(waiting)), "{engine}");
        assert_eq!((s.prompt_tokens, s.generation_tokens), (Some(prompt), Some(generated)), "{engine}");
        assert_eq!(s.finished, Some(3.0), "{engine}");
        assert_relative_eq!(mean(s.e2e.as_ref()), 1.05, max_relative = 1e-9);
        if told.row(Signal::Ttft).is_some() {
            let first = mean(s.ttft.as_ref());
            assert!((0.04..0.07).contains(&first), "{engine}: {first}");
        }
        if let Some(per_token) = s.itl.as_ref().or(s.request_tpot.as_ref()) {
            let per_token = per_token.mean().unwrap();
            assert!((0.019..0.022).contains(&per_token), "{engine}: {per_token}");
        }
    }
}

#[test]
fn llama_cpp_tells_a_mean_time_per_token_and_no_latency_else() {
    let s = parse(LLAMA).signals;
    assert_eq!((s.running, s.waiting), (Some(4.0), Some(4.0)));
    assert_eq!((s.prompt_tokens, s.generation_tokens), (Some(4128.0), Some(42768.0)));
    assert_eq!(s.itl, Some(Histogram { sum: 15.1529, count: 42768.0, buckets: vec![] }));
    assert_eq!(s.step_tokens, Some(Histogram { sum: 42768.0, count: 10785.0, buckets: vec![] }));
    assert_eq!((s.ttft, s.e2e, s.request_tpot, s.finished, s.process_start), (None, None, None, None, None));
    let fresh = describe(&parse(LLAMA_FRESH));
    assert!(fresh.can_learn() && fresh.missing.is_empty() && fresh.not_yet.is_empty(), "{fresh}");
    assert_eq!(parse(LLAMA_IDLE).signals.running, Some(0.0));
}

#[test]
fn ranks_of_one_engine_are_one_series_and_its_replicas_are_added() {
    let series = |name: &str, dp: u32, tp: u32, value: u32| {
        format!(
            "sglang:{name}{{dp_rank=\"{dp}\",mode=\"decode\",model_name=\"m\",tp_rank=\"{tp}\"}} {value}\n"
        )
    };
    let mut page = String::new();
    for (dp, value) in [(0, 10), (1, 7)] {
        for tp in 0..4 {
            page += &series("num_running_reqs", dp, tp, value);
            page += &series("realtime_tokens_total", dp, tp, 100 * value);
        }
    }
    let s = parse(&page).signals;
    assert_eq!((s.running, s.generation_tokens, s.prompt_tokens), (Some(17.0), Some(1700.0), None));
}

#[test]
fn only_series_with_the_labels_asked_for_are_read_in_the_unit_of_the_page() {
    let page = parse(stored("Triton"));
    assert_eq!((page.signals.kv_usage, page.signals.finished), (Some(0.25), Some(3.0)));
    assert_eq!(page.signals.e2e, Some(Histogram { sum: 3.15, count: 3.0, buckets: vec![] }));
    assert_eq!(page.models.iter().collect::<Vec<_>>(), ["tensorrt_llm"]);
    let other = Page::parse(stored("Triton").as_bytes(), Some("llama"));
    assert!(matches!(other, Err(PageError::NoSuchModel { .. })), "{other:?}");
}

#[test]
fn page_of_another_profile_is_read_by_its_table() {
    let page = parse(&page(300, 2));
    let itl = Some(Histogram { sum: 3.0, count: 300.0, buckets: vec![] });
    let (running, waiting) = (Some(2.0), Some(0.0));
    let (prompt_tokens, generation_tokens) = (Some(7.0), Some(300.0));
    let expected = Signals { running, waiting, prompt_tokens, generation_tokens, itl, ..Signals::default() };
    assert_eq!(page.signals, expected);
    assert!(page.sources.contains(&(Signal::Itl, "quill_seconds_out".to_owned())), "{:?}", page.sources);
    assert_eq!(page.engine.metric(Signal::Running), "quill_active");
    let report = describe(&page);
    assert!(report.can_learn() && report.missing.is_empty(), "{report}");
    assert!(report.to_string().starts_with("Quill, 1 engine\n"), "{report}");
}

#[test]
fn what_an_engine_cannot_tell_is_not_missing_on_its_page() {
    let mut health = Health::new(Time(0.0), Seconds(3.0));
    let signals = parse(&page(300, 0)).signals;
    assert_eq!(health.page(Time(0.3), &signals, quill()), []);
    let named = Event::Degraded { essential: vec![Signal::Waiting], useful: vec![] };
    assert_eq!(health.page(Time(0.6), &Signals { waiting: None, ..signals }, quill()), [named]);
}

#[test]
fn page_of_no_engine_names_those_looked_for_and_the_one_it_looks_like() {
    let error = Page::parse(b"up 1\n", None).unwrap_err();
    assert!(matches!(error, PageError::NoEngine { .. }));
    let text = error.to_string();
    for part in ["not a page of a known engine", "\"up 1\"", "vLLM (vllm:...", "--disable-log-stats", "Quill"]
    {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains("looks most like"), "{text}");
    let text = Page::parse_among(VLLM.as_bytes(), None, [quill()].into_iter()).unwrap_err().to_string();
    assert!(text.contains("Quill") && !text.contains("vLLM ("), "{text}");
    let renamed = "acme_requests_processing 1\nacme_requests_deferred 0\nacme_tokens_predicted_total 5\n";
    let text = Page::parse(renamed.as_bytes(), None).unwrap_err().to_string();
    for part in ["looks most like llama.cpp", "than llamacpp:", "running requests", "missing: prompt tokens"]
    {
        assert!(text.contains(part), "{part:?} in {text}");
    }
}

#[test]
fn own_profile_takes_the_place_of_the_built_in_one_of_its_name() {
    let text = "name = \"sglang\"\nrecognise = { prefixes = [\"mine_\"] }\nsignals = { running = { names = [\"r\"] } }";
    let own: &'static Profile = Box::leak(Box::new(Profile::parse(text, "own").unwrap()));
    let all = with_built_in(vec![own]);
    let same: Vec<_> = all.iter().filter(|engine| engine.name().eq_ignore_ascii_case("SGLang")).collect();
    assert_eq!((all.len(), same.len(), same[0].path()), (built_in().count(), 1, "/metrics"));
    assert_eq!(same[0].prefixes().collect::<Vec<_>>(), ["mine_"]);
}

#[test]
fn everything_wrong_with_a_file_is_told_at_once() {
    let text = r#"
name = "auto"
path = "metrics"
colour = "blue"
dialects = [{ none_of = [] }]
asleep = [{ path = "/x", key = "k", values = [1], list = "data" }]
[recognise]
prefixes = ["x"]
renamed = { word = "a b", signals = ["speed"] }
[signals]
speed = { names = ["s"] }
running = { names = ["a", "a"], appears = "soon" }
waiting = { ratio = { sum = "s" }, unit = "hours" }
ttft = {}
itl = { names = [{ name = "t", where = { "a-b" = 1 } }, 3] }
[cannot]
running = "no"
e2e = 5
"#;
    let error = Profile::parse(text, "x.toml").unwrap_err().to_string();
    let expected = [
        "name is \"auto\", must be letters, digits",
        "path is \"metrics\", must be a path that begins with /",
        "colour is not a known key, must be one of name, about, path",
        "recognise.prefixes is [\"x\"], must be a list of prefixes that end in : or _",
        "recognise.renamed.word is \"a b\", must be a word",
        "recognise.renamed.signals is [\"speed\"], must be a list of signals",
        "signals.speed is not a signal, must be one of running, waiting, kv_usage",
        "signals.running.names[2] is a once more",
        "signals.running.appears is \"soon\", must be at_start",
        "signals.waiting.ratio stands at a signal that is one number",
        "signals.waiting.ratio.count is missing, must be a metric name",
        "signals.waiting.unit is \"hours\", must be seconds",
        "signals.ttft.names is missing, and so is ratio, one of both",
        "signals.itl.names[1].where.a-b is 1, must be text",
        "signals.itl.names[2] is 3, must be a metric name",
        "cannot.running stands at signals.running too",
        "cannot.e2e is 5, must be the reason",
        "dialects[1].text is missing",
        "dialects[1].none_of is [], must be a list of metric names",
        "asleep[1].list is not whole",
        "asleep[1].values is [1], must be a list of texts or of true and false",
    ];
    for part in expected {
        assert!(error.contains(&format!("x.toml: {part}")), "{part:?} in\n{error}");
    }
    assert_eq!(error.lines().count(), expected.len(), "{error}");
    for (text, part) in [
        ("name = ", "is not TOML"),
        ("name = \"x\"", "recognise is missing"),
        (
            "name = \"x\"\nrecognise = { prefixes = [\"x_\"] }\nsignals = { e2e = { names = [\"e\"] } }",
            "neither running",
        ),
    ] {
        let error = Profile::parse(text, "x.toml").unwrap_err().to_string();
        assert!(error.contains(part), "{part:?} in {error}");
    }
}

proptest::proptest! {
    #[test]
    fn no_text_does_harm(text in "[\\[\\]a-z=\"{},.\n #_:0-9]{0,200}") {
        let _ = Profile::parse(&text, "x");
    }
}

const DOCUMENT: &str = include_str!("../../docs/engines.md");

#[test]
fn document_has_every_engine_with_what_it_tells() {
    let named = |name: &&str| built_in().find(|engine| engine.name() == *name).unwrap();
    let engines = ["vLLM", "SGLang", "llama.cpp", "TensorRT-LLM", "Triton", "LMDeploy", "TGI", "Dynamo"];
    assert_eq!(engines.len() + 1, built_in().count(), "an engine is not in the document");
    for name in &engines {
        assert!(DOCUMENT.contains(&format!("| `{name}` | ")), "{name}");
    }
    assert!(DOCUMENT.contains(&format!("| signal | {} |", engines.join(" | "))));
    for signal in Signal::all() {
        let cell = |name: &&str| match named(name).row(signal) {
            None => "no",
            Some(row) if row.appears == table::Appears::Perhaps => "perhaps",
            Some(row) if row.signal.kind() == Kind::Histogram && !row.has_percentiles() => "mean",
            Some(_) => "yes",
        };
        let cells: Vec<&str> = engines.iter().map(cell).collect();
        let line = format!("| `{}` | {} |", signal.key(), cells.join(" | "));
        assert!(DOCUMENT.contains(&line), "{line}");
    }
}

#[test]
fn document_has_every_key_and_its_example_is_a_profile() {
    let example = DOCUMENT.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    Profile::parse(example, "docs/engines.md").unwrap();
    // A key that nobody knows is answered with those that are known in its place.
    let unknown = "zzz = 1\n[recognise]\nzzz = 1\n[recognise.renamed]\nzzz = 1\n[signals.itl]\nzzz = 1\n\
                   names = [{ zzz = 1 }]\nratio = { zzz = 1 }\n[[dialects]]\nzzz = 1\n[[asleep]]\nzzz = 1\n";
    let error = Profile::parse(unknown, "x").unwrap_err().to_string();
    let mut places = 0;
    for line in error.lines().filter(|line| line.contains("zzz is not a known key")) {
        let place = line.strip_prefix("x: ").and_then(|line| line.split("zzz").next()).unwrap();
        let place = place.replace("signals.itl", "signals.SIGNAL").replace("[1]", "");
        let (_, known) = line.split_once("must be one of ").unwrap();
        let keys = known.split(';').next().unwrap().split(", ");
        let tables = ["recognise", "signals", "cannot", "dialects", "asleep", "renamed", "ratio"];
        for key in keys.filter(|key| !tables.contains(key)) {
            assert!(DOCUMENT.contains(&format!("`{place}{key}`")), "`{place}{key}` is not in the document");
        }
        places += 1;
    }
    assert_eq!(places, 8, "{error}");
}
