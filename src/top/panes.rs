//! The lower panes: the table of arms, the news, and what the keys do.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};

use super::model::{Model, Pane};
use super::text::{Theme, number, put, put_right, span, wrap};
use crate::units::{Mhz, Seconds};
use crate::view::{ArmState, ArmStatus, Note, NoteKind, State};

/// A table this wide has place for the uncertainty.
const WIDE: u16 = 100;

/// First line of a page of `lines` in which `line` is in the middle.
pub(super) fn around(line: usize, lines: usize) -> usize {
    line.saturating_sub(lines / 2)
}

/// A rule with the pane's name, marked if it has the keys, and a summary.
fn head(theme: Theme, name: &'static str, focus: bool, summary: &str, row: Rect, buffer: &mut Buffer) {
    put(buffer, row, &Line::styled("─".repeat(usize::from(row.width)), theme.faint()));
    let style = if focus { theme.strong().add_modifier(Modifier::REVERSED) } else { theme.strong() };
    let line = Line::from(vec![
        Span::raw(" "),
        Span::styled(if focus { format!("[{name}]") } else { name.to_owned() }, style),
        Span::raw(format!(" {summary} ")),
    ]);
    put(buffer, Rect { width: row.width.saturating_sub(2), ..row }, &line);
}

/// Which part of a list is shown, where it is longer than its place.
fn part(theme: Theme, top: usize, lines: usize, all: usize, row: Rect, buffer: &mut Buffer) {
    if all > lines {
        let words = format!(" {}-{} of {all} ", top + 1, (top + lines).min(all));
        put_right(
            buffer,
            Rect { width: row.width.saturating_sub(1), ..row },
            &Line::styled(words, theme.faint()),
        );
    }
}

fn places(area: Rect) -> impl Iterator<Item = Rect> {
    (area.y..area.bottom()).map(move |y| Rect { y, height: 1, ..area })
}

/// Why an arm may not be chosen, in short words; `None` if it may.
fn shut(status: ArmStatus) -> Option<&'static str> {
    match status {
        ArmStatus::Available => None,
        ArmStatus::Failed => Some("failed"),
        ArmStatus::BelowFloor => Some("below the floor"),
        ArmStatus::PrunedExtreme => Some("pruned, far too bad"),
        ArmStatus::PrunedCost => Some("pruned, costs more"),
        ArmStatus::PrunedCascade => Some("pruned, cascade"),
        ArmStatus::PrunedDescent => Some("pruned, descent"),
        ArmStatus::PrunedUnknown => Some("pruned long ago"),
    }
}

/// How many arms may be chosen, and what took the others out.
fn summary(arms: &[ArmState]) -> String {
    let count = |status: ArmStatus| arms.iter().filter(|arm| arm.status == status).count();
    let mut words = format!("{} of {} may be chosen", count(ArmStatus::Available), arms.len());
    for status in ArmStatus::ALL {
        if let (Some(why), out @ 1..) = (shut(status), count(status)) {
            words += &format!("; {out} {why}");
        }
    }
    words
}

/// Arms of which there is the same to say, highest first.
struct Row<'a> {
    first: &'a ArmState,
    last: &'a ArmState,
    count: usize,
    in_force: bool,
    best: bool,
}

/// The table's rows: neighbours that were never tried, and have the same reason for it, share one.
fn rows_of(state: &State) -> Vec<Row<'_>> {
    let mut rows: Vec<Row<'_>> = Vec::new();
    for arm in &state.learner.arms {
        let in_force = state.in_force == Some(arm.clocks);
        let best = state.learner.best == Some(arm.clocks);
        let alike = |row: &&mut Row<'_>| {
            let plain = !(in_force || best || row.in_force || row.best);
            plain
                && (arm.lessons, row.first.lessons) == (0, 0)
                && (arm.status, &arm.why) == (row.first.status, &row.first.why)
                && arm.clocks.memory == row.first.clocks.memory
        };
        match rows.last_mut().filter(alike) {
            Some(row) => {
                row.last = arm;
                row.count += 1;
            }
            None => rows.push(Row { first: arm, last: arm, count: 1, in_force, best }),
        }
    }
    rows
}

fn arm(row: &Row<'_>, memory: bool, wide: bool, theme: Theme) -> Line<'static> {
    let arm = row.first;
    let mark = if row.in_force { ">" } else { " " };
    let (high, low) = (row.first.clocks.core.0, row.last.clocks.core.0);
    let clocks = if row.count > 1 { format!("{high}-{low}") } else { high.to_string() };
    let mut facts = format!("{mark} {clocks:>9}");
    if memory {
        let memory = arm.clocks.memory.map_or("-".to_owned(), |Mhz(memory)| memory.to_string());
        facts += &format!("  {memory:>6}");
    }
    let reward = arm.mean_reward.map_or("-".to_owned(), |reward| format!("{reward:+.3}"));
    facts += &format!("  {:>7}  {reward:>7}", arm.lessons);
    if wide {
        let about = arm.uncertainty.map_or(String::new(), |half| format!("±{}", number(Some(half), 3, "")));
        facts += &format!(" {about:<7}");
    }
    let mut line = Line::from(vec![Span::raw(format!(" {facts}  "))]);
    let marks: Vec<&str> = [(row.in_force, "in force"), (row.best, "best so far")]
        .into_iter()
        .filter_map(|(is, word)| is.then_some(word))
        .collect();
    let marks = marks.join(", ");
    match shut(arm.status) {
        None if !marks.is_empty() => line.push_span(Span::styled(marks, theme.good())),
        None if row.count > 1 => line.push_span(format!("{} that may be chosen, not tried", row.count)),
        None if arm.lessons == 0 => line.push_span("may be chosen, not tried"),
        None => line.push_span("may be chosen"),
        Some(short) => {
            if !marks.is_empty() {
                line.push_span(Span::styled(format!("{marks}; "), theme.strong()));
            }
            let count = if row.count > 1 { format!("{} ", row.count) } else { String::new() };
            // The reason says what kind of pruning it was, and better.
            let kind = |short: &'static str| short.split(',').next().unwrap_or(short);
            let words = arm.why.as_ref().map_or(short.to_owned(), |why| format!("{}: {why}", kind(short)));
            line.push_span(format!("{count}{words}"));
        }
    }
    if row.in_force { line.style(theme.strong()) } else { line }
}

/// The table of arms.
pub(super) fn arms(model: &mut Model, state: &State, theme: Theme, area: Rect, buffer: &mut Buffer) {
    let mut places = places(area);
    let Some(rule) = places.next() else { return };
    let arms = &state.learner.arms;
    head(theme, "arms", model.pane == Pane::Arms, &summary(arms), rule, buffer);
    let Some(top) = places.next() else { return };
    let (memory, wide) = (arms.iter().any(|arm| arm.clocks.memory.is_some()), area.width >= WIDE);
    let memory_head = if memory { "  memory" } else { "" };
    let about = if wide { " ±      " } else { "" };
    let names =
        format!("         MHz{memory_head}  lessons   reward{about}  may it be chosen, and if not, why");
    put(buffer, top, &Line::styled(names, theme.faint()));
    let places: Vec<Rect> = places.collect();
    let rows = rows_of(state);
    let in_force = rows.iter().position(|row| row.in_force);
    let first = model.place_arms(rows.len(), places.len(), in_force);
    part(theme, first, places.len(), rows.len(), top, buffer);
    for (place, row) in places.iter().zip(rows.iter().skip(first)) {
        put(buffer, *place, &arm(row, memory, wide, theme));
    }
}

fn note(note: &Note, now_unix_s: f64, columns: usize, theme: Theme) -> Vec<Line<'static>> {
    let age = span(Seconds(now_unix_s - note.at_unix_s));
    let head = format!("{age:>8} ago  {:<8}  ", note.kind.name());
    let style = match note.kind {
        NoteKind::Fault | NoteKind::Limit => theme.alert(),
        NoteKind::Decision | NoteKind::Info => Style::new(),
    };
    let blank = " ".repeat(head.len());
    wrap(&note.text, columns.saturating_sub(head.len()))
        .into_iter()
        .enumerate()
        .map(|(line, text)| {
            let head = if line == 0 { head.clone() } else { blank.clone() };
            Line::from(vec![Span::styled(head, theme.faint()), Span::styled(text, style)])
        })
        .collect()
}

/// What happened lately, latest first.
pub(super) fn news(model: &mut Model, state: &State, theme: Theme, area: Rect, buffer: &mut Buffer) {
    let mut rows = places(area);
    let Some(rule) = rows.next() else { return };
    let faults = state.notes.iter().filter(|note| note.kind == NoteKind::Fault).count();
    let summary = match faults {
        0 => "latest decisions and events first".to_owned(),
        faults => format!("latest first; {faults} of {} are faults", state.notes.iter().len()),
    };
    head(theme, "news", model.pane == Pane::News, &summary, rule, buffer);
    let rows: Vec<Rect> = rows.collect();
    let columns = usize::from(area.width.saturating_sub(1));
    let lines: Vec<Line<'static>> =
        state.notes.iter().rev().flat_map(|one| note(one, state.at_unix_s, columns, theme)).collect();
    let first = model.place_news(lines.len(), rows.len());
    if lines.is_empty()
        && let Some(row) = rows.first()
    {
        put(buffer, *row, &Line::styled("   nothing yet", theme.faint()));
    }
    part(theme, first, rows.len(), lines.len(), rule, buffer);
    for (row, line) in rows.iter().zip(lines.iter().skip(first)) {
        put(buffer, *row, line);
    }
}

/// What the keys do and what the marks mean.
pub(super) fn help(theme: Theme, area: Rect, buffer: &mut Buffer) {
    // As many as 80x24 has place for, and no wider.
    const LINES: [&str; 7] = [
        " q, Esc, Ctrl-C  end the view; agft goes on",
        " Tab, arrows     the other pane: arms or news",
        " j k PgUp PgDn   scroll; Home or g goes back to where the view places itself",
        " p  n  1-9       pause agft or resume, asks back; next server, or by its number",
        " charts          dots: clock asked, requests waiting, limit; 90+: peaks are cut",
        " EDP             energy x time per token against default clocks, mean of 15 s",
        " arms            > in force; reward: how much better than default clocks (0)",
    ];
    let mut rows = places(area);
    let Some(rule) = rows.next() else { return };
    head(theme, "help", false, "?: back", rule, buffer);
    for (row, text) in rows.zip(LINES) {
        put(buffer, row, &Line::raw(text));
    }
}
