//! What instances do, as far as their metrics pages tell: requests now, and tokens a second.
//!
//! Asked only while somebody looks at the list, and only of instances that are ready. A llama-server with
//! idle sleep counts a scrape as work and would never sleep: it is not asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use url::Url;

use crate::fleet::Fleet;
use crate::http::Ask;

/// Between two questions.
const PACE: Duration = Duration::from_secs(5);
/// A list that was not asked for this long is looked at by nobody.
const LOOKED_AT: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(2);
const MOST_BYTES: usize = 4 << 20;

/// Series whose sum is the requests that are being worked on or wait, by engine.
const REQUESTS: &[&str] = &[
    "llamacpp:requests_processing",
    "llamacpp:requests_deferred",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "sglang:num_running_reqs",
    "sglang:num_queue_reqs",
];
/// Counters of tokens that were generated.
const TOKENS: &[&str] =
    &["llamacpp:tokens_predicted_total", "vllm:generation_tokens_total", "sglang:generation_tokens_total"];

/// What an instance does.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Work {
    /// Requests now, also those that wait.
    pub(super) requests: Option<f64>,
    /// Generated tokens a second, over the time between the last two questions.
    pub(super) tokens_per_s: Option<f64>,
}

#[derive(Debug, Default)]
struct Known {
    wanted: Option<Instant>,
    by_name: HashMap<String, Seen>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    at: Instant,
    pid: u32,
    tokens: Option<f64>,
    work: Work,
}

/// What all instances do.
#[derive(Debug, Clone, Default)]
pub(super) struct Works(Arc<Mutex<Known>>);

impl Works {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody looks at it.
    pub(super) fn wanted(&self) {
        self.known().wanted = Some(Instant::now());
    }

    pub(super) fn of(&self, name: &str) -> Option<Work> {
        let known = self.known();
        let seen = known.by_name.get(name)?;
        // Of an instance that does not answer any more nothing is known.
        (seen.at.elapsed() < LOOKED_AT).then_some(seen.work)
    }

    /// Asks for ever.
    pub(super) async fn watch(self, fleet: Fleet) {
        loop {
            sleep(PACE / 5).await;
            let wanted = self.known().wanted.is_some_and(|at| at.elapsed() < LOOKED_AT);
            if wanted {
                self.ask_all(&fleet).await;
                sleep(PACE).await;
            }
        }
    }

    async fn ask_all(&self, fleet: &Fleet) {
        let statuses = fleet.statuses();
        self.known().by_name.retain(|name, _| statuses.iter().any(|status| status.name == *name));
        for status in statuses {
            let (true, Some(pid), Some(url)) = (status.ready(), status.pid, &status.metrics_url) else {
                continue;
            };
            let sleeps = fleet.entry(&status.name).is_some_and(|(entry, _)| sleeps(&entry.instance.command));
            let Ok(url) = Url::parse(url) else { continue };
            if sleeps {
                continue;
            }
            let Ok((code, body)) = Ask::get(&url, PATIENCE).whole(MOST_BYTES).await else { continue };
            if code.is_success() {
                let page = String::from_utf8_lossy(&body);
                self.seen(&status.name, pid, sum(&page, REQUESTS), sum(&page, TOKENS), Instant::now());
            }
        }
    }

    fn seen(&self, name: &str, pid: u32, requests: Option<f64>, tokens: Option<f64>, at: Instant) {
        let mut known = self.known();
        // Another process counts from 0.
        let before = known.by_name.get(name).filter(|before| before.pid == pid);
        let rate = before.and_then(|before| {
            let elapsed_s = at.duration_since(before.at).as_secs_f64();
            let more = tokens? - before.tokens?;
            (more >= 0.0 && elapsed_s > 0.0).then(|| more / elapsed_s)
        });
        let seen = Seen { at, pid, tokens, work: Work { requests, tokens_per_s: rate } };
        known.by_name.insert(name.to_owned(), seen);
    }
}

/// Does this llama-server unload its model when it is idle?
fn sleeps(command: &[String]) -> bool {
    command.iter().any(|word| word.starts_with("--sleep-idle-seconds"))
}

/// The sum of all series with these names; `None` where the page has none.
fn sum(page: &str, names: &[&str]) -> Option<f64> {
    let mut total = None;
    for line in page.lines() {
        let end = line.find(['{', ' ', '\t']).unwrap_or(line.len());
        if !names.contains(&&line[..end]) {
            continue;
        }
        // Labels can hold blanks and braces; what follows the last brace is value and time.
        let rest = line.rfind('}').map_or(&line[end..], |brace| &line[brace + 1..]);
        let value = rest.split_ascii_whitespace().next().and_then(|value| value.parse::<f64>().ok());
        if let Some(value) = value.filter(|value| value.is_finite()) {
            *total.get_or_insert(0.0) += value;
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP x y\nllamacpp:requests_processing 2\nllamacpp:requests_deferred 1\n\
        llamacpp:tokens_predicted_total 1000\nvllm:x{a=\"} 9\"} 4\n";

    #[test]
    fn series_are_summed_by_name() {
        assert_eq!(sum(PAGE, REQUESTS), Some(3.0));
        assert_eq!(sum(PAGE, TOKENS), Some(1000.0));
        assert_eq!(
            sum(
                "vllm:num_requests_running{m=\"a } b\"} 2.0\nvllm:num_requests_running{m=\"c\"} 1 5\n",
                REQUESTS
            ),
            Some(3.0)
        );
        assert_eq!(sum("other 1\nllamacpp:requests_processing NaN\n", REQUESTS), None);
        assert!(sleeps(&["x".into(), "--sleep-idle-seconds=60".into()]) && !sleeps(&["x".into()]));
    }

    #[tokio::test(start_paused = true)]
    async fn rates_need_two_questions_of_one_process() {
        let works = Works::default();
        let ask = |pid, tokens| works.seen("a", pid, Some(1.0), Some(tokens), Instant::now());
        ask(1, 100.0);
        assert_eq!(works.of("a"), Some(Work { requests: Some(1.0), tokens_per_s: None }));
        sleep(Duration::from_secs(5)).await;
        ask(1, 200.0);
        assert_eq!(works.of("a").unwrap().tokens_per_s, Some(20.0));
        sleep(Duration::from_secs(5)).await;
        ask(2, 300.0);
        assert_eq!(works.of("a").unwrap().tokens_per_s, None);
        sleep(LOOKED_AT).await;
        assert_eq!(works.of("a"), None);
    }

    proptest::proptest! {
        #[test]
        fn any_page_is_read(page in ".{0,200}") {
            let _ = sum(&page, REQUESTS);
            let _ = sum(&format!("llamacpp:requests_processing{page}"), REQUESTS);
        }
    }
}
