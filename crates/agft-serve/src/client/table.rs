//! Answers as text for humans.

use std::fmt::Write as _;

use serde_json::Value;

/// A value in a table: a dash where nothing is known.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) if text.is_empty() => "-".into(),
        Value::String(text) => crate::text::whole(text).into_owned(),
        Value::Number(number) => match number.as_f64() {
            Some(value) if value.fract() != 0.0 => format!("{value:.1}"),
            Some(value) => format!("{value:.0}"),
            None => number.to_string(),
        },
        other => other.to_string(),
    }
}

fn aligned(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(head.get(column).map(|head| head.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = String::new();
    let mut line = |cells: Vec<&str>| {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    };
    line(head.to_vec());
    for row in rows {
        line(row.iter().map(String::as_str).collect());
    }
    out
}

/// The list of instances.
pub(super) fn instances(answer: &Value) -> String {
    const COLUMNS: [(&str, &str); 8] = [
        ("NAME", "name"),
        ("STATE", "state"),
        ("WORK", "work"),
        ("GPU", "gpus"),
        ("PID", "pid"),
        ("RESTARTS", "restarts"),
        ("REQUESTS", "requests"),
        ("TOKENS/S", "tokens_per_s"),
    ];
    let list = answer.get("instances").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let rows: Vec<Vec<String>> = list
        .iter()
        .map(|instance| {
            COLUMNS.iter().map(|(_, key)| cell(instance.get(*key).unwrap_or(&Value::Null))).collect()
        })
        .collect();
    let mut out = aligned(&COLUMNS.map(|(head, _)| head), &rows);
    for instance in list {
        let failed = matches!(instance.get("state").and_then(Value::as_str), Some("backoff" | "crash-loop"));
        let get = |key| instance.get(key).and_then(Value::as_str);
        if let Some(why) = get("problem").or_else(|| get("last_exit").filter(|_| failed)) {
            let _ = writeln!(out, "{}: {}", cell(&instance["name"]), crate::text::whole(why));
        }
    }
    if let Some(daemons) = answer.get("daemons").and_then(Value::as_array) {
        let pids: Vec<String> = daemons.iter().map(cell).collect();
        let _ = match pids.as_slice() {
            [] => writeln!(out, "no agft listens: nobody is told what works"),
            pids => writeln!(out, "agft (pid {}) is told what works", pids.join(", ")),
        };
    }
    out
}

/// All about one instance.
pub(super) fn one(answer: &Value) -> String {
    let Value::Object(entries) = answer else { return String::new() };
    let mut out = String::new();
    for (key, value) in entries.iter().filter(|(key, _)| *key != "entry") {
        let _ = writeln!(out, "{:<17}{}", key.replace('_', " "), cell(value));
    }
    if let Some(entry) = answer.get("entry").filter(|entry| !entry.is_null()) {
        let _ = writeln!(out, "entry");
        for line in serde_json::to_string_pretty(entry).unwrap_or_default().lines() {
            let _ = writeln!(out, "  {line}");
        }
    }
    out
}

/// gppm's list of processes.
pub(super) fn processes(answer: &Value) -> String {
    let mut rows = Vec::new();
    for process in answer.as_object().into_iter().flatten().filter_map(|(_, list)| list.as_array()).flatten()
    {
        let words = process.get("args").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let words: Vec<String> = words.iter().map(cell).collect();
        let get = |key| cell(process.get(key).unwrap_or(&Value::Null));
        rows.push(vec![get("pid"), get("returncode"), words.join(" ")]);
    }
    aligned(&["PID", "STATUS", "COMMAND"], &rows)
}

/// What a change did.
pub(super) fn changes(answer: &Value) -> String {
    let mut out = String::new();
    for key in ["started", "restarted", "ended", "unchanged"] {
        let names: Vec<String> =
            answer.get(key).and_then(Value::as_array).into_iter().flatten().map(cell).collect();
        if !names.is_empty() {
            let _ = writeln!(out, "{key:<10} {}", names.join(", "));
        }
    }
    if out.is_empty() { "no instances\n".into() } else { out }
}

/// One line of a log.
pub(super) fn log_line(line: &Value) -> String {
    match (line.get("text").and_then(Value::as_str), line.get("missed")) {
        (Some(text), _) => format!("{text}\n"),
        (None, Some(missed)) => format!("[{missed} lines were missed]\n"),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tables_are_aligned_and_dashes_stand_for_what_is_not_known() {
        let answer = json!({"instances": [
            {"name": "chat", "state": "ready", "work": "working", "gpus": "0", "pid": 17, "restarts": 0, "requests": 2.0, "tokens_per_s": 31.46},
            {"name": "a\u{1b}[2J", "state": "crash-loop", "work": "ended", "gpus": "all", "pid": null, "restarts": 5, "problem": "gone\n"},
        ], "daemons": [4711]});
        assert_eq!(
            instances(&answer),
            "NAME        STATE       WORK     GPU  PID  RESTARTS  REQUESTS  TOKENS/S\n\
             chat        ready       working  0    17   0         2         31.5\n\
             a\\u001b[2J  crash-loop  ended    all  -    5         -         -\n\
             a\\u001b[2J: gone\\n\n\
             agft (pid 4711) is told what works\n"
        );
        assert_eq!(changes(&json!({"started": ["a", "b"], "ended": []})), "started    a, b\n");
        assert_eq!(instances(&json!(7)).lines().count(), 1);
        assert_eq!(one(&json!([])), "");
    }
}
