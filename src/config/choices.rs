//! Values that are one of a few words, and the names of GPUs.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A type whose values have names in the file.
pub(super) trait Choice: Copy + 'static {
    /// Every accepted name with its value; the first name of a value is the one that is written.
    const NAMES: &'static [(&'static str, Self)];
}

/// One enum per choice: each line is a doc comment, the variant, and its name in the file (then others it answers to).
macro_rules! choices {
    ($(
        $(#[$about:meta])*
        $name:ident { $( $(#[$doc:meta])* $variant:ident = $text:literal $(| $alias:literal)*, )+ }
    )+) => {$(
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name {
            $( $(#[$doc])* #[serde(rename = $text)] $variant, )+
        }

        impl Choice for $name {
            const NAMES: &'static [(&'static str, Self)] =
                &[$( ($text, Self::$variant), $( ($alias, Self::$variant), )* )+];
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $( Self::$variant => $text, )+ })
            }
        }
    )+};
}

choices! {
    /// Who chooses the clocks (`control.policy`).
    PolicyKind {
        /// One ridge regression per clock, as AGFT has it.
        LinUcb = "linucb",
        /// Linear models of step time and power, shared by all clocks.
        Structured = "structured",
    }

    /// How a window's energy-delay product becomes a reward (`control.reward`).
    RewardForm {
        /// Logarithm of baseline over measured: keeps bad clocks apart.
        LogRatio = "log_ratio",
        /// AGFT's `2 (1 - min(2, measured / baseline))`.
        Clipped = "clipped",
    }

    /// Which statistic of a latency is held against its limit (`control.slo_statistic`).
    Statistic {
        /// The mean.
        Mean = "mean",
        /// The 95th percentile.
        P95 = "p95",
        /// The 99th percentile.
        P99 = "p99",
    }

    /// What is minimised (`control.objective`).
    Objective {
        /// Energy times delay.
        Edp = "edp",
        /// Energy times delay squared: slower weighs more.
        Ed2p = "ed2p",
        /// Energy alone; delay counts only through the limits.
        Energy = "energy",
    }

    /// Least severity that is logged (`logging.console_level`, `logging.file_level`).
    LogLevel {
        /// Everything.
        Trace = "TRACE",
        /// What went into each decision.
        Debug = "DEBUG",
        /// Each decision.
        Info = "INFO",
        /// What went wrong and was handled.
        Warning = "WARNING" | "WARN",
        /// What could not be handled.
        Error = "ERROR",
    }
}

/// A GPU as the file names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum GpuSelector {
    /// Index in NVML's order (PCI bus order).
    Index(u32),
    /// Stable identity: `GPU-` and 8-4-4-4-12 lower-case hexadecimal digits.
    Uuid(String),
}

impl GpuSelector {
    /// Reads a UUID as `nvidia-smi -L` prints it; `None` if it is not of that form.
    pub(super) fn from_uuid(text: &str) -> Option<Self> {
        let groups: Vec<&str> = text.strip_prefix("GPU-")?.split('-').collect();
        let lengths = groups.iter().map(|group| group.len());
        let hex = groups.iter().all(|group| group.bytes().all(|byte| byte.is_ascii_hexdigit()));
        (hex && lengths.eq([8, 4, 4, 4, 12]))
            .then(|| Self::Uuid(format!("GPU-{}", groups.join("-").to_ascii_lowercase())))
    }
}

impl fmt::Display for GpuSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "{index}"),
            Self::Uuid(uuid) => f.write_str(uuid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_is_taken_whole_and_in_lower_case_only() {
        let uuid = "GPU-0f1e2d3c-0000-1111-2222-0123456789ab";
        assert_eq!(GpuSelector::from_uuid(uuid), Some(GpuSelector::Uuid(uuid.into())));
        let upper = uuid.to_ascii_uppercase();
        assert_eq!(GpuSelector::from_uuid(&upper), Some(GpuSelector::Uuid(uuid.into())));
        for wrong in ["GPU-", "GPU-0f1e2d3c", &uuid[4..], &uuid.replace('a', "g"), &format!("{uuid}-00")] {
            assert_eq!(GpuSelector::from_uuid(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn written_name_of_a_choice_is_the_one_serde_writes() {
        for (name, level) in LogLevel::NAMES {
            assert_eq!(serde_json::to_value(level).unwrap(), level.to_string());
            assert!(*name == level.to_string() || *name == "WARN");
        }
    }
}
