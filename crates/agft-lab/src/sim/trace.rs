//! Recorded requests: CSV with a header or one JSON object per line, column names as the public traces have them.
//!
//! | what | columns |
//! |---|---|
//! | arrival | `TIMESTAMP` (date and time, Azure), `timestamp` (milliseconds in JSON, Mooncake), `arrival`, `arrival_s` (seconds) |
//! | prompt | `ContextTokens`, `input_length`, `prompt`, `prompt_tokens`, `input_tokens` |
//! | output | `GeneratedTokens`, `output_length`, `output`, `output_tokens` |
//! | cached prefix | `cached`, `cached_tokens`, or `hash_ids` (512-token blocks; those seen before are cached) |

use std::collections::HashSet;

use super::workload::Request;
use agft::units::Time;

/// Tokens per entry of `hash_ids`.
const HASH_BLOCK: u32 = 512;
/// No model has a longer context; a bigger number is a mistake in the file.
const MOST_TOKENS: f64 = 1e7;

const ARRIVAL: &[&str] = &["arrival", "arrival_s", "timestamp"];
const PROMPT: &[&str] = &["prompt", "prompt_tokens", "input_tokens", "input_length", "contexttokens"];
const OUTPUT: &[&str] = &["output", "output_tokens", "output_length", "generatedtokens"];
const CACHED: &[&str] = &["cached", "cached_tokens"];

/// What is wrong with a trace, and in which line (from 1).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// Nothing in it.
    #[error("the trace is empty; give a CSV file with a header or one JSON object per line")]
    Empty,
    /// The header lacks a column.
    #[error("line {line}: no column for {what}; one of {known} is needed")]
    NoColumn {
        /// Where.
        line: usize,
        /// Arrival, prompt or output.
        what: &'static str,
        /// Names that are understood.
        known: String,
    },
    /// A value is not what the column needs.
    #[error("line {line}: {what} is `{value}`; {rule}")]
    BadValue {
        /// Where.
        line: usize,
        /// Which value.
        what: &'static str,
        /// What stands there.
        value: String,
        /// What is needed.
        rule: &'static str,
    },
    /// Not JSON.
    #[error("line {line}: not a JSON object: {detail}")]
    NotJson {
        /// Where.
        line: usize,
        /// What the parser said.
        detail: String,
    },
    /// `--speed` or the like.
    #[error("a trace cannot run at {0} times its speed; give a positive number")]
    BadSpeed(String),
}

/// Reads a trace, sorts it by arrival, lets it begin at zero and run at `speed` times its pace.
///
/// # Errors
/// [`TraceError`], with the line.
pub fn parse_trace(text: &str, speed: f64) -> Result<Vec<Request>, TraceError> {
    // What some programs put before a text file.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if !(speed.is_finite() && speed > 0.0) {
        return Err(TraceError::BadSpeed(speed.to_string()));
    }
    let mut lines = text
        .lines()
        .enumerate()
        .map(|(i, line)| (i + 1, line.trim()))
        .filter(|(_, l)| !l.is_empty())
        .peekable();
    let &(_, first) = lines.peek().ok_or(TraceError::Empty)?;
    let mut requests = if first.starts_with('{') { parse_json(lines) } else { parse_csv(lines) }?;
    requests.sort_by(|a, b| a.arrival.0.total_cmp(&b.arrival.0));
    let start = requests.first().ok_or(TraceError::Empty)?.arrival;
    for request in &mut requests {
        request.arrival = Time(request.arrival.since(start).0 / speed);
    }
    Ok(requests)
}

fn parse_csv<'a>(mut lines: impl Iterator<Item = (usize, &'a str)>) -> Result<Vec<Request>, TraceError> {
    let (line, header) = lines.next().ok_or(TraceError::Empty)?;
    let names: Vec<_> =
        header.split(',').map(|name| name.trim().trim_matches('"').to_ascii_lowercase()).collect();
    let find = |known: &[&str]| names.iter().position(|name| known.contains(&name.as_str()));
    let need = |what, known: &[&str]| {
        find(known).ok_or_else(|| TraceError::NoColumn { line, what, known: known.join(", ") })
    };
    let (arrival, prompt, output) =
        (need("the arrival", ARRIVAL)?, need("the prompt", PROMPT)?, need("the output", OUTPUT)?);
    let cached = find(CACHED);
    lines
        .map(|(line, row)| {
            let cells: Vec<_> = row.split(',').map(|cell| cell.trim().trim_matches('"')).collect();
            let cell = |column: usize| cells.get(column).copied().unwrap_or_default();
            Ok(Request {
                arrival: Time(seconds(line, cell(arrival))?),
                prompt_tokens: tokens(line, "the prompt length", cell(prompt))?.max(1),
                output_tokens: tokens(line, "the output length", cell(output))?.max(1),
                cached_tokens: cached
                    .map_or(Ok(0), |column| tokens(line, "the cached prefix", cell(column)))?,
            })
        })
        .collect()
}

/// Characters of a bad value that a message shows.
const SHOWN: usize = 40;
/// Arrivals lie within so many seconds of zero: Unix times in nanoseconds do not, those in seconds and
/// milliseconds do.
const MOST_SECONDS: f64 = 1e13;

/// Seconds as a number, or the Unix time of a date and time.
fn seconds(line: usize, value: &str) -> Result<f64, TraceError> {
    if let Ok(seconds) = value.parse::<f64>()
        && seconds.abs() <= MOST_SECONDS
    {
        return Ok(seconds);
    }
    // Azure's later trace ends in an offset; all lines have the same one, so the difference is what counts.
    let naive = value.strip_suffix("+00:00").unwrap_or(value);
    let moment =
        naive.parse::<jiff::civil::DateTime>().ok().and_then(|at| at.to_zoned(jiff::tz::TimeZone::UTC).ok());
    moment.map(|at| at.timestamp().as_duration().as_secs_f64()).ok_or_else(|| TraceError::BadValue {
        line,
        what: "the arrival",
        value: value.chars().take(SHOWN).collect(),
        rule: "a number of seconds or a date and time such as 2023-11-16 18:15:46.68 is needed",
    })
}

fn tokens(line: usize, what: &'static str, value: &str) -> Result<u32, TraceError> {
    let number = value.parse::<f64>().ok().filter(|n| (0.0..=MOST_TOKENS).contains(n));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded by the filter")]
    number.map(|n| n as u32).ok_or_else(|| TraceError::BadValue {
        line,
        what,
        value: value.chars().take(SHOWN).collect(),
        rule: "a number of tokens from 0 to ten million is needed",
    })
}

fn parse_json<'a>(lines: impl Iterator<Item = (usize, &'a str)>) -> Result<Vec<Request>, TraceError> {
    let mut seen = HashSet::new();
    lines
        .map(|(line, text)| {
            let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text)
                .map_err(|error| TraceError::NotJson { line, detail: error.to_string() })?;
            let find = |known: &[&str]| {
                object.iter().find(|(name, _)| known.contains(&name.to_ascii_lowercase().as_str()))
            };
            let need = |what, known: &[&str]| {
                find(known).ok_or_else(|| TraceError::NoColumn { line, what, known: known.join(", ") })
            };
            let text_of =
                |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let (name, at) = need("the arrival", ARRIVAL)?;
            // Mooncake counts milliseconds; a name that ends in _s or says arrival counts seconds.
            let unit = if name.eq_ignore_ascii_case("timestamp") && at.is_number() { 1e-3 } else { 1.0 };
            let prompt = tokens(line, "the prompt length", &text_of(need("the prompt", PROMPT)?.1))?.max(1);
            let cached = match (object.get("hash_ids"), find(CACHED)) {
                (Some(serde_json::Value::Array(ids)), _) => cached_prefix(&mut seen, ids).min(prompt),
                (_, Some((_, value))) => tokens(line, "the cached prefix", &text_of(value))?,
                _ => 0,
            };
            Ok(Request {
                arrival: Time(unit * seconds(line, &text_of(at))?),
                prompt_tokens: prompt,
                output_tokens: tokens(line, "the output length", &text_of(need("the output", OUTPUT)?.1))?
                    .max(1),
                cached_tokens: cached,
            })
        })
        .collect()
}

/// Tokens in the leading blocks that an earlier request had, in a cache that forgets nothing.
fn cached_prefix(seen: &mut HashSet<String>, ids: &[serde_json::Value]) -> u32 {
    let known = ids.iter().take_while(|id| seen.contains(&id.to_string())).count();
    seen.extend(ids.iter().map(ToString::to_string));
    u32::try_from(known).unwrap_or(u32::MAX).saturating_mul(HASH_BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(arrival: f64, prompt_tokens: u32, output_tokens: u32, cached_tokens: u32) -> Request {
        Request { arrival: Time(arrival), prompt_tokens, output_tokens, cached_tokens }
    }

    #[test]
    fn azure_rows_begin_at_zero_and_run_at_the_asked_speed() {
        let text = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n\
                    2023-11-16 18:15:50.5000000,396,109\r\n2023-11-16 18:15:46.5000000,374,44\r\n";
        assert_eq!(parse_trace(text, 2.0).unwrap(), [request(0.0, 374, 44, 0), request(2.0, 396, 109, 0)]);
    }

    #[test]
    fn mooncake_rows_count_milliseconds_and_blocks_seen_before_are_cached() {
        let text = r#"{"timestamp": 0, "input_length": 1500, "output_length": 6, "hash_ids": [0, 1, 2]}
                      {"timestamp": 500, "input_length": 2000, "output_length": 4, "hash_ids": [0, 1, 9, 2]}"#;
        let expected = [request(0.0, 1500, 6, 0), request(0.5, 2000, 4, 1024)];
        assert_eq!(parse_trace(text, 1.0).unwrap(), expected);
    }

    #[test]
    fn beginnings_of_the_public_traces_are_read_whole() {
        let azure = include_str!("../../../../tests/data/traces/azure-2023-conversation-first-300.csv");
        let requests = parse_trace(azure, 1.0).unwrap();
        assert_eq!(requests.len(), 300);
        assert_eq!(requests[0], request(0.0, 374, 44, 0));
        assert!((requests[1].arrival.0 - 4.314_579).abs() < 1e-6, "{:?}", requests[1]);
        let mooncake = include_str!("../../../../tests/data/traces/mooncake-synthetic-first-60.jsonl");
        let requests = parse_trace(mooncake, 1.0).unwrap();
        assert_eq!(requests.len(), 60);
        assert!(requests.iter().all(|request| request.cached_tokens <= request.prompt_tokens));
        assert!(requests.iter().any(|request| request.cached_tokens > 0));
    }

    #[test]
    fn plain_columns_in_any_order_are_understood() {
        let text = "output_tokens,arrival_s,cached_tokens,prompt_tokens\n5,1.5,16,40\n";
        assert_eq!(parse_trace(text, 1.0).unwrap(), [request(0.0, 40, 5, 16)]);
    }

    #[test]
    fn errors_name_the_line_and_the_remedy() {
        let fails = |text: &str| parse_trace(text, 1.0).unwrap_err().to_string();
        assert!(fails("arrival,prompt\n1,2").starts_with("line 1: no column for the output"));
        assert!(
            fails("arrival,prompt,output\n1,2,3\n\n2,minus,3")
                .starts_with("line 4: the prompt length is `minus`")
        );
        assert!(fails("arrival,prompt,output\nsoon,2,3").starts_with("line 2: the arrival is `soon`"));
        assert!(fails("arrival,prompt,output\n1e308,2,3").starts_with("line 2: the arrival is `1e308`"));
        assert!(parse_trace("\u{feff}arrival,prompt,output\n1,2,3", 1.0).is_ok());
        assert!(fails("arrival,prompt,output\n1,2").starts_with("line 2: the output length is ``"));
        assert!(fails("{\"timestamp\": 1}\n").starts_with("line 1: no column for the prompt"));
        assert!(fails("{oops}").starts_with("line 1: not a JSON object"));
        assert_eq!(parse_trace(" \n", 1.0), Err(TraceError::Empty));
        assert_eq!(parse_trace("arrival,prompt,output\n", 1.0), Err(TraceError::Empty));
        assert!(matches!(parse_trace("x", 0.0), Err(TraceError::BadSpeed(_))));
    }
}
