//! From the lines that matter to one value per family: the numbers read by `prometheus-parse`, then checked and
//! combined.
//!
//! The parser is fed a minimal page of its own dialect (names without colon, the labels `series` and `le` only). What
//! it hands back is counted, because it drops a line that it cannot read without a word.

use std::collections::BTreeMap;
use std::io;

use prometheus_parse::{Scrape, Value};

use super::super::Histogram;
use super::super::names::{self, Family, Kind, Part};
use super::scan::{Sample, Scan};

/// A family's value over all its series.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Combined {
    /// Counter or gauge.
    Number(f64),
    /// Histogram.
    Histogram(Histogram),
}

/// The numbers of one series, before any check.
#[derive(Debug, Default)]
struct Series {
    values: Vec<f64>,
    sums: Vec<f64>,
    counts: Vec<f64>,
    buckets: Vec<(f64, f64)>,
}

/// Decodes the preferred family of every signal on the page: its value, or why it is refused.
pub(super) fn decode(scan: &Scan<'_>) -> Vec<(Family, Result<Combined, String>)> {
    let chosen = choose(scan);
    let read = read(scan, &chosen);
    chosen
        .into_iter()
        .map(|family| {
            let combined = match scan.faults.iter().find(|(faulty, _)| *faulty == family) {
                Some((_, why)) => Err(why.clone()),
                None => combine(family, scan, read.get(&family)),
            };
            (family, combined)
        })
        .collect()
}

/// Of every signal the first name that the page has.
fn choose(scan: &Scan<'_>) -> Vec<Family> {
    let samples = scan.samples.iter().map(|sample| sample.family);
    let present: std::collections::BTreeSet<Family> =
        samples.chain(scan.faults.iter().map(|(family, _)| *family)).collect();
    let mut chosen: Vec<Family> = present.into_iter().collect();
    // Families sort by signal, then by preference.
    chosen.dedup_by_key(|family| family.signal());
    chosen
}

/// Lets `prometheus-parse` read the numbers of the chosen families.
fn read(scan: &Scan<'_>, chosen: &[Family]) -> BTreeMap<Family, BTreeMap<usize, Series>> {
    let types = chosen
        .iter()
        .filter(|family| family.kind() == Kind::Histogram)
        .map(|family| format!("# TYPE {} histogram", family.name()));
    let samples = scan.samples.iter().filter(|sample| chosen.contains(&sample.family)).map(clean_line);
    let parsed = Scrape::parse(types.chain(samples).map(io::Result::Ok)).map(|scrape| scrape.samples);

    let mut families: BTreeMap<Family, BTreeMap<usize, Series>> = BTreeMap::new();
    for sample in parsed.unwrap_or_default() {
        let Some(series) = sample.labels.get("series").and_then(|series| series.parse().ok()) else {
            continue;
        };
        match sample.value {
            Value::Histogram(buckets) => {
                let Some((family, _)) = names::look_up(&format!("{}_bucket", sample.metric)) else {
                    continue;
                };
                let pairs = buckets.iter().map(|bucket| (bucket.less_than, bucket.count));
                families.entry(family).or_default().entry(series).or_default().buckets.extend(pairs);
            }
            Value::Untyped(number) | Value::Gauge(number) | Value::Counter(number) => {
                let Some((family, part)) = names::look_up(&sample.metric) else { continue };
                let series = families.entry(family).or_default().entry(series).or_default();
                match part {
                    Part::Value => series.values.push(number),
                    Part::Sum => series.sums.push(number),
                    Part::Count => series.counts.push(number),
                    Part::Bucket => {}
                }
            }
            Value::Summary(_) => {}
        }
    }
    families
}

/// The sample in the parser's dialect.
fn clean_line(sample: &Sample<'_>) -> String {
    let Sample { family, part, series, group: _, le, value } = sample;
    let (name, suffix) = (family.name(), part.suffix());
    match part {
        Part::Bucket => format!("{name}{suffix}{{series=\"{series}\",le=\"{le}\"}} {value}"),
        Part::Value | Part::Sum | Part::Count => format!("{name}{suffix}{{series=\"{series}\"}} {value}"),
    }
}

/// One value of all series of a family, or the first reason against it.
fn combine(
    family: Family,
    scan: &Scan<'_>,
    read: Option<&BTreeMap<usize, Series>>,
) -> Result<Combined, String> {
    let lines = || scan.samples.iter().filter(|sample| sample.family == family);
    let all = read.into_iter().flat_map(BTreeMap::values);
    let numbers: usize =
        all.clone().map(|s| s.values.len() + s.sums.len() + s.counts.len() + s.buckets.len()).sum();
    if numbers != lines().count() {
        let odd = lines()
            .flat_map(|sample| [sample.le, sample.value])
            .find(|text| !text.is_empty() && !reads(text));
        return Err(format!("{} is not a number", odd.unwrap_or("a value")));
    }
    match family.kind() {
        Kind::Histogram => {
            let mut total: Option<Histogram> = None;
            for series in all {
                let histogram = histogram_of(series)?;
                match &mut total {
                    Some(total) => total.add(&histogram),
                    None => total = Some(histogram),
                }
            }
            let total = total.ok_or("it has no series")?;
            sane(total.sum)?;
            Ok(Combined::Histogram(total))
        }
        kind @ (Kind::Sum | Kind::Level | Kind::Share | Kind::Instant) => {
            let group_of: BTreeMap<usize, usize> =
                lines().map(|sample| (sample.series, sample.group)).collect();
            let mut groups: BTreeMap<Option<&usize>, f64> = BTreeMap::new();
            let (mut sum, mut latest) = (0.0, 0.0_f64);
            for (number, series) in read.into_iter().flatten() {
                let value = one(&series.values, "value")?;
                sum += value;
                latest = latest.max(value);
                groups
                    .entry(group_of.get(number))
                    .and_modify(|level| *level = level.max(value))
                    .or_insert(value);
            }
            let levels: f64 = groups.values().sum();
            #[expect(clippy::cast_precision_loss, reason = "no more than 20000 series are let in")]
            let number = match kind {
                Kind::Level => levels,
                Kind::Share => levels / groups.len() as f64,
                Kind::Instant => latest,
                Kind::Sum | Kind::Histogram => sum,
            };
            if kind == Kind::Share && number > 1.0 + 1e-6 {
                return Err(format!("{number} is not a share from 0 to 1"));
            }
            Ok(Combined::Number(sane(number)?))
        }
    }
}

/// Whether the parser reads this text as a number.
fn reads(text: &str) -> bool {
    text.to_lowercase().parse::<f64>().is_ok()
}

/// A histogram whose parts agree with each other.
fn histogram_of(series: &Series) -> Result<Histogram, String> {
    let sum = one(&series.sums, "_sum")?;
    let mut buckets = series.buckets.clone();
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
