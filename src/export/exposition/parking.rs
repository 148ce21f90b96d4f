//! What came of parking, with a server and without one.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::metrics::MetricType::{self, Counter, Gauge};

use super::families::{Families, Label, Of, Sample, alias, bounds, by, one, samples};
use super::{count, flag, hertz};
use crate::park::levers::LeverKind;
use crate::view::{ParkFigures, ParkMode, ParkStanding, ParkState, ParkedGpu, State};

/// The parking of a server's GPUs, or of a GPU without one.
struct Parking<'s> {
    spells: u64,
    wakes: &'s BTreeMap<String, u64>,
    figures: &'s ParkFigures,
}

impl<'s> Parking<'s> {
    fn of(state: &'s State) -> Self {
        let counts = &state.counts;
        Self { spells: counts.parkings, wakes: &counts.wakes, figures: &state.parking.figures }
    }

    fn alone(gpu: &'s ParkedGpu) -> Self {
        let books = &gpu.figures.books;
        Self { spells: books.spells, wakes: &books.wakes, figures: &gpu.figures }
    }
}

/// What servers and GPUs without one have alike.
pub(super) fn parking(to: &mut Families<'_, '_>) -> fmt::Result {
    let what = ("parked", Some("seconds"), "Time parked.");
    both(to, what, "park_parked", Counter, |of| one(of.figures.books.parked_s))?;
    let what = ("parkings", None, "Times that the clocks were parked.");
    both(to, what, "park_spells", Counter, |of| one(count(of.spells)))?;
    let what = ("wakes", None, "Ends of parking, by what showed the work.");
    both(to, what, "park_wakes", Counter, |of| by("source", of.wakes, count))?;
    let what = ("late_wakes", None, "Wakes that took longer than wake_limit_s.");
    both(to, what, "park_late_wakes", Counter, |of| one(count(of.figures.books.late_wakes)))?;
    let help =
        "Times that work was found at parked clocks: no client was heard, or the clocks did not come back.";
    let what = ("missed_wakes", None, help);
    both(to, what, "park_missed_wakes", Counter, |of| one(count(of.figures.books.missed_wakes)))?;
    latency(to)?;
    let what = ("idle_power", Some("watts"), "Mean power of idle spells that were not parked.");
    both(to, what, "park_idle_power", Gauge, |of| one(of.figures.idle_power_w))?;
    let what = ("parked_power", Some("watts"), "Mean power while parked.");
    both(to, what, "park_parked_power", Gauge, |of| one(of.figures.parked_power_w))?;
    let help =
        "Estimate: energy that parking saved, with its 95 % interval; none while there are too few spells.";
    let what = ("parking_saved", Some("joules"), help);
    both(to, what, "park_saved", Gauge, |of| {
        of.figures.saved.into_iter().flat_map(|of| bounds(of.low, of.joules, of.high)).collect::<Vec<_>>()
    })?;
    let help = "Power that parking saves by this lever, as it was measured on this GPU.";
    both(to, ("lever_saving", Some("watts"), help), "park_lever_saving", Gauge, |of| {
        let known = of.figures.levers.levers.keys();
        let saving =
            |kind: &LeverKind| Some((vec![("lever", kind.name())], of.figures.levers.saving(*kind)?.0));
        known.filter_map(saving).collect::<Vec<_>>()
    })?;
    let what =
        ("parking_wait", Some("seconds"), "An idle gap is waited out so long before the clocks are parked.");
    to.gauge(what, |state| state.parking.wait_s)
}

fn both<'s, I: IntoIterator<Item = Sample<'s>>>(
    to: &mut Families<'_, 's>,
    what: super::families::What<'_>,
    old: &str,
    kind: MetricType,
    values: impl Fn(Parking<'s>) -> I,
) -> fmt::Result {
    let servers = samples(&to.subjects.servers, |state| values(Parking::of(state)));
    let parked = samples(&to.subjects.parked, |gpu| values(Parking::alone(gpu)));
    to.with_parked(what, old, kind, servers, parked)
}

fn latency(to: &mut Families<'_, '_>) -> fmt::Result {
    fn gpu<'l>(of: &'l Of<'_, ParkedGpu>) -> Label<'l> {
        ("gpu", &of.gpu)
    }
    let subjects = to.subjects;
    let servers = subjects.servers.iter().map(|of| {
        (vec![("server", of.server), ("gpu", of.gpu.as_str())], &of.what.parking.figures.books.wake_latency)
    });
    let parked =
        subjects.parked.iter().map(|of| (vec![("server", ""), gpu(of)], &of.what.figures.books.wake_latency));
    let help = "Time from the decision to wake until the running clocks were seen to be back.";
    to.histogram("wake_latency", help, servers.chain(parked))?;
    let help = alias("wake_latency", Some("seconds"), MetricType::Histogram);
    let parked = subjects.parked.iter().map(|of| (vec![gpu(of)], &of.what.figures.books.wake_latency));
    to.histogram("park_wake_latency", &help, parked)
}

/// What there is of GPUs without a server alone.
pub(super) fn alone(to: &mut Families<'_, '_>, state: &ParkState) -> fmt::Result {
    let labels = vec![("rule", state.rule.as_str()), ("lever", state.lever.as_str())];
    to.family(
        ("park_settings_info", None, "When and how GPUs are parked; always 1."),
        Gauge,
        [(labels, 1.0)],
    )?;
    let what = ("park_paused", None, "1 while the clocks are left to the driver, until resume.");
    to.of_process(what, flag(state.mode == ParkMode::Paused))?;
    let connections = state.connections.as_ref();
    let what = ("park_open_connections", None, "Connections to the watched ports.");
    to.of_process(what, connections.and_then(|of| of.open).map(f64::from))?;
    let source = connections.map(|of| (vec![("source", of.source.as_str())], 1.0));
    let what = ("park_connections_source", None, "Where connections are known from; always 1.");
    to.family(what, Gauge, source)?;
    let what = ("park_state", None, "Where a GPU stands: 1 for the state it is in.");
    each(to, what, Gauge, |gpu| {
        ParkStanding::ALL.map(|state| (vec![("state", state.name())], flag(gpu.state == state)))
    })?;
    let what = ("park_state_since", Some("seconds"), "When it came to that state, Unix time.");
    each(to, what, Gauge, |gpu| one(gpu.since_unix_s))?;
    // Of a performance state no clock is asked for.
    let locked = |gpu: &ParkedGpu| gpu.in_force.filter(|_| gpu.lever != LeverKind::Pstate.name());
    let what =
        ("park_core_clock", Some("hertz"), "Core clock of the lock in force; none at driver-default clocks.");
    each(to, what, Gauge, |gpu| one(locked(gpu).map(|clocks| hertz(clocks.core))))?;
    let help = "Memory clock of the lock in force; none where it is left alone.";
    let what = ("park_memory_clock", Some("hertz"), help);
    each(to, what, Gauge, |gpu| one(locked(gpu).and_then(|clocks| clocks.memory).map(hertz)))?;
    let what = ("park_lever_info", None, "What parking lowers; always 1.");
    each(to, what, Gauge, |gpu| [(vec![("lever", gpu.lever.as_str())], 1.0)])?;
    let what = ("park_hot", Some("seconds"), "Time parked for heat, work or not.");
    each(to, what, Counter, |gpu| one(gpu.figures.books.hot_s))?;
    let what = ("park_sensor_calls", None, "Driver calls that read a sensor.");
    each(to, what, Counter, |gpu| one(count(gpu.figures.books.calls)))?;
    let what = ("park_sensor_calls_parked", None, "The same while parked.");
    each(to, what, Counter, |gpu| one(count(gpu.figures.books.calls_parked)))
}

fn each<'s, I: IntoIterator<Item = Sample<'s>>>(
    to: &mut Families<'_, 's>,
    what: super::families::What<'_>,
    kind: MetricType,
    values: impl Fn(&'s ParkedGpu) -> I,
) -> fmt::Result {
    to.family(what, kind, samples(&to.subjects.parked, values))
}
