//! Where everything goes in a given size.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::model::{Link, Model, Pane};
use super::text::{Theme, put, put_right, to_ascii};
use super::{curves, header, panes};
use crate::control::Order;
use crate::units::Seconds;
use crate::view::{History, HostState, Row, State, Table};

/// The narrowest terminal that is drawn on.
pub(crate) const MIN_WIDTH: u16 = 60;
/// The lowest.
pub(crate) const MIN_HEIGHT: u16 = 16;

/// Rows of the lower pane that are worth having.
const PANE_MIN: u16 = 5;
/// Rows of a chart, with its title: less says nothing, more only where the pane has enough.
const CHART_MIN: u16 = 4;
const CHART_MAX: u16 = 12;
/// Both panes beside each other from this width on.
const BESIDE: u16 = 130;

/// Draws the view as of `now_unix_s` into the whole of `area`.
pub fn draw(model: &mut Model, theme: Theme, now_unix_s: f64, area: Rect, buffer: &mut Buffer) {
    let area = area.intersection(buffer.area);
    if area.is_empty() {
        return;
    }
    if area.width < MIN_WIDTH || area.height < MIN_HEIGHT {
        small(area, buffer);
    } else if let Some(host) = model.host.take() {
        let below = list(model, &host, theme, area, buffer);
        match model.shown(&host) {
            Some(state) => everything(model, &host, state, theme, now_unix_s, below, buffer),
            None => parked(model, &host, theme, now_unix_s, area, buffer),
        }
        model.host = Some(host);
    } else {
        nothing(model, theme, area, buffer);
    }
    if theme.ascii {
        to_ascii(buffer);
    }
}

fn small(area: Rect, buffer: &mut Buffer) {
    let words =
        format!("agft top needs at least {MIN_WIDTH}x{MIN_HEIGHT}, this is {}x{}", area.width, area.height);
    let lines = super::text::wrap(&words, usize::from(area.width));
    for (y, line) in (area.y..area.bottom()).zip(lines) {
        put(buffer, Rect { y, height: 1, ..area }, &Line::raw(line));
    }
}

fn nothing(model: &Model, theme: Theme, area: Rect, buffer: &mut Buffer) {
    let why = match &model.link {
        Link::Lost(why) => format!("{why}; trying again every second"),
        Link::Waiting | Link::Live => "waiting for what agft says".into(),
    };
    let row = |y| Rect { y, height: 1, ..area };
    put(buffer, row(area.y), &Line::from(vec![Span::raw(" "), Span::styled("agft top", theme.strong())]));
    for (y, line) in (area.y + 2..area.bottom() - 1).zip(super::text::wrap(&why, usize::from(area.width) - 2))
    {
        put(buffer, row(y), &Line::raw(format!(" {line}")));
    }
    put(buffer, row(area.bottom() - 1), &Line::styled(" q quit", theme.faint()));
}

/// The servers and the GPUs without one, if there are several; what is left below them.
fn list(model: &Model, host: &HostState, theme: Theme, area: Rect, buffer: &mut Buffer) -> Rect {
    let rows = host.rows();
    let (one, all) = (rows.len() == 1, rows.len() + 1);
    let shown = model.shown(host).map(|state| &state.name);
    // Of a GPU without a server there is no more than its line.
    let spare = usize::from(area.height.saturating_sub(if shown.is_some() { MIN_HEIGHT } else { 3 }));
    let lines = all.min(spare);
    if lines < 2 || (one && shown.is_some()) {
        return area;
    }
    let table = Table::of(&rows);
    let top = if shown.is_none() { area.y + 1 } else { area.y };
    let row = |line: usize| Rect { y: top + u16::try_from(line).unwrap_or(u16::MAX), height: 1, ..area };
    put(buffer, row(0), &Line::styled(format!("     {}", table.line(Row::HEAD)), theme.faint()));
    let is_shown = |one: &Row| !one.name.is_empty() && shown == Some(&one.name);
    let place = rows.iter().position(is_shown).unwrap_or(0);
    let first = panes::around(place, lines - 1).min(rows.len() - (lines - 1));
    for (line, (number, one)) in (1..lines).zip(rows.iter().enumerate().skip(first)) {
        let number = if one.name.is_empty() { String::new() } else { (number + 1).to_string() };
        let mark = if is_shown(one) { ">" } else { " " };
        let style = if is_shown(one) { theme.strong() } else { Style::new() };
        let words = format!(" {mark}{number:>2} {}", table.line(one.cells()));
        put(buffer, row(line), &Line::styled(words, style));
    }
    let taken = u16::try_from(lines).unwrap_or(area.height);
    Rect { y: area.y + taken, height: area.height - taken, ..area }
}

/// What there is to say where GPUs are parked and no server is served, beside the list.
fn parked(model: &Model, host: &HostState, theme: Theme, now_unix_s: f64, area: Rect, buffer: &mut Buffer) {
    let row = |y: u16| Rect { y, height: 1, ..area };
    put(buffer, row(area.y), &header::process(host, theme));
    let (standing, live) = header::standing(&model.link, host, host.at_unix_s, now_unix_s);
    let style = if live { theme.faint() } else { theme.alert() };
    put_right(buffer, row(area.y), &Line::styled(format!("{standing} "), style));
    footer(model, host, None, theme, row(area.bottom() - 1), buffer);
}

/// Rows of the header, of one row of charts, how many such rows, and what is left for the panes.
struct Plan {
    gpu_lines: usize,
    header: u16,
    chart: u16,
    chart_rows: u16,
    columns: u16,
}

impl Plan {
    fn of(area: Rect, gpus: usize) -> Self {
        // GPUs beyond the first get lines of their own out of what 24 rows leave over.
        let spare = usize::from(area.height.saturating_sub(24)) / 3;
        let gpu_lines = if gpus <= 1 + spare { gpus } else { 1 };
        let header = header::FIXED + u16::try_from(gpu_lines).unwrap_or(1);
        let left = area.height.saturating_sub(header + 1);
        let chart_rows = if left >= 2 * CHART_MIN + PANE_MIN { 2 } else { 1 };
        // A quarter for each row of charts, the rest for the panes.
        let room = left.saturating_sub(PANE_MIN) / chart_rows;
        let chart = (left / 4).clamp(CHART_MIN, CHART_MAX).min(room);
        Self { gpu_lines, header, chart, chart_rows, columns: if area.width >= BESIDE { 4 } else { 3 } }
    }
}

fn everything(
    model: &mut Model,
    host: &HostState,
    state: &State,
    theme: Theme,
    now_unix_s: f64,
    area: Rect,
    buffer: &mut Buffer,
) {
    let (plan, history) = (Plan::of(area, state.gpus.len()), model.last_minutes(&state.name));
    let row = |y: u16| Rect { y, height: 1, ..area };
    let (standing, live) = header::standing(&model.link, host, state.at_unix_s, now_unix_s);
    let standing = Line::styled(format!("{standing} "), if live { theme.faint() } else { theme.alert() });
    let taken = u16::try_from(standing.width()).unwrap_or(u16::MAX).saturating_add(1);
    for (y, line) in
        (area.y..).zip(header::lines(host, state, theme, plan.gpu_lines).iter().take(plan.header.into()))
    {
        let row = row(y);
        let width = if y == area.y { row.width.saturating_sub(taken) } else { row.width };
        put(buffer, Rect { width, ..row }, line);
    }
    let charts = Rect { y: area.y + plan.header, height: plan.chart * plan.chart_rows, ..area };
    draw_charts(&history, state, theme, &plan, charts, buffer);
    let pane = Rect { y: charts.bottom(), height: area.bottom() - 1 - charts.bottom(), ..area };
    draw_panes(model, state, theme, pane, buffer);
    if !live {
        // Pale, and said in words in the first and the last line.
        buffer.set_style(area, theme.faint());
    }
    put_right(buffer, row(area.y), &standing);
    footer(model, host, Some(&history), theme, row(area.bottom() - 1), buffer);
}

fn draw_charts(history: &History, state: &State, theme: Theme, plan: &Plan, area: Rect, buffer: &mut Buffer) {
    let span_s = curves::span_s(history);
    let charts = curves::charts(state, history, theme, area.width / plan.columns < 36);
    let mut charts = charts.iter();
    for line in 0..plan.chart_rows {
        for column in 0..plan.columns {
            let Some(chart) = charts.next() else { return };
            let wide = area.width / plan.columns;
            // The last one takes what the division leaves.
            let rest = if column + 1 == plan.columns { area.width % plan.columns } else { 0 };
            let place = Rect {
                x: area.x + column * wide,
                y: area.y + line * plan.chart,
                width: wide + rest,
                height: plan.chart,
            };
            chart.draw(span_s, theme, place, buffer);
        }
    }
}

fn draw_panes(model: &mut Model, state: &State, theme: Theme, area: Rect, buffer: &mut Buffer) {
    if model.help {
        panes::help(theme, area, buffer);
    } else if area.width >= BESIDE {
        let half = area.width / 2;
        panes::arms(model, state, theme, Rect { width: half - 1, ..area }, buffer);
        let right = Rect { x: area.x + half, width: area.width - half, ..area };
        panes::news(model, state, theme, right, buffer);
    } else {
        match model.pane {
            Pane::Arms => panes::arms(model, state, theme, area, buffer),
            Pane::News => panes::news(model, state, theme, area, buffer),
        }
    }
}

fn footer(
    model: &Model,
    host: &HostState,
    history: Option<&History>,
    theme: Theme,
    row: Rect,
    buffer: &mut Buffer,
) {
    let several = host.servers.len() > 1;
    let line = match (&model.asking, &model.message, &model.link) {
        (Some(asked), _, _) => {
            let whom = asked.server.as_deref().filter(|_| several).unwrap_or("agft");
            let what = match asked.order {
                Order::Pause => format!("Pause {whom} (default clocks, no learning)?"),
                Order::Resume => format!("Resume {whom}?"),
            };
            Line::styled(format!(" {what} y: yes, any other key: no"), theme.alert())
        }
        (None, Some(message), _) => Line::styled(format!(" {message}"), theme.strong()),
        (None, None, Link::Lost(why)) => {
            Line::styled(format!(" {why}; trying again every second"), theme.alert())
        }
        (None, None, _) => {
            let Some(history) = history else {
                put(buffer, row, &Line::styled(" q quit  p pause", theme.faint()));
                return;
            };
            let span = super::text::span(Seconds(curves::span_s(history)));
            put_right(buffer, row, &Line::styled(format!("charts: last {span} "), theme.faint()));
            let width = row.width.saturating_sub(24);
            let keys = match several {
                true => " q quit  1-9 n server  Tab arms/news  j k  p pause  ? help",
                false => " q quit  Tab arms/news  j k scroll  p pause  ? help",
            };
            let keys = Line::styled(keys, theme.faint());
            put(buffer, Rect { width, ..row }, &keys);
            return;
        }
    };
    put(buffer, row, &line);
}
