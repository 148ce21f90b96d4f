//! What `agft status` says: a server, GPUs without one, or a list of both; and what came of an order.

use std::fmt::{self, Write};

use crate::bandit::structured::Ratios;
use crate::holdout::contrast::FEWEST_CYCLES;
use crate::holdout::{Change, SavingsState};
use crate::park::books::{Books, Estimate};
use crate::park::instances::ToldInstance;
use crate::stats::Interval;
use crate::units::Mhz;
use crate::view::{
    ArmStatus, HostState, LearnerState, ParkFigures, ParkState, ParkedGpu, ParkingState, Row, State, Table,
    clocks_words, duration,
};

/// The state in some lines: all of it where there is one server, or none; a list where there is more.
pub(super) fn host(host: &HostState) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = describe(&mut out, host);
    out
}

fn describe(out: &mut String, host: &HostState) -> fmt::Result {
    let minutes = (host.at_unix_s - host.started_unix_s) / 60.0;
    let park = if host.servers.is_empty() { " park" } else { "" };
    writeln!(out, "agft{park} {} (pid {}), {minutes:.1} min", host.version, host.pid)?;
    match (&host.servers[..], &host.park) {
        ([only], None) => server(out, only, host.dry_run),
        ([], Some(park)) => parked(out, park, host.dry_run),
        _ => list(out, host),
    }?;
    for ToldInstance { name, state, gpus } in &host.instances {
        let gpus: Vec<String> = gpus.iter().map(|gpu| gpu.index.to_string()).collect();
        let place =
            if gpus.is_empty() { "no GPU of here".to_owned() } else { format!("GPU {}", gpus.join(",")) };
        writeln!(out, "  instance    {name}: {}, {place}", state.name())?;
    }
    Ok(())
}

/// A line for each server, then one for each GPU without one.
fn list(out: &mut String, host: &HostState) -> fmt::Result {
    let rows = host.rows();
    let table = Table::of(&rows);
    writeln!(out, "  {}", table.line(Row::HEAD))?;
    rows.iter().try_for_each(|row| writeln!(out, "  {}", table.line(row.cells())))?;
    let more = "energy: against default clocks; `agft status --server NAME` has more of one";
    writeln!(out, "  {more}{}", dry_run_words(host.dry_run))
}

fn dry_run_words(dry_run: bool) -> &'static str {
    if dry_run { ", dry run" } else { "" }
}

/// What came of an order: a line for each server that it was for, and one for GPUs without a server.
pub(super) fn after_order(host: &HostState) -> String {
    let alone = host.servers.len() + host.park.iter().len() == 1;
    let line = |whom: &str, mode: &str, clocks: &str| {
        let whom = if alone { String::new() } else { format!(", {whom}") };
        format!("agft (pid {}){whom}: {mode}, clocks: {clocks}\n", host.pid)
    };
    let servers = host.servers.iter().map(|state| {
        line(&state.name, state.mode.name(), &clocks_words(state.in_force, state.not_given_back))
    });
    let park = host.park.iter().map(|park| {
        let of = |gpu: &ParkedGpu| {
            format!("GPU {}: {}", gpu.index, clocks_words(gpu.in_force, gpu.not_given_back))
        };
        let clocks: Vec<String> = park.gpus.iter().map(of).collect();
        line("GPUs without a server", park.mode.name(), &clocks.join("; "))
    });
    servers.chain(park).collect()
}

fn server(out: &mut String, state: &State, dry_run: bool) -> fmt::Result {
    let number = |value: Option<f64>, digits: usize, unit: &str| {
        value.map_or("unknown".to_owned(), |value| format!("{value:.digits$}{unit}"))
    };
    let (load, learner, counts) = (&state.load, &state.learner, &state.counts);
    let verdict = &state.verdict;
    let basis = if verdict.source.is_some() { format!(" ({})", verdict.basis()) } else { String::new() };
    writeln!(out, "  verdict     {}{basis}", verdict.words)?;
    writeln!(out, "  mode        {}{}", state.mode.name(), dry_run_words(dry_run))?;
    let clocks = clocks_words(state.in_force, state.not_given_back);
    writeln!(out, "  clocks      {clocks} (asked: {})", clocks_words(state.asked, false))?;
    if let Some(floor) = state.floor {
        writeln!(out, "  floor       {floor}, from a broken latency limit")?;
    }
    for gpu in &state.gpus {
        let core = gpu.core_clock.map_or("unknown".to_owned(), |clock| clock.to_string());
        let capped = if gpu.capped == Some(true) { ", held low by power or temperature" } else { "" };
        writeln!(
            out,
            "  GPU {}       {core}, {}, {} so far{capped}",
            gpu.index,
            number(gpu.power_w, 0, " W"),
            number(gpu.energy_j.map(|joules| joules / 1e3), 1, " kJ"),
        )?;
    }
    let requests = [load.running, load.waiting].map(|value| number(value, 0, ""));
    let rates = [load.prefill_tps, load.decode_tps].map(|value| number(value, 0, ""));
    writeln!(
        out,
        "  load        {} running, {} waiting; tokens/s: {} in, {} out",
        requests[0], requests[1], rates[0], rates[1]
    )?;
    let milli = |value: Option<f64>| number(value.map(|value| 1e3 * value), 1, " ms");
    let limits = state.limits.map_or("no limits".to_owned(), |limits| {
        format!("limits: {} s, {} ms", limits.ttft.0, 1e3 * limits.tpot.0)
    });
    writeln!(out, "  latency     TTFT {}, TPOT {} ({limits})", milli(load.ttft_s), milli(load.tpot_s))?;
    for why in &state.not_judged {
        writeln!(out, "  not judged  {why}")?;
    }
    if let Some(delay) = &state.delay {
        writeln!(out, "  delay       {delay}: what \"time per token\" below is")?;
    }
    let converged = if learner.converged { ", converged" } else { ", not converged" };
    let best = learner.best.map_or(String::new(), |best| format!(", best so far {best}"));
    writeln!(out, "  learner     {}, {} lessons{converged}{best}", state.policy, learner.lessons)?;
    describe_convergence(out, state)?;
    if let Some(why) = &learner.handed_over {
        writeln!(out, "              linucb stands in: {why}")?;
    }
    let open = learner.arms.iter().filter(|arm| arm.status == ArmStatus::Available).count();
    writeln!(out, "  arms        {open} of {} may be chosen", learner.arms.len())?;
    let share = |change: Option<Interval>| change.map_or("not known yet".to_owned(), change_words);
    let estimate = &state.estimate;
    writeln!(
        out,
        "  estimate    energy {}, time per token {} ({:.0} of {:.0} s compared)",
        share(estimate.saved().map(|saved| Interval { value: -saved.value, ..saved })),
        share(estimate.slowdown()),
        estimate.compared_s,
        estimate.served_s,
    )?;
    describe_parking(out, &state.parking)?;
    describe_savings(out, &state.savings)?;
    let total = |map: &std::collections::BTreeMap<String, u64>| map.values().sum::<u64>();
    writeln!(
        out,
        "  so far      {} rounds, {} clock changes, {} limits broken, {} outages, {} faults",
        counts.rounds,
        counts.clock_changes,
        total(&counts.limit_violations),
        counts.outages,
        total(&counts.faults)
    )
}

/// Since when the choice has stood, and what is expected of it.
fn describe_convergence(out: &mut String, state: &State) -> fmt::Result {
    let learner = &state.learner;
    if let Some(round) = learner.converged_round {
        let since = learner.converged_unix_s.map_or("in an earlier run".to_owned(), |since| {
            format!("{} ago", duration(state.at_unix_s - since))
        });
        writeln!(out, "              converged in round {round}, {since}")?;
    }
    let Some(chosen) = learner.chosen else { return Ok(()) };
    let core = chosen.core.map_or("driver default".to_owned(), |core| core.to_string());
    write!(out, "  expected    {core}: ")?;
    match chosen.ratios {
        None => writeln!(out, "not known yet"),
        Some(Ratios { energy, time }) => writeln!(
            out,
            "energy {}, time per token {} under this load",
            change_words(energy.change()),
            change_words(time.change())
        ),
    }
}

/// A relative change with its 95 % interval.
fn change_words(change: Interval) -> String {
    format!("{:+.1} ± {:.1} %", 100.0 * change.value, 100.0 * change.half_width)
}

/// The holdout experiment, in one line.
fn describe_savings(out: &mut String, savings: &SavingsState) -> fmt::Result {
    if savings.share <= 0.0 && savings.cycles == 0 {
        return writeln!(out, "  measured    no holdout (holdout.share is 0): nothing is proved");
    }
    let Some(power) = savings.effect.power_w else {
        let (seen, needed) = (savings.cycles, FEWEST_CYCLES);
        return writeln!(out, "  measured    too early to tell: {seen} of {needed} cycles of the holdout");
    };
    let change =
        |of: Change| format!("{:+.1} % ± {:.1} %", 100.0 * of.relative, 100.0 * of.relative_half_width);
    write!(out, "  measured    energy {}", change(power))?;
    if let Some(tpot) = savings.effect.tpot_s {
        write!(out, ", time per token {}", change(tpot))?;
    }
    writeln!(out, " ({} cycles)", power.cycles)?;
    let Some(given_away) = savings.given_away_j() else { return Ok(()) };
    let (share, seconds, watt_hours) = (100.0 * savings.share, savings.held_s, given_away / 3600.0);
    writeln!(
        out,
        "  its cost    {watt_hours:.1} Wh not saved in {seconds:.0} s at default clocks, {share:.2} % of the \
         time now",
    )
}

/// The best clocks at other loads, for `agft model show`.
pub(super) fn load_table(out: &mut String, learner: &LearnerState) -> fmt::Result {
    if learner.by_load.is_empty() {
        return Ok(());
    }
    writeln!(out, "  best by load (predicted; tokens/s in, out):")?;
    for best in &learner.by_load {
        let core = best.core.map_or("driver default".to_owned(), |core| core.to_string());
        writeln!(
            out,
            "    {:4.2} of now ({:.0}, {:.0}): {core}, cost {:+.1} %, time per token {}",
            best.share,
            best.prefill_tps,
            best.decode_tps,
            100.0 * (best.cost_ratio - 1.0),
            best.ratios.map_or_else(
                || format!("{:+.1} %", 100.0 * (best.tpot_ratio - 1.0)),
                |of| format!(
                    "{}, energy {}",
                    change_words(of.time.change()),
                    change_words(of.energy.change())
                )
            )
        )?;
    }
    Ok(())
}

/// Arms as a table, for `agft model show`.
pub(super) fn arm_table(out: &mut String, learner: &LearnerState) -> fmt::Result {
    writeln!(out, "  core MHz  memory MHz  lessons      mean reward  status")?;
    for arm in &learner.arms {
        let memory = arm.clocks.memory.map_or("-".to_owned(), |Mhz(memory)| memory.to_string());
        let about = arm.uncertainty.map_or(String::new(), |half| format!(" ±{half:.3}"));
        let reward = arm.mean_reward.map_or("-".to_owned(), |reward| format!("{reward:+.4}{about}"));
        let why = arm.why.as_ref().map_or(String::new(), |why| format!(" ({why})"));
        writeln!(
            out,
            "  {:>8}  {memory:>10}  {:>7}  {reward:>15}  {}{why}",
            arm.clocks.core.0,
            arm.lessons,
            arm.status.name()
        )?;
    }
    Ok(())
}

/// All GPUs without a server.
fn parked(out: &mut String, state: &ParkState, dry_run: bool) -> fmt::Result {
    writeln!(out, "  mode        {}{}", state.mode.name(), dry_run_words(dry_run))?;
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
    let books = &gpu.figures.books;
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
    if let (Some(idle), Some(parked)) = (gpu.figures.idle_power_w, gpu.figures.parked_power_w) {
        writeln!(out, "    power     idle {idle:.1} W, parked {parked:.1} W")?;
    }
    writeln!(out, "    saved     {}", saved_words(&gpu.figures))
}

/// What is lowered, and what each lever was measured to save.
fn lever_words(gpu: &ParkedGpu) -> String {
    let book = &gpu.figures.levers;
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
fn describe_parking(out: &mut String, parking: &ParkingState) -> fmt::Result {
    let books = &parking.figures.books;
    let Some(lever) = &parking.lever else { return writeln!(out, "  parking     off") };
    let wait = parking.wait_s.map_or(String::new(), |wait| format!(", after {wait:.1} s without work"));
    writeln!(out, "  parking     {} in {} spells, by {lever}{wait}", duration(books.parked_s), books.spells)?;
    if books.spells == 0 {
        return Ok(());
    }
    if let Some(wakes) = wakes_line(books) {
        writeln!(out, "              wakes {wakes}")?;
    }
    if let (Some(idle), Some(parked)) = (parking.figures.idle_power_w, parking.figures.parked_power_w) {
        let saved = saved_words(&parking.figures);
        writeln!(out, "              idle {idle:.1} W, parked {parked:.1} W, saved {saved}")?;
    }
    Ok(())
}

fn wakes_line(books: &Books) -> Option<String> {
    let (mean, max) = (books.wake_latency.mean()?, books.wake_latency.max()?);
    let (late, missed) = (books.late_wakes, books.missed_wakes);
    Some(format!("{:.0} ms mean, {:.0} ms max; {late} late, {missed} missed", 1e3 * mean.0, 1e3 * max.0))
}

fn saved_words(of: &ParkFigures) -> String {
    match (of.saved, of.saved_about_j) {
        (Some(Estimate { joules, low, high }), _) => {
            let [joules, low, high] = [joules, low, high].map(|joules| joules / 1e3);
            format!("{joules:.1} kJ (95 %: {low:.1} to {high:.1} kJ), estimated")
        }
        (None, Some(about)) => format!("about {:.1} kJ; too few spells for an interval", about / 1e3),
        (None, None) => "not known yet".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::park::instances::{GpuName, InstanceState};
    use crate::view::testing;

    fn shown(state: &HostState) -> String {
        let text = host(state);
        assert!(text.lines().all(|line| line.chars().count() <= 110), "{text}");
        text
    }

    fn shown_server(state: &State) -> String {
        shown(&testing::of(vec![state.clone()], None))
    }

    #[test]
    fn several_servers_and_parked_gpus_are_a_list() {
        let text = shown(&testing::host());
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["agft", "1.2.3", "(pid", "4711),", "1.0", "min"]);
        assert_eq!(lines[1], ["server", "GPUs", "mode", "power", "energy", "limits"]);
        assert_eq!(lines[2][..5], ["chat", "0", "EXPLOITATION", "152", "W"]);
        assert!(lines[2].ends_with(&["(measured)", "kept"]), "{text}");
        assert_eq!(lines[3][..5], ["code", "1,2", "PAUSED", "303", "W"]);
        assert!(lines[3].ends_with(&["(estimate)", "TPOT", "BROKEN"]), "{text}");
        assert_eq!(lines[4][..4], ["3", "PARKED", "50", "W"], "{text}");
        assert!(text.ends_with("has more of one\n") && lines.len() == 6, "{text}");
        assert!(shown(&HostState { dry_run: true, ..testing::host() }).contains("dry run"));
    }

    #[test]
    fn instances_stand_below_whatever_is_shown() {
        let gpus = [0, 1].map(|index| GpuName { index, uuid: String::new() }).to_vec();
        let told = |name: &str, state, gpus| ToldInstance { name: name.into(), state, gpus };
        let instances = vec![
            told("codestral", InstanceState::Working, gpus),
            told("chat", InstanceState::Idle, Vec::new()),
        ];
        for state in [testing::host(), testing::of(vec![testing::state()], None)] {
            let text = shown(&HostState { instances: instances.clone(), ..state });
            let end = "  instance    codestral: working, GPU 0,1\n  instance    chat: idle, no GPU of here\n";
            assert!(text.ends_with(end), "{text}");
        }
    }

    #[test]
    fn an_order_is_answered_for_each_that_it_was_for() {
        let text = after_order(&testing::host());
        for line in [
            "agft (pid 4711), chat: EXPLOITATION, clocks: 900 MHz core, 1215 MHz memory",
            "agft (pid 4711), code: PAUSED, clocks: driver default",
            "agft (pid 4711), GPUs without a server: PARKING, clocks: GPU 3: 210 MHz core, 405 MHz memory",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line:?} in\n{text}");
        }
        let one = after_order(&testing::of(vec![testing::host().servers.remove(1)], None));
        assert_eq!(one, "agft (pid 4711): PAUSED, clocks: driver default\n");
    }

    #[test]
    fn status_says_unknown_where_nothing_is_known_and_never_fails() {
        let shown = shown_server;
        let mut state = testing::state();
        let text = shown(&state);
        for part in
            ["EXPLOITATION", "900 MHz core", "floor", "energy -25.0 ±", "time per token +5.0 ±", "200 rounds"]
        {
            assert!(text.contains(part), "no {part} in\n{text}");
        }
        assert!(text.contains("measured    energy -25.0 % ± "), "{text}");
        assert!(text.contains("its cost    "), "{text}");
        state.in_force = None;
        state.savings = SavingsState { share: 0.02, cycles: 2, ..SavingsState::default() };
        assert!(shown(&state).contains("too early to tell: 2 of 5 cycles"));
        state.savings = SavingsState::default();
        assert!(shown(&state).contains("no holdout"));
        state.load = crate::view::Load::default();
        state.estimate = crate::view::Estimate::default();
        state.gpus[0].power_w = None;
        let text = shown(&state);
        assert!(text.contains("driver default") && text.contains("TTFT unknown"), "{text}");
        assert!(text.contains("energy not known yet"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 110), "{text}");
    }

    #[test]
    fn every_line_has_what_is_known_and_what_is_not_known_is_said_or_left_out() {
        let mut state = testing::park_state();
        let shown = |state: &ParkState| shown(&testing::of(Vec::new(), Some(state.clone())));
        let text = shown(&state);
        for part in [
            "agft park 1.2.3 (pid 4711), 1.0 min",
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
        (gpu.figures.saved, gpu.in_force) = (None, None);
        state.connections = None;
        let text = shown(&state);
        assert!(text.contains("too few spells") && text.contains("driver default"), "{text}");
        assert!(!text.contains("connections 0"), "{text}");
        state.gpus[0].figures.saved_about_j = None;
        assert!(shown(&state).contains("not known yet"));
    }
}
