//! Pages captured from running servers, pages bent on purpose, and random ones.
//!
//! The expected numbers were read off the captured pages with regular expressions in another language
//! (`^NAME(\{.*\})? (\S+)$` per name, buckets added by their `le`), not with this code.

use approx::assert_relative_eq;
use proptest::prelude::*;

use super::super::report::describe;
use super::super::signals::Slot;
use super::super::window::{Discontinuity, Window};
use super::*;
use crate::metrics::Histogram;

macro_rules! captured {
    ($name:literal) => {
        include_str!(concat!("../../../tests/data/metrics/vllm-", $name, ".txt"))
    };
}

const V0_FRESH: &str = captured!("0.8.5.post2-V0-fresh-start");
const V0_LOADED: &str = captured!("0.8.5.post2-V0-under-load");
const BOTH_NAMES: &str = captured!("0.10.2.post2-under-load");
const STUCK: &str = captured!("0.16.0-8-requests-stuck-in-first-step");
const LOADED: &str = captured!("0.32.0-under-load");
const IDLE: &str = captured!("0.32.0-idle-after-load");
const RESTARTED: &str = captured!("0.32.0-after-restart");
const TWO_ENGINES: &str = captured!("0.32.0-dp2-under-load");
const TWO_API_FRESH: &str = captured!("0.32.0-2-api-servers-fresh-start");
const TWO_API_LOADED: &str = captured!("0.32.0-2-api-servers-under-load");

const V0: &str = "V0 engine (0.8 or earlier)";
const V1_BOTH: &str = "V1 engine, current and deprecated names (0.9 to 0.12)";
const V1: &str = "V1 engine, current names (0.12 or later)";

fn parse(text: &str) -> Page {
    let page = Page::parse(text.as_bytes(), None).unwrap();
    assert_eq!(page.refused, [], "captured pages have nothing to refuse");
    page
}

fn snapshot(text: &str, at: f64) -> Snapshot {
    parse(text).into_snapshot(Time(at), Seconds(0.004))
}

/// Sum, count, number of finite buckets and the cumulative count of the first ones.
#[track_caller]
fn assert_histogram(found: Option<&Histogram>, sum: f64, count: f64, finite: usize, first: &[(f64, f64)]) {
    let found = found.unwrap();
    assert_relative_eq!(found.sum, sum, max_relative = 1e-12);
    assert_eq!((found.count, found.buckets.len()), (count, finite));
    assert_eq!(&found.buckets[..first.len()], first);
}

#[test]
fn v0_page_under_load_is_read_by_its_old_names() {
    let page = parse(V0_LOADED);
    let s = &page.signals;
    assert_eq!((s.running, s.waiting, s.kv_usage), (Some(8.0), Some(0.0), Some(0.0001220703125)));
    assert_eq!((s.prompt_tokens, s.generation_tokens), (Some(9766.0), Some(20178.0)));
    assert_eq!((s.preemptions, s.finished), (Some(0.0), Some(316.0)));
    assert_eq!((s.prefix_queries, s.prefix_hits, s.process_start), (None, None, None));
    assert_histogram(s.step_tokens.as_ref(), 29762.0, 2847.0, 13, &[(1.0, 243.0), (8.0, 2738.0)]);
    assert_histogram(s.ttft.as_ref(), 1.3514773845672607, 317.0, 22, &[(0.001, 0.0), (0.005, 271.0)]);
    assert_histogram(s.itl.as_ref(), 31.290096044540405, 19854.0, 19, &[(0.01, 19800.0), (0.025, 19853.0)]);
    assert_histogram(s.e2e.as_ref(), 32.731616258621216, 316.0, 21, &[(0.3, 316.0)]);
    assert_eq!(s.request_tpot, None);
    assert_eq!(page.dialect, V0);
}

#[test]
fn v0_page_before_the_first_request_has_counters_but_no_latencies() {
    let s = parse(V0_FRESH).signals;
    assert_eq!((s.generation_tokens, s.running, s.kv_usage), (Some(0.0), Some(0.0), Some(0.0)));
    assert_eq!((s.ttft, s.itl, s.e2e, s.finished), (None, None, None, None));
}

#[test]
fn page_with_old_and_new_names_is_read_once_by_the_new_ones() {
    let page = parse(BOTH_NAMES);
    let s = &page.signals;
    assert_eq!(s.kv_usage, Some(0.0004883110541414881));
    assert_eq!((s.prefix_queries, s.prefix_hits), (Some(11587.0), Some(0.0)));
    assert_histogram(s.itl.as_ref(), 25.07895169499261, 22700.0, 19, &[(0.01, 22691.0), (0.025, 22700.0)]);
    for (signal, metric) in [
        (Signal::KvUsage, "vllm:kv_cache_usage_perc"),
        (Signal::PrefixHits, "vllm:prefix_cache_hits_total"),
        (Signal::Itl, "vllm:inter_token_latency_seconds"),
    ] {
        assert!(page.sources.contains(&(signal, metric.to_owned())), "{:?}", page.sources);
    }
    assert_eq!(page.dialect, V1_BOTH);
}

#[test]
fn current_page_under_load_is_read_whole() {
    let page = parse(LOADED);
    let s = &page.signals;
    assert_eq!((s.running, s.waiting, s.kv_usage), (Some(8.0), Some(0.0), Some(0.0004883110541414881)));
    assert_eq!((s.prompt_tokens, s.generation_tokens), (Some(12284.0), Some(24801.0)));
    assert_eq!((s.prefix_queries, s.prefix_hits), (Some(12284.0), Some(0.0)));
    assert_eq!((s.preemptions, s.finished), (Some(0.0), Some(385.0)));
    assert_eq!(s.process_start, Some(1795216055.08));
    assert_histogram(
        s.step_tokens.as_ref(),
        37085.0,
        3209.0,
        13,
        &[(1.0, 41.0), (8.0, 3040.0), (16.0, 3049.0)],
    );
    assert_histogram(s.ttft.as_ref(), 5.993742227554321, 393.0, 22, &[(0.001, 0.0), (0.005, 14.0)]);
    assert_histogram(s.itl.as_ref(), 75.84325732899742, 24408.0, 19, &[(0.01, 24227.0), (0.025, 24404.0)]);
    assert_histogram(s.request_tpot.as_ref(), 1.1940071981428373, 385.0, 19, &[(0.01, 385.0)]);
    assert_histogram(s.e2e.as_ref(), 81.04575061798096, 385.0, 21, &[(0.3, 319.0), (0.5, 385.0)]);
    assert_eq!((page.dialect, page.engines.len()), (V1, 1));
    assert_eq!(page.models, BTreeSet::from(["tiny".to_owned()]));
    // A step's tokens are prompt tokens and generated ones: two independent counters agree with the histogram.
    assert_eq!(s.step_tokens.as_ref().map(|steps| steps.sum), Some(12284.0 + 24801.0));
}

#[test]
fn engines_of_one_server_are_added_and_their_cache_usage_averaged() {
    let page = parse(TWO_ENGINES);
    let s = &page.signals;
    assert_eq!((s.running, s.waiting), (Some(6.0 + 1.0), Some(0.0)));
    assert_relative_eq!(s.kv_usage.unwrap(), (0.00036623329060614385 + 6.103888176767214e-05) / 2.0);
    assert_eq!((s.prompt_tokens, s.generation_tokens), (Some(3946.0 + 4305.0), Some(8040.0 + 8401.0)));
    assert_eq!(s.finished, Some(123.0 + 131.0));
    let step_sum = 11986.0 + 12706.0;
    assert_histogram(s.step_tokens.as_ref(), step_sum, 2041.0 + 2233.0, 13, &[(1.0, 55.0), (8.0, 4027.0)]);
    let itl_sum = 24.377277656998103 + 23.893528753000737;
    assert_histogram(s.itl.as_ref(), itl_sum, 7911.0 + 8269.0, 19, &[(0.01, 16127.0), (0.025, 16180.0)]);
    assert_histogram(s.e2e.as_ref(), 25.318865537643433 + 25.227863073349, 254.0, 21, &[(0.3, 249.0)]);
    assert_eq!(page.engines.len(), 2);
}

#[test]
fn page_of_several_api_servers_is_read_and_has_no_process_start() {
    let s = parse(TWO_API_LOADED).signals;
    assert_eq!((s.running, s.waiting, s.kv_usage), (Some(8.0), Some(0.0), Some(0.0004883110541414881)));
    assert_eq!((s.prompt_tokens, s.generation_tokens), (Some(5878.0), Some(11584.0)));
    assert_histogram(s.itl.as_ref(), 25.389908576001744, 11400.0, 19, &[(0.01, 11233.0), (0.025, 11391.0)]);
    assert_eq!(s.process_start, None);
}

#[test]
fn several_api_servers_show_no_gauges_before_the_first_request() {
    let s = parse(TWO_API_FRESH).signals;
    assert_eq!((s.running, s.waiting, s.kv_usage), (None, None, None));
    assert_eq!(s.generation_tokens, Some(0.0));
}

#[test]
fn engine_inside_its_first_step_looks_idle_on_its_page() {
    let s = parse(STUCK).signals;
    assert_eq!((s.running, s.waiting, s.generation_tokens), (Some(0.0), Some(0.0), Some(0.0)));
}

#[test]
fn window_between_two_captured_pages_is_their_difference() {
    let window = Window::between(&snapshot(LOADED, 10.0), &snapshot(IDLE, 25.0)).unwrap();
    assert_eq!(window.elapsed, Seconds(15.0));
    assert_eq!(window.generation_tokens, Some(51848.0 - 24801.0));
    assert_eq!(window.prompt_tokens, Some(25351.0 - 12284.0));
    assert_eq!(window.finished, Some(811.0 - 385.0));
    assert_eq!(window.engine_steps(), Some(6797.0 - 3209.0));
    assert_eq!((window.at_start.running, window.at_end.running), (Some(8.0), Some(0.0)));
    let itl = window.itl.unwrap();
    let mean = (144.6693093509998 - 75.84325732899742) / (51037.0 - 24408.0);
    assert_relative_eq!(itl.mean().unwrap(), mean, max_relative = 1e-9);
    // 50742 - 24227 of the 26629 new tokens, 99.6 %, took at most 10 ms.
    assert_eq!(itl.quantile_bounds(0.99), Some((0.0, 0.01)));
    assert_eq!(itl.quantile_bounds(0.997), Some((0.01, 0.025)));
}

#[test]
fn restart_is_seen_by_the_process_start_or_else_by_the_counters() {
    let restart = Discontinuity::Restarted { from: 1795216055.08, to: 1795217126.68 };
    assert_eq!(Window::between(&snapshot(LOADED, 1.0), &snapshot(RESTARTED, 2.0)), Err(restart));
    let backwards = Discontinuity::Backwards {
        signal: Signal::PromptTokens,
        metric: "vllm:prompt_tokens_total".to_owned(),
    };
    assert_eq!(
        Window::between(&snapshot(TWO_API_LOADED, 1.0), &snapshot(TWO_API_FRESH, 2.0)),
        Err(backwards)
    );
}

#[test]
fn report_names_engine_dialect_and_what_is_missing() {
    let current = describe(&parse(TWO_ENGINES));
    assert_eq!((current.dialect, current.engines, current.can_learn()), (V1, 2, true));
    assert_eq!((current.missing.as_slice(), current.not_yet.as_slice()), (&[][..], &[][..]));
    assert_eq!(current.present.len(), 15);

    let old = describe(&parse(V0_LOADED));
    assert_eq!((old.dialect, old.engines, old.can_learn()), (V0, 1, true));
    assert_eq!(old.missing, [Signal::PrefixQueries, Signal::PrefixHits]);

    let fresh = describe(&parse(TWO_API_FRESH));
    assert_eq!(fresh.not_yet, [Signal::Running, Signal::Waiting, Signal::KvUsage]);
    assert!(fresh.missing.is_empty() && fresh.can_learn());

    let text = describe(&parse(V0_LOADED)).to_string();
    assert!(text.contains("prefix cache hits: missing, not needed (vllm:prefix_cache_hits_total)"), "{text}");
}

#[test]
fn report_counts_a_refused_signal_once_and_not_as_missing() {
    let text = LOADED.replace(
        "vllm:num_requests_running{engine=\"0\",model_name=\"tiny\"} 8.0",
        "vllm:num_requests_running{engine=\"0\",model_name=\"tiny\"} NaN",
    );
    let report = describe(&Page::parse(text.as_bytes(), None).unwrap());
    assert_eq!((report.refused.len(), report.missing.len(), report.not_yet.len()), (1, 0, 0));
    assert!(!report.can_learn());
}

/// A page of two gauges, a counter with two engines and a histogram, `odd` put in the place of one of its lines.
fn page_with(line: &str, odd: &str) -> Page {
    let page = "vllm:num_requests_running{engine=\"0\"} 1\n\
                vllm:num_requests_waiting{engine=\"0\"} 2\n\
                vllm:kv_cache_usage_perc{engine=\"0\"} 0.5\n\
                vllm:generation_tokens_total{engine=\"0\"} 10\n\
                vllm:generation_tokens_total{engine=\"1\"} 20\n\
                vllm:inter_token_latency_seconds_bucket{engine=\"0\",le=\"0.1\"} 3\n\
                vllm:inter_token_latency_seconds_bucket{engine=\"0\",le=\"0.2\"} 4\n\
                vllm:inter_token_latency_seconds_bucket{engine=\"0\",le=\"+Inf\"} 5\n\
                vllm:inter_token_latency_seconds_sum{engine=\"0\"} 1.5\n\
                vllm:inter_token_latency_seconds_count{engine=\"0\"} 5\n";
    assert!(page.contains(line));
    Page::parse(page.replacen(line, odd, 1).as_bytes(), None).unwrap()
}

const GAUGE: &str = "vllm:num_requests_running{engine=\"0\"} 1\n";
const COUNTER: &str = "vllm:generation_tokens_total{engine=\"1\"} 20\n";
const BUCKET: &str = "vllm:inter_token_latency_seconds_bucket{engine=\"0\",le=\"0.2\"} 4\n";
const INFINITE: &str = "vllm:inter_token_latency_seconds_bucket{engine=\"0\",le=\"+Inf\"} 5\n";
const SUM: &str = "vllm:inter_token_latency_seconds_sum{engine=\"0\"} 1.5\n";
const COUNT: &str = "vllm:inter_token_latency_seconds_count{engine=\"0\"} 5\n";

#[test]
fn number_that_cannot_be_right_costs_its_own_signal_only_and_is_named() {
    for (line, value, signal, says) in [
        (GAUGE, "NaN", Signal::Running, "NaN is not a finite number"),
        (GAUGE, "+Inf", Signal::Running, "inf is not a finite number"),
        (GAUGE, "-1", Signal::Running, "-1 is negative"),
        (GAUGE, "1e999", Signal::Running, "inf is not a finite number"),
        (GAUGE, "one", Signal::Running, "one is not a number"),
        (GAUGE, "0x10", Signal::Running, "0x10 is not a number"),
        (GAUGE, "", Signal::Running, "it has no value"),
        (COUNTER, "NaN", Signal::GenerationTokens, "NaN is not a finite number"),
        (COUNTER, "1e", Signal::GenerationTokens, "1e is not a number"),
        (BUCKET, "2", Signal::Itl, "its buckets decrease from 3 to 2 at 0.2"),
        (BUCKET, "NaN", Signal::Itl, "NaN is not a finite number"),
        (BUCKET, "x", Signal::Itl, "x is not a number"),
        (INFINITE, "4", Signal::Itl, "its count 5 contradicts its last bucket 4"),
        (SUM, "-0.1", Signal::Itl, "-0.1 is negative"),
        (COUNT, "4", Signal::Itl, "its count 4 contradicts its last bucket 5"),
    ] {
        let (name, _) = line.split_once("} ").unwrap();
        let page = page_with(line, &format!("{name}}} {value}\n"));
        let [refused] = page.refused.as_slice() else { panic!("{value}: {:?}", page.refused) };
        assert_eq!((refused.signal, refused.why.as_str()), (signal, says));
        assert!(!page.signals.has(signal));
        assert!(
            page.signals.has(Signal::Waiting) && page.signals.has(Signal::KvUsage),
            "only its own signal"
        );
        assert!(refused.to_string().starts_with("vllm:"), "{refused}");
    }
}

#[test]
fn histogram_with_parts_missing_or_doubled_is_refused() {
    for (line, odd, says) in [
        (SUM, "", "it has no _sum"),
        (SUM, &[SUM, SUM].concat(), "it has one series twice (_sum)"),
        (BUCKET, &[BUCKET, BUCKET].concat(), "it has the bucket 0.2 twice"),
        (BUCKET, &BUCKET.replace("0.2", "NaN"), "a bucket's bound is NaN"),
        (BUCKET, &BUCKET.replace("0.2", "1,5"), "a bucket's bound is not a number"),
        (BUCKET, &BUCKET.replace(",le=\"0.2\"", ""), "a bucket's bound is not a number"),
        (BUCKET, &BUCKET.replace("0.2", "high"), "high is not a number"),
    ] {
        let page = page_with(line, odd);
        assert_eq!(page.refused.iter().map(|r| r.why.as_str()).collect::<Vec<_>>(), [says]);
    }
}

#[test]
fn gauge_given_twice_is_refused_rather_than_added() {
    assert_eq!(page_with(GAUGE, &[GAUGE, GAUGE].concat()).refused[0].why, "it has one series twice (value)");
}

#[test]
fn cache_usage_above_one_is_refused() {
    let page = page_with(
        "vllm:kv_cache_usage_perc{engine=\"0\"} 0.5",
        "vllm:kv_cache_usage_perc{engine=\"0\"} 37.5",
    );
    assert_eq!(page.refused[0].why, "37.5 is not a share from 0 to 1");
}

#[test]
fn histogram_without_infinite_bucket_or_without_count_is_still_whole() {
    let whole = page_with(SUM, SUM).signals.itl;
    assert_eq!(page_with(INFINITE, "").signals.itl, whole);
    assert_eq!(page_with(COUNT, "").signals.itl, whole);
    let buckets = vec![(0.1, 3.0), (0.2, 4.0)];
    assert_eq!(whole, Some(Histogram { sum: 1.5, count: 5.0, buckets }));
}

#[test]
fn prefix_hit_rate_of_0_6_is_no_counter() {
    let page = page_with(GAUGE, "vllm:gpu_prefix_cache_hit_rate{model_name=\"m\"} 0.4\n");
    assert_eq!((page.signals.prefix_queries, page.signals.prefix_hits), (None, None));
}

#[test]
fn model_filter_keeps_the_series_of_one_model() {
    let text = "process_start_time_seconds 1.7e9\n\
                vllm:num_requests_running{engine=\"0\",model_name=\"a\"} 1\n\
                vllm:num_requests_running{engine=\"0\",model_name=\"b \\\"2\\\"\"} 2\n\
                vllm:num_requests_waiting 9\n";
    let page = Page::parse(text.as_bytes(), Some("b \"2\"")).unwrap();
    assert_eq!((page.signals.running, page.signals.waiting), (Some(2.0), None));
    assert_eq!(page.signals.process_start, Some(1.7e9));
    let error = Page::parse(text.as_bytes(), Some("c")).unwrap_err();
    assert!(error.to_string().contains(r#"no metrics of model "c"; it has "a", "b \"2\"""#), "{error}");
    assert_eq!(Page::parse(text.as_bytes(), None).unwrap().signals.running, Some(1.0 + 2.0));
}

#[test]
fn page_of_a_gateway_that_renames_the_prefix_is_read() {
    for prefix in ["kserve_vllm:", "ray_vllm_", "vllm_", "gateway_7:"] {
        let page = parse(&LOADED.replace("\nvllm:", &format!("\n{prefix}")));
        assert_eq!(page.signals, parse(LOADED).signals);
        assert!(page.sources.contains(&(Signal::Running, format!("{prefix}num_requests_running"))));
    }
}

#[test]
fn levels_of_processes_told_apart_by_pid_are_one_engine_s() {
    let text = "vllm:kv_cache_usage_perc{engine=\"0\",pid=\"100\"} 0.0\n\
                vllm:kv_cache_usage_perc{engine=\"0\",pid=\"101\"} 0.64\n\
                vllm:kv_cache_usage_perc{pid=\"102\",engine=\"1\"} 0.32\n\
                vllm:kv_cache_usage_perc{engine=\"1\"} 0.1\n\
                vllm:num_requests_running{engine=\"0\",pid=\"100\"} 7\n\
                vllm:num_requests_running{engine=\"0\",pid=\"101\"} 0\n\
                vllm:num_requests_running{engine=\"1\",pid=\"100\"} 2\n\
                vllm:generation_tokens_total{pid=\"100\"} 10\n\
                vllm:generation_tokens_total{pid=\"101\"} 20\n";
    let signals = parse(text).signals;
    assert_relative_eq!(signals.kv_usage.unwrap(), (0.64 + 0.32) / 2.0);
    assert_eq!(signals.running, Some(7.0 + 2.0));
    assert_eq!(signals.generation_tokens, Some(10.0 + 20.0));
}

#[test]
fn body_that_is_no_metrics_page_is_told_what_it_is() {
    let error = |body: &[u8]| Page::parse(body, None).unwrap_err();
    assert_eq!(error(b""), PageError::Empty);
    assert_eq!(error(b" \n\r\n"), PageError::Empty);
    assert_eq!(error(b"\n <!DOCTYPE html><html>"), PageError::Html);
    for json in [&b"{\"detail\":\"Not Found\"}"[..], b"[]"] {
        let error = error(json);
        assert!(matches!(error, PageError::Json { .. }), "{error}");
        assert!(error.to_string().contains("TensorRT-LLM: /prometheus/metrics"), "{error}");
    }
    assert_eq!(error(b"vllm:\xff"), PageError::NotText { at: 5 });
    assert_eq!(error(&vec![b'#'; LARGEST_PAGE + 1]), PageError::TooLarge { limit: LARGEST_PAGE });
    let other = "python_gc_objects_collected_total 3\n# HELP other:num_running_reqs The number of running requests.\nother:num_running_reqs 3.0\n";
    assert_eq!(
        error(other.as_bytes()),
        PageError::NoEngine {
            beginning: "other:num_running_reqs 3.0".into(),
            looked_for: engine::looked_for(engine::all()),
            alike: String::new(),
        }
    );
    assert!(matches!(error(b"process_start_time_seconds 1\n"), PageError::NoEngine { .. }));
}

#[test]
fn page_cut_within_a_line_is_refused_because_the_last_value_may_be_cut_too() {
    assert_eq!(Page::parse(b"vllm:generation_tokens_total 123", None), Err(PageError::Truncated));
    assert!(Page::parse(b"vllm:generation_tokens_total 123\n# EOF", None).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn random_bytes_do_no_harm(body in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Page::parse(&body, None);
    }

    #[test]
    fn random_samples_of_known_names_do_no_harm_and_give_only_sane_numbers(
        lines in prop::collection::vec(
            r#"vllm:(num_requests_running|kv_cache_usage_perc|generation_tokens_total|time_to_first_token_seconds_(bucket|sum|count))(\{(engine|le|model_name)="[0-9.a+Inf,}\\"{]{0,4}",?\})? {0,2}(-?[0-9]{0,3}(\.[0-9])?(e[0-9]{1,3})?|NaN|\+Inf|.{0,3})"#,
            0..12,
        ),
    ) {
        if let Ok(page) = Page::parse((lines.join("\n") + "\n").as_bytes(), None) {
            assert_sane(&page.signals);
        }
    }

    #[test]
    fn blanks_line_ends_timestamps_and_marks_change_nothing(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..8), 0..40),
        end in prop::sample::select(vec!["\n", "\r\n", "\n\n \n", "\n# EOF", "\n# EOF\n", "\n# EOF\r\n\r\n"]),
    ) {
        let mut lines: Vec<String> = LOADED.lines().map(str::to_owned).collect();
        for (at, edit) in edits {
            let line = at.get_mut(&mut lines);
            let sample = line.ends_with(|last: char| last.is_ascii_digit()) && !line.starts_with('#');
            match edit {
                0 => line.push_str("  \t"),
                1 => line.push('\r'),
                2 => line.push_str("\n\n  \r\n# a comment"),
                3 => line.insert(0, ' '),
                4 if sample => line.push_str(" 1795216055080"),
                5 if sample => line.push_str(" # {trace_id=\"x y\"} 0.67 1795216055.1"),
                6 => line.push_str("\nvllm:num_requests_created{engine=\"0\"} 1.7e+09"),
                _ => line.insert(0, '\n'),
            }
        }
        let bent = lines.join("\n") + end;
        prop_assert_eq!(parse(&bent).signals, parse(LOADED).signals);
    }

    #[test]
    fn truncated_page_gives_an_error_or_the_values_of_the_whole_page(cut in 0..LOADED.len()) {
        let whole = parse(LOADED).signals;
        let Ok(page) = Page::parse(&LOADED.as_bytes()[..cut], None) else { return Ok(()) };
        let part = page.signals;
        for (part, whole) in [
            (part.running, whole.running),
            (part.waiting, whole.waiting),
            (part.kv_usage, whole.kv_usage),
            (part.prompt_tokens, whole.prompt_tokens),
            (part.generation_tokens, whole.generation_tokens),
            (part.prefix_queries, whole.prefix_queries),
            (part.prefix_hits, whole.prefix_hits),
            (part.preemptions, whole.preemptions),
        ] {
            prop_assert!(part.is_none() || part == whole);
        }
        // The one signal of several series on this page: some of its reasons may be cut off.
        prop_assert!(part.finished.is_none() || part.finished <= whole.finished);
        for (part, whole) in [
            (part.step_tokens, whole.step_tokens),
            (part.ttft, whole.ttft),
            (part.itl, whole.itl),
            (part.request_tpot, whole.request_tpot),
            (part.e2e, whole.e2e),
        ] {
            prop_assert!(part.is_none() || part == whole);
        }
    }

    #[test]
    fn mutated_page_does_no_harm_and_gives_only_sane_numbers(
        two_engines in any::<bool>(),
        mutations in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
    ) {
        let mut body = if two_engines { TWO_ENGINES } else { BOTH_NAMES }.as_bytes().to_vec();
        for (at, byte) in mutations {
            let at = at.index(body.len());
            body[at] = byte & 0x7f;
        }
        if let Ok(page) = Page::parse(&body, None) {
            assert_sane(&page.signals);
        }
    }
}

/// Whatever is let in is finite, not negative, and its buckets ascend.
fn assert_sane(signals: &Signals) {
    let mut signals = signals.clone();
    for signal in Signal::all() {
        match signals.slot(signal) {
            Slot::Number(slot) => {
                assert!(slot.is_none_or(|v| v.is_finite() && v >= 0.0), "{signal}: {slot:?}");
            }
            Slot::Histogram(slot) => {
                let Some(Histogram { sum, count, buckets }) = slot else { continue };
                assert!(sum.is_finite() && *sum >= 0.0 && count.is_finite(), "{signal}: {sum} {count}");
                assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{signal}: {buckets:?}");
                assert!(buckets.iter().all(|b| b.1 <= *count), "{signal}: {buckets:?} of {count}");
            }
        }
    }
}
