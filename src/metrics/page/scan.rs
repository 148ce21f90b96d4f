//! From the text of a page to the lines that matter, labels resolved.
//!
//! This part is ours because `prometheus-parse` 0.2.5 takes no colon in a metric name and splits labels at every comma
//! and closing brace, quoted or not. It is also what makes the parse fast: most lines are dropped by their name alone.

use std::collections::{BTreeSet, HashMap};

use super::super::signals::Kind;
use super::{PageError, Text};
use crate::engine::Profile;
use crate::engine::table::{self, Family, Part, Reading};

/// Limits on one line; what is beyond them is no metric of a real server.
const LONGEST_LINE: usize = 64 * 1024;
const MOST_LABELS: usize = 64;
/// Above this many samples of interest the page is refused: 150 engines show fewer.
const MOST_SAMPLES: usize = 20_000;

/// One sample of a family in the table.
#[derive(Debug)]
pub(super) struct Sample<'a> {
    pub(super) family: Family,
    pub(super) part: Part,
    /// Which label set (without `le`) it belongs to.
    pub(super) series: usize,
    /// Which series are one: those that differ in the engine's rank labels alone, and of a level or share in `pid`.
    pub(super) group: usize,
    /// The bucket's bound as written; empty if this is no bucket.
    pub(super) le: &'a str,
    /// The value as written.
    pub(super) value: &'a str,
    /// What one of its units is in agft's.
    pub(super) scale: f64,
}

/// A page reduced to what the table names.
#[derive(Debug, Default)]
pub(super) struct Scan<'a> {
    pub(super) samples: Vec<Sample<'a>>,
    /// Lines of the table's families that do not have the shape of a sample.
    pub(super) faults: Vec<(Family, String)>,
    pub(super) models: BTreeSet<String>,
    pub(super) engines: BTreeSet<String>,
}

/// Goes through the page; with `model`, only series with that `model_name` are kept. What has another prefix is another
/// source's copy.
pub(super) fn scan<'a>(
    text: Text<'a>,
    engine: &'static Profile,
    prefix: &str,
    model: Option<&str>,
) -> Result<Scan<'a>, PageError> {
    let mut scan = Scan::default();
    let mut all_series = Numbered::default();
    let mut groups = Numbered::default();
    let mut labels = Labels::default();
    let is_model = engine.model_label();
    let (of_ranks, of_levels) = (engine.same_series(Kind::Sum), engine.same_series(Kind::Level));
    let (mut last, mut readings) = ("", Vec::new());
    for (name, rest) in text.samples() {
        // Buckets come in runs of one name.
        if name != last {
            last = name;
            readings.clear();
            readings.extend(table::of_page(engine, name, prefix));
        }
        for &Reading { family, part, only, scale } in &readings {
            let (value, le) = match labels.read(name, rest).and_then(|value| Ok((value, labels.bound(part)?)))
            {
                Ok(found) => found,
                Err(why) => {
                    scan.faults.push((family, why.to_owned()));
                    continue;
                }
            };
            if !only.iter().all(|only| only.takes(labels.unescaped(only.label()).as_deref())) {
                continue;
            }
            if let Some(name) = labels.get(is_model) {
                remember(&mut scan.models, name);
            }
            let kind = family.signal.kind();
            if kind != Kind::Instant && model.is_some() && labels.unescaped(is_model).as_deref() != model {
                continue;
            }
            if let Some(engine) = labels.get("engine") {
                remember(&mut scan.engines, engine);
            }
            let series = all_series.number(labels.key(&["le"]));
            let group = match kind {
                Kind::Level | Kind::Share => groups.number(labels.key(&of_levels)),
                Kind::Sum => groups.number(labels.key(&of_ranks)),
                Kind::Instant | Kind::Histogram => series,
            };
            if scan.samples.len() == MOST_SAMPLES {
                return Err(PageError::TooManySeries { limit: MOST_SAMPLES });
            }
            scan.samples.push(Sample { family, part, series, group, le, value, scale });
        }
    }
    Ok(scan)
}

/// Label sets in the order in which they were met.
#[derive(Default)]
struct Numbered(HashMap<String, usize>);

impl Numbered {
    fn number(&mut self, key: &str) -> usize {
        if let Some(&number) = self.0.get(key) {
            return number;
        }
        let number = self.0.len();
        self.0.insert(key.to_owned(), number);
        number
    }
}

fn remember(set: &mut BTreeSet<String>, escaped: &str) {
    if !set.contains(escaped) {
        set.insert(unescape(escaped));
    }
}

/// The labels of one line, reused from line to line.
#[derive(Debug, Default)]
struct Labels<'a> {
    /// Name and value, the value still escaped; sorted by name.
    pairs: Vec<(&'a str, &'a str)>,
    key: String,
}

impl<'a> Labels<'a> {
    /// Reads what follows the name, `{labels} value [timestamp]`, and returns the value as written.
    fn read(&mut self, name: &str, rest: &'a str) -> Result<&'a str, &'static str> {
        self.pairs.clear();
        if name.len() + rest.len() > LONGEST_LINE {
            return Err("its line is longer than 64 KiB");
        }
        let rest = rest.trim_start();
        let rest = match rest.strip_prefix('{') {
            Some(inside) => self.read_block(inside)?,
            None => rest,
        };
        let value = rest.split_ascii_whitespace().next().ok_or("it has no value")?;
        if is_number_like(value) { Ok(value) } else { Err("its value is not a number") }
    }

    /// Reads `name="value",...}` and returns what follows the brace.
    fn read_block(&mut self, mut rest: &'a str) -> Result<&'a str, &'static str> {
        const BROKEN: &str = "its labels are broken";
        loop {
            rest = rest.trim_start();
            if let Some(after) = rest.strip_prefix('}') {
                self.pairs.sort_unstable();
                return Ok(after);
            }
            let (name, quoted) = rest.split_once('=').ok_or(BROKEN)?;
            let quoted = quoted.trim_start().strip_prefix('"').ok_or(BROKEN)?;
            let end = closing_quote(quoted).ok_or(BROKEN)?;
            if self.pairs.len() == MOST_LABELS {
                return Err("it has more than 64 labels");
            }
            let (value, after) = quoted.split_at_checked(end).ok_or(BROKEN)?;
            self.pairs.push((name.trim(), value));
            // The quote, then a comma unless this was the last pair.
            rest = after.strip_prefix('"').ok_or(BROKEN)?.trim_start();
            rest = match rest.strip_prefix(',') {
                Some(next) => next,
                None if rest.starts_with('}') => rest,
                None => return Err(BROKEN),
            };
        }
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.pairs.iter().find(|(label, _)| *label == name).map(|(_, value)| *value)
    }

    fn unescaped(&self, name: &str) -> Option<String> {
        self.get(name).map(unescape)
    }

    /// The bound of a bucket; empty for the other parts.
    fn bound(&self, part: Part) -> Result<&'a str, &'static str> {
        match part {
            Part::Bucket => {
                self.get("le").filter(|le| is_number_like(le)).ok_or("a bucket's bound is not a number")
            }
            Part::Value | Part::Sum | Part::Count => Ok(""),
        }
    }

    /// All labels but these, as text that is equal for equal label sets.
    fn key(&mut self, without: &[&str]) -> &str {
        self.key.clear();
        for (name, value) in self.pairs.iter().filter(|(name, _)| !without.contains(name)) {
            for piece in [name, "=\"", value, "\","] {
                self.key.push_str(piece);
            }
        }
        &self.key
    }
}

/// Where the quote stands that ends a label value: the first one without a backslash before it.
fn closing_quote(quoted: &str) -> Option<usize> {
    let mut escaped = false;
    quoted.bytes().position(|byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    })
}

/// Whether a token can be handed to the parser as it is: it may still be no number, but it is not two tokens.
fn is_number_like(token: &str) -> bool {
    (1..=64).contains(&token.len())
        && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
}

/// Resolves `\\`, `\"` and `\n`; any other backslash stays.
fn unescape(value: &str) -> String {
    let mut plain = String::with_capacity(value.len());
    let mut rest = value.chars();
    while let Some(c) = rest.next() {
        match (c, rest.as_str().chars().next()) {
            ('\\', Some(next @ ('\\' | '"' | 'n'))) => {
                plain.push(if next == 'n' { '\n' } else { next });
                rest.next();
            }
            _ => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::usual;

    fn scan<'a>(page: &'a str, model: Option<&str>) -> Result<Scan<'a>, PageError> {
        let text = Text::new(page.as_bytes())?;
        super::scan(text, usual(), usual().prefix(text).unwrap(), model)
    }

    fn only<'a>(scan: &Scan<'a>) -> (&'a str, &'a str) {
        assert!(scan.faults.is_empty(), "{:?}", scan.faults);
        assert_eq!(scan.samples.len(), 1, "{:?}", scan.samples);
        (scan.samples[0].le, scan.samples[0].value)
    }

    #[test]
    fn label_value_with_quote_comma_and_brace_does_not_end_early() {
        let line = r#"vllm:num_requests_running{engine="0",model_name="a\"},b=\"c\\\n"} 3.0"#;
        let scan = scan(line, None).unwrap();
        assert_eq!(only(&scan), ("", "3.0"));
        assert_eq!(scan.models, BTreeSet::from(["a\"},b=\"c\\\n".to_owned()]));
    }

    #[test]
    fn bound_is_found_wherever_it_stands() {
        for labels in [r#"le="0.1",a="b""#, r#"a="b",le="0.1",c="d""#, r#"a="b",le="0.1","#] {
            let line = format!("vllm:time_to_first_token_seconds_bucket{{{labels}}} 5");
            assert_eq!(only(&scan(&line, None).unwrap()), ("0.1", "5"));
        }
    }

    #[test]
    fn timestamp_and_exemplar_after_the_value_are_left_out() {
        for tail in ["", " 1700000000000", " # {trace_id=\"x\"} 0.67 1700000000.1", "\t", "\r"] {
            let line = format!("vllm:num_requests_running {{ engine = \"0\" , }}  4e0{tail}\n");
            assert_eq!(only(&scan(&line, None).unwrap()), ("", "4e0"), "{tail:?}");
        }
    }

    #[test]
    fn same_labels_in_another_order_are_the_same_series() {
        let page = "vllm:time_to_first_token_seconds_sum{engine=\"0\",model_name=\"m\"} 1\n\
                    vllm:time_to_first_token_seconds_bucket{model_name=\"m\",le=\"1\",engine=\"0\"} 1\n";
        let scan = scan(page, None).unwrap();
        assert_eq!(scan.samples[0].series, scan.samples[1].series);
    }

    #[test]
    fn line_without_the_shape_of_a_sample_is_a_fault_of_its_family() {
        for rest in [
            "{engine=\"0\"",
            "{engine=\"0} 1",
            "{engine} 1",
            "{engine=0} 1",
            "{engine=\"0\"}",
            "",
            "{a=\"b\"c=\"d\"} 1",
            " §",
            " 1,5",
            "{a=\"b\\\"} 1",
        ] {
            let line = format!("vllm:num_requests_running{rest}");
            let scan = scan(&line, None).unwrap();
            assert_eq!((scan.samples.len(), scan.faults.len()), (0, 1), "{line}");
        }
    }

    #[test]
    fn absurd_lines_are_faults_not_work() {
        let long = format!("vllm:num_requests_running{{a=\"{}\"}} 1", "x".repeat(LONGEST_LINE));
        let many = format!("vllm:num_requests_running{{{}}} 1", "a=\"\",".repeat(MOST_LABELS + 1));
        for line in [long, many] {
            assert_eq!(scan(&line, None).unwrap().faults.len(), 1);
        }
    }

    #[test]
    fn page_with_absurdly_many_series_is_refused() {
        let page: String = (0..=MOST_SAMPLES)
            .map(|engine| format!("vllm:num_requests_running{{engine=\"{engine}\"}} 1\n"))
            .collect();
        assert_eq!(scan(&page, None).unwrap_err(), PageError::TooManySeries { limit: MOST_SAMPLES });
    }

    #[test]
    fn second_prefix_on_one_page_is_a_copy_and_left_alone() {
        let page = "kserve_vllm:num_requests_running 2\nvllm:num_requests_running 2\n";
        assert_eq!(scan(page, None).unwrap().samples.len(), 1);
    }
}
