//! Words, numbers and styles of the picture.

use std::borrow::Cow;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use crate::text;
use crate::units::Seconds;

/// What the terminal can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Theme {
    /// Colours may be used; words carry the meaning either way.
    pub colour: bool,
    /// Only ASCII may be used.
    pub ascii: bool,
}

impl Theme {
    fn coloured(self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }

    pub(super) fn curve(self) -> Color {
        if self.colour { Color::Cyan } else { Color::Reset }
    }

    /// What is drawn beside a curve: a limit, a wish.
    pub(super) fn beside(self) -> Color {
        if self.colour { Color::Magenta } else { Color::Reset }
    }

    /// What needs attention.
    pub(super) fn alert(self) -> Style {
        self.coloured(Color::Red).add_modifier(Modifier::BOLD)
    }

    /// What went well.
    pub(super) fn good(self) -> Style {
        self.coloured(Color::Green).add_modifier(Modifier::BOLD)
    }

    /// What is there for orientation only.
    pub(super) fn faint(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    /// What names something.
    pub(super) fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }
}

/// Columns that a text takes.
pub(super) fn width(text: &str) -> usize {
    Span::raw(text).width()
}

/// Writes a line into one row, cut with a mark where it does not fit.
pub(super) fn put(buffer: &mut Buffer, row: Rect, line: &Line<'_>) {
    let row = row.intersection(buffer.area);
    if row.is_empty() {
        return;
    }
    let mut line = line.clone();
    for span in &mut line.spans {
        if let Cow::Owned(safe) = text::whole(&span.content) {
            span.content = safe.into();
        }
    }
    let line = &line;
    // What was there goes with its style: a title is not as pale as the rule that it stands on.
    let columns = u16::try_from(line.width()).unwrap_or(u16::MAX).min(row.width);
    (row.x..row.x + columns).for_each(|x| buffer[(x, row.y)].reset());
    let (end, _) = buffer.set_line(row.x, row.y, line, row.width);
    if line.width() <= usize::from(row.width) {
        return;
    }
    // A wide character that no longer fits leaves a blank; one that is half covered by the mark goes.
    let last = row.right() - 1;
    let before = last.saturating_sub(1);
    if end > last && before >= row.x && width(buffer[(before, row.y)].symbol()) > 1 {
        buffer[(before, row.y)].set_symbol(" ");
    }
    buffer[(last, row.y)].set_symbol("…");
}

/// The same, flush right; not written at all where it would cover more than its row.
pub(super) fn put_right(buffer: &mut Buffer, row: Rect, line: &Line<'_>) {
    let Ok(wide) = u16::try_from(line.width()) else { return };
    if wide <= row.width {
        put(buffer, Rect { x: row.right() - wide, width: wide, ..row }, line);
    }
}

/// Breaks a text into lines of at most `columns`, between words where that is possible.
pub(super) fn wrap(text: &str, columns: usize) -> Vec<String> {
    let columns = columns.max(2);
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let used = lines.last().map_or(0, |line| width(line));
        if used > 0 && used + 1 + width(word) > columns {
            lines.push(String::new());
        } else if used > 0
            && let Some(line) = lines.last_mut()
        {
            line.push(' ');
        }
        for letter in word.chars() {
            let full = lines
                .last()
                .is_some_and(|line| width(line) + width(letter.encode_utf8(&mut [0; 4])) > columns);
            if full {
                lines.push(String::new());
            }
            if let Some(line) = lines.last_mut() {
                line.push(letter);
            }
        }
    }
    lines
}

/// Replaces what is not ASCII, cell by cell: dots of curves by dots at about the same height, rules by dashes.
pub(super) fn to_ascii(buffer: &mut Buffer) {
    for cell in &mut buffer.content {
        let symbol = cell.symbol();
        if symbol.is_ascii() {
            continue;
        }
        let plain = match symbol.chars().next().unwrap_or(' ') {
            braille @ '\u{2800}'..='\u{28ff}' => {
                let dots = u32::from(braille) - 0x2800;
                match (dots & 0b0001_1011 != 0, dots & 0b1110_0100 != 0) {
                    (true, true) => ":",
                    (true, false) => "'",
                    (false, true) => ".",
                    (false, false) => " ",
                }
            }
            '─' => "-",
            '│' => "|",
            '…' => "~",
            '±' => "~",
            '≤' => "<",
            '→' => ">",
            '°' => " ",
            '·' | '•' => "-",
            _ => "?",
        };
        cell.set_symbol(plain);
    }
}

pub(super) fn number(value: Option<f64>, digits: usize, unit: &str) -> String {
    match value.filter(|value| value.is_finite()) {
        Some(value) if value.abs() < 1e9 => format!("{value:.digits$}{unit}"),
        Some(value) => format!("{value:.1e}{unit}"),
        None => format!("?{unit}"),
    }
}

/// A latency with the unit that suits it.
pub(super) fn latency(Seconds(seconds): Seconds) -> String {
    match seconds.abs() {
        size if size < 0.1 => number(Some(1e3 * seconds), 1, " ms"),
        size if size < 1.0 => number(Some(1e3 * seconds), 0, " ms"),
        size if size < 100.0 => number(Some(seconds), 2, " s"),
        _ => number(Some(seconds), 0, " s"),
    }
}

/// A span of time in the largest unit that leaves something before the point.
pub(super) fn span(Seconds(seconds): Seconds) -> String {
    match seconds.max(0.0) {
        seconds if seconds < 120.0 => number(Some(seconds), 0, " s"),
        seconds if seconds < 7200.0 => number(Some(seconds / 60.0), 0, " min"),
        seconds if seconds < 172_800.0 => number(Some(seconds / 3600.0), 1, " h"),
        seconds => number(Some(seconds / 86_400.0), 1, " d"),
    }
}

/// An energy in the unit that suits it.
pub(super) fn energy(joules: Option<f64>) -> String {
    let Some(joules) = joules else { return number(None, 0, " J") };
    match joules.abs() {
        size if size < 1e4 => number(Some(joules), 0, " J"),
        size if size < 3.6e6 => number(Some(joules / 1e3), 1, " kJ"),
        _ => number(Some(joules / 3.6e6), 2, " kWh"),
    }
}

/// A number for the edge of a chart, in at most five columns.
pub(super) fn short(value: f64) -> String {
    let size = value.abs();
    let text = match size {
        _ if !value.is_finite() => "?".into(),
        _ if size >= 999.5e6 => format!("{value:.0e}"),
        _ if size >= 999.5e3 => format!("{:.0}M", value / 1e6),
        _ if size >= 9_999.5 => format!("{:.0}k", value / 1e3),
        _ if size >= 9.995 || value.fract() == 0.0 => format!("{value:.0}"),
        _ if size >= 0.0995 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    };
    text.chars().take(5).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_shown_in_the_unit_that_suits_them() {
        assert_eq!(latency(Seconds(0.0123)), "12.3 ms");
        assert_eq!(latency(Seconds(0.5)), "500 ms");
        assert_eq!(latency(Seconds(1000.0)), "1000 s");
        assert_eq!(span(Seconds(90.0)), "90 s");
        assert_eq!(span(Seconds(3600.0)), "60 min");
        assert_eq!(energy(Some(9000.0)), "9000 J");
        assert_eq!(energy(Some(7.2e6)), "2.00 kWh");
        assert_eq!(number(None, 0, " W"), "? W");
        assert_eq!(
            (short(1455.0), short(0.85), short(12_345.0)),
            ("1455".into(), "0.85".into(), "12k".into())
        );
    }

    #[test]
    fn what_is_cut_carries_a_mark_and_leaves_no_half_character() {
        let cut = |text: &str, columns: u16| {
            let mut buffer = Buffer::empty(Rect::new(0, 0, columns, 1));
            put(&mut buffer, Rect::new(0, 0, columns, 1), &Line::raw(text.to_owned()));
            buffer.content.iter().map(|cell| cell.symbol().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(cut("abcdef", 4).concat(), "abc…");
        assert_eq!(cut("abcd", 4).concat(), "abcd");
        assert_eq!(cut("電電", 3).concat(), "電 …");
        assert_eq!(cut("電電電", 4), ["電", " ", " ", "…"]);
    }

    proptest! {
        #[test]
        fn wrapped_lines_fit_and_lose_no_letter(text in "[a-z電 é]{0,80}", columns in 2_usize..40) {
            let lines = wrap(&text, columns);
            prop_assert!(lines.iter().all(|line| width(line) <= columns), "{lines:?}");
            let letters = |text: &str| text.chars().filter(|letter| *letter != ' ').collect::<String>();
            prop_assert_eq!(letters(&lines.concat()), letters(&text));
        }

        #[test]
        fn edge_of_a_chart_takes_five_columns_at_most(value in prop::num::f64::ANY) {
            prop_assert!(width(&short(value)) <= 5, "{}", short(value));
        }
    }
}
