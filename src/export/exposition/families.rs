//! Families of samples, each with the labels of those whom it is about.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use crate::stats::Durations;
use crate::view::{GpuState, HostState, ParkedGpu, State};

/// Name without `agft_`, unit, and help.
pub(super) type What<'w> = (&'w str, Option<&'w str>, &'w str);
pub(super) type Label<'l> = (&'static str, &'l str);
/// What a sample has beside the labels of whom it is about, and its value.
pub(super) type Sample<'l> = (Vec<Label<'l>>, f64);

/// A server, or a GPU without one, by its labels.
pub(super) struct Of<'s, T> {
    pub(super) server: &'s str,
    /// Indices, with commas between them.
    pub(super) gpu: String,
    pub(super) what: &'s T,
}

impl<T> Of<'_, T> {
    fn labels(&self) -> Vec<Label<'_>> {
        vec![("server", self.server), ("gpu", &self.gpu)]
    }
}

/// Whom the page is about.
pub(super) struct Subjects<'s> {
    pub(super) servers: Vec<Of<'s, State>>,
    pub(super) gpus: Vec<Of<'s, GpuState>>,
    /// GPUs without a server.
    pub(super) parked: Vec<Of<'s, ParkedGpu>>,
}

impl<'s> Subjects<'s> {
    pub(super) fn of(host: &'s HostState) -> Self {
        let gpus = host.servers.iter().flat_map(|state| {
            let of = |what: &'s GpuState| Of { server: &state.name, gpu: what.index.to_string(), what };
            state.gpus.iter().map(of)
        });
        let parked = host.park.iter().flat_map(|park| &park.gpus);
        Self {
            servers: host
                .servers
                .iter()
                .map(|what| Of { server: &what.name, gpu: what.gpu_indices(), what })
                .collect(),
            gpus: gpus.collect(),
            parked: parked.map(|what| Of { server: "", gpu: what.index.to_string(), what }).collect(),
        }
    }
}

pub(super) fn samples<'a, T, I: IntoIterator<Item = Sample<'a>>>(
    of: &'a [Of<'a, T>],
    values: impl Fn(&'a T) -> I,
) -> Vec<Sample<'a>> {
    let each = |one: &'a Of<'a, T>| {
        values(one.what).into_iter().map(|(more, value)| ([one.labels(), more].concat(), value))
    };
    of.iter().flat_map(each).collect()
}

/// One sample without labels of its own, if the value is known.
pub(super) fn one<'l>(value: impl Into<Option<f64>>) -> Option<Sample<'l>> {
    value.into().map(|value| (Vec::new(), value))
}

/// One sample per key of a map, under the label `label`.
pub(super) fn by<'m, V: Copy>(
    label: &'static str,
    map: &'m BTreeMap<String, V>,
    value: impl Fn(V) -> f64,
) -> Vec<Sample<'m>> {
    map.iter().map(|(key, of)| (vec![(label, key.as_str())], value(*of))).collect()
}

/// An estimate and the ends of its interval.
pub(super) fn bounds(low: f64, mean: f64, high: f64) -> [Sample<'static>; 3] {
    [("low", low), ("mean", mean), ("high", high)].map(|(bound, value)| (vec![("bound", bound)], value))
}

pub(super) struct Families<'e, 's> {
    pub(super) to: DescriptorEncoder<'e>,
    pub(super) subjects: &'s Subjects<'s>,
}

impl<'s> Families<'_, 's> {
    pub(super) fn family<'l>(
        &mut self,
        (name, unit, help): What<'_>,
        kind: MetricType,
        samples: impl IntoIterator<Item = Sample<'l>>,
    ) -> fmt::Result {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let name = format!("agft_{name}");
        let unit = unit.map(|unit| Unit::Other(unit.to_owned()));
        let mut family = self.to.encode_descriptor(&name, help, unit.as_ref(), kind)?;
        for (labels, value) in samples {
            let encode = |metric: &mut MetricEncoder<'_>| match kind {
                MetricType::Counter => metric.encode_counter::<NoLabelSet, _, f64>(&value, None),
                _ => metric.encode_gauge(&value),
            };
            if labels.is_empty() {
                encode(&mut family)?;
            } else {
                encode(&mut family.encode_family(&safe(&labels))?)?;
            }
        }
        Ok(())
    }

    pub(super) fn info(&mut self, name: &str, help: &str, labels: &[Label<'_>]) -> fmt::Result {
        let name = format!("agft_{name}");
        let mut family = self.to.encode_descriptor(&name, help, None, MetricType::Info)?;
        family.encode_info(&safe(labels))
    }

    pub(super) fn of_process(&mut self, what: What<'_>, value: impl Into<Option<f64>>) -> fmt::Result {
        self.family(what, MetricType::Gauge, one(value))
    }

    pub(super) fn gauge<V: Into<Option<f64>>>(
        &mut self,
        what: What<'_>,
        value: impl Fn(&'s State) -> V,
    ) -> fmt::Result {
        self.gauges(what, |state| one(value(state)))
    }

    pub(super) fn gauges<I: IntoIterator<Item = Sample<'s>>>(
        &mut self,
        what: What<'_>,
        values: impl Fn(&'s State) -> I,
    ) -> fmt::Result {
        self.family(what, MetricType::Gauge, samples(&self.subjects.servers, values))
    }

    pub(super) fn counter(&mut self, what: What<'_>, value: impl Fn(&'s State) -> f64) -> fmt::Result {
        self.counters(what, |state| one(value(state)))
    }

    pub(super) fn counters<I: IntoIterator<Item = Sample<'s>>>(
        &mut self,
        what: What<'_>,
        values: impl Fn(&'s State) -> I,
    ) -> fmt::Result {
        self.family(what, MetricType::Counter, samples(&self.subjects.servers, values))
    }

    /// A gauge for each GPU that has a server.
    pub(super) fn of_gpus(
        &mut self,
        what: What<'_>,
        value: impl Fn(&GpuState) -> Option<f64>,
    ) -> fmt::Result {
        self.family(what, MetricType::Gauge, samples(&self.subjects.gpus, |gpu| one(value(gpu))))
    }

    /// A family of servers or their GPUs, and of GPUs without one, which have it under its old name too.
    pub(super) fn with_parked(
        &mut self,
        what: What<'_>,
        old: &str,
        kind: MetricType,
        mut all: Vec<Sample<'s>>,
        parked: Vec<Sample<'s>>,
    ) -> fmt::Result {
        let (name, unit, _) = what;
        all.extend(parked.iter().cloned());
        self.family(what, kind, all)?;
        let help = alias(name, unit, kind);
        let nameless = parked.into_iter().map(|(mut labels, value)| {
            labels.retain(|(label, _)| *label != "server");
            (labels, value)
        });
        self.family((old, unit, &help), kind, nameless)
    }

    pub(super) fn timing(
        &mut self,
        name: &str,
        help: &str,
        timing: impl Fn(&'s State) -> &'s Durations,
    ) -> fmt::Result {
        let of = self.subjects.servers.iter().map(|of| (of.labels(), timing(of.what)));
        self.histogram(name, help, of)
    }

    pub(super) fn histogram<'l>(
        &mut self,
        name: &str,
        help: &str,
        of: impl IntoIterator<Item = (Vec<Label<'l>>, &'l Durations)>,
    ) -> fmt::Result {
        let mut of = of.into_iter().peekable();
        if of.peek().is_none() {
            return Ok(());
        }
        let name = format!("agft_{name}");
        let mut family =
            self.to.encode_descriptor(&name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for (labels, timing) in of {
            let (sum, count) = (timing.sum_s, timing.count);
            family.encode_family(&safe(&labels))?.encode_histogram::<NoLabelSet>(
                sum,
                count,
                &timing.buckets(),
                None,
            )?;
        }
        Ok(())
    }
}

/// The help of an old name.
pub(super) fn alias(name: &str, unit: Option<&str>, kind: MetricType) -> String {
    let unit = unit.map_or(String::new(), |unit| format!("_{unit}"));
    let total = if matches!(kind, MetricType::Counter) { "_total" } else { "" };
    format!("Old name, for one release: agft_{name}{unit}{total} of GPUs without a server.")
}

/// Labels whose values nobody's screen obeys; the encoder escapes what the format itself needs.
fn safe<'l>(labels: &'l [Label<'_>]) -> Vec<(&'static str, Cow<'l, str>)> {
    labels.iter().map(|(name, value)| (*name, crate::text::line(value))).collect()
}
