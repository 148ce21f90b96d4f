//! One chart: a title, the range at its left edge, curves in dots of a quarter of a row.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::Widget;
use ratatui::widgets::canvas::{Canvas, Context, Line as Stroke, Points};

use super::text::{Theme, put, put_right, short};

/// Columns for the range at the left.
const EDGE: u16 = 6;
/// Not every window has a sample of everything: a curve goes on over gaps of so many seconds.
const BRIDGE_S: f64 = 5.0;

#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Chart {
    /// What it is, with the latest value.
    pub(super) title: Vec<Span<'static>>,
    /// The curve: seconds before now (at most 0) and values; unknown where nothing was measured.
    pub(super) curve: Vec<(f64, Option<f64>)>,
    /// What belongs beside it, drawn as single dots.
    pub(super) beside: Vec<(f64, Option<f64>)>,
    pub(super) level: Option<f64>,
    /// Are values above [`range`](Self::range) drawn at its edge, instead of widening it?
    pub(super) cut: bool,
    /// Lowest and highest value shown.
    pub(super) range: (f64, f64),
}

impl Chart {
    /// A range that holds all of these and these bounds; whole if there is nothing to hold.
    pub(super) fn fit(mut self, values: impl IntoIterator<Item = f64>) -> Self {
        let points = self.curve.iter().chain(&self.beside).filter(|_| !self.cut);
        let curves = points.filter_map(|(_, value)| *value);
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in curves.chain(values).filter(|value| value.is_finite()) {
            // Values that no chart could scale are drawn at its edge.
            let value = value.clamp(-1e15, 1e15);
            (low, high) = (low.min(value), high.max(value));
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if high - low <= 1e-9 * high.abs().max(low.abs()) {
            high = low + low.abs().max(1.0);
        }
        self.range = (low, high);
        self
    }

    /// Draws it, with the last `span_s` seconds from left to right.
    pub(super) fn draw(&self, span_s: f64, theme: Theme, area: Rect, buffer: &mut Buffer) {
        let area = area.intersection(buffer.area);
        if area.is_empty() {
            return;
        }
        let title = Rect { height: 1, ..area };
        let rule = "─".repeat(usize::from(title.width));
        put(buffer, title, &Line::styled(rule, theme.faint()));
        let inside = Rect { width: title.width.saturating_sub(2), ..title };
        let mut words = vec![Span::raw(" ")];
        words.extend(self.title.iter().cloned());
        words.push(Span::raw(" "));
        put(buffer, inside, &Line::from(words));

        let plot = Rect {
            x: area.x.saturating_add(EDGE),
            y: area.y + 1,
            width: area.width.saturating_sub(EDGE + 1),
            height: area.height - 1,
        };
        if plot.is_empty() {
            return;
        }
        let (low, high) = self.range;
        let edge = |y: u16| Rect { x: area.x, y, width: EDGE - 1, height: 1 };
        let high_words = if self.cut { format!("{}+", short(high)) } else { short(high) };
        put_right(buffer, edge(plot.y), &Line::styled(high_words, theme.faint()));
        if plot.height > 1 {
            put_right(buffer, edge(plot.bottom() - 1), &Line::styled(short(low), theme.faint()));
        }
        let known = self.curve.iter().chain(&self.beside).any(|(_, value)| value.is_some());
        if !known {
            let middle = Rect { y: plot.y + plot.height / 2, height: 1, ..plot };
            put(buffer, middle, &Line::styled("nothing known yet", theme.faint()));
            return;
        }
        Canvas::default()
            .marker(Marker::Braille)
            .x_bounds([-span_s, 0.0])
            .y_bounds([low, high])
            .paint(|canvas| self.paint(span_s, plot.width, theme, canvas))
            .render(plot, buffer);
    }

    fn paint(&self, span_s: f64, columns: u16, theme: Theme, canvas: &mut Context<'_>) {
        let (low, high) = self.range;
        if let Some(level) = self.level.filter(|level| (low..=high).contains(level)) {
            // Every second column: a limit is no curve.
            let dots: Vec<(f64, f64)> = (0..columns)
                .map(|column| (-span_s * f64::from(column) / f64::from(columns.max(1)), level))
                .collect();
            dotted(canvas, &dots, theme.beside());
        }
        let beside: Vec<(f64, f64)> = within(&self.beside, span_s, low, high).collect();
        dotted(canvas, &beside, theme.beside());
        let mut last: Option<(f64, f64)> = None;
        for (x, y) in within(&self.curve, span_s, low, high) {
            let (x0, y0) = last.filter(|(before, _)| x - before <= BRIDGE_S).unwrap_or((x, y));
            canvas.draw(&Stroke::new(x0, y0, x, y, theme.curve()));
            last = Some((x, y));
        }
    }
}

/// The known points of a curve, as the chart has place for them.
fn within(
    curve: &[(f64, Option<f64>)],
    span_s: f64,
    low: f64,
    high: f64,
) -> impl Iterator<Item = (f64, f64)> {
    curve.iter().filter(move |(x, _)| (-span_s..=0.0).contains(x)).filter_map(move |(x, value)| {
        let value = value.filter(|value| value.is_finite())?;
        Some((*x, value.clamp(low, high)))
    })
}

fn dotted(canvas: &mut Context<'_>, coords: &[(f64, f64)], color: Color) {
    canvas.draw(&Points { coords, color });
}

/// A title of a name in bold and the rest plain.
pub(super) fn title(theme: Theme, name: &'static str, rest: String) -> Vec<Span<'static>> {
    vec![Span::styled(name, theme.strong()), Span::raw(" "), Span::styled(rest, Style::new())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAIN: Theme = Theme { colour: false, ascii: false };

    fn drawn(chart: &Chart, width: u16, height: u16) -> Vec<String> {
        let mut buffer = Buffer::empty(Rect::new(0, 0, width, height));
        chart.draw(60.0, PLAIN, buffer.area, &mut buffer);
        let rows = buffer.content.chunks(usize::from(width));
        rows.map(|row| row.iter().map(ratatui::buffer::Cell::symbol).collect()).collect()
    }

    #[test]
    fn a_rising_curve_begins_at_the_lower_left_and_ends_at_the_upper_right() {
        let curve: Vec<_> = (0..=60).map(|s| (f64::from(s) - 60.0, Some(f64::from(s)))).collect();
        let chart = Chart { curve, ..Chart::default() }.fit([]);
        let rows = drawn(&chart, 27, 5);
        let dots = |row: usize, column: usize| {
            rows[row].chars().nth(column).is_some_and(|cell| ('\u{2801}'..='\u{28ff}').contains(&cell))
        };
        assert!(dots(4, 6) && dots(1, 25), "{rows:#?}");
        assert!(!dots(1, 6) && !dots(4, 25), "{rows:#?}");
        assert!(rows[1].starts_with("   60 ") && rows[4].starts_with("    0 "), "{rows:#?}");
    }

    #[test]
    fn long_gaps_stay_gaps_and_nothing_known_says_so() {
        let curve = vec![(-60.0, Some(1.0)), (-59.0, None), (0.0, Some(1.0))];
        let rows = drawn(&Chart { curve, ..Chart::default() }.fit([0.0, 2.0]), 67, 4);
        let dots = rows.concat().chars().filter(|cell| ('\u{2801}'..='\u{28ff}').contains(cell)).count();
        assert_eq!(dots, 2, "{rows:#?}");
        let rows = drawn(&Chart::default().fit([]), 40, 4);
        assert!(rows.concat().contains("nothing known yet"), "{rows:#?}");
    }

    proptest! {
        #[test]
        fn a_range_holds_every_finite_value_and_is_never_empty(
            values in prop::collection::vec(prop::option::of(prop::num::f64::ANY), 0..20),
        ) {
            let curve = values.iter().map(|value| (0.0, *value)).collect();
            let (low, high) = Chart { curve, ..Chart::default() }.fit([]).range;
            prop_assert!(low.is_finite() && high.is_finite() && low < high, "{low} {high}");
            for value in values.into_iter().flatten().filter(|value| value.abs() <= 1e15) {
                prop_assert!((low..=high).contains(&value));
            }
        }
    }
}
