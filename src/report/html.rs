//! The report as one self-contained page: no script, nothing fetched, light and dark, fit for print.

use std::fmt::Write;

use super::markdown::{ESTIMATE, headline, tables};
use super::plots::plots;
use super::{Report, ReportError};
use crate::text;

const STYLE: &str = "\
:root{color-scheme:light dark;--fg:#1c2430;--dim:#5b6673;--bg:#fff;--card:#f5f7f9;--line:#dde3e9}\
@media(prefers-color-scheme:dark){:root{--fg:#e3e8ee;--dim:#9aa6b2;--bg:#14181d;--card:#1d232a;--line:#313a44}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--fg);background:var(--bg);max-width:62rem;margin:0 auto;padding:1.5rem 1rem 4rem}\
h1{font-size:1.5rem;margin:0 0 .2rem}h2{font-size:1.1rem;margin:2.2rem 0 .6rem}p{max-width:48rem}\
.dim{color:var(--dim);font-size:.9rem}.note{border-left:4px solid #e69f00;padding:.3rem .8rem;background:var(--card)}\
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(13.5rem,1fr));gap:.6rem;margin:1.2rem 0}\
dl div{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:.5rem .8rem}\
dt{color:var(--dim);font-size:.8rem}dd{margin:0;font-weight:600;font-variant-numeric:tabular-nums}\
figure{margin:0;background:#fff;border:1px solid var(--line);border-radius:6px;overflow:hidden}\
figure svg{width:100%;height:auto;display:block}\
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.87rem;font-variant-numeric:tabular-nums}\
th,td{text-align:right;padding:.22rem .7rem;border-bottom:1px solid var(--line);white-space:nowrap}\
th:first-child,td:first-child{text-align:left;padding-left:0}th{color:var(--dim);font-weight:600}\
@media print{body{max-width:none}h2{break-after:avoid}figure,tr{break-inside:avoid}}";

/// Text that cannot be markup.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text::whole(text).chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            c => safe.push(c),
        }
    }
    safe
}

pub(crate) fn html(report: &Report) -> Result<String, ReportError> {
    let name = escape(&report.name);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>agft: {name}</title>\n<style>{STYLE}</style></head>\n<body><main>\n<h1>{name}</h1>\n"
    );
    write(&mut out, report).map_err(|error| ReportError::Text(error.to_string()))?;
    for plot in plots(report)? {
        let (title, words) = (escape(plot.title), escape(&plot.words));
        let svg = plot.svg.replacen("<svg ", &format!("<svg role=\"img\" aria-label=\"{words}\" "), 1);
        out += &format!("<h2>{title}</h2>\n<figure>{svg}</figure>\n");
    }
    for table in tables(report) {
        out += &format!("<h2>{}</h2>\n", escape(table.title));
        if !table.note.is_empty() {
            out += &format!("<p class=\"dim\">{}</p>\n", escape(table.note));
        }
        let heads: String =
            table.columns.iter().map(|name| format!("<th scope=\"col\">{}</th>", escape(name))).collect();
        out += &format!("<div class=\"wide\"><table><thead><tr>{heads}</tr></thead><tbody>\n");
        for row in &table.rows {
            let cells: String = row.iter().map(|text| format!("<td>{}</td>", escape(text))).collect();
            out += &format!("<tr>{cells}</tr>\n");
        }
        out += "</tbody></table></div>\n";
    }
    out +=
        &format!("<p class=\"dim\">Made by agft {}.</p>\n</main></body></html>\n", env!("CARGO_PKG_VERSION"));
    Ok(out)
}

fn write(out: &mut String, report: &Report) -> std::fmt::Result {
    if let Some(metadata) = &report.metadata {
        writeln!(out, "<p class=\"dim\">Begun {}</p>", escape(&metadata.start_time))?;
    }
    for note in &report.notes {
        writeln!(out, "<p class=\"note\">{}</p>", escape(note))?;
    }
    out.push_str("<dl>\n");
    for (name, value) in headline(report) {
        writeln!(out, "<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(&value))?;
    }
    writeln!(out, "</dl>\n<p class=\"dim\">{}</p>", escape(ESTIMATE))
}
