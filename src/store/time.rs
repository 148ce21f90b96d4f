//! The one place that turns a moment into text or a number.

use jiff::Timestamp;

/// RFC 3339 in UTC with milliseconds: `2026-08-21T09:30:00.250Z`.
pub(crate) fn rfc3339(at: Timestamp) -> String {
    format!("{at:.3}")
}

/// Seconds since 1970-01-01T00:00:00Z.
pub(super) fn unix_seconds(at: Timestamp) -> f64 {
    at.as_duration().as_secs_f64()
}

/// UTC to the second, fit for a file name and sorting by time: `20260821_093000`.
pub(super) fn file_stamp(at: Timestamp) -> String {
    at.strftime("%Y%m%d_%H%M%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_written_in_utc_with_milliseconds() {
        let at: Timestamp = "2026-08-21T11:30:00.25+02:00".parse().unwrap();
        assert_eq!(rfc3339(at), "2026-08-21T09:30:00.250Z");
        assert_eq!(file_stamp(at), "20260821_093000");
        approx::assert_relative_eq!(unix_seconds(at), 1_787_304_600.25);
    }
}
