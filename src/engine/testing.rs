//! A made-up engine: what a second profile looks like.

use super::Engine;
use super::table::{Appears, Row};
use crate::metrics::Signal;

/// It has no histograms, counts the time of its tokens, and can sleep.
#[derive(Debug)]
pub(crate) struct Quill;

static TABLE: [Row; 5] = [
    Row::new(Signal::Running, Appears::AtStart, &["active"]),
    Row::new(Signal::Waiting, Appears::AtStart, &["queued"]),
    Row::new(Signal::PromptTokens, Appears::AtStart, &["tokens_in"]),
    Row::new(Signal::GenerationTokens, Appears::AtStart, &["tokens_out"]),
    Row { pair: Some(("seconds_out", "tokens_out")), ..Row::new(Signal::Itl, Appears::WithTokens, &[]) },
];

impl Engine for Quill {
    fn name(&self) -> &'static str {
        "Quill"
    }

    fn prefixes(&self) -> &'static [&'static str] {
        &["quill_"]
    }

    fn table(&self) -> &'static [Row] {
        &TABLE
    }

    fn health_path(&self) -> Option<&'static str> {
        Some("/alive")
    }

    fn sleeps(&self, status: u16, body: &[u8]) -> bool {
        status == 200 && body == b"asleep"
    }
}

/// Its page after this many tokens of 10 ms each.
pub(crate) fn page(tokens: u32, running: u32) -> String {
    let seconds = 0.01 * f64::from(tokens);
    format!(
        "quill_active {running}\nquill_queued 0\nquill_tokens_in 7\nquill_tokens_out{{slot=\"0\"}} {tokens}\n\
         quill_seconds_out{{slot=\"0\"}} {seconds}\nquill_version_info 1\n"
    )
}

mod tests {
    use super::*;
    use crate::engine::{ENGINES, find, named};
    use crate::metrics::health::{Event, Health};
    use crate::metrics::page::{Page, PageError, Text};
    use crate::metrics::report::describe;
    use crate::metrics::{Histogram, Signals};
    use crate::units::{Seconds, Time};

    const VLLM: &str = include_str!("../../tests/data/metrics/vllm-0.32.0-under-load.txt");

    fn engine_of(page: &str) -> Option<&'static str> {
        find(ENGINES.iter().copied(), Text::new(page.as_bytes()).unwrap()).map(|(engine, _)| engine.name())
    }

    #[test]
    fn page_is_recognised_by_the_engine_whose_it_is() {
        assert_eq!(engine_of(&page(1, 0)), Some("Quill"));
        assert_eq!(engine_of(VLLM), Some("vLLM"));
        assert_eq!(engine_of("up 1\n"), None);
        assert_eq!(named("vllm").map(Engine::name), Some("vLLM"));
        assert_eq!(named("quill").map(Engine::name), Some("Quill"));
        assert_eq!(named("nothing"), None);
    }

    #[test]
    fn page_of_a_second_engine_is_read_by_its_table() {
        let page = Page::parse(page(300, 2).as_bytes(), None).unwrap();
        let itl = Some(Histogram { sum: 3.0, count: 300.0, buckets: vec![] });
        let (running, waiting) = (Some(2.0), Some(0.0));
        let (prompt_tokens, generation_tokens) = (Some(7.0), Some(300.0));
        let expected =
            Signals { running, waiting, prompt_tokens, generation_tokens, itl, ..Signals::default() };
        assert_eq!((page.signals.clone(), page.refused.as_slice()), (expected, &[][..]));
        assert!(page.sources.contains(&(Signal::Itl, "quill_seconds_out".to_owned())), "{:?}", page.sources);
        assert_eq!(page.engine.metric(Signal::Running), "quill_active");
        let report = describe(&page);
        assert!(report.can_learn() && report.missing.is_empty(), "{report}");
        assert!(report.to_string().starts_with("Quill, 1 engine\n"), "{report}");
    }

    #[test]
    fn what_an_engine_cannot_tell_is_not_missing_on_its_page() {
        let mut health = Health::new(Time(0.0), Seconds(3.0));
        let signals = Page::parse(page(300, 0).as_bytes(), None).unwrap().signals;
        assert_eq!(health.page(Time(0.3), &signals, &Quill), []);
        let named = Event::Degraded { essential: vec![Signal::Waiting], useful: vec![] };
        assert_eq!(health.page(Time(0.6), &Signals { waiting: None, ..signals }, &Quill), [named]);
    }

    #[test]
    fn page_of_no_engine_names_those_looked_for() {
        let error = Page::parse(b"up 1\n", None).unwrap_err();
        assert!(matches!(error, PageError::NoEngine { .. }));
        let text = error.to_string();
        for part in
            ["not a page of a known engine", "\"up 1\"", "vLLM (vllm:...", "--disable-log-stats", "Quill"]
        {
            assert!(text.contains(part), "{text}");
        }
        let quill: &'static dyn Engine = &Quill;
        let text = Page::parse_among(VLLM.as_bytes(), None, [quill].into_iter()).unwrap_err().to_string();
        assert!(text.contains("Quill") && !text.contains("vLLM ("), "{text}");
    }
}
