//! When the metrics page is not available: stretches that the seed decides, so many seconds of every 600.

use super::dice::Dice;
use agft::units::{Seconds, Time};

/// Stretches are laid out anew in every span of this length, in seconds.
pub(crate) const SPAN: f64 = 600.0;
/// Shortest and longest stretch, in seconds.
pub(crate) const SHORTEST: f64 = 5.0;
const LONGEST: f64 = 60.0;
/// Most of a span that can be without a page: pauses between the stretches need some room.
pub(crate) const MOST: f64 = 540.0;
/// Length of a stretch in the mean, in seconds.
const MEAN: f64 = (SHORTEST + LONGEST) / 2.0;

/// Is the page away at this moment, if it is for `each_span` of every 600 s?
pub(super) fn is_out(seed: u64, each_span: Seconds, at: Time) -> bool {
    if each_span.0 <= 0.0 {
        return false;
    }
    let span = (at.0 / SPAN).floor();
    let within = at.0 - span * SPAN;
    stretches(seed, span, each_span.0).iter().any(|(from, to)| (*from..*to).contains(&within))
}

/// The stretches of one span, from its start, in order: each of 5-60 s, together `total`.
fn stretches(seed: u64, span: f64, total: f64) -> Vec<(f64, f64)> {
    let total = total.clamp(SHORTEST, MOST);
    let mut dice = Dice::new(seed ^ span.to_bits(), "outages");
    let (fewest, most) = ((total / LONGEST).ceil(), (total / SHORTEST).floor());
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and 108")]
    let count = (total / MEAN).round().clamp(fewest, most) as u32;
    // Beyond its shortest length each gets some of what is left, so much that the others can take the rest.
    let mut left = total - SHORTEST * f64::from(count);
    let lengths: Vec<f64> = (1..=count)
        .rev()
        .map(|to_come| {
            let others = (LONGEST - SHORTEST) * f64::from(to_come - 1);
            let (low, high) = ((left - others).max(0.0), left.min(LONGEST - SHORTEST));
            let more = if to_come == 1 { left } else { low + (high - low) * dice.uniform() };
            left -= more;
            SHORTEST + more
        })
        .collect();
    let pauses: Vec<f64> = (0..=count).map(|_| dice.exponential(1.0)).collect();
    let scale = (SPAN - total) / pauses.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    let mut at = 0.0;
    lengths
        .into_iter()
        .zip(pauses)
        .map(|(length, pause)| {
            let from = at + scale * pause;
            at = from + length;
            (from, at)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn stretches_of_a_span_have_the_wanted_sum_and_length_and_do_not_overlap(
            seed: u64, span in 0_u32..100, total in SHORTEST..MOST,
        ) {
            let stretches = stretches(seed, f64::from(span), total);
            let lengths: Vec<f64> = stretches.iter().map(|(from, to)| to - from).collect();
            prop_assert!((lengths.iter().sum::<f64>() - total).abs() < 1e-6);
            let allowed = SHORTEST - 1e-6..LONGEST + 1e-6;
            prop_assert!(lengths.iter().all(|length| allowed.contains(length)), "{lengths:?}");
            prop_assert!(stretches.windows(2).all(|pair| pair[0].1 <= pair[1].0));
            prop_assert!(stretches[0].0 >= 0.0 && stretches[stretches.len() - 1].1 <= SPAN + 1e-6);
        }

        #[test]
        fn page_is_away_for_the_wanted_share_of_every_span(seed: u64, total in 20.0..400.0) {
            let away = (0..6000).filter(|k| is_out(seed, Seconds(total), Time(0.2 * f64::from(*k)))).count();
            // Each edge of a stretch is known to a fifth of a second.
            prop_assert!((0.2 * away as f64 - 2.0 * total).abs() < 10.0, "{away} fifths for {total} s");
        }
    }

    #[test]
    fn seeds_differ_and_no_outage_is_none() {
        assert_ne!(stretches(1, 0.0, 60.0), stretches(2, 0.0, 60.0));
        assert_ne!(stretches(1, 0.0, 60.0), stretches(1, 1.0, 60.0));
        assert!((0..600).all(|at| !is_out(1, Seconds(0.0), Time(f64::from(at)))));
    }
}
