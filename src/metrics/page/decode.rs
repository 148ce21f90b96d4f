//! From the lines that matter to one value per family: the numbers read by `prometheus-parse`, then checked and
//! combined.
//!
//! The parser is handed each number as a sample with its place for a name: it takes no colon in a name, splits labels at
//! any comma, and drops without a word what it cannot read.

use std::collections::{BTreeMap, BTreeSet};

use prometheus_parse::{Scrape, Value};

use super::super::signals::{Kind, Slot};
use super::super::{Histogram, Signals};
use super::scan::{Sample, Scan};
use crate::engine::table::{Family, Part};

/// The numbers of one series, before any check.
#[derive(Debug, Default)]
struct Series {
    values: Vec<f64>,
    sums: Vec<f64>,
    counts: Vec<f64>,
    buckets: Vec<(f64, f64)>,
}

/// Reads the preferred family of every signal on the page into its place: the families read, each with why it is
/// refused, if it is.
pub(super) fn decode(scan: &Scan<'_>, signals: &mut Signals) -> Vec<(Family, Option<String>)> {
    let mut chosen: BTreeMap<Family, Vec<&Sample<'_>>> = choose(scan);
    for sample in &scan.samples {
        if let Some(samples) = chosen.get_mut(&sample.family) {
            samples.push(sample);
        }
    }
    let texts = chosen.values().flatten().flat_map(|sample| [sample.le, sample.value]);
    let mut read = numbers(texts).into_iter();
    let mut decoded = Vec::new();
    for (family, samples) in chosen {
        let numbers: Vec<Option<f64>> = read.by_ref().take(2 * samples.len()).collect();
        let refused = match scan.faults.iter().find(|(faulty, _)| *faulty == family) {
            Some((_, why)) => Some(why.clone()),
            None => combine(family, &samples, &numbers, signals.slot(family.signal)).err(),
        };
        decoded.push((family, refused));
    }
    decoded
}

/// Of every signal the first name that the page has.
fn choose<'a, 'b>(scan: &Scan<'a>) -> BTreeMap<Family, Vec<&'b Sample<'a>>> {
    let samples = scan.samples.iter().map(|sample| sample.family);
    let present: BTreeSet<Family> = samples.chain(scan.faults.iter().map(|(family, _)| *family)).collect();
    let mut chosen: Vec<Family> = present.into_iter().collect();
    // Families sort by signal, then by preference.
    chosen.dedup_by_key(|family| family.signal);
    chosen.into_iter().map(|family| (family, Vec::new())).collect()
}

/// What these texts say, as `prometheus-parse` reads the value of a sample; `None` of what is no number to it, or empty.
fn numbers<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<Option<f64>> {
    let mut numbers = Vec::new();
    let lines = texts.enumerate().filter_map(|(at, text)| {
        numbers.push(None);
        (!text.is_empty()).then(|| Ok(format!("n{at} {text}")))
    });
    let samples = Scrape::parse(lines).map(|scrape| scrape.samples).unwrap_or_default();
    for sample in samples {
        let at = sample.metric.strip_prefix('n').and_then(|at| at.parse::<usize>().ok());
        if let (Some(slot), Value::Untyped(number)) = (at.and_then(|at| numbers.get_mut(at)), sample.value) {
            *slot = Some(number);
        }
    }
    numbers
}

/// Puts the one value of all series of a family into its place, or gives the first reason against it. Each sample has two
/// numbers, bound and value.
fn combine(
    family: Family,
    samples: &[&Sample<'_>],
    numbers: &[Option<f64>],
    slot: Slot<'_>,
) -> Result<(), String> {
    // Series that are one, by their number.
    let mut groups: BTreeMap<(usize, usize), Series> = BTreeMap::new();
    for (sample, numbers) in samples.iter().zip(numbers.chunks(2)) {
        let number = |at: usize, text| {
            numbers.get(at).copied().flatten().ok_or_else(|| format!("{text} is not a number"))
        };
        let bound = if sample.part == Part::Bucket { number(0, sample.le)? } else { 0.0 };
        let value = number(1, sample.value)?;
        let series = groups.entry((sample.series, sample.group)).or_default();
        match sample.part {
            Part::Value => series.values.push(sample.scale * value),
            Part::Sum => series.sums.push(sample.scale * value),
            Part::Count => series.counts.push(value),
            Part::Bucket => series.buckets.push((sample.scale * bound, value)),
        }
    }
    match slot {
        Slot::Histogram(slot) => {
            let all = groups.into_values().map(histogram_of).collect::<Result<Vec<_>, _>>()?;
            let total = Histogram::total(&all).ok_or("it has no series")?;
            sane(total.sum)?;
            *slot = Some(total);
        }
        Slot::Number(slot) => {
            let mut largest: BTreeMap<usize, f64> = BTreeMap::new();
            for ((_, group), series) in &groups {
                let value = one(&series.values, "value")?;
                largest.entry(*group).and_modify(|most| *most = most.max(value)).or_insert(value);
            }
            let largest: Vec<f64> = largest.into_values().collect();
            let kind = family.signal.kind();
            let number = kind.combine(&largest).ok_or("it has no series")?;
            if kind == Kind::Share && number > 1.0 + 1e-6 {
                return Err(format!("{number} is not a share from 0 to 1"));
            }
            *slot = Some(sane(number)?);
        }
    }
    Ok(())
}

/// A histogram whose parts agree with each other.
fn histogram_of(series: Series) -> Result<Histogram, String> {
    let sum = one(&series.sums, "_sum")?;
    let mut buckets = series.buckets;
    if buckets.iter().any(|(bound, _)| bound.is_nan()) {
        return Err("a bucket's bound is NaN".to_owned());
    }
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    for &(_, cumulative) in &buckets {
        sane(cumulative)?;
    }
    for pair in buckets.windows(2) {
        if let [(bound, cumulative), (next_bound, next)] = pair {
            if bound.total_cmp(next_bound).is_eq() {
                return Err(format!("it has the bucket {bound} twice"));
            }
            if next < cumulative {
                return Err(format!("its buckets decrease from {cumulative} to {next} at {next_bound}"));
            }
        }
    }
    let infinite = buckets.pop_if(|(bound, _)| bound.is_infinite()).map(|(_, cumulative)| cumulative);
    let count = match (series.counts.is_empty(), infinite) {
        (true, Some(infinite)) => infinite,
        _ => one(&series.counts, "_count")?,
    };
    let last = infinite.or(buckets.last().map(|(_, cumulative)| *cumulative)).unwrap_or(0.0);
    // With the infinite bucket both count the same observations; without it some may lie beyond the last bound.
    if count < last || infinite.is_some_and(|infinite| infinite < count) {
        return Err(format!("its count {count} contradicts its last bucket {last}"));
    }
    Ok(Histogram { sum, count, buckets })
}

/// The only number of a series that must have exactly one.
fn one(numbers: &[f64], what: &str) -> Result<f64, String> {
    match numbers {
        [number] => sane(*number),
        [] => Err(format!("it has no {what}")),
        _ => Err(format!("it has one series twice ({what})")),
    }
}

/// Ten million tokens a second for three years come to this.
const MOST: f64 = 1e15;

/// A number that can be a count, a level or a time.
fn sane(number: f64) -> Result<f64, String> {
    if !number.is_finite() {
        Err(format!("{number} is not a finite number"))
    } else if number < 0.0 {
        Err(format!("{number} is negative"))
    } else if number > MOST {
        Err(format!("{number:e} is more than any server counts"))
    } else {
        Ok(number)
    }
}
