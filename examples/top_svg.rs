//! Draws a recorded moment (`agft demo --save-view FILE`) as `agft top` shows it, as an SVG: pictures for documents.
//!
//! `cargo run --example top_svg -- FILE 80x24 > top.svg`; `scripts/screens-top.sh` does the whole of it.

use std::fmt::Write as _;
use std::io::Write as _;

use agft::top::{Key, Model, Theme, draw};
use agft::view::{History, HostState};
use anyhow::Context;
use ratatui::buffer::{Buffer, Cell};
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier};

/// Size of a cell in the picture's units, and where the text stands in it.
const CELL: (f32, f32) = (8.0, 17.0);
const BASELINE: f32 = 12.5;
const MARGIN: f32 = 10.0;
const BACKGROUND: &str = "#16181d";
const FOREGROUND: &str = "#d7dae0";

#[derive(serde::Deserialize)]
struct View {
    state: HostState,
    history: History,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, size, rest @ ..] = &arguments[..] else {
        anyhow::bail!("usage: top_svg FILE COLUMNSxROWS [news]");
    };
    let (width, height) = size.split_once('x').context("a size is COLUMNSxROWS")?;
    let area = Rect::new(0, 0, width.parse()?, height.parse()?);
    let view: View = serde_json::from_slice(&std::fs::read(file).with_context(|| file.clone())?)?;
    let mut buffer = Buffer::empty(area);
    let now_unix_s = view.state.at_unix_s;
    let mut model = Model::default();
    if let Some(server) = view.state.servers.first() {
        model.history(server.name.clone(), view.history);
    }
    model.host(view.state);
    if rest.iter().any(|word| word == "news") {
        model.key(Key::Switch);
    }
    draw(&mut model, Theme { colour: true, ascii: false }, now_unix_s, area, &mut buffer);
    Ok(std::io::stdout().write_all(svg(&buffer)?.as_bytes())?)
}

/// Cells as text; each run of one style starts at its own column, so that the fonts of this world cannot shift it.
fn svg(buffer: &Buffer) -> Result<String, std::fmt::Error> {
    let (columns, rows) = (f32::from(buffer.area.width), f32::from(buffer.area.height));
    let (width, height) = (columns * CELL.0 + 2.0 * MARGIN, rows * CELL.1 + 2.0 * MARGIN);
    let mut out = String::new();
    writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">"#
    )?;
    writeln!(out, r#"<rect width="100%" height="100%" rx="6" fill="{BACKGROUND}"/>"#)?;
    writeln!(
        out,
        r#"<g font-family="ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace" font-size="13">"#
    )?;
    for y in 0..buffer.area.height {
        let mut x = 0;
        while x < buffer.area.width {
            let first = &buffer[(x, y)];
            let (mut text, start) = (String::new(), x);
            while x < buffer.area.width && alike(&buffer[(x, y)], first) {
                text.push_str(buffer[(x, y)].symbol());
                x += 1;
            }
            run(&mut out, first, &text, (start, y), x - start)?;
        }
    }
    writeln!(out, "</g>\n</svg>")?;
    Ok(out)
}

fn is_braille(cell: &Cell) -> bool {
    cell.symbol().starts_with(|first| ('\u{2800}'..='\u{28ff}').contains(&first))
}

fn alike(cell: &Cell, first: &Cell) -> bool {
    (cell.style(), is_braille(cell)) == (first.style(), is_braille(first))
}

fn run(out: &mut String, cell: &Cell, text: &str, (x, y): (u16, u16), cells: u16) -> std::fmt::Result {
    let (left, top) = (MARGIN + f32::from(x) * CELL.0, MARGIN + f32::from(y) * CELL.1);
    let mut colour = colour(cell.fg);
    if cell.modifier.contains(Modifier::REVERSED) {
        let width = f32::from(cells) * CELL.0;
        writeln!(out, r#"<rect x="{left}" y="{top}" width="{width}" height="{}" fill="{colour}"/>"#, CELL.1)?;
        colour = BACKGROUND;
    }
    if text.trim().is_empty() {
        return Ok(());
    }
    if is_braille(cell) {
        return dots(out, text, colour, (left, top));
    }
    let weight = if cell.modifier.contains(Modifier::BOLD) { r#" font-weight="bold""# } else { "" };
    let pale = if cell.modifier.contains(Modifier::DIM) { r#" opacity="0.6""# } else { "" };
    // Blanks would be merged: each stretch of words stands at its own column.
    let mut column = 0_u16;
    for words in text.split("  ") {
        let cells = u16::try_from(words.chars().count()).unwrap_or(u16::MAX);
        let blanks = u16::try_from(words.chars().take_while(|letter| *letter == ' ').count()).unwrap_or(0);
        let trimmed = words.trim();
        if !trimmed.is_empty() {
            let escaped = trimmed.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
            let x = left + f32::from(column + blanks) * CELL.0;
            let letters = u16::try_from(trimmed.chars().count()).unwrap_or(u16::MAX);
            let (y, length) = (top + BASELINE, f32::from(letters) * CELL.0);
            writeln!(
                out,
                r#"<text x="{x}" y="{y}" textLength="{length}" fill="{colour}"{weight}{pale}>{escaped}</text>"#
            )?;
        }
        column += cells + 2;
    }
    Ok(())
}

/// Braille as dots: not every font has it, and few draw it evenly.
fn dots(out: &mut String, text: &str, colour: &str, (left, top): (f32, f32)) -> std::fmt::Result {
    const PLACES: [(f32, f32); 8] =
        [(0., 0.), (0., 1.), (0., 2.), (1., 0.), (1., 1.), (1., 2.), (0., 3.), (1., 3.)];
    write!(out, r#"<path fill="{colour}" d=""#)?;
    for (column, letter) in (0_u16..).zip(text.chars()) {
        for (bit, (x, y)) in PLACES.iter().enumerate() {
            if (u32::from(letter) - 0x2800) >> bit & 1 == 1 {
                let x = left + f32::from(column) * CELL.0 + (x + 0.5) * CELL.0 / 2.0;
                let y = top + (y + 0.5) * CELL.1 / 4.0;
                write!(out, "M{:.1} {:.1}h2.2v2.2h-2.2z", x - 1.1, y - 1.1)?;
            }
        }
    }
    writeln!(out, r#""/>"#)
}

fn colour(colour: Color) -> &'static str {
    match colour {
        Color::Cyan => "#56c8d8",
        Color::Magenta => "#d787d7",
        Color::Red => "#ff6b68",
        Color::Green => "#8ccf7e",
        _ => FOREGROUND,
    }
}
