//! What came of parking, of a learning agft.

use std::fmt;

use prometheus_client::encoding::NoLabelSet;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::{Families, count};
use crate::view::ParkingState;

pub(super) fn parking(to: &mut Families<'_>, state: &ParkingState) -> fmt::Result {
    let books = &state.books;
    to.counter(("parked", Some("seconds"), "Time parked."), books.parked_s)?;
    let what = ("late_wakes", None, "Wakes that took longer than idle.wake_limit_s.");
    to.counter(what, count(books.late_wakes))?;
    let help =
        "Times that work was found at parked clocks: no client was heard, or the clocks did not come back.";
    to.counter(("missed_wakes", None, help), count(books.missed_wakes))?;
    let help = "Time from the decision to wake until the running clocks were seen to be back.";
    let latency = &books.wake_latency;
    to.0.encode_descriptor("agft_wake_latency", help, Some(&Unit::Seconds), MetricType::Histogram)?
        .encode_histogram::<NoLabelSet>(latency.sum_s, latency.count, &latency.buckets(), None)?;
    let what =
        ("parking_wait", Some("seconds"), "An idle gap is waited out so long before the clocks are parked.");
    to.gauge(what, state.wait_s)?;
    let what = ("idle_power", Some("watts"), "Mean power of idle spells that were not parked.");
    to.gauge(what, state.idle_power_w)?;
    to.gauge(("parked_power", Some("watts"), "Mean power while parked."), state.parked_power_w)?;
    let bounds = state.saved.map(|of| [("low", of.low), ("mean", of.joules), ("high", of.high)]);
    let samples = bounds.into_iter().flatten().map(|(bound, joules)| (vec![("bound", bound)], joules));
    let help =
        "Estimate: energy that parking saved, with its 95 % interval; none while there are too few spells.";
    to.gauges(("parking_saved", Some("joules"), help), samples)?;
    let known = state.levers.levers.keys();
    let saving = known.filter_map(|kind| Some((vec![("lever", kind.name())], state.levers.saving(*kind)?.0)));
    let help = "Power that parking saves by this lever, as it was measured on this GPU.";
    to.gauges(("lever_saving", Some("watts"), help), saving)
}
