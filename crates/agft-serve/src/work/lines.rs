//! What a line of a llama-server's log says of its tasks.
//!
//! Its words have changed over the years. Read are: the lines of slots since 2024, `slot launch_slot_: id 0 |
//! task 7 | processing task` and `slot release: id 0 | task 7 | stop processing: n_tokens = 20`, with time
//! and level before them or not; those of the servers that a router started, which have their port before all
//! that (`[40001] `); and the older `slot is processing task` and `slot released`, as JSON or as text with
//! `id_slot=0`.

/// What a line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said<'l> {
    /// The slot begins a task.
    Begin(Slot),
    /// The slot is done with its task.
    End(Slot),
    /// No slot of the server has a task.
    AllIdle(Child),
    /// The model leaves the memory of the GPU until the next request.
    Sleeps(Child),
    /// The model is loaded again.
    Wakes(Child),
    /// A router starts the server of a model at this port.
    Spawned {
        /// The model.
        name: &'l str,
        /// The port.
        port: u16,
    },
    /// A server that the router started has ended.
    Exited {
        /// The model.
        name: &'l str,
    },
}

/// The port of a server that a router started; none of a server that stands for itself.
pub(crate) type Child = Option<u16>;

/// A slot works on one task at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot {
    pub(crate) child: Child,
    pub(crate) id: u32,
}

/// What the line says of tasks; `None` where it says nothing of them.
pub(crate) fn read(line: &str) -> Option<Said<'_>> {
    let line = line.trim();
    let (child, line) = child(line);
    if let Some((head, rest)) = line.split_once("| task ") {
        return of_slot(child, head, rest);
    }
    if line.starts_with('{') {
        return of_json(child, line);
    }
    let (head, text) = message(line)?;
    match text {
        "all slots are idle" => return Some(Said::AllIdle(child)),
        "server is entering sleeping state" => return Some(Said::Sleeps(child)),
        "server is exiting sleeping state" => return Some(Said::Wakes(child)),
        _ => {}
    }
    if let Some(said) = of_router(text) {
        return child.is_none().then_some(said);
    }
    let id = || number(head.split_ascii_whitespace().find_map(key_of_slot)?);
    match text {
        "slot is processing task" => Some(Said::Begin(Slot { child, id: id()? })),
        "slot released" => Some(Said::End(Slot { child, id: id()? })),
        _ => None,
    }
}

/// The port in brackets at the begin of the line, where there is one, and the rest.
fn child(line: &str) -> (Child, &str) {
    let split = line.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    match split.and_then(|(port, rest)| Some((port.trim().parse().ok()?, rest))) {
        Some((port, rest)) => (Some(port), rest.trim_start()),
        None => (None, line),
    }
}

/// `... slot launch_slot_: id  0 `, and what stands behind `| task `.
fn of_slot<'l>(child: Child, head: &str, rest: &str) -> Option<Said<'l>> {
    let (before, id) = head.rsplit_once(": id ")?;
    // A prompt that is written to the log is no line of a slot.
    if before.split_ascii_whitespace().rev().nth(1) != Some("slot") {
        return None;
    }
    let slot = Slot { child, id: number(id.trim())? };
    let (_, text) = rest.split_once("| ")?;
    if text.starts_with("processing task") {
        Some(Said::Begin(slot))
    } else if text.starts_with("stop processing: ") {
        Some(Said::End(slot))
    } else {
        None
    }
}

/// `{"function":"launch_slot_with_data","msg":"slot is processing task","id_slot":0,...}`
fn of_json<'l>(child: Child, line: &str) -> Option<Said<'l>> {
    if !line.contains("slot") {
        return None;
    }
    let json: serde_json::Value = serde_json::from_str(line).ok()?;
    let id = || {
        let id = json.get("id_slot").or_else(|| json.get("slot_id"))?.as_u64()?;
        u32::try_from(id).ok()
    };
    match json.get("msg").or_else(|| json.get("message"))?.as_str()? {
        "slot is processing task" => Some(Said::Begin(Slot { child, id: id()? })),
        "slot released" => Some(Said::End(Slot { child, id: id()? })),
        "all slots are idle" => Some(Said::AllIdle(child)),
        _ => None,
    }
}

/// The message of a line, and where the values that belong to it stand. `INFO [ launch_slot_with_task] slot
/// released | tid="1" id_slot=0` has them behind it; `srv  update_slots: all slots are idle` has none.
fn message(line: &str) -> Option<(&str, &str)> {
    if let Some((text, values)) = line.split_once(" | ") {
        return Some((values, text.split_once("] ")?.1.trim()));
    }
    let (head, text) = line.split_once(": ")?;
    head.split_ascii_whitespace().any(|word| word == "srv").then(|| (head, text.trim()))
}

fn of_router(text: &str) -> Option<Said<'_>> {
    if let Some(rest) = text.strip_prefix("spawning server instance with name=") {
        let (name, port) = rest.rsplit_once(" on port ")?;
        return Some(Said::Spawned { name, port: port.trim().parse().ok()? });
    }
    let rest = text.strip_prefix("instance name=")?;
    Some(Said::Exited { name: rest.rsplit_once(" exited with status ")?.0 })
}

fn key_of_slot(word: &str) -> Option<&str> {
    word.strip_prefix("id_slot=").or_else(|| word.strip_prefix("slot_id="))
}

fn number(text: &str) -> Option<u32> {
    text.trim_matches('"').parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slot(child: Child, id: u32) -> Slot {
        Slot { child, id }
    }

    #[test]
    fn each_form_that_llama_cpp_ever_had_is_read() {
        use Said::{AllIdle, Begin, End, Exited, Sleeps, Spawned, Wakes};
        for (line, said) in [
            // Since 2024, without time and level.
            ("slot launch_slot_: id  0 | task 0 | processing task", Begin(slot(None, 0))),
            (
                "slot      release: id  0 | task 0 | stop processing: n_past = 85, truncated = 0",
                End(slot(None, 0)),
            ),
            (
                "slot      release: id 12 | task 9 | stop processing: n_tokens = 20, truncated = 0",
                End(slot(None, 12)),
            ),
            // With them, and with what was added since.
            (
                "0.23.5 I slot launch_slot_: id  3 | task 2 | processing task, is_child = 0",
                Begin(slot(None, 3)),
            ),
            (
                "0.23.6 I slot      release: id  3 | task 2 | stop processing: n_tokens = 20, truncated = 0",
                End(slot(None, 3)),
            ),
            (
                "Jul 30 host llama[7]: 0.2 I slot release: id  1 | task 2 | stop processing: n_tokens = 1",
                End(slot(None, 1)),
            ),
            // Behind a router.
            (
                "[40001] 0.1 I slot launch_slot_: id  1 | task 7 | processing task",
                Begin(slot(Some(40001), 1)),
            ),
            (
                "[ 9001] slot release: id  1 | task 7 | stop processing: n_tokens = 3",
                End(slot(Some(9001), 1)),
            ),
            (
                "0.1 I srv          load: spawning server instance with name=a b on port 41000",
                Spawned { name: "a b", port: 41000 },
            ),
            ("srv  operator(): instance name=a b exited with status 1", Exited { name: "a b" }),
            ("[40001] srv  update_slots: all slots are idle", AllIdle(Some(40001))),
            ("srv  update_slots: all slots are idle", AllIdle(None)),
            ("0.9 I srv  handle_sleep: server is entering sleeping state", Sleeps(None)),
            ("0.9 I srv  handle_sleep: server is exiting sleeping state", Wakes(None)),
            // Before.
            (
                r#"{"tid":"1","timestamp":1719,"level":"INFO","function":"launch_slot_with_task","line":1042,"msg":"slot is processing task","id_slot":2,"id_task":5}"#,
                Begin(slot(None, 2)),
            ),
            (
                r#"{"tid":"1","timestamp":1719,"level":"INFO","function":"update_slots","line":1812,"msg":"slot released","id_slot":2,"id_task":5,"n_ctx":512}"#,
                End(slot(None, 2)),
            ),
            (
                r#"{"timestamp":1707,"level":"INFO","message":"slot released","slot_id":1,"task_id":5}"#,
                End(slot(None, 1)),
            ),
            (
                "INFO [   launch_slot_with_task] slot is processing task | tid=\"1399\" timestamp=1759 id_slot=0 id_task=0",
                Begin(slot(None, 0)),
            ),
            (
                "INFO [            update_slots] slot released | tid=\"1399\" timestamp=1759 id_slot=0 id_task=0 n_ctx=8",
                End(slot(None, 0)),
            ),
            (
                "INFO [            update_slots] all slots are idle | tid=\"1399\" timestamp=1759",
                AllIdle(None),
            ),
        ] {
            assert_eq!(read(line), Some(said), "{line}");
        }
    }

    #[test]
    fn other_lines_say_nothing_of_tasks() {
        for line in [
            "",
            "slot get_availabl: id  3 | task -1 | selected slot by LRU, t_last = -1",
            "slot print_timing: id  3 | task 2 | prompt eval time = 8.41 ms",
            "the user wrote: slot launch_slot_: id  0 | processing task",
            "prompt: id  0 | task 0 | processing task",
            "slot is processing task",
            "srv  log_server_r: request: GET /health 127.0.0.1 200",
            "[40001] srv  operator(): instance name=a exited with status 1",
            r#"{"msg":"slot is processing task"}"#,
            r#"{"msg":"slot is processing task","id_slot":-1}"#,
        ] {
            assert_eq!(read(line), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_read(line in "\\PC{0,80}|[a-z0-9:|\\[\\] ]{0,80}|(slot |\\[|srv |: id |\\| task |\\| |1|processing task|=){0,9}") {
            let _ = read(&line);
        }
    }
}
