//! A recorded page with places for simulated numbers.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use agft::engine::Profile;
use agft::engine::table::{Part, Reading, of_page};
use agft::metrics::Signal;
use agft::metrics::page::Text;

/// What a place on the page shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Source {
    /// Of a counter, gauge or instant.
    Number(Signal),
    /// Of a ratio of two counters: the one above ...
    RatioSum(Signal),
    /// ... and the one below.
    RatioCount(Signal),
    /// Observations of a histogram up to its bound of this number, counted from 0; the last one is infinite.
    Bucket(Signal, usize),
    /// The sum of a histogram.
    Sum(Signal),
    /// All observations of a histogram.
    Count(Signal),
}

/// The page: text and places in turn.
#[derive(Debug)]
pub(super) struct Template {
    /// The text before each place.
    texts: Vec<String>,
    places: Vec<Place>,
    /// The places in the order in which they are worked out.
    order: Vec<usize>,
    bounds: BTreeMap<Signal, &'static [f64]>,
}

/// A number on the page.
#[derive(Debug, Default)]
struct Place {
    /// `None`: 0, as another series has it all.
    source: Option<Source>,
    /// Places whose numbers are taken off: other series of the same signal that have a signal of their own.
    less: Vec<usize>,
    /// What one of its units is in agft's.
    scale: f64,
}

/// A line of the recorded page that agft reads.
struct Line<'a> {
    /// Comments before it, name and labels.
    text: String,
    labels: &'a str,
    /// The name behind the prefix.
    bare: &'a str,
    readings: Vec<Reading>,
}

impl Template {
    /// Of the page those families that the profile reads; `None` if it is not the profile's page.
    pub(super) fn new(profile: &'static Profile, page: &str) -> Option<Self> {
        let lines = lines(profile, page)?;
        let bounds = bounds(&lines);
        let mut places: Vec<Place> = lines.iter().map(|_| Place { scale: 1.0, ..Place::default() }).collect();
        // Each signal's lines, by what of it they show.
        let mut sets: Vec<(Source, Vec<usize>, f64)> = Vec::new();
        for (at, line) in lines.iter().enumerate() {
            for reading in &line.readings {
                let source = line.source(reading, &bounds)?;
                match sets.iter_mut().find(|(of, ..)| *of == source) {
                    Some((_, set, _)) => set.push(at),
                    None => sets.push((source, vec![at], reading.scale)),
                }
            }
        }
        // A series with fewer signals first: the others then have what is left.
        sets.sort_by_key(|(_, set, _)| set.len());
        let mut order = Vec::new();
        for (source, set, scale) in sets {
            let (known, free): (Vec<usize>, Vec<usize>) = set.into_iter().partition(|at| order.contains(at));
            let Some(place) = free.first().and_then(|first| places.get_mut(*first)) else { continue };
            // A bucket counts no unit.
            let scale = if matches!(source, Source::Bucket(..) | Source::Count(_)) { 1.0 } else { scale };
            *place = Place { source: Some(source), less: known, scale };
            order.extend(free);
        }
        let texts = lines.into_iter().map(|line| line.text).collect();
        Some(Self { texts, places, order, bounds })
    }

    /// The bucket bounds of a histogram of the page, in agft's unit, without the infinite one.
    pub(super) fn bounds(&self, signal: Signal) -> Option<&'static [f64]> {
        self.bounds.get(&signal).copied()
    }

    /// The page with these numbers, of so many significant digits.
    pub(super) fn render(&self, digits: Option<usize>, number: impl Fn(Source) -> f64) -> String {
        let mut numbers = vec![0.0; self.places.len()];
        for &at in &self.order {
            let Some(place) = self.places.get(at) else { continue };
            let Some(source) = place.source else { continue };
            let less: f64 = place.less.iter().filter_map(|other| numbers.get(*other)).sum();
            let value = (number(source) / place.scale - less).max(0.0);
            if let Some(slot) = numbers.get_mut(at) {
                *slot = value;
            }
        }
        let mut page = String::new();
        for (text, value) in self.texts.iter().zip(numbers) {
            page.push_str(text);
            // Neither can fail: a string takes what it is given.
            let _ = match digits {
                Some(digits) => writeln!(page, " {}", rounded(value, digits)),
                None => writeln!(page, " {value:?}"),
            };
        }
        page
    }
}

/// To so many significant digits.
fn rounded(value: f64, digits: usize) -> f64 {
    format!("{value:.*e}", digits.saturating_sub(1)).parse().unwrap_or(value)
}

impl Line<'_> {
    fn source(&self, reading: &Reading, bounds: &BTreeMap<Signal, &'static [f64]>) -> Option<Source> {
        let signal = reading.family.signal;
        let of_histogram =
            |suffix| self.bare.strip_prefix(reading.family.name).is_some_and(|rest| rest == suffix);
        Some(match reading.part {
            Part::Value => Source::Number(signal),
            Part::Sum if of_histogram("_sum") => Source::Sum(signal),
            Part::Sum => Source::RatioSum(signal),
            Part::Count if of_histogram("_count") => Source::Count(signal),
            Part::Count => Source::RatioCount(signal),
            Part::Bucket => {
                let bound = reading.scale * label(self.labels, "le")?.parse::<f64>().ok()?;
                let known = bounds.get(&signal)?;
                let at = known.iter().position(|other| other.total_cmp(&bound).is_eq());
                Source::Bucket(signal, at.unwrap_or(known.len()))
            }
        })
    }
}

/// The lines that agft reads, of each signal those of the preferred name.
fn lines<'a>(profile: &'static Profile, page: &'a str) -> Option<Vec<Line<'a>>> {
    let prefix = profile.prefix(Text::new(page.as_bytes()).ok()?)?;
    let (mut lines, mut comments) = (Vec::new(), String::new());
    for line in page.lines() {
        if line.starts_with('#') {
            let _ = writeln!(comments, "{line}");
            continue;
        }
        let comments = std::mem::take(&mut comments);
        let Some((series, _)) = line.rsplit_once(' ') else { continue };
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let mut readings: Vec<Reading> = of_page(profile, name, prefix).collect();
        readings.retain(|reading| reading.only.iter().all(|only| only.takes(label(labels, only.label()))));
        if !readings.is_empty() {
            let bare = name.strip_prefix(prefix).unwrap_or(name);
            lines.push(Line { text: comments + series, labels, bare, readings });
        }
    }
    let mut preferred: BTreeMap<Signal, usize> = BTreeMap::new();
    for reading in lines.iter().flat_map(|line| &line.readings) {
        let family = reading.family;
        preferred
            .entry(family.signal)
            .and_modify(|rank| *rank = family.rank.min(*rank))
            .or_insert(family.rank);
    }
    for line in &mut lines {
        line.readings.retain(|reading| preferred.get(&reading.family.signal) == Some(&reading.family.rank));
    }
    lines.retain(|line| !line.readings.is_empty());
    Some(lines)
}

/// The finite bucket bounds of each histogram. They live as long as the process, as the recorded pages do.
fn bounds(lines: &[Line<'_>]) -> BTreeMap<Signal, &'static [f64]> {
    let mut found: BTreeMap<Signal, Vec<f64>> = BTreeMap::new();
    for line in lines {
        for reading in line.readings.iter().filter(|reading| reading.part == Part::Bucket) {
            let bound = label(line.labels, "le").and_then(|le| le.parse::<f64>().ok());
            let bounds = found.entry(reading.family.signal).or_default();
            bounds.extend(bound.map(|bound| reading.scale * bound).filter(|bound| bound.is_finite()));
        }
    }
    let sorted = |mut bounds: Vec<f64>| {
        bounds.sort_by(f64::total_cmp);
        bounds.dedup();
        &*bounds.leak()
    };
    found.into_iter().map(|(signal, bounds)| (signal, sorted(bounds))).collect()
}

/// The value of a label, of `a="b",c="d"}`. No label of a recorded page has a quote in its value.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels.split("\",").find_map(|pair| {
        let (label, value) = pair.split_once("=\"")?;
        (label == name).then(|| value.trim_end_matches("\"}"))
    })
}
