//! The quantile of Student's t that a 95 % interval needs.

/// 97.5 % quantiles for 1 to 30 degrees of freedom (scipy.stats.t.ppf).
const TABLE: [f64; 30] = [
    12.706_205, 4.302_653, 3.182_446, 2.776_445, 2.570_582, 2.446_912, 2.364_624, 2.306_004, 2.262_157,
    2.228_139, 2.200_985, 2.178_813, 2.160_369, 2.144_787, 2.131_450, 2.119_905, 2.109_816, 2.100_922,
    2.093_024, 2.085_963, 2.079_614, 2.073_873, 2.068_658, 2.063_899, 2.059_539, 2.055_529, 2.051_831,
    2.048_407, 2.045_230, 2.042_272,
];
/// The same quantile of the normal distribution.
const NORMAL: f64 = 1.959_964;

/// The 97.5 % quantile of Student's t; above the table by the first terms of Fisher's expansion in 1/df.
pub(crate) fn quantile_975(degrees: u64) -> f64 {
    if let Some(value) = usize::try_from(degrees).ok().and_then(|d| TABLE.get(d.checked_sub(1)?)) {
        return *value;
    }
    #[expect(clippy::cast_precision_loss, reason = "a correction that vanishes")]
    let n = degrees.max(1) as f64;
    let z = NORMAL;
    let first = (z.powi(3) + z) / (4.0 * n);
    let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / (96.0 * n * n);
    let third = (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / (384.0 * n.powi(3));
    z + first + second + third
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_scipys() {
        // scipy.stats.t.ppf(0.975, df)
        for (degrees, expected) in [
            (1, 12.706_204_7),
            (4, 2.776_445_1),
            (30, 2.042_272_5),
            (31, 2.039_513_4),
            (60, 2.000_297_8),
            (1000, 1.962_339_1),
        ] {
            approx::assert_relative_eq!(quantile_975(degrees), expected, max_relative = 1e-6);
        }
    }
}
