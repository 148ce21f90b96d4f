//! What `agft status` says of parking.

use std::fmt::{self, Write};

use crate::park::books::{Books, Estimate};
use crate::view::{ParkState, ParkedGpu, ParkingState, clocks_words};

/// The state in some lines.
pub(super) fn describe_park(out: &mut String, state: &ParkState) -> fmt::Result {
    let minutes = (state.at_unix_s - state.started_unix_s) / 60.0;
    writeln!(out, "agft park {} (pid {}), {minutes:.1} min", state.version, state.pid)?;
    writeln!(out, "  mode        {}{}", state.mode.name(), if state.dry_run { ", dry run" } else { "" })?;
    writeln!(
        out,
        "  rule        {}, lever {}, sources {}",
        state.rule,
        state.lever,
        state.sources.join(" and ")
    )?;
    if let Some(connections) = &state.connections {
        let open = connections.open.map_or("unknown".to_owned(), |open| open.to_string());
        let ports: Vec<String> = connections.ports.iter().map(u16::to_string).collect();
        writeln!(
            out,
            "  connections {open} open on {}, known from {}",
            ports.join(", "),
            connections.source
        )?;
    }
    state.gpus.iter().try_for_each(|gpu| describe_gpu(out, gpu, state.at_unix_s))
}

fn describe_gpu(out: &mut String, gpu: &ParkedGpu, now_unix_s: f64) -> fmt::Result {
    let books = &gpu.books;
    writeln!(out, "  GPU {} ({})", gpu.index, gpu.name)?;
    writeln!(
        out,
        "    state     {} for {}, clocks: {} (parked: {})",
        gpu.state.name(),
        duration(now_unix_s - gpu.since_unix_s),
        clocks_words(gpu.in_force, gpu.not_given_back),
        gpu.parked_clocks
    )?;
    writeln!(out, "    lever     {}", lever_words(gpu))?;
    write!(out, "    parked    {} in {} spells", duration(books.parked_s), books.spells)?;
    let wakes: Vec<String> =
        books.wakes.iter().map(|(source, wakes)| format!("{wakes} by {source}")).collect();
    if !wakes.is_empty() {
        write!(out, "; wakes: {}", wakes.join(", "))?;
    }
    if books.hot_spells > 0 {
        write!(out, "; too hot {} times, {}", books.hot_spells, duration(books.hot_s))?;
    }
    writeln!(out)?;
    if let Some(wakes) = wakes_line(books) {
        writeln!(out, "    wakes     {wakes}")?;
    }
    if let (Some(idle), Some(parked)) = (gpu.idle_power_w, gpu.parked_power_w) {
        writeln!(out, "    power     idle {idle:.1} W, parked {parked:.1} W")?;
    }
    writeln!(out, "    saved     {}", saved_words(gpu.saved, gpu.saved_about_j))
}

/// What is lowered, and what each lever was measured to save.
fn lever_words(gpu: &ParkedGpu) -> String {
    let book = &gpu.levers;
    let known = book.levers.keys();
    let savings: Vec<String> =
        known.filter_map(|kind| Some(format!("{:.1} W by {}", book.saving(*kind)?.0, kind.name()))).collect();
    let trying = if gpu.trying { " (levers are being tried out)" } else { "" };
    if savings.is_empty() {
        format!("{}{trying}", gpu.lever)
    } else {
        format!("{}{trying}; measured to save {}", gpu.lever, savings.join(", "))
    }
}

/// What `agft status` says of the parking of a learning agft.
pub(super) fn describe_parking(out: &mut String, parking: &ParkingState) -> fmt::Result {
    let books = &parking.books;
    let Some(lever) = &parking.lever else { return writeln!(out, "  parking     off") };
    let wait = parking.wait_s.map_or(String::new(), |wait| format!(", after {wait:.1} s without work"));
    writeln!(out, "  parking     {} in {} spells, by {lever}{wait}", duration(books.parked_s), books.spells)?;
    if books.spells == 0 {
        return Ok(());
    }
    if let Some(wakes) = wakes_line(books) {
        writeln!(out, "              wakes {wakes}")?;
    }
    if let (Some(idle), Some(parked)) = (parking.idle_power_w, parking.parked_power_w) {
        let saved = saved_words(parking.saved, parking.saved_about_j);
        writeln!(out, "              idle {idle:.1} W, parked {parked:.1} W, saved {saved}")?;
    }
    Ok(())
}

fn wakes_line(books: &Books) -> Option<String> {
    let (mean, max) = (books.wake_latency.mean()?, books.wake_latency.max()?);
    let (late, missed) = (books.late_wakes, books.missed_wakes);
    Some(format!("{:.0} ms mean, {:.0} ms max; {late} late, {missed} missed", 1e3 * mean.0, 1e3 * max.0))
}

fn saved_words(saved: Option<Estimate>, about_j: Option<f64>) -> String {
    match (saved, about_j) {
        (Some(Estimate { joules, low, high }), _) => {
            let [joules, low, high] = [joules, low, high].map(|joules| joules / 1e3);
            format!("{joules:.1} kJ (95 %: {low:.1} to {high:.1} kJ), estimated")
        }
        (None, Some(about)) => format!("about {:.1} kJ; too few spells for an interval", about / 1e3),
        (None, None) => "not known yet".into(),
    }
}

fn duration(seconds: f64) -> String {
    match seconds.max(0.0) {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(state: &ParkState) -> String {
        let mut text = String::new();
        describe_park(&mut text, state).unwrap();
        assert!(text.lines().all(|line| line.chars().count() <= 110), "{text}");
        text
    }

    #[test]
    fn every_line_has_what_is_known_and_what_is_not_known_is_said_or_left_out() {
        let mut state = crate::view::testing::park_state();
        let text = shown(&state);
        for part in [
            "agft park 1.2.3 (pid 4712), 20.0 min",
            "mode        PARKING",
            "connections 0 open on 5001, known from kernel_events",
            "state     PARKED for 3 min, clocks: 210 MHz core, 405 MHz memory",
            "lever     both; measured to save 15.0 W by core, 20.0 W by memory, 30.0 W by both",
            "parked    10 min in 3 spells; wakes: 2 by connections; too hot 1 times, 5 s",
            "wakes     615 ms mean, 1200 ms max; 1 late, 0 missed",
            "saved     18.0 kJ (95 %: ",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
        let gpu = &mut state.gpus[0];
        (gpu.saved, gpu.in_force) = (None, None);
        state.connections = None;
        let text = shown(&state);
        assert!(text.contains("too few spells") && text.contains("driver default"), "{text}");
        assert!(!text.contains("connections 0"), "{text}");
        state.gpus[0].saved_about_j = None;
        assert!(shown(&state).contains("not known yet"));
    }
}
